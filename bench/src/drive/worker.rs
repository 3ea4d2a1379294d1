//! One client process: drives its share of the connections as the parent says.

use std::process::ExitCode;
use std::sync::Arc;

use super::protocol::{Moment, Report, Task};
use super::share::Share;
use crate::cli::ClientArgs;
use crate::error::BenchError;
use crate::measure::run::Event;
use crate::traffic::keys::KeySpace;
use crate::traffic::maru::Shape;
use crate::traffic::wire_client::WireClient;
use crate::worker_process::{Answer, Parent, serve};

/// Serves the parent until it wants no more.
pub(crate) fn run(args: &ClientArgs) -> ExitCode {
    serve(|parent| {
        let secret = WireClient::connect(&args.socket)?.hello.digest_key;
        let keys = Arc::new(KeySpace::new(&secret, args.traffic.keys.into()));
        let shape = Shape::of(&args.traffic, args.pipeline);
        let share = Share::whole(&args.traffic, shape, &args.socket, &keys)
            .of_process(args.process.into(), args.traffic.processes.into());
        while let Some(task) = parent.hear()? {
            measure(&share, task, parent)?;
        }
        Ok(())
    })
}

fn measure(share: &Share, task: Task, parent: &mut Parent) -> Result<(), BenchError> {
    let connected = share.connect()?;
    parent.tell::<Report>(&Answer::Ready)?;
    let Some(start) = parent.hear::<Moment>()? else {
        return Ok(());
    };
    let outcome = share.run(connected, task.tempo, task.end, start.instant(), |event| {
        parent.tell(&Answer::Done(match event {
            Event::Begun => Report::Begun,
            Event::Interval(sample, elapsed) => Report::Interval(Box::new(sample.clone()), elapsed),
        }))
    })?;
    parent.tell(&Answer::Done(Report::Over { elapsed: outcome.elapsed, threads: outcome.threads }))
}
