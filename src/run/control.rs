//! What can be done to runs from outside: find, list, watch, attach, cancel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use super::attach::Attached;
use super::origin::State;
use super::past::RunRecord;
use super::registry::{Found, Selector};
use super::tenant::Tenant;
use super::watch::Watch;
use super::{Runner, before};
use crate::outcome::{CancelCause, Outcome};
use crate::refusal::{Reason, Refusal};
use crate::request::RunId;

/// What a refused viewer is told to wait.
const RETRY: Duration = Duration::from_secs(1);

/// What became of a run that was to be cancelled.
#[derive(Debug)]
pub struct Cancelled {
    /// Where it was.
    pub found: State,
    /// Whether it ended for that.
    pub by_this: bool,
    /// The run, ended.
    pub run: RunRecord,
}

impl Runner {
    /// One run of a tenant.
    ///
    /// # Errors
    /// `RUN_ELSEWHERE` for another daemon's, `RUN_NOT_FOUND` for one that never was, is not remembered any more, or is
    /// another tenant's.
    pub fn find(&self, tenant: &Tenant, id: &RunId) -> Result<RunRecord, Refusal> {
        self.look_up(tenant, id).map(Found::record)
    }

    fn look_up(&self, tenant: &Tenant, id: &RunId) -> Result<Found, Refusal> {
        self.check_instance(id)?;
        tenant.registry.find(id).ok_or_else(|| not_found(id))
    }

    /// Whether a run is this daemon's.
    fn check_instance(&self, id: &RunId) -> Result<(), Refusal> {
        if id.instance() != self.instance {
            let message = format!("run_id: {id} is a run of the daemon {}", id.instance());
            return Err(Refusal::new(Reason::RunElsewhere, message)
                .at("run_id")
                .with("instance", id.instance()));
        }
        Ok(())
    }

    /// At most `size` runs of a tenant that match, the newest first, older than `before`; and where others may follow, what the next
    /// page is before.
    pub fn runs(
        &self,
        tenant: &Tenant,
        selector: &Selector,
        before: Option<RunId>,
        size: usize,
    ) -> (Vec<RunRecord>, Option<RunId>) {
        tenant.registry.list(selector, before, size)
    }

    /// Follows runs of a tenant that match.
    ///
    /// # Errors
    /// `QUEUE_FULL` where there are `runs.viewers` already.
    pub fn watch(&self, tenant: &Tenant, selector: Selector) -> Result<Watch, Refusal> {
        Ok(tenant.registry.watch(selector, viewer(tenant)?))
    }

    /// Attaches a viewer, from event `from` on.
    ///
    /// # Errors
    /// As [`Self::find`] and [`Self::watch`]; `SPEC_INVALID` where the run has not come as far.
    pub fn attach(&self, tenant: &Arc<Tenant>, id: &RunId, from: u64) -> Result<Attached, Refusal> {
        self.check_instance(id)?;
        let viewed = tenant.registry.view(tenant, id, |run| {
            let place = viewer(tenant)?;
            Attached::view(run, from, place).map_err(|highest| {
                let message = format!("{from} is beyond the run's next event, {highest}");
                Refusal::invalid("from_seq", message)
                    .with("asked", from)
                    .with("allowed", highest)
            })
        });
        viewed.ok_or_else(|| not_found(id))?
    }

    /// Ends a run, and waits until it is gone.
    ///
    /// # Errors
    /// As [`Self::find`]; `NOT_STARTED` where the caller's deadline passes first.
    pub async fn cancel(
        &self,
        tenant: &Tenant,
        id: &RunId,
        until: Option<Instant>,
    ) -> Result<Cancelled, Refusal> {
        let run = match self.look_up(tenant, id)? {
            Found::Live(run) => run,
            Found::Past(record) => {
                return Ok(Cancelled {
                    found: State::Ended,
                    by_this: false,
                    run: *record,
                });
            }
        };
        let found = run.state();
        let first = run.cancel();
        let ended = async { Ok::<_, Refusal>(run.log.ended().await) };
        let by_this = match &*before(until, ended).await? {
            Ok(ended) => ended.outcome == Outcome::Cancelled(CancelCause::CancelRpc),
            Err(refusal) => refusal.reason() == Reason::RunCancelled,
        };
        Ok(Cancelled {
            found,
            by_this: found != State::Ended && first && by_this,
            run: run.record(),
        })
    }
}

fn not_found(id: &RunId) -> Refusal {
    let message = format!(
        "run_id: there is no run {id}, or it is not remembered any more (runs.history, runs.history_age, runs.history_bytes)"
    );
    Refusal::new(Reason::RunNotFound, message).at("run_id")
}

/// A place for one more viewer of a tenant.
fn viewer(tenant: &Tenant) -> Result<OwnedSemaphorePermit, Refusal> {
    Arc::clone(&tenant.viewers)
        .try_acquire_owned()
        .map_err(|_| {
            let message = "as many are attached to runs, or watch them, as may (runs.viewers)";
            Refusal::new(Reason::QueueFull, message)
                .with("limit", "runs.viewers")
                .retry_after(RETRY)
        })
}
