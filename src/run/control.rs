//! Operations on existing runs from outside: find, list, watch, attach, cancel and send input.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::OwnedSemaphorePermit;

use super::attach::RunHandle;
use super::origin::RunState;
use super::registry::{FoundRun, Selector};
use super::snapshot::RunRecord;
use super::tenant::Tenant;
use super::watch::Watch;
use super::{Runner, with_deadline};
use crate::event_log::RunEnd;
use crate::model::outcome::{CancelCause, Outcome};
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::{RunId, TimeRange};
use crate::sandbox::AcceptedInput;

/// How long a refused viewer is told to wait before it tries again.
const RETRY: Duration = Duration::from_secs(1);

/// The result of a request to cancel a run.
#[derive(Debug)]
pub struct CancelReport {
    /// The state in which the request found the run.
    pub found: RunState,
    /// Whether the run ended because of this request, rather than before it or for another reason.
    pub by_this: bool,
    /// The record of the run after its end.
    pub run: RunRecord,
}

impl Runner {
    /// Returns the record of one of a tenant's runs.
    ///
    /// # Errors
    /// `RUN_ELSEWHERE` for a run of another daemon; `RUN_NOT_FOUND` for a run that never was, is
    /// not remembered any more, or is another tenant's.
    pub fn find(&self, tenant: &Tenant, id: &RunId) -> Result<RunRecord, Refusal> {
        self.look_up(tenant, id).map(FoundRun::record)
    }

    fn look_up(&self, tenant: &Tenant, id: &RunId) -> Result<FoundRun, Refusal> {
        self.check_instance(id)?;
        tenant.registry.find(id).ok_or_else(|| not_found(id))
    }

    /// Refuses the id of a run that another daemon holds.
    fn check_instance(&self, id: &RunId) -> Result<(), Refusal> {
        if id.instance() != self.instance {
            let message = format!("run_id: {id} is a run of the daemon {}", id.instance());
            return Err(Refusal::new(Reason::RunElsewhere, message)
                .at_field("run_id")
                .with("instance", id.instance()));
        }
        Ok(())
    }

    /// Lists at most `size` of a tenant's runs that match and were asked for within `asked`, the
    /// newest first, older than `before`. The second value is what the next page is before; `None`
    /// where no others follow.
    pub fn runs(
        &self,
        tenant: &Tenant,
        selector: &Selector,
        asked: TimeRange,
        before: Option<RunId>,
        size: usize,
    ) -> (Vec<RunRecord>, Option<RunId>) {
        tenant.registry.list(selector, asked, before, size)
    }

    /// Watches the runs of a tenant that match: first all that there are, then each change.
    ///
    /// # Errors
    /// `QUEUE_FULL` where the tenant has all of its share of `runs.viewers` open already.
    pub fn watch(&self, tenant: &Tenant, selector: Selector) -> Result<Watch, Refusal> {
        Ok(Watch::start(&tenant.registry, selector, viewer(tenant)?))
    }

    /// Attaches a viewer that reads the run from event `from` on.
    ///
    /// # Errors
    /// Those of [`Self::find`] and [`Self::watch`]; `SPEC_INVALID` where the run has not come as
    /// far as `from`.
    pub fn attach(
        &self,
        tenant: &Arc<Tenant>,
        id: &RunId,
        from: u64,
    ) -> Result<RunHandle, Refusal> {
        self.check_instance(id)?;
        let viewed = tenant.registry.view(id, |run| {
            let place = viewer(tenant)?;
            RunHandle::view(&tenant.registry, run, from, place).map_err(|highest| {
                let message = format!("{from} is beyond the run's next event, {highest}");
                Refusal::invalid("from_seq", message)
                    .with("asked", from)
                    .with("allowed", highest)
            })
        });
        viewed.ok_or_else(|| not_found(id))?
    }

    /// Acquires the permit of one more viewer of a tenant's runs.
    ///
    /// # Errors
    /// `QUEUE_FULL` where the tenant has all of its share of `runs.viewers` open already.
    pub fn acquire_viewer(&self, tenant: &Tenant) -> Result<OwnedSemaphorePermit, Refusal> {
        viewer(tenant)
    }

    /// Sends input to a run, for the place `offset` of what is sent to it, and returns at once with
    /// how much of it fitted. If all of `data` was taken, `eof` closes the input.
    ///
    /// # Errors
    /// Those of [`Self::find`]; `RUN_ENDED`; `INPUT_CLOSED`, `INPUT_GAP`, `INPUT_CONFLICT` or
    /// `INPUT_FULL` where the input takes nothing.
    pub fn send_input(
        &self,
        tenant: &Tenant,
        id: &RunId,
        (offset, data, eof): (u64, &[u8], bool),
    ) -> Result<AcceptedInput, Refusal> {
        let run = match self.look_up(tenant, id)? {
            FoundRun::Live(run) => run,
            FoundRun::Ended(_) => return Err(run_ended(id)),
        };
        match run.live_input() {
            Some(input) => Ok(input.send(offset, data, eof)?),
            // The run is over before it lets go of its input.
            None if run.state() == RunState::Ended => Err(run_ended(id)),
            None => Err(never_open(id)),
        }
    }

    /// Cancels a run, and waits until it has ended.
    ///
    /// # Errors
    /// Those of [`Self::find`]; `NOT_STARTED` where the caller's deadline passes first.
    pub async fn cancel(
        &self,
        tenant: &Tenant,
        id: &RunId,
        deadline: Option<Instant>,
    ) -> Result<CancelReport, Refusal> {
        let run = match self.look_up(tenant, id)? {
            FoundRun::Live(run) => run,
            FoundRun::Ended(record) => {
                return Ok(CancelReport {
                    found: RunState::Ended,
                    by_this: false,
                    run: *record,
                });
            }
        };
        let found = run.state();
        let first = run.cancel();
        let ended = async { Ok::<_, Refusal>(run.log.wait_for_end().await) };
        let by_this = was_cancelled(&*with_deadline(deadline, ended).await?);
        Ok(CancelReport {
            found,
            by_this: found != RunState::Ended && first && by_this,
            run: run.record(),
        })
    }
}

/// Reports whether a run ended because somebody called for it, as far as its end tells. A run that
/// never started may as well have been left by its caller.
pub(super) fn was_cancelled(end: &RunEnd) -> bool {
    match end {
        Ok(ended) => ended.outcome == Outcome::Cancelled(CancelCause::CancelRpc),
        Err(refusal) => refusal.reason() == Reason::RunCancelled,
    }
}

/// Builds the refusal of input for a run that has ended.
fn run_ended(id: &RunId) -> Refusal {
    let message = format!("the run {id} has ended, and reads no more input");
    Refusal::new(Reason::RunEnded, message).with("run_id", id)
}

/// Builds the refusal of input for a run that has no input but that of its spec.
fn never_open(id: &RunId) -> Refusal {
    let message = format!(
        "the input of the run {id} was never open: it was started without spec.open_stdin, and not by Interact"
    );
    Refusal::new(Reason::InputClosed, message).with("run_id", id)
}

fn not_found(id: &RunId) -> Refusal {
    let message = format!(
        "run_id: there is no run {id}, or it is not remembered any more (runs.history, runs.history_age, runs.history_bytes, RunService.DeleteRuns)"
    );
    Refusal::new(Reason::RunNotFound, message).at_field("run_id")
}

/// Takes a permit for one more viewer or watch of a tenant.
pub(super) fn viewer(tenant: &Tenant) -> Result<OwnedSemaphorePermit, Refusal> {
    Arc::clone(&tenant.viewers)
        .try_acquire_owned()
        .map_err(|_| {
            let message = "as many are attached to runs, or watch them, as may (runs.viewers)";
            Refusal::new(Reason::QueueFull, message)
                .with("limit", "runs.viewers")
                .retry_after(RETRY)
        })
}
