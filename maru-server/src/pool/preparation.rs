//! What an operator does to a pool that no server uses: makes one of a device, and unmakes it.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use maru_proto::{PoolHeader, PoolHeaderError, PoolUuid};
use memmap2::MmapMut;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use super::device::Device;
use super::folder::remove_regions;
use super::header::{HeaderArea, PoolIdentity, erase, map};
use crate::files::rounded;

/// Why a pool is neither made nor wiped. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum PreparationError {
    /// The system refuses.
    #[error("can't use {}: {source}", .path.display())]
    System {
        /// The device or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A folder is the server's own to make a pool of.
    #[error(
        "{} is a folder, which `maru-server --pool {}` makes a pool by itself; only devices have to be made one",
        .0.display(),
        .0.display()
    )]
    Folder(PathBuf),
    /// A server of this host uses it.
    #[error("a server uses {}; stop it first", .0.display())]
    InUse(PathBuf),
    /// Something else of this host does.
    #[error("{} is mounted, or in use by something else; see lsblk, and end that use first", .0.display())]
    Claimed(PathBuf),
    /// The device has no room for a header and even one region.
    #[error("{} has {size}, and a pool takes at least {least}: its header and one region", .path.display())]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// Its size.
        size: ByteSize,
        /// The least size.
        least: ByteSize,
    },
    /// It is a pool already, and stays one.
    #[error(
        "{} is the pool {uuid} already, incarnation {incarnation}; if nothing in it is needed, `maru pool wipe {}` comes first",
        .path.display(),
        .path.display()
    )]
    IsPool {
        /// The device.
        path: PathBuf,
        /// Which pool it is.
        uuid: PoolUuid,
        /// How often what was in it has been discarded, and once more.
        incarnation: u64,
    },
    /// It was a pool, and may be one to somebody else.
    #[error(
        "{}: {source}; `maru pool show {}` says more, and if nothing on it is needed, `maru pool wipe {}` comes first",
        .path.display(),
        .path.display(),
        .path.display()
    )]
    Unreadable {
        /// The device.
        path: PathBuf,
        /// What is wrong with its header.
        source: PoolHeaderError,
    },
    /// There is nothing to wipe.
    #[error("{} is no pool: it has no header", .0.display())]
    NoPool(PathBuf),
}

/// A device without a header, which nobody else can take for as long as this lives.
#[derive(Debug)]
pub struct BareDevice {
    taken: TakenDevice,
}

impl BareDevice {
    /// Takes a device; a regular file or a block device may stand in for one.
    ///
    /// # Errors
    /// [`PreparationError`] where it is a folder, too small, in use, or has a header, be it one that can't be read.
    pub fn take(path: &Path) -> Result<BareDevice, PreparationError> {
        if look(path)?.is_dir() {
            return Err(PreparationError::Folder(path.to_owned()));
        }
        let taken = TakenDevice::take(path)?;
        let path = path.to_owned();
        match PoolHeader::read(&taken.area) {
            Err(PoolHeaderError::Missing) => Ok(BareDevice { taken }),
            Err(source) => Err(PreparationError::Unreadable { path, source }),
            Ok((header, _)) => {
                Err(PreparationError::IsPool { path, uuid: header.uuid(), incarnation: header.incarnation() })
            }
        }
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        self.taken.device.shape.size
    }

    /// Bytes at its beginning that the header will have for itself.
    pub fn header_bytes(&self) -> u64 {
        self.taken.device.shape.first_extent()
    }

    /// Regions will begin and end at multiples of this many bytes.
    pub fn granularity(&self) -> u64 {
        self.taken.device.shape.granularity()
    }

    /// Whether nothing but zeros is where the header will be, so that nobody seems to have written there.
    pub fn is_blank(&self) -> bool {
        self.taken.area.iter().all(|byte| *byte == 0)
    }

    /// Makes it a pool, under a name of its own.
    pub fn init(self) -> PoolIdentity {
        HeaderArea::create(self.taken.area).identity()
    }
}

/// A pool that no server can take for as long as this lives.
#[derive(Debug)]
pub struct IdlePool {
    path: PathBuf,
    header: Result<PoolHeader, PoolHeaderError>,
    taken: Taken,
}

#[derive(Debug)]
enum Taken {
    Device(TakenDevice),
    Folder {
        area: MmapMut,
        /// Held for its lock.
        _header: File,
    },
}

impl IdlePool {
    /// Takes a device or a folder that has a header, also one that can't be read.
    ///
    /// # Errors
    /// [`PreparationError`] where it has none, or is in use.
    pub fn take(path: &Path) -> Result<IdlePool, PreparationError> {
        let taken =
            if look(path)?.is_dir() { take_folder(path)? } else { Taken::Device(TakenDevice::take(path)?) };
        let area = match &taken {
            Taken::Device(device) => &device.area,
            Taken::Folder { area, .. } => area,
        };
        let header = PoolHeader::read(area).map(|(header, _)| header);
        if header == Err(PoolHeaderError::Missing) {
            return Err(PreparationError::NoPool(path.to_owned()));
        }
        Ok(IdlePool { path: path.to_owned(), header, taken })
    }

    /// Which pool it is, or why that can't be told.
    ///
    /// # Errors
    /// [`PoolHeaderError`].
    pub fn header(&self) -> Result<PoolHeader, PoolHeaderError> {
        self.header
    }

    /// Removes its header, and of a folder the memory of its regions: nobody finds anything by its name any more.
    ///
    /// # Errors
    /// [`PreparationError::System`]. It is no pool any more then either; what is left of it in a folder, the next server there
    /// removes.
    pub fn wipe(self) -> Result<(), PreparationError> {
        match self.taken {
            Taken::Device(mut device) => {
                erase(&mut device.area);
                Ok(())
            }
            Taken::Folder { mut area, .. } => {
                erase(&mut area);
                // The file that is locked goes last.
                let removed = remove_regions(&self.path, &[])
                    .and_then(|_| std::fs::remove_file(self.path.join(PoolHeader::FILE)));
                removed.map_err(failed(&self.path))
            }
        }
    }
}

/// A device that is locked.
#[derive(Debug)]
struct TakenDevice {
    device: Device,
    /// What the header has for itself.
    area: MmapMut,
    /// Keeps a block device from being mounted.
    _claim: Option<File>,
}

impl TakenDevice {
    fn take(path: &Path) -> Result<TakenDevice, PreparationError> {
        let claim = if look(path)?.file_type().is_block_device() { Some(claim(path)?) } else { None };
        let device = Device::open(path).map_err(failed(path))?;
        lock(&device.file, path)?;
        let shape = device.shape;
        if shape.size < shape.least_size() {
            let (size, least) = (ByteSize(shape.size), ByteSize(shape.least_size()));
            return Err(PreparationError::TooSmall { path: path.to_owned(), size, least });
        }
        let area = map(&device.file, shape.first_extent()).map_err(failed(path))?;
        Ok(TakenDevice { device, area, _claim: claim })
    }
}

/// Opens a block device in the way in which the kernel lets one user at a time, file systems included.
fn claim(path: &Path) -> Result<File, PreparationError> {
    match rustix::fs::open(path, OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty()) {
        Ok(claim) => Ok(claim.into()),
        Err(Errno::BUSY) => Err(PreparationError::Claimed(path.to_owned())),
        Err(error) => Err(failed(path)(error.into())),
    }
}

fn take_folder(folder: &Path) -> Result<Taken, PreparationError> {
    let opened = File::options().read(true).write(true).open(folder.join(PoolHeader::FILE));
    let header = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(PreparationError::NoPool(folder.to_owned()));
        }
        opened => opened.map_err(failed(folder))?,
    };
    lock(&header, folder)?;
    let bytes = rounded(&header, PoolHeader::SLOTS_LEN as u64).map_err(failed(folder))?;
    // A server that was interrupted as it made the file has written nothing into it.
    if header.metadata().map_err(failed(folder))?.len() < bytes {
        return Err(PreparationError::NoPool(folder.to_owned()));
    }
    let area = map(&header, bytes).map_err(failed(folder))?;
    Ok(Taken::Folder { area, _header: header })
}

/// Keeps servers of this host out for as long as the file is open.
fn lock(file: &File, path: &Path) -> Result<(), PreparationError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => Err(PreparationError::InUse(path.to_owned())),
        Err(error) => Err(failed(path)(error.into())),
    }
}

fn look(path: &Path) -> Result<Metadata, PreparationError> {
    path.metadata().map_err(failed(path))
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> PreparationError + use<'_> {
    move |source| PreparationError::System { path: path.to_owned(), source }
}
