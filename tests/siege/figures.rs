//! What a row found: figures beside their targets, and counts that must hold.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};
use std::path::Path;
use std::time::Duration;

use crate::results::Row;

/// The findings of a row.
pub(crate) struct Report {
    row: String,
    full: bool,
    lines: Vec<[String; 4]>,
    broken: bool,
}

impl Report {
    pub(crate) fn new(row: &str, full: bool) -> Self {
        Self {
            row: row.to_owned(),
            full,
            lines: Vec::new(),
            broken: false,
        }
    }

    /// A figure that has no target.
    pub(crate) fn told(&mut self, what: &str, measured: impl Display) {
        self.line(what, measured, "", "");
    }

    /// A figure with its target, which a slow machine may miss.
    pub(crate) fn figure(&mut self, what: &str, measured: impl Display, target: &str, met: bool) {
        let verdict = match (self.full, met) {
            (true, true) => "met",
            (true, false) => "MISSED",
            (false, _) => "",
        };
        self.line(what, measured, target, verdict);
    }

    /// A count that must hold on any machine.
    pub(crate) fn count(
        &mut self,
        what: &str,
        measured: impl Display,
        expected: impl Display,
        holds: bool,
    ) {
        self.broken |= !holds;
        self.line(
            what,
            measured,
            expected,
            if holds { "ok" } else { "BROKEN" },
        );
    }

    /// A count that must be `expected`.
    pub(crate) fn equal<T: PartialEq + Display>(&mut self, what: &str, measured: T, expected: T) {
        let holds = measured == expected;
        self.count(what, measured, expected, holds);
    }

    /// A count that must be above zero, or the row has not done what it is for.
    pub(crate) fn some(&mut self, what: &str, measured: usize) {
        self.count(what, measured, "some", measured > 0);
    }

    /// The same for a document, in a table that is called like the file.
    pub(crate) fn rows(&self, file: &Path) -> Vec<Row> {
        let table = file.file_stem().unwrap_or_default().to_string_lossy();
        let row = |[what, measured, target, verdict]: &[String; 4]| Row {
            table: table.clone().into_owned(),
            what: format!("{}: {what}", self.row),
            target: target.clone(),
            met: match verdict.as_str() {
                "met" | "ok" => Some(true),
                "MISSED" | "BROKEN" => Some(false),
                _ => None,
            },
            measured: measured.clone(),
            figures: Vec::new(),
        };
        self.lines.iter().map(row).collect()
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    fn line(&mut self, what: &str, measured: impl Display, target: impl Display, verdict: &str) {
        let line = [
            what.to_owned(),
            measured.to_string(),
            target.to_string(),
            verdict.to_owned(),
        ];
        self.lines.push(line);
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.row)?;
        for [what, measured, target, verdict] in &self.lines {
            let line = format!("  {what:<38} {measured:<30} {target:<34} {verdict}");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// How long something took, many times.
#[derive(Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(took);
    }

    pub(crate) fn extend(&mut self, others: Self) {
        self.0.extend(others.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that `percent` of all stay within.
    pub(crate) fn percentile(&mut self, percent: usize) -> Duration {
        self.0.sort_unstable();
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    pub(crate) fn max(&mut self) -> Duration {
        self.percentile(100)
    }

    /// Median and longest, which have no target of their own.
    pub(crate) fn told(&mut self, what: &str, report: &mut Report) {
        let (median, max) = (ms(self.percentile(50)), ms(self.max()));
        report.told(&format!("{what}, p50 and max"), format!("{median}, {max}"));
    }

    /// The 99th percentile beside its target.
    pub(crate) fn p99(&mut self, what: &str, target: Duration, report: &mut Report) {
        let p99 = self.percentile(99);
        let at_most = format!("at most {} ms", target.as_millis());
        report.figure(&format!("{what}, p99"), ms(p99), &at_most, p99 <= target);
    }
}

/// In milliseconds.
pub(crate) fn ms(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1e3)
}

/// In MiB.
pub(crate) fn mib(kib: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let mib = kib as f64 / 1024.0;
    format!("{mib:.1} MiB")
}

/// How often each of several things happened.
#[derive(Default)]
pub(crate) struct Tally(BTreeMap<String, usize>);

impl Tally {
    pub(crate) fn add(&mut self, what: impl Into<String>) {
        *self.0.entry(what.into()).or_default() += 1;
    }

    pub(crate) fn extend(&mut self, others: Self) {
        for (what, times) in others.0 {
            *self.0.entry(what).or_default() += times;
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.0.values().sum()
    }

    pub(crate) fn of(&self, what: &str) -> usize {
        self.0.get(what).copied().unwrap_or_default()
    }

    /// How often something happened whose name ends so.
    pub(crate) fn ending_with(&self, tail: &str) -> usize {
        let such = self.0.iter().filter(|(what, _)| what.ends_with(tail));
        such.map(|(_, times)| times).sum()
    }

    /// How often something else happened than one of `known`.
    pub(crate) fn beside(&self, known: &[&str]) -> usize {
        self.total() - known.iter().map(|what| self.of(what)).sum::<usize>()
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let each: Vec<_> = self
            .0
            .iter()
            .map(|(what, n)| format!("{what} {n}"))
            .collect();
        f.pad(&each.join(", "))
    }
}
