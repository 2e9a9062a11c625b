//! The composition root: builds everything from the configuration, binds, returns what it bound. No rules.

use std::fmt;
use std::future::Future;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::proto::module_service_server::ModuleServiceServer;
use crate::api::proto::run_service_server::RunServiceServer;
use crate::api::proto::sandbox_service_server::SandboxServiceServer;
use crate::api::{
    self, Address, Bound, Intake, IntakeSettings, ListenSettings, ModuleApi, Phase, RunApi,
    SandboxApi,
};
use crate::config::{self, CompileMode, Config, Known, Overrides, PagemapScan, Problems, StoreUrl};
use crate::limits::PAGE;
use crate::policy::Policy;
use crate::run::{self, Runner};
use crate::sandbox::{self, ArtifactLimit, Budget, CompileSettings, Sandbox};
use crate::store::{self, Artifacts, ArtifactsSettings, Place, Registries, Registry, Store};

/// The limits of an HTTP/2 connection. h2's own defaults let one connection hold hundreds of megabytes.
const MAX_STREAMS: u32 = 100;
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 64;
const MAX_HEADER_LIST: u32 = 8 << 10;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(30);
const KEEPALIVE_WAIT: Duration = Duration::from_secs(10);
/// What cancelled runs may take to end, and then answers to get out, once the grace is over.
const LAST_WAIT: Duration = Duration::from_millis(900);
/// An answer may lie untaken for this many times `runs.stall_timeout`: longer than a guest waits for its reader, so
/// that a slow one still learns how its run ended.
const PATIENCE: u32 = 3;
/// The services whose health is told, the empty name being the whole daemon.
const SERVICES: [&str; 4] = [
    "",
    "ringfence.v1.ModuleService",
    "ringfence.v1.RunService",
    "ringfence.v1.SandboxService",
];

/// A daemon that is bound but does not serve yet.
pub struct App {
    runner: Arc<Runner>,
    bound: Bound,
    listen: ListenSettings,
    intake: Intake,
    /// How long an answer may lie untaken.
    patience: Duration,
    reflection: bool,
    drain_delay: Duration,
    drain_grace: Duration,
}

/// Why a daemon cannot start, or went down.
#[derive(Debug)]
pub struct AppError(String);

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AppError {}

fn failed(what: &str) -> impl Fn(&dyn fmt::Display) -> AppError {
    move |error| AppError(format!("{what}: {error}"))
}

/// Reads and checks the configuration; the second value warns of what was left out.
///
/// # Errors
/// As [`config::load`].
pub fn load_config(overrides: &Overrides) -> Result<(Config, Vec<String>), Problems> {
    let known = Known {
        features: &sandbox::FEATURE_NAMES,
        host_functions: &sandbox::HOST_FUNCTION_NAMES,
    };
    config::load(overrides, &known)
}

/// Builds the daemon and binds its listeners. `program` is the file of this program: modules are compiled in processes
/// of it.
///
/// # Errors
/// Whatever keeps it from serving.
pub async fn build(config: &Config, program: &Path) -> Result<App, AppError> {
    let bound = api::bind(&config.listen, &listen_settings(config))
        .await
        .map_err(|error| AppError(error.to_string()))?;
    compose(config, program, bound)
}

/// Builds a daemon that listens nowhere and has one connection, whose other end is the second value.
///
/// # Errors
/// Whatever keeps it from serving.
pub fn build_paired(config: &Config, program: &Path) -> Result<(App, UnixStream), AppError> {
    let (bound, client) = api::pair().map_err(|error| AppError(error.to_string()))?;
    Ok((compose(config, program, bound)?, client))
}

/// Connections, mounts and loaded modules are descriptors: as many as the host lets this process have.
fn raise_descriptors() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => tracing::info!(?current, ?maximum, "raised the limit of open files"),
        Err(error) => tracing::warn!(%error, ?current, "the limit of open files stays as it is"),
    }
}

fn compose(config: &Config, program: &Path, bound: Bound) -> Result<App, AppError> {
    raise_descriptors();
    let policy = Arc::new(Policy::from(config));
    let store = Store::open(&store_settings(config))
        .map_err(|error| failed("the module store does not open")(&error))?;
    let artifacts = artifacts_settings(config)
        .map(|settings| Artifacts::open(&settings).map(Arc::new))
        .transpose()
        .map_err(|error| failed("the folder of compiled modules does not open")(&error))?;
    let sandbox = Sandbox::start(&sandbox_settings(config, &policy, program, artifacts))
        .map_err(|error| failed("the engine does not start")(&format!("{error:#}")))?;
    let runner = Runner::new(
        instance(config),
        policy,
        sandbox,
        store,
        registries(config),
        run_settings(config),
    );
    let server = &config.server;
    Ok(App {
        runner: Arc::new(runner),
        bound,
        listen: listen_settings(config),
        intake: Intake::new(IntakeSettings {
            max_message: server.max_message.0,
            max_module: config.compile.max_module.0,
            inflight: server.inflight_request_bytes.0,
            stall: server.request_stall.0,
        }),
        patience: config.runs.stall_timeout.0 * PATIENCE,
        reflection: server.reflection,
        drain_delay: server.drain_delay.0,
        drain_grace: server.drain_grace.0,
    })
}

fn run_settings(config: &Config) -> run::Settings {
    let runs = &config.runs;
    // A 64-bit host, which this is, has room for more than any budget says.
    let bytes = |size: config::Size| usize::try_from(size.0).unwrap_or(usize::MAX);
    run::Settings {
        slots: config.admission.slots,
        queue: config.admission.queue,
        max_wait: config.admission.max_wait.0,
        stall_timeout: runs.stall_timeout.0,
        log_bytes: bytes(runs.log_bytes),
        log_budget: bytes(runs.log_budget),
        history: run::History {
            runs: runs.history as usize,
            age: runs.history_age.0,
            bytes: bytes(runs.history_bytes),
        },
        idempotency_window: runs.idempotency_window.0,
        idempotency_keys: runs.idempotency_keys as usize,
        viewers: runs.viewers,
        arrivals: config.store.uploads,
        upload_timeout: config.store.upload_timeout.0,
    }
}

fn listen_settings(config: &Config) -> ListenSettings {
    ListenSettings {
        socket_mode: config.server.socket_mode.0,
        max_connections: config.server.max_connections,
        handshake_timeout: config.server.handshake_timeout.0,
    }
}

fn store_settings(config: &Config) -> store::Settings {
    store::Settings {
        place: match &config.store.url {
            StoreUrl::Memory => Place::Memory,
            StoreUrl::Directory(path) => Place::Directory(path.clone()),
            StoreUrl::Objects(url) => Place::Objects(url.clone()),
        },
        budget: config.store.budget.0,
        max_module: config.compile.max_module.0,
        spool: config.store.spool.clone(),
    }
}

fn artifacts_settings(config: &Config) -> Option<ArtifactsSettings> {
    let artifacts = &config.artifacts;
    (!artifacts.dir.as_os_str().is_empty()).then(|| ArtifactsSettings {
        dir: artifacts.dir.clone(),
        budget: artifacts.budget.0,
        key_file: artifacts.key_file.clone(),
    })
}

fn registries(config: &Config) -> Registries {
    let registry = |it: &config::RegistryHost| Registry {
        host: it.host.clone(),
        plain: it.plain,
    };
    let credentials = &config.oci.credentials_file;
    Registries::new(
        config.oci.registries.iter().map(registry).collect(),
        (!credentials.as_os_str().is_empty()).then(|| credentials.clone()),
    )
}

fn compile_settings(config: &Config, program: &Path) -> CompileSettings {
    let compile = &config.compile;
    CompileSettings {
        child: match compile.mode {
            CompileMode::Child => Some(program.to_owned()),
            CompileMode::InProcess => None,
        },
        concurrency: compile.concurrency,
        queue: compile.queue,
        budget: Budget {
            timeout: compile.timeout.0,
            memory: compile.memory.0,
        },
        artifact: {
            // Code that no cache can hold would be compiled again for every run.
            let limits = [
                (compile.max_artifact.0, "compile.max_artifact"),
                (config.engine.cache_budget.0, "engine.cache_budget"),
            ];
            let [first, second] = limits;
            let (bytes, key) = if second.0 < first.0 { second } else { first };
            ArtifactLimit {
                bytes,
                key: key.to_owned(),
            }
        },
    }
}

fn sandbox_settings(
    config: &Config,
    policy: &Policy,
    program: &Path,
    artifacts: Option<Arc<Artifacts>>,
) -> sandbox::Settings {
    let engine = &config.engine;
    let cores = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let memory = u64::from(config.policy.max_memory_pages) * PAGE;
    sandbox::Settings {
        guest_threads: match engine.guest_threads {
            0 => cores(),
            n => n as usize,
        },
        pool_slots: match engine.pool_slots {
            0 => config.admission.slots,
            n => n,
        },
        epoch_interval: engine.epoch_interval.0,
        pagemap_scan: match engine.pagemap_scan {
            PagemapScan::Auto => None,
            PagemapScan::On => Some(true),
            PagemapScan::Off => Some(false),
        },
        features: engine.features.clone(),
        cache_budget: engine.cache_budget.0,
        // At most 4 GiB, on a 64-bit host.
        max_memory: usize::try_from(memory).unwrap_or(usize::MAX),
        compile: compile_settings(config, program),
        artifacts,
        mounts: policy.grants.mounts.clone(),
    }
}

fn instance(config: &Config) -> String {
    if !config.server.instance.is_empty() {
        return config.server.instance.clone();
    }
    let name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let plain: String = name
        .chars()
        .filter(|c| c.is_ascii_alphanumeric() || "-._".contains(*c))
        .take(64)
        .collect();
    if plain.is_empty() {
        "ringfence".to_owned()
    } else {
        plain
    }
}

impl App {
    /// What is listened on, ports found.
    pub fn addrs(&self) -> &[Address] {
        self.bound.addresses()
    }

    /// What tests look at beside the API.
    pub fn probe(&self) -> Probe {
        Probe(Arc::clone(&self.runner))
    }

    /// Serves until `shutdown` resolves, then drains: runs in flight finish within the grace, then they are cancelled.
    ///
    /// # Errors
    /// Where the daemon cannot run anything, or its transport fails.
    pub async fn serve_until(self, shutdown: impl Future<Output = ()>) -> Result<(), AppError> {
        let (phase, phases) = watch::channel(Phase::Starting);
        let (health, health_service) = tonic_health::server::health_reporter();
        set_health(&health, ServingStatus::NotServing).await;
        let deliveries = self.intake.deliveries();
        let api = SandboxApi::new(Arc::clone(&self.runner), phases);
        let modules = ModuleApi::new(Arc::clone(&self.runner));
        let runs = RunApi::new(Arc::clone(&self.runner));
        let told = failed("reflection does not start");
        let (v1, v1alpha) = match self.reflection {
            true => (
                Some(reflection().build_v1().map_err(|error| told(&error))?),
                Some(reflection().build_v1alpha().map_err(|error| told(&error))?),
            ),
            false => (None, None),
        };
        let router = server()
            .layer(self.intake)
            // The intake layer caps messages: tonic's own cap answers in other terms.
            .add_service(SandboxServiceServer::new(api).max_decoding_message_size(usize::MAX))
            .add_service(ModuleServiceServer::new(modules).max_decoding_message_size(usize::MAX))
            .add_service(RunServiceServer::new(runs).max_decoding_message_size(usize::MAX))
            .add_service(health_service)
            .add_optional_service(v1)
            .add_optional_service(v1alpha);
        for address in self.bound.addresses() {
            tracing::info!(%address, "listening");
        }
        let (connections, accepting) = self.bound.accept(&self.listen);
        let (end, ended) = oneshot::channel::<()>();
        let serve = router.serve_with_incoming_shutdown(connections, async {
            // Dropped or told: either ends it.
            let _ = ended.await;
        });
        let runner = self.runner;
        let tending = Arc::clone(&runner);
        let live = async {
            runner
                .warm()
                .await
                .map_err(|refusal| failed("the engine does not run")(&refusal))?;
            phase.send_replace(Phase::Serving);
            set_health(&health, ServingStatus::Serving).await;
            tracing::info!("serving");
            shutdown.await;
            phase.send_replace(Phase::Draining);
            set_health(&health, ServingStatus::NotServing).await;
            tokio::time::sleep(self.drain_delay).await;
            drain(&runner, self.drain_grace).await;
            runner.end_watches();
            drop(end);
            Ok(())
        };
        let result = tokio::select! {
            result = serve_beside(serve, live) => result,
            () = deliveries.let_go(self.patience) => Ok(()),
            () = tending.tend() => Ok(()),
        };
        drop(accepting);
        tracing::info!("ended");
        result
    }
}

/// Serves beside `live`; when that is over, what is still on its way out gets a last moment.
async fn serve_beside(
    serve: impl Future<Output = Result<(), tonic::transport::Error>>,
    live: impl Future<Output = Result<(), AppError>>,
) -> Result<(), AppError> {
    let mut serve = std::pin::pin!(serve);
    let told = failed("serving failed");
    tokio::select! {
        served = &mut serve => served.map_err(|error| told(&error)),
        lived = live => {
            lived?;
            // A connection that never spoke would hold it up for ever.
            match tokio::time::timeout(LAST_WAIT, serve).await {
                Ok(served) => served.map_err(|error| told(&error)),
                Err(_) => Ok(()),
            }
        }
    }
}

/// Refuses new runs, waits for those in flight, and after the grace ends them.
async fn drain(runner: &Runner, grace: Duration) {
    runner.close();
    if tokio::time::timeout(grace, runner.idle()).await.is_err() {
        let (in_flight, ..) = runner.load();
        tracing::warn!(
            in_flight,
            "the drain grace is over; cancelling what still runs"
        );
        runner.cancel_all();
        if tokio::time::timeout(LAST_WAIT, runner.idle())
            .await
            .is_err()
        {
            tracing::error!("some runs did not end");
        }
    }
}

fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEPALIVE_EVERY))
        .http2_keepalive_timeout(Some(KEEPALIVE_WAIT))
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in SERVICES {
        health.set_service_status(service, status).await;
    }
}

/// A builder of the reflection services, over our descriptors and those of health.
fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(api::proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

/// What tests look at beside the API.
pub struct Probe(Arc<Runner>);

impl Probe {
    /// Instances that pools hold now.
    pub fn pooled_instances(&self) -> u64 {
        self.0.sandbox().pooled_instances()
    }

    /// Compilations that were begun.
    pub fn compilations(&self) -> u64 {
        self.0.sandbox().modules().compilations()
    }

    /// Bytes of compiled modules in memory, about.
    pub fn cached_bytes(&self) -> u64 {
        self.0.sandbox().modules().cached_bytes()
    }

    /// Bytes of all logs, runs of the history, and bytes of their records.
    pub fn remembered(&self) -> (usize, usize, usize) {
        self.0.remembered()
    }

    /// Artefacts on disk that were not taken.
    pub fn rejected_artifacts(&self) -> u64 {
        self.0.sandbox().modules().rejected_artifacts()
    }
}
