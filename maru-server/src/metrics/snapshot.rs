//! Everything that is told of the server, as of one moment, in values that can leave its thread.

use std::collections::BTreeMap;
use std::time::Duration;

use maru_proto::{ClientOperation, FrameStatus, Opcode, RecordStatus};

use crate::latency::{Histogram, Latencies};
use crate::service::Service;
use crate::state::{Figures, InstanceNumber, PoolInfo, RegionId};

/// Instances, regions and buckets that are looked at before others have a turn.
const PART: u32 = 512;

/// What a restart found of the run before.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Restored {
    /// Entries.
    pub(crate) entries: u64,
    /// How long it took until they could be served.
    pub(crate) took: Duration,
}

/// What one pool is, and what is in it.
#[derive(Clone, Debug)]
pub(super) struct PoolUsage {
    pub(super) info: PoolInfo,
    pub(super) path: String,
    pub(super) entries: u64,
    pub(super) entry_bytes: u64,
}

/// What the instances of one name use together: names are few, and who connects again under one goes on in its figures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NameUsage {
    pub(super) instances: u64,
    pub(super) connections: u64,
    pub(super) regions: u64,
    pub(super) region_bytes: u64,
    pub(super) entries: u64,
    pub(super) entry_bytes: u64,
    pub(super) pinned_entries: u64,
    pub(super) guard_pins: u64,
    pub(super) named_pins: u64,
    pub(super) oldest_pin_seconds: u64,
}

/// The server at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(super) uptime: Duration,
    pub(super) epoch: u64,
    pub(super) restored: Restored,
    pub(super) figures: Figures,
    /// All that are open, those without HELLO included.
    pub(super) connections: u64,
    pub(super) connections_accepted: u64,
    pub(super) hits: u64,
    pub(super) misses: u64,
    pub(super) system_calls: Option<u64>,
    pub(super) frames: Vec<(Option<Opcode>, FrameStatus, u64)>,
    pub(super) records: Vec<(Opcode, RecordStatus, u64)>,
    pub(super) latencies: Latencies,
    pub(super) pools: Vec<PoolUsage>,
    pub(super) names: BTreeMap<String, NameUsage>,
    /// How long the calls took of the instances of one name that report it.
    pub(super) calls: BTreeMap<String, BTreeMap<ClientOperation, Histogram>>,
}

impl Snapshot {
    /// All but what is in the regions, and what the instances use.
    pub(crate) fn of(service: &Service, now: Duration, connections: usize, restored: Restored) -> Snapshot {
        let (state, counters) = (service.state(), service.counters());
        let (hits, misses) = counters.hits_and_misses();
        Snapshot {
            uptime: now,
            epoch: service.config().epoch,
            restored,
            figures: state.figures(now),
            connections: connections as u64,
            connections_accepted: counters.connections_accepted,
            hits,
            misses,
            system_calls: counters.system_calls(),
            frames: counters.frames().collect(),
            records: counters.records_by_status().collect(),
            latencies: counters.latencies.clone(),
            pools: state
                .pools()
                .zip(&service.config().pools)
                .map(|(info, served)| PoolUsage {
                    info,
                    path: served.path.clone(),
                    entries: 0,
                    entry_bytes: 0,
                })
                .collect(),
            names: BTreeMap::new(),
            calls: BTreeMap::new(),
        }
    }

    /// Adds what is in the next regions, a bounded part of them; the last that was added, unless it was the last of all.
    pub(crate) fn add_regions(&mut self, service: &Service, after: RegionId) -> Option<RegionId> {
        for (region, work) in service.state().regions_after(after).zip(1..) {
            if let Some(pool) = self.pools.iter_mut().find(|pool| pool.info.id == region.pool) {
                pool.entries += u64::from(region.entries);
                pool.entry_bytes += region.entry_bytes;
            }
            if work >= PART {
                return Some(region.id);
            }
        }
        None
    }

    /// Adds what the next instances use, a bounded part of them; the last that was added, unless it was the last of all.
    pub(crate) fn add_instances(
        &mut self,
        service: &Service,
        after: InstanceNumber,
        now: Duration,
    ) -> Option<InstanceNumber> {
        let mut work = 0;
        for usage in service.state().usage_after(after, now) {
            let name = match self.names.get_mut(usage.name) {
                Some(name) => name,
                None => self.names.entry(usage.name.to_owned()).or_default(),
            };
            name.instances += 1;
            name.connections += u64::from(usage.connections);
            name.regions += u64::from(usage.regions);
            name.region_bytes += usage.region_bytes;
            name.entries += u64::from(usage.entries);
            name.entry_bytes += usage.entry_bytes;
            name.pinned_entries += usage.pinned_entries;
            name.guard_pins += usage.pins - usage.named_pins;
            name.named_pins += usage.named_pins;
            name.oldest_pin_seconds = name.oldest_pin_seconds.max(usage.oldest_pin_seconds);
            work += 1 + usage.regions;
            for ((operation, bucket), calls) in service.reports().of(usage.number) {
                let of_name = match self.calls.get_mut(usage.name) {
                    Some(of_name) => of_name,
                    None => self.calls.entry(usage.name.to_owned()).or_default(),
                };
                of_name.entry(operation).or_default().add(bucket, calls.count, calls.total_ns);
                work += 1;
            }
            if work >= PART {
                return Some(usage.number);
            }
        }
        None
    }
}
