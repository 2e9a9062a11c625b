//! Stop requests: why a run must end. A reason is set once; the guest sees it at its next epoch,
//! and the future that drives the run is notified at once.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use tokio::sync::Notify;

use crate::model::outcome::CancelCause;

/// The reason why a run must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The run's wall time is over.
    TimedOut,
    /// Somebody outside the run ends it.
    Cancelled(CancelCause),
}

/// A run's stop signal. The first reason given stays.
#[derive(Debug, Default)]
pub struct StopSignal {
    reason: AtomicU8,
    requested: Notify,
    /// When the run's time is over. It is set once the run executes.
    deadline: OnceLock<Instant>,
}

impl StopSignal {
    /// Asks the run to end, and reports whether this was the first request. A later reason changes
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

    /// Sets when the run's time is over. Only the first deadline counts.
    pub(in crate::sandbox) fn set_deadline(&self, deadline: Instant) {
        // The deadline is set once, where the run begins to execute.
        let _ = self.deadline.set(deadline);
    }

    /// Reports whether the run has to end at `now`, because it was asked to or because its deadline
    /// has passed, which counts as a request.
    pub(in crate::sandbox) fn must_stop(&self, now: Instant) -> bool {
        if self.deadline.get().is_some_and(|deadline| now >= *deadline) {
            self.request(StopReason::TimedOut);
        }
        self.reason().is_some()
    }

    /// Returns why the run was asked to end, or `None` if it was not.
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

    /// Waits until the run is asked to end. Only one task may wait, the one that drives the run at
    /// the time.
    pub async fn requested(&self) {
        if self.reason().is_none() {
            self.requested.notified().await;
        }
    }
}

/// The error that ends a guest which was asked to stop. The reason is in its [`StopSignal`].
#[derive(Debug)]
pub(in crate::sandbox) struct Stopped;

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped by the host")
    }
}

impl std::error::Error for Stopped {}
