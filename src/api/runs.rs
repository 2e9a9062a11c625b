//! Implements `RunService`: decodes each request, hands it to the runner, and encodes the answer.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::layers::auth::tenant_of;
use super::proto::run_service_server::RunService;
use super::proto::watch_runs_response::Event;
use super::run_event_stream::RunEventStream;
use super::{decode, encode, interact, proto};
use crate::model::request::RunId;
use crate::run::{CancelReport, RunUpdate, Runner, Watch};

/// The implementation of `RunService`.
pub struct RunApi {
    runner: Arc<Runner>,
}

impl RunApi {
    /// Creates the service, which hands its requests to `runner`.
    pub fn new(runner: Arc<Runner>) -> Self {
        Self { runner }
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
    type AttachRunStream = RunEventStream;
    type InteractStream = RunEventStream;

    async fn list_runs(
        &self,
        request: Request<proto::ListRunsRequest>,
    ) -> Result<Response<proto::ListRunsResponse>, Status> {
        let tenant = tenant_of(&request)?;
        let page = decode::run_page(request.into_inner())?;
        let (runs, next) = self
            .runner
            .runs(&tenant, &page.selector, page.before, page.size);
        Ok(Response::new(proto::ListRunsResponse {
            runs: runs.iter().map(encode::listed_run).collect(),
            next_page_token: next.map(|id| id.to_string()).unwrap_or_default(),
        }))
    }

    async fn watch_runs(
        &self,
        request: Request<proto::WatchRunsRequest>,
    ) -> Result<Response<RunUpdateStream>, Status> {
        let tenant = tenant_of(&request)?;
        let proto::WatchRunsRequest { states, labels } = request.into_inner();
        let selector = decode::selector(states, labels)?;
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
        let run = self.runner.find(&tenant, &id)?;
        let run = Some(encode::run(&run));
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
        let (selector, dry_run) = decode::cancel_runs(request.into_inner())?;
        let matched = self.runner.match_in_flight(&tenant, &selector);
        let report = if dry_run {
            matched.report()
        } else {
            matched.cancel(deadline).await
        };
        Ok(Response::new(encode::cancelled_runs(&report)))
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
    ) -> Result<Response<RunEventStream>, Status> {
        let tenant = tenant_of(&request)?;
        let proto::AttachRunRequest { run_id, from_seq } = request.into_inner();
        let id = self::run_id(&run_id)?;
        let attached = self.runner.attach(&tenant, &id, from_seq)?;
        Ok(RunEventStream::answer(attached))
    }

    async fn interact(
        &self,
        request: Request<Streaming<proto::InteractRequest>>,
    ) -> Result<Response<RunEventStream>, Status> {
        interact::interact(&self.runner, request).await
    }
}
