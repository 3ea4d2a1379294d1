//! `latency`: a closed loop, which shows the least that requests take.

use serde::Serialize;

use crate::cli::LatencyArgs;
use crate::drive::{Bench, Row, Rows, Setting, write_files};
use crate::error::BenchError;
use crate::measure::pace::Pace;
use crate::measure::percentiles::Percentiles;
use crate::measure::run::End;

/// What a run comes to.
#[derive(Debug, Serialize)]
struct Report {
    setting: Setting,
    requests: u64,
    elapsed_s: f64,
    per_second: f64,
    keys_per_second: f64,
    latency_us: Percentiles,
    intervals: Vec<Row>,
}

/// Measures, and prints and writes what it comes to.
pub(crate) fn run(args: &LatencyArgs) -> Result<(), BenchError> {
    if let Some(cpus) = &args.server.pin_clients {
        cpus.pin_this_thread()?;
    }
    let end = args.requests.map_or(End::After(args.duration), |requests| End::Requests(requests.get()));
    let mut bench = Bench::open(&args.traffic, &args.server, args.pipeline)?;
    let setting = Setting::of(&args.traffic, &args.server, args.pipeline);
    setting.print("latency");
    let mut rows = Rows::new(end);
    let outcome = bench.measure(|_, _, _| Pace::Closed, end, |sample, elapsed| rows.push(sample, elapsed))?;
    let intervals = rows.finish();

    let report = Report {
        requests: outcome.sample.answered(),
        elapsed_s: outcome.elapsed.as_secs_f64(),
        per_second: outcome.per_second(),
        keys_per_second: outcome.per_second() * bench.keys_per_request() as f64,
        latency_us: Percentiles::of(&outcome.sample.latency),
        intervals,
        setting,
    };
    bench.close()?;
    println!("{:->14}{:->65}", "", "");
    println!("{:>14.0}{}", report.per_second, report.latency_us);
    println!(
        "{} requests in {:.2} s, {:.0} keys/s; latency in µs",
        report.requests, report.elapsed_s, report.keys_per_second
    );
    write_files(&args.output, &report.setting.line(), &report, &outcome.sample, None)
}
