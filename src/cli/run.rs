//! `ringfence run`

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use tonic::Streaming;

use super::connect::{Client, Embedded, Link, channel, failure, runs, sandbox};
use super::credentials::Credentials;
use super::ending::{code, conclude, report};
use super::follow::{Over, follow, write};
use super::waiting::{Waiting, sized};
use super::{Failure, exit, key_value, print, print_json, read, runtime, talk};
use crate::api::proto::{
    self, LoadModuleRequest, Mount, OutputPolicy, Resources, RunRequest, RunSpec, RunStreamRequest,
    Security, StreamEvent,
};

/// A module up to this size goes with the run; a larger one is loaded first, which takes larger messages.
const INLINE: usize = 8 << 20;
/// The same for one that is talked to, whose first message is smaller.
const INLINE_INTERACTIVE: usize = 512 << 10;

/// Run a module.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// A file (binary or text), "-" for standard input, or the digest of a loaded module, "sha256:..."
    module: String,
    /// The guest's arguments after its name; with --entry, exactly that function's parameters or arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
    /// Use the daemon at "host:port", "https://host:port" or "unix:/path" rather than one of this command's own
    #[arg(long, value_name = "ADDR", env = "RINGFENCE_SERVER")]
    server: Option<String>,
    #[command(flatten)]
    credentials: Credentials,
    /// Set an environment variable of the guest; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// Show the guest a folder of the daemon's machine; may be repeated
    #[arg(long, value_name = "HOST:GUEST[:ro]", value_parser = mount)]
    mount: Vec<Mount>,
    /// Give the guest this file as standard input, "-" for this command's (the default when that is no terminal)
    #[arg(long, value_name = "FILE")]
    stdin: Option<String>,
    /// Hand this command's standard input to the guest as it comes, rather than whole before it starts
    #[arg(long, short, conflicts_with_all = ["stdin", "no_stream", "output", "idempotency_key"])]
    interactive: bool,
    /// Print the run's id and leave it going; `attach` reads its output, `kill` ends it
    #[arg(long, short, requires = "server", conflicts_with_all = ["interactive", "no_stream", "output"])]
    detach: bool,
    /// Start no second run where one with this key was started
    #[arg(long, value_name = "KEY", requires = "server")]
    idempotency_key: Option<String>,
    /// Wall time, as "500ms", "10s", "2m"
    #[arg(long, value_parser = duration)]
    timeout: Option<Duration>,
    /// Linear memory, in pages of 64 KiB
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    memory_pages: Option<u32>,
    /// Count fuel, and stop at this much
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    fuel: Option<u64>,
    /// Call stack, in bytes or as "1MiB"
    #[arg(long, value_name = "SIZE", value_parser = size)]
    stack: Option<u32>,
    /// Output of each stream, in bytes or as "1MiB"
    #[arg(long, value_name = "SIZE", value_parser = size)]
    output_limit: Option<u32>,
    /// At the output limit, drop the rest and go on, rather than stop
    #[arg(long)]
    truncate: bool,
    /// Call this exported function rather than the module's command
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// The guest directory that relative paths start from
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,
    /// Label the run; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    label: Vec<(String, String)>,
    /// Let the guest import a host function, as "ringfence.log"; may be repeated
    #[arg(long, value_name = "NAME")]
    allow_host_function: Vec<String>,
    /// Provide no WASI
    #[arg(long)]
    no_wasi: bool,
    /// Give the guest a deterministic clock
    #[arg(long)]
    no_clock: bool,
    /// Let the guest connect to the addresses that the daemon's operator grants; a daemon of this command's own
    /// grants all
    #[arg(long)]
    network: bool,
    /// Print output as it is written (the default)
    #[arg(long, overrides_with = "no_stream")]
    stream: bool,
    /// Print output when the run has ended
    #[arg(long, overrides_with = "stream")]
    no_stream: bool,
    /// Print everything as one JSON object rather than the guest's output; implies --no-stream
    #[arg(long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One JSON object: the result, and the output as text, or in base64 where it is none
    Json,
}

impl Run {
    pub(super) fn execute(mut self: Box<Self>) -> Result<ExitCode, Failure> {
        let stdin = self.read_stdin()?;
        let module = self.read_module()?;
        if self.server.is_none() {
            self.check_mounts()?;
        }
        runtime()?.block_on(async {
            match self.server.take() {
                Some(addr) => {
                    let link = channel(&addr, &self.credentials).await?;
                    self.run(link, module, stdin, false).await
                }
                None => {
                    let (daemon, channel) = Embedded::start(self.grants()).await?;
                    let result = self.run(channel, module, stdin, true).await;
                    daemon.end().await;
                    result
                }
            }
        })
    }

    /// What a daemon of our own must grant so that the flags can be honoured.
    fn grants(&self) -> Vec<(String, String)> {
        let mut set = vec![("server.drain_grace".to_owned(), "0s".to_owned())];
        // What is mounted to read inside what is mounted to write is granted writing: a grant of less would forbid the
        // latter.
        let leads = |mount: &Mount| std::fs::canonicalize(&mount.host_path).unwrap_or_default();
        let writable = self.mount.iter().filter(|mount| !mount.read_only);
        let writable: Vec<_> = writable.map(leads).collect();
        let access = |mount: &Mount| match mount.read_only {
            true if !writable.iter().any(|dir| leads(mount).starts_with(dir)) => "read",
            true | false => "write",
        };
        let mounts = self.mount.iter().map(|mount| {
            let access = access(mount);
            format!("{{ host = {:?}, access = {access:?} }}", mount.host_path)
        });
        let mounts: Vec<String> = mounts.collect();
        set.push((
            "policy.mounts".to_owned(),
            format!("[{}]", mounts.join(", ")),
        ));
        if self.network {
            let all = r#"[{ host = "0.0.0.0/0" }, { host = "::/0" }]"#;
            set.push(("policy.network".to_owned(), all.to_owned()));
        }
        set
    }

    /// Runs it on the daemon at the other end of `channel`, which is `embedded` here or serves others too.
    async fn run(
        self,
        channel: Link,
        module: Module,
        stdin: Bytes,
        embedded: bool,
    ) -> Result<ExitCode, Failure> {
        let json = self.prints_json();
        let (interactive, detach) = (self.interactive, self.detach);
        let stream = !self.no_stream && !json;
        let (name, sized) = (module.told(false), module.told(true));
        let waiting = |what: String| {
            if json {
                Waiting::silent()
            } else {
                Waiting::new(what)
            }
        };
        let work = async {
            let loading = if embedded { "compiling" } else { "loading" };
            let module = waiting(format!("{loading} {sized}"))
                .during(module.reference(&mut sandbox(channel.clone()), interactive))
                .await?;
            let spec = self.spec(module, stdin);
            let starting = waiting(if embedded {
                format!("compiling {sized}")
            } else {
                format!("waiting for the run of {name} to start")
            });
            if interactive {
                self::interactive(channel, spec, starting).await
            } else if detach {
                detached(channel, spec, starting).await
            } else if stream {
                streamed(channel, spec, starting).await
            } else {
                let ending = waiting(format!("waiting for the run of {name} to end"));
                captured(channel, spec, json, ending).await
            }
        };
        tokio::select! {
            result = work => result,
            // Dropping the call cancels the run.
            _ = tokio::signal::ctrl_c() => Err(Failure::with(
                exit::KILLED,
                if detach {
                    "interrupted; the run may go on: see `ringfence ps`"
                } else {
                    "cancelled: interrupted"
                },
            )),
        }
    }

    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    fn spec(self, module: proto::run_spec::Module, stdin: Bytes) -> RunSpec {
        let mut args = self.args;
        if self.entry.is_none() {
            let name = match self.module.as_str() {
                "-" => "stdin",
                path => Path::new(path)
                    .file_name()
                    .and_then(|name| name.to_str())
                    .unwrap_or(path),
            };
            args.insert(0, name.to_owned());
        }
        let policy = if self.truncate {
            OutputPolicy::Truncate
        } else {
            OutputPolicy::Stop
        };
        RunSpec {
            module: Some(module),
            entry_point: self.entry.unwrap_or_default(),
            args,
            env: self
                .env
                .into_iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect(),
            stdin,
            working_dir: self.workdir.unwrap_or_default(),
            mounts: self.mount,
            resources: Some(Resources {
                memory_pages: self.memory_pages,
                fuel_limit: self.fuel,
                stack_size: self.stack,
                output_limit: self.output_limit.map(u64::from),
                output_policy: policy.into(),
            }),
            security: Some(Security {
                enable_wasi: self.no_wasi.then_some(false),
                allowed_host_functions: self.allow_host_function,
                enable_network: self.network,
                enable_clock: self.no_clock.then_some(false),
            }),
            timeout: self.timeout.and_then(|timeout| timeout.try_into().ok()),
            labels: self.label.into_iter().collect(),
            detach: self.detach,
            idempotency_key: self.idempotency_key.unwrap_or_default(),
        }
    }

    /// Refuses what is not there on this machine, which a daemon of our own would blame on its configuration.
    fn check_mounts(&self) -> Result<(), Failure> {
        let hosts = self.mount.iter().map(|mount| mount.host_path.as_str());
        match hosts.into_iter().find(|host| !Path::new(host).is_dir()) {
            Some(host) => Err(Failure::new(format!(
                "--mount {host}: is not a folder that exists here"
            ))),
            None => Ok(()),
        }
    }

    fn read_module(&self) -> Result<Module, Failure> {
        if self.module.starts_with("sha256:") {
            return Ok(Module::Digest(self.module.clone()));
        }
        let name = Path::new(&self.module)
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        Ok(Module::Bytes {
            name: name.to_owned(),
            wasm: read(&self.module)?.into(),
        })
    }

    fn read_stdin(&self) -> Result<Bytes, Failure> {
        let piped = || self.module != "-" && !std::io::stdin().is_terminal();
        match &self.stdin {
            None if self.interactive && self.module == "-" => Err(Failure::new(
                "standard input cannot be both the module and the guest's input",
            )),
            None if self.interactive => Ok(Bytes::new()),
            Some(path) if path == "-" && self.module == "-" => Err(Failure::new(
                "standard input cannot be both the module and the guest's input",
            )),
            Some(path) => Ok(read(path)?.into()),
            None if piped() => Ok(read("-")?.into()),
            None => Ok(Bytes::new()),
        }
    }
}

/// What to run.
enum Module {
    Digest(String),
    Bytes { name: String, wasm: Bytes },
}

impl Module {
    /// As a line on a terminal names it, with its size where that is wanted and known.
    fn told(&self, with_size: bool) -> String {
        match self {
            Self::Digest(digest) => sized(digest, None),
            Self::Bytes { name, wasm } => sized(name, with_size.then_some(wasm.len() as u64)),
        }
    }

    /// As a spec names it; one that is too large for the spec's message, which is smaller where the run is
    /// `interactive`, is loaded for that.
    async fn reference(
        self,
        client: &mut Client,
        interactive: bool,
    ) -> Result<proto::run_spec::Module, Failure> {
        let most = if interactive {
            INLINE_INTERACTIVE
        } else {
            INLINE
        };
        match self {
            Self::Digest(digest) => Ok(proto::run_spec::Module::Digest(digest)),
            Self::Bytes { wasm, .. } if wasm.len() <= most => {
                Ok(proto::run_spec::Module::Wasm(wasm))
            }
            Self::Bytes { name, wasm } => {
                let request = LoadModuleRequest {
                    source: Some(proto::load_module_request::Source::Wasm(wasm)),
                    name,
                    ..LoadModuleRequest::default()
                };
                let answer = client.load_module(request).await;
                let answer = answer.map_err(|status| failure(&status))?.into_inner();
                let digest = answer
                    .module
                    .map(|module| module.digest)
                    .unwrap_or_default();
                Ok(proto::run_spec::Module::Digest(digest))
            }
        }
    }
}

async fn streamed(channel: Link, spec: RunSpec, waiting: Waiting) -> Result<ExitCode, Failure> {
    let request = RunStreamRequest { spec: Some(spec) };
    let mut client = sandbox(channel);
    let answer = waiting.during(client.run_stream(request)).await;
    to_the_end(answer.map_err(|status| failure(&status))?.into_inner()).await
}

async fn interactive(channel: Link, spec: RunSpec, waiting: Waiting) -> Result<ExitCode, Failure> {
    let mut client = runs(channel);
    let answer = client.interact(talk::messages(spec));
    let answer = waiting.during(answer).await;
    to_the_end(answer.map_err(|status| failure(&status))?.into_inner()).await
}

async fn to_the_end(mut events: Streaming<StreamEvent>) -> Result<ExitCode, Failure> {
    // It is answered when it has started: nothing is waited for any more.
    match follow(&mut events, &mut 0, Waiting::silent()).await {
        Over::Told(told) => told,
        Over::Broken(Some(status)) => Err(failure(&status)),
        Over::Broken(None) => Err(Failure::unreachable(
            "the connection broke before the run ended",
        )),
    }
}

/// Starts a run, prints its id, and leaves it.
async fn detached(channel: Link, spec: RunSpec, waiting: Waiting) -> Result<ExitCode, Failure> {
    let request = RunStreamRequest { spec: Some(spec) };
    let mut client = sandbox(channel);
    let answer = waiting.during(client.run_stream(request)).await;
    let mut events = answer.map_err(|status| failure(&status))?.into_inner();
    let event = events.message().await.map_err(|status| failure(&status))?;
    let Some(StreamEvent { run_id, .. }) = event else {
        let message = "the connection broke before the run started";
        return Err(Failure::unreachable(message));
    };
    print(format!("{run_id}\n").as_bytes())
}

async fn captured(
    channel: Link,
    spec: RunSpec,
    json: bool,
    waiting: Waiting,
) -> Result<ExitCode, Failure> {
    let request = RunRequest { spec: Some(spec) };
    let mut client = sandbox(channel);
    let answer = waiting.during(client.run(request)).await;
    let answer = answer.map_err(|status| failure(&status))?.into_inner();
    let result = answer.result.unwrap_or_default();
    if json {
        print_json(&report(&result, &answer.stdout, &answer.stderr))?;
        return Ok(ExitCode::from(code(&result)));
    }
    write(std::io::stdout(), &answer.stdout)?;
    write(std::io::stderr(), &answer.stderr)?;
    Ok(conclude(&result))
}

/// Reads HOST:GUEST[:ro]. The host path is made absolute here, where the caller's working directory is known.
fn mount(text: &str) -> Result<Mount, String> {
    const ALLOWED: &str = "allowed is HOST:GUEST or HOST:GUEST:ro";
    let (paths, read_only) = match text.strip_suffix(":ro") {
        Some(paths) => (paths, true),
        None => (text, false),
    };
    let (host, guest) = paths.split_once(':').ok_or(ALLOWED)?;
    if host.is_empty() || guest.is_empty() {
        return Err(ALLOWED.to_owned());
    }
    let host = if host.starts_with('/') {
        host.to_owned()
    } else {
        let path = std::fs::canonicalize(host).map_err(|error| format!("{host}: {error}"))?;
        path.into_os_string()
            .into_string()
            .map_err(|_| "the host path is not UTF-8".to_owned())?
    };
    Ok(Mount {
        host_path: host,
        guest_path: guest.to_owned(),
        read_only,
    })
}

fn size(text: &str) -> Result<u32, String> {
    let size: bytesize::ByteSize = text.parse()?;
    // On the wire zero is the default, which nobody means who writes it.
    match u32::try_from(size.as_u64()) {
        Ok(size) if size > 0 => Ok(size),
        _ => Err("allowed is from 1 byte to less than 4 GiB".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("allowed is more than nothing, as \"500ms\"".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; allowed is as \"500ms\", \"10s\", \"2m\"")),
    }
}
