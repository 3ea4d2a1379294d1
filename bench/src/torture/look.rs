//! One look at all bytes of a chunk, as it is taken by whoever has a server that may be out of reach.

use maru_client::{ChunkRef, Error, Revocation};

use super::counts::{Counts, Operation, Outcome};
use super::key::Key;

/// What is to be expected of a chunk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    /// Bytes of a page.
    pub(super) page: usize,
    /// Whether the server may end sessions of clients that live, and release their pins.
    pub(super) sessions_end: bool,
}

impl Expected {
    /// Reads a chunk, on the spot or from a copy, and counts what came of it. The promise that was broken, if any.
    pub(super) fn look(
        self,
        key: Key,
        chunk: &ChunkRef,
        copied: bool,
        counts: &mut Counts,
    ) -> Option<String> {
        let wrong = |bytes: &[u8]| key.wrong_bytes(self.page, bytes);
        let read = if copied {
            let mut copy = vec![0; chunk.len()];
            chunk.copy_to(&mut copy).map(|()| wrong(&copy))
        } else {
            chunk.read(wrong)
        };
        match read {
            Ok(wrong) => {
                counts.add(Operation::Read, Outcome::Done, 1);
                counts.verified_bytes += chunk.len() as u64;
                counts.wrong_bytes += wrong;
                (wrong > 0).then(|| format!("{wrong} of {} bytes of {key} were wrong", chunk.len()))
            }
            Err(error) => {
                counts.add(Operation::Read, Outcome::Revoked, 1);
                let was_released = !matches!(error, Error::Revoked(Revocation::InDoubt));
                (was_released && !self.sessions_end).then(|| {
                    counts.lost_acknowledged += 1;
                    format!("the pin of {key} was lost ({error})")
                })
            }
        }
    }
}
