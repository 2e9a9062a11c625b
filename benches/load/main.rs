//! The load program: what a call costs over the wire, beside a floor and peers that are asked in
//! the same run.
//!
//! ```sh
//! cargo bench --bench load -- targets --json docs/performance/targets.json   # the rows of speed and memory
//! cargo bench --bench load -- growth --json docs/performance/growth.json     # what a call costs as things grow
//! cargo bench --bench load -- call --clients 1x16 --beside old=/path/to/ringfence
//! cargo bench --bench load -- counts                                         # what does not depend on the machine
//! cargo bench --bench load -- smoke                                          # a second of each, judged by counts
//! ```
//!
//! Servers are processes of their own. Every server gets the same bytes from the same client, round
//! by round in turn; figures are medians of the rounds, and ratios are of the same round.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    reason = "a program that is looked at while it runs, and fails by panicking; its figures are for people"
)]

mod ask;
#[path = "../valgrind/auxv.rs"]
mod auxv;
mod bars;
mod call;
mod caller;
mod compute;
mod counts;
mod drive;
mod floor;
mod growth;
mod guests;
mod inside;
mod memory;
mod modules;
mod plot;
mod profile;
mod report;
mod results;
mod runs;
mod servers;
mod syscalls;
mod targets;

use clap::Parser;

use self::ask::{Ask, What};

/// What this program is started by.
fn command() -> String {
    match ask::profile_of(&ask::this_program()).as_str() {
        "release" => "cargo bench --bench load".to_owned(),
        profile => format!("cargo bench --profile {profile} --bench load"),
    }
}

fn main() {
    // `cargo bench` adds a flag of its own.
    let ask = Ask::parse_from(std::env::args().filter(|it| it != "--bench"));
    let runtime = || tokio::runtime::Runtime::new().unwrap();
    match ask.what {
        What::Targets(asked) => runtime().block_on(targets::measure(&asked)),
        What::Growth(asked) => runtime().block_on(growth::measure(&asked)),
        What::Call(asked) => runtime().block_on(call::measure(&asked)),
        What::Smoke(asked) => runtime().block_on(call::smoke(&asked)),
        What::Counts(asked) => runtime().block_on(counts::measure(&asked)),
        What::Report(asked) => report::write(&asked),
        What::Floor => runtime().block_on(floor::serve()),
        What::Inside => inside::tell(),
        What::Become(program) => program.exec(),
    }
}
