//! `maru usage`: what each instance has of the memory, and what it keeps from being evicted.

use maru_client::{Latencies, MaruHandler, RegionRecord, UsageRecord};

use crate::error::CliError;
use crate::report::{Report, Row, Value};
use crate::server::{instances, name, reports};

/// A row for each instance but the one that asks, and one for the orphans where there are any.
///
/// # Errors
/// Those of any request.
pub(crate) fn look(maru: &MaruHandler) -> Result<Report, CliError> {
    // In this order: the regions of an owner that ends in between are orphans by then, and counted once.
    let regions = maru.regions()?;
    let (instances, _) = instances(maru)?;
    let reports = reports(maru)?;
    let calls_of = |usage: &UsageRecord| reports.as_ref().map(|reports| reports.all_of(usage.instance.get()));
    let is_orphan = |region: &&RegionRecord| instances.iter().all(|usage| usage.instance != region.owner);
    let orphans = regions.iter().filter(is_orphan).collect::<Vec<_>>();
    let with_calls = instances.iter().map(|usage| row(usage, &calls_of(usage).unwrap_or_default()));
    let mut rows = with_calls.collect::<Vec<_>>();
    if !orphans.is_empty() {
        rows.push(orphans_row(&orphans));
    }
    Ok(Report::List("instances", rows))
}

fn row(usage: &UsageRecord, calls: &Latencies) -> Row {
    let (allocated, used) = (usage.region_bytes.get(), usage.entry_bytes.get());
    let is_connected = usage.connections.get() > 0;
    let has_pins = usage.pins.get() > 0;
    Row(vec![
        ("instance", Value::Count(usage.instance.get().into())),
        ("name", Value::Text(name(usage))),
        ("connections", Value::Count(usage.connections.get().into())),
        ("regions", Value::Count(usage.regions.get().into())),
        ("allocated_bytes", Value::Bytes(allocated)),
        ("used_bytes", Value::Bytes(used)),
        ("slack_bytes", Value::Bytes(allocated.saturating_sub(used))),
        ("entries", Value::Count(usage.entries.get().into())),
        ("pins", Value::Count(usage.pins.get())),
        ("named_pins", Value::Count(usage.named_pins.get())),
        ("oldest_pin_s", if has_pins { Value::Seconds(usage.oldest_pin_s.get()) } else { Value::Absent }),
        (
            "grace_left_ms",
            if is_connected { Value::Absent } else { Value::Milliseconds(usage.grace_left_ms.get()) },
        ),
        ("calls", if calls.count() > 0 { Value::Count(calls.count()) } else { Value::Absent }),
        ("p50_ns", Value::percentile(calls, 50.0)),
        ("p99_ns", Value::percentile(calls, 99.0)),
    ])
}

/// Regions whose owner is gone belong together: each is freed with its last entry.
fn orphans_row(orphans: &[&RegionRecord]) -> Row {
    let sum = |of: fn(&RegionRecord) -> u64| orphans.iter().map(|region| of(region)).sum::<u64>();
    let (allocated, used) = (sum(|region| region.size.get()), sum(|region| region.entry_bytes.get()));
    Row(vec![
        ("instance", Value::Absent),
        ("name", Value::Text("(orphans)".to_owned())),
        ("connections", Value::Absent),
        ("regions", Value::Count(orphans.len() as u64)),
        ("allocated_bytes", Value::Bytes(allocated)),
        ("used_bytes", Value::Bytes(used)),
        ("slack_bytes", Value::Bytes(allocated.saturating_sub(used))),
        ("entries", Value::Count(sum(|region| region.entries.get().into()))),
        ("pins", Value::Absent),
        ("named_pins", Value::Absent),
        ("oldest_pin_s", Value::Absent),
        ("grace_left_ms", Value::Absent),
        ("calls", Value::Absent),
        ("p50_ns", Value::Absent),
        ("p99_ns", Value::Absent),
    ])
}
