//! `ringfence health`

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::connect::{connect, failure};
use super::credentials::Credentials;
use super::{Failure, print, runtime};
use crate::api::proto::{HealthRequest, ServingStatus};

/// Ask a daemon whether it takes runs.
#[derive(Debug, Args)]
pub(super) struct Health {
    /// The daemon, at "host:port" or "unix:/path"
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    server: String,
    #[command(flatten)]
    credentials: Credentials,
    /// How long to wait for an answer
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

impl Health {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let ask = async {
            let mut client = connect(&self.server, &self.credentials).await?;
            client
                .health(HealthRequest {})
                .await
                .map_err(|status| failure(&status))
        };
        let answer = runtime()?
            .block_on(async { tokio::time::timeout(self.timeout, ask).await })
            .map_err(|_| Failure::new("the daemon did not answer in time"))??
            .into_inner();
        let runtime = answer.runtime.clone().unwrap_or_default();
        let (status, code) = match answer.status() {
            ServingStatus::Serving => ("serving", ExitCode::SUCCESS),
            ServingStatus::Draining => ("draining", ExitCode::FAILURE),
            ServingStatus::NotServing | ServingStatus::Unspecified => {
                ("not serving", ExitCode::FAILURE)
            }
        };
        print(
            format!(
                "{status}: ringfence {} on {} ({} {}, {}, compiling {}), {} of {} slots taken, {} waiting\n",
                answer.version,
                answer.instance,
                runtime.name,
                runtime.version,
                answer.pool_mode,
                answer.compile_mode,
                answer.runs_in_flight,
                answer.run_capacity,
                answer.runs_queued,
            )
            .as_bytes(),
        )?;
        Ok(code)
    }
}
