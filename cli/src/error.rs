//! Why a command ends without an answer, as one sentence and one exit code each.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use maru_client::Error;
use maru_proto::{FrameStatus, Opcode};
use maru_server::pool::PreparationError;

/// The answer of a command that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub(crate) enum Answer {
    /// All is well.
    Yes,
    /// What was asked for is not there, or not as it should be.
    No,
}

impl Answer {
    /// Yes, where this holds.
    pub(crate) fn yes_if(holds: bool) -> Answer {
        if holds { Answer::Yes } else { Answer::No }
    }
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> ExitCode {
        match answer {
            Answer::Yes => ExitCode::SUCCESS,
            Answer::No => ExitCode::from(1),
        }
    }
}

/// Why there is no answer. Each text says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    /// The server can't be asked.
    #[error("{0}")]
    Server(#[from] Error),
    /// The server is older than this program.
    #[error("the server does not know {0}: it is older than this program; update it")]
    OldServer(Opcode),
    /// Somebody else's pins are the operator's to release.
    #[error(
        "only the server's own user, or root, may release pins of others, and only over its Unix socket: run this as \
         that user, on the server's host"
    )]
    NotOperator,
    /// The file with the token can't be read.
    #[error("can't read the token in {}: {source}", .path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Nobody is there to be asked.
    #[error("standard input is no terminal, so nobody can be asked; add {0} to go on without being asked")]
    NobodyToAsk(&'static str),
    /// What somebody answers can't be read.
    #[error("can't read what you answer: {0}")]
    Input(#[source] io::Error),
    /// A pool can't be made or wiped.
    #[error("{0}")]
    Preparation(#[from] PreparationError),
    /// A pool can't be looked at.
    #[error("can't look at {}: {source}", .path.display())]
    Look {
        /// The device or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The pool that is there is not the one that is meant.
    #[error("nothing is wiped: {} is {found}, not {meant}", .path.display())]
    OtherPool {
        /// The device or folder.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What was meant.
        meant: String,
    },
    /// There is nothing to draw on.
    #[error("maru top needs a terminal; `maru status --watch` does without")]
    NoTerminal,
    /// The answer can't be shown.
    #[error("can't write the answer: {0}")]
    Output(#[source] io::Error),
}

impl CliError {
    /// What scripts see.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            CliError::Server(
                Error::Connect { .. }
                | Error::ServerNotRunning { .. }
                | Error::TlsWanted
                | Error::Timeout { .. }
                | Error::ConnectionLost
                | Error::SessionEnded,
            ) => 3,
            CliError::Server(Error::Refused { .. } | Error::UnsupportedVersion { .. }) => 4,
            CliError::OldServer(_) | CliError::NotOperator => 4,
            _ => 5,
        })
    }

    /// Whether the reader of the output has seen enough, as `head` has after ten lines.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, CliError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// The same error, where the server's refusal has a sentence of its own here.
pub(crate) fn explained(error: Error) -> CliError {
    match error {
        Error::Refused { operation, status: FrameStatus::UnsupportedOpcode } => {
            CliError::OldServer(operation)
        }
        Error::Refused { operation: Opcode::ReleasePins, status: FrameStatus::Unauthorized } => {
            CliError::NotOperator
        }
        error => CliError::Server(error),
    }
}
