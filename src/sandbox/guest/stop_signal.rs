//! Decides when a guest has to stop: when somebody asks for it, or when its deadline has passed.
//! The first reason stays; the guest sees it at its next check, and the future that drives the run
//! is woken at once.

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

impl StopReason {
    /// Every reason. One that is missing here is lost on its way to the guest.
    const ALL: [Self; Self::COUNT] = [
        Self::TimedOut,
        Self::Cancelled(CancelCause::CallerGone),
        Self::Cancelled(CancelCause::ReaderStalled),
        Self::Cancelled(CancelCause::Draining),
        Self::Cancelled(CancelCause::CancelRpc),
    ];
    /// How many reasons there are, which [`Self::code`] counts up to.
    const COUNT: usize = 5;

    /// Returns the code of the reason, from 1 on. A new reason takes the next one, and its place in
    /// [`Self::ALL`].
    const fn code(self) -> u8 {
        match self {
            Self::TimedOut => 1,
            Self::Cancelled(CancelCause::CallerGone) => 2,
            Self::Cancelled(CancelCause::ReaderStalled) => 3,
            Self::Cancelled(CancelCause::Draining) => 4,
            Self::Cancelled(CancelCause::CancelRpc) => 5,
        }
    }
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
        let first =
            self.reason
                .compare_exchange(0, reason.code(), Ordering::AcqRel, Ordering::Acquire);
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
        let code = self.reason.load(Ordering::Acquire);
        StopReason::ALL.into_iter().find(|it| it.code() == code)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays_and_is_told_as_it_was_given() {
        for reason in StopReason::ALL {
            let signal = StopSignal::default();
            assert_eq!(signal.reason(), None);
            assert!(signal.request(reason));
            assert!(!signal.request(StopReason::TimedOut));
            assert_eq!(signal.reason(), Some(reason));
        }
        let mut codes = StopReason::ALL.map(StopReason::code).to_vec();
        codes.dedup();
        assert_eq!(codes, [1, 2, 3, 4, 5]);
    }
}
