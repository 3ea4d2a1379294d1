//! Figures: the server's, and the handler's own.

use std::collections::BTreeMap;
use std::time::Duration;

use maru_proto::{ClientOperation, LatencyRecord, Opcode, ReportRecord, StatKind, StatRecord};

/// The server's figures, as of one moment.
#[derive(Clone, Debug)]
pub struct ServerStats {
    records: Vec<StatRecord>,
}

impl ServerStats {
    pub(crate) fn new(records: Vec<StatRecord>) -> ServerStats {
        ServerStats { records }
    }

    /// A figure; 0 where the server does not have it. Of figures with a detail, the sum over all.
    pub fn get(&self, kind: StatKind) -> u64 {
        self.of(kind).map(|record| record.value.get()).sum()
    }

    /// A figure of one detail; 0 where the server does not have it.
    pub fn get_detail(&self, kind: StatKind, detail: u16) -> u64 {
        self.of(kind).filter(|record| record.detail.get() == detail).map(|record| record.value.get()).sum()
    }

    /// Frames of an operation that were served.
    pub fn frames(&self, opcode: Opcode) -> u64 {
        self.get_detail(StatKind::Frames, u16::from(opcode as u8))
    }

    fn of(&self, kind: StatKind) -> impl Iterator<Item = &StatRecord> {
        self.records.iter().filter(move |record| record.kind.get() == kind as u16)
    }
}

/// How long the server worked on requests, by operation, as of one moment: from when it has the request until the answer is
/// ready to be sent. What a request waits for others, and what it takes to travel, is not in it.
#[derive(Clone, Debug)]
pub struct ServerLatencies {
    buckets: Vec<LatencyRecord>,
}

impl ServerLatencies {
    pub(crate) fn new(buckets: Vec<LatencyRecord>) -> ServerLatencies {
        ServerLatencies { buckets }
    }

    /// The operations that were asked for and that this client knows, in the order of their opcodes.
    pub fn operations(&self) -> impl Iterator<Item = Opcode> {
        Opcode::ALL.iter().copied().filter(|opcode| self.of(*opcode).count() > 0)
    }

    /// The latencies of one operation.
    pub fn of(&self, opcode: Opcode) -> Latencies {
        let opcode = u16::from(opcode as u8);
        let of_operation = self.buckets.iter().filter(|bucket| bucket.opcode.get() == opcode);
        let mut buckets =
            of_operation.map(|bucket| (bucket.upper_ns.get(), bucket.count.get())).collect::<Vec<_>>();
        buckets.sort_unstable();
        Latencies { buckets }
    }
}

/// How long the calls of handlers took that report it, as their callers saw it, as of one moment: what each told last. A call
/// counts once, whatever the number of its keys.
#[derive(Clone, Debug)]
pub struct ReportedLatencies {
    buckets: Vec<ReportRecord>,
}

impl ReportedLatencies {
    pub(crate) fn new(mut buckets: Vec<ReportRecord>) -> ReportedLatencies {
        buckets.sort_by_key(|bucket| bucket.instance.get());
        ReportedLatencies { buckets }
    }

    /// The numbers of the instances that have reported, ascending.
    pub fn instances(&self) -> Vec<u32> {
        let mut instances = self.buckets.iter().map(|bucket| bucket.instance.get()).collect::<Vec<_>>();
        instances.dedup();
        instances
    }

    /// The calls of one operation of an instance.
    pub fn of(&self, instance: u32, operation: ClientOperation) -> Latencies {
        let buckets = self.buckets_of(instance).iter();
        sum(buckets.filter(|bucket| bucket.operation.get() == operation as u16))
    }

    /// All calls of an instance together.
    pub fn all_of(&self, instance: u32) -> Latencies {
        sum(self.buckets_of(instance).iter())
    }

    fn buckets_of(&self, instance: u32) -> &[ReportRecord] {
        let begin = self.buckets.partition_point(|bucket| bucket.instance.get() < instance);
        let end = self.buckets.partition_point(|bucket| bucket.instance.get() <= instance);
        &self.buckets[begin..end]
    }
}

fn sum<'a>(buckets: impl Iterator<Item = &'a ReportRecord>) -> Latencies {
    let mut sums = BTreeMap::<u64, u64>::new();
    for bucket in buckets {
        let calls = sums.entry(bucket.upper_ns.get()).or_default();
        *calls = calls.saturating_add(bucket.calls.get());
    }
    Latencies { buckets: sums.into_iter().collect() }
}

/// How long the requests of one operation took, or the calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latencies {
    /// Nanoseconds that each of so many requests took at most, ascending.
    buckets: Vec<(u64, u64)>,
}

impl Latencies {
    /// Requests.
    pub fn count(&self) -> u64 {
        // Others may have counted.
        self.buckets.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
    }

    /// What so many percent of the requests took at most, 0 to 100: 50 for the median. Up to an eighth more than they did,
    /// as the server counts; [`Duration::MAX`] where they took longer than it can say. `None` without any request.
    pub fn percentile(&self, percent: f64) -> Option<Duration> {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a share of a count lies between 0 and the count, and a rounding does not matter"
        )]
        let rank = (percent.clamp(0.0, 100.0) / 100.0 * self.count() as f64).ceil() as u64;
        let mut below = 0u64;
        let bucket = self.buckets.iter().find(|(_, count)| {
            below = below.saturating_add(*count);
            below >= rank
        });
        bucket.map(|&(upper_ns, _)| match upper_ns {
            u64::MAX => Duration::MAX,
            upper_ns => Duration::from_nanos(upper_ns),
        })
    }
}

/// The handler's own figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Requests that were sent and wanted an answer.
    pub rpcs: u64,
    /// Writes to the socket that requests of those who await took: fewer than requests where many are made together.
    pub async_writes: u64,
    /// Own regions.
    pub own_regions: usize,
    /// Pages of own regions.
    pub pages: u64,
    /// Pages that can be had without asking the server.
    pub free_pages: u64,
    /// Regions that are mapped, own and foreign.
    pub mapped_regions: usize,
    /// How often an own page was written back from the cache to memory that is not coherent between hosts.
    pub pages_written_back: u64,
    /// How often a chunk of another instance was dropped from the cache, to be fetched from such memory.
    pub pages_invalidated: u64,
    /// Chunks of others whose bytes were not those that were stored, by their checksum, and which were not handed out: each
    /// time that one was asked for.
    pub stale_chunks: u64,
    /// How often the session went on on new connections after one was lost.
    pub resumes: u64,
    /// Chunks whose guards were [revoked](crate::Error::Revoked) for good, since the server had released their pins.
    pub revoked_chunks: u64,
    /// How long the last of these times took, from when the loss was noticed.
    pub last_outage: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bucket(opcode: Opcode, upper_ns: u64, count: u64) -> LatencyRecord {
        LatencyRecord {
            opcode: u16::from(opcode as u8).into(),
            reserved: [0; 6],
            upper_ns: upper_ns.into(),
            count: count.into(),
        }
    }

    #[test]
    fn a_percentile_is_the_bound_that_so_many_keep() {
        let server = ServerLatencies::new(vec![
            bucket(Opcode::ExistsKv, 100, 90),
            bucket(Opcode::ExistsKv, 1000, 9),
            bucket(Opcode::ExistsKv, u64::MAX, 1),
            bucket(Opcode::PinKv, 7, 1),
        ]);
        let exists = server.of(Opcode::ExistsKv);
        assert_eq!(exists.count(), 100);
        for (percent, expected) in [(0.0, 100), (50.0, 100), (90.0, 100), (90.1, 1000), (99.0, 1000)] {
            assert_eq!(exists.percentile(percent), Some(Duration::from_nanos(expected)), "{percent}");
        }
        assert_eq!(exists.percentile(99.5), Some(Duration::MAX));
        assert_eq!(server.of(Opcode::PinKv).percentile(100.0), Some(Duration::from_nanos(7)));
        assert_eq!(server.operations().collect::<Vec<_>>(), [Opcode::ExistsKv, Opcode::PinKv]);
    }

    #[test]
    fn reports_are_told_apart_by_instance_and_operation() {
        let bucket = |instance: u32, operation: ClientOperation, upper_ns: u64, calls: u64| ReportRecord {
            instance: instance.into(),
            operation: (operation as u16).into(),
            reserved: 0.into(),
            upper_ns: upper_ns.into(),
            calls: calls.into(),
            total_ns: 0.into(),
        };
        let (alloc, exists) = (ClientOperation::Alloc, ClientOperation::Exists);
        let reports = ReportedLatencies::new(vec![
            bucket(3, alloc, 100, 2),
            bucket(3, exists, 100, 1),
            bucket(3, exists, 1000, 1),
            bucket(8, exists, u64::MAX, u64::MAX),
            bucket(8, alloc, u64::MAX, u64::MAX),
        ]);
        assert_eq!(reports.instances(), [3, 8]);
        assert_eq!(reports.of(3, exists).count(), 2);
        assert_eq!(reports.of(3, exists).percentile(50.0), Some(Duration::from_nanos(100)));
        assert_eq!(
            (reports.all_of(3).count(), reports.all_of(3).percentile(99.0)),
            (4, Some(Duration::from_nanos(1000)))
        );
        assert_eq!(reports.of(3, ClientOperation::Pin).percentile(50.0), None);
        assert_eq!(reports.all_of(5).count(), 0);
        // What a liar tells is shown, and breaks nothing.
        assert_eq!(
            (reports.all_of(8).count(), reports.all_of(8).percentile(50.0)),
            (u64::MAX, Some(Duration::MAX))
        );
    }

    #[test]
    fn an_operation_that_nobody_asked_for_has_no_percentiles() {
        let server = ServerLatencies::new(Vec::new());
        assert_eq!(server.of(Opcode::ExistsKv).percentile(50.0), None);
    }
}
