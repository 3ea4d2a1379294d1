//! The parent of a replay: starts everything, hands out the requests, adds the answers up, cleans up.

use std::env;
use std::io::{self, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use bytesize::ByteSize;

use super::plan::Plan;
use super::protocol::{Answer, Outcome, receive, send};
use super::report::{Report, Table, Tally};
use crate::cli::ReplayArgs;
use crate::error::BenchError;
use crate::files::{write, write_json};
use crate::interrupt;
use crate::measure::progress;
use crate::server_process::{ServerOptions, ServerProcess};
use crate::target::fresh_folder;
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
        pool_dir: pool.path(),
        mount: false,
        pool_size: plan.pool_size,
        max_entries: (plan.pool_size / count(args.chunk_size)).max(1),
        arguments: &[],
    })?;
    let mut workers = (0..usize::from(args.processes))
        .map(|number| Worker::start(number, args, plan, &socket))
        .collect::<Result<Vec<_>, _>>()?;

    let report = hand_out(workload, &mut workers, interrupted)
        .and_then(|report| {
            workers.into_iter().try_for_each(Worker::finish)?;
            Ok(report)
        })
        .map_err(|error| match error {
            _ if interrupted.load(Ordering::Relaxed) => BenchError::Interrupted,
            // A worker's complaint about a lost connection says less than the server's last words.
            error => server.check().err().unwrap_or(error),
        })?;
    server.stop()?;
    Ok(report)
}

/// Gives each request to the next worker, and waits for its answer: what one stored, the next may find.
fn hand_out(
    workload: &Workload,
    workers: &mut [Worker],
    interrupted: &AtomicBool,
) -> Result<Report, BenchError> {
    workers.iter_mut().try_for_each(Worker::wait_until_ready)?;
    let progress = progress::bar(count(workload.requests.len()), "requests");
    let mut tally = Tally::new();
    let began = Instant::now();
    let turns = workers.len();
    for (index, request) in workload.requests.iter().enumerate() {
        if interrupted.load(Ordering::Relaxed) {
            return Err(BenchError::Interrupted);
        }
        tally.add(request.len(), &workers[index % turns].replay(request)?);
        progress.inc(1);
    }
    let elapsed = began.elapsed();
    progress.finish_and_clear();
    Ok(tally.report(elapsed))
}

/// One client process; killed when dropped.
struct Worker {
    number: usize,
    child: Child,
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    fn start(number: usize, args: &ReplayArgs, plan: Plan, socket: &Path) -> Result<Worker, BenchError> {
        let own = env::current_exe().map_err(BenchError::system("find the path of maru-bench"))?;
        let mut command = Command::new(own);
        command
            .arg("worker")
            .arg("--socket")
            .arg(socket)
            .args(["--instance", &format!("maru-bench-{number}")])
            .args(["--chunk-size", &args.chunk_size.to_string()])
            .args(["--region-size", &plan.region_size.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if args.sparse {
            command.arg("--sparse");
        }
        let mut child = command.spawn().map_err(BenchError::system("start a client process"))?;
        let requests = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("stdout is piped"));
        Ok(Worker { number, child, requests, answers })
    }

    fn wait_until_ready(&mut self) -> Result<(), BenchError> {
        match self.answer()? {
            Answer::Ready => Ok(()),
            other => Err(self.confused(&other)),
        }
    }

    fn replay(&mut self, request: &[u64]) -> Result<Outcome, BenchError> {
        let requests = self.requests.as_mut().expect("it is taken only by finish");
        if send(requests, request).is_err() {
            // The pipe breaks when the worker ends; its last line, if there is one, says why.
            return Err(self.answer().map_or_else(|error| error, |answer| self.confused(&answer)));
        }
        match self.answer()? {
            Answer::Done(outcome) => Ok(outcome),
            other => Err(self.confused(&other)),
        }
    }

    /// Lets the worker close its handler and end.
    fn finish(mut self) -> Result<(), BenchError> {
        drop(self.requests.take());
        if let Some(answer) = self.receive()? {
            return Err(self.confused(&answer));
        }
        let status = self.child.wait().map_err(BenchError::system("wait for a client process"))?;
        if status.success() { Ok(()) } else { Err(BenchError::WorkerEnded { worker: self.number, status }) }
    }

    /// The next line, which the worker owes.
    fn answer(&mut self) -> Result<Answer, BenchError> {
        if let Some(answer) = self.receive()? {
            return Ok(answer);
        }
        let status = self.child.wait().map_err(BenchError::system("wait for a client process"))?;
        Err(BenchError::WorkerEnded { worker: self.number, status })
    }

    /// The next line; `None` where the worker has ended.
    fn receive(&mut self) -> Result<Option<Answer>, BenchError> {
        receive(&mut self.answers)
            .map_err(BenchError::system(format!("read from client process {}", self.number)))
    }

    /// What an answer means that was not expected here: a failure, if it is none already.
    fn confused(&self, answer: &Answer) -> BenchError {
        let message = match answer {
            Answer::Failed(message) => message.clone(),
            other => format!("it answered out of turn: {other:?}"),
        };
        BenchError::Worker { worker: self.number, message }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // An error means that it has ended already, which is all that is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
