//! What a folder is mounted on, and how a tmpfs of the server's own is.

use std::io;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use maru_proto::PoolKind;
use rustix::mount::{MountFlags, mount, mount_remount};
use tracing::info;

use crate::error::ServerError;

/// How a file system gives huge pages to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HugePages {
    /// By itself, as the file is allocated.
    Always,
    /// Where a mapping asks for it as the memory is touched.
    Advised,
    /// Not at all.
    Never,
}

/// The mount that a folder lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Where it is mounted.
    pub(crate) point: PathBuf,
    /// Its type, such as tmpfs.
    pub(crate) file_system: String,
    /// What is mounted: a device, or a name that whoever mounted it chose.
    pub(crate) source: String,
    /// Whether its files get huge pages.
    pub(crate) huge_pages: HugePages,
    /// Whether its files are mapped directly, without the page cache.
    pub(crate) is_dax: bool,
}

impl Mount {
    /// The mount under an existing, canonical path.
    pub(crate) fn of(path: &Path) -> io::Result<Option<Mount>> {
        Ok(Mount::find(path, &std::fs::read_to_string("/proc/self/mountinfo")?))
    }

    /// What a pool in it is.
    pub(crate) fn pool_kind(&self) -> PoolKind {
        match self.file_system.as_str() {
            "tmpfs" => PoolKind::Tmpfs,
            "hugetlbfs" => PoolKind::Hugetlbfs,
            _ => PoolKind::FsDax,
        }
    }

    /// The last mount among the lines of a `mountinfo` whose point is the longest prefix of `path`.
    fn find(path: &Path, mountinfo: &str) -> Option<Mount> {
        let mounts = mountinfo.lines().filter_map(Mount::parse);
        mounts
            .filter(|mount| path.starts_with(&mount.point))
            .max_by_key(|mount| mount.point.as_os_str().len())
    }

    /// One line of `mountinfo`, proc(5): ID PARENT DEV ROOT POINT OPTIONS [TAGS…] - TYPE SOURCE SUPER-OPTIONS.
    fn parse(line: &str) -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let point = unescape(left.split(' ').nth(4)?);
        let mut right = right.split(' ');
        let file_system = right.next()?.to_owned();
        let source = right.next()?.to_owned();
        let super_options = right.next().unwrap_or_default();
        let is_dax = super_options.split(',').any(|option| matches!(option, "dax" | "dax=always"));
        let huge_pages = match file_system.as_str() {
            "hugetlbfs" => HugePages::Always,
            _ => match super_options.split(',').find_map(|option| option.strip_prefix("huge=")) {
                Some("always" | "within_size") => HugePages::Always,
                Some("advise") => HugePages::Advised,
                _ => HugePages::Never,
            },
        };
        Some(Mount { point: point.into(), file_system, source, huge_pages, is_dax })
    }
}

/// Undoes the octal escapes of `mountinfo` for blanks and backslashes.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// What a tmpfs of the server's own is called in the list of mounts.
const SOURCE: &str = "maru";

/// Mounts a tmpfs with huge pages for a pool of `size` bytes at `point`, which is made where it does not exist. One that an earlier run has mounted there stays, with what is in it.
pub(super) fn mount_tmpfs(point: &Path, size: ByteSize) -> Result<(), ServerError> {
    let failed = |source| ServerError::Mount { path: point.to_owned(), source };
    std::fs::create_dir_all(point).map_err(failed)?;
    let point = point.canonicalize().map_err(failed)?;
    // Page tables and the folder's own pages come on top of the regions.
    let bytes = size.as_u64().saturating_add(size.as_u64() / 128).saturating_add(4 << 20);
    let options = std::ffi::CString::new(format!("size={bytes},mode=0700,huge=within_size"))
        .expect("the options have no NUL");
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let found = Mount::of(&point).map_err(failed)?;
    if found.is_some_and(|mount| mount.point == point && mount.source == SOURCE) {
        mount_remount(&point, flags, &*options).map_err(|errno| failed(errno.into()))?;
        info!(point = %point.display(), "using the tmpfs that is mounted already");
    } else {
        mount(SOURCE, &point, "tmpfs", flags, &*options).map_err(|errno| failed(errno.into()))?;
        info!(point = %point.display(), "mounted a tmpfs with huge pages");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /dev/shm rw,nosuid shared:2 - tmpfs tmpfs rw,size=1g
24 22 0:22 / /mnt/huge rw - tmpfs maru rw,size=1048576k,huge=within_size
25 22 0:23 / /mnt/advised\\040pool rw - tmpfs maru rw,huge=advise
26 22 0:24 / /mnt/huge2m rw master:5 - hugetlbfs none rw,pagesize=2M
27 22 259:0 / /mnt/pmem rw - xfs /dev/pmem0 rw,attr2,dax=always,inode64
";

    #[test]
    fn the_mount_of_a_folder_says_whether_there_are_huge_pages() {
        for (path, point, file_system, source, huge_pages) in [
            ("/mnt/pmem/maru", "/mnt/pmem", "xfs", "/dev/pmem0", HugePages::Never),
            ("/dev/shm/maru-0", "/dev/shm", "tmpfs", "tmpfs", HugePages::Never),
            ("/mnt/huge", "/mnt/huge", "tmpfs", "maru", HugePages::Always),
            ("/mnt/advised pool/a", "/mnt/advised pool", "tmpfs", "maru", HugePages::Advised),
            ("/mnt/huge2m", "/mnt/huge2m", "hugetlbfs", "none", HugePages::Always),
            ("/mnt/hug", "/", "ext4", "/dev/vda", HugePages::Never),
        ] {
            let (file_system, source) = (file_system.into(), source.into());
            let is_dax = point == "/mnt/pmem";
            let expected = Mount { point: point.into(), file_system, source, huge_pages, is_dax };
            assert_eq!(Mount::find(Path::new(path), MOUNTINFO), Some(expected), "{path}");
        }
    }
}
