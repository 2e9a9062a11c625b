//! Why a run must end, told once, heard by the guest at its next epoch and by its driver at once.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use tokio::sync::Notify;

use crate::outcome::CancelCause;

/// Why a run must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// Its wall time is over.
    TimedOut,
    /// Somebody outside ends it.
    Cancelled(CancelCause),
}

/// A run's stop request: the first reason given stays.
#[derive(Debug, Default)]
pub struct Stop {
    reason: AtomicU8,
    requested: Notify,
    /// When the run's time is over, once it executes.
    deadline: OnceLock<Instant>,
}

impl Stop {
    /// Asks the run to end, and says whether this was the first to ask; a later reason changes
    /// nothing.
    pub fn request(&self, reason: StopReason) -> bool {
        let code = match reason {
            StopReason::TimedOut => 1,
            StopReason::Cancelled(CancelCause::CallerGone) => 2,
            StopReason::Cancelled(CancelCause::ReaderStalled) => 3,
            StopReason::Cancelled(CancelCause::Draining) => 4,
            StopReason::Cancelled(CancelCause::CancelRpc) => 5,
        };
        let first = self
            .reason
            .compare_exchange(0, code, Ordering::AcqRel, Ordering::Acquire);
        if first.is_ok() {
            self.requested.notify_one();
        }
        first.is_ok()
    }

    /// Tells when the run's time is over. Only the first deadline counts.
    pub(super) fn set_deadline(&self, deadline: Instant) {
        // It is set once, where the run begins to execute.
        let _ = self.deadline.set(deadline);
    }

    /// Whether the run has to end at `now`: somebody asked it to, or its deadline has passed, which
    /// counts as asking.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        if self.deadline.get().is_some_and(|deadline| now >= *deadline) {
            self.request(StopReason::TimedOut);
        }
        self.reason().is_some()
    }

    /// Why it was asked to end, if it was.
    pub fn reason(&self) -> Option<StopReason> {
        match self.reason.load(Ordering::Acquire) {
            0 => None,
            1 => Some(StopReason::TimedOut),
            2 => Some(StopReason::Cancelled(CancelCause::CallerGone)),
            3 => Some(StopReason::Cancelled(CancelCause::ReaderStalled)),
            4 => Some(StopReason::Cancelled(CancelCause::Draining)),
            _ => Some(StopReason::Cancelled(CancelCause::CancelRpc)),
        }
    }

    /// Resolves when it is asked to end. For one waiter, whoever drives the run at the time.
    pub async fn requested(&self) {
        if self.reason().is_none() {
            self.requested.notified().await;
        }
    }
}

/// The error that ends a guest which was asked to stop. The reason stands in its [`Stop`].
#[derive(Debug)]
pub(super) struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped by the host")
    }
}

impl std::error::Error for Stopped {}
