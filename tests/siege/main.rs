//! The rows of the reliability targets, each against a daemon of its own process.
//!
//! ```sh
//! cargo test --release --test siege                                    # short: a minute, judges counts
//! cargo test --release --test siege -- --full                          # long: says which targets were met
//! cargo test --release --test siege -- --full --soak-runs 200000 soak  # one row of it
//! cargo test --release --test siege -- --full --json reliability.json  # kept, for docs/performance.md
//! ```
//!
//! Times are printed, never judged: they belong to the machine. What is counted is judged in both forms.

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

mod ask;
mod attacks;
#[path = "../it/bombs.rs"]
mod bombs;
mod daemon;
mod drain;
mod figures;
#[path = "../it/guests.rs"]
mod guests;
#[path = "../it/harness.rs"]
mod harness;
mod health;
mod hostile;
mod malformed;
mod neighbour;
mod overload;
mod overshoot;
#[path = "../it/process.rs"]
mod process;
mod raw;
#[path = "../../benches/load/results.rs"]
mod results;
mod soak;
mod vanish;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ask::{Ask, Scale};
use attacks::Attack;
use figures::Report;

fn main() -> ExitCode {
    let ask = match Ask::parse(std::env::args().skip(1).collect()) {
        Ok(ask) => ask,
        Err(problem) => {
            eprintln!("{problem}");
            return ExitCode::FAILURE;
        }
    };
    if ask.list {
        for row in &ask.rows {
            println!("{row}: test");
        }
        return ExitCode::SUCCESS;
    }
    let (mut broken, mut rows) = (Vec::new(), Vec::new());
    for row in &ask.rows {
        let start = Instant::now();
        let report = besiege(row, &ask.scale);
        print!("{report}");
        println!("  {:.1} s\n", start.elapsed().as_secs_f64());
        rows.extend(ask.json.as_deref().map(|path| report.rows(path)));
        if report.is_broken() {
            broken.push(*row);
        }
    }
    let rows: Vec<_> = rows.into_iter().flatten().collect();
    results::keep(
        rows,
        ask.json.as_deref(),
        "cargo test --release --test siege",
    );
    println!("{} rows, broken: {broken:?}", ask.rows.len());
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Runs a row on a runtime of its own, and tells what it found, also when it panics or hangs.
fn besiege(row: &str, scale: &Scale) -> Report {
    let mut report = Report::new(row, scale.full);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let patience = scale.pick(Duration::from_secs(240), Duration::from_secs(6 * 3600));
    let told = &mut report;
    let ended = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async { tokio::time::timeout(patience, walk(row, scale, told)).await })
    }));
    runtime.shutdown_background();
    let end = match ended {
        Ok(Ok(())) => return report,
        Ok(Err(_elapsed)) => "hangs",
        Err(_panic) => "panicked",
    };
    report.count("this row", end, "ends", false);
    report
}

async fn walk(row: &str, scale: &Scale, report: &mut Report) {
    match row {
        "health" => health::row(scale, report).await,
        "overload" => overload::row(scale, report).await,
        "neighbour" => neighbour::row(scale, report).await,
        "answers" => attacks::row(Attack::Answers, scale, report).await,
        "connections" => attacks::row(Attack::Connections, scale, report).await,
        "directories" => attacks::row(Attack::Directories, scale, report).await,
        "files" => attacks::row(Attack::Files, scale, report).await,
        "compiles" => attacks::row(Attack::Compiles, scale, report).await,
        "modules" => attacks::row(Attack::Modules, scale, report).await,
        "overshoot" => overshoot::row(scale, report).await,
        "drain" => drain::row(scale, report).await,
        "vanish" => vanish::row(scale, report).await,
        "malformed" => malformed::row(scale, report).await,
        "soak" => soak::row(scale, report).await,
        other => panic!("no row {other}"),
    }
}
