//! Implements `SandboxService`: decodes each request, hands it to the runner, and encodes the
//! answer.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::decode::LoadSource;
use super::layers::auth::tenant_of;
use super::layers::request_limits::ChargeExtension;
use super::proto::sandbox_service_server::SandboxService;
use super::run_event_stream::RunEventStream;
use super::start::{AskedRun, RunCall};
use super::{decode, encode, proto};
use crate::library::ModuleLibrary;
use crate::model::refusal::Refusal;
use crate::run::{QueueLoads, RunMethod, Runner, Tenant};
use crate::sandbox::WASMTIME_VERSION;

/// The phase of the daemon's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonPhase {
    /// The daemon is not warm yet.
    Starting,
    /// The daemon takes runs.
    Serving,
    /// The daemon is shutting down.
    Draining,
}

impl DaemonPhase {
    /// Returns what the API calls the phase.
    pub(super) fn status(self) -> proto::ServingStatus {
        match self {
            Self::Starting => proto::ServingStatus::NotServing,
            Self::Serving => proto::ServingStatus::Serving,
            Self::Draining => proto::ServingStatus::Draining,
        }
    }
}

/// The implementation of `SandboxService`.
pub struct SandboxApi {
    runner: Arc<Runner>,
    library: Arc<ModuleLibrary>,
    phase: watch::Receiver<DaemonPhase>,
    started: Instant,
    hardening: String,
}

impl SandboxApi {
    /// Creates the service, which hands runs to `runner` and modules to `library`. Health reports
    /// `phase`, and `hardening`, which says what confines the daemon.
    pub fn new(
        runner: Arc<Runner>,
        library: Arc<ModuleLibrary>,
        phase: watch::Receiver<DaemonPhase>,
        hardening: String,
    ) -> Self {
        Self {
            runner,
            library,
            phase,
            started: Instant::now(),
            hardening,
        }
    }
}

#[tonic::async_trait]
impl SandboxService for SandboxApi {
    type RunStreamStream = RunEventStream;

    async fn run(
        &self,
        _: Request<proto::RunRequest>,
    ) -> Result<Response<proto::RunResponse>, Status> {
        // `RunFastPath` answers this method before it reaches the layers around this service.
        let why = "a Run came by the path of the other methods";
        Err(Status::from(Refusal::internal(why)))
    }

    async fn run_stream(
        &self,
        request: Request<proto::RunStreamRequest>,
    ) -> Result<Response<RunEventStream>, Status> {
        let call = RunCall::from_request(&self.runner, &request, RunMethod::RunStream)?;
        let proto::RunStreamRequest { spec } = request.into_inner();
        let attached = call
            .start(&self.runner, AskedRun::Module(spec), None)
            .await?;
        Ok(RunEventStream::answer(attached))
    }

    async fn load_module(
        &self,
        request: Request<proto::LoadModuleRequest>,
    ) -> Result<Response<proto::LoadModuleResponse>, Status> {
        let arrival = ChargeExtension::of(&request);
        let loaded = async {
            let deadline = decode::response_deadline(&request)?;
            let tenant = tenant_of(&request)?;
            let (from, about) = decode::load(request.into_inner(), &tenant.policy)?;
            match from {
                LoadSource::Wasm(wasm) => {
                    let wasm = decode::hold_charge_with(wasm, arrival.charge.as_ref());
                    let taken = self
                        .library
                        .store_inline(&tenant, deadline, wasm, about)
                        .await?;
                    Ok((encode::loaded(&taken, None), taken.pending_response))
                }
                LoadSource::Oci(reference) => {
                    let pulled = self.library.pull(&tenant, deadline, &reference, about);
                    let (taken, resolved) = pulled.await?;
                    Ok((
                        encode::loaded(&taken, Some(resolved)),
                        taken.pending_response,
                    ))
                }
            }
        };
        let loaded: Result<_, Refusal> = loaded.await;
        let (loaded, pending_response) = loaded?;
        let mut response = Response::new(loaded);
        response.extensions_mut().insert(pending_response);
        Ok(response)
    }

    async fn health(
        &self,
        request: Request<proto::HealthRequest>,
    ) -> Result<Response<proto::HealthResponse>, Status> {
        let (runs_in_flight, loads) = self.runner.load();
        let QueueLoads {
            runs,
            compiles,
            uploads,
        } = loads;
        let sandbox = self.runner.sandbox();
        let status = self.phase.borrow().status();
        Ok(Response::new(proto::HealthResponse {
            status: status.into(),
            runtime: Some(proto::RuntimeInfo {
                name: "wasmtime".to_owned(),
                version: WASMTIME_VERSION.to_owned(),
                features: features(request.extensions().get::<Arc<Tenant>>()),
            }),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.runner.instance().to_owned(),
            runs_in_flight,
            runs_queued: runs.waiting,
            run_capacity: runs.permits,
            uptime: Some(encode::duration(self.started.elapsed())),
            pool_mode: sandbox.pool_mode().to_owned(),
            compile_mode: sandbox.modules().compile_mode().to_owned(),
            hardening: self.hardening.clone(),
            memory_reserved: runs.bytes,
            memory_capacity: runs.capacity,
            compiles_in_flight: compiles.held,
            compiles_queued: compiles.waiting,
            uploads_in_flight: uploads.held,
            upload_capacity: uploads.permits,
        }))
    }
}

/// Lists what the runtime can do for a caller, in the API's vocabulary. A caller that is not known
/// is told of no WebAssembly proposals.
fn features(tenant: Option<&Arc<Tenant>>) -> Vec<String> {
    const ALWAYS: [&str; 8] = [
        "wasi_snapshot_preview1",
        "wasi_unstable",
        "wasi_cli_run",
        "memory_limits",
        "fuel",
        "compilation_cache",
        "context_cancellation",
        "streaming",
    ];
    let granted = tenant
        .iter()
        .flat_map(|tenant| &tenant.policy.grants.features);
    ALWAYS
        .into_iter()
        .map(str::to_owned)
        .chain(granted.map(|name| format!("wasm:{name}")))
        .collect()
}
