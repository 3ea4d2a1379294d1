//! The file of a region's memory: whose pages it gets, and when.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use maru_proto::PoolKind;
use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, fallocate, ftruncate};
use rustix::io::Errno;
use tracing::info;

use super::Prefault;
use super::folder::free_bytes;
use super::mount::HugePages;
use super::numa::Node;

/// Bytes that are allocated by one call, between which it is said how far it is: extents of a file system on a device are to be
/// long.
const STEP: u64 = 1 << 30;
/// Bytes that are populated by one call: short, since the serving thread may have to wait for it where it maps memory itself.
const SLICE: usize = 8 << 20;
/// Slices that are worth a thread, and threads at most, so that on a large machine there are others left.
const SLICES_A_THREAD: usize = 8;
const THREADS: usize = 8;
/// How often it is said how far a region is.
const SAID_EVERY: Duration = Duration::from_secs(5);

/// Where the regions of a folder get their memory from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backing {
    pub(super) kind: PoolKind,
    pub(super) huge_pages: HugePages,
    pub(super) prefault: Prefault,
    /// The only node that pages are taken from.
    pub(super) node: Option<Node>,
}

impl Backing {
    /// Makes a file of `bytes`. Unless it is to be lazy every page is there then, so that a full file system is an error here and
    /// never a SIGBUS in a client.
    pub(super) fn make(self, path: &Path, bytes: u64) -> io::Result<()> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        // tmpfs chooses huge pages by the size of the file as it allocates.
        ftruncate(&file, bytes)?;
        let is_eager = self.prefault == Prefault::Eager;
        // What can't come to an end is not begun: until it failed, others would have no memory.
        if is_eager && free_bytes(path)? < bytes {
            return Err(Errno::NOSPC.into());
        }
        let populates = is_eager && self.is_populated();
        if populates || self.node.is_some() {
            let length = usize::try_from(bytes).map_err(|_| io::Error::from(Errno::NOMEM))?;
            let memory = MmapOptions::new().len(length).map_raw(&file)?;
            if let Some(node) = self.node {
                node.bind(&memory)?;
            }
            if populates {
                return populate(&memory, &Progress::new(path, bytes));
            }
        }
        if is_eager { allocate(&file, bytes, &Progress::new(path, bytes)) } else { Ok(()) }
    }

    /// Whether pages come by touching them through a mapping: `fallocate` does not ask for huge pages that are given only to
    /// those who ask, and goes by no node on a hugetlbfs, the pages of which it clears one after the other. Where neither
    /// matters it is faster, because it leaves the clearing to whoever touches a page first.
    fn is_populated(self) -> bool {
        self.kind == PoolKind::Hugetlbfs || self.huge_pages == HugePages::Advised
    }
}

/// Allocates a file's memory: one thread does, since one at a time may for a file.
fn allocate(file: &File, bytes: u64, progress: &Progress<'_>) -> io::Result<()> {
    let mut start = 0;
    while start < bytes {
        let length = STEP.min(bytes - start);
        fallocate(file, FallocateFlags::empty(), start, length)?;
        progress.add(length);
        start += length;
    }
    Ok(())
}

/// Has every page of a mapping allocated, on huge pages where there are any, by as many threads as are worth it.
fn populate(memory: &MmapRaw, progress: &Progress<'_>) -> io::Result<()> {
    // A hugetlbfs has nothing else to give.
    let _ = memory.advise(Advice::HugePage);
    let slices = memory.len().div_ceil(SLICE);
    let next = AtomicUsize::new(0);
    let work = || {
        loop {
            let slice = next.fetch_add(1, Ordering::Relaxed);
            if slice >= slices {
                return Ok(());
            }
            let (start, length) = (slice * SLICE, SLICE.min(memory.len() - slice * SLICE));
            if let Err(error) = memory.advise_range(Advice::PopulateWrite, start, length) {
                // The others need not go on.
                next.store(slices, Ordering::Relaxed);
                return Err(error);
            }
            progress.add(length as u64);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.min(THREADS).min(slices.div_ceil(SLICES_A_THREAD));
    let populated = std::thread::scope(|scope| {
        let spawn =
            |_| std::thread::Builder::new().name("maru-populate".to_owned()).spawn_scoped(scope, work);
        // With fewer threads it only takes longer.
        let others = (1..threads).filter_map(|thread| spawn(thread).ok()).collect::<Vec<_>>();
        let own = work();
        let joined = others
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.fold(own, io::Result::and)
    });
    // Out of memory on the file system shows as a fault that could not be served.
    populated.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::FAULT) => Errno::NOSPC.into(),
        _ => error,
    })
}

/// Says now and then how far a region is that takes long.
struct Progress<'a> {
    path: &'a Path,
    bytes: u64,
    done: AtomicU64,
    said: Mutex<Instant>,
}

impl Progress<'_> {
    fn new(path: &Path, bytes: u64) -> Progress<'_> {
        Progress { path, bytes, done: AtomicU64::new(0), said: Mutex::new(Instant::now()) }
    }

    fn add(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Who finds it locked is beside somebody who says it.
        if let Ok(mut said) = self.said.try_lock()
            && said.elapsed() >= SAID_EVERY
            && done < self.bytes
        {
            *said = Instant::now();
            let (region, done, bytes) = (self.path.display(), ByteSize(done), ByteSize(self.bytes));
            info!(%region, %done, of = %bytes, "allocating the memory of a region");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use tempfile::TempDir;

    use super::*;

    const MIB: u64 = 1 << 20;
    /// More than one thread's share.
    const LARGE: u64 = 72 * MIB;

    fn backing(huge_pages: HugePages, prefault: Prefault) -> Backing {
        Backing { kind: PoolKind::Tmpfs, huge_pages, prefault, node: None }
    }

    #[test]
    fn all_memory_is_there_however_it_is_had() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        for (name, huge_pages) in [("allocated", HugePages::Always), ("populated", HugePages::Advised)] {
            // The last slice is not a whole one.
            let (path, bytes) = (folder.path().join(name), LARGE + 4096);
            backing(huge_pages, Prefault::Eager).make(&path, bytes).unwrap();
            let file = std::fs::metadata(&path).unwrap();
            assert_eq!((file.size(), file.blocks() * 512), (bytes, bytes), "{name}");
        }
    }

    #[test]
    fn lazy_memory_is_a_length_at_first() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("region");
        backing(HugePages::Advised, Prefault::Lazy).make(&path, 1 << 40).unwrap();
        let file = std::fs::metadata(&path).unwrap();
        assert_eq!((file.size(), file.blocks()), (1 << 40, 0));
    }

    #[test]
    fn a_full_file_system_is_an_error_however_memory_is_had() {
        let Some(small) = small_tmpfs() else { return };
        for (name, huge_pages) in [("allocated", HugePages::Never), ("populated", HugePages::Advised)] {
            let path = small.path().join(name);
            let full = backing(huge_pages, Prefault::Eager).make(&path, LARGE).unwrap_err();
            assert_eq!(full.kind(), io::ErrorKind::StorageFull, "{name}: {full}");
            std::fs::remove_file(path).unwrap();
        }
        rustix::mount::unmount(small.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    }

    /// One of 16 MiB, where one may be mounted.
    fn small_tmpfs() -> Option<TempDir> {
        let folder = tempfile::tempdir().unwrap();
        let flags = rustix::mount::MountFlags::NOSUID;
        match rustix::mount::mount("none", folder.path(), "tmpfs", flags, Some(c"size=16m,huge=advise")) {
            Ok(()) => Some(folder),
            Err(error) => {
                println!("skipped: no tmpfs can be mounted here ({error}), so none was filled");
                None
            }
        }
    }
}
