//! `load`: an open loop at given rates, which shows what users wait, and where the knee is.

use serde::Serialize;

use crate::cli::LoadArgs;
use crate::drive::{Bench, Measured, Setting, write_files};
use crate::error::BenchError;
use crate::measure::pace::Tempo;
use crate::measure::percentiles::Percentiles;
use crate::measure::plot::{Curve, Horizontal};
use crate::measure::recorder::{Sample, nanoseconds};
use crate::measure::run::End;
use crate::traffic::figures::system_calls_text;

/// A rate counts as sustained while so much of it is answered.
const SUSTAINED: f64 = 0.99;

/// What a run comes to.
#[derive(Debug, Serialize)]
struct Report {
    setting: Setting,
    rates: Vec<Rate>,
    /// The first rate that was too high, if one was.
    knee: Option<f64>,
}

/// One rate.
#[derive(Clone, Copy, Debug, Serialize)]
struct Rate {
    /// Requests a second that were asked for.
    rate: f64,
    /// Requests a second that were answered.
    per_second: f64,
    /// From when each request was to be sent, µs.
    latency_us: Percentiles,
    /// From when each request was sent, µs.
    service_us: Percentiles,
    /// Requests that were due and never sent.
    unsent: u64,
    /// Made by the server; `null` where it does not count them.
    system_calls_per_request: Option<f64>,
}

impl Rate {
    fn of(rate: f64, measured: &Measured) -> Rate {
        let outcome = &measured.outcome;
        Rate {
            rate,
            per_second: outcome.per_second(),
            latency_us: Percentiles::of(&outcome.sample.latency),
            service_us: Percentiles::of(&outcome.sample.service),
            unsent: outcome.sample.unsent,
            system_calls_per_request: measured.system_calls,
        }
    }

    /// Whether the server keeps up, within the latency that is asked for.
    fn is_sustained(&self, p99_us: f64) -> bool {
        self.per_second >= SUSTAINED * self.rate && self.latency_us.p99 <= p99_us
    }
}

/// Measures, and prints and writes what it comes to.
pub(crate) fn run(args: &LoadArgs) -> Result<(), BenchError> {
    if let Some(cpus) = &args.server.pin_clients {
        cpus.pin_this_thread()?;
    }
    let mut bench = Bench::open(&args.traffic, &args.server, args.pipeline)?;
    let setting = Setting::of(&args.traffic, &args.server, args.pipeline);
    setting.print("load");
    println!("{:>12}{:>14}{}", "rate", "answered/s", Percentiles::HEAD);
    let rates = match (args.ramp, args.rate) {
        (Some(ramp), _) => ramp.rates().collect::<Vec<_>>(),
        (None, rate) => rate.into_iter().collect(),
    };
    let limit = nanoseconds(args.limit) as f64 / 1000.0;
    let mut report = Report { setting, rates: Vec::new(), knee: None };
    let mut total = Sample::new();
    for rate in rates {
        let measured = bench.measure(Tempo::Open(rate), End::After(args.duration), |_, _| {})?;
        total += &measured.outcome.sample;
        let point = Rate::of(rate, &measured);
        println!("{rate:>12.0}{:>14.0}{}", point.per_second, point.latency_us);
        report.rates.push(point);
        if args.ramp.is_some() && !point.is_sustained(limit) {
            report.knee = Some(rate);
            break;
        }
    }
    bench.close()?;
    println!("latency in µs, from when each request was to be sent");
    let last = report.rates.last().and_then(|rate| rate.system_calls_per_request);
    println!("{}{}", system_calls_text(last), if args.ramp.is_some() { " at the last rate" } else { "" });
    match (report.knee, args.ramp) {
        (Some(knee), _) => println!(
            "the knee: {knee:.0}/s is the first rate that is not sustained within {limit:.0} µs at p99"
        ),
        (None, Some(_)) => println!("every rate was sustained within {limit:.0} µs at p99"),
        (None, None) => {}
    }
    let curves = args.ramp.map(|_| (Horizontal::Rate, curves(&report.rates)));
    write_files(&args.output, &report.setting.line(), &report, &total, curves)
}

fn curves(rates: &[Rate]) -> Vec<Curve> {
    let curve = |name: &str, value: fn(&Percentiles) -> f64| Curve {
        name: name.to_owned(),
        points: rates.iter().map(|rate| (rate.rate, value(&rate.latency_us))).collect(),
    };
    vec![curve("p50", |us| us.p50), curve("p99", |us| us.p99), curve("p99.9", |us| us.p999)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rate(rate: f64, per_second: f64, p99: f64) -> Rate {
        let us = Percentiles { mean: 0.0, p50: 0.0, p90: 0.0, p99, p999: 0.0, p9999: 0.0, max: 0.0 };
        Rate { rate, per_second, latency_us: us, service_us: us, unsent: 0, system_calls_per_request: None }
    }

    #[test]
    fn a_rate_is_sustained_while_it_is_answered_in_time() {
        assert!(rate(1000.0, 995.0, 900.0).is_sustained(1000.0));
        assert!(!rate(1000.0, 980.0, 900.0).is_sustained(1000.0), "the server falls behind");
        assert!(!rate(1000.0, 1000.0, 1001.0).is_sustained(1000.0), "users wait too long");
    }
}
