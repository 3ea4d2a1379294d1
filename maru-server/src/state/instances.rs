//! The instances: their connections, the pins they hold, the regions they own, and their end.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::numbered::{Numbered, Scatter};
use super::regions::Region;
use super::{InstanceNumber, RegionId, State, Token};

/// There are as many instances or connections as the limits allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// Instances of the server.
    #[error("the server has its {0} instances; end some, or raise the limit on instances")]
    Instances(u32),
    /// Connections of the instance.
    #[error(
        "the instance has its {0} connections; share them, or raise the limit on connections per instance"
    )]
    Connections(u32),
}

/// What one instance uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage<'a> {
    /// Its number.
    pub number: InstanceNumber,
    /// The name that it gave itself.
    pub name: &'a str,
    /// Open connections.
    pub connections: u32,
    /// Regions owned, without those being prepared.
    pub regions: u32,
    /// Entries in them.
    pub entries: u32,
    /// Bytes of the regions.
    pub region_bytes: u64,
    /// Bytes of the entries.
    pub entry_bytes: u64,
    /// Entries that the instance has pinned, anybody's.
    pub pinned_entries: u64,
    /// Pins that it holds.
    pub pins: u64,
    /// How long its grace period still lasts; zero while it has connections.
    pub grace_left: Duration,
}

/// The pins of one instance, by entry.
#[derive(Debug)]
pub(super) struct Ledger {
    /// From the slot of an entry to the pins on it, at least 1. A pinned entry is never removed, so the slot is its.
    pins: hashbrown::HashMap<u32, u32, Scatter>,
    total: u64,
}

impl Ledger {
    pub(super) fn add(&mut self, entry: u32) {
        *self.pins.entry(entry).or_insert(0) += 1;
        self.total += 1;
    }

    /// Takes off one pin, if there is one.
    pub(super) fn take(&mut self, entry: u32) -> bool {
        let hashbrown::hash_map::Entry::Occupied(mut pins) = self.pins.entry(entry) else {
            return false;
        };
        *pins.get_mut() -= 1;
        if *pins.get() == 0 {
            pins.remove();
        }
        self.total -= 1;
        true
    }

    /// The slots of the pinned entries with the number of pins.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, u32)> {
        self.pins.iter().map(|(&entry, &pins)| (entry, pins))
    }

    /// Bytes of memory that the ledger takes.
    #[cfg(test)]
    pub(super) fn allocation_size(&self) -> usize {
        self.pins.allocation_size()
    }
}

/// One instance.
#[derive(Debug)]
pub(super) struct Instance {
    number: InstanceNumber,
    name: Box<str>,
    token: Token,
    connections: u32,
    /// When the grace period ends; `None` while there are connections, and before the first.
    grace_end: Option<Duration>,
    pub(super) ledger: Ledger,
    /// What it owns, those being prepared included, ascending.
    pub(super) regions: Vec<RegionId>,
}

impl Instance {
    /// A region is no longer owned.
    pub(super) fn disclaim(&mut self, region: RegionId) {
        self.regions.retain(|owned| *owned != region);
    }
}

/// All instances.
#[derive(Debug)]
pub(super) struct Instances {
    numbered: Numbered<Instance>,
    tokens: HashMap<Token, InstanceNumber>,
    /// The ends of the grace periods that run, the next one first.
    expiries: BTreeSet<(Duration, InstanceNumber)>,
    connections: u64,
}

impl Instances {
    pub(super) fn new() -> Instances {
        Instances {
            numbered: Numbered::new(u32::MAX),
            tokens: HashMap::new(),
            expiries: BTreeSet::new(),
            connections: 0,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.numbered.len() as u64
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections
    }

    pub(super) fn get_mut(&mut self, number: InstanceNumber) -> &mut Instance {
        self.numbered.get_mut(number.0).expect("an instance does not end while one of its connections asks")
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (InstanceNumber, &Instance)> {
        self.numbered.after(0).map(|instance| (instance.number, instance))
    }

    fn remove(&mut self, number: InstanceNumber) -> Option<Instance> {
        let instance = self.numbered.remove(number.0)?;
        self.tokens.remove(&instance.token);
        self.connections -= u64::from(instance.connections);
        if let Some(end) = instance.grace_end {
            self.expiries.remove(&(end, number));
        }
        Some(instance)
    }

    /// Panics where the instances disagree with what is counted and sorted of them.
    pub(super) fn check(&self) {
        let mut connections = 0;
        let mut graces = 0;
        for (number, instance) in self.iter() {
            assert_eq!(self.tokens.get(&instance.token), Some(&number), "{number:?} is found by its token");
            assert!(instance.regions.is_sorted(), "the regions of {number:?} ascend");
            let mut total = 0;
            for (entry, pins) in instance.ledger.iter() {
                assert!(pins > 0, "{number:?} has no pin on entry {entry} and does not list it");
                total += u64::from(pins);
            }
            assert_eq!(instance.ledger.total, total, "the pins of {number:?} are counted right");
            if let Some(end) = instance.grace_end {
                assert_eq!(instance.connections, 0, "no grace period runs while {number:?} is connected");
                assert!(self.expiries.contains(&(end, number)), "the end of {number:?} is foreseen");
                graces += 1;
            }
            connections += u64::from(instance.connections);
        }
        assert_eq!(self.tokens.len(), self.numbered.len(), "no token outlives its instance");
        assert_eq!(self.expiries.len(), graces, "nothing else is to expire");
        assert_eq!(self.connections, connections, "connections are counted right");
    }
}

impl State {
    /// Adds an instance without connections; [`State::connect`] or [`State::forget`] has to follow. The token must be
    /// fresh, and the name may be anybody's.
    ///
    /// # Errors
    /// [`LimitReached::Instances`].
    pub fn open_instance(&mut self, name: &str, token: Token) -> Result<InstanceNumber, LimitReached> {
        let limit = self.limits.max_instances;
        if self.instances.numbered.len() >= limit as usize {
            return Err(LimitReached::Instances(limit));
        }
        let number = self.instances.numbered.next().ok_or(LimitReached::Instances(limit))?;
        let number = InstanceNumber(number);
        let pins = hashbrown::HashMap::with_hasher(Scatter);
        self.instances.numbered.insert(Instance {
            number,
            name: name.into(),
            token,
            connections: 0,
            grace_end: None,
            ledger: Ledger { pins, total: 0 },
            regions: Vec::new(),
        });
        let namesake = self.instances.tokens.insert(token, number);
        debug_assert!(namesake.is_none(), "a fresh token belongs to nobody");
        Ok(number)
    }

    /// The instance with this token, unless it ended.
    pub fn find_instance(&self, token: Token) -> Option<InstanceNumber> {
        self.instances.tokens.get(&token).copied()
    }

    /// Counts one connection more and stops the grace period if it runs.
    ///
    /// # Errors
    /// [`LimitReached::Connections`].
    ///
    /// # Panics
    /// When the instance ended.
    pub fn connect(&mut self, instance: InstanceNumber) -> Result<(), LimitReached> {
        let limit = self.limits.max_connections_per_instance;
        let resumed = self.instances.get_mut(instance);
        if resumed.connections >= limit {
            return Err(LimitReached::Connections(limit));
        }
        resumed.connections += 1;
        if let Some(end) = resumed.grace_end.take() {
            self.instances.expiries.remove(&(end, instance));
        }
        self.instances.connections += 1;
        Ok(())
    }

    /// Counts one connection less; the grace period starts with the last.
    ///
    /// # Panics
    /// When the instance ended or has no connection.
    pub fn disconnect(&mut self, instance: InstanceNumber, now: Duration) {
        let grace_end = now + self.limits.grace;
        let left = self.instances.get_mut(instance);
        left.connections = left.connections.checked_sub(1).expect("each connection ends once");
        if left.connections == 0 {
            left.grace_end = Some(grace_end);
            self.instances.expiries.insert((grace_end, instance));
        }
        self.instances.connections -= 1;
    }

    /// Ends the instances whose grace period ran out, and says how many: their pins are released and their regions
    /// become orphans, retired where they hold no entry.
    pub fn expire(&mut self, now: Duration) -> usize {
        let mut ended = 0;
        while let Some((_, instance)) =
            self.instances.expiries.first().copied().filter(|(end, _)| *end <= now)
        {
            self.forget(instance);
            ended += 1;
        }
        self.instances_expired += ended as u64;
        ended
    }

    /// When [`State::expire`] has something to do next.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.instances.expiries.first().map(|(end, _)| *end)
    }

    /// Ends an instance now, as [`State::expire`] does. Nothing happens when it ended already.
    pub fn forget(&mut self, instance: InstanceNumber) {
        let Some(ended) = self.instances.remove(instance) else {
            return;
        };
        for (entry, pins) in ended.ledger.iter() {
            self.directory.unpin(entry, pins);
        }
        for region in ended.regions {
            self.regions.disown(region);
        }
    }

    /// What the instances with a greater number than `after` use, by number.
    pub fn usage_after(&self, after: InstanceNumber, now: Duration) -> impl Iterator<Item = Usage<'_>> {
        self.instances.numbered.after(after.0).map(move |instance| {
            let mut usage = Usage {
                number: instance.number,
                name: &instance.name,
                connections: instance.connections,
                regions: 0,
                entries: 0,
                region_bytes: 0,
                entry_bytes: 0,
                pinned_entries: instance.ledger.pins.len() as u64,
                pins: instance.ledger.total,
                grace_left: instance.grace_end.map_or(Duration::ZERO, |end| end.saturating_sub(now)),
            };
            for region in instance.regions.iter().filter_map(|id| self.regions.find(*id)).map(Region::info) {
                usage.regions += 1;
                usage.entries += region.entries;
                usage.region_bytes += region.size;
                usage.entry_bytes += region.entry_bytes;
            }
            usage
        })
    }
}
