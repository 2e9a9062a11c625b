//! What waits to be archived: the runs that have ended, within a budget of bytes.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::segment::EncodedRun;
use crate::sync::lock;

/// How long runs are gathered after the first, so that not every end of a run wakes the thread that
/// encodes them.
const GATHER: Duration = Duration::from_millis(20);
/// Bytes of runs, about, that are taken in one turn.
const TURN_BYTES: usize = 4 << 20;

/// Whether an ended run is in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveState {
    /// It waits to be written.
    Queued,
    /// It has been written.
    Written,
    /// It was dropped, and will not be written.
    Dropped,
}

/// The state of one run, which whoever remembers the run can look at.
#[derive(Debug)]
pub struct ArchiveMark(AtomicU8);

impl ArchiveMark {
    /// Creates the mark of a run that waits.
    pub fn queued() -> Arc<Self> {
        Arc::new(Self(AtomicU8::new(0)))
    }

    /// Returns the state of the run.
    pub fn state(&self) -> ArchiveState {
        match self.0.load(Ordering::Relaxed) {
            0 => ArchiveState::Queued,
            1 => ArchiveState::Written,
            _ => ArchiveState::Dropped,
        }
    }

    pub(super) fn set(&self, state: ArchiveState) {
        let number = match state {
            ArchiveState::Queued => 0,
            ArchiveState::Written => 1,
            ArchiveState::Dropped => 2,
        };
        self.0.store(number, Ordering::Relaxed);
    }
}

/// A run that has ended and is to be archived.
pub struct ArchivableRun {
    /// The tenant whose run it is.
    pub tenant: Arc<str>,
    /// The number of the run's id.
    pub number: u128,
    /// Bytes that wait for the archive of all runs of the tenant.
    pub share: Arc<AtomicUsize>,
    /// How many bytes it holds until it is written, about.
    pub cost: usize,
    /// What its record says of the archive.
    pub mark: Arc<ArchiveMark>,
    /// Encodes it, away from the threads that serve callers.
    pub encode: Box<dyn FnOnce() -> EncodedRun + Send>,
}

impl fmt::Debug for ArchivableRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchivableRun")
            .field("tenant", &self.tenant)
            .field("cost", &self.cost)
            .finish_non_exhaustive()
    }
}

/// A guard for the bytes of a run that is on its way into the archive. Wherever it is dropped, the
/// bytes are given back, and a run that is neither written nor in a file beside the archive is told
/// as dropped.
#[derive(Debug)]
pub(super) struct PendingRun {
    queue: Arc<ArchiveQueue>,
    number: u128,
    share: Arc<AtomicUsize>,
    cost: usize,
    mark: Arc<ArchiveMark>,
    end: ArchiveState,
}

impl PendingRun {
    /// Charges `cost` bytes in place of what was charged, now that the run is encoded.
    pub(super) fn recharge(&mut self, cost: usize) {
        for held in [&self.queue.held, &*self.share] {
            held.fetch_add(cost, Ordering::Relaxed);
            held.fetch_sub(self.cost, Ordering::Relaxed);
        }
        self.cost = cost;
    }

    /// Ends the way of a run that is in the archive.
    pub(super) fn written(mut self) {
        self.end = ArchiveState::Written;
    }

    /// Notes that the run is in a file beside the archive, from which it will be written if it is
    /// not written before.
    pub(super) fn note_spooled(&mut self) {
        self.end = ArchiveState::Queued;
    }

    /// Reports whether the run is in a file beside the archive.
    pub(super) fn is_spooled(&self) -> bool {
        self.end == ArchiveState::Queued
    }
}

impl Drop for PendingRun {
    fn drop(&mut self) {
        let queue = &self.queue;
        match self.end {
            ArchiveState::Written => queue.counters.written.fetch_add(1, Ordering::Relaxed),
            ArchiveState::Dropped => queue
                .counters
                .dropped_failed
                .fetch_add(1, Ordering::Relaxed),
            ArchiveState::Queued => 0,
        };
        self.mark.set(self.end);
        let tenant = lock(&queue.inner).on_their_way.remove(&self.number);
        drop(tenant);
        self.queue.release(self.cost, &self.share);
        self.queue.settled.send_modify(|settled| *settled += 1);
    }
}

/// A run that waits to be encoded.
pub(super) struct QueuedRun {
    pub(super) tenant: Arc<str>,
    pub(super) encode: Box<dyn FnOnce() -> EncodedRun + Send>,
    pub(super) pending: PendingRun,
}

impl fmt::Debug for QueuedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("QueuedRun").field(&self.pending).finish()
    }
}

/// Counts of what became of runs that were to be archived.
#[derive(Debug, Default)]
pub struct ArchiveCounters {
    /// Runs that were written.
    pub written: AtomicU64,
    /// Runs that were dropped because the queue was full.
    pub dropped_full: AtomicU64,
    /// Runs that were dropped because they could not be written before the daemon ended.
    pub dropped_failed: AtomicU64,
    /// Requests to write a segment that failed, and were tried again.
    pub failed_writes: AtomicU64,
    /// Segments that were written.
    pub segments: AtomicU64,
    /// Bytes of the segments that were written.
    pub bytes: AtomicU64,
}

/// The queue of runs that wait to be archived.
#[derive(Debug)]
pub(super) struct ArchiveQueue {
    inner: Mutex<Waiting>,
    /// Notified when there is something to do.
    wake: Condvar,
    /// Bytes of runs that were taken on and are not written yet.
    held: AtomicUsize,
    /// The most bytes to be held.
    pub(super) most: usize,
    /// The most bytes to be held of one tenant.
    most_of_one: usize,
    /// How many runs that were taken on have been written or dropped.
    settled: watch::Sender<u64>,
    /// The last time that somebody asked for a recovery, by its number, after which none was left.
    recovered: watch::Sender<u64>,
    pub(super) counters: ArchiveCounters,
}

#[derive(Debug, Default)]
struct Waiting {
    runs: VecDeque<QueuedRun>,
    /// The numbers of all runs that were taken on and are neither written nor dropped, with the
    /// tenants whose they are.
    on_their_way: HashMap<u128, Arc<str>>,
    /// Runs that were ever taken on.
    offered: u64,
    /// Whether somebody waits for all runs to be written.
    is_urgent: bool,
    /// How often it was asked for what killed daemons left to be written.
    recovery: u64,
    /// Whether that was asked for since the last turn.
    is_recovery_new: bool,
    is_closed: bool,
}

/// What the queue hands to the thread that encodes.
#[derive(Debug)]
pub(super) struct TakenRuns {
    pub(super) runs: Vec<QueuedRun>,
    /// Whether they are to be written at once.
    pub(super) is_urgent: bool,
    /// How often it was asked for what killed daemons left to be written.
    pub(super) recovery: u64,
    /// Whether no more will come.
    pub(super) is_closed: bool,
}

impl ArchiveQueue {
    /// Creates an empty queue of at most `most` bytes, of which runs of one tenant may hold
    /// `most_of_one`.
    pub(super) fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            wake: Condvar::new(),
            held: AtomicUsize::new(0),
            most,
            most_of_one,
            settled: watch::Sender::new(0),
            recovered: watch::Sender::new(0),
            counters: ArchiveCounters::default(),
        })
    }

    /// Returns how many bytes wait to be written.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Returns the count of runs that have been written or dropped, to be watched.
    pub(super) fn settled(&self) -> watch::Receiver<u64> {
        self.settled.subscribe()
    }

    /// Takes a run on, or drops it where there is no room.
    pub(super) fn offer(self: &Arc<Self>, run: ArchivableRun) {
        let ArchivableRun {
            tenant,
            number,
            share,
            cost,
            mark,
            encode,
        } = run;
        if !reserve(&share, cost, self.most_of_one) {
            return self.drop_full(&mark);
        }
        if !reserve(&self.held, cost, self.most) {
            share.fetch_sub(cost, Ordering::Relaxed);
            return self.drop_full(&mark);
        }
        let mut waiting = lock(&self.inner);
        if waiting.is_closed {
            drop(waiting);
            self.release(cost, &share);
            mark.set(ArchiveState::Dropped);
            self.counters.dropped_failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.offered += 1;
        waiting.on_their_way.insert(number, Arc::clone(&tenant));
        waiting.runs.push_back(QueuedRun {
            tenant,
            encode,
            pending: PendingRun {
                queue: Arc::clone(self),
                number,
                share,
                cost,
                mark,
                end: ArchiveState::Dropped,
            },
        });
        let is_first = waiting.runs.len() == 1;
        drop(waiting);
        if is_first {
            self.wake.notify_one();
        }
    }

    fn drop_full(&self, mark: &ArchiveMark) {
        mark.set(ArchiveState::Dropped);
        self.counters.dropped_full.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives back the bytes of a run of the tenant whose share is `share`.
    fn release(&self, bytes: usize, share: &AtomicUsize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        share.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Reports whether the run of that number was taken on, belongs to `tenant`, and is neither
    /// written nor dropped.
    pub(super) fn has(&self, tenant: &str, number: u128) -> bool {
        let waiting = lock(&self.inner);
        let owner = waiting.on_their_way.get(&number);
        owner.is_some_and(|owner| **owner == *tenant)
    }

    /// Has everything that waits written at once, and returns how many runs that are, counted from
    /// the first ever.
    pub(super) fn hurry(&self) -> u64 {
        let mut waiting = lock(&self.inner);
        waiting.is_urgent = true;
        let offered = waiting.offered;
        drop(waiting);
        self.wake.notify_one();
        offered
    }

    /// Has what killed daemons left looked for at once, and returns the number to wait for.
    pub(super) fn ask_recovery(&self) -> u64 {
        let mut waiting = lock(&self.inner);
        waiting.recovery += 1;
        waiting.is_recovery_new = true;
        let asked = waiting.recovery;
        drop(waiting);
        self.wake.notify_one();
        asked
    }

    /// Notes that all which killed daemons had left was written, after it was asked for `asked`
    /// times.
    pub(super) fn note_recovered(&self, asked: u64) {
        self.recovered.send_if_modified(|recovered| {
            let is_news = *recovered < asked;
            *recovered = asked.max(*recovered);
            is_news
        });
    }

    /// Returns the number up to which whoever asked for a recovery has it, to be watched.
    pub(super) fn recovered(&self) -> watch::Receiver<u64> {
        self.recovered.subscribe()
    }

    /// Takes nothing on any more.
    pub(super) fn close(&self) {
        lock(&self.inner).is_closed = true;
        self.wake.notify_one();
    }

    /// Waits for runs, until `deadline` at the longest, and takes some of those that there are.
    pub(super) fn take(&self, deadline: Instant) -> TakenRuns {
        let idle = |waiting: &mut Waiting| {
            let is_asked = waiting.is_urgent || waiting.is_recovery_new || waiting.is_closed;
            waiting.runs.is_empty() && !is_asked
        };
        let waiting = self.wait_while(lock(&self.inner), deadline, idle);
        let gathered = Instant::now() + GATHER;
        let gathers = |waiting: &mut Waiting| {
            !waiting.runs.is_empty() && !waiting.is_urgent && !waiting.is_closed
        };
        let mut waiting = self.wait_while(waiting, gathered.min(deadline), gathers);
        let (mut runs, mut bytes) = (Vec::new(), 0);
        while bytes < TURN_BYTES
            && let Some(run) = waiting.runs.pop_front()
        {
            bytes += run.pending.cost;
            runs.push(run);
        }
        let is_urgent = waiting.is_urgent;
        let is_empty = waiting.runs.is_empty();
        waiting.is_urgent &= !is_empty;
        waiting.is_recovery_new = false;
        TakenRuns {
            runs,
            is_urgent,
            recovery: waiting.recovery,
            is_closed: waiting.is_closed && is_empty,
        }
    }

    fn wait_while<'a>(
        &self,
        waiting: MutexGuard<'a, Waiting>,
        deadline: Instant,
        is_to_wait: impl FnMut(&mut Waiting) -> bool,
    ) -> MutexGuard<'a, Waiting> {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = self.wake.wait_timeout_while(waiting, left, is_to_wait);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Adds `bytes` to what is held, unless that is then more than `most`.
fn reserve(held: &AtomicUsize, bytes: usize, most: usize) -> bool {
    let fits = |held: usize| held.checked_add(bytes).filter(|held| *held <= most);
    held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(cost: usize, share: &Arc<AtomicUsize>) -> ArchivableRun {
        ArchivableRun {
            tenant: "t".into(),
            number: 7,
            share: Arc::clone(share),
            cost,
            mark: ArchiveMark::queued(),
            encode: Box::new(|| unreachable!("nobody encodes it")),
        }
    }

    fn offered(queue: &Arc<ArchiveQueue>, cost: usize, share: &Arc<AtomicUsize>) -> ArchiveState {
        let run = run(cost, share);
        let mark = Arc::clone(&run.mark);
        queue.offer(run);
        mark.state()
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let queue = ArchiveQueue::new(10, 9);
        let (a, b) = (Arc::default(), Arc::default());
        assert_eq!(offered(&queue, 8, &a), ArchiveState::Queued);
        assert_eq!(offered(&queue, 2, &a), ArchiveState::Dropped);
        assert_eq!(offered(&queue, 1, &a), ArchiveState::Queued);
        assert_eq!(offered(&queue, 1, &a), ArchiveState::Dropped, "it is b's");
        assert_eq!(offered(&queue, 1, &b), ArchiveState::Queued);
        assert_eq!(offered(&queue, 1, &b), ArchiveState::Dropped);
        assert_eq!(queue.held(), 10);
        let full = &queue.counters.dropped_full;
        assert_eq!(full.load(Ordering::Relaxed), 3);
        let far = Instant::now() + Duration::from_secs(60);
        let taken = queue.take(far).runs;
        assert_eq!(
            (taken.len(), queue.held()),
            (3, 10),
            "until they are written"
        );
        drop(taken);
        assert_eq!((queue.held(), a.load(Ordering::Relaxed)), (0, 0));
        let failed = &queue.counters.dropped_failed;
        assert_eq!(failed.load(Ordering::Relaxed), 3, "nobody wrote them");
        assert_eq!(*queue.settled().borrow(), 3);
        assert_eq!(offered(&queue, 9, &a), ArchiveState::Queued);
    }

    #[test]
    fn a_run_is_told_as_what_became_of_it() {
        let queue = ArchiveQueue::new(100, 100);
        let share = Arc::default();
        let far = Instant::now() + Duration::from_secs(60);
        let ends: [(fn(PendingRun), ArchiveState); 3] = [
            (PendingRun::written, ArchiveState::Written),
            (|mut run| run.note_spooled(), ArchiveState::Queued),
            (drop, ArchiveState::Dropped),
        ];
        for (end, state) in ends {
            let run = run(10, &share);
            let mark = Arc::clone(&run.mark);
            queue.offer(run);
            assert!(queue.has("t", 7) && !queue.has("t", 8));
            assert!(!queue.has("other", 7), "it is another's");
            let mut pending = queue.take(far).runs.pop().unwrap().pending;
            assert!(queue.has("t", 7), "until it is written");
            pending.recharge(50);
            assert_eq!((queue.held(), share.load(Ordering::Relaxed)), (50, 50));
            end(pending);
            assert!(!queue.has("t", 7));
            assert_eq!((queue.held(), share.load(Ordering::Relaxed)), (0, 0));
            assert_eq!(mark.state(), state);
        }
    }

    #[test]
    fn a_turn_has_some_of_many_and_one_that_is_large() {
        let queue = ArchiveQueue::new(usize::MAX, usize::MAX);
        let share = Arc::default();
        for cost in [TURN_BYTES * 3, 1, TURN_BYTES - 1, 1, 1] {
            offered(&queue, cost, &share);
        }
        queue.close();
        let far = Instant::now() + Duration::from_secs(60);
        let turns: Vec<(usize, bool)> = std::iter::repeat_with(|| queue.take(far))
            .take(3)
            .map(|turn| (turn.runs.len(), turn.is_closed))
            .collect();
        assert_eq!(turns, [(1, false), (2, false), (2, true)]);
    }

    #[test]
    fn somebody_in_a_hurry_or_the_end_wakes_the_taker() {
        let queue = ArchiveQueue::new(10, 10);
        let share = Arc::default();
        let far = Instant::now() + Duration::from_secs(600);
        assert_eq!(queue.hurry(), 0);
        assert!(queue.take(far).is_urgent);
        assert!(!queue.take(Instant::now()).is_urgent);
        offered(&queue, 1, &share);
        assert_eq!(queue.hurry(), 1);
        let taken = queue.take(far);
        assert!(taken.is_urgent && taken.runs.len() == 1 && !taken.is_closed);
        queue.close();
        assert!(queue.take(far).is_closed);
        assert_eq!(offered(&queue, 1, &share), ArchiveState::Dropped);
        assert_eq!(queue.held(), 1, "of the one that was taken");
    }
}
