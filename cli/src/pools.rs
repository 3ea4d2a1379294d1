//! `maru pools`: the memory that the server hands out.

use maru_client::{MaruHandler, PoolRecord};
use maru_proto::{PoolCoherence, PoolKind, PoolUuid};

use crate::error::CliError;
use crate::report::{Report, Row, Value};

/// The pools.
///
/// # Errors
/// Those of any request.
pub(crate) fn look(maru: &MaruHandler) -> Result<Report, CliError> {
    Ok(Report::List("pools", maru.pools()?.iter().map(row).collect()))
}

fn row(pool: &PoolRecord) -> Row {
    let kind = PoolKind::from_u32(pool.kind.get()).map_or("?", PoolKind::name);
    let coherence = PoolCoherence::from_u32(pool.coherence.get()).map_or("?", PoolCoherence::name);
    let (size, free) = (pool.size.get(), pool.free.get());
    let used = size.saturating_sub(free);
    Row(vec![
        ("pool", Value::Count(pool.pool_id.get().into())),
        ("kind", Value::Text(kind.to_owned())),
        ("size_bytes", Value::Bytes(size)),
        ("used_bytes", Value::Bytes(used)),
        ("free_bytes", Value::Bytes(free)),
        ("used", Value::ratio(used, size)),
        // The largest region that there could be: less than what is free where that lies in pieces.
        ("largest_free_bytes", Value::Bytes(pool.largest_free.get())),
        ("granularity_bytes", Value::Bytes(pool.granularity.get())),
        ("coherence", Value::Text(coherence.to_owned())),
        ("uuid", Value::Text(PoolUuid::from_bytes(pool.uuid).to_string())),
        ("incarnation", Value::Count(pool.incarnation.get())),
        ("path", pool.path().map_or(Value::Absent, |path| Value::Text(path.to_owned()))),
    ])
}
