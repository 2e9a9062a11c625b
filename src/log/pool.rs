//! What all logs may hold together.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Log;

/// The budget of all logs.
///
/// Where it is used up, the output of runs that have ended is let go, the longest ended first; then each run that goes
/// on keeps only what its caller has yet to read, and its guest waits sooner.
#[derive(Debug)]
pub struct Pool {
    budget: usize,
    held: AtomicUsize,
    tickets: AtomicU64,
    /// Logs whose output nobody is owed any more, in the order in which that came to be.
    shelf: Mutex<BTreeMap<u64, Weak<Log>>>,
}

impl Pool {
    /// Of `budget` bytes.
    pub fn new(budget: usize) -> Arc<Self> {
        Arc::new(Self {
            budget,
            held: AtomicUsize::new(0),
            tickets: AtomicU64::new(1),
            shelf: Mutex::default(),
        })
    }

    /// Bytes that all logs hold now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether more is held than there should be.
    pub(super) fn is_over(&self) -> bool {
        self.held() > self.budget
    }

    pub(super) fn add(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn sub(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Puts a log where it may be emptied; it leaves with [`Self::unshelve`].
    pub(super) fn shelve(&self, log: &Arc<Log>) -> u64 {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(ticket, Arc::downgrade(log));
        ticket
    }

    pub(super) fn unshelve(&self, ticket: u64) {
        self.lock().remove(&ticket);
    }

    /// Empties shelved logs until there is room, or none is left.
    pub(super) fn make_room(&self) {
        while self.is_over() {
            let Some((_, log)) = self.lock().pop_first() else {
                return;
            };
            // Outside the lock: the last one to hold a log takes it off the shelf.
            if let Some(log) = log.upgrade() {
                log.let_go();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Weak<Log>>> {
        // Nothing panics while it is held.
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
