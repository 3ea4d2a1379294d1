//! The text that Prometheus reads: which metrics there are, what they are called and what they mean.

use std::fmt;

use maru_proto::{ClientOperation, Opcode};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::{Registry, Unit};

use super::snapshot::{NameUsage, PoolUsage, Snapshot};
use crate::latency::Histogram;

/// What the text is, for who fetches it.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The bounds of the buckets, in powers of two of a nanosecond: 128 ns to 17 s. The server itself counts eight times as fine.
const POWERS: std::ops::RangeInclusive<u32> = 7..=34;

/// The operation of frames that are of none that the server knows.
const NO_OPERATION: &str = "none";

/// The text of a snapshot.
pub(super) fn text(snapshot: Snapshot) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("maru");
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry)?;
    Ok(text)
}

/// Writes metrics one after the other.
struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn begin<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        unit: Option<&'s Unit>,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, unit, kind)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<&Unit>, value: u64) -> fmt::Result {
        self.begin(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn seconds(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.begin(name, help, Some(&Unit::Seconds), MetricType::Gauge)?.encode_gauge(&value)
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut metric = self.begin(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.begin(name, help, None, MetricType::Counter)?;
        for (labels, value) in values {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
        Ok(())
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        values: impl Iterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut metric = self.begin(name, help, unit, MetricType::Gauge)?;
        for (labels, value) in values {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    /// Histograms, those that are empty left out.
    fn durations<'h, L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        histograms: impl Iterator<Item = (L, &'h Histogram)>,
    ) -> fmt::Result {
        let mut metric = self.begin(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for (labels, histogram) in histograms {
            let (buckets, count) = coarse(histogram);
            if count > 0 {
                metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(
                    histogram.sum_seconds(),
                    count,
                    &buckets,
                    None::<&std::collections::HashMap<usize, Exemplar<NoLabelSet, f64>>>,
                )?;
            }
        }
        Ok(())
    }
}

impl Collector for Snapshot {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut writer = Writer(encoder);
        self.run(&mut writer)?;
        self.requests(&mut writer)?;
        self.memory(&mut writer)?;
        self.protection(&mut writer)?;
        self.by_name(&mut writer)
    }
}

impl Snapshot {
    fn run(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        let help = "The version of the server.";
        writer.begin("build", help, None, MetricType::Info)?.encode_info(&version)?;
        writer.seconds("uptime", "Time since the server started.", self.uptime.as_secs_f64())?;
        writer.gauge("epoch", "The number of the server's run on its pool.", None, self.epoch)?;
        let help = "Entries that this run found of the one before.";
        writer.gauge("restored_entries", help, None, self.restored.entries)?;
        let help = "How long it took this run to go on from the one before.";
        writer.seconds("restore_duration", help, self.restored.took.as_secs_f64())?;
        writer.gauge("connections", "Open connections.", None, self.connections)?;
        let help = "Connections that were accepted.";
        writer.counter("connections_accepted", help, self.connections_accepted)?;
        let Some(calls) = self.system_calls else { return Ok(()) };
        writer.counter("system_calls", "System calls of the thread that drives connections.", calls)
    }

    fn requests(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let help = "Requests by what became of them; records have statuses of their own where it is ok. Operation none is \
                    what was refused before its operation was known.";
        let frames = self.frames.iter().map(|&(opcode, status, frames)| {
            let operation = opcode.map_or(NO_OPERATION, Opcode::name);
            ([("operation", operation), ("status", status.name())], frames)
        });
        writer.counters("frames", help, frames)?;
        let help = "Records of requests, by what became of them.";
        let records = self.records.iter().map(|&(opcode, status, records)| {
            ([("operation", opcode.name()), ("status", status.name())], records)
        });
        writer.counters("records", help, records)?;
        let help = "Digests that were looked up or pinned, by whether they had an entry.";
        let results = [([("result", "hit")], self.hits), ([("result", "miss")], self.misses)];
        writer.counters("lookups", help, results.into_iter())?;

        let help = "How long the server worked on a request, from when it had it until its answer was ready.";
        let durations = self.latencies.iter();
        let durations = durations.map(|(opcode, histogram)| ([("operation", opcode.name())], histogram));
        writer.durations("request_duration", help, durations)
    }

    fn memory(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let bytes = Some(&Unit::Bytes);
        let mut gauges = |name, help, unit, value: fn(&PoolUsage) -> u64| {
            let values = self.pools.iter().map(|pool| ([("pool", pool.path.as_str())], value(pool)));
            writer.gauges(name, help, unit, values)
        };
        gauges("pool_size", "Memory of the pool.", bytes, |it| it.info.size)?;
        gauges("pool_free", "Memory of the pool that is in no region.", bytes, |it| it.info.free)?;
        let help = "The largest region that the pool could give.";
        gauges("pool_largest_free", help, bytes, |it| it.info.largest_free)?;
        gauges("pool_entries", "Entries in the pool.", None, |it| it.entries)?;
        gauges("pool_entry", "Memory of the chunks in the pool.", bytes, |it| it.entry_bytes)?;

        let figures = &self.figures;
        writer.gauge("regions", "Regions, orphans included.", None, figures.regions)?;
        writer.gauge("region", "Memory of all regions.", bytes, figures.region_bytes)?;
        writer.gauge("orphan_regions", "Regions whose owner is gone.", None, figures.orphans)?;
        writer.gauge("entries", "Entries in the directory.", None, figures.entries)?;
        writer.gauge("entry", "Memory of the chunks of all entries.", bytes, figures.entry_bytes)?;
        writer.gauge("entry_capacity", "Entries that there is room for.", None, figures.entry_capacity)?;
        let help = "Pages that others freed and their owner has not taken back.";
        writer.gauge("freed_pages", help, None, figures.freed_pages)?;
        let help = "Pages that owners took back, those of evicted entries included.";
        writer.counter("reclaimed_pages", help, figures.reclaimed_pages)?;
        let help = "Entries that were evicted: because their owner needed a page, or with the orphan that they were in.";
        let reasons = [("owner", figures.evicted_for_owner), ("orphan", figures.evicted_with_orphan)];
        writer.counters(
            "evictions",
            help,
            reasons.into_iter().map(|(name, count)| ([("reason", name)], count)),
        )
    }

    fn protection(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let figures = &self.figures;
        writer.gauge("pins", "Pins of all instances.", None, figures.pins)?;
        writer.gauge("pinned_entries", "Entries with at least one pin.", None, figures.pinned_entries)?;
        let help = "For how long the oldest pin has been held, in whole seconds.";
        writer.gauge("oldest_pin_age", help, Some(&Unit::Seconds), figures.oldest_pin_seconds)?;
        writer.counter("pins_expired", "Pins by name that ran out.", figures.pins_expired)?;
        let help = "Instances with a connection or within their grace period.";
        writer.gauge("instances", help, None, figures.instances)?;
        writer.counter(
            "instances_expired",
            "Instances whose grace period ran out.",
            figures.instances_expired,
        )
    }

    fn by_name(&self, writer: &mut Writer<'_>) -> fmt::Result {
        let bytes = Some(&Unit::Bytes);
        let mut gauges = |name, help, unit, value: fn(&NameUsage) -> u64| {
            let values = self.names.iter().map(|(id, usage)| ([("instance_id", id.as_str())], value(usage)));
            writer.gauges(name, help, unit, values)
        };
        gauges("instance_sessions", "Instances of this name.", None, |it| it.instances)?;
        gauges("instance_connections", "Their open connections.", None, |it| it.connections)?;
        gauges("instance_regions", "Their regions.", None, |it| it.regions)?;
        gauges("instance_region", "Memory of their regions.", bytes, |it| it.region_bytes)?;
        gauges("instance_entries", "Entries in their regions.", None, |it| it.entries)?;
        gauges("instance_entry", "Memory of the chunks in their regions.", bytes, |it| it.entry_bytes)?;
        gauges("instance_pinned_entries", "Entries that they have pinned.", None, |it| it.pinned_entries)?;
        let help = "For how long they have held their oldest pin, in whole seconds.";
        gauges("instance_oldest_pin_age", help, Some(&Unit::Seconds), |it| it.oldest_pin_seconds)?;
        let pins = self.names.iter().flat_map(|(id, usage)| {
            let labels = |kind| [("instance_id", id.as_str()), ("kind", kind)];
            [(labels("guard"), usage.guard_pins), (labels("name"), usage.named_pins)]
        });
        let help = "Pins that they hold: of guards, which last as long as their readers, and by name.";
        writer.gauges("instance_pins", help, None, pins)?;
        let calls = self.calls.iter().flat_map(|(id, operations)| {
            let labels =
                |operation: ClientOperation| [("instance_id", id.as_str()), ("operation", operation.name())];
            operations.iter().map(move |(operation, histogram)| (labels(*operation), histogram))
        });
        let help = "How long calls took as their callers saw it, of instances that report it.";
        writer.durations("client_call_duration", help, calls)
    }
}

/// A histogram in the buckets that are shown, and how many frames it has.
fn coarse(histogram: &Histogram) -> (Vec<(f64, u64)>, u64) {
    let mut fine = histogram.buckets().peekable();
    let mut buckets = Vec::with_capacity(POWERS.count());
    let mut all = 0;
    for power in POWERS {
        let mut count = 0;
        while let Some((_, frames)) = fine.next_if(|(bound, _)| *bound <= 1 << power) {
            count += frames;
        }
        all += count;
        buckets.push((f64::from(power).exp2() / 1e9, count));
    }
    (buckets, all + fine.map(|(_, frames)| frames).sum::<u64>())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn coarse_buckets_hold_what_the_fine_ones_within_their_bounds_hold() {
        let mut histogram = Histogram::default();
        for (ns, frames) in [(1, 1), (128, 2), (129, 4), (256, 8), (1 << 34, 16), ((1 << 34) + 1, 32)] {
            histogram.record(Duration::from_nanos(ns), frames);
        }
        let (buckets, count) = coarse(&histogram);
        assert_eq!(count, 63);
        assert_eq!(buckets[..2], [(128e-9, 3), (256e-9, 12)]);
        assert_eq!(buckets.last(), Some(&(17.179_869_184, 16)));
    }
}
