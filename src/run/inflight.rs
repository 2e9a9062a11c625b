//! The runs that hold a slot now, so that they can be counted, waited for and ended.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::outcome::CancelCause;
use crate::request::RunId;
use crate::sandbox::{Stop, StopReason};

/// The runs in flight.
#[derive(Debug)]
pub(super) struct InFlight {
    runs: Mutex<HashMap<RunId, Arc<Stop>>>,
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
pub(super) struct Flight {
    id: RunId,
    all: Arc<InFlight>,
}

impl InFlight {
    /// None yet.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            runs: Mutex::default(),
            count: watch::Sender::new(Count::default()),
        })
    }

    /// Counts a run.
    pub(super) fn enter(self: &Arc<Self>, id: RunId, stop: Arc<Stop>) -> (Flight, Untold) {
        let mut runs = self.lock();
        runs.insert(id.clone(), stop);
        let running = runs.len();
        self.count.send_modify(|count| count.running = running);
        drop(runs);
        let flight = Flight {
            id,
            all: Arc::clone(self),
        };
        (flight, self.untold())
    }

    /// Counts an answer.
    pub(super) fn untold(self: &Arc<Self>) -> Untold {
        self.count.send_modify(|count| count.untold += 1);
        Untold(Arc::new(Counted(Arc::clone(self))))
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count.borrow().running
    }

    /// Asks every one to end.
    pub(super) fn cancel_all(&self, cause: CancelCause) {
        for stop in self.lock().values() {
            stop.request(StopReason::Cancelled(cause));
        }
    }

    /// Resolves when there is none, and every end is told.
    pub(super) async fn none_left(&self) {
        // The sender lives as long as self.
        let none = |count: &Count| count.running == 0 && count.untold == 0;
        let _ = self.count.subscribe().wait_for(none).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Stop>>> {
        self.runs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut runs = self.all.lock();
        runs.remove(&self.id);
        let running = runs.len();
        self.all.count.send_modify(|count| count.running = running);
    }
}
