//! What parent and worker say to each other: the parent announces a measurement, the worker connects and is ready, the
//! parent names the time at which all begin, and the worker reports how it goes.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::measure::pace::Tempo;
use crate::measure::recorder::Sample;
use crate::measure::run::End;

/// A measurement, as the parent announces it; a [`Moment`] to begin at follows once all are ready.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(super) struct Task {
    /// How requests are paced, over all processes.
    pub(super) tempo: Tempo,
    /// When it ends, over all processes.
    pub(super) end: End,
}

/// What a worker reports of its share.
#[derive(Debug, Deserialize, Serialize)]
pub(super) enum Report {
    /// The warm-up is over.
    Begun,
    /// What was measured in some time.
    Interval(Box<Sample>, Duration),
    /// All is measured.
    Over {
        /// From the end of the warm-up to the last answer.
        elapsed: Duration,
        /// Threads that measured it.
        threads: u32,
    },
}

/// A time that means the same in all processes of a machine: since it started.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct Moment(Duration);

impl Moment {
    /// The time so far from now.
    pub(super) fn after(wait: Duration) -> Moment {
        Moment(now() + wait)
    }

    /// The same time to this process.
    pub(super) fn instant(self) -> Instant {
        Instant::now() + self.0.saturating_sub(now())
    }
}

fn now() -> Duration {
    Duration::try_from(clock_gettime(ClockId::Monotonic)).expect("the clock counts up from 0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_an_instant() {
        let wait = Duration::from_secs(5);
        let before = Instant::now() + wait;
        let moment = Moment::after(wait);
        let json = serde_json::to_string(&moment).unwrap();
        let instant = serde_json::from_str::<Moment>(&json).unwrap().instant();
        assert!(instant >= before && instant <= before + Duration::from_secs(1));
    }
}
