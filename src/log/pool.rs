//! What all logs may hold together.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use super::Log;

/// The budget of all logs.
///
/// Where it is used up, the output of runs that have ended is let go, the longest ended first, and of those that somebody
/// holds yet after the others; then that of runs that go on, but for what their callers have yet to read.
pub struct Pool {
    budget: usize,
    held: AtomicUsize,
    tickets: AtomicU64,
    /// Logs that can give something, those that should first before others.
    givers: Mutex<BTreeMap<Ticket, Weak<Log>>>,
    history: OnceLock<LetGo>,
}

/// Lets the longest ended of the outputs that a history keeps go; false where it keeps none.
type LetGo = Box<dyn Fn() -> bool + Send + Sync>;

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} bytes", self.held(), self.budget)
    }
}

/// A log's place among those that can give something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    goes_on: bool,
    number: u64,
}

impl Pool {
    /// Of `budget` bytes.
    pub fn new(budget: usize) -> Arc<Self> {
        Arc::new(Self {
            budget,
            held: AtomicUsize::new(0),
            tickets: AtomicU64::new(1),
            givers: Mutex::default(),
            history: OnceLock::new(),
        })
    }

    /// Has `let_go` give first: it lets the longest ended of the [outputs that are kept](super::KeptOutput) go, and says
    /// whether there was one. Only the first is asked.
    pub fn set_history(&self, let_go: impl Fn() -> bool + Send + Sync + 'static) {
        let _ = self.history.set(Box::new(let_go));
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

    /// Enters a log that can give something, of a run that `goes_on` or has ended.
    pub(super) fn enter(&self, log: Weak<Log>, goes_on: bool) -> Ticket {
        let ticket = Ticket {
            goes_on,
            number: self.tickets.fetch_add(1, Ordering::Relaxed),
        };
        self.lock().insert(ticket, log);
        ticket
    }

    /// Takes a log out again.
    pub(super) fn leave(&self, ticket: Ticket) {
        self.lock().remove(&ticket);
    }

    /// Has logs give what they can until there is room, or nothing is left to give. Takes the locks of whoever has something
    /// to give.
    pub fn make_room(&self) {
        while self.is_over() {
            if self.history.get().is_some_and(|let_go| let_go()) {
                continue;
            }
            let Some((_, log)) = self.lock().pop_first() else {
                return;
            };
            // Outside the lock: the last one to hold a log takes it out.
            if let Some(log) = log.upgrade() {
                log.give();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Ticket, Weak<Log>>> {
        // Nothing panics while it is held.
        self.givers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
