//! The folder that the journal lies in: one server's at a time, which counts its runs there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::ServerError;

/// The file that is locked, with the number of the last run in it.
const LOCK_FILE: &str = "maru.lock";

/// The folder, and the number of this run.
#[derive(Debug)]
pub(crate) struct StateFolder {
    path: PathBuf,
    epoch: u64,
    /// Held for its lock.
    _lock: File,
}

impl StateFolder {
    /// Takes the folder, which is made where it does not exist, and counts this run.
    ///
    /// # Errors
    /// [`ServerError`] where it can't be used, or another server uses it.
    pub(crate) fn open(path: &Path) -> Result<StateFolder, ServerError> {
        let failed = |source| ServerError::State { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut lock = options.open(path.join(LOCK_FILE)).map_err(failed)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(ServerError::StateInUse(path)),
            Err(error) => return Err(failed(error.into())),
        }
        let mut text = String::new();
        lock.read_to_string(&mut text).map_err(failed)?;
        let epoch = text.trim().parse().unwrap_or(0u64) + 1;
        lock.rewind().map_err(failed)?;
        lock.set_len(0).map_err(failed)?;
        writeln!(lock, "{epoch}").map_err(failed)?;
        Ok(StateFolder { path, epoch, _lock: lock })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The number of this run in this folder; grows at each start.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_server_on_the_same_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateFolder::open(folder.path()).unwrap();
        let second = StateFolder::open(folder.path()).unwrap_err();
        assert!(matches!(second, ServerError::StateInUse(_)), "{second}");
        drop(first);
        StateFolder::open(folder.path()).unwrap();
    }

    #[test]
    fn the_epoch_grows_at_each_start() {
        let folder = tempfile::tempdir().unwrap();
        let epoch = || StateFolder::open(folder.path()).unwrap().epoch();
        assert_eq!([epoch(), epoch(), epoch()], [1, 2, 3]);
    }
}
