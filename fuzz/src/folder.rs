//! The folder of a pool: real files, since what is kept over a restart lies in their mappings.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use maru_proto::PoolUuid;
use maru_server::journal::{Journal, JournalError, PageTable, make_table};
use maru_server::pool::PoolIdentity;
use maru_server::state::{RegionId, RegionInfo, Saved};
use tempfile::TempDir;

use crate::{LIMITS, POOLS};

/// What the pools are known by, in the order of their ids.
const IDENTITIES: [PoolIdentity; POOLS.len()] = [
    PoolIdentity { uuid: PoolUuid::from_bytes([7; 16]), incarnation: 1 },
    PoolIdentity { uuid: PoolUuid::from_bytes([8; 16]), incarnation: 3 },
];

/// The journal in a folder, and all that it kept.
///
/// # Errors
/// What a server would say.
pub fn open_journal(folder: &Folder) -> Result<(Journal, Saved), JournalError> {
    let (mut journal, mut saved) = Journal::open(folder.path(), LIMITS.max_instances, false)?;
    journal.read_regions(&IDENTITIES, &mut saved)?;
    Ok((journal, saved))
}

/// A folder on tmpfs that goes with its owner.
#[derive(Debug)]
pub struct Folder(TempDir);

impl Folder {
    /// An empty folder.
    ///
    /// # Panics
    /// When there is no room for one.
    pub fn new() -> Folder {
        let made = tempfile::Builder::new().prefix("maru-fuzz-").tempdir_in("/dev/shm");
        Folder(made.expect("/dev/shm has room for a folder"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The files in it, by name.
    pub fn files(&self) -> Vec<PathBuf> {
        let files = fs::read_dir(self.path()).expect("the folder can be read");
        let mut files = files.map(|file| file.expect("it can be read on").path()).collect::<Vec<_>>();
        files.sort_unstable();
        files
    }

    /// Makes the files of a region. Its memory has no bytes: nobody maps it.
    pub(crate) fn make(&self, region: &RegionInfo) -> io::Result<PageTable> {
        File::create(self.memory(region.id))?.set_len(region.extent)?;
        make_table(self.path(), region, IDENTITIES[region.pool.0 as usize])
    }

    /// Removes the files of a region, which may never have been made.
    pub(crate) fn remove(&self, id: RegionId) {
        let _ = fs::remove_file(self.memory(id));
        let _ = fs::remove_file(self.path().join(format!("region-{}.pages", id.0)));
    }

    fn memory(&self, id: RegionId) -> PathBuf {
        self.path().join(format!("region-{}", id.0))
    }
}

impl Default for Folder {
    fn default() -> Folder {
        Folder::new()
    }
}
