//! One connection that many threads use at once, without a thread of its own.
//!
//! Each caller writes its own request. Whoever waits for an answer while nobody reads becomes the reader: it hands the
//! answers of others over as they come, and passes the reading on when it has its own. A lone caller costs one write and
//! one read, on its own thread.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use maru_proto::Frame;

use super::input::Input;
use super::output::{push_releases, push_request};
use super::request::{Request, decode_answer};
use super::slots::{Recipient, RequestId, Slots, whole_frame};
use super::stream::Stream;
use super::{Backlog, Transport};
use crate::error::{Error, ProtocolError, Result};
use crate::lease;
use crate::page::PageLocation;
use crate::sync::lock;

/// A connection on which HELLO was said.
pub(crate) struct Connection {
    stream: Stream,
    backlog: Arc<dyn Backlog>,
    timeout: Duration,
    max_body: usize,
    output: Mutex<Vec<u8>>,
    slots: Mutex<Slots<Thread>>,
    input: Mutex<Input>,
    broken: AtomicBool,
    rpcs: AtomicU64,
}

impl Transport for Connection {
    fn call<R: Request + Sync>(&self, request: &R) -> impl Future<Output = Result<R::Response>> + Send {
        std::future::ready(self.answer_to(request))
    }
}

impl Connection {
    /// Takes over a socket on which HELLO was said; `max_body` is the server's limit for requests.
    pub(crate) fn new(
        stream: Stream,
        timeout: Duration,
        max_body: u32,
        backlog: Arc<dyn Backlog>,
    ) -> Result<Connection> {
        // A reader looks at its deadline whenever a read comes back without anything.
        let tick = (timeout / 8).clamp(Duration::from_millis(1), Duration::from_millis(250));
        stream.set_timeouts(tick, timeout)?;
        Ok(Connection {
            stream,
            backlog,
            timeout,
            max_body: max_body as usize,
            output: Mutex::default(),
            slots: Mutex::default(),
            input: Mutex::new(Input::new(max_body)),
            broken: AtomicBool::new(false),
            rpcs: AtomicU64::new(0),
        })
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
    pub(crate) fn answer_to<R: Request>(&self, request: &R) -> Result<R::Response> {
        let deadline = Instant::now() + self.timeout;
        let opcode = request.opcode();
        let slot = lock(&self.slots).enlist(opcode, std::thread::current());
        let Some(id) = slot else {
            request.undo().unsent(&*self.backlog);
            return Err(ProtocolError::TooManyWaiting.into());
        };
        self.rpcs.fetch_add(1, Ordering::Relaxed);
        let sent = lease::now();
        if let Err(error) = self.send(request, id) {
            lock(&self.slots).finish(id);
            return Err(error);
        }
        let answer = self.wait(request, id, deadline);
        if matches!(answer, Ok(_) | Err(Error::Refused { .. })) {
            self.backlog.answered(sent);
        }
        answer
    }

    /// Sends the pins that guards gave up, and nothing else.
    pub(crate) fn flush_releases(&self) -> Result<()> {
        let mut output = lock(&self.output);
        self.check()?;
        output.clear();
        self.backlog.releases(&mut |kind, digests| push_releases(&mut output, kind, digests, self.max_body));
        if output.is_empty() { Ok(()) } else { self.write(&output) }
    }

    /// Pages of stores whose callers gave up and whose answers have not come.
    pub(crate) fn take_unsettled(&self) -> Vec<PageLocation> {
        lock(&self.slots).take_unsettled()
    }

    /// The socket.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.stream.fd()
    }

    /// Ends the connection for everybody.
    pub(crate) fn shut(&self) {
        self.broken.store(true, Ordering::Release);
        self.stream.shutdown();
        lock(&self.slots).all_waiting().for_each(Thread::unpark);
        self.backlog.lost();
    }

    fn send<R: Request>(&self, request: &R, id: RequestId) -> Result<()> {
        let mut output = lock(&self.output);
        self.check()?;
        output.clear();
        self.backlog.releases(&mut |kind, digests| push_releases(&mut output, kind, digests, self.max_body));
        push_request(&mut output, request, id);
        self.write(&output)
    }

    /// Refuses to send on a lost connection, so that what it would have carried along is left for the next.
    fn check(&self) -> Result<()> {
        if self.is_broken() { Err(Error::ConnectionLost) } else { Ok(()) }
    }

    fn write(&self, bytes: &[u8]) -> Result<()> {
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
        Some(self.decode(request, &whole_frame(&bytes)))
    }

    fn decode<R: Request>(&self, request: &R, frame: &Frame<'_>) -> Result<R::Response> {
        let answer = decode_answer(request, frame);
        if matches!(answer, Err(Error::Protocol(_))) {
            self.shut();
        }
        answer
    }

    /// Gives a frame to the thread that waits for it, or deals with one that comes too late.
    fn hand_over(&self, frame: &Frame<'_>) -> Result<(), ProtocolError> {
        let id = RequestId(frame.request_id());
        let recipient = lock(&self.slots).deliver(id, frame);
        match recipient {
            Recipient::Waiting(thread) => thread.unpark(),
            Recipient::Abandoned(undo) => undo.after(frame, &*self.backlog),
            Recipient::Unknown => return Err(ProtocolError::UnknownRequest(id.0)),
            Recipient::WrongOperation(opcode) => return Err(ProtocolError::WrongOperation(opcode)),
        }
        Ok(())
    }

    fn time_out<R: Request>(&self, request: &R, id: RequestId) -> Result<R::Response> {
        let mut slots = lock(&self.slots);
        // On a lost connection whoever gets this error goes on on another.
        if self.is_broken() {
            slots.finish(id);
            return Err(Error::ConnectionLost);
        }
        let abandoned = slots.abandon(id, request.undo());
        drop(slots);
        if abandoned {
            return Err(Error::Timeout { operation: request.opcode(), timeout: self.timeout });
        }
        self.answer(request, id).unwrap_or(Err(Error::ConnectionLost))
    }

    fn give_up<T>(&self, id: RequestId) -> Result<T> {
        lock(&self.slots).finish(id);
        Err(Error::ConnectionLost)
    }

    fn break_off<T>(&self, id: RequestId, error: ProtocolError) -> Result<T> {
        if self.is_broken() {
            // Whoever gave up when it broke has its answer, if that came after all, answer nobody.
            return self.give_up(id);
        }
        tracing::warn!(%error, "the server broke the protocol");
        lock(&self.slots).finish(id);
        self.shut();
        Err(Error::Protocol(error))
    }
}
