//! `peers`: ours beside Redis and memcached on the same machine, by the same loop, with keys of the same size.

mod protocol;
mod server;

use serde::Serialize;

use crate::cli::PeersArgs;
use crate::drive::write;
use crate::error::BenchError;
use crate::floor::{Pair, Row, Side, requests_per_second};
use crate::interrupt;
use crate::machine::Machine;
use crate::measure::percentiles::Percentiles;
use crate::measure::run::Outcome;
use crate::target::{Needs, Target};
use crate::traffic::distribution::Distribution;
use crate::traffic::maru::{Shape, Traffic};
use crate::traffic::stock::Population;
use protocol::{Ask, Asking};
use server::{Peer, PeerServer};

/// Keys that every server holds.
const KEYS: u32 = 100_000;
/// Keys of a batch.
const BATCH: usize = 512;

/// What a run comes to.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    rounds: usize,
    rows: Vec<Row>,
    /// Peers that are not installed.
    not_installed: Vec<&'static str>,
}

/// A comparison: what is asked, over how many connections, and which figure counts.
struct Comparison {
    name: &'static str,
    operation: &'static str,
    batch: usize,
    connections: usize,
    in_flight: usize,
    unit: &'static str,
    figure: fn(&Outcome) -> f64,
}

fn p50(outcome: &Outcome) -> f64 {
    Percentiles::of(&outcome.sample.latency).p50
}

fn p99(outcome: &Outcome) -> f64 {
    Percentiles::of(&outcome.sample.latency).p99
}

fn rate(outcome: &Outcome) -> f64 {
    outcome.per_second() / 1e3
}

const COMPARISONS: [Comparison; 6] = [
    Comparison {
        name: "exists, 1 key: p50",
        operation: "exists",
        batch: 1,
        connections: 1,
        in_flight: 1,
        unit: "µs",
        figure: p50,
    },
    Comparison {
        name: "exists, 1 key: p99",
        operation: "exists",
        batch: 1,
        connections: 1,
        in_flight: 1,
        unit: "µs",
        figure: p99,
    },
    Comparison {
        name: "exists, 1 key, 64 in flight",
        operation: "exists",
        batch: 1,
        connections: 1,
        in_flight: 64,
        unit: "k/s",
        figure: rate,
    },
    Comparison {
        name: "exists, 1 key, 32 connections",
        operation: "exists",
        batch: 1,
        connections: 32,
        in_flight: 1,
        unit: "k/s",
        figure: rate,
    },
    Comparison {
        name: "lookup of 1 key: p50 (peers: get)",
        operation: "lookup",
        batch: 1,
        connections: 1,
        in_flight: 1,
        unit: "µs",
        figure: p50,
    },
    Comparison {
        name: "lookup of 512 keys: p50 (peers: get of many)",
        operation: "lookup",
        batch: BATCH,
        connections: 1,
        in_flight: 1,
        unit: "µs",
        figure: p50,
    },
];

/// Measures, and prints and writes what it comes to.
pub(crate) fn run(args: &PeersArgs) -> Result<(), BenchError> {
    let args = &args.rounds;
    if let Some(cpus) = &args.server.pin_clients {
        cpus.pin_this_thread()?;
    }
    let interrupted = interrupt::flag()?;
    let rounds = args.rounds();
    let mut report = Report { machine: Machine::this(), rounds, rows: Vec::new(), not_installed: Vec::new() };
    println!("peers: ours beside each of them (as the floor), medians of {rounds} rounds");
    println!("{}\n{}\n\n{}", args.server.describe(), report.machine, Row::head());

    let needs = Needs { pool_size: 512 << 20, max_entries: 1 << 20, mount: false };
    let target = Target::start(&args.server, &needs)?;
    let population = Population::new(target.socket(), KEYS)?;
    for peer in Peer::ALL {
        let Some(server) = PeerServer::start(peer, &args.server, KEYS)? else {
            println!("{}: not installed", peer.name());
            report.not_installed.push(peer.name());
            continue;
        };
        for comparison in &COMPARISONS {
            let Comparison { batch, connections, in_flight, .. } = *comparison;
            let duration =
                args.scale(std::time::Duration::from_secs(1), std::time::Duration::from_millis(50));
            let side = Side { connections, in_flight, duration };
            let mix = comparison.operation.parse().expect("the operation exists");
            let shape = Shape { mix, batch, distribution: Distribution::Uniform, in_flight };
            let ask = match comparison.operation {
                "exists" => Ask::Exists,
                _ => Ask::Get,
            };
            let mut pairs = Vec::new();
            for _ in 0..rounds {
                let theirs = requests_per_second(side, |number| {
                    Ok((server.connect()?, Asking::new(peer, ask, batch, KEYS, number as u64)))
                })?;
                let ours = requests_per_second(side, |number| {
                    Traffic::connect(target.socket(), population.keys(), &shape, number)
                })?;
                pairs.push(Pair { floor: (comparison.figure)(&theirs), ours: (comparison.figure)(&ours) });
                if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
                    return Err(BenchError::Interrupted);
                }
            }
            let row = Row::beside(&format!("{}: {}", peer.name(), comparison.name), comparison.unit, &pairs);
            println!("{}", row.line());
            report.rows.push(row);
        }
    }
    population.remove()?;
    target.stop()?;
    if let Some(path) = &args.json {
        let mut text = serde_json::to_string_pretty(&report).expect("figures can be written as JSON");
        text.push('\n');
        write(path, &text)?;
    }
    Ok(())
}
