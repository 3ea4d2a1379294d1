//! The first read of a page of another instance under a registration that this process has not read before: lines of what was
//! there earlier are dropped, and the bytes are held against the checksum that their owner gave them.
//!
//! It is done after the server named the registration, and while its pin keeps the page as it is: lines that are fetched from
//! then on are of the registration. So it is done once for each; where that was is remembered by page, in an array that is made
//! when the first page needs it.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use maru_proto::{CacheLines, LocationRecord};

use super::Region;

/// The bytes of a chunk are not those that its owner registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stale;

/// The registration of each page that this process has read; 0 for none.
#[derive(Debug, Default)]
pub(super) struct Seen(OnceLock<Box<[AtomicU32]>>);

impl Seen {
    /// Whether the registration was read. The number 0, which one in 2^32 has, is taken for one that was not.
    fn has(&self, page: u32, generation: u32) -> bool {
        let seen = self.0.get().and_then(|pages| pages.get(page as usize));
        // Whoever sees the mark also sees memory as it was when the mark was made.
        generation != 0 && seen.is_some_and(|seen| seen.load(Ordering::Acquire) == generation)
    }

    fn note(&self, pages: u32, page: u32, generation: u32) {
        let all = self.0.get_or_init(|| (0..pages).map(|_| AtomicU32::new(0)).collect());
        if let Some(seen) = all.get(page as usize) {
            seen.store(generation, Ordering::Release);
        }
    }
}

impl Region {
    /// Makes sure that the chunk at a location, which is pinned and lies inside the region, can be read as it was registered.
    /// Whether its lines had to be dropped for it.
    ///
    /// # Errors
    /// [`Stale`] where its bytes don't have its checksum, also when they were fetched from memory once more.
    pub(crate) fn before_read(
        &self,
        location: &LocationRecord,
        offset: usize,
        length: usize,
    ) -> Result<bool, Stale> {
        let checksum = location.checksum.get();
        if self.is_own() || (self.lines().is_none() && checksum == 0) {
            return Ok(false);
        }
        let (page, generation) = (self.page_of(offset), location.generation.get());
        if self.seen.has(page, generation) {
            return Ok(false);
        }
        if let Some(lines) = self.lines() {
            self.invalidate(lines, offset, length);
        }
        if checksum != 0 && self.checksum(offset, length) != checksum {
            // Where the pool is said to be coherent, it may not be.
            let lines = CacheLines::of_this_processor().ok_or(Stale)?;
            self.invalidate(lines, offset, length);
            if self.checksum(offset, length) != checksum {
                return Err(Stale);
            }
        }
        self.seen.note(self.pages(), page, generation);
        Ok(self.lines().is_some())
    }

    fn invalidate(&self, lines: CacheLines, offset: usize, length: usize) {
        debug_assert!(offset + length <= self.len(), "the chunk lies inside the region");
        // SAFETY: the range is inside the mapping, which can be read.
        unsafe { lines.invalidate_at(self.at(offset), length) };
    }

    fn checksum(&self, offset: usize, length: usize) -> u32 {
        debug_assert!(offset + length <= self.len(), "the chunk lies inside the region");
        // SAFETY: the range is inside the mapping, and its chunk is pinned, so that nobody writes into it meanwhile.
        maru_proto::checksum(unsafe { std::slice::from_raw_parts(self.at(offset), length) })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use maru_proto::RecordStatus;

    use super::super::regions::tests::region_over;
    use super::*;
    use crate::memory::{Access, Coherence};

    const PAGE: usize = 4096;

    fn location(page: usize, generation: u32, checksum: u32) -> LocationRecord {
        LocationRecord {
            offset: ((page * PAGE) as u64).into(),
            length: 100.into(),
            generation: generation.into(),
            checksum: checksum.into(),
            ..LocationRecord::without(RecordStatus::Ok)
        }
    }

    fn before_read(region: &Region, location: &LocationRecord) -> Result<bool, Stale> {
        let (offset, length) = region.range(location.offset.get(), location.length.get()).unwrap();
        region.before_read(location, offset, length)
    }

    fn foreign(coherence: Coherence) -> (File, Region) {
        let file = tempfile::tempfile().unwrap();
        let region = region_over(&file, 4, PAGE, Access::ReadOnly, coherence);
        (file, region)
    }

    fn sum_of(bytes: u8) -> u32 {
        maru_proto::checksum(&[bytes; 100])
    }

    #[test]
    fn a_coherent_region_without_checksums_remembers_nothing() {
        let (_file, region) = foreign(Coherence::Coherent);
        assert_eq!(before_read(&region, &location(1, 7, 0)), Ok(false));
        assert!(region.seen.0.get().is_none());
    }

    #[test]
    fn an_own_region_is_read_as_it_is() {
        let file = tempfile::tempfile().unwrap();
        let access = Access::ReadWrite { prefault: false };
        let region = region_over(&file, 4, PAGE, access, Coherence::Writeback);
        assert_eq!(before_read(&region, &location(1, 7, 0xBAD)), Ok(false));
        assert!(region.seen.0.get().is_none());
    }

    #[test]
    fn a_registration_is_looked_at_once() {
        for coherence in [Coherence::Coherent, Coherence::Writeback] {
            let (file, region) = foreign(coherence);
            file.write_all_at(&[7; 100], PAGE as u64).unwrap();
            let drops_lines = coherence == Coherence::Writeback;
            assert_eq!(before_read(&region, &location(1, 7, sum_of(7))), Ok(drops_lines));
            assert!(region.seen.has(1, 7) && !region.seen.has(2, 7) && !region.seen.has(1, 8));
            file.write_all_at(&[8; 100], PAGE as u64).unwrap();
            assert_eq!(
                before_read(&region, &location(1, 7, sum_of(7))),
                Ok(false),
                "it was pinned all the while"
            );
            assert_eq!(before_read(&region, &location(1, 8, sum_of(7))), Err(Stale));
            assert!(!region.seen.has(1, 8), "and may be right the next time");
            assert_eq!(before_read(&region, &location(1, 8, sum_of(8))), Ok(drops_lines));
        }
    }

    #[test]
    fn half_a_chunk_is_stale() {
        let (file, region) = foreign(Coherence::Writeback);
        file.write_all_at(&[7; 100], 0).unwrap();
        // One line of the next chunk has come to memory, the other has not.
        file.write_all_at(&[8; 64], 0).unwrap();
        for sum in [sum_of(7), sum_of(8)] {
            assert_eq!(before_read(&region, &location(0, 1, sum)), Err(Stale));
        }
    }

    #[test]
    fn the_number_that_stands_for_none_is_looked_at_every_time() {
        let (file, region) = foreign(Coherence::Writeback);
        file.write_all_at(&[7; 100], 0).unwrap();
        assert_eq!(before_read(&region, &location(0, 0, sum_of(7))), Ok(true));
        file.write_all_at(&[8; 100], 0).unwrap();
        assert_eq!(before_read(&region, &location(0, 0, sum_of(7))), Err(Stale));
    }
}
