//! `latency`: a closed loop, which shows the least that requests take.

use serde::Serialize;

use crate::cli::LatencyArgs;
use crate::drive::{Bench, Measured, Row, Rows, Setting, write_files};
use crate::error::BenchError;
use crate::measure::pace::Tempo;
use crate::measure::percentiles::Percentiles;
use crate::measure::run::End;
use crate::traffic::figures::system_calls_text;

/// What a run comes to.
#[derive(Debug, Serialize)]
struct Report {
    setting: Setting,
    requests: u64,
    elapsed_s: f64,
    per_second: f64,
    keys_per_second: f64,
    latency_us: Percentiles,
    /// Made by the server; `null` where it does not count them.
    system_calls_per_request: Option<f64>,
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
    let measured = bench.measure(Tempo::Closed, end, |sample, elapsed| rows.push(sample, elapsed))?;
    let Measured { outcome, system_calls } = measured;
    let intervals = rows.finish();

    let report = Report {
        requests: outcome.sample.answered(),
        elapsed_s: outcome.elapsed.as_secs_f64(),
        per_second: outcome.per_second(),
        keys_per_second: outcome.per_second() * bench.keys_per_request() as f64,
        latency_us: Percentiles::of(&outcome.sample.latency),
        system_calls_per_request: system_calls,
        intervals,
        setting,
    };
    bench.close()?;
    println!("{:->14}{:->65}", "", "");
    println!("{:>14.0}{}", report.per_second, report.latency_us);
    println!(
        "{} requests in {:.2} s, {:.0} keys/s; latency in µs\n{}",
        report.requests,
        report.elapsed_s,
        report.keys_per_second,
        system_calls_text(system_calls)
    );
    write_files(&args.output, &report.setting.line(), &report, &outcome.sample, None)
}
