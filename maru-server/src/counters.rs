//! What the service counts beside the state: frames and records by operation and status, hits, how long frames take.

use std::cell::Cell;
use std::rc::Rc;

use maru_proto::{FrameStatus, Opcode, RecordStatus, StatKind, StatRecord};

use crate::latency::Latencies;
use crate::service::stat;

/// System calls, counted by what drives the connections; clones are the same counter.
#[derive(Clone, Debug, Default)]
pub(crate) struct SystemCalls(Rc<Cell<u64>>);

impl SystemCalls {
    /// So many more were made.
    pub(crate) fn add(&self, calls: u64) {
        self.0.set(self.0.get() + calls);
    }

    fn get(&self) -> u64 {
        self.0.get()
    }
}

const OPERATIONS: usize = Opcode::ALL.len();
/// The row of frames that are of no operation.
const NO_OPERATION: usize = OPERATIONS;

/// Plain counters of a fixed size: one thread serves, so nothing is shared.
#[derive(Debug)]
pub(crate) struct Counters {
    /// Connections ever accepted.
    pub(crate) connections_accepted: u64,
    /// Those of what drives the connections, where that counts them.
    pub(crate) system_calls: Option<SystemCalls>,
    /// How long frames took.
    pub(crate) latencies: Latencies,
    frames: [[u64; FrameStatus::ALL.len()]; OPERATIONS + 1],
    records: [[u64; RecordStatus::ALL.len()]; OPERATIONS],
    hits: u64,
    misses: u64,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            connections_accepted: 0,
            system_calls: None,
            latencies: Latencies::default(),
            frames: [[0; FrameStatus::ALL.len()]; OPERATIONS + 1],
            records: [[0; RecordStatus::ALL.len()]; OPERATIONS],
            hits: 0,
            misses: 0,
        }
    }
}

impl Counters {
    /// A frame of this operation was served.
    pub(crate) fn served(&mut self, opcode: Opcode) {
        self.frames[opcode.index()][FrameStatus::Ok as usize] += 1;
    }

    /// Records of a frame of this operation were served.
    pub(crate) fn records(&mut self, opcode: Opcode, status: RecordStatus, count: usize) {
        self.records[opcode.index()][status as usize] += count as u64;
    }

    /// A frame was refused as a whole; `None` where that was before its operation was known, or there is no such operation.
    pub(crate) fn refused(&mut self, opcode: Option<Opcode>, status: FrameStatus) {
        self.frames[opcode.map_or(NO_OPERATION, Opcode::index)][status as usize] += 1;
    }

    /// Digests were looked up or pinned.
    pub(crate) fn looked_up(&mut self, hits: usize, misses: usize) {
        self.hits += hits as u64;
        self.misses += misses as u64;
    }

    /// Digests looked up or pinned that had an entry, and those that had none.
    pub(crate) fn hits_and_misses(&self) -> (u64, u64) {
        (self.hits, self.misses)
    }

    /// System calls of what drives the connections, where that counts them.
    pub(crate) fn system_calls(&self) -> Option<u64> {
        self.system_calls.as_ref().map(SystemCalls::get)
    }

    /// Frames by operation and status, as far as there were any; those of no operation last.
    pub(crate) fn frames(&self) -> impl Iterator<Item = (Option<Opcode>, FrameStatus, u64)> {
        let operations = Opcode::ALL.iter().copied().map(Some).chain([None]);
        operations.zip(&self.frames).flat_map(|(opcode, by_status)| {
            let by_status = FrameStatus::ALL.iter().zip(by_status).filter(|(_, count)| **count > 0);
            by_status.map(move |(&status, &count)| (opcode, status, count))
        })
    }

    /// Records by operation and status, as far as there were any.
    pub(crate) fn records_by_status(&self) -> impl Iterator<Item = (Opcode, RecordStatus, u64)> {
        Opcode::ALL.iter().zip(&self.records).flat_map(|(&opcode, by_status)| {
            let by_status = RecordStatus::ALL.iter().zip(by_status).filter(|(_, count)| **count > 0);
            by_status.map(move |(&status, &count)| (opcode, status, count))
        })
    }

    /// The counters as figures, those with most details last; operations and statuses that never came up are left out.
    pub(crate) fn stats(&self) -> impl Iterator<Item = StatRecord> {
        let plain = [
            stat(StatKind::Hits, 0, self.hits),
            stat(StatKind::Misses, 0, self.misses),
            stat(StatKind::ConnectionsAccepted, 0, self.connections_accepted),
        ];
        let system_calls = self.system_calls().map(|calls| stat(StatKind::SystemCalls, 0, calls));
        let served = self.frames().filter(|(_, status, _)| *status == FrameStatus::Ok);
        let served = served.filter_map(|(opcode, _, frames)| opcode.map(|opcode| (opcode, frames)));
        let served = served.flat_map(|(opcode, frames)| {
            let records = self.records[opcode.index()].iter().sum();
            let detail = u16::from(opcode as u8);
            [stat(StatKind::Frames, detail, frames), stat(StatKind::Records, detail, records)]
        });
        let refused = FrameStatus::ALL.iter().filter(|status| **status != FrameStatus::Ok);
        let refused = refused
            .map(|&status| {
                let frames = self.frames.iter().map(|by_status| by_status[status as usize]).sum();
                stat(StatKind::FramesRefused, status as u16, frames)
            })
            .filter(|record| record.value.get() > 0);
        let operations_refused = self.frames().filter(|(_, status, _)| *status != FrameStatus::Ok);
        let operations_refused = operations_refused.filter_map(|(opcode, status, frames)| {
            let detail = u16::from(opcode? as u8) | (status as u16) << 8;
            Some(stat(StatKind::OperationsRefused, detail, frames))
        });
        let by_status = self.records_by_status().map(|(opcode, status, records)| {
            let detail = u16::from(opcode as u8) | u16::from(status as u8) << 8;
            stat(StatKind::RecordsByStatus, detail, records)
        });
        plain
            .into_iter()
            .chain(system_calls)
            .chain(served)
            .chain(refused)
            .chain(operations_refused)
            .chain(by_status)
    }
}
