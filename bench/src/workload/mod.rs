//! What is asked for: requests, each a sequence of chunk ids in which equal ids stand for equal prefixes.

mod generate;
mod trace;

use std::collections::HashSet;
use std::path::Path;

use crate::cli::WorkloadArgs;
use crate::error::BenchError;

/// Requests that are made up where nobody says how many.
const DEFAULT_REQUESTS: usize = 300;

/// The requests of one run, in order.
#[derive(Debug)]
pub(crate) struct Workload {
    /// What a reader of the result knows it by.
    pub(crate) name: String,
    /// The chunks of each request, at least one.
    pub(crate) requests: Vec<Vec<u64>>,
}

/// What a cache that never forgets would make of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unbounded {
    /// Chunks of all requests.
    pub(crate) chunks: u64,
    /// Different chunks among them.
    pub(crate) unique_chunks: u64,
    /// Chunks found, from the start of each request up to its first miss.
    pub(crate) prefix_hit_chunks: u64,
}

impl Workload {
    /// The requests of a whole trace.
    ///
    /// # Errors
    /// Those of [`Workload::load`].
    pub(crate) fn read(path: &Path) -> Result<Vec<Vec<u64>>, BenchError> {
        trace::read(path, usize::MAX)
    }

    /// Reads the trace, or makes the requests up.
    ///
    /// # Errors
    /// [`BenchError`] where the trace can't be read or a line of it is no request.
    pub(crate) fn load(args: &WorkloadArgs) -> Result<Workload, BenchError> {
        if let Some(path) = &args.trace {
            let limit = args.requests.map_or(usize::MAX, Into::into);
            let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
            return Ok(Workload { name, requests: trace::read(path, limit)? });
        }
        let count = args.requests.map_or(DEFAULT_REQUESTS, Into::into);
        let name = format!("conversations made up from seed {}", args.seed);
        Ok(Workload { name, requests: generate::conversations(args.seed).take(count).collect() })
    }

    /// What a cache that never forgets would make of these requests.
    pub(crate) fn unbounded(&self) -> Unbounded {
        let mut seen = HashSet::<u64>::new();
        let mut result = Unbounded { chunks: 0, unique_chunks: 0, prefix_hit_chunks: 0 };
        for request in &self.requests {
            let hits = request.iter().take_while(|chunk| seen.contains(chunk)).count();
            result.prefix_hit_chunks += count(hits);
            result.chunks += count(request.len());
            seen.extend(request);
        }
        result.unique_chunks = count(seen.len());
        result
    }
}

/// A number of things in memory as the type that figures are kept in.
pub(crate) fn count(things: usize) -> u64 {
    u64::try_from(things).expect("a usize fits 64 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unbounded_cache_hits_up_to_the_first_miss() {
        let requests = vec![vec![1, 2, 3], vec![1, 2, 4], vec![5, 1, 2], vec![1, 2, 4, 6]];
        let workload = Workload { name: String::new(), requests };
        let expected = Unbounded { chunks: 13, unique_chunks: 6, prefix_hit_chunks: 5 };
        assert_eq!(workload.unbounded(), expected);
    }

    #[test]
    fn what_is_made_up_by_default_fits_a_pool_of_two_gib_and_hits_often() {
        let args = WorkloadArgs { trace: None, requests: None, seed: 1 };
        let unbounded = Workload::load(&args).unwrap().unbounded();
        assert!(unbounded.unique_chunks <= 1450, "{unbounded:?}");
        assert!(unbounded.prefix_hit_chunks > unbounded.chunks / 2, "{unbounded:?}");
    }
}
