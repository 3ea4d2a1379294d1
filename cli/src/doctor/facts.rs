//! What there is to know of the host and the server, gathered without judging it.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use maru_client::{Address, default_socket_path};
use maru_server::examination::{self, PoolPlace};
use rustix::process::{Resource, getrlimit};

use crate::cli::{DoctorArgs, ServerArgs};
use crate::error::CliError;
use crate::server::{connect, identity};

/// The facts that the checks go by.
#[derive(Debug)]
pub(super) struct Facts {
    /// The kernel's release, such as `6.18.0-1`.
    pub(super) kernel: String,
    /// Whether the kernel gives the ring that a server needs, or why not.
    pub(super) ring: Result<(), String>,
    /// Bytes that may be locked; `None` for any number.
    pub(super) memlock: Option<u64>,
    /// The pools.
    pub(super) pools: Vec<PoolFacts>,
    /// Where a server is expected; `None` where nobody asks for one.
    pub(super) server: Option<ServerFacts>,
}

/// A pool that a server has, or is to have.
#[derive(Clone, Debug)]
pub(super) struct PoolFacts {
    /// The folder, or the device.
    pub(super) path: PathBuf,
    /// What it is, or why it can't be looked at.
    pub(super) found: Result<PoolPlace, String>,
}

/// What there is at the server's address.
#[derive(Debug)]
pub(super) struct ServerFacts {
    /// The address.
    pub(super) address: Address,
    /// What the file system says of the socket; `None` for TCP.
    pub(super) socket: Option<Socket>,
    /// What the server says.
    pub(super) answer: Result<Told, CliError>,
}

/// A Unix socket, from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Socket {
    /// There is nothing.
    Missing,
    /// There is a file, and no socket.
    OtherFile,
    /// This user may not connect to it, or not even look at it.
    Forbidden,
    /// Nobody listens any more.
    Abandoned,
    /// Somebody listens; whether others could put another socket in its place.
    Open {
        /// The folder is others' to write to.
        is_replaceable: bool,
    },
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    /// Its release; `None` where it is too old to say.
    pub(super) release: Option<String>,
    /// Where its pools are.
    pub(super) pools: Vec<PathBuf>,
}

/// Looks at everything. What can't be looked at is a fact as well.
pub(super) fn gather(server: &ServerArgs, args: &DoctorArgs) -> Facts {
    let server = (!args.host).then(|| server_facts(server));
    let told = server.as_ref().and_then(|server| server.answer.as_ref().ok());
    let mut pools = args.pool.clone();
    if pools.is_empty() {
        // A pool of a server on another host is not here to be looked at.
        pools.extend(told.into_iter().flat_map(|told| told.pools.clone()).filter(|path| path.exists()));
    }
    if pools.is_empty() {
        pools.push(examination::default_pool_path());
    }
    Facts {
        kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        ring: examination::ring().map_err(|error| error.to_string()),
        memlock: getrlimit(Resource::Memlock).current,
        pools: pools.into_iter().map(look).collect(),
        server,
    }
}

fn look(path: PathBuf) -> PoolFacts {
    PoolFacts { found: examination::pool(&path).map_err(|error| error.to_string()), path }
}

fn server_facts(args: &ServerArgs) -> ServerFacts {
    let address = args.socket.clone().unwrap_or_else(|| Address::Unix(default_socket_path()));
    let socket = match &address {
        Address::Unix(path) => Some(socket(path)),
        Address::Tcp(_) | Address::Tls(_) => None,
    };
    ServerFacts { socket, answer: ask(args), address }
}

fn ask(args: &ServerArgs) -> Result<Told, CliError> {
    let maru = connect(args)?;
    let release = identity(&maru)?.and_then(|server| server.release().map(str::to_owned));
    let pools = maru.pools()?.iter().filter_map(|pool| pool.path().map(PathBuf::from)).collect();
    Ok(Told { release, pools })
}

fn socket(path: &Path) -> Socket {
    let of_error = |error: &io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => Socket::Forbidden,
        io::ErrorKind::ConnectionRefused => Socket::Abandoned,
        _ => Socket::Missing,
    };
    match path.symlink_metadata().and_then(|_| path.metadata()) {
        Err(error) => return of_error(&error),
        Ok(file) if !file.file_type().is_socket() => return Socket::OtherFile,
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Socket::Open { is_replaceable: path.parent().is_some_and(is_replaceable) },
        Err(error) => of_error(&error),
    }
}

/// Whether users other than its owner may rename what is in a folder; the sticky bit forbids that.
fn is_replaceable(folder: &Path) -> bool {
    folder.metadata().is_ok_and(|folder| folder.mode() & 0o022 != 0 && folder.mode() & 0o1000 == 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_is_told_from_what_is_in_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("maru.sock");
        assert_eq!(socket(&path), Socket::Missing);
        std::fs::write(&path, "").unwrap();
        assert_eq!(socket(&path), Socket::OtherFile);
        std::fs::remove_file(&path).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(socket(&path), Socket::Open { is_replaceable: false });
        for (mode, is_replaceable) in [(0o777, true), (0o1777, false), (0o711, false)] {
            std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(socket(&path), Socket::Open { is_replaceable }, "{mode:o}");
        }
        drop(listener);
        assert_eq!(socket(&path), Socket::Abandoned);
    }
}
