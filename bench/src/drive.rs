//! A server with something in it, and connections that ask for it: what `latency` and `load` share.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::{OutputArgs, ServerArgs, TrafficArgs};
use crate::error::BenchError;
use crate::files::{write, write_json};
use crate::machine::Machine;
use crate::measure::pace::Pace;
use crate::measure::percentiles::Percentiles;
use crate::measure::plot::{self, Curve, Horizontal, percentile_curve};
use crate::measure::recorder::Sample;
use crate::measure::run::{End, Outcome, Plan, Worker, run};
use crate::measure::{hgrm, progress};
use crate::target::{Needs, Target};
use crate::traffic::maru::{Shape, Traffic};
use crate::traffic::stock::Population;
use crate::traffic::wire_client::PAGE;

/// Rows are printed at this interval.
const INTERVAL: Duration = Duration::from_secs(1);
/// Pool beyond what keys and stocks take: each region is rounded up.
const SLACK: u64 = 4 << 20;

/// A server under test, filled with the keys that are asked for.
pub(crate) struct Bench {
    target: Target,
    population: Population,
    shape: Shape,
    connections: usize,
    warm_up: Duration,
}

impl Bench {
    /// Opens or starts the server and stores the keys.
    pub(crate) fn open(
        traffic: &TrafficArgs,
        server: &ServerArgs,
        in_flight: u16,
    ) -> Result<Bench, BenchError> {
        let shape = Shape {
            mix: traffic.op.clone(),
            batch: traffic.batch as usize,
            distribution: traffic.distribution,
            in_flight: in_flight.into(),
        };
        let connections = u64::from(traffic.connections);
        let pages = u64::from(traffic.keys) + connections * shape.stock_pages();
        let pool_size = pages * PAGE + (connections + 1) * SLACK;
        let mut target = Target::open(server, &Needs { pool_size, max_entries: pages, mount: false })?;
        let population =
            Population::new(target.socket(), traffic.keys).map_err(|error| target.explain(error))?;
        let connections = traffic.connections.into();
        Ok(Bench { target, population, shape, connections, warm_up: traffic.warm_up })
    }

    /// One measurement over connections of its own.
    pub(crate) fn measure(
        &mut self,
        pace: impl Fn(Instant, usize, usize) -> Pace,
        end: End,
        progress: impl FnMut(&Sample, Duration),
    ) -> Result<Outcome, BenchError> {
        let plan = Plan { warm_up: self.warm_up, end, in_flight: self.shape.in_flight, interval: INTERVAL };
        let outcome = (|| {
            let connected = (0..self.connections).map(|number| {
                Traffic::connect(self.target.socket(), self.population.keys(), &self.shape, number)
            });
            let connected = connected.collect::<Result<Vec<_>, _>>()?;
            let start = Instant::now();
            let workers = connected.into_iter().enumerate().map(|(number, (channel, protocol))| {
                let pace = pace(start, number, self.connections);
                Worker { channel, protocol, pace }
            });
            run(workers.collect(), &plan, progress)
        })();
        outcome.map_err(|error| self.target.explain(error))
    }

    /// Keys that an answered request has dealt with.
    pub(crate) fn keys_per_request(&self) -> usize {
        self.shape.keys_per_request()
    }

    /// Leaves the server as it was, or stops it.
    pub(crate) fn close(self) -> Result<(), BenchError> {
        self.population.remove()?;
        self.target.stop()
    }
}

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
        }
    }

    /// In one line, for a title.
    pub(crate) fn line(&self) -> String {
        format!(
            "{} of {} among {} keys ({}), {} connections with {} in flight",
            self.operation, self.batch, self.keys, self.distribution, self.connections, self.in_flight
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
        write(path, &hgrm::text(&total.latency))?;
    }
    if let Some(path) = &output.plot {
        let (axis, curves) =
            curves.unwrap_or_else(|| (Horizontal::Nines, vec![percentile_curve("latency", &total.latency)]));
        plot::draw(path, title, axis, &curves)?;
    }
    Ok(())
}
