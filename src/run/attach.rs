//! Holding on to a run: as its caller, or as one of its viewers.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;

use super::before;
use super::inflight::Untold;
use super::record::{Hold, Holder, Run};
use super::start::Refused;
use crate::limits::Delivery;
use crate::log::{End, Event, Viewer};
use crate::refusal::Refusal;

/// A hold on a run. A run that is not detached ends when the last hold of a caller is dropped; viewers come and go.
#[derive(Debug)]
pub struct Attached {
    /// The run.
    pub run: Arc<Run>,
    viewer: Viewer,
    // After the viewer: the run's output may be packed away when this is gone.
    _hold: Hold,
    _place: Option<OwnedSemaphorePermit>,
    /// A drain waits for what a caller has not been told yet; the answer takes a clone along.
    pub untold: Option<Untold>,
}

impl Attached {
    /// As the caller that asked for the run. One that reads its output as it is written is owed all of it.
    pub(super) fn first(run: &Arc<Run>, delivery: Delivery, untold: Untold) -> Self {
        let viewer = match delivery {
            Delivery::Captured => run.log.follow(),
            Delivery::Streamed => run.log.owe(),
        };
        Self::caller(run, viewer, untold)
    }

    /// As a caller that does not make the guest wait.
    pub(super) fn again(run: &Arc<Run>, untold: Untold) -> Self {
        Self::caller(run, run.log.follow(), untold)
    }

    fn caller(run: &Arc<Run>, viewer: Viewer, untold: Untold) -> Self {
        Self {
            viewer,
            _hold: run.hold(Holder::Caller),
            _place: None,
            run: Arc::clone(run),
            untold: Some(untold),
        }
    }

    /// As a viewer, from event `from` on.
    ///
    /// # Errors
    /// Where the run has not come as far: the highest number that it can be read from.
    pub(super) fn view(
        run: &Arc<Run>,
        from: u64,
        place: OwnedSemaphorePermit,
    ) -> Result<Self, u64> {
        Ok(Self {
            viewer: run.log.view(from)?,
            _hold: run.hold(Holder::Viewer),
            _place: Some(place),
            run: Arc::clone(run),
            untold: None,
        })
    }

    /// Waits until the run has started; its caller has until `until`.
    ///
    /// # Errors
    /// Where it does not.
    pub(super) async fn begun(self, until: Option<Instant>) -> Result<Self, Refused> {
        let begun = async {
            self.run.log.begun().await;
            Ok::<_, Refusal>(())
        };
        if let Err(refusal) = before(until, begun).await {
            let id = self.run.id;
            return Err(Refused { id, refusal });
        }
        if self.run.log.started().is_none()
            && let Some((_, end)) = self.run.log.end()
            && let Err(refusal) = &*end
        {
            return Err(Refused {
                id: self.run.id,
                refusal: refusal.clone(),
            });
        }
        Ok(self)
    }

    /// The number of the event that comes next.
    pub fn next_seq(&self) -> u64 {
        self.viewer.next_seq()
    }

    /// The next thing that happens; `None` after the end.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.viewer.poll_next(cx)
    }

    /// How the run ended.
    pub async fn ended(&self) -> Arc<End> {
        self.run.log.ended().await
    }
}
