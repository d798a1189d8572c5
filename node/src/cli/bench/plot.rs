//! Latency against load as an SVG: one line for each percentile, latency on a logarithmic scale,
//! because p50 and p99.9 are apart by orders of magnitude.

use plotters::prelude::*;

use super::{report::time_text, statistics::Percentiles};

const SIZE: (u32, u32) = (960, 560);
const FONT: &str = "sans-serif";

/// One of the lines.
struct Line {
    name: &'static str,
    percentile: fn(&Percentiles) -> u64,
    colour: RGBColor,
}

/// The colours are distinct also to the colour-blind. Source: Okabe and Ito, "Color Universal Design".
const LINES: [Line; 4] = [
    Line { name: "p50", percentile: |latency| latency.p50, colour: RGBColor(0, 114, 178) },
    Line { name: "p90", percentile: |latency| latency.p90, colour: RGBColor(0, 158, 115) },
    Line { name: "p99", percentile: |latency| latency.p99, colour: RGBColor(230, 159, 0) },
    Line { name: "p99.9", percentile: |latency| latency.p99_9, colour: RGBColor(213, 94, 0) },
];

/// One load of a sweep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Point {
    /// Calls a second that were asked for.
    pub(super) asked: f64,
    /// Calls a second that were done.
    pub(super) done: f64,
    pub(super) latency: Percentiles,
}

impl Point {
    /// What was asked for was done, give or take 5 %.
    fn kept_up(&self) -> bool {
        self.done >= self.asked * 0.95
    }
}

/// Draws the points; a load that the node did not keep up with has a hollow mark.
///
/// # Errors
/// A sentence when the drawing library fails.
pub(super) fn draw(title: &str, points: &[Point]) -> Result<String, String> {
    let mut svg = String::new();
    let drawn = draw_into(&mut svg, title, points);
    drawn.map_err(|error| format!("the plot cannot be drawn: {error}"))?;
    Ok(svg)
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_into(svg: &mut String, title: &str, points: &[Point]) -> Drawn {
    let mut points = points.to_vec();
    points.sort_by(|a, b| a.asked.total_cmp(&b.asked));
    let loads_to = points.iter().map(|point| point.asked).fold(1.0, f64::max) * 1.08;
    let millis = |nanos: u64| nanos.max(1) as f64 / 1e6;
    let lowest = points.iter().map(|point| millis(point.latency.p50)).fold(f64::MAX, f64::min);
    let highest = points.iter().map(|point| millis(point.latency.p99_9)).fold(0.0, f64::max);
    // Whole decades, so that the axis begins and ends with a label; room above for the legend.
    let decade = |value: f64, round: fn(f64) -> f64| 10_f64.powf(round(value.log10()));
    let latencies = if points.is_empty() {
        0.1..1.0
    } else {
        decade(lowest, f64::floor)..decade(highest * 5.0, f64::ceil)
    };

    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, (FONT, 17))
        .margin(14)
        .x_label_area_size(48)
        .y_label_area_size(76)
        .build_cartesian_2d(0.0..loads_to, latencies.log_scale())?;
    chart
        .configure_mesh()
        .x_desc("calls/s asked for (hollow: not kept up with)")
        .y_desc("latency from when the call was due")
        .x_label_formatter(&|load| rate_text(*load))
        .y_label_formatter(&|millis| decade_text(*millis))
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 14))
        .light_line_style(RGBColor(240, 240, 240))
        .bold_line_style(RGBColor(215, 215, 215))
        .draw()?;
    for Line { name, percentile, colour } in LINES {
        let at = |point: &Point| (point.asked, millis(percentile(&point.latency)));
        let line = LineSeries::new(points.iter().map(at), colour.stroke_width(2));
        chart.draw_series(line)?.label(name).legend(move |(x, y)| {
            PathElement::new(vec![(x, y), (x + 22, y)], colour.stroke_width(2))
        });
        chart.draw_series(points.iter().map(|point| {
            let style = if point.kept_up() { colour.filled() } else { colour.stroke_width(2) };
            Circle::new(at(point), 4, style)
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .label_font((FONT, 14))
        .draw()?;
    root.present()?;
    Ok(())
}

/// A decade of milliseconds: `100 µs`, `1 ms`.
fn decade_text(millis: f64) -> String {
    time_text((millis * 1e6).round() as u64).replace(".00 ", " ").replace(".0 ", " ")
}

/// `800`, `12k`, `1.5M`.
fn rate_text(rate: f64) -> String {
    let (amount, unit) = match rate {
        r if r >= 1e6 => (r / 1e6, "M"),
        r if r >= 1e4 => (r / 1e3, "k"),
        r => (r, ""),
    };
    let text = format!("{amount:.1}");
    format!("{}{unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(asked: f64, done: f64, p50: u64) -> Point {
        let latency = Percentiles {
            calls: 1,
            mean: p50 as f64,
            p50,
            p90: p50 * 2,
            p99: p50 * 10,
            p99_9: p50 * 40,
            max: p50 * 50,
        };
        Point { asked, done, latency }
    }

    #[test]
    fn every_load_has_a_mark_on_every_line() {
        let points = [point(1_000.0, 1_000.0, 200_000), point(5_000.0, 2_000.0, 900_000)];
        let svg = draw("a < b & c", &points).unwrap();
        assert_eq!(svg.matches("<circle").count(), 2 * LINES.len());
        for Line { name, colour: RGBColor(red, green, blue), .. } in LINES {
            let line = format!(
                r##"<polyline fill="none" opacity="1" stroke="#{red:02X}{green:02X}{blue:02X}""##
            );
            assert_eq!(svg.matches(&line).count(), 2, "a line and its legend: {name}");
        }
        assert!(svg.contains("a &lt; b &amp; c"), "the title is escaped");
        for word in ["p50", "p99.9", "calls/s asked", "1 ms", "10 ms"] {
            assert!(svg.contains(word), "no {word}");
        }
        let hollow = |svg: &str| svg.matches(r#"fill="none""#).count();
        let kept_up = [point(1_000.0, 1_000.0, 200_000), point(5_000.0, 5_000.0, 900_000)];
        assert_eq!(hollow(&svg), hollow(&draw("a", &kept_up).unwrap()) + LINES.len(), "hollow");
    }

    #[test]
    fn odd_points_are_drawn_too() {
        for points in [&[][..], &[point(0.0, 0.0, 0)], &[point(1.0, 1.0, 1_000_000); 2]] {
            assert!(draw("t", points).unwrap().ends_with("</svg>\n"));
        }
    }

    #[test]
    fn labels_read_well() {
        assert_eq!([0.01, 1.0, 10.0, 1e3].map(decade_text), ["10 µs", "1 ms", "10 ms", "1 s"]);
        assert_eq!([800.0, 9_000.0, 12_500.0, 2e6].map(rate_text), ["800", "9000", "12.5k", "2M"]);
    }
}
