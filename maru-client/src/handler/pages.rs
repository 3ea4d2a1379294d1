//! Own memory: pages, and where they come from.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use maru_proto::{ClientOperation, FrameStatus, ReclaimRequest};

use super::{MaruHandler, RegionAdded};
use crate::error::{Error, Result};
use crate::memory::{Claim, RegionMemory, prefault};
use crate::page::{PageLocation, PageMut};
use crate::rpc::request::{Heartbeat, Reclaim};
use crate::session::Link;
use crate::shared::retry;
use crate::sync::lock;

/// Freed pages that are taken back at a time.
const FREED: u32 = 256;
/// Pages that are asked for where entries have to go for them: few, since what is evicted early could have been read.
const EVICTED: u32 = 16;
/// For how long the server is not asked for a region again once it had no room, unless nothing else helps.
const ASK_AGAIN: Duration = Duration::from_millis(100);

impl MaruHandler {
    /// A page to write a chunk of `length` bytes into. No request is needed while own pages are free; otherwise pages are
    /// taken back that others freed, then another region is asked for where `auto_expand` allows, then cold entries of
    /// this instance that nobody has pinned make room. The lowest free page comes first.
    ///
    /// From another host the server is asked as well where it was not heard from for most of its grace period. A page that is
    /// written to for longer than a quarter of that, while the server is out of reach, may be another's by then.
    ///
    /// # Errors
    /// [`Error::PageTooLarge`], [`Error::PoolExhausted`] when none of this helps, as with everything pinned; it never
    /// waits for others to free something. [`Error::Refused`] when there is no room even for a first region. Those of any request.
    pub fn alloc(&self, length: usize) -> Result<PageMut> {
        self.timed(ClientOperation::Alloc, || self.get_page(length))
    }

    /// A page, wherever it has to come from.
    pub(super) fn get_page(&self, length: usize) -> Result<PageMut> {
        match self.alloc_free(length)? {
            Some(page) => Ok(page),
            None => {
                let claim = retry!(
                    self.shared,
                    link => self.more_pages(&link),
                    lost => self.shared.wait_for_next(lost)
                )?;
                Ok(PageMut::new(Arc::clone(&self.shared), claim, length))
            }
        }
    }

    /// A page that is free already.
    pub(super) fn alloc_free(&self, length: usize) -> Result<Option<PageMut>> {
        self.shared.check_open()?;
        let page_size = self.page_size();
        if length > page_size {
            return Err(Error::PageTooLarge { requested: length, page_size });
        }
        let claim = if self.shared.has_its_memory() { self.shared.own.take() } else { None };
        Ok(claim.map(|claim| PageMut::new(Arc::clone(&self.shared), claim, length)))
    }

    fn more_pages(&self, link: &Link) -> Result<Claim> {
        let own = &self.shared.own;
        if !own.is_empty() && !self.shared.has_its_memory() {
            link.connection.answer_to(&Heartbeat([]))?;
        }
        let mut full_since = lock(&self.shared.expanding);
        // Another thread may have got some while this one waited.
        if let Some(claim) = own.take() {
            return Ok(claim);
        }
        if own.is_empty() {
            self.add_region(link)?;
            return own.take_any().ok_or(Error::PoolExhausted);
        }
        let is_full = full_since.is_some_and(|since| since.elapsed() < ASK_AGAIN);
        let may_expand = self.shared.config.auto_expand;
        if may_expand && !is_full {
            // What is freed is had for nothing, a region for its memory, and what is evicted is lost.
            if let Some(claim) = self.reclaim(link, FREED, false)? {
                return Ok(claim);
            }
            if let Some(claim) = self.expand_if_room(link, &mut full_since)? {
                return Ok(claim);
            }
        }
        if let Some(claim) = self.reclaim(link, EVICTED, true)? {
            return Ok(claim);
        }
        if may_expand
            && is_full
            && let Some(claim) = self.expand_if_room(link, &mut full_since)?
        {
            return Ok(claim);
        }
        Err(Error::PoolExhausted)
    }

    /// A page of a further region, if the server has room for one.
    fn expand_if_room(&self, link: &Link, full_since: &mut Option<Instant>) -> Result<Option<Claim>> {
        match self.add_region(link) {
            Ok(()) => Ok(self.shared.own.take_any()),
            Err(Error::Refused { status: FrameStatus::NoSpace | FrameStatus::Limit, .. }) => {
                *full_since = Some(Instant::now());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn reclaim(&self, link: &Link, want: u32, evict: bool) -> Result<Option<Claim>> {
        let request = ReclaimRequest { want: want.into(), region_id: 0.into() };
        let pages = link.connection.answer_to(&Reclaim { request, evict })?;
        if pages.is_empty() { Ok(None) } else { self.shared.own.reclaim_and_take(link.number, &pages) }
    }

    /// Gets a region, unless another thread just did.
    pub(super) fn expand(&self) -> Result<()> {
        let _expanding = lock(&self.shared.expanding);
        retry!(self.shared, link => self.add_region(&link), lost => self.shared.wait_for_next(lost))
    }

    /// Gets a region. Its pages are for everybody once the callback knows of it.
    fn add_region(&self, link: &Link) -> Result<()> {
        let size = self.shared.config.size_of_region(self.shared.own.regions().len());
        let region = self.shared.new_region(link, size)?;
        self.shared.own.insert(link.number, Arc::clone(&region)).inspect_err(|error| {
            if matches!(error, Error::Closed) {
                self.shared.return_region(region.id());
            }
        })?;
        self.shared.regions.insert(Arc::clone(&region));
        self.shared.announcements.add(RegionAdded {
            region_id: region.id(),
            pages: region.pages(),
            page_size: region.page_size(),
        });
        self.shared.own.open(region.id());
        prefault(&region);
        Ok(())
    }

    /// Gives a page back; dropping it does the same.
    pub fn free(&self, page: PageMut) {
        drop(page);
    }

    /// Gives a page back that was detached.
    ///
    /// # Errors
    /// [`Error::RegionNotFound`] where it is no page of this instance, [`Error::WrongPageState`] where it is not
    /// detached: a page that is free already, or stored, or held by a [`PageMut`] stays what it is.
    pub fn free_by_location(&self, region_id: u32, page_index: u32) -> Result<()> {
        let page = PageLocation { region_id, page_index };
        if self.shared.own.write_back(page) {
            self.shared.pages_written_back.fetch_add(1, Ordering::Relaxed);
        }
        self.shared.own.release_detached(page)
    }

    /// Takes a detached page up again.
    ///
    /// # Errors
    /// Those of [`MaruHandler::free_by_location`], and [`Error::PageTooLarge`].
    pub fn attach(&self, location: PageLocation, length: usize) -> Result<PageMut> {
        let page_size = self.page_size();
        if length > page_size {
            return Err(Error::PageTooLarge { requested: length, page_size });
        }
        let claim = self.shared.own.attach(location)?;
        Ok(PageMut::new(Arc::clone(&self.shared), claim, length))
    }

    /// Calls back for every own region exactly once: for those that exist now, and for each further one before its pages
    /// are handed out to other threads. The callback runs in the thread that gets the region, and may use the handler.
    pub fn on_region_added(&self, callback: impl Fn(&RegionAdded) + Send + Sync + 'static) {
        self.shared.announcements.set_callback(Some(Arc::new(callback)));
    }

    /// Calls back no more.
    pub fn clear_on_region_added(&self) {
        self.shared.announcements.set_callback(None);
    }

    /// The own regions, in the order in which they came.
    pub fn owned_regions(&self) -> Vec<u32> {
        self.shared.own.regions().iter().map(|region| region.id()).collect()
    }

    /// The memory of a region, mapped now if it was not; `None` when there is no such region.
    ///
    /// # Errors
    /// [`Error::Map`], and those of any request; none where the region is mapped already.
    pub fn map_region(&self, region_id: u32) -> Result<Option<RegionMemory>> {
        Ok(self.shared.region(region_id)?.map(RegionMemory::new))
    }

    /// The memory of a region that is mapped here.
    pub fn region_memory(&self, region_id: u32) -> Option<RegionMemory> {
        self.shared.regions.get(region_id).map(RegionMemory::new)
    }
}
