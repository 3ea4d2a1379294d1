//! The one loop that drives peers: many connections, many requests in flight, closed or open, measured by intervals.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::channel::{Channel, Wait, lost};
use super::pace::Pace;
use super::recorder::{Recorder, Sample, nanoseconds};
use crate::error::BenchError;
use crate::interrupt;

/// Before a request of an open loop is due, its worker looks rather than sleeps for this long: a sleep ends late.
const LOOK: Duration = Duration::from_micros(60);

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// After this time.
    After(Duration),
    /// After this many requests, over all connections.
    Requests(u64),
}

/// How a run goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How long requests are made before they count.
    pub(crate) warm_up: Duration,
    /// When it ends, from the end of the warm-up on.
    pub(crate) end: End,
    /// Requests of one connection that may be in flight.
    pub(crate) in_flight: usize,
    /// How often the caller hears of the progress.
    pub(crate) interval: Duration,
}

/// One connection and what is said on it.
pub(crate) struct Worker<P> {
    pub(crate) channel: Channel,
    pub(crate) protocol: P,
    pub(crate) pace: Pace,
}

/// What a run measured.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) sample: Sample,
    /// From the end of the warm-up to the last answer.
    pub(crate) elapsed: Duration,
    workers: u32,
}

impl Outcome {
    /// What one thread measured in a time.
    pub(crate) fn new(sample: Sample, elapsed: Duration) -> Outcome {
        Outcome { sample, elapsed, workers: 1 }
    }

    /// Requests answered in a second, without the time in which the workers made no requests.
    pub(crate) fn per_second(&self) -> f64 {
        let busy = self.elapsed.saturating_sub(self.sample.paused / self.workers.max(1));
        self.sample.answered() as f64 / busy.as_secs_f64().max(1e-9)
    }
}

/// What the workers are told while they run.
struct Orders {
    counting: AtomicBool,
    stop: AtomicBool,
}

/// Drives all workers to the end of the plan. After each interval `progress` hears what was measured in it.
///
/// # Errors
/// The first error of a worker, or [`BenchError::Interrupted`].
pub(crate) fn run<P: Protocol>(
    workers: Vec<Worker<P>>,
    plan: &Plan,
    mut progress: impl FnMut(&Sample, Duration),
) -> Result<Outcome, BenchError> {
    let interrupted = interrupt::flag()?;
    let orders = Orders { counting: AtomicBool::new(plan.warm_up.is_zero()), stop: AtomicBool::new(false) };
    let recorders = workers.iter().map(|_| Recorder::new()).collect::<Vec<_>>();
    let count = workers.len();
    let budget = match plan.end {
        End::After(_) => u64::MAX,
        End::Requests(requests) => requests.div_ceil(u64::try_from(count.max(1)).unwrap_or(u64::MAX)),
    };
    let mut total = Sample::new();

    let elapsed = thread::scope(|scope| {
        let (done, finished) = mpsc::channel();
        for (worker, recorder) in workers.into_iter().zip(&recorders) {
            let (orders, done) = (&orders, done.clone());
            scope.spawn(move || {
                // Nobody listens any more once another worker has failed.
                let _ = done.send(worker.work(plan.in_flight, budget, orders, recorder));
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
            wait_until(Instant::now() + plan.warm_up)?;
            recorders.iter().for_each(|recorder| recorder.take(&mut Sample::new()));
            orders.counting.store(true, Ordering::Relaxed);
            let start = Instant::now();
            let mut last = start;
            let end = match plan.end {
                End::After(duration) => Some(start + duration),
                End::Requests(_) => None,
            };
            loop {
                let next = last + plan.interval;
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
                progress(&sample, now - last);
                total += &sample;
                last = now;
                if over {
                    return Ok(now - start);
                }
            }
        })();
        // Also after an error, or the scope would wait for workers that nobody stops.
        orders.stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    Ok(Outcome { sample: total, elapsed, workers: u32::try_from(count).unwrap_or(u32::MAX) })
}

/// A request on its way.
struct InFlight {
    due: Instant,
    sent: Instant,
}

impl<P: Protocol> Worker<P> {
    fn work(
        mut self,
        limit: usize,
        budget: u64,
        orders: &Orders,
        recorder: &Recorder,
    ) -> Result<(), BenchError> {
        let mut in_flight = VecDeque::with_capacity(limit);
        let mut left = budget;
        loop {
            let stop = orders.stop.load(Ordering::Relaxed) || left == 0;
            if in_flight.is_empty() && stop {
                self.leave(budget == u64::MAX, recorder);
                return self.protocol.finish(&mut self.channel);
            }
            if in_flight.is_empty() && self.protocol.is_short() {
                let began = Instant::now();
                self.protocol.restock(&mut self.channel)?;
                recorder.record(|sample| sample.paused += began.elapsed());
            }
            let counting = orders.counting.load(Ordering::Relaxed);
            let now = Instant::now();
            while !stop && left > 0 && in_flight.len() < limit && !self.protocol.is_short() {
                let Some(due) = self.pace.due(now) else {
                    break;
                };
                self.pace.advance();
                self.protocol.request(self.channel.out());
                in_flight.push_back(InFlight { due, sent: now });
                left -= u64::from(counting && budget != u64::MAX);
            }
            let full = stop || in_flight.len() == limit || self.protocol.is_short();
            self.await_answers(in_flight.is_empty(), full, now)?;
            self.take_answers(&mut in_flight, recorder)?;
        }
    }

    /// Waits for an answer, or until the next request is due.
    fn await_answers(&mut self, idle: bool, full: bool, now: Instant) -> Result<(), BenchError> {
        let wait = match self.pace.wait(now) {
            None => Wait::Answer,
            Some(_) if full && !idle => Wait::Answer,
            Some(left) if left > LOOK => Wait::UpTo((left - LOOK).min(Duration::from_millis(10))),
            Some(_) => Wait::No,
        };
        self.channel.exchange(wait).map_err(lost(P::PEER))
    }

    fn take_answers(
        &mut self,
        in_flight: &mut VecDeque<InFlight>,
        recorder: &Recorder,
    ) -> Result<(), BenchError> {
        if self.channel.input().is_empty() {
            return Ok(());
        }
        let now = Instant::now();
        let open = matches!(self.pace, Pace::Open(_));
        let mut outcome = Ok(());
        recorder.record(|sample| {
            outcome = (|| {
                while let Some(bytes) = self.protocol.response(self.channel.input())? {
                    self.channel.consume(bytes);
                    let Some(request) = in_flight.pop_front() else {
                        return Err(BenchError::answer(P::PEER, "more answers than there were requests"));
                    };
                    sample.latency += nanoseconds(now - request.due);
                    if open {
                        sample.service += nanoseconds(now - request.sent);
                    }
                }
                Ok(())
            })();
        });
        outcome
    }

    /// Counts what an open loop still owes when its time is over: left out, the slowest requests would not be seen.
    fn leave(&mut self, timed: bool, recorder: &Recorder) {
        let now = Instant::now();
        if !timed || matches!(self.pace, Pace::Closed) {
            return;
        }
        recorder.record(|sample| {
            while let Some(due) = self.pace.due(now) {
                self.pace.advance();
                sample.latency += nanoseconds(now - due);
                sample.unsent += 1;
            }
        });
    }
}
