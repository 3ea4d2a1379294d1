//! What a torture comes to: the table for people, the JSON for programs, the verdict.

use std::fmt;

use bytesize::ByteSize;
use indicatif::HumanCount;
use serde::Serialize;

use super::counts::Counts;
use crate::error::BenchError;
use crate::machine::Machine;

/// The result, as it is written to JSON.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Report {
    pub(super) seed: u64,
    /// How long clients were at work.
    pub(super) seconds: f64,
    /// Client processes that were killed.
    pub(super) client_kills: u64,
    /// Client processes that were stopped for a moment.
    pub(super) client_pauses: u64,
    /// Times that the server was killed and started again.
    pub(super) server_kills: u64,
    /// Times that the cable of a host was pulled and plugged in again.
    pub(super) link_flaps: u64,
    /// How long sessions were without the server.
    pub(super) resume: Resume,
    /// Entries that the server evicted since it was last started.
    pub(super) evictions: u64,
    /// By how much the server's memory grew over the last two thirds of the run.
    pub(super) server_rss_growth_bytes: i64,
    #[serde(flatten)]
    pub(super) counts: Counts,
    /// Every broken promise and every failure, in words, up to a limit.
    pub(super) failures: Vec<String>,
}

/// The times for which sessions were without the server, from when a client noticed until it had gone on.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Resume {
    /// How many.
    pub(super) count: usize,
    /// Half of them were shorter.
    pub(super) p50_ms: f64,
    /// One in a hundred was longer.
    pub(super) p99_ms: f64,
    /// The longest.
    pub(super) max_ms: f64,
}

impl Resume {
    pub(super) fn of(mut outages_us: Vec<u64>) -> Resume {
        outages_us.sort_unstable();
        let at = |percent: usize| {
            let index = outages_us.len().saturating_sub(1) * percent / 100;
            outages_us.get(index).map_or(0.0, |outage| *outage as f64 / 1000.0)
        };
        Resume { count: outages_us.len(), p50_ms: at(50), p99_ms: at(99), max_ms: at(100) }
    }
}

impl Report {
    /// # Errors
    /// [`BenchError::Torture`] where a promise was broken or a client failed by itself.
    pub(super) fn verdict(&self) -> Result<(), BenchError> {
        if self.counts.is_clean() && self.failures.is_empty() {
            return Ok(());
        }
        let Counts { wrong_bytes, leaked_pins, leaked_pages, lost_acknowledged, .. } = self.counts;
        let first = self.failures.first().map_or("nothing more is known", String::as_str);
        Err(BenchError::Torture(format!(
            "{wrong_bytes} wrong bytes, {leaked_pins} leaked pins, {leaked_pages} leaked pages, \
             {lost_acknowledged} lost chunks, {} failures with seed {}; the first: {first}",
            self.failures.len(),
            self.seed
        )))
    }
}

/// The result for people.
pub(super) struct Table<'a> {
    /// What was done.
    pub(super) title: &'a str,
    /// The result.
    pub(super) report: &'a Report,
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { counts, resume, .. } = self.report;
        let Resume { count, p50_ms, p99_ms, max_ms } = resume;
        let resumed = match count {
            0 => "0".to_owned(),
            _ => format!("{count}, in {p50_ms:.1} ms (p50), {p99_ms:.1} ms (p99), {max_ms:.1} ms (longest)"),
        };
        writeln!(f, "{}\n{}\n", self.title, Machine::this())?;
        for (name, figure) in [
            ("seconds", format!("{:.1}", self.report.seconds)),
            ("clients killed", HumanCount(self.report.client_kills).to_string()),
            ("clients paused", HumanCount(self.report.client_pauses).to_string()),
            ("servers killed", HumanCount(self.report.server_kills).to_string()),
            ("links cut", HumanCount(self.report.link_flaps).to_string()),
            ("sessions resumed", resumed),
            ("sessions ended", HumanCount(counts.sessions_ended).to_string()),
            ("operations", HumanCount(counts.operations).to_string()),
            ("bytes verified", ByteSize(counts.verified_bytes).to_string()),
            ("evictions", HumanCount(self.report.evictions).to_string()),
            ("wrong bytes", HumanCount(counts.wrong_bytes).to_string()),
            ("leaked pins", HumanCount(counts.leaked_pins).to_string()),
            ("leaked pages", HumanCount(counts.leaked_pages).to_string()),
            ("lost acknowledged", HumanCount(counts.lost_acknowledged).to_string()),
            ("server memory", format!("{:+} bytes", self.report.server_rss_growth_bytes)),
        ] {
            writeln!(f, "{name:<20}{figure}")?;
        }
        writeln!(f)?;
        for (operation, outcomes) in &counts.outcomes {
            let outcomes =
                outcomes.iter().map(|(outcome, count)| format!("{outcome} {}", HumanCount(*count)));
            writeln!(f, "{:<20}{}", operation.to_string(), outcomes.collect::<Vec<_>>().join(", "))?;
        }
        self.report.failures.iter().try_for_each(|failure| writeln!(f, "\nFAILED: {failure}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::counts::{Operation, Outcome};
    use super::*;

    fn report() -> Report {
        let mut counts = Counts { operations: 12_345, ..Counts::default() };
        counts.add(Operation::PinKv, Outcome::NotFound, 3);
        Report {
            seed: 7,
            seconds: 60.0,
            client_kills: 59,
            client_pauses: 8,
            server_kills: 0,
            link_flaps: 0,
            resume: Resume::of((1..=1000).rev().map(|n| n * 1000).collect()),
            evictions: 2,
            server_rss_growth_bytes: -4096,
            counts,
            failures: Vec::new(),
        }
    }

    #[test]
    fn the_json_has_all_figures_on_one_level() {
        let json = serde_json::to_value(report()).unwrap();
        for (name, figure) in
            [("operations", 12_345), ("client_kills", 59), ("server_rss_growth_bytes", -4096), ("seed", 7)]
        {
            assert_eq!(json[name], figure, "{name}");
        }
        assert_eq!(json["resume"]["count"], 1000);
        assert_eq!(json["resume"]["p99_ms"], 990.0);
        assert_eq!(json["outcomes"]["pin_kv"]["not_found"], 3);
    }

    #[test]
    fn the_table_names_what_came_of_each_operation() {
        let table = Table { title: "torture", report: &report() }.to_string();
        for text in ["torture\n", "Linux ", "12,345", "pin_kv              not_found 3\n", "-4096 bytes"] {
            assert!(table.contains(text), "{text} in {table}");
        }
    }

    #[test]
    fn a_broken_promise_or_a_failure_is_the_verdict() {
        assert!(report().verdict().is_ok());
        let mut broken = report();
        broken.counts.leaked_pins = 1;
        assert!(broken.verdict().unwrap_err().to_string().contains("1 leaked pins"));
        let failed = Report { failures: vec!["client 2: it ended".to_owned()], ..report() };
        assert!(failed.verdict().unwrap_err().to_string().contains("the first: client 2: it ended"));
    }
}
