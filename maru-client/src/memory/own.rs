//! The pages of all own regions, under one lock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use super::Region;
use super::pages::PageAllocator;
use crate::error::{Error, PageState, Result};
use crate::page::PageLocation;
use crate::sync::lock;

/// A page that was taken: held, and to be given back.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) region: Arc<Region>,
    pub(crate) page_index: u32,
}

/// Figures over all own regions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PageCounts {
    pub(crate) regions: usize,
    pub(crate) pages: u64,
    pub(crate) free: u64,
}

/// Own regions in the order in which they came, and their pages.
#[derive(Debug, Default)]
pub(crate) struct OwnPages {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    regions: Vec<OwnRegion>,
    by_id: HashMap<u32, usize>,
    /// Regions that everybody may take pages from and that have free ones.
    with_free: BTreeSet<usize>,
    closed: bool,
    /// The number of the session's connections: what came by earlier ones was taken into account when it went on.
    link: u32,
}

#[derive(Debug)]
struct OwnRegion {
    region: Arc<Region>,
    pages: PageAllocator,
    /// Whether everybody may take pages, not only who made the region.
    open: bool,
}

impl OwnPages {
    /// Adds a region that came by these connections, from which only [`OwnPages::take_any`] takes until it is opened.
    ///
    /// # Errors
    /// [`Error::Closed`], and [`Error::ConnectionLost`] where the session has gone on since, and gives the region back.
    pub(crate) fn insert(&self, link: u32, region: Arc<Region>) -> Result<()> {
        let mut table = lock(&self.table);
        if table.closed {
            return Err(Error::Closed);
        }
        if table.link != link {
            return Err(Error::ConnectionLost);
        }
        let index = table.regions.len();
        table.by_id.insert(region.id(), index);
        let pages = PageAllocator::new(region.pages());
        table.regions.push(OwnRegion { region, pages, open: false });
        Ok(())
    }

    /// Whether this is an own region.
    pub(crate) fn has(&self, region_id: u32) -> bool {
        lock(&self.table).by_id.contains_key(&region_id)
    }

    /// Lets everybody take pages of a region.
    pub(crate) fn open(&self, region_id: u32) {
        let table = &mut *lock(&self.table);
        if let Some(&index) = table.by_id.get(&region_id) {
            table.regions[index].open = true;
            table.refresh(index);
        }
    }

    /// Takes the lowest free page of the oldest region that has one.
    pub(crate) fn take(&self) -> Option<Claim> {
        let table = &mut *lock(&self.table);
        let index = *table.with_free.first()?;
        table.take_from(index)
    }

    /// The same, also of regions that are not open yet.
    pub(crate) fn take_any(&self) -> Option<Claim> {
        lock(&self.table).take_any()
    }

    /// The server hands pages back by these connections; one of them, or another that is free, is taken before anybody else
    /// can take it.
    ///
    /// # Errors
    /// [`Error::ConnectionLost`] where the session goes on on others, and finds out by itself which pages it has.
    pub(crate) fn reclaim_and_take(&self, link: u32, pages: &[PageLocation]) -> Result<Option<Claim>> {
        let table = &mut *lock(&self.table);
        if table.link != link {
            return Err(Error::ConnectionLost);
        }
        table.reclaim(pages);
        Ok(table.take_any())
    }

    /// The server hands pages back by these connections.
    pub(crate) fn reclaim(&self, link: u32, pages: &[PageLocation]) {
        let table = &mut *lock(&self.table);
        if table.link == link {
            table.reclaim(pages);
        }
    }

    /// The session goes on on connections of this number.
    pub(crate) fn go_on(&self, link: u32) {
        lock(&self.table).link = link;
    }

    /// As the session goes on, compares 64 pages from `first` on with what the server says, a bit for each page that it
    /// sees with this instance. `unsettled` are those that nobody waits for.
    pub(crate) fn compare(&self, region_id: u32, first: u32, held: u64, unsettled: &HashSet<PageLocation>) {
        let table = &mut *lock(&self.table);
        let Some(&index) = table.by_id.get(&region_id) else { return };
        let pages = &mut table.regions[index].pages;
        for (page_index, held) in (first..).zip((0..u64::BITS).map(|bit| held >> bit & 1 == 1)) {
            let nobody_waits = unsettled.contains(&PageLocation { region_id, page_index });
            pages.compare(page_index, held, nobody_waits);
        }
        table.refresh(index);
    }

    /// Pages whose store came to nothing are about to be registered once more.
    ///
    /// # Errors
    /// [`Error::WrongPageState`], which can't happen to pages in doubt.
    pub(crate) fn resubmit(&self, pages: &[PageLocation]) -> Result<()> {
        let table = &mut *lock(&self.table);
        pages.iter().try_for_each(|page| table.change(*page, PageAllocator::resubmit))
    }

    /// A held page goes back.
    pub(crate) fn release(&self, page: PageLocation) {
        if let Err(error) = self.change(page, PageAllocator::release) {
            tracing::error!(%error, "a page that was held is not");
        }
    }

    /// A held page is known by its location only, from now on.
    ///
    /// # Errors
    /// [`Error::WrongPageState`], which can't happen to a page that is held.
    pub(crate) fn detach(&self, page: PageLocation) -> Result<()> {
        self.change(page, PageAllocator::detach)
    }

    /// A detached page is held again.
    ///
    /// # Errors
    /// [`Error::RegionNotFound`] or [`Error::WrongPageState`].
    pub(crate) fn attach(&self, page: PageLocation) -> Result<Claim> {
        let table = &mut *lock(&self.table);
        table.change(page, PageAllocator::attach)?;
        let region = Arc::clone(&table.regions[table.by_id[&page.region_id]].region);
        Ok(Claim { region, page_index: page.page_index })
    }

    /// A detached page goes back.
    ///
    /// # Errors
    /// [`Error::RegionNotFound`] or [`Error::WrongPageState`].
    pub(crate) fn release_detached(&self, page: PageLocation) -> Result<()> {
        self.change(page, PageAllocator::release_detached)
    }

    /// Has what was written into a page in memory, before it is given up; `false` where there is no need, or no page.
    pub(crate) fn write_back(&self, page: PageLocation) -> bool {
        let region = {
            let table = lock(&self.table);
            table.by_id.get(&page.region_id).map(|index| Arc::clone(&table.regions[*index].region))
        };
        let region = region.filter(|region| page.page_index < region.pages());
        region.is_some_and(|region| region.write_back(page.page_index))
    }

    /// The same for all pages that are detached, before their regions are given back; how many there were.
    pub(crate) fn write_back_detached(&self) -> u64 {
        let table = lock(&self.table);
        let needs_it = table.regions.iter().filter(|own| own.region.lines().is_some());
        let pages = needs_it.flat_map(|own| own.pages.detached().map(|page| own.region.write_back(page)));
        pages.map(u64::from).sum()
    }

    /// Held pages are about to be registered.
    ///
    /// # Errors
    /// [`Error::WrongPageState`], which can't happen to pages that are held.
    pub(crate) fn submit(&self, pages: &[PageLocation]) -> Result<()> {
        let table = &mut *lock(&self.table);
        pages.iter().try_for_each(|page| table.change(*page, PageAllocator::submit))
    }

    /// What became of registrations is known: each page is the server's, or free.
    pub(crate) fn settle(&self, pages: impl IntoIterator<Item = (PageLocation, bool)>) {
        let table = &mut *lock(&self.table);
        for (page, stored) in pages {
            if let Err(error) = table.change(page, |pages, index| pages.settle(index, stored)) {
                tracing::error!(%error, "a page that was in doubt is not");
            }
        }
    }

    /// Whether there is no own region.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.table).regions.is_empty()
    }

    /// The own regions, in the order in which they came.
    pub(crate) fn regions(&self) -> Vec<Arc<Region>> {
        lock(&self.table).regions.iter().map(|own| Arc::clone(&own.region)).collect()
    }

    pub(crate) fn counts(&self) -> PageCounts {
        let table = lock(&self.table);
        table.regions.iter().fold(PageCounts::default(), |counts, own| PageCounts {
            regions: counts.regions + 1,
            pages: counts.pages + u64::from(own.region.pages()),
            free: counts.free + u64::from(own.pages.free_count()),
        })
    }

    /// Hands nothing out from now on. Returns the regions that nobody can write into any more.
    pub(crate) fn close(&self) -> Vec<u32> {
        let mut table = lock(&self.table);
        table.closed = true;
        table.with_free.clear();
        let idle = table.regions.iter().filter(|own| own.pages.outstanding() == 0);
        idle.map(|own| own.region.id()).collect()
    }

    fn change(
        &self,
        page: PageLocation,
        change: impl FnOnce(&mut PageAllocator, u32) -> Result<(), PageState>,
    ) -> Result<()> {
        lock(&self.table).change(page, change)
    }
}

impl Table {
    fn take_any(&mut self) -> Option<Claim> {
        if self.closed {
            return None;
        }
        let index = self.regions.iter().position(|own| own.pages.free_count() > 0)?;
        self.take_from(index)
    }

    fn reclaim(&mut self, pages: &[PageLocation]) {
        for page in pages {
            if let Err(error) = self.change(*page, PageAllocator::reclaim) {
                tracing::warn!(%error, "the server handed a page back that it did not have");
            }
        }
    }

    fn take_from(&mut self, index: usize) -> Option<Claim> {
        let own = &mut self.regions[index];
        let page_index = own.pages.take()?;
        let claim = Claim { region: Arc::clone(&own.region), page_index };
        self.refresh(index);
        Some(claim)
    }

    fn change(
        &mut self,
        page: PageLocation,
        change: impl FnOnce(&mut PageAllocator, u32) -> Result<(), PageState>,
    ) -> Result<()> {
        let PageLocation { region_id, page_index } = page;
        let index = *self.by_id.get(&region_id).ok_or(Error::RegionNotFound { region_id })?;
        change(&mut self.regions[index].pages, page_index)
            .map_err(|state| Error::WrongPageState { location: page, state })?;
        self.refresh(index);
        Ok(())
    }

    /// Notes whether everybody may take a page of the region.
    fn refresh(&mut self, index: usize) {
        let own = &self.regions[index];
        if own.open && own.pages.free_count() > 0 && !self.closed {
            self.with_free.insert(index);
        } else {
            self.with_free.remove(&index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::regions::tests::{region, region_over};
    use crate::memory::{Access, Coherence};

    fn own(regions: &[(u32, u32)]) -> OwnPages {
        let own = OwnPages::default();
        for &(id, pages) in regions {
            own.insert(0, Arc::new(region(id, pages, 4096, Access::ReadWrite { prefault: false }))).unwrap();
            own.open(id);
        }
        own
    }

    fn take(own: &OwnPages) -> Option<(u32, u32)> {
        own.take().map(|claim| (claim.region.id(), claim.page_index))
    }

    fn page(region_id: u32, page_index: u32) -> PageLocation {
        PageLocation { region_id, page_index }
    }

    #[test]
    fn the_oldest_region_and_its_lowest_page_come_first() {
        let own = own(&[(7, 2), (3, 1)]);
        assert_eq!(
            [take(&own), take(&own), take(&own), take(&own)],
            [Some((7, 0)), Some((7, 1)), Some((3, 0)), None]
        );
        own.release(page(3, 0));
        own.release(page(7, 1));
        assert_eq!([take(&own), take(&own)], [Some((7, 1)), Some((3, 0))]);
    }

    #[test]
    fn a_region_gives_pages_to_everybody_only_once_it_is_open() {
        let own = OwnPages::default();
        own.insert(0, Arc::new(region(1, 2, 4096, Access::ReadWrite { prefault: false }))).unwrap();
        assert_eq!(take(&own), None);
        assert_eq!(own.take_any().map(|claim| claim.page_index), Some(0));
        own.open(1);
        assert_eq!(take(&own), Some((1, 1)));
    }

    #[test]
    fn pages_are_refused_by_what_they_are() {
        let own = own(&[(1, 1)]);
        let held = page(1, take(&own).unwrap().1);
        let state = |result: Result<()>| match result {
            Err(Error::WrongPageState { state, .. }) => state,
            other => panic!("{other:?}"),
        };
        assert_eq!(state(own.release_detached(held)), PageState::Held);
        own.detach(held).unwrap();
        own.release_detached(held).unwrap();
        assert_eq!(state(own.release_detached(held)), PageState::Free, "a double free");
        assert_eq!(state(own.attach(held).map(|_| ())), PageState::Free);
        assert_eq!(state(own.release_detached(page(1, 1))), PageState::Missing);
        assert!(matches!(own.release_detached(page(2, 0)), Err(Error::RegionNotFound { region_id: 2 })));
    }

    #[test]
    fn what_is_reclaimed_is_taken_by_who_asked() {
        let own = own(&[(1, 2)]);
        let pages = [take(&own), take(&own)].map(|taken| page(1, taken.unwrap().1));
        own.submit(&pages).unwrap();
        own.settle(pages.map(|page| (page, true)));
        let claim = own.reclaim_and_take(0, &[page(1, 1), page(1, 1), page(9, 0)]).unwrap().unwrap();
        assert_eq!(claim.page_index, 1);
        assert_eq!(take(&own), None, "handed back twice is not free twice");
    }

    #[test]
    fn what_was_written_into_pages_that_are_given_up_is_written_back() {
        let own = OwnPages::default();
        let access = Access::ReadWrite { prefault: false };
        let file = tempfile::tempfile().unwrap();
        let region = region_over(&file, 4, 4096, access, Coherence::Writeback);
        own.insert(0, Arc::new(region)).unwrap();
        own.open(1);
        let [stored, detached, _held] = [(); 3].map(|()| page(1, take(&own).unwrap().1));
        own.submit(&[stored]).unwrap();
        own.settle([(stored, true)]);
        assert_eq!(own.write_back_detached(), 0, "a stored page was written back before");
        own.detach(detached).unwrap();
        assert_eq!(own.write_back_detached(), 1);
        assert!(own.write_back(detached));
        assert!(!own.write_back(page(1, 4)) && !own.write_back(page(2, 0)), "there are no such pages");
    }

    #[test]
    fn a_closed_table_hands_nothing_out_and_keeps_regions_that_are_written_into() {
        let own = own(&[(1, 1), (2, 1)]);
        take(&own);
        assert_eq!(own.close(), [2], "region 1 has a page that is held");
        assert_eq!((take(&own), own.take_any().map(|claim| claim.page_index)), (None, None));
        let late = own.insert(0, Arc::new(region(3, 1, 4096, Access::ReadWrite { prefault: false })));
        assert!(matches!(late, Err(Error::Closed)));
        own.release(page(1, 0));
        assert_eq!(take(&own), None);
    }
}
