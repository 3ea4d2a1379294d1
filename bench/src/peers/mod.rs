//! `peers`: ours beside Redis and memcached on the same machine, by the same loop, with keys of the same size.

mod protocol;
mod server;

use std::time::Duration;

use serde::Serialize;

use crate::cli::PeersArgs;
use crate::error::BenchError;
use crate::files::write_json;
use crate::floor::{Pair, Row, Side, requests_per_second};
use crate::interrupt;
use crate::machine::Machine;
use crate::measure::percentiles::Percentiles;
use crate::measure::run::Outcome;
use crate::target::{Needs, Target};
use crate::traffic::distribution::Distribution;
use crate::traffic::figures::Figures;
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
    /// Client threads that share the connections of rows with many.
    threads: u16,
    rows: Vec<Row>,
    /// Peers that are not installed.
    not_installed: Vec<&'static str>,
}

/// A comparison: what is asked, over how many connections, and which figures count.
struct Comparison {
    name: &'static str,
    operation: &'static str,
    batch: usize,
    connections: usize,
    in_flight: usize,
    figures: &'static [Figure],
}

/// A figure of a run: what follows the comparison's name, its unit, and how it is got.
struct Figure {
    suffix: &'static str,
    unit: &'static str,
    of: fn(&Outcome) -> f64,
}

const P50: Figure =
    Figure { suffix: ": p50", unit: "µs", of: |outcome| Percentiles::of(&outcome.sample.latency).p50 };
const P99: Figure =
    Figure { suffix: ": p99", unit: "µs", of: |outcome| Percentiles::of(&outcome.sample.latency).p99 };
const RATE: Figure = Figure { suffix: "", unit: "k/s", of: |outcome| outcome.per_second() / 1e3 };

/// One connection with one request in flight, unless a comparison says otherwise.
const ALONE: Comparison =
    Comparison { name: "", operation: "", batch: 1, connections: 1, in_flight: 1, figures: &[P50] };

const COMPARISONS: [Comparison; 5] = [
    Comparison { name: "exists, 1 key", operation: "exists", figures: &[P50, P99], ..ALONE },
    Comparison {
        name: "exists, 1 key, 64 in flight",
        operation: "exists",
        in_flight: 64,
        figures: &[RATE],
        ..ALONE
    },
    Comparison {
        name: "exists, 1 key, 32 connections",
        operation: "exists",
        connections: 32,
        figures: &[RATE],
        ..ALONE
    },
    Comparison { name: "lookup of 1 key (peers: get)", operation: "lookup", ..ALONE },
    Comparison {
        name: "lookup of 512 keys (peers: get of many)",
        operation: "lookup",
        batch: BATCH,
        ..ALONE
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
    let mut report = Report {
        machine: Machine::this(),
        rounds,
        threads: args.threads,
        rows: Vec::new(),
        not_installed: Vec::new(),
    };
    println!("peers: ours beside each of them (as the floor), medians of {rounds} rounds");
    println!("{}, {}", args.server.describe(), args.describe_threads());
    println!("{}\n\n{}", report.machine, Row::head());

    let needs = Needs { pool_size: 512 << 20, max_entries: 1 << 20, mount: false };
    let target = Target::start(&args.server, &needs)?;
    let population = Population::new(target.socket(), KEYS)?;
    let mut figures = Figures::connect(target.socket())?;
    for peer in Peer::ALL {
        let Some(server) = PeerServer::start(peer, &args.server, KEYS)? else {
            println!("{}: not installed", peer.name());
            report.not_installed.push(peer.name());
            continue;
        };
        for comparison in COMPARISONS.iter().filter(|comparison| comparison.name.contains(&args.only)) {
            let Comparison { batch, connections, in_flight, .. } = *comparison;
            let duration = args.scale(Duration::from_secs(1), Duration::from_millis(50));
            let threads = usize::from(args.threads);
            let side = Side { connections, in_flight, threads, duration };
            let mix = comparison.operation.parse().expect("the operation exists");
            let shape = Shape { mix, batch, distribution: Distribution::Uniform, in_flight };
            let ask = match comparison.operation {
                "exists" => Ask::Exists,
                _ => Ask::Get,
            };
            let mut pairs = vec![Vec::new(); comparison.figures.len()];
            for _ in 0..rounds {
                let theirs = requests_per_second(side, |number| {
                    Ok((server.connect()?, Asking::new(peer, ask, batch, KEYS, number as u64)))
                })?;
                let (ours, system_calls) = figures.during(|| {
                    requests_per_second(side, |number| {
                        Traffic::connect(target.socket(), population.keys(), &shape, number)
                    })
                })?;
                for (pairs, figure) in pairs.iter_mut().zip(comparison.figures) {
                    pairs.push(Pair { floor: (figure.of)(&theirs), ours: (figure.of)(&ours), system_calls });
                }
                if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
                    return Err(BenchError::Interrupted);
                }
            }
            for (pairs, figure) in pairs.iter().zip(comparison.figures) {
                let path = format!("{}: {}{}", peer.name(), comparison.name, figure.suffix);
                let row = Row::beside(&path, figure.unit, pairs);
                println!("{}", row.line());
                report.rows.push(row);
            }
        }
    }
    println!("{}", Row::FOOT);
    drop(figures);
    population.remove()?;
    target.stop()?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    Ok(())
}
