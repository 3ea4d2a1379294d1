//! A server with something in it, and connections that ask for it: what `latency` and `load` share.
//!
//! The connections are driven by this process, or by several that it starts, each its share of them.

mod parent;
mod protocol;
mod report;
mod share;
mod worker;

use std::time::{Duration, Instant};

use crate::cli::{ServerArgs, TrafficArgs};
use crate::error::BenchError;
use crate::measure::pace::Tempo;
use crate::measure::recorder::Sample;
use crate::measure::run::{End, Event, Outcome};
use crate::target::{Needs, Target};
use crate::traffic::figures::{Count, Figures};
use crate::traffic::maru::Shape;
use crate::traffic::stock::Population;
use crate::traffic::wire_client::PAGE;
use crate::worker_process::WorkerProcess;
use share::Share;

pub(crate) use report::{Row, Rows, Setting, write_files};
pub(crate) use worker::run as work;

/// Pool beyond what keys and stocks take: each region is rounded up.
const SLACK: u64 = 4 << 20;

/// A server under test, filled with the keys that are asked for.
pub(crate) struct Bench {
    // Dropped in this order, whatever happens: clients end before their server.
    workers: Vec<WorkerProcess>,
    figures: Figures,
    population: Population,
    share: Share,
    target: Target,
}

/// What a measurement comes to.
pub(crate) struct Measured {
    pub(crate) outcome: Outcome,
    /// System calls that the server made for a request, where it counts them.
    pub(crate) system_calls: Option<f64>,
}

impl Bench {
    /// Opens or starts the server, stores the keys, and starts the client processes that are asked for.
    pub(crate) fn open(
        traffic: &TrafficArgs,
        server: &ServerArgs,
        in_flight: u16,
    ) -> Result<Bench, BenchError> {
        traffic.check()?;
        let shape = Shape::of(traffic, in_flight);
        let connections = u64::from(traffic.connections);
        let pages = u64::from(traffic.keys) + connections * shape.stock_pages();
        let pool_size = pages * PAGE + (connections + 1) * SLACK;
        let mut target = Target::open(server, &Needs { pool_size, max_entries: pages, mount: false })?;
        let opened = (|| {
            let population = Population::new(target.socket(), traffic.keys)?;
            let share = Share::whole(traffic, shape, target.socket(), population.keys());
            let workers = match traffic.processes {
                1 => Vec::new(),
                _ => parent::start(traffic, in_flight, target.socket())?,
            };
            Ok((workers, Figures::connect(target.socket())?, population, share))
        })();
        let (workers, figures, population, share) = opened.map_err(|error| target.explain(error))?;
        Ok(Bench { workers, figures, population, share, target })
    }

    /// One measurement over connections of its own.
    pub(crate) fn measure(
        &mut self,
        tempo: Tempo,
        end: End,
        mut progress: impl FnMut(&Sample, Duration),
    ) -> Result<Measured, BenchError> {
        let (figures, share, workers) = (&mut self.figures, &self.share, &mut self.workers);
        let measured = (|| {
            let mut before = Count::default();
            let hear = |event: Event<'_>| {
                match event {
                    Event::Begun => before = figures.read()?,
                    Event::Interval(sample, elapsed) => progress(sample, elapsed),
                }
                Ok(())
            };
            let outcome = if workers.is_empty() {
                share.run(share.connect()?, tempo, end, Instant::now(), hear)?
            } else {
                parent::run(workers, tempo, end, hear)?
            };
            Ok(Measured { outcome, system_calls: figures.read()?.calls_per_request(before) })
        })();
        measured.map_err(|error| self.target.explain(error))
    }

    /// Keys that an answered request has dealt with.
    pub(crate) fn keys_per_request(&self) -> usize {
        self.share.keys_per_request()
    }

    /// Leaves the server as it was, or stops it.
    pub(crate) fn close(self) -> Result<(), BenchError> {
        self.workers.into_iter().try_for_each(WorkerProcess::finish)?;
        drop(self.figures);
        self.population.remove()?;
        self.target.stop()
    }
}
