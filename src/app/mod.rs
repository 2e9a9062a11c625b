//! The composition root: it builds every part of the daemon from the configuration, binds the
//! listeners, and serves until it is told to drain. It holds no rules of its own.

mod drain;
mod languages;
mod metrics;
mod reload;
mod settings;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::time::error::Elapsed;
use tonic::service::Routes;
use tower_layer::Layer;

use crate::admin::{AdminError, AdminListener};
use crate::api;
use crate::api::health_proto::health_server::HealthServer;
use crate::api::proto::execution_service_server::ExecutionServiceServer;
use crate::api::proto::module_service_server::ModuleServiceServer;
use crate::api::proto::run_service_server::RunServiceServer;
use crate::api::proto::sandbox_service_server::SandboxServiceServer;
use crate::api::proto::stats_service_server::StatsServiceServer;
use crate::api::{
    Address, Authentication, BindError, BoundListeners, CallCounters, CallDispatcher, CallService,
    ConnectionCounters, ConnectionTotals, DaemonPhase, ExecutionApi, GrpcWeb, HealthApi, HttpGate,
    ListenSettings, MinResponseDataRate, ModuleApi, OriginGuard, RequestLimitSettings,
    RequestLimits, RunApi, SandboxApi, Server, ServerSettings, StatsApi, WebGate,
};
use crate::auth::{AuthError, Authenticator};
use crate::config::{self, Config, KnownNames, Overrides, Problems};
use crate::hardening;
use crate::host_limit::HostLimit;
use crate::language::Catalogue;
use crate::library::ModuleLibrary;
use crate::model::refusal::Refusal;
use crate::otlp::{Exporter, ExporterError};
use crate::process_limits;
use crate::run::{self, ArchiveFeed, ProvidedModules, Runner};
use crate::sandbox::{self, Sandbox};
use crate::store::ArtifactCache;

pub use self::drain::DrainReport;
use self::drain::{CANCEL_GRACE, EMBEDDED_ARTIFACT_GRACE, drain};
pub use self::reload::Reloader;

/// How long the daemon's end waits for ended runs to be written to the archive.
const ARCHIVE_GRACE: Duration = Duration::from_secs(5);
/// A response may lie unread for this many times `runs.stall_timeout`. That is longer than a guest
/// waits for its reader, so that a slow reader still learns how its run ended.
const UNREAD_RESPONSE_STALL_FACTOR: u32 = 3;

/// A daemon whose listeners are bound but which does not serve yet.
pub struct App {
    runner: Arc<Runner>,
    catalogue: Arc<Catalogue>,
    /// Whether languages are compiled before anybody asks for them.
    prepares_languages: bool,
    /// How long the daemon's end waits for compiled code to be written to disk.
    artifact_grace: Duration,
    library: Arc<ModuleLibrary>,
    bound: BoundListeners,
    listen: ListenSettings,
    request_limits: RequestLimits,
    authenticator: Arc<Authenticator>,
    authentication: Authentication,
    server_settings: ServerSettings,
    call_counters: Arc<CallCounters>,
    connection_totals: ConnectionTotals,
    config: Arc<Config>,
    admin: Option<AdminListener>,
    reflection: bool,
    drain_delay: Duration,
    drain_grace: Duration,
}

/// Why a daemon cannot start, or went down. The text of this error, and of each that it is made of,
/// has all that is shown of its source: whoever prints it does not walk the sources.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A listener could not be bound.
    #[error(transparent)]
    Listen(#[from] BindError),
    /// The admin listener does not start.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// Callers cannot be identified, such as by a key that cannot be read.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// A setting cannot be used as it stands.
    #[error(transparent)]
    Setting(#[from] Problems),
    /// A part of the daemon does not start, or ended.
    #[error("{part}: {source}")]
    Part {
        /// What failed, as the beginning of a sentence.
        part: &'static str,
        /// What caused the failure.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Nothing can be exported to the collector.
    #[error(transparent)]
    Export(#[from] ExporterError),
    /// What runs need is not there, such as a directory that may be mounted.
    #[error(transparent)]
    Runs(#[from] Refusal),
}

/// Creates a function that turns a cause into the error of `part`.
fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    part: &'static str,
) -> impl FnOnce(E) -> AppError {
    move |cause| AppError::Part {
        part,
        source: cause.into(),
    }
}

/// Loads and checks the configuration. The second value holds warnings about what was left out.
///
/// # Errors
/// The same as those of [`config::load`].
pub fn load_config(overrides: &Overrides) -> Result<(Config, Vec<String>), Problems> {
    config::load(overrides, &known_names())
}

/// Returns the names of features and host functions that a configuration may use.
pub(crate) fn known_names() -> KnownNames {
    KnownNames {
        features: &sandbox::FEATURE_NAMES,
        host_functions: &sandbox::HOST_FUNCTION_NAMES,
    }
}

/// Builds the daemon and binds its listeners. `program` is the file of this program, which is
/// started as a child process for each module that is compiled.
///
/// # Errors
/// Whatever keeps the daemon from serving.
pub async fn build(config: &Config, program: &Path) -> Result<App, AppError> {
    let bound = api::bind(&config.listen, &settings::listen_settings(config)).await?;
    let archive = settings::archive(config)?;
    let mut app = compose(config, program, bound, archive).await?;
    app.prepares_languages = true;
    app.artifact_grace = CANCEL_GRACE;
    if !config.admin.listen.is_empty() {
        app.admin = Some(AdminListener::bind(settings::admin_settings(config)).await?);
    }
    let checked = app.runner.check_store().await;
    checked.map_err(failed("the module store cannot be used"))?;
    Ok(app)
}

/// Builds a daemon that has no listener but one connection, whose other end is the second value.
///
/// # Errors
/// Whatever keeps the daemon from serving.
pub async fn build_on_socketpair(
    config: &Config,
    program: &Path,
) -> Result<(App, UnixStream), AppError> {
    let (bound, client) = api::socketpair()?;
    Ok((compose(config, program, bound, None).await?, client))
}

/// Assembles a daemon from the configuration and its bound listeners.
async fn compose(
    config: &Config,
    program: &Path,
    bound: BoundListeners,
    archive: Option<Arc<ArchiveFeed>>,
) -> Result<App, AppError> {
    process_limits::raise();
    let authenticator = Arc::new(Authenticator::new(settings::auth_settings(config))?);
    let (catalogue, provided) = languages::open(config).await?;
    let runner = runner(config, program, provided, archive)?;
    let library = library(config, &runner);
    let server = &config.server;
    Ok(App {
        authentication: Authentication::new(
            Arc::clone(&authenticator),
            Arc::clone(&runner),
            config.auth.open_health,
            server.allowed_authorities.clone(),
            config.requires_certificate(),
        ),
        authenticator,
        runner,
        catalogue: Arc::new(catalogue),
        prepares_languages: false,
        artifact_grace: EMBEDDED_ARTIFACT_GRACE,
        library,
        bound,
        server_settings: settings::server_settings(config),
        call_counters: CallCounters::new(),
        connection_totals: ConnectionTotals {
            grpc: ConnectionCounters::new(),
            admin: ConnectionCounters::new(),
        },
        config: Arc::new(config.clone()),
        admin: None,
        listen: settings::listen_settings(config),
        request_limits: RequestLimits::new(RequestLimitSettings {
            max_message: server.max_message.0,
            max_module: config.compile.max_module.0,
            inflight_request_bytes: server.inflight_request_bytes.0,
            stall_timeout: server.request_stall.0,
            inflight_response_bytes: server.inflight_answer_bytes.0,
            min_response_rate: MinResponseDataRate {
                grace: config.runs.stall_timeout.0 * UNREAD_RESPONSE_STALL_FACTOR,
                min_rate: server.min_answer_rate.0,
            },
        }),
        reflection: server.reflection,
        drain_delay: server.drain_delay.0,
        drain_grace: server.drain_grace.0,
    })
}

/// Builds the runner of modules, with those that the operator provides, and without anything that
/// listens.
///
/// # Errors
/// Whatever keeps it from running modules.
pub(crate) fn runner(
    config: &Config,
    program: &Path,
    provided: ProvidedModules,
    archive: Option<Arc<ArchiveFeed>>,
) -> Result<Arc<Runner>, AppError> {
    let tenants = settings::tenants(config)?;
    let artifacts = settings::artifacts_settings(config)
        .map(|settings| ArtifactCache::open(&settings).map(Arc::new))
        .transpose()
        .map_err(failed("the folder of compiled modules does not open"))?;
    let pages = tenants.iter().map(|it| it.policy.ceilings.max_memory_pages);
    let pages = pages.max().unwrap_or(config.policy.max_memory_pages);
    let largest = tenants
        .iter()
        .map(|it| run::largest_reservation(&it.policy));
    let run_settings = settings::run_settings(config, largest.max().unwrap_or(u64::MAX), archive);
    let sandbox = settings::sandbox_settings(config, pages, program, artifacts);
    let sandbox = Sandbox::start(&sandbox)
        .map_err(|error| failed("the engine does not start")(format!("{error:#}")))?;
    let instance = settings::instance(config);
    let exporter = settings::export_settings(config)
        .map(|settings| Exporter::new(settings).map(Arc::new))
        .transpose()?;
    let runner = Runner::new(instance, sandbox, run_settings, tenants, provided)?;
    Ok(Arc::new(runner.exporting_to(exporter)))
}

/// Builds the library of the modules that are kept for the tenants of `runner`.
pub(crate) fn library(config: &Config, runner: &Arc<Runner>) -> Arc<ModuleLibrary> {
    let registries = settings::registries(config);
    let upload_timeout = config.store.upload_timeout.0;
    Arc::new(ModuleLibrary::new(
        Arc::clone(runner),
        registries,
        upload_timeout,
    ))
}

impl App {
    /// Returns the addresses that the daemon is bound to, with the actual ports.
    pub fn addrs(&self) -> &[Address] {
        self.bound.addresses()
    }

    /// Returns the addresses of the admin listener, with the actual ports.
    pub fn admin_addrs(&self) -> &[Address] {
        self.admin.as_ref().map_or(&[], AdminListener::addrs)
    }

    /// Returns a view of the daemon's internals for tests.
    pub fn probe(&self) -> Probe {
        Probe(Arc::clone(&self.runner))
    }

    /// Returns a handle that has the daemon's files read again on request.
    pub fn reloader(&self) -> Reloader {
        let admin = self.admin.as_ref().and_then(AdminListener::tls_files);
        Reloader {
            authenticator: Arc::clone(&self.authenticator),
            tls: self.bound.tls_files().into_iter().chain(admin).collect(),
        }
    }

    /// Serves and drains as [`Self::serve_and_drain`] does, but discards the drain report.
    ///
    /// # Errors
    /// The same as those of [`Self::serve_and_drain`].
    pub async fn serve_until(self, shutdown: impl Future<Output = ()>) -> Result<(), AppError> {
        self.serve_and_drain(shutdown).await.map(drop)
    }

    /// Builds the dispatcher of all calls, with what each call passes on its way in and out.
    fn dispatcher(
        &self,
        phase: &watch::Receiver<DaemonPhase>,
    ) -> Result<CallDispatcher<impl CallService>, AppError> {
        let routes = routes(self, phase.clone())?;
        let (authentication, limits) = (&self.authentication, &self.request_limits);
        // Whether a request is a gRPC call, and who makes it, is settled before anything of it is
        // buffered.
        let gate = HttpGate::new(settings::offered_calls(&self.config));
        let layered = gate.layer(authentication.layer(limits.layer(routes)));
        Ok(CallDispatcher::new(
            authentication.clone(),
            limits.clone(),
            (Arc::clone(&self.runner), Arc::clone(&self.catalogue)),
            layered,
            Arc::clone(&self.call_counters),
        ))
    }

    /// Starts the threads that serve the gRPC listeners, on which `calls` are answered.
    fn start_server(&self, calls: &CallDispatcher<impl CallService>) -> Result<Server, AppError> {
        let web = settings::web_origins(&self.config).map(|origins| {
            let answers = GrpcWeb::new(calls.clone(), false);
            WebGate::new(OriginGuard::new(origins), answers)
        });
        let server = Server::start(&self.server_settings, calls, web.as_ref());
        server.map_err(|error| {
            let part = "the threads that serve do not start";
            match HostLimit::of(&error) {
                Some(limit) => failed(part)(limit.sentence()),
                None => failed(part)(error),
            }
        })
    }

    /// Serves until `shutdown` completes, and then drains: runs in flight may finish within the
    /// grace period, and are then cancelled. `shutdown` is polled only once the daemon serves.
    ///
    /// # Errors
    /// The daemon cannot run anything, or its serving threads cannot be started.
    pub async fn serve_and_drain(
        mut self,
        shutdown: impl Future<Output = ()>,
    ) -> Result<DrainReport, AppError> {
        let (phase, phases) = watch::channel(DaemonPhase::Starting);
        let deliveries = self.request_limits.response_watchdog().clone();
        let refusals = self.authentication.refusals();
        let calls = self.dispatcher(&phases)?;
        let admin = self.serve_admin(&phases, &calls);
        for address in self.bound.addresses() {
            tracing::info!(%address, "listening");
        }
        let server = self.start_server(&calls)?;
        let accepting = self.bound.accept(
            &self.listen,
            server.event_loops(),
            &self.connection_totals.grpc,
        );
        let (end, ended) = oneshot::channel::<()>();
        let serve = server.serve(async {
            // The sender is dropped or sends: either ends it.
            let _ = ended.await;
        });
        let runner = self.runner;
        let tending = Arc::clone(&runner);
        let written = written(Arc::clone(&runner), self.artifact_grace);
        let preparing = async {
            // A daemon for one call compiles what that call needs.
            match self.prepares_languages {
                true => languages::prepare_all(&self.catalogue, &runner, &self.config).await,
                false => std::future::pending().await,
            }
        };
        let live = async {
            runner
                .warm()
                .await
                .map_err(failed("the engine does not run"))?;
            phase.send_replace(DaemonPhase::Serving);
            tracing::info!("serving");
            shutdown.await;
            phase.send_replace(DaemonPhase::Draining);
            tokio::time::sleep(self.drain_delay).await;
            let drained = drain(&runner, self.drain_grace).await;
            runner.end_watches();
            // This ends the watches of the health service.
            drop(phase);
            drop(end);
            Ok(drained)
        };
        let result = tokio::select! {
            result = serve_beside(serve, live, written, flush(&tending)) => result,
            // None of the following futures ever completes.
            () = deliveries.drop_stalled_responses() => Ok(DrainReport::default()),
            () = tend(&tending) => Ok(DrainReport::default()),
            () = preparing => Ok(DrainReport::default()),
            () = self.authenticator.watch() => Ok(DrainReport::default()),
            () = refusals.report_periodically() => Ok(DrainReport::default()),
        };
        drop(accepting);
        drop(admin);
        refusals.report();
        if let Ok(drained) = &result
            && !drained.is_clean()
        {
            tracing::error!("{drained}");
        }
        tracing::info!("ended");
        result
    }
}

/// Maintains the runner and the archive, and exports traces and output where they are exported, for
/// as long as it is polled.
async fn tend(runner: &Runner) {
    let archive = async {
        if let Some(archive) = runner.archive() {
            archive.run_maintenance().await;
        }
    };
    let export = async {
        if let Some(exporter) = runner.exporter() {
            Arc::clone(exporter).send_all().await;
        }
    };
    tokio::join!(runner.run_maintenance(), archive, export);
}

/// Waits a moment until what is left has been exported and archived, where anything is.
async fn flush(runner: &Runner) {
    let exported = async {
        if let Some(exporter) = runner.exporter() {
            exporter.flush().await;
        }
    };
    let archived = async {
        if let Some(archive) = runner.archive() {
            archive.close(ARCHIVE_GRACE).await;
        }
    };
    tokio::join!(exported, archived);
}

/// Waits until compiled code is on disk, but not for longer than `grace`, which begins when this is
/// first polled. Whoever starts the daemon again would wait for the same compilation.
async fn written(runner: Arc<Runner>, grace: Duration) {
    let written = runner.sandbox().modules().wait_until_written();
    if let Err(Elapsed { .. }) = tokio::time::timeout(grace, written).await {
        tracing::warn!("compiled code was not written to disk in time");
    }
}

/// Serves while `live` runs. When `live` ends, responses that are still going out get a last
/// moment, and so does compiled code that is not `written` yet. After that, what is left to be
/// exported is `flushed`.
async fn serve_beside(
    serve: impl Future<Output = ()>,
    live: impl Future<Output = Result<DrainReport, AppError>>,
    written: impl Future<Output = ()>,
    flushed: impl Future<Output = ()>,
) -> Result<DrainReport, AppError> {
    let mut serve = std::pin::pin!(serve);
    tokio::select! {
        () = &mut serve => Ok(DrainReport::default()),
        lived = live => {
            let drained = lived?;
            // A connection that never sent anything would delay the end for ever.
            let served = tokio::time::timeout(CANCEL_GRACE, serve);
            let _ = tokio::join!(served, written);
            // The spans of calls have ended with their answers.
            flushed.await;
            Ok(drained)
        }
    }
}

/// Builds the routes of all gRPC services. They have no message limit of their own, because the
/// request limits layer enforces one and tonic's would be reported differently.
fn routes(app: &App, phase: watch::Receiver<DaemonPhase>) -> Result<Routes, AppError> {
    let (runner, library) = (&app.runner, &app.library);
    let sandbox = SandboxApi::new(
        Arc::clone(runner),
        Arc::clone(library),
        phase.clone(),
        hardening::protections_in_force(),
    );
    let modules = ModuleApi::new(Arc::clone(library));
    let responses = app.request_limits.response_watchdog().clone();
    let runs = RunApi::new(Arc::clone(runner), Arc::clone(&app.catalogue), responses);
    let stats = StatsApi::new(Arc::clone(runner), phase.clone());
    let executions = ExecutionApi::new(Arc::clone(runner), Arc::clone(&app.catalogue));
    let mut routes = Routes::builder();
    routes
        .add_service(SandboxServiceServer::new(sandbox).max_decoding_message_size(usize::MAX))
        .add_service(ModuleServiceServer::new(modules).max_decoding_message_size(usize::MAX))
        .add_service(RunServiceServer::new(runs).max_decoding_message_size(usize::MAX))
        .add_service(StatsServiceServer::new(stats).max_decoding_message_size(usize::MAX))
        .add_service(ExecutionServiceServer::new(executions).max_decoding_message_size(usize::MAX))
        .add_service(HealthServer::new(HealthApi::new(phase)));
    if app.reflection {
        api::add_reflection(&mut routes).map_err(failed("reflection does not start"))?;
    }
    Ok(routes.routes().prepare())
}

/// A view of the daemon's internals, for tests.
pub struct Probe(Arc<Runner>);

impl Probe {
    /// Returns how many instances are allocated from pools now.
    pub fn pooled_instances(&self) -> u64 {
        self.0.sandbox().pooled_instances()
    }

    /// Returns how many compilations were run to their end since the start, those that failed
    /// included.
    pub fn compilations(&self) -> u64 {
        self.0.sandbox().modules().compilations()
    }

    /// Returns about how many bytes the compiled modules in memory take.
    pub fn cached_bytes(&self) -> u64 {
        self.0.sandbox().modules().cached_bytes()
    }

    /// Returns the bytes of all logs, the number of runs in the history, and the bytes of their
    /// records.
    pub fn remembered(&self) -> (usize, usize, usize) {
        self.0.remembered()
    }

    /// Returns the bytes of outgoing responses that no run's reservation covers.
    pub fn answer_bytes(&self) -> u64 {
        self.0.answer_bytes()
    }

    /// Returns the bytes that are reserved for runs and for their responses.
    pub fn reserved_bytes(&self) -> u64 {
        let (_, loads) = self.0.load();
        loads.runs.bytes
    }

    /// Returns how many uploads of modules are in progress.
    pub fn uploads(&self) -> u32 {
        let (_, loads) = self.0.load();
        loads.uploads.held
    }

    /// Returns how many artefacts on disk were rejected.
    pub fn rejected_artifacts(&self) -> u64 {
        self.0.sandbox().modules().rejected_artifacts()
    }
}
