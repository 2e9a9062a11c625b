//! The daemon from outside: a real server, a real client, real guests.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test ends its tasks with its runtime, and fails by panicking"
)]

/// One test for each named case of a parametrised one.
macro_rules! cases {
    ($test:ident: $($case:ident($($arg:expr),* $(,)?)),+ $(,)?) => {
        $(
            #[tokio::test]
            async fn $case() {
                $test($($arg),*).await;
            }
        )+
    };
}

mod bombs;
mod collector;
#[path = "../floods/wire.rs"]
#[expect(
    dead_code,
    reason = "of the frames that attackers write, some are of use here"
)]
mod frames;
mod grpc_web;
mod guests;
mod harness;
mod process;
mod scripted;

mod admin;
mod answers;
mod archive;
mod archive_away;
mod archive_replay;
mod artifacts;
mod attach;
mod audit;
mod auth;
mod bad_input;
mod cancel;
mod cancel_runs;
mod cli;
mod cli_forget;
mod cli_input;
mod cli_kill;
mod cli_languages;
mod cli_pipes;
mod cli_runs;
mod cli_values;
mod compile;
mod compile_fair;
mod compile_lanes;
mod connecting;
mod connections;
mod cpython;
mod credentials;
mod deployed;
mod directories;
mod durable;
mod endings;
mod execution;
mod file_calls;
mod file_times;
mod files;
mod forget;
mod habit;
mod hardening;
mod history;
mod hostcalls;
mod hostile_start;
mod idempotency;
mod interact;
mod interop;
mod jwks;
mod lifecycle;
mod limits;
mod log_lines;
mod machine;
mod machines;
mod machines_logs;
mod machines_network;
mod machines_volumes;
mod manners;
mod mcp;
mod mcp_files;
mod metered;
mod modules;
mod monitoring;
mod objects;
mod otlp;
mod outcomes;
mod page;
mod places;
mod process_limits;
mod processor_time;
mod protos;
mod recorded;
mod registries;
mod returned_memory;
mod runs;
mod send_input;
mod sessions;
mod settings;
mod shapes;
mod signals;
mod spec;
mod stats;
mod streams;
mod tenants;
mod web_listeners;
mod wire;
mod working_dir;
mod writes;
