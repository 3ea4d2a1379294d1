//! What handlers report of how long their calls take: of bounded size for each instance, and forgotten with it.

use std::collections::BTreeMap;

use maru_proto::{ClientOperation, LatencyBucket, ReportRecord};

use crate::state::InstanceNumber;

/// The calls of one operation that took about equally long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Calls {
    /// How many they are.
    pub(crate) count: u64,
    /// Nanoseconds that they took together.
    pub(crate) total_ns: u64,
}

type Bucket = (ClientOperation, LatencyBucket);

/// A report that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a report has operations and buckets that there are, in their order, and times that lie in them")]
pub(crate) struct InvalidReport;

/// The reports of all instances that report. There are as many buckets as operations have, so that an instance takes no more
/// than some 100 KiB, whatever it sends.
#[derive(Debug, Default)]
pub(crate) struct Reports(BTreeMap<InstanceNumber, BTreeMap<Bucket, Calls>>);

impl Reports {
    /// Takes a report in: what an instance tells of all its calls so far. Nothing of it where any of it makes no sense.
    ///
    /// # Errors
    /// [`InvalidReport`].
    pub(crate) fn take(
        &mut self,
        instance: InstanceNumber,
        records: &[ReportRecord],
    ) -> Result<(), InvalidReport> {
        let buckets = records.iter().map(bucket_of).collect::<Option<Vec<_>>>().ok_or(InvalidReport)?;
        if !buckets.is_sorted_by(|before, bucket| before < bucket) {
            return Err(InvalidReport);
        }
        for (bucket, record) in buckets.into_iter().zip(records) {
            let calls = Calls { count: record.calls.get(), total_ns: record.total_ns.get() };
            let known = self.0.entry(instance).or_default().entry(bucket).or_insert(calls);
            if known.count <= calls.count {
                *known = calls;
            }
        }
        Ok(())
    }

    /// Forgets an instance that ended.
    pub(crate) fn end(&mut self, instance: InstanceNumber) {
        self.0.remove(&instance);
    }

    /// What an instance has reported.
    pub(crate) fn of(&self, instance: InstanceNumber) -> impl Iterator<Item = (Bucket, Calls)> {
        self.0.get(&instance).into_iter().flatten().map(|(bucket, calls)| (*bucket, *calls))
    }

    /// The instances that have reported, by number.
    pub(crate) fn instances(&self) -> impl Iterator<Item = InstanceNumber> {
        self.0.keys().copied()
    }

    /// What follows after the bucket with this bound, in the order of instances, operations and bounds.
    pub(crate) fn after(
        &self,
        instance: InstanceNumber,
        operation: u16,
        upper_ns: u64,
    ) -> impl Iterator<Item = ReportRecord> {
        let reports = self.0.range(instance..);
        let buckets = reports.flat_map(|(&of, report)| report.iter().map(move |entry| (of, entry)));
        buckets
            .map(|(of, (&(operation, bucket), calls))| ReportRecord {
                instance: of.0.into(),
                operation: (operation as u16).into(),
                reserved: 0.into(),
                upper_ns: bucket.upper_ns().into(),
                calls: calls.count.into(),
                total_ns: calls.total_ns.into(),
            })
            .skip_while(move |record| {
                let place = (record.instance.get(), record.operation.get(), record.upper_ns.get());
                place <= (instance.0, operation, upper_ns)
            })
    }
}

/// The bucket of a record of a report, if the record makes sense.
fn bucket_of(record: &ReportRecord) -> Option<Bucket> {
    let operation = ClientOperation::from_u16(record.operation.get())?;
    let bucket = LatencyBucket::ending_at(record.upper_ns.get())?;
    let (calls, total_ns) = (record.calls.get(), record.total_ns.get());
    let is_possible = calls > 0 && total_ns <= calls.saturating_mul(bucket.upper_ns());
    (record.instance.get() == 0 && is_possible).then_some((operation, bucket))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: InstanceNumber = InstanceNumber(1);
    const SECOND: InstanceNumber = InstanceNumber(2);

    fn record(operation: ClientOperation, upper_ns: u64, calls: u64) -> ReportRecord {
        ReportRecord {
            instance: 0.into(),
            operation: (operation as u16).into(),
            reserved: 0.into(),
            upper_ns: upper_ns.into(),
            calls: calls.into(),
            total_ns: (calls * upper_ns.min(1 << 40)).into(),
        }
    }

    /// Every bucket that there is, once.
    fn everything() -> Vec<ReportRecord> {
        let bounds = || LatencyBucket::all().map(LatencyBucket::upper_ns);
        let of = |operation| bounds().map(move |bound| record(operation, bound, 1));
        ClientOperation::ALL.iter().copied().flat_map(of).collect()
    }

    fn told(reports: &Reports) -> Vec<(u32, u16, u64, u64)> {
        let mut told = Vec::new();
        let mut after = (0, 0, 0);
        // One at a time, as a client with a very small body would.
        while let Some(next) = reports.after(InstanceNumber(after.0), after.1, after.2).next() {
            after = (next.instance.get(), next.operation.get(), next.upper_ns.get());
            told.push((after.0, after.1, after.2, next.calls.get()));
        }
        told
    }

    #[test]
    fn what_is_told_again_counts_once_and_what_is_older_not_at_all() {
        let mut reports = Reports::default();
        let (store, exists) = (ClientOperation::Store, ClientOperation::Exists);
        reports.take(SECOND, &[record(store, 1024, 3), record(exists, 512, 1)]).unwrap();
        reports.take(FIRST, &[record(exists, 8, 7)]).unwrap();
        reports.take(SECOND, &[record(store, 1024, 3)]).unwrap();
        reports.take(SECOND, &[record(store, 1024, 5), record(store, 2048, 1)]).unwrap();
        reports.take(SECOND, &[record(store, 1024, 2)]).unwrap();
        let expected = [(1, 5, 8, 7), (2, 2, 1024, 5), (2, 2, 2048, 1), (2, 5, 512, 1)];
        assert_eq!(told(&reports), expected);
        let (bucket, calls) = reports.of(FIRST).next().unwrap();
        assert_eq!(bucket, (exists, LatencyBucket::of(8)));
        assert_eq!(calls, Calls { count: 7, total_ns: 56 });
    }

    #[test]
    fn an_instance_that_ended_is_forgotten() {
        let mut reports = Reports::default();
        reports.take(FIRST, &[record(ClientOperation::Pin, 8, 1)]).unwrap();
        reports.take(SECOND, &[record(ClientOperation::Pin, 8, 1)]).unwrap();
        reports.end(FIRST);
        assert_eq!(reports.instances().collect::<Vec<_>>(), [SECOND]);
        assert_eq!(told(&reports), [(2, 6, 8, 1)]);
    }

    #[test]
    fn a_report_that_makes_no_sense_changes_nothing() {
        let mut reports = Reports::default();
        let good = record(ClientOperation::Alloc, 8, 1);
        let bad = |change: fn(&mut ReportRecord)| {
            let mut record = record(ClientOperation::Store, 16, 1);
            change(&mut record);
            record
        };
        for bad in [
            bad(|record| record.operation = 9.into()),
            bad(|record| record.operation = 0.into()),
            bad(|record| record.upper_ns = 17.into()),
            bad(|record| record.upper_ns = 0.into()),
            bad(|record| record.instance = 2.into()),
            bad(|record| record.total_ns = 17.into()),
            bad(|record| (record.calls, record.total_ns) = (0.into(), 0.into())),
            // Not behind the first.
            good,
        ] {
            assert_eq!(reports.take(FIRST, &[good, bad]), Err(InvalidReport), "{bad:?}");
        }
        assert_eq!(told(&reports), []);
    }

    #[test]
    fn there_is_no_more_of_an_instance_than_all_buckets() {
        let mut reports = Reports::default();
        let all = everything();
        for _ in 0..2 {
            reports.take(FIRST, &all).unwrap();
        }
        assert_eq!(reports.of(FIRST).count(), ClientOperation::ALL.len() * LatencyBucket::COUNT);
        let twice = [all.as_slice(), all.as_slice()].concat();
        assert_eq!(reports.take(FIRST, &twice), Err(InvalidReport));
        assert_eq!(told(&reports).len(), all.len());
    }

    /// Counts that no client can have come by add up to nothing that breaks.
    #[test]
    fn the_largest_numbers_are_numbers() {
        let mut reports = Reports::default();
        let mut largest = record(ClientOperation::Delete, u64::MAX, 1);
        largest.calls = u64::MAX.into();
        largest.total_ns = u64::MAX.into();
        reports.take(FIRST, &[largest]).unwrap();
        assert_eq!(told(&reports), [(1, 8, u64::MAX, u64::MAX)]);
    }
}
