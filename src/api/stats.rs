//! Implements `StatsService`: decodes each request, asks the runner, and encodes the answer.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::decode_stats::{stats_history, stats_watch};
use super::encode_stats::{daemon_load, stats};
use super::layers::auth::tenant_of;
use super::proto;
use super::proto::stats_service_server::StatsService;
use super::sandbox::DaemonPhase;
use crate::run::{Runner, StatsReport, StatsWatch};

/// The implementation of `StatsService`.
pub struct StatsApi {
    source: StatsSource,
}

/// What the figures are made of.
#[derive(Clone)]
struct StatsSource {
    runner: Arc<Runner>,
    phase: watch::Receiver<DaemonPhase>,
}

/// The stream of figures that answers `WatchStats`.
type StatsStream = Pin<Box<dyn Stream<Item = Result<proto::WatchStatsResponse, Status>> + Send>>;

impl StatsApi {
    /// Creates the service, which asks `runner` for the figures. They say which `phase` the daemon
    /// is in.
    pub fn new(runner: Arc<Runner>, phase: watch::Receiver<DaemonPhase>) -> Self {
        let source = StatsSource { runner, phase };
        Self { source }
    }
}

impl StatsSource {
    fn encode(&self, report: &StatsReport) -> proto::Stats {
        let phase = *self.phase.borrow();
        stats(report, daemon_load(&self.runner, phase.status()))
    }
}

/// Streams the reports of a watch. At its end, a status says that the daemon is shutting down.
fn told(
    source: StatsSource,
    watch: StatsWatch,
) -> impl Stream<Item = Result<proto::WatchStatsResponse, Status>> {
    stream::unfold(Some((source, watch)), |open| async {
        let (source, mut watch) = open?;
        let Some(report) = watch.next().await else {
            return Some((Err(Status::from(crate::run::shutting_down())), None));
        };
        let stats = Some(source.encode(&report));
        let response = proto::WatchStatsResponse { stats };
        Some((Ok(response), Some((source, watch))))
    })
}

#[tonic::async_trait]
impl StatsService for StatsApi {
    type WatchStatsStream = StatsStream;

    async fn get_stats(
        &self,
        request: Request<proto::GetStatsRequest>,
    ) -> Result<Response<proto::GetStatsResponse>, Status> {
        let tenant = tenant_of(&request)?;
        let proto::GetStatsRequest { history } = request.into_inner();
        let history = stats_history(history)?;
        let report = self.source.runner.stats(&tenant, history);
        let stats = Some(self.source.encode(&report));
        Ok(Response::new(proto::GetStatsResponse { stats }))
    }

    async fn watch_stats(
        &self,
        request: Request<proto::WatchStatsRequest>,
    ) -> Result<Response<StatsStream>, Status> {
        let tenant = tenant_of(&request)?;
        let (interval, history) = stats_watch(request.into_inner())?;
        let runner = &self.source.runner;
        let watch = runner.watch_stats(&tenant, interval, history)?;
        Ok(Response::new(Box::pin(told(self.source.clone(), watch))))
    }
}
