//! Where a guest is checked for preemption: the hooks that its store and its engine call.
//!
//! Guest code calls them at its own checkpoints, and each host call does when it returns. What is
//! decided there is the matter of [`super::preempt`].

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use wasmtime::{AsContextMut, CallHook, CallHookHandler, Store, StoreContextMut, UpdateDeadline};

use super::guest_state::GuestState;
use super::preempt::{FUEL_INTERVAL, FuelYields, PreemptionPolicy, PreemptionState};
use crate::sandbox::schedule::inline;

impl PreemptionPolicy {
    /// Installs the preemption checks in a new store, and gives it its fuel. The result is to be
    /// wrapped around the guest's call.
    pub(in crate::sandbox) fn install(
        self,
        store: &mut Store<GuestState>,
    ) -> wasmtime::Result<FuelYields> {
        let fuel = self.fuel;
        let preemption = Arc::new(PreemptionState::new(self));
        store.data_mut().preemption = Some(Arc::clone(&preemption));
        store.call_hook_async(PreemptionHook);
        if let Some(fuel) = fuel {
            store.set_fuel(fuel)?;
            store.fuel_async_yield_interval(Some(FUEL_INTERVAL))?;
            return Ok(FuelYields::new(Some(preemption)));
        }
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|context| match &context.data().preemption {
            Some(preemption) if check_guest(preemption, &context)? => {
                let turn_of_others = Arc::clone(preemption).yield_to_others();
                Ok(UpdateDeadline::YieldCustom(1, Box::pin(turn_of_others)))
            }
            Some(_) | None => Ok(UpdateDeadline::Continue(1)),
        });
        Ok(FuelYields::new(None))
    }
}

/// Reports whether a guest yields now, from the stop signal and the fuel of its store.
///
/// # Errors
/// Returns [`Stopped`](super::stop_signal::Stopped) where the guest has to stop.
fn check_guest(
    preemption: &PreemptionState,
    context: &StoreContextMut<'_, GuestState>,
) -> wasmtime::Result<bool> {
    let fuel_left = || context.get_fuel().unwrap_or_default();
    Ok(preemption.check(&context.data().stop, Instant::now(), fuel_left)?)
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
        let Some(preemption) = &context.data().preemption else {
            return Box::pin(ReadyOk);
        };
        match event {
            CallHook::CallingHost => preemption.set_host_call_pending(true),
            CallHook::ReturningFromHost => preemption.set_host_call_pending(false),
            CallHook::CallingWasm | CallHook::ReturningFromWasm => {}
        }
        if !matches!(event, CallHook::ReturningFromHost) {
            return Box::pin(ReadyOk);
        }
        // The guest's memory may have grown, and its next instruction may fill all of it.
        let leaves = inline::must_leave_thread(context.data().memory_limiter.held());
        if preemption.is_checked_in_this_epoch() && !leaves {
            return Box::pin(ReadyOk);
        }
        let preemption = Arc::clone(preemption);
        match check_guest(&preemption, &context) {
            Err(error) => Box::pin(ready(Err(error))),
            Ok(false) if !leaves => Box::pin(ReadyOk),
            Ok(_) => Box::pin(async move {
                preemption.yield_to_others().await;
                // The guest's own code need not check again before the next epoch.
                context.as_context_mut().set_epoch_deadline(1);
                Ok(())
            }),
        }
    }
}
