//! Watches over the figures of a tenant, which are told again in each interval.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::Runner;
use super::control::viewer;
use super::stats::{StatsHistory, StatsReport};
use super::tenant::Tenant;
use crate::model::refusal::Refusal;

/// A watch over the figures of a tenant. It makes a report when it is asked for one, so that a slow
/// reader gets the newest and nothing is kept for it.
pub struct StatsWatch {
    runner: Arc<Runner>,
    tenant: Arc<Tenant>,
    interval: Duration,
    /// The samples that the next report has.
    history: StatsHistory,
    /// When the next report is due.
    due: Instant,
    ended: watch::Receiver<bool>,
    _place: OwnedSemaphorePermit,
}

impl Runner {
    /// Watches the figures of a tenant: the first report has the samples that `history` says, and
    /// each later one those since the one before, where `history` says any.
    ///
    /// # Errors
    /// `QUEUE_FULL` where the tenant has all of its share of `runs.viewers` open already.
    pub fn watch_stats(
        self: &Arc<Self>,
        tenant: &Arc<Tenant>,
        interval: Duration,
        history: StatsHistory,
    ) -> Result<StatsWatch, Refusal> {
        Ok(StatsWatch {
            _place: viewer(tenant)?,
            runner: Arc::clone(self),
            tenant: Arc::clone(tenant),
            interval,
            history,
            due: Instant::now(),
            ended: self.stats.ended.subscribe(),
        })
    }
}

impl StatsWatch {
    /// Waits until the next report is due, and makes it; `None` when the daemon ends.
    pub async fn next(&mut self) -> Option<StatsReport> {
        tokio::select! {
            biased;
            // A sender that is gone is an end as well.
            _ = self.ended.wait_for(|ended| *ended) => return None,
            () = tokio::time::sleep_until(self.due.into()) => {}
        }
        let report = self.runner.stats(&self.tenant, self.history);
        self.due = Instant::now() + self.interval;
        if self.history != StatsHistory::None {
            self.history = StatsHistory::After(report.last_tick);
        }
        Some(report)
    }
}
