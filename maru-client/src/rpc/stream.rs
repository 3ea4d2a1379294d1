//! A connected socket, Unix, TCP or TLS on TCP, that threads share.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::tls::TlsStream;
use crate::config::{Address, TlsFiles};
use crate::error::{Error, Result};

/// How long what was sent over TCP may stay unacknowledged before the connection counts as lost. TCP itself tries again ever more
/// seldom, so that a new connection finds a network that is back much sooner.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// How long an address may take to answer at all. A session that looks for its server by TCP, because its Unix socket is gone
/// for a moment, looks at the socket again only after that.
const UNANSWERED: Duration = Duration::from_secs(3);

/// Any kind of socket.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(Box<TlsStream>),
}

impl Stream {
    /// Connects to a server.
    ///
    /// # Errors
    /// [`Error::ServerNotRunning`] where nobody listens, [`Error::Connect`] for any other reason.
    pub(crate) fn connect(address: &Address, tls: &TlsFiles) -> Result<Stream> {
        let connected = match address {
            Address::Unix(path) => return connect_unix(path).map(Stream::Unix),
            Address::Tcp(host) => connect_tcp(host).map(Stream::Tcp),
            Address::Tls(host) => connect_tcp(host)
                .and_then(|socket| TlsStream::connect(socket, host, tls, UNANSWERED))
                .map(|stream| Stream::Tls(Box::new(stream))),
        };
        connected.map_err(|source| unreachable_at(address, source))
    }

    /// Bounds how long one read and one write may take.
    pub(crate) fn set_timeouts(&self, read: Duration, write: Duration) -> Result<()> {
        let set = match self {
            Stream::Unix(stream) => {
                stream.set_read_timeout(Some(read)).and_then(|()| stream.set_write_timeout(Some(write)))
            }
            Stream::Tcp(stream) => set_timeouts(stream, read, write),
            Stream::Tls(stream) => set_timeouts(stream.socket(), read, write),
        };
        set.map_err(|source| Error::Io { what: "set the timeouts of the connection", source })
    }

    /// Has reads and writes come back instead of waiting.
    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.set_nonblocking(true),
            Stream::Tcp(stream) => stream.set_nonblocking(true),
            Stream::Tls(stream) => stream.socket().set_nonblocking(true),
        }
    }

    /// The socket's descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(stream) => stream.as_fd(),
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Tls(stream) => stream.socket().as_fd(),
        }
    }

    /// Writes what the socket takes, at least a byte. After an error that says to try again, the same bytes have to come first.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).write(bytes),
            Stream::Tcp(stream) => (&*stream).write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    /// Ends both directions, also for whoever reads or writes at the moment.
    pub(crate) fn shutdown(&self) {
        // An error says that the peer was faster.
        let _ = match self {
            Stream::Unix(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Stream::Tls(stream) => stream.shutdown(),
        };
    }

    /// Reads what is there into `buffer`.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => (&*stream).read(buffer),
            Stream::Tcp(stream) => (&*stream).read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
        }
    }

    /// Writes all of `bytes`.
    pub(crate) fn write_all(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => (&*stream).write_all(bytes),
            Stream::Tcp(stream) => (&*stream).write_all(bytes),
            Stream::Tls(stream) => write_all(stream, bytes),
        }
    }
}

/// Connects to a server's Unix socket.
///
/// # Errors
/// Those of [`Stream::connect`].
pub(crate) fn connect_unix(path: &Path) -> Result<UnixStream> {
    UnixStream::connect(path).map_err(|source| unreachable_at(&Address::Unix(path.to_owned()), source))
}

fn unreachable_at(address: &Address, source: io::Error) -> Error {
    let address = address.to_string();
    match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => Error::ServerNotRunning { address },
        _ => Error::Connect { address, source },
    }
}

/// Connects to the first address of `host:port` that takes the connection.
fn connect_tcp(host: &str) -> io::Result<TcpStream> {
    let mut refused = io::Error::new(io::ErrorKind::InvalidInput, "the host has no address");
    for address in host.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, UNANSWERED) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                let patience = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
                rustix::net::sockopt::set_tcp_user_timeout(&stream, patience)?;
                return Ok(stream);
            }
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

fn set_timeouts(stream: &TcpStream, read: Duration, write: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(read))?;
    stream.set_write_timeout(Some(write))
}

fn write_all(stream: &TlsStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
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
        let error = Stream::connect(&Address::Tcp(address.to_string()), &TlsFiles::default()).unwrap_err();
        assert!(matches!(&error, Error::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut));
        assert!(began.elapsed() < 2 * UNANSWERED, "{error}");
    }
}
