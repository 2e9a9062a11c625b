//! `ringfence serve`

use std::path::Path;
use std::process::ExitCode;

use clap::Args;

use super::{ConfigArgs, Failure, PROGRAM, runtime_with};
use crate::{app, config, hardening, shutdown, telemetry};

/// Start the daemon.
#[derive(Debug, Args)]
pub(super) struct Serve {
    #[command(flatten)]
    config: ConfigArgs,
    /// Listen there: "host:port" or "unix:/path"; may be repeated
    #[arg(long, value_name = "ADDR")]
    listen: Vec<String>,
}

impl Serve {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let mut overrides = self.config.overrides();
        overrides.listen = self.listen;
        let (config, warnings) =
            app::load_config(&overrides).map_err(|problems| Failure::new(problems.to_string()))?;
        // Before there is any other thread.
        let missing = hardening::apply(&config, &config::credential_files());
        let missing = missing.map_err(Failure::new)?;
        let log = telemetry::start(&config.telemetry).map_err(Failure::new)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        for wall in missing.0 {
            tracing::warn!(wall, "this daemon is not confined as it could be");
        }
        tracing::info!(walls = hardening::state(), "confined");
        let runtime = runtime_with(hardening::on_serving_thread)?;
        let result = runtime.block_on(async {
            // Here, on the one thread that is not confined by seccomp, since it starts threads that start processes.
            let app = app::build(&config, Path::new(PROGRAM)).await?;
            tokio::select! {
                result = app.serve_until(signalled()) => result,
                () = log.report_drops() => Ok(()),
            }
        });
        // Idle connections and guests' file system calls may still hold threads.
        runtime.shutdown_background();
        result.map_err(|error| Failure::new(error.to_string()))?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn signalled() {
    if let Err(error) = shutdown::requested().await {
        tracing::error!(%error, "signals cannot be listened for; only SIGKILL ends this daemon");
        std::future::pending().await
    }
}
