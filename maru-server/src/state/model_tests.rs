//! Random operations on the state and on a naive model of it: every result, and all that can be seen, is the same.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

const LIMITS: Limits = Limits {
    max_entries: 20,
    max_pins_per_entry: 3,
    max_instances: 4,
    max_connections_per_instance: 2,
    max_regions_per_instance: 3,
    min_page_size: 4096,
    max_page_size: 12288,
    grace: Duration::from_secs(10),
};

const POOLS: [PoolSpec; 2] =
    [PoolSpec { size: 8 * 8192, granularity: 8192 }, PoolSpec { size: 3 * 16384 + 5000, granularity: 16384 }];

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
    Register { who: usize, digest: usize, region: usize, page: u64, off: bool, length: u32 },
    Pin { who: usize, digest: usize },
    Unpin { who: usize, digest: usize },
    Delete { digest: usize },
}

fn ops() -> impl Strategy<Value = Op> {
    let who = 0..8usize;
    let region = 0..12usize;
    let which = 0..4usize;
    let digest = 0..KEYS;
    let page_size = prop_oneof![9 => 0..3usize, 1 => 3..PAGE_SIZES.len()];
    let pool = prop_oneof![4 => Just(None), 4 => (0..2u32).prop_map(Some), 1 => Just(Some(2))];
    let length = prop_oneof![12 => 1..=4096u32, 1 => Just(0), 1 => 4096..14000u32];
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
        50 => (who.clone(), digest.clone(), region, 0..4u64, prop::bool::weighted(0.05), length).prop_map(
            |(who, digest, region, page, off, length)| Op::Register { who, digest, region, page, off, length }
        ),
        16 => (who.clone(), digest.clone()).prop_map(|(who, digest)| Op::Pin { who, digest }),
        16 => (who, digest.clone()).prop_map(|(who, digest)| Op::Unpin { who, digest }),
        10 => digest.prop_map(|digest| Op::Delete { digest }),
    ]
}

/// Some digests share their low half, on which the index works.
fn digest(index: usize) -> Digest {
    Digest((index as u128) << 64 | (index % 5) as u128)
}

#[derive(Debug, Default)]
struct ModelInstance {
    connections: u32,
    grace_end: Option<Duration>,
}

#[derive(Debug)]
struct ModelRegion {
    owner: Option<InstanceNumber>,
    committed: bool,
    pool: usize,
    offset: u64,
    extent: u64,
    page_size: u64,
    pages: u32,
    freed: BTreeSet<u32>,
}

#[derive(Debug)]
struct ModelEntry {
    region: RegionId,
    page: u32,
    length: u32,
    generation: u32,
}

/// What the state promises, in the plainest words: no counter that can be recounted, no index that can be searched.
#[derive(Debug, Default)]
struct Model {
    now: Duration,
    instances: BTreeMap<InstanceNumber, ModelInstance>,
    regions: BTreeMap<RegionId, ModelRegion>,
    entries: BTreeMap<usize, ModelEntry>,
    pins: BTreeMap<(InstanceNumber, usize), u32>,
    retired: Vec<RetiredRegion>,
    releasing: Vec<RetiredRegion>,
    last_instance: u32,
    last_region: u32,
    generation: u32,
    expired: u64,
    reclaimed: u64,
}

impl Model {
    fn pins_of(&self, digest: usize) -> u32 {
        self.pins.iter().filter(|((_, pinned), _)| *pinned == digest).map(|(_, pins)| *pins).sum()
    }

    fn entries_in(&self, id: RegionId) -> impl Iterator<Item = &ModelEntry> {
        self.entries.values().filter(move |entry| entry.region == id)
    }

    /// Every extent that is not free, of one pool.
    fn taken(&self, pool: usize) -> Vec<(u64, u64)> {
        let regions = self.regions.values().map(|region| (region.pool, region.offset, region.extent));
        let unreleased = self.retired.iter().chain(&self.releasing);
        let unreleased = unreleased.map(|region| (region.pool.0 as usize, region.pool_offset, region.extent));
        let all = regions.chain(unreleased).filter(|(of, ..)| *of == pool);
        all.map(|(_, offset, extent)| (offset, extent)).collect()
    }

    /// Whether each granule of a pool is free.
    fn granules(&self, pool: usize) -> Vec<bool> {
        let PoolSpec { size, granularity } = POOLS[pool];
        let taken = self.taken(pool);
        let granule = |index| index * granularity..(index + 1) * granularity;
        (0..size / granularity)
            .map(granule)
            .map(|g| !taken.iter().any(|(offset, extent)| *offset < g.end && g.start < offset + extent))
            .collect()
    }

    fn first_fit(&self, pool: usize, bytes: u64) -> Option<(u64, u64)> {
        let granularity = POOLS[pool].granularity;
        let want = usize::try_from(bytes.div_ceil(granularity)).unwrap();
        let start = self.granules(pool).windows(want).position(|run| run.iter().all(|free| *free))?;
        Some((start as u64 * granularity, want as u64 * granularity))
    }

    fn begin(
        &mut self,
        owner: InstanceNumber,
        size: u64,
        page_size: u64,
        pool: Option<u32>,
    ) -> Result<RegionInfo, AllocError> {
        if ![4096, 8192, 12288].contains(&page_size) || size < page_size {
            return Err(AllocError::InvalidSize);
        }
        let candidates = match pool {
            None => vec![0, 1],
            Some(pool) if pool < 2 => vec![pool as usize],
            Some(_) => return Err(AllocError::UnknownPool),
        };
        if self.regions.values().filter(|region| region.owner == Some(owner)).count() >= 3 {
            return Err(AllocError::TooManyRegions);
        }
        let pages = u32::try_from(size.div_ceil(page_size)).unwrap();
        if self.regions.values().map(|region| region.pages).sum::<u32>() + pages > LIMITS.max_entries {
            return Err(AllocError::TooManyPages);
        }
        let bytes = u64::from(pages) * page_size;
        let Some((pool, (offset, extent))) =
            candidates.iter().find_map(|pool| Some((*pool, self.first_fit(*pool, bytes)?)))
        else {
            let mut unreleased = self.retired.iter().chain(&self.releasing);
            let pending = unreleased.any(|region| candidates.contains(&(region.pool.0 as usize)));
            return Err(AllocError::NoSpace { pending });
        };
        self.last_region += 1;
        let id = RegionId(self.last_region);
        let owner = Some(owner);
        let freed = BTreeSet::new();
        let region = ModelRegion { owner, committed: false, pool, offset, extent, page_size, pages, freed };
        self.regions.insert(id, region);
        Ok(self.info(id))
    }

    fn info(&self, id: RegionId) -> RegionInfo {
        let region = &self.regions[&id];
        RegionInfo {
            id,
            pool: PoolId(u32::try_from(region.pool).unwrap()),
            pool_offset: region.offset,
            size: u64::from(region.pages) * region.page_size,
            extent: region.extent,
            page_size: region.page_size,
            owner: region.owner,
            pages: region.pages,
            entries: u32::try_from(self.entries_in(id).count()).unwrap(),
            freed_pages: u32::try_from(region.freed.len()).unwrap(),
            entry_bytes: self.entries_in(id).map(|entry| u64::from(entry.length)).sum(),
        }
    }

    /// Whether the caller may do something to a region as its owner.
    fn owns(&self, caller: InstanceNumber, id: RegionId) -> Result<(), ReturnError> {
        match self.regions.get(&id) {
            Some(region) if !region.committed => Err(ReturnError::NotFound),
            Some(region) if region.owner == Some(caller) => Ok(()),
            Some(_) => Err(ReturnError::NotOwner),
            None => Err(ReturnError::NotFound),
        }
    }

    fn register(
        &mut self,
        who: InstanceNumber,
        key: usize,
        id: RegionId,
        offset: u64,
        length: u32,
    ) -> Registered {
        match self.owns(who, id) {
            Err(ReturnError::NotFound) => return Registered::RegionNotFound,
            Err(ReturnError::NotOwner) => return Registered::NotOwner,
            Ok(()) => {}
        }
        let region = &self.regions[&id];
        let page = (0..region.pages).find(|page| u64::from(*page) * region.page_size == offset);
        let Some(page) = page.filter(|_| length > 0 && u64::from(length) <= region.page_size) else {
            return Registered::OutOfBounds;
        };
        if self.entries.contains_key(&key) {
            return Registered::Exists;
        }
        if region.freed.contains(&page) || self.entries_in(id).any(|entry| entry.page == page) {
            return Registered::PageInUse;
        }
        self.generation += 1;
        self.entries.insert(key, ModelEntry { region: id, page, length, generation: self.generation });
        Registered::Done
    }

    fn lookup(&self, key: usize) -> Option<Location> {
        let ModelEntry { region, page, length, generation } = *self.entries.get(&key)?;
        let offset = u64::from(page) * self.regions[&region].page_size;
        Some(Location { region, offset, length, generation })
    }

    fn pin(&mut self, who: InstanceNumber, key: usize) -> Result<Location, PinError> {
        let location = self.lookup(key).ok_or(PinError::NotFound)?;
        if self.pins_of(key) >= LIMITS.max_pins_per_entry {
            return Err(PinError::Limit);
        }
        *self.pins.entry((who, key)).or_default() += 1;
        Ok(location)
    }

    fn unpin(&mut self, who: InstanceNumber, key: usize) -> Result<(), UnpinError> {
        if !self.entries.contains_key(&key) {
            return Err(UnpinError::NotFound);
        }
        let pins = self.pins.get_mut(&(who, key)).ok_or(UnpinError::NotPinned)?;
        *pins -= 1;
        self.pins.retain(|_, pins| *pins > 0);
        Ok(())
    }

    fn delete(&mut self, key: usize) -> Result<(), DeleteError> {
        if !self.entries.contains_key(&key) {
            return Err(DeleteError::NotFound);
        }
        if self.pins_of(key) > 0 {
            return Err(DeleteError::Pinned);
        }
        let entry = self.entries.remove(&key).unwrap();
        let region = self.regions.get_mut(&entry.region).unwrap();
        if region.owner.is_some() {
            region.freed.insert(entry.page);
        }
        self.retire_empty_orphans();
        Ok(())
    }

    fn reclaim(
        &mut self,
        who: InstanceNumber,
        id: Option<RegionId>,
        want: usize,
    ) -> Result<Vec<(RegionId, u32)>, ReturnError> {
        id.map_or(Ok(()), |id| self.owns(who, id))?;
        let regions = self.regions.iter().filter(|(of, region)| match id {
            Some(id) => **of == id,
            None => region.owner == Some(who),
        });
        let all = regions.flat_map(|(id, region)| region.freed.iter().map(|page| (*id, *page)));
        let back = all.take(want).collect::<Vec<_>>();
        for (id, page) in &back {
            self.regions.get_mut(id).unwrap().freed.remove(page);
            self.reclaimed += 1;
        }
        Ok(back)
    }

    fn disown(&mut self, id: RegionId) {
        let region = self.regions.get_mut(&id).unwrap();
        region.owner = None;
        region.freed.clear();
        self.retire_empty_orphans();
    }

    fn end(&mut self, instance: InstanceNumber) {
        self.instances.remove(&instance);
        self.pins.retain(|(who, _), _| *who != instance);
        let owned = self.regions.iter().filter(|(_, region)| region.owner == Some(instance));
        for id in owned.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.disown(id);
        }
    }

    fn expire(&mut self) -> usize {
        let ends =
            self.instances.iter().filter_map(|(number, instance)| Some((instance.grace_end?, *number)));
        let due = ends.filter(|(end, _)| *end <= self.now).collect::<BTreeSet<_>>();
        for (_, instance) in &due {
            self.end(*instance);
        }
        self.expired += due.len() as u64;
        due.len()
    }

    fn retire_empty_orphans(&mut self) {
        let empty = |(id, region): &(&RegionId, &ModelRegion)| {
            region.committed && region.owner.is_none() && self.entries_in(**id).count() == 0
        };
        for id in self.regions.iter().filter(empty).map(|(id, _)| *id).collect::<Vec<_>>() {
            let RegionInfo { pool, pool_offset, extent, .. } = self.info(id);
            self.retired.push(RetiredRegion { id, pool, pool_offset, extent });
            self.regions.remove(&id);
        }
    }

    fn figures(&self) -> Figures {
        let committed = || self.regions.iter().filter(|(_, region)| region.committed);
        let free =
            |pool| self.granules(pool).iter().filter(|free| **free).count() as u64 * POOLS[pool].granularity;
        Figures {
            entries: self.entries.len() as u64,
            entry_bytes: self.entries.values().map(|entry| u64::from(entry.length)).sum(),
            entry_capacity: 20,
            regions: committed().count() as u64,
            region_bytes: committed().map(|(id, _)| self.info(*id).size).sum(),
            orphans: committed().filter(|(_, region)| region.owner.is_none()).count() as u64,
            freed_pages: self.regions.values().map(|region| region.freed.len() as u64).sum(),
            pinned_entries: self.entries.keys().filter(|key| self.pins_of(**key) > 0).count() as u64,
            pins: self.pins.values().map(|pins| u64::from(*pins)).sum(),
            instances: self.instances.len() as u64,
            connections: self.instances.values().map(|instance| u64::from(instance.connections)).sum(),
            pool_bytes: 8 * 8192 + 3 * 16384,
            pool_free_bytes: free(0) + free(1),
            instances_expired: self.expired,
            reclaimed_pages: self.reclaimed,
        }
    }

    fn usage(&self, number: InstanceNumber) -> Usage<'static> {
        let instance = &self.instances[&number];
        let owned =
            self.regions.iter().filter(|(_, region)| region.committed && region.owner == Some(number));
        let owned = owned.map(|(id, _)| self.info(*id)).collect::<Vec<_>>();
        let pins = || self.pins.iter().filter(|((who, _), _)| *who == number);
        Usage {
            number,
            name: "same",
            connections: instance.connections,
            regions: u32::try_from(owned.len()).unwrap(),
            entries: owned.iter().map(|region| region.entries).sum(),
            region_bytes: owned.iter().map(|region| region.size).sum(),
            entry_bytes: owned.iter().map(|region| region.entry_bytes).sum(),
            pinned_entries: pins().count() as u64,
            pins: pins().map(|(_, pins)| u64::from(*pins)).sum(),
            grace_left: instance.grace_end.map_or(Duration::ZERO, |end| end.saturating_sub(self.now)),
        }
    }
}

/// The state and its model, driven together, and which results were seen.
struct Pair<'a> {
    state: State,
    model: Model,
    seen: &'a RefCell<BTreeMap<String, u32>>,
}

impl Pair<'_> {
    fn note(&self, what: String) {
        *self.seen.borrow_mut().entry(what).or_default() += 1;
    }

    /// Both said the same; which kind of answer it was is noted.
    fn same<T: Debug + PartialEq>(&self, what: &str, state: T, model: T) {
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
                self.same("connect", result, expected);
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
                let result = self.state.expire(self.model.now);
                assert_eq!(result, expected);
            }
            Op::Begin { who, size, page_size, pool } => {
                let (who, page_size) = (self.who(who)?, PAGE_SIZES[page_size]);
                let expected = self.model.begin(who, size, page_size, pool);
                let result = self.state.begin_region(who, size, page_size, pool.map(PoolId));
                if let Err(AllocError::NoSpace { pending }) = result {
                    self.note(format!("begin: pending {pending}"));
                }
                self.same("begin", result, expected);
            }
            Op::Commit { which } => {
                let id = self.prepared(which)?;
                let region = self.model.regions.get_mut(&id).unwrap();
                region.committed = true;
                let owned = region.owner.is_some();
                let expected = owned.then(|| self.model.info(id));
                self.model.retire_empty_orphans();
                let result = self.state.commit_region(id);
                self.same("commit", result, expected);
            }
            Op::Abort { which } => {
                let id = self.prepared(which)?;
                self.model.regions.remove(&id);
                self.state.abort_region(id);
            }
            Op::Return { who, region } => {
                let id = self.region(region);
                let who = self.who_with(who, id)?;
                let expected = self.model.owns(who, id);
                if expected.is_ok() {
                    self.model.disown(id);
                }
                let result = self.state.return_region(who, id);
                self.same("return", result, expected);
            }
            Op::NextRetired => {
                let expected = (!self.model.retired.is_empty()).then(|| self.model.retired.remove(0));
                self.model.releasing.extend(expected);
                let result = self.state.next_retired();
                self.same("retired", result, expected);
            }
            Op::Released { which } => {
                let releasing = &mut self.model.releasing;
                let region = releasing.remove(which.checked_rem(releasing.len())?);
                self.state.released(region.id);
            }
            Op::Reclaim { who, region, want } => {
                let region = region.map(|region| self.region(region));
                let who = self.who_with(who, region.unwrap_or(RegionId(0)))?;
                let expected = self.model.reclaim(who, region, want);
                let mut back = Vec::new();
                let result = self.state.reclaim(who, region, want, |id, page| back.push((id, page)));
                self.same("reclaim", result.map(|()| back), expected);
            }
            Op::Register { who, digest: key, region, page, off, length } => {
                let id = self.region(region);
                let who = self.who_with(who, id)?;
                let page_size = self.model.regions.get(&id).map_or(4096, |region| region.page_size);
                let offset = page * page_size + u64::from(off);
                let expected = self.model.register(who, key, id, offset, length);
                let result = self.state.register(who, digest(key), id, offset, length);
                self.same("register", result, expected);
            }
            Op::Pin { who, digest: key } => {
                let who = self.who(who)?;
                let expected = self.model.pin(who, key);
                let result = self.state.pin(who, digest(key));
                self.same("pin", result, expected);
            }
            Op::Unpin { who, digest: key } => {
                let who = self.who(who)?;
                let expected = self.model.unpin(who, key);
                let result = self.state.unpin(who, digest(key));
                self.same("unpin", result, expected);
            }
            Op::Delete { digest: key } => {
                let retired = self.model.retired.len();
                let expected = self.model.delete(key);
                if self.model.retired.len() > retired {
                    self.note("delete: orphan retired".to_owned());
                }
                let result = self.state.delete(digest(key));
                self.same("delete", result, expected);
            }
        }
        Some(())
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
        self.same("open", result, expected);
    }

    /// Everything that can be seen is the same on both sides.
    fn compare(&self) {
        let Pair { state, model, .. } = self;
        state.check();
        assert_eq!(state.figures(), model.figures());
        for key in 0..KEYS {
            assert_eq!(state.lookup(digest(key)), model.lookup(key), "lookup of {key}");
        }
        let committed = model.regions.iter().filter(|(_, region)| region.committed).map(|(id, _)| *id);
        let regions = committed.map(|id| model.info(id)).collect::<Vec<_>>();
        assert_eq!(state.regions_after(RegionId(0)).collect::<Vec<_>>(), regions);
        for id in (0..=model.last_region + 1).map(RegionId) {
            assert_eq!(state.region(id), regions.iter().find(|info| info.id == id).copied());
        }
        let usage = model.instances.keys().map(|number| model.usage(*number)).collect::<Vec<_>>();
        assert_eq!(state.usage_after(InstanceNumber(0), model.now).collect::<Vec<_>>(), usage);
        let next = model.instances.values().filter_map(|instance| instance.grace_end).min();
        assert_eq!(state.next_expiry(), next);
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
    let config = Config { cases: 256, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&prop::collection::vec(ops(), 1..400), |ops| {
        let mut pair = Pair { state: State::new(LIMITS, &POOLS), model: Model::default(), seen: &seen };
        for op in &ops {
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
    println!("{seen:#?}");
    for what in [] as [&&str; 0] {
        assert!(seen.contains_key(*what), "no sequence came to \"{what}\": {seen:#?}");
    }
}
