//! The threads that execute guests, and whose guest is next.
//!
//! Each tenant's guests are a lane. The lane that has had the least processor time, by its weight, is next; within it a
//! run that is new goes before those that were interrupted, so that a short one is not held up by the long ones. A guest
//! gives way at each epoch. One that is expected to be short may begin on a thread that serves. Timers have a thread of
//! their own beside these, and file system calls theirs ([`super::files`]).

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};

use super::cpu_time::ThreadTimer;
use super::files::{FileCalls, FileThreads};
use super::habit::Habit;
use super::inline;

/// How much guest threads yield to the threads that serve: a tenth of their weight.
const GUEST_NICE: i32 = 10;
/// Threads for what the runtime does beside guests' file system calls that blocks: it looks at files that a core module
/// polls.
const BLOCKING_THREADS: usize = 1;
/// How long its threads are kept without work.
const FOR_EVER: Duration = Duration::from_secs(1 << 32);
/// So many new runs of a lane may go before one of its others that waits.
const NEW_AHEAD: u32 = 4;
/// Processor time, by weight, that a lane may be behind the others at the most: what it did not use is not saved up.
const CREDIT: u64 = 20_000_000;

/// What runs until a guest gives way.
type Slice = async_task::Runnable;
/// What a new thread that does guests' work does first.
pub type OnThread = fn();

/// A tenant's guests.
#[derive(Debug)]
pub struct Lane {
    weight: u32,
    /// Nanoseconds of processor time on guest threads, and of the clock on the wall elsewhere.
    spent: AtomicU64,
    /// How far it had come when nothing of it waited last.
    at: AtomicU64,
    /// Processor time, by weight, of what was done for its guests on other threads, which has yet to be added to how far
    /// it has come.
    beside: AtomicU64,
    /// How long runs of modules take of which nothing was known.
    pub(super) newcomers: Habit,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    new: VecDeque<Slice>,
    others: VecDeque<Slice>,
    /// New runs that went ahead since one of the others did.
    ahead: u32,
}

impl Lane {
    /// Of a weight.
    pub fn new(weight: u32) -> Arc<Self> {
        Arc::new(Self {
            weight: weight.max(1),
            spent: AtomicU64::new(0),
            at: AtomicU64::new(0),
            beside: AtomicU64::new(0),
            newcomers: Habit::default(),
            queue: Mutex::default(),
        })
    }

    /// Its tenant's weight.
    pub(super) fn weight(&self) -> u32 {
        self.weight
    }

    /// Charges it for processor time that was spent for its guests on other threads than these.
    pub(super) fn charge_beside(&self, nanos: u64) {
        self.spent.fetch_add(nanos, Ordering::Relaxed);
        self.beside
            .fetch_add(nanos / u64::from(self.weight), Ordering::Relaxed);
    }

    /// How long its guests have executed in all.
    pub fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent.load(Ordering::Relaxed))
    }
}

/// The threads.
pub(super) struct Threads {
    shared: Arc<Shared>,
    epoch: Duration,
    /// Taken only when it is dropped.
    beside: Option<Runtime>,
    files: Arc<FileThreads>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// Lanes in which something waits, or is executed, with how far each has come.
    active: Vec<Active>,
    /// How far the lane that was next last had come.
    now: u64,
    /// Slices that wait.
    waiting: usize,
    /// Threads that wait for one.
    idle: usize,
    closed: bool,
}

struct Active {
    lane: Arc<Lane>,
    /// Processor time by weight.
    at: u64,
    waiting: usize,
    executing: usize,
}

impl Threads {
    /// Starts `count` of them, each of which begins with `on_thread`. Guests give way each `epoch`.
    ///
    /// # Errors
    /// Where the host refuses a thread.
    pub(super) fn start(
        count: usize,
        epoch: Duration,
        on_thread: OnThread,
    ) -> std::io::Result<Self> {
        let beside = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("guest-io")
            .thread_keep_alive(FOR_EVER)
            .on_thread_start(move || begin(on_thread))
            .enable_all()
            .build()?;
        // Now, while there are threads to be had: from then on it is there for what finds no other.
        drop(beside.spawn_blocking(|| ()));
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
        });
        let threads = Self {
            shared,
            epoch,
            beside: Some(beside),
            files: FileThreads::new(count, on_thread),
        };
        for i in 0..count {
            let shared = Arc::clone(&threads.shared);
            let handle = threads.handle();
            std::thread::Builder::new()
                .name(format!("guest-{i}"))
                .spawn(move || {
                    begin(on_thread);
                    // For its timers and its blocking calls.
                    let _beside = handle.as_ref().map(Handle::enter);
                    shared.execute();
                })?;
        }
        Ok(threads)
    }

    fn handle(&self) -> Option<Handle> {
        self.beside.as_ref().map(|it| it.handle().clone())
    }

    /// What a run in a lane makes its file system calls by.
    pub(super) fn file_calls(&self, lane: &Arc<Lane>) -> FileCalls {
        self.files.calls(lane)
    }

    /// Executes `run` in a lane.
    pub(super) fn spawn(&self, lane: &Arc<Lane>, run: impl Future<Output = ()> + Send + 'static) {
        self.task(lane, run, true).schedule();
    }

    /// The same, but executes its first slice on the thread that calls, and says how long that took. Where that one does
    /// not take guests, or something waits already, it begins on these threads as all others do.
    pub(super) fn begin_here(
        &self,
        lane: &Arc<Lane>,
        run: impl Future<Output = ()> + Send + 'static,
    ) -> Option<Duration> {
        if !inline::may_begin() || !self.shared.lock().has_room() {
            self.spawn(lane, run);
            return None;
        }
        let slice = self.task(lane, run, false);
        let _beside = self.beside.as_ref().map(Runtime::enter);
        let took = inline::execute(|| execute(slice));
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        lane.spent.fetch_add(nanos, Ordering::Relaxed);
        self.shared.lock().charge_elsewhere(lane, nanos);
        inline::took(took, self.epoch);
        Some(took)
    }

    /// A task of a lane, which is told at its first scheduling whether it is new.
    fn task(
        &self,
        lane: &Arc<Lane>,
        run: impl Future<Output = ()> + Send + 'static,
        is_new: bool,
    ) -> Slice {
        let (shared, lane) = (Arc::clone(&self.shared), Arc::clone(lane));
        let is_new = AtomicBool::new(is_new);
        let schedule = move |slice: Slice| {
            let is_new = is_new.swap(false, Ordering::Relaxed);
            shared.push(&lane, slice, is_new);
        };
        let (slice, task) = async_task::spawn(run, schedule);
        // Ends by itself: at its own end, its deadline, or when it is asked to.
        task.detach();
        slice
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let left: Vec<Active> = state.active.drain(..).collect();
        state.waiting = 0;
        drop(state);
        self.files.close();
        self.shared.wake.notify_all();
        for Active { lane, .. } in left {
            let queue = std::mem::take(&mut *lock(&lane.queue));
            // A run that is dropped ends what it holds, which may take other locks.
            drop(queue);
        }
        if let Some(beside) = self.beside.take() {
            // May happen on a runtime's own thread, where waiting is not allowed.
            beside.shutdown_background();
        }
    }
}

/// Does first what every thread that works for guests does first.
pub(super) fn begin(on_thread: OnThread) {
    // Raising one's own nice value is always permitted; were it not, serving would merely be less smooth.
    let _ = rustix::process::setpriority_process(None, GUEST_NICE);
    on_thread();
}

/// Executes a slice.
fn execute(slice: Slice) {
    // A guest's own panics are caught where it is executed; this thread outlives all others too.
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| slice.run())).is_err();
    if panicked {
        tracing::error!("a guest's task panicked");
    }
}

impl Shared {
    fn push(&self, lane: &Arc<Lane>, slice: Slice, is_new: bool) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            drop(slice);
            return;
        }
        let (at, now) = (state.activate(lane), state.now);
        let it = &mut state.active[at];
        if it.waiting == 0 {
            it.at = it.at.max(now.saturating_sub(CREDIT));
        }
        it.waiting += 1;
        let mut queue = lock(&lane.queue);
        match is_new {
            true => queue.new.push_back(slice),
            false => queue.others.push_back(slice),
        }
        drop(queue);
        state.waiting += 1;
        let wakes = state.idle > 0;
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Executes slices until it is closed.
    fn execute(&self) {
        let (mut had, mut timer) = (None, ThreadTimer::start());
        while let Some((lane, slice)) = self.next(had.take()) {
            let start = Instant::now();
            execute(slice);
            had = Some((lane, timer.count(start.elapsed())));
        }
    }

    /// The next slice, and its lane; `had` is what the last one took.
    fn next(&self, had: Option<(Arc<Lane>, Duration)>) -> Option<(Arc<Lane>, Slice)> {
        let mut state = self.lock();
        if let Some((lane, took)) = had {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            lane.spent.fetch_add(nanos, Ordering::Relaxed);
            state.charge(&lane, nanos);
        }
        loop {
            if state.closed {
                return None;
            }
            if state.waiting > 0
                && let Some(next) = state.take()
            {
                return Some(next);
            }
            state.idle += 1;
            state = self
                .wake
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    /// Where a lane stands among the active ones; one that was not active catches up on nothing, and is forgiven nothing.
    fn activate(&mut self, lane: &Arc<Lane>) -> usize {
        let found = self
            .active
            .iter()
            .position(|it| Arc::ptr_eq(&it.lane, lane));
        let found = found.unwrap_or_else(|| {
            self.active.push(Active {
                lane: Arc::clone(lane),
                at: self.now.max(lane.at.load(Ordering::Relaxed)),
                waiting: 0,
                executing: 0,
            });
            self.active.len() - 1
        });
        self.active[found].at += lane.beside.swap(0, Ordering::Relaxed);
        found
    }

    /// Whether a thread here has nothing to do, so that what begins elsewhere goes ahead of nobody.
    fn has_room(&self) -> bool {
        self.waiting == 0 && self.idle > 0 && !self.closed
    }

    /// Charges a lane for the slice that was executed elsewhere.
    fn charge_elsewhere(&mut self, lane: &Arc<Lane>, nanos: u64) {
        let nanos = nanos / u64::from(lane.weight);
        match self
            .active
            .iter_mut()
            .find(|it| Arc::ptr_eq(&it.lane, lane))
        {
            Some(it) => it.at += nanos,
            None => {
                let at = self.now.max(lane.at.load(Ordering::Relaxed));
                // As where one is taken: whoever goes on alone owes nobody.
                self.now = at;
                lane.at.store(at + nanos, Ordering::Relaxed);
            }
        }
    }

    fn charge(&mut self, lane: &Arc<Lane>, nanos: u64) {
        let Some(at) = self
            .active
            .iter()
            .position(|it| Arc::ptr_eq(&it.lane, lane))
        else {
            return;
        };
        let it = &mut self.active[at];
        it.at += nanos / u64::from(lane.weight);
        it.executing -= 1;
        if it.waiting == 0 && it.executing == 0 {
            lane.at.store(it.at, Ordering::Relaxed);
            self.active.swap_remove(at);
        }
    }

    fn take(&mut self) -> Option<(Arc<Lane>, Slice)> {
        let waiting = self.active.iter_mut().filter(|it| it.waiting > 0);
        let it = waiting.min_by_key(|it| it.at)?;
        it.at = it.at.max(self.now.saturating_sub(CREDIT));
        let slice = lock(&it.lane.queue).take()?;
        it.waiting -= 1;
        it.executing += 1;
        self.waiting -= 1;
        self.now = self.now.max(it.at);
        Some((Arc::clone(&it.lane), slice))
    }
}

impl Queue {
    fn take(&mut self) -> Option<Slice> {
        let may_go_ahead = self.ahead < NEW_AHEAD || self.others.is_empty();
        if may_go_ahead && let Some(slice) = self.new.pop_front() {
            let passes_others = !self.others.is_empty();
            self.ahead = if passes_others { self.ahead + 1 } else { 0 };
            return Some(slice);
        }
        self.ahead = 0;
        self.others.pop_front()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
