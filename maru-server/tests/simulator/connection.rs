//! Connections without sockets: the bytes on their way, and what either end knows of the other.

use maru_proto::{ConnectionKind, Header};
use maru_server::Output;
use maru_server::service::{Session, Transport};
use maru_server::state::RegionInfo;

/// Whether more bytes can come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum End {
    /// Yes.
    #[default]
    Open,
    /// No, and who reads is told after the last.
    Told,
    /// No, but nobody says so: who reads waits.
    Silent,
}

/// One direction.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    bytes: Vec<u8>,
    /// Of these, who reads has so many.
    arrived: usize,
    end: End,
}

impl Pipe {
    /// Sends bytes; `false`, and they are lost, where nobody is there to read them.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> bool {
        let is_open = self.end == End::Open;
        if is_open {
            self.bytes.extend_from_slice(bytes);
        }
        is_open
    }

    /// Bytes on their way.
    pub(crate) fn on_the_way(&self) -> usize {
        self.bytes.len() - self.arrived
    }

    /// So many more bytes arrive.
    pub(crate) fn arrive(&mut self, count: usize) {
        self.arrived += count;
        assert!(self.arrived <= self.bytes.len(), "only what was sent arrives");
    }

    /// What has arrived and was not consumed.
    pub(crate) fn arrived(&self) -> &[u8] {
        &self.bytes[..self.arrived]
    }

    /// What has arrived first is done with.
    pub(crate) fn consume(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.arrived -= count;
    }

    /// Ends it; of the bytes on their way only the first so many still arrive.
    pub(crate) fn cut(&mut self, keep: usize, end: End) {
        self.bytes.truncate(self.arrived + keep);
        self.end = end;
    }

    /// Whether who reads would be told of the end next, once what has arrived is done with.
    pub(crate) fn is_over(&self) -> bool {
        self.end == End::Told && self.on_the_way() == 0
    }

    /// Whether there is anything to do for who reads.
    pub(crate) fn is_ready(&self) -> bool {
        !self.bytes.is_empty() || self.end == End::Told
    }
}

/// What the server's end is doing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Task {
    /// It reads and serves.
    Serving,
    /// It waits for the memory of a region, which this request asked for.
    Making(RegionInfo, Header),
    /// It waits until memory is released, and then serves the same frame again.
    AwaitingRelease,
    /// It has ended.
    Closed,
}

/// What the server granted by HELLO, as whoever listens in knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Greeted {
    pub(crate) instance: u32,
    /// How often the instance had been resumed then.
    pub(crate) incarnation: u32,
}

/// Both ends.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) number: usize,
    pub(crate) kind: ConnectionKind,
    pub(crate) requests: Pipe,
    pub(crate) answers: Pipe,
    pub(crate) session: Session,
    pub(crate) greeted: Option<Greeted>,
    pub(crate) task: Task,
    /// Answers that are written with that to a frame which is served in part.
    pub(crate) output: Output,
    /// Where in them that one begins.
    pub(crate) part_at: Option<usize>,
}

impl Connection {
    pub(crate) fn new(number: usize, kind: ConnectionKind) -> Connection {
        Connection {
            number,
            kind,
            requests: Pipe::default(),
            answers: Pipe::default(),
            session: Session::new(Transport::Unix),
            greeted: None,
            task: Task::Serving,
            output: Output::default(),
            part_at: None,
        }
    }

    /// Whether the server's end has something to read.
    pub(crate) fn can_be_served(&self) -> bool {
        matches!(self.task, Task::Serving) && self.requests.is_ready()
    }

    pub(crate) fn is_closed(&self) -> bool {
        matches!(self.task, Task::Closed)
    }

    /// The client has no use for it any more. What it sent before may still be read.
    pub(crate) fn give_up(&mut self, end: End) {
        self.requests.cut(self.requests.on_the_way(), end);
        self.answers.cut(0, End::Told);
    }
}
