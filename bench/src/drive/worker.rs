//! One client process: drives its share of the connections as the parent says.

use std::process::ExitCode;
use std::sync::Arc;

use super::protocol::{Order, Report};
use super::share::Share;
use crate::cli::ClientArgs;
use crate::error::BenchError;
use crate::measure::run::Event;
use crate::traffic::keys::KeySpace;
use crate::traffic::maru::{Shape, Traffic};
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
        while let Some(order) = parent.hear()? {
            measure(&share, order, parent)?;
        }
        Ok(())
    })
}

fn measure(share: &Share, order: Order, parent: &mut Parent) -> Result<(), BenchError> {
    let Order::Connect(tempo, end) = order else {
        return Err(BenchError::answer("the parent process", "an order to start before one to connect"));
    };
    let connected: Vec<(_, Traffic)> = share.connect()?;
    parent.tell::<Report>(&Answer::Ready)?;
    let Some(Order::Start(moment)) = parent.hear()? else {
        return Ok(());
    };
    let outcome = share.run(connected, tempo, end, moment.instant(), |event| {
        parent.tell(&Answer::Done(match event {
            Event::Begun => Report::Begun,
            Event::Interval(sample, elapsed) => Report::Interval(Box::new(sample.clone()), elapsed),
        }))
    })?;
    parent.tell(&Answer::Done(Report::Over { elapsed: outcome.elapsed, threads: outcome.threads }))
}
