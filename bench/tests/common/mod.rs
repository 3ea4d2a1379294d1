//! What runs of `maru-bench` have in common: folders of their own, and nothing left in them.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

/// Folders of one run: for its files, and for its pool.
pub(crate) struct Folders {
    pub(crate) files: TempDir,
    pub(crate) pool: TempDir,
}

impl Folders {
    pub(crate) fn new() -> Folders {
        let pool = tempfile::Builder::new().prefix("maru-bench-test-").tempdir_in("/dev/shm").unwrap();
        Folders { files: tempfile::tempdir().unwrap(), pool }
    }

    /// Runs a subcommand in the folder for files, with its pool in the other.
    pub(crate) fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_maru-bench"));
        command.arg(subcommand).arg("--pool-dir").arg(self.pool.path()).current_dir(&self.files);
        command
    }

    pub(crate) fn pool_is_empty(&self) -> bool {
        fs::read_dir(&self.pool).unwrap().next().is_none()
    }
}
