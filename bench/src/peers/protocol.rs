//! What is asked of the peers, in their own protocols.

use std::io::Write;

use super::server::Peer;
use crate::error::BenchError;
use crate::measure::run::Protocol;
use crate::traffic::distribution::{Distribution, Sampler};
use crate::traffic::keys;

/// What is asked about a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Whether it is there. memcached has no such request, so it is asked for the value.
    Exists,
    /// Its value, or those of many keys.
    Get,
}

/// Requests of one connection.
#[derive(Debug)]
pub(super) struct Asking {
    peer: Peer,
    ask: Ask,
    batch: usize,
    sampler: Sampler,
}

impl Asking {
    /// Requests for so many of `count` keys each.
    pub(super) fn new(peer: Peer, ask: Ask, batch: usize, count: u32, seed: u64) -> Asking {
        Asking { peer, ask, batch, sampler: Sampler::new(Distribution::Uniform, count.into(), seed) }
    }

    fn key(&mut self) -> String {
        keys::text(self.sampler.next() as u64)
    }

    /// Bytes of a whole answer at the start of the input: one line, or a bulk for each key.
    fn redis_answer(&self, input: &[u8]) -> Result<Option<usize>, BenchError> {
        let Some(first) = line(input) else {
            return Ok(None);
        };
        let (mut at, bulks) = match (input[0], self.batch) {
            (b':', _) => return Ok(Some(first)),
            (b'*', batch) => (first, batch),
            (b'$', _) => (0, 1),
            _ => return Err(self.wrong(input)),
        };
        for _ in 0..bulks {
            let Some(head) = input.get(at..).and_then(line) else {
                return Ok(None);
            };
            let length = std::str::from_utf8(&input[at + 1..at + head - 2]).ok();
            let length =
                length.and_then(|length| length.parse::<usize>().ok()).ok_or_else(|| self.wrong(input))?;
            at += head + length + 2;
        }
        Ok((input.len() >= at).then_some(at))
    }

    /// The answers to all keys of a request end with a line of their own.
    fn memcached_answer(&self, input: &[u8]) -> Result<Option<usize>, BenchError> {
        let (mut at, mut found) = (0, 0);
        loop {
            let Some(head) = line(&input[at..]) else {
                return Ok(None);
            };
            let text = &input[at..at + head - 2];
            if text == b"END" {
                return if found == self.batch { Ok(Some(at + head)) } else { Err(self.wrong(input)) };
            }
            let length =
                text.rsplit(|&byte| byte == b' ').next().and_then(|text| std::str::from_utf8(text).ok());
            let length =
                length.and_then(|length| length.parse::<usize>().ok()).ok_or_else(|| self.wrong(input))?;
            at += head + length + 2;
            found += 1;
            if at > input.len() {
                return Ok(None);
            }
        }
    }

    fn wrong(&self, input: &[u8]) -> BenchError {
        let shown = String::from_utf8_lossy(&input[..input.len().min(60)]).into_owned();
        BenchError::answer(self.peer.name(), format!("{shown:?}"))
    }
}

impl Protocol for Asking {
    const PEER: &'static str = "the peer";

    fn request(&mut self, out: &mut Vec<u8>) {
        let batch = self.batch;
        match (self.peer, self.ask) {
            (Peer::Redis, Ask::Exists) => out.extend_from_slice(b"*2\r\n$6\r\nEXISTS\r\n"),
            (Peer::Redis, Ask::Get) if batch == 1 => out.extend_from_slice(b"*2\r\n$3\r\nGET\r\n"),
            (Peer::Redis, Ask::Get) => {
                let _ = write!(out, "*{}\r\n$4\r\nMGET\r\n", batch + 1);
            }
            (Peer::Memcached, _) => out.extend_from_slice(b"get"),
        }
        for _ in 0..batch {
            let key = self.key();
            let _ = match self.peer {
                Peer::Redis => write!(out, "${}\r\n{key}\r\n", key.len()),
                Peer::Memcached => write!(out, " {key}"),
            };
        }
        if self.peer == Peer::Memcached {
            out.extend_from_slice(b"\r\n");
        }
    }

    fn response(&mut self, input: &[u8]) -> Result<Option<usize>, BenchError> {
        if input.is_empty() {
            return Ok(None);
        }
        match self.peer {
            Peer::Redis => self.redis_answer(input),
            Peer::Memcached => self.memcached_answer(input),
        }
    }
}

/// Bytes of the line at the start of the input, its end included.
fn line(input: &[u8]) -> Option<usize> {
    input.windows(2).position(|pair| pair == b"\r\n").map(|at| at + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asking(peer: Peer, batch: usize) -> Asking {
        Asking::new(peer, Ask::Get, batch, 10, 1)
    }

    /// An answer counts once it is whole, and not a byte before.
    fn assert_whole(mut asking: Asking, answer: &[u8]) {
        for cut in 0..answer.len() {
            assert_eq!(asking.response(&answer[..cut]).unwrap(), None, "{cut}");
        }
        let more = [answer, b":1\r\n"].concat();
        assert_eq!(asking.response(&more).unwrap(), Some(answer.len()));
    }

    #[test]
    fn answers_are_taken_whole() {
        assert_whole(asking(Peer::Redis, 1), b":1\r\n");
        assert_whole(asking(Peer::Redis, 1), b"$3\r\nabc\r\n");
        assert_whole(asking(Peer::Redis, 2), b"*2\r\n$3\r\nabc\r\n$2\r\nde\r\n");
        assert_whole(asking(Peer::Memcached, 1), b"VALUE k 0 3\r\nabc\r\nEND\r\n");
        assert_whole(asking(Peer::Memcached, 2), b"VALUE k 0 3\r\nabc\r\nVALUE l 0 2\r\nde\r\nEND\r\n");
    }

    #[test]
    fn a_miss_or_an_error_is_nothing_to_measure() {
        assert!(asking(Peer::Redis, 1).response(b"$-1\r\n").is_err());
        assert!(asking(Peer::Redis, 1).response(b"-ERR no\r\n").is_err());
        assert!(asking(Peer::Memcached, 1).response(b"END\r\n").is_err());
    }
}
