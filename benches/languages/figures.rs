//! What was measured of each program, and the table of it.

use serde::Deserialize;

use crate::Measured;

/// What one round measured of a program; a peer prints the same as JSON. Times are in milliseconds.
#[derive(Deserialize)]
pub(crate) struct Figures {
    pub(crate) p50_ms: f64,
    pub(crate) mean_ms: f64,
    pub(crate) p99_ms: f64,
    /// How many ended in a second when sixteen were asked for at once.
    pub(crate) per_second: f64,
    /// Processor time of the whole process for each call of the one client.
    pub(crate) processor_ms: f64,
    /// How many calls of the one client there were.
    pub(crate) calls: usize,
}

/// The rounds of one program by one sandbox.
struct Row {
    program: &'static Measured,
    who: String,
    rounds: Vec<Figures>,
}

/// All that was measured so far.
#[derive(Default)]
pub(crate) struct Rows(Vec<Row>);

impl Rows {
    /// Adds a round of a program, and prints it.
    pub(crate) fn note(&mut self, program: &'static Measured, who: &str, figures: Figures) {
        println!(
            "{:<13} {:<25} {who:<20} p50 {:7.2} ms, mean {:7.2}, p99 {:7.2} of {:3} calls; {:7.1} a second; processor {:6.2} ms",
            program.language,
            program.name,
            figures.p50_ms,
            figures.mean_ms,
            figures.p99_ms,
            figures.calls,
            figures.per_second,
            figures.processor_ms,
        );
        let known = self
            .0
            .iter()
            .position(|row| row.who == who && std::ptr::eq(row.program, program));
        match known {
            Some(at) => self.0[at].rounds.push(figures),
            None => self.0.push(Row {
                program,
                who: who.to_owned(),
                rounds: vec![figures],
            }),
        }
    }

    /// Prints the medians of the rounds as a table of docs/performance.md.
    pub(crate) fn print_table(&self) {
        println!(
            "\n| program | sandbox | p50 (ms) | mean (ms) | p99 (ms) | 16 at once (1/s) | processor (ms) |"
        );
        println!("|---|---|---|---|---|---|---|");
        for Row {
            program,
            who,
            rounds,
        } in &self.0
        {
            let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(figure));
            println!(
                "| {}: {} | {who} | {:.2} | {:.2} | {:.2} | {:.0} | {:.2} |",
                program.language,
                program.name,
                of(|it| it.p50_ms),
                of(|it| it.mean_ms),
                of(|it| it.p99_ms),
                of(|it| it.per_second),
                of(|it| it.processor_ms),
            );
        }
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
