//! Where connections come from: the Unix socket, the TCP address, and the loop that accepts.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::mpsc;
use tracing::{debug, error, warn};

use super::Shared;
use super::admission::Admission;
use super::connection;
use super::stream::Stream;
use crate::error::ServerError;

/// How long accepting pauses where the system has no descriptor or memory for a connection.
pub(super) const BACK_OFF: Duration = Duration::from_millis(50);

/// After how long without a byte a TCP peer is probed, how long it is waited for an answer, and how many may be missing.
const PROBE_AFTER: Duration = Duration::from_secs(5);
const PROBE_AGAIN: Duration = Duration::from_secs(3);
const PROBES: u32 = 3;

/// A socket that accepts.
pub(super) enum Listener {
    /// On a path.
    Unix(UnixListener),
    /// On an address.
    Tcp(TcpListener),
    /// On an address where TLS is spoken, by threads that hand the connections over decrypted.
    Tls(SocketAddr, mpsc::Receiver<UnixStream>),
}

impl Listener {
    /// Listens on an address.
    pub(super) fn tcp(address: SocketAddr) -> Result<Listener, ServerError> {
        let failed = |source| ServerError::Listen { address, source };
        // The standard listener sets SO_REUSEADDR, so that a restart does not wait for old connections.
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        TcpListener::from_std(listener).map(Listener::Tcp).map_err(failed)
    }

    /// The address, where it has one.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match self {
            Listener::Unix(_) => None,
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Tls(address, _) => Some(*address),
        }
    }

    /// Whether TLS is spoken there.
    pub(super) fn is_encrypted(&self) -> bool {
        matches!(self, Listener::Tls(..))
    }

    /// The next connection, handed over to the ring, which wants its sockets blocking.
    async fn accept(&mut self) -> io::Result<Stream> {
        match self {
            Listener::Unix(listener) => {
                let stream = listener.accept().await?.0.into_std()?;
                stream.set_nonblocking(false)?;
                Ok(Stream::Unix(tokio_uring::net::UnixStream::from_std(stream)))
            }
            Listener::Tcp(listener) => {
                let stream = listener.accept().await?.0.into_std()?;
                stream.set_nonblocking(false)?;
                prepare(&stream)?;
                Ok(Stream::Tcp(tokio_uring::net::TcpStream::from_std(stream)))
            }
            Listener::Tls(_, arrivals) => match arrivals.recv().await {
                Some(stream) => Ok(Stream::Tls(tokio_uring::net::UnixStream::from_std(stream))),
                None => {
                    error!("the threads of TLS have ended, so nobody can connect by TLS; restart the server");
                    std::future::pending().await
                }
            },
        }
    }
}

/// Has the kernel send small answers at once, and end a connection whose peer does not answer any more: its host is gone, or the way
/// to it.
pub(super) fn prepare(stream: &std::net::TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_AGAIN)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    // Probes do not count while bytes wait to be acknowledged.
    let patience = PROBE_AFTER + PROBE_AGAIN * PROBES;
    sockopt::set_tcp_user_timeout(stream, u32::try_from(patience.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

/// The socket's file, which goes when this does.
pub(super) struct SocketFile {
    path: PathBuf,
}

impl SocketFile {
    /// Listens on a path, or the default one; takes over a socket that nobody listens on any more.
    /// Where others than the server's own user may connect, their user is what is looked at, and no longer the file's mode.
    pub(super) fn listen(
        path: Option<&Path>,
        admission: &Admission,
    ) -> Result<(SocketFile, Listener), ServerError> {
        let path = path.map_or_else(default_socket_path, Path::to_owned);
        let failed = |source| ServerError::Socket { path: path.clone(), source };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            let mode = if admission.is_shared() { 0o711 } else { 0o700 };
            DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(failed)?;
        }
        match UnixStream::connect(&path) {
            Ok(_) => return Err(ServerError::SocketInUse(path)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path).map_err(failed)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        let listener = UnixListener::bind(&path).map_err(failed)?;
        if admission.is_shared() {
            std::fs::set_permissions(&path, Permissions::from_mode(0o666)).map_err(failed)?;
        }
        Ok((SocketFile { path }, Listener::Unix(listener)))
    }

    /// The socket's path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!(socket = %self.path.display(), %error, "could not remove the socket");
        }
    }
}

/// `$XDG_RUNTIME_DIR/maru/maru.sock`, else a folder of the user's own under the temporary directory.
fn default_socket_path() -> PathBuf {
    let folder = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if !runtime.is_empty() => PathBuf::from(runtime).join("maru"),
        _ => std::env::temp_dir().join(format!("maru-{}", rustix::process::geteuid().as_raw())),
    };
    folder.join("maru.sock")
}

/// Accepts for as long as the server runs. Accepting is rare and goes by readiness, outside the ring: an accept in
/// the ring that is given up loses a connection that the kernel has already accepted.
pub(super) async fn accept(shared: Rc<Shared>, mut listener: Listener) {
    loop {
        match listener.accept().await {
            Ok(stream) => connection::start(&shared, stream),
            Err(error) if is_of_peer(&error) => debug!(%error, "a connection ended before it was accepted"),
            Err(error) => match Errno::from_io_error(&error) {
                // Nothing is wrong with the listener: wait for descriptors or memory, and don't spin.
                Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    warn!(%error, "can't accept connections for now");
                    tokio::time::sleep(BACK_OFF).await;
                }
                _ => {
                    warn!(%error, "accepting failed");
                    tokio::time::sleep(BACK_OFF).await;
                }
            },
        }
    }
}

/// Whether a connection can't be accepted because its peer was gone before that.
pub(super) fn is_of_peer(error: &io::Error) -> bool {
    let of_peer = [Errno::CONNABORTED, Errno::INTR, Errno::PROTO, Errno::PERM];
    Errno::from_io_error(error).is_some_and(|errno| of_peer.contains(&errno))
}
