//! A pool in a folder: one file a region, allocated in full before anybody maps it.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, ftruncate, statvfs};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use tracing::{info, warn};

use super::mount::{HugePages, Mount};
use crate::error::ServerError;
use crate::journal::{PageTable, make_table, region_files, region_path, table_path};
use crate::state::{RegionId, RegionInfo};

/// Extents of a pool begin and end at multiples of a huge page, so that each can be mapped by huge pages.
const GRANULARITY: u64 = 2 << 20;

/// The file that one server at a time holds locked; it carries the number of the last run.
pub(crate) const LOCK_FILE: &str = "maru.lock";

/// Which folder becomes a pool, and how much of it.
#[derive(Clone, Debug)]
pub struct PoolPlan {
    /// The folder.
    pub path: PathBuf,
    /// Bytes; a quarter of what is free where not given.
    pub size: Option<ByteSize>,
}

/// A folder that this process alone hands out regions from.
#[derive(Debug)]
pub struct FolderPool {
    path: PathBuf,
    size: u64,
    epoch: u64,
    huge_pages: HugePages,
    /// Held for its lock.
    _lock: File,
}

impl FolderPool {
    /// Takes the folder, and counts this run. What an earlier run left in it stays.
    ///
    /// # Errors
    /// [`ServerError`] where the folder can't be used, is used by another server, or can't hold the size.
    pub fn open(plan: &PoolPlan) -> Result<FolderPool, ServerError> {
        let failed = |source| ServerError::Pool { path: plan.path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&plan.path).map_err(failed)?;
        let path = plan.path.canonicalize().map_err(failed)?;
        check_path(&path)?;
        let (lock, epoch) = take_lock(&path)?;

        let mount = Mount::of(&path).map_err(failed)?;
        let huge_pages = mount.as_ref().map_or(HugePages::Never, |mount| mount.huge_pages);
        // What regions of an earlier run have is part of the pool.
        let free = free_bytes(&path).and_then(|free| Ok(free + region_bytes(&path)?)).map_err(failed)?;
        let wanted = plan.size.map_or(free / 4, |size| size.as_u64());
        let size = wanted / GRANULARITY * GRANULARITY;
        if size == 0 {
            return Err(ServerError::PoolTooSmall {
                path,
                size: ByteSize(wanted),
                least: ByteSize(GRANULARITY),
            });
        }
        if size > free {
            return Err(ServerError::PoolTooLarge { path, size: ByteSize(size), free: ByteSize(free) });
        }
        log_memory(&path, size, mount.as_ref());
        Ok(FolderPool { path, size, epoch, huge_pages, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that regions may take in all.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Regions begin and end at multiples of this many bytes.
    pub fn granularity(&self) -> u64 {
        GRANULARITY
    }

    /// The number of this run in this folder; grows at each start.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What it takes to make the memory of a region and its page table, to be run where it may block.
    pub fn maker(&self, region: &RegionInfo) -> impl FnOnce() -> io::Result<PageTable> + Send + use<> {
        let (folder, huge_pages, region) = (self.path.clone(), self.huge_pages, *region);
        move || {
            let path = region_path(&folder, region.id);
            let made =
                make_region(&path, region.extent, huge_pages).and_then(|()| make_table(&folder, &region));
            if made.is_err() {
                // What was allocated so far is given back with the file.
                let _ = std::fs::remove_file(&path);
            }
            made
        }
    }

    /// What it takes to give the memory of a region back, to be run where it may block.
    pub fn releaser(&self, id: RegionId) -> impl FnOnce() -> io::Result<()> + Send + use<> {
        let (path, table) = (region_path(&self.path, id), table_path(&self.path, id));
        move || {
            let file = OpenOptions::new().write(true).open(&path)?;
            let bytes = file.metadata()?.size();
            std::fs::remove_file(&path)?;
            std::fs::remove_file(&table)?;
            // A client that still maps the file keeps its address space, not its memory. Where a file system can't
            // punch holes (hugetlbfs of old kernels), the memory goes with the last mapping.
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&file, hole, 0, bytes) {
                Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
    }

    /// Opens the file of a region for a client: for writing too where it is the owner.
    ///
    /// # Errors
    /// What opening the file says.
    pub fn open_region(&self, id: RegionId, writable: bool) -> io::Result<File> {
        OpenOptions::new().read(true).write(writable).open(region_path(&self.path, id))
    }
}

fn check_path(path: &Path) -> Result<(), ServerError> {
    match path.to_str() {
        Some(text) if text.len() <= maru_proto::POOL_PATH_MAX => Ok(()),
        _ => Err(ServerError::PoolPath { path: path.to_owned(), limit: maru_proto::POOL_PATH_MAX }),
    }
}

/// Locks the folder for this process and counts the run.
fn take_lock(path: &Path) -> Result<(File, u64), ServerError> {
    let failed = |source| ServerError::Pool { path: path.to_owned(), source };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.join(LOCK_FILE))
        .map_err(failed)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(ServerError::PoolInUse(path.to_owned())),
        Err(error) => return Err(failed(error.into())),
    }
    let mut text = String::new();
    lock.read_to_string(&mut text).map_err(failed)?;
    let epoch = text.trim().parse().unwrap_or(0u64) + 1;
    lock.rewind().map_err(failed)?;
    lock.set_len(0).map_err(failed)?;
    writeln!(lock, "{epoch}").map_err(failed)?;
    Ok((lock, epoch))
}

/// Bytes that the files of regions take.
pub(crate) fn region_bytes(path: &Path) -> io::Result<u64> {
    let files = region_files(path)?;
    let sizes = files.into_iter().map(|id| std::fs::metadata(region_path(path, RegionId(id))));
    Ok(sizes.flatten().map(|file| file.blocks() * 512).sum())
}

/// Bytes that are free where a folder lies.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn log_memory(path: &Path, size: u64, mount: Option<&Mount>) {
    let file_system = mount.map_or("unknown", |mount| mount.file_system.as_str());
    info!(pool = %path.display(), size = %ByteSize(size), file_system, "the pool is ready");
    match mount {
        Some(mount) if mount.huge_pages == HugePages::Never => warn!(
            "{} gives no huge pages, so mapping regions takes about ten times as long; with --pool-mount the server \
             mounts one that does, or mount it yourself: mount -t tmpfs -o size={},huge=within_size maru DIR",
            mount.point.display(),
            size
        ),
        _ => {}
    }
}

/// Makes a file of `bytes` whose every page is there, so that a full file system is an error here and never a
/// SIGBUS in a client.
fn make_region(path: &Path, bytes: u64, huge_pages: HugePages) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    // tmpfs chooses huge pages by the size of the file as it allocates.
    ftruncate(&file, bytes)?;
    if huge_pages == HugePages::Advised {
        populate_advised(&file, bytes)?;
    }
    fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
    Ok(())
}

/// Allocates a file's memory through a mapping that asks for huge pages, which `fallocate` can't.
fn populate_advised(file: &File, bytes: u64) -> io::Result<()> {
    let length = usize::try_from(bytes).map_err(|_| io::Error::from(Errno::NOMEM))?;
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let address = unsafe {
        mmap(std::ptr::null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)
    }?;
    // SAFETY: the range is the mapping made above; the advice changes no byte.
    let advised = unsafe { madvise(address, length, Advice::LinuxHugepage) };
    // SAFETY: as above; populating for writing changes no byte either.
    let populated = advised.and_then(|()| unsafe { madvise(address, length, Advice::LinuxPopulateWrite) });
    // SAFETY: the mapping was made above and nothing refers into it.
    let unmapped = unsafe { munmap(address, length) };
    unmapped?;
    match populated {
        // Out of memory on the file system shows as a fault that could not be served.
        Err(Errno::FAULT) => Err(Errno::NOSPC.into()),
        // A kernel without the advice: `fallocate` gives plain pages.
        Err(Errno::INVAL) | Ok(()) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::{InstanceNumber, PoolId};

    fn plan(path: &Path, size: u64) -> PoolPlan {
        PoolPlan { path: path.to_owned(), size: Some(ByteSize(size)) }
    }

    #[test]
    fn a_second_server_on_the_same_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = FolderPool::open(&plan(folder.path(), 4 << 20)).unwrap();
        let second = FolderPool::open(&plan(folder.path(), 4 << 20)).unwrap_err();
        assert!(matches!(second, ServerError::PoolInUse(_)), "{second}");
        drop(first);
        FolderPool::open(&plan(folder.path(), 4 << 20)).unwrap();
    }

    #[test]
    fn the_epoch_grows_at_each_start() {
        let folder = tempfile::tempdir().unwrap();
        let epoch = || FolderPool::open(&plan(folder.path(), 4 << 20)).unwrap().epoch();
        assert_eq!([epoch(), epoch(), epoch()], [1, 2, 3]);
    }

    fn region(id: u32, extent: u64) -> RegionInfo {
        RegionInfo {
            id: RegionId(id),
            pool: PoolId(0),
            pool_offset: 0,
            size: extent,
            extent,
            page_size: extent,
            owner: Some(InstanceNumber(1)),
            pages: 1,
            entries: 0,
            freed_pages: 0,
            entry_bytes: 0,
        }
    }

    #[test]
    fn a_region_is_allocated_in_full_and_given_back() {
        let folder = tempfile::tempdir().unwrap();
        let pool = FolderPool::open(&plan(folder.path(), 4 << 20)).unwrap();
        pool.maker(&region(1, 2 << 20))().unwrap();
        let allocated = std::fs::metadata(folder.path().join("region-1")).unwrap();
        assert_eq!((allocated.size(), allocated.blocks() * 512), (2 << 20, 2 << 20));
        pool.maker(&region(1, 2 << 20))().unwrap_err();
    }

    #[test]
    fn the_memory_of_a_released_region_goes_even_while_a_client_maps_it() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let pool = FolderPool::open(&plan(folder.path(), 4 << 20)).unwrap();
        pool.maker(&region(2, 4 << 20))().unwrap();
        let mapped = pool.open_region(RegionId(2), true).unwrap();
        pool.releaser(RegionId(2))().unwrap();
        assert_eq!(mapped.metadata().unwrap().blocks(), 0);
        assert_eq!(region_files(folder.path()).unwrap(), []);
    }

    #[test]
    fn what_regions_of_an_earlier_run_take_does_not_make_the_pool_smaller() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let pool = FolderPool::open(&plan(folder.path(), 4 << 20)).unwrap();
        pool.maker(&region(1, 4 << 20))().unwrap();
        assert_eq!(region_bytes(folder.path()).unwrap(), 4 << 20);
    }

    #[test]
    fn a_pool_has_a_sensible_size() {
        let folder = tempfile::tempdir().unwrap();
        let small = FolderPool::open(&plan(folder.path(), 4096)).unwrap_err();
        assert!(matches!(small, ServerError::PoolTooSmall { .. }), "{small}");
        let large = FolderPool::open(&plan(folder.path(), 1 << 60)).unwrap_err();
        assert!(matches!(large, ServerError::PoolTooLarge { .. }), "{large}");
    }

    #[test]
    fn a_region_that_does_not_fit_leaves_nothing_behind() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let pool = FolderPool::open(&plan(folder.path(), 4 << 20)).unwrap();
        let refused = pool.maker(&region(3, 1 << 50))().unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::NOSPC.raw_os_error()), "{refused}");
        assert_eq!(region_files(folder.path()).unwrap(), []);
    }
}
