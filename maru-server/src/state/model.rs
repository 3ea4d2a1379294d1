//! A naive model of the state: no counter that can be recounted, no index that can be searched instead.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::*;

pub(super) const LIMITS: Limits = Limits {
    max_entries: 16,
    max_pins_per_entry: 3,
    max_instances: 4,
    max_connections_per_instance: 2,
    max_regions_per_instance: 3,
    min_page_size: 4096,
    max_page_size: 12288,
    grace: Duration::from_secs(10),
    pin_ttl: Duration::from_secs(5),
};

pub(super) const POOLS: [PoolSpec; 2] =
    [PoolSpec { size: 8 * 8192, granularity: 8192 }, PoolSpec { size: 3 * 16384 + 5000, granularity: 16384 }];

#[derive(Clone, Debug, Default)]
pub(super) struct ModelInstance {
    pub(super) connections: u32,
    pub(super) grace_end: Option<Duration>,
}

/// The pins of one instance on one entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct ModelPins {
    pub(super) guards: u32,
    pub(super) named: u32,
    pub(super) since: Duration,
    /// When the last one by name was taken.
    pub(super) named_at: Duration,
}

impl ModelPins {
    fn all(&self) -> u32 {
        self.guards + self.named
    }
}

#[derive(Clone, Debug)]
pub(super) struct ModelRegion {
    pub(super) owner: Option<InstanceNumber>,
    pub(super) committed: bool,
    pub(super) pool: usize,
    pub(super) offset: u64,
    pub(super) extent: u64,
    pub(super) page_size: u64,
    pub(super) pages: u32,
    pub(super) freed: BTreeSet<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct ModelEntry {
    pub(super) region: RegionId,
    pub(super) page: u32,
    pub(super) length: u32,
    pub(super) generation: u32,
    pub(super) checksum: u32,
}

/// What the state promises, in the plainest words: no counter that can be recounted, no index that can be searched.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) now: Duration,
    pub(super) instances: BTreeMap<InstanceNumber, ModelInstance>,
    pub(super) regions: BTreeMap<RegionId, ModelRegion>,
    pub(super) entries: BTreeMap<usize, ModelEntry>,
    pub(super) pins: BTreeMap<(InstanceNumber, usize), ModelPins>,
    pub(super) retired: Vec<RetiredRegion>,
    pub(super) releasing: Vec<RetiredRegion>,
    pub(super) last_instance: u32,
    pub(super) last_region: u32,
    pub(super) generation: u32,
    pub(super) expired: u64,
    pub(super) reclaimed: u64,
    pub(super) evicted: u64,
    pub(super) evicted_with_orphan: u64,
    pub(super) pins_expired: u64,
    /// Entries found so far, and at which of them each region was last used.
    pub(super) touches: u64,
    pub(super) touched: BTreeMap<RegionId, u64>,
    /// Instances that have not said since a restart what they have pinned, and for how long that matters.
    pub(super) unheard: BTreeSet<InstanceNumber>,
    pub(super) recovery_end: Duration,
}

impl Model {
    pub(super) fn pins_of(&self, digest: usize) -> u32 {
        self.pins.iter().filter(|((_, pinned), _)| *pinned == digest).map(|(_, pins)| pins.all()).sum()
    }

    pub(super) fn entries_in(&self, id: RegionId) -> impl Iterator<Item = &ModelEntry> {
        self.entries.values().filter(move |entry| entry.region == id)
    }

    /// Every extent that is not free, of one pool.
    pub(super) fn taken(&self, pool: usize) -> Vec<(u64, u64)> {
        let regions = self.regions.values().map(|region| (region.pool, region.offset, region.extent));
        let unreleased = self.retired.iter().chain(&self.releasing);
        let unreleased = unreleased.map(|region| (region.pool.0 as usize, region.pool_offset, region.extent));
        let all = regions.chain(unreleased).filter(|(of, ..)| *of == pool);
        all.map(|(_, offset, extent)| (offset, extent)).collect()
    }

    /// Whether each granule of a pool is free.
    pub(super) fn granules(&self, pool: usize) -> Vec<bool> {
        let PoolSpec { size, granularity } = POOLS[pool];
        let taken = self.taken(pool);
        let granule = |index| index * granularity..(index + 1) * granularity;
        (0..size / granularity)
            .map(granule)
            .map(|g| !taken.iter().any(|(offset, extent)| *offset < g.end && g.start < offset + extent))
            .collect()
    }

    pub(super) fn first_fit(&self, pool: usize, bytes: u64) -> Option<(u64, u64)> {
        let granularity = POOLS[pool].granularity;
        let want = usize::try_from(bytes.div_ceil(granularity)).unwrap();
        let start = self.granules(pool).windows(want).position(|run| run.iter().all(|free| *free))?;
        Some((start as u64 * granularity, want as u64 * granularity))
    }

    pub(super) fn begin(
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
        let bytes = u64::from(pages) * page_size;
        let Some((pool, (offset, extent))) =
            candidates.iter().find_map(|pool| Some((*pool, self.first_fit(*pool, bytes)?)))
        else {
            let mut unreleased = self.retired.iter().chain(&self.releasing);
            let pending = unreleased.any(|region| candidates.contains(&(region.pool.0 as usize)));
            let pending = pending
                || self.evict_orphans(&candidates, |model| {
                    candidates.iter().any(|pool| model.fits_once_released(*pool, bytes))
                });
            return Err(AllocError::NoSpace { pending });
        };
        let fits = |model: &Model| {
            model.regions.values().map(|region| region.pages).sum::<u32>() + pages <= LIMITS.max_entries
        };
        if !fits(self) && !self.evict_orphans(&[0, 1], fits) {
            return Err(AllocError::TooManyPages);
        }
        self.last_region += 1;
        let id = RegionId(self.last_region);
        let owner = Some(owner);
        let freed = BTreeSet::new();
        let region = ModelRegion { owner, committed: false, pool, offset, extent, page_size, pages, freed };
        self.regions.insert(id, region);
        self.touched.insert(id, self.touches);
        Ok(self.info(id))
    }

    pub(super) fn info(&self, id: RegionId) -> RegionInfo {
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
    pub(super) fn owns(&self, caller: InstanceNumber, id: RegionId) -> Result<(), ReturnError> {
        match self.regions.get(&id) {
            Some(region) if !region.committed => Err(ReturnError::NotFound),
            Some(region) if region.owner == Some(caller) => Ok(()),
            Some(_) => Err(ReturnError::NotOwner),
            None => Err(ReturnError::NotFound),
        }
    }

    pub(super) fn register(
        &mut self,
        who: InstanceNumber,
        key: usize,
        id: RegionId,
        page: u32,
        length: u32,
        checksum: u32,
    ) -> Registered {
        match self.owns(who, id) {
            Err(ReturnError::NotFound) => return Registered::RegionNotFound,
            Err(ReturnError::NotOwner) => return Registered::NotOwner,
            Ok(()) => {}
        }
        let region = &self.regions[&id];
        if page >= region.pages || length == 0 || u64::from(length) > region.page_size {
            return Registered::OutOfBounds;
        }
        if self.entries.contains_key(&key) {
            return Registered::Exists;
        }
        if region.freed.contains(&page) || self.entries_in(id).any(|entry| entry.page == page) {
            return Registered::PageInUse;
        }
        self.generation += 1;
        let entry = ModelEntry { region: id, page, length, generation: self.generation, checksum };
        self.entries.insert(key, entry);
        Registered::Done
    }

    pub(super) fn lookup(&self, key: usize) -> Option<Location> {
        let ModelEntry { region, page, length, generation, checksum } = *self.entries.get(&key)?;
        let offset = u64::from(page) * self.regions[&region].page_size;
        Some(Location { region, offset, length, generation, checksum })
    }

    /// A look-up by somebody who has a use for what it finds.
    pub(super) fn use_of(&mut self, key: usize) -> Option<Location> {
        let location = self.lookup(key)?;
        self.touches += 1;
        self.touched.insert(location.region, self.touches);
        Some(location)
    }

    pub(super) fn pin(
        &mut self,
        who: InstanceNumber,
        key: usize,
        kind: PinKind,
    ) -> Result<Location, PinError> {
        let location = self.use_of(key).ok_or(PinError::NotFound)?;
        if self.pins_of(key) >= LIMITS.max_pins_per_entry {
            return Err(PinError::Limit);
        }
        let now = self.now;
        let fresh = ModelPins { guards: 0, named: 0, since: now, named_at: now };
        let pins = self.pins.entry((who, key)).or_insert(fresh);
        match kind {
            PinKind::Guard => pins.guards += 1,
            PinKind::Named => (pins.named, pins.named_at) = (pins.named + 1, now),
        }
        Ok(location)
    }

    pub(super) fn unpin(&mut self, who: InstanceNumber, key: usize, kind: PinKind) -> Result<(), UnpinError> {
        if !self.entries.contains_key(&key) {
            return Err(UnpinError::NotFound);
        }
        let pins = self.pins.get_mut(&(who, key)).ok_or(UnpinError::NotPinned)?;
        let count = match kind {
            PinKind::Guard => &mut pins.guards,
            PinKind::Named => &mut pins.named,
        };
        *count = count.checked_sub(1).ok_or(UnpinError::NotPinned)?;
        self.pins.retain(|_, pins| pins.all() > 0);
        Ok(())
    }

    /// What a resumed instance has a use for: pins of guards and by name, per entry.
    pub(super) fn assert_pins(
        &mut self,
        who: InstanceNumber,
        key: usize,
        generation: u32,
        guards: u32,
        named: u32,
    ) -> bool {
        let now = self.now;
        let fresh = ModelPins { guards: 0, named: 0, since: now, named_at: now };
        let is_believed = self.unheard.contains(&who);
        let mut pins = self.pins.get(&(who, key)).copied().unwrap_or(fresh);
        let is_there = self.entries.get(&key).is_some_and(|entry| entry.generation == generation);
        let more_named = if is_believed { named.saturating_sub(pins.named) } else { 0 };
        let more = guards.saturating_sub(pins.guards) + more_named;
        if !is_there || self.pins_of(key) + more > LIMITS.max_pins_per_entry {
            return false;
        }
        (pins.guards, pins.named) = (guards, named.min(pins.named + more_named));
        if more_named > 0 {
            pins.named_at = now;
        }
        self.pins.insert((who, key), pins);
        self.pins.retain(|_, pins| pins.all() > 0);
        true
    }

    pub(super) fn expire_pins(&mut self) -> u64 {
        let mut expired = 0;
        for pins in self.pins.values_mut().filter(|pins| pins.named_at + LIMITS.pin_ttl <= self.now) {
            expired += u64::from(std::mem::take(&mut pins.named));
        }
        self.pins.retain(|_, pins| pins.all() > 0);
        self.pins_expired += expired;
        expired
    }

    /// When something ends by itself.
    pub(super) fn next_expiry(&self) -> Option<Duration> {
        let graces = self.instances.values().filter_map(|instance| instance.grace_end);
        let named = self.pins.values().filter(|pins| pins.named > 0);
        let recovery = self.is_recovering().then_some(self.recovery_end);
        graces.chain(named.map(|pins| pins.named_at + LIMITS.pin_ttl)).chain(recovery).min()
    }

    /// Which entry goes is the policy's choice: that of `page` did, and the model says whether it could.
    pub(super) fn evict(&mut self, who: InstanceNumber, (region, page): (RegionId, u32)) {
        assert_eq!(self.owns(who, region), Ok(()), "only the owner's entries are evicted");
        let found = self.entries.iter().find(|(_, entry)| (entry.region, entry.page) == (region, page));
        let key = *found.expect("what is evicted was an entry").0;
        assert_eq!(self.pins_of(key), 0, "a pinned entry stays");
        self.entries.remove(&key);
        self.evicted += 1;
        self.reclaimed += 1;
    }

    /// Entries that their owner may have evicted.
    pub(super) fn evictable(&self, who: InstanceNumber) -> usize {
        if self.is_recovering() {
            return 0;
        }
        let owned = self.entries.iter().filter(|(_, entry)| self.owns(who, entry.region).is_ok());
        owned.filter(|(key, _)| self.pins_of(**key) == 0).count()
    }

    /// Evicts the coldest orphans that nobody reads, one after the other until it is enough, or none.
    fn evict_orphans(&mut self, pools: &[usize], is_enough: impl Fn(&Model) -> bool) -> bool {
        let mut trial = self.clone();
        while !is_enough(&trial) {
            if self.is_recovering() {
                return false;
            }
            let orphans = trial.regions.iter().filter(|(id, region)| {
                let is_orphan = region.committed && region.owner.is_none() && pools.contains(&region.pool);
                let mut inside = trial.entries.iter().filter(|(_, entry)| entry.region == **id);
                is_orphan && inside.all(|(key, _)| trial.pins_of(*key) == 0)
            });
            let Some(coldest) = orphans.map(|(id, _)| *id).min_by_key(|id| (trial.touched[id], *id)) else {
                return false;
            };
            trial.evicted_with_orphan += trial.entries_in(coldest).count() as u64;
            trial.entries.retain(|_, entry| entry.region != coldest);
            trial.retire_empty_orphans();
        }
        *self = trial;
        true
    }

    /// Whether a pool has an extent when all that is retired is released.
    fn fits_once_released(&self, pool: usize, bytes: u64) -> bool {
        let released = Model { retired: Vec::new(), releasing: Vec::new(), ..self.clone() };
        released.first_fit(pool, bytes).is_some()
    }

    pub(super) fn delete(&mut self, key: usize) -> Result<(), DeleteError> {
        if !self.entries.contains_key(&key) {
            return Err(DeleteError::NotFound);
        }
        if self.pins_of(key) > 0 || self.is_recovering() {
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

    pub(super) fn reclaim(
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

    pub(super) fn disown(&mut self, id: RegionId) {
        let region = self.regions.get_mut(&id).unwrap();
        region.owner = None;
        region.freed.clear();
        self.retire_empty_orphans();
    }

    pub(super) fn end(&mut self, instance: InstanceNumber) {
        self.instances.remove(&instance);
        self.unheard.remove(&instance);
        self.pins.retain(|(who, _), _| *who != instance);
        let owned = self.regions.iter().filter(|(_, region)| region.owner == Some(instance));
        for id in owned.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.disown(id);
        }
    }

    /// Whether somebody may have pins that nobody knows of.
    pub(super) fn is_recovering(&self) -> bool {
        !self.unheard.is_empty()
    }

    /// The process of the server is another one: pins, connections and figures are gone, and what was half done.
    pub(super) fn restart(&mut self) {
        let grace_end = self.now + LIMITS.grace;
        self.instances.values_mut().for_each(|instance| {
            *instance = ModelInstance { connections: 0, grace_end: Some(grace_end) };
        });
        self.regions.retain(|_, region| region.committed);
        *self = Model {
            unheard: self.instances.keys().copied().collect(),
            recovery_end: grace_end,
            touched: self.regions.keys().map(|id| (*id, 0)).collect(),
            now: self.now,
            last_instance: self.last_instance,
            last_region: self.last_region,
            generation: self.generation,
            instances: std::mem::take(&mut self.instances),
            regions: std::mem::take(&mut self.regions),
            entries: std::mem::take(&mut self.entries),
            ..Model::default()
        };
    }

    pub(super) fn expire(&mut self) -> usize {
        if self.now >= self.recovery_end {
            self.unheard.clear();
        }
        let ends =
            self.instances.iter().filter_map(|(number, instance)| Some((instance.grace_end?, *number)));
        let due = ends.filter(|(end, _)| *end <= self.now).collect::<BTreeSet<_>>();
        for (_, instance) in &due {
            self.end(*instance);
        }
        self.expired += due.len() as u64;
        due.len()
    }

    pub(super) fn retire_empty_orphans(&mut self) {
        let empty = |(id, region): &(&RegionId, &ModelRegion)| {
            region.committed && region.owner.is_none() && self.entries_in(**id).count() == 0
        };
        for id in self.regions.iter().filter(empty).map(|(id, _)| *id).collect::<Vec<_>>() {
            let RegionInfo { pool, pool_offset, extent, .. } = self.info(id);
            self.retired.push(RetiredRegion { id, pool, pool_offset, extent });
            self.regions.remove(&id);
        }
    }

    pub(super) fn figures(&self) -> Figures {
        let committed = || self.regions.iter().filter(|(_, region)| region.committed);
        let free =
            |pool| self.granules(pool).iter().filter(|free| **free).count() as u64 * POOLS[pool].granularity;
        Figures {
            entries: self.entries.len() as u64,
            entry_bytes: self.entries.values().map(|entry| u64::from(entry.length)).sum(),
            entry_capacity: u64::from(LIMITS.max_entries),
            regions: committed().count() as u64,
            region_bytes: committed().map(|(id, _)| self.info(*id).size).sum(),
            orphans: committed().filter(|(_, region)| region.owner.is_none()).count() as u64,
            freed_pages: self.regions.values().map(|region| region.freed.len() as u64).sum(),
            pinned_entries: self.entries.keys().filter(|key| self.pins_of(**key) > 0).count() as u64,
            pins: self.pins.values().map(|pins| u64::from(pins.all())).sum(),
            instances: self.instances.len() as u64,
            connections: self.instances.values().map(|instance| u64::from(instance.connections)).sum(),
            pool_bytes: 8 * 8192 + 3 * 16384,
            pool_free_bytes: free(0) + free(1),
            instances_expired: self.expired,
            reclaimed_pages: self.reclaimed,
            evicted_for_owner: self.evicted,
            evicted_with_orphan: self.evicted_with_orphan,
            pins_expired: self.pins_expired,
            oldest_pin_seconds: self.oldest_pin(|_| true),
        }
    }

    /// Whole seconds since the oldest pin of these instances was taken.
    fn oldest_pin(&self, of: impl Fn(InstanceNumber) -> bool) -> u64 {
        let since = self.pins.iter().filter(|((who, _), _)| of(*who)).map(|(_, pins)| pins.since).min();
        since.map_or(0, |since| self.now.as_secs() - since.as_secs())
    }

    pub(super) fn usage(&self, number: InstanceNumber) -> Usage<'static> {
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
            pins: pins().map(|(_, pins)| u64::from(pins.all())).sum(),
            named_pins: pins().map(|(_, pins)| u64::from(pins.named)).sum(),
            oldest_pin_seconds: self.oldest_pin(|who| who == number),
            grace_left: instance.grace_end.map_or(Duration::ZERO, |end| end.saturating_sub(self.now)),
        }
    }
}
