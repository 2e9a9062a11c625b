//! The command `ringfence config`, which checks or prints the configuration.

use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::{ConfigArgs, Failure, print, print_to_stderr};
use crate::app;

/// Check or show the configuration.
#[derive(Debug, Args)]
pub(super) struct ConfigCommand {
    #[command(subcommand)]
    action: ConfigAction,
}

#[derive(Debug, Subcommand)]
enum ConfigAction {
    /// Check the configuration, and report all errors at once
    Check(ConfigArgs),
    /// Print the configuration in force, from defaults, file, environment and flags
    Show(ConfigArgs),
}

impl ConfigCommand {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let (args, show) = match self.action {
            ConfigAction::Check(args) => (args, false),
            ConfigAction::Show(args) => (args, true),
        };
        let (config, warnings) = app::load_config(&args.overrides())
            .map_err(|problems| Failure::with(1, problems.to_string()))?;
        for warning in warnings {
            print_to_stderr(&warning);
        }
        if show {
            let text = toml::to_string(&config).map_err(|error| Failure::new(error.to_string()))?;
            print(text.as_bytes())
        } else {
            print(b"the configuration is valid\n")
        }
    }
}
