//! How long frames took to serve: a histogram for each operation, of fixed size, whether anybody looks or not.

use std::time::Duration;

use maru_proto::{LatencyBucket, Opcode};

/// How long the frames of one operation took, or the calls.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: [u64; LatencyBucket::COUNT],
    /// All of them together, in nanoseconds.
    sum_ns: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [0; LatencyBucket::COUNT], sum_ns: 0 }
    }
}

impl Histogram {
    /// So many frames took this long, each.
    pub(crate) fn record(&mut self, each: Duration, frames: u64) {
        let ns = u64::try_from(each.as_nanos()).unwrap_or(u64::MAX);
        self.add(LatencyBucket::of(ns), frames, ns.saturating_mul(frames));
    }

    /// So many more are in a bucket, which took this long together. Others may have counted them, so that nothing is too much.
    pub(crate) fn add(&mut self, bucket: LatencyBucket, count: u64, total_ns: u64) {
        let counted = &mut self.counts[bucket.index()];
        *counted = counted.saturating_add(count);
        self.sum_ns = self.sum_ns.saturating_add(total_ns);
    }

    /// The buckets that are not empty: the longest time that each counts, in nanoseconds, and its frames.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let counts = LatencyBucket::all().zip(self.counts);
        counts.filter(|(_, count)| *count > 0).map(|(bucket, count)| (bucket.upper_ns(), count))
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

#[cfg(test)]
mod tests {
    use super::*;

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
