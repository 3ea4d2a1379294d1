//! The parent of a replay: starts everything, hands out the requests, adds the answers up, cleans up.

use std::env;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytesize::ByteSize;

use super::plan::Plan;
use super::report::{Report, Table, Tally};
use crate::cli::ReplayArgs;
use crate::error::BenchError;
use crate::files::{write, write_json};
use crate::interrupt;
use crate::measure::progress;
use crate::server_process::{ServerOptions, ServerProcess};
use crate::target::fresh_folder;
use crate::worker_process::WorkerProcess;
use crate::workload::{Workload, count};

/// Replays the workload and prints the result.
///
/// # Errors
/// [`BenchError`] where anything fails, or a single byte is wrong.
pub(crate) fn run(args: &ReplayArgs) -> Result<(), BenchError> {
    let workload = Workload::load(&args.workload)?;
    let unbounded = workload.unbounded();
    let (chunk_size, workers) = (count(args.chunk_size), u64::from(args.processes));
    let plan = match args.pool_size {
        Some(size) => Plan::for_pool(size.as_u64(), chunk_size, workers),
        None => Plan::for_chunks(unbounded.unique_chunks, chunk_size, workers),
    };
    plan.check_fits(&args.pool_dir)?;
    if let Some(path) = &args.json {
        // Before the work, so that a file that can't be written does not cost a run.
        write(path, "")?;
    }

    let interrupted = interrupt::flag()?;
    let report = replay(args, plan, &workload, interrupted)?;
    if let Some(path) = &args.json {
        write_json(path, &report)?;
    }
    let title = title(args, plan, &workload);
    let table = Table { title: &title, unbounded_hit_chunks: unbounded.prefix_hit_chunks, report: &report };
    io::stdout().write_all(table.to_string().as_bytes()).map_err(BenchError::system("write the result"))?;
    report.verdict()
}

/// Everything between the start of the server and its end.
fn replay(
    args: &ReplayArgs,
    plan: Plan,
    workload: &Workload,
    interrupted: &AtomicBool,
) -> Result<Report, BenchError> {
    // Dropped in reverse, whatever happens: first the workers, then the server, then the memory.
    let pool = fresh_folder(&args.pool_dir)?;
    let run = fresh_folder(&env::temp_dir())?;
    let socket = run.path().join("maru.sock");
    let mut server = ServerProcess::start(&ServerOptions {
        socket: &socket,
        pool: pool.path(),
        mount: false,
        pool_size: plan.pool_size,
        max_entries: (plan.pool_size / count(args.chunk_size)).max(1),
        arguments: &[],
        host: None,
    })?;
    let mut workers = (0..usize::from(args.processes))
        .map(|number| start_worker(number, args, plan, &socket))
        .collect::<Result<Vec<_>, _>>()?;

    let report = hand_out(workload, &mut workers, interrupted)
        .and_then(|report| {
            workers.into_iter().try_for_each(WorkerProcess::finish)?;
            Ok(report)
        })
        .map_err(|error| match error {
            _ if interrupted.load(Ordering::Relaxed) => BenchError::Interrupted,
            error => server.explain(error),
        })?;
    server.stop()?;
    Ok(report)
}

/// Gives each request to the next worker, and waits for its answer: what one stored, the next may find.
fn hand_out(
    workload: &Workload,
    workers: &mut [WorkerProcess],
    interrupted: &AtomicBool,
) -> Result<Report, BenchError> {
    workers.iter_mut().try_for_each(WorkerProcess::wait_until_ready)?;
    let progress = progress::bar(count(workload.requests.len()), "requests");
    let mut tally = Tally::new();
    let began = Instant::now();
    let turns = workers.len();
    for (index, request) in workload.requests.iter().enumerate() {
        if interrupted.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        let worker = &mut workers[index % turns];
        worker.tell(request)?;
        tally.add(request.len(), &worker.done()?);
        progress.inc(1);
    }
    let elapsed = began.elapsed();
    progress.finish_and_clear();
    Ok(tally.report(elapsed))
}

/// Starts the client process of a number.
fn start_worker(
    number: usize,
    args: &ReplayArgs,
    plan: Plan,
    socket: &Path,
) -> Result<WorkerProcess, BenchError> {
    WorkerProcess::start(number, |command| {
        command
            .arg("worker")
            .arg("--socket")
            .arg(socket)
            .args(["--instance", &format!("maru-bench-{number}")])
            .args(["--chunk-size", &args.chunk_size.to_string()])
            .args(["--region-size", &plan.region_size.to_string()]);
        if args.sparse {
            command.arg("--sparse");
        }
    })
}

/// What was replayed, and how.
fn title(args: &ReplayArgs, plan: Plan, workload: &Workload) -> String {
    format!(
        "replay of {} by {} in turn, chunks of {}{}, a pool of {}",
        workload.name,
        if args.processes == 1 { "one process".to_owned() } else { format!("{} processes", args.processes) },
        ByteSize(count(args.chunk_size)),
        if args.sparse { " (only head, tail and probes written and verified)" } else { "" },
        ByteSize(plan.pool_size),
    )
}
