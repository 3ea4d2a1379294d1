//! What the server needs of its host, looked at by the server's own rules without starting one.

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub use crate::pool::default_pool_path;
use crate::pool::{HEADER_FILE, HugePages, Mount, free_bytes, region_bytes, region_files};
use crate::{ServerError, net};

/// Makes the ring that a server makes, and gives it back.
///
/// # Errors
/// [`ServerError::Ring`], with what stands in the way and what to do about it.
pub fn ring() -> Result<(), ServerError> {
    net::try_ring()
}

/// A folder that is a pool, or could become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFolder {
    /// Whether it is there yet; where not, what follows is of the folder in which it would be made.
    pub exists: bool,
    /// Where its file system is mounted.
    pub mount_point: PathBuf,
    /// The type of its file system, such as `tmpfs`.
    pub file_system: String,
    /// Whether its files get huge pages.
    pub has_huge_pages: bool,
    /// Bytes that are free there.
    pub free: u64,
    /// Bytes of the regions in it.
    pub region_bytes: u64,
    /// The regions in it.
    pub regions: usize,
    /// Who uses it.
    pub lock: PoolLock,
}

/// Who uses a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolLock {
    /// No server ever did.
    Unused,
    /// A server does.
    Held,
    /// A server did, and goes on from what is there when it is started again.
    Left,
    /// It is another user's, who alone can tell.
    Unknown,
}

/// Looks at the folder of a pool.
///
/// # Errors
/// What the system says where it can't be looked at.
pub fn pool(path: &Path) -> io::Result<PoolFolder> {
    let exists = path.try_exists()?;
    let there = path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/")).canonicalize()?;
    let mount = Mount::of(&there)?;
    // A folder of another user's is looked at as far as that goes.
    let files = if exists { region_files(&there) } else { Ok(Vec::new()) };
    let regions = files.map_or(0, |files| files.len());
    Ok(PoolFolder {
        exists,
        has_huge_pages: mount.as_ref().is_some_and(|mount| mount.huge_pages != HugePages::Never),
        mount_point: mount.as_ref().map_or_else(|| there.clone(), |mount| mount.point.clone()),
        file_system: mount.map_or_else(|| "unknown".to_owned(), |mount| mount.file_system),
        free: free_bytes(&there)?,
        region_bytes: if exists { region_bytes(&there).unwrap_or(0) } else { 0 },
        regions,
        lock: if exists { lock(&there) } else { PoolLock::Unused },
    })
}

/// A lock that others may share is taken for an instant, so that a server which is being started all the same has to be
/// started once more.
fn lock(folder: &Path) -> PoolLock {
    match OpenOptions::new().read(true).open(folder.join(HEADER_FILE)) {
        Ok(file) => match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => PoolLock::Left,
            Err(Errno::WOULDBLOCK) => PoolLock::Held,
            Err(_) => PoolLock::Unknown,
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => PoolLock::Unused,
        Err(_) => PoolLock::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;

    use super::*;
    use crate::pool::{Memory, PoolPlan};

    #[test]
    fn a_pool_is_seen_before_while_and_after_a_server_uses_it() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("pool");
        let before = pool(&path).unwrap();
        assert_eq!(
            (before.exists, before.lock, before.file_system.as_str()),
            (false, PoolLock::Unused, "tmpfs")
        );
        assert!(before.free > 0 && before.mount_point == Path::new("/dev/shm"));

        let plan = PoolPlan { path: path.clone(), size: Some(ByteSize::mib(4)), ..PoolPlan::default() };
        let open = || Memory::open(std::slice::from_ref(&plan), folder.path().to_owned());
        let used = open().unwrap();
        assert_eq!(pool(&path).unwrap().lock, PoolLock::Held);
        drop(used);
        std::fs::write(path.join("region-1"), [0; 4096]).unwrap();
        let left = pool(&path).unwrap();
        assert_eq!(
            (left.exists, left.lock, left.regions, left.region_bytes),
            (true, PoolLock::Left, 1, 4096)
        );
        open().expect("that somebody looked keeps nobody out");
    }

    #[test]
    fn a_folder_that_is_no_pool_yet_has_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(pool(folder.path()).unwrap().lock, PoolLock::Unused);
    }
}
