//! How many runs hold a slot now, and how many answers are on their way: what a drain waits for.

use std::sync::Arc;

use tokio::sync::watch;

/// The counts.
#[derive(Debug)]
pub(super) struct InFlight {
    count: watch::Sender<Count>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    running: usize,
    /// Answers that their callers have not been given.
    untold: usize,
}

/// An answer that its caller has not been given yet, counted until the last clone of this is dropped.
#[derive(Clone, Debug)]
pub struct Untold(#[expect(dead_code, reason = "held for its drop")] Arc<Counted>);

#[derive(Debug)]
struct Counted(Arc<InFlight>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.count.send_modify(|count| count.untold -= 1);
    }
}

/// A run in flight, counted until this is dropped.
#[derive(Debug)]
pub(super) struct Flight(Arc<InFlight>);

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.count.send_modify(|count| count.running -= 1);
    }
}

impl InFlight {
    /// None yet.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            count: watch::Sender::new(Count::default()),
        })
    }

    /// Counts a run.
    pub(super) fn enter(self: &Arc<Self>) -> Flight {
        self.count.send_modify(|count| count.running += 1);
        Flight(Arc::clone(self))
    }

    /// Counts an answer.
    pub(super) fn untold(self: &Arc<Self>) -> Untold {
        self.count.send_modify(|count| count.untold += 1);
        Untold(Arc::new(Counted(Arc::clone(self))))
    }

    /// How many runs there are.
    pub(super) fn count(&self) -> usize {
        self.count.borrow().running
    }

    /// Resolves when there is none, and every end is told.
    pub(super) async fn none_left(&self) {
        // The sender lives as long as self.
        let none = |count: &Count| count.running == 0 && count.untold == 0;
        let _ = self.count.subscribe().wait_for(none).await;
    }
}
