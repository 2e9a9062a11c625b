//! The composition root: builds everything from the configuration, binds, returns what it bound. No rules.

mod settings;

use std::fmt;
use std::future::Future;
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
    self, Address, Authentication, Bound, Intake, IntakeSettings, ListenSettings, ModuleApi, Phase,
    RunApi, SandboxApi, TakingPace,
};
use crate::auth::Gatekeeper;
use crate::config::{self, Config, Known, Overrides, Problems};
use crate::hardening;
use crate::run::{self, Runner};
use crate::sandbox::{self, Sandbox};
use crate::store::Artifacts;

/// The limits of an HTTP/2 connection. h2's own defaults let one connection hold hundreds of megabytes.
const MAX_STREAMS: u32 = 100;
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 64;
const MAX_HEADER_LIST: u32 = 8 << 10;
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
    gatekeeper: Arc<Gatekeeper>,
    authentication: Authentication,
    server: Server,
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
    config::load(overrides, &known())
}

/// The names that a configuration may use.
pub(crate) fn known() -> Known {
    Known {
        features: &sandbox::FEATURE_NAMES,
        host_functions: &sandbox::HOST_FUNCTION_NAMES,
    }
}

/// Builds the daemon and binds its listeners. `program` is the file of this program: modules are compiled in processes
/// of it.
///
/// # Errors
/// Whatever keeps it from serving.
pub async fn build(config: &Config, program: &Path) -> Result<App, AppError> {
    let bound = api::bind(&config.listen, &settings::listen_settings(config))
        .await
        .map_err(|error| AppError(error.to_string()))?;
    let app = compose(config, program, bound)?;
    let checked = app.runner.check_store().await;
    checked.map_err(|error| failed("the module store cannot be used")(&error))?;
    Ok(app)
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
    let gatekeeper = Gatekeeper::new(settings::auth_settings(config));
    let gatekeeper = Arc::new(gatekeeper.map_err(AppError)?);
    let runner = runner(config, program)?;
    let server = &config.server;
    Ok(App {
        authentication: Authentication::new(
            Arc::clone(&gatekeeper),
            Arc::clone(&runner),
            config.auth.open_health,
            server.allowed_authorities.clone(),
        ),
        gatekeeper,
        runner,
        bound,
        server: self::server(server),
        listen: settings::listen_settings(config),
        intake: Intake::new(IntakeSettings {
            max_message: server.max_message.0,
            max_module: config.compile.max_module.0,
            inflight: server.inflight_request_bytes.0,
            stall: server.request_stall.0,
            inflight_answers: server.inflight_answer_bytes.0,
            pace: TakingPace {
                grace: config.runs.stall_timeout.0 * PATIENCE,
                min_rate: server.min_answer_rate.0,
            },
        }),
        reflection: server.reflection,
        drain_delay: server.drain_delay.0,
        drain_grace: server.drain_grace.0,
    })
}

/// What runs modules, without anything that listens.
///
/// # Errors
/// Whatever keeps it from running any.
pub(crate) fn runner(config: &Config, program: &Path) -> Result<Arc<Runner>, AppError> {
    let tenants = settings::tenants(config)?;
    let artifacts = settings::artifacts_settings(config)
        .map(|settings| Artifacts::open(&settings).map(Arc::new))
        .transpose()
        .map_err(|error| failed("the folder of compiled modules does not open")(&error))?;
    let pages = tenants.iter().map(|it| it.policy.ceilings.max_memory_pages);
    let pages = pages.max().unwrap_or(config.policy.max_memory_pages);
    let largest = tenants
        .iter()
        .map(|it| run::largest_reservation(&it.policy.ceilings));
    let run_settings = settings::run_settings(config, largest.max().unwrap_or(u64::MAX));
    let sandbox = settings::sandbox_settings(config, pages, program, artifacts);
    let sandbox = Sandbox::start(&sandbox)
        .map_err(|error| failed("the engine does not start")(&format!("{error:#}")))?;
    let runner = Runner::new(
        settings::instance(config),
        sandbox,
        settings::registries(config),
        run_settings,
        tenants,
    );
    Ok(Arc::new(
        runner.map_err(|refusal| AppError(refusal.to_string()))?,
    ))
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
        let refusals = self.authentication.refusals();
        let api = SandboxApi::new(Arc::clone(&self.runner), phases, hardening::state());
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
        let router = self
            .server
            // Who calls, before anything is taken in.
            .layer(tower_layer::Stack::new(self.intake, self.authentication))
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
            () = deliveries.let_go() => Ok(()),
            () = tending.tend() => Ok(()),
            () = self.gatekeeper.watch() => Ok(()),
            () = refusals.keep_telling() => Ok(()),
        };
        drop(accepting);
        refusals.tell();
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

fn server(settings: &config::Server) -> Server {
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_pending_accept_reset_streams(Some(MAX_PENDING_RESETS))
        .http2_max_local_error_reset_streams(Some(MAX_LOCAL_RESETS))
        .http2_max_header_list_size(MAX_HEADER_LIST)
        .initial_stream_window_size(api::STREAM_WINDOW)
        .initial_connection_window_size(api::CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(settings.keepalive_interval.0))
        .http2_keepalive_timeout(Some(settings.keepalive_timeout.0))
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

    /// Bytes of answers on their way out that no run's reservation holds.
    pub fn answer_bytes(&self) -> u64 {
        self.0.answer_bytes()
    }

    /// Bytes that runs reserve, and answers of runs.
    pub fn reserved_bytes(&self) -> u64 {
        let (_, loads) = self.0.load();
        loads.runs.bytes
    }

    /// Artefacts on disk that were not taken.
    pub fn rejected_artifacts(&self) -> u64 {
        self.0.sandbox().modules().rejected_artifacts()
    }
}
