//! The instances: their connections, the pins they hold, the regions they own, and their end.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::changes::Change;
use super::eviction::{EvictionPolicy, Group};
use super::ledger::{Ledger, PinExpiries};
use super::numbered::Numbered;
use super::regions::Region;
use super::{InstanceNumber, PinKind, RegionId, Request, State, Token};

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
    /// Those of them that were taken by name.
    pub named_pins: u64,
    /// For how many whole seconds it has held the oldest of them; 0 without any.
    pub oldest_pin_seconds: u64,
    /// How long its grace period still lasts; zero while it has connections.
    pub grace_left: Duration,
}

/// One instance.
#[derive(Debug)]
pub(super) struct Instance {
    number: InstanceNumber,
    name: Box<str>,
    token: Token,
    connections: u32,
    /// Whether it ends with its last connection.
    has_no_grace: bool,
    /// When the grace period ends; `None` while there are connections, and before the first.
    grace_end: Option<Duration>,
    pub(super) ledger: Ledger,
    /// How often it was resumed.
    pub(super) incarnation: u32,
    /// The entries that it asserted pins on since it was resumed, until it has listed all.
    pub(super) asserted: HashSet<u32>,
    /// Its entries, as the eviction policy knows them.
    pub(super) group: Group,
    /// What it owns, those being prepared included, ascending.
    pub(super) regions: Vec<RegionId>,
}

impl Instance {
    /// One without connections.
    pub(super) fn new(number: InstanceNumber, name: &str, token: Token, group: Group) -> Instance {
        Instance {
            number,
            name: name.into(),
            token,
            connections: 0,
            has_no_grace: false,
            grace_end: None,
            ledger: Ledger::default(),
            incarnation: 0,
            asserted: HashSet::new(),
            group,
            regions: Vec::new(),
        }
    }

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
    /// The ends of pins by name.
    pin_expiries: PinExpiries,
    connections: u64,
}

impl Instances {
    pub(super) fn new() -> Instances {
        Instances {
            numbered: Numbered::new(u32::MAX),
            tokens: HashMap::new(),
            expiries: BTreeSet::new(),
            pin_expiries: PinExpiries::default(),
            connections: 0,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.numbered.len() as u64
    }

    pub(super) fn connections(&self) -> u64 {
        self.connections
    }

    pub(super) fn get(&self, number: InstanceNumber) -> &Instance {
        self.numbered.get(number.0).expect("an instance does not end while one of its connections asks")
    }

    pub(super) fn get_mut(&mut self, number: InstanceNumber) -> &mut Instance {
        self.numbered.get_mut(number.0).expect("an instance does not end while one of its connections asks")
    }

    /// Adds the instance with the next number, whose token is fresh.
    fn add(&mut self, instance: Instance) {
        let namesake = self.tokens.insert(instance.token, instance.number);
        debug_assert!(namesake.is_none(), "a fresh token belongs to nobody");
        self.numbered.insert(instance);
    }

    /// Adds an instance of before a restart, in its grace period. They come in the order of their numbers.
    pub(super) fn restore(&mut self, mut instance: Instance, grace_end: Duration) {
        let number = instance.number;
        instance.grace_end = Some(grace_end);
        self.expiries.insert((grace_end, number));
        self.numbered.skip_to(number.0);
        self.add(instance);
    }

    /// Numbers greater than this one follow.
    pub(super) fn skip_to(&mut self, last: InstanceNumber) {
        self.numbered.skip_to(last.0.saturating_add(1));
    }

    /// Whether there is such an instance.
    pub(super) fn contains(&self, number: InstanceNumber) -> bool {
        self.numbered.get(number.0).is_some()
    }

    /// Whether an instance has this token.
    pub(super) fn knows(&self, token: Token) -> bool {
        self.tokens.contains_key(&token)
    }

    /// Notes a pin that an entry got.
    pub(super) fn pin(&mut self, request: &Request, slot: u32, kind: PinKind, pin_ttl: Duration) {
        self.get_mut(request.caller).ledger.add(slot, kind, request.now);
        if kind == PinKind::Named && !pin_ttl.is_zero() {
            self.pin_expiries.set(request.caller, slot, request.now + pin_ttl);
        }
    }

    /// Strikes out one pin, if there is one of this kind.
    pub(super) fn unpin(&mut self, instance: InstanceNumber, slot: u32, kind: PinKind) -> bool {
        let ledger = &mut self.get_mut(instance).ledger;
        let taken = ledger.take(slot, kind);
        if taken && kind == PinKind::Named && ledger.named(slot) == 0 {
            self.pin_expiries.cancel(instance, slot);
        }
        taken
    }

    /// The next entry whose pins by name of one instance ran out, with their number; they are struck out.
    fn expire_pin(&mut self, now: Duration) -> Option<(u32, u32)> {
        let (instance, slot) = self.pin_expiries.pop(now)?;
        Some((slot, self.get_mut(instance).ledger.take_named(slot)))
    }

    /// For how many whole seconds the oldest pin of all has been held.
    pub(super) fn oldest_pin(&self, now: Duration) -> Option<u64> {
        self.iter().filter_map(|(_, instance)| instance.ledger.oldest(now)).max()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (InstanceNumber, &Instance)> {
        self.numbered.after(0).map(|instance| (instance.number, instance))
    }

    /// The ledgers of the instances with a greater number than `after`, or of one of them alone, by number.
    pub(super) fn ledgers_after(
        &self,
        after: u32,
        only: Option<InstanceNumber>,
    ) -> impl Iterator<Item = (InstanceNumber, &Ledger)> {
        let after = only.map_or(after, |only| after.max(only.0.saturating_sub(1)));
        let wanted = self.numbered.after(after).take_while(move |instance| {
            // Those that follow are others.
            only.is_none_or(|only| instance.number == only)
        });
        wanted.map(|instance| (instance.number, &instance.ledger))
    }

    fn remove(&mut self, number: InstanceNumber) -> Option<Instance> {
        let instance = self.numbered.remove(number.0)?;
        self.tokens.remove(&instance.token);
        self.connections -= u64::from(instance.connections);
        if let Some(end) = instance.grace_end {
            self.expiries.remove(&(end, number));
        }
        for (slot, _) in instance.ledger.iter() {
            self.pin_expiries.cancel(number, slot);
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
            instance.ledger.check();
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
        let group = self.policy.open_group();
        self.instances.add(Instance::new(number, name, token, group));
        self.changes.note(Change::Opened(number));
        Ok(number)
    }

    /// Has an instance end with its last connection, as one does that only looks. A restart of the server does not know of
    /// it, and gives the instance a grace period like any other.
    ///
    /// # Panics
    /// When the instance ended.
    pub fn end_without_grace(&mut self, instance: InstanceNumber) {
        self.instances.get_mut(instance).has_no_grace = true;
    }

    /// The instance with this token, unless it ended.
    pub fn find_instance(&self, token: Token) -> Option<InstanceNumber> {
        self.instances.tokens.get(&token).copied()
    }

    /// The name and the token of an instance, unless it ended.
    pub fn identity(&self, instance: InstanceNumber) -> Option<(&str, Token)> {
        let instance = self.instances.numbered.get(instance.0)?;
        Some((&instance.name, instance.token))
    }

    /// Counts one connection more and stops the grace period if it runs.
    ///
    /// # Errors
    /// [`LimitReached::Connections`].
    ///
    /// # Panics
    /// When the instance ended.
    pub fn connect(&mut self, instance: InstanceNumber) -> Result<(), LimitReached> {
        self.connect_within(instance, self.limits.max_connections_per_instance)
    }

    /// Does the same, and begins a new incarnation of the instance, whose pins stay until it has said which it has a use for.
    /// The connections of before, which have no say any more, may not have ended yet: there may be as many on top.
    ///
    /// # Errors
    /// [`LimitReached::Connections`]; nothing is changed then.
    ///
    /// # Panics
    /// When the instance ended.
    pub fn resume(&mut self, instance: InstanceNumber) -> Result<(), LimitReached> {
        self.connect_within(instance, self.limits.max_connections_per_instance.saturating_mul(2))?;
        let resumed = self.instances.get_mut(instance);
        resumed.incarnation = resumed.incarnation.wrapping_add(1);
        resumed.asserted.clear();
        Ok(())
    }

    fn connect_within(&mut self, instance: InstanceNumber, limit: u32) -> Result<(), LimitReached> {
        let connected = self.instances.get_mut(instance);
        if connected.connections >= limit {
            return Err(LimitReached::Connections(limit));
        }
        connected.connections += 1;
        if let Some(end) = connected.grace_end.take() {
            self.instances.expiries.remove(&(end, instance));
        }
        self.instances.connections += 1;
        Ok(())
    }

    /// How often an instance was resumed: connections of an earlier incarnation have no say any more.
    ///
    /// # Panics
    /// When the instance ended.
    pub fn incarnation(&self, instance: InstanceNumber) -> u32 {
        self.instances.get(instance).incarnation
    }

    /// Counts one connection less; the grace period starts with the last.
    ///
    /// # Panics
    /// When the instance ended or has no connection.
    pub fn disconnect(&mut self, instance: InstanceNumber, now: Duration) {
        let grace = self.promised_grace();
        let left = self.instances.get_mut(instance);
        let grace_end = if left.has_no_grace { now } else { now + grace };
        left.connections = left.connections.checked_sub(1).expect("each connection ends once");
        if left.connections == 0 {
            left.grace_end = Some(grace_end);
            self.instances.expiries.insert((grace_end, instance));
        }
        self.instances.connections -= 1;
    }

    /// The instances, with their names, that [`State::expire`] would end.
    pub fn expiring(&self, now: Duration) -> impl Iterator<Item = (InstanceNumber, &str)> {
        let over = self.instances.expiries.iter().take_while(move |(end, _)| *end <= now);
        over.map(|(_, instance)| (*instance, &*self.instances.get(*instance).name))
    }

    /// Ends the instances whose grace period ran out, and says how many: their pins are released and their regions
    /// become orphans, retired where they hold no entry.
    pub fn expire(&mut self, now: Duration) -> usize {
        self.expire_recovery(now);
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

    /// Releases the pins by name that ran out, and says how many.
    pub fn expire_pins(&mut self, now: Duration) -> u64 {
        let before = self.pins_expired;
        while let Some((slot, pins)) = self.instances.expire_pin(now) {
            self.unpin_slot(slot, pins);
            self.pins_expired += u64::from(pins);
        }
        self.pins_expired - before
    }

    /// When [`State::expire`] or [`State::expire_pins`] has something to do next.
    pub fn next_expiry(&self) -> Option<Duration> {
        let instance = self.instances.expiries.first().map(|(end, _)| *end);
        [instance, self.instances.pin_expiries.next(), self.recovery.end()].into_iter().flatten().min()
    }

    /// Ends an instance now, as [`State::expire`] does. Nothing happens when it ended already.
    pub fn forget(&mut self, instance: InstanceNumber) {
        let Some(ended) = self.instances.remove(instance) else {
            return;
        };
        self.has_recovered(instance);
        self.changes.note(Change::Ended(instance));
        for (entry, pins) in ended.ledger.iter() {
            self.unpin_slot(entry, pins);
        }
        for region in ended.regions {
            self.disown(region);
        }
        self.policy.close_group(ended.group);
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
                pinned_entries: instance.ledger.entries(),
                pins: instance.ledger.pins(),
                named_pins: instance.ledger.named_pins(),
                oldest_pin_seconds: instance.ledger.oldest(now).unwrap_or(0),
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
