//! The load program: what a call costs over the wire, beside a floor and peers that are asked in the same run.
//!
//! ```sh
//! cargo bench --bench load -- targets --json docs/performance/targets.json   # the rows of speed and memory
//! cargo bench --bench load -- growth --json docs/performance/growth.json     # what a call costs as things grow
//! cargo bench --bench load -- call --clients 16 --beside old=/path/to/ringfence
//! cargo bench --bench load -- smoke                                          # a second of each, judged by counts
//! ```
//!
//! Servers are processes of their own. Every server gets the same bytes from the same client, round by round in turn;
//! figures are medians of the rounds, and ratios are of the same round.

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
mod call;
mod caller;
mod compute;
mod drive;
mod floor;
mod growth;
mod guests;
mod memory;
mod modules;
mod plot;
mod report;
mod results;
mod runs;
mod servers;
mod targets;

use clap::Parser;

use self::ask::{Ask, What};

/// What this program is started by.
const COMMAND: &str = "cargo bench --bench load";

fn main() {
    // `cargo bench` adds a flag of its own.
    let ask = Ask::parse_from(std::env::args().filter(|it| it != "--bench"));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        match ask.what {
            What::Floor => floor::serve().await,
            What::Targets(asked) => targets::measure(&asked).await,
            What::Growth(asked) => growth::measure(&asked).await,
            What::Call(asked) => call::measure(&asked).await,
            What::Smoke => call::smoke().await,
            What::Report(asked) => report::write(&asked),
        }
    });
}
