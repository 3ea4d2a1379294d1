//! The regions that this process maps, own and foreign, each once.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Mutex, RwLock};

use maru_proto::{CacheLines, RegionRecord};

use super::first_read::Seen;
use super::prefault::Ahead;
use super::{Access, Coherence, Extent, Mapping};
use crate::error::{Error, ProtocolError, Result};
use crate::sync::{lock, read, write};

/// A mapped region.
#[derive(Debug)]
pub(crate) struct Region {
    id: u32,
    page_size: usize,
    pages: u32,
    /// Bytes of all pages.
    length: usize,
    mapping: Mapping,
    /// How its lines are written back and dropped, where they have to be.
    lines: Option<CacheLines>,
    pub(super) seen: Seen,
    /// How far the memory is had before it is touched.
    ahead: Ahead,
}

impl Region {
    /// Maps a region as the server describes it.
    ///
    /// # Errors
    /// [`Error::Protocol`] where its sizes contradict each other, [`Error::Map`] where the system refuses,
    /// [`Error::NoWriteBack`] where it needs what this processor can't do.
    pub(crate) fn map(
        record: &RegionRecord,
        file: &File,
        access: Access,
        coherence: Coherence,
    ) -> Result<Region> {
        let id = record.region_id.get();
        let pages = record.pages.get();
        let page_size = usize::try_from(record.page_size.get()).map_err(|_| ProtocolError::Region(id))?;
        let length = page_size.checked_mul(pages as usize).filter(|length| {
            let fits = u64::try_from(*length).is_ok_and(|length| length <= record.size.get());
            fits && *length > 0 && isize::try_from(*length).is_ok() && id != 0
        });
        let length = length.ok_or(ProtocolError::Region(id))?;
        // All that it takes of the pool, since a device maps in steps of its own.
        let extent = usize::try_from(record.extent.get()).ok().filter(|extent| *extent >= length);
        let extent =
            extent.filter(|extent| isize::try_from(*extent).is_ok()).ok_or(ProtocolError::Region(id))?;
        let extent = Extent { offset: record.file_offset.get(), length: extent };
        let lines = match coherence {
            Coherence::Coherent => None,
            Coherence::Writeback => {
                Some(CacheLines::of_this_processor().ok_or(Error::NoWriteBack { region_id: id })?)
            }
        };
        let mapping = Mapping::new(file, extent, access);
        let mapping = mapping.map_err(|source| Error::Map { region_id: id, source })?;
        let ahead = Ahead::of(&mapping);
        Ok(Region { id, page_size, pages, length, mapping, lines, seen: Seen::default(), ahead })
    }

    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Bytes of a page.
    pub(crate) fn page_size(&self) -> usize {
        self.page_size
    }

    /// Pages.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Whether the region was mapped to be written into.
    pub(crate) fn is_own(&self) -> bool {
        matches!(self.mapping.access(), Access::ReadWrite { .. })
    }

    /// Whether something can be written, for others or for this process alone.
    pub(crate) fn is_writable(&self) -> bool {
        self.mapping.access() != Access::ReadOnly
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Where a page begins, in bytes from the region's beginning.
    pub(crate) fn page_offset(&self, page: u32) -> usize {
        page as usize * self.page_size
    }

    /// The page that a byte lies in.
    pub(crate) fn page_of(&self, offset: usize) -> u32 {
        u32::try_from(offset / self.page_size)
            .expect("an offset inside a region lies in one of its u32 of pages")
    }

    /// Checks that bytes lie inside the region, as a range that [`Region::at`] takes.
    ///
    /// # Errors
    /// [`ProtocolError::Location`].
    pub(crate) fn range(&self, offset: u64, length: u64) -> Result<(usize, usize), ProtocolError> {
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.length as u64);
        match (usize::try_from(offset), usize::try_from(length)) {
            (Ok(offset), Ok(length)) if inside => Ok((offset, length)),
            _ => Err(ProtocolError::Location { region_id: self.id, offset, length }),
        }
    }

    /// How its lines are written back and dropped, where they have to be.
    pub(super) fn lines(&self) -> Option<CacheLines> {
        self.lines
    }

    /// Has all that this host wrote into a page in memory, where that does not come about by itself. It is the whole page,
    /// since what writes into it also does so by addresses; lines that are not in the cache take a third of the time. `false`
    /// where there was no need.
    ///
    /// # Panics
    /// When the region has no such page.
    pub(crate) fn write_back(&self, page: u32) -> bool {
        let Some(lines) = self.lines else { return false };
        assert!(page < self.pages, "page {page} is one of the region");
        // SAFETY: the page is inside the mapping, which can be read.
        unsafe { lines.write_back_at(self.at(self.page_offset(page)), self.page_size) };
        true
    }

    /// Whether memory of the region is to be mapped before it is touched.
    pub(super) fn is_left_to_prefault(&self) -> bool {
        self.ahead.is_left()
    }

    /// Has the next part of the region's memory mapped before it is touched; whether there is more to come.
    pub(super) fn prefault_next(&self) -> bool {
        self.ahead.next(&self.mapping)
    }

    /// No more memory of the region is mapped ahead of those who touch it, once this returns: what the server takes back is not
    /// to be taken again.
    pub(crate) fn stop_prefault(&self) {
        self.ahead.stop();
    }

    /// Where a byte of the region is in this process.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        self.mapping.at(offset)
    }
}

/// All mapped regions by id.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    mapped: RwLock<HashMap<u32, Arc<Region>>>,
    /// Held by whoever maps a foreign region, so that two who need the same one map it once.
    mapping: Mutex<()>,
}

impl Regions {
    /// A region, if it is mapped.
    pub(crate) fn get(&self, id: u32) -> Option<Arc<Region>> {
        read(&self.mapped).get(&id).cloned()
    }

    /// Adds a region that was mapped.
    pub(crate) fn insert(&self, region: Arc<Region>) {
        write(&self.mapped).insert(region.id, region);
    }

    /// Forgets a region; whoever still uses it keeps the mapping.
    pub(crate) fn remove(&self, id: u32) {
        write(&self.mapped).remove(&id);
    }

    /// A region, mapped by `map` if it is not yet: by one thread, while others who need any new region wait.
    ///
    /// # Errors
    /// Those of `map`.
    pub(crate) fn get_or_map(
        &self,
        id: u32,
        map: impl FnOnce() -> Result<Option<Region>>,
    ) -> Result<Option<Arc<Region>>> {
        if let Some(region) = self.get(id) {
            return Ok(Some(region));
        }
        let _mapping = lock(&self.mapping);
        if let Some(region) = self.get(id) {
            return Ok(Some(region));
        }
        let Some(region) = map()?.map(Arc::new) else {
            return Ok(None);
        };
        self.insert(Arc::clone(&region));
        Ok(Some(region))
    }

    /// Foreign regions that are mapped and that nobody uses at the moment.
    pub(crate) fn unused_foreign(&self) -> Vec<u32> {
        let mapped = read(&self.mapped);
        let unused = mapped.values().filter(|region| !region.is_own() && Arc::strong_count(region) == 1);
        unused.map(|region| region.id).collect()
    }

    /// Regions that are mapped.
    pub(crate) fn len(&self) -> usize {
        read(&self.mapped).len()
    }
}

/// The memory of a region that is mapped here, for bindings to other languages. It stays in place as long as this value
/// or a clone of it lives, also when the handler is gone; what is in it changes as pages are stored, freed and stored
/// anew, unless a [`PageMut`](crate::PageMut) or [`ChunkRef`](crate::ChunkRef) is held.
#[derive(Clone, Debug)]
pub struct RegionMemory {
    region: Arc<Region>,
}

impl RegionMemory {
    pub(crate) fn new(region: Arc<Region>) -> RegionMemory {
        RegionMemory { region }
    }

    /// Where its first byte is.
    pub fn as_ptr(&self) -> *mut u8 {
        self.region.at(0)
    }

    /// Bytes.
    #[expect(clippy::len_without_is_empty, reason = "a region has at least a page")]
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> usize {
        self.region.page_size()
    }

    /// Pages.
    pub fn pages(&self) -> u32 {
        self.region.pages()
    }

    /// Whether writing through [`RegionMemory::as_ptr`] is possible at all.
    pub fn is_writable(&self) -> bool {
        self.region.is_writable()
    }

    /// Whether the region belongs to this instance.
    pub fn is_own(&self) -> bool {
        self.region.is_own()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    use zerocopy::FromZeros;

    use super::*;

    /// A mapped region over a file of its own.
    pub(crate) fn region(id: u32, pages: u32, page_size: usize, access: Access) -> Region {
        let file = tempfile::tempfile().unwrap();
        file.set_len(u64::from(pages) * page_size as u64).unwrap();
        Region::map(&record(id, pages, page_size as u64), &file, access, Coherence::Coherent).unwrap()
    }

    /// A mapped region over an empty file.
    pub(crate) fn region_over(
        file: &File,
        pages: u32,
        page_size: usize,
        access: Access,
        coherence: Coherence,
    ) -> Region {
        file.set_len(u64::from(pages) * page_size as u64).unwrap();
        Region::map(&record(1, pages, page_size as u64), file, access, coherence).unwrap()
    }

    /// A mapped region over a file that the test looks at.
    pub(crate) fn region_of(file: &File, pages: u32, page_size: usize, access: Access) -> Region {
        Region::map(&record(1, pages, page_size as u64), file, access, Coherence::Coherent).unwrap()
    }

    fn record(id: u32, pages: u32, page_size: u64) -> RegionRecord {
        let mut record = RegionRecord::new_zeroed();
        record.region_id = id.into();
        record.pages = pages.into();
        record.page_size = page_size.into();
        record.size = u64::from(pages).saturating_mul(page_size).into();
        record.extent = record.size;
        record
    }

    #[test]
    fn sizes_from_the_server_are_checked() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let (mut too_small, mut cut_short) = (record(3, 2, 4096), record(3, 2, 4096));
        too_small.size = 4096.into();
        cut_short.extent = 4096.into();
        let contradictory = [record(0, 1, 4096), record(3, 0, 4096), record(3, 1, 0), record(3, 9, u64::MAX)];
        let bad = contradictory.into_iter().chain([too_small, cut_short]);
        for record in bad {
            let error = Region::map(&record, &file, Access::ReadOnly, Coherence::Coherent).unwrap_err();
            assert!(matches!(error, Error::Protocol(ProtocolError::Region(_))), "{record:?}: {error}");
        }
        let too_long = Region::map(&record(3, 2, 4096), &file, Access::ReadOnly, Coherence::Coherent);
        let too_long = too_long.unwrap_err();
        assert!(matches!(too_long, Error::Map { region_id: 3, .. }), "{too_long}");
    }

    #[test]
    fn chunks_outside_their_region_are_an_error() {
        let region = region(5, 2, 4096, Access::ReadOnly);
        assert_eq!(region.range(4096, 4096), Ok((4096, 4096)));
        for (offset, length) in [(4096, 4097), (8193, 0), (u64::MAX, 2), (0, u64::MAX)] {
            assert!(region.range(offset, length).is_err(), "{offset} {length}");
        }
    }

    #[test]
    fn a_region_that_two_threads_need_is_mapped_once() {
        let (regions, mapped, start) = (Regions::default(), AtomicU32::new(0), Barrier::new(4));
        let map = || {
            mapped.fetch_add(1, Ordering::Relaxed);
            Ok(Some(region(9, 1, 4096, Access::ReadOnly)))
        };
        let found = std::thread::scope(|scope| {
            let threads = [(); 4].map(|()| {
                scope.spawn(|| {
                    start.wait();
                    regions.get_or_map(9, map).unwrap().unwrap()
                })
            });
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(mapped.into_inner(), 1);
        assert!(found.iter().all(|region| Arc::ptr_eq(region, &found[0])));
    }

    #[test]
    fn a_region_that_is_gone_is_asked_for_again() {
        let regions = Regions::default();
        assert!(regions.get_or_map(9, || Ok(None)).unwrap().is_none());
        assert!(regions.get_or_map(9, || Ok(Some(region(9, 1, 4096, Access::ReadOnly)))).unwrap().is_some());
    }

    #[test]
    fn only_foreign_regions_without_users_are_unused() {
        let regions = Regions::default();
        regions.insert(Arc::new(region(1, 1, 4096, Access::ReadWrite { prefault: false })));
        let used = Arc::new(region(2, 1, 4096, Access::ReadOnly));
        regions.insert(Arc::clone(&used));
        regions.insert(Arc::new(region(3, 1, 4096, Access::ReadOnly)));
        assert_eq!(regions.unused_foreign(), [3]);
        drop(used);
        regions.remove(3);
        assert_eq!(regions.unused_foreign(), [2]);
    }
}
