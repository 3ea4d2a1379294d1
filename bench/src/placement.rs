//! Which processors the two sides of a measurement run on.

use std::fmt;
use std::str::FromStr;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::error::BenchError;

/// A set of processors, written as `0` or `0,2-3`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cpus(Vec<usize>);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Cpus, String> {
        let parse = |number: &str| number.parse::<usize>().ok().filter(|cpu| *cpu < CpuSet::MAX_CPU);
        let mut cpus = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            match (parse(first), parse(last)) {
                (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
                _ => return Err("processors are numbers and ranges, such as 0 or 0,2-3".to_owned()),
            }
        }
        Ok(Cpus(cpus))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, cpu) in self.0.iter().enumerate() {
            write!(f, "{}{cpu}", if n == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Cpus {
    /// Keeps the calling thread, and the threads and processes that it starts from now on, on these processors.
    ///
    /// # Errors
    /// [`BenchError`] where the machine does not have them, or the process may not use them.
    pub(crate) fn pin_this_thread(&self) -> Result<(), BenchError> {
        let mut set = CpuSet::new();
        self.0.iter().for_each(|&cpu| set.set(cpu));
        sched_setaffinity(None, &set).map_err(BenchError::system(format!("run on the processors {self}")))
    }
}

/// Runs `start`, which starts a process, so that the process stays on `cpus`; the caller itself stays where it was.
///
/// # Errors
/// [`BenchError`] where the processors can't be had, and what `start` says.
pub(crate) fn start_on<T>(
    cpus: Option<&Cpus>,
    start: impl FnOnce() -> Result<T, BenchError>,
) -> Result<T, BenchError> {
    let Some(cpus) = cpus else {
        return start();
    };
    let before = sched_getaffinity(None).map_err(BenchError::system("learn which processors are in use"))?;
    cpus.pin_this_thread()?;
    let started = start();
    sched_setaffinity(None, &before).map_err(BenchError::system("return to the processors of before"))?;
    started
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_numbers_and_ranges() {
        let parse = |text: &str| text.parse::<Cpus>().map(|cpus| cpus.to_string());
        assert_eq!(parse("0").as_deref(), Ok("0"));
        assert_eq!(parse("1,3-5").as_deref(), Ok("1,3,4,5"));
        for bad in ["", "a", "1-", "3-2", "1,,2", "-1", "99999"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_starter_comes_back_to_its_processors() {
        let before = sched_getaffinity(None).unwrap();
        let first = (0..CpuSet::MAX_CPU).find(|&cpu| before.is_set(cpu)).unwrap();
        let inside = start_on(Some(&Cpus(vec![first])), || Ok(sched_getaffinity(None).unwrap())).unwrap();
        assert_eq!(inside.count(), 1);
        assert!(inside.is_set(first));
        assert_eq!(sched_getaffinity(None).unwrap(), before);
    }
}
