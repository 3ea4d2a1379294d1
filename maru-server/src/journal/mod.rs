//! What makes a restart warm: everything that has to outlive the server's process, in files of the pool's folder.
//!
//! There is no log. Each page of a region has a record of its own in a file beside the region's memory ([`PageTable`]), each
//! instance a slot in one file (`StateFile`), and a change overwrites the record that it is about, in a shared mapping: what
//! was written is the kernel's, and survives the process as the pool's memory does. So the files never grow with time, and
//! nothing is ever compacted. A record becomes valid by one store of a word, the last of its stores; the order of a process's
//! own stores is what a `kill -9` leaves behind.
//!
//! A host that goes down takes the page cache along, and with it the order of stores. Files of an earlier boot are not believed.

mod page_table;
mod state_file;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hashbrown::HashMap;
use maru_proto::DigestKey;
use tracing::{info, warn};

use crate::state::{Change, RegionId, RegionInfo, Saved, SavedEntry, Scatter, State};
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

/// The journal of a pool.
#[derive(Debug)]
pub struct Journal {
    state: StateFile,
    /// Of regions that are not retired.
    tables: Tables,
}

impl Journal {
    /// Opens the journal of a pool's folder, or begins one, with room for so many instances. What was kept comes along,
    /// nothing where it was discarded because it is of an earlier boot, or on request.
    ///
    /// # Errors
    /// [`JournalError`]; nothing was changed then.
    pub fn open(folder: &Path, max_instances: u32, fresh: bool) -> Result<(Journal, Saved), JournalError> {
        let path = folder.join("maru.state");
        let found = if fresh { Found::Nothing } else { StateFile::open(&path, max_instances)? };
        let (state, saved, tables) = match found {
            Found::Kept(state, mut saved) => {
                let tables = read_tables(folder, &mut saved)?;
                // What was being made or released when the process ended.
                remove_regions(folder, |id| tables.contains_key(&id)).map_err(failed(folder))?;
                (state, saved, tables)
            }
            found => {
                if matches!(found, Found::OfEarlierBoot) {
                    warn!(pool = %folder.display(), "the host was started anew since: what the pool holds is discarded");
                }
                // Before there is a journal that could be taken for theirs.
                let removed = remove_regions(folder, |_| false).map_err(failed(folder))?;
                if removed > 0 {
                    info!(pool = %folder.display(), removed, "removed region files that no directory knows");
                }
                (StateFile::create(&path, max_instances)?, Saved::default(), Tables::with_hasher(Scatter))
            }
        };
        Ok((Journal { state, tables }, saved))
    }

    /// The key of the deployment's digests.
    pub fn digest_key(&self) -> DigestKey {
        self.state.digest_key()
    }

    /// The table of a region that is about to be committed.
    pub(crate) fn adopt(&mut self, id: RegionId, table: PageTable) {
        self.tables.insert(id.0, table);
    }

    /// Regions that were not restored, orphans without an entry, are no more.
    pub(crate) fn settle(&mut self, state: &State) {
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
        }
    }

    fn table(&mut self, id: RegionId) -> &mut PageTable {
        self.tables
            .get_mut(&id.0)
            .expect("a region has a table from before it is committed until it is retired")
    }
}

/// The file of a region's memory.
pub(crate) fn region_path(folder: &Path, id: RegionId) -> PathBuf {
    folder.join(format!("region-{}", id.0))
}

/// The file of a region's page table.
pub(crate) fn table_path(folder: &Path, id: RegionId) -> PathBuf {
    folder.join(format!("region-{}.pages", id.0))
}

/// Makes the file of a region's page table.
///
/// # Errors
/// What the system says; nothing is left behind then.
pub fn make_table(folder: &Path, region: &RegionInfo) -> io::Result<PageTable> {
    let path = table_path(folder, region.id);
    PageTable::create(&path, region).inspect_err(|_| {
        let _ = fs::remove_file(&path);
    })
}

/// Reads all tables of regions that were committed and not retired, and checks that the memory is there.
fn read_tables(folder: &Path, saved: &mut Saved) -> Result<Tables, JournalError> {
    let mut tables = Tables::with_hasher(Scatter);
    for id in region_files(folder).map_err(failed(folder))? {
        let path = table_path(folder, RegionId(id));
        let Some((table, region)) = PageTable::open(&path, RegionId(id))? else { continue };
        let memory = region_path(folder, region.id);
        let bytes = fs::metadata(&memory).map(|memory| memory.len());
        if !bytes.as_ref().is_ok_and(|bytes| *bytes == region.extent) {
            let what = format!(
                "it has to have {} bytes, and {}",
                region.extent,
                match bytes {
                    Ok(bytes) => format!("has {bytes}"),
                    Err(error) => format!("can't be looked at: {error}"),
                }
            );
            return Err(JournalError::Damaged { path: memory, what });
        }
        saved.regions.push(region);
        tables.insert(id, table);
    }
    Ok(tables)
}

/// The ids of regions that there is a file of, each once.
pub(crate) fn region_files(folder: &Path) -> io::Result<Vec<u32>> {
    let mut ids = Vec::new();
    for file in fs::read_dir(folder)? {
        let name = file?.file_name();
        let id = name.to_str().and_then(|name| name.strip_prefix("region-"));
        let id = id.map(|id| id.strip_suffix(".pages").unwrap_or(id));
        ids.extend(id.and_then(|id| id.parse::<u32>().ok()));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// Removes the files of all regions but those to be kept, and says how many regions these were.
fn remove_regions(folder: &Path, keep: impl Fn(u32) -> bool) -> io::Result<usize> {
    let mut removed = 0;
    for id in region_files(folder)?.into_iter().filter(|id| !keep(*id)) {
        for path in [region_path(folder, RegionId(id)), table_path(folder, RegionId(id))] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        removed += 1;
    }
    Ok(removed)
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
