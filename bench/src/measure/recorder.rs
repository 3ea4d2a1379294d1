//! What a thread measures, taken from it interval by interval.

use std::ops::AddAssign;
use std::sync::Mutex;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Nanoseconds by how often they were seen, exact to three digits.
pub(crate) type Times = Histogram<u64>;

/// A histogram without a value.
pub(crate) fn times() -> Times {
    Histogram::new(3).expect("three digits are within what a histogram can keep")
}

/// Nanoseconds of a duration; more than 584 years are cut to that.
pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What was measured in some time.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Sample {
    /// From when a request was due to its answer.
    #[serde(with = "super::exact")]
    pub(crate) latency: Times,
    /// From when a request was sent to its answer; empty in a closed loop, where that is the same.
    #[serde(with = "super::exact")]
    pub(crate) service: Times,
    /// Requests that were due and not sent when the time was over; they are in no histogram of answers.
    pub(crate) unsent: u64,
    /// What the threads spent on making requests possible rather than on requests.
    pub(crate) paused: Duration,
}

impl Sample {
    pub(crate) fn new() -> Sample {
        Sample { latency: times(), service: times(), unsent: 0, paused: Duration::ZERO }
    }

    /// Requests that were answered.
    pub(crate) fn answered(&self) -> u64 {
        self.latency.len() - self.unsent
    }
}

impl AddAssign<&Sample> for Sample {
    fn add_assign(&mut self, other: &Sample) {
        self.latency += &other.latency;
        self.service += &other.service;
        self.unsent += other.unsent;
        self.paused += other.paused;
    }
}

/// Where one thread puts what it measures, and the run takes it from.
#[derive(Debug)]
pub(crate) struct Recorder(Mutex<Sample>);

impl Recorder {
    pub(crate) fn new() -> Recorder {
        Recorder(Mutex::new(Sample::new()))
    }

    /// Lets the thread add to its sample; what that says.
    pub(crate) fn record<T>(&self, add: impl FnOnce(&mut Sample) -> T) -> T {
        add(&mut self.0.lock().expect("recording does not panic"))
    }

    /// What was measured since this was last called, added to `sum`.
    pub(crate) fn take(&self, sum: &mut Sample) {
        let mut sample = self.0.lock().expect("recording does not panic");
        *sum += &sample;
        sample.latency.reset();
        sample.service.reset();
        sample.unsent = 0;
        sample.paused = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_is_not_taken_again() {
        let recorder = Recorder::new();
        recorder.record(|sample| sample.latency += 5_000);
        let mut sum = Sample::new();
        recorder.take(&mut sum);
        recorder.record(|sample| {
            sample.latency += 7_000;
            sample.unsent += 1;
        });
        recorder.take(&mut sum);
        recorder.take(&mut sum);
        assert_eq!((sum.latency.len(), sum.unsent, sum.answered()), (2, 1, 1));
    }
}
