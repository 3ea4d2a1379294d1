//! The handler's own thread: it releases pins that nothing else carries along, and looks after late answers.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::rpc::request::Heartbeat;
use crate::shared::Shared;
use crate::sync::lock;

/// How long a released pin may wait for a request to carry it along.
const PERIOD: Duration = Duration::from_millis(2);
/// How long the thread goes on looking every period once there is nothing to do: while it does, ringing is free.
const LINGER: Duration = Duration::from_millis(50);

const ASLEEP: u8 = 0;
const AWAKE: u8 = 1;
const STOPPED: u8 = 2;

/// Wakes the thread.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    state: AtomicU8,
    sleeping: Mutex<()>,
    rung: Condvar,
}

impl Bell {
    /// There is something to do. Costs next to nothing while the thread is awake.
    pub(crate) fn ring(&self) {
        self.set(ASLEEP, AWAKE);
    }

    /// The thread is to end.
    pub(crate) fn stop(&self) {
        self.state.store(STOPPED, Ordering::SeqCst);
        drop(lock(&self.sleeping));
        self.rung.notify_all();
    }

    fn set(&self, from: u8, to: u8) {
        if self.state.load(Ordering::SeqCst) == from
            && self.state.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        {
            // Taken so that the thread is either not yet looking at the state or waiting already.
            drop(lock(&self.sleeping));
            self.rung.notify_all();
        }
    }

    /// Waits until the bell is rung; `false` when the thread is to end.
    fn wait(&self) -> bool {
        let sleeping = lock(&self.sleeping);
        let waited = self.rung.wait_while(sleeping, |()| self.state.load(Ordering::SeqCst) == ASLEEP);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        self.state.load(Ordering::SeqCst) != STOPPED
    }
}

/// Starts the thread of a handler. It keeps nothing of it alive, and ends with it.
pub(crate) fn start(shared: &Arc<Shared>) -> std::io::Result<()> {
    let (bell, shared) = (Arc::clone(&shared.bell), Arc::downgrade(shared));
    std::thread::Builder::new()
        .name("maru-maintenance".to_owned())
        .spawn(move || run(&bell, &shared))
        .map(drop)
}

fn run(bell: &Bell, shared: &Weak<Shared>) {
    while bell.wait() {
        let mut idle_since = Instant::now();
        while idle_since.elapsed() < LINGER {
            std::thread::sleep(PERIOD);
            match shared.upgrade() {
                None => return,
                Some(shared) if work(&shared) => idle_since = Instant::now(),
                Some(_) => {}
            }
        }
        // Whoever rings from here on wakes the thread again; whoever rang before is seen by one more look.
        let asleep = bell.state.compare_exchange(AWAKE, ASLEEP, Ordering::SeqCst, Ordering::SeqCst);
        if asleep.is_err() {
            return;
        }
        match shared.upgrade() {
            None => return,
            Some(shared) if work(&shared) || shared.connection.has_abandoned() => bell.ring(),
            Some(_) => {}
        }
    }
}

/// Does what there is to do; whether there was anything.
fn work(shared: &Shared) -> bool {
    if shared.connection.is_broken() {
        return false;
    }
    if shared.connection.has_abandoned() {
        // Answers come in order: to wait for this one is to see to all that are late. The pins go along.
        let _ = shared.connection.answer_to(&Heartbeat([]));
        return true;
    }
    let released = shared.has_releases();
    if released {
        let _ = shared.connection.flush_releases();
    }
    released
}
