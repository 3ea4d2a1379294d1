//! A Unix socket with two buffers: whole requests go in, whatever came back is there to be read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::error::BenchError;

/// Bytes that are read at once at most.
const READ: usize = 256 << 10;

/// How long an answer may take before the peer is taken for dead.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long [`Channel::exchange`] waits for bytes to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Until some come.
    Answer,
    /// At most this long.
    UpTo(Duration),
    /// Not at all.
    No,
}

/// A connection on which any number of requests may wait for their answers.
#[derive(Debug)]
pub(crate) struct Channel {
    stream: UnixStream,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// The part of `input` that holds bytes not consumed.
    filled: std::ops::Range<usize>,
}

impl Channel {
    /// # Errors
    /// What connecting says.
    pub(crate) fn connect(socket: &Path) -> io::Result<Channel> {
        let stream = UnixStream::connect(socket)?;
        // A peer that never answers ends a run by an error rather than never.
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        Ok(Channel { stream, out: Vec::new(), sent: 0, input: vec![0; READ], filled: 0..0 })
    }

    /// Where requests are appended; [`Channel::exchange`] sends them.
    pub(crate) fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// What came and was not consumed.
    pub(crate) fn input(&self) -> &[u8] {
        &self.input[self.filled.clone()]
    }

    /// Forgets the first bytes of the input.
    pub(crate) fn consume(&mut self, bytes: usize) {
        self.filled.start += bytes;
        assert!(self.filled.start <= self.filled.end, "no more is consumed than came");
    }

    /// Sends what is to be sent, as far as the socket takes it, and reads what comes. With one small request that is one
    /// system call each. Never waits for the socket to take more while there may be something to read: both sides would
    /// wait for each other.
    ///
    /// # Errors
    /// What the socket says, also when the peer closed it.
    pub(crate) fn exchange(&mut self, wait: Wait) -> io::Result<()> {
        let all_sent = self.send()?;
        let flags = match wait {
            Wait::Answer if all_sent => RecvFlags::empty(),
            Wait::No => RecvFlags::DONTWAIT,
            Wait::Answer => {
                self.poll(ANSWER_LIMIT, true)?;
                RecvFlags::DONTWAIT
            }
            Wait::UpTo(limit) => {
                self.poll(limit, !all_sent)?;
                RecvFlags::DONTWAIT
            }
        };
        self.receive(flags)
    }

    /// The socket, to be watched.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Sends what is to be sent, as far as the socket takes it, and reads nothing; whether all is sent.
    ///
    /// # Errors
    /// What the socket says.
    pub(crate) fn send(&mut self) -> io::Result<bool> {
        if self.out.is_empty() {
            return Ok(true);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match send(&self.stream, &self.out[self.sent..], flags) {
            Ok(bytes) => self.sent += bytes,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let all_sent = self.sent == self.out.len();
        if all_sent {
            self.out.clear();
            self.sent = 0;
        }
        Ok(all_sent)
    }

    fn receive(&mut self, flags: RecvFlags) -> io::Result<()> {
        if self.filled.is_empty() {
            self.filled = 0..0;
        } else if self.input.len() - self.filled.end < READ / 2 {
            // The last answer is not whole: it moves to the front, and gets more room where it is long.
            self.input.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
            if self.input.len() - self.filled.end < READ / 2 {
                self.input.resize(self.input.len() * 2, 0);
            }
        }
        match recv(&self.stream, &mut self.input[self.filled.end..], flags) {
            Ok((0, _)) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection")),
            Ok((bytes, _)) => {
                self.filled.end += bytes;
                Ok(())
            }
            Err(Errno::AGAIN) if flags.is_empty() => {
                let text = format!("no answer came within {} s", ANSWER_LIMIT.as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, text))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn poll(&self, limit: Duration, also_for_room: bool) -> io::Result<()> {
        let events = if also_for_room { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&self.stream, events)], Some(&limit)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// For `map_err`: the peer failed.
pub(crate) fn lost(peer: &'static str) -> impl FnOnce(io::Error) -> BenchError {
    move |source| BenchError::system(format!("talk to {peer}"))(source)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// A channel to `peer`, which runs on a thread of its own.
    fn channel_to(peer: impl FnOnce(UnixStream) + Send + 'static) -> (Channel, thread::JoinHandle<()>) {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let channel = Channel::connect(&socket).unwrap();
        let stream = listener.accept().unwrap().0;
        (channel, thread::spawn(move || peer(stream)))
    }

    #[test]
    fn megabytes_in_both_directions_do_not_block_each_other() {
        const BYTES: usize = 8 << 20;
        let (mut channel, peer) = channel_to(|mut stream| {
            let mut buffer = vec![0; 64 << 10];
            let mut echoed = 0;
            while echoed < BYTES {
                let read = stream.read(&mut buffer).unwrap();
                stream.write_all(&buffer[..read]).unwrap();
                echoed += read;
            }
        });
        let byte = |n: usize| u8::try_from(n % 251).unwrap();
        channel.out().extend((0..BYTES).map(byte));
        let mut seen = 0;
        while seen < BYTES {
            channel.exchange(Wait::Answer).unwrap();
            assert!(channel.input().iter().zip(seen..).all(|(&got, n)| got == byte(n)));
            let bytes = channel.input().len();
            seen += bytes;
            channel.consume(bytes);
        }
        peer.join().unwrap();
    }

    #[test]
    fn an_answer_longer_than_the_buffer_is_kept_until_it_is_whole() {
        const BYTES: usize = 3 * READ;
        let (mut channel, peer) = channel_to(|mut stream| stream.write_all(&vec![7; BYTES]).unwrap());
        while channel.input().len() < BYTES {
            channel.exchange(Wait::Answer).unwrap();
        }
        assert!(channel.input().iter().all(|&byte| byte == 7));
        peer.join().unwrap();
    }

    #[test]
    fn a_peer_that_hangs_up_is_an_error() {
        let (mut channel, peer) = channel_to(drop);
        peer.join().unwrap();
        assert_eq!(channel.exchange(Wait::Answer).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn nothing_to_read_is_no_error_where_nobody_waits_for_it() {
        let (mut channel, peer) = channel_to(|mut stream| {
            let _ = stream.read(&mut [0; 1]);
        });
        channel.exchange(Wait::No).unwrap();
        channel.exchange(Wait::UpTo(Duration::from_millis(1))).unwrap();
        assert!(channel.input().is_empty());
        drop(channel);
        peer.join().unwrap();
    }
}
