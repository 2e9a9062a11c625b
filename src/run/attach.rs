//! Handles that hold on to a run, as its caller or as one of its viewers, and read its events.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use super::hold::Hold;
use super::in_flight::PendingResponse;
use super::record::{Holder, Run};
use super::refused_run::RefusedRun;
use super::registry::Registry;
use super::with_deadline;
use crate::event_log::{Event, EventReader, RunEnd};
use crate::model::limits::OutputMode;
use crate::model::refusal::Refusal;

/// A hold on a run, and a reader of its events. A run that is not detached ends when the last hold
/// of a caller is dropped; viewers come and go without any effect on it.
#[derive(Debug)]
pub struct RunHandle {
    /// The run that this handle holds.
    pub run: Arc<Run>,
    viewer: EventReader,
    // Declared after the viewer, so that it is dropped after it: the run's output may be packed
    // away once the hold is gone.
    _hold: Hold,
    _place: Option<OwnedSemaphorePermit>,
    /// Counts the answer that the caller has not been given yet, because a drain waits for it; the
    /// answer takes a clone along. `None` for a viewer.
    pub pending_response: Option<PendingResponse>,
}

impl RunHandle {
    /// Attaches the caller that asked for the run. A caller that reads its output as it is written
    /// is owed all of it, and the guest waits for that caller.
    pub(super) fn owner(
        registry: &Arc<Registry>,
        run: &Arc<Run>,
        delivery: OutputMode,
        untold: PendingResponse,
    ) -> Self {
        let viewer = match delivery {
            OutputMode::Captured => run.log.follow(),
            OutputMode::Streamed => run.log.follow_reliably(),
        };
        Self::caller(registry, run, viewer, untold)
    }

    /// Attaches a further caller with the same idempotency key, for which the guest does not wait.
    pub(super) fn join(registry: &Arc<Registry>, run: &Arc<Run>, untold: PendingResponse) -> Self {
        Self::caller(registry, run, run.log.follow(), untold)
    }

    fn caller(
        registry: &Arc<Registry>,
        run: &Arc<Run>,
        viewer: EventReader,
        untold: PendingResponse,
    ) -> Self {
        Self {
            viewer,
            _hold: Hold::new(registry, run, Holder::Caller),
            _place: None,
            run: Arc::clone(run),
            pending_response: Some(untold),
        }
    }

    /// Attaches a viewer that reads from event `from` on. `place` is its permit among the tenant's
    /// viewers.
    ///
    /// # Errors
    /// Where the run has not come as far as `from`: returns the highest number that it can be read
    /// from.
    pub(super) fn view(
        registry: &Arc<Registry>,
        run: &Arc<Run>,
        from: u64,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, u64> {
        Ok(Self {
            viewer: run.log.view(from)?,
            _hold: Hold::new(registry, run, Holder::Viewer),
            _place: Some(place),
            run: Arc::clone(run),
            pending_response: None,
        })
    }

    /// Waits until the run has started, at the longest until the caller's `deadline`.
    ///
    /// # Errors
    /// Returns the refusal where the run does not start, or not in time.
    pub(super) async fn started(self, deadline: Option<Instant>) -> Result<Self, RefusedRun> {
        let begun = async {
            self.run.log.wait_for_start().await;
            Ok::<_, Refusal>(())
        };
        if let Err(refusal) = with_deadline(deadline, begun).await {
            let id = self.run.id;
            return Err(RefusedRun { id, refusal });
        }
        if self.run.log.started().is_none()
            && let Some((_, end)) = self.run.log.end()
            && let Err(refusal) = &*end
        {
            return Err(RefusedRun {
                id: self.run.id,
                refusal: refusal.clone(),
            });
        }
        Ok(self)
    }

    /// Returns the number of the event that comes next.
    pub fn next_seq(&self) -> u64 {
        self.viewer.next_seq()
    }

    /// Polls for the next event; `None` after the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.viewer.poll_next(cx)
    }

    /// Waits until the run has ended, and returns how.
    pub async fn ended(&self) -> Arc<RunEnd> {
        self.run.log.wait_for_end().await
    }
}
