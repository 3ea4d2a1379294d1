//! What can go wrong in the client, each with one sentence that a person can act on.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use maru_proto::{BodyError, DecodeError, FrameStatus, Opcode, PoolUuid, RecordStatus, VersionRange};
use rustix::io::Errno;

use crate::page::PageLocation;

/// Bytes of the longest key.
pub const MAX_KEY_LEN: usize = 65_536;

/// The result of an operation of the client.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server can't be reached, for a reason of the system's.
    #[error("can't connect to {address}: {source}")]
    Connect {
        /// Where it should be.
        address: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Nobody listens at the address.
    #[error("no maru-server listens on {address}; start one with `maru-server`, or correct the address")]
    ServerNotRunning {
        /// Where it should be.
        address: String,
    },
    /// The server speaks TLS, and was spoken to in the clear.
    #[error("the server speaks TLS there; write tls:// in its address in place of tcp:// or maru://")]
    TlsWanted,
    /// The system refused something that has no variant of its own.
    #[error("can't {what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The server did not answer in time. Whether it served the request is not known yet; what it pinned or handed out is given
    /// back when its answer comes.
    #[error(
        "the server did not answer {operation} within {timeout:?}; it may be overloaded, or the timeout too short"
    )]
    Timeout {
        /// The operation.
        operation: Opcode,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// The handler was closed.
    #[error("the handler is closed; connect a new one")]
    Closed,
    /// The connection is lost, and could not be had again within a second. Whether a request that was under way was served
    /// is not known; its pages and pins are seen to as soon as the server is back.
    #[error(
        "the connection to the server is lost; see whether the server runs, the handler goes on when it does"
    )]
    ConnectionLost,
    /// The server does not know this instance any more: it was without a connection for longer than the grace period.
    /// Its guards are [revoked](Error::Revoked): their chunks may be evicted, and their memory be given to others.
    #[error("the server has ended this session; drop its guards, and connect a new handler")]
    SessionEnded,
    /// The chunk of a guard is not certain to be what it was any more, and what was read of it means nothing.
    #[error("{0}; what was read of the chunk means nothing: acquire it anew, or do without it")]
    Revoked(Revocation),
    /// The server does not keep to the protocol. The connection is closed.
    #[error("the server broke the protocol, so the connection was closed: {0}")]
    Protocol(#[from] ProtocolError),
    /// The server refused a request as a whole.
    #[error("the server refused {operation}: {status}")]
    Refused {
        /// The operation.
        operation: Opcode,
        /// The server's reason.
        status: FrameStatus,
    },
    /// Client and server share no version of the protocol.
    #[error(
        "the server speaks versions {} to {} of the protocol and this client version {}; update the older of them",
        server.oldest, server.newest, maru_proto::VERSION
    )]
    UnsupportedVersion {
        /// What the server speaks.
        server: VersionRange,
    },
    /// The key is empty or too long.
    #[error("a key has 1 to {MAX_KEY_LEN} bytes, not {len}")]
    InvalidKey {
        /// Bytes of the key.
        len: usize,
    },
    /// A batch has not one page for each key. All pages went back.
    #[error("a batch needs one page for each key, not {pages} pages for {keys} keys")]
    BatchMismatch {
        /// Keys in the batch.
        keys: usize,
        /// Pages in the batch.
        pages: usize,
    },
    /// More bytes are wanted than a page has.
    #[error(
        "{requested} bytes do not fit into a page of {page_size}; raise the page size, or store smaller chunks"
    )]
    PageTooLarge {
        /// Bytes wanted.
        requested: usize,
        /// Bytes of a page.
        page_size: usize,
    },
    /// All own pages are in use, and there is no memory for another region.
    #[error(
        "no page is free, and the handler may not or could not get another region; delete chunks, or enlarge the pool"
    )]
    PoolExhausted,
    /// The handler has no such region.
    #[error("region {region_id} is not a region of this handler")]
    RegionNotFound {
        /// The region.
        region_id: u32,
    },
    /// The page is not in the state that the operation needs. Nothing was changed.
    #[error("page {} of region {} {state}", location.page_index, location.region_id)]
    WrongPageState {
        /// The page.
        location: PageLocation,
        /// What it is.
        state: PageState,
    },
    /// The server did not store the chunk. Its page went back.
    #[error("the chunk was not stored: {0}")]
    NotStored(RecordStatus),
    /// The configuration makes no sense.
    #[error("invalid configuration: {0}")]
    InvalidConfig(String),
    /// The memory of a pool is not on this host, or not for this process.
    #[error("the memory of pool {uuid}, {kind}:{} at the server, can't be reached here: {reason}", path.display())]
    PoolNotHere {
        /// The pool.
        uuid: PoolUuid,
        /// What it is made of.
        kind: &'static str,
        /// Where the server has it.
        path: PathBuf,
        /// Where it was looked for, and what to do.
        reason: String,
    },
    /// The region lies in memory that is not coherent between hosts, and on this processor it is not known how a process writes
    /// its cache back.
    #[error(
        "region {region_id} lies in a pool that needs cache lines written back, which maru can't do on {}; use a coherent pool",
        std::env::consts::ARCH
    )]
    NoWriteBack {
        /// The region.
        region_id: u32,
    },
    /// The memory of a region can't be mapped.
    #[error("can't map region {region_id}: {source}")]
    Map {
        /// The region.
        region_id: u32,
        /// The system's reason.
        source: io::Error,
    },
}

/// How the server broke the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The bytes are no frame.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The body is no array of the expected records.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// The answer to a batch has not one record for each of the request, or one with an unknown status.
    #[error("the answer does not have one valid record for each of the {expected} requested")]
    Records {
        /// Records in the request.
        expected: usize,
    },
    /// The frame answers no request of this connection.
    #[error("request {0} was never made")]
    UnknownRequest(u32),
    /// The answer names another operation than its request.
    #[error("the answer to {0} names another operation")]
    WrongOperation(Opcode),
    /// The frame is not marked as a response.
    #[error("the server sent a request")]
    NotAResponse,
    /// A region came without its file descriptor.
    #[error("region {0} came without its file descriptor")]
    MissingDescriptor(u32),
    /// The sizes of a region contradict each other or the request.
    #[error("the sizes of region {0} make no sense")]
    Region(u32),
    /// A chunk does not lie inside its region.
    #[error("a chunk at offset {offset} with {length} bytes does not lie inside region {region_id}")]
    Location {
        /// The region.
        region_id: u32,
        /// Bytes from its beginning.
        offset: u64,
        /// Bytes of the chunk.
        length: u64,
    },
    /// What the server says comes next in a list is not behind what it said before.
    #[error("a list of the server's does not go on")]
    List,
    /// The limits in the answer to HELLO leave no room for a request.
    #[error("the answer to HELLO makes no sense")]
    Hello,
    /// The server left as many requests without an answer as a connection may have.
    #[error("no more requests can wait for their answers")]
    TooManyWaiting,
}

impl Error {
    /// Whether it is this process that lacks something, and not the server.
    pub(crate) fn is_of_this_process(&self) -> bool {
        let (Error::Connect { source, .. } | Error::Io { source, .. }) = self else { return false };
        let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS];
        Errno::from_io_error(source).is_some_and(|errno| lacks.contains(&errno))
    }
}

/// Why a guard is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation {
    /// The server was out of reach for so long that it may have released the pin. Once the server is reached again, the guard
    /// is as good as before, or released.
    InDoubt,
    /// The server has released the pin, or ended the session, while this process was out of its reach. This is for good.
    Released,
}

impl std::fmt::Display for Revocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Revocation::InDoubt => {
                "the server was not heard from for most of its grace period, so it may have released the pin of this guard"
            }
            Revocation::Released => {
                "the server has released the pin of this guard, which was out of its reach for longer than the grace period"
            }
        })
    }
}

/// What a page of an own region is, as far as this handler knows. The texts complete "page 3 of region 7 …".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageState {
    /// Nobody has it.
    Free,
    /// A [`PageMut`](crate::PageMut) has it.
    Held,
    /// It was detached and is known by its location only.
    Detached,
    /// The server has not said yet whether it holds an entry.
    InDoubt,
    /// It holds an entry.
    Stored,
    /// The region has no such page.
    Missing,
}

impl std::fmt::Display for PageState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            PageState::Free => "is free already",
            PageState::Held => "is held by a PageMut; drop or store that",
            PageState::Detached => "is detached; attach it first",
            PageState::InDoubt => "waits for the server to say whether it is stored",
            PageState::Stored => "holds a stored chunk; delete its key instead",
            PageState::Missing => "does not exist",
        })
    }
}
