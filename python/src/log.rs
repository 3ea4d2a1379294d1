//! What the client has to say, handed to Python's logging.
//!
//! An event may come up anywhere, also under a lock that a thread with the interpreter's lock waits for. So nothing here
//! waits for Python: events are queued, and a Python thread fetches them.

use std::fmt::{self, Write as _};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};

use pyo3::prelude::*;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer, Registry};

/// Events that may wait for Python; further ones are dropped.
const QUEUE: usize = 1024;

/// A level of Python's logging, and a text; `None` is the end.
type Line = Option<(u32, String)>;

static QUEUED: OnceLock<(SyncSender<Line>, Mutex<Receiver<Line>>)> = OnceLock::new();

struct Queue;

impl<S: Subscriber> Layer<S> for Queue {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let Some((queue, _)) = QUEUED.get() else { return };
        let mut text = Text::default();
        event.record(&mut text);
        let level = match *event.metadata().level() {
            Level::ERROR => 40,
            Level::WARN => 30,
            Level::INFO => 20,
            _ => 10,
        };
        // Where Python does not keep up, lines are lost rather than requests held back.
        let _ = queue.try_send(Some((level, text.message + &text.fields)));
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

/// Queues what the client says from this level of Python's logging on.
#[pyfunction]
pub(crate) fn start_log(level: u32) {
    let level = match level {
        0..=10 => LevelFilter::DEBUG,
        11..=20 => LevelFilter::INFO,
        21..=30 => LevelFilter::WARN,
        _ => LevelFilter::ERROR,
    };
    let (sender, receiver) = sync_channel(QUEUE);
    if QUEUED.set((sender, Mutex::new(receiver))).is_ok() {
        // Nobody else in this module installs one.
        let _ = Registry::default().with(Queue.with_filter(level)).try_init();
    }
}

/// Waits for the next line: its level and text, or `None` when there will be none.
#[pyfunction]
pub(crate) fn next_log_event(py: Python<'_>) -> Line {
    let (_, queue) = QUEUED.get()?;
    py.detach(|| queue.lock().unwrap_or_else(PoisonError::into_inner).recv().ok().flatten())
}

/// Ends the thread that waits for lines once it has those that are queued.
#[pyfunction]
pub(crate) fn stop_log(py: Python<'_>) {
    if let Some((queue, _)) = QUEUED.get() {
        // The receiver is never dropped.
        let _ = py.detach(|| queue.send(None));
    }
}
