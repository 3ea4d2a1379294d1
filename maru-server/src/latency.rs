//! How long frames took to serve: a histogram for each operation, of fixed size, whether anybody looks or not.

use std::time::Duration;

use maru_proto::Opcode;

/// Buckets for each power of two: a bound is at most an eighth above what its bucket counts.
const STEPS: u64 = 1 << STEP_BITS;
const STEP_BITS: u32 = 3;

/// The bound of the last bucket but one, in powers of two of a nanosecond: 17 s. What takes longer is in the last.
const LAST_POWER: u32 = 34;

/// One for each nanosecond up to [`STEPS`], then as many for each power of two, and the last.
const BUCKETS: usize = (((LAST_POWER - STEP_BITS + 1) << STEP_BITS) + 1) as usize;

/// How long the frames of one operation took.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: [u64; BUCKETS],
    /// All of them together, in nanoseconds.
    sum_ns: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [0; BUCKETS], sum_ns: 0 }
    }
}

impl Histogram {
    /// So many frames took this long, each.
    pub(crate) fn record(&mut self, each: Duration, frames: u64) {
        let ns = u64::try_from(each.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += frames;
        self.sum_ns = self.sum_ns.saturating_add(ns.saturating_mul(frames));
    }

    /// The buckets that are not empty: the longest time that each counts, in nanoseconds, and its frames.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = self.counts.iter().enumerate();
        counts.filter(|(_, count)| **count > 0).map(|(bucket, &count)| (bound(bucket), count))
    }

    /// Seconds of all frames together.
    pub(crate) fn sum_seconds(&self) -> f64 {
        Duration::from_nanos(self.sum_ns).as_secs_f64()
    }
}

/// The histograms of all operations.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Box<[Histogram]>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(vec![Histogram::default(); Opcode::ALL.len()].into())
    }
}

impl Latencies {
    /// So many frames of an operation took this long, each.
    pub(crate) fn record(&mut self, opcode: Opcode, each: Duration, frames: u64) {
        self.0[opcode.index()].record(each, frames);
    }

    /// Every operation with its histogram, in the order of [`Opcode::ALL`].
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Opcode, &Histogram)> {
        Opcode::ALL.iter().copied().zip(&self.0)
    }
}

/// The bucket that counts what took so many nanoseconds: it ends with its bound, the next begins above it.
fn bucket(ns: u64) -> usize {
    let below = ns.saturating_sub(1);
    let index = if below < STEPS {
        below
    } else {
        let power = below.ilog2() - STEP_BITS;
        (u64::from(power) << STEP_BITS) + (below >> power)
    };
    usize::try_from(index).map_or(BUCKETS - 1, |index| index.min(BUCKETS - 1))
}

/// The most nanoseconds that a bucket counts.
fn bound(bucket: usize) -> u64 {
    if bucket == BUCKETS - 1 {
        return u64::MAX;
    }
    let bucket = bucket as u64;
    match bucket >> STEP_BITS {
        0 => bucket + 1,
        power => ((bucket & (STEPS - 1)) + STEPS + 1) << (power - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_grow_and_each_belongs_to_the_bucket_that_it_ends() {
        for index in 0..BUCKETS - 1 {
            assert_eq!(bucket(bound(index)), index);
            assert_eq!(bucket(bound(index) + 1), index + 1);
        }
        assert_eq!(bound(BUCKETS - 2), 1 << LAST_POWER);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert_eq!(bucket(0), 0);
    }

    #[test]
    fn a_bound_is_at_most_an_eighth_above_what_its_bucket_counts() {
        for index in 8..BUCKETS - 1 {
            let least = bound(index - 1) + 1;
            assert!(bound(index) - least <= least / 8, "{least} to {}", bound(index));
        }
    }

    /// Those who show fewer buckets lose nothing but detail.
    #[test]
    fn every_power_of_two_is_a_bound() {
        for power in 0..=LAST_POWER {
            assert_eq!(bound(bucket(1 << power)), 1 << power);
        }
    }

    #[test]
    fn what_is_recorded_is_counted_once_and_summed_exactly() {
        let mut histogram = Histogram::default();
        histogram.record(Duration::from_nanos(1000), 3);
        histogram.record(Duration::from_secs(3600), 1);
        assert_eq!(histogram.buckets().collect::<Vec<_>>(), [(1024, 3), (u64::MAX, 1)]);
        assert!((histogram.sum_seconds() - 3_600.000_003).abs() < 1e-9);
    }

    #[test]
    fn operations_do_not_mix() {
        let mut latencies = Latencies::default();
        latencies.record(Opcode::PinKv, Duration::from_micros(1), 1);
        let used = latencies.iter().filter(|(_, histogram)| histogram.buckets().next().is_some());
        assert_eq!(used.map(|(opcode, _)| opcode).collect::<Vec<_>>(), [Opcode::PinKv]);
    }
}
