//! The bytes of a region in this process.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileTypeExt;

use maru_proto::CacheLines;
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::io::Errno;

use super::prefault::FIRST;

/// How much of a huge page is touched where the kernel can't populate a mapping by itself.
const TOUCH_STEP: usize = 4096;

/// What a mapping is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// An own region, to write into.
    ReadWrite {
        /// Whether the memory is had before it is touched: the first part now, the rest by [`super::prefault`].
        prefault: bool,
    },
    /// A region of somebody else's; the kernel lets nobody write through it.
    ReadOnly,
    /// A region of somebody else's; what is written stays in this process, and hides what its owner writes there later.
    CopyOnWrite,
}

/// A part of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    /// Where it begins.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: usize,
}

/// A shared mapping, in place until the last use of it is gone.
#[derive(Debug)]
pub(crate) struct Mapping {
    memory: MmapRaw,
    access: Access,
}

impl Mapping {
    /// Maps a part of a file.
    ///
    /// # Errors
    /// What the system says, also when the file is shorter: touching what is behind its end would kill the process.
    pub(crate) fn new(file: &File, extent: Extent, access: Access) -> io::Result<Mapping> {
        let Extent { offset, length } = extent;
        let metadata = file.metadata()?;
        let end = offset.checked_add(length as u64);
        // A device has no length, and refuses by itself to map what it does not have.
        if !metadata.file_type().is_char_device() && end.is_none_or(|end| metadata.len() < end) {
            let text = format!("the file has {} bytes, and the region {length} at {offset}", metadata.len());
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        let mut options = MmapOptions::new();
        options.offset(offset).len(length);
        let memory = match access {
            Access::ReadWrite { .. } => options.map_raw(file)?,
            Access::ReadOnly => options.map_raw_read_only(file)?,
            // SAFETY: the bytes are reached by raw pointers alone, so that nobody has a reference to what the owner changes.
            Access::CopyOnWrite => MmapRaw::from(unsafe { options.map_copy(file)? }),
        };
        // Whether there are huge pages is up to the pool; without them everything works, only slower.
        let _ = memory.advise(Advice::HugePage);
        let mapping = Mapping { memory, access };
        if access == (Access::ReadWrite { prefault: true }) {
            let first = 0..length.min(FIRST);
            match mapping.populate(first.clone()) {
                // Kernels before 5.14 don't know the advice.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => mapping.touch(first),
                done => done?,
            }
        }
        Ok(mapping)
    }

    /// What it is for.
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// Bytes.
    pub(crate) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Where byte `offset` is, which must not be behind the end.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.memory.len(), "offset {offset} lies behind the end of the mapping");
        // SAFETY: the offset is inside the mapping or just behind it, and a mapping is one allocation.
        unsafe { self.memory.as_mut_ptr().add(offset) }
    }

    /// Has every page of a part mapped that can be written into; no byte of it changes, whoever writes there meanwhile.
    ///
    /// # Errors
    /// What the system says, also when there is no memory for a page: to touch it would kill the process.
    pub(super) fn populate(&self, part: Range<usize>) -> io::Result<()> {
        let populated = self.memory.advise_range(Advice::PopulateWrite, part.start, part.len());
        populated.map_err(|error| match Errno::from_io_error(&error) {
            // What kills who touches it.
            Some(Errno::FAULT) => io::Error::new(io::ErrorKind::StorageFull, "the pool has no memory left"),
            _ => error,
        })
    }

    /// The same by a write to every page, which nobody else may write into meanwhile. It leaves nothing in the cache that could
    /// be written to memory later.
    fn touch(&self, part: Range<usize>) {
        let lines = CacheLines::of_this_processor();
        for offset in part.step_by(TOUCH_STEP) {
            // SAFETY: the offset is inside the mapping, which nobody else knows of yet.
            let byte = unsafe { self.at(offset).read_volatile() };
            // SAFETY: the same, and the mapping is writable.
            unsafe { self.at(offset).write_volatile(byte) };
            if let Some(lines) = lines {
                // SAFETY: the same.
                unsafe { lines.write_back_at(self.at(offset), 1) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn file(length: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(length).unwrap();
        file
    }

    fn whole(length: usize) -> Extent {
        Extent { offset: 0, length }
    }

    #[test]
    fn what_the_owner_writes_is_what_a_reader_sees() {
        let file = file(8192);
        let owner = Mapping::new(&file, whole(8192), Access::ReadWrite { prefault: true }).unwrap();
        let reader = Mapping::new(&file, whole(8192), Access::ReadOnly).unwrap();
        // SAFETY: the byte is inside the mapping, and no reference to it exists.
        unsafe { owner.at(5000).write_volatile(7) };
        // SAFETY: the byte is inside the mapping.
        assert_eq!(unsafe { reader.at(5000).read_volatile() }, 7);
    }

    #[test]
    fn a_region_may_begin_anywhere_in_a_device() {
        let file = file(3 * 4096);
        file.write_all_at(b"here", 2 * 4096).unwrap();
        let second = Extent { offset: 2 * 4096, length: 4096 };
        let mapping = Mapping::new(&file, second, Access::ReadOnly).unwrap();
        // SAFETY: the byte is inside the mapping.
        assert_eq!(unsafe { mapping.at(0).read_volatile() }, b'h');
        for behind_the_end in
            [Extent { offset: 2 * 4096, length: 8192 }, Extent { offset: u64::MAX - 4095, length: 8192 }]
        {
            let error = Mapping::new(&file, behind_the_end, Access::ReadOnly).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{behind_the_end:?}");
        }
    }

    #[test]
    fn what_is_written_into_a_copy_on_write_mapping_stays_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("region-1");
        std::fs::write(&path, vec![1; 8192]).unwrap();
        let mapping = Mapping::new(&File::open(&path).unwrap(), whole(8192), Access::CopyOnWrite).unwrap();
        // SAFETY: the byte is inside the mapping, and no reference to it exists.
        unsafe { mapping.at(5000).write_volatile(7) };
        // SAFETY: the byte is inside the mapping.
        assert_eq!(unsafe { mapping.at(5000).read_volatile() }, 7);
        assert_eq!(std::fs::read(&path).unwrap(), vec![1; 8192]);
    }

    #[test]
    fn prefaulting_by_hand_keeps_the_bytes() {
        let file = file(3 * 4096);
        file.write_all_at(b"kept", 4096).unwrap();
        let mapping = Mapping::new(&file, whole(3 * 4096), Access::ReadWrite { prefault: false }).unwrap();
        mapping.touch(0..mapping.len());
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 4096).unwrap();
        assert_eq!(&bytes, b"kept");
    }

    #[test]
    fn a_file_shorter_than_its_region_is_an_error_not_a_crash() {
        let error = Mapping::new(&file(4096), whole(8192), Access::ReadOnly).unwrap_err();
        assert_eq!(error.to_string(), "the file has 4096 bytes, and the region 8192 at 0");
    }

    #[test]
    fn a_read_only_file_can_not_be_mapped_for_writing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("region-1");
        std::fs::write(&path, vec![0; 4096]).unwrap();
        let file = File::open(&path).unwrap();
        let error = Mapping::new(&file, whole(4096), Access::ReadWrite { prefault: false }).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
        assert!(Mapping::new(&file, whole(4096), Access::ReadOnly).is_ok());
    }
}
