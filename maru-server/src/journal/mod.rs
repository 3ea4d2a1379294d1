//! What makes a restart warm: everything that has to outlive the server's process, in files of one folder.
//!
//! There is no log. Each page of a region has a record of its own in a file beside the region's memory ([`PageTable`]), each
//! instance a slot in one file (`StateFile`), and a change overwrites the record that it is about, in a shared mapping: what
//! was written is the kernel's, and survives the process as the pool's memory does. So the files never grow with time, and
//! nothing is ever compacted. A record becomes valid by one store of a word, the last of its stores; the order of a process's
//! own stores is what a `kill -9` leaves behind.
//!
//! A host that goes down takes the page cache along, and with it the order of stores. Files of an earlier boot are not believed.

mod folder;
mod page_table;
mod state_file;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hashbrown::HashMap;
use maru_proto::{DigestKey, PoolUuid};
use tracing::warn;

use crate::pool::PoolIdentity;
use crate::state::{Change, PoolId, RegionId, RegionInfo, Saved, SavedEntry, SavedRegion, Scatter, State};
pub(crate) use folder::StateFolder;
pub use page_table::PageTable;
use state_file::{Found, StateFile};

/// The journal can't be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refuses.
    #[error("can't use the journal {}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another version wrote it.
    #[error(
        "{} was written by another version of maru-server (format {found}, not {}); run that version, or discard what the \
         pool holds with --fresh",
        .path.display(),
        FORMAT
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// The format's number.
        found: u32,
    },
    /// A pool that it is about is not there.
    #[error(
        "{} is about a region of the pool {uuid}, which is not there; give that pool too, or discard what the pools hold with \
         --fresh",
        .path.display()
    )]
    NoPool {
        /// The file.
        path: PathBuf,
        /// The pool.
        uuid: PoolUuid,
    },
    /// It is not what was written.
    #[error("{} is damaged ({what}); discard what the pool holds with --fresh", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

/// The number of the files' format.
const FORMAT: u32 = 2;

/// The page tables, by the number of the region.
type Tables = HashMap<u32, PageTable, Scatter>;

/// The journal of a server.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    state: StateFile,
    /// Of regions that are not retired.
    tables: Tables,
}

impl Journal {
    /// Opens the journal in a folder, or begins one, with room for so many instances. What was kept of them comes along,
    /// nothing where it was discarded because it is of an earlier boot, or on request. [`Journal::read_regions`] comes next.
    ///
    /// # Errors
    /// [`JournalError`]; nothing was changed then.
    pub fn open(folder: &Path, max_instances: u32, fresh: bool) -> Result<(Journal, Saved), JournalError> {
        let path = folder.join("maru.state");
        let found = if fresh { Found::Nothing } else { StateFile::open(&path, max_instances)? };
        let (state, saved) = match found {
            Found::Kept(state, saved) => (state, saved),
            found => {
                if matches!(found, Found::OfEarlierBoot) {
                    warn!(journal = %folder.display(), "the host was started anew since: what the pools hold is discarded");
                }
                // Before there is a journal that they could be taken for a part of.
                for id in table_files(folder).map_err(failed(folder))? {
                    remove(&table_path(folder, id)).map_err(failed(folder))?;
                }
                (StateFile::create(&path, max_instances)?, Saved::default())
            }
        };
        let journal = Journal { folder: folder.to_owned(), state, tables: Tables::with_hasher(Scatter) };
        Ok((journal, saved))
    }

    /// Tells this directory from all others, for the headers of its pools.
    pub(crate) fn deployment(&self) -> [u8; 16] {
        self.state.digest_key().digest(b"maru: whose directory says what is in a pool").to_bytes()
    }

    /// Reads what was kept of the regions in these pools. A pool that was discarded since has none.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn read_regions(&mut self, pools: &[PoolIdentity], saved: &mut Saved) -> Result<(), JournalError> {
        for id in table_files(&self.folder).map_err(failed(&self.folder))? {
            let path = table_path(&self.folder, id);
            let Some((table, region, identity)) = PageTable::open(&path, id)? else {
                // It was being made or released when the process ended.
                remove(&path).map_err(failed(&self.folder))?;
                continue;
            };
            let Some(pool) = pools.iter().position(|pool| pool.uuid == identity.uuid) else {
                return Err(JournalError::NoPool { path, uuid: identity.uuid });
            };
            if pools[pool] != identity {
                warn!(region = id.0, uuid = %identity.uuid, "its pool was emptied since: the region is gone");
                remove(&path).map_err(failed(&self.folder))?;
                continue;
            }
            let pool = PoolId(u32::try_from(pool).expect("pools are named by a u32"));
            saved.regions.push(SavedRegion { pool, ..region });
            self.tables.insert(id.0, table);
        }
        Ok(())
    }

    /// The key of the deployment's digests.
    pub fn digest_key(&self) -> DigestKey {
        self.state.digest_key()
    }

    /// The table of a region that is about to be committed.
    pub(crate) fn adopt(&mut self, id: RegionId, table: PageTable) {
        self.tables.insert(id.0, table);
    }

    /// Regions that were not restored, orphans without an entry, are no more, and instances are told of a grace period.
    pub(crate) fn settle(&mut self, state: &State) {
        self.state.promise(state.promised_grace());
        self.tables.retain(|id, table| {
            let is_there = state.region(RegionId(*id)).is_some();
            if !is_there {
                table.retire();
            }
            is_there
        });
    }

    /// Writes a change down.
    pub(crate) fn note(&mut self, change: &Change, state: &State) {
        match *change {
            Change::Opened(number) => {
                // Otherwise it ended again before anybody learned of it.
                if let Some((name, token)) = state.identity(number) {
                    self.state.open_instance(number, name, token);
                }
            }
            Change::Ended(number) => self.state.end_instance(number),
            Change::Committed(id) => {
                self.state.region_begun(id);
                self.table(id).commit();
            }
            Change::Disowned(id) => self.table(id).disown(),
            Change::Retired(id) => {
                if let Some(mut table) = self.tables.remove(&id.0) {
                    table.retire();
                }
            }
            Change::Stored { region, page, digest, length, generation, checksum } => {
                self.state.registered(generation);
                let entry = SavedEntry { page, digest, length, generation, checksum };
                self.table(region).store(&entry);
            }
            Change::Freed { region, page } => self.table(region).free(page),
            Change::Held { region, page } => self.table(region).hold(page),
            Change::Recovered => self.state.promise(state.promised_grace()),
        }
    }

    fn table(&mut self, id: RegionId) -> &mut PageTable {
        self.tables
            .get_mut(&id.0)
            .expect("a region has a table from before it is committed until it is retired")
    }
}

/// The file of a region's page table.
pub(crate) fn table_path(folder: &Path, id: RegionId) -> PathBuf {
    folder.join(format!("region-{}.pages", id.0))
}

/// Makes the file of a region's page table, in the folder of the journal. The region lies in this pool.
///
/// # Errors
/// What the system says; nothing is left behind then.
pub fn make_table(folder: &Path, region: &RegionInfo, pool: PoolIdentity) -> io::Result<PageTable> {
    let path = table_path(folder, region.id);
    PageTable::create(&path, region, pool).inspect_err(|_| {
        let _ = fs::remove_file(&path);
    })
}

/// The ids of regions that there is a page table of.
fn table_files(folder: &Path) -> io::Result<Vec<RegionId>> {
    let mut ids = Vec::new();
    for file in fs::read_dir(folder)? {
        let name = file?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("region-")?.strip_suffix(".pages"));
        ids.extend(id.and_then(|id| id.parse().ok()).map(RegionId));
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> JournalError {
    let path = path.to_owned();
    |source| JournalError::Io { path, source }
}

fn damaged<T>(path: &Path, what: impl Into<String>) -> Result<T, JournalError> {
    Err(JournalError::Damaged { path: path.to_owned(), what: what.into() })
}

/// Maps so many bytes of a file for reading and writing, and has their memory brought in.
fn map(file: &fs::File, bytes: u64) -> io::Result<memmap2::MmapMut> {
    let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the file is private to the servers of this pool, of which the pool's lock allows one at a time; nobody
    // shortens it while it is mapped.
    unsafe { memmap2::MmapOptions::new().len(bytes).populate().map_mut(file) }
}

#[cfg(test)]
mod tests;
