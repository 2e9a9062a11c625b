//! The options that limit what a run may use, which all commands that start one have.

use std::time::Duration;

use clap::Args;

use super::value_parsers;
use crate::api::proto::{OutputPolicy, Resources};

/// The limits of a run.
#[derive(Debug, Args)]
pub(super) struct LimitArgs {
    /// Limit the wall time, as in "500ms", "10s" or "2m"
    #[arg(long, value_parser = value_parsers::duration)]
    timeout: Option<Duration>,
    /// Limit the linear memory, in pages of 64 KiB. That of an interpreter counts
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    memory_pages: Option<u32>,
    /// Meter the run, and stop it at this much fuel
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    fuel: Option<u64>,
    /// Limit the call stack, in bytes or as in "1MiB"
    #[arg(long, value_name = "SIZE", value_parser = value_parsers::size)]
    stack: Option<u32>,
    /// Limit each output stream, in bytes or as in "1MiB"
    #[arg(long, value_name = "SIZE", value_parser = value_parsers::size)]
    output_limit: Option<u32>,
    /// At the output limit, drop further output and continue, instead of stopping
    #[arg(long)]
    truncate: bool,
}

impl LimitArgs {
    /// Returns the limits that the API calls resources.
    pub(super) fn resources(&self) -> Resources {
        let policy = match self.truncate {
            true => OutputPolicy::Truncate,
            false => OutputPolicy::Stop,
        };
        Resources {
            memory_pages: self.memory_pages,
            fuel_limit: self.fuel,
            stack_size: self.stack,
            output_limit: self.output_limit.map(u64::from),
            output_policy: policy.into(),
        }
    }

    /// Returns the limit on the wall time.
    pub(super) fn timeout(&self) -> Option<prost_types::Duration> {
        self.timeout.and_then(|timeout| timeout.try_into().ok())
    }
}
