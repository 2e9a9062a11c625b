//! Implements `RunService`: decodes each request, hands it to the runner, and encodes the answer.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::layers::auth::tenant_of;
use super::layers::response_watchdog::ResponseWatchdog;
use super::listen::Peer;
use super::proto::run_service_server::RunService;
use super::proto::watch_runs_response::Event;
use super::run_event_stream::RunEventStream;
use super::run_lookup::{AttachedStream, RunLookup};
use super::{decode, decode_runs, encode, interact, proto};
use crate::language::Catalogue;
use crate::model::request::RunId;
use crate::run::{CancelReport, RunUpdate, Runner, Tenant, Watch};

/// The implementation of `RunService`.
pub struct RunApi {
    runner: Arc<Runner>,
    catalogue: Arc<Catalogue>,
    responses: ResponseWatchdog,
}

impl RunApi {
    /// Creates the service, which hands its requests to `runner`. Interactions may execute programs
    /// in the languages of `catalogue`. `responses` watches over its answers.
    pub fn new(
        runner: Arc<Runner>,
        catalogue: Arc<Catalogue>,
        responses: ResponseWatchdog,
    ) -> Self {
        Self {
            runner,
            catalogue,
            responses,
        }
    }

    /// Returns the lookup for the runs of `tenant`.
    fn lookup<'a>(&'a self, tenant: &'a Arc<Tenant>) -> RunLookup<'a> {
        RunLookup::new(&self.runner, tenant, &self.responses)
    }
}

/// The stream of updates that answers `WatchRuns`.
type RunUpdateStream = Pin<Box<dyn Stream<Item = Result<proto::WatchRunsResponse, Status>> + Send>>;

fn run_id(text: &str) -> Result<RunId, Status> {
    RunId::parse("run_id", text).map_err(Status::from)
}

/// Streams the updates of a watch. At its end, a status says that the daemon is shutting down.
fn told(watch: Watch) -> impl Stream<Item = Result<proto::WatchRunsResponse, Status>> {
    futures_util::stream::unfold(Some(watch), |watch| async {
        let mut watch = watch?;
        let event = match watch.next().await {
            Some(RunUpdate::Run(run)) => Event::Run(Box::new(encode::listed_run(&run))),
            Some(RunUpdate::Synced) => Event::Synced(proto::Synced {}),
            None => return Some((Err(Status::from(crate::run::shutting_down())), None)),
        };
        let event = Some(event);
        Some((Ok(proto::WatchRunsResponse { event }), Some(watch)))
    })
}

#[tonic::async_trait]
impl RunService for RunApi {
    type WatchRunsStream = RunUpdateStream;
    type AttachRunStream = AttachedStream;
    type InteractStream = RunEventStream;

    async fn list_runs(
        &self,
        request: Request<proto::ListRunsRequest>,
    ) -> Result<Response<proto::ListRunsResponse>, Status> {
        let tenant = tenant_of(&request)?;
        let page = decode_runs::run_page(request.into_inner())?;
        let runs = self.lookup(&tenant);
        Ok(Response::new(runs.list(&page).await?))
    }

    async fn watch_runs(
        &self,
        request: Request<proto::WatchRunsRequest>,
    ) -> Result<Response<RunUpdateStream>, Status> {
        let tenant = tenant_of(&request)?;
        let proto::WatchRunsRequest { states, labels } = request.into_inner();
        let selector = decode_runs::selector(states, labels)?;
        let watch = self.runner.watch(&tenant, selector)?;
        Ok(Response::new(Box::pin(told(watch))))
    }

    async fn get_run(
        &self,
        request: Request<proto::GetRunRequest>,
    ) -> Result<Response<proto::GetRunResponse>, Status> {
        let tenant = tenant_of(&request)?;
        let proto::GetRunRequest { run_id } = request.into_inner();
        let id = self::run_id(&run_id)?;
        let run = self.lookup(&tenant).get(&id).await?;
        let run = Some(run);
        Ok(Response::new(proto::GetRunResponse { run }))
    }

    async fn cancel_run(
        &self,
        request: Request<proto::CancelRunRequest>,
    ) -> Result<Response<proto::CancelRunResponse>, Status> {
        let deadline = decode::response_deadline(&request)?;
        let tenant = tenant_of(&request)?;
        let proto::CancelRunRequest { run_id } = request.into_inner();
        let id = self::run_id(&run_id)?;
        let cancelled = self.runner.cancel(&tenant, &id, deadline).await;
        let CancelReport {
            found,
            by_this,
            run,
        } = cancelled?;
        Ok(Response::new(proto::CancelRunResponse {
            found: encode::state(found).into(),
            cancelled: by_this,
            run: Some(encode::run(&run)),
        }))
    }

    async fn cancel_runs(
        &self,
        request: Request<proto::CancelRunsRequest>,
    ) -> Result<Response<proto::CancelRunsResponse>, Status> {
        let deadline = decode::response_deadline(&request)?;
        let tenant = tenant_of(&request)?;
        let (selector, dry_run) = decode_runs::cancel_runs(request.into_inner())?;
        let matched = self.runner.match_in_flight(&tenant, &selector);
        let report = if dry_run {
            matched.report()
        } else {
            matched.cancel(deadline).await
        };
        Ok(Response::new(encode::cancelled_runs(&report)))
    }

    async fn delete_runs(
        &self,
        request: Request<proto::DeleteRunsRequest>,
    ) -> Result<Response<proto::DeleteRunsResponse>, Status> {
        let deadline = decode::response_deadline(&request)?;
        let tenant = tenant_of(&request)?;
        let peer = request.extensions().get::<Peer>();
        let caller = peer.map_or_else(|| "unknown".into(), Peer::name);
        let (deletion, dry_run) = decode_runs::delete_runs(request.into_inner())?;
        let runs = self.lookup(&tenant);
        let deleted = runs.delete(&caller, &deletion, dry_run, deadline).await?;
        Ok(Response::new(deleted))
    }

    async fn send_input(
        &self,
        request: Request<proto::SendInputRequest>,
    ) -> Result<Response<proto::SendInputResponse>, Status> {
        let tenant = tenant_of(&request)?;
        let sent = decode::sent_input(request.into_inner())?;
        let piece = (sent.offset, &*sent.data, sent.eof);
        let accepted = self.runner.send_input(&tenant, &sent.run, piece)?;
        Ok(Response::new(encode::accepted_input(accepted)))
    }

    async fn attach_run(
        &self,
        request: Request<proto::AttachRunRequest>,
    ) -> Result<Response<AttachedStream>, Status> {
        let tenant = tenant_of(&request)?;
        let proto::AttachRunRequest { run_id, from_seq } = request.into_inner();
        let id = self::run_id(&run_id)?;
        let runs = self.lookup(&tenant);
        Ok(runs.attach(&id, from_seq).await?)
    }

    async fn interact(
        &self,
        request: Request<Streaming<proto::InteractRequest>>,
    ) -> Result<Response<RunEventStream>, Status> {
        interact::interact(&self.runner, &self.catalogue, request).await
    }
}
