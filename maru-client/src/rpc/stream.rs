//! A connected socket, Unix or TCP, that threads share.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::config::Address;
use crate::error::{Error, Result};

/// How long what was sent over TCP may stay unacknowledged before the connection counts as lost.
const UNACKNOWLEDGED: Duration = Duration::from_secs(15);

/// How long an address may take to answer at all. A session that looks for its server by TCP, because its Unix socket is gone
/// for a moment, looks at the socket again only after that.
const UNANSWERED: Duration = Duration::from_secs(3);

/// Either kind of socket.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    /// Connects to a server.
    ///
    /// # Errors
    /// [`Error::ServerNotRunning`] where nobody listens, [`Error::Connect`] for any other reason.
    pub(crate) fn connect(address: &Address) -> Result<Stream> {
        let connected = match address {
            Address::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
            Address::Tcp(host) => connect_tcp(host).and_then(|stream| {
                stream.set_nodelay(true)?;
                let patience = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
                rustix::net::sockopt::set_tcp_user_timeout(&stream, patience)?;
                Ok(Stream::Tcp(stream))
            }),
        };
        connected.map_err(|source| match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                Error::ServerNotRunning { address: address.to_string() }
            }
            _ => Error::Connect { address: address.to_string(), source },
        })
    }

    /// Bounds how long one read and one write may take.
    pub(crate) fn set_timeouts(&self, read: Duration, write: Duration) -> Result<()> {
        let set = match self {
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(read)).and_then(|()| stream.set_write_timeout(Some(write)))
            }
            Stream::Tcp(stream) => {
                stream.set_read_timeout(Some(read)).and_then(|()| stream.set_write_timeout(Some(write)))
            }
        };
        set.map_err(|source| Error::Io { what: "set the timeouts of the connection", source })
    }

    /// Has reads and writes come back instead of waiting.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.set_nonblocking(true),
            Stream::Tcp(stream) => stream.set_nonblocking(true),
        }
    }

    /// The socket's descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
        }
    }

    /// Writes what the socket takes, at least a byte.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).write(bytes),
            Stream::Tcp(stream) => (&*stream).write(bytes),
        }
    }

    /// Ends both directions, also for whoever reads or writes at the moment.
    pub(crate) fn shutdown(&self) {
        // An error says that the peer was faster.
        let _ = match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    /// Reads what is there into `buffer`.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).read(buffer),
            Stream::Tcp(stream) => (&*stream).read(buffer),
        }
    }

    /// Writes all of `bytes`.
    pub(crate) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => (&*stream).write_all(bytes),
            Stream::Tcp(stream) => (&*stream).write_all(bytes),
        }
    }
}

/// Connects to the first address of `host:port` that takes the connection.
fn connect_tcp(host: &str) -> io::Result<TcpStream> {
    let mut refused = io::Error::new(io::ErrorKind::InvalidInput, "the host has no address");
    for address in host.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, UNANSWERED) {
            Ok(stream) => return Ok(stream),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};

    use super::*;

    #[test]
    fn an_address_that_does_not_answer_is_given_up() {
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(&listener, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        listen(&listener, 0).unwrap();
        let address = std::net::SocketAddr::try_from(getsockname(&listener).unwrap()).unwrap();
        // The kernel takes one that nobody accepts, and then leaves who comes without an answer.
        let _taken = TcpStream::connect(address).unwrap();
        let began = Instant::now();
        let error = Stream::connect(&Address::Tcp(address.to_string())).unwrap_err();
        assert!(matches!(&error, Error::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut));
        assert!(began.elapsed() < 2 * UNANSWERED, "{error}");
    }
}
