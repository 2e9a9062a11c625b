//! What waits to be exported: a FIFO of each tenant, of which one thing after the other is taken in
//! turns (round robin). It is bounded by bytes, of which no tenant can have all. Whoever adds to it
//! never waits: what does not fit is dropped.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::model::limits::share_of;
use crate::sync::lock;

/// How many bytes have to wait for a batch to be sent before its time.
const EARLY_BATCH_BYTES: u64 = 256 << 10;

/// What bytes are charged for. Each has bytes of its own, so that none of them takes another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Account {
    /// Things that wait, or are on their way.
    Things,
    /// Things that say what was dropped.
    Notices,
    /// What is kept outside of the queue until it is a whole thing.
    Unfinished,
}

/// The most bytes that may be held of each account.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueBounds {
    pub(super) things: u64,
    pub(super) notices: u64,
    pub(super) unfinished: u64,
}

/// Bytes that a tenant is charged with until they are released.
#[derive(Debug)]
pub(super) struct Charge {
    tenant: Arc<str>,
    account: Account,
    bytes: u64,
}

impl Charge {
    /// Returns what a thing is charged with.
    pub(super) fn of(thing: &impl Queued) -> Self {
        Self {
            tenant: Arc::clone(thing.tenant()),
            account: thing.account(),
            bytes: thing.cost(),
        }
    }
}

/// A thing that can wait in an [`ExportQueue`], which knows for whom and how large it is.
pub(super) trait Queued {
    /// Returns the name of the tenant that the thing is charged to.
    fn tenant(&self) -> &Arc<str>;

    /// Returns what the thing is charged with, in bytes. It is the same for as long as it waits.
    fn cost(&self) -> u64;

    /// Returns what the thing is charged for.
    fn account(&self) -> Account {
        Account::Things
    }
}

/// A queue of things to be exported, bounded by bytes. What was taken out is charged until it is
/// released, so that a batch on its way to the collector counts too.
#[derive(Debug)]
pub(super) struct ExportQueue<T> {
    /// How many bytes have to wait for a batch to be sent before its time.
    early_batch_bytes: u64,
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
    /// What waits of each tenant that has something waiting.
    waiting: HashMap<Arc<str>, VecDeque<T>>,
    /// The same tenants, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    /// The cost of all that waits. What is on its way, or kept elsewhere, is not in it.
    waiting_bytes: u64,
    /// What is held, by the account.
    held: [AccountBytes; 3],
}

/// The bytes that are held of one account.
#[derive(Debug)]
struct AccountBytes {
    /// The most of them.
    most: u64,
    /// The most of them that may be of one tenant.
    share: u64,
    all: u64,
    /// Those of each tenant, where there are several.
    of: HashMap<Arc<str>, u64>,
}

impl AccountBytes {
    fn new(most: u64, several: bool) -> Self {
        Self {
            most,
            share: share_of(most, several),
            all: 0,
            of: HashMap::new(),
        }
    }

    /// Charges a tenant with bytes, and reports whether there was room for them.
    fn charge(&mut self, tenant: &Arc<str>, bytes: u64) -> bool {
        if self.all + bytes > self.most {
            return false;
        }
        if self.share < self.most {
            let held = match self.of.get_mut(tenant) {
                Some(held) => held,
                None => self.of.entry(Arc::clone(tenant)).or_default(),
            };
            if *held + bytes > self.share {
                return false;
            }
            *held += bytes;
        }
        self.all += bytes;
        true
    }

    fn release(&mut self, tenant: &Arc<str>, bytes: u64) {
        self.all = self.all.saturating_sub(bytes);
        if let Some(held) = self.of.get_mut(tenant) {
            *held = held.saturating_sub(bytes);
        }
    }
}

impl<T: Queued> ExportQueue<T> {
    /// Creates a queue of at most so many bytes. Where there are `several` tenants, none of them
    /// may have the last eighth of any account.
    pub(super) fn new(bounds: QueueBounds, several: bool) -> Self {
        let QueueBounds {
            things,
            notices,
            unfinished,
        } = bounds;
        Self {
            early_batch_bytes: EARLY_BATCH_BYTES.min(things / 2),
            inner: Mutex::new(Inner {
                waiting: HashMap::new(),
                turns: VecDeque::new(),
                waiting_bytes: 0,
                // In the order of `Account`.
                held: [things, notices, unfinished].map(|most| AccountBytes::new(most, several)),
            }),
            filled: Notify::new(),
            full: Notify::new(),
            emptied: Notify::new(),
        }
    }

    /// Creates a queue of things of at most `bytes`, without other accounts.
    pub(super) fn of_things(bytes: u64, several: bool) -> Self {
        let bounds = QueueBounds {
            things: bytes,
            notices: 0,
            unfinished: 0,
        };
        Self::new(bounds, several)
    }

    /// Charges a tenant with bytes, and reports whether there was room for them.
    pub(super) fn charge(&self, account: Account, tenant: &Arc<str>, bytes: u64) -> bool {
        self.lock().held[account as usize].charge(tenant, bytes)
    }

    /// Releases bytes that a tenant was charged with.
    pub(super) fn release(&self, account: Account, tenant: &Arc<str>, bytes: u64) {
        let mut inner = self.lock();
        inner.held[account as usize].release(tenant, bytes);
        let is_empty = inner.held() == 0;
        drop(inner);
        if is_empty {
            self.emptied.notify_waiters();
        }
    }

    /// Releases what a thing was charged with that was taken out.
    pub(super) fn release_charge(&self, charge: &Charge) {
        self.release(charge.account, &charge.tenant, charge.bytes);
    }

    /// Adds a thing that has been charged already.
    pub(super) fn add_charged(&self, thing: T) {
        self.add(self.lock(), thing);
    }

    /// Charges and adds a thing. It is handed back where there is no room for it.
    pub(super) fn push(&self, thing: T) -> Result<(), T> {
        let mut inner = self.lock();
        let held = &mut inner.held[thing.account() as usize];
        if !held.charge(thing.tenant(), thing.cost()) {
            return Err(thing);
        }
        self.add(inner, thing);
        Ok(())
    }

    /// Takes the thing of the next tenant that has waited the longest, which stays charged.
    pub(super) fn pop(&self) -> Option<T> {
        let mut inner = self.lock();
        let tenant = inner.turns.pop_front()?;
        let things = inner.waiting.get_mut(&tenant)?;
        let popped = things.pop_front()?;
        if things.is_empty() {
            // The memory of a burst is given back.
            inner.waiting.remove(&tenant);
        } else {
            inner.turns.push_back(tenant);
        }
        inner.waiting_bytes = inner.waiting_bytes.saturating_sub(popped.cost());
        Some(popped)
    }

    /// Puts back a thing of which only a part was taken, before all others of its tenant, which has
    /// had its turn.
    pub(super) fn put_back(&self, thing: T) {
        self.lock().things_of(&thing).push_front(thing);
    }

    /// Returns how many bytes are held, those of a batch on its way included.
    pub(super) fn held(&self) -> u64 {
        self.lock().held()
    }

    /// Waits until something waits.
    pub(super) async fn wait_until_filled(&self) {
        while self.lock().turns.is_empty() {
            self.filled.notified().await;
        }
    }

    /// Waits until enough waits for a batch to be sent at once.
    pub(super) async fn wait_until_full(&self) {
        while self.lock().waiting_bytes < self.early_batch_bytes {
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

    fn add(&self, mut inner: MutexGuard<'_, Inner<T>>, thing: T) {
        let was_empty = inner.turns.is_empty();
        inner.things_of(&thing).push_back(thing);
        let is_full = inner.waiting_bytes >= self.early_batch_bytes;
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

impl<T: Queued> Inner<T> {
    /// Counts a thing as waiting, and returns the FIFO of its tenant, who has a turn.
    fn things_of(&mut self, thing: &T) -> &mut VecDeque<T> {
        self.waiting_bytes += thing.cost();
        let tenant = thing.tenant();
        if !self.waiting.contains_key(tenant) {
            self.turns.push_back(Arc::clone(tenant));
        }
        self.waiting.entry(Arc::clone(tenant)).or_default()
    }

    fn held(&self) -> u64 {
        self.held.iter().map(|account| account.all).sum()
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
        let queue = ExportQueue::of_things(100, false);
        queue.push(thing("a", 60)).unwrap();
        assert_eq!(queue.push(thing("a", 41)), Err(thing("a", 41)));
        queue.push(thing("a", 40)).unwrap();
        let first = queue.pop().unwrap();
        assert_eq!(first, thing("a", 60));
        // It is charged until it is released.
        assert_eq!(queue.held(), 100);
        queue.put_back(first);
        let [first, second] = [queue.pop(), queue.pop()].map(Option::unwrap);
        assert_eq!((first.1, second.1), (60, 40));
        for taken in [first, second] {
            queue.release_charge(&Charge::of(&taken));
        }
        assert_eq!((queue.held(), queue.pop()), (0, None));
    }

    #[test]
    fn of_several_tenants_none_has_the_last_eighth() {
        let queue = ExportQueue::of_things(800, true);
        queue.push(thing("greedy", 700)).unwrap();
        queue.push(thing("greedy", 1)).unwrap_err();
        assert!(!queue.charge(Account::Things, &"greedy".into(), 1));
        queue.push(thing("modest", 100)).unwrap();
        queue.push(thing("modest", 1)).unwrap_err();
        queue.release(Account::Things, &"greedy".into(), 700);
        queue.push(thing("modest", 600)).unwrap();
        queue.push(thing("modest", 1)).unwrap_err();
        assert!(queue.charge(Account::Things, &"greedy".into(), 100));
    }

    #[test]
    fn an_account_takes_nothing_of_another_and_none_has_its_last_eighth() {
        let bounds = QueueBounds {
            things: 800,
            notices: 80,
            unfinished: 160,
        };
        let queue = ExportQueue::<Thing>::new(bounds, true);
        let [greedy, modest] = ["greedy", "modest"].map(Arc::<str>::from);
        for (account, bytes) in [
            (Account::Things, 800),
            (Account::Notices, 80),
            (Account::Unfinished, 160),
        ] {
            let share = bytes / 8 * 7;
            assert!(queue.charge(account, &greedy, share), "{account:?}");
            assert!(!queue.charge(account, &greedy, 1), "{account:?}");
            assert!(queue.charge(account, &modest, bytes - share), "{account:?}");
            assert!(!queue.charge(account, &modest, 1), "{account:?}");
        }
        assert_eq!(queue.held(), 1040);
        queue.release(Account::Unfinished, &modest, 20);
        assert!(!queue.charge(Account::Notices, &modest, 1));
        assert!(queue.charge(Account::Unfinished, &modest, 20));
    }

    #[test]
    fn tenants_take_turns_and_each_is_served_in_its_order() {
        let queue = ExportQueue::of_things(1000, true);
        for bytes in [1, 2, 3] {
            queue.push(thing("first", bytes)).unwrap();
        }
        queue.push(thing("second", 10)).unwrap();
        let popped = queue.pop().unwrap();
        assert_eq!(popped, thing("first", 1));
        queue.push(thing("third", 20)).unwrap();
        // What is put back is the next of its tenant, and no other waits for it.
        queue.put_back(popped);
        let popped: Vec<u64> = std::iter::from_fn(|| queue.pop().map(|it| it.1)).collect();
        assert_eq!(popped, [10, 1, 20, 2, 3]);
        // Who has nothing left gets a turn again with the next thing.
        queue.push(thing("second", 11)).unwrap();
        assert_eq!(queue.pop(), Some(thing("second", 11)));
    }

    #[tokio::test]
    async fn what_does_not_wait_makes_no_batch_of_what_does() {
        let bounds = QueueBounds {
            things: 1000,
            notices: 0,
            unfinished: 1000,
        };
        let queue = ExportQueue::new(bounds, false);
        let tenant = "a".into();
        assert!(queue.charge(Account::Unfinished, &tenant, 1000));
        queue.push(thing("a", 500)).unwrap();
        let on_its_way = queue.pop().unwrap();
        queue.push(thing("a", 10)).unwrap();
        assert!(queue.wait_until_full().now_or_never().is_none());
        queue.put_back(on_its_way);
        queue.wait_until_full().await;
    }

    #[tokio::test]
    async fn whoever_sends_wakes_when_there_is_something_and_when_there_is_much() {
        let queue = ExportQueue::of_things(1000, false);
        let mut filled = Box::pin(queue.wait_until_filled());
        let mut full = Box::pin(queue.wait_until_full());
        assert!((&mut filled).now_or_never().is_none());
        assert!((&mut full).now_or_never().is_none());
        queue.push(thing("a", 10)).unwrap();
        filled.await;
        assert!((&mut full).now_or_never().is_none());
        queue.push(thing("a", 490)).unwrap();
        full.await;
        let mut empty = Box::pin(queue.wait_until_empty());
        assert!((&mut empty).now_or_never().is_none());
        while let Some(taken) = queue.pop() {
            queue.release_charge(&Charge::of(&taken));
        }
        empty.await;
    }
}
