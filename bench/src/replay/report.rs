//! What a replay comes to: the sums, the table for people, the JSON for programs.

use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use indicatif::HumanCount;
use serde::Serialize;

use super::protocol::Outcome;
use crate::error::BenchError;
use crate::machine::Machine;
use crate::measure::percentiles::microseconds;
use crate::measure::recorder::{Times, times};
use crate::workload::count;

/// The sums of all outcomes so far.
#[derive(Debug)]
pub(super) struct Tally {
    requests: u64,
    chunks: u64,
    sum: Outcome,
    acquire_ns: Times,
    store_ns: Times,
}

impl Tally {
    pub(super) fn new() -> Tally {
        Tally { requests: 0, chunks: 0, sum: Outcome::default(), acquire_ns: times(), store_ns: times() }
    }

    /// Adds a request of so many chunks.
    pub(super) fn add(&mut self, chunks: usize, outcome: &Outcome) {
        self.requests += 1;
        self.chunks += count(chunks);
        self.sum.prefix_hit_chunks += outcome.prefix_hit_chunks;
        self.sum.wrong_bytes += outcome.wrong_bytes;
        self.sum.bytes_stored += outcome.bytes_stored;
        self.sum.bytes_read += outcome.bytes_read;
        self.sum.chunks_not_stored += outcome.chunks_not_stored;
        self.sum.rpcs += outcome.rpcs;
        self.acquire_ns += outcome.acquire_ns;
        outcome.store_ns.iter().for_each(|&nanoseconds| self.store_ns += nanoseconds);
    }

    /// The result, when all of it took so long.
    pub(super) fn report(&self, elapsed: Duration) -> Report {
        Report {
            requests: self.requests,
            chunks: self.chunks,
            prefix_hit_chunks: self.sum.prefix_hit_chunks,
            prefix_hit_ratio: ratio(self.sum.prefix_hit_chunks, self.chunks),
            wrong_bytes: self.sum.wrong_bytes,
            bytes_stored: self.sum.bytes_stored,
            bytes_read: self.sum.bytes_read,
            chunks_not_stored: self.sum.chunks_not_stored,
            rpcs: self.sum.rpcs,
            elapsed_s: elapsed.as_secs_f64(),
            latency_us: Latencies {
                acquire: Percentiles::of(&self.acquire_ns),
                store: Percentiles::of(&self.store_ns),
            },
        }
    }
}

/// The result of a replay, as it is written to JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Report {
    requests: u64,
    /// Chunks of all requests.
    chunks: u64,
    /// Chunks found from the start of each request up to its first miss.
    prefix_hit_chunks: u64,
    prefix_hit_ratio: f64,
    /// Bytes that were read and are not what was stored.
    wrong_bytes: u64,
    /// Bytes of all chunks stored, whole chunks even where they are written sparsely.
    bytes_stored: u64,
    /// Bytes of all chunks found, whole chunks even where they are verified sparsely.
    bytes_read: u64,
    /// Chunks for which the pool had no room.
    chunks_not_stored: u64,
    /// Requests to the server that were answered.
    rpcs: u64,
    /// From the first request to the last answer.
    elapsed_s: f64,
    latency_us: Latencies,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Latencies {
    /// The whole of an acquire, of all chunks of a request.
    acquire: Percentiles,
    /// One chunk: allocated, written, and its share of the registration of its batch.
    store: Percentiles,
}

/// In microseconds; all 0 where nothing was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
    p999: f64,
    max: f64,
}

impl Percentiles {
    fn of(nanoseconds: &Times) -> Percentiles {
        let at = |quantile| microseconds(nanoseconds.value_at_quantile(quantile));
        Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: microseconds(nanoseconds.max()),
        }
    }
}

impl Report {
    /// # Errors
    /// [`BenchError::WrongBytes`] if a single byte is wrong.
    pub(super) fn verdict(&self) -> Result<(), BenchError> {
        match self.wrong_bytes {
            0 => Ok(()),
            wrong_bytes => Err(BenchError::WrongBytes { wrong_bytes }),
        }
    }
}

/// The result for people.
pub(super) struct Table<'a> {
    /// What was replayed, and how.
    pub(super) title: &'a str,
    /// Hits that a cache without bound would have had.
    pub(super) unbounded_hit_chunks: u64,
    /// The result.
    pub(super) report: &'a Report,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.report;
        let hits = format!(
            "{} ({:.2} %; a cache without bound: {})",
            HumanCount(report.prefix_hit_chunks),
            100.0 * report.prefix_hit_ratio,
            HumanCount(self.unbounded_hit_chunks)
        );
        let per_second = report.requests as f64 / report.elapsed_s;
        writeln!(f, "{}\n{}\n", self.title, Machine::this())?;
        for (name, figure) in [
            ("requests", HumanCount(report.requests).to_string()),
            ("chunks", HumanCount(report.chunks).to_string()),
            ("prefix hit chunks", hits),
            ("wrong bytes", HumanCount(report.wrong_bytes).to_string()),
            ("stored", ByteSize(report.bytes_stored).to_string()),
            ("read", ByteSize(report.bytes_read).to_string()),
            ("chunks not stored", HumanCount(report.chunks_not_stored).to_string()),
            ("RPCs", HumanCount(report.rpcs).to_string()),
            ("elapsed", format!("{:.2} s, {per_second:.0} requests/s", report.elapsed_s)),
        ] {
            writeln!(f, "{name:<20}{figure}")?;
        }
        writeln!(f)?;
        writeln!(
            f,
            "{:<20}{:>10}{:>10}{:>10}{:>10}{:>10}",
            "latency, µs", "p50", "p90", "p99", "p99.9", "max"
        )?;
        let rows =
            [("acquire a prefix", report.latency_us.acquire), ("store a chunk", report.latency_us.store)];
        for (name, Percentiles { p50, p90, p99, p999, max }) in rows {
            writeln!(f, "{name:<20}{p50:>10.1}{p90:>10.1}{p99:>10.1}{p999:>10.1}{max:>10.1}")?;
        }
        Ok(())
    }
}

fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        let mut tally = Tally::new();
        for n in 1..=100 {
            tally.add(
                4,
                &Outcome {
                    prefix_hit_chunks: 3,
                    bytes_stored: 10,
                    bytes_read: 30,
                    rpcs: 2,
                    acquire_ns: n * 1000,
                    store_ns: vec![n * 2000],
                    ..Outcome::default()
                },
            );
        }
        tally
    }

    #[test]
    fn outcomes_add_up() {
        let report = tally().report(Duration::from_millis(2500));
        assert_eq!((report.requests, report.chunks, report.prefix_hit_chunks), (100, 400, 300));
        assert_eq!((report.bytes_stored, report.bytes_read, report.rpcs), (1000, 3000, 200));
        assert_eq!((report.prefix_hit_ratio, report.elapsed_s), (0.75, 2.5));
        assert_eq!(report.chunks_not_stored, 0);
    }

    #[test]
    fn latencies_are_microseconds_to_three_digits() {
        let Latencies { acquire, store } = tally().report(Duration::ZERO).latency_us;
        let close = |value: f64, expected: f64| (value / expected - 1.0).abs() < 0.002;
        assert!(
            close(acquire.p50, 50.0) && close(acquire.p99, 99.0) && close(acquire.max, 100.0),
            "{acquire:?}"
        );
        assert!(close(store.p90, 180.0) && close(store.p999, 200.0), "{store:?}");
    }

    #[test]
    fn one_wrong_byte_fails_the_run() {
        let mut tally = tally();
        assert!(tally.report(Duration::ZERO).verdict().is_ok());
        tally.add(1, &Outcome { wrong_bytes: 1, ..Outcome::default() });
        let error = tally.report(Duration::ZERO).verdict().unwrap_err();
        assert!(matches!(error, BenchError::WrongBytes { wrong_bytes: 1 }), "{error}");
    }

    #[test]
    fn the_table_names_every_figure() {
        let report = tally().report(Duration::from_secs(1));
        let table = Table { title: "t.jsonl", unbounded_hit_chunks: 1234, report: &report }.to_string();
        for text in ["t.jsonl", "Linux ", "75.00 %", "1,234", "wrong bytes", "100 requests/s", "p99.9"] {
            assert!(table.contains(text), "{text} in {table}");
        }
    }
}
