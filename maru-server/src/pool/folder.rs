//! A pool in a folder: one file a region.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use maru_proto::{PoolCoherence, PoolHeader, PoolHeaderError, PoolKind};
use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock, ftruncate, statfs, statvfs};
use rustix::io::Errno;
use tracing::{debug, info, warn};

use super::header::{HeaderArea, map};
use super::mount::{HugePages, Mount};
use super::numa::Node;
use super::region_file::Backing;
use super::{GRANULARITY, InvalidNode, Job, Pool, PoolFacts, PoolPlan, Prefault, utf8_path};
use crate::error::ServerError;
use crate::files::rounded;
use crate::journal::JournalError;
use crate::state::{RegionId, RegionInfo, RetiredRegion, SavedRegion};

/// What statfs(2) says of a hugetlbfs.
const HUGETLBFS_MAGIC: rustix::fs::FsWord = 0x9584_58f6;

/// A folder that this process alone hands out regions from.
#[derive(Debug)]
pub(super) struct FolderPool {
    kind: PoolKind,
    folder: PathBuf,
    path: String,
    size: u64,
    coherence: PoolCoherence,
    backing: Backing,
    header: HeaderArea,
    /// Held for its lock.
    _locked: File,
}

impl FolderPool {
    /// Takes the folder, and makes it where it does not exist. What an earlier run left in it stays.
    ///
    /// # Errors
    /// [`ServerError`] where the folder can't be used, is used by another server, or can't hold the size.
    pub(super) fn open(plan: &PoolPlan) -> Result<FolderPool, ServerError> {
        let failed = |source| ServerError::Pool { path: plan.path.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&plan.path).map_err(failed)?;
        let folder = plan.path.canonicalize().map_err(failed)?;
        let path = utf8_path(&folder)?;
        let mount = Mount::of(&folder).map_err(failed)?;
        let kind = kind_of(plan.kind, &folder, mount.as_ref())?;
        if plan.coherence == PoolCoherence::Writeback && kind != PoolKind::FsDax {
            return Err(ServerError::PoolCoherence { path: folder, kind: kind.name() });
        }
        let node = plan.node.map(|node| bound_to(node, kind, plan.prefault, &folder)).transpose()?;
        let (locked, header) = take(&folder)?;

        let huge_pages = mount.as_ref().map_or(HugePages::Never, |mount| mount.huge_pages);
        let backing = Backing { kind, huge_pages, prefault: plan.prefault, node };
        // What regions of an earlier run have is part of the pool.
        let free = free_bytes(&folder).and_then(|free| Ok(free + region_bytes(&folder)?)).map_err(failed)?;
        let of_node = node.map(Node::bytes).transpose().map_err(failed)?;
        // A file system knows of no nodes, and who asks a node for more than it has gets programs killed for memory.
        let free = of_node.map_or(free, |of_node| free.min(of_node));
        let wanted = plan.size.map_or(free / 4, |size| size.as_u64());
        let size = wanted / GRANULARITY * GRANULARITY;
        if size == 0 {
            return Err(ServerError::PoolTooSmall {
                path: folder,
                size: ByteSize(wanted),
                least: ByteSize(GRANULARITY),
            });
        }
        if size > free {
            let fix = match kind {
                PoolKind::Hugetlbfs => {
                    "reserve more huge pages (sysctl vm.nr_hugepages), or give it a smaller size"
                }
                _ if of_node.is_some_and(|of_node| size > of_node) => {
                    "that is all that its node has: give it a smaller size, or another node"
                }
                _ => "give it a smaller size",
            };
            let (size, free) = (ByteSize(size), ByteSize(free));
            return Err(ServerError::PoolTooLarge { path: folder, size, free, fix });
        }
        log_memory(kind, &folder, size, mount.as_ref());
        let coherence = plan.coherence;
        Ok(FolderPool { kind, folder, path, size, coherence, backing, header, _locked: locked })
    }
}

impl Pool for FolderPool {
    fn facts(&self) -> PoolFacts {
        PoolFacts {
            kind: self.kind,
            identity: self.header.identity(),
            path: self.path.clone(),
            size: self.size,
            granularity: GRANULARITY,
            coherence: self.coherence,
            extents_at: None,
        }
    }

    fn adopt(&mut self, deployment: [u8; 16]) -> Result<bool, ServerError> {
        if !self.header.is_of(deployment) {
            self.keep_only(&[])?;
            self.header.discard(deployment);
        }
        // New files are other memory than what somebody has mapped.
        Ok(false)
    }

    fn is_ours(&self) -> bool {
        self.header.is_current()
    }

    fn keep_only(&self, regions: &[RegionId]) -> Result<(), ServerError> {
        let removed = remove_regions(&self.folder, regions)
            .map_err(|source| ServerError::Pool { path: self.folder.clone(), source })?;
        if removed > 0 {
            debug!(pool = %self.folder.display(), removed, "removed the files of regions that no directory knows");
        }
        Ok(())
    }

    fn check(&self, region: &SavedRegion) -> Result<(), JournalError> {
        let path = region_path(&self.folder, region.id);
        let has = match std::fs::metadata(&path).map(|memory| memory.len()) {
            Ok(bytes) if bytes == region.extent => return Ok(()),
            Ok(bytes) => format!("has {bytes}"),
            Err(error) => format!("can't be looked at: {error}"),
        };
        Err(JournalError::Damaged {
            path,
            what: format!("it has to have {} bytes, and {has}", region.extent),
        })
    }

    fn make(&self, region: &RegionInfo) -> Job {
        let (path, extent, backing) = (region_path(&self.folder, region.id), region.extent, self.backing);
        Box::new(move || {
            backing.make(&path, extent).inspect_err(|_| {
                // What was allocated so far is given back with the file.
                let _ = std::fs::remove_file(&path);
            })
        })
    }

    fn release(&self, region: &RetiredRegion) -> Job {
        let path = region_path(&self.folder, region.id);
        Box::new(move || {
            let file = OpenOptions::new().write(true).open(&path)?;
            let bytes = file.metadata()?.size();
            std::fs::remove_file(&path)?;
            // A client that still maps the file keeps its address space, not its memory. Where a file system can't
            // punch holes (hugetlbfs of old kernels), the memory goes with the last mapping.
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            match fallocate(&file, hole, 0, bytes) {
                Ok(()) | Err(Errno::OPNOTSUPP) => Ok(()),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn open(&self, region: RegionId, writable: bool) -> io::Result<File> {
        OpenOptions::new().read(true).write(writable).open(region_path(&self.folder, region))
    }
}

/// What a folder is, which has to be what it is taken for.
fn kind_of(wanted: Option<PoolKind>, folder: &Path, mount: Option<&Mount>) -> Result<PoolKind, ServerError> {
    let kind = mount.map_or(PoolKind::FsDax, Mount::pool_kind);
    match wanted {
        // Any file system can stand in for one that hosts share.
        Some(PoolKind::FsDax) => Ok(PoolKind::FsDax),
        Some(wanted) if wanted != kind => Err(ServerError::PoolKind {
            path: folder.to_owned(),
            wanted: wanted.name(),
            file_system: mount.map_or_else(|| "unknown".to_owned(), |mount| mount.file_system.clone()),
            kind: kind.name(),
        }),
        _ => Ok(kind),
    }
}

/// The node that the memory of a folder is to lie on, which has to be the kernel's to choose.
fn bound_to(node: u32, kind: PoolKind, prefault: Prefault, folder: &Path) -> Result<Node, ServerError> {
    let found = match (kind, prefault) {
        (PoolKind::Tmpfs, _) | (PoolKind::Hugetlbfs, Prefault::Eager) => Node::find(node),
        (PoolKind::Hugetlbfs, Prefault::Lazy) => Err(InvalidNode::Lazy),
        _ => Err(InvalidNode::OfDevice { kind: kind.name() }),
    };
    found.map_err(|source| ServerError::PoolNode { path: folder.to_owned(), node, source })
}

/// Locks the folder's header for this process, and reads its header, or makes one.
fn take(folder: &Path) -> Result<(File, HeaderArea), ServerError> {
    let path = folder.join(PoolHeader::FILE);
    let failed = |source| ServerError::Pool { path: path.clone(), source };
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Err(ServerError::PoolInUse(folder.to_owned())),
        Err(error) => return Err(failed(error.into())),
    }
    // It was wiped just now, and whoever comes next locks another file.
    if file.metadata().map_err(failed)?.nlink() == 0 {
        return Err(ServerError::PoolInUse(folder.to_owned()));
    }
    let mapped = || {
        let bytes = rounded(&file, PoolHeader::SLOTS_LEN as u64)?;
        if file.metadata()?.len() < bytes {
            ftruncate(&file, bytes)?;
            // A full file system is an error here, and never a signal later.
            fallocate(&file, FallocateFlags::empty(), 0, bytes)?;
        }
        map(&file, bytes)
    };
    let header = match HeaderArea::read(mapped().map_err(failed)?) {
        // Folders are the server's own to make a pool of.
        Err(PoolHeaderError::Missing) => HeaderArea::create(mapped().map_err(failed)?),
        header => header.map_err(|source| ServerError::PoolHeader { path: folder.to_owned(), source })?,
    };
    Ok((file, header))
}

/// The file of a region's memory.
fn region_path(folder: &Path, id: RegionId) -> PathBuf {
    folder.join(format!("region-{}", id.0))
}

/// The regions that there is a file of.
pub(crate) fn region_files(folder: &Path) -> io::Result<Vec<RegionId>> {
    let mut ids = Vec::new();
    for file in std::fs::read_dir(folder)? {
        let name = file?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("region-"));
        ids.extend(id.and_then(|id| id.parse().ok()).map(RegionId));
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Removes the files of all regions but these; how many that were.
pub(super) fn remove_regions(folder: &Path, kept: &[RegionId]) -> io::Result<u32> {
    let others = region_files(folder)?.into_iter().filter(|id| !kept.contains(id));
    others.map(|id| std::fs::remove_file(region_path(folder, id)).map(|()| 1)).sum()
}

/// Bytes that the files of regions take.
pub(crate) fn region_bytes(folder: &Path) -> io::Result<u64> {
    let files = region_files(folder)?;
    let sizes = files.into_iter().map(|id| std::fs::metadata(region_path(folder, id)));
    Ok(sizes.flatten().map(|file| file.blocks() * 512).sum())
}

/// Bytes that are free where a folder lies.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = statvfs(path)?;
    // A hugetlbfs that was mounted without a size says nothing of what it could hold: all that is free of its pages.
    if stat.f_blocks == 0 && statfs(path)?.f_type == HUGETLBFS_MAGIC {
        let pages = format!("/sys/kernel/mm/hugepages/hugepages-{}kB/free_hugepages", stat.f_frsize >> 10);
        let pages = std::fs::read_to_string(pages)?.trim().parse::<u64>().map_err(io::Error::other)?;
        return Ok(pages.saturating_mul(stat.f_frsize));
    }
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn log_memory(kind: PoolKind, path: &Path, size: u64, mount: Option<&Mount>) {
    let file_system = mount.map_or("unknown", |mount| mount.file_system.as_str());
    info!(pool = %path.display(), size = %ByteSize(size), file_system, "the pool is ready");
    let Some(mount) = mount else { return };
    if kind == PoolKind::Tmpfs && mount.huge_pages == HugePages::Never {
        warn!(
            "{} gives no huge pages, so mapping regions takes about ten times as long; with mount behind its size the \
             server mounts one that does (--pool tmpfs:DIR,size=SIZE,mount), or mount it yourself: \
             mount -t tmpfs -o size={size},huge=within_size maru DIR",
            mount.point.display(),
        );
    }
    if kind == PoolKind::FsDax && !mount.is_dax {
        warn!(
            "{} is not mounted with dax: what is written there is in the memory of this host, where other hosts do not see it",
            mount.point.display(),
        );
    }
}
