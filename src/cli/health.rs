//! The command `ringfence health`, which asks a daemon whether it accepts runs.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::connect::{DaemonArgs, connect, status_failure};
use super::{Failure, print, print_json, runtime, value_parsers};
use crate::api::proto::{HealthRequest, HealthResponse, ServingStatus};

/// Ask a daemon whether it takes runs.
#[derive(Debug, Args)]
pub(super) struct HealthCommand {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// How long to wait for an answer
    #[arg(long, default_value = "3s", value_parser = value_parsers::duration_or_zero)]
    timeout: Duration,
    /// Print everything that the daemon reports, instead of one line
    #[arg(long, value_name = "FORMAT")]
    output: Option<HealthOutputFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum HealthOutputFormat {
    /// Print one JSON object
    Json,
}

impl HealthCommand {
    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let ask = async {
            let mut client = connect(&self.daemon).await?;
            client
                .health(HealthRequest {})
                .await
                .map_err(|status| status_failure(&status))
        };
        let answer = runtime()?
            .block_on(async { tokio::time::timeout(self.timeout, ask).await })
            .map_err(|_| self.too_late())??
            .into_inner();
        let runtime = answer.runtime.clone().unwrap_or_default();
        let (status, code) = match answer.status() {
            ServingStatus::Serving => ("serving", ExitCode::SUCCESS),
            ServingStatus::Draining => ("draining", ExitCode::FAILURE),
            ServingStatus::NotServing | ServingStatus::Unspecified => {
                ("not serving", ExitCode::FAILURE)
            }
        };
        if let Some(HealthOutputFormat::Json) = self.output {
            print_json(&health_json(&answer))?;
            return Ok(code);
        }
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

    fn too_late(&self) -> Failure {
        Failure::unreachable(format!(
            "the daemon at {} did not answer within {} (--timeout)",
            self.daemon,
            humantime::format_duration(self.timeout)
        ))
    }
}

/// Formats everything that the daemon reported as JSON, with the names of the API.
fn health_json(answer: &HealthResponse) -> Value {
    let uptime = answer.uptime.unwrap_or_default();
    let uptime = Duration::try_from(uptime).unwrap_or_default();
    json!({
        "status": answer.status().as_str_name(),
        "runtime": answer.runtime.as_ref().map(|it| json!({ "name": it.name, "version": it.version, "features": it.features })),
        "version": answer.version,
        "instance": answer.instance,
        "runs_in_flight": answer.runs_in_flight,
        "runs_queued": answer.runs_queued,
        "run_capacity": answer.run_capacity,
        "uptime_seconds": uptime.as_secs_f64(),
        "pool_mode": answer.pool_mode,
        "compile_mode": answer.compile_mode,
        "hardening": answer.hardening,
        "memory_reserved": answer.memory_reserved,
        "memory_capacity": answer.memory_capacity,
        "compiles_in_flight": answer.compiles_in_flight,
        "compiles_queued": answer.compiles_queued,
        "uploads_in_flight": answer.uploads_in_flight,
        "upload_capacity": answer.upload_capacity,
    })
}
