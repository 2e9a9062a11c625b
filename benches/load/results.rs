//! What was measured, as it is kept: every round of everything that was asked.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

/// All of a run of this program.
#[derive(Serialize, Deserialize)]
pub(crate) struct Results {
    pub machine: String,
    pub commit: String,
    pub date: String,
    pub command: String,
    pub rows: Vec<Row>,
}

/// Something that was measured.
#[derive(Serialize, Deserialize)]
pub(crate) struct Row {
    /// The table that it belongs to.
    pub table: String,
    /// What was asked.
    pub what: String,
    /// What it should be.
    pub target: String,
    /// Whether it is; none where there is no target, or it could not be measured.
    pub met: Option<bool>,
    /// The figure that the target is about, or why there is none.
    pub measured: String,
    /// The figures behind it.
    pub figures: Vec<Figure>,
}

/// A figure of something that was asked.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// Who was asked.
    pub who: String,
    /// What is measured.
    pub what: String,
    pub unit: String,
    /// Of each round.
    pub rounds: Vec<f64>,
    pub median: f64,
}

impl Figure {
    pub(crate) fn new(who: &str, what: &str, unit: &str, rounds: Vec<f64>) -> Self {
        Self {
            who: who.to_owned(),
            what: what.to_owned(),
            unit: unit.to_owned(),
            median: median(&rounds),
            rounds,
        }
    }

    /// The median of one's figures over those of another, round by round.
    pub(crate) fn over(&self, other: &Self) -> f64 {
        let pairs = self.rounds.iter().zip(&other.rounds);
        median(&pairs.map(|(one, other)| one / other).collect::<Vec<_>>())
    }
}

impl Row {
    /// One whose target is about a number.
    pub(crate) fn new(what: &str, target: &str, figures: Vec<Figure>) -> Self {
        Self {
            table: "targets".to_owned(),
            what: what.to_owned(),
            target: target.to_owned(),
            met: None,
            measured: String::new(),
            figures,
        }
    }

    pub(crate) fn judged(mut self, measured: String, met: bool) -> Self {
        (self.measured, self.met) = (measured, Some(met));
        self
    }

    /// One that could not be measured here.
    pub(crate) fn skipped(mut self, why: &str) -> Self {
        why.clone_into(&mut self.measured);
        self
    }

    /// Says it while the others are still measured.
    pub(crate) fn tell(&self) {
        let verdict = match self.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        println!(
            "{}: {} (target: {}) {verdict}",
            self.what, self.measured, self.target
        );
        for it in &self.figures {
            let rounds: Vec<_> = it.rounds.iter().map(|it| number(*it)).collect();
            let (who, what, unit) = (&it.who, &it.what, &it.unit);
            println!(
                "    {who} {what}: {} {unit}  [{}]",
                number(it.median),
                rounds.join(" ")
            );
        }
    }
}

/// To three digits.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        it if it >= 100.0 => format!("{value:.0}"),
        it if it >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => sorted[at],
        _ => f64::midpoint(sorted[at - 1], sorted[at]),
    }
}

/// Writes them with where, when and of what they are, and by which command of cargo.
pub(crate) fn keep(rows: Vec<Row>, path: Option<&Path>, program: &str) {
    let Some(path) = path else { return };
    let results = Results {
        machine: machine(),
        commit: told("git", &["describe", "--always", "--dirty", "--abbrev=10"]),
        date: told("date", &["-u", "+%Y-%m-%d"]),
        command: command(program),
        rows,
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).unwrap();
    }
    let mut text = serde_json::to_string_pretty(&results).unwrap();
    text.push('\n');
    std::fs::write(path, text).unwrap();
}

fn command(program: &str) -> String {
    let args: Vec<_> = std::env::args()
        .skip(1)
        .filter(|it| it != "--bench")
        .collect();
    format!("{program} -- {}", args.join(" "))
}

fn told(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Its processor, cores, memory and kernel.
fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let (cpus, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
    let after = |text: &str, key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        let value = line.and_then(|line| line.split_once(':'));
        value
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let kib: u64 = after(&memory, "MemTotal")
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or(0);
    let cores = cpus
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let kernel = read("/proc/sys/kernel/osrelease");
    let model = after(&cpus, "model name");
    format!(
        "{model}, {cores} cores, {} GiB, Linux {}",
        kib >> 20,
        kernel.trim()
    )
}
