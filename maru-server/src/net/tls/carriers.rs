//! The thread that carries what is said between peers, who say it encrypted, and the ring.

use std::convert::Infallible;
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_rustls::server::TlsStream;
use tracing::debug;

/// Bytes that are held of a connection in each direction before its sender has to wait: a request or answer for 512 keys, whole.
const BUFFER: usize = 32 * 1024;
/// How long a peer may take to take the last that it is told once its connection is closed.
pub(super) const FAREWELL: Duration = Duration::from_secs(1);

/// The thread, as long as somebody may have something to carry.
#[derive(Clone)]
pub(super) struct Carriers {
    thread: Handle,
    /// Never sent through: the thread ends when nobody has it any more.
    in_use: mpsc::Sender<Infallible>,
}

impl Carriers {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<(Carriers, JoinHandle<()>)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (in_use, mut unused) = mpsc::channel::<Infallible>(1);
        let carriers = Carriers { thread: runtime.handle().clone(), in_use };
        let run = move || {
            runtime.block_on(async move {
                let _: Option<Infallible> = unused.recv().await;
            });
        };
        Ok((carriers, std::thread::Builder::new().name("tls".to_owned()).spawn(run)?))
    }

    /// A socket whose readiness this thread watches, whoever shakes hands over it.
    pub(super) fn adopt(&self, stream: std::net::TcpStream) -> io::Result<TcpStream> {
        let _inside = self.thread.enter();
        TcpStream::from_std(stream)
    }

    /// Carries what is said on a connection from now on; the socket on which it is said and heard decrypted.
    pub(super) fn carry(&self, outer: TlsStream<TcpStream>) -> io::Result<UnixStream> {
        let (inner, of_ring) = UnixStream::pair()?;
        inner.set_nonblocking(true)?;
        let inner = {
            let _inside = self.thread.enter();
            tokio::net::UnixStream::from_std(inner)?
        };
        let in_use = self.in_use.clone();
        self.thread.spawn(async move {
            carry(outer, inner).await;
            drop(in_use);
        });
        Ok(of_ring)
    }
}

/// Carries until both sides have closed, one is lost, or the server has closed and the peer does not take what is left.
async fn carry(mut outer: TlsStream<TcpStream>, inner: tokio::net::UnixStream) {
    let mut end = End(&inner);
    let both = copy_bidirectional_with_sizes(&mut outer, &mut end, BUFFER, BUFFER);
    // That the other end is closed is known also while the peer takes nothing, and nothing is read for it.
    let closed = async {
        let _ = inner.ready(Interest::PRIORITY).await;
        sleep(FAREWELL).await;
    };
    tokio::select! {
        ended = both => if let Err(error) = ended {
            debug!(%error, "a connection of TLS broke");
        },
        () = closed => debug!("closing a connection of TLS whose peer does not take its last answers"),
    }
}

/// The inner socket, borrowed, so that it can be watched while it is read and written. However the server closes its end, what it has
/// said goes out, and then the peer is told the end in the words of TLS.
struct End<'a>(&'a tokio::net::UnixStream);

impl AsyncRead for End<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read_buf(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The server has closed its end with something unread: the end of the stream.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Poll::Ready(Ok(())),
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for End<'_> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The server reads no more, and what comes nevertheless is nobody's.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    return Poll::Ready(Ok(bytes.len()));
                }
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        match rustix::net::shutdown(self.0, Shutdown::Write) {
            // The other end was faster.
            Ok(()) | Err(rustix::io::Errno::NOTCONN) => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(error.into())),
        }
    }
}
