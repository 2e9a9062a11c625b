//! `ringfence run`

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::connect::{Client, Embedded, connect, failure};
use super::{Failure, complain, exit, key_value, print_json, read, runtime};
use crate::api::proto::stream_event::Event;
use crate::api::proto::{
    self, CancelCause, LoadModuleRequest, Mount, Outcome, OutputPolicy, Resources, RunError,
    RunRequest, RunResult, RunSpec, RunStreamRequest, Security,
};

/// A module up to this size goes with the run; a larger one is loaded first, which takes larger messages.
const INLINE: usize = 8 << 20;

/// Run a module.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// A file (binary or text), "-" for standard input, or the digest of a loaded module, "sha256:..."
    module: String,
    /// The guest's arguments after its name; with --entry, exactly that function's parameters or arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
    /// Use the daemon at "host:port" or "unix:/path" rather than one of this command's own
    #[arg(long, value_name = "ADDR")]
    server: Option<String>,
    /// Set an environment variable of the guest; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// Show the guest a folder of the daemon's machine; may be repeated
    #[arg(long, value_name = "HOST:GUEST[:ro]", value_parser = mount)]
    mount: Vec<Mount>,
    /// Give the guest this file as standard input, "-" for this command's (the default when that is no terminal)
    #[arg(long, value_name = "FILE")]
    stdin: Option<String>,
    /// Wall time, as "500ms", "10s", "2m"
    #[arg(long, value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Linear memory, in pages of 64 KiB
    #[arg(long, value_name = "N")]
    memory_pages: Option<u32>,
    /// Count fuel, and stop at this much
    #[arg(long, value_name = "N")]
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
        runtime()?.block_on(async {
            match self.server.take() {
                Some(addr) => self.run(connect(&addr).await?, module, stdin).await,
                None => {
                    let (daemon, client) = Embedded::start(self.grants()).await?;
                    let result = self.run(client, module, stdin).await;
                    daemon.end().await;
                    result
                }
            }
        })
    }

    /// What a daemon of our own must grant so that the flags can be honoured.
    fn grants(&self) -> Vec<(String, String)> {
        let mut set = vec![("server.drain_grace".to_owned(), "0s".to_owned())];
        let mounts: Vec<String> = self
            .mount
            .iter()
            .map(|mount| {
                let access = if mount.read_only { "read" } else { "write" };
                format!("{{ host = {:?}, access = {access:?} }}", mount.host_path)
            })
            .collect();
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

    async fn run(
        self,
        mut client: Client,
        module: Module,
        stdin: Bytes,
    ) -> Result<ExitCode, Failure> {
        let json = self.output.is_some();
        let stream = !self.no_stream && !json;
        let spec = self.spec(module.reference(&mut client).await?, stdin);
        let work = async {
            if stream {
                streamed(&mut client, spec).await
            } else {
                captured(&mut client, spec, json).await
            }
        };
        tokio::select! {
            result = work => result,
            // Dropping the call cancels the run.
            _ = tokio::signal::ctrl_c() => Err(Failure {
                code: exit::KILLED,
                message: "cancelled: interrupted".to_owned(),
            }),
        }
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
            detach: false,
            idempotency_key: String::new(),
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
    /// As a spec names it; a large one is loaded for that.
    async fn reference(self, client: &mut Client) -> Result<proto::run_spec::Module, Failure> {
        match self {
            Self::Digest(digest) => Ok(proto::run_spec::Module::Digest(digest)),
            Self::Bytes { wasm, .. } if wasm.len() <= INLINE => {
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

async fn streamed(client: &mut Client, spec: RunSpec) -> Result<ExitCode, Failure> {
    let request = RunStreamRequest { spec: Some(spec) };
    let answer = client.run_stream(request).await;
    let mut events = answer.map_err(|status| failure(&status))?.into_inner();
    while let Some(event) = events.message().await.map_err(|status| failure(&status))? {
        match event.event {
            Some(Event::Stdout(bytes)) => write(std::io::stdout(), &bytes)?,
            Some(Event::Stderr(bytes)) => write(std::io::stderr(), &bytes)?,
            Some(Event::Exit(result)) => return Ok(conclude(&result)),
            Some(Event::Error(error)) => return Err(broken(&error)),
            Some(Event::Started(_) | Event::Lost(_)) | None => {}
        }
    }
    Err(Failure::new("the connection broke before the run ended"))
}

async fn captured(client: &mut Client, spec: RunSpec, json: bool) -> Result<ExitCode, Failure> {
    let request = RunRequest { spec: Some(spec) };
    let answer = client.run(request).await;
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

fn write(mut to: impl Write, bytes: &[u8]) -> Result<(), Failure> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure {
            code: exit::KILLED,
            message: "cancelled: nobody reads the output".to_owned(),
        }),
        Err(error) => Err(error.into()),
    }
}

/// Prints what an entry point returned, and says why the run ended where the guest did not end it.
fn conclude(result: &RunResult) -> ExitCode {
    for value in &result.values {
        let text = match value.value {
            Some(proto::value::Value::I32(v)) => v.to_string(),
            Some(proto::value::Value::I64(v)) => v.to_string(),
            Some(proto::value::Value::F32(v)) => v.to_string(),
            Some(proto::value::Value::F64(v)) => v.to_string(),
            None => continue,
        };
        // As for output: a reader that went away needs no values.
        let _ = write(std::io::stdout(), format!("{text}\n").as_bytes());
    }
    match (result.outcome(), result.exit_code) {
        (Outcome::Exited, Some(0..=255)) => {}
        (Outcome::Exited, Some(code)) => complain(&format!("the guest exited with {code}")),
        _ => complain(&why(result)),
    }
    ExitCode::from(code(result))
}

fn code(result: &RunResult) -> u8 {
    match result.outcome() {
        Outcome::Exited => u8::try_from(result.exit_code.unwrap_or_default()).unwrap_or(u8::MAX),
        Outcome::Trapped => exit::TRAPPED,
        Outcome::TimedOut => exit::TIMED_OUT,
        Outcome::MemoryExceeded
        | Outcome::FuelExhausted
        | Outcome::StackOverflow
        | Outcome::OutputExceeded
        | Outcome::Cancelled => exit::KILLED,
        Outcome::Unspecified => exit::FAILED,
    }
}

fn why(result: &RunResult) -> String {
    let trap = result.trap.as_ref();
    let trap = trap
        .map(|trap| format!(": {} ({})", trap.message, trap.code))
        .unwrap_or_default();
    match result.outcome() {
        Outcome::Trapped => format!("the guest trapped{trap}"),
        Outcome::TimedOut => "timed out".to_owned(),
        Outcome::MemoryExceeded => format!("over the memory limit{trap}"),
        Outcome::FuelExhausted => "out of fuel".to_owned(),
        Outcome::StackOverflow => "over the stack limit".to_owned(),
        Outcome::OutputExceeded => "over the output limit".to_owned(),
        Outcome::Cancelled => format!("cancelled: {}", cause(result)),
        Outcome::Exited | Outcome::Unspecified => "the daemon told no outcome".to_owned(),
    }
}

fn cause(result: &RunResult) -> &'static str {
    match result.cancel_cause() {
        CancelCause::CancelRpc => "by a call",
        CancelCause::CallerGone => "the caller went away",
        CancelCause::ReaderStalled => "the reader stalled",
        CancelCause::Draining => "the daemon is ending",
        CancelCause::Unspecified => "no cause told",
    }
}

fn broken(error: &RunError) -> Failure {
    Failure::new(format!(
        "the daemon failed: {}: {}",
        error.reason, error.message
    ))
}

/// A run as JSON, in the names of the API.
fn report(result: &RunResult, stdout: &[u8], stderr: &[u8]) -> Value {
    let seconds = |duration: &Option<prost_types::Duration>| {
        let duration = duration.unwrap_or_default();
        Duration::try_from(duration)
            .unwrap_or_default()
            .as_secs_f64()
    };
    let cancelled = result.outcome() == Outcome::Cancelled;
    let mut report = json!({
        "run_id": result.run_id,
        "module_digest": result.module_digest,
        "outcome": result.outcome().as_str_name(),
        "exit_code": result.exit_code,
        "cancel_cause": cancelled.then(|| result.cancel_cause().as_str_name()),
        "trap": result.trap.as_ref().map(trap),
        "duration_seconds": seconds(&result.duration),
        "cpu_seconds": seconds(&result.cpu_time),
        "fuel_consumed": result.fuel_consumed,
        "memory_used": result.memory_used,
        "memory_denied": result.memory_denied,
        "stdout_bytes": result.stdout_bytes,
        "stderr_bytes": result.stderr_bytes,
        "stdout_truncated": result.stdout_truncated,
        "stderr_truncated": result.stderr_truncated,
        "values": result.values.iter().map(value).collect::<Vec<_>>(),
    });
    for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
        match std::str::from_utf8(bytes) {
            Ok(text) => report[name] = text.into(),
            Err(_) => {
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                report[format!("{name}_base64")] = text.into();
            }
        }
    }
    report
}

fn trap(trap: &proto::Trap) -> Value {
    let frames: Vec<Value> = trap
        .backtrace
        .iter()
        .map(|frame| json!({ "func_index": frame.func_index, "func_name": frame.func_name, "module_offset": frame.module_offset }))
        .collect();
    json!({ "code": trap.code, "message": trap.message, "backtrace": frames })
}

fn value(value: &proto::Value) -> Value {
    match value.value {
        Some(proto::value::Value::I32(v)) => v.into(),
        // A JSON number loses the low bits of a large i64.
        Some(proto::value::Value::I64(v)) => v.to_string().into(),
        Some(proto::value::Value::F32(v)) => f64::from(v).into(),
        Some(proto::value::Value::F64(v)) => v.into(),
        None => Value::Null,
    }
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
    u32::try_from(size.as_u64()).map_err(|_| "allowed is less than 4 GiB".to_owned())
}
