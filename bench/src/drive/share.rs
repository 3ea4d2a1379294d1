//! The connections that one process drives: all of them, or those of a worker.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cli::TrafficArgs;
use crate::error::BenchError;
use crate::measure::channel::Channel;
use crate::measure::connection::Connection;
use crate::measure::pace::Tempo;
use crate::measure::run::{End, Event, Outcome, Plan, run};
use crate::traffic::keys::KeySpace;
use crate::traffic::maru::{Shape, Traffic};

/// Rows are printed at this interval.
const INTERVAL: Duration = Duration::from_secs(1);

/// Some of the connections of a measurement, which know their places among all.
pub(super) struct Share {
    socket: PathBuf,
    shape: Shape,
    keys: Arc<KeySpace>,
    numbers: Range<usize>,
    connections: usize,
    threads: usize,
    warm_up: Duration,
}

impl Share {
    /// All connections.
    pub(super) fn whole(traffic: &TrafficArgs, shape: Shape, socket: &Path, keys: &Arc<KeySpace>) -> Share {
        Share {
            socket: socket.to_owned(),
            shape,
            keys: Arc::clone(keys),
            numbers: 0..traffic.connections.into(),
            connections: traffic.connections.into(),
            threads: traffic.threads().into(),
            warm_up: traffic.warm_up,
        }
    }

    /// Those of one of the processes.
    pub(super) fn of_process(self, process: usize, processes: usize) -> Share {
        let first = |process: usize| process * self.connections / processes;
        Share { numbers: first(process)..first(process + 1), ..self }
    }

    /// Keys that an answered request has dealt with.
    pub(super) fn keys_per_request(&self) -> usize {
        self.shape.keys_per_request()
    }

    /// Opens the connections.
    pub(super) fn connect(&self) -> Result<Vec<(Channel, Traffic)>, BenchError> {
        let numbers = self.numbers.clone();
        numbers.map(|number| Traffic::connect(&self.socket, &self.keys, &self.shape, number)).collect()
    }

    /// Drives what [`Share::connect`] opened, from `start` on.
    pub(super) fn run(
        &self,
        connected: Vec<(Channel, Traffic)>,
        tempo: Tempo,
        end: End,
        start: Instant,
        hear: impl FnMut(Event<'_>) -> Result<(), BenchError>,
    ) -> Result<Outcome, BenchError> {
        let plan = Plan {
            start,
            warm_up: self.warm_up,
            end: match end {
                End::After(_) => end,
                End::Requests(all) => {
                    End::Requests(all.div_ceil(self.connections as u64) * self.numbers.len() as u64)
                }
            },
            in_flight: self.shape.in_flight,
            threads: self.threads,
            interval: INTERVAL,
        };
        let connections = connected.into_iter().zip(self.numbers.clone());
        let connections = connections.map(|((channel, protocol), number)| {
            Connection::new(channel, protocol, tempo.pace(start, number, self.connections))
        });
        run(connections.collect(), &plan, hear)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn every_connection_has_one_process() {
        #[derive(Parser)]
        struct Options {
            #[command(flatten)]
            traffic: TrafficArgs,
        }
        for (connections, processes) in [(1, 1), (4, 2), (32, 3), (7, 7)] {
            let options = Options::parse_from(["", "--connections", &connections.to_string()]);
            let shares = (0..processes).flat_map(|process| {
                let shape = Shape::of(&options.traffic, 1);
                let keys = Arc::new(KeySpace::new(&maru_proto::DigestKey::from([0; 16]), 1));
                let whole = Share::whole(&options.traffic, shape, Path::new(""), &keys);
                let share = whole.of_process(process, processes);
                assert!(!share.numbers.is_empty());
                share.numbers
            });
            assert_eq!(shares.collect::<Vec<_>>(), (0..connections).collect::<Vec<_>>());
        }
    }
}
