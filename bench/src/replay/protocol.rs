//! What parent and worker say to each other: a line of JSON each, over the worker's stdin and stdout.
//!
//! The parent's lines are arrays of chunk ids, one array a request. The worker says [`Answer::Ready`] once, then
//! answers each request. When its stdin ends it closes its handler and ends too.

use std::io::{self, BufRead, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A line of a worker.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(super) enum Answer {
    /// It is connected.
    Ready,
    /// A request is done.
    Done(Outcome),
    /// It can't go on, and why.
    Failed(String),
}

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

/// Writes one line, at once.
pub(super) fn send<T: Serialize + ?Sized>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// The next line; `None` where the other side has ended.
pub(super) fn receive<T: DeserializeOwned>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 { Ok(None) } else { Ok(Some(serde_json::from_str(&line)?)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_arrive_as_they_were_sent() {
        let outcome = Outcome { wrong_bytes: u64::MAX, store_ns: vec![1, 2], ..Outcome::default() };
        let answers = [Answer::Ready, Answer::Done(outcome), Answer::Failed("two\nlines".to_owned())];
        let mut pipe = Vec::new();
        answers.iter().for_each(|answer| send(&mut pipe, answer).unwrap());
        let mut pipe = pipe.as_slice();
        for answer in answers {
            assert_eq!(receive(&mut pipe).unwrap(), Some(answer));
        }
        assert_eq!(receive::<Answer>(&mut pipe).unwrap(), None, "the other side has ended");
    }

    #[test]
    fn half_a_line_is_an_error() {
        assert!(receive::<Answer>(&mut &b"{\"Failed\":"[..]).is_err());
    }
}
