//! The memory behind the pools: what it is made of, and how regions get theirs.

mod device;
mod folder;
mod header;
mod memory;
mod mount;
mod numa;
mod plan;
mod preparation;
mod region_file;

#[cfg(test)]
mod conformance;

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use maru_proto::{POOL_PATH_MAX, PoolCoherence, PoolKind};

use crate::error::ServerError;
use crate::journal::JournalError;
use crate::state::{RegionId, RegionInfo, RetiredRegion, SavedRegion};

pub(crate) use device::DeviceShape;
pub(crate) use folder::{free_bytes, region_bytes, region_files};
pub use header::PoolIdentity;
pub(crate) use header::map_read_only;
pub(crate) use memory::Memory;
use mount::mount_tmpfs;
pub(crate) use mount::{HugePages, Mount};
pub use numa::InvalidNode;
pub use plan::{InvalidPool, PoolPlan, Prefault};
pub use preparation::{BareDevice, IdlePool, PreparationError};

/// Extents begin and end at multiples of a huge page, so that each can be mapped by huge pages.
const GRANULARITY: u64 = 2 << 20;

/// Where the pool of this user's server lies unless it is told otherwise.
pub fn default_pool_path() -> PathBuf {
    format!("/dev/shm/maru-{}", rustix::process::geteuid().as_raw()).into()
}

/// The plan as it turns out to be: what is to be mounted is, its kind is found out, and a folder without a size of its own
/// gets this one.
///
/// # Errors
/// [`ServerError`] where it can't be mounted or looked at.
pub(crate) fn resolve(plan: &PoolPlan, folder_size: Option<ByteSize>) -> Result<PoolPlan, ServerError> {
    let failed = |source| ServerError::Pool { path: plan.path.clone(), source };
    if plan.mount {
        let size = plan.size.or(folder_size).ok_or_else(|| ServerError::MountSize(plan.path.clone()))?;
        mount_tmpfs(&plan.path, size)?;
    }
    let kind = plan.kind.map_or_else(|| kind_of(&plan.path), Ok).map_err(failed)?;
    let size = plan.size.or(folder_size.filter(|_| kind != PoolKind::DevDax));
    Ok(PoolPlan { kind: Some(kind), size, ..plan.clone() })
}

/// The folder under this path, or the one in which it would be made.
///
/// # Errors
/// What the system says where it can't be looked at.
pub(crate) fn nearest_folder(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/")).canonicalize()
}

/// What a pool under this path is, or would be once it is made.
fn kind_of(path: &Path) -> io::Result<PoolKind> {
    if path.exists() && !path.is_dir() {
        return Ok(PoolKind::DevDax);
    }
    Ok(Mount::of(&nearest_folder(path)?)?.map_or(PoolKind::FsDax, |mount| mount.pool_kind()))
}

/// The folder of the journal, where none is named. Files that are written to and grow by some bytes are not for huge pages.
pub(crate) fn state_folder(plans: &[PoolPlan]) -> PathBuf {
    let is_fit = |plan: &&PoolPlan| matches!(plan.kind, Some(PoolKind::Tmpfs | PoolKind::FsDax));
    plans.iter().find(is_fit).map_or_else(default_pool_path, |plan| plan.path.clone())
}

/// A path as records of the wire take it.
fn utf8_path(path: &Path) -> Result<String, ServerError> {
    match path.to_str() {
        Some(text) if text.len() <= POOL_PATH_MAX => Ok(text.to_owned()),
        _ => Err(ServerError::PoolPath { path: path.to_owned(), limit: POOL_PATH_MAX }),
    }
}

/// What may take long, to be run beside the serving thread.
pub(crate) type Job = Box<dyn FnOnce() -> io::Result<()> + Send>;

/// What there is to know of a pool.
#[derive(Clone, Debug)]
pub(crate) struct PoolFacts {
    /// What it is made of.
    pub(crate) kind: PoolKind,
    /// What it is known by.
    pub(crate) identity: PoolIdentity,
    /// Where it lies on this host.
    pub(crate) path: String,
    /// Bytes that regions may take in all.
    pub(crate) size: u64,
    /// Regions begin and end at multiples of this many bytes.
    pub(crate) granularity: u64,
    /// What it takes that hosts see each other's writes.
    pub(crate) coherence: PoolCoherence,
    /// Where the pool's extents begin in the device; `None` where each region is a file of its own.
    pub(crate) extents_at: Option<u64>,
}

/// Memory that regions are cut from, of which this process alone hands out any.
pub(crate) trait Pool: fmt::Debug + Send {
    /// What there is to know of it.
    fn facts(&self) -> PoolFacts;

    /// Takes the pool for a directory: where another one said what is in it, that is discarded. Whether somebody may still be
    /// reading the very memory that is given out from now on.
    fn adopt(&mut self, deployment: [u8; 16]) -> Result<bool, ServerError>;

    /// Whether it still is this server's, and not taken by one of another host, which no lock keeps out.
    fn is_ours(&self) -> bool;

    /// Gives back what there is of regions other than these.
    fn keep_only(&self, regions: &[RegionId]) -> Result<(), ServerError>;

    /// Checks that the memory of a region that was there before still is.
    fn check(&self, region: &SavedRegion) -> Result<(), JournalError>;

    /// Makes the memory of a region.
    fn make(&self, region: &RegionInfo) -> Job;

    /// Gives the memory of a region back.
    fn release(&self, region: &RetiredRegion) -> Job;

    /// What a client maps the region from; for writing too where it is the owner.
    fn open(&self, region: RegionId, writable: bool) -> io::Result<File>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_lies_where_files_can_be_written() {
        let plan = |kind, path: &str| PoolPlan { kind: Some(kind), path: path.into(), ..PoolPlan::default() };
        let (huge, device) = (plan(PoolKind::Hugetlbfs, "/huge"), plan(PoolKind::DevDax, "/dev/dax0.0"));
        let folder = plan(PoolKind::FsDax, "/mnt/a");
        assert_eq!(state_folder(&[huge, folder, plan(PoolKind::Tmpfs, "/b")]), Path::new("/mnt/a"));
        assert_eq!(state_folder(&[device]), default_pool_path());
    }

    #[test]
    fn a_path_is_looked_at_for_what_a_pool_there_is() {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let device = folder.path().join("device");
        std::fs::write(&device, "").unwrap();
        let look = |path: &Path| {
            let plan = PoolPlan { path: path.to_owned(), ..PoolPlan::default() };
            resolve(&plan, None).unwrap().kind
        };
        assert_eq!(look(&folder.path().join("to/be/made")), Some(PoolKind::Tmpfs));
        assert_eq!(look(&device), Some(PoolKind::DevDax));
        assert_eq!(look(Path::new("/proc")), Some(PoolKind::FsDax));
    }
}
