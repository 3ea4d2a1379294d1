//! What the supervisor and a client process say to each other: a line of JSON each.
//!
//! The supervisor says one [`Orders`]; when it ends its side, the client is to end. What the client says outlives it: the
//! kernel keeps what was written before a `kill -9`.

use serde::{Deserialize, Serialize};

use super::counts::Counts;

/// The supervisor's only line.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Orders {
    /// The instance that the client succeeds, whose last requests may still be on their way.
    pub(super) predecessor: Option<String>,
    /// What is known of each private key.
    pub(super) private: Vec<Private>,
}

/// What is known of a private key.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(super) enum Private {
    /// It is not there.
    #[default]
    Absent,
    /// It is being stored or deleted, and the answer is not known.
    InDoubt,
    /// The server has acknowledged it.
    Stored,
}

/// A line of a client.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Message {
    /// What it has done since its last such line.
    Counted(Counts),
    /// What is known of a private key from now on. Said before anything is sent that makes it doubtful, and after the
    /// answer has come.
    Knows(u16, Private),
    /// A promise was broken: which, and how.
    Broken(String),
    /// It can't go on, and why.
    Failed(String),
}
