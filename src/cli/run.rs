//! The command `ringfence run`, which runs a module on a daemon, or on an embedded daemon that ends
//! with the run.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use prost::Message;

use super::connect::{DaemonChannel, EmbeddedDaemon, channel, sandbox_client};
use super::credentials::ClientCredentials;
use super::incident_causes::IncidentCauses;
use super::launch::{ENVELOPE, INTERACTION_START, Launch, Printing, or_signalled};
use super::limit_args::LimitArgs;
use super::module_argument::ModuleArgument;
use super::stdin_source::{GuestStdin, StdinSource};
use super::wait_indicator::WaitIndicator;
use super::{Failure, interrupt, module_argument, runtime, value_parsers};
use crate::api::proto::{Mount, RunSpec, Security};
use crate::config::SettingValue;
use crate::model::refusal::printable;

/// Largest module in bytes that is sent with the run. A larger one is loaded first, which allows
/// larger messages.
const INLINE: usize = 8 << 20;

/// Run a module on a daemon, or on an embedded one that ends with the run.
#[derive(Debug, Args)]
pub(super) struct RunCommand {
    /// A file (binary or text), "-" for standard input, or the digest of a loaded module
    /// ("sha256:..."). Put "--" before a file whose name begins with "-"
    module: OsString,
    /// The guest's arguments, after its name. With --entry, exactly the parameters or arguments of
    /// that function
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_parser = value_parsers::text())]
    args: Vec<String>,
    /// Use the daemon at "host:port", "https://host:port" or "unix:/path", instead of an embedded
    /// one
    #[arg(long, value_name = "ADDR", env = "RINGFENCE_SERVER")]
    server: Option<String>,
    #[command(flatten)]
    credentials: ClientCredentials,
    /// Set an environment variable of the guest. May be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
    env: Vec<(String, String)>,
    /// Show a folder of the daemon's machine to the guest, at the absolute path GUEST. May be
    /// repeated
    #[arg(long, value_name = "HOST:GUEST[:ro]", value_parser = value_parsers::mount())]
    mount: Vec<Mount>,
    /// Give the guest this file as standard input, or "-" for this command's own (the default). It
    /// is read as the guest asks for it
    #[arg(long, value_name = "FILE")]
    stdin: Option<OsString>,
    /// Give the guest no standard input
    #[arg(long, short, conflicts_with_all = ["stdin", "interactive"])]
    no_stdin: bool,
    /// Pass this command's standard input to the guest as it arrives (the default)
    #[arg(long, short, conflicts_with_all = ["stdin", "no_stream", "output", "idempotency_key"])]
    interactive: bool,
    /// Print the run's id, and let the run continue. `attach` reads its output, and `kill` ends it.
    /// The guest has no standard input, unless --stdin gives one, which is read whole first, or
    /// --open-stdin lets others send it
    #[arg(long, short, requires = "server", conflicts_with_all = ["interactive", "no_stream", "output"])]
    detach: bool,
    /// Leave the guest's standard input open, so that `send` can send it, and end it. The guest
    /// gets none from this command, unless --stdin gives one, which is read whole first
    #[arg(long, requires = "server", conflicts_with = "interactive")]
    open_stdin: bool,
    /// Start no second run if one was started with this key. Standard input has to be the same too,
    /// and is read whole first. --no-stdin reads none
    #[arg(long, value_name = "KEY", requires = "server")]
    idempotency_key: Option<String>,
    #[command(flatten)]
    limits: LimitArgs,
    /// Call this exported function instead of the module's command
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// The guest directory from which relative paths start
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Let the daemon keep nothing of what the guest writes once this command was told of the end
    /// or, for a detached run, once it has ended
    #[arg(long)]
    no_keep_output: bool,
    /// Label the run. May be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
    label: Vec<(String, String)>,
    /// Let the guest import a host function, such as "ringfence.log". May be repeated
    #[arg(long, value_name = "NAME")]
    allow_host_function: Vec<String>,
    /// Do not provide WASI to the guest
    #[arg(long)]
    no_wasi: bool,
    /// Give the guest a deterministic clock
    #[arg(long)]
    no_clock: bool,
    /// Let the guest connect to the addresses that the daemon's operator grants. An embedded daemon
    /// grants all
    #[arg(long)]
    network: bool,
    /// Print output as it is written (the default)
    #[arg(long, overrides_with = "no_stream")]
    stream: bool,
    /// Print output only when the run has ended
    #[arg(long, overrides_with = "stream")]
    no_stream: bool,
    /// Print one JSON object instead of the guest's output. Implies --no-stream
    #[arg(long, value_name = "FORMAT")]
    output: Option<RunOutputFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RunOutputFormat {
    /// One JSON object: the result, and the output as text, or in base64 if it is not text
    Json,
}

impl RunCommand {
    pub(super) fn execute(mut self: Box<Self>) -> Result<ExitCode, Failure> {
        // An argument that names a missing file is reported before anything is read.
        let stdin = self.guest_stdin()?;
        let module = ModuleArgument::read(&self.module)?;
        if self.server.is_none() {
            self.check_mounts()?;
        }
        runtime()?.block_on(async {
            let signalled = interrupt::first_signal();
            let detach = self.detach;
            match self.server.take() {
                Some(addr) => {
                    let work = async {
                        let link = channel(&addr, &self.credentials).await?;
                        self.run_on(link, module, stdin, false).await
                    };
                    or_signalled(signalled, detach, work).await
                }
                None => {
                    let causes = IncidentCauses::start();
                    let started = EmbeddedDaemon::start(self.grants()).await;
                    let (daemon, channel) = started.map_err(|failure| causes.explain(failure))?;
                    let result =
                        or_signalled(signalled, detach, self.run_on(channel, module, stdin, true))
                            .await;
                    let ended = daemon.end().await;
                    // The error that brought the daemon down says more than that a call to it broke
                    // off.
                    let result = result.or_else(|failure| ended.and(Err(failure)));
                    result.map_err(|failure| causes.explain(failure))
                }
            }
        })
    }

    /// Returns the settings by which the embedded daemon grants everything that the flags ask for.
    fn grants(&self) -> Vec<(String, SettingValue)> {
        let mut set = vec![("server.drain_grace".to_owned(), "0s".into())];
        // A read-only mount inside a writable one is granted writing: granting less would forbid
        // the writable mount.
        let leads = |mount: &Mount| std::fs::canonicalize(&mount.host_path).unwrap_or_default();
        let writable = self.mount.iter().filter(|mount| !mount.read_only);
        let writable: Vec<_> = writable.map(leads).collect();
        let access = |mount: &Mount| match mount.read_only {
            true if !writable.iter().any(|dir| leads(mount).starts_with(dir)) => "read",
            true | false => "write",
        };
        let mounts = self.mount.iter().map(|mount| {
            table([
                ("host", mount.host_path.as_str()),
                ("access", access(mount)),
            ])
        });
        let mounts: Vec<SettingValue> = mounts.collect();
        set.push(("policy.mounts".to_owned(), mounts.into()));
        if self.network {
            let all = ["0.0.0.0/0", "::/0"].map(|host| table([("host", host)]));
            set.push(("policy.network".to_owned(), all.to_vec().into()));
        }
        set
    }

    /// Executes the module on the daemon at the other end of `channel`. That daemon is `embedded`
    /// in this process, or serves others too.
    async fn run_on(
        self,
        channel: DaemonChannel,
        module: ModuleArgument,
        stdin: GuestStdin,
        embedded: bool,
    ) -> Result<ExitCode, Failure> {
        let json = self.prints_json();
        let detach = self.detach;
        let streams = !self.no_stream;
        let (name, sized) = (module.told(false), module.told(true));
        let waiting = |what: String| {
            if json {
                WaitIndicator::silent()
            } else {
                WaitIndicator::new(what)
            }
        };
        let loading = if embedded { "compiling" } else { "loading" };
        let mut spec = self.spec()?;
        let inline = match stdin {
            GuestStdin::Live(_) => INTERACTION_START.saturating_sub(spec.encoded_len() + ENVELOPE),
            GuestStdin::Empty | GuestStdin::Whole(_) => INLINE,
        };
        let referred = waiting(format!("{loading} {sized}"))
            .during(module.reference(&mut sandbox_client(channel.clone()), inline))
            .await?;
        spec.module = Some(referred);
        let starting = waiting(if embedded {
            format!("compiling {sized}")
        } else {
            format!("waiting for the run of {name} to start")
        });
        let ending = waiting(format!("waiting for the run of {name} to end"));
        let printing = match (detach, json, streams) {
            (true, _, _) => Printing::Detached,
            (false, true, _) => Printing::Json,
            (false, false, true) => Printing::Streamed,
            (false, false, false) => Printing::Collected,
        };
        let launch = Launch::Module(Box::new(spec));
        let waiting = [starting, ending];
        launch.run(channel, stdin, printing, waiting, None).await
    }

    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    /// Builds the spec of the run, without the module and the standard input.
    fn spec(self) -> Result<RunSpec, Failure> {
        let mut args = self.args;
        if self.entry.is_none() {
            let name = if self.module == "-" {
                "stdin".to_owned()
            } else {
                module_argument::file_name(&self.module)
            };
            args.insert(0, name);
        }
        Ok(RunSpec {
            module: None,
            entry_point: self.entry.unwrap_or_default(),
            args,
            env: self
                .env
                .into_iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect(),
            stdin: Bytes::new(),
            open_stdin: self.open_stdin,
            working_dir: self.workdir.unwrap_or_default(),
            mounts: self.mount,
            resources: Some(self.limits.resources()),
            security: Some(Security {
                enable_wasi: self.no_wasi.then_some(false),
                allowed_host_functions: self.allow_host_function,
                enable_network: self.network,
                enable_clock: self.no_clock.then_some(false),
            }),
            timeout: self.limits.timeout(),
            labels: value_parsers::labels(&self.label)?,
            detach: self.detach,
            idempotency_key: self.idempotency_key.unwrap_or_default(),
            files: Vec::new(),
            collect: Vec::new(),
            keep_output: self.no_keep_output.then_some(false),
        })
    }

    /// Refuses mounts of folders that do not exist on this machine, because the embedded daemon
    /// would blame its configuration for them.
    fn check_mounts(&self) -> Result<(), Failure> {
        let hosts = self.mount.iter().map(|mount| mount.host_path.as_str());
        match hosts.into_iter().find(|host| !Path::new(host).is_dir()) {
            Some(host) => Err(Failure::new(format!(
                "--mount {}: there is no such folder on this host",
                printable(host)
            ))),
            None => Ok(()),
        }
    }

    /// Chooses the guest's standard input. It has to be read whole if there is an idempotency key,
    /// if the run outlives this command, or if others send the rest. A detached run gets this
    /// command's standard input only on request, because nobody wants a loop's input to go to each
    /// run that it starts in the background.
    fn guest_stdin(&self) -> Result<GuestStdin, Failure> {
        let is_whole = self.detach || self.open_stdin || self.idempotency_key.is_some();
        let from_module = self.module == "-";
        let source = match &self.stdin {
            _ if self.no_stdin => None,
            Some(path) if path != "-" => Some(StdinSource::open(path)?),
            Some(_) | None if from_module && (self.interactive || self.stdin.is_some()) => {
                return Err(Failure::new(
                    "standard input cannot be both the module and the guest's input",
                ));
            }
            Some(_) => StdinSource::standard()?,
            // Nobody is there to read it.
            None if self.detach || self.open_stdin || from_module || self.no_wasi => None,
            None => StdinSource::standard()?,
        };
        match source {
            None => Ok(GuestStdin::Empty),
            Some(source) if is_whole => source.read_whole().map(GuestStdin::Whole),
            Some(source) => Ok(GuestStdin::Live(source)),
        }
    }
}

/// Builds a table of configuration settings from keys and values.
fn table<const N: usize>(entries: [(&str, &str); N]) -> SettingValue {
    let entries = entries.map(|(key, value)| (key, SettingValue::from(value)));
    std::collections::BTreeMap::from(entries).into()
}
