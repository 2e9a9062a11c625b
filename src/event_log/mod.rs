//! The event log of one run: what happens in it, in order and numbered without gaps, for any number
//! of readers, in bounded memory.
//!
//! Event 0 is the start, then comes output, then exactly one end; a run that is refused has the end
//! alone. There is backpressure: a run's caller that reads as it goes is *owed* its output, so none
//! of it is dropped before it was read, and the guest waits while there is no room for more. All
//! other readers, the viewers, get what is there, and are told what is not.

mod budget;
mod captured;
mod packed;
mod reader;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::model::collected::{CollectedFile, FileHead};
use crate::model::outcome::{RunReport, Stream};
use crate::model::refusal::Refusal;
use crate::sync::lock;

use self::budget::EvictionSlot;

pub use self::budget::EventLogBudget;
pub use self::captured::{CaptureBuffer, CapturedOutput};
pub use self::packed::PackedOutput;
pub use self::reader::{Event, EventPayload, EventReader};

/// How a run ended: a report where the guest ended by itself or by a limit, a refusal where the run
/// was refused or the daemon failed.
pub type RunEnd = Result<RunReport, Refusal>;

/// The most bytes of output in one event.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// What an event costs in bytes besides its output, so that a million one-byte events are not free.
const OVERHEAD: usize = 128;
/// The bytes that a caller may be owed however little room all logs have.
pub const FLOOR: usize = 2 * CHUNK_BYTES;

/// A bounded log of one run's events, which charges what it holds to a shared budget.
#[derive(Debug)]
pub struct EventLog {
    me: Weak<Self>,
    /// The most bytes that the log may hold.
    bytes: usize,
    pool: Arc<EventLogBudget>,
    inner: Mutex<Inner>,
    /// Notified each time that the caller reads something, because the guest may wait for that.
    space: Notify,
    /// Notified when the run starts and when it ends.
    changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    started: Option<SystemTime>,
    /// The number of the first of `entries`; output starts at 1.
    first_seq: u64,
    entries: VecDeque<OutputEvent>,
    /// What the entries cost together, in bytes.
    held: usize,
    unacked: Option<Unacked>,
    /// Since when the guest has found no room while its caller has read nothing; `None` where it
    /// has not.
    full_since: Option<Instant>,
    end: Option<(SystemTime, Arc<RunEnd>)>,
    /// Standard output and error of a run whose caller gets them whole; `None` until the end, and
    /// once they are taken or dropped.
    captured: Option<CapturedOutput>,
    /// Whether the run has ended and no caller of it is left.
    evictable: bool,
    /// The log's place in the eviction order of the pool; `None` where it is not entered.
    eviction_slot: Option<EvictionSlot>,
    /// The wakers of readers that wait for an event, each in the place that its reader took when it
    /// first had to wait.
    waiting: Vec<Option<Waker>>,
    free: Vec<usize>,
}

/// The output that a caller has yet to read.
#[derive(Clone, Copy, Debug)]
struct Unacked {
    /// The number of the next event that the caller gets.
    next: u64,
    /// What that event and all after it cost, in bytes.
    bytes: usize,
}

#[derive(Debug)]
struct OutputEvent {
    source: EventSource,
    at: SystemTime,
    bytes: OutputBytes,
    /// What the event takes of memory, in bytes.
    cost: usize,
}

/// What the bytes of an event are a part of.
#[derive(Debug)]
enum EventSource {
    /// What the guest wrote to a stream.
    Output(Stream),
    /// A file that the run returns, at an offset.
    File(Box<(Arc<FileHead>, u64)>),
}

impl EventSource {
    /// Reports whether it is the stream `stream`.
    fn is_output_of(&self, stream: Stream) -> bool {
        match self {
            Self::Output(own) => *own == stream,
            Self::File(_) => false,
        }
    }
}

/// The bytes of an event. More may be added until somebody has read it, which seals it.
#[derive(Debug)]
enum OutputBytes {
    Open(Vec<u8>),
    Sealed(Bytes),
}

impl OutputEvent {
    fn seal(&mut self) -> Bytes {
        if let OutputBytes::Open(bytes) = &mut self.bytes {
            self.bytes = OutputBytes::Sealed(Bytes::from(std::mem::take(bytes)));
        }
        match &self.bytes {
            OutputBytes::Sealed(bytes) => bytes.clone(),
            OutputBytes::Open(_) => Bytes::new(),
        }
    }
}

impl EventLog {
    /// Creates an empty log of at most `bytes`, which are charged to `pool`.
    pub fn new(bytes: usize, pool: Arc<EventLogBudget>) -> Arc<Self> {
        let inner = Inner {
            first_seq: 1,
            ..Inner::default()
        };
        Self::of(bytes, pool, inner)
    }

    fn of(bytes: usize, pool: Arc<EventLogBudget>, inner: Inner) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            bytes: bytes.max(FLOOR),
            pool,
            inner: Mutex::new(inner),
            space: Notify::new(),
            changed: Notify::new(),
        })
    }

    /// Notes that the run starts, and wakes those who wait for that.
    pub fn start(&self, at: SystemTime) {
        let mut inner = self.lock();
        inner.started = Some(at);
        let wakers = inner.take_wakers();
        drop(inner);
        wake(wakers);
        self.changed.notify_waiters();
    }

    /// Keeps what was captured of a run that is about to end, for its callers, and charges the
    /// budget of logs for it. Other output is evicted where that is needed, before anybody learns
    /// of the end.
    pub fn keep_captured(&self, captured: CapturedOutput) {
        self.pool.add(captured.bytes());
        self.pool.make_room();
        self.lock().captured = Some(captured);
    }

    /// Notes that the run ended `at` and how, once. Nothing is written after it.
    pub fn finish(&self, at: SystemTime, end: Arc<RunEnd>) {
        let mut inner = self.lock();
        inner.end = Some((at, end));
        let wakers = inner.take_wakers();
        drop(inner);
        wake(wakers);
        self.changed.notify_waiters();
    }

    /// Returns when the run started; `None` where it has not.
    pub fn started(&self) -> Option<SystemTime> {
        self.lock().started
    }

    /// Returns when and how the run ended; `None` where it has not.
    pub fn end(&self) -> Option<(SystemTime, Arc<RunEnd>)> {
        self.lock().end.clone()
    }

    /// Returns the number of the next event; after the end, one more than the end's.
    pub fn next_seq(&self) -> u64 {
        let inner = self.lock();
        inner.next_output() + u64::from(inner.end.is_some())
    }

    /// Waits until the run has started, or has ended without that.
    pub async fn wait_for_start(&self) {
        self.turn(|inner| (inner.started.is_some() || inner.end.is_some()).then_some(()))
            .await;
    }

    /// Waits until the run has ended, and returns how.
    pub async fn wait_for_end(&self) -> Arc<RunEnd> {
        self.turn(|inner| inner.end.as_ref().map(|(_, end)| Arc::clone(end)))
            .await
    }

    async fn turn<T>(&self, has: impl Fn(&Inner) -> Option<T>) -> T {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(found) = has(&self.lock()) {
                return found;
            }
            changed.await;
        }
    }

    /// Returns what the run's caller gets whole, for as long as it is kept.
    pub fn captured(&self) -> Option<CapturedOutput> {
        self.lock().captured.clone()
    }

    /// Takes what the run's only caller gets whole. It belongs to that caller from now on, who is
    /// charged for it elsewhere.
    pub fn take_captured(&self) -> Option<CapturedOutput> {
        let captured = self.lock().captured.take();
        self.pool
            .sub(captured.as_ref().map_or(0, CapturedOutput::bytes));
        captured
    }

    /// Appends output: at most as much as [`Self::room`] said, or little more.
    pub fn write(&self, stream: Stream, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut inner = self.lock();
        let added = inner.append(stream, bytes);
        self.appended(inner, added);
    }

    /// Appends a file that the run returns, in events of at most 64 KiB. An empty file is one event
    /// too. Its bytes are shared, and the caller does not have to have read anything before.
    pub fn write_file(&self, file: &CollectedFile) {
        let mut inner = self.lock();
        let added = inner.append_file(file);
        self.appended(inner, added);
    }

    /// Charges for events that were appended, drops old ones beyond the log's bound, and wakes the
    /// readers.
    fn appended(&self, mut inner: MutexGuard<'_, Inner>, added: usize) {
        self.pool.add(added);
        if let Some(owed) = &mut inner.unacked {
            owed.bytes += added;
            self.pool.owe(added);
        }
        let over = inner.held.saturating_sub(self.bytes);
        self.pool.sub(inner.trim(over));
        self.offer_for_eviction(&mut inner);
        let wakers = inner.take_wakers();
        drop(inner);
        self.pool.make_room();
        wake(wakers);
    }

    /// Enters the log into the pool's eviction order once it has output that may be evicted.
    fn offer_for_eviction(&self, inner: &mut Inner) {
        if inner.eviction_slot.is_some() {
            return;
        }
        let owed = inner.unacked.map_or(0, |owed| owed.bytes);
        let last = inner.entries.back().map_or(0, |entry| entry.cost);
        if inner.held - owed > last {
            inner.eviction_slot = Some(self.pool.enter(self.me.clone(), true));
        }
    }

    /// Returns how many bytes may be written before the caller has read some; `None` where nobody
    /// is owed the output, and any number may be.
    pub fn room(&self) -> Option<usize> {
        let inner = self.lock();
        let most = if self.pool.is_over() {
            FLOOR
        } else {
            self.bytes
        };
        let owed = inner.unacked?;
        Some(most.saturating_sub(owed.bytes + OVERHEAD))
    }

    /// Waits for room. Returns true when there is some, and false when the caller has read nothing
    /// for `stall`.
    pub async fn wait_for_room(&self, stall: Duration) -> bool {
        let full = || self.room() == Some(0);
        while full() {
            let since = *self.lock().full_since.get_or_insert_with(Instant::now);
            let patience = stall.saturating_sub(since.elapsed());
            let waited = tokio::time::timeout(patience, self.space.notified()).await;
            // The caller may have read something in the last moment.
            let since = self.lock().full_since;
            if waited.is_err() && full() && since.is_some_and(|since| since.elapsed() >= stall) {
                return false;
            }
        }
        true
    }

    /// Ends the backpressure: nobody is owed anything any more, and whoever was reads on as a
    /// viewer.
    pub fn release_backpressure(&self) {
        let mut inner = self.lock();
        self.pool.pay(inner.forgive());
        inner.full_since = None;
        self.offer_for_eviction(&mut inner);
        drop(inner);
        self.space.notify_one();
    }

    /// Notes that the run has ended and no caller of it is left, so that its output may be evicted
    /// when room is needed. What was captured is dropped now, unless a later call may ask for it.
    pub fn mark_evictable(&self, keep_captured: bool) {
        let mut inner = self.lock();
        if !keep_captured {
            self.pool.sub(inner.drop_captured());
        }
        if !inner.evictable {
            inner.evictable = true;
            if let Some(ticket) = inner.eviction_slot.take() {
                self.pool.leave(ticket);
            }
            inner.eviction_slot = Some(self.pool.enter(self.me.clone(), false));
        }
        drop(inner);
        self.pool.make_room();
    }

    /// Drops all output of a run whose guest has ended and that no caller holds, and what was
    /// captured. Viewers that have not read all of it are told what is lost.
    pub fn forget_output(&self) {
        let mut inner = self.lock();
        self.pool.pay(inner.forgive());
        let freed = inner.drop_captured() + inner.trim(usize::MAX);
        if let Some(ticket) = inner.eviction_slot.take() {
            self.pool.leave(ticket);
        }
        drop(inner);
        self.pool.sub(freed);
    }

    /// Drops all output that nobody is owed; of a run that goes on or still has a caller, all but
    /// the last event.
    fn evict(&self) {
        let mut inner = self.lock();
        inner.eviction_slot = None;
        let freed = if inner.evictable {
            inner.drop_captured() + inner.trim(usize::MAX)
        } else {
            let last = inner.entries.back().map_or(0, |entry| entry.cost);
            let rest = inner.held - last;
            inner.trim(rest)
        };
        self.pool.sub(freed);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        let pool = Arc::clone(&self.pool);
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        pool.sub(inner.drop_captured() + inner.held);
        if let Some(ticket) = inner.eviction_slot {
            pool.leave(ticket);
        }
    }
}

impl Inner {
    /// Returns the number of the next event of output, or of the end.
    fn next_output(&self) -> u64 {
        if self.started.is_none() {
            return 0;
        }
        self.first_seq + self.entries.len() as u64
    }

    /// Adds bytes to the last event while nobody has read it, and then in events of their own.
    /// Returns what that costs in bytes.
    fn append(&mut self, stream: Stream, mut bytes: &[u8]) -> usize {
        let mut added = 0;
        if let Some(last) = self.entries.back_mut()
            && last.source.is_output_of(stream)
            && let OutputBytes::Open(open) = &mut last.bytes
        {
            let fits = bytes.len().min(CHUNK_BYTES - open.len());
            let wanted = open.len() + fits;
            if wanted > open.capacity() {
                // The capacity is doubled as a vector's would be, but never past what an event may
                // have: the rest could not be used, and would evict an older event for nothing.
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
                // Most runs write once, and the history keeps what they wrote: room for more would
                // be wasted.
                self.entries.reserve_exact(1);
            }
            let cost = bytes.capacity() + OVERHEAD;
            added += cost;
            self.entries.push_back(OutputEvent {
                source: EventSource::Output(stream),
                at: SystemTime::now(),
                bytes: OutputBytes::Open(bytes),
                cost,
            });
        }
        self.held += added;
        added
    }

    /// Adds the events of a file. Returns what they cost in bytes.
    fn append_file(&mut self, file: &CollectedFile) -> usize {
        let (mut added, mut offset) = (0, 0);
        let no_bytes = [Bytes::new()];
        let pieces = match file.pieces.is_empty() {
            true => &no_bytes[..],
            false => &file.pieces[..],
        };
        for piece in pieces {
            let cost = piece.len() + file.head.path.len() + OVERHEAD;
            self.entries.push_back(OutputEvent {
                source: EventSource::File(Box::new((Arc::clone(&file.head), offset))),
                at: SystemTime::now(),
                bytes: OutputBytes::Sealed(piece.clone()),
                cost,
            });
            offset += piece.len() as u64;
            added += cost;
        }
        self.held += added;
        added
    }

    /// Drops the oldest output: `bytes` of it, or as much as nobody is owed. Returns how much that
    /// is.
    fn trim(&mut self, bytes: usize) -> usize {
        let mut freed = 0;
        while freed < bytes && self.unacked.is_none_or(|owed| self.first_seq < owed.next) {
            let Some(entry) = self.entries.pop_front() else {
                break;
            };
            self.first_seq += 1;
            freed += entry.cost;
        }
        self.held -= freed;
        if self.entries.is_empty() {
            self.entries.shrink_to_fit();
        }
        freed
    }

    /// Takes the wakers of all readers that wait for an event, to be woken when the lock is
    /// released.
    fn take_wakers(&mut self) -> Vec<Waker> {
        self.waiting.iter_mut().filter_map(Option::take).collect()
    }

    /// Cancels what is owed to the caller, and returns its bytes.
    fn forgive(&mut self) -> usize {
        self.unacked.take().map_or(0, |owed| owed.bytes)
    }

    fn drop_captured(&mut self) -> usize {
        let captured = self.captured.take();
        captured.as_ref().map_or(0, CapturedOutput::bytes)
    }
}

fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        waker.wake();
    }
}

#[cfg(test)]
mod tests;
