//! A connected socket in the ring: Unix, TCP, or the end at which TLS comes decrypted.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, BorrowedFd};

use tokio_uring::buf::{BoundedBuf, BoundedBufMut};
use tokio_uring::net::{TcpStream, UnixStream};

use crate::service::Transport;

/// Any kind of stream.
pub(super) enum Stream {
    /// A Unix socket.
    Unix(UnixStream),
    /// A TCP connection.
    Tcp(TcpStream),
    /// A TCP connection whose bytes another thread carries, encrypted outside and plain on this socket.
    Tls(UnixStream),
}

impl Stream {
    /// How the peer is connected.
    pub(super) const fn transport(&self) -> Transport {
        match self {
            Stream::Unix(_) => Transport::Unix,
            Stream::Tcp(_) | Stream::Tls(_) => Transport::Tcp,
        }
    }

    /// Reads what is there, at least one byte; 0 at the end of the stream.
    pub(super) async fn read<B: BoundedBufMut>(&self, buffer: B) -> (io::Result<usize>, B) {
        match self {
            Stream::Unix(stream) | Stream::Tls(stream) => stream.read(buffer).await,
            Stream::Tcp(stream) => stream.read(buffer).await,
        }
    }

    /// Writes the whole buffer.
    pub(super) async fn write_all<B: BoundedBuf>(&self, buffer: B) -> (io::Result<()>, B) {
        match self {
            Stream::Unix(stream) | Stream::Tls(stream) => stream.write_all(buffer).await,
            Stream::Tcp(stream) => stream.write_all(buffer).await,
        }
    }

    /// Ends reading, writing or both, also for operations under way.
    pub(super) fn shutdown(&self, how: Shutdown) {
        // An error says that the peer was faster.
        let _ = match self {
            Stream::Unix(stream) | Stream::Tls(stream) => stream.shutdown(how),
            Stream::Tcp(stream) => stream.shutdown(how),
        };
    }

    /// The descriptor, for as long as the stream is borrowed.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        let fd = match self {
            Stream::Unix(stream) | Stream::Tls(stream) => stream.as_raw_fd(),
            Stream::Tcp(stream) => stream.as_raw_fd(),
        };
        // SAFETY: the stream keeps the descriptor open, and the borrow does not outlive the stream.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }
}
