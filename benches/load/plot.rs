//! Latency by concurrency, as a picture.

use std::path::Path;

use plotters::prelude::*;

use super::results::Row;

const SIZE: (u32, u32) = (720, 420);
/// What is drawn, and how.
const LINES: [(&str, &str, RGBColor); 4] = [
    ("ringfence", "p50", RGBColor(200, 80, 30)),
    ("ringfence", "p99", RGBColor(240, 170, 120)),
    ("floor", "p50", RGBColor(40, 90, 160)),
    ("floor", "p99", RGBColor(140, 180, 220)),
];

/// The points of a line: clients, and milliseconds.
fn points(rows: &[&Row], who: &str, what: &str) -> Vec<(f64, f64)> {
    let of = |row: &&Row| {
        let figure = row
            .figures
            .iter()
            .find(|it| it.who == who && it.what == what)?;
        Some((row.what.parse().ok()?, figure.median / 1e3))
    };
    rows.iter().filter_map(of).collect()
}

/// Draws the rows of the table of clients.
pub(crate) fn latency_by_clients(rows: &[&Row], into: &Path) {
    let all: Vec<_> = LINES
        .iter()
        .map(|(who, what, colour)| (format!("{who} {what}"), points(rows, who, what), colour))
        .collect();
    let every = || all.iter().flat_map(|(_, points, _)| points);
    let most = every().map(|it| it.0).fold(1.0, f64::max);
    let (low, high) = (
        every().map(|it| it.1).fold(f64::MAX, f64::min),
        every().map(|it| it.1).fold(0.0, f64::max),
    );
    let area = SVGBackend::new(into, SIZE).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&area)
        .caption(
            "Run of a hello by digest: latency by clients",
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d((1.0..most).log_scale(), (low / 2.0..high * 2.0).log_scale())
        .unwrap();
    chart
        .configure_mesh()
        .x_desc("clients")
        .y_desc("milliseconds")
        .draw()
        .unwrap();
    for (name, points, colour) in &all {
        let style = ShapeStyle::from(*colour).stroke_width(2);
        chart
            .draw_series(LineSeries::new(points.iter().copied(), style).point_size(3))
            .unwrap()
            .label(name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE)
        .draw()
        .unwrap();
    area.present().unwrap();
}
