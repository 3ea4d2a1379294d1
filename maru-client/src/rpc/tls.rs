//! TLS on a connected socket, in place: whoever writes encrypts, and whoever reads decrypts, on its own thread.
//!
//! The socket stays what is waited on. It is readable when there is something to decrypt, and hangs up when the server is lost.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, InconsistentKeys, RootCertStore,
};

use crate::config::TlsFiles;
use crate::sync::lock;

/// Bytes that are received at once: the longest record of TLS with what surrounds it.
const RECEIVE: usize = 17 * 1024;

/// A connection that speaks TLS. Threads may read and write at the same time.
pub(crate) struct TlsStream {
    socket: TcpStream,
    /// Locked after the one who reads or writes has locked its side.
    session: Mutex<ClientConnection>,
    incoming: Mutex<Incoming>,
    outgoing: Mutex<Outgoing>,
}

/// What was received and not decrypted yet.
struct Incoming {
    bytes: Box<[u8]>,
    unread: std::ops::Range<usize>,
}

/// What was encrypted and not sent yet, of which `sent` bytes have gone.
#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
    /// As how many bytes of its writer it counts.
    stands_for: usize,
}

/// Why no hands were shaken with a server. The texts say of it or of a file what is wrong, and what to do.
#[derive(Debug, thiserror::Error)]
enum TlsError {
    #[error("{} can't be used for TLS: {reason}", .path.display())]
    File { path: PathBuf, reason: String },
    #[error(
        "this host has no certificates of authorities{0}; install ca-certificates, or name a file with that of the server's \
         authority as tls_ca"
    )]
    NoAuthorities(String),
    #[error("{0:?} is no name that a certificate can be for")]
    Name(String),
    #[error(
        "the server's certificate is of no authority that is believed here; name a file with the certificate of its \
         authority as tls_ca"
    )]
    UnknownAuthority,
    #[error("{0}; use another name of the server in the address, or give it a certificate for this one")]
    OtherName(CertificateError),
    #[error("the server's {0}; give it a new one, or see that the clocks of both hosts are right")]
    Time(CertificateError),
    #[error("the server's certificate can't be used: {0}")]
    Certificate(CertificateError),
    #[error(
        "no TLS is spoken there; write tcp:// in the address, or start the server with --tls-cert and --tls-key"
    )]
    NotSpoken,
    #[error("the server asks for a certificate of this client; name it and its key as tls_identity")]
    IdentityWanted,
    #[error(
        "the server does not believe the certificate of this client ({0:?}); see that it is in time, and of an authority of the \
         server's --tls-client-ca"
    )]
    IdentityRefused(AlertDescription),
    #[error("the server closed the connection before hands were shaken; its log may say why")]
    Closed,
    #[error("the server did not shake hands within {0:?}; see whether a maru-server listens there")]
    Slow(Duration),
    #[error("TLS failed: {0}")]
    Other(rustls::Error),
}

impl From<rustls::Error> for TlsError {
    fn from(error: rustls::Error) -> TlsError {
        use AlertDescription as Alert;
        use CertificateError as Certificate;
        match error {
            rustls::Error::InvalidCertificate(error) => match error {
                // A bad signature is how an authority looks that was made anew under its old name.
                Certificate::UnknownIssuer | Certificate::BadSignature => TlsError::UnknownAuthority,
                Certificate::NotValidForName | Certificate::NotValidForNameContext { .. } => {
                    TlsError::OtherName(error)
                }
                Certificate::Expired
                | Certificate::ExpiredContext { .. }
                | Certificate::NotValidYet
                | Certificate::NotValidYetContext { .. } => TlsError::Time(error),
                error => TlsError::Certificate(error),
            },
            rustls::Error::InvalidMessage(_) => TlsError::NotSpoken,
            rustls::Error::AlertReceived(Alert::CertificateRequired) => TlsError::IdentityWanted,
            rustls::Error::AlertReceived(
                alert @ (Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::UnknownCA
                | Alert::DecryptError
                | Alert::AccessDenied),
            ) => TlsError::IdentityRefused(alert),
            error => TlsError::Other(error),
        }
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

fn failed(error: rustls::Error) -> io::Error {
    TlsError::from(error).into()
}

impl TlsStream {
    /// Shakes hands, on a socket that nobody else has yet, with the server that `host:port` names.
    ///
    /// # Errors
    /// What stands in the way, as a sentence.
    pub(super) fn connect(
        socket: TcpStream,
        address: &str,
        files: &TlsFiles,
        patience: Duration,
    ) -> io::Result<TlsStream> {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned()).map_err(|_| TlsError::Name(host.to_owned()))?;
        let mut session = ClientConnection::new(configuration(files)?, name).map_err(failed)?;
        shake_hands(&socket, &mut session, patience)?;
        Ok(TlsStream {
            socket,
            session: Mutex::new(session),
            incoming: Mutex::new(Incoming { bytes: vec![0; RECEIVE].into(), unread: 0..0 }),
            outgoing: Mutex::default(),
        })
    }

    /// The socket that is waited on.
    pub(super) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Reads what is there, at least a byte; 0 at the end of the stream. Of several readers one reads at a time.
    pub(super) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut incoming = lock(&self.incoming);
        let Incoming { bytes, unread } = &mut *incoming;
        loop {
            {
                let mut session = lock(&self.session);
                loop {
                    match session.reader().read(buffer) {
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        read => return read,
                    }
                    if unread.start == unread.end {
                        break;
                    }
                    unread.start += session.read_tls(&mut &bytes[unread.clone()])?;
                    session.process_new_packets().map_err(failed)?;
                }
            }
            match (&self.socket).read(bytes)? {
                0 => return Ok(0),
                received => *unread = 0..received,
            }
        }
    }

    /// Writes what the socket takes, at least a byte. Where it takes no more for now, the same bytes have to come again first: part
    /// of them may be on its way.
    pub(super) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut outgoing = lock(&self.outgoing);
        if outgoing.bytes.is_empty() {
            let mut session = lock(&self.session);
            outgoing.stands_for = session.writer().write(bytes)?;
            while session.wants_write() {
                session.write_tls(&mut outgoing.bytes)?;
            }
        }
        while outgoing.sent < outgoing.bytes.len() {
            match (&self.socket).write(&outgoing.bytes[outgoing.sent..])? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                sent => outgoing.sent += sent,
            }
        }
        outgoing.bytes.clear();
        outgoing.sent = 0;
        Ok(std::mem::take(&mut outgoing.stands_for))
    }

    /// Ends both directions, and says so where that does not wait for anybody.
    pub(super) fn shutdown(&self) -> io::Result<()> {
        let outgoing = match self.outgoing.try_lock() {
            Ok(outgoing) => Some(outgoing),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        // It can't follow a record that went out in part.
        if outgoing.is_some_and(|outgoing| outgoing.bytes.is_empty()) {
            let mut goodbye = Vec::new();
            let mut session = lock(&self.session);
            session.send_close_notify();
            while session.wants_write() {
                session.write_tls(&mut goodbye)?;
            }
            // An error says that the server was faster, or does not read.
            let _ = send(&self.socket, &goodbye, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        }
        self.socket.shutdown(Shutdown::Both)
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// Whether an answer is an alert of TLS and no frame: how a server that speaks TLS answers a client that does not.
pub(super) fn is_alert(answer: &[u8]) -> bool {
    answer.starts_with(&[0x15, 0x03])
}

fn shake_hands(mut socket: &TcpStream, session: &mut ClientConnection, patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let in_time = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => TlsError::Slow(patience).into(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => TlsError::Closed.into(),
        _ => error,
    };
    socket.set_write_timeout(Some(patience))?;
    loop {
        while session.wants_write() {
            session.write_tls(&mut socket).map_err(in_time)?;
        }
        if !session.is_handshaking() {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match session.read_tls(&mut socket) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(in_time(error)),
            Ok(0) => return Err(TlsError::Closed.into()),
            Ok(_) => {}
        }
        if let Err(error) = session.process_new_packets() {
            // The server is told why, as far as it listens.
            let _ = session.write_tls(&mut socket);
            return Err(failed(error));
        }
        if left.is_zero() {
            return Err(TlsError::Slow(patience).into());
        }
    }
}

/// How connections are made by the files as they are now. TLS 1.3 alone, and every connection shakes hands anew.
fn configuration(files: &TlsFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(authorities(files.authorities.as_deref())?);
    let mut configuration = match &files.identity {
        None => builder.with_no_client_auth(),
        Some((path, key_path)) => {
            let key = PrivateKeyDer::from_pem_file(key_path).map_err(|error| unreadable(key_path, error))?;
            builder.with_client_auth_cert(certificates(path)?, key).map_err(|error| match error {
                rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => unusable(
                    key_path,
                    &format_args!("it is not the key of the certificate in {}", path.display()),
                ),
                error => unusable(path, &error),
            })?
        }
    };
    configuration.resumption = rustls::client::Resumption::disabled();
    Ok(configuration.into())
}

fn authorities(path: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    if let Some(path) = path {
        for certificate in certificates(path)? {
            store.add(certificate).map_err(|error| unusable(path, &error))?;
        }
        return Ok(store);
    }
    let of_host = rustls_native_certs::load_native_certs();
    if store.add_parsable_certificates(of_host.certs).0 == 0 {
        let why = of_host.errors.first().map(|error| format!(" ({error})"));
        return Err(TlsError::NoAuthorities(why.unwrap_or_default()));
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => Err(unreadable(path, pem::Error::NoItemsFound)),
        read => read.map_err(|error| unreadable(path, error)),
    }
}

fn unreadable(path: &Path, error: pem::Error) -> TlsError {
    match error {
        pem::Error::Io(error) => unusable(path, &error),
        pem::Error::NoItemsFound => unusable(path, &"what is looked for is not in it, in PEM"),
        error => unusable(path, &format_args!("it is no PEM: {error}")),
    }
}

fn unusable(path: &Path, reason: &dyn fmt::Display) -> TlsError {
    TlsError::File { path: path.to_owned(), reason: reason.to_string() }
}
