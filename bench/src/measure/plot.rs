//! Curves as SVG files.

use std::path::Path;

use plotters::prelude::*;

use super::percentiles::microseconds;
use super::recorder::Times;
use crate::error::BenchError;

const SIZE: (u32, u32) = (960, 540);
const COLOURS: [RGBColor; 4] =
    [RGBColor(31, 119, 180), RGBColor(214, 39, 40), RGBColor(44, 160, 44), RGBColor(148, 103, 189)];

/// A named line.
pub(crate) struct Curve {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// What the horizontal axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Horizontal {
    /// Percentiles, so that each further nine takes the same room: at n lies the quantile 1 - 10^-n.
    Nines,
    /// Requests a second.
    Rate,
}

/// The latency in microseconds over the percentile.
pub(crate) fn percentile_curve(name: &str, times: &Times) -> Curve {
    let points = times
        .iter_quantiles(20)
        .filter(|step| step.quantile_iterated_to() < 1.0)
        .map(|step| (nines(step.quantile_iterated_to()), microseconds(step.value_iterated_to())))
        .collect();
    Curve { name: name.to_owned(), points }
}

/// Draws the curves, the vertical axis in microseconds, to powers of ten.
///
/// # Errors
/// [`BenchError`] where the file can't be written.
pub(crate) fn draw(path: &Path, title: &str, axis: Horizontal, curves: &[Curve]) -> Result<(), BenchError> {
    let failed = |error: &dyn std::fmt::Display| {
        BenchError::system(format!("draw {}", path.display()))(std::io::Error::other(error.to_string()))
    };
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    chart(&root, title, axis, curves).map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}

type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn chart<'a>(
    root: &DrawingArea<SVGBackend<'a>, plotters::coord::Shift>,
    title: &str,
    axis: Horizontal,
    curves: &[Curve],
) -> Drawn<'a> {
    root.fill(&WHITE)?;
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let right = points().map(|point| point.0).fold(1.0, f64::max);
    let (low, high) =
        points().fold((f64::MAX, 1.0_f64), |(low, high), point| (low.min(point.1), high.max(point.1)));
    let low = low.clamp(0.01, high);
    let mut chart = ChartBuilder::on(root)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(72)
        .build_cartesian_2d(0.0..right, (low * 0.8..high * 1.25).log_scale())?;
    let description = match axis {
        Horizontal::Nines => "percentile",
        Horizontal::Rate => "requests/s",
    };
    chart
        .configure_mesh()
        .x_desc(description)
        .y_desc("latency, µs")
        .x_labels(8)
        .x_label_formatter(&|x| label(axis, *x))
        .y_label_formatter(&|y| format!("{y}"))
        .light_line_style(WHITE)
        .draw()?;
    for (curve, colour) in curves.iter().zip(COLOURS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(curve.points.iter().copied(), colour.stroke_width(2)))?
            .label(&curve.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
}

fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

fn label(axis: Horizontal, x: f64) -> String {
    match axis {
        Horizontal::Rate => format!("{x:.0}"),
        // Only whole nines have a label that is exact.
        Horizontal::Nines if (x - x.round()).abs() < 1e-6 => {
            // Rounded to twelve digits, of which none but nines are left.
            let percent = 100.0 * (1.0 - 10_f64.powf(-x.round()));
            format!("{} %", (percent * 1e12).round() / 1e12)
        }
        Horizontal::Nines => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::recorder::times;

    #[test]
    fn each_nine_takes_the_same_room() {
        let labels = [0.0, 1.0, 2.0, 3.0, 4.0].map(|x| label(Horizontal::Nines, x));
        assert_eq!(labels, ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]);
        assert_eq!(label(Horizontal::Nines, 1.5), "");
        assert!((nines(0.999) - 3.0).abs() < 1e-9);
    }

    #[test]
    fn a_drawing_has_its_curves_and_texts() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.svg");
        let mut seen = times();
        (1..=10_000).for_each(|n| seen += n * 1000);
        let curves = [percentile_curve("exists", &seen), percentile_curve("nothing", &times())];
        draw(&path, "a title", Horizontal::Nines, &curves).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in ["<svg", "a title", "99.9 %", "exists", "polyline"] {
            assert!(svg.contains(text), "{text}");
        }
    }

    #[test]
    fn a_file_that_can_not_be_written_is_an_error() {
        let error = draw(Path::new("/nowhere/out.svg"), "", Horizontal::Rate, &[]).unwrap_err().to_string();
        assert!(error.contains("/nowhere/out.svg"), "{error}");
    }
}
