//! What the program is asked to do.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::drive::Clients;

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
    Smoke(Call),
    /// Instructions, allocations, system calls and switches of context of a call.
    Counts(Counts),
    /// Writes tables and plots of results into a document.
    Report(Report),
    /// Serves the floor.
    #[command(hide = true)]
    Floor,
    /// Measures runs in process.
    #[command(hide = true)]
    Inside,
    /// Becomes valgrind.
    #[command(hide = true)]
    Become(Become),
}

/// How it is measured.
#[derive(Args, Clone)]
pub(crate) struct How {
    /// Times that everything is measured, in turn; figures are medians.
    #[arg(long, default_value_t = 5)]
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
    /// The daemon, where it is not the one that cargo built with this program.
    #[arg(long, default_value = env!("CARGO_BIN_EXE_ringfence"))]
    pub daemon: PathBuf,
    /// The floor: a build of this program, where it is not this one. It is to be of the daemon's
    /// profile.
    #[arg(long, default_value_os_t = this_program())]
    pub floor: PathBuf,
}

impl How {
    /// The profile of the daemon.
    pub(crate) fn profile(&self) -> String {
        profile_of(&self.daemon)
    }
}

pub(crate) fn this_program() -> PathBuf {
    std::env::current_exe().expect("this program has a path")
}

/// The profile of what cargo built, by the folder that it puts it into: `target/PROFILE/ringfence`,
/// `target/PROFILE/deps/load-HASH`.
pub(crate) fn profile_of(program: &Path) -> String {
    let mut folders = program.ancestors().skip(1).filter_map(Path::file_name);
    let folder = folders.find(|it| *it != "deps");
    folder.unwrap_or_default().to_string_lossy().into_owned()
}

/// What is asked beside the daemon and the floor.
#[derive(Args, Clone)]
pub(crate) struct Beside {
    /// Another build of the daemon, and the build of this program that is its floor:
    /// NAME=PROGRAM[,FLOOR].
    #[arg(long, value_parser = build)]
    pub beside: Vec<Build>,
    /// Another server of `ringfence.v1.SandboxService/Run` that has the hello: NAME=HOST:PORT. For
    /// a server of another API, `--method` and `--request` say what it is asked.
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

/// A build of the daemon.
#[derive(Clone)]
pub(crate) struct Build {
    pub name: String,
    pub daemon: PathBuf,
    /// The build of this program that has the same profile.
    pub floor: Option<PathBuf>,
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
    /// Clients side by side: so many, or CONNECTIONSxCALLS, such as 1x16 for a connection with 16
    /// calls in flight.
    #[arg(long, value_delimiter = ',', default_value = "1x1,16x1")]
    pub clients: Vec<Clients>,
    /// Calls a second, whether or not the last ones have been answered; each is timed from when it
    /// was due.
    #[arg(long)]
    pub rate: Option<f64>,
}

#[derive(Args)]
pub(crate) struct Counts {
    #[command(flatten)]
    pub how: How,
}

#[derive(Args)]
pub(crate) struct Become {
    pub program: OsString,
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<OsString>,
}

#[derive(Args)]
pub(crate) struct Report {
    /// Files of results.
    pub results: Vec<PathBuf>,
    /// The document whose marked parts are replaced; plots go into the folder of the first results.
    #[arg(long)]
    pub into: PathBuf,
}

fn build(text: &str) -> Result<Build, String> {
    let (name, programs) = pair(text)?;
    let (daemon, floor) = match programs.split_once(',') {
        Some((daemon, floor)) => (daemon, Some(floor.into())),
        None => (programs.as_str(), None),
    };
    Ok(Build {
        name,
        daemon: daemon.into(),
        floor,
    })
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
