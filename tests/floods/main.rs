//! Attacks on the wire, in frames of our own making, against a daemon of its own process: each ends as HTTP/2 or the
//! daemon says, costs little memory, and disturbs nobody. A test binary of its own, since it measures what the daemon
//! takes while little else runs.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    dead_code,
    reason = "a test ends its tasks with its runtime, fails by panicking, tells what an attack cost, and needs part of \
              the harness"
)]

#[path = "../it/bombs.rs"]
mod bombs;
#[path = "../it/guests.rs"]
mod guests;
#[path = "../it/harness.rs"]
mod harness;
#[path = "../it/process.rs"]
mod process;

mod attacker;
mod target;
mod wire;

mod bodies;
mod burdens;
mod control;
mod headers;
mod keepalive;
mod manifests;
mod resets;
mod silence;
mod windows;
