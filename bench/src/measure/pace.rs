//! When the next request is to be sent: as soon as there is room, or at times that were fixed beforehand.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// The times of the requests of all connections together.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub(crate) enum Tempo {
    /// A closed loop.
    Closed,
    /// An open loop of so many requests a second.
    Open(f64),
}

impl Tempo {
    /// The part of connection number `connection` of `connections` that begin at `start`.
    pub(crate) fn pace(self, start: Instant, connection: usize, connections: usize) -> Pace {
        match self {
            Tempo::Closed => Pace::Closed,
            Tempo::Open(rate) => Pace::Open(Schedule::share(start, rate, connection, connections)),
        }
    }
}

/// The times of the requests of one connection.
#[derive(Clone, Debug)]
pub(crate) enum Pace {
    /// A closed loop: a request follows an answer. A slow answer delays the requests after it, so that what they
    /// would have waited is not seen.
    Closed,
    /// An open loop: requests follow a schedule whatever the answers do, and a latency counts from the time in the
    /// schedule. What a request waited because it could not be sent in time is part of its latency.
    Open(Schedule),
}

impl Pace {
    /// The time from which the latency of the next request counts, if that has come. It stays the next one until
    /// [`Pace::advance`].
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        match self {
            Pace::Closed => Some(now),
            Pace::Open(schedule) => Some(schedule.next()).filter(|due| *due <= now),
        }
    }

    /// The next request is on its way.
    pub(crate) fn advance(&mut self) {
        if let Pace::Open(schedule) = self {
            schedule.sent += 1;
        }
    }

    /// How long the next request is still to wait; `None` where it follows an answer.
    pub(crate) fn wait(&self, now: Instant) -> Option<Duration> {
        match self {
            Pace::Closed => None,
            Pace::Open(schedule) => Some(schedule.next().saturating_duration_since(now)),
        }
    }
}

/// Times at equal distances.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    start: Instant,
    nanoseconds: f64,
    sent: u64,
}

impl Schedule {
    /// A request every 1/`rate` s. Of `connections` that share the rate, this is the schedule of number `connection`:
    /// each has its turn.
    fn share(start: Instant, rate: f64, connection: usize, connections: usize) -> Schedule {
        let between = Duration::from_secs_f64(1.0 / rate);
        let first = between.mul_f64(connection as f64);
        Schedule { start: start + first, nanoseconds: 1e9 * connections as f64 / rate, sent: 0 }
    }

    fn next(&self) -> Instant {
        // From the start rather than from the last request, so that nothing adds up.
        self.start + Duration::from_secs_f64(self.sent as f64 * self.nanoseconds / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, microseconds: u64) -> Instant {
        start + Duration::from_micros(microseconds)
    }

    /// The times at which `pace` lets requests go when it is asked at `now`.
    fn due(pace: &mut Pace, start: Instant, now: Instant) -> Vec<u128> {
        let mut times = Vec::new();
        while let Some(due) = pace.due(now) {
            times.push(due.duration_since(start).as_micros());
            pace.advance();
        }
        times
    }

    #[test]
    fn requests_that_were_held_up_count_from_the_schedule() {
        let start = Instant::now();
        let mut pace = Pace::Open(Schedule::share(start, 100_000.0, 0, 1));
        assert_eq!(due(&mut pace, start, start), [0]);
        assert_eq!(due(&mut pace, start, at(start, 5)), [0; 0], "nothing before its time");
        // The peer stalls for 45 µs: four requests fell due meanwhile, and have waited 40, 30, 20 and 10 µs already.
        assert_eq!(due(&mut pace, start, at(start, 50)), [10, 20, 30, 40, 50]);
        assert_eq!(pace.wait(at(start, 53)), Some(Duration::from_micros(7)));
        assert_eq!(pace.wait(at(start, 99)), Some(Duration::ZERO));
    }

    #[test]
    fn connections_take_turns() {
        let start = Instant::now();
        let mut all = (0..4)
            .flat_map(|n| {
                let mut pace = Pace::Open(Schedule::share(start, 1000.0, n, 4));
                due(&mut pace, start, at(start, 11_500))
            })
            .collect::<Vec<_>>();
        all.sort_unstable();
        assert_eq!(all, (0..12).map(|n| n * 1000).collect::<Vec<_>>());
    }

    #[test]
    fn a_closed_loop_never_waits_for_the_clock() {
        let now = Instant::now();
        let mut pace = Pace::Closed;
        assert_eq!(pace.due(now), Some(now));
        pace.advance();
        assert_eq!((pace.due(now), pace.wait(now)), (Some(now), None));
    }
}
