//! How many runs hold a slot now, and how many answers are on their way: what a drain waits for.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

/// The counts.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    running: AtomicUsize,
    /// Answers that their callers have not been given.
    untold: AtomicUsize,
    /// One of them has come down to none.
    none: Notify,
}

/// An answer that its caller has not been given yet, counted until the last clone of this is dropped.
#[derive(Clone, Debug)]
pub struct Untold(#[expect(dead_code, reason = "held for its drop")] Arc<UntoldEnd>);

/// The same, of one that nobody else holds.
#[derive(Debug)]
pub(super) struct UntoldEnd(Arc<InFlight>);

impl Drop for UntoldEnd {
    fn drop(&mut self) {
        self.0.leave(&self.0.untold);
    }
}

/// A run in flight, counted until this is dropped.
#[derive(Debug)]
pub(super) struct Flight(Arc<InFlight>);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.leave(&self.0.running);
    }
}

impl InFlight {
    /// None yet.
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Counts a run.
    pub(super) fn enter(self: &Arc<Self>) -> Flight {
        self.running.fetch_add(1, Ordering::SeqCst);
        Flight(Arc::clone(self))
    }

    /// Counts an answer.
    pub(super) fn untold(self: &Arc<Self>) -> Untold {
        Untold(Arc::new(self.untold_end()))
    }

    /// Counts the end of a run, until it is told.
    pub(super) fn untold_end(self: &Arc<Self>) -> UntoldEnd {
        self.untold.fetch_add(1, Ordering::SeqCst);
        UntoldEnd(Arc::clone(self))
    }

    fn leave(&self, count: &AtomicUsize) {
        if count.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.none.notify_waiters();
        }
    }

    /// How many runs there are.
    pub(super) fn count(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    /// How many answers there are that their callers have not been given.
    pub(super) fn untold_count(&self) -> usize {
        self.untold.load(Ordering::SeqCst)
    }

    /// Resolves when there is none, and every end is told.
    pub(super) async fn none_left(&self) {
        loop {
            let mut none = pin!(self.none.notified());
            // Before the counts are looked at, so that no change of them is missed.
            none.as_mut().enable();
            if self.count() == 0 && self.untold.load(Ordering::SeqCst) == 0 {
                return;
            }
            none.await;
        }
    }
}
