//! The composition root: builds everything from the configuration, binds, returns what it bound. No rules.

mod drain;
mod reload;
mod settings;

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tonic::service::Routes;
use tower_layer::Layer;

use crate::api::health_proto::health_server::HealthServer;
use crate::api::proto::module_service_server::ModuleServiceServer;
use crate::api::proto::run_service_server::RunServiceServer;
use crate::api::proto::sandbox_service_server::SandboxServiceServer;
use crate::api::{
    self, Address, Authentication, Bound, Calls, HealthApi, HttpGate, Intake, IntakeSettings,
    ListenSettings, ModuleApi, Phase, RunApi, SandboxApi, Server, ServerSettings, TakingPace,
};
use crate::auth::Gatekeeper;
use crate::config::{self, Config, Known, Overrides, Problems};
use crate::hardening;
use crate::host_limit::HostLimit;
use crate::process_limits;
use crate::run::{self, Runner};
use crate::sandbox::{self, Sandbox};
use crate::store::Artifacts;

pub use self::drain::Drained;
use self::drain::{LAST_WAIT, drain};
pub use self::reload::Reloader;

/// An answer may lie untaken for this many times `runs.stall_timeout`: longer than a guest waits for its reader, so
/// that a slow one still learns how its run ended.
const PATIENCE: u32 = 3;

/// A daemon that is bound but does not serve yet.
pub struct App {
    runner: Arc<Runner>,
    bound: Bound,
    listen: ListenSettings,
    intake: Intake,
    gatekeeper: Arc<Gatekeeper>,
    authentication: Authentication,
    serving: ServerSettings,
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

fn compose(config: &Config, program: &Path, bound: Bound) -> Result<App, AppError> {
    process_limits::raise();
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
        serving: settings::server_settings(config),
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

    /// What reads its files again when somebody asks for that.
    pub fn reloader(&self) -> Reloader {
        Reloader {
            gatekeeper: Arc::clone(&self.gatekeeper),
            tls: self.bound.tls_files(),
        }
    }

    /// As [`Self::serve_and_drain`], for those to whom it is the same how the drain went.
    ///
    /// # Errors
    /// As there.
    pub async fn serve_until(self, shutdown: impl Future<Output = ()>) -> Result<(), AppError> {
        self.serve_and_drain(shutdown).await.map(drop)
    }

    /// Serves until `shutdown` resolves, then drains: runs in flight finish within the grace, then they are cancelled.
    /// It is polled once the daemon serves.
    ///
    /// # Errors
    /// Where the daemon cannot run anything, or its transport fails.
    pub async fn serve_and_drain(
        self,
        shutdown: impl Future<Output = ()>,
    ) -> Result<Drained, AppError> {
        let (phase, phases) = watch::channel(Phase::Starting);
        let deliveries = self.intake.deliveries().clone();
        let refusals = self.authentication.refusals();
        let routes = routes(&self.runner, phases, self.reflection)?;
        // What is a call, and who calls, before anything is taken in.
        let layered = HttpGate.layer(self.authentication.layer(self.intake.layer(routes)));
        let runner = Arc::clone(&self.runner);
        let calls = Calls::new(self.authentication, self.intake, runner, layered);
        for address in self.bound.addresses() {
            tracing::info!(%address, "listening");
        }
        let server = Server::start(&self.serving, &calls).map_err(|error| {
            let told = failed("the threads that serve do not start");
            match HostLimit::of(&error) {
                Some(limit) => told(&limit.sentence()),
                None => told(&error),
            }
        })?;
        let accepting = self.bound.accept(&self.listen, server.event_loops());
        let (end, ended) = oneshot::channel::<()>();
        let serve = server.serve(async {
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
            tracing::info!("serving");
            shutdown.await;
            phase.send_replace(Phase::Draining);
            tokio::time::sleep(self.drain_delay).await;
            let drained = drain(&runner, self.drain_grace).await;
            runner.end_watches();
            // Ends those of health.
            drop(phase);
            drop(end);
            Ok(drained)
        };
        let result = tokio::select! {
            result = serve_beside(serve, live) => result,
            // None of these ends.
            () = deliveries.let_go() => Ok(Drained::default()),
            () = tending.tend() => Ok(Drained::default()),
            () = self.gatekeeper.watch() => Ok(Drained::default()),
            () = refusals.keep_telling() => Ok(Drained::default()),
        };
        drop(accepting);
        refusals.tell();
        if let Ok(drained) = &result
            && !drained.is_clean()
        {
            tracing::error!("{drained}");
        }
        tracing::info!("ended");
        result
    }
}

/// Serves beside `live`; when that is over, what is still on its way out gets a last moment.
async fn serve_beside(
    serve: impl Future<Output = ()>,
    live: impl Future<Output = Result<Drained, AppError>>,
) -> Result<Drained, AppError> {
    let mut serve = std::pin::pin!(serve);
    tokio::select! {
        () = &mut serve => Ok(Drained::default()),
        lived = live => {
            let drained = lived?;
            // A connection that never spoke would hold it up for ever.
            let _ = tokio::time::timeout(LAST_WAIT, serve).await;
            Ok(drained)
        }
    }
}

/// All services. The intake layer caps messages: tonic's own cap answers in other terms.
fn routes(
    runner: &Arc<Runner>,
    phase: watch::Receiver<Phase>,
    reflection: bool,
) -> Result<Routes, AppError> {
    let sandbox = SandboxApi::new(Arc::clone(runner), phase.clone(), hardening::state());
    let modules = ModuleApi::new(Arc::clone(runner));
    let runs = RunApi::new(Arc::clone(runner));
    let mut routes = Routes::builder();
    routes
        .add_service(SandboxServiceServer::new(sandbox).max_decoding_message_size(usize::MAX))
        .add_service(ModuleServiceServer::new(modules).max_decoding_message_size(usize::MAX))
        .add_service(RunServiceServer::new(runs).max_decoding_message_size(usize::MAX))
        .add_service(HealthServer::new(HealthApi::new(phase)));
    if reflection {
        let told = failed("reflection does not start");
        api::add_reflection(&mut routes).map_err(|error| told(&error))?;
    }
    Ok(routes.routes().prepare())
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

    /// Modules that arrive in pieces now.
    pub fn uploads(&self) -> u32 {
        let (_, loads) = self.0.load();
        loads.arrivals.held
    }

    /// Artefacts on disk that were not taken.
    pub fn rejected_artifacts(&self) -> u64 {
        self.0.sandbox().modules().rejected_artifacts()
    }
}
