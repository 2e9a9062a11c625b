//! The daemon from outside: a real server, a real client, real guests.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking"
)]

mod guests;
mod harness;

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
