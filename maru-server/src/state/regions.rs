//! The regions: how one is given, changes hands, and is given back.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;

use super::numbered::Numbered;
use super::pages::Pages;
use super::{InstanceNumber, Limits, PoolId, RegionId, State};

/// Every page is a whole number of the pages of the memory management.
const PAGE_SIZE_UNIT: u64 = 4096;

/// No region was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// The page size is out of the limits or no multiple of 4096, or the region is smaller than a page.
    #[error(
        "page size and region size are not valid; ask for whole 4 KiB units within the limits, and at least a page"
    )]
    InvalidSize,
    /// There is no such pool.
    #[error("there is no such pool; list the pools, or ask for any")]
    UnknownPool,
    /// No free extent is large enough.
    #[error("no pool has an extent that large; ask for less, return regions, or enlarge the pool")]
    NoSpace {
        /// Retired regions of the pools asked for are still to be released: trying again after that may succeed.
        pending: bool,
    },
    /// The instance has as many regions as the limits allow, or the server has used up the ids.
    #[error("the instance has as many regions as the server allows; return some, or ask for larger ones")]
    TooManyRegions,
    /// The pages of all regions would outnumber the entries that there is room for.
    #[error(
        "the server has no room for that many more pages; use larger pages, or raise its limit on entries"
    )]
    TooManyPages,
}

/// The caller has no such region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReturnError {
    /// There is no such region.
    #[error("there is no such region; it may have been returned already")]
    NotFound,
    /// It belongs to another instance, or to none any more.
    #[error("the region belongs to another instance, and only its owner can do that")]
    NotOwner,
}

/// What there is to know of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// The region.
    pub id: RegionId,
    /// Its pool.
    pub pool: PoolId,
    /// Bytes from the start of the pool.
    pub pool_offset: u64,
    /// Bytes of all pages.
    pub size: u64,
    /// Bytes that it takes of the pool, at least `size`.
    pub extent: u64,
    /// Bytes of a page.
    pub page_size: u64,
    /// The owner; `None` for an orphan.
    pub owner: Option<InstanceNumber>,
    /// Pages.
    pub pages: u32,
    /// Entries, each in a page of its own.
    pub entries: u32,
    /// Pages that wait for the owner to take them back.
    pub freed_pages: u32,
    /// Bytes of the entries.
    pub entry_bytes: u64,
}

/// A region that is no more, whose memory is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetiredRegion {
    /// The region.
    pub id: RegionId,
    /// Its pool.
    pub pool: PoolId,
    /// Bytes from the start of the pool.
    pub pool_offset: u64,
    /// Bytes that it took of the pool.
    pub extent: u64,
}

/// One region.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) id: RegionId,
    pub(super) owner: Option<InstanceNumber>,
    pub(super) page_size: u64,
    pub(super) pages: Pages,
    entries: u32,
    entry_bytes: u64,
    pool: PoolId,
    pool_offset: u64,
    extent: u64,
    /// Its memory is there. Until then nobody but the one who prepares it knows of the region.
    committed: bool,
}

impl Region {
    /// The page that begins at this offset.
    pub(super) fn page_at(&self, offset: u64) -> Option<u32> {
        let page = u32::try_from(offset / self.page_size).ok().filter(|page| *page < self.pages.count());
        page.filter(|_| offset.is_multiple_of(self.page_size))
    }

    /// The length, if a page takes an entry of it.
    pub(super) fn length_in_page(&self, length: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(length).filter(|_| u64::from(length) <= self.page_size)
    }

    /// Gives a held page to the entry in this slot of the directory.
    pub(super) fn add_entry(&mut self, page: u32, entry: u32, length: NonZeroU32) {
        self.pages.occupy(page, entry);
        self.entries += 1;
        self.entry_bytes += u64::from(length.get());
    }

    pub(super) fn info(&self) -> RegionInfo {
        RegionInfo {
            id: self.id,
            pool: self.pool,
            pool_offset: self.pool_offset,
            size: self.size(),
            extent: self.extent,
            page_size: self.page_size,
            owner: self.owner,
            pages: self.pages.count(),
            entries: self.entries,
            freed_pages: self.pages.freed_count(),
            entry_bytes: self.entry_bytes,
        }
    }

    fn size(&self) -> u64 {
        u64::from(self.pages.count()) * self.page_size
    }
}

/// Counters of the regions that are committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RegionCounts {
    pub(super) regions: u64,
    pub(super) region_bytes: u64,
    pub(super) orphans: u64,
    pub(super) freed_pages: u64,
}

/// All regions, and what is left of those retired.
#[derive(Debug)]
pub(super) struct Regions {
    numbered: Numbered<Region>,
    /// Pages of all regions, those being prepared included.
    pages: u32,
    counts: RegionCounts,
    /// Whose memory is to be released, in order of retirement.
    retired: VecDeque<RetiredRegion>,
    /// Whose memory is being released.
    releasing: BTreeMap<RegionId, RetiredRegion>,
}

impl Regions {
    pub(super) fn new() -> Regions {
        Regions {
            numbered: Numbered::new(i32::MAX.unsigned_abs()),
            pages: 0,
            counts: RegionCounts::default(),
            retired: VecDeque::new(),
            releasing: BTreeMap::new(),
        }
    }

    pub(super) fn find(&self, id: RegionId) -> Option<&Region> {
        self.numbered.get(id.0).filter(|region| region.committed)
    }

    pub(super) fn find_mut(&mut self, id: RegionId) -> Option<(u32, &mut Region)> {
        let slot = self.numbered.slot(id.0)?;
        Some((slot, self.numbered.at_mut(slot))).filter(|(_, region)| region.committed)
    }

    /// The region in a slot that an entry names.
    pub(super) fn at(&self, slot: u32) -> &Region {
        self.numbered.at(slot)
    }

    /// Every region, those being prepared included, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.numbered.after(0)
    }

    pub(super) fn counts(&self) -> RegionCounts {
        self.counts
    }

    /// The entry of a page is gone.
    pub(super) fn remove_entry(&mut self, slot: u32, page: u32, length: NonZeroU32) {
        let region = self.numbered.at_mut(slot);
        region.entries -= 1;
        region.entry_bytes -= u64::from(length.get());
        if region.owner.is_some() {
            region.pages.free(page);
            self.counts.freed_pages += 1;
        } else {
            region.pages.vacate(page);
            if region.entries == 0 {
                let id = region.id;
                self.retire(id);
            }
        }
    }

    /// Takes the owner away: the region is an orphan from now on, or retired where it holds no entry.
    pub(super) fn disown(&mut self, id: RegionId) {
        let region = self.numbered.get_mut(id.0).expect("an owned region exists");
        region.owner = None;
        if !region.committed {
            return;
        }
        self.counts.freed_pages -= u64::from(region.pages.freed_count());
        // There is nobody to take them back any more.
        while region.pages.take_lowest().is_some() {}
        self.counts.orphans += 1;
        if region.entries == 0 {
            self.retire(id);
        }
    }

    /// Ends an orphan without entries; its memory is to be released.
    fn retire(&mut self, id: RegionId) {
        let region = self.remove(id);
        self.counts.orphans -= 1;
        self.counts.regions -= 1;
        self.counts.region_bytes -= region.size();
        let Region { pool, pool_offset, extent, .. } = region;
        self.retired.push_back(RetiredRegion { id, pool, pool_offset, extent });
    }

    fn remove(&mut self, id: RegionId) -> Region {
        let region = self.numbered.remove(id.0).expect("the caller knows that the region exists");
        self.pages -= region.pages.count();
        region
    }

    /// Whether memory of this pool, or of any, is still to be released.
    fn pending(&self, pool: Option<PoolId>) -> bool {
        let mut unreleased = self.retired.iter().chain(self.releasing.values());
        unreleased.any(|region| pool.is_none_or(|pool| pool == region.pool))
    }

    /// Panics where regions, pages and counters disagree. What else takes extents is added to `taken`.
    pub(super) fn check(&self, max_pages: u32, taken: &mut Vec<(PoolId, u64, u64)>) {
        let mut counts = RegionCounts::default();
        for region in self.iter() {
            let info = region.info();
            region.pages.check();
            assert!(region.size() <= region.extent, "{info:?} fits into its extent");
            assert!(region.entry_bytes <= region.size(), "the entries of {info:?} fit into it");
            if region.committed {
                counts.regions += 1;
                counts.region_bytes += region.size();
                counts.orphans += u64::from(region.owner.is_none());
                counts.freed_pages += u64::from(region.pages.freed_count());
                assert!(region.owner.is_some() || region.entries > 0, "{info:?} would have been retired");
            } else {
                assert_eq!(region.entries, 0, "nothing is registered in {info:?} before it is committed");
            }
            assert!(region.owner.is_some() || region.pages.freed_count() == 0, "no page of {info:?} waits");
            taken.push((region.pool, region.pool_offset, region.extent));
        }
        assert_eq!(self.counts, counts, "the counters of the regions are those of a recount");
        assert_eq!(self.pages, self.iter().map(|region| region.pages.count()).sum::<u32>());
        assert!(self.pages <= max_pages, "pages do not outnumber the entries there is room for");
        let unreleased = self.retired.iter().chain(self.releasing.values());
        taken.extend(unreleased.map(|region| (region.pool, region.pool_offset, region.extent)));
    }
}

impl State {
    /// Takes an extent for a region of `size` bytes, rounded up to whole pages, from this pool or from the first that
    /// has one. Nobody sees the region before [`State::commit_region`], which the caller owes when the memory is
    /// there, or [`State::abort_region`] when it could not be had.
    ///
    /// # Errors
    /// [`AllocError`], the first that applies in the order: sizes, pool, number of regions, number of pages, space.
    ///
    /// # Panics
    /// When the owner ended.
    pub fn begin_region(
        &mut self,
        owner: InstanceNumber,
        size: u64,
        page_size: u64,
        pool: Option<PoolId>,
    ) -> Result<RegionInfo, AllocError> {
        let Limits { min_page_size, max_page_size, max_regions_per_instance, max_entries, .. } = self.limits;
        let allowed = (min_page_size..=max_page_size).contains(&page_size);
        if !allowed || page_size == 0 || !page_size.is_multiple_of(PAGE_SIZE_UNIT) || size < page_size {
            return Err(AllocError::InvalidSize);
        }
        if pool.is_some_and(|pool| !self.pools.contains(pool)) {
            return Err(AllocError::UnknownPool);
        }
        let owned = &mut self.instances.get_mut(owner).regions;
        if owned.len() >= max_regions_per_instance as usize {
            return Err(AllocError::TooManyRegions);
        }
        let id = RegionId(self.regions.numbered.next().ok_or(AllocError::TooManyRegions)?);
        let pages = u32::try_from(size.div_ceil(page_size)).map_err(|_| AllocError::TooManyPages)?;
        if pages > max_entries - self.regions.pages {
            return Err(AllocError::TooManyPages);
        }
        let extent = u64::from(pages).checked_mul(page_size).and_then(|size| self.pools.take(size, pool));
        let Some((pool, pool_offset, extent)) = extent else {
            return Err(AllocError::NoSpace { pending: self.regions.pending(pool) });
        };
        let region = Region {
            id,
            owner: Some(owner),
            page_size,
            pages: Pages::new(pages),
            entries: 0,
            entry_bytes: 0,
            pool,
            pool_offset,
            extent,
            committed: false,
        };
        let info = region.info();
        owned.push(id);
        self.regions.pages += pages;
        self.regions.numbered.insert(region);
        Ok(info)
    }

    /// The region's memory is there: everybody sees it, and all its pages are the owner's. `None` when the owner ended
    /// meanwhile; the region is retired then.
    ///
    /// # Panics
    /// When the region is not being prepared.
    pub fn commit_region(&mut self, id: RegionId) -> Option<RegionInfo> {
        let region = self.regions.numbered.get_mut(id.0).filter(|region| !region.committed);
        let region = region.expect("a region is committed once, after it was begun");
        region.committed = true;
        let info = region.info();
        self.regions.counts.regions += 1;
        self.regions.counts.region_bytes += info.size;
        if info.owner.is_none() {
            self.regions.disown(id);
            return None;
        }
        Some(info)
    }

    /// The region's memory could not be had: its extent is free again.
    ///
    /// # Panics
    /// When the region is not being prepared.
    pub fn abort_region(&mut self, id: RegionId) {
        let region = self.regions.numbered.get(id.0);
        assert!(region.is_some_and(|region| !region.committed), "only what was begun is aborted");
        let region = self.regions.remove(id);
        if let Some(owner) = region.owner {
            self.instances.get_mut(owner).disclaim(id);
        }
        self.pools.give_back(region.pool, region.pool_offset, region.extent);
    }

    /// The owner gives a region up. It becomes an orphan, or is retired where it holds no entry.
    ///
    /// # Errors
    /// [`ReturnError`]; nothing is changed then.
    pub fn return_region(&mut self, caller: InstanceNumber, id: RegionId) -> Result<(), ReturnError> {
        let region = self.regions.find(id).ok_or(ReturnError::NotFound)?;
        if region.owner != Some(caller) {
            return Err(ReturnError::NotOwner);
        }
        self.instances.get_mut(caller).disclaim(id);
        self.regions.disown(id);
        Ok(())
    }

    /// A region, unless it is being prepared or retired.
    pub fn region(&self, id: RegionId) -> Option<RegionInfo> {
        self.regions.find(id).map(Region::info)
    }

    /// The regions with a greater id than `after`, by id, without those being prepared or retired.
    pub fn regions_after(&self, after: RegionId) -> impl Iterator<Item = RegionInfo> {
        self.regions.numbered.after(after.0).filter(|region| region.committed).map(Region::info)
    }

    /// The next region whose memory is to be released, each once, in order of retirement. Its extent stays taken until
    /// [`State::released`].
    pub fn next_retired(&mut self) -> Option<RetiredRegion> {
        let region = self.regions.retired.pop_front()?;
        self.regions.releasing.insert(region.id, region);
        Some(region)
    }

    /// The memory of a region that [`State::next_retired`] gave is gone: its extent is free again.
    ///
    /// # Panics
    /// When the region was not given, or released already.
    pub fn released(&mut self, id: RegionId) {
        let region = self.regions.releasing.remove(&id).expect("memory is released once, after it was given");
        self.pools.give_back(region.pool, region.pool_offset, region.extent);
    }

    /// Hands up to `want` freed pages back to their owner, each once, through `take`: of one region or of all the
    /// caller's, by id, the lowest page of each first.
    ///
    /// # Errors
    /// [`ReturnError`] when the region named is not the caller's.
    pub fn reclaim(
        &mut self,
        caller: InstanceNumber,
        region: Option<RegionId>,
        want: usize,
        mut take: impl FnMut(RegionId, u32),
    ) -> Result<(), ReturnError> {
        if let Some(id) = region {
            let found = self.regions.find(id).ok_or(ReturnError::NotFound)?;
            if found.owner != Some(caller) {
                return Err(ReturnError::NotOwner);
            }
        }
        let owned = &self.instances.get_mut(caller).regions;
        let mut left = want;
        for &id in region.as_ref().map_or(owned.as_slice(), std::slice::from_ref) {
            let region = self.regions.numbered.get_mut(id.0).expect("an owned region exists");
            while left > 0
                && let Some(page) = region.pages.take_lowest()
            {
                left -= 1;
                self.regions.counts.freed_pages -= 1;
                self.reclaimed_pages += 1;
                take(id, page);
            }
        }
        Ok(())
    }
}
