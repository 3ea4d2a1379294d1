//! The server that is measured: one that runs already, or one of the measurement's own.

use std::env;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::cli::ServerArgs;
use crate::error::BenchError;
use crate::placement::start_on;
use crate::server_process::{ServerOptions, ServerProcess};

/// What a measurement needs of a server of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs {
    /// Bytes of the pool.
    pub(crate) pool_size: u64,
    /// Entries, as many as pages in all regions.
    pub(crate) max_entries: u64,
    /// Whether the pool is to be on huge pages that the server mounts.
    pub(crate) mount: bool,
}

/// The server that is measured.
#[derive(Debug)]
pub(crate) struct Target {
    socket: PathBuf,
    // Dropped in this order, whatever happens: first the server, then its memory.
    own: Option<ServerProcess>,
    pool: Option<TempDir>,
    _run: Option<TempDir>,
}

impl Target {
    /// The server that the options name, or else a new one.
    ///
    /// # Errors
    /// [`BenchError`] where there is none and none starts.
    pub(crate) fn open(args: &ServerArgs, needs: &Needs) -> Result<Target, BenchError> {
        match &args.connect {
            Some(socket) => Ok(Target { socket: socket.clone(), own: None, pool: None, _run: None }),
            None => Target::start(args, needs),
        }
    }

    /// A new server, also where the options name one that runs.
    ///
    /// # Errors
    /// [`BenchError`] where none starts.
    pub(crate) fn start(args: &ServerArgs, needs: &Needs) -> Result<Target, BenchError> {
        let pool = fresh_folder(if needs.mount { env::temp_dir() } else { args.pool_dir.clone() }.as_path())?;
        let run = fresh_folder(&env::temp_dir())?;
        let socket = run.path().join("maru.sock");
        let process = start_on(args.pin_server.as_ref(), || {
            ServerProcess::start(&ServerOptions {
                socket: &socket,
                pool: pool.path(),
                mount: needs.mount,
                pool_size: needs.pool_size,
                max_entries: needs.max_entries,
                arguments: &args.server_options(),
                host: None,
            })
        })?;
        Ok(Target { socket, own: Some(process), pool: Some(pool), _run: Some(run) })
    }

    /// The server's socket.
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    /// The folder of the pool, where the server is the measurement's own.
    pub(crate) fn pool(&self) -> Option<&Path> {
        self.pool.as_ref().map(TempDir::path)
    }

    /// An error as it is to be told: where the server ended, its own words say more than the complaint of a client.
    pub(crate) fn explain(&mut self, error: BenchError) -> BenchError {
        match &mut self.own {
            Some(server) => server.explain(error),
            None => error,
        }
    }

    /// Ends a server of the measurement's own.
    ///
    /// # Errors
    /// [`BenchError`] where it failed.
    pub(crate) fn stop(self) -> Result<(), BenchError> {
        self.own.map_or(Ok(()), ServerProcess::stop)
    }
}

/// A folder in `parent` that is removed when dropped.
///
/// # Errors
/// [`BenchError`] where it can't be made.
pub(crate) fn fresh_folder(parent: &Path) -> Result<TempDir, BenchError> {
    tempfile::Builder::new()
        .prefix("maru-bench-")
        .tempdir_in(parent)
        .map_err(BenchError::system(format!("make a folder in {}", parent.display())))
}
