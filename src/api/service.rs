//! `SandboxService`: thin. Decode, hand over, encode.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::auth::tenant_of;
use super::decode::LoadFrom;
use super::intake::Arrival;
use super::proto::sandbox_service_server::SandboxService;
use super::start::Call;
use super::stream::Events;
use super::{decode, encode, proto, status};
use crate::refusal::Refusal;
use crate::run::{Loads, Method, Runner, Tenant};
use crate::sandbox::WASMTIME_VERSION;

/// Where the daemon is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not warm yet.
    Starting,
    /// Takes runs.
    Serving,
    /// Ending.
    Draining,
}

/// The service.
pub struct SandboxApi {
    runner: Arc<Runner>,
    phase: watch::Receiver<Phase>,
    started: Instant,
    hardening: String,
}

impl SandboxApi {
    /// Over `runner`, telling of `phase`, and of what confines the daemon.
    pub fn new(runner: Arc<Runner>, phase: watch::Receiver<Phase>, hardening: String) -> Self {
        Self {
            runner,
            phase,
            started: Instant::now(),
            hardening,
        }
    }
}

#[tonic::async_trait]
impl SandboxService for SandboxApi {
    type RunStreamStream = Events;

    async fn run(
        &self,
        _: Request<proto::RunRequest>,
    ) -> Result<Response<proto::RunResponse>, Status> {
        // Before the layers around this service, by `run_call`.
        let why = "a Run came by the path of the other methods";
        Err(status::refused(Refusal::internal(why)))
    }

    async fn run_stream(
        &self,
        request: Request<proto::RunStreamRequest>,
    ) -> Result<Response<Events>, Status> {
        let call = Call::of(&self.runner, &request, Method::RunStream)?;
        let proto::RunStreamRequest { spec } = request.into_inner();
        let attached = call.start(&self.runner, spec, None).await?;
        Ok(Events::answer(attached))
    }

    async fn load_module(
        &self,
        request: Request<proto::LoadModuleRequest>,
    ) -> Result<Response<proto::LoadModuleResponse>, Status> {
        let arrival = Arrival::of(&request);
        let loaded = async {
            let until = decode::until(&request)?;
            let tenant = tenant_of(&request)?;
            let (from, about) = decode::load(request.into_inner(), &tenant.policy)?;
            match from {
                LoadFrom::Wasm(wasm) => {
                    let wasm = decode::charged(wasm, arrival.charge.as_ref());
                    let taken = self.runner.keep(&tenant, until, wasm, about).await?;
                    Ok((encode::loaded(&taken, None), taken.untold))
                }
                LoadFrom::Oci(reference) => {
                    let pulled = self.runner.pull(&tenant, until, &reference, about);
                    let (taken, resolved) = pulled.await?;
                    Ok((encode::loaded(&taken, Some(resolved)), taken.untold))
                }
            }
        };
        let loaded: Result<_, Refusal> = loaded.await;
        let (loaded, untold) = loaded.map_err(|refusal| status::from(&refusal))?;
        let mut response = Response::new(loaded);
        response.extensions_mut().insert(untold);
        Ok(response)
    }

    async fn health(
        &self,
        request: Request<proto::HealthRequest>,
    ) -> Result<Response<proto::HealthResponse>, Status> {
        let (runs_in_flight, loads) = self.runner.load();
        let Loads {
            runs,
            compiles,
            arrivals,
        } = loads;
        let sandbox = self.runner.sandbox();
        let status = match *self.phase.borrow() {
            Phase::Starting => proto::ServingStatus::NotServing,
            Phase::Serving => proto::ServingStatus::Serving,
            Phase::Draining => proto::ServingStatus::Draining,
        };
        Ok(Response::new(proto::HealthResponse {
            status: status.into(),
            runtime: Some(proto::RuntimeInfo {
                name: "wasmtime".to_owned(),
                version: WASMTIME_VERSION.to_owned(),
                features: features(&tenant_of(&request)),
            }),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: self.runner.instance().to_owned(),
            runs_in_flight,
            runs_queued: runs.waiting,
            run_capacity: runs.places,
            uptime: Some(encode::duration(self.started.elapsed())),
            pool_mode: sandbox.pool_mode().to_owned(),
            compile_mode: sandbox.modules().compile_mode().to_owned(),
            hardening: self.hardening.clone(),
            memory_reserved: runs.bytes,
            memory_capacity: runs.capacity,
            compiles_in_flight: compiles.held,
            compiles_queued: compiles.waiting,
            uploads_in_flight: arrivals.held,
            upload_capacity: arrivals.places,
        }))
    }
}

/// What the runtime can do for a caller, in the API's vocabulary. One that is not known is told of no proposals.
fn features(tenant: &Result<Arc<Tenant>, Refusal>) -> Vec<String> {
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
