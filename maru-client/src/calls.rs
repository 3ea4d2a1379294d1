//! How long the calls of a handler take, as its callers see it: counted where the configuration says so.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use maru_proto::{ClientOperation, LatencyBucket, ReportRecord};

/// The calls of one operation that took about equally long.
#[derive(Debug, Default)]
struct Counted {
    count: AtomicU64,
    total_ns: AtomicU64,
}

/// A histogram for each operation, of fixed size, that any thread adds to without waiting.
#[derive(Debug)]
pub(crate) struct CallTimes(Box<[Counted]>);

impl Default for CallTimes {
    fn default() -> CallTimes {
        let buckets = ClientOperation::ALL.len() * LatencyBucket::COUNT;
        CallTimes((0..buckets).map(|_| Counted::default()).collect())
    }
}

impl CallTimes {
    /// A call took this long.
    pub(crate) fn record(&self, operation: ClientOperation, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let counted = &self.0[place(operation, LatencyBucket::of(ns))];
        counted.count.fetch_add(1, Ordering::Relaxed);
        // Whoever sees the time sees the call: no time is told without it.
        counted.total_ns.fetch_add(ns, Ordering::Release);
    }

    /// A record for each bucket, in the order of operations and bounds, also where nothing is in it.
    pub(crate) fn records(&self) -> impl Iterator<Item = ReportRecord> {
        let buckets = ClientOperation::ALL.iter();
        let buckets = buckets.flat_map(|operation| LatencyBucket::all().map(|bucket| (*operation, bucket)));
        buckets.zip(&self.0).map(|((operation, bucket), counted)| {
            let total_ns = counted.total_ns.load(Ordering::Acquire);
            ReportRecord {
                instance: 0.into(),
                operation: (operation as u16).into(),
                reserved: 0.into(),
                upper_ns: bucket.upper_ns().into(),
                calls: counted.count.load(Ordering::Relaxed).into(),
                total_ns: total_ns.into(),
            }
        })
    }
}

/// Where a bucket stands among all: operations are numbered from 1 up, without a gap.
fn place(operation: ClientOperation, bucket: LatencyBucket) -> usize {
    (operation as usize - 1) * LatencyBucket::COUNT + bucket.index()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is in the buckets that are not empty: operation, bound, calls, nanoseconds.
    fn counted(times: &CallTimes) -> Vec<(u16, u64, u64, u64)> {
        let all = times.records().filter(|record| record.calls.get() > 0);
        all.map(|it| (it.operation.get(), it.upper_ns.get(), it.calls.get(), it.total_ns.get())).collect()
    }

    #[test]
    fn calls_are_counted_by_operation_and_time() {
        let times = CallTimes::default();
        assert_eq!(counted(&times), []);
        times.record(ClientOperation::Delete, Duration::from_nanos(1000));
        times.record(ClientOperation::Delete, Duration::from_nanos(1024));
        times.record(ClientOperation::Alloc, Duration::from_secs(3600));
        let (alloc, delete) = (ClientOperation::Alloc as u16, ClientOperation::Delete as u16);
        let expected = [(alloc, u64::MAX, 1, 3_600_000_000_000), (delete, 1024, 2, 2024)];
        assert_eq!(counted(&times), expected);
    }

    #[test]
    fn every_bucket_of_every_operation_has_a_place_of_its_own() {
        for (n, record) in CallTimes::default().records().enumerate() {
            let operation = ClientOperation::from_u16(record.operation.get()).unwrap();
            let bucket = LatencyBucket::ending_at(record.upper_ns.get()).unwrap();
            assert_eq!(place(operation, bucket), n);
        }
    }

    #[test]
    fn no_call_of_any_thread_is_lost_and_no_time_is_seen_without_its_call() {
        let times = CallTimes::default();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..10_000 {
                        times.record(ClientOperation::Exists, Duration::from_nanos(100));
                    }
                });
            }
            for _ in 0..100 {
                assert!(times.records().all(|seen| seen.total_ns.get() <= 100 * seen.calls.get()));
            }
        });
        assert_eq!(counted(&times), [(ClientOperation::Exists as u16, 104, 40_000, 4_000_000)]);
    }
}
