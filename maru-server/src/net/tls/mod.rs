//! TLS beside the ring: two threads stand between the peers of `--listen` and the serving thread.
//!
//! One takes connections and shakes hands; the other carries what is said, decrypted, over a pair of Unix sockets whose other end
//! goes to the ring as any connection does. So the ring knows nothing of TLS, no handshake costs the serving thread anything, and
//! handshakes in whatever number take no time from those who have shaken hands.

mod carriers;
mod certificates;
mod handshakes;

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::error::ServerError;
use crate::options::Options;
use carriers::Carriers;
pub(crate) use certificates::CertificateFiles;
use handshakes::Handshakes;

/// Connections on which hands were shaken and which the serving thread has not taken yet.
const ARRIVALS: usize = 64;

/// What hands may be shaken by.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandshakeLimits {
    /// How long one may take.
    pub(super) deadline: Duration,
    /// How many may be under way.
    pub(super) at_once: usize,
}

/// The threads, for the server's end.
pub(super) struct Threads(Vec<JoinHandle<()>>);

impl Threads {
    /// Waits until everything that was answered has gone out: at most a moment after all connections are closed and their listener
    /// is dropped.
    pub(super) fn join(self) {
        for thread in self.0 {
            // A panic has been told of.
            let _ = thread.join();
        }
    }
}

/// Listens on an address; the connections come decrypted.
///
/// # Errors
/// [`ServerError`] where the address can't be had, the files can't be used, or the system has no threads.
pub(super) fn start(
    address: SocketAddr,
    files: CertificateFiles,
    limits: HandshakeLimits,
) -> Result<(SocketAddr, mpsc::Receiver<UnixStream>, Threads), ServerError> {
    let configuration = files.load()?;
    let failed = |source| ServerError::Listen { address, source };
    // The standard listener sets SO_REUSEADDR, so that a restart does not wait for old connections.
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let (arrivals, arrived) = mpsc::channel(ARRIVALS);
    let spawn = || -> io::Result<Threads> {
        let (carriers, carrying) = Carriers::start()?;
        let handshakes = Handshakes::start(listener, configuration, files, limits, carriers, arrivals)?;
        Ok(Threads(vec![handshakes, carrying]))
    };
    let threads = spawn().map_err(|source| ServerError::System { what: "can't start TLS", source })?;
    Ok((address, arrived, threads))
}

/// The files that the options name, where they do.
pub(crate) fn files(options: &Options) -> Option<CertificateFiles> {
    let (chain, key) = options.tls_cert.clone().zip(options.tls_key.clone())?;
    Some(CertificateFiles { chain, key, client_authorities: options.tls_client_ca.clone() })
}
