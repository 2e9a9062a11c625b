//! The command `ringfence mcp`, which serves an agent on standard input and output by the Model
//! Context Protocol, with tools that use a daemon.

mod arguments;
mod calls;
mod daemon_link;
mod listing;
mod module_folder;
mod output_slice;
mod report;
mod returned_files;
mod schema;
mod server;
mod tool_settings;
mod transport;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use rmcp::service::ServerInitializeError;
use rmcp::{ServiceExt, service::QuitReason};

use self::daemon_link::DaemonLink;
use self::module_folder::ModuleFolder;
use self::server::ToolServer;
use self::tool_settings::ToolSettings;
use self::transport::LineTransport;
use super::connect::{self, EmbeddedDaemon};
use super::credentials::ClientCredentials;
use super::incident_causes::IncidentCauses;
use super::launch::or_signalled;
use super::stdout_reader::stdout_reader_gone;
use super::{ConfigArgs, Failure, interrupt, runtime, value_parsers};

/// The least output in bytes that `--max-output` can set: less could not hold a few lines.
const LEAST_OUTPUT: u32 = 1 << 10;

/// Serve an agent by the Model Context Protocol, on standard input and output.
#[derive(Debug, Args)]
pub(super) struct McpCommand {
    /// Use the daemon at "host:port", "https://host:port" or "unix:/path", instead of an embedded
    /// one
    #[arg(long, value_name = "ADDR", env = "RINGFENCE_SERVER")]
    server: Option<String>,
    #[command(flatten)]
    credentials: ClientCredentials,
    #[command(flatten)]
    config: ConfigArgs,
    /// Label all runs that the agent starts, so that they can be selected. May be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
    label: Vec<(String, String)>,
    /// Limit the wall time of each run, as in "10s". The agent may ask for less, and more is
    /// refused. Without it, the default and the maximum of the daemon hold
    #[arg(long, value_parser = value_parsers::duration)]
    timeout: Option<Duration>,
    /// Give the agent at most this much output in one answer, in bytes or as in "64KiB". It can
    /// read the rest in pieces
    #[arg(long, value_name = "SIZE", value_parser = max_output, default_value = "32KiB")]
    max_output: u32,
    /// Let the agent run modules that are files in this folder or below it. Without it, the agent
    /// can name no file of this machine
    #[arg(long, value_name = "DIR")]
    module_dir: Option<PathBuf>,
}

impl McpCommand {
    pub(super) fn execute(mut self: Box<Self>) -> Result<ExitCode, Failure> {
        if self.server.is_some() && self.config.is_given() {
            return Err(Failure::new(
                "--config and --set are for the embedded daemon, which --server (or RINGFENCE_SERVER) replaces",
            ));
        }
        let server = self.server.take();
        if let Some(server) = &server {
            // What is wrong with the flags is no matter of the agent.
            connect::check(server, &self.credentials)?;
        }
        let settings = ToolSettings {
            labels: value_parsers::labels(&self.label)?,
            timeout: self.timeout,
            max_output: usize::try_from(self.max_output).unwrap_or(usize::MAX),
            modules: self.module_dir.take().map(ModuleFolder::open).transpose()?,
        };
        runtime()?.block_on(async {
            let signalled = interrupt::first_signal();
            match server {
                Some(server) => {
                    let link = DaemonLink::remote(server, self.credentials);
                    or_signalled(signalled, false, serve(link, settings)).await
                }
                None => {
                    let causes = IncidentCauses::start();
                    let started = EmbeddedDaemon::start_with(self.config.overrides()).await;
                    let (daemon, channel) = started.map_err(|failure| causes.explain(failure))?;
                    let link = DaemonLink::embedded(channel, causes.clone());
                    let result = or_signalled(signalled, false, serve(link, settings)).await;
                    let ended = daemon.end().await;
                    let result = result.or_else(|failure| ended.and(Err(failure)));
                    result.map_err(|failure| causes.explain(failure))
                }
            }
        })
    }
}

/// Serves the agent until it closes standard input.
async fn serve(link: DaemonLink, settings: ToolSettings) -> Result<ExitCode, Failure> {
    let (transport, ended) = LineTransport::start()?;
    let server = ToolServer::new(link, settings, ended);
    let served = async {
        let running = match server.serve(transport).await {
            Ok(running) => running,
            // The agent may end it at any time.
            Err(ServerInitializeError::ConnectionClosed(_)) => return Ok(ExitCode::SUCCESS),
            Err(ServerInitializeError::ExpectedInitializeRequest(_)) => {
                return Err(Failure::new(
                    "the agent broke the protocol: its first message was not the request \"initialize\"",
                ));
            }
            Err(error) => {
                return Err(Failure::new(format!("the agent was not served: {error}")));
            }
        };
        match running.waiting().await {
            Ok(QuitReason::JoinError(error)) | Err(error) => {
                Err(Failure::new(format!("serving the agent failed: {error}")))
            }
            Ok(_) => Ok(ExitCode::SUCCESS),
        }
    };
    tokio::select! {
        served = served => served,
        // Without this, the runs of an agent that died with its standard input open would go on.
        () = stdout_reader_gone() => Err(Failure::broken_pipe()),
    }
}

/// Parses the size of `--max-output`.
fn max_output(text: &str) -> Result<u32, String> {
    match value_parsers::size(text)? {
        bytes if bytes < LEAST_OUTPUT => Err(format!("it must be at least {LEAST_OUTPUT} bytes")),
        bytes => Ok(bytes),
    }
}
