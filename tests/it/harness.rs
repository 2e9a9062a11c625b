//! A real daemon on a port of its own, a real client, and short ways to say what a run should be.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfence::api::proto::module_service_client::ModuleServiceClient;
use ringfence::api::proto::run_service_client::RunServiceClient;
use ringfence::api::proto::run_spec::Module;
use ringfence::api::proto::sandbox_service_client::SandboxServiceClient;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    AttachRunRequest, GetRunRequest, HealthResponse, ListRunsRequest, ListRunsResponse,
    LoadModuleRequest, LoadModuleResponse, Outcome, Resources, RunInfo, RunRequest, RunResponse,
    RunResult, RunSpec, RunStreamRequest, Security, StreamEvent, load_module_request,
};
use ringfence::app;
use ringfence::app::Probe;
use ringfence::config::Overrides;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt;

/// Longer than anything that is waited for takes: what comes later never comes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) type Client = SandboxServiceClient<Channel>;
pub(crate) type Runs = RunServiceClient<Channel>;
pub(crate) type Modules = ModuleServiceClient<Channel>;

/// A daemon in this process, serving on a port of its own.
pub(crate) struct Daemon {
    pub client: Client,
    pub addr: String,
    /// Of all its listeners.
    pub addrs: Vec<String>,
    /// Of its admin listener; empty where it has none.
    pub admin: String,
    pub probe: Probe,
    stop: Option<oneshot::Sender<()>>,
    served: JoinHandle<Result<(), app::AppError>>,
}

impl Daemon {
    /// With the defaults.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With `set` over the defaults.
    pub(crate) async fn with(set: &[(&str, &str)]) -> Self {
        Self::listening("127.0.0.1:0", set).await
    }

    /// On `listen`.
    pub(crate) async fn listening(listen: &str, set: &[(&str, &str)]) -> Self {
        Self::overriding(Overrides::default(), listen, set).await
    }

    /// With a file over the defaults.
    pub(crate) async fn configured(file: &std::path::Path) -> Self {
        let overrides = Overrides {
            file: Some(file.to_owned()),
            ..Overrides::default()
        };
        Self::overriding(overrides, "127.0.0.1:0", &[]).await
    }

    async fn overriding(mut overrides: Overrides, listen: &str, set: &[(&str, &str)]) -> Self {
        let mut add = |key: &str, value: &str| overrides.set.push((key.into(), value.into()));
        add("listen", &format!("[{listen:?}]"));
        add("admission.slots", "32");
        add("server.instance", "test");
        for (key, value) in set {
            add(key, value);
        }
        let (config, _) = app::load_config(&overrides).expect("the configuration is valid");
        let app = app::build(&config, program())
            .await
            .expect("the daemon builds");
        let addrs: Vec<_> = app.addrs().iter().map(ToString::to_string).collect();
        let addr = addrs[0].clone();
        let admin = app.admin_addrs().first().map(ToString::to_string);
        let probe = app.probe();
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(app.serve_until(async {
            let _ = stopped.await;
        }));
        let client = connect(&addr).await;
        until_serving(&client).await;
        Self {
            client,
            addr,
            addrs,
            admin: admin.unwrap_or_default(),
            probe,
            stop: Some(stop),
            served,
        }
    }

    /// Asks it to drain.
    pub(crate) fn drain(&mut self) {
        drop(self.stop.take());
    }

    /// What drains it when it is dropped.
    pub(crate) fn take_stop(&mut self) -> Option<oneshot::Sender<()>> {
        self.stop.take()
    }

    /// Waits for it to have ended.
    pub(crate) async fn ended(self) -> Result<(), app::AppError> {
        drop(self.client);
        self.served.await.expect("serving does not panic")
    }

    /// Runs `spec`.
    pub(crate) async fn run(&self, spec: RunSpec) -> Result<RunResponse, Status> {
        let request = RunRequest { spec: Some(spec) };
        let answer = self.client.clone().run(request).await?;
        Ok(answer.into_inner())
    }

    /// Runs `spec`, which is not refused.
    pub(crate) async fn ran(&self, spec: RunSpec) -> Ran {
        let answer = self.run(spec).await.expect("the run is not refused");
        Ran::new(answer)
    }

    /// Runs `spec`, which is refused.
    pub(crate) async fn refused(&self, spec: RunSpec) -> Refused {
        match self.run(spec).await {
            Ok(answer) => panic!("not refused: {answer:?}"),
            Err(status) => Refused::new(&status),
        }
    }

    /// Streams `spec`.
    pub(crate) async fn stream(&self, spec: RunSpec) -> Result<Streaming<StreamEvent>, Status> {
        let request = RunStreamRequest { spec: Some(spec) };
        Ok(self.client.clone().run_stream(request).await?.into_inner())
    }

    /// A client of its modules.
    pub(crate) async fn modules(&self) -> Modules {
        Modules::new(channel(&self.addr).await).max_decoding_message_size(usize::MAX)
    }

    /// A client of its runs.
    pub(crate) async fn runs(&self) -> Runs {
        runs(&self.addr).await
    }

    /// What is known of a run.
    pub(crate) async fn get(&self, run_id: &str) -> RunInfo {
        let run_id = run_id.to_owned();
        let answer = self.runs().await.get_run(GetRunRequest { run_id }).await;
        let answer = answer.expect("the run is known").into_inner();
        answer.run.expect("a run")
    }

    /// Waits until a run is as `holds` says, by asking.
    pub(crate) async fn until_run(
        &self,
        run_id: &str,
        holds: impl Fn(&RunInfo) -> bool,
    ) -> RunInfo {
        let mut runs = self.runs().await;
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "it does not come to be");
            let run_id = run_id.to_owned();
            let answer = runs.get_run(GetRunRequest { run_id }).await;
            let run = answer.expect("the run is known").into_inner().run;
            let run = run.expect("a run");
            if holds(&run) {
                return run;
            }
            tokio::task::yield_now().await;
        }
    }

    /// A page of runs.
    pub(crate) async fn list(&self, request: ListRunsRequest) -> ListRunsResponse {
        let answer = self.runs().await.list_runs(request).await;
        answer.expect("runs are listed").into_inner()
    }

    /// Runs that have a label, the newest first.
    pub(crate) async fn labelled(&self, key: &str, value: &str) -> Vec<RunInfo> {
        let request = ListRunsRequest {
            labels: [(key.to_owned(), value.to_owned())].into(),
            ..ListRunsRequest::default()
        };
        self.list(request).await.runs
    }

    /// Attaches to a run.
    pub(crate) async fn attach(&self, run_id: &str, from_seq: u64) -> Streaming<StreamEvent> {
        attach(&mut self.runs().await, run_id, from_seq).await
    }

    /// Loads a module.
    pub(crate) async fn load(&self, wasm: impl Into<Bytes>) -> Result<LoadModuleResponse, Status> {
        let answer = self.client.clone().load_module(load(wasm)).await?;
        Ok(answer.into_inner())
    }

    /// Loads a module that is not refused, and returns its digest.
    pub(crate) async fn loaded(&self, wasm: impl Into<Bytes>) -> String {
        let answer = self.load(wasm).await.expect("the module is taken");
        answer.module.expect("the module is described").digest
    }
}

/// The program under test, of which compile children are made.
pub(crate) fn program() -> &'static std::path::Path {
    std::path::Path::new(env!("CARGO_BIN_EXE_ringfence"))
}

/// A client of `addr`.
pub(crate) async fn connect(addr: &str) -> Client {
    SandboxServiceClient::new(channel(addr).await)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

/// A client of the runs of `addr`.
pub(crate) async fn runs(addr: &str) -> Runs {
    Runs::new(channel(addr).await).max_decoding_message_size(usize::MAX)
}

/// Attaches to a run.
pub(crate) async fn attach(runs: &mut Runs, run_id: &str, from_seq: u64) -> Streaming<StreamEvent> {
    let run_id = run_id.to_owned();
    let answer = runs.attach_run(AttachRunRequest { run_id, from_seq }).await;
    answer.expect("it is attached").into_inner()
}

/// The id that an answer tells in its metadata.
pub(crate) fn told_id(metadata: &tonic::metadata::MetadataMap) -> String {
    let id = metadata.get("ringfence-run-id").expect("an id");
    id.to_str().expect("text").to_owned()
}

pub(crate) async fn channel(addr: &str) -> Channel {
    let uri = if addr.starts_with("unix:") {
        addr.to_owned()
    } else {
        format!("http://{addr}")
    };
    Endpoint::from_shared(uri)
        .expect("an address")
        .connect()
        .await
        .expect("the daemon is there")
}

/// A request to load `wasm`.
pub(crate) fn load(wasm: impl Into<Bytes>) -> LoadModuleRequest {
    LoadModuleRequest {
        source: Some(load_module_request::Source::Wasm(wasm.into())),
        ..LoadModuleRequest::default()
    }
}

/// A run of `wasm`, binary or text.
pub(crate) fn spec(wasm: impl Into<Bytes>) -> RunSpec {
    RunSpec {
        module: Some(Module::Wasm(wasm.into())),
        ..RunSpec::default()
    }
}

/// A run of a loaded module.
pub(crate) fn by_digest(digest: &str) -> RunSpec {
    RunSpec {
        module: Some(Module::Digest(digest.to_owned())),
        ..RunSpec::default()
    }
}

/// A run of the kit with `args`.
pub(crate) fn kit(args: &[&str]) -> RunSpec {
    spec(crate::guests::kit()).args(&[&["kit"], args].concat())
}

/// A run of the kit as a component with `args`.
pub(crate) fn kit_component(args: &[&str]) -> RunSpec {
    spec(crate::guests::kit_component()).args(&[&["kit"], args].concat())
}

/// Short ways to change a spec.
pub(crate) trait SpecExt: Sized {
    fn change(self, f: impl FnOnce(&mut RunSpec)) -> Self;

    fn args(self, args: &[&str]) -> Self {
        self.change(|spec| spec.args = args.iter().map(|arg| (*arg).to_owned()).collect())
    }
    fn entry(self, name: &str) -> Self {
        self.change(|spec| spec.entry_point = name.to_owned())
    }
    fn env(self, env: &[&str]) -> Self {
        self.change(|spec| spec.env = env.iter().map(|entry| (*entry).to_owned()).collect())
    }
    fn stdin(self, stdin: impl Into<Bytes>) -> Self {
        self.change(|spec| spec.stdin = stdin.into())
    }
    fn detach(self) -> Self {
        self.change(|spec| spec.detach = true)
    }
    fn key(self, key: &str) -> Self {
        self.change(|spec| spec.idempotency_key = key.to_owned())
    }
    fn timeout(self, timeout: Duration) -> Self {
        self.change(|spec| spec.timeout = Some(timeout.try_into().expect("a duration")))
    }
    fn resources(self, f: impl FnOnce(&mut Resources)) -> Self {
        self.change(|spec| f(spec.resources.get_or_insert_default()))
    }
    fn security(self, f: impl FnOnce(&mut Security)) -> Self {
        self.change(|spec| f(spec.security.get_or_insert_default()))
    }
    fn mount(self, host: impl AsRef<std::path::Path>, guest: &str, read_only: bool) -> Self {
        self.change(|spec| {
            spec.mounts.push(ringfence::api::proto::Mount {
                host_path: host.as_ref().to_str().expect("UTF-8").to_owned(),
                guest_path: guest.to_owned(),
                read_only,
            });
        })
    }
    fn label(self, key: &str, value: &str) -> Self {
        self.change(|spec| {
            spec.labels.insert(key.to_owned(), value.to_owned());
        })
    }
}

impl SpecExt for RunSpec {
    fn change(mut self, f: impl FnOnce(&mut RunSpec)) -> Self {
        f(&mut self);
        self
    }
}

/// A run that was not refused.
#[derive(Debug)]
pub(crate) struct Ran {
    pub result: RunResult,
    pub stdout: Bytes,
    pub stderr: Bytes,
}

impl Ran {
    pub(crate) fn new(answer: RunResponse) -> Self {
        Self {
            result: answer.result.expect("a result"),
            stdout: answer.stdout,
            stderr: answer.stderr,
        }
    }

    pub(crate) fn out(&self) -> &str {
        std::str::from_utf8(&self.stdout).expect("text")
    }

    pub(crate) fn err(&self) -> &str {
        std::str::from_utf8(&self.stderr).expect("text")
    }

    pub(crate) fn trap_code(&self) -> &str {
        self.result.trap.as_ref().map_or("", |trap| &trap.code)
    }

    /// It exited with `code`.
    #[track_caller]
    pub(crate) fn exited(self, code: u32) -> Self {
        let ended = (self.result.outcome(), self.result.exit_code);
        assert_eq!(ended, (Outcome::Exited, Some(code)), "{self:?}");
        self
    }

    /// It ended with `outcome`, and has no exit code unless it ended by itself.
    #[track_caller]
    pub(crate) fn ended(self, outcome: Outcome) -> Self {
        assert_eq!(self.result.outcome(), outcome, "{self:?}");
        if !matches!(outcome, Outcome::Exited | Outcome::MemoryExceeded) {
            assert_eq!(self.result.exit_code, None, "{self:?}");
        }
        self
    }
}

/// A call that was refused.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refused {
    pub code: Code,
    pub reason: String,
    pub message: String,
    pub metadata: HashMap<String, String>,
    pub field: Option<String>,
    pub retry: bool,
}

impl Refused {
    pub(crate) fn new(status: &Status) -> Self {
        let details = status.get_error_details();
        let info = details
            .error_info()
            .unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
        assert_eq!(info.domain, "ringfence");
        // As on the wire: the message percent-encoded, the details in base64.
        let plain = |byte: &u8| (0x20..0x7f).contains(byte) && *byte != b'%';
        let message: usize = status
            .message()
            .bytes()
            .map(|b| if plain(&b) { 1 } else { 3 })
            .sum();
        let encoded = message + status.details().len().div_ceil(3) * 4;
        assert!(encoded < 4096, "{encoded} bytes of error");
        let field = details
            .bad_request()
            .map(|bad| bad.field_violations[0].field.clone());
        assert_eq!(field.as_ref(), info.metadata.get("field"));
        Self {
            code: status.code(),
            reason: info.reason.clone(),
            message: status.message().to_owned(),
            metadata: info.metadata.clone(),
            field,
            retry: details.retry_info().is_some(),
        }
    }

    /// Refused for `reason` with `code`.
    #[track_caller]
    pub(crate) fn is(self, code: Code, reason: &str) -> Self {
        let got = (self.code, self.reason.as_str());
        assert_eq!(got, (code, reason), "{}", self.message);
        self
    }

    /// And it names `field`.
    #[track_caller]
    pub(crate) fn at(self, field: &str) -> Self {
        assert_eq!(self.field.as_deref(), Some(field), "{}", self.message);
        self
    }

    /// And it tells the fact.
    #[track_caller]
    pub(crate) fn with(self, key: &str, value: impl ToString) -> Self {
        let told = self.metadata.get(key);
        assert_eq!(told, Some(&value.to_string()), "{key} of {self:?}");
        self
    }
}

/// Everything that a stream said.
#[derive(Debug, Default)]
pub(crate) struct Story {
    pub events: Vec<StreamEvent>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit: Option<RunResult>,
}

/// Reads a stream to its end, checking the rules of streams on the way.
pub(crate) async fn read(stream: Streaming<StreamEvent>) -> Story {
    read_on(stream, Story::default()).await
}

/// Reads the rest of a stream of which `story` was read.
pub(crate) async fn read_on(mut stream: Streaming<StreamEvent>, mut story: Story) -> Story {
    while let Some(event) = stream.message().await.expect("the stream does not break") {
        story.add(event);
    }
    assert!(story.exit.is_some(), "one terminal event");
    story
}

impl Story {
    pub(crate) fn add(&mut self, event: StreamEvent) {
        assert_eq!(event.seq, self.events.len() as u64, "no gaps");
        assert!(self.exit.is_none(), "nothing after the terminal event");
        let started = matches!(event.event, Some(Event::Started(_)));
        assert_eq!(started, event.seq == 0, "started comes first, once");
        match &event.event {
            Some(Event::Stdout(bytes)) => {
                assert!((1..=65536).contains(&bytes.len()));
                self.stdout.extend_from_slice(bytes);
            }
            Some(Event::Stderr(bytes)) => {
                assert!((1..=65536).contains(&bytes.len()));
                self.stderr.extend_from_slice(bytes);
            }
            Some(Event::Exit(result)) => self.exit = Some((**result).clone()),
            Some(Event::Started(_) | Event::File(_)) => {}
            other => panic!("unexpected {other:?}"),
        }
        self.events.push(event);
    }

    pub(crate) fn outcome(&self) -> Outcome {
        self.exit.as_ref().expect("it ended").outcome()
    }
}

/// `message` with a deadline.
pub(crate) fn within<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

/// Waits until it serves, by asking.
async fn until_serving(client: &Client) {
    let serving = ringfence::api::proto::ServingStatus::Serving;
    until_health(client, |health| health.status() == serving).await;
}

/// Gives up the one call whose run waits for a slot, and returns the run's id, by the label that it has.
pub(crate) async fn leave_the_queue<T: std::fmt::Debug>(
    daemon: &Daemon,
    call: JoinHandle<T>,
    label: (&str, &str),
) -> String {
    until(daemon, |_, queued| queued == 1).await;
    call.abort();
    assert!(call.await.expect_err("it waits").is_cancelled());
    daemon.labelled(label.0, label.1).await[0].run_id.clone()
}

/// Waits until no run is in flight, by asking.
pub(crate) async fn until_idle(daemon: &Daemon) {
    until(daemon, |in_flight, _| in_flight == 0).await;
}

/// Waits until the daemon's health says what `holds` of runs in flight and runs that wait.
pub(crate) async fn until(daemon: &Daemon, holds: impl Fn(u32, u32) -> bool) {
    until_health(&daemon.client, |health| {
        holds(health.runs_in_flight, health.runs_queued)
    })
    .await;
}

/// Waits until a daemon's health is as `holds` says.
pub(crate) async fn until_health(client: &Client, holds: impl Fn(&HealthResponse) -> bool) {
    let mut client = client.clone();
    let start = Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "it does not come to be");
        let health = client.health(ringfence::api::proto::HealthRequest {}).await;
        let health = health.expect("health answers").into_inner();
        if holds(&health) {
            return;
        }
        tokio::task::yield_now().await;
    }
}
