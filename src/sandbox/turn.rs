//! A guest's turn: when it has to stop, and when it gives way to others. Its code looks at each epoch, which is where loops
//! turn and functions begin; it also does wherever a call of the host or of the engine returns, since a straight line
//! of those passes no such place.

use std::future::{Future, poll_fn, ready};
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
    /// Has the guest of a store that was just made look.
    pub(super) fn watch(self, store: &mut Store<State>) {
        let watched = Arc::new(Watched {
            looked: AtomicU64::new(self.epochs.now()),
            turn: self,
        });
        store.set_epoch_deadline(1);
        store.call_hook_async(Arc::clone(&watched));
        store.epoch_deadline_callback(move |context| {
            Ok(if watched.is_over(&context)? {
                UpdateDeadline::YieldCustom(1, Box::pin(Arc::clone(&watched).give_way()))
            } else {
                UpdateDeadline::Continue(1)
            })
        });
    }
}

/// A turn that is looked at from two places, and once in each epoch.
struct Watched {
    turn: Turn,
    /// The epoch in which it was looked at last. For one thread at a time: a store has no other.
    looked: AtomicU64,
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

impl CallHookHandler<State> for Arc<Watched> {
    fn handle_call_event<'hook, 'store, 'looked>(
        &'hook self,
        mut context: StoreContextMut<'store, State>,
        event: CallHook,
    ) -> Looked<'looked>
    where
        'hook: 'looked,
        'store: 'looked,
    {
        let looked = self.looked.load(Ordering::Relaxed);
        if !matches!(event, CallHook::ReturningFromHost) || looked == self.turn.epochs.now() {
            return Box::pin(GoOn);
        }
        match self.is_over(&context) {
            Err(error) => Box::pin(ready(Err(error))),
            Ok(false) => Box::pin(GoOn),
            Ok(true) => Box::pin(async move {
                Arc::clone(self).give_way().await;
                // Its own code need not look before the next one.
                context.as_context_mut().set_epoch_deadline(1);
                Ok(())
            }),
        }
    }
}
