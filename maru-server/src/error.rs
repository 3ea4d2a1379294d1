//! Why the server can't start or go on, as one sentence each.

use std::io;
use std::path::{Path, PathBuf};

use bytesize::ByteSize;
use maru_proto::{PoolHeaderError, PoolUuid};

use crate::journal::JournalError;
use crate::pool::InvalidNode;
use crate::state::RestoreError;

/// What to do about memory that does not say which pool it is.
fn advice(error: &PoolHeaderError, path: &Path) -> String {
    let path = path.display();
    match error {
        PoolHeaderError::Missing => {
            format!("if nothing on it is needed, `maru pool init {path}` makes it one")
        }
        PoolHeaderError::Version(_) => format!("run that version, or wipe it by `maru pool wipe {path}`"),
        PoolHeaderError::Damaged => {
            format!("`maru pool show {path}` says more; `maru pool wipe` and `init` make it a new one")
        }
    }
}

/// What ends the server before its time. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The kernel or a sandbox refuses io_uring.
    #[error("io_uring is not available: {0}")]
    Ring(String),
    /// The socket's folder or the socket can't be made.
    #[error("can't listen on {}: {source}", .path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another server listens there.
    #[error("another server listens on {}; stop it, or choose another --socket", .0.display())]
    SocketInUse(PathBuf),
    /// The TCP address can't be listened on.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The cause.
        source: io::Error,
    },
    /// TCP beyond this host without a token.
    #[error("--listen {0} is reachable from other hosts and needs --auth-token-file")]
    TokenNeeded(std::net::SocketAddr),
    /// The token's file is no token.
    #[error("the token in {} can't be used: {reason}", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A file of TLS can't be used.
    #[error("{} can't be used for TLS: {reason}", .path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The pool's folder can't be used.
    #[error("can't use {} as a pool: {source}", .path.display())]
    Pool {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Another server uses the folder.
    #[error("another server uses the pool {}; stop it, or choose another --pool", .0.display())]
    PoolInUse(PathBuf),
    /// Another server keeps its journal there.
    #[error("another server keeps its directory in {}; stop it, or choose another --state-dir", .0.display())]
    StateInUse(PathBuf),
    /// The journal's folder can't be used.
    #[error("can't keep the directory in {}: {source}; choose another --state-dir", .path.display())]
    State {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The folder is not on what its kind says.
    #[error("{} is on {file_system}, so no {wanted}; write {kind}:{}", .path.display(), .path.display())]
    PoolKind {
        /// The folder.
        path: PathBuf,
        /// What it was taken for.
        wanted: &'static str,
        /// What its file system is.
        file_system: String,
        /// The kind that it is.
        kind: &'static str,
    },
    /// No other host can reach the memory.
    #[error("{} is {kind}, memory of one host; coherence=writeback is for what hosts share, fsdax or devdax", .path.display())]
    PoolCoherence {
        /// The folder.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// The memory can't be had from the node.
    #[error("the pool {} can't have its memory on node {node}: {source}", .path.display())]
    PoolNode {
        /// The folder, or the device.
        path: PathBuf,
        /// The NUMA node.
        node: u32,
        /// What is in the way.
        source: InvalidNode,
    },
    /// Two pools are one.
    #[error("{} is the pool {uuid}, which is there already under another path; leave one of them out", .path.display())]
    PoolTwice {
        /// The path.
        path: PathBuf,
        /// The pool.
        uuid: PoolUuid,
    },
    /// The memory does not say which pool it is.
    #[error("can't use {} as a pool: {source}; {}", .path.display(), advice(.source, .path))]
    PoolHeader {
        /// The device, or the folder.
        path: PathBuf,
        /// What is wrong.
        source: PoolHeaderError,
    },
    /// The path of the pool does not fit a record of the wire.
    #[error("the path of the pool {} has to be UTF-8 of at most {limit} bytes", .path.display())]
    PoolPath {
        /// The folder.
        path: PathBuf,
        /// Bytes that fit.
        limit: usize,
    },
    /// The pool has no room for even one region.
    #[error(
        "a pool of {size} in {} is too small; free memory there, or give it a size of at least {least}",
        .path.display()
    )]
    PoolTooSmall {
        /// The folder.
        path: PathBuf,
        /// The pool's size.
        size: ByteSize,
        /// The least size.
        least: ByteSize,
    },
    /// The device has no room for a header and even one region.
    #[error("the device {} has {size}, and a pool takes at least {least}: its header and one region", .path.display())]
    DeviceTooSmall {
        /// The device.
        path: PathBuf,
        /// Its size.
        size: ByteSize,
        /// The least size.
        least: ByteSize,
    },
    /// The pool is larger than its file system.
    #[error(
        "a pool of {size} does not fit in {}, which has {free} free; {fix}",
        .path.display()
    )]
    PoolTooLarge {
        /// The folder.
        path: PathBuf,
        /// The pool's size.
        size: ByteSize,
        /// What is free there.
        free: ByteSize,
        /// What to do about it.
        fix: &'static str,
    },
    /// What an earlier run left in the pool can't be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// What an earlier run left in the pool can't be gone on with.
    #[error("the pool {} can't be gone on with: {source}; or discard what it holds with --fresh", .path.display())]
    Restore {
        /// The folder.
        path: PathBuf,
        /// What is in the way.
        source: RestoreError,
    },
    /// A tmpfs of no known size is to be mounted.
    #[error("a tmpfs that is to be mounted at {} needs a size, as in tmpfs:{},size=64GiB,mount", .0.display(), .0.display())]
    MountSize(PathBuf),
    /// The tmpfs could not be mounted.
    #[error("can't mount a tmpfs at {} (root may): {source}", .path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Anything the system refuses that has no text of its own.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The cause.
        source: io::Error,
    },
}
