//! How long each frame of a connection took, by as few readings of the clock as say it.
//!
//! A reading costs a good part of what a small frame does. So small frames of one operation that follow each other without a
//! pause are measured together, and count with their mean; all others, and the first and the last, have readings of their own.

use std::mem;
use std::time::Duration;

use maru_proto::{Frame, Opcode};

/// Bytes of the body of a frame that is small: less work than a few readings of the clock.
const SMALL: usize = 64;

/// Frames that were measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lap {
    /// Their operation.
    pub(super) opcode: Opcode,
    /// How long each took.
    pub(super) each: Duration,
    /// How many they are.
    pub(super) frames: u32,
}

/// What a frame may be measured together with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    opcode: Option<Opcode>,
    is_small: bool,
}

impl Kind {
    /// The kind of a frame.
    pub(super) fn of(frame: &Frame<'_>) -> Kind {
        Kind { opcode: frame.opcode(), is_small: frame.body().len() <= SMALL }
    }

    /// The same, to be measured by itself.
    pub(super) fn alone(self) -> Kind {
        Kind { is_small: false, ..self }
    }
}

/// The watch of one connection.
#[derive(Debug, Default)]
pub(super) struct Stopwatch {
    /// When the clock was last read.
    last: Duration,
    /// Small frames that were served since.
    run: Option<(Option<Opcode>, u32)>,
    /// How long the frame that is served in parts has taken so far.
    spent: Duration,
}

impl Stopwatch {
    /// Serving goes on, at this time.
    pub(super) fn start(&mut self, now: Duration) {
        self.last = now;
    }

    /// A frame is next: measures those before it that it can't be measured with.
    pub(super) fn before(&mut self, kind: Kind, clock: impl FnOnce() -> Duration) -> Option<Lap> {
        let (opcode, _) = self.run?;
        if kind.is_small && opcode == kind.opcode { None } else { self.stop(clock) }
    }

    /// The frame is served.
    pub(super) fn served(&mut self, kind: Kind, clock: impl FnOnce() -> Duration) -> Option<Lap> {
        if kind.is_small && self.spent.is_zero() {
            let (_, frames) = self.run.get_or_insert((kind.opcode, 0));
            *frames += 1;
            return None;
        }
        let each = self.take_spent() + self.lap(clock());
        kind.opcode.map(|opcode| Lap { opcode, each, frames: 1 })
    }

    /// The frame goes on later: what it waits for is not its time.
    pub(super) fn paused(&mut self, now: Duration) {
        let lap = self.lap(now);
        self.spent += lap;
    }

    /// How long the frame that paused has taken, all in all; it is done with.
    pub(super) fn take_spent(&mut self) -> Duration {
        mem::take(&mut self.spent)
    }

    /// Nothing is served for now: measures what was not yet.
    pub(super) fn stop(&mut self, clock: impl FnOnce() -> Duration) -> Option<Lap> {
        let (opcode, frames) = self.run.take()?;
        let each = self.lap(clock()) / frames;
        opcode.map(|opcode| Lap { opcode, each, frames })
    }

    fn lap(&mut self, now: Duration) -> Duration {
        let lap = now.saturating_sub(self.last);
        self.last = now;
        lap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXISTS: Kind = Kind { opcode: Some(Opcode::ExistsKv), is_small: true };
    const PIN: Kind = Kind { opcode: Some(Opcode::PinKv), is_small: true };
    const BATCH: Kind = Kind { opcode: Some(Opcode::BatchPinKv), is_small: false };

    fn at(ns: u64) -> impl FnOnce() -> Duration {
        move || Duration::from_nanos(ns)
    }

    fn unread() -> Duration {
        panic!("the clock need not be read")
    }

    fn lap(kind: Kind, ns: u64, frames: u32) -> Option<Lap> {
        Some(Lap { opcode: kind.opcode.unwrap(), each: Duration::from_nanos(ns), frames })
    }

    fn started() -> Stopwatch {
        let mut watch = Stopwatch::default();
        watch.start(Duration::from_nanos(1000));
        watch
    }

    #[test]
    fn a_lone_frame_takes_one_reading() {
        let mut watch = started();
        assert_eq!(watch.before(EXISTS, unread), None);
        assert_eq!(watch.served(EXISTS, unread), None);
        assert_eq!(watch.stop(at(1300)), lap(EXISTS, 300, 1));
        assert_eq!(watch.stop(unread), None);
    }

    #[test]
    fn small_frames_of_one_operation_share_a_reading() {
        let mut watch = started();
        for _ in 0..4 {
            assert_eq!(watch.before(EXISTS, unread), None);
            assert_eq!(watch.served(EXISTS, unread), None);
        }
        assert_eq!(watch.before(PIN, at(1800)), lap(EXISTS, 200, 4));
        assert_eq!(watch.served(PIN, unread), None);
        assert_eq!(watch.before(BATCH, at(1900)), lap(PIN, 100, 1));
        assert_eq!(watch.served(BATCH, at(5900)), lap(BATCH, 4000, 1));
        assert_eq!(watch.stop(unread), None);
    }

    #[test]
    fn a_frame_in_parts_counts_once_with_the_sum_and_without_its_pauses() {
        let mut watch = started();
        assert_eq!(watch.before(BATCH, unread), None);
        watch.paused(Duration::from_nanos(1500));
        watch.start(Duration::from_nanos(9000));
        watch.paused(Duration::from_nanos(9500));
        watch.start(Duration::from_nanos(20_000));
        assert_eq!(watch.served(BATCH, at(20_100)), lap(BATCH, 1100, 1));
    }

    #[test]
    fn frames_of_no_operation_take_no_time_from_others() {
        let mut watch = started();
        let unknown = Kind { opcode: None, is_small: true };
        assert_eq!(watch.served(unknown, unread), None);
        assert_eq!(watch.before(EXISTS, at(1700)), None);
        assert_eq!(watch.served(EXISTS, unread), None);
        assert_eq!(watch.stop(at(1800)), lap(EXISTS, 100, 1));
    }
}
