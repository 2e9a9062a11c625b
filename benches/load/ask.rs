//! What the program is asked to do.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// The load program.
#[derive(Parser)]
pub(crate) struct Ask {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Subcommand)]
pub(crate) enum What {
    /// The rows of speed and memory of the targets.
    Targets(Targets),
    /// What a call costs as things grow.
    Growth(Growth),
    /// Hello by digest: closed loop, or open loop with `--rate`.
    Call(Call),
    /// A second of each, judged by counts and not by time.
    Smoke,
    /// Writes tables and plots of results into a document.
    Report(Report),
    /// Serves the floor.
    #[command(hide = true)]
    Floor,
}

/// How it is measured.
#[derive(Args, Clone)]
pub(crate) struct How {
    /// Times that everything is measured, in turn; figures are medians.
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// How long each is measured in a round.
    #[arg(long, default_value = "3s", value_parser = humantime::parse_duration)]
    pub time: Duration,
    /// Where the results go.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// A setting of the daemon (key=value).
    #[arg(long)]
    pub set: Vec<String>,
}

/// What is asked beside the daemon and the floor.
#[derive(Args, Clone)]
pub(crate) struct Beside {
    /// Another build of the daemon: NAME=PROGRAM.
    #[arg(long, value_parser = pair)]
    pub beside: Vec<(String, String)>,
    /// Another server of `ringfence.v1.SandboxService/Run` that has the hello: NAME=HOST:PORT. For a server of another
    /// API, `--method` and `--request` say what it is asked.
    #[arg(long, value_parser = pair)]
    pub peer: Vec<(String, String)>,
    /// The method that peers are asked, like /pb.Executor/Exec.
    #[arg(long)]
    pub method: Option<String>,
    /// A file with the message that peers are asked.
    #[arg(long)]
    pub request: Option<PathBuf>,
    /// What their answers have in them.
    #[arg(long, default_value = "hello")]
    pub holds: String,
    /// A server that says hello to a GET by HTTP/1.1: NAME=HOST:PORT.
    #[arg(long, value_parser = pair)]
    pub http: Vec<(String, String)>,
    /// The command line of wasmtime.
    #[arg(long, default_value = "wasmtime")]
    pub wasmtime: PathBuf,
}

#[derive(Args)]
pub(crate) struct Targets {
    #[command(flatten)]
    pub how: How,
    #[command(flatten)]
    pub beside: Beside,
    /// A large interpreter, for the restart, with the arguments of a short run after it.
    #[arg(long)]
    pub interpreter: Option<PathBuf>,
    /// Only rows whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
    /// Runs whose growth of memory is looked at.
    #[arg(long, default_value_t = 100_000)]
    pub runs: u64,
}

#[derive(Args)]
pub(crate) struct Growth {
    #[command(flatten)]
    pub how: How,
    #[command(flatten)]
    pub beside: Beside,
    /// Only tables whose name contains this.
    #[arg(long)]
    pub only: Option<String>,
}

#[derive(Args)]
pub(crate) struct Call {
    #[command(flatten)]
    pub how: How,
    #[command(flatten)]
    pub beside: Beside,
    /// Clients side by side.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16])]
    pub clients: Vec<usize>,
    /// Calls a second, whether or not the last ones have been answered; each is timed from when it was due.
    #[arg(long)]
    pub rate: Option<f64>,
}

#[derive(Args)]
pub(crate) struct Report {
    /// Files of results.
    pub results: Vec<PathBuf>,
    /// The document whose marked parts are replaced; plots go into the folder of the first results.
    #[arg(long)]
    pub into: PathBuf,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
