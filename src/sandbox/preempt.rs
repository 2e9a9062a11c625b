//! Cooperative preemption: decides when a guest has to stop and when it yields to others.
//!
//! The guest is checked once in each epoch, whenever a call to the host or to the engine returns.
//! Such calls may be rare, so guest code also has checkpoints at loop back edges and function
//! entries. There, unmetered code sees that an epoch has begun. Metered code counts its fuel in the
//! same places and would pay for both, so it calls the engine after each [`FUEL_INTERVAL`] instead.

use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use wasmtime::{AsContextMut, CallHook, CallHookHandler, Store, StoreContextMut, UpdateDeadline};

use super::imports::GuestState;
use super::inline;
use super::stop::{StopReason, Stopped};
use crate::outcome::LiveUsage;

/// How long a run executes at least before it yields for the first time.
const FIRST_SLICE: Duration = Duration::from_millis(1);

/// A metered guest is checked after it has used this much fuel, which also bounds how far a reading
/// of its fuel may be off. The bound is on the guest's own code and not on time: ordinary code uses
/// this much in 5 to 25 us, of which the check takes 0.3. Code that takes a page fault at every
/// store was seen to take 15 ms, or 35 ms where such stores are unrolled, until it has touched all
/// of its memory; a straight line of such stores takes as long in any guest.
const FUEL_INTERVAL: u64 = 50_000;

/// A shared counter of the epochs that have begun. The time slices of guests are measured in them.
#[derive(Clone, Debug, Default)]
pub(super) struct EpochCounter(Arc<AtomicU64>);

impl EpochCounter {
    /// Starts the next epoch; all guests that execute notice it at their next check.
    pub(super) fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn current(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The limits of one run that each preemption check applies: its deadline, its fuel, and its
/// epochs.
pub(super) struct PreemptionPolicy {
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

impl PreemptionPolicy {
    /// Installs the preemption checks in a new store, and gives it its fuel. The result is to be
    /// wrapped around the guest's call.
    pub(super) fn install(self, store: &mut Store<GuestState>) -> wasmtime::Result<FuelYields> {
        let fuel = self.fuel;
        let watched = Arc::new(PreemptionState {
            last_checked_epoch: AtomicU64::new(self.epochs.current()),
            host_call_pending: AtomicBool::new(false),
            policy: self,
        });
        store.data_mut().preemption = Some(Arc::clone(&watched));
        store.call_hook_async(PreemptionHook);
        if let Some(fuel) = fuel {
            store.set_fuel(fuel)?;
            store.fuel_async_yield_interval(Some(FUEL_INTERVAL))?;
            return Ok(FuelYields(Some(watched)));
        }
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|context| match &context.data().preemption {
            Some(watched) if watched.should_yield(&context)? => {
                let turn_of_others = Arc::clone(watched).yield_to_others();
                Ok(UpdateDeadline::YieldCustom(1, Box::pin(turn_of_others)))
            }
            Some(_) | None => Ok(UpdateDeadline::Continue(1)),
        });
        Ok(FuelYields(None))
    }
}

/// The engine's yields of a metered guest, one after each [`FUEL_INTERVAL`]. It holds `None` for a
/// guest that is not metered.
pub(super) struct FuelYields(Option<Arc<PreemptionState>>);

impl FuelYields {
    /// Wraps `call` in a future that polls on through these yields.
    pub(super) fn skipped<F>(self, call: F) -> FuelYieldsSkipped<F> {
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
pub(super) struct FuelYieldsSkipped<F> {
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
pub(super) struct PreemptionState {
    policy: PreemptionPolicy,
    /// The epoch in which the guest was last checked.
    last_checked_epoch: AtomicU64,
    /// Whether the guest has made a host call that has not returned, and that [`FuelYieldsSkipped`]
    /// has not polled again yet.
    host_call_pending: AtomicBool,
}

impl PreemptionState {
    /// Reports whether the guest yields now. It also updates the fuel count.
    ///
    /// # Errors
    /// Returns [`Stopped`] where the guest has to stop.
    fn should_yield(&self, context: &StoreContextMut<'_, GuestState>) -> wasmtime::Result<bool> {
        let PreemptionPolicy {
            epochs,
            start,
            deadline,
            fuel,
            usage,
        } = &self.policy;
        self.last_checked_epoch
            .store(epochs.current(), Ordering::Relaxed);
        let now = Instant::now();
        let stop = &context.data().stop;
        if deadline.is_some_and(|deadline| now >= deadline) {
            stop.request(StopReason::TimedOut);
        }
        if stop.reason().is_some() {
            return Err(Stopped.into());
        }
        if let Some(fuel) = fuel {
            let left = context.get_fuel().unwrap_or_default();
            usage.set_fuel(fuel.saturating_sub(left));
        }
        // The epoch in which the run began may have been nearly over.
        Ok(now.saturating_duration_since(*start) >= FIRST_SLICE)
    }

    /// Yields to the scheduler once: it is pending once and wakes its task at once. tokio's own
    /// `yield_now` defers the wake until the thread's other tasks, if any, were polled.
    async fn yield_to_others(self: Arc<Self>) {
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

/// The return type of the method of wasmtime's `CallHookHandler`, which is an `async_trait`.
type CallHookFuture<'a> = Pin<Box<dyn Future<Output = wasmtime::Result<()>> + Send + 'a>>;

/// A future that resolves at once. It has no size, so that boxing it allocates nothing.
struct ReadyOk;

impl Future for ReadyOk {
    type Output = wasmtime::Result<()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(()))
    }
}

/// The call hook that checks a guest whenever one of its host calls returns. Neither the hook nor
/// its usual answer, [`ReadyOk`], has a size, so neither is allocated.
struct PreemptionHook;

impl CallHookHandler<GuestState> for PreemptionHook {
    fn handle_call_event<'hook, 'store, 'looked>(
        &'hook self,
        mut context: StoreContextMut<'store, GuestState>,
        event: CallHook,
    ) -> CallHookFuture<'looked>
    where
        'hook: 'looked,
        'store: 'looked,
    {
        let Some(watched) = &context.data().preemption else {
            return Box::pin(ReadyOk);
        };
        match event {
            CallHook::CallingHost => watched.host_call_pending.store(true, Ordering::Relaxed),
            CallHook::ReturningFromHost => {
                watched.host_call_pending.store(false, Ordering::Relaxed)
            }
            CallHook::CallingWasm | CallHook::ReturningFromWasm => {}
        }
        if !matches!(event, CallHook::ReturningFromHost) {
            return Box::pin(ReadyOk);
        }
        // The guest's memory may have grown, and its next instruction may fill all of it.
        let leaves = inline::must_leave_thread(context.data().meter.held());
        let looked = watched.last_checked_epoch.load(Ordering::Relaxed);
        if looked == watched.policy.epochs.current() && !leaves {
            return Box::pin(ReadyOk);
        }
        let watched = Arc::clone(watched);
        match watched.should_yield(&context) {
            Err(error) => Box::pin(ready(Err(error))),
            Ok(false) if !leaves => Box::pin(ReadyOk),
            Ok(_) => Box::pin(async move {
                watched.yield_to_others().await;
                // The guest's own code need not check again before the next epoch.
                context.as_context_mut().set_epoch_deadline(1);
                Ok(())
            }),
        }
    }
}
