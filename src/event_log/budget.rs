//! The memory budget of a tenant's event logs, and the order in which their output is evicted when
//! it is exceeded.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};

use super::EventLog;
use crate::metrics::Count;
use crate::sync::lock;

/// A budget of bytes that all event logs of a tenant share.
///
/// Where it is used up, output is evicted in this order: that of runs that have ended and that
/// nobody holds, the longest ended first; that of ended runs which somebody still holds; then that
/// of runs that go on, except for what their callers have yet to read.
pub struct EventLogBudget {
    budget: usize,
    held: AtomicUsize,
    /// The part of `held` that callers have yet to read, and for which their guests may wait.
    owed: AtomicUsize,
    tickets: AtomicU64,
    /// Logs that have output to evict, in the order in which they are evicted.
    evictable: Mutex<BTreeMap<EvictionSlot, Weak<EventLog>>>,
    history: OnceLock<EvictOldest>,
    /// How often output was evicted from a log.
    evicted: Count,
    /// How many events readers came too late for, each time that one was told.
    lost: Count,
}

/// Drops the output of the longest ended run that a history keeps; returns false where it keeps
/// none.
type EvictOldest = Box<dyn Fn() -> bool + Send + Sync>;

impl fmt::Debug for EventLogBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.held(), self.budget)
    }
}

/// A log's place in the eviction order: ended runs come before those that go on, and then whichever
/// log entered first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EvictionSlot {
    goes_on: bool,
    number: u64,
}

impl EventLogBudget {
    /// Creates a budget of `budget` bytes, none of them used.
    pub fn new(budget: usize) -> Arc<Self> {
        Arc::new(Self {
            budget,
            held: AtomicUsize::new(0),
            owed: AtomicUsize::new(0),
            tickets: AtomicU64::new(1),
            evictable: Mutex::default(),
            history: OnceLock::new(),
            evicted: Count::default(),
            lost: Count::default(),
        })
    }

    /// Sets the function that evicts first: it drops the output of the longest ended run among the
    /// [packed outputs](super::PackedOutput), and returns whether there was one. Only the first
    /// function that is set is used.
    pub fn set_history(&self, let_go: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.history.set(Box::new(let_go));
    }

    /// Returns the bytes that all logs hold now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Returns the bytes that logs hold for callers who have yet to read them.
    pub fn owed(&self) -> usize {
        self.owed.load(Ordering::Relaxed)
    }

    /// Returns how many events readers were told are lost, those of each reader counted.
    pub fn lost(&self) -> u64 {
        self.lost.get()
    }

    /// Returns how often output was evicted from a log to make room.
    pub fn evicted(&self) -> u64 {
        self.evicted.get()
    }

    /// Reports whether the logs hold more than the budget.
    pub(super) fn is_over(&self) -> bool {
        self.held() > self.budget
    }

    pub(super) fn add(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts bytes that a caller has yet to read.
    pub(super) fn owe(&self, bytes: usize) {
        self.owed.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Subtracts bytes that a caller has read, or is not owed any more.
    pub(super) fn pay(&self, bytes: usize) {
        self.owed.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts events that a reader is told are lost.
    pub(super) fn tell_lost(&self, events: u64) {
        self.lost.add(events);
    }

    /// Enters a log that has output to evict. `goes_on` says that its run has not ended.
    pub(super) fn enter(&self, log: Weak<EventLog>, goes_on: bool) -> EvictionSlot {
        let ticket = EvictionSlot {
            goes_on,
            number: self.tickets.fetch_add(1, Ordering::Relaxed),
        };
        self.lock().insert(ticket, log);
        ticket
    }

    /// Removes a log from the eviction order.
    pub(super) fn leave(&self, ticket: EvictionSlot) {
        self.lock().remove(&ticket);
    }

    /// Evicts output until the logs fit the budget, or nothing is left to evict. Takes the locks of
    /// the history and of the logs that have output to evict.
    pub fn make_room(&self) {
        while self.is_over() {
            if self.history.get().is_some_and(|let_go| let_go()) {
                self.evicted.increment();
                continue;
            }
            let Some((_, log)) = self.lock().pop_first() else {
                return;
            };
            // Evicted outside the lock: where this is the last reference to the log, dropping it
            // takes the lock.
            if let Some(log) = log.upgrade() {
                log.evict();
                self.evicted.increment();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<EvictionSlot, Weak<EventLog>>> {
        lock(&self.evictable)
    }
}
