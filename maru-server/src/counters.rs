//! What the service counts beside the state: frames, records, hits, refusals.

use std::cell::Cell;
use std::rc::Rc;

use maru_proto::{FrameStatus, Opcode, StatKind, StatRecord};

use crate::service::stat;

/// System calls, counted by what drives the connections; clones are the same counter.
#[derive(Clone, Debug, Default)]
pub(crate) struct SystemCalls(Rc<Cell<u64>>);

impl SystemCalls {
    /// So many more were made.
    pub(crate) fn add(&self, calls: u64) {
        self.0.set(self.0.get() + calls);
    }
}

/// Plain counters: one thread serves, so nothing is shared.
#[derive(Debug)]
pub(crate) struct Counters {
    /// Connections ever accepted.
    pub(crate) connections_accepted: u64,
    /// Those of what drives the connections, where that counts them.
    pub(crate) system_calls: Option<SystemCalls>,
    frames: [u64; 256],
    records: [u64; 256],
    refused: [u64; FrameStatus::ALL.len()],
    hits: u64,
    misses: u64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            connections_accepted: 0,
            system_calls: None,
            frames: [0; 256],
            records: [0; 256],
            refused: [0; FrameStatus::ALL.len()],
            hits: 0,
            misses: 0,
        }
    }
}

impl Counters {
    /// A frame of this opcode was served, with this many records.
    pub(crate) fn served(&mut self, opcode: u8, records: usize) {
        self.frames[usize::from(opcode)] += 1;
        self.records[usize::from(opcode)] += records as u64;
    }

    /// A frame was refused as a whole.
    pub(crate) fn refused(&mut self, status: FrameStatus) {
        self.refused[usize::from(status as u16)] += 1;
    }

    /// Digests were looked up or pinned.
    pub(crate) fn looked_up(&mut self, hits: usize, misses: usize) {
        self.hits += hits as u64;
        self.misses += misses as u64;
    }

    /// The counters as figures; operations and statuses that never came up are left out.
    pub(crate) fn stats(&self) -> impl Iterator<Item = StatRecord> {
        let opcodes = Opcode::ALL.iter().map(|&opcode| opcode as u8);
        let served = opcodes.filter(|&opcode| self.frames[usize::from(opcode)] > 0).flat_map(|opcode| {
            let index = usize::from(opcode);
            [
                stat(StatKind::Frames, opcode.into(), self.frames[index]),
                stat(StatKind::Records, opcode.into(), self.records[index]),
            ]
        });
        let refused = FrameStatus::ALL.iter().map(|&status| status as u16);
        let refused = refused
            .map(|status| stat(StatKind::FramesRefused, status, self.refused[usize::from(status)]))
            .filter(|record| record.value.get() > 0);
        let plain = [
            stat(StatKind::Hits, 0, self.hits),
            stat(StatKind::Misses, 0, self.misses),
            stat(StatKind::ConnectionsAccepted, 0, self.connections_accepted),
        ];
        let system_calls = self.system_calls.as_ref();
        let system_calls = system_calls.map(|calls| stat(StatKind::SystemCalls, 0, calls.0.get()));
        plain.into_iter().chain(system_calls).chain(served).chain(refused)
    }
}
