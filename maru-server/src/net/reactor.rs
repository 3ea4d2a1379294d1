//! The fast driver: one ring of its own inside the runtime serves all connections.
//!
//! A request costs at most one system call beside its answer, none of them while requests keep coming: completions are
//! looked for in shared memory, for a bounded time, before the thread sleeps in the runtime, from which the ring's
//! eventfd wakes it. A connection that has to wait for anything but its peer moves to a task of its own and stays there.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use slab::Slab;
use tokio::sync::Notify;
use tracing::debug;

use super::connection::{Connection, Pause, Wait};
use super::doorbell::Doorbell;
use super::ring::{COMPLETIONS, SUBMISSIONS};
use super::task;
use crate::counters::SystemCalls;
use crate::output::Output;

/// How long the reactor goes on before other tasks of the runtime have a turn.
const TURN: Duration = Duration::from_micros(200);

/// System calls of the runtime when it waits: it enters its own ring, and asks epoll.
const CALLS_OF_A_WAIT: u64 = 2;

/// `IORING_RECVSEND_POLL_FIRST`: don't try to receive at once, the peer has not had time to send.
const POLL_FIRST: u16 = 1;

/// Connections on their way to the reactor.
#[derive(Default)]
pub(super) struct Arrivals {
    connections: RefCell<Vec<Connection>>,
    arrived: Notify,
}

impl Arrivals {
    /// Hands a connection over.
    pub(super) fn push(&self, connection: Connection) {
        self.connections.borrow_mut().push(connection);
        self.arrived.notify_one();
    }
}

/// All connections of the fast driver, and their ring.
pub(super) struct Reactor {
    ring: IoUring,
    doorbell: Doorbell,
    slots: Slab<Slot>,
    completions: Vec<(u64, i32)>,
    /// Connections that go on when others have had their turn.
    waiting: VecDeque<usize>,
    spin: Duration,
    system_calls: SystemCalls,
}

struct Slot {
    connection: Connection,
    /// The kernel writes into the connection's input.
    receiving: bool,
    /// What is being sent, of which `sent` bytes have gone; empty when nothing is.
    sending: Vec<u8>,
    sent: usize,
    /// The kernel reads from `sending`.
    send_under_way: bool,
    /// There may be whole frames in the input.
    unserved: bool,
    /// Ends once what is under way is done.
    closing: bool,
}

impl Reactor {
    /// A reactor that looks for completions for `spin` before it sleeps.
    ///
    /// # Errors
    /// Where the kernel lacks what it needs (Linux 6.1) or a sandbox forbids it.
    pub(super) fn new(spin: Duration) -> io::Result<Reactor> {
        let mut ring = IoUring::builder()
            .setup_cqsize(COMPLETIONS)
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(SUBMISSIONS)?;
        let doorbell = Doorbell::new(&mut ring)?;
        Ok(Reactor {
            ring,
            doorbell,
            slots: Slab::new(),
            completions: Vec::new(),
            waiting: VecDeque::new(),
            spin,
            system_calls: SystemCalls::default(),
        })
    }

    /// System calls that serving takes: entering the ring, sending an answer directly, and the waits of the runtime.
    pub(super) fn system_calls(&self) -> SystemCalls {
        self.system_calls.clone()
    }

    /// Serves for as long as the server runs.
    pub(super) async fn run(mut self, arrivals: Rc<Arrivals>) {
        let mut turn_began = Instant::now();
        let mut active = turn_began;
        // Waiting for the next request by spinning pays only where it comes soon, as the last one did.
        let mut spinning = false;
        let runtime = tokio::runtime::Handle::current().metrics();
        let mut waits = runtime.worker_park_count(0);
        loop {
            for connection in arrivals.connections.take() {
                self.adopt(connection);
            }
            match self.turn() {
                Ok(true) => {
                    let now = Instant::now();
                    spinning = now - active <= self.spin;
                    active = now;
                    if now - turn_began > TURN {
                        // The runtime looks at epoll, without waiting.
                        self.system_calls.add(1);
                        tokio::task::yield_now().await;
                        turn_began = Instant::now();
                    }
                }
                Ok(false) if spinning && active.elapsed() < self.spin => std::hint::spin_loop(),
                Ok(false) => {
                    self.sleep(&arrivals).await;
                    // Ready at once, the doorbell does not make the runtime wait.
                    let waited = runtime.worker_park_count(0);
                    self.system_calls.add((waited - waits) * CALLS_OF_A_WAIT);
                    waits = waited;
                    turn_began = Instant::now();
                }
                Err(error) => {
                    // The ring itself is broken, which nothing here can mend.
                    tracing::error!(%error, "the ring failed");
                    return;
                }
            }
        }
    }

    /// Waits for completions or arrivals.
    async fn sleep(&mut self, arrivals: &Arrivals) {
        let ring = &mut self.ring;
        tokio::select! {
            () = self.doorbell.sleep(|| ring.completion().is_empty() && !ring.submission().taskrun()) => {}
            () = arrivals.arrived.notified() => {}
        }
    }

    /// Submits what is queued, and deals with what completed; whether anything did.
    fn turn(&mut self) -> io::Result<bool> {
        self.enter()?;
        self.completions.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        let waiting = self.waiting.len();
        if self.completions.is_empty() && waiting == 0 {
            return Ok(false);
        }
        let completions = mem::take(&mut self.completions);
        // A lone answer goes out by a call of its own, which wakes its reader sooner than the ring would.
        let alone = completions.len() == 1;
        for &(data, result) in &completions {
            let (key, receive) = (usize::try_from(data >> 1).expect("keys are usize"), data & 1 == 0);
            if receive {
                self.received(key, result);
            } else {
                self.sent(key, result);
            }
            self.advance(key, alone)?;
        }
        self.completions = completions;
        self.completions.clear();
        for _ in 0..waiting {
            // It may have ended meanwhile.
            if let Some(key) = self.waiting.pop_front()
                && self.slots.get(key).is_some_and(|slot| slot.unserved)
            {
                self.advance(key, alone)?;
            }
        }
        Ok(true)
    }

    /// Enters the kernel where something is queued, or where it has completions that it posts only then.
    fn enter(&mut self) -> io::Result<()> {
        let submission = self.ring.submission();
        let idle = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        if idle {
            return Ok(());
        }
        self.system_calls.add(1);
        match self.ring.submit() {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INTR) => Ok(()),
            entered => entered.map(drop),
        }
    }

    fn adopt(&mut self, connection: Connection) {
        let slot = Slot {
            connection,
            receiving: false,
            sending: Vec::new(),
            sent: 0,
            send_under_way: false,
            unserved: false,
            closing: false,
        };
        let key = self.slots.insert(slot);
        if let Err(error) = self.advance(key, false) {
            debug!(%error, "could not take in a connection");
        }
    }

    fn received(&mut self, key: usize, result: i32) {
        let slot = &mut self.slots[key];
        slot.receiving = false;
        match usize::try_from(result) {
            Ok(0) | Err(_) => slot.closing = true,
            Ok(received) => {
                let input = &mut slot.connection.input;
                let filled = input.len() + received;
                debug_assert!(filled <= input.capacity());
                // SAFETY: the kernel wrote `received` bytes from the end of the input on, within the capacity that
                // it was given; nothing has touched the input since.
                unsafe { input.set_len(filled) };
                slot.unserved = true;
            }
        }
    }

    fn sent(&mut self, key: usize, result: i32) {
        let slot = &mut self.slots[key];
        slot.send_under_way = false;
        match usize::try_from(result) {
            Ok(sent) if sent > 0 => slot.sent += sent,
            _ => {
                slot.closing = true;
                slot.sent = slot.sending.len();
            }
        }
    }

    /// Goes on with a connection as far as it can without waiting.
    fn advance(&mut self, key: usize, alone: bool) -> io::Result<()> {
        loop {
            let slot = &mut self.slots[key];
            if slot.send_under_way {
                if slot.closing {
                    slot.connection.link.close();
                }
                return Ok(());
            }
            if !slot.sending.is_empty() {
                if slot.sent < slot.sending.len() {
                    return self.send(key);
                }
                slot.sent = 0;
                slot.connection.link.set_unsent(false);
                let bytes = mem::take(&mut slot.sending);
                slot.connection.output = Output::reuse(bytes);
            }
            if slot.closing {
                self.close(key);
                return Ok(());
            }
            if slot.receiving {
                return Ok(());
            }
            let pause = if slot.unserved { slot.connection.serve() } else { Pause::Read };
            slot.unserved = matches!(pause, Pause::Turn | Pause::Again);
            match pause {
                Pause::Wait(wait) => {
                    self.hand_over(key, wait);
                    return Ok(());
                }
                Pause::Close => slot.closing = true,
                Pause::Again => {
                    slot.connection.shared.release_retired();
                    self.waiting.push_back(key);
                    return Ok(());
                }
                Pause::Read | Pause::Turn => {}
            }
            slot.connection.shared.release_retired();
            let whole = self.answer(key, alone);
            let slot = &self.slots[key];
            if whole && slot.closing {
                continue;
            }
            if whole && slot.unserved {
                self.waiting.push_back(key);
                return Ok(());
            }
            if !whole {
                self.send(key)?;
            }
            let slot = &self.slots[key];
            return if slot.closing || slot.unserved { Ok(()) } else { self.receive(key) };
        }
    }

    /// Begins to send the output; whether all of it went out at once.
    fn answer(&mut self, key: usize, alone: bool) -> bool {
        let slot = &mut self.slots[key];
        if slot.connection.output.is_empty() {
            return true;
        }
        let output = mem::take(&mut slot.connection.output);
        if alone {
            self.system_calls.add(1);
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(slot.connection.link.stream.fd(), output.bytes(), flags) {
                Ok(sent) if sent == output.len() => {
                    slot.connection.output = Output::reuse(output.into_bytes());
                    return true;
                }
                Ok(sent) => slot.sent = sent,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => {
                    debug!(%error, "a connection broke");
                    slot.closing = true;
                    return true;
                }
            }
        }
        slot.sending = output.into_bytes();
        false
    }

    /// Has the kernel send the rest of what is being sent.
    fn send(&mut self, key: usize) -> io::Result<()> {
        let slot = &mut self.slots[key];
        slot.send_under_way = true;
        slot.connection.link.set_unsent(true);
        let rest = &slot.sending[slot.sent..];
        let length = u32::try_from(rest.len()).unwrap_or(u32::MAX);
        let fd = types::Fd(slot.connection.link.stream.fd().as_raw_fd());
        let flags = i32::try_from(SendFlags::NOSIGNAL.bits()).expect("the flag is small");
        let entry = opcode::Send::new(fd, rest.as_ptr(), length).flags(flags).build();
        self.push(&entry.user_data((key as u64) << 1 | 1))
    }

    /// Has the kernel receive into the free part of the input.
    fn receive(&mut self, key: usize) -> io::Result<()> {
        let slot = &mut self.slots[key];
        slot.receiving = true;
        let free = slot.connection.input.spare_capacity_mut();
        let length = u32::try_from(free.len()).unwrap_or(u32::MAX);
        let fd = types::Fd(slot.connection.link.stream.fd().as_raw_fd());
        let entry = opcode::Recv::new(fd, free.as_mut_ptr().cast(), length).ioprio(POLL_FIRST).build();
        self.push(&entry.user_data((key as u64) << 1))
    }

    fn push(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        loop {
            // SAFETY: the buffer belongs to a slot, which is kept, and whose buffer is neither touched nor moved
            // from here until the operation completes; the descriptor is closed with the slot, later still.
            let pushed = unsafe { self.ring.submission().push(entry) };
            if pushed.is_ok() {
                return Ok(());
            }
            self.enter()?;
        }
    }

    /// Ends a connection, at once or when what is under way has ended.
    fn close(&mut self, key: usize) {
        if self.slots[key].receiving {
            self.slots[key].connection.link.close();
        } else {
            drop(self.slots.remove(key));
        }
    }

    /// Moves a connection, of which nothing is under way, to a task of its own.
    fn hand_over(&mut self, key: usize, wait: Wait) {
        let slot = self.slots.remove(key);
        tokio_uring::spawn(task::run(slot.connection, Some(wait)));
    }
}

impl Drop for Reactor {
    /// The kernel may still write into buffers of the slots, so these outlive every operation.
    fn drop(&mut self) {
        for (_, slot) in &self.slots {
            slot.connection.link.close();
        }
        let busy = |slot: &Slot| slot.receiving || slot.send_under_way;
        let deadline = Instant::now() + Duration::from_secs(1);
        while self.slots.iter().any(|(_, slot)| busy(slot)) && Instant::now() < deadline {
            if self.enter().is_err() {
                break;
            }
            let completed = self.ring.completion().map(|entry| entry.user_data()).collect::<Vec<_>>();
            for data in completed {
                let slot = &mut self.slots[usize::try_from(data >> 1).expect("keys are usize")];
                if data & 1 == 0 { slot.receiving = false } else { slot.send_under_way = false }
            }
        }
        if self.slots.iter().any(|(_, slot)| busy(slot)) {
            // Rather leak the buffers than let the kernel write into memory that is used for something else.
            self.slots.drain().for_each(mem::forget);
        }
    }
}
