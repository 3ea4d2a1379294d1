//! A histogram of times as the figures that people and programs read.

use std::fmt;

use serde::Serialize;

use super::recorder::Times;

/// Microseconds; all 0 where nothing was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) p9999: f64,
    pub(crate) max: f64,
}

impl Percentiles {
    pub(crate) fn of(times: &Times) -> Percentiles {
        let at = |quantile| microseconds(times.value_at_quantile(quantile));
        Percentiles {
            mean: if times.is_empty() { 0.0 } else { times.mean() / 1000.0 },
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: microseconds(times.max()),
        }
    }

    /// The head of a table whose rows are percentiles.
    pub(crate) const HEAD: &str = "      p50      p90      p99    p99.9   p99.99        max";
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Percentiles { p50, p90, p99, p999, p9999, max, .. } = self;
        write!(f, "{p50:>9.1}{p90:>9.1}{p99:>9.1}{p999:>9.1}{p9999:>9.1}{max:>11.1}")
    }
}

pub(crate) fn microseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::recorder::times;

    #[test]
    fn percentiles_are_microseconds_to_three_digits() {
        let mut seen = times();
        (1..=100_000).for_each(|n| seen += n * 10);
        let percentiles = Percentiles::of(&seen);
        for (value, expected) in [
            (percentiles.mean, 500.0),
            (percentiles.p50, 500.0),
            (percentiles.p90, 900.0),
            (percentiles.p99, 990.0),
            (percentiles.p999, 999.0),
            (percentiles.p9999, 999.9),
            (percentiles.max, 1000.0),
        ] {
            assert!((value / expected - 1.0).abs() < 0.002, "{value} for {expected}");
        }
    }

    #[test]
    fn nothing_measured_is_zero() {
        let nothing = Percentiles::of(&times());
        assert_eq!((nothing.mean, nothing.p50, nothing.max), (0.0, 0.0, 0.0));
    }

    #[test]
    fn head_and_rows_have_the_same_columns() {
        let row = Percentiles::of(&times()).to_string();
        let ends = |text: &str| {
            let padded = format!("{text} ");
            let pairs = padded.char_indices().zip(padded.chars().skip(1));
            pairs.filter(|((_, a), b)| *a != ' ' && *b == ' ').map(|((n, _), _)| n).collect::<Vec<_>>()
        };
        assert_eq!(ends(&row), ends(Percentiles::HEAD));
    }
}
