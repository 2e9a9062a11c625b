//! Counts of the runs that hold a slot, and of the answers that are on their way to their callers:
//! a drain waits until both are zero.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The two counts that a drain waits for.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    running: AtomicUsize,
    /// Answers that their callers have not been given yet.
    pending_responses: AtomicUsize,
    /// Notified whenever one of the counts comes down to zero.
    none: Notify,
}

/// A guard that counts an answer which its caller has not been given yet. The count ends when the
/// last clone is dropped.
#[derive(Clone, Debug)]
pub struct PendingResponse(
    #[expect(dead_code, reason = "held for its drop")] Arc<PendingResponseGuard>,
);

/// A guard that counts one answer and that nobody else shares. The count ends when it is dropped.
#[derive(Debug)]
pub(super) struct PendingResponseGuard(Arc<InFlight>);

impl Drop for PendingResponseGuard {
    fn drop(&mut self) {
        self.0.leave(&self.0.pending_responses);
    }
}

/// A guard that counts a run in flight. The count ends when it is dropped.
#[derive(Debug)]
pub(super) struct InFlightGuard(Arc<InFlight>);

impl Drop for InFlightGuard {
    fn drop(&mut self) {
        self.0.leave(&self.0.running);
    }
}

impl InFlight {
    /// Creates the counts, both at zero.
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Counts a run as in flight until the guard is dropped.
    pub(super) fn track_run(self: &Arc<Self>) -> InFlightGuard {
        self.running.fetch_add(1, Ordering::SeqCst);
        InFlightGuard(Arc::clone(self))
    }

    /// Counts an answer as pending until the last clone of the guard is dropped.
    pub(super) fn track_response(self: &Arc<Self>) -> PendingResponse {
        PendingResponse(Arc::new(self.track_end()))
    }

    /// Counts the end of a run as pending until the guard is dropped, once the end was announced.
    pub(super) fn track_end(self: &Arc<Self>) -> PendingResponseGuard {
        self.pending_responses.fetch_add(1, Ordering::SeqCst);
        PendingResponseGuard(Arc::clone(self))
    }

    fn leave(&self, count: &AtomicUsize) {
        if count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.none.notify_waiters();
        }
    }

    /// Returns the number of runs in flight.
    pub(super) fn count(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// Returns the number of answers that their callers have not been given.
    pub(super) fn pending_count(&self) -> usize {
        self.pending_responses.load(Ordering::SeqCst)
    }

    /// Waits until no run is in flight and no answer or end is pending.
    pub(super) async fn wait_until_idle(&self) {
        loop {
            let mut none = pin!(self.none.notified());
            // Enabled before the counts are read, so that no change of them is missed.
            none.as_mut().enable();
            if self.count() == 0 && self.pending_responses.load(Ordering::SeqCst) == 0 {
                return;
            }
            none.await;
        }
    }
}
