//! Reads one chunk over and over beside whatever else a client does, so also while that waits for a server that is out of reach.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use maru_client::ChunkRef;

use super::counts::Counts;
use super::key::Key;
use super::look::Expected;

/// How long it waits from one look to the next.
const TICK: Duration = Duration::from_millis(1);

/// What was seen.
#[derive(Default)]
pub(super) struct Seen {
    pub(super) counts: Counts,
    /// Which promises were broken.
    pub(super) broken: Vec<String>,
}

#[derive(Default)]
struct State {
    watched: Option<(Key, ChunkRef)>,
    seen: Seen,
}

impl State {
    fn look(&mut self, expected: Expected, copied: bool) {
        if let Some((key, chunk)) = &self.watched {
            let broken = expected.look(*key, chunk, copied, &mut self.seen.counts);
            self.seen.broken.extend(broken);
        }
    }
}

/// A thread that looks at a chunk until the process ends.
pub(super) struct Watcher {
    state: Arc<Mutex<State>>,
}

impl Watcher {
    /// Begins to look, at nothing yet.
    pub(super) fn start(expected: Expected) -> Watcher {
        let state = Arc::new(Mutex::new(State::default()));
        let watched = Arc::clone(&state);
        thread::spawn(move || {
            for copied in [false, true].into_iter().cycle() {
                lock(&watched).look(expected, copied);
                thread::sleep(TICK);
            }
        });
        Watcher { state }
    }

    /// Looks at this chunk from now on, and at no other.
    pub(super) fn watch(&self, key: Key, chunk: ChunkRef) {
        lock(&self.state).watched = Some((key, chunk));
    }

    /// Lets go of the chunk.
    pub(super) fn forget(&self) {
        lock(&self.state).watched = None;
    }

    /// What was seen since this was last asked.
    pub(super) fn seen(&self) -> Seen {
        std::mem::take(&mut lock(&self.state).seen)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
