//! One connection that many threads use at once, without a thread of its own.
//!
//! Each caller writes its own request. Whoever waits for an answer while nobody reads becomes the reader: it hands the
//! answers of others over as they come, and passes the reading on when it has its own. A lone caller costs one write and
//! one read, on its own thread.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

use maru_proto::{
    Flags, Frame, FrameStatus, Head, Header, KeyDigest, LocationRecord, Opcode, RecordStatus, Step,
    VersionRange, decode, encode, max_response_body, statuses,
};
use zerocopy::IntoBytes;

use super::request::{Request, Undo};
use super::slots::{Recipient, RequestId, Slots};
use super::stream::Stream;
use crate::error::{Error, ProtocolError, Result};
use crate::page::PageLocation;
use crate::sync::lock;

/// Bytes that are read at a time at first; the buffer grows with the answers.
const INPUT: usize = 64 * 1024;

/// Where late answers go, and where pins that guards gave up come from.
pub(crate) trait Backlog: Send + Sync {
    /// Hands over the pins to be released by the way.
    fn releases(&self, send: &mut dyn FnMut(&[KeyDigest]));
    /// Pins that were taken for nobody.
    fn unpin(&self, digests: Vec<KeyDigest>);
    /// Pages of which it is known now whether they are stored.
    fn settle(&self, pages: Vec<(PageLocation, bool)>);
}

/// A connection on which HELLO was said.
pub(crate) struct Connection {
    stream: Stream,
    backlog: Box<dyn Backlog>,
    timeout: Duration,
    max_body: usize,
    output: Mutex<Vec<u8>>,
    slots: Mutex<Slots>,
    input: Mutex<Input>,
    broken: AtomicBool,
    rpcs: AtomicU64,
}

/// Bytes that were read, of which some may be part of a frame that is not whole yet.
struct Input {
    bytes: Vec<u8>,
    /// Bytes of the buffer that hold something.
    filled: usize,
    /// Bytes of those that are done with.
    used: usize,
    max_body: u32,
}

impl Connection {
    /// Takes over a socket on which HELLO was said; `max_body` is the server's limit for requests.
    pub(crate) fn new(
        stream: Stream,
        timeout: Duration,
        max_body: u32,
        backlog: Box<dyn Backlog>,
    ) -> Result<Connection> {
        // A reader looks at its deadline whenever a read comes back without anything.
        let tick = (timeout / 8).clamp(Duration::from_millis(1), Duration::from_millis(250));
        stream.set_timeouts(tick, timeout)?;
        let input =
            Input { bytes: vec![0; INPUT], filled: 0, used: 0, max_body: max_response_body(max_body) };
        Ok(Connection {
            stream,
            backlog,
            timeout,
            max_body: max_body as usize,
            output: Mutex::default(),
            slots: Mutex::default(),
            input: Mutex::new(input),
            broken: AtomicBool::new(false),
            rpcs: AtomicU64::new(0),
        })
    }

    /// Records of a type that fit one request.
    pub(crate) fn records_per_frame<T>(&self) -> usize {
        (self.max_body / size_of::<T>()).max(1)
    }

    /// Requests that were sent and wanted an answer.
    pub(crate) fn rpcs(&self) -> u64 {
        self.rpcs.load(Ordering::Relaxed)
    }

    /// Whether answers will come that nobody waits for.
    pub(crate) fn has_abandoned(&self) -> bool {
        lock(&self.slots).abandoned() > 0
    }

    /// Whether the connection is of no use any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`Error::Timeout`] after the connection's time: the connection goes on, and the answer is dealt with when it
    /// comes. [`Error::Refused`] where the server says so. [`Error::ConnectionLost`] and [`Error::Protocol`] end the
    /// connection for everybody.
    pub(crate) fn call<R: Request>(&self, request: &R) -> Result<R::Response> {
        let deadline = Instant::now() + self.timeout;
        let opcode = request.opcode();
        let id = lock(&self.slots).enlist(opcode).ok_or(ProtocolError::TooManyWaiting)?;
        self.rpcs.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.send(request, id) {
            lock(&self.slots).finish(id);
            return Err(error);
        }
        self.wait(request, id, deadline)
    }

    /// Sends the pins that guards gave up, and nothing else.
    pub(crate) fn flush_releases(&self) -> Result<()> {
        let mut output = lock(&self.output);
        output.clear();
        self.backlog.releases(&mut |digests| push_releases(&mut output, digests, self.max_body));
        if output.is_empty() { Ok(()) } else { self.write(&output) }
    }

    /// Ends the connection for everybody.
    pub(crate) fn shut(&self) {
        self.broken.store(true, Ordering::Release);
        self.stream.shutdown();
        lock(&self.slots).all_waiting().for_each(std::thread::Thread::unpark);
    }

    fn send<R: Request>(&self, request: &R, id: RequestId) -> Result<()> {
        let mut output = lock(&self.output);
        output.clear();
        self.backlog.releases(&mut |digests| push_releases(&mut output, digests, self.max_body));
        push(&mut output, Head::request(request.opcode(), request.flags(), id.0), request.body());
        self.write(&output)
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
        if self.is_broken() {
            return Err(Error::ConnectionLost);
        }
        self.stream.write_all(bytes).map_err(|error| {
            // Part of a frame may have gone out, so nothing can follow it.
            tracing::warn!(%error, "lost the connection while writing");
            self.shut();
            Error::ConnectionLost
        })
    }

    fn wait<R: Request>(&self, request: &R, id: RequestId, deadline: Instant) -> Result<R::Response> {
        loop {
            match self.input.try_lock() {
                Ok(mut input) => {
                    let outcome = self.read_until(request, id, deadline, &mut input);
                    drop(input);
                    // Whoever waits next reads on.
                    if let Some(thread) = lock(&self.slots).any_waiting() {
                        thread.unpark();
                    }
                    return outcome;
                }
                Err(TryLockError::Poisoned(_)) => {
                    self.shut();
                    return Err(Error::ConnectionLost);
                }
                Err(TryLockError::WouldBlock) => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            std::thread::park_timeout(left);
            if let Some(outcome) = self.answer(request, id) {
                return outcome;
            }
            if self.is_broken() {
                return self.give_up(id);
            }
            if Instant::now() >= deadline {
                return self.time_out(request, id);
            }
        }
    }

    /// Reads frames, and hands them over, until the one with the id is there.
    fn read_until<R: Request>(
        &self,
        request: &R,
        id: RequestId,
        deadline: Instant,
        input: &mut Input,
    ) -> Result<R::Response> {
        if let Some(outcome) = self.answer(request, id) {
            return outcome;
        }
        loop {
            loop {
                let frame = match input.next() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(error) => return self.break_off(id, error),
                };
                if frame.request_id() == id.0 {
                    if frame.header().opcode != request.opcode() as u8 {
                        return self.break_off(id, ProtocolError::WrongOperation(request.opcode()));
                    }
                    lock(&self.slots).finish(id);
                    return self.decode(request, &frame);
                }
                if let Err(error) = self.hand_over(&frame) {
                    return self.break_off(id, error);
                }
            }
            match self.stream.read(input.room()) {
                Ok(0) => {
                    tracing::warn!("the server closed the connection");
                    self.shut();
                    return self.give_up(id);
                }
                Ok(read) => input.filled += read,
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut if Instant::now() >= deadline => {
                        return self.time_out(request, id);
                    }
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                    _ => {
                        tracing::warn!(%error, "lost the connection while reading");
                        self.shut();
                        return self.give_up(id);
                    }
                },
            }
        }
    }

    /// The answer that another thread has read for this one.
    fn answer<R: Request>(&self, request: &R, id: RequestId) -> Option<Result<R::Response>> {
        let bytes = lock(&self.slots).take_answer(id)?;
        match decode(&bytes, u32::MAX) {
            Ok(Step::Frame { frame, .. }) => Some(self.decode(request, &frame)),
            _ => unreachable!("a whole frame was handed over"),
        }
    }

    fn decode<R: Request>(&self, request: &R, frame: &Frame<'_>) -> Result<R::Response> {
        let operation = request.opcode();
        match frame.status() {
            FrameStatus::Ok => request.decode(frame).map_err(|error| {
                self.shut();
                Error::Protocol(error)
            }),
            FrameStatus::UnsupportedVersion => Err(match frame.record::<VersionRange>() {
                Ok(server) => Error::UnsupportedVersion { server: *server },
                Err(error) => Error::Protocol(error.into()),
            }),
            status => Err(Error::Refused { operation, status }),
        }
    }

    /// Gives a frame to the thread that waits for it, or deals with one that comes too late.
    fn hand_over(&self, frame: &Frame<'_>) -> Result<(), ProtocolError> {
        let id = RequestId(frame.request_id());
        let mut whole = Vec::with_capacity(Header::SIZE + frame.body().len());
        whole.extend_from_slice(frame.header().as_bytes());
        whole.extend_from_slice(frame.body());
        let recipient = lock(&self.slots).deliver(id, frame.header().opcode, &whole);
        match recipient {
            Recipient::Waiting(thread) => thread.unpark(),
            Recipient::Abandoned(undo) => self.undo(undo, frame),
            Recipient::Unknown => return Err(ProtocolError::UnknownRequest(id.0)),
            Recipient::WrongOperation(opcode) => return Err(ProtocolError::WrongOperation(opcode)),
        }
        Ok(())
    }

    fn undo(&self, undo: Undo, frame: &Frame<'_>) {
        match undo {
            Undo::Nothing => {}
            Undo::Unpin(digests) => {
                let locations = frame.records::<LocationRecord>().unwrap_or_default();
                let pinned = digests.into_iter().zip(locations);
                let pinned =
                    pinned.filter(|(_, location)| location.record_status() == Some(RecordStatus::Ok));
                self.backlog.unpin(pinned.map(|(digest, _)| digest).collect());
            }
            Undo::Settle(pages) => {
                let stored = if frame.status() == FrameStatus::Ok {
                    statuses(frame.body(), pages.len())
                        .map(|statuses| statuses.map(|status| status == RecordStatus::Ok).collect::<Vec<_>>())
                } else {
                    Some(vec![false; pages.len()])
                };
                // Pages of an answer that makes no sense stay in doubt, and are never used again.
                if let Some(stored) = stored {
                    self.backlog.settle(pages.into_iter().zip(stored).collect());
                }
            }
        }
    }

    fn time_out<R: Request>(&self, request: &R, id: RequestId) -> Result<R::Response> {
        if lock(&self.slots).abandon(id, request.undo()) {
            return Err(Error::Timeout { operation: request.opcode(), timeout: self.timeout });
        }
        self.answer(request, id).unwrap_or(Err(Error::ConnectionLost))
    }

    fn give_up<T>(&self, id: RequestId) -> Result<T> {
        lock(&self.slots).finish(id);
        Err(Error::ConnectionLost)
    }

    fn break_off<T>(&self, id: RequestId, error: ProtocolError) -> Result<T> {
        tracing::warn!(%error, "the server broke the protocol");
        lock(&self.slots).finish(id);
        self.shut();
        Err(Error::Protocol(error))
    }
}

impl Input {
    /// The next whole frame, if there is one.
    fn next(&mut self) -> Result<Option<Frame<'_>>, ProtocolError> {
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
    fn room(&mut self) -> &mut [u8] {
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

/// Appends a frame.
fn push(output: &mut Vec<u8>, head: Head, body: &[u8]) {
    let start = output.len();
    output.resize(start + Header::SIZE + body.len().next_multiple_of(maru_proto::BODY_ALIGN), 0);
    encode(&mut output[start..], head, body).expect("the room was made for the body");
}

/// Appends frames that release one pin of each digest and want no answer.
fn push_releases(output: &mut Vec<u8>, digests: &[KeyDigest], max_body: usize) {
    for digests in digests.chunks((max_body / size_of::<KeyDigest>()).max(1)) {
        let opcode = if digests.len() == 1 { Opcode::UnpinKv } else { Opcode::BatchUnpinKv };
        push(output, Head::request(opcode, Flags::NO_REPLY, 0), digests.as_bytes());
    }
}
