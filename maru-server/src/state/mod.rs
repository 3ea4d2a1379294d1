//! The server's state: pure data structures without I/O, clock or wire; what happens is decided here and nowhere else.
//!
//! [`State`] joins four parts that know nothing of each other: the directory of entries, the instances with their
//! pins, the regions with their pages, and the pools with their extents. Time comes in as the duration since the
//! server's start. The operations on a part, as far as they touch others, stand in the part's file.

use std::fmt;
use std::time::Duration;

mod allocation;
mod changes;
mod check;
mod checksums;
mod directory;
mod entry;
pub mod eviction;
mod index;
mod inspection;
mod instances;
mod ledger;
mod numbered;
mod pages;
mod pools;
mod regions;
mod request;
mod restore;

#[cfg(test)]
mod model;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;

pub use allocation::{AllocError, ReturnError};
pub use changes::Change;
pub use directory::{DeleteError, PinError, Registered, UnpinError};
pub use inspection::{EntryInfo, HeldPins, PinFilter, PinsAfter};
pub use instances::{LimitReached, Usage};
pub use ledger::PinKind;
pub(crate) use numbered::Scatter;
pub use pools::{PoolInfo, PoolSpec};
pub use regions::{RegionInfo, RetiredRegion};
pub use request::Request;
pub use restore::{RestoreError, Saved, SavedEntry, SavedInstance, SavedRegion};

use changes::Changes;
use directory::Directory;
use eviction::{Entries, EvictionPolicy, Group, Policy};
use instances::Instances;
use pools::Pools;
use regions::Regions;
use restore::Recovery;

/// 128 bits that stand for a key. Callers make sure that the low 64 bits are spread like a hash's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(pub u128);

impl From<[u8; 16]> for Digest {
    fn from(bytes: [u8; 16]) -> Digest {
        Digest(u128::from_le_bytes(bytes))
    }
}

/// Names a region: from 1 up, less than 2^31, never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub u32);

/// Names a pool: its index, in the order given to [`State::new`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(pub u32);

/// Names an instance: from 1 up, never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InstanceNumber(pub u32);

/// The secret by which an instance is found again: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Token(pub u128);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(secret)")
    }
}

/// Where the bytes of an entry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The region.
    pub region: RegionId,
    /// Bytes from the start of the region.
    pub offset: u64,
    /// Bytes of the entry, at least 1.
    pub length: u32,
    /// The number of the registration: the same place under another generation holds other bytes.
    pub generation: u32,
    /// The checksum that the owner gave it; 0 for none.
    pub checksum: u32,
}

/// What the state never exceeds.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pages of all regions, and by that entries. The directory reserves up to 87 bytes of address space for each at
    /// once; up to 5 of them are touched then, the others when the entry is first used.
    pub max_entries: u32,
    /// Pins that one entry may have, over all instances.
    pub max_pins_per_entry: u32,
    /// Instances, those in their grace period included.
    pub max_instances: u32,
    /// Connections of one instance.
    pub max_connections_per_instance: u32,
    /// Regions of one instance, those being prepared included.
    pub max_regions_per_instance: u32,
    /// Bytes of the smallest page.
    pub min_page_size: u64,
    /// Bytes of the largest page.
    pub max_page_size: u64,
    /// How long an instance outlives its last connection.
    pub grace: Duration,
    /// How long a pin by name lasts after the instance last pinned the entry by name; zero for as long as the instance.
    pub pin_ttl: Duration,
}

/// The state's figures at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    /// Entries in the directory.
    pub entries: u64,
    /// Bytes of the entries.
    pub entry_bytes: u64,
    /// Entries that there is room for.
    pub entry_capacity: u64,
    /// Regions, orphans included, without those being prepared or retired.
    pub regions: u64,
    /// Bytes of these regions.
    pub region_bytes: u64,
    /// Regions whose owner is gone.
    pub orphans: u64,
    /// Pages that wait for their owner to take them back.
    pub freed_pages: u64,
    /// Entries with at least one pin.
    pub pinned_entries: u64,
    /// Pins of all instances.
    pub pins: u64,
    /// Instances with a connection or within their grace period.
    pub instances: u64,
    /// Open connections.
    pub connections: u64,
    /// Bytes of all pools.
    pub pool_bytes: u64,
    /// Bytes of all pools in no extent: neither given out nor still to be released.
    pub pool_free_bytes: u64,
    /// Instances whose grace period ran out, since the start.
    pub instances_expired: u64,
    /// Pages that owners took back, since the start, those of evicted entries included.
    pub reclaimed_pages: u64,
    /// Entries evicted because their owner needed a page, since the start.
    pub evicted_for_owner: u64,
    /// Entries evicted with the orphan that they were in, since the start.
    pub evicted_with_orphan: u64,
    /// Pins by name that ran out, since the start.
    pub pins_expired: u64,
    /// For how many whole seconds the oldest pin has been held; 0 without any.
    pub oldest_pin_seconds: u64,
}

/// Everything the server knows, changed by one thread, one operation at a time.
#[derive(Debug)]
pub struct State {
    limits: Limits,
    directory: Directory,
    instances: Instances,
    regions: Regions,
    pools: Pools,
    policy: Policy,
    changes: Changes,
    recovery: Recovery,
    /// How often entries were asked for and found, which is the time that orphans age by.
    touches: u64,
    instances_expired: u64,
    reclaimed_pages: u64,
    evicted_for_owner: u64,
    evicted_with_orphan: u64,
    pins_expired: u64,
}

impl State {
    /// An empty state over these pools. The directory's memory is reserved here, so that nothing grows later.
    pub fn new(limits: Limits, pools: &[PoolSpec]) -> State {
        State {
            limits,
            directory: Directory::new(limits.max_entries),
            instances: Instances::new(),
            regions: Regions::new(),
            pools: Pools::new(pools),
            policy: Policy::new(limits.max_entries),
            changes: Changes::default(),
            recovery: Recovery::default(),
            touches: 0,
            instances_expired: 0,
            reclaimed_pages: 0,
            evicted_for_owner: 0,
            evicted_with_orphan: 0,
            pins_expired: 0,
        }
    }

    /// The pools, by id.
    pub fn pools(&self) -> impl Iterator<Item = PoolInfo> {
        self.pools.iter()
    }

    /// One more pool, behind the others, from which regions come when those are full. The limits stay as they are.
    pub fn add_pool(&mut self, spec: PoolSpec) {
        self.pools.add(spec);
    }

    /// The figures; takes a time that grows with the number of pools and instances, and with the pins of those whose
    /// oldest pin was released since the last time.
    pub fn figures(&self, now: Duration) -> Figures {
        let directory = self.directory.counts();
        let regions = self.regions.counts();
        let (pool_bytes, pool_free_bytes) =
            self.pools.iter().fold((0, 0), |(size, free), pool| (size + pool.size, free + pool.free));
        Figures {
            entries: self.directory.len(),
            entry_bytes: directory.entry_bytes,
            entry_capacity: u64::from(self.limits.max_entries),
            regions: regions.regions,
            region_bytes: regions.region_bytes,
            orphans: regions.orphans,
            freed_pages: regions.freed_pages,
            pinned_entries: directory.pinned_entries,
            pins: directory.pins,
            instances: self.instances.len(),
            connections: self.instances.connections(),
            pool_bytes,
            pool_free_bytes,
            instances_expired: self.instances_expired,
            reclaimed_pages: self.reclaimed_pages,
            evicted_for_owner: self.evicted_for_owner,
            evicted_with_orphan: self.evicted_with_orphan,
            pins_expired: self.pins_expired,
            oldest_pin_seconds: self.instances.oldest_pin(now).unwrap_or(0),
        }
    }
}

/// The entries, for the policy.
struct View<'a> {
    directory: &'a mut Directory,
    regions: &'a Regions,
}

impl State {
    /// The policy, and what it works on.
    fn eviction(&mut self) -> (&mut Policy, View<'_>) {
        (&mut self.policy, View { directory: &mut self.directory, regions: &self.regions })
    }
}

impl Entries<<Policy as EvictionPolicy>::Mark> for View<'_> {
    fn mark(&self, slot: u32) -> &<Policy as EvictionPolicy>::Mark {
        &self.directory.at(slot).mark
    }

    fn mark_mut(&mut self, slot: u32) -> &mut <Policy as EvictionPolicy>::Mark {
        &mut self.directory.at_mut(slot).mark
    }

    fn digest(&self, slot: u32) -> Digest {
        self.directory.at(slot).digest
    }

    fn generation(&self, slot: u32) -> u32 {
        self.directory.at(slot).generation
    }

    fn is_pinned(&self, slot: u32) -> bool {
        self.directory.at(slot).pin_count > 0
    }

    fn group(&self, slot: u32) -> Option<Group> {
        self.regions.at(self.directory.at(slot).region).group
    }

    fn find(&self, digest: Digest) -> Option<u32> {
        self.directory.find(digest)
    }

    fn holds(&self, slot: u32, generation: u32) -> bool {
        self.directory.get(slot).is_some_and(|entry| entry.generation == generation)
    }
}
