//! `maru status`: the figures of the server as a whole.

use maru_client::{MaruHandler, ServerRecord, StatKind};
use maru_proto::EvictionReason;

use crate::error::CliError;
use crate::report::{Report, Row, Value};
use crate::server::{identity, instances};

/// The figures, without what this program itself adds to them.
///
/// # Errors
/// Those of any request.
pub(crate) fn look(maru: &MaruHandler) -> Result<Report, CliError> {
    let server = identity(maru)?;
    let (_, own_connections) = instances(maru)?;
    let stats = maru.stats()?;
    let of = |kind| stats.get(kind);
    let evicted = |reason| stats.get_detail(StatKind::Evictions, reason as u16);
    let told = |tell: fn(&ServerRecord) -> Value| server.as_ref().map_or(Value::Absent, tell);
    let used = of(StatKind::PoolBytes).saturating_sub(of(StatKind::PoolFreeBytes));
    Ok(Report::One(Row(vec![
        (
            "release",
            told(|server| server.release().map_or(Value::Absent, |release| Value::Text(release.to_owned()))),
        ),
        ("protocol", Value::Count(maru_proto::VERSION.into())),
        ("address", Value::Text(maru.server_address().to_string())),
        ("process", told(|server| Value::Count(server.process.get().into()))),
        ("epoch", Value::Count(of(StatKind::Epoch))),
        ("uptime_s", Value::Seconds(of(StatKind::UptimeMs) / 1000)),
        ("connections", Value::Count(of(StatKind::Connections).saturating_sub(own_connections))),
        ("instances", Value::Count(of(StatKind::Instances).saturating_sub(1))),
        ("max_instances", told(|server| Value::Count(server.max_instances.get().into()))),
        ("entries", Value::Count(of(StatKind::Entries))),
        ("entry_capacity", Value::Count(of(StatKind::EntryCapacity))),
        ("stored_bytes", Value::Bytes(of(StatKind::EntryBytes))),
        ("pinned_entries", Value::Count(of(StatKind::PinnedEntries))),
        ("pins", Value::Count(of(StatKind::Pins))),
        (
            "oldest_pin_s",
            if of(StatKind::Pins) == 0 { Value::Absent } else { Value::Seconds(of(StatKind::OldestPinS)) },
        ),
        ("regions", Value::Count(of(StatKind::Regions))),
        ("orphans", Value::Count(of(StatKind::Orphans))),
        ("freed_pages", Value::Count(of(StatKind::FreedPages))),
        ("pool_bytes", Value::Bytes(of(StatKind::PoolBytes))),
        ("pool_free_bytes", Value::Bytes(of(StatKind::PoolFreeBytes))),
        ("pool_used", Value::ratio(used, of(StatKind::PoolBytes))),
        ("hits", Value::Count(of(StatKind::Hits))),
        ("misses", Value::Count(of(StatKind::Misses))),
        ("hit_ratio", Value::ratio(of(StatKind::Hits), of(StatKind::Hits) + of(StatKind::Misses))),
        ("evictions", Value::Count(of(StatKind::Evictions))),
        ("evicted_for_owner", Value::Count(evicted(EvictionReason::Owner))),
        ("evicted_with_orphan", Value::Count(evicted(EvictionReason::Orphan))),
        ("reclaimed_pages", Value::Count(of(StatKind::ReclaimedPages))),
        ("pins_expired", Value::Count(of(StatKind::PinsExpired))),
        ("instances_expired", Value::Count(of(StatKind::InstancesExpired))),
        ("frames", Value::Count(of(StatKind::Frames))),
        ("frames_refused", Value::Count(of(StatKind::FramesRefused))),
        ("pin_ttl_ms", told(|server| Value::Milliseconds(server.pin_ttl_ms.get()))),
        ("grace_ms", told(|server| Value::Milliseconds(server.grace_ms.get()))),
    ])))
}
