//! `floor`: each path beside the least that it could take on this machine, in the same run.

mod directory;
mod echo;
mod report;
mod rows;

use serde::Serialize;

use crate::cli::FloorArgs;
use crate::error::BenchError;
use crate::files::write_json;
use crate::interrupt;
use crate::machine::Machine;

pub(crate) use echo::serve as echo;
pub(crate) use report::{Pair, Row};
pub(crate) use rows::{Side, requests_per_second};

/// What a run comes to.
#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    server: String,
    rounds: usize,
    /// Client threads that share the connections of rows with many.
    threads: u16,
    rows: Vec<Row>,
    original: Vec<Original>,
}

/// Ours beside the Python original, which was measured on a machine of the same kind, with its own client and server, by
/// TCP on one host: the medians that several runs gave, from the least to the greatest.
#[derive(Debug, Serialize)]
struct Original {
    path: &'static str,
    ours_us: f64,
    original_us: [f64; 2],
}

/// Which rows it has something beside.
const ORIGINAL: [(&str, [f64; 2]); 4] = [
    // Its synchronous client, the faster of its two.
    ("exists, 1 key, blocking: p50", [210.0, 310.0]),
    // A batch retrieve, which does not pin.
    ("acquire of 512 digests and release, blocking", [9_600.0, 16_000.0]),
    ("register of 512 digests, blocking", [11_000.0, 15_000.0]),
    ("store of 1 MiB", [1_500.0, 1_500.0]),
];

/// Measures, and prints and writes what it comes to.
pub(crate) fn run(args: &FloorArgs) -> Result<(), BenchError> {
    if let Some(cpus) = &args.rounds.server.pin_clients {
        cpus.pin_this_thread()?;
    }
    let interrupted = interrupt::flag()?;
    let rounds = args.rounds.rounds();
    let mut report = Report {
        machine: Machine::this(),
        server: args.rounds.server.describe(),
        rounds,
        threads: args.rounds.threads,
        rows: Vec::new(),
        original: Vec::new(),
    };
    println!("floor: ours beside the least that it could take, medians of {rounds} rounds");
    println!("{}, {}", report.server, args.rounds.describe_threads());
    println!("{}\n\n{}", report.machine, Row::head());
    for path in rows::paths() {
        if !path.names.iter().any(|name| name.contains(&args.rounds.only)) {
            continue;
        }
        let mut pairs = vec![Vec::new(); path.names.len()];
        let mut measure = match (path.prepare)(&args.rounds) {
            Ok(measure) => measure,
            Err(rows::Skip::Because(reason)) => {
                println!("{:<60}skipped: {reason}", path.names[0]);
                continue;
            }
            Err(rows::Skip::Failed(error)) => return Err(error),
        };
        for _ in 0..path.rounds(rounds) {
            for (pairs, pair) in pairs.iter_mut().zip(measure()?) {
                pairs.push(pair);
            }
            if interrupted.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(BenchError::Interrupted);
            }
        }
        for ((name, goal), pairs) in path.names.iter().zip(path.goals).zip(&pairs) {
            let row = Row::of(name, path.unit, *goal, pairs);
            println!("{}", row.line());
            report.rows.push(row);
        }
    }
    println!("{}", Row::FOOT);
    for (path, original_us) in ORIGINAL {
        let ours = report.rows.iter().find(|row| row.path() == path).map(Row::ours);
        report.original.extend(ours.map(|ours_us| Original { path, ours_us, original_us }));
    }
    if !report.original.is_empty() {
        println!("\nbeside the Python original, measured before on a machine of the same kind");
    }
    for Original { path, ours_us, original_us: [low, high] } in &report.original {
        println!(
            "{path:<60}{low:>7.0} to {high:.0} µs: {:.0} to {:.0} times ours",
            low / ours_us,
            high / ours_us
        );
    }
    if let Some(path) = &args.rounds.json {
        write_json(path, &report)?;
    }
    Ok(())
}
