//! What `latency` and `load` print and write beside their figures: the setting, the rows of a run, the files.

use std::time::Duration;

use serde::Serialize;

use crate::cli::{OutputArgs, ServerArgs, TrafficArgs};
use crate::error::BenchError;
use crate::files::{write, write_json};
use crate::machine::Machine;
use crate::measure::percentiles::Percentiles;
use crate::measure::plot::{self, Curve, Horizontal, percentile_curve};
use crate::measure::recorder::Sample;
use crate::measure::run::End;
use crate::measure::{hgrm, progress};

/// One second of a run.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Row {
    /// Requests a second.
    per_second: f64,
    /// Their latency, µs.
    latency_us: Percentiles,
}

impl Row {
    /// The row of an interval.
    pub(crate) fn of(sample: &Sample, elapsed: Duration) -> Row {
        let per_second = sample.answered() as f64 / elapsed.as_secs_f64().max(1e-9);
        Row { per_second, latency_us: Percentiles::of(&sample.latency) }
    }
}

/// Prints the rows of a run as they come, below their head, and keeps them.
pub(crate) struct Rows {
    bar: indicatif::ProgressBar,
    rows: Vec<Row>,
}

impl Rows {
    /// For a run that has about so many intervals.
    pub(crate) fn new(end: End) -> Rows {
        let bar = match end {
            End::After(duration) => progress::bar(duration.as_secs().max(1), "s"),
            End::Requests(_) => progress::spinner("measuring"),
        };
        println!("{:>14}{}", "requests/s", Percentiles::HEAD);
        Rows { bar, rows: Vec::new() }
    }

    /// An interval is over.
    pub(crate) fn push(&mut self, sample: &Sample, elapsed: Duration) {
        let row = Row::of(sample, elapsed);
        self.bar.suspend(|| println!("{:>14.0}{}", row.per_second, row.latency_us));
        self.bar.inc(1);
        self.rows.push(row);
    }

    /// The rows so far.
    pub(crate) fn finish(self) -> Vec<Row> {
        self.bar.finish_and_clear();
        self.rows
    }
}

/// What was asked, of whom, on which machine.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Setting {
    machine: Machine,
    server: String,
    operation: String,
    batch: u32,
    keys: u32,
    distribution: String,
    connections: u16,
    in_flight: u16,
    processes: u16,
    /// Of each process.
    threads: u16,
}

impl Setting {
    /// The setting of a measurement.
    pub(crate) fn of(traffic: &TrafficArgs, server: &ServerArgs, in_flight: u16) -> Setting {
        Setting {
            machine: Machine::this(),
            server: server.describe(),
            operation: traffic.op.to_string(),
            batch: traffic.batch,
            keys: traffic.keys,
            distribution: traffic.distribution.to_string(),
            connections: traffic.connections,
            in_flight,
            processes: traffic.processes,
            threads: traffic.threads(),
        }
    }

    /// In one line, for a title.
    pub(crate) fn line(&self) -> String {
        let count = |count: u16, one: &str, many: &str| match count {
            1 => format!("1 {one}"),
            _ => format!("{count} {many}"),
        };
        let connections = count(self.connections, "connection", "connections");
        let processes = count(self.processes, "process", "processes");
        let threads = count(self.threads, "thread", "threads");
        format!(
            "{} of {} among {} keys ({}), {connections} with {} in flight, driven by {processes} with {threads}{}",
            self.operation,
            self.batch,
            self.keys,
            self.distribution,
            self.in_flight,
            if self.processes == 1 { "" } else { " each" }
        )
    }

    /// For people, before the figures.
    pub(crate) fn print(&self, what: &str) {
        println!("{what}: {}\n{}\n{}\n", self.line(), self.server, self.machine);
    }
}

/// Writes the files that were asked for besides the table.
pub(crate) fn write_files(
    output: &OutputArgs,
    title: &str,
    result: &impl Serialize,
    total: &Sample,
    curves: Option<(Horizontal, Vec<Curve>)>,
) -> Result<(), BenchError> {
    if let Some(path) = &output.json {
        write_json(path, result)?;
    }
    if let Some(path) = &output.hgrm {
        write(path, &hgrm::text(title, &total.latency))?;
    }
    if let Some(path) = &output.plot {
        let (axis, curves) =
            curves.unwrap_or_else(|| (Horizontal::Nines, vec![percentile_curve("latency", &total.latency)]));
        plot::draw(path, title, axis, &curves)?;
    }
    Ok(())
}
