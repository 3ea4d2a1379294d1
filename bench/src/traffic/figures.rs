//! What the server counts of itself: the requests that it served, and the system calls that they took.

use std::path::Path;

use maru_proto::{Opcode, StatKind, StatRecord};
use zerocopy::FromBytes;

use super::wire_client::{PEER, WireClient, call};
use crate::error::BenchError;

/// Operations whose frames are no requests of a measurement: the question itself, and the releases that go out with a
/// request and are not answered.
const NO_REQUESTS: [Opcode; 3] = [Opcode::GetStats, Opcode::UnpinKv, Opcode::BatchUnpinKv];

/// Asks a server for its figures.
#[derive(Debug)]
pub(crate) struct Figures(WireClient);

/// Figures of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    requests: u64,
    /// Absent where the server's driver does not count them.
    system_calls: Option<u64>,
}

impl Figures {
    /// A connection for nothing else.
    ///
    /// # Errors
    /// [`BenchError`] where the server is not there.
    pub(crate) fn connect(socket: &Path) -> Result<Figures, BenchError> {
        WireClient::connect(socket).map(Figures)
    }

    /// The figures of now.
    ///
    /// # Errors
    /// [`BenchError`] where the server fails.
    pub(crate) fn read(&mut self) -> Result<Count, BenchError> {
        let body = call::<u8>(&mut self.0.channel, Opcode::GetStats, &[])?;
        let records = <[StatRecord]>::ref_from_bytes(&body)
            .map_err(|_| BenchError::answer(PEER, "figures of the wrong length"))?;
        Ok(Count::of(records))
    }

    /// What `measure` says, and the system calls that the server made for a request meanwhile, where it counts them.
    ///
    /// # Errors
    /// What `measure` says, and [`BenchError`] where the server fails.
    pub(crate) fn during<T>(
        &mut self,
        measure: impl FnOnce() -> Result<T, BenchError>,
    ) -> Result<(T, Option<f64>), BenchError> {
        let before = self.read()?;
        let measured = measure()?;
        Ok((measured, self.read()?.calls_per_request(before)))
    }
}

impl Count {
    fn of(records: &[StatRecord]) -> Count {
        let of = |kind: StatKind| records.iter().filter(move |record| record.kind.get() == kind as u16);
        let is_request = |record: &&StatRecord| {
            !NO_REQUESTS.iter().any(|&opcode| record.detail.get() == u16::from(opcode as u8))
        };
        Count {
            requests: of(StatKind::Frames).filter(is_request).map(|record| record.value.get()).sum(),
            system_calls: of(StatKind::SystemCalls).map(|record| record.value.get()).next(),
        }
    }

    /// System calls for each request since `before`, which was read at the same server.
    pub(crate) fn calls_per_request(self, before: Count) -> Option<f64> {
        let calls = self.system_calls? - before.system_calls?;
        let requests = self.requests - before.requests;
        (requests > 0).then(|| calls as f64 / requests as f64)
    }
}

/// The figure, for people.
pub(crate) fn system_calls_text(calls: Option<f64>) -> String {
    match calls {
        Some(calls) => format!("{calls:.2} system calls a request"),
        None => "system calls a request: not counted by this driver".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: StatKind, detail: Opcode, value: u64) -> StatRecord {
        let detail = u16::from(detail as u8);
        StatRecord {
            kind: (kind as u16).into(),
            detail: detail.into(),
            reserved: 0.into(),
            value: value.into(),
        }
    }

    #[test]
    fn releases_and_the_question_are_no_requests() {
        let frames = |lookups, others| {
            let others = NO_REQUESTS.map(|opcode| record(StatKind::Frames, opcode, others));
            let calls = record(StatKind::SystemCalls, Opcode::Hello, 3 * lookups);
            Count::of(&[&others[..], &[record(StatKind::Frames, Opcode::LookupKv, lookups), calls]].concat())
        };
        assert_eq!(frames(30, 9).calls_per_request(frames(10, 3)), Some(3.0));
        assert_eq!(frames(10, 9).calls_per_request(frames(10, 3)), None, "no request, no figure");
    }

    #[test]
    fn a_driver_that_does_not_count_has_no_figure() {
        let count = Count::of(&[record(StatKind::Frames, Opcode::LookupKv, 1)]);
        assert_eq!(count.calls_per_request(Count::default()), None);
        assert!(system_calls_text(None).contains("not counted by this driver"));
    }
}
