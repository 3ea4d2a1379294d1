//! Figures: the server's, and the handler's own.

use std::time::Duration;

use maru_proto::{Opcode, StatKind, StatRecord};

/// The server's figures, as of one moment.
#[derive(Clone, Debug)]
pub struct ServerStats {
    records: Vec<StatRecord>,
}

impl ServerStats {
    pub(crate) fn new(records: Vec<StatRecord>) -> ServerStats {
        ServerStats { records }
    }

    /// A figure; 0 where the server does not have it. Of figures with a detail, the sum over all.
    pub fn get(&self, kind: StatKind) -> u64 {
        self.of(kind).map(|record| record.value.get()).sum()
    }

    /// A figure of one detail; 0 where the server does not have it.
    pub fn get_detail(&self, kind: StatKind, detail: u16) -> u64 {
        self.of(kind).filter(|record| record.detail.get() == detail).map(|record| record.value.get()).sum()
    }

    /// Frames of an operation that were served.
    pub fn frames(&self, opcode: Opcode) -> u64 {
        self.get_detail(StatKind::Frames, u16::from(opcode as u8))
    }

    fn of(&self, kind: StatKind) -> impl Iterator<Item = &StatRecord> {
        self.records.iter().filter(move |record| record.kind.get() == kind as u16)
    }
}

/// The handler's own figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Requests that were sent and wanted an answer.
    pub rpcs: u64,
    /// Writes to the socket that requests of those who await took: fewer than requests where many are made together.
    pub async_writes: u64,
    /// Own regions.
    pub own_regions: usize,
    /// Pages of own regions.
    pub pages: u64,
    /// Pages that can be had without asking the server.
    pub free_pages: u64,
    /// Regions that are mapped, own and foreign.
    pub mapped_regions: usize,
    /// How often the session went on on new connections after one was lost.
    pub resumes: u64,
    /// How long the last of these times took, from when the loss was noticed.
    pub last_outage: Duration,
}
