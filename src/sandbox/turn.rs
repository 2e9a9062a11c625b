//! A guest's turn: when it has to stop, and when it gives way to others. It is looked at once in each epoch, wherever a
//! call of the host or of the engine returns. Calls may be few, so its code passes a place to look too, where loops
//! turn and functions begin: there unmetered code sees that an epoch has begun, and metered code, which counts its fuel
//! in the same places and would pay for both, calls the engine after each [`FUEL_INTERVAL`].

use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use wasmtime::{AsContextMut, CallHook, CallHookHandler, Store, StoreContextMut, UpdateDeadline};

use super::host::State;
use super::inline;
use super::stop::{StopReason, Stopped};
use crate::outcome::Usage;

/// What a guest gets at the least before it gives way for the first time.
const FIRST_SLICE: Duration = Duration::from_millis(1);

/// A metered guest is looked at after this much fuel, which also bounds how far a reading of its fuel may be off. It is a
/// bound on the guest's own code and not on time: ordinary code uses it in 5 to 25 us, of which looking takes 0.3. Code
/// that takes a page fault at every store was seen to take 15 ms, and 35 where such stores are unrolled, until it has
/// touched all of its memory; a straight line of it goes as long in any guest.
const FUEL_INTERVAL: u64 = 50_000;

/// How many epochs there have been.
#[derive(Clone, Debug, Default)]
pub(super) struct Epochs(Arc<AtomicU64>);

impl Epochs {
    /// Begins another one.
    pub(super) fn advance(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What ends a guest's turn.
pub(super) struct Turn {
    /// Those of its engine.
    pub epochs: Epochs,
    /// When it began.
    pub start: Instant,
    /// When it stops.
    pub deadline: Option<Instant>,
    /// What it began with, where it is metered.
    pub fuel: Option<u64>,
    /// Told what it uses.
    pub usage: Arc<Usage>,
}

impl Turn {
    /// Has the guest of a store that was just made look, and gives it its fuel.
    pub(super) fn watch(self, store: &mut Store<State>) -> wasmtime::Result<Pauses> {
        let fuel = self.fuel;
        let watched = Arc::new(Watched {
            looked: AtomicU64::new(self.epochs.now()),
            called: AtomicBool::new(false),
            turn: self,
        });
        store.data_mut().watched = Some(Arc::clone(&watched));
        store.call_hook_async(LooksAtCalls);
        if let Some(fuel) = fuel {
            store.set_fuel(fuel)?;
            store.fuel_async_yield_interval(Some(FUEL_INTERVAL))?;
            return Ok(Pauses(Some(watched)));
        }
        store.set_epoch_deadline(1);
        store.epoch_deadline_callback(|context| match &context.data().watched {
            Some(watched) if watched.is_over(&context)? => {
                let turn_of_others = Arc::clone(watched).give_way();
                Ok(UpdateDeadline::YieldCustom(1, Box::pin(turn_of_others)))
            }
            Some(_) | None => Ok(UpdateDeadline::Continue(1)),
        });
        Ok(Pauses(None))
    }
}

/// The pauses that a metered guest makes after each [`FUEL_INTERVAL`].
pub(super) struct Pauses(Option<Arc<Watched>>);

impl Pauses {
    /// Goes through `call` without them.
    pub(super) fn skipped<F>(self, call: F) -> PausesSkipped<F> {
        PausesSkipped {
            call,
            guest: self.0,
        }
    }
}

/// A guest's call that does not wait where it only pauses.
///
/// To the engine such a pause is a call that is pending once. The guest is looked at when that call returns, and waits
/// there where others have their turn, which is far less often. So the call is polled again at once where what it waits
/// for is a call that the guest made since it was polled last: a pause is over then, and a host call that
/// waits for something has been asked once more than it need be.
pub(super) struct PausesSkipped<F> {
    call: F,
    guest: Option<Arc<Watched>>,
}

impl<F: Future + Unpin> Future for PausesSkipped<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        loop {
            let polled = Pin::new(&mut self.call).poll(cx);
            let has_called = |guest: &Arc<Watched>| guest.called.swap(false, Ordering::Relaxed);
            if polled.is_ready() || !self.guest.as_ref().is_some_and(has_called) {
                return polled;
            }
        }
    }
}

/// A turn that is looked at from two places, and once in each epoch. For one thread at a time: a store has no other.
pub(super) struct Watched {
    turn: Turn,
    /// The epoch in which it was looked at last.
    looked: AtomicU64,
    /// Whether it has made a call that has not returned, and that nobody has asked for here yet.
    called: AtomicBool,
}

impl Watched {
    /// Whether the guest gives way now; an error where it has to stop.
    fn is_over(&self, context: &StoreContextMut<'_, State>) -> wasmtime::Result<bool> {
        let Turn {
            epochs,
            start,
            deadline,
            fuel,
            usage,
        } = &self.turn;
        self.looked.store(epochs.now(), Ordering::Relaxed);
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
        // The epoch in which it began may have been nearly over.
        Ok(now.saturating_duration_since(*start) >= FIRST_SLICE)
    }

    /// Is pending once, and wakes at once. tokio's own waits until the thread's other tasks were polled, where there are
    /// any.
    async fn give_way(self: Arc<Self>) {
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
        // Epochs that passed meanwhile were others' turns: it would give way again before it did anything.
        self.looked.store(self.turn.epochs.now(), Ordering::Relaxed);
    }
}

/// What wasmtime's trait, an `async_trait`, returns.
type Looked<'a> = Pin<Box<dyn Future<Output = wasmtime::Result<()>> + Send + 'a>>;

/// Resolves at once. Of no size, so that a box of it is no allocation.
struct GoOn;

impl Future for GoOn {
    type Output = wasmtime::Result<()>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(()))
    }
}

/// Looks at the guest of a store where its calls return. Of no size, as what it answers mostly: neither is allocated.
struct LooksAtCalls;

impl CallHookHandler<State> for LooksAtCalls {
    fn handle_call_event<'hook, 'store, 'looked>(
        &'hook self,
        mut context: StoreContextMut<'store, State>,
        event: CallHook,
    ) -> Looked<'looked>
    where
        'hook: 'looked,
        'store: 'looked,
    {
        let Some(watched) = &context.data().watched else {
            return Box::pin(GoOn);
        };
        match event {
            CallHook::CallingHost => watched.called.store(true, Ordering::Relaxed),
            CallHook::ReturningFromHost => watched.called.store(false, Ordering::Relaxed),
            CallHook::CallingWasm | CallHook::ReturningFromWasm => {}
        }
        if !matches!(event, CallHook::ReturningFromHost) {
            return Box::pin(GoOn);
        }
        // It may have grown, and what comes next may fill all of that.
        let leaves = inline::has_to_leave(context.data().meter.held());
        let looked = watched.looked.load(Ordering::Relaxed);
        if looked == watched.turn.epochs.now() && !leaves {
            return Box::pin(GoOn);
        }
        let watched = Arc::clone(watched);
        match watched.is_over(&context) {
            Err(error) => Box::pin(ready(Err(error))),
            Ok(false) if !leaves => Box::pin(GoOn),
            Ok(_) => Box::pin(async move {
                watched.give_way().await;
                // Its own code need not look before the next one.
                context.as_context_mut().set_epoch_deadline(1);
                Ok(())
            }),
        }
    }
}
