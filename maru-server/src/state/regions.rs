//! The regions: what one is, and its way from preparation over its owner to its retirement.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;

use super::changes::{Change, Changes};
use super::checksums::Checksums;
use super::eviction::Group;
use super::numbered::Numbered;
use super::pages::{Page, Pages};
use super::{InstanceNumber, PoolId, RegionId};

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
    pub(super) checksums: Checksums,
    pub(super) entries: u32,
    pub(super) entry_bytes: u64,
    pub(super) pool: PoolId,
    pub(super) pool_offset: u64,
    pub(super) extent: u64,
    /// With whom its entries compete for pages; `None` in an orphan.
    pub(super) group: Option<Group>,
    /// Entries with at least one pin.
    pub(super) pinned: u32,
    /// When one of its entries was last asked for, by [`State::touches`](super::State).
    pub(super) last_touch: u64,
    /// Its memory is there. Until then nobody but the one who prepares it knows of the region.
    pub(super) committed: bool,
}

impl Region {
    /// The length, if a page takes an entry of it.
    pub(super) fn length_in_page(&self, length: u32) -> Option<NonZeroU32> {
        NonZeroU32::new(length).filter(|_| u64::from(length) <= self.page_size)
    }

    /// Gives a held page to the entry in this slot of the directory.
    pub(super) fn add_entry(&mut self, page: u32, entry: u32, length: NonZeroU32, checksum: u32) {
        self.pages.occupy(page, entry);
        self.checksums.set(page, checksum, self.pages.count());
        self.entries += 1;
        self.entry_bytes += u64::from(length.get());
    }

    /// The entry of a page is gone; the page still names it.
    fn lose_entry(&mut self, length: NonZeroU32) {
        self.entries -= 1;
        self.entry_bytes -= u64::from(length.get());
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
    /// The greatest id that is ever given.
    pub(super) const LAST_ID: u32 = i32::MAX.unsigned_abs();

    pub(super) fn new() -> Regions {
        Regions {
            numbered: Numbered::new(Regions::LAST_ID),
            pages: 0,
            counts: RegionCounts::default(),
            retired: VecDeque::new(),
            releasing: BTreeMap::new(),
        }
    }

    /// The id of the next region, or `None` when all are used up.
    pub(super) fn next_id(&self) -> Option<RegionId> {
        self.numbered.next().map(RegionId)
    }

    /// Pages of all regions, those being prepared included.
    pub(super) fn pages(&self) -> u32 {
        self.pages
    }

    /// Adds a region in preparation, under the id that [`Regions::next_id`] told.
    pub(super) fn insert(&mut self, region: Region) {
        self.pages += region.pages.count();
        self.numbered.insert(region);
    }

    /// Adds a region of before a restart, owned as long as nobody says otherwise. They come in the order of their ids.
    pub(super) fn restore(&mut self, region: Region) {
        self.numbered.skip_to(region.id.0);
        self.counts.regions += 1;
        self.counts.region_bytes += region.size();
        self.insert(region);
    }

    /// A page waits for its owner; `false` where there is none such that could.
    pub(super) fn restore_freed(&mut self, id: RegionId, page: u32) -> bool {
        let region = self.numbered.get_mut(id.0).expect("the caller knows that the region exists");
        let can_be = page < region.pages.count() && region.pages.get(page) == Page::Held;
        if can_be {
            region.pages.free(page);
            self.counts.freed_pages += 1;
        }
        can_be
    }

    /// Ids greater than this one follow.
    pub(super) fn skip_to(&mut self, last: RegionId) {
        self.numbered.skip_to(last.0.saturating_add(1));
    }

    /// Makes a prepared region visible, unless its owner ended: then it is retired.
    pub(super) fn commit(&mut self, id: RegionId, changes: &mut Changes) -> Option<RegionInfo> {
        let region = self.numbered.get_mut(id.0).filter(|region| !region.committed);
        let region = region.expect("a region is committed once, after it was begun");
        region.committed = true;
        let info = region.info();
        self.counts.regions += 1;
        self.counts.region_bytes += info.size;
        changes.note(Change::Committed(id));
        if info.owner.is_none() {
            self.disown(id, changes);
            return None;
        }
        Some(info)
    }

    /// Takes out a region in preparation.
    pub(super) fn abort(&mut self, id: RegionId) -> Region {
        let region = self.numbered.get(id.0);
        assert!(region.is_some_and(|region| !region.committed), "only what was begun is aborted");
        self.remove(id)
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

    /// The same, to be changed.
    pub(super) fn at_mut(&mut self, slot: u32) -> &mut Region {
        self.numbered.at_mut(slot)
    }

    /// Every region, those being prepared included, by id.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Region> {
        self.numbered.after(0)
    }

    /// The committed regions with a greater id, by id.
    pub(super) fn after(&self, after: RegionId) -> impl Iterator<Item = &Region> {
        self.numbered.after(after.0).filter(|region| region.committed)
    }

    pub(super) fn counts(&self) -> RegionCounts {
        self.counts
    }

    /// The entry of a page is gone.
    pub(super) fn remove_entry(&mut self, slot: u32, page: u32, length: NonZeroU32, changes: &mut Changes) {
        let region = self.numbered.at_mut(slot);
        let id = region.id;
        region.lose_entry(length);
        if region.owner.is_some() {
            region.pages.free(page);
            self.counts.freed_pages += 1;
            changes.note(Change::Freed { region: id, page });
        } else {
            region.pages.vacate(page);
            changes.note(Change::Held { region: id, page });
            if region.entries == 0 {
                self.retire(id, changes);
            }
        }
    }

    /// The entry of a page of an owned region is gone, and the page is the owner's at once.
    pub(super) fn hand_back(
        &mut self,
        slot: u32,
        page: u32,
        length: NonZeroU32,
        changes: &mut Changes,
    ) -> RegionId {
        let region = self.numbered.at_mut(slot);
        region.lose_entry(length);
        region.pages.vacate(page);
        changes.note(Change::Held { region: region.id, page });
        region.id
    }

    /// Hands the lowest freed page of an owned region back.
    pub(super) fn take_lowest(&mut self, id: RegionId, changes: &mut Changes) -> Option<u32> {
        let region = self.numbered.get_mut(id.0).expect("an owned region exists");
        let page = region.pages.take_lowest()?;
        self.counts.freed_pages -= 1;
        changes.note(Change::Held { region: id, page });
        Some(page)
    }

    /// Takes the owner away: the region is an orphan from now on, or retired where it holds no entry.
    pub(super) fn disown(&mut self, id: RegionId, changes: &mut Changes) {
        let region = self.numbered.get_mut(id.0).expect("an owned region exists");
        region.owner = None;
        region.group = None;
        if !region.committed {
            return;
        }
        self.counts.freed_pages -= u64::from(region.pages.freed_count());
        // There is nobody to take them back any more.
        while region.pages.take_lowest().is_some() {}
        self.counts.orphans += 1;
        changes.note(Change::Disowned(id));
        if region.entries == 0 {
            self.retire(id, changes);
        }
    }

    /// The slots of a region's entries.
    pub(super) fn entries_of(&self, id: RegionId) -> Vec<u32> {
        let region = self.numbered.get(id.0).expect("the caller knows that the region exists");
        let entries = region.pages.iter().filter_map(|(_, page)| match page {
            Page::Entry(slot) => Some(slot),
            _ => None,
        });
        entries.collect()
    }

    /// The orphans in which nobody has a pin, the coldest first.
    pub(super) fn unread_orphans(&self) -> Vec<RegionInfo> {
        let is_unread = |region: &&Region| region.committed && region.owner.is_none() && region.pinned == 0;
        let mut orphans = self.iter().filter(is_unread).collect::<Vec<_>>();
        orphans.sort_by_key(|region| region.last_touch);
        orphans.into_iter().map(Region::info).collect()
    }

    /// Ends an orphan without entries; its memory is to be released.
    fn retire(&mut self, id: RegionId, changes: &mut Changes) {
        let region = self.remove(id);
        self.counts.orphans -= 1;
        self.counts.regions -= 1;
        self.counts.region_bytes -= region.size();
        let Region { pool, pool_offset, extent, .. } = region;
        self.retired.push_back(RetiredRegion { id, pool, pool_offset, extent });
        changes.note(Change::Retired(id));
    }

    fn remove(&mut self, id: RegionId) -> Region {
        let region = self.numbered.remove(id.0).expect("the caller knows that the region exists");
        self.pages -= region.pages.count();
        region
    }

    /// What is retired or being released: its extents are free soon.
    fn unreleased(&self) -> impl Iterator<Item = &RetiredRegion> {
        self.retired.iter().chain(self.releasing.values())
    }

    /// The next one whose memory is to be released.
    pub(super) fn next_retired(&mut self) -> Option<RetiredRegion> {
        let region = self.retired.pop_front()?;
        self.releasing.insert(region.id, region);
        Some(region)
    }

    /// The memory is gone.
    pub(super) fn released(&mut self, id: RegionId) -> RetiredRegion {
        self.releasing.remove(&id).expect("memory is released once, after it was given")
    }

    /// Whether memory of this pool, or of any, is still to be released.
    pub(super) fn pending(&self, pool: Option<PoolId>) -> bool {
        self.unreleased().any(|region| pool.is_none_or(|pool| pool == region.pool))
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
        taken.extend(self.unreleased().map(|region| (region.pool, region.pool_offset, region.extent)));
    }
}
