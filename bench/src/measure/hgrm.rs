//! The percentile distribution as text, in the form that plotters of HdrHistogram read (`.hgrm`).

use std::fmt::Write;

use super::percentiles::microseconds;
use super::recorder::Times;

/// Rows for each halving of the distance to 100 %.
const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// The distribution in microseconds, and a line on what it is of, which plotters skip.
pub(crate) fn text(title: &str, times: &Times) -> String {
    let mut text =
        format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    let mut count = 0;
    let mut line = |value: f64, quantile: f64, count: u64| {
        let _ = write!(text, "{value:>12.3} {quantile:>2.12} {count:>10}");
        let _ = match quantile {
            1.0.. => writeln!(text),
            _ => writeln!(text, " {:>14.2}", 1.0 / (1.0 - quantile)),
        };
    };
    for step in times.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        count += step.count_since_last_iteration();
        line(microseconds(step.value_iterated_to()), step.quantile_iterated_to(), count);
    }
    let (mean, deviation) = if times.is_empty() { (0.0, 0.0) } else { (times.mean(), times.stdev()) };
    let _ =
        writeln!(text, "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]", mean / 1000.0, deviation / 1000.0);
    let (max, total) = (microseconds(times.max()), times.len());
    let _ = writeln!(text, "#[Max     = {max:>12.3}, Total count    = {total:>12}]");
    let (buckets, sub_buckets) = buckets(times);
    let _ = writeln!(text, "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]\n# {title}");
    text
}

/// How the histogram divides its values: halvings of the range, and steps in each.
fn buckets(times: &Times) -> (u32, u64) {
    let steps = 2 * 10_u64.pow(u32::from(times.sigfig()));
    let sub_buckets = steps.next_power_of_two();
    let mut buckets = 1;
    while sub_buckets << (buckets - 1) <= times.high() {
        buckets += 1;
    }
    (buckets, sub_buckets)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::recorder::times;

    #[test]
    fn the_rows_ascend_to_all_of_the_values() {
        let mut seen = times();
        (1..=1000).for_each(|n| seen += n * 1000);
        let text = text("latency of exists", &seen);
        let mut lines = text.lines();
        assert_eq!(
            lines.next().unwrap().split_whitespace().collect::<Vec<_>>(),
            ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
        );
        assert_eq!(lines.next(), Some(""));
        let (rows, tail) = lines.partition::<Vec<_>, _>(|line| !line.starts_with('#'));
        let rows = rows
            .iter()
            .map(|row| row.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<f64>>())
            .collect::<Vec<_>>();
        assert!(rows.len() > 20);
        assert!(rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]));
        let half = rows.iter().find(|row| row[1] == 0.5).unwrap();
        assert!((half[0] - 500.0).abs() < 1.0 && half[2] == 500.0 && half[3] == 2.0, "{half:?}");
        let last = rows.last().unwrap();
        assert!((last[0] - 1000.0).abs() < 1.0);
        assert_eq!((last[1], last[2], last.len()), (1.0, 1000.0, 3), "nothing is left above 100 %");
        assert!(tail[0].starts_with("#[Mean    =      500.") && tail[0].contains("StdDeviation"), "{tail:?}");
        assert!(tail[1].ends_with("Total count    =         1000]"), "{tail:?}");
        assert!(tail[2].contains("SubBuckets     =         2048]"), "{tail:?}");
        assert_eq!(tail[3], "# latency of exists");
    }

    #[test]
    fn an_empty_distribution_has_a_head_and_a_tail() {
        assert!(text("", &times()).contains("Total count    =            0]"));
    }
}
