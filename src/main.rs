//! The `ringfence` command, which leaves everything to [`ringfence::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    ringfence::cli::main(std::env::args_os())
}
