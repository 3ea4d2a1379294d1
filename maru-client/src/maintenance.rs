//! The handler's own thread: it releases pins that nothing else carries along, looks after late answers, has the session go
//! on when a connection is lost, keeps the [lease](crate::lease) of one that is quiet, and reports how long calls took where
//! that is wanted.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;

use crate::error::{Error, Result};
use crate::lease::{self, Lease};
use crate::pins::Pins;
use crate::reporter::Reporter;
use crate::rpc::request::Heartbeat;
use crate::session::{Link, Phase};
use crate::shared::Shared;
use crate::sync::lock;

/// How long a released pin may wait for a request to carry it along.
const PERIOD: Duration = Duration::from_millis(2);
/// How long the thread goes on looking every period once there is nothing to do: while it does, ringing is free.
const LINGER: Duration = Duration::from_millis(50);
/// How long it waits before it tries again to reach a server, at first and at most.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(100));

const ASLEEP: u8 = 0;
const AWAKE: u8 = 1;
const STOPPED: u8 = 2;

/// Wakes the thread.
#[derive(Debug)]
pub(crate) struct Bell {
    state: AtomicU8,
    rung: OwnedFd,
}

impl Bell {
    /// A bell that nobody has rung.
    pub(crate) fn new() -> Result<Bell> {
        let rung = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let failed = |error: rustix::io::Errno| Error::Io { what: "make a bell", source: error.into() };
        Ok(Bell { state: AtomicU8::new(ASLEEP), rung: rung.map_err(failed)? })
    }

    /// There is something to do. Costs next to nothing while the thread is awake.
    pub(crate) fn ring(&self) {
        if self.state.load(Ordering::SeqCst) == ASLEEP
            && self.state.compare_exchange(ASLEEP, AWAKE, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            self.wake();
        }
    }

    /// The thread is to end.
    pub(crate) fn stop(&self) {
        self.state.store(STOPPED, Ordering::SeqCst);
        self.wake();
    }

    fn wake(&self) {
        // An error says that the bell rings already.
        let _ = rustix::io::write(&self.rung, &1u64.to_ne_bytes());
    }

    /// Waits until the bell is rung, or the peer of a connection hangs up, which rings it; at most for this long.
    fn wait(&self, link: Option<&Link>, at_most: Option<Duration>) -> Woken {
        let at_most = at_most.and_then(|at_most| Timespec::try_from(at_most).ok());
        while self.state.load(Ordering::SeqCst) == ASLEEP {
            let rung = PollFd::new(&self.rung, PollFlags::IN);
            let mut fds = vec![rung];
            let fd = link.map(Link::fd);
            fds.extend(fd.as_ref().map(|fd| PollFd::new(fd, PollFlags::RDHUP)));
            let polled = poll(&mut fds, at_most.as_ref());
            if polled == Ok(0) {
                return Woken::ByTime;
            }
            let (Ok(_), Some(link), Some(socket)) = (polled, link, fds.get(1)) else { continue };
            if !socket.revents().is_empty() {
                tracing::debug!("the server hung up");
                link.shut();
                self.ring();
            }
        }
        let _ = rustix::io::read(&self.rung, &mut [0u8; 8]);
        if self.state.load(Ordering::SeqCst) == STOPPED { Woken::ToEnd } else { Woken::ByBell }
    }
}

/// What ended a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    ByBell,
    ByTime,
    ToEnd,
}

/// What keeps the lease, and keeps nothing of the handler alive.
struct Pulse {
    lease: Arc<Lease>,
    pins: Arc<Pins>,
}

impl Pulse {
    /// Says a word if it is time to: where there are guards, since the lease needs it, and over TCP, since a host that is gone
    /// does not hang up. The kernel ends a connection on which this is not acknowledged.
    fn beat(&self, link: &Link) {
        let is_wanted = !link.is_broken() && (link.is_remote() || self.pins.has_guards());
        if is_wanted && self.lease.is_due(lease::now()) {
            let _ = link.connection.answer_to(&Heartbeat([]));
        }
    }
}

/// Starts the thread of a handler. It keeps nothing of it alive, and ends with it.
pub(crate) fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    let pulse = Pulse { lease: Arc::clone(&shared.lease), pins: Arc::clone(&shared.pins) };
    let reporter = shared.call_times.is_some().then(Reporter::new);
    let (bell, shared) = (Arc::clone(&shared.bell), Arc::downgrade(shared));
    std::thread::Builder::new()
        .name("maru-maintenance".to_owned())
        .spawn(move || run(&bell, &pulse, &shared, reporter))
        .map(drop)
}

fn run(bell: &Bell, pulse: &Pulse, shared: &Weak<Shared>, mut reporter: Option<Reporter>) {
    loop {
        // The connections may outlive the handler for as long as the thread sleeps, which the handler's end ends.
        let Some(link) =
            shared.upgrade().map(|shared| (shared.phase() != Phase::Ended).then(|| shared.link()))
        else {
            return;
        };
        let due = [Some(pulse.lease.beat()), reporter.as_ref().map(Reporter::left)];
        let at_most = due.into_iter().flatten().min().filter(|_| link.is_some());
        match (bell.wait(link.as_deref(), at_most), link) {
            (Woken::ByBell, _) => {}
            (Woken::ByTime, link) => {
                let Some(()) = shared.upgrade().map(|shared| report(&shared, reporter.as_mut())) else {
                    return;
                };
                link.iter().for_each(|link| pulse.beat(link));
                continue;
            }
            (Woken::ToEnd, _) => return,
        }
        let (mut idle_since, mut pause) = (Instant::now(), PERIOD);
        while idle_since.elapsed() < LINGER {
            std::thread::sleep(pause);
            let looked = shared.upgrade().map(|shared| {
                report(&shared, reporter.as_mut());
                (work(&shared), shared.link())
            });
            let Some((work, link)) = looked else { return };
            // Nobody who lets go of the handler meanwhile waits for the answer.
            pulse.beat(&link);
            pause = match work {
                Work::None => PERIOD,
                Work::Some => {
                    idle_since = Instant::now();
                    PERIOD
                }
                Work::TryAgain => {
                    idle_since = Instant::now();
                    (2 * pause).clamp(BACK_OFF.0, BACK_OFF.1)
                }
            };
        }
        // Whoever rings from here on wakes the thread again; whoever rang before is seen by one more look.
        let asleep = bell.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst);
        if asleep.is_err() {
            return;
        }
        match shared.upgrade() {
            None => return,
            Some(shared) if work(&shared) != Work::None => bell.ring(),
            Some(_) => {}
        }
    }
}

/// Reports how long calls took, where that is wanted and due.
fn report(shared: &Shared, reporter: Option<&mut Reporter>) {
    if let Some((reporter, times)) = reporter.zip(shared.call_times.as_ref()) {
        reporter.report_if_due(shared, times);
    }
}

/// What there was to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    None,
    Some,
    /// The server can't be reached.
    TryAgain,
}

/// Does what there is to do.
fn work(shared: &Shared) -> Work {
    let link = shared.link();
    match shared.phase() {
        Phase::Ended => return Work::None,
        Phase::Up if !link.is_broken() => {}
        Phase::Up => {
            shared.set_phase(Phase::Down(Instant::now()));
            return resume(shared);
        }
        Phase::Down(_) => return resume(shared),
    }
    if !lock(&shared.unsettled).is_empty() {
        let _ = shared.settle_abandoned(&link);
        return Work::Some;
    }
    if link.connection.has_abandoned() {
        // Answers come in order: to wait for this one is to see to all that are late. The pins go along.
        let _ = link.connection.answer_to(&Heartbeat([]));
        return Work::Some;
    }
    if shared.pins.none_to_release() {
        return Work::None;
    }
    let _ = link.connection.flush_releases();
    Work::Some
}

/// Tries to have the session go on.
fn resume(shared: &Shared) -> Work {
    match shared.resume() {
        Ok(()) => {
            tracing::info!(instance = shared.instance, "the session goes on on new connections");
            Work::Some
        }
        Err(error @ Error::SessionEnded) => {
            tracing::error!(instance = shared.instance, %error, "the session can't go on");
            shared.end_session();
            shared.stop_prefault();
            Work::None
        }
        Err(error) => {
            tracing::debug!(%error, "the session can't go on yet");
            shared.set_phase(shared.phase());
            Work::TryAgain
        }
    }
}
