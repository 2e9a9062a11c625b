//! A guest's turn: when it has to stop, and when it gives way to others. Its code looks at each epoch, which is where loops
//! turn and functions begin; it looks for it wherever a host call returns, since a straight line of those passes no such
//! place.

use std::future::{Future, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use wasmtime::{AsContextMut, CallHook, CallHookHandler, Store, StoreContextMut, UpdateDeadline};

use super::host::State;
use super::stop::{StopReason, Stopped};
use crate::outcome::Usage;

/// What a guest gets at the least before it gives way for the first time.
const FIRST_SLICE: Duration = Duration::from_millis(1);

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
#[derive(Clone)]
pub(super) struct Turn {
    /// Those of its engine.
    pub epochs: Epochs,
    /// When it stops.
    pub deadline: Option<Instant>,
    /// What it began with, where it is metered.
    pub fuel: Option<u64>,
    /// Told what it uses.
    pub usage: Arc<Usage>,
}

impl Turn {
    /// Has the guest of a store that was just made look.
    pub(super) fn watch(self, store: &mut Store<State>) {
        let start = Instant::now();
        store.set_epoch_deadline(1);
        store.call_hook_async(OnReturn {
            looked: AtomicU64::new(self.epochs.now()),
            turn: self.clone(),
            start,
        });
        store.epoch_deadline_callback(move |context| {
            Ok(if self.is_over(&context, start)? {
                UpdateDeadline::YieldCustom(1, Box::pin(GiveWay { gave: false }))
            } else {
                UpdateDeadline::Continue(1)
            })
        });
    }

    /// Whether the guest gives way now; an error where it has to stop.
    fn is_over(
        &self,
        context: &StoreContextMut<'_, State>,
        start: Instant,
    ) -> wasmtime::Result<bool> {
        let now = Instant::now();
        let stop = &context.data().stop;
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            stop.request(StopReason::TimedOut);
        }
        if stop.reason().is_some() {
            return Err(Stopped.into());
        }
        if let Some(fuel) = self.fuel {
            let left = context.get_fuel().unwrap_or_default();
            self.usage.set_fuel(fuel.saturating_sub(left));
        }
        // The epoch in which it began may have been nearly over.
        Ok(now.saturating_duration_since(start) >= FIRST_SLICE)
    }
}

/// Is pending once, and wakes at once. tokio's own waits until the thread's other tasks were polled, where there are any.
struct GiveWay {
    gave: bool,
}

impl Future for GiveWay {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.gave {
            return Poll::Ready(());
        }
        self.gave = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Looks where a host call returns, at most once in each epoch.
struct OnReturn {
    turn: Turn,
    start: Instant,
    /// The epoch in which it looked last. For one thread at a time: a store has no other.
    looked: AtomicU64,
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

impl CallHookHandler<State> for OnReturn {
    fn handle_call_event<'hook, 'store, 'looked>(
        &'hook self,
        mut context: StoreContextMut<'store, State>,
        event: CallHook,
    ) -> Looked<'looked>
    where
        'hook: 'looked,
        'store: 'looked,
    {
        if !matches!(event, CallHook::ReturningFromHost) {
            return Box::pin(GoOn);
        }
        let epoch = self.turn.epochs.now();
        if self.looked.swap(epoch, Ordering::Relaxed) == epoch {
            return Box::pin(GoOn);
        }
        match self.turn.is_over(&context, self.start) {
            Err(error) => Box::pin(ready(Err(error))),
            Ok(false) => Box::pin(GoOn),
            Ok(true) => Box::pin(async move {
                GiveWay { gave: false }.await;
                // Its own code need not look before the next one.
                context.as_context_mut().set_epoch_deadline(1);
                Ok(())
            }),
        }
    }
}
