//! What the client has to say, handed to Python's logging.
//!
//! An event may come up anywhere, also under a lock that a thread with the interpreter's lock waits for. So nothing here
//! waits for Python: events are queued, and a Python thread fetches them.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

/// Lines that may wait for Python; further ones are dropped.
const QUEUE: usize = 1024;

/// What waits for Python. Whoever waits for a line does not hold the lock, so that the child of a fork finds it free.
static LINES: Mutex<Lines> = Mutex::new(Lines { waiting: VecDeque::new(), ended: false });
static CHANGED: Condvar = Condvar::new();

struct Lines {
    /// Each a level of Python's logging, and a text.
    waiting: VecDeque<(u32, String)>,
    ended: bool,
}

/// Nothing in here panics while it holds the lock.
fn lines() -> MutexGuard<'static, Lines> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Queue;

impl<S: Subscriber> Layer<S> for Queue {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => 40,
            Level::WARN => 30,
            Level::INFO => 20,
            _ => 10,
        };
        let mut lines = lines();
        // Where Python does not keep up, lines are lost rather than requests held back.
        if lines.waiting.len() < QUEUE {
            lines.waiting.push_back((level, text.message + &text.fields));
            CHANGED.notify_one();
        }
    }
}

/// A message with its fields behind it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a String does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

/// Queues what the client says from this level of Python's logging on, which the first call in a process decides.
#[pyfunction]
pub(crate) fn start_log(level: u32) {
    let level = match level {
        0..=10 => LevelFilter::DEBUG,
        11..=20 => LevelFilter::INFO,
        21..=30 => LevelFilter::WARN,
        _ => LevelFilter::ERROR,
    };
    // What waits in the child of a fork is the parent's.
    *lines() = Lines { waiting: VecDeque::new(), ended: false };
    // Nobody else in this module installs one; in the child of a fork it is there already.
    let _ = Registry::default().with(Queue.with_filter(level)).try_init();
}

/// Waits for the next line: its level and text, or `None` when there will be none.
#[pyfunction]
pub(crate) fn next_log_event(py: Python<'_>) -> Option<(u32, String)> {
    py.detach(|| {
        let has_to_wait = |lines: &mut Lines| lines.waiting.is_empty() && !lines.ended;
        let lines = CHANGED.wait_while(lines(), has_to_wait);
        lines.unwrap_or_else(PoisonError::into_inner).waiting.pop_front()
    })
}

/// Ends the thread that waits for lines once it has those that are queued.
#[pyfunction]
pub(crate) fn stop_log() {
    lines().ended = true;
    CHANGED.notify_all();
}
