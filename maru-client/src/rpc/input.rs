//! What was read from a socket: whole frames are taken from it where they lie.

use maru_proto::{Flags, Frame, Step, decode, max_response_body};

use crate::error::ProtocolError;

/// Bytes that are read at a time at first; the buffer grows with the answers.
const FIRST: usize = 64 * 1024;

/// Bytes that were read, of which some may be part of a frame that is not whole yet.
pub(super) struct Input {
    bytes: Vec<u8>,
    /// Bytes of the buffer that hold something.
    pub(super) filled: usize,
    /// Bytes of those that are done with.
    used: usize,
    max_body: u32,
}

impl Input {
    /// An empty buffer for the answers of a server that takes request bodies of this many bytes.
    pub(super) fn new(max_body: u32) -> Input {
        Input { bytes: vec![0; FIRST], filled: 0, used: 0, max_body: max_response_body(max_body) }
    }

    /// The next whole frame, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
        let Input { bytes, filled, used, max_body } = self;
        match decode(&bytes[*used..*filled], *max_body)? {
            Step::Frame { frame, consumed } => {
                if !frame.flags().contains(Flags::RESPONSE) {
                    return Err(ProtocolError::NotAResponse);
                }
                *used += consumed;
                Ok(Some(frame))
            }
            Step::Need(_) => Ok(None),
        }
    }

    /// Room for more, at least for the frame that has begun.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.bytes.copy_within(self.used..self.filled, 0);
        self.filled -= std::mem::take(&mut self.used);
        let need = match decode(&self.bytes[..self.filled], self.max_body) {
            Ok(Step::Need(need)) => need,
            _ => 1,
        };
        if self.bytes.len() - self.filled < need {
            self.bytes.resize(self.filled + need, 0);
        }
        &mut self.bytes[self.filled..]
    }
}
