//! What the server needs of its host, looked at by the server's own rules without starting one.

mod device;
mod folder;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use maru_proto::{PoolHeader, PoolHeaderError};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

pub use crate::pool::default_pool_path;
use crate::pool::map_read_only;
use crate::{ServerError, net};
pub use device::PoolDevice;
pub use folder::PoolFolder;

/// Makes the ring that a server makes, and gives it back.
///
/// # Errors
/// [`ServerError::Ring`], with what stands in the way and what to do about it.
pub fn ring() -> Result<(), ServerError> {
    net::try_ring()
}

/// What is, or could become, a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PoolPlace {
    /// A folder, be it one that is still to be made.
    Folder(PoolFolder),
    /// A device, or a file that stands in for one.
    Device(PoolDevice),
}

/// Looks at a pool.
///
/// # Errors
/// What the system says where it can't be looked at.
pub fn pool(path: &Path) -> io::Result<PoolPlace> {
    if path.try_exists()? && !path.is_dir() {
        return PoolDevice::look(path).map(PoolPlace::Device);
    }
    PoolFolder::look(path).map(PoolPlace::Folder)
}

/// The DAX devices of this host, in the order of their names.
///
/// # Errors
/// What the system says where they can't be listed.
pub fn dax_devices() -> io::Result<Vec<PathBuf>> {
    device::devices_in(Path::new("/dev"))
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

/// A lock that others may share is taken for an instant, so that a server which is being started all the same has to be
/// started once more.
fn lock(file: &File, was_used: bool) -> PoolLock {
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) if was_used => PoolLock::Left,
        Ok(()) => PoolLock::Unused,
        Err(Errno::WOULDBLOCK) => PoolLock::Held,
        Err(_) => PoolLock::Unknown,
    }
}

/// What memory says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderFacts {
    /// The header that counts.
    pub header: Result<PoolHeader, PoolHeaderError>,
    /// What each of the two places for one holds.
    pub slots: [Result<PoolHeader, PoolHeaderError>; 2],
}

impl HeaderFacts {
    /// There is nothing.
    const MISSING: HeaderFacts = HeaderFacts {
        header: Err(PoolHeaderError::Missing),
        slots: [Err(PoolHeaderError::Missing), Err(PoolHeaderError::Missing)],
    };

    /// Reads what is at the beginning of a file that has at least so many bytes, and is mapped in units of that many.
    fn read(file: &File, bytes: u64) -> io::Result<HeaderFacts> {
        let area = map_read_only(file, bytes)?;
        // A copy, so that a server that writes meanwhile changes nothing between two looks.
        let area = area[..PoolHeader::SLOTS_LEN].to_vec();
        let header = PoolHeader::read(&area).map(|(header, _)| header);
        Ok(HeaderFacts { header, slots: PoolHeader::slots(&area) })
    }
}
