//! `policy`: which eviction policy finds how much again, without a server and without memory.

mod known;
mod simulated;

use std::path::Path;

use serde::Serialize;

use crate::cli::PolicyArgs;
use crate::error::BenchError;
use crate::files::write_json;
use crate::workload::Workload;
use known::{Bound, Lru, S3Fifo, Sieve};
use maru_server::state::eviction::Policy;
use simulated::Simulated;

/// A cache of chunks, as far as a policy can be told by it.
trait Cache {
    /// Serves a request, and says how many of its chunks were there, from the first up to the first that was not. All are
    /// there afterwards, as far as there is room.
    fn request(&mut self, chunks: &[u64]) -> usize;
}

/// What a run comes to.
#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    trace: String,
    /// Chunks that there is room for.
    capacity: usize,
    policy: &'static str,
    /// Chunks found from the start of each request up to its first miss, of all chunks asked for.
    prefix_hit_ratio: f64,
}

/// The policies, by the names that the rows have.
const POLICIES: [&str; 5] = ["LRU", "SIEVE", "S3-FIFO", "maru", "farthest next use"];

/// Replays traces against each policy, and prints and writes what it comes to.
pub(crate) fn run(args: &PolicyArgs) -> Result<(), BenchError> {
    println!("prefix hit ratio; farthest next use knows the future and is the bound");
    print!("{:<28} {:>9}", "trace", "capacity");
    POLICIES.iter().for_each(|policy| print!(" {policy:>8}"));
    println!();
    let mut rows = Vec::new();
    for path in &args.trace {
        let (trace, requests) = (name(path), Workload::read(path)?);
        for &capacity in &args.capacity {
            print!("{trace:<28} {capacity:>9}");
            for policy in POLICIES {
                let prefix_hit_ratio = ratio(&mut *cache(policy, &requests, capacity.get()), &requests);
                print!(" {prefix_hit_ratio:>width$.4}", width = policy.len().max(8));
                rows.push(Row { trace: trace.clone(), capacity: capacity.get(), policy, prefix_hit_ratio });
            }
            println!();
        }
    }
    args.json.as_deref().map_or(Ok(()), |path: &Path| write_json(path, &Report { rows }))
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn cache(policy: &str, requests: &[Vec<u64>], capacity: usize) -> Box<dyn Cache> {
    match policy {
        "LRU" => Box::new(Lru::new(capacity)),
        "SIEVE" => Box::new(Sieve::new(capacity)),
        "S3-FIFO" => Box::new(S3Fifo::new(capacity)),
        "maru" => Box::new(Simulated::<Policy>::new(capacity)),
        _ => Box::new(Bound::new(requests, capacity)),
    }
}

fn ratio(cache: &mut dyn Cache, requests: &[Vec<u64>]) -> f64 {
    let hits = requests.iter().map(|chunks| cache.request(chunks)).sum::<usize>();
    hits as f64 / requests.iter().map(Vec::len).sum::<usize>() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(policy: &str, capacity: usize, requests: &[&[u64]]) -> Vec<usize> {
        let requests = requests.iter().map(|chunks| chunks.to_vec()).collect::<Vec<_>>();
        let mut cache = cache(policy, &requests, capacity);
        requests.iter().map(|chunks| cache.request(chunks)).collect()
    }

    #[test]
    fn every_policy_finds_what_there_is_room_for() {
        for policy in POLICIES {
            let found = hits(policy, 6, &[&[1, 2, 3], &[1, 2, 4], &[5], &[1, 2, 3], &[5]]);
            assert_eq!(found, [0, 2, 0, 3, 1], "{policy}");
        }
    }

    #[test]
    fn only_the_prefix_counts() {
        for policy in POLICIES {
            assert_eq!(hits(policy, 9, &[&[1, 2], &[3, 1, 2]]), [0, 0], "{policy}");
        }
    }

    #[test]
    fn the_known_policies_forget_what_they_are_known_to() {
        // Room for two: after 1 2 1 3, the least recently used and the first in went, or what was not visited.
        let requests: &[&[u64]] = &[&[1], &[2], &[1], &[3], &[1], &[2]];
        assert_eq!(hits("LRU", 2, requests), [0, 0, 1, 0, 1, 0]);
        assert_eq!(hits("SIEVE", 2, requests), [0, 0, 1, 0, 1, 0]);
        // The bound keeps what is next.
        assert_eq!(hits("farthest next use", 1, &[&[1], &[2], &[1], &[3], &[1]]), [0, 0, 1, 0, 1]);
    }

    #[test]
    fn a_request_that_is_larger_than_the_cache_is_served_as_far_as_there_is_room() {
        for policy in POLICIES {
            hits(policy, 3, &[&[1, 2, 3, 4, 5], &[1, 2, 3, 4, 5], &[6]]);
        }
    }
}
