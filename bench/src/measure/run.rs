//! How peers are driven: many connections, shared out among threads, closed or open loop, measured by intervals.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::channel::Channel;
use super::connection::Connection;
use super::recorder::{Recorder, Sample};
use super::{alone, multiplex};
use crate::error::BenchError;
use crate::interrupt;

/// What is said on a channel: requests, answered in their order.
pub(crate) trait Protocol: Send {
    /// Who answers, for messages.
    const PEER: &'static str;

    /// Appends the next request.
    fn request(&mut self, out: &mut Vec<u8>);

    /// How many bytes at the start of `input` are the answer to the oldest request; `None` while it is not whole.
    ///
    /// # Errors
    /// [`BenchError`] where it is not the answer that every request must have.
    fn response(&mut self, input: &[u8]) -> Result<Option<usize>, BenchError>;

    /// Whether [`Protocol::restock`] has to come before the next request.
    fn is_short(&self) -> bool {
        false
    }

    /// Makes further requests possible. Called with nothing in flight; the time it takes is not measured.
    ///
    /// # Errors
    /// [`BenchError`] where the peer fails.
    fn restock(&mut self, _channel: &mut Channel) -> Result<(), BenchError> {
        Ok(())
    }

    /// Leaves nothing behind. Called at the end, with nothing in flight.
    ///
    /// # Errors
    /// [`BenchError`] where the peer fails.
    fn finish(&mut self, _channel: &mut Channel) -> Result<(), BenchError> {
        Ok(())
    }
}

/// When a run ends.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) enum End {
    /// After this time.
    After(Duration),
    /// After this many requests, over all connections.
    Requests(u64),
}

/// How a run goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// When it begins.
    pub(crate) start: Instant,
    /// How long requests are made before they count.
    pub(crate) warm_up: Duration,
    /// When it ends, from the end of the warm-up on.
    pub(crate) end: End,
    /// Requests of one connection that may be in flight.
    pub(crate) in_flight: usize,
    /// Threads that share the connections, at most one for each.
    pub(crate) threads: usize,
    /// How often the caller hears of the progress.
    pub(crate) interval: Duration,
}

/// What a caller hears of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event<'a> {
    /// The warm-up is over.
    Begun,
    /// What was measured in some time.
    Interval(&'a Sample, Duration),
}

/// What a run measured.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) sample: Sample,
    /// From the end of the warm-up to the last answer.
    pub(crate) elapsed: Duration,
    /// Threads that measured it.
    pub(crate) threads: u32,
}

impl Outcome {
    /// Requests answered in a second, without the time in which the threads made no requests.
    pub(crate) fn per_second(&self) -> f64 {
        let busy = self.elapsed.saturating_sub(self.sample.paused / self.threads.max(1));
        self.sample.answered() as f64 / busy.as_secs_f64().max(1e-9)
    }
}

/// What the threads are told while they run.
pub(super) struct Orders {
    counting: AtomicBool,
    stop: AtomicBool,
}

impl Orders {
    /// Whether requests count against those that a connection is to make.
    pub(super) fn counting(&self) -> bool {
        self.counting.load(Ordering::Relaxed)
    }

    /// Whether no more requests are to be made.
    pub(super) fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// Drives all connections to the end of the plan; `hear` is told how it goes.
///
/// # Errors
/// The first error of a connection or of `hear`, or [`BenchError::Interrupted`].
pub(crate) fn run<P: Protocol>(
    connections: Vec<Connection<P>>,
    plan: &Plan,
    mut hear: impl FnMut(Event<'_>) -> Result<(), BenchError>,
) -> Result<Outcome, BenchError> {
    let interrupted = interrupt::flag()?;
    let orders = Orders { counting: AtomicBool::new(plan.warm_up.is_zero()), stop: AtomicBool::new(false) };
    let groups = share_out(connections, plan);
    let recorders = groups.iter().map(|_| Recorder::new()).collect::<Vec<_>>();
    let count = groups.len();
    let mut total = Sample::new();
    thread::sleep(plan.start.saturating_duration_since(Instant::now()));

    let elapsed = thread::scope(|scope| {
        let (done, finished) = mpsc::channel();
        for (mut group, recorder) in groups.into_iter().zip(&recorders) {
            let (orders, done) = (&orders, done.clone());
            scope.spawn(move || {
                let outcome = match group.pop() {
                    Some(connection) if group.is_empty() => alone::drive(connection, orders, recorder),
                    last => multiplex::drive(group.into_iter().chain(last).collect(), orders, recorder),
                };
                // Nobody listens any more once another thread has failed.
                let _ = done.send(outcome);
            });
        }
        drop(done);
        let mut running = count;
        let mut wait_until = |at: Instant| -> Result<bool, BenchError> {
            while running > 0 {
                // In short steps, so that Ctrl-C is heard.
                let left = at.saturating_duration_since(Instant::now());
                match finished.recv_timeout(left.min(Duration::from_millis(100))) {
                    Ok(result) => {
                        running -= 1;
                        result?;
                    }
                    Err(RecvTimeoutError::Timeout) if interrupted.load(Ordering::Relaxed) => {
                        return Err(BenchError::Interrupted);
                    }
                    Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(false),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            Ok(true)
        };

        let outcome: Result<Duration, BenchError> = (|| {
            wait_until(plan.start + plan.warm_up)?;
            recorders.iter().for_each(|recorder| recorder.take(&mut Sample::new()));
            orders.counting.store(true, Ordering::Relaxed);
            let start = Instant::now();
            hear(Event::Begun)?;
            let mut last = start;
            let mut next = start;
            let end = match plan.end {
                End::After(duration) => Some(start + duration),
                End::Requests(_) => None,
            };
            loop {
                next += plan.interval;
                let all_done = wait_until(end.map_or(next, |end| next.min(end)))?;
                let now = Instant::now();
                let over = all_done || end.is_some_and(|end| now >= end);
                if over {
                    orders.stop.store(true, Ordering::Relaxed);
                    // The answers that are still to come belong to the run.
                    while !wait_until(Instant::now() + plan.interval)? {}
                }
                let now = if over { Instant::now() } else { now };
                let mut sample = Sample::new();
                recorders.iter().for_each(|recorder| recorder.take(&mut sample));
                hear(Event::Interval(&sample, now - last))?;
                total += &sample;
                last = now;
                if over {
                    return Ok(now - start);
                }
            }
        })();
        // Also after an error, or the scope would wait for threads that nobody stops.
        orders.stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    Ok(Outcome { sample: total, elapsed, threads: u32::try_from(count).unwrap_or(u32::MAX) })
}

/// The connections of each thread, with what each connection may do.
fn share_out<P: Protocol>(mut connections: Vec<Connection<P>>, plan: &Plan) -> Vec<Vec<Connection<P>>> {
    let count = connections.len();
    let requests = match plan.end {
        End::After(_) => None,
        End::Requests(requests) => Some(requests.div_ceil(u64::try_from(count.max(1)).unwrap_or(u64::MAX))),
    };
    connections.iter_mut().for_each(|connection| connection.limit(plan.in_flight, requests));
    let threads = plan.threads.clamp(1, count.max(1));
    let mut connections = connections.into_iter();
    let share = |thread: usize| (thread + 1) * count / threads - thread * count / threads;
    (0..threads).map(|thread| connections.by_ref().take(share(thread)).collect()).collect()
}
