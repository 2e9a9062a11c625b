//! The command line, with one file for each subcommand.

mod address;
mod attach;
mod config;
mod connect;
mod credentials;
mod dial;
mod ending;
mod exec;
mod failure;
mod follow;
mod greeting;
mod health;
mod incident_causes;
mod interrupt;
mod kill;
mod languages;
mod launch;
mod limit_args;
mod load;
mod logs;
mod mcp;
mod module_argument;
mod modules;
mod out_folder;
mod preflight;
mod ps;
mod question;
mod rm;
mod run;
mod send;
mod serve;
mod sessions;
mod stats_json;
mod stats_text;
mod stdin_pump;
mod stdin_source;
mod stdout_reader;
mod token;
mod top;
mod value_parsers;
mod wait_indicator;
mod write_all;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::failure::Failure;
use crate::config::{LogFormat, Overrides, cores};
use crate::model::refusal::printable;
use crate::signals::CaughtSignals;
use crate::{process_limits, sandbox, telemetry};

/// The path of this program's file, which is valid even if another file has taken its name since.
const PROGRAM: &str = "/proc/self/exe";
/// How long an idle blocking thread is kept.
const BLOCKING_THREAD_KEPT: Duration = Duration::from_secs(15);

/// Exit codes that say how a run ended when the guest's own code does not. They follow `timeout(1)`
/// and the shells.
pub mod exit {
    /// The person who was asked did not agree, and nothing was done.
    pub const DECLINED: u8 = 1;
    /// The daemon drained, but left runs that did not end, or answers that did not reach their
    /// callers.
    pub const RUNS_LEFT: u8 = 3;
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
    /// Nobody reads what the command prints (128 + SIGPIPE).
    pub const BROKEN_PIPE: u8 = 141;
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
    ///
    /// SIGTERM and SIGINT drain the daemon: it takes no more runs, waits for the runs in flight
    /// (server.drain_grace), and exits 0. Runs that outlive the grace are cancelled. It exits 3 if
    /// such a run does not end, or if an answer does not reach its caller. A second SIGTERM or
    /// SIGINT ends it at once (143 or 130). During the start, these signals end it with 0. SIGHUP
    /// makes it read tokens, keys and certificates again at once, and log which keys of the
    /// configuration have changed and need a restart. SIGQUIT ends it at once (131). Other signals
    /// are only logged. A daemon that cannot serve exits 125.
    Serve(serve::ServeCommand),
    /// Run a module on a daemon, or on an embedded one that ends with the run
    ///
    /// The guest's standard output and error go to the matching streams, byte for byte, and its
    /// exit code is passed on. A code above 255 becomes 255. If the guest does not end by itself,
    /// one line on standard error says why, and the code is 124 (timed out), 125 (daemon failed),
    /// 126 (refused), 134 (trapped), or 137 (over a limit, or cancelled). If nobody reads the
    /// output any more, the run is cancelled, and the code is 141, without a line. `--output json`
    /// distinguishes these from a guest that exited with the same code. It reports a refused run as
    /// {"error": {"code", "reason", "message", "field", "metadata"}}.
    ///
    /// Standard input is read only when the guest asks for it, so the next program can read what
    /// the guest did not. If the guest ends early, the rest of a file is left for the next reader.
    /// Of a pipe, about as much as the guest read may be lost. --no-stdin gives the guest no input.
    Run(Box<run::RunCommand>),
    /// Execute a program in a language of the daemon
    ///
    /// The program is a file, standard input ("-"), or the text given with -c. The exit code is the
    /// program's own; what else it may be is the same as with `run`.
    Exec(Box<exec::ExecCommand>),
    /// List the languages of a daemon, or add, check and remove those of a configuration
    Languages(languages::LanguagesCommand),
    /// List or close the sessions of a daemon
    ///
    /// A session keeps an interpreter, and with it variables, modules and files, between the
    /// programs that `exec --session` executes.
    Sessions(sessions::SessionsCommand),
    /// Serve an agent: tools by the Model Context Protocol, on standard input and output
    ///
    /// An agent (or the program that it lives in) starts this command, writes requests to its
    /// standard input, and reads the answers from its standard output, one JSON message a line.
    /// The tools run programs and modules on a daemon, read what a run wrote, and list and end
    /// runs. All of it happens within the limits and the tenant that the daemon has for this
    /// command. Standard error has messages for people.
    ///
    /// The command ends with 0 at the end of its standard input, and ends its running calls then. A
    /// daemon that cannot be reached is reported by each call, and the command goes on.
    Mcp(Box<mcp::McpCommand>),
    /// Load a module into a daemon and print its digest
    Load(load::LoadCommand),
    /// List, show or delete the modules that a daemon stores
    Modules(modules::ModulesCommand),
    /// List the runs of a daemon
    Ps(ps::PsCommand),
    /// Print a run's output, and follow it to its end
    ///
    /// Prints the output of a run from its start, or from the event given with --from, and then as
    /// it arrives. The exit code is the same as that of `run`. If the connection breaks, the
    /// command attaches again after the last event that arrived.
    Attach(attach::AttachCommand),
    /// Print what a run has written, and do not follow it
    ///
    /// Prints the output of a run from its start, or from the event given with --from. For a run
    /// that has ended, the exit code is the same as that of `attach`. For a run that goes on, the
    /// command prints what there is so far, says on standard error that the run goes on, and exits
    /// 0.
    Logs(logs::LogsCommand),
    /// Print everything that is known about a run, as JSON
    Inspect(ps::InspectCommand),
    /// Send standard input to a run
    ///
    /// The input of the run has to be open: `run --open-stdin` leaves it so. Sends this command's
    /// standard input as it comes, waits while the guest does not read it, and prints how many
    /// bytes were sent to the run in all. Several may send one after the other. If two send
    /// different input for one place, one of them is refused.
    Send(send::SendCommand),
    /// End runs
    ///
    /// Prints the id of each run that it ended, once that run is gone. A run that had already ended
    /// is reported on standard error, and is not a failure.
    ///
    /// With --label, it ends all runs in flight that have the labels, also those that begin while
    /// it asks. On a terminal it first shows what it would end, and asks; if the answer is no, it
    /// ends nothing and exits 1. Anywhere else it ends runs by label only with --yes.
    Kill(kill::KillCommand),
    /// Delete ended runs, with their output
    ///
    /// Prints the id of each run that it deleted, at most 1,000 of those that match a label or a
    /// time. A run that is not there is reported on standard error, and is not a failure. A run
    /// that was named and has not ended is not deleted, and the exit code is 126 then.
    ///
    /// With --label or --until, it deletes all ended runs that match. On a terminal it first shows
    /// what it would delete, and asks; if the answer is no, it deletes nothing and exits 1.
    /// Anywhere else it deletes such runs only with --yes.
    Rm(rm::RmCommand),
    /// Show what the runs of a daemon come to, again and again
    ///
    /// Shows how busy the daemon is, how many runs there are, how they ended, how long they waited
    /// and took, and a curve of the last ten minutes. Where tenants are configured, the runs are
    /// those of the caller's tenant. On a terminal, the figures are drawn over those before. Where
    /// standard output is none, each report is a block of plain text, after an empty line.
    Top(top::TopCommand),
    /// Ask a daemon whether it takes runs, and exit 0 if it does
    Health(health::HealthCommand),
    /// Make a bearer token and print it, and on standard error its line for the daemon's
    /// `auth.tokens_file`
    Token(token::TokenCommand),
    /// Check or show the configuration
    Config(config::ConfigCommand),
    /// Compile one module for the daemon that started this process
    #[command(name = sandbox::SUBCOMMAND, hide = true)]
    CompileChild,
    /// Print the completion script for a shell
    Completions {
        /// The shell for which the script is
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write one for each subcommand to a folder
    Man {
        /// Write `ringfence.1`, `ringfence-run.1` and so on to this folder
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// The arguments that say where the configuration comes from.
#[derive(Clone, Debug, Default, Args)]
struct ConfigArgs {
    /// Read settings from this file, which override the defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key, overriding all other sources, as in `--set policy.max_timeout=60s`. May be
    /// repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
    set: Vec<(String, String)>,
}

impl ConfigArgs {
    /// Reports whether any of the arguments was given.
    fn is_given(&self) -> bool {
        self.config.is_some() || !self.set.is_empty()
    }

    fn overrides(self) -> Overrides {
        Overrides {
            file: self.config,
            set: self.set,
            environment: true,
            ..Overrides::default()
        }
    }
}

/// Executes the command in `argv`, and returns its exit code.
pub fn main(argv: impl IntoIterator<Item = OsString>) -> ExitCode {
    let argv: Vec<OsString> = argv.into_iter().collect();
    let serves = argv.get(1).is_some_and(|it| it == "serve");
    // A daemon has to catch signals from the very start.
    let signals = serves.then(CaughtSignals::catch);
    process_limits::raise();
    if let Err(why) = process_limits::check_stack() {
        let form = if serves {
            serve::log_format_of_argv(&argv)
        } else {
            LogFormat::Text
        };
        telemetry::print_error(form, &why.to_string());
        return ExitCode::from(exit::FAILED);
    }
    let cli = match parse(&argv) {
        Ok(cli) => cli,
        Err(error) => {
            if serves && error.use_stderr() && serve::log_format_of_argv(&argv) == LogFormat::Json {
                telemetry::print_error(LogFormat::Json, error.to_string().trim_end());
                return ExitCode::from(exit::FAILED);
            }
            return not_parsed(&error, &argv);
        }
    };
    let json = cli.command.prints_json();
    let result = match cli.command {
        Command::Serve(command) => {
            return command.execute(signals.unwrap_or_else(CaughtSignals::catch));
        }
        Command::Run(command) => command.execute(),
        Command::Exec(command) => command.execute(),
        Command::Languages(command) => command.execute(),
        Command::Sessions(command) => command.execute(),
        Command::Mcp(command) => command.execute(),
        Command::Load(command) => command.execute(),
        Command::Modules(command) => command.execute(),
        Command::Ps(command) => command.execute(),
        Command::Attach(command) => command.execute(),
        Command::Logs(command) => command.execute(),
        Command::Inspect(command) => command.execute(),
        Command::Send(command) => command.execute(),
        Command::Kill(command) => command.execute(),
        Command::Rm(command) => command.execute(),
        Command::CompileChild => sandbox::serve_as_child()
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| Failure::new(error.to_string())),
        Command::Top(command) => command.execute(),
        Command::Health(command) => command.execute(),
        Command::Token(command) => command.execute(),
        Command::Config(command) => command.execute(),
        Command::Completions { shell } => completions(shell),
        Command::Man { dir } => man(dir),
    };
    result.unwrap_or_else(|failure| failure.report(json))
}

/// Prints what is wrong with `argv`, or the help that it asks for, and returns the exit code.
fn not_parsed(error: &clap::Error, argv: &[OsString]) -> ExitCode {
    let printed = error.print().and_then(|()| std::io::stdout().flush());
    if error.use_stderr() {
        let mut words = argv.iter().take_while(|word| *word != "--").peekable();
        let mut json = false;
        while let Some(word) = words.next() {
            let next = words.peek();
            json |= word == "--output=json"
                || word == "--output" && next.is_some_and(|next| *next == "json");
        }
        if json {
            let told = error.render().to_string();
            let told = told.trim_start_matches("error: ").split("\n\n").next();
            // A caller who does not read the JSON still has the exit code.
            let _ = print_json(&Failure::new(told.unwrap_or_default()).json());
        }
        // This code is less easily mistaken for a guest's own than clap's 2.
        return ExitCode::from(exit::FAILED);
    }
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => Failure::from(error).report(false),
    }
}

/// Parses the command from `argv` and the environment.
fn parse(argv: &[OsString]) -> Result<Cli, clap::Error> {
    let command = credentials::without_blank_variables(Cli::command());
    let matches = command.try_get_matches_from(argv)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut Cli::command()))
}

impl Command {
    /// Reports whether the command prints JSON, so that its failure is printed as JSON too.
    fn prints_json(&self) -> bool {
        match self {
            Self::Run(command) => command.prints_json(),
            Self::Exec(command) => command.prints_json(),
            Self::Languages(command) => command.prints_json(),
            Self::Sessions(command) => command.prints_json(),
            Self::Load(command) => command.prints_json(),
            Self::Modules(command) => command.prints_json(),
            Self::Ps(command) => command.prints_json(),
            Self::Top(command) => command.prints_json(),
            Self::Health(command) => command.prints_json(),
            Self::Kill(command) => command.prints_json(),
            Self::Rm(command) => command.prints_json(),
            Self::Inspect(_) => true,
            Self::Serve(_)
            | Self::Mcp(_)
            | Self::Attach(_)
            | Self::Logs(_)
            | Self::Send(_)
            | Self::CompileChild
            | Self::Token(_)
            | Self::Config(_)
            | Self::Completions { .. }
            | Self::Man { .. } => false,
        }
    }
}

/// Prints a message to standard error, and ignores an error, since there is nowhere to report it.
fn print_to_stderr(message: &str) {
    let _ = writeln!(std::io::stderr(), "ringfence: {message}");
}

/// Writes to standard output. Where the reader has gone away, as `head` does, the command ends.
fn print(bytes: &[u8]) -> Result<ExitCode, Failure> {
    let mut out = std::io::stdout();
    out.write_all(bytes).and_then(|()| out.flush())?;
    Ok(ExitCode::SUCCESS)
}

/// Prints a JSON value on one line.
fn print_json(value: &impl serde::Serialize) -> Result<ExitCode, Failure> {
    let mut text = serde_json::to_string(value).map_err(|error| Failure::new(error.to_string()))?;
    text.push('\n');
    print(text.as_bytes())
}

/// Reads a whole file, or standard input where the path is "-".
fn read(path: &OsStr) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let read = if path == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
    } else {
        std::fs::read(path).map(|read| bytes = read)
    };
    let told = |error| {
        let path = printable(&path.to_string_lossy());
        Failure::new(format!("cannot read {path}: {error}"))
    };
    read.map_err(told)?;
    Ok(bytes)
}

/// Reports whether a time can be written as RFC 3339 does, which takes a year of four digits, from
/// 1970 on. A daemon may send any time.
fn can_be_written(time: &SystemTime) -> bool {
    const YEAR_10000: u64 = 253_402_300_800;
    time.duration_since(SystemTime::UNIX_EPOCH)
        .is_ok_and(|since| since.as_secs() < YEAR_10000)
}

/// Formats a time of a daemon as RFC 3339 does; `None` where there is none that can be written so.
fn time(time: Option<prost_types::Timestamp>) -> Option<String> {
    let time = SystemTime::try_from(time?).ok().filter(can_be_written)?;
    Some(humantime::format_rfc3339_micros(time).to_string())
}

/// Builds the runtime of a command that talks to a daemon.
fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    preflight::check().map_err(Failure::new)?;
    preflight::check_threads(cores() as u64 + 1).map_err(Failure::new)?;
    runtime_of(|| ())
}

/// Builds a runtime whose threads each call `on_thread` first.
fn runtime_of(on_thread: fn()) -> Result<tokio::runtime::Runtime, Failure> {
    let build = || {
        tokio::runtime::Builder::new_multi_thread()
            // The runtime would otherwise read the number from a variable, and panic at a value
            // that it does not accept.
            .worker_threads(cores())
            .thread_name("ringfence")
            .thread_keep_alive(BLOCKING_THREAD_KEPT)
            .on_thread_start(on_thread)
            .enable_all()
            .build()
    };
    // Since the check of whether threads can be started, others may have taken the last.
    let built = telemetry::catch_host_refusal(build)
        .unwrap_or_else(|| Err(std::io::Error::other("the host refuses a thread")));
    built.map_err(|error| Failure::new(format!("cannot start threads: {error}")))
}

/// Keeps at least one blocking thread alive for as long as the future is polled. Where the host
/// grants no more threads, blocking work waits for this one; without any, the runtime would panic.
async fn keep_blocking_thread() {
    loop {
        // The task does nothing, because it only keeps the thread.
        let _ = tokio::task::spawn_blocking(|| ()).await;
        tokio::time::sleep(BLOCKING_THREAD_KEPT / 3).await;
    }
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
