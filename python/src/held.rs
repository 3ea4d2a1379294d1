//! What Python objects hold: pages that are being written, and chunks that are being read, both found by their location.
//!
//! Python code names a page by region and index where the client has values that own it. The tables in here lead from one
//! to the other, and own nothing: a page goes back, and a pin ends, when the last Python object that shows it is gone.

use foldhash::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use maru_client::{ChunkRef, PageLocation, PageMut, RegionMemory, WeakChunkRef};

/// Chunks of which is looked whether they are still held, at least, before there is room for more.
const CHUNKS: usize = 4096;

/// All pages and chunks that objects of one client hold.
#[derive(Default)]
pub(crate) struct Held {
    pages: Mutex<HashMap<PageLocation, Weak<Page>>>,
    chunks: Mutex<HashMap<PageLocation, WeakChunkRef>>,
}

/// A page that was allocated. It is empty once the page was stored or freed.
pub(crate) struct Page {
    location: PageLocation,
    /// Views of the page stay readable when it was stored, also without the handler.
    _memory: RegionMemory,
    page: Mutex<Option<PageMut>>,
    held: Arc<Held>,
}

impl Held {
    /// Takes up a page that was allocated.
    pub(crate) fn page(self: &Arc<Held>, page: PageMut, memory: RegionMemory) -> Arc<Page> {
        let location = page.location();
        let page = Page { location, _memory: memory, page: Mutex::new(Some(page)), held: Arc::clone(self) };
        let page = Arc::new(page);
        lock(&self.pages).insert(location, Arc::downgrade(&page));
        page
    }

    /// Takes up chunks that were retrieved. One that is held already becomes one more guard of the pin that there is: only
    /// so does its location lead to a guard as long as any of its objects lives, whichever goes first.
    pub(crate) fn add_chunks<'a>(&self, chunks: impl Iterator<Item = &'a mut ChunkRef>) {
        let mut spare = Vec::new();
        let mut known = lock(&self.chunks);
        for chunk in chunks {
            if let Some(held) = known.get(&location(chunk)).and_then(WeakChunkRef::upgrade) {
                spare.push(std::mem::replace(chunk, held));
                continue;
            }
            if known.len() == known.capacity() && known.len() >= CHUNKS {
                // To look at all of them once for as many that come is cheaper than at each that goes.
                known.retain(|_, chunk| chunk.is_held());
                let room = known.len();
                known.reserve(room);
            }
            known.insert(location(chunk), chunk.downgrade());
        }
        // Their pins are released without the lock.
        drop(known);
    }

    /// The page at a location, if an object shows it that was neither stored nor freed.
    pub(crate) fn page_at(&self, location: PageLocation) -> Option<Arc<Page>> {
        let page = lock(&self.pages).get(&location)?.upgrade()?;
        let is_held = lock(&page.page).is_some();
        is_held.then_some(page)
    }

    /// The chunk at a location, if an object shows it.
    pub(crate) fn chunk_at(&self, location: PageLocation) -> Option<ChunkRef> {
        lock(&self.chunks).get(&location)?.upgrade()
    }

    /// Takes the page at a location out of the objects that show it, to be stored or freed; if one of them is named, only
    /// the page that it shows, which may have gone back and have another holder by now.
    pub(crate) fn take(&self, location: PageLocation, shown: Option<&Arc<Page>>) -> Option<PageMut> {
        let page = self.page_at(location)?;
        if shown.is_some_and(|shown| !Arc::ptr_eq(shown, &page)) {
            return None;
        }
        lock(&page.page).take()
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // The page goes back only when it has left the table, and so can't be the next holder's that is removed.
        let mut pages = lock(&self.held.pages);
        if pages.get(&self.location).is_some_and(|known| std::ptr::eq(known.as_ptr(), self)) {
            pages.remove(&self.location);
        }
    }
}

fn location(guard: &ChunkRef) -> PageLocation {
    PageLocation { region_id: guard.region_id(), page_index: guard.page_index() }
}

/// Nothing in here panics while it holds a lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
