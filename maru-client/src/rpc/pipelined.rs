//! One connection that many tasks use at once, under any executor.
//!
//! A task appends its request to the outbox and comes back once before it sends: requests that are made close together
//! leave in one write, whoever's poll it is. A thread of the connection reads answers and wakes their tasks; it also
//! sends what the socket did not take at once, and wakes tasks whose time is over.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use maru_proto::Frame;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::input::Input;
use super::output::{push_releases, push_request};
use super::request::{Request, Undo, decode_answer};
use super::slots::{Recipient, RequestId, Slots, whole_frame};
use super::stream::Stream;
use super::{Backlog, Transport};
use crate::error::{Error, ProtocolError, Result};
use crate::lease;
use crate::page::PageLocation;
use crate::sync::lock;

/// Requests that may be under way; further ones wait for a place.
const IN_FLIGHT: usize = 4096;

/// A connection on which HELLO was said, and its thread, which ends with it.
pub(crate) struct Pipelined {
    wire: Arc<Wire>,
}

struct Wire {
    stream: Stream,
    backlog: Arc<dyn Backlog>,
    timeout: Duration,
    max_body: usize,
    outbox: Mutex<Outbox>,
    slots: Mutex<Slots<Waiter>>,
    places: Semaphore,
    broken: AtomicBool,
    /// Wakes the connection's thread.
    bell: OwnedFd,
    /// The thread sleeps without looking at deadlines, since nobody waits.
    idle: AtomicBool,
    rpcs: AtomicU64,
    writes: AtomicU64,
}

/// How a task that waits is woken, and until when it waits.
#[derive(Clone, Debug)]
struct Waiter {
    waker: Waker,
    deadline: Instant,
}

#[derive(Default)]
struct Outbox {
    bytes: Vec<u8>,
    /// Bytes that went out already.
    sent: usize,
    /// The socket took no more, so the thread sends the rest. What was only appended is sent by the task that did.
    stuck: bool,
}

impl Pipelined {
    /// Takes over a socket on which HELLO was said.
    pub(crate) fn new(
        stream: Stream,
        timeout: Duration,
        max_body: u32,
        backlog: Arc<dyn Backlog>,
    ) -> Result<Pipelined> {
        let system = |what| move |source: io::Error| Error::Io { what, source };
        stream.set_nonblocking().map_err(system("prepare a connection"))?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let wire = Arc::new(Wire {
            stream,
            backlog,
            timeout,
            max_body: max_body as usize,
            outbox: Mutex::default(),
            slots: Mutex::default(),
            places: Semaphore::new(IN_FLIGHT),
            broken: AtomicBool::new(false),
            bell: bell.map_err(|error| system("prepare a connection")(error.into()))?,
            idle: AtomicBool::new(false),
            rpcs: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        });
        let thread = Arc::clone(&wire);
        std::thread::Builder::new()
            .name("maru-pipelined".to_owned())
            .spawn(move || thread.read(Input::new(max_body)))
            .map_err(system("start the connection's thread"))?;
        Ok(Pipelined { wire })
    }

    /// Requests that were sent and wanted an answer.
    pub(crate) fn rpcs(&self) -> u64 {
        self.wire.rpcs.load(Ordering::Relaxed)
    }

    /// Whether the connection is of no use any more.
    pub(crate) fn is_broken(&self) -> bool {
        self.wire.broken.load(Ordering::Acquire)
    }

    /// Pages of stores whose callers gave up and whose answers have not come.
    pub(crate) fn take_unsettled(&self) -> Vec<PageLocation> {
        lock(&self.wire.slots).take_unsettled()
    }

    /// Ends the connection for everybody.
    pub(crate) fn shut(&self) {
        self.wire.shut();
    }

    /// Writes that they took.
    pub(crate) fn writes(&self) -> u64 {
        self.wire.writes.load(Ordering::Relaxed)
    }
}

impl Drop for Pipelined {
    fn drop(&mut self) {
        self.wire.shut();
    }
}

impl Transport for Pipelined {
    async fn call<R: Request + Sync>(&self, request: &R) -> Result<R::Response> {
        let wire = &*self.wire;
        let mut call = Call { wire, request, sent: Duration::ZERO, progress: Progress::New };
        match wire.places.acquire().await {
            Ok(place) => call.enlist(place)?,
            // What was not sent is not undone: whoever gets this error goes on on another connection.
            Err(_) => return call.lost(),
        }
        call.await
    }
}

/// One request on its way.
struct Call<'a, R: Request> {
    wire: &'a Wire,
    request: &'a R,
    /// When it was put into the outbox.
    sent: Duration,
    progress: Progress,
}

#[derive(Clone, Copy)]
enum Progress {
    /// Not in the outbox.
    New,
    /// In the outbox; the task comes back before it sends, so that others can add theirs.
    Queued(RequestId),
    /// Sent, or being sent.
    Waiting(RequestId),
    /// Nothing is left to do.
    Done,
}

impl<R: Request> Call<'_, R> {
    /// Takes a slot, and appends the request to the outbox.
    fn enlist(&mut self, place: SemaphorePermit<'_>) -> Result<()> {
        if self.wire.broken.load(Ordering::Acquire) {
            return self.lost();
        }
        let waiter = Waiter { waker: Waker::noop().clone(), deadline: Instant::now() + self.wire.timeout };
        let slot = lock(&self.wire.slots).enlist(self.request.opcode(), waiter);
        let id = slot.ok_or(ProtocolError::TooManyWaiting)?;
        // The place is taken for as long as the server may still answer, not only as long as somebody waits.
        place.forget();
        self.sent = lease::now();
        let mut outbox = lock(&self.wire.outbox);
        self.wire.backlog.releases(&mut |kind, digests| {
            push_releases(&mut outbox.bytes, kind, digests, self.wire.max_body);
        });
        push_request(&mut outbox.bytes, self.request, id);
        self.progress = Progress::Queued(id);
        drop(outbox);
        self.wire.rpcs.fetch_add(1, Ordering::Relaxed);
        if self.wire.idle.load(Ordering::SeqCst) && self.wire.idle.swap(false, Ordering::SeqCst) {
            self.wire.ring();
        }
        Ok(())
    }

    fn lost<T>(&mut self) -> Result<T> {
        self.progress = Progress::Done;
        Err(Error::ConnectionLost)
    }

    fn finish(&mut self, outcome: Result<R::Response>) -> Poll<Result<R::Response>> {
        self.progress = Progress::Done;
        Poll::Ready(outcome)
    }

    fn poll_answer(&mut self, id: RequestId, context: &Context<'_>) -> Poll<Result<R::Response>> {
        let mut slots = lock(&self.wire.slots);
        if let Some(waiter) = slots.waiter(id) {
            let deadline = waiter.deadline;
            waiter.waker.clone_from(context.waker());
            if self.wire.broken.load(Ordering::Acquire) {
                slots.finish(id);
                drop(slots);
                self.wire.places.add_permits(1);
                return self.finish(Err(Error::ConnectionLost));
            }
            if Instant::now() >= deadline {
                slots.abandon(id, self.request.undo());
                drop(slots);
                let operation = self.request.opcode();
                return self.finish(Err(Error::Timeout { operation, timeout: self.wire.timeout }));
            }
            return Poll::Pending;
        }
        let bytes = slots.take_answer(id).expect("a slot that nobody waits in has its answer");
        drop(slots);
        self.wire.places.add_permits(1);
        let answer = decode_answer(self.request, &whole_frame(&bytes));
        match answer {
            Ok(_) | Err(Error::Refused { .. }) => self.wire.backlog.answered(self.sent),
            Err(Error::Protocol(_)) => self.wire.shut(),
            Err(_) => {}
        }
        self.finish(answer)
    }
}

impl<R: Request> Future for Call<'_, R> {
    type Output = Result<R::Response>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.progress {
            Progress::Queued(id) => {
                // Whoever is polled before this task is again adds to the same write.
                self.progress = Progress::Waiting(id);
                context.waker().wake_by_ref();
                Poll::Pending
            }
            Progress::Waiting(id) => {
                // The waker is in place before anything can answer it.
                if let Some(waiter) = lock(&self.wire.slots).waiter(id) {
                    waiter.waker.clone_from(context.waker());
                }
                self.wire.flush();
                let outcome = ready!(self.poll_answer(id, context));
                Poll::Ready(outcome)
            }
            Progress::New | Progress::Done => {
                unreachable!("a call is polled between its enlisting and its end")
            }
        }
    }
}

impl<R: Request> Drop for Call<'_, R> {
    /// Nobody waits any more: what the server did is undone when its answer comes, or now if it is here already.
    fn drop(&mut self) {
        let id = match self.progress {
            Progress::New => return self.request.undo().unsent(&*self.wire.backlog),
            Progress::Queued(id) | Progress::Waiting(id) => id,
            Progress::Done => return,
        };
        let mut slots = lock(&self.wire.slots);
        if self.wire.broken.load(Ordering::Acquire) && slots.waiter(id).is_some() {
            slots.finish(id);
            drop(slots);
            self.request.undo().unanswered(&*self.wire.backlog);
        } else if !slots.abandon(id, self.request.undo()) {
            let answer = slots.take_answer(id);
            drop(slots);
            if let Some(bytes) = answer {
                self.wire.places.add_permits(1);
                self.request.undo().after(&whole_frame(&bytes), &*self.wire.backlog);
            }
        } else {
            // A call that waits was not necessarily polled again: its request may still be in the outbox, with the pins
            // that it releases, and nobody else may come to send it.
            drop(slots);
            self.wire.flush();
        }
    }
}

impl Wire {
    /// Sends what is in the outbox, as far as the socket takes it; the thread sees to the rest.
    fn flush(&self) {
        let mut outbox = lock(&self.outbox);
        if outbox.bytes.is_empty() {
            return;
        }
        match self.send(&mut outbox) {
            Ok(true) => {}
            Ok(false) => self.ring(),
            Err(error) => {
                tracing::warn!(%error, "lost the connection while writing");
                drop(outbox);
                self.shut();
            }
        }
    }

    /// Sends from the outbox without waiting; whether it is empty now.
    fn send(&self, outbox: &mut Outbox) -> io::Result<bool> {
        while outbox.sent < outbox.bytes.len() {
            self.writes.fetch_add(1, Ordering::Relaxed);
            match self.stream.write(&outbox.bytes[outbox.sent..]) {
                Ok(sent) => outbox.sent += sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    outbox.stuck = true;
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        outbox.bytes.clear();
        outbox.sent = 0;
        outbox.stuck = false;
        Ok(true)
    }

    /// Wakes the thread.
    fn ring(&self) {
        // An error says that the bell rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Ends the connection for everybody.
    fn shut(&self) {
        self.broken.store(true, Ordering::Release);
        self.stream.shutdown();
        self.places.close();
        self.ring();
        let waiting = lock(&self.slots).all_waiting().map(|waiter| waiter.waker.clone()).collect::<Vec<_>>();
        waiting.into_iter().for_each(Waker::wake);
        self.backlog.lost();
    }

    /// The thread: reads, wakes, and looks at deadlines, until the connection ends.
    fn read(&self, mut input: Input) {
        while !self.broken.load(Ordering::Acquire) {
            if let Err(error) = self.turn(&mut input) {
                if !self.broken.load(Ordering::Acquire) {
                    tracing::warn!(%error, "lost the connection");
                }
                self.shut();
            }
        }
    }

    fn turn(&self, input: &mut Input) -> Result<()> {
        match self.stream.read(input.room()) {
            Ok(0) => return Err(Error::ConnectionLost),
            Ok(read) => input.filled += read,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return self.wait(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Error::ConnectionLost),
        }
        let mut woken = Vec::new();
        let delivered = self.deliver(input, &mut woken);
        // Whoever has an answer is told so, also when what follows it is no frame.
        woken.into_iter().for_each(Waker::wake);
        delivered
    }

    /// Puts the frames that came where their tasks find them; adds the tasks' wakers to `woken`.
    fn deliver(&self, input: &mut Input, woken: &mut Vec<Waker>) -> Result<()> {
        let mut slots = lock(&self.slots);
        while let Some(frame) = input.next()? {
            let id = RequestId(frame.request_id());
            match slots.deliver(id, &frame) {
                Recipient::Waiting(waiter) => woken.push(waiter.waker),
                Recipient::Abandoned(undo) => self.undo(undo, &frame),
                Recipient::Unknown => return Err(ProtocolError::UnknownRequest(id.0).into()),
                Recipient::WrongOperation(opcode) => {
                    return Err(ProtocolError::WrongOperation(opcode).into());
                }
            }
        }
        Ok(())
    }

    fn undo(&self, undo: Undo, frame: &Frame<'_>) {
        self.places.add_permits(1);
        undo.after(frame, &*self.backlog);
    }

    /// Sleeps until there is something to read, room for what is left to be sent, or a deadline.
    fn wait(&self) -> Result<()> {
        let stuck = lock(&self.outbox).stuck;
        self.idle.store(true, Ordering::SeqCst);
        // A request that is enlisted from here on finds the flag and rings; one from before is seen here.
        let idle = lock(&self.slots).in_use() == 0;
        self.idle.store(idle, Ordering::SeqCst);
        let tick = (self.timeout / 8).clamp(Duration::from_millis(1), Duration::from_millis(250));
        let tick = Timespec { tv_sec: 0, tv_nsec: tick.subsec_nanos().into() };
        let mut interest = PollFlags::IN;
        interest.set(PollFlags::OUT, stuck);
        let fd = self.stream.fd();
        let mut fds = [PollFd::new(&fd, interest), PollFd::new(&self.bell, PollFlags::IN)];
        match poll(&mut fds, (!idle).then_some(&tick)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::Io { what: "wait for the server", source: error.into() }),
        }
        self.idle.store(false, Ordering::SeqCst);
        if fds[1].revents().contains(PollFlags::IN) {
            let _ = rustix::io::read(&self.bell, &mut [0u8; 8]);
        }
        if stuck {
            let lost = |source| Error::Io { what: "write to the server", source };
            self.send(&mut lock(&self.outbox)).map_err(lost)?;
        }
        // Whoever waits too long says so when polled.
        let now = Instant::now();
        let late = lock(&self.slots)
            .all_waiting()
            .filter(|waiter| waiter.deadline <= now)
            .cloned()
            .collect::<Vec<_>>();
        late.into_iter().for_each(|waiter| waiter.waker.wake());
        Ok(())
    }
}
