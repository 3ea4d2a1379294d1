//! A pool that is a device: memory that several hosts may reach, each under a name of its own. Regions are extents of it.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use maru_proto::{PoolCoherence, PoolHeader, PoolKind};
use rustix::fs::{FlockOperation, flock, major, minor};
use rustix::io::Errno;
use tracing::info;

use super::header::{HeaderArea, map};
use super::{GRANULARITY, InvalidNode, Job, Pool, PoolFacts, PoolPlan, utf8_path};
use crate::error::ServerError;
use crate::journal::JournalError;
use crate::state::{RegionId, RegionInfo, RetiredRegion, SavedRegion};

/// A device that this process alone hands out regions from.
#[derive(Debug)]
pub(super) struct DevicePool {
    path: String,
    size: u64,
    granularity: u64,
    coherence: PoolCoherence,
    header: HeaderArea,
    /// What is locked. It is handed to nobody: a lock lasts until the last of its file's mappings is gone, and clients' mappings
    /// outlast a server.
    _locked: File,
    /// What owners map.
    writable: File,
    /// What everybody else maps.
    read_only: File,
}

impl DevicePool {
    /// Takes a device that has a header already: what is on one without could be anybody's.
    ///
    /// # Errors
    /// [`ServerError`] where the device can't be used, is used by another server of this host, or has no header.
    pub(super) fn open(plan: &PoolPlan) -> Result<DevicePool, ServerError> {
        let failed = |source| ServerError::Pool { path: plan.path.clone(), source };
        let path = plan.path.canonicalize().map_err(failed)?;
        let text = utf8_path(&path)?;
        if let Some(node) = plan.node {
            let source = InvalidNode::OfDevice { kind: PoolKind::DevDax.name() };
            return Err(ServerError::PoolNode { path, node, source });
        }
        let device = Device::open(&path).map_err(failed)?;
        device.lock(&path)?;
        let writable = OpenOptions::new().read(true).write(true).open(&path).map_err(failed)?;
        let read_only = File::open(&path).map_err(failed)?;
        let shape = device.shape;
        if shape.size < shape.least_size() {
            return Err(ServerError::DeviceTooSmall {
                path,
                size: ByteSize(shape.size),
                least: ByteSize(shape.least_size()),
            });
        }
        let header = map(&device.file, shape.first_extent()).map_err(failed)?;
        let header = HeaderArea::read(header)
            .map_err(|source| ServerError::PoolHeader { path: path.clone(), source })?;
        let room = shape.size - shape.first_extent();
        let wanted = plan.size.map_or(room, |size| size.as_u64());
        let size = wanted / shape.granularity() * shape.granularity();
        if size == 0 {
            let least = ByteSize(shape.granularity());
            return Err(ServerError::PoolTooSmall { path, size: ByteSize(wanted), least });
        }
        if size > room {
            let fix = "give it a smaller size";
            return Err(ServerError::PoolTooLarge { path, size: ByteSize(size), free: ByteSize(room), fix });
        }
        let (granularity, identity) = (shape.granularity(), header.identity());
        let (uuid, incarnation) = (identity.uuid, identity.incarnation);
        let (coherence, node) = (plan.coherence, device.shape.node);
        info!(pool = %path.display(), size = %ByteSize(size), %uuid, incarnation, coherence = coherence.name(), node, "the pool is ready");
        let locked = device.file;
        Ok(DevicePool {
            path: text,
            size,
            granularity,
            coherence,
            header,
            _locked: locked,
            writable,
            read_only,
        })
    }
}

impl Pool for DevicePool {
    fn facts(&self) -> PoolFacts {
        PoolFacts {
            kind: PoolKind::DevDax,
            identity: self.header.identity(),
            path: self.path.clone(),
            size: self.size,
            granularity: self.granularity,
            coherence: self.coherence,
            extents_at: Some(first_extent(self.granularity)),
        }
    }

    fn adopt(&mut self, deployment: [u8; 16]) -> Result<bool, ServerError> {
        if self.header.is_of(deployment) {
            return Ok(false);
        }
        let was_in_use = !self.header.is_new();
        self.header.discard(deployment);
        Ok(was_in_use)
    }

    fn is_ours(&self) -> bool {
        self.header.is_current()
    }

    fn keep_only(&self, _: &[RegionId]) -> Result<(), ServerError> {
        // Extents are the directory's alone to know of.
        Ok(())
    }

    fn check(&self, _: &SavedRegion) -> Result<(), JournalError> {
        // That its extent lies in the pool, the state checks.
        Ok(())
    }

    fn make(&self, _: &RegionInfo) -> Job {
        // The memory is there. It is not cleared: what an earlier owner left in it was for everybody to read.
        Box::new(|| Ok(()))
    }

    fn release(&self, _: &RetiredRegion) -> Job {
        Box::new(|| Ok(()))
    }

    fn open(&self, _: RegionId, writable: bool) -> io::Result<File> {
        if writable { self.writable.try_clone() } else { self.read_only.try_clone() }
    }
}

/// A device that is open.
#[derive(Debug)]
pub(crate) struct Device {
    pub(crate) file: File,
    pub(crate) shape: DeviceShape,
}

impl Device {
    /// Opens a device for reading and writing; a regular file or a block device stands in for one.
    pub(crate) fn open(path: &Path) -> io::Result<Device> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let shape = DeviceShape::of(&file.metadata()?)?;
        Ok(Device { file, shape })
    }

    /// Keeps other servers of this host out for as long as the file is open.
    pub(crate) fn lock(&self, path: &Path) -> Result<(), ServerError> {
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(ServerError::PoolInUse(path.to_owned())),
            Err(error) => Err(ServerError::Pool { path: path.to_owned(), source: error.into() }),
        }
    }
}

/// What the system says of a device, which it says without opening it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeviceShape {
    /// Bytes.
    pub(crate) size: u64,
    /// Mappings begin and end at multiples of this many bytes.
    pub(crate) alignment: u64,
    /// The NUMA node of its memory, where it has one.
    node: Option<u64>,
}

impl DeviceShape {
    /// That of a device, or of the regular file or block device that stands in for one.
    pub(crate) fn of(metadata: &Metadata) -> io::Result<DeviceShape> {
        let kind = metadata.file_type();
        let (size, alignment) = if kind.is_char_device() {
            (sysfs_number(metadata, "size")?, sysfs_number(metadata, "align")?)
        } else if kind.is_block_device() {
            // Counted in sectors of 512 bytes whatever the device's own are.
            (sysfs_number(metadata, "size")?.saturating_mul(512), 1)
        } else if kind.is_file() {
            (metadata.len(), 1)
        } else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no device"));
        };
        // The node that the memory would be of were it the system's, else the one that it is nearest to; -1 is none.
        let node = |attribute| sysfs_number(metadata, attribute).ok();
        let node =
            if kind.is_char_device() { node("target_node").or_else(|| node("numa_node")) } else { None };
        Ok(DeviceShape { size, alignment, node })
    }

    /// Extents are multiples of this many bytes.
    pub(crate) fn granularity(self) -> u64 {
        GRANULARITY.next_multiple_of(self.alignment.max(1))
    }

    /// Bytes that the header has for itself.
    pub(crate) fn first_extent(self) -> u64 {
        first_extent(self.granularity())
    }

    /// Bytes of the smallest device that is of any use: a header, and one extent.
    pub(crate) fn least_size(self) -> u64 {
        self.first_extent() + self.granularity()
    }
}

/// Where extents begin, which is a multiple of what they are multiples of.
fn first_extent(granularity: u64) -> u64 {
    PoolHeader::AREA_LEN.next_multiple_of(granularity)
}

/// A number that sysfs has of a device.
fn sysfs_number(metadata: &Metadata, attribute: &str) -> io::Result<u64> {
    let class = if metadata.file_type().is_char_device() { "char" } else { "block" };
    let (device, folder) = (metadata.rdev(), PathBuf::from("/sys/dev").join(class));
    let path = folder.join(format!("{}:{}", major(device), minor(device))).join(attribute);
    let text = std::fs::read_to_string(&path).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("{} can't be read: {error}; is it a DAX device?", path.display()),
        )
    })?;
    let number = text.trim();
    let parsed = match number.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => number.parse(),
    };
    parsed.map_err(|error| io::Error::other(format!("{} is {number:?}: {error}", path.display())))
}
