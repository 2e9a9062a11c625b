//! The guest scheduler: a fixed pool of threads that executes guests in slices, with stride
//! scheduling between tenants.
//!
//! Each tenant has one queue. The tenant with the lowest virtual time (processor time divided by
//! weight) is served next. Within a tenant, a new run goes before runs that were preempted, so that
//! the long ones do not hold up a short one. A guest yields at each epoch. A run that is expected
//! to be short may execute its first slice on a thread that serves RPCs. Timers have a separate
//! thread, and file system calls have their own threads ([`super::file_threads`]).

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Handle, Runtime};

use super::cpu_time::ThreadTimer;
use super::file_threads::{FileCalls, FileThreadPool};
use super::guest_thread::{ThreadInit, init_guest_thread};
use super::inline;
use super::tenant_queue::{Slice, TenantQueue};
use crate::sync::lock;

/// The number of threads for the runtime's blocking work other than guests' file system calls: such
/// a thread looks at the files that a core module polls.
const BLOCKING_THREADS: usize = 1;
/// How long the blocking thread is kept without work: in effect, forever.
const KEEP_ALIVE_FOREVER: Duration = Duration::from_secs(1 << 32);

/// The most virtual time, in nanoseconds divided by weight, by which a tenant may lag behind the
/// others. A tenant does not save up the time that it did not use.
const MAX_VIRTUAL_LAG: u64 = 20_000_000;

/// The guest scheduler: a fixed pool of guest threads, with a runtime for timers and a pool of
/// threads for file system calls.
pub(in crate::sandbox) struct GuestScheduler {
    shared: Arc<SchedulerShared>,
    /// The number of guest threads.
    count: usize,
    epoch: Duration,
    /// The runtime for guests' timers and sockets. It is `None` only while the scheduler is
    /// dropped.
    io_runtime: Option<Runtime>,
    files: Arc<FileThreadPool>,
}

struct SchedulerShared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    /// The tenants that have a slice waiting or executing, each with its virtual time.
    active: Vec<ActiveTenant>,
    /// The scheduler's virtual clock: the highest virtual time at which a tenant was served so far.
    virtual_now: u64,
    /// The number of slices that wait, over all tenants.
    waiting: usize,
    /// The number of guest threads that wait for a slice.
    idle: usize,
    closed: bool,
}

struct ActiveTenant {
    tenant_queue: Arc<TenantQueue>,
    /// Nanoseconds of execution divided by the tenant's weight.
    virtual_time: u64,
    waiting: usize,
    executing: usize,
}

impl GuestScheduler {
    /// Starts `count` guest threads, each of which calls `on_thread` first. `epoch` is the length
    /// of a time slice.
    ///
    /// # Errors
    /// Fails where the host refuses a thread.
    pub(in crate::sandbox) fn start(
        count: usize,
        epoch: Duration,
        on_thread: ThreadInit,
    ) -> std::io::Result<Self> {
        let io_runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(BLOCKING_THREADS)
            .thread_name("guest-io")
            .thread_keep_alive(KEEP_ALIVE_FOREVER)
            .on_thread_start(move || init_guest_thread(on_thread))
            .enable_all()
            .build()?;
        // The blocking thread starts now, while there are threads to be had. From then on it is
        // there for work that finds no other thread.
        drop(io_runtime.spawn_blocking(|| ()));
        let shared = Arc::new(SchedulerShared {
            state: Mutex::default(),
            wake: Condvar::new(),
        });
        let threads = Self {
            shared,
            count,
            epoch,
            io_runtime: Some(io_runtime),
            files: FileThreadPool::new(count, on_thread),
        };
        for i in 0..count {
            let shared = Arc::clone(&threads.shared);
            let handle = threads.handle();
            std::thread::Builder::new()
                .name(format!("guest-{i}"))
                .spawn(move || {
                    init_guest_thread(on_thread);
                    // The guest's timers and blocking calls need a runtime.
                    let _beside = handle.as_ref().map(Handle::enter);
                    shared.run_worker();
                })?;
        }
        Ok(threads)
    }

    fn handle(&self) -> Option<Handle> {
        self.io_runtime.as_ref().map(|it| it.handle().clone())
    }

    /// Returns the handle by which a run of a tenant makes its file system calls.
    pub(in crate::sandbox) fn file_calls(&self, tenant_queue: &Arc<TenantQueue>) -> FileCalls {
        self.files.calls(tenant_queue)
    }

    /// Returns how many guest threads execute slices now, how many there are, and how many slices
    /// wait for them.
    pub(in crate::sandbox) fn load(&self) -> [usize; 3] {
        let state = self.shared.lock();
        [
            self.count.saturating_sub(state.idle),
            self.count,
            state.waiting,
        ]
    }

    /// Queues `run` for the guest threads, as a new run of the tenant.
    pub(in crate::sandbox) fn spawn(
        &self,
        tenant_queue: &Arc<TenantQueue>,
        run: impl Future<Output = ()> + Send + 'static,
    ) {
        self.task(tenant_queue, run, true).schedule();
    }

    /// Executes the first slice of `run` on the calling thread and returns how long that took.
    /// Where the calling thread may not run guests now, or no guest thread is idle, the run is
    /// queued as in [`Self::spawn`] and the result is `None`.
    pub(in crate::sandbox) fn spawn_inline(
        &self,
        tenant_queue: &Arc<TenantQueue>,
        run: impl Future<Output = ()> + Send + 'static,
    ) -> Option<Duration> {
        if !inline::may_run_inline() || !self.shared.lock().has_idle_thread() {
            self.spawn(tenant_queue, run);
            return None;
        }
        let slice = self.task(tenant_queue, run, false);
        let _beside = self.io_runtime.as_ref().map(Runtime::enter);
        let took = inline::run_inline(|| run_slice(slice));
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        tenant_queue.cpu_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.shared.lock().charge_inline(tenant_queue, nanos);
        inline::note_slice(took, self.epoch);
        Some(took)
    }

    /// Creates the task of a run. Each time it becomes ready it goes to the tenant's queue; the
    /// first time, it counts as new if `is_new`.
    fn task(
        &self,
        tenant_queue: &Arc<TenantQueue>,
        run: impl Future<Output = ()> + Send + 'static,
        is_new: bool,
    ) -> Slice {
        let (shared, tenant_queue) = (Arc::clone(&self.shared), Arc::clone(tenant_queue));
        let is_new = AtomicBool::new(is_new);
        let schedule = move |slice: Slice| {
            let is_new = is_new.swap(false, Ordering::Relaxed);
            shared.push(&tenant_queue, slice, is_new);
        };
        let (slice, task) = async_task::spawn(run, schedule);
        // The task ends by itself: at its own end, at its deadline, or when it is asked to stop.
        task.detach();
        slice
    }
}

impl Drop for GuestScheduler {
    fn drop(&mut self) {
        let left = self.shared.lock().close();
        self.files.close();
        self.shared.wake.notify_all();
        for ActiveTenant { tenant_queue, .. } in left {
            let queue = std::mem::take(&mut *lock(&tenant_queue.queue));
            // A run that is dropped releases what it holds, which may take other locks.
            drop(queue);
        }
        if let Some(io_runtime) = self.io_runtime.take() {
            // The drop may happen on a runtime's own thread, where waiting is not allowed.
            io_runtime.shutdown_background();
        }
    }
}

/// Executes a slice, and logs a panic rather than letting it end the thread.
fn run_slice(slice: Slice) {
    // A guest's own panics are caught where it is executed. This thread survives all other panics
    // too.
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| slice.run())).is_err();
    if panicked {
        tracing::error!("a guest's task panicked");
    }
}

impl SchedulerShared {
    fn push(&self, tenant_queue: &Arc<TenantQueue>, slice: Slice, is_new: bool) {
        let mut state = self.lock();
        if state.closed {
            drop(state);
            drop(slice);
            return;
        }
        state.push(tenant_queue, slice, is_new);
        let wakes = state.idle > 0;
        drop(state);
        if wakes {
            self.wake.notify_one();
        }
    }

    /// Executes slices until the scheduler is closed. Each guest thread runs this loop.
    fn run_worker(&self) {
        let (mut had, mut timer) = (None, ThreadTimer::start());
        while let Some((tenant_queue, slice)) = self.next_slice(had.take()) {
            let start = Instant::now();
            run_slice(slice);
            had = Some((tenant_queue, timer.count(start.elapsed())));
        }
    }

    /// Waits for the next slice and returns it with its tenant, or `None` once the scheduler is
    /// closed. `had` is the tenant and the time of the slice that this thread just executed; it is
    /// charged first.
    fn next_slice(
        &self,
        had: Option<(Arc<TenantQueue>, Duration)>,
    ) -> Option<(Arc<TenantQueue>, Slice)> {
        let mut state = self.lock();
        if let Some((tenant_queue, took)) = had {
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            tenant_queue.cpu_nanos.fetch_add(nanos, Ordering::Relaxed);
            state.charge(&tenant_queue, nanos);
        }
        loop {
            if state.closed {
                return None;
            }
            if state.waiting > 0
                && let Some(next) = state.pop_least_served()
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
    /// Returns the tenant's index among the active ones, and makes it active if it was not. A
    /// tenant that becomes active resumes at the virtual clock or at its own last virtual time,
    /// whichever is higher: it gets no credit for its absence, and no debt is forgiven.
    fn activate(&mut self, tenant_queue: &Arc<TenantQueue>) -> usize {
        let found = self
            .active
            .iter()
            .position(|it| Arc::ptr_eq(&it.tenant_queue, tenant_queue));
        let found = found.unwrap_or_else(|| {
            self.active.push(ActiveTenant {
                tenant_queue: Arc::clone(tenant_queue),
                virtual_time: self
                    .virtual_now
                    .max(tenant_queue.idle_virtual_time.load(Ordering::Relaxed)),
                waiting: 0,
                executing: 0,
            });
            self.active.len() - 1
        });
        self.active[found].virtual_time +=
            tenant_queue.pending_virtual_time.swap(0, Ordering::Relaxed);
        found
    }

    /// Reports whether a guest thread is idle and nothing waits, so that a slice on another thread
    /// goes ahead of nobody.
    fn has_idle_thread(&self) -> bool {
        self.waiting == 0 && self.idle > 0 && !self.closed
    }

    /// Charges a tenant for a slice that was executed inline, on a thread that serves RPCs.
    fn charge_inline(&mut self, tenant_queue: &Arc<TenantQueue>, nanos: u64) {
        let nanos = nanos / u64::from(tenant_queue.weight);
        match self
            .active
            .iter_mut()
            .find(|it| Arc::ptr_eq(&it.tenant_queue, tenant_queue))
        {
            Some(it) => it.virtual_time += nanos,
            None => {
                let at = self
                    .virtual_now
                    .max(tenant_queue.idle_virtual_time.load(Ordering::Relaxed));
                // The virtual clock advances as it does when a slice is popped: a tenant that runs
                // alone owes nobody.
                self.virtual_now = at;
                tenant_queue
                    .idle_virtual_time
                    .store(at + nanos, Ordering::Relaxed);
            }
        }
    }

    fn charge(&mut self, tenant_queue: &Arc<TenantQueue>, nanos: u64) {
        let Some(at) = self
            .active
            .iter()
            .position(|it| Arc::ptr_eq(&it.tenant_queue, tenant_queue))
        else {
            return;
        };
        let it = &mut self.active[at];
        it.virtual_time += nanos / u64::from(tenant_queue.weight);
        it.executing -= 1;
        if it.waiting == 0 && it.executing == 0 {
            tenant_queue
                .idle_virtual_time
                .store(it.virtual_time, Ordering::Relaxed);
            self.active.swap_remove(at);
        }
    }

    /// Queues a slice of a tenant, of a new run or of one that was preempted.
    fn push(&mut self, tenant_queue: &Arc<TenantQueue>, slice: Slice, is_new: bool) {
        let (at, now) = (self.activate(tenant_queue), self.virtual_now);
        let it = &mut self.active[at];
        if it.waiting == 0 {
            it.virtual_time = it.virtual_time.max(now.saturating_sub(MAX_VIRTUAL_LAG));
        }
        it.waiting += 1;
        let mut queue = lock(&tenant_queue.queue);
        match is_new {
            true => queue.new.push_back(slice),
            false => queue.resumed.push_back(slice),
        }
        drop(queue);
        self.waiting += 1;
    }

    /// Closes the scheduler, and returns the tenants that were active, with what waited.
    fn close(&mut self) -> Vec<ActiveTenant> {
        self.closed = true;
        self.waiting = 0;
        std::mem::take(&mut self.active)
    }

    fn pop_least_served(&mut self) -> Option<(Arc<TenantQueue>, Slice)> {
        let waiting = self.active.iter_mut().filter(|it| it.waiting > 0);
        let it = waiting.min_by_key(|it| it.virtual_time)?;
        it.virtual_time = it
            .virtual_time
            .max(self.virtual_now.saturating_sub(MAX_VIRTUAL_LAG));
        let slice = lock(&it.tenant_queue.queue).pop()?;
        it.waiting -= 1;
        it.executing += 1;
        self.waiting -= 1;
        self.virtual_now = self.virtual_now.max(it.virtual_time);
        Some((Arc::clone(&it.tenant_queue), slice))
    }
}

#[cfg(test)]
mod tests;
