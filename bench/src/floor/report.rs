//! Ours beside a floor, round by round: the ratios are what counts.

use serde::Serialize;

/// What a ratio of ours to the floor should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// At most this: times, sizes.
    AtMost(f64),
    /// At least this: rates.
    AtLeast(f64),
}

impl Goal {
    fn holds(self, ratio: f64) -> bool {
        match self {
            Goal::AtMost(goal) => ratio <= goal,
            Goal::AtLeast(goal) => ratio >= goal,
        }
    }

    fn text(self) -> String {
        match self {
            Goal::AtMost(goal) => format!("<= {goal}"),
            Goal::AtLeast(goal) => format!(">= {goal}"),
        }
    }
}

/// What one round measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) floor: f64,
    pub(crate) ours: f64,
    /// That our server made for a request, where it counts them and the row is about requests.
    pub(crate) system_calls: Option<f64>,
}

impl Pair {
    /// Of what is no request.
    pub(crate) const fn new(floor: f64, ours: f64) -> Pair {
        Pair { floor, ours, system_calls: None }
    }
}

/// One row of the table.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    path: String,
    unit: &'static str,
    ours: f64,
    floor: f64,
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    goal: String,
    holds: bool,
    /// Made by our server, the median; `null` where it does not count them or the row is not about requests.
    system_calls_per_request: Option<f64>,
}

impl Row {
    /// The medians of some rounds, at least one.
    pub(crate) fn of(path: &str, unit: &'static str, goal: Goal, rounds: &[Pair]) -> Row {
        let ratios = sorted(rounds.iter().map(|pair| pair.ours / pair.floor));
        let ratio = median(&ratios);
        let calls = sorted(rounds.iter().filter_map(|pair| pair.system_calls));
        Row {
            path: path.to_owned(),
            unit,
            ours: median(&sorted(rounds.iter().map(|pair| pair.ours))),
            floor: median(&sorted(rounds.iter().map(|pair| pair.floor))),
            ratio,
            ratio_min: ratios[0],
            ratio_max: ratios[ratios.len() - 1],
            goal: goal.text(),
            holds: goal.holds(ratio),
            system_calls_per_request: (!calls.is_empty()).then(|| median(&calls)),
        }
    }

    /// What was measured.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The median of ours.
    pub(crate) const fn ours(&self) -> f64 {
        self.ours
    }

    /// The same beside a peer: whatever the unit, ours should be no worse.
    pub(crate) fn beside(path: &str, unit: &'static str, rounds: &[Pair]) -> Row {
        let goal = if unit == "k/s" { Goal::AtLeast(1.0) } else { Goal::AtMost(1.0) };
        Row::of(path, unit, goal, rounds)
    }

    /// What to know of the printed rows.
    pub(crate) const FOOT: &str = "calls/req: system calls that our server made for a request; -: not counted by this \
                                   driver, or a row that is not about requests";

    /// The head of the printed rows.
    pub(crate) fn head() -> String {
        format!(
            "{:<60}{:>5}{:>12}{:>12}{:>8}{:>8}{:>8}  {:<17}{:>9}",
            "path", "unit", "ours", "floor", "ratio", "min", "max", "goal", "calls/req"
        )
    }

    /// The row, printed.
    pub(crate) fn line(&self) -> String {
        let Row { path, unit, ours, floor, ratio, ratio_min, ratio_max, goal, .. } = self;
        let calls = self.system_calls_per_request.map_or("-".to_owned(), |calls| format!("{calls:.2}"));
        let verdict = if self.holds { "holds" } else { "MISSED" };
        format!(
            "{path:<60}{unit:>5}{ours:>12.1}{floor:>12.1}{ratio:>8.2}{ratio_min:>8.2}{ratio_max:>8.2}  {goal:<9}{verdict:<8}{calls:>9}"
        )
    }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values = values.collect::<Vec<_>>();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle of sorted values, at least one.
pub(crate) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    } else {
        sorted[middle]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_the_median_of_the_rounds_ratios_not_the_ratio_of_medians() {
        // A machine that was slow in one round was slow for both sides.
        let rounds = [(10.0, 9.0), (100.0, 80.0), (10.0, 12.0)].map(|(floor, ours)| Pair::new(floor, ours));
        let row = Row::of("p", "µs", Goal::AtMost(1.0), &rounds);
        assert_eq!((row.ratio, row.ratio_min, row.ratio_max, row.holds), (0.9, 0.8, 1.2, true));
        assert_eq!((row.ours, row.floor), (12.0, 10.0));
    }

    #[test]
    fn rates_should_be_high_and_times_low() {
        let pair = [Pair::new(10.0, 9.0)];
        assert!(!Row::of("p", "k/s", Goal::AtLeast(1.0), &pair).holds);
        assert!(Row::of("p", "k/s", Goal::AtLeast(0.9), &pair).holds);
        assert!(Row::of("p", "µs", Goal::AtMost(0.9), &pair).holds);
        assert!(!Row::of("p", "µs", Goal::AtMost(0.8), &pair).holds);
    }
}
