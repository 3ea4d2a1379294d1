//! What happened in a run: counted by kind, its last steps kept for whoever looks for a failure, and all of it in one hash.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use maru_proto::{FrameStatus, Opcode, RecordStatus};

/// Steps that are kept.
const KEPT: usize = 60;

/// What can happen.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// A kind of step or fault, to or by somebody.
    Step(&'static str, usize),
    /// The server answered a frame, on a connection.
    Frame(Opcode, FrameStatus, usize),
    /// A client took the status of a record.
    Record(Opcode, RecordStatus, usize),
}

/// The record of one run.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: u64,
    events: u64,
    recent: VecDeque<(u64, Duration, Event)>,
    steps: BTreeMap<&'static str, u64>,
    frames: BTreeMap<(Opcode, u16), u64>,
    records: BTreeMap<(Opcode, u8), u64>,
}

impl Trace {
    pub(crate) fn note(&mut self, now: Duration, event: Event) {
        let (count, subject) = match event {
            Event::Step(what, who) => (self.steps.entry(what).or_default(), who),
            Event::Frame(opcode, status, connection) => {
                (self.frames.entry((opcode, status as u16)).or_default(), connection)
            }
            Event::Record(opcode, status, client) => {
                (self.records.entry((opcode, status as u8)).or_default(), client)
            }
        };
        *count += 1;
        let count = *count;
        self.absorb(&count.to_le_bytes());
        self.absorb(&subject.to_le_bytes());
        self.absorb(&now.as_nanos().to_le_bytes());
        if self.recent.len() == KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back((self.events, now, event));
        self.events += 1;
    }

    /// Counts what happened beside the steps.
    pub(crate) fn add(&mut self, what: &'static str, count: u64) {
        *self.steps.entry(what).or_default() += count;
        self.absorb(&count.to_le_bytes());
    }

    /// Takes bytes into the hash that were sent.
    pub(crate) fn absorb(&mut self, bytes: &[u8]) {
        let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        self.hash = bytes.iter().fold(self.hash ^ 0xCBF2_9CE4_8422_2325, fnv);
    }

    /// Stands for everything that happened, in its order.
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    /// How often each kind of thing happened, by a name for people.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let steps = self.steps.iter().map(|(what, count)| ((*what).to_owned(), *count));
        let frames = self.frames.iter().map(|((opcode, status), count)| {
            let status = FrameStatus::from_u16(*status).expect("it was a status");
            (format!("{opcode} answered {status:?}"), *count)
        });
        let records = self.records.iter().map(|((opcode, status), count)| {
            let status = RecordStatus::from_u8(*status).expect("it was a status");
            (format!("{opcode} of a key: {status:?}"), *count)
        });
        steps.chain(frames).chain(records).collect()
    }

    /// The last steps, for people.
    pub(crate) fn print(&self) {
        for (number, now, event) in &self.recent {
            eprintln!("{number:>7} at {now:?}: {event:?}");
        }
    }
}
