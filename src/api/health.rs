//! Implements `grpc.health.v1.Health`, which load balancers, kubelets and clients ask. The services
//! of a daemon either all serve or all do not, so the daemon's phase is the status of each.

use std::collections::HashMap;

use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::health_proto::health_check_response::ServingStatus;
use super::health_proto::health_server::Health;
use super::health_proto::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use super::proto::execution_service_server::SERVICE_NAME as EXECUTION_SERVICE;
use super::proto::module_service_server::SERVICE_NAME as MODULE_SERVICE;
use super::proto::run_service_server::SERVICE_NAME as RUN_SERVICE;
use super::proto::sandbox_service_server::SERVICE_NAME as SANDBOX_SERVICE;
use super::proto::stats_service_server::SERVICE_NAME as STATS_SERVICE;
use super::sandbox::DaemonPhase;
use crate::model::refusal::{Reason, Refusal, list, quote};

/// The services whose health is reported. The empty name stands for the daemon as a whole.
const SERVICES: [&str; 6] = [
    "",
    EXECUTION_SERVICE,
    MODULE_SERVICE,
    RUN_SERVICE,
    SANDBOX_SERVICE,
    STATS_SERVICE,
];

/// The health service, which answers from the daemon's phase.
pub struct HealthApi {
    /// The daemon's phase. The channel is closed when the daemon is about to end.
    phase: watch::Receiver<DaemonPhase>,
}

impl HealthApi {
    /// Creates the service of a daemon that is in `phase`. Watches end when the sender of `phase`
    /// is dropped.
    pub fn new(phase: watch::Receiver<DaemonPhase>) -> Self {
        Self { phase }
    }
}

/// Translates a phase of the daemon into the protocol's terms.
fn serving_status(phase: DaemonPhase) -> ServingStatus {
    match phase {
        DaemonPhase::Serving => ServingStatus::Serving,
        DaemonPhase::Starting | DaemonPhase::Draining => ServingStatus::NotServing,
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

/// Yields the status of a service, and each status that it changes to, until the daemon is about to
/// end. The status of a service that the daemon does not have never changes.
fn states(phase: watch::Receiver<DaemonPhase>, known: bool) -> impl Stream<Item = ServingStatus> {
    stream::unfold((phase, None), move |(mut phase, told)| async move {
        loop {
            let now = match known {
                true => serving_status(*phase.borrow_and_update()),
                false => ServingStatus::ServiceUnknown,
            };
            if told != Some(now) {
                return Some((now, (phase, Some(now))));
            }
            phase.changed().await.ok()?;
        }
    })
}

#[tonic::async_trait]
impl Health for HealthApi {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let HealthCheckRequest { service } = request.into_inner();
        if !SERVICES.contains(&service.as_str()) {
            return Err(Status::from(unknown(&service)));
        }
        Ok(Response::new(answer(serving_status(*self.phase.borrow()))))
    }

    async fn list(
        &self,
        _: Request<HealthListRequest>,
    ) -> Result<Response<HealthListResponse>, Status> {
        let now = answer(serving_status(*self.phase.borrow()));
        let statuses = SERVICES.map(|service| (service.to_owned(), now));
        Ok(Response::new(HealthListResponse {
            statuses: HashMap::from(statuses),
        }))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let HealthCheckRequest { service } = request.into_inner();
        let known = SERVICES.contains(&service.as_str());
        let states = states(self.phase.clone(), known).map(|status| Ok(answer(status)));
        Ok(Response::new(states.boxed()))
    }
}

fn unknown(service: &str) -> Refusal {
    let message = format!(
        "there is no service \"{}\"; health is told of: the empty name, {}",
        quote(service),
        list(&SERVICES[1..])
    );
    Refusal::new(Reason::ServiceNotFound, message).with("service", quote(service))
}
