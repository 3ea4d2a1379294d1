//! `floor`: each path beside the least that it could take on this machine, in the same run.

mod directory;
mod echo;
mod report;
mod rows;

use serde::Serialize;

use crate::cli::FloorArgs;
use crate::drive::write;
use crate::error::BenchError;
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
    rows: Vec<Row>,
}

/// Measures, and prints and writes what it comes to.
pub(crate) fn run(args: &FloorArgs) -> Result<(), BenchError> {
    if let Some(cpus) = &args.rounds.server.pin_clients {
        cpus.pin_this_thread()?;
    }
    let interrupted = interrupt::flag()?;
    let rounds = args.rounds.rounds();
    let mut report =
        Report { machine: Machine::this(), server: args.rounds.server.describe(), rounds, rows: Vec::new() };
    println!("floor: ours beside the least that it could take, medians of {rounds} rounds");
    println!("{}\n{}\n\n{}", report.server, report.machine, Row::head());
    for path in rows::paths() {
        if !path.names.iter().any(|name| name.contains(&args.only)) {
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
    if let Some(path) = &args.rounds.json {
        let mut text = serde_json::to_string_pretty(&report).expect("figures can be written as JSON");
        text.push('\n');
        write(path, &text)?;
    }
    Ok(())
}
