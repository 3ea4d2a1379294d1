//! Until when pins are certain although nobody speaks with the server: what a checked read relies on.
//!
//! The server releases the pins of a session no sooner than a grace period after it last had a connection of it. It had
//! one when it served a request, and so no sooner than when that was sent. So every answer says: until a grace period
//! after its request was sent, each pin that the server knew of is there, whatever became of the connection since.
//!
//! Three things are left out of account to the safe side. The clocks of two hosts do not run alike, so the lease ends a
//! [quarter](MARGIN) earlier. A host may sleep, so time is that of a clock that does not. A server that was restarted
//! knows of no pins until it is told, so what it answers counts only once it was told all.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::sync::lock;

/// The part of the grace period that a lease leaves out: clocks that are being set by chrony run up to a twelfth too fast or
/// too slow, each of the two.
const MARGIN: u32 = 4;
/// Shorter grace periods are no time to be certain for.
const SHORTEST: Duration = Duration::from_millis(100);
/// An answer that would lengthen the lease by less than this part of it is not worth a lock.
const STEP: u32 = 16;
/// The longest time between two words to the server.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);

/// The time since the host was started, during which it may have slept.
pub(crate) fn now() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    // A host has neither been up for less than nothing nor for more than 584 years.
    Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The lease of a session on all of its pins. Times are given by [`now`].
#[derive(Debug)]
pub(crate) struct Lease {
    /// Nanoseconds until when it lasts; 0 as long as nothing is certain.
    end: AtomicU64,
    /// Answers to requests that were sent before that change nothing.
    next: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The number of the session's connections whose answers count; `None` when the session has ended.
    link: Option<u32>,
    term: Term,
    /// When the last request was sent whose answer counted.
    heard: Duration,
}

/// How long an answer makes pins certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Term {
    /// From when its request was sent; zero where only the moment counts.
    length: Duration,
    /// After how much silence something is to be said.
    beat: Duration,
}

impl Term {
    /// With a server that releases the pins of a session so long after its last connection.
    pub(crate) fn new(grace: Duration) -> Term {
        if grace < SHORTEST {
            return Term { length: Duration::ZERO, beat: LONGEST_SILENCE };
        }
        Term { length: grace - grace / MARGIN, beat: (grace / 4).min(LONGEST_SILENCE) }
    }
}

impl Lease {
    /// That of a new session, on connections with the number 0. Nothing was answered yet.
    pub(crate) fn new(term: Term) -> Lease {
        Lease {
            end: AtomicU64::new(0),
            next: AtomicU64::new(0),
            state: Mutex::new(State { link: Some(0), term, heard: Duration::ZERO }),
        }
    }

    /// The server has answered, on connections with this number, a request that was sent then.
    pub(crate) fn answered(&self, link: u32, sent: Duration) {
        if nanoseconds(sent) < self.next.load(Ordering::Relaxed) {
            return;
        }
        let state = &mut *lock(&self.state);
        // Of other connections it is not certain what the server knew.
        if state.link == Some(link) && sent > state.heard {
            self.set(state, sent);
        }
    }

    /// The session goes on on connections with this number, under these terms: the server was told of all pins that are
    /// in use, the last of them by a request that was sent then, and those that it does not have are revoked already.
    pub(crate) fn go_on(&self, link: u32, term: Term, sent: Duration) {
        let state = &mut *lock(&self.state);
        if state.link.is_some() {
            (state.link, state.term) = (Some(link), term);
            self.set(state, sent);
        }
    }

    /// The session has ended: nothing is certain any more.
    pub(crate) fn end(&self) {
        let mut state = lock(&self.state);
        state.link = None;
        self.end.store(0, Ordering::Release);
    }

    /// Whether every pin that is not revoked was there at a time that was looked up before.
    pub(crate) fn holds(&self, then: Duration) -> bool {
        nanoseconds(then) <= self.end.load(Ordering::Acquire)
    }

    /// Whether it does not outlast the moment, so that it takes an answer of the server to be certain of a later one.
    pub(crate) fn is_momentary(&self) -> bool {
        lock(&self.state).term.length.is_zero()
    }

    /// How often it is to be looked whether something is to be said.
    pub(crate) fn beat(&self) -> Duration {
        lock(&self.state).term.beat
    }

    /// Whether it is time to say something, so that the lease goes on.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        let state = lock(&self.state);
        state.link.is_some() && now.saturating_sub(state.heard) >= state.term.beat / 2
    }

    fn set(&self, state: &mut State, sent: Duration) {
        state.heard = sent;
        self.next.store(nanoseconds(sent + state.term.length / STEP), Ordering::Relaxed);
        // Whoever sees that it goes on sees also what was revoked before.
        self.end.store(nanoseconds(sent + state.term.length), Ordering::Release);
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(8);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn nothing_is_certain_before_the_server_has_answered() {
        let lease = Lease::new(Term::new(GRACE));
        assert!(!lease.holds(at(1)));
        assert!(lease.is_due(at(100)));
    }

    #[test]
    fn an_answer_counts_from_when_its_request_was_sent_and_less_than_the_grace_period() {
        let lease = Lease::new(Term::new(GRACE));
        lease.answered(0, at(100));
        assert!(lease.holds(at(106)));
        assert!(!lease.holds(at(106) + Duration::from_nanos(1)));
    }

    #[test]
    fn answers_in_any_order_only_lengthen_it() {
        let lease = Lease::new(Term::new(GRACE));
        lease.answered(0, at(110));
        lease.answered(0, at(100));
        assert!(lease.holds(at(116)));
        lease.answered(0, at(111));
        assert!(lease.holds(at(117)) && !lease.holds(at(118)));
    }

    #[test]
    fn one_that_was_over_goes_on_with_the_next_answer_of_the_same_connections() {
        let lease = Lease::new(Term::new(GRACE));
        lease.answered(0, at(100));
        assert!(!lease.holds(at(200)));
        lease.answered(0, at(200));
        assert!(lease.holds(at(206)));
    }

    #[test]
    fn answers_of_other_connections_do_not_count() {
        let lease = Lease::new(Term::new(GRACE));
        lease.answered(0, at(100));
        lease.answered(1, at(105));
        assert!(!lease.holds(at(107)), "the server may not have been told of any pin");
        lease.go_on(1, Term::new(GRACE), at(110));
        lease.answered(0, at(115));
        assert!(lease.holds(at(116)) && !lease.holds(at(117)), "those of before have no say any more");
        lease.answered(1, at(115));
        assert!(lease.holds(at(121)));
    }

    #[test]
    fn a_server_that_waits_less_than_the_one_before_shortens_it() {
        let lease = Lease::new(Term::new(at(80)));
        lease.answered(0, at(100));
        assert!(lease.holds(at(160)));
        lease.go_on(1, Term::new(GRACE), at(101));
        lease.answered(0, at(102));
        assert!(!lease.holds(at(108)));
    }

    #[test]
    fn the_end_of_the_session_is_for_good() {
        let lease = Lease::new(Term::new(GRACE));
        lease.answered(0, at(100));
        lease.end();
        lease.answered(0, at(101));
        lease.go_on(1, Term::new(GRACE), at(102));
        assert!(!lease.holds(at(101)) && !lease.is_due(at(200)));
    }

    #[test]
    fn without_a_grace_period_only_the_moment_of_the_request_is_certain() {
        for grace in [Duration::ZERO, Duration::from_millis(99)] {
            let lease = Lease::new(Term::new(grace));
            assert!(lease.is_momentary());
            lease.answered(0, at(100));
            assert!(lease.holds(at(100)) && !lease.holds(at(100) + Duration::from_nanos(1)));
        }
        assert!(!Lease::new(Term::new(SHORTEST)).is_momentary());
    }

    /// However the words fall between the looks, the lease of a connection that answers never ends.
    #[test]
    fn whoever_looks_every_beat_and_speaks_when_it_is_due_keeps_it() {
        let lease = Lease::new(Term::new(GRACE));
        lease.answered(0, at(100));
        let (mut now, end) = (at(100), at(1000));
        let step = Duration::from_millis(37);
        while now < end {
            now += lease.beat();
            // Other requests of this instance, at odd times.
            lease.answered(0, now - step * (u32::try_from(now.as_secs() % 20).unwrap()));
            assert!(lease.holds(now), "{now:?}");
            if lease.is_due(now) {
                lease.answered(0, now);
            }
            assert!(lease.holds(now + lease.beat()), "{now:?}");
        }
        assert!(Term::new(at(3600)).beat <= LONGEST_SILENCE);
    }

    #[test]
    fn the_clock_is_that_of_the_host_since_its_start() {
        let (uptime, now) = (std::fs::read_to_string("/proc/uptime").unwrap(), now());
        let seconds = uptime.split('.').next().unwrap().parse::<u64>().unwrap();
        assert!((seconds.saturating_sub(60)..seconds + 60).contains(&now.as_secs()), "{uptime} {now:?}");
    }
}
