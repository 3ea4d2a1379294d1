//! What `maru top` knows of a server at one moment.

use std::time::{Duration, Instant};

use maru_client::{
    ClientOperation, Error, Latencies, MaruHandler, PoolRecord, ReportedLatencies, ServerStats, StatKind,
    UsageRecord,
};
use maru_proto::{FrameStatus, Opcode};

use crate::error::CliError;
use crate::server::{identity, instances, name, reports};

/// One look at a server.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    /// When.
    pub(super) at: Instant,
    /// The server's release, where it says so.
    pub(super) release: Option<String>,
    /// Where it is reached.
    pub(super) address: String,
    /// Its figures.
    pub(super) figures: Figures,
    /// Frames of each operation that was ever asked for, by its name.
    pub(super) frames: Vec<(&'static str, u64)>,
    /// How long operations take, where the server tells.
    pub(super) latencies: Vec<Latency>,
    /// The instances, without the one that looks.
    pub(super) instances: Vec<Instance>,
    /// The pools.
    pub(super) pools: Vec<Pool>,
}

/// Figures of the server as a whole.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Figures {
    pub(super) epoch: u64,
    pub(super) uptime: Duration,
    pub(super) connections: u64,
    pub(super) entries: u64,
    pub(super) stored_bytes: u64,
    pub(super) pinned_entries: u64,
    pub(super) pins: u64,
    pub(super) orphans: u64,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) evictions: u64,
    pub(super) refused: u64,
    /// Of operations on keys and regions.
    pub(super) frames: u64,
}

/// How long one operation takes inside the server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latency {
    /// The operation.
    pub(super) operation: &'static str,
    /// Half of its frames take no longer.
    pub(super) p50: Duration,
    /// 99 of 100 take no longer.
    pub(super) p99: Duration,
    /// 999 of 1000 take no longer.
    pub(super) p999: Duration,
}

/// How long calls take as their callers see it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calls {
    /// Which; `None` for all of the instance.
    pub(super) operation: Option<ClientOperation>,
    /// Half of them take no longer.
    pub(super) p50: Duration,
    /// 99 of 100 take no longer.
    pub(super) p99: Duration,
}

/// One instance.
#[derive(Clone, Debug)]
pub(super) struct Instance {
    pub(super) number: u32,
    pub(super) name: String,
    pub(super) connections: u32,
    pub(super) regions: u32,
    pub(super) allocated: u64,
    pub(super) used: u64,
    pub(super) entries: u32,
    pub(super) pins: u64,
    pub(super) oldest_pin: Option<Duration>,
    pub(super) grace_left: Option<Duration>,
    /// What it reports of its calls.
    pub(super) calls: Vec<Calls>,
}

/// One pool.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) free: u64,
}

impl Sample {
    /// Looks at a server.
    ///
    /// # Errors
    /// Those of any request.
    pub(super) fn take(maru: &MaruHandler) -> Result<Sample, CliError> {
        let release = identity(maru)?.and_then(|server| server.release().map(str::to_owned));
        let (usages, own_connections) = instances(maru)?;
        let (stats, reports) = (maru.stats()?, reports(maru)?);
        let operations = Opcode::ALL.iter().map(|&opcode| (opcode.name(), stats.frames(opcode)));
        Ok(Sample {
            at: Instant::now(),
            release,
            address: maru.server_address().to_string(),
            figures: Figures::of(&stats, own_connections),
            frames: operations.filter(|(_, frames)| *frames > 0).collect(),
            latencies: latencies(maru)?,
            instances: usages.iter().map(|usage| Instance::of(usage, reports.as_ref())).collect(),
            pools: maru.pools()?.iter().map(Pool::of).collect(),
        })
    }
}

/// How long each operation takes inside the server; nothing of one that is too old to tell.
///
/// # Errors
/// Those of any other request.
fn latencies(maru: &MaruHandler) -> Result<Vec<Latency>, CliError> {
    let told = match maru.latencies() {
        Err(Error::Refused { status: FrameStatus::UnsupportedOpcode, .. }) => return Ok(Vec::new()),
        told => told?,
    };
    let latency = |opcode: Opcode| {
        let of = told.of(opcode);
        Some(Latency {
            operation: opcode.name(),
            p50: of.percentile(50.0)?,
            p99: of.percentile(99.0)?,
            p999: of.percentile(99.9)?,
        })
    };
    Ok(told.operations().filter_map(latency).collect())
}

impl Figures {
    fn of(stats: &ServerStats, own_connections: u64) -> Figures {
        let of = |kind| stats.get(kind);
        // Looking is not the work that is looked at.
        let work = Opcode::ALL.iter().filter(|opcode| **opcode < Opcode::GetStats);
        Figures {
            epoch: of(StatKind::Epoch),
            uptime: Duration::from_millis(of(StatKind::UptimeMs)),
            connections: of(StatKind::Connections).saturating_sub(own_connections),
            entries: of(StatKind::Entries),
            stored_bytes: of(StatKind::EntryBytes),
            pinned_entries: of(StatKind::PinnedEntries),
            pins: of(StatKind::Pins),
            orphans: of(StatKind::Orphans),
            hits: of(StatKind::Hits),
            misses: of(StatKind::Misses),
            evictions: of(StatKind::Evictions),
            refused: of(StatKind::FramesRefused),
            frames: work.map(|opcode| stats.frames(*opcode)).sum(),
        }
    }
}

impl Instance {
    fn of(usage: &UsageRecord, reports: Option<&ReportedLatencies>) -> Instance {
        let is_connected = usage.connections.get() > 0;
        Instance {
            number: usage.instance.get(),
            name: name(usage),
            connections: usage.connections.get(),
            regions: usage.regions.get(),
            allocated: usage.region_bytes.get(),
            used: usage.entry_bytes.get(),
            entries: usage.entries.get(),
            pins: usage.pins.get(),
            oldest_pin: (usage.pins.get() > 0).then(|| Duration::from_secs(usage.oldest_pin_s.get())),
            grace_left: (!is_connected).then(|| Duration::from_millis(usage.grace_left_ms.get())),
            calls: reports.map(|reports| Calls::of(reports, usage.instance.get())).unwrap_or_default(),
        }
    }
}

impl Calls {
    /// What an instance reports.
    fn of(reports: &ReportedLatencies, instance: u32) -> Vec<Calls> {
        let of = |operation, latencies: &Latencies| {
            let (p50, p99) = (latencies.percentile(50.0)?, latencies.percentile(99.0)?);
            Some(Calls { operation, p50, p99 })
        };
        let all = of(None, &reports.all_of(instance));
        let each = ClientOperation::ALL.iter();
        let each = each.filter_map(|operation| of(Some(*operation), &reports.of(instance, *operation)));
        all.into_iter().chain(each).collect()
    }
}

impl Pool {
    fn of(pool: &PoolRecord) -> Pool {
        let path = pool.path().unwrap_or("?").to_owned();
        Pool { path, size: pool.size.get(), free: pool.free.get() }
    }
}
