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
use crate::otlp::CallSpan;

/// A hold on a run, and a reader of its events. A run that is not detached ends when the last hold
/// of a caller is dropped; viewers come and go without any effect on it.
#[derive(Debug)]
pub struct RunHandle {
    /// The run that this handle holds.
    pub run: Arc<Run>,
    reader: EventReader,
    // Declared after the reader, so that it is dropped after it: the run's output may be packed
    // away once the hold is gone.
    _hold: Hold,
    _permit: Option<OwnedSemaphorePermit>,
    /// Counts the answer that the caller has not been given yet, because a drain waits for it; the
    /// answer takes a clone along. `None` for a viewer.
    pub pending_response: Option<PendingResponse>,
    /// The span of the call, which ends when this is dropped, unless it was ended before.
    pub span: CallSpan,
}

impl RunHandle {
    /// Attaches the caller that asked for the run. A caller that reads its output as it is written
    /// is owed all of it, and the guest waits for that caller.
    pub(super) fn owner(
        registry: &Arc<Registry>,
        run: &Arc<Run>,
        delivery: OutputMode,
        pending_response: PendingResponse,
    ) -> Self {
        let reader = match delivery {
            OutputMode::Captured => run.log.follow(),
            OutputMode::Streamed => run.log.follow_reliably(),
        };
        Self::caller(registry, run, reader, pending_response)
    }

    /// Attaches a further caller with the same idempotency key, for which the guest does not wait.
    pub(super) fn join(
        registry: &Arc<Registry>,
        run: &Arc<Run>,
        pending_response: PendingResponse,
    ) -> Self {
        Self::caller(registry, run, run.log.follow(), pending_response)
    }

    fn caller(
        registry: &Arc<Registry>,
        run: &Arc<Run>,
        reader: EventReader,
        pending_response: PendingResponse,
    ) -> Self {
        Self {
            reader,
            _hold: Hold::new(registry, run, Holder::Caller),
            _permit: None,
            run: Arc::clone(run),
            pending_response: Some(pending_response),
            span: CallSpan::default(),
        }
    }

    /// Ties the span of the call to this handle.
    #[must_use]
    pub fn in_span(self, span: CallSpan) -> Self {
        span.attach(self.run.id);
        Self { span, ..self }
    }

    /// Attaches a viewer that reads from event `from` on. `permit` is its permit among the tenant's
    /// viewers.
    ///
    /// # Errors
    /// Where the run has not come as far as `from`: returns the highest number that it can be read
    /// from.
    pub(super) fn view(
        registry: &Arc<Registry>,
        run: &Arc<Run>,
        from: u64,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, u64> {
        Ok(Self {
            reader: run.log.view(from)?,
            _hold: Hold::new(registry, run, Holder::Viewer),
            _permit: Some(permit),
            run: Arc::clone(run),
            pending_response: None,
            span: CallSpan::default(),
        })
    }

    /// Waits until the run has started, at the longest until the caller's `deadline`.
    ///
    /// # Errors
    /// Returns the refusal where the run does not start, or not in time.
    pub(super) async fn wait_for_start(
        self,
        deadline: Option<Instant>,
    ) -> Result<Self, RefusedRun> {
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

    /// Reports whether output that comes next is not kept any more.
    pub fn has_lost(&self) -> bool {
        self.reader.has_lost()
    }

    /// Returns the number of the event that comes next.
    pub fn next_seq(&self) -> u64 {
        self.reader.next_seq()
    }

    /// Polls for the next event; `None` after the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.reader.poll_next(cx)
    }

    /// Waits until the run has ended, and returns how.
    pub async fn wait_for_end(&self) -> Arc<RunEnd> {
        self.run.log.wait_for_end().await
    }
}
