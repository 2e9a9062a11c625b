//! Cooperative preemption: decides when a guest has to stop and when it yields to others.
//!
//! The guest is checked once in each epoch, whenever a call to the host or to the engine returns.
//! Such calls may be rare, so guest code also has checkpoints at loop back edges and function
//! entries. There, unmetered code sees that an epoch has begun. Metered code counts its fuel in the
//! same places and would pay for both, so it calls the engine after each [`FUEL_INTERVAL`] instead.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::stop_signal::{StopReason, StopSignal, Stopped};
use crate::model::outcome::LiveUsage;

/// How long a run executes at least before it yields for the first time.
const FIRST_SLICE: Duration = Duration::from_millis(1);

/// A metered guest is checked after it has used this much fuel, which also bounds how far a reading
/// of its fuel may be off. The bound is on the guest's own code and not on time: ordinary code uses
/// this much in 5 to 25 us, of which the check takes 0.3. Code that takes a page fault at every
/// store was seen to take 15 ms, or 35 ms where such stores are unrolled, until it has touched all
/// of its memory; a straight line of such stores takes as long in any guest.
pub(in crate::sandbox) const FUEL_INTERVAL: u64 = 50_000;

/// A shared counter of the epochs that have begun. The time slices of guests are measured in them.
#[derive(Clone, Debug, Default)]
pub(in crate::sandbox) struct EpochCounter(Arc<AtomicU64>);

impl EpochCounter {
    /// Starts the next epoch; all guests that execute notice it at their next check.
    pub(in crate::sandbox) fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn current(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The limits of one run that each preemption check applies: its deadline, its fuel, and its
/// epochs.
pub(in crate::sandbox) struct PreemptionPolicy {
    /// The epoch counter of the run's engine.
    pub epochs: EpochCounter,
    /// When the run began to execute.
    pub start: Instant,
    /// When the run's time is over; `None` means never.
    pub deadline: Option<Instant>,
    /// The fuel that the run started with; `None` if it is not metered.
    pub fuel: Option<u64>,
    /// Receives the fuel that the run has used, at each check.
    pub usage: Arc<LiveUsage>,
}

/// The engine's yields of a metered guest, one after each [`FUEL_INTERVAL`]. It holds `None` for a
/// guest that is not metered.
pub(in crate::sandbox) struct FuelYields(Option<Arc<PreemptionState>>);

impl FuelYields {
    /// Creates the yields of a guest; `guest` is `None` if it is not metered.
    pub(in crate::sandbox) fn new(guest: Option<Arc<PreemptionState>>) -> Self {
        Self(guest)
    }

    /// Wraps `call` in a future that polls on through these yields.
    pub(in crate::sandbox) fn skipped<F>(self, call: F) -> FuelYieldsSkipped<F> {
        FuelYieldsSkipped {
            call,
            guest: self.0,
        }
    }
}

/// A future that drives a guest's call and does not suspend at the engine's fuel yields.
///
/// To the engine, such a yield is a host call that is pending once. The guest is checked when that
/// call returns, and yields to others there, which is far less often. So this future polls the call
/// again at once if the guest has made a host call since the last poll. If it was a fuel yield,
/// that is over then. A host call that really waits for something is polled once more than
/// necessary.
pub(in crate::sandbox) struct FuelYieldsSkipped<F> {
    call: F,
    guest: Option<Arc<PreemptionState>>,
}

impl<F: Future + Unpin> Future for FuelYieldsSkipped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            let polled = Pin::new(&mut self.call).poll(cx);
            let has_called = |guest: &Arc<PreemptionState>| {
                guest.host_call_pending.swap(false, Ordering::Relaxed)
            };
            if polled.is_ready() || !self.guest.as_ref().is_some_and(has_called) {
                return polled;
            }
        }
    }
}

/// The preemption state of one run. It is checked from two places, once in each epoch. Only one
/// thread uses it at a time, since a store has no other.
pub(in crate::sandbox) struct PreemptionState {
    policy: PreemptionPolicy,
    /// The epoch in which the guest was last checked.
    last_checked_epoch: AtomicU64,
    /// Whether the guest has made a host call that has not returned, and that [`FuelYieldsSkipped`]
    /// has not polled again yet.
    host_call_pending: AtomicBool,
}

impl PreemptionState {
    /// Creates the state of a run that begins to execute, and was checked in the present epoch.
    pub(in crate::sandbox) fn new(policy: PreemptionPolicy) -> Self {
        Self {
            last_checked_epoch: AtomicU64::new(policy.epochs.current()),
            host_call_pending: AtomicBool::new(false),
            policy,
        }
    }

    /// Notes whether the guest is in a host call.
    pub(in crate::sandbox) fn set_host_call_pending(&self, pending: bool) {
        self.host_call_pending.store(pending, Ordering::Relaxed);
    }

    /// Reports whether no epoch has begun since the guest was last checked.
    pub(in crate::sandbox) fn is_checked_in_this_epoch(&self) -> bool {
        self.last_checked_epoch.load(Ordering::Relaxed) == self.policy.epochs.current()
    }

    /// Reports whether the guest yields at `now`. It also updates the fuel count.
    ///
    /// # Errors
    /// Returns [`Stopped`] where the guest has to stop.
    pub(in crate::sandbox) fn check(
        &self,
        stop: &StopSignal,
        now: Instant,
        fuel_left: impl FnOnce() -> u64,
    ) -> Result<bool, Stopped> {
        let PreemptionPolicy {
            epochs,
            start,
            deadline,
            fuel,
            usage,
        } = &self.policy;
        self.last_checked_epoch
            .store(epochs.current(), Ordering::Relaxed);
        if deadline.is_some_and(|deadline| now >= deadline) {
            stop.request(StopReason::TimedOut);
        }
        if stop.reason().is_some() {
            return Err(Stopped);
        }
        if let Some(fuel) = fuel {
            usage.set_fuel(fuel.saturating_sub(fuel_left()));
        }
        // The epoch in which the run began may have been nearly over.
        Ok(now.saturating_duration_since(*start) >= FIRST_SLICE)
    }

    /// Yields to the scheduler once: it is pending once and wakes its task at once. tokio's own
    /// `yield_now` defers the wake until the thread's other tasks, if any, were polled.
    pub(in crate::sandbox) async fn yield_to_others(self: Arc<Self>) {
        let mut gave = false;
        poll_fn(|cx| {
            if gave {
                return Poll::Ready(());
            }
            gave = true;
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        // The epochs that passed meanwhile belonged to others. Without this, the guest would yield
        // again before it did anything.
        self.last_checked_epoch
            .store(self.policy.epochs.current(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
