//! docs/programs.md: its tables are written here, the text around them is not.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::guests;
use crate::program::Program;
use crate::run::Figures;

const WHAT: Table = Table {
    mark: "what",
    head: "| program | what it is | from | asked to | at the defaults |\n|---|---|---|---|---|\n",
};
const COSTS: Table = Table {
    mark: "costs",
    head: "| program | size | compile: wall | processor | resident | `compile.memory` | compiled | first run | warm run | pages | stack |\n|---|---|---|---|---|---|---|---|---|---|---|\n",
};

/// A table of the document, between comments with its mark.
struct Table {
    mark: &'static str,
    head: &'static str,
}

impl Table {
    /// What is before it, it with what is told at its head, and what is after it.
    fn split<'a>(&self, document: &'a str) -> Option<[&'a str; 3]> {
        let mark = format!("<!-- {} -->\n", self.mark);
        let start = document.find(&mark)? + mark.len();
        let (before, rest) = document.split_at(start);
        let (table, after) = rest.split_at(rest.find("<!-- end -->")?);
        Some([before, table, after])
    }

    /// Its rows, with what is told at its head.
    fn of<'a>(&self, document: &'a str) -> Option<&'a str> {
        self.split(document).map(|[_, table, _]| table)
    }

    /// The row of a program.
    fn row<'a>(&self, document: &'a str, name: &str) -> Option<&'a str> {
        let start = format!("| {name} |");
        self.of(document)?
            .lines()
            .find(|line| line.starts_with(&start))
    }

    fn replaced(&self, document: &str, told: &str, rows: &[String]) -> String {
        let [before, _, after] = self.split(document).expect("the marks of the table");
        let (head, rows) = (self.head, rows.concat());
        format!("{before}{told}{head}{rows}{after}")
    }
}

fn path() -> PathBuf {
    guests::root().join("docs/programs.md")
}

/// What the document lacks or has wrong; no figure is compared.
pub(crate) fn check(programs: &[Program]) -> Vec<String> {
    let document = std::fs::read_to_string(path()).unwrap_or_default();
    let mut wrong = Vec::new();
    for program in programs {
        let name = program.name;
        let right = WHAT.row(&document, name).map(|row| format!("{row}\n")) == Some(what(program));
        if !right {
            wrong.push(format!("its row on {name} is another one"));
        }
        if !program.calls.is_empty() && COSTS.row(&document, name).is_none() {
            wrong.push(format!("it does not tell what {name} costs"));
        }
    }
    let rows = WHAT.of(&document).unwrap_or_default().lines();
    let told = rows.filter(|row| row.starts_with("| ")).count();
    if told != programs.len() + 1 {
        wrong.push(format!(
            "{told} rows, with the head, for {} programs",
            programs.len()
        ));
    }
    wrong
}

/// Writes what was measured; rows that were not measured stay.
pub(crate) fn write(programs: &[Program], measured: &[(&'static str, Figures)]) {
    let document = std::fs::read_to_string(path()).unwrap();
    let rows: Vec<_> = programs.iter().map(what).collect();
    let next = WHAT.replaced(&document, "", &rows);
    let rows: Vec<_> = programs
        .iter()
        .filter_map(|program| {
            let new = measured.iter().find(|(name, _)| *name == program.name);
            let old = || {
                COSTS
                    .row(&document, program.name)
                    .map(|row| format!("{row}\n"))
            };
            let row = new.map(|(name, figures)| costs(name, figures)).or_else(old);
            let none = || format!("| {}{} |\n", program.name, " | not measured".repeat(10));
            (!program.calls.is_empty()).then(|| row.unwrap_or_else(none))
        })
        .collect();
    let next = COSTS.replaced(&next, &format!("{}\n\n", measured_on()), &rows);
    std::fs::write(path(), next).unwrap();
}

fn what(program: &Program) -> String {
    let asks: Vec<_> = program.calls.iter().map(|call| call.asks).collect();
    let asks = if asks.is_empty() {
        "nothing".to_owned()
    } else {
        asks.join("; ")
    };
    let settings: Vec<_> = program
        .settings
        .iter()
        .map(|(key, value)| format!("`{key} = {value}`"))
        .collect();
    let needs = settings.join(", ");
    let pages = program
        .pages
        .map(|pages| format!("; asks for {pages} pages"));
    let stack = program
        .stack
        .map(|stack| format!("; asks for {} MiB of stack", stack >> 20));
    let outcome = match (program.refused, program.calls.is_empty()) {
        (None, _) => "works".to_owned(),
        (Some(reason), true) => format!("refused, `{reason}`"),
        (Some(reason), false) => format!("refused, `{reason}`; works with {needs}"),
    };
    let (pages, stack) = (pages.unwrap_or_default(), stack.unwrap_or_default());
    let (name, what, from) = (program.name, program.what, program.recipe.told());
    format!("| {name} | {what} | {from} | {asks} | {outcome}{pages}{stack} |\n")
}

fn costs(name: &str, figures: &Figures) -> String {
    let Figures {
        size,
        compile,
        taken,
        artifact,
        first,
        warm,
        pages,
        stack,
    } = figures;
    let cells = [
        name.to_owned(),
        mebibytes(*size),
        seconds(*compile),
        seconds(taken.processor),
        mebibytes(taken.resident << 10),
        mebibytes(taken.space << 10),
        mebibytes(*artifact),
        milliseconds(*first),
        milliseconds(*warm),
        pages.to_string(),
        stack.unwrap_or("not measured").to_owned(),
    ];
    format!("| {} |\n", cells.join(" | "))
}

fn mebibytes(bytes: u64) -> String {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    match mebibytes {
        ..1.0 => format!("{mebibytes:.2} MiB"),
        ..100.0 => format!("{mebibytes:.1} MiB"),
        _ => format!("{mebibytes:.0} MiB"),
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1000.0)
}

/// Where, when, and of which commit.
fn measured_on() -> String {
    let said = |command: &mut Command| {
        let output = command.current_dir(guests::root()).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let date = said(Command::new("date").arg("+%F"));
    let commit = said(Command::new("git").args(["rev-parse", "--short=10", "HEAD"]));
    let processors = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let model = model.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    let cores = std::thread::available_parallelism().unwrap();
    format!("Last measured {date}, commit {commit}, {model}, {cores} cores.")
}
