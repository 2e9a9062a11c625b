//! What waits to be exported: a queue in first-in, first-out order that is bounded by bytes, and of
//! which no tenant can have all. Whoever adds to it never waits: what does not fit is dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::model::limits::share_of;
use crate::sync::lock;

/// How many bytes have to wait for a batch to be sent before its time.
const EARLY_BATCH_BYTES: u64 = 256 << 10;

/// A thing that can wait in an [`ExportQueue`], which knows for whom and how large it is.
pub(super) trait Queued {
    /// Returns the name of the tenant that the thing is charged to.
    fn tenant(&self) -> &Arc<str>;

    /// Returns what the thing is charged with, in bytes.
    fn cost(&self) -> u64;
}

/// A queue of things to be exported, bounded by bytes. What was taken out is charged until it is
/// released, so that a batch on its way to the collector counts too.
#[derive(Debug)]
pub(super) struct ExportQueue<T> {
    /// The most bytes that may be held.
    bytes: u64,
    /// The most bytes that may be held of one tenant.
    share: u64,
    inner: Mutex<Inner<T>>,
    /// Notified when something comes to wait in the empty queue.
    filled: Notify,
    /// Notified when enough waits for a batch.
    full: Notify,
    /// Notified when nothing is held any more.
    emptied: Notify,
}

#[derive(Debug)]
struct Inner<T> {
    waiting: VecDeque<T>,
    held: u64,
    /// What is held of each tenant, where there are several.
    held_of: HashMap<Arc<str>, u64>,
}

impl<T: Queued> ExportQueue<T> {
    /// Creates a queue of at most `bytes`. Where there are `several` tenants, none of them may have
    /// the last eighth.
    pub(super) fn new(bytes: u64, several: bool) -> Self {
        Self {
            bytes,
            share: share_of(bytes, several),
            inner: Mutex::new(Inner {
                waiting: VecDeque::new(),
                held: 0,
                held_of: HashMap::new(),
            }),
            filled: Notify::new(),
            full: Notify::new(),
            emptied: Notify::new(),
        }
    }

    /// Charges a tenant with bytes, and reports whether there was room for them.
    pub(super) fn charge(&self, tenant: &Arc<str>, bytes: u64) -> bool {
        self.charge_in(&mut self.lock(), tenant, bytes, 0)
    }

    /// Releases bytes that a tenant was charged with.
    pub(super) fn release(&self, tenant: &Arc<str>, bytes: u64) {
        let mut inner = self.lock();
        inner.held = inner.held.saturating_sub(bytes);
        if self.share < self.bytes
            && let Some(held) = inner.held_of.get_mut(tenant)
        {
            *held = held.saturating_sub(bytes);
        }
        let is_empty = inner.held == 0;
        drop(inner);
        if is_empty {
            self.emptied.notify_waiters();
        }
    }

    /// Adds a thing that has been charged already.
    pub(super) fn add_charged(&self, thing: T) {
        self.add(self.lock(), thing);
    }

    /// Charges and adds a thing. It is handed back where there is no room for it, `headroom` bytes
    /// beyond the bound included.
    pub(super) fn push(&self, thing: T, headroom: u64) -> Result<(), T> {
        let mut inner = self.lock();
        if !self.charge_in(&mut inner, thing.tenant(), thing.cost(), headroom) {
            return Err(thing);
        }
        self.add(inner, thing);
        Ok(())
    }

    /// Takes the thing that has waited the longest, which stays charged.
    pub(super) fn pop(&self) -> Option<T> {
        let mut inner = self.lock();
        let popped = inner.waiting.pop_front();
        if inner.waiting.is_empty() {
            // The memory of a burst is given back.
            inner.waiting.shrink_to(64);
        }
        popped
    }

    /// Puts back a thing of which only a part was taken, before all others.
    pub(super) fn put_back(&self, thing: T) {
        self.lock().waiting.push_front(thing);
    }

    /// Returns how many bytes are held, those of a batch on its way included.
    pub(super) fn held(&self) -> u64 {
        self.lock().held
    }

    /// Waits until something waits.
    pub(super) async fn wait_until_filled(&self) {
        while self.lock().waiting.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Waits until enough waits for a batch to be sent at once.
    pub(super) async fn wait_until_full(&self) {
        while self.held() < self.early_batch_bytes() {
            self.full.notified().await;
        }
    }

    /// Waits until nothing is held, neither here nor in a batch on its way.
    pub(super) async fn wait_until_empty(&self) {
        loop {
            let mut emptied = std::pin::pin!(self.emptied.notified());
            emptied.as_mut().enable();
            if self.held() == 0 {
                return;
            }
            emptied.await;
        }
    }

    fn early_batch_bytes(&self) -> u64 {
        EARLY_BATCH_BYTES.min(self.bytes / 2)
    }

    fn charge_in(
        &self,
        inner: &mut Inner<T>,
        tenant: &Arc<str>,
        bytes: u64,
        headroom: u64,
    ) -> bool {
        if inner.held + bytes > self.bytes + headroom {
            return false;
        }
        if self.share < self.bytes {
            let held = match inner.held_of.get_mut(tenant) {
                Some(held) => held,
                None => inner.held_of.entry(Arc::clone(tenant)).or_default(),
            };
            if *held + bytes > self.share + headroom {
                return false;
            }
            *held += bytes;
        }
        inner.held += bytes;
        true
    }

    fn add(&self, mut inner: MutexGuard<'_, Inner<T>>, thing: T) {
        let was_empty = inner.waiting.is_empty();
        inner.waiting.push_back(thing);
        let is_full = inner.held >= self.early_batch_bytes();
        drop(inner);
        if was_empty {
            self.filled.notify_one();
        }
        if is_full {
            self.full.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        lock(&self.inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[derive(Debug, PartialEq)]
    struct Thing(Arc<str>, u64);

    impl Queued for Thing {
        fn tenant(&self) -> &Arc<str> {
            &self.0
        }

        fn cost(&self) -> u64 {
            self.1
        }
    }

    fn thing(tenant: &str, bytes: u64) -> Thing {
        Thing(tenant.into(), bytes)
    }

    #[test]
    fn what_does_not_fit_is_handed_back_and_what_is_released_makes_room() {
        let queue = ExportQueue::new(100, false);
        queue.push(thing("a", 60), 0).unwrap();
        assert_eq!(queue.push(thing("a", 41), 0), Err(thing("a", 41)));
        queue.push(thing("a", 41), 1).unwrap();
        let first = queue.pop().unwrap();
        assert_eq!(first, thing("a", 60));
        // It is charged until it is released.
        assert_eq!(queue.held(), 101);
        queue.put_back(first);
        let [first, second] = [queue.pop(), queue.pop()].map(Option::unwrap);
        assert_eq!((first.1, second.1), (60, 41));
        for taken in [first, second] {
            queue.release(taken.tenant(), taken.cost());
        }
        assert_eq!((queue.held(), queue.pop()), (0, None));
    }

    #[test]
    fn of_several_tenants_none_has_the_last_eighth() {
        let queue = ExportQueue::new(800, true);
        queue.push(thing("greedy", 700), 0).unwrap();
        queue.push(thing("greedy", 1), 0).unwrap_err();
        assert!(!queue.charge(&"greedy".into(), 1));
        queue.push(thing("modest", 100), 0).unwrap();
        queue.push(thing("modest", 1), 0).unwrap_err();
        queue.release(&"greedy".into(), 700);
        queue.push(thing("modest", 600), 0).unwrap();
        queue.push(thing("modest", 1), 0).unwrap_err();
        assert!(queue.charge(&"greedy".into(), 100));
    }

    #[tokio::test]
    async fn whoever_sends_wakes_when_there_is_something_and_when_there_is_much() {
        let queue = ExportQueue::new(1000, false);
        let mut filled = Box::pin(queue.wait_until_filled());
        let mut full = Box::pin(queue.wait_until_full());
        assert!((&mut filled).now_or_never().is_none());
        assert!((&mut full).now_or_never().is_none());
        queue.push(thing("a", 10), 0).unwrap();
        filled.await;
        assert!((&mut full).now_or_never().is_none());
        queue.push(thing("a", 490), 0).unwrap();
        full.await;
        let mut empty = Box::pin(queue.wait_until_empty());
        assert!((&mut empty).now_or_never().is_none());
        while let Some(taken) = queue.pop() {
            queue.release(taken.tenant(), taken.cost());
        }
        empty.await;
    }
}
