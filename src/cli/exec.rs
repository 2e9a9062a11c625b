//! The command `ringfence exec`, which executes a program in a language of a daemon, or of an
//! embedded daemon that ends with the program.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use clap::{ArgAction, Args, ValueEnum};
use prost::Message;

use super::connect::{DaemonChannel, EmbeddedDaemon, channel};
use super::credentials::ClientCredentials;
use super::incident_causes::IncidentCauses;
use super::launch::{ENVELOPE, INTERACTION_START, Launch, Printing, or_signalled};
use super::limit_args::LimitArgs;
use super::out_folder::OutFolder;
use super::stdin_source::{GuestStdin, StdinSource};
use super::wait_indicator::WaitIndicator;
use super::{ConfigArgs, Failure, exit, interrupt, read, runtime, value_parsers};
use crate::api::proto::{ExecutionSpec, File};
use crate::model::refusal::printable;

/// Execute a program in a language of a daemon, or of an embedded one that ends with the program.
#[derive(Debug, Args)]
pub(super) struct ExecCommand {
    /// The language, and a version where that matters, as in "python" or "python@3.14"
    language: String,
    /// The program's file, or "-" for standard input, and the arguments of the program: all that
    /// follows FILE, hyphens included
    #[arg(value_names = ["FILE", "ARGS"], num_args = 1.., trailing_var_arg = true)]
    program: Vec<OsString>,
    /// Execute this text as the program, with all that follows it as arguments, hyphens included.
    /// Options of this command come before it
    #[arg(
        long,
        short,
        value_names = ["TEXT", "ARGS"],
        action = ArgAction::Set,
        num_args = 1..,
        allow_hyphen_values = true,
        value_parser = value_parsers::text(),
    )]
    code: Vec<String>,
    /// Use the daemon at "host:port", "https://host:port" or "unix:/path", instead of an embedded
    /// one
    #[arg(long, value_name = "ADDR", env = "RINGFENCE_SERVER")]
    server: Option<String>,
    #[command(flatten)]
    credentials: ClientCredentials,
    #[command(flatten)]
    config: ConfigArgs,
    /// Set an environment variable of the program. May be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
    env: Vec<(String, String)>,
    /// Give the program this file as standard input, or "-" for this command's own (the default)
    #[arg(long, value_name = "FILE")]
    stdin: Option<OsString>,
    /// Give the program no standard input
    #[arg(long, short, conflicts_with = "stdin")]
    no_stdin: bool,
    /// Print the run's id, and let the program continue. `attach` reads its output, and `kill` ends
    /// it. It has no standard input, unless --stdin gives one, which is read whole first
    #[arg(long, short, requires = "server", conflicts_with_all = ["no_stream", "output"])]
    detach: bool,
    /// Start no second run if one was started with this key. Standard input has to be the same too,
    /// and is read whole first. --no-stdin reads none
    #[arg(long, value_name = "KEY", requires = "server")]
    idempotency_key: Option<String>,
    /// Execute the program in this session of the daemon, which keeps its interpreter, and so
    /// variables, modules and files, from program to program. Begins it where there is none
    #[arg(long, value_name = "NAME", requires = "server")]
    session: Option<String>,
    /// Fail if the session is not there, instead of beginning one
    #[arg(long, requires = "session")]
    resume: bool,
    /// What the program may reach: "standard", "hardened", "dev", or another profile of the daemon
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    /// Let the daemon keep nothing of what the program writes once this command was told of the end
    /// or, for a detached run, once it has ended
    #[arg(long)]
    no_keep_output: bool,
    /// Label the run. May be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
    label: Vec<(String, String)>,
    /// Let the program find this file, at GUEST or else in "/" under its own name. May be repeated
    #[arg(long = "file", value_name = "FILE[:GUEST]")]
    files: Vec<OsString>,
    /// The files themselves, once they are read
    #[arg(skip)]
    file_list: Vec<File>,
    /// Write the files that the program leaves in its "/out" to this folder
    #[arg(long, value_name = "DIR", conflicts_with = "detach")]
    out: Option<PathBuf>,
    /// Print output only when the program has ended
    #[arg(long)]
    no_stream: bool,
    /// Print one JSON object instead of the program's output, with the value that it reports.
    /// Implies --no-stream
    #[arg(long, value_name = "FORMAT")]
    output: Option<ExecOutputFormat>,
}

/// A program, and the arguments that it is given.
struct GivenProgram {
    code: String,
    args: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExecOutputFormat {
    /// One JSON object: the result, the value, and the output as text, or in base64 if it is not
    /// text
    Json,
}

impl ExecCommand {
    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    pub(super) fn execute(mut self: Box<Self>) -> Result<ExitCode, Failure> {
        if self.server.is_some() && self.config.is_given() {
            return Err(Failure::new(
                "--config and --set are for the embedded daemon, which --server (or RINGFENCE_SERVER) replaces",
            ));
        }
        let stdin = self.program_stdin()?;
        let program = self.take_program()?;
        self.read_files()?;
        runtime()?.block_on(async {
            let signalled = interrupt::first_signal();
            let detach = self.detach;
            match self.server.take() {
                Some(server) => {
                    let work = async {
                        let link = channel(&server, &self.credentials).await?;
                        self.execute_on(link, program, stdin).await
                    };
                    or_signalled(signalled, detach, work).await
                }
                None => {
                    let causes = IncidentCauses::start();
                    let overrides = self.config.clone().overrides();
                    let started = EmbeddedDaemon::start_with(overrides).await;
                    let (daemon, channel) = started.map_err(|failure| causes.explain(failure))?;
                    let work = self.execute_on(channel, program, stdin);
                    let result = or_signalled(signalled, detach, work).await;
                    let ended = daemon.end().await;
                    // The error that brought the daemon down says more than that a call to it broke
                    // off.
                    let result = result.or_else(|failure| ended.and(Err(failure)));
                    result.map_err(|failure| causes.explain(failure))
                }
            }
        })
    }

    /// Executes the program on the daemon at the other end of `channel`.
    async fn execute_on(
        self,
        channel: DaemonChannel,
        program: GivenProgram,
        stdin: GuestStdin,
    ) -> Result<ExitCode, Failure> {
        let printing = match (self.detach, self.prints_json(), self.no_stream) {
            (true, _, _) => Printing::Detached,
            (false, true, _) => Printing::Json,
            (false, false, true) => Printing::Collected,
            (false, false, false) => Printing::Streamed,
        };
        let language = printable(&self.language);
        let waiting = ["to start", "to end"].map(|what| match self.prints_json() {
            true => WaitIndicator::silent(),
            false => WaitIndicator::new(format!("waiting for the {language} program {what}")),
        });
        let out = self.out.as_deref().map(OutFolder::create).transpose()?;
        let spec = self.spec(program)?;
        let stdin = match stdin {
            // A program that does not fit into the first message of an interaction has its input
            // sent with it.
            GuestStdin::Live(source) if spec.encoded_len() > INTERACTION_START - ENVELOPE => {
                source.read_whole().map(GuestStdin::Whole)?
            }
            GuestStdin::Live(_) | GuestStdin::Whole(_) | GuestStdin::Empty => stdin,
        };
        let launch = Launch::Program(Box::new(spec));
        let code = launch
            .run(channel, stdin, printing, waiting, out.as_ref())
            .await?;
        match out {
            // The program's own failure says more.
            Some(out) if out.has_failed() && code == ExitCode::SUCCESS => {
                Ok(ExitCode::from(exit::FAILED))
            }
            Some(_) | None => Ok(code),
        }
    }

    /// Builds the spec of the execution, without the standard input.
    fn spec(self, program: GivenProgram) -> Result<ExecutionSpec, Failure> {
        let (language, version) = match self.language.split_once('@') {
            Some((language, version)) => (language.to_owned(), version.to_owned()),
            None => (self.language, String::new()),
        };
        let env = self.env.into_iter().map(|(k, v)| format!("{k}={v}"));
        Ok(ExecutionSpec {
            language,
            version,
            code: program.code,
            args: program.args,
            env: env.collect(),
            stdin: Bytes::new(),
            open_stdin: false,
            resources: Some(self.limits.resources()),
            profile: self.profile.unwrap_or_default(),
            timeout: self.limits.timeout(),
            labels: value_parsers::labels(&self.label)?,
            metadata: Default::default(),
            detach: self.detach,
            idempotency_key: self.idempotency_key.unwrap_or_default(),
            files: self.file_list,
            collect: match self.out {
                Some(_) => OutFolder::patterns(),
                None => Vec::new(),
            },
            session: self.session.unwrap_or_default(),
            resume: self.resume,
            keep_output: self.no_keep_output.then_some(false),
        })
    }

    /// Takes the program and its arguments, from what follows -c or the language.
    fn take_program(&mut self) -> Result<GivenProgram, Failure> {
        let mut with_code = std::mem::take(&mut self.code).into_iter();
        let mut with_file = std::mem::take(&mut self.program).into_iter();
        let code = match with_code.next() {
            Some(code) => code,
            None => {
                let file = with_file.next().ok_or_else(|| {
                    Failure::new(
                        "there is no program: name its file, or \"-\" for standard input, or give it with -c",
                    )
                })?;
                let bytes = read(&file)?;
                String::from_utf8(bytes)
                    .map_err(|_| not_text(&PathBuf::from(file).display().to_string()))?
            }
        };
        // What was written together with its text (`-cTEXT`, `--code=TEXT`) leaves the arguments to
        // the place of FILE.
        let with_file = with_file.map(|given| {
            let text = given.into_string();
            text.map_err(|given| not_text(&format!("the argument \"{}\"", given.display())))
        });
        let args = with_code.map(Ok).chain(with_file);
        let mut args = args.collect::<Result<Vec<_>, _>>()?;
        if args.first().is_some_and(|first| first == "--") {
            // It says that the options end, as it does for other commands, although here they have
            // ended already.
            args.remove(0);
        }
        Ok(GivenProgram { code, args })
    }

    /// Reads the files that the program is to find.
    fn read_files(&mut self) -> Result<(), Failure> {
        for given in std::mem::take(&mut self.files) {
            let text = given.into_string().map_err(|_| not_text("--file"))?;
            // An absolute path after the last colon is the guest's.
            let (host, guest) = match text.rsplit_once(":/") {
                Some((host, guest)) => (host.to_owned(), format!("/{guest}")),
                None => {
                    let name = super::module_argument::file_name(text.as_ref());
                    (text, format!("/{name}"))
                }
            };
            let data = read(host.as_ref())?;
            self.file_list.push(File {
                path: guest,
                data: data.into(),
            });
        }
        Ok(())
    }

    /// Chooses the program's standard input, as `run` does.
    fn program_stdin(&self) -> Result<GuestStdin, Failure> {
        let is_whole = self.detach || self.idempotency_key.is_some();
        let is_program = self.code.is_empty() && self.program.first().is_some_and(|it| it == "-");
        let source = match &self.stdin {
            _ if self.no_stdin => None,
            Some(path) if path != "-" => Some(StdinSource::open(path)?),
            Some(_) if is_program => {
                return Err(Failure::new(
                    "standard input cannot be both the program and its input",
                ));
            }
            Some(_) => StdinSource::standard()?,
            None if self.detach || is_program => None,
            None => StdinSource::standard()?,
        };
        match source {
            None => Ok(GuestStdin::Empty),
            Some(source) if is_whole => source.read_whole().map(GuestStdin::Whole),
            Some(source) => Ok(GuestStdin::Live(source)),
        }
    }
}

/// Builds the failure for something that is not text in UTF-8.
fn not_text(what: &str) -> Failure {
    Failure::new(format!("{} is not text in UTF-8", printable(what)))
}
