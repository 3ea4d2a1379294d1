//! Allocation: how a region is given to an instance, given back, and its memory released.

use super::checksums::Checksums;
use super::entry::KvEntry;
use super::eviction::EvictionPolicy;
use super::pages::Pages;
use super::regions::Region;
use super::{InstanceNumber, Limits, PoolId, RegionId, RegionInfo, RetiredRegion, State};

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

impl State {
    /// Takes an extent for a region of `size` bytes, rounded up to whole pages, from this pool or from the first that
    /// has one. Where there is none, or no room for as many pages, orphans that nobody reads are evicted, coldest first, if
    /// that can help. Nobody sees the region before [`State::commit_region`], which the caller owes when the memory is
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
        if self.instances.get(owner).regions.len() >= max_regions_per_instance as usize {
            return Err(AllocError::TooManyRegions);
        }
        let id = self.regions.next_id().ok_or(AllocError::TooManyRegions)?;
        let pages = u32::try_from(size.div_ceil(page_size)).map_err(|_| AllocError::TooManyPages)?;
        let bytes = u64::from(pages) * page_size;
        let Some((pool, pool_offset, extent)) = self.pools.take(bytes, pool) else {
            let pending = self.regions.pending(pool) || self.evict_orphans_for_space(bytes, pool);
            return Err(AllocError::NoSpace { pending });
        };
        if pages > max_entries - self.regions.pages() && !self.evict_orphans_for_pages(pages) {
            self.pools.give_back(pool, pool_offset, extent);
            return Err(AllocError::TooManyPages);
        }
        let instance = self.instances.get_mut(owner);
        instance.regions.push(id);
        let region = Region {
            id,
            owner: Some(owner),
            page_size,
            pages: Pages::new(pages),
            checksums: Checksums::default(),
            entries: 0,
            entry_bytes: 0,
            pool,
            pool_offset,
            extent,
            group: Some(instance.group),
            pinned: 0,
            last_touch: self.touches,
            committed: false,
        };
        let info = region.info();
        self.regions.insert(region);
        Ok(info)
    }

    /// The region's memory is there: everybody sees it, and all its pages are the owner's. `None` when the owner ended
    /// meanwhile; the region is retired then.
    ///
    /// # Panics
    /// When the region is not being prepared.
    pub fn commit_region(&mut self, id: RegionId) -> Option<RegionInfo> {
        self.regions.commit(id, &mut self.changes)
    }

    /// The region's memory could not be had: its extent is free again.
    ///
    /// # Panics
    /// When the region is not being prepared.
    pub fn abort_region(&mut self, id: RegionId) {
        let region = self.regions.abort(id);
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
        self.owned_region(caller, id)?;
        self.instances.get_mut(caller).disclaim(id);
        self.disown(id);
        Ok(())
    }

    /// Takes a region's owner away: its entries are no victims any more, but go with the region.
    pub(super) fn disown(&mut self, id: RegionId) {
        for slot in self.regions.entries_of(id) {
            let (policy, mut entries) = self.eviction();
            policy.disown(&mut entries, slot);
        }
        self.regions.disown(id, &mut self.changes);
    }

    /// Evicts the coldest orphans until an extent for so many bytes is free, as soon as their memory is released. Evicts
    /// none and says `false` where all that could go would not be enough.
    fn evict_orphans_for_space(&mut self, bytes: u64, pool: Option<PoolId>) -> bool {
        let mut orphans = self.unread_orphans();
        orphans.retain(|orphan| pool.is_none_or(|pool| pool == orphan.pool));
        let is_enough = |count: usize| {
            let freed =
                orphans[..count].iter().map(|orphan| (orphan.pool, orphan.pool_offset, orphan.extent));
            self.pools.would_fit(bytes, pool, &freed)
        };
        let enough = first(orphans.len(), is_enough);
        self.evict_orphans(&orphans, enough)
    }

    /// Evicts the coldest orphans until there is room for so many pages more; `false` as above.
    fn evict_orphans_for_pages(&mut self, pages: u32) -> bool {
        let room = self.limits.max_entries - self.regions.pages();
        let orphans = self.unread_orphans();
        let is_enough =
            |count: usize| orphans[..count].iter().map(|orphan| orphan.pages).sum::<u32>() >= pages - room;
        let enough = first(orphans.len(), is_enough);
        self.evict_orphans(&orphans, enough)
    }

    /// The orphans that may go, the coldest first.
    fn unread_orphans(&self) -> Vec<RegionInfo> {
        if self.is_recovering() { Vec::new() } else { self.regions.unread_orphans() }
    }

    /// Evicts the first so many orphans, if that is a number.
    fn evict_orphans(&mut self, orphans: &[RegionInfo], count: Option<usize>) -> bool {
        let Some(count) = count else { return false };
        for orphan in &orphans[..count] {
            for slot in self.regions.entries_of(orphan.id) {
                let entry = self.remove(slot);
                // With its last entry the region is retired.
                self.regions.remove_entry(entry.region, entry.page, entry.length, &mut self.changes);
                self.evicted_with_orphan += 1;
            }
        }
        true
    }

    /// A region, unless it is being prepared or retired.
    pub fn region(&self, id: RegionId) -> Option<RegionInfo> {
        self.regions.find(id).map(Region::info)
    }

    /// The regions with a greater id than `after`, by id, without those being prepared or retired.
    pub fn regions_after(&self, after: RegionId) -> impl Iterator<Item = RegionInfo> {
        self.regions.after(after).map(Region::info)
    }

    /// The next region whose memory is to be released, each once, in order of retirement. Its extent stays taken until
    /// [`State::released`].
    pub fn next_retired(&mut self) -> Option<RetiredRegion> {
        self.regions.next_retired()
    }

    /// The memory of a region that [`State::next_retired`] gave is gone: its extent is free again.
    ///
    /// # Panics
    /// When the region was not given, or released already.
    pub fn released(&mut self, id: RegionId) {
        let region = self.regions.released(id);
        self.pools.give_back(region.pool, region.pool_offset, region.extent);
    }

    /// From a page of the caller's region on, a multiple of 64: words of 64 pages each, the first in the lowest bit, a bit
    /// set where the owner has the page.
    ///
    /// # Errors
    /// [`ReturnError`] when the region is not the caller's.
    pub fn held_pages(
        &self,
        caller: InstanceNumber,
        id: RegionId,
        first: u32,
    ) -> Result<impl Iterator<Item = u64>, ReturnError> {
        Ok(self.owned_region(caller, id)?.pages.held_from(first))
    }

    fn owned_region(&self, caller: InstanceNumber, id: RegionId) -> Result<&Region, ReturnError> {
        let region = self.regions.find(id).ok_or(ReturnError::NotFound)?;
        if region.owner == Some(caller) { Ok(region) } else { Err(ReturnError::NotOwner) }
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
            self.owned_region(caller, id)?;
        }
        let owned = &self.instances.get(caller).regions;
        let mut left = want;
        for &id in region.as_ref().map_or(owned.as_slice(), std::slice::from_ref) {
            while left > 0
                && let Some(page) = self.regions.take_lowest(id, &mut self.changes)
            {
                left -= 1;
                self.reclaimed_pages += 1;
                take(id, page);
            }
        }
        Ok(())
    }

    /// Evicts up to `want` entries of the caller's that nobody has pinned, and hands their pages back through `take`. None as
    /// long as the state is [recovering](State::is_recovering).
    pub fn evict(&mut self, caller: InstanceNumber, want: usize, mut take: impl FnMut(RegionId, u32)) {
        let group = self.instances.get(caller).group;
        let want = if self.is_recovering() { 0 } else { want };
        for _ in 0..want {
            let (policy, mut entries) = self.eviction();
            let Some(slot) = policy.victim(&mut entries, group) else { break };
            let entry = self.remove(slot);
            let KvEntry { region, page, length, .. } = entry;
            let region = self.regions.hand_back(region, page, length, &mut self.changes);
            self.evicted_for_owner += 1;
            self.reclaimed_pages += 1;
            take(region, page);
        }
    }
}

/// The least count up to `max` that is enough, where more than enough is enough too.
fn first(max: usize, is_enough: impl Fn(usize) -> bool) -> Option<usize> {
    let (mut low, mut high) = (0, max + 1);
    while low < high {
        let middle = low.midpoint(high);
        if middle > max || is_enough(middle) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    (low <= max).then_some(low)
}
