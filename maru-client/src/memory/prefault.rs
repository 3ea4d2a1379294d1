//! Mapping the memory of large own regions while pages of them are used already.
//!
//! Pages are handed out from the lowest on, and memory is mapped in the same order, so that who uses the first pages is ahead, and
//! whoever comes later finds memory mapped.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::{Access, Mapping, Region};
use crate::sync::lock;

/// Bytes that are mapped before the first page is handed out: what takes no longer than a few requests on huge pages, and a tenth
/// of a second without.
pub(super) const FIRST: usize = 128 << 20;
/// Bytes that are mapped by one call: as long as that takes, a region that is given back is waited for.
const SLICE: usize = 8 << 20;

/// What of a mapping is still to be mapped before it is touched.
#[derive(Debug)]
pub(super) struct Ahead {
    /// Locked while a part is being mapped.
    left: Mutex<Range<usize>>,
    /// Seen before the lock is taken once more: who waits for it in [`Ahead::stop`] might not get it for long otherwise.
    is_stopped: AtomicBool,
}

impl Ahead {
    /// Of a new mapping, all but the first part.
    pub(super) fn of(mapping: &Mapping) -> Ahead {
        let is_wanted = mapping.access() == (Access::ReadWrite { prefault: true });
        let left = if is_wanted { mapping.len().min(FIRST)..mapping.len() } else { 0..0 };
        Ahead { left: Mutex::new(left), is_stopped: AtomicBool::new(false) }
    }

    /// Maps the next part; whether there is more to come.
    pub(super) fn next(&self, mapping: &Mapping) -> bool {
        if self.is_stopped.load(Ordering::Acquire) {
            return false;
        }
        let mut left = lock(&self.left);
        let part = left.start..left.end.min(left.start + SLICE);
        if !part.is_empty() {
            left.start = part.end;
            if let Err(error) = mapping.populate(part) {
                tracing::warn!(%error, "the memory of a region can't be mapped before it is used");
                left.start = left.end;
            }
        }
        !left.is_empty()
    }

    /// Whether there is anything to map.
    pub(super) fn is_left(&self) -> bool {
        !lock(&self.left).is_empty()
    }

    /// Nothing more is mapped once this returns.
    pub(super) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
        *lock(&self.left) = 0..0;
    }
}

/// Maps what is left of a region's memory by a thread of its own, which keeps the region for a part of it at a time.
pub(crate) fn prefault(region: &Arc<Region>) {
    if !region.is_left_to_prefault() {
        return;
    }
    let region = Arc::downgrade(region);
    let run = move || while region.upgrade().is_some_and(|region| region.prefault_next()) {};
    if let Err(error) = std::thread::Builder::new().name("maru-prefault".to_owned()).spawn(run) {
        tracing::warn!(%error, "can't start a thread that maps memory before it is used");
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::MetadataExt;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::memory::regions::tests::region_of;

    const PAGE: usize = 4096;
    /// The last slice is not a whole one.
    const LENGTH: usize = FIRST + 3 * SLICE + PAGE;

    fn file() -> File {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(LENGTH as u64).unwrap();
        file
    }

    fn map(file: &File, access: Access) -> Arc<Region> {
        Arc::new(region_of(file, u32::try_from(LENGTH / PAGE).unwrap(), PAGE, access))
    }

    /// Bytes of memory that the file has.
    fn taken(file: &File) -> usize {
        usize::try_from(file.metadata().unwrap().blocks()).unwrap() * 512
    }

    fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
        let since = Instant::now();
        while !holds() {
            assert!(since.elapsed() < Duration::from_secs(60), "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_first_part_is_there_at_once_and_the_rest_follows_in_its_order() {
        let file = file();
        let region = map(&file, Access::ReadWrite { prefault: true });
        assert_eq!(taken(&file), FIRST);
        assert!(region.prefault_next());
        assert_eq!(taken(&file), FIRST + SLICE);
        prefault(&region);
        wait_until("all memory is there", || taken(&file) == LENGTH);
    }

    #[test]
    fn nothing_is_mapped_any_more_once_it_is_stopped() {
        let file = file();
        let region = map(&file, Access::ReadWrite { prefault: true });
        prefault(&region);
        region.stop_prefault();
        let taken_then = taken(&file);
        assert!(!region.prefault_next() && !region.is_left_to_prefault());
        assert_eq!(taken(&file), taken_then);
    }

    #[test]
    fn a_region_goes_although_it_is_not_all_mapped() {
        let file = file();
        let region = map(&file, Access::ReadWrite { prefault: true });
        let kept = Arc::downgrade(&region);
        prefault(&region);
        drop(region);
        wait_until("the region is gone", || kept.strong_count() == 0);
    }

    #[test]
    fn what_is_not_written_into_is_left_as_it_is() {
        for access in [Access::ReadOnly, Access::CopyOnWrite, Access::ReadWrite { prefault: false }] {
            let file = file();
            let region = map(&file, access);
            assert!(!region.is_left_to_prefault() && !region.prefault_next(), "{access:?}");
            assert_eq!(taken(&file), 0, "{access:?}");
        }
    }

    #[test]
    fn what_is_written_meanwhile_stays() {
        let file = file();
        let region = map(&file, Access::ReadWrite { prefault: true });
        prefault(&region);
        // Against its direction, so that both meet.
        for offset in (0..LENGTH).step_by(PAGE).rev() {
            // SAFETY: the byte is inside the mapping, and no reference to it exists.
            unsafe { region.at(offset).write_volatile(offset.to_le_bytes()[1] | 1) };
        }
        wait_until("all is mapped", || !region.is_left_to_prefault());
        for offset in (0..LENGTH).step_by(PAGE) {
            // SAFETY: the byte is inside the mapping.
            assert_eq!(unsafe { region.at(offset).read_volatile() }, offset.to_le_bytes()[1] | 1);
        }
    }
}
