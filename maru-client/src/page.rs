//! A page of an own region, before it is stored.

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::memory::{Claim, copy_nontemporal};
use crate::shared::Shared;

/// Copies of at least this many bytes go past the caches: the core that writes a chunk rarely reads it next.
const NONTEMPORAL_FROM: usize = 256 * 1024;

/// Which page it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageLocation {
    /// The region.
    pub region_id: u32,
    /// The page's index in the region.
    pub page_index: u32,
}

/// The first bytes of a free page, to be written into by its holder alone. Dropping it gives the page back.
pub struct PageMut {
    shared: Arc<Shared>,
    claim: Claim,
    length: usize,
}

impl PageMut {
    /// A page that is held by nobody else.
    pub(crate) fn new(shared: Arc<Shared>, claim: Claim, length: usize) -> PageMut {
        debug_assert!(length <= claim.region.page_size());
        PageMut { shared, claim, length }
    }

    /// The region that the page lies in.
    pub fn region_id(&self) -> u32 {
        self.claim.region.id()
    }

    /// The page's index in its region.
    pub fn page_index(&self) -> u32 {
        self.claim.page_index
    }

    /// Which page it is.
    pub fn location(&self) -> PageLocation {
        PageLocation { region_id: self.region_id(), page_index: self.page_index() }
    }

    /// Copies a whole chunk into the page; from 256 KiB on without passing through the caches.
    ///
    /// # Panics
    /// When the lengths differ, as for slices.
    pub fn copy_from_slice(&mut self, source: &[u8]) {
        if source.len() >= NONTEMPORAL_FROM {
            copy_nontemporal(self, source);
        } else {
            self.deref_mut().copy_from_slice(source);
        }
    }

    /// Lets go of the page without giving it back: it is known by its location from now on, until
    /// [`MaruHandler::attach`](crate::MaruHandler::attach) or
    /// [`MaruHandler::free_by_location`](crate::MaruHandler::free_by_location).
    pub fn detach(self) -> PageLocation {
        let page = self.into_location();
        let detached = page.shared.own.detach(page.location);
        debug_assert!(detached.is_ok(), "a held page can be detached");
        page.location
    }

    /// Shortens or lengthens what the page shows, within the page.
    ///
    /// # Errors
    /// [`Error::PageTooLarge`]; nothing is changed then.
    pub fn resize(&mut self, length: usize) -> Result<()> {
        let page_size = self.claim.region.page_size();
        if length > page_size {
            return Err(Error::PageTooLarge { requested: length, page_size });
        }
        self.length = length;
        Ok(())
    }

    /// Whether the page belongs to this handler.
    pub(crate) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        Arc::ptr_eq(&self.shared, shared)
    }

    /// Has all that was written into the page in memory, where that does not come about by itself.
    pub(crate) fn write_back(&self) {
        if self.claim.region.write_back(self.claim.page_index) {
            self.shared.pages_written_back.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Lets go of the page without giving it back; whoever calls this says what becomes of it.
    pub(crate) fn into_location(self) -> Taken {
        let location = self.location();
        let page = ManuallyDrop::new(self);
        // SAFETY: the page is never dropped nor used again, so this is the only copy of the handle.
        let shared = unsafe { std::ptr::read(&raw const page.shared) };
        // SAFETY: the same for the claim, which is dropped here.
        drop(unsafe { std::ptr::read(&raw const page.claim) });
        Taken { shared, location }
    }
}

/// A page out of its handle.
pub(crate) struct Taken {
    shared: Arc<Shared>,
    pub(crate) location: PageLocation,
}

impl Deref for PageMut {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.claim.region.at(self.claim.region.page_offset(self.claim.page_index));
        // SAFETY: the page lies inside the mapping, which the claim keeps; it is held by this value alone, readers learn of it
        // only after it was stored, which consumes this value, and the borrow of `self` keeps writers out.
        unsafe { std::slice::from_raw_parts(start, self.length) }
    }
}

impl DerefMut for PageMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.claim.region.at(self.claim.region.page_offset(self.claim.page_index));
        // SAFETY: as above, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(start, self.length) }
    }
}

impl fmt::Debug for PageMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageMut").field("location", &self.location()).field("length", &self.length).finish()
    }
}

impl Drop for PageMut {
    fn drop(&mut self) {
        // What was written is of no use, and must not come to memory once the page is somebody else's.
        self.write_back();
        self.shared.own.release(self.location());
    }
}
