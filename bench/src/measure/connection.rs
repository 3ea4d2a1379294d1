//! One connection under measurement: what it asks when, what is on its way, what its answers took.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::pace::Pace;
use super::recorder::{Sample, nanoseconds};
use super::run::Protocol;
use crate::error::BenchError;

/// Before a request of an open loop is due, its thread looks rather than sleeps for this long: a sleep ends late.
const LOOK: Duration = Duration::from_micros(60);
/// The longest sleep of an open loop, after which it looks whether its time is over.
const NAP: Duration = Duration::from_millis(10);

/// A connection and what is said on it.
pub(crate) struct Connection<P> {
    pub(super) channel: Channel,
    pub(super) protocol: P,
    pace: Pace,
    in_flight: VecDeque<InFlight>,
    /// Requests that may be in flight.
    limit: usize,
    /// Requests that it may still make; `None` where only time ends it.
    left: Option<u64>,
}

/// A request on its way.
struct InFlight {
    due: Instant,
    sent: Instant,
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// Its next answer.
    Answer,
    /// The time of its next request, so far away; not at all where that is next to nothing.
    Due(Duration),
}

impl<P: Protocol> Connection<P> {
    pub(crate) fn new(channel: Channel, protocol: P, pace: Pace) -> Connection<P> {
        Connection { channel, protocol, pace, in_flight: VecDeque::new(), limit: 1, left: None }
    }

    /// How many requests may be in flight, and how many it makes in all.
    pub(super) fn limit(&mut self, in_flight: usize, requests: Option<u64>) {
        self.in_flight.reserve(in_flight);
        (self.limit, self.left) = (in_flight, requests);
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether it has made all its requests.
    pub(super) fn is_spent(&self) -> bool {
        self.left == Some(0)
    }

    /// Whether requests follow a schedule.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.pace, Pace::Open(_))
    }

    /// Appends the requests that are due, as far as they may be in flight; how many.
    pub(super) fn request(&mut self, now: Instant, counting: bool) -> usize {
        let before = self.in_flight.len();
        while self.has_room() {
            let Some(due) = self.pace.due(now) else {
                break;
            };
            self.pace.advance();
            self.protocol.request(self.channel.out());
            self.in_flight.push_back(InFlight { due, sent: now });
            self.left = self.left.map(|left| left - u64::from(counting));
        }
        self.in_flight.len() - before
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < self.limit && !self.is_spent() && !self.protocol.is_short()
    }

    /// What it waits for, `now` that all requests that are due are on their way.
    pub(super) fn wait(&self, now: Instant, stop: bool) -> Until {
        match self.pace.wait(now) {
            None => Until::Answer,
            Some(_) if stop || !self.has_room() => Until::Answer,
            Some(left) => Until::Due(left.saturating_sub(LOOK).min(NAP)),
        }
    }

    /// Takes the answers that came by `now`; how many.
    pub(super) fn take_answers(&mut self, now: Instant, sample: &mut Sample) -> Result<usize, BenchError> {
        let (open, before) = (self.is_open(), self.in_flight.len());
        while let Some(bytes) = self.protocol.response(self.channel.input())? {
            self.channel.consume(bytes);
            let Some(request) = self.in_flight.pop_front() else {
                return Err(BenchError::answer(P::PEER, "more answers than there were requests"));
            };
            sample.latency += nanoseconds(now - request.due);
            if open {
                sample.service += nanoseconds(now - request.sent);
            }
        }
        Ok(before - self.in_flight.len())
    }

    /// Counts what an open loop still owes when its time is over: left out, the slowest requests would not be seen.
    pub(super) fn leave(&mut self, sample: &mut Sample) {
        let now = Instant::now();
        if self.left.is_some() || !self.is_open() {
            return;
        }
        while let Some(due) = self.pace.due(now) {
            self.pace.advance();
            sample.latency += nanoseconds(now - due);
            sample.unsent += 1;
        }
    }
}
