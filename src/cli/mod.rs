//! The command line: one file per subcommand.

mod attach;
mod config;
mod connect;
mod credentials;
mod ending;
mod failure;
mod follow;
mod health;
mod load;
mod modules;
mod ps;
mod run;
mod serve;
mod talk;
mod token;
mod waiting;

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use self::failure::Failure;
use crate::config::Overrides;
use crate::sandbox;

/// The file of this program, also where another has taken its name since.
const PROGRAM: &str = "/proc/self/exe";

/// Exit codes that say how a run ended when the guest's own does not, as `timeout(1)` and shells have them.
pub mod exit {
    /// The run timed out.
    pub const TIMED_OUT: u8 = 124;
    /// The daemon failed or cannot be reached.
    pub const FAILED: u8 = 125;
    /// The request was refused.
    pub const REFUSED: u8 = 126;
    /// The guest trapped (128 + SIGABRT).
    pub const TRAPPED: u8 = 134;
    /// The guest went over a limit, or was cancelled (128 + SIGKILL).
    pub const KILLED: u8 = 137;
}

/// Run untrusted WebAssembly under hard limits.
#[derive(Debug, Parser)]
#[command(name = "ringfence", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the daemon
    Serve(serve::Serve),
    /// Run a module: on a daemon, or on one of its own that ends with the run
    ///
    /// The guest's standard output and error go to the matching streams, byte for byte, and its exit code is passed
    /// on. Codes above 255 exit 255. When the guest did not end by itself, one line on standard error says why, and
    /// the code is 124 (timed out), 125 (daemon failed), 126 (refused), 134 (trapped), or 137 (over a limit, or
    /// cancelled); `--output json` tells these from a guest that exited with the same code, and a run that was refused
    /// as {"error": {"code", "reason", "message", "field", "metadata"}}.
    Run(Box<run::Run>),
    /// Load a module into a daemon and print its digest
    Load(load::Load),
    /// List, show or delete the modules that a daemon keeps
    Modules(modules::Modules),
    /// List the runs of a daemon
    Ps(ps::Ps),
    /// Print a run's output, and follow it to its end
    ///
    /// What a run wrote is printed from its start, or from the event that --from says, and then as it comes; the exit
    /// code is that of `run`. Where the connection breaks, the command attaches again after the last event that came.
    Attach(attach::Attach),
    /// Print all that is known of a run, as JSON
    Inspect(ps::Inspect),
    /// End runs
    ///
    /// Prints the id of each that it ended, when that is gone. One that had ended is told on standard error, and is no
    /// failure.
    Kill(ps::Kill),
    /// Ask a daemon whether it takes runs; exits 0 when it does
    Health(health::Health),
    /// Make a bearer token: prints it, and on standard error its line for the daemon's `auth.tokens_file`
    Token(token::Token),
    /// Check or show the configuration
    Config(config::ConfigCommand),
    /// Compile one module for the daemon that started this process, and end
    #[command(name = sandbox::SUBCOMMAND, hide = true)]
    CompileChild,
    /// Print shell completions
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each subcommand into a folder
    Man {
        /// Write `ringfence.1`, `ringfence-run.1` and so on there
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// Where the configuration comes from.
#[derive(Clone, Debug, Default, Args)]
struct ConfigArgs {
    /// Read this file over the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key over all else, as in `--set policy.max_timeout=60s`; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    set: Vec<(String, String)>,
}

impl ConfigArgs {
    fn overrides(self) -> Overrides {
        Overrides {
            file: self.config,
            set: self.set,
            environment: true,
            ..Overrides::default()
        }
    }
}

/// Runs the command that `argv` says, and returns its exit code.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(argv) {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe is not worth a second error.
            let _ = error.print();
            // Usage errors exit 125, which no guest's own code is mistaken for as easily as clap's 2.
            return if error.use_stderr() {
                ExitCode::from(exit::FAILED)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let json = cli.command.prints_json();
    let result = match cli.command {
        Command::Serve(command) => command.execute(),
        Command::Run(command) => command.execute(),
        Command::Load(command) => command.execute(),
        Command::Modules(command) => command.execute(),
        Command::Ps(command) => command.execute(),
        Command::Attach(command) => command.execute(),
        Command::Inspect(command) => command.execute(),
        Command::Kill(command) => command.execute(),
        Command::CompileChild => sandbox::serve_as_child()
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| Failure::new(error.to_string())),
        Command::Health(command) => command.execute(),
        Command::Token(command) => command.execute(),
        Command::Config(command) => command.execute(),
        Command::Completions { shell } => completions(shell),
        Command::Man { dir } => man(dir),
    };
    result.unwrap_or_else(|failure| {
        if json {
            // Whoever does not read it still has the exit code.
            let _ = print_json(&failure.json());
        }
        complain(&failure.message);
        ExitCode::from(failure.code)
    })
}

impl Command {
    /// Whether what it prints is JSON, so that a failure of it is told as JSON too.
    fn prints_json(&self) -> bool {
        match self {
            Self::Run(command) => command.prints_json(),
            Self::Load(command) => command.prints_json(),
            Self::Modules(command) => command.prints_json(),
            Self::Ps(command) => command.prints_json(),
            Self::Health(command) => command.prints_json(),
            Self::Inspect(_) => true,
            Self::Serve(_)
            | Self::Attach(_)
            | Self::Kill(_)
            | Self::CompileChild
            | Self::Token(_)
            | Self::Config(_)
            | Self::Completions { .. }
            | Self::Man { .. } => false,
        }
    }
}

/// Says something on standard error, where somebody may still read it.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "ringfence: {message}");
}

/// Writes to standard output; a reader that went away, as `head` does, is no failure.
fn print(bytes: &[u8]) -> Result<ExitCode, Failure> {
    let mut out = std::io::stdout();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Prints a JSON value on one line.
fn print_json(value: &serde_json::Value) -> Result<ExitCode, Failure> {
    print(format!("{value}\n").as_bytes())
}

/// The file's bytes, or standard input's for "-".
fn read(path: &str) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = if path == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
    } else {
        std::fs::read(path).map(|read| bytes = read)
    };
    read.map_err(|error| Failure::new(format!("cannot read {path}: {error}")))?;
    Ok(bytes)
}

/// Splits `KEY=VALUE`.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("allowed is KEY=VALUE".to_owned()),
    }
}

/// A runtime for a command that talks to a daemon.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    runtime_with(|| ())
}

/// A runtime, each of whose threads begins with `on_thread`.
fn runtime_with(on_thread: fn()) -> Result<tokio::runtime::Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .thread_name("ringfence")
        .on_thread_start(on_thread)
        .enable_all()
        .build();
    runtime.map_err(|error| Failure::new(format!("cannot start threads: {error}")))
}

fn completions(shell: clap_complete::Shell) -> Result<ExitCode, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "ringfence", &mut script);
    print(&script)
}

fn man(dir: Option<PathBuf>) -> Result<ExitCode, Failure> {
    match dir {
        Some(dir) => {
            clap_mangen::generate_to(Cli::command(), dir)?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            print(&page)
        }
    }
}
