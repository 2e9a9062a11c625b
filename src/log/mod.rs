//! What happens in one run, in order, numbered without gaps, for any number of readers, in bounded memory.
//!
//! Event 0 is the start, then comes output, then exactly one end; a run that is refused has the end alone. A run's
//! caller that reads as it goes is *owed* its output: none of it is let go before it was read, and the guest waits
//! while there is no room for more. All other readers, [`Viewer`]s, get what is there, and are told what is not.

mod captured;
mod kept;
mod pool;
mod view;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::outcome::{Ended, Stream};
use crate::refusal::Refusal;

use self::pool::Ticket;

pub use self::captured::{CaptureBuffer, Captured};
pub use self::kept::KeptOutput;
pub use self::pool::Pool;
pub use self::view::{Event, Viewer, What};

/// How a run ended: by itself or by a limit, or refused, or failed.
pub type End = Result<Ended, Refusal>;

/// The most bytes of one event.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// What an event costs besides its bytes, so that a million one-byte events are not free.
const OVERHEAD: usize = 128;
/// What a caller may be owed however little room all logs have.
pub const FLOOR: usize = 2 * CHUNK_BYTES;

/// A run's log.
#[derive(Debug)]
pub struct Log {
    me: Weak<Self>,
    /// What it may hold.
    bytes: usize,
    pool: Arc<Pool>,
    inner: Mutex<Inner>,
    /// Told each time that the caller takes something.
    space: Notify,
    /// Told when the run starts and when it ends.
    turned: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    started: Option<SystemTime>,
    /// The number of the first of `entries`; output starts at 1.
    first: u64,
    entries: VecDeque<Entry>,
    /// What the entries cost.
    held: usize,
    owed: Option<Owed>,
    /// Since when the guest has found no room, and its caller has taken nothing.
    full_since: Option<Instant>,
    end: Option<(SystemTime, Arc<End>)>,
    /// Standard output and error of a run whose caller gets them whole.
    captured: Option<Captured>,
    /// Whether no caller of the run is left, after its end.
    shelved: bool,
    /// Its place among the logs of the pool that can give something.
    ticket: Option<Ticket>,
    /// Those who wait for something to happen, each in the place that its reader took when it first had to wait.
    waiting: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// What a caller has yet to read.
#[derive(Clone, Copy, Debug)]
struct Owed {
    /// The next event that it gets.
    next: u64,
    /// What that and all after it cost.
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    stream: Stream,
    at: SystemTime,
    bytes: Body,
    /// What it takes of memory.
    cost: usize,
}

/// The bytes of an event: more may be added until somebody has read it.
#[derive(Debug)]
enum Body {
    Open(Vec<u8>),
    Sealed(Bytes),
}

impl Entry {
    fn seal(&mut self) -> Bytes {
        if let Body::Open(bytes) = &mut self.bytes {
            self.bytes = Body::Sealed(Bytes::from(std::mem::take(bytes)));
        }
        match &self.bytes {
            Body::Sealed(bytes) => bytes.clone(),
            Body::Open(_) => Bytes::new(),
        }
    }
}

impl Log {
    /// Of at most `bytes`, out of `pool`.
    pub fn new(bytes: usize, pool: Arc<Pool>) -> Arc<Self> {
        let inner = Inner {
            first: 1,
            ..Inner::default()
        };
        Self::of(bytes, pool, inner)
    }

    fn of(bytes: usize, pool: Arc<Pool>, inner: Inner) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            bytes: bytes.max(FLOOR),
            pool,
            inner: Mutex::new(inner),
            space: Notify::new(),
            turned: Notify::new(),
        })
    }

    /// Says that the run starts.
    pub fn start(&self, at: SystemTime) {
        let mut inner = self.lock();
        inner.started = Some(at);
        let wakers = inner.take_wakers();
        drop(inner);
        wake(wakers);
        self.turned.notify_waiters();
    }

    /// Says that the run ended `at`, and how, once; nothing is written after it.
    pub fn finish(&self, at: SystemTime, end: Arc<End>, captured: Option<Captured>) {
        if let Some(captured) = &captured {
            self.pool.add(captured.bytes());
            // Before anybody learns of it.
            self.pool.make_room();
        }
        let mut inner = self.lock();
        inner.captured = captured;
        inner.end = Some((at, end));
        let wakers = inner.take_wakers();
        drop(inner);
        wake(wakers);
        self.turned.notify_waiters();
    }

    /// When the run started, where it has.
    pub fn started(&self) -> Option<SystemTime> {
        self.lock().started
    }

    /// How the run ended and when, where it has.
    pub fn end(&self) -> Option<(SystemTime, Arc<End>)> {
        self.lock().end.clone()
    }

    /// The number of the next event; after the end, one more than the end's.
    pub fn next_seq(&self) -> u64 {
        let inner = self.lock();
        inner.next_output() + u64::from(inner.end.is_some())
    }

    /// Resolves when the run has started, or has ended without that.
    pub async fn begun(&self) {
        self.turn(|inner| (inner.started.is_some() || inner.end.is_some()).then_some(()))
            .await;
    }

    /// Resolves when the run has ended.
    pub async fn ended(&self) -> Arc<End> {
        self.turn(|inner| inner.end.as_ref().map(|(_, end)| Arc::clone(end)))
            .await
    }

    async fn turn<T>(&self, has: impl Fn(&Inner) -> Option<T>) -> T {
        loop {
            let mut turned = std::pin::pin!(self.turned.notified());
            turned.as_mut().enable();
            if let Some(found) = has(&self.lock()) {
                return found;
            }
            turned.await;
        }
    }

    /// What the run's caller gets whole, for as long as it is kept.
    pub fn captured(&self) -> Option<Captured> {
        self.lock().captured.clone()
    }

    /// What the run's only caller gets whole: from now on it is that caller's, who is charged for it elsewhere.
    pub fn take_captured(&self) -> Option<Captured> {
        let captured = self.lock().captured.take();
        self.pool.sub(captured.as_ref().map_or(0, Captured::bytes));
        captured
    }

    /// Adds output, at most as much as [`Self::room`] said, or little more.
    pub fn write(&self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut inner = self.lock();
        let added = inner.append(stream, bytes);
        self.pool.add(added);
        if let Some(owed) = &mut inner.owed {
            owed.bytes += added;
        }
        let over = inner.held.saturating_sub(self.bytes);
        self.pool.sub(inner.trim(over));
        self.enter(&mut inner);
        let wakers = inner.take_wakers();
        drop(inner);
        self.pool.make_room();
        wake(wakers);
    }

    /// Takes its place among the logs of the pool when it has something to give.
    fn enter(&self, inner: &mut Inner) {
        if inner.ticket.is_some() {
            return;
        }
        let owed = inner.owed.map_or(0, |owed| owed.bytes);
        let last = inner.entries.back().map_or(0, |entry| entry.cost);
        if inner.held - owed > last {
            inner.ticket = Some(self.pool.enter(self.me.clone(), true));
        }
    }

    /// How many bytes may be written before the caller has read some; `None`: any.
    pub fn room(&self) -> Option<usize> {
        let inner = self.lock();
        let most = if self.pool.is_over() {
            FLOOR
        } else {
            self.bytes
        };
        let owed = inner.owed?;
        Some(most.saturating_sub(owed.bytes + OVERHEAD))
    }

    /// Resolves to true when there is room, and to false when the caller has taken nothing for `stall`.
    pub async fn wait_for_room(&self, stall: Duration) -> bool {
        let full = || self.room() == Some(0);
        while full() {
            let since = *self.lock().full_since.get_or_insert_with(Instant::now);
            let patience = stall.saturating_sub(since.elapsed());
            let waited = tokio::time::timeout(patience, self.space.notified()).await;
            // It may have taken something in the last moment.
            let since = self.lock().full_since;
            if waited.is_err() && full() && since.is_some_and(|since| since.elapsed() >= stall) {
                return false;
            }
        }
        true
    }

    /// Owes nobody anything any more: whoever was owed reads on as a viewer.
    pub fn owe_nothing(&self) {
        let mut inner = self.lock();
        inner.owed = None;
        inner.full_since = None;
        self.enter(&mut inner);
        drop(inner);
        self.space.notify_one();
    }

    /// Says that the run has ended and no caller of it is left: its output may go when room is needed. What was captured
    /// goes now, unless a later call may ask for it.
    pub fn shelve(&self, keep_captured: bool) {
        let mut inner = self.lock();
        if !keep_captured {
            self.pool.sub(inner.drop_captured());
        }
        if !inner.shelved {
            inner.shelved = true;
            if let Some(ticket) = inner.ticket.take() {
                self.pool.leave(ticket);
            }
            inner.ticket = Some(self.pool.enter(self.me.clone(), false));
        }
        drop(inner);
        self.pool.make_room();
    }

    /// Lets all go that nobody is owed: of a run that goes on all but the last event.
    fn give(&self) {
        let mut inner = self.lock();
        inner.ticket = None;
        let freed = if inner.shelved {
            inner.drop_captured() + inner.trim(usize::MAX)
        } else {
            let last = inner.entries.back().map_or(0, |entry| entry.cost);
            let rest = inner.held - last;
            inner.trim(rest)
        };
        self.pool.sub(freed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held; were it to, the bytes are still whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let pool = Arc::clone(&self.pool);
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        pool.sub(inner.drop_captured() + inner.held);
        if let Some(ticket) = inner.ticket {
            pool.leave(ticket);
        }
    }
}

impl Inner {
    /// The number of the next event of output, or of the end.
    fn next_output(&self) -> u64 {
        if self.started.is_none() {
            return 0;
        }
        self.first + self.entries.len() as u64
    }

    /// Adds bytes to the last event while nobody has read it, and then in events of their own; returns what that costs.
    fn append(&mut self, stream: Stream, mut bytes: &[u8]) -> usize {
        let mut added = 0;
        if let Some(last) = self.entries.back_mut()
            && last.stream == stream
            && let Body::Open(open) = &mut last.bytes
        {
            let fits = bytes.len().min(CHUNK_BYTES - open.len());
            let wanted = open.len() + fits;
            if wanted > open.capacity() {
                // Doubled as a vector would, but never past what an event may have: the rest could not be used, and would have an
                // older event go for nothing.
                let capacity = wanted.max(2 * open.capacity()).min(CHUNK_BYTES);
                open.reserve_exact(capacity - open.len());
            }
            open.extend_from_slice(&bytes[..fits]);
            let cost = open.capacity() + OVERHEAD;
            added += cost.saturating_sub(last.cost);
            last.cost = last.cost.max(cost);
            bytes = &bytes[fits..];
        }
        for piece in bytes.chunks(CHUNK_BYTES) {
            let bytes = piece.to_vec();
            if self.entries.capacity() == 0 {
                // Most runs write once, and the history keeps what they wrote.
                self.entries.reserve_exact(1);
            }
            let cost = bytes.capacity() + OVERHEAD;
            added += cost;
            self.entries.push_back(Entry {
                stream,
                at: SystemTime::now(),
                bytes: Body::Open(bytes),
                cost,
            });
        }
        self.held += added;
        added
    }

    /// Lets `bytes` of the oldest output go, or as much as nobody is owed; returns how much that is.
    fn trim(&mut self, bytes: usize) -> usize {
        let mut freed = 0;
        while freed < bytes && self.owed.is_none_or(|owed| self.first < owed.next) {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.first += 1;
            freed += entry.cost;
        }
        self.held -= freed;
        if self.entries.is_empty() {
            self.entries.shrink_to_fit();
        }
        freed
    }

    /// Those who wait for something to happen, to be woken when the lock is let go.
    fn take_wakers(&mut self) -> Vec<Waker> {
        self.waiting.iter_mut().filter_map(Option::take).collect()
    }

    fn drop_captured(&mut self) -> usize {
        let captured = self.captured.take();
        captured.as_ref().map_or(0, Captured::bytes)
    }
}

fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A log of the least that one may hold, which was written to in writes of `size` bytes behind a first of `first`.
    fn written(first: usize, size: usize) -> (Inner, usize) {
        let mut inner = Inner::default();
        let mut written = 0;
        for size in std::iter::once(first).chain(std::iter::repeat_n(size, 1 << 20 >> 10)) {
            inner.append(Stream::Stdout, &vec![0; size]);
            inner.trim(inner.held.saturating_sub(FLOOR));
            written += size;
        }
        (inner, written)
    }

    /// However the first event began, which decides how the events behind it grow.
    #[test]
    fn no_event_takes_more_than_it_may_have_and_half_an_event_is_always_kept() {
        for first in [1, 7, 1000, 5000, 8191, 8192, 8193, 40_000, CHUNK_BYTES] {
            for size in [1, 100, 1024, 5000, 8192, 10_000] {
                let (inner, written) = written(first, size);
                let costs: Vec<usize> = inner.entries.iter().map(|entry| entry.cost).collect();
                assert!(
                    costs.iter().all(|&cost| cost <= CHUNK_BYTES + OVERHEAD),
                    "{costs:?}"
                );
                assert!(inner.held <= FLOOR);
                let kept: usize = inner
                    .entries
                    .iter()
                    .map(|entry| match &entry.bytes {
                        Body::Open(bytes) => bytes.len(),
                        Body::Sealed(bytes) => bytes.len(),
                    })
                    .sum();
                assert!(kept >= written.min(31 << 10), "{first}, {size}: {kept}");
            }
        }
    }
}
