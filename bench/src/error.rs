//! Why a run fails, as one sentence each.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;

use bytesize::ByteSize;
use maru_client::RecordStatus;

/// What ends a run before its time, or makes its result worthless. Each text says what to do where something can be
/// done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The trace can't be read.
    #[error("can't read the trace {}: {source}", .path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A line of the trace is no request.
    #[error("{}, line {line}: {reason}", .path.display())]
    TraceLine {
        /// The file.
        path: PathBuf,
        /// The line, from 1 up.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The trace has no request at all.
    #[error("the trace {} has no requests", .0.display())]
    EmptyTrace(PathBuf),
    /// The pool's file system is too small.
    #[error(
        "the pool needs {needed} in {}, which has {free} free; free memory there, or choose a smaller --chunk-size, \
         fewer --requests, or a --pool-size that does not hold every chunk",
        .folder.display()
    )]
    PoolTooLarge {
        /// The folder of the pool.
        folder: PathBuf,
        /// Bytes of the pool.
        needed: ByteSize,
        /// Bytes that are free there.
        free: ByteSize,
    },
    /// There is no server to start.
    #[error("{} does not exist; build it with `cargo build -p maru-server` in the same profile", .0.display())]
    NoServer(PathBuf),
    /// Cargo could not build the server.
    #[error("cargo could not build maru-server ({0})")]
    ServerBuild(ExitStatus),
    /// The server ended, at its start or later.
    #[error("maru-server ended by itself ({status}): {stderr}")]
    ServerEnded {
        /// How it ended.
        status: ExitStatus,
        /// What it last said.
        stderr: String,
    },
    /// The server does not come up, or does not stop.
    #[error("maru-server did not {what} within {seconds} s: {stderr}")]
    ServerSlow {
        /// What it should have done.
        what: &'static str,
        /// Seconds that it was given.
        seconds: u64,
        /// What it last said.
        stderr: String,
    },
    /// Some threads would have nothing to do.
    #[error(
        "{threads} client threads have only {connections} connections to share; choose more --connections, or fewer \
         --processes or --threads"
    )]
    TooFewConnections {
        /// Threads of all processes.
        threads: u32,
        /// Connections.
        connections: u16,
    },
    /// A worker said why it can't go on.
    #[error("client process {worker}: {message}")]
    Worker {
        /// Its number, from 0 up.
        worker: usize,
        /// Its own message.
        message: String,
    },
    /// A worker is gone without a word.
    #[error("client process {worker} ended by itself ({status})")]
    WorkerEnded {
        /// Its number, from 0 up.
        worker: usize,
        /// How it ended.
        status: ExitStatus,
    },
    /// The client library failed.
    #[error(transparent)]
    Client(#[from] maru_client::Error),
    /// The server refused to store a chunk.
    #[error("chunk {chunk} could not be stored: {status}")]
    Refused {
        /// The chunk's id.
        chunk: u64,
        /// The server's reason.
        status: RecordStatus,
    },
    /// What was read is not what was stored.
    #[error(
        "{wrong_bytes} bytes that were read are not those that were stored; don't trust this build with data"
    )]
    WrongBytes {
        /// How many.
        wrong_bytes: u64,
    },
    /// An operation failed in a way that the state of the pool does not explain.
    #[error("{operation} failed: {source}")]
    Operation {
        /// Which.
        operation: String,
        /// How.
        source: maru_client::Error,
    },
    /// A promise of the system was broken.
    #[error("{0}; don't trust this build with data")]
    Torture(String),
    /// A peer answered what a measurement can't go on with.
    #[error("{peer} answered {what}, so there is nothing to measure")]
    Answer {
        /// Who.
        peer: &'static str,
        /// What.
        what: String,
    },
    /// There are no hosts of the run's own, or they do not do what they are told.
    #[error(transparent)]
    Hosts(#[from] maru_hosts::HostsError),
    /// Somebody pressed Ctrl-C.
    #[error("interrupted")]
    Interrupted,
    /// Anything the system refuses that has no text of its own.
    #[error("can't {what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The cause.
        source: io::Error,
    },
}

impl BenchError {
    /// For `map_err`: what was tried when the system refused.
    pub(crate) fn system<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> BenchError {
        |source| BenchError::System { what: what.into(), source: source.into() }
    }

    /// What a peer answered that a measurement can't go on with.
    pub(crate) fn answer(peer: &'static str, what: impl Into<String>) -> BenchError {
        BenchError::Answer { peer, what: what.into() }
    }
}
