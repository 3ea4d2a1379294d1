//! What a worker answers to one request: an array of chunk ids.

use serde::{Deserialize, Serialize};

/// What became of one request.
#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
pub(super) struct Outcome {
    /// Chunks found from the start of the request up to its first miss.
    pub(super) prefix_hit_chunks: u64,
    /// Bytes in them that are not what was stored.
    pub(super) wrong_bytes: u64,
    /// Bytes of the chunks that this worker stored.
    pub(super) bytes_stored: u64,
    /// Bytes of the chunks that were found and verified.
    pub(super) bytes_read: u64,
    /// Chunks for which the pool had no room.
    pub(super) chunks_not_stored: u64,
    /// Requests to the server that were answered, since the last outcome.
    pub(super) rpcs: u64,
    /// How long acquire took.
    pub(super) acquire_ns: u64,
    /// How long each chunk that was stored took.
    pub(super) store_ns: Vec<u64>,
}
