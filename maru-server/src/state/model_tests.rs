//! Random operations on the state and on a naive model of it: every result, and all that can be seen, is the same.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::model::{LIMITS, Model, ModelInstance, POOLS};
use super::*;

/// Digests that are used.
const KEYS: usize = 8;

const PAGE_SIZES: [u64; 6] = [4096, 8192, 12288, 0, 6000, 16384];

/// One operation. What it works on is an index into what there is at that moment, so that any part of a sequence is a
/// sequence too.
#[derive(Clone, Debug)]
enum Op {
    Open,
    Connect { who: usize },
    Disconnect { who: usize },
    Forget { who: usize },
    Expire { seconds: u64 },
    Begin { who: usize, size: u64, page_size: usize, pool: Option<u32> },
    Commit { which: usize },
    Abort { which: usize },
    Return { who: usize, region: usize },
    NextRetired,
    Released { which: usize },
    Reclaim { who: usize, region: Option<usize>, want: usize },
    Evict { who: usize, want: usize },
    Register { who: usize, digest: usize, region: usize, page: u32, length: u32, checksum: u32 },
    RegisterChain { who: usize, first: usize, region: usize },
    Lookup { who: usize, first: usize, count: usize },
    Pin { who: usize, digest: usize, named: bool },
    Unpin { who: usize, digest: usize, named: bool },
    Delete { digest: usize },
    Resume { who: usize, asserted: Vec<(usize, bool, u32, u32)> },
    HeldPages { who: usize, region: usize },
    Restart,
}

/// Two instances with a region each, so that the operations find something to work on.
const START: &[Op] = &[
    Op::Open,
    Op::Open,
    Op::Connect { who: 0 },
    Op::Connect { who: 1 },
    Op::Begin { who: 0, size: 20000, page_size: 0, pool: None },
    Op::Begin { who: 1, size: 20000, page_size: 1, pool: Some(1) },
    Op::Commit { which: 0 },
    Op::Commit { which: 0 },
];

/// Every kind of answer that the operations give.
#[rustfmt::skip]
const ANSWERS: &[&str] = &[
    "open: Ok(InstanceNumber", "open: Err(Instances", "connect: Ok", "connect: Err(Connections",
    "expire: some", "expire pins: some",
    "begin: Ok(RegionInfo", "begin: Err(InvalidSize", "begin: Err(UnknownPool", "begin: Err(TooManyRegions",
    "begin: Err(TooManyPages", "begin: pending true", "begin: pending false",
    "begin: orphans evicted for space", "begin: orphans evicted for pages",
    "commit: Some(RegionInfo", "commit: None", "abort: done",
    "return: Ok", "return: Err(NotFound", "return: Err(NotOwner",
    "retired: Some(RetiredRegion", "retired: None", "released: done",
    "evict: pages", "evict: all that could go", "reclaim: pages", "reclaim: Ok", "reclaim: Err(NotFound", "reclaim: Err(NotOwner",
    "register: Done", "register: Exists", "register: RegionNotFound", "register: NotOwner", "register: OutOfBounds",
    "register: PageInUse",
    "pin: Ok(Location", "pin: Err(NotFound", "pin: Err(Limit",
    "unpin: Ok", "unpin: Err(NotFound", "unpin: Err(NotPinned",
    "resume: Ok", "resume: Err(Connections", "restart: done", "restart: waits", "assert: believed", "assert: true", "assert: false", "held: Ok", "held: Err(NotFound", "held: Err(NotOwner",
    "delete: Ok", "delete: Err(NotFound", "delete: Err(Pinned", "delete: orphan retired",
];

fn ops() -> impl Strategy<Value = Op> {
    let who = 0..8usize;
    let region = 0..12usize;
    let which = 0..4usize;
    let digest = 0..KEYS;
    let page_size = prop_oneof![9 => 0..3usize, 1 => 3..PAGE_SIZES.len()];
    let pool = prop_oneof![4 => Just(None), 4 => (0..2u32).prop_map(Some), 1 => Just(Some(2))];
    let length = prop_oneof![12 => 1..=4096u32, 1 => Just(0), 1 => 4096..14000u32];
    let checksum = prop_oneof![1 => Just(0), 1 => any::<u32>()];
    prop_oneof![
        3 => Just(Op::Open),
        4 => who.clone().prop_map(|who| Op::Connect { who }),
        3 => who.clone().prop_map(|who| Op::Disconnect { who }),
        1 => who.clone().prop_map(|who| Op::Forget { who }),
        2 => (0..8u64).prop_map(|seconds| Op::Expire { seconds }),
        8 => (who.clone(), 4000..30000u64, page_size, pool)
            .prop_map(|(who, size, page_size, pool)| Op::Begin { who, size, page_size, pool }),
        8 => which.clone().prop_map(|which| Op::Commit { which }),
        1 => which.clone().prop_map(|which| Op::Abort { which }),
        1 => (who.clone(), region.clone()).prop_map(|(who, region)| Op::Return { who, region }),
        3 => Just(Op::NextRetired),
        3 => which.prop_map(|which| Op::Released { which }),
        4 => (who.clone(), prop::option::of(region.clone()), 0..4usize)
            .prop_map(|(who, region, want)| Op::Reclaim { who, region, want }),
        4 => (who.clone(), 0..4usize).prop_map(|(who, want)| Op::Evict { who, want }),
        50 => (who.clone(), digest.clone(), region, 0..4u32, length, checksum).prop_map(
            |(who, digest, region, page, length, checksum)| {
                Op::Register { who, digest, region, page, length, checksum }
            }
        ),
        10 => (who.clone(), digest.clone(), 0..12usize)
            .prop_map(|(who, first, region)| Op::RegisterChain { who, first, region }),
        10 => (who.clone(), digest.clone(), 1..6usize)
            .prop_map(|(who, first, count)| Op::Lookup { who, first, count }),
        16 => (who.clone(), digest.clone(), any::<bool>())
            .prop_map(|(who, digest, named)| Op::Pin { who, digest, named }),
        16 => (who, digest.clone(), any::<bool>())
            .prop_map(|(who, digest, named)| Op::Unpin { who, digest, named }),
        10 => digest.clone().prop_map(|digest| Op::Delete { digest }),
        4 => (0..8usize, prop::collection::vec((digest, prop::bool::weighted(0.8), 0..4u32, 0..3u32), 0..4))
            .prop_map(|(who, asserted)| Op::Resume { who, asserted }),
        2 => (0..8usize, 0..12usize).prop_map(|(who, region)| Op::HeldPages { who, region }),
        1 => Just(Op::Restart),
    ]
}

/// Some digests share their low half, on which the index works.
fn digest(index: usize) -> Digest {
    Digest((index as u128) << 64 | (index % 5) as u128)
}

fn kind(named: bool) -> PinKind {
    if named { PinKind::Named } else { PinKind::Guard }
}

/// What outlives the state, put together from nothing but its changes.
#[derive(Default)]
struct Kept(Saved);

impl Kept {
    fn note(&mut self, change: Change, state: &State) {
        let Saved { last_instance, last_region, generation, grace, instances, regions } = &mut self.0;
        match change {
            Change::Opened(number) => {
                *last_instance = number.0;
                if let Some((name, token)) = state.identity(number) {
                    instances.push(SavedInstance { number, name: name.to_owned(), token });
                }
            }
            Change::Ended(number) => instances.retain(|instance| instance.number != number),
            Change::Committed(id) => {
                *last_region = id.0.max(*last_region);
                let Some(info) = state.region(id) else { return };
                let RegionInfo { pool, pool_offset, extent, page_size, owner, pages, .. } = info;
                let (freed, entries) = (Vec::new(), Vec::new());
                let saved =
                    SavedRegion { id, owner, page_size, pages, pool, pool_offset, extent, freed, entries };
                regions.push(saved);
            }
            Change::Disowned(id) => {
                if let Some(region) = regions.iter_mut().find(|region| region.id == id) {
                    region.owner = None;
                }
            }
            Change::Retired(id) => regions.retain(|region| region.id != id),
            Change::Stored { region, page, digest, length, generation: own, checksum } => {
                *generation = own;
                let region = region_of(regions, region);
                assert!(
                    !region.entries.iter().any(|entry| entry.page == page) && !region.freed.contains(&page)
                );
                region.entries.push(SavedEntry { page, digest, length, generation: own, checksum });
            }
            Change::Freed { region, page } => {
                let region = region_of(regions, region);
                region.entries.retain(|entry| entry.page != page);
                region.freed.push(page);
            }
            Change::Held { region, page } => {
                let region = region_of(regions, region);
                region.entries.retain(|entry| entry.page != page);
                region.freed.retain(|freed| *freed != page);
            }
            Change::Recovered => *grace = state.promised_grace(),
        }
    }
}

fn region_of(regions: &mut [SavedRegion], id: RegionId) -> &mut SavedRegion {
    regions.iter_mut().find(|region| region.id == id).unwrap()
}

/// The state and its model, driven together, what is kept of the state, and which results were seen.
struct Pair<'a> {
    state: State,
    model: Model,
    kept: Kept,
    seen: &'a RefCell<BTreeMap<String, u32>>,
}

impl Pair<'_> {
    fn note(&self, what: impl Into<String>) {
        *self.seen.borrow_mut().entry(what.into()).or_default() += 1;
    }

    /// Both said the same; which kind of answer it was is noted.
    fn same<T: Debug + PartialEq>(&self, what: &str, state: &T, model: &T) {
        assert_eq!(state, model, "{what}");
        let said = format!("{state:?}");
        let kind = said.split(|c: char| !c.is_alphabetic() && c != '(').next().unwrap_or("");
        self.note(format!("{what}: {}", kind.trim_end_matches('(')));
    }

    fn who(&self, index: usize) -> Option<InstanceNumber> {
        let all = self.model.instances.keys().copied().collect::<Vec<_>>();
        (!all.is_empty()).then(|| all[index % all.len()])
    }

    /// A region that there is, or one that was never given.
    fn region(&self, index: usize) -> RegionId {
        let none = RegionId(self.model.last_region + 1);
        let all = self.model.regions.keys().copied().chain([none]).collect::<Vec<_>>();
        all[index % all.len()]
    }

    /// Mostly the owner of a region, to whom more can happen than to others.
    fn who_with(&self, index: usize, region: RegionId) -> Option<InstanceNumber> {
        let owner = self.model.regions.get(&region).and_then(|region| region.owner);
        owner.filter(|_| index > 1).or_else(|| self.who(index))
    }

    fn prepared(&self, index: usize) -> Option<RegionId> {
        let all = self.model.regions.iter().filter(|(_, region)| !region.committed);
        let all = all.map(|(id, _)| *id).collect::<Vec<_>>();
        (!all.is_empty()).then(|| all[index % all.len()])
    }

    /// Does one operation on both; `None` where there is nothing to do it to.
    fn step(&mut self, op: &Op) -> Option<()> {
        match *op {
            Op::Open => self.open(),
            Op::Connect { who } => {
                let who = self.who(who)?;
                let instance = self.model.instances.get_mut(&who).unwrap();
                let expected = if instance.connections < 2 {
                    *instance = ModelInstance { connections: instance.connections + 1, grace_end: None };
                    Ok(())
                } else {
                    Err(LimitReached::Connections(2))
                };
                let found = self.state.find_instance(Token(u128::from(who.0)));
                assert_eq!(found, Some(who));
                let result = self.state.connect(who);
                self.same("connect", &result, &expected);
            }
            Op::Disconnect { who } => {
                let who = self.who(who)?;
                let now = self.model.now;
                let instance = self.model.instances.get_mut(&who).unwrap();
                instance.connections = instance.connections.checked_sub(1)?;
                instance.grace_end = (instance.connections == 0).then_some(now + LIMITS.grace);
                self.state.disconnect(who, now);
            }
            Op::Forget { who } => {
                let who = self.who(who)?;
                self.model.end(who);
                self.state.forget(who);
                assert_eq!(self.state.find_instance(Token(u128::from(who.0))), None);
            }
            Op::Expire { seconds } => {
                self.model.now += Duration::from_secs(seconds);
                let expected = self.model.expire();
                assert_eq!(self.state.expire(self.model.now), expected);
                if expected > 0 {
                    self.note("expire: some");
                }
                let expected = self.model.expire_pins();
                assert_eq!(self.state.expire_pins(self.model.now), expected);
                if expected > 0 {
                    self.note("expire pins: some");
                }
            }
            Op::Begin { who, size, page_size, pool } => {
                let (who, page_size) = (self.who(who)?, PAGE_SIZES[page_size]);
                let evicted = self.model.evicted_with_orphan;
                let expected = self.model.begin(who, size, page_size, pool);
                if self.model.evicted_with_orphan > evicted {
                    let reason = if expected.is_ok() { "pages" } else { "space" };
                    self.note(format!("begin: orphans evicted for {reason}"));
                }
                let result = self.state.begin_region(who, size, page_size, pool.map(PoolId));
                if let Err(AllocError::NoSpace { pending }) = result {
                    self.note(format!("begin: pending {pending}"));
                }
                self.same("begin", &result, &expected);
            }
            Op::Commit { which } => {
                let id = self.prepared(which)?;
                let region = self.model.regions.get_mut(&id).unwrap();
                region.committed = true;
                let owned = region.owner.is_some();
                let expected = owned.then(|| self.model.info(id));
                self.model.retire_empty_orphans();
                let result = self.state.commit_region(id);
                self.same("commit", &result, &expected);
            }
            Op::Abort { which } => {
                let id = self.prepared(which)?;
                self.model.regions.remove(&id);
                self.state.abort_region(id);
                self.note("abort: done");
            }
            Op::Return { who, region } => {
                let id = self.region(region);
                let who = self.who_with(who, id)?;
                let expected = self.model.owns(who, id);
                if expected.is_ok() {
                    self.model.disown(id);
                }
                let result = self.state.return_region(who, id);
                self.same("return", &result, &expected);
            }
            Op::NextRetired => {
                let expected = (!self.model.retired.is_empty()).then(|| self.model.retired.remove(0));
                self.model.releasing.extend(expected);
                let result = self.state.next_retired();
                self.same("retired", &result, &expected);
            }
            Op::Released { which } => {
                let releasing = &mut self.model.releasing;
                let region = releasing.remove(which.checked_rem(releasing.len())?);
                self.state.released(region.id);
                self.note("released: done");
            }
            Op::Reclaim { who, region, want } => {
                let region = region.map(|region| self.region(region));
                let who = self.who_with(who, region.unwrap_or(RegionId(0)))?;
                let expected = self.model.reclaim(who, region, want);
                let mut back = Vec::new();
                let result = self.state.reclaim(who, region, want, |id, page| back.push((id, page)));
                if !back.is_empty() {
                    self.note("reclaim: pages");
                }
                self.same("reclaim", &result.map(|()| back), &expected);
            }
            Op::Evict { who, want } => {
                let who = self.who(who)?;
                let evictable = self.model.evictable(who);
                let mut pages = Vec::new();
                self.state.evict(who, want, |region, page| pages.push((region, page)));
                assert_eq!(pages.len(), want.min(evictable), "as many are evicted as are wanted and may go");
                if !pages.is_empty() {
                    self.note("evict: pages");
                }
                if want > evictable {
                    self.note("evict: all that could go");
                }
                pages.into_iter().for_each(|page| self.model.evict(who, page));
            }
            Op::Register { who, digest: key, region, page, length, checksum } => {
                let id = self.region(region);
                let who = self.who_with(who, id)?;
                let expected = self.model.register(who, key, id, page, length, checksum);
                let mut request = self.request(who, 1);
                let result = self.state.register(&mut request, digest(key), id, page, length, checksum);
                self.same("register", &result, &expected);
            }
            Op::RegisterChain { who, first, region } => {
                let id = self.region(region);
                let who = self.who_with(who, id)?;
                let mut request = self.request(who, 3);
                for (key, page) in (first..first + 3).map(|key| key % KEYS).zip(0..) {
                    let expected = self.model.register(who, key, id, page, 1, 0);
                    let result = self.state.register(&mut request, digest(key), id, page, 1, 0);
                    self.same("register", &result, &expected);
                }
            }
            Op::Lookup { who, first, count } => {
                let mut request = self.request(self.who(who)?, count);
                for key in (first..first + count).map(|key| key % KEYS) {
                    let expected = self.model.use_of(key);
                    assert_eq!(self.state.lookup(&mut request, digest(key)), expected);
                }
                self.model.use_of(first % KEYS);
                self.state.pass_over(&mut request, digest(first % KEYS));
                self.state.pass_over(&mut request, digest(KEYS));
            }
            Op::Pin { who, digest: key, named } => {
                let (who, kind) = (self.who(who)?, kind(named));
                let expected = self.model.pin(who, key, kind);
                let result = self.state.pin(&mut self.request(who, 1), digest(key), kind);
                self.same("pin", &result, &expected);
            }
            Op::Unpin { who, digest: key, named } => {
                let (who, kind) = (self.who(who)?, kind(named));
                let expected = self.model.unpin(who, key, kind);
                let result = self.state.unpin(&self.request(who, 1), digest(key), kind);
                self.same("unpin", &result, &expected);
            }
            Op::Resume { who, ref asserted } => {
                let who = self.who(who)?;
                let (request, mut listed) = (self.request(who, asserted.len()), BTreeSet::new());
                let before = self.state.incarnation(who);
                // Those of before may not have ended yet.
                let instance = self.model.instances.get_mut(&who).unwrap();
                let expected = if instance.connections < 4 {
                    *instance = ModelInstance { connections: instance.connections + 1, grace_end: None };
                    Ok(())
                } else {
                    Err(LimitReached::Connections(4))
                };
                let result = self.state.resume(who);
                self.same("resume", &result, &expected);
                expected.ok()?;
                assert_eq!(self.state.incarnation(who), before + 1);
                for &(key, right, guards, named) in asserted {
                    let generation = self.model.entries.get(&key).map_or(0, |entry| entry.generation);
                    let generation = if right { generation } else { generation + 1 };
                    let expected = self.model.assert_pins(who, key, generation, guards, named);
                    let result = self.state.assert_pins(&request, digest(key), generation, guards, named);
                    self.same("assert", &result, &expected);
                    if result && named > 0 && self.model.unheard.contains(&who) {
                        self.note("assert: believed");
                    }
                    if expected {
                        listed.insert(key);
                    }
                }
                self.model.pins.retain(|(of, key), _| *of != who || listed.contains(key));
                self.model.unheard.remove(&who);
                self.state.release_unasserted(&request);
            }
            Op::Restart => {
                self.model.restart();
                self.model.last_region = self.kept.0.last_region;
                self.state = State::restore(LIMITS, &POOLS, &self.kept.0, self.model.now).unwrap();
                self.state.keep_changes();
                self.note("restart: done");
                if self.state.is_recovering() {
                    self.note("restart: waits");
                }
            }
            Op::HeldPages { who, region } => {
                let id = self.region(region);
                let who = self.who(who)?;
                let expected = self.model.owns(who, id).map(|()| {
                    let region = &self.model.regions[&id];
                    let is_held = |page: &u32| {
                        !region.freed.contains(page)
                            && self.model.entries_in(id).all(|entry| entry.page != *page)
                    };
                    (0..region.pages).filter(is_held).fold(0, |word, page| word | 1u64 << page)
                });
                let result = self.state.held_pages(who, id, 0).map(Iterator::sum::<u64>);
                self.same("held", &result, &expected);
            }
            Op::Delete { digest: key } => {
                let retired = self.model.retired.len();
                let expected = self.model.delete(key);
                if self.model.retired.len() > retired {
                    self.note("delete: orphan retired");
                }
                let result = self.state.delete(digest(key));
                self.same("delete", &result, &expected);
            }
        }
        Some(())
    }

    fn request(&self, who: InstanceNumber, keys: usize) -> Request {
        Request::new(who, self.model.now, keys)
    }

    fn open(&mut self) {
        let expected = if self.model.instances.len() < 4 {
            self.model.last_instance += 1;
            let number = InstanceNumber(self.model.last_instance);
            self.model.instances.insert(number, ModelInstance::default());
            Ok(number)
        } else {
            Err(LimitReached::Instances(4))
        };
        let token = Token(u128::from(self.model.last_instance));
        let result = self.state.open_instance("same", token);
        self.same("open", &result, &expected);
    }

    /// Everything that can be seen is the same on both sides.
    fn compare(&mut self) {
        let Pair { state, model, kept, .. } = self;
        let mut changes = Vec::new();
        state.take_changes(&mut changes);
        changes.into_iter().for_each(|change| kept.note(change, state));
        state.check();
        assert_eq!(state.is_recovering(), model.is_recovering());
        assert_eq!(state.figures(model.now), model.figures());
        for key in 0..KEYS {
            assert_eq!(state.find(digest(key)), model.lookup(key), "{key} is where it is");
        }
        let committed = model.regions.iter().filter(|(_, region)| region.committed).map(|(id, _)| *id);
        let regions = committed.map(|id| model.info(id)).collect::<Vec<_>>();
        assert_eq!(state.regions_after(RegionId(0)).collect::<Vec<_>>(), regions);
        for id in (0..=model.last_region + 1).map(RegionId) {
            assert_eq!(state.region(id), regions.iter().find(|info| info.id == id).copied());
        }
        let usage = model.instances.keys().map(|number| model.usage(*number)).collect::<Vec<_>>();
        assert_eq!(state.usage_after(InstanceNumber(0), model.now).collect::<Vec<_>>(), usage);
        assert_eq!(state.next_expiry(), model.next_expiry());
        for (index, pool) in state.pools().enumerate() {
            let granules = model.granules(index);
            let runs = granules.split(|free| !free).map(|run| run.len() as u64);
            assert_eq!(pool.largest_free, runs.max().unwrap_or(0) * pool.granularity, "{pool:?}");
        }
    }
}

#[test]
fn random_operations_do_what_a_naive_model_does() {
    let seen = RefCell::new(BTreeMap::new());
    let config = Config { cases: 1024, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(ops(), 1..500), |ops| {
        let (model, kept) = (Model::default(), Kept::default());
        let mut pair = Pair { state: State::new(LIMITS, &POOLS), model, kept, seen: &seen };
        pair.state.keep_changes();
        for op in START.iter().chain(&ops) {
            pair.step(op);
            pair.compare();
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    // What never happened was not tested.
    let seen = seen.into_inner();
    for what in ANSWERS {
        assert!(seen.contains_key(*what), "no sequence came to \"{what}\": {seen:#?}");
    }
}
