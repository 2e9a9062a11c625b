//! `grpc.health.v1.Health`: what load balancers, kubelets and clients ask. All services of a daemon serve or do not serve
//! together, so that the phase of the daemon is the state of each.

use std::collections::HashMap;

use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::health_proto::health_check_response::ServingStatus;
use super::health_proto::health_server::Health;
use super::health_proto::{
    HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse,
};
use super::proto::module_service_server::SERVICE_NAME as MODULE_SERVICE;
use super::proto::run_service_server::SERVICE_NAME as RUN_SERVICE;
use super::proto::sandbox_service_server::SERVICE_NAME as SANDBOX_SERVICE;
use super::service::Phase;
use super::status::refused;
use crate::refusal::{Reason, Refusal, list, quote};

/// The services whose health is told; the empty name stands for the daemon as a whole.
const SERVICES: [&str; 4] = ["", MODULE_SERVICE, RUN_SERVICE, SANDBOX_SERVICE];

/// Answers what is asked of the daemon's health, from its phase.
pub struct HealthApi {
    /// Closed when the daemon is about to end.
    phase: watch::Receiver<Phase>,
}

impl HealthApi {
    /// Creates the service of a daemon whose `phase` it tells, until the other end of that is dropped.
    pub fn new(phase: watch::Receiver<Phase>) -> Self {
        Self { phase }
    }
}

/// What a phase of the daemon is in the terms of the protocol.
fn serving_status(phase: Phase) -> ServingStatus {
    match phase {
        Phase::Serving => ServingStatus::Serving,
        Phase::Starting | Phase::Draining => ServingStatus::NotServing,
    }
}

fn answer(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

/// Yields the state of a service, and each that it changes to, until the daemon is about to end. Of a service that the
/// daemon does not have, that stays the first one.
fn states(phase: watch::Receiver<Phase>, known: bool) -> impl Stream<Item = ServingStatus> {
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
            return Err(refused(unknown(&service)));
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
