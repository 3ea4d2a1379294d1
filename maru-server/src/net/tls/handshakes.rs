//! The thread that takes connections and shakes hands.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, info, warn};

use super::super::listener::{BACK_OFF, is_of_peer, prepare};
use super::carriers::{Carriers, FAREWELL};
use super::{CertificateFiles, HandshakeLimits};

/// What the thread has.
pub(super) struct Handshakes {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    files: CertificateFiles,
    limits: HandshakeLimits,
    carriers: Carriers,
    arrivals: mpsc::Sender<UnixStream>,
    /// Handshakes, some of which have ended; the oldest comes first.
    under_way: VecDeque<AbortHandle>,
}

impl Handshakes {
    /// Takes connections until nobody receives them any more.
    pub(super) fn start(
        listener: std::net::TcpListener,
        configuration: Arc<ServerConfig>,
        files: CertificateFiles,
        limits: HandshakeLimits,
        carriers: Carriers,
        arrivals: mpsc::Sender<UnixStream>,
    ) -> io::Result<JoinHandle<()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (listener, hang_up) = {
            let _inside = runtime.enter();
            (TcpListener::from_std(listener)?, signal(SignalKind::hangup())?)
        };
        let acceptor = TlsAcceptor::from(configuration);
        let under_way = VecDeque::with_capacity(limits.at_once);
        let handshakes = Handshakes { listener, acceptor, files, limits, carriers, arrivals, under_way };
        std::thread::Builder::new()
            .name("tls-handshakes".to_owned())
            .spawn(move || runtime.block_on(handshakes.run(hang_up)))
    }

    async fn run(mut self, mut hang_up: Signal) {
        loop {
            tokio::select! {
                accepted = self.listener.accept() => match accepted.and_then(|(stream, peer)| self.begin(stream, peer)) {
                    Ok(()) => {}
                    Err(error) if is_of_peer(&error) => debug!(%error, "a connection ended before it was accepted"),
                    Err(error) => {
                        warn!(%error, "can't accept connections for now");
                        sleep(BACK_OFF).await;
                    }
                },
                _ = hang_up.recv() => self.reload(),
                () = self.arrivals.closed() => return,
            }
        }
    }

    /// Connections that follow are served by the files as they are now.
    fn reload(&mut self) {
        match self.files.load() {
            Ok(configuration) => {
                self.acceptor = configuration.into();
                info!(certificate = %self.files.chain.display(), "SIGHUP: certificates are read again");
            }
            Err(error) => error!(%error, "SIGHUP: going on with the certificates as they were"),
        }
    }

    /// Shakes hands with a peer, beside others.
    fn begin(&mut self, stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        let stream = stream.into_std()?;
        prepare(&stream)?;
        let stream = self.carriers.adopt(stream)?;
        self.make_place();
        let (acceptor, carriers, arrivals) =
            (self.acceptor.clone(), self.carriers.clone(), self.arrivals.clone());
        let deadline = self.limits.deadline;
        let handshake = async move {
            let outer = match timeout(deadline, acceptor.accept(stream).into_fallible()).await {
                Ok(Ok(outer)) => outer,
                Ok(Err((error, stream))) => {
                    tell(peer, &error);
                    return take_leave(stream).await;
                }
                Err(_) => return debug!(%peer, "closing a connection that did not shake hands in time"),
            };
            match carriers.carry(outer) {
                // Nobody receives it once the server stops.
                Ok(inner) => drop(arrivals.send(inner).await),
                Err(error) => warn!(%error, "can't carry a connection"),
            }
        };
        self.under_way.push_back(tokio::spawn(handshake).abort_handle());
        Ok(())
    }

    /// Ends the oldest handshakes where too many are under way: however many peers do not finish theirs, they keep nobody out.
    fn make_place(&mut self) {
        if self.under_way.len() < self.limits.at_once {
            return;
        }
        self.under_way.retain(|handshake| !handshake.is_finished());
        if self.under_way.len() >= self.limits.at_once
            && let Some(oldest) = self.under_way.pop_front()
        {
            debug!("closing a connection that has not shaken hands, for another");
            oldest.abort();
        }
    }
}

/// Tells the operator whom a certificate or a version kept out; whoever speaks no TLS at all may do so as often as it likes.
fn tell(peer: SocketAddr, error: &io::Error) {
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        None | Some(rustls::Error::InvalidMessage(_)) => debug!(%peer, %error, "a peer did not shake hands"),
        Some(error) => info!(%peer, %error, "a peer did not shake hands"),
    }
}

/// Closes a connection on which the peer was told why. With something unread it would break before the peer has read that.
async fn take_leave(mut stream: TcpStream) {
    let farewell = async {
        stream.shutdown().await?;
        let mut unread = [0; 4096];
        while stream.read(&mut unread).await? > 0 {}
        io::Result::Ok(())
    };
    // An error says that the peer was faster.
    let _ = timeout(FAREWELL, farewell).await;
}
