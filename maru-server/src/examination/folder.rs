//! A folder that is a pool, or could become one, from outside.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use maru_proto::{PoolHeader, PoolKind};
use rustix::fs::statvfs;

use super::{HeaderFacts, PoolLock, lock};
use crate::files::rounded;
use crate::pool::{HugePages, Mount, free_bytes, nearest_folder, region_bytes, region_files};

/// A folder that is a pool, or could become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolFolder {
    /// Whether it is there yet; where not, what follows is of the folder in which it would be made.
    pub exists: bool,
    /// What a pool there is.
    pub kind: PoolKind,
    /// Where its file system is mounted.
    pub mount_point: PathBuf,
    /// The type of its file system, such as `tmpfs`.
    pub file_system: String,
    /// Whether its files get huge pages.
    pub has_huge_pages: bool,
    /// Whether its files are mapped directly, without the page cache.
    pub is_dax: bool,
    /// Bytes that are free there.
    pub free: u64,
    /// Bytes that its file system gives at least: those of a huge page on hugetlbfs.
    pub page_size: u64,
    /// Bytes of the regions in it.
    pub region_bytes: u64,
    /// The regions in it.
    pub regions: usize,
    /// What it says of itself; `None` where this user may not read that.
    pub header: Option<HeaderFacts>,
    /// Who uses it.
    pub lock: PoolLock,
}

impl PoolFolder {
    /// Looks at a folder without changing anything.
    pub(super) fn look(path: &Path) -> io::Result<PoolFolder> {
        let exists = path.try_exists()?;
        let there = nearest_folder(path)?;
        let mount = Mount::of(&there)?;
        // A folder of another user's is looked at as far as that goes.
        let files = if exists { region_files(&there) } else { Ok(Vec::new()) };
        let (header, lock) =
            if exists { header(&there)? } else { (Some(HeaderFacts::MISSING), PoolLock::Unused) };
        Ok(PoolFolder {
            exists,
            kind: mount.as_ref().map_or(PoolKind::FsDax, Mount::pool_kind),
            has_huge_pages: mount.as_ref().is_some_and(|mount| mount.huge_pages != HugePages::Never),
            is_dax: mount.as_ref().is_some_and(|mount| mount.is_dax),
            mount_point: mount.as_ref().map_or_else(|| there.clone(), |mount| mount.point.clone()),
            file_system: mount.map_or_else(|| "unknown".to_owned(), |mount| mount.file_system),
            free: free_bytes(&there)?,
            page_size: statvfs(&there)?.f_frsize,
            region_bytes: if exists { region_bytes(&there).unwrap_or(0) } else { 0 },
            regions: files.map_or(0, |files| files.len()),
            header,
            lock,
        })
    }
}

fn header(folder: &Path) -> io::Result<(Option<HeaderFacts>, PoolLock)> {
    let file = match File::open(folder.join(PoolHeader::FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok((Some(HeaderFacts::MISSING), PoolLock::Unused));
        }
        Err(_) => return Ok((None, PoolLock::Unknown)),
    };
    let bytes = rounded(&file, PoolHeader::SLOTS_LEN as u64)?;
    let is_whole = file.metadata()?.len() >= bytes;
    let facts = if is_whole { HeaderFacts::read(&file, bytes)? } else { HeaderFacts::MISSING };
    Ok((Some(facts), lock(&file, true)))
}

#[cfg(test)]
mod tests {
    use bytesize::ByteSize;

    use super::super::{PoolPlace, pool};
    use super::*;
    use crate::pool::{Memory, PoolPlan};

    fn look(path: &Path) -> PoolFolder {
        match pool(path).unwrap() {
            PoolPlace::Folder(folder) => folder,
            PoolPlace::Device(device) => unreachable!("{device:?}"),
        }
    }

    #[test]
    fn a_pool_is_seen_before_while_and_after_a_server_uses_it() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("pool");
        let before = look(&path);
        assert_eq!(
            (before.exists, before.lock, before.kind, before.file_system.as_str()),
            (false, PoolLock::Unused, PoolKind::Tmpfs, "tmpfs")
        );
        assert!(before.free > 0 && before.mount_point == Path::new("/dev/shm"));

        let plan = PoolPlan { path: path.clone(), size: Some(ByteSize::mib(4)), ..PoolPlan::default() };
        let open = || Memory::open(std::slice::from_ref(&plan), folder.path().to_owned());
        let used = open().unwrap();
        let identity = used.identities()[0];
        assert_eq!(look(&path).lock, PoolLock::Held);
        drop(used);
        std::fs::write(path.join("region-1"), [0; 4096]).unwrap();
        let left = look(&path);
        assert_eq!(
            (left.exists, left.lock, left.regions, left.region_bytes),
            (true, PoolLock::Left, 1, 4096)
        );
        assert_eq!(left.header.unwrap().header.unwrap().uuid(), identity.uuid);
        open().expect("that somebody looked keeps nobody out");
    }

    #[test]
    fn a_folder_that_is_no_pool_yet_has_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let seen = look(folder.path());
        assert_eq!((seen.lock, seen.header), (PoolLock::Unused, Some(HeaderFacts::MISSING)));
    }
}
