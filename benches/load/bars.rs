//! Throughput beside floor and peers, as a picture.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::results::{Figure, Row, number};

const WIDTH: u32 = 720;
/// Pixels: around everything, of a bar with what is between it and the next, of a group's name, and
/// where bars begin.
const MARGIN: i32 = 14;
const BAR: i32 = 20;
const NAME: i32 = 30;
const LEFT: i32 = 190;
/// What is written at the end of the longest bar has this.
const RIGHT: i32 = 90;
/// By how its name begins.
const COLOURS: [(&str, RGBColor); 2] = [
    ("ringfence", RGBColor(200, 80, 30)),
    ("floor", RGBColor(40, 90, 160)),
];
const OTHERS: RGBColor = RGBColor(140, 150, 160);

/// Draws the throughput in each of the rows, a group of bars for each.
pub(crate) fn throughput(rows: &[&Row], into: &Path) {
    let groups: Vec<(&str, Vec<&Figure>)> = rows
        .iter()
        .map(|row| {
            let figures = row.figures.iter().filter(|it| it.what == "throughput");
            (row.what.as_str(), figures.collect())
        })
        .collect();
    let bars: usize = groups.iter().map(|(_, figures)| figures.len()).sum();
    let bars = i32::try_from(bars).unwrap();
    let names = i32::try_from(groups.len()).unwrap();
    let height = 2 * MARGIN + bars * BAR + names * NAME;
    let every = groups.iter().flat_map(|(_, figures)| figures);
    let most = every.map(|it| it.median).fold(1.0, f64::max);

    let area = SVGBackend::new(into, (WIDTH, height.cast_unsigned())).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let text = |size: i32| ("sans-serif", size).into_text_style(&area);
    let right = text(13).pos(Pos::new(HPos::Right, VPos::Center));
    let left = text(13).pos(Pos::new(HPos::Left, VPos::Center));
    let bold = text(14).pos(Pos::new(HPos::Left, VPos::Center));
    let mut y = MARGIN;
    for (name, figures) in groups {
        let told = format!("{}, calls a second", name.replace('`', ""));
        area.draw(&Text::new(told, (MARGIN, y + NAME / 2), bold.clone()))
            .unwrap();
        y += NAME;
        for figure in figures {
            let who = figure.who.replace('`', "");
            let middle = y + BAR / 2;
            area.draw(&Text::new(who, (LEFT - 8, middle), right.clone()))
                .unwrap();
            let end = LEFT + length(figure.median / most);
            let bar = [(LEFT, y + 2), (end, y + BAR - 2)];
            area.draw(&Rectangle::new(bar, colour(&figure.who).filled()))
                .unwrap();
            let told = number(figure.median);
            area.draw(&Text::new(told, (end + 6, middle), left.clone()))
                .unwrap();
            y += BAR;
        }
    }
    area.present().unwrap();
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "within the width of the picture"
)]
fn length(of_most: f64) -> i32 {
    (f64::from(WIDTH.cast_signed() - LEFT - RIGHT) * of_most) as i32
}

fn colour(who: &str) -> RGBColor {
    let found = COLOURS.iter().find(|(it, _)| who == *it);
    found.map_or(OTHERS, |(_, colour)| *colour)
}
