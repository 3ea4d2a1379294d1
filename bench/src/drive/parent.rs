//! The parent of several client processes: starts them, has them begin together, adds up what they measure.

use std::path::Path;
use std::time::Duration;

use super::protocol::{Moment, Report, Task};
use crate::cli::TrafficArgs;
use crate::error::BenchError;
use crate::measure::pace::Tempo;
use crate::measure::recorder::Sample;
use crate::measure::run::{End, Event, Outcome};
use crate::worker_process::WorkerProcess;

/// From the order to start to the start: long enough for the order to reach everybody.
const LEAD: Duration = Duration::from_millis(5);

/// Starts as many processes as are asked for.
pub(super) fn start(
    traffic: &TrafficArgs,
    in_flight: u16,
    socket: &Path,
) -> Result<Vec<WorkerProcess>, BenchError> {
    let start = |process: u16| {
        WorkerProcess::start(process.into(), |command| {
            command
                .arg("client")
                .arg("--socket")
                .arg(socket)
                .args(["--process", &process.to_string()])
                .args(["--pipeline", &in_flight.to_string()])
                .args(traffic.arguments());
        })
    };
    (0..traffic.processes).map(start).collect()
}

/// One measurement by all of them, over the same time.
pub(super) fn run(
    workers: &mut [WorkerProcess],
    tempo: Tempo,
    end: End,
    mut hear: impl FnMut(Event<'_>) -> Result<(), BenchError>,
) -> Result<Outcome, BenchError> {
    workers.iter_mut().try_for_each(|worker| worker.tell(&Task { tempo, end }))?;
    workers.iter_mut().try_for_each(WorkerProcess::wait_until_ready)?;
    let start = Moment::after(LEAD);
    workers.iter_mut().try_for_each(|worker| worker.tell(&start))?;

    let mut outcome = Outcome { sample: Sample::new(), elapsed: Duration::ZERO, threads: 0 };
    let mut running = workers.iter_mut().collect::<Vec<_>>();
    while !running.is_empty() {
        // A round is one report of each that still runs: the same interval of all.
        let (mut begun, mut interval) = (false, None);
        let mut left = Vec::with_capacity(running.len());
        for worker in running {
            match worker.done()? {
                Report::Begun => begun = true,
                Report::Interval(sample, elapsed) => {
                    let (sum, longest) = interval.get_or_insert((Sample::new(), Duration::ZERO));
                    *sum += &*sample;
                    *longest = elapsed.max(*longest);
                }
                Report::Over { elapsed, threads } => {
                    outcome.elapsed = outcome.elapsed.max(elapsed);
                    outcome.threads += threads;
                    continue;
                }
            }
            left.push(worker);
        }
        running = left;
        if begun {
            hear(Event::Begun)?;
        }
        if let Some((sample, elapsed)) = interval {
            hear(Event::Interval(&sample, elapsed))?;
            outcome.sample += &sample;
        }
    }
    Ok(outcome)
}
