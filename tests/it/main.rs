//! The daemon from outside: a real server, a real client, real guests.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test ends its tasks with its runtime, and fails by panicking"
)]

#[macro_use]
mod harness;
mod guests;

mod bad_input;
mod cli;
mod cpython;
mod interop;
mod lifecycle;
mod limits;
mod outcomes;
mod spec;
mod streams;
mod wire;
