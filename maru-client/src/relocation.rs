//! From TCP onto the Unix socket of a server on the same host: region memory reaches a client as descriptors only there.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use maru_proto::{DigestKey, HelloRequest, HelloResponse, KeyDigest, SocketRecord};

use crate::error::{Error, Result};
use crate::rpc::request::GetSocket;
use crate::rpc::{Stream, connect_unix, exchange_first, hello};

/// Why a session stays on TCP.
#[derive(Debug, thiserror::Error)]
enum Stays {
    #[error("the server tells of no Unix socket")]
    NoSocket,
    #[error("the server is on another host")]
    OtherHost,
    #[error("another server listens on {}", .0.display())]
    OtherServer(PathBuf),
    #[error(transparent)]
    Failed(#[from] Error),
}

/// Joins a session, on whose TCP connection HELLO was said, on the server's Unix socket. `None`, and why in the log, where it
/// stays on TCP.
///
/// # Errors
/// Those of the TCP connection, which is of no use any more then.
pub(crate) fn join_on_socket(
    tcp: &Stream,
    session: &HelloRequest,
    greeting: &HelloResponse,
    timeout: Duration,
) -> Result<Option<(PathBuf, Stream)>> {
    let told = match exchange_first(tcp, &GetSocket([]), timeout) {
        Ok(sockets) => sockets.first().copied().ok_or(Stays::NoSocket),
        // An older server does not know the operation.
        Err(error @ Error::Refused { .. }) => Err(error.into()),
        Err(error) => return Err(error),
    };
    match told.and_then(|socket| join(&socket, session, greeting, timeout)) {
        Ok(joined) => Ok(Some(joined)),
        Err(why) => {
            tracing::debug!(%why, "the session stays on TCP");
            Ok(None)
        }
    }
}

/// Nothing is said to whoever listens on the path of another host: the session's token is a secret.
fn join(
    socket: &SocketRecord,
    session: &HelloRequest,
    greeting: &HelloResponse,
    timeout: Duration,
) -> Result<(PathBuf, Stream), Stays> {
    if socket.host != this_host(&greeting.digest_key)? {
        return Err(Stays::OtherHost);
    }
    let path = socket.path().map(|path| Path::new(OsStr::from_bytes(path)));
    let path = path.filter(|path| path.is_absolute()).ok_or(Stays::NoSocket)?.to_owned();
    let stream = Stream::Unix(connect_unix(&path)?);
    // A server that does not know the session refuses it; one that takes any is not believed either.
    let joined = hello(&stream, *session, timeout)?;
    let told = |answer: &HelloResponse| (answer.instance, answer.digest_key, answer.epoch);
    if told(&joined) != told(greeting) {
        return Err(Stays::OtherServer(path));
    }
    Ok((path, stream))
}

/// What a server on this host, with this key, says of its host.
fn this_host(key: &DigestKey) -> Result<KeyDigest> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let boot_id = boot_id.map_err(|source| Error::Io { what: "read the boot id of this host", source })?;
    Ok(key.digest(boot_id.trim_end().as_bytes()))
}
