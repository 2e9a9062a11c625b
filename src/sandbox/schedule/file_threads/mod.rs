//! The thread pool for guests' file system calls, which block: it assigns a thread to each call and
//! charges its run and its tenant for the processor time.
//!
//! A call has a thread to itself for as long as it takes, so the processor time of that thread is
//! the call's. It counts for the run and the tenant's quota, and adds to the tenant's virtual time
//! in the guest scheduler. [`call_limiter`] decides how many calls of one tenant are made at once.
//! A call that its run no longer waits for, because the run's time is over, keeps its thread and
//! its permit until the kernel returns.

mod call_limiter;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use nix::time::ClockId;
use rustix::io::Errno;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use wasmtime_wasi::runtime::spawn_blocking;

use self::call_limiter::{FileCallId, FileCallLimiter, FileCallTimes, LONG_CALL};
use super::guest_thread::{ThreadInit, init_guest_thread};
use super::tenant_queue::TenantQueue;
use crate::sync::lock;
use crate::telemetry::catch_host_refusal;

/// The maximum number of threads that make file system calls, over all tenants.
const MAX_THREADS: usize = 64;
/// How many threads stay idle before one is reused. A thread that has just made a call is still on
/// its way to sleep, and the next call would wait for that: it was seen to take a quarter of the
/// time of short calls.
const SPARE: usize = 2;
/// How long a thread stays without a call before it ends.
const IDLE_THREAD_ENDS: Duration = Duration::from_secs(10);
/// A call that took longer than this, and used its processor for less than half of that, is
/// measured further: whether it waited for a disk or for a processor.
const MEASURED_BEYOND: Duration = Duration::from_micros(200);

/// The pool of threads that make guests' file system calls, limited in total and per tenant.
pub(in crate::sandbox) struct FileThreadPool {
    on_thread: ThreadInit,
    state: Mutex<State>,
}

struct State {
    limiter: FileCallLimiter<oneshot::Sender<FileCallPermit>>,
    /// The tenants of `limiter`, at the same index as there. There are as many as the config names.
    tenant_queues: Vec<Arc<TenantQueue>>,
    /// The threads that make no call, ordered by when they became idle, the latest at the end.
    idle: VecDeque<FileThread>,
    closed: bool,
}

impl State {
    /// Returns the index of a tenant in `limiter`, and adds the tenant if it is new.
    fn tenant(&mut self, tenant_queue: &Arc<TenantQueue>) -> usize {
        let known = self
            .tenant_queues
            .iter()
            .position(|it| Arc::ptr_eq(it, tenant_queue));
        known.unwrap_or_else(|| {
            self.tenant_queues.push(Arc::clone(tenant_queue));
            self.limiter.add_tenant(tenant_queue.weight())
        })
    }
}

impl FileThreadPool {
    /// Creates the pool for a host that has `guest_threads` guest threads. Each of the pool's
    /// threads calls `on_thread` first. No thread is started before the first call.
    pub(in crate::sandbox) fn new(guest_threads: usize, on_thread: ThreadInit) -> Arc<Self> {
        Arc::new(Self {
            on_thread,
            state: Mutex::new(State {
                limiter: FileCallLimiter::new(MAX_THREADS, guest_threads),
                tenant_queues: Vec::new(),
                idle: VecDeque::new(),
                closed: false,
            }),
        })
    }

    /// Ends all threads that make no call now, and every other thread after its call.
    pub(in crate::sandbox) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        drop(idle);
    }

    /// Creates the handle by which one run of a tenant makes its calls.
    pub(in crate::sandbox) fn calls(
        self: &Arc<Self>,
        tenant_queue: &Arc<TenantQueue>,
    ) -> FileCalls {
        FileCalls(Some(Arc::new(FileCaller {
            threads: Arc::clone(self),
            tenant_queue: Arc::clone(tenant_queue),
            tenant: OnceLock::new(),
            spent: AtomicU64::new(0),
        })))
    }

    /// Starts the waiting calls that have room now.
    fn start_waiting(self: &Arc<Self>) {
        let started = self.lock().limiter.start_waiting(Instant::now());
        for (call, grant) in started {
            // A caller that has left meanwhile returns its permit by dropping it.
            let _ = grant.send(FileCallPermit::new(self, call));
        }
    }

    fn thread(&self) -> std::io::Result<FileThread> {
        let mut state = self.lock();
        let has_spare = state.idle.len() > SPARE;
        let rested = has_spare.then(|| state.idle.pop_front()).flatten();
        drop(state);
        match rested {
            Some(thread) => {
                thread.ensure_started()?;
                Ok(thread)
            }
            None => FileThread::new(self.on_thread),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// The handle by which one run makes its file system calls. It may have no pool behind it, for
/// calls that cannot block.
#[derive(Clone)]
pub struct FileCalls(Option<Arc<FileCaller>>);

struct FileCaller {
    threads: Arc<FileThreadPool>,
    tenant_queue: Arc<TenantQueue>,
    /// The tenant's index among the calls. It is looked up at the first call, since most runs make
    /// none.
    tenant: OnceLock<usize>,
    /// Nanoseconds of processor time that the run's calls have used.
    spent: AtomicU64,
}

impl FileCalls {
    /// Creates a handle that makes calls directly, without a thread of their own. It is for calls
    /// that cannot block.
    pub fn none() -> Self {
        Self(None)
    }

    /// Returns the processor time of the run's calls that have ended.
    pub(in crate::sandbox) fn spent(&self) -> Duration {
        let nanos = self.0.as_ref().map(|it| it.spent.load(Ordering::Relaxed));
        Duration::from_nanos(nanos.unwrap_or_default())
    }

    /// Awaits `call`, once there is a thread for it. That thread does everything that `call` hands
    /// to tokio's `spawn_blocking`, one after the other. `call` may wait for nothing else: no timer
    /// and no socket works in it.
    pub(in crate::sandbox) async fn run<F: Future>(&self, call: F) -> F::Output {
        let Some(caller) = &self.0 else {
            return call.await;
        };
        let permit = caller.permit().await;
        // Where the host has no descriptor or thread left, the call is made by one of the threads
        // of the runtime for guests' timers.
        let Ok(thread) = caller.threads.thread() else {
            return call.await;
        };
        let handle = thread.handle();
        let active = ActiveFileCall {
            thread: Some((thread, permit)),
            caller,
            start: Instant::now(),
        };
        let call = pin!(call);
        let output = InRuntime { call, handle }.await;
        active.finish();
        output
    }

    /// Does `work`, which may block, as one call, and returns its result.
    pub(in crate::sandbox) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.run(async { spawn_blocking(work).await }).await
    }
}

impl FileCaller {
    /// Waits for a permit to make one of the tenant's calls. A run that is dropped meanwhile leaves
    /// the queue.
    async fn permit(&self) -> FileCallPermit {
        let threads = &self.threads;
        let (_place, mut granted) = {
            let mut state = threads.lock();
            let tenant = *self.tenant.get_or_init(|| state.tenant(&self.tenant_queue));
            if let Some(call) = state.limiter.start(tenant, Instant::now()) {
                return FileCallPermit::new(threads, call);
            }
            let (grant, granted) = oneshot::channel();
            let ticket = state.limiter.wait(tenant, grant);
            (
                FileCallWaiter {
                    threads,
                    tenant,
                    ticket,
                },
                granted,
            )
        };
        loop {
            match tokio::time::timeout(LONG_CALL, &mut granted).await {
                Ok(Ok(permit)) => return permit,
                // Nobody drops a sender whose receiver waits.
                Ok(Err(_dropped)) => std::future::pending().await,
                // Calls in progress may have become long meanwhile, which makes room.
                Err(_elapsed) => threads.start_waiting(),
            }
        }
    }

    /// Charges the run and its tenant for the processor time of a call.
    fn charge(&self, cpu: Duration) {
        let nanos = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
        self.spent.fetch_add(nanos, Ordering::Relaxed);
        self.tenant_queue.charge_off_thread(nanos);
    }
}

/// A place in the queue of a tenant's calls. Dropping it leaves the queue.
struct FileCallWaiter<'a> {
    threads: &'a FileThreadPool,
    tenant: usize,
    ticket: u64,
}

impl Drop for FileCallWaiter<'_> {
    fn drop(&mut self) {
        let left = self.threads.lock().limiter.leave(self.tenant, self.ticket);
        drop(left);
    }
}

/// A tenant's permit to make one call. Dropping it ends the call in the limiter, and starts waiting
/// calls.
struct FileCallPermit {
    threads: Arc<FileThreadPool>,
    call: FileCallId,
    times: FileCallTimes,
}

impl FileCallPermit {
    fn new(threads: &Arc<FileThreadPool>, call: FileCallId) -> Self {
        Self {
            threads: Arc::clone(threads),
            call,
            times: FileCallTimes::default(),
        }
    }
}

impl Drop for FileCallPermit {
    fn drop(&mut self) {
        self.threads.lock().limiter.end(self.call, self.times);
        self.threads.start_waiting();
    }
}

/// A call in progress, on a thread of its own. If it is dropped before it ends, its thread settles
/// it once the kernel returns.
struct ActiveFileCall<'a> {
    thread: Option<(FileThread, FileCallPermit)>,
    caller: &'a Arc<FileCaller>,
    start: Instant,
}

impl ActiveFileCall<'_> {
    fn finish(mut self) {
        if let Some((thread, permit)) = self.thread.take() {
            thread.settle(permit, self.caller, self.start);
        }
    }
}

impl Drop for ActiveFileCall<'_> {
    /// Leaves the call to its thread: the run no longer waits for it, so a task that follows it on
    /// that thread settles it.
    fn drop(&mut self) {
        if let Some((thread, permit)) = self.thread.take() {
            let (caller, start) = (Arc::clone(self.caller), self.start);
            let handle = thread.handle();
            handle.spawn_blocking(move || thread.settle(permit, &caller, start));
        }
    }
}

/// A future that is polled inside the context of a runtime, which `handle` names.
struct InRuntime<'a, F> {
    call: Pin<&'a mut F>,
    handle: Handle,
}

impl<F: Future> Future for InRuntime<'_, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { call, handle } = &mut *self;
        let _entered = handle.enter();
        call.as_mut().poll(cx)
    }
}

/// One thread of the pool: a runtime that polls nothing, and has one blocking thread.
struct FileThread {
    /// The runtime of the thread; it is `None` only while this is dropped.
    runtime: Option<Runtime>,
    /// The kernel's id of the thread, which changes after each long idle time; 0 before the first
    /// call.
    number: Arc<AtomicU64>,
    /// The id of the thread when its clock was last read, and the processor time that it had used
    /// by then.
    seen: (u64, Duration),
    /// How long the thread had waited for a processor when that was last read.
    delayed: Duration,
    /// When the thread began its last call: it has been idle since then at the longest.
    called: Instant,
}

impl FileThread {
    fn new(on_thread: ThreadInit) -> std::io::Result<Self> {
        let number = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&number);
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(1)
            .thread_keep_alive(IDLE_THREAD_ENDS)
            .thread_name("guest-file")
            .on_thread_start(move || {
                init_guest_thread(on_thread);
                let own = rustix::thread::gettid().as_raw_nonzero().get();
                told.store(u64::from(own.unsigned_abs()), Ordering::Release);
            })
            .build()?;
        let thread = Self {
            runtime: Some(runtime),
            number,
            seen: (0, Duration::ZERO),
            delayed: Duration::ZERO,
            called: Instant::now(),
        };
        thread.start()?;
        Ok(thread)
    }

    /// Starts the thread again if it may have ended after a long idle time.
    fn ensure_started(&self) -> std::io::Result<()> {
        match self.called.elapsed() < IDLE_THREAD_ENDS / 2 {
            true => Ok(()),
            false => self.start(),
        }
    }

    /// Starts the thread if there is none. Otherwise its runtime would panic in the middle of a
    /// call where the host refuses a thread.
    fn start(&self) -> std::io::Result<()> {
        let handle = self.handle();
        let started = catch_host_refusal(|| drop(handle.spawn_blocking(|| ())));
        started.ok_or_else(|| Errno::AGAIN.into())
    }

    fn handle(&self) -> Handle {
        match &self.runtime {
            Some(runtime) => runtime.handle().clone(),
            // The runtime is there until the drop.
            None => Handle::current(),
        }
    }

    /// Returns the processor time that the thread used since the last call of this.
    fn spent_since(&mut self) -> Duration {
        let number = self.number.load(Ordering::Acquire);
        let now = thread_clock(number).unwrap_or_default();
        let before = match self.seen {
            (seen, before) if seen == number => before,
            _ => Duration::ZERO,
        };
        self.seen = (number, now);
        now.saturating_sub(before)
    }

    /// Returns how a call that took `took` spent its time, by the `cpu` time that it used: busy (on
    /// a processor, or waiting for one), or blocked by something else.
    fn times(&mut self, cpu: Duration, took: Duration) -> FileCallTimes {
        if took <= MEASURED_BEYOND || cpu > took / 2 {
            return FileCallTimes {
                busy: took,
                blocked: Duration::ZERO,
            };
        }
        let delayed = processor_delay(self.seen.0);
        let since = delayed.map_or(took, |now| now.saturating_sub(self.delayed));
        self.delayed = delayed.unwrap_or_default();
        let busy = took.min(cpu + since);
        FileCallTimes {
            busy,
            blocked: took - busy,
        }
    }

    /// Ends a call that began at `start`: charges for it, returns the thread to the idle ones, and
    /// gives the permit to the next call.
    fn settle(mut self, mut permit: FileCallPermit, caller: &FileCaller, start: Instant) {
        let cpu = self.spent_since();
        self.called = start;
        caller.charge(cpu);
        permit.times = self.times(cpu, start.elapsed());
        let mut state = caller.threads.lock();
        if !state.closed {
            state.idle.push_back(self);
        }
        drop(state);
        drop(permit);
    }
}

impl Drop for FileThread {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // The drop may happen where waiting is not allowed. The thread ends when it has nothing
            // to do.
            runtime.shutdown_background();
        }
    }
}

/// Returns the processor time of a thread of this process, or `None` if it has none or is gone.
fn thread_clock(number: u64) -> Option<Duration> {
    // The kernel's encoding of a thread's own clock, see `clock_getcpuclockid(3)`.
    const PER_THREAD: libc::clockid_t = 4;
    const SCHEDULED: libc::clockid_t = 2;
    let number = libc::clockid_t::try_from(number)
        .ok()
        .filter(|it| *it != 0)?;
    let clock = ClockId::from_raw((!number << 3) | PER_THREAD | SCHEDULED);
    clock.now().ok().map(Duration::from)
}

/// Returns how long a thread of this process has waited for a processor; `None` where the kernel
/// does not count that.
fn processor_delay(number: u64) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{number}/schedstat")).ok()?;
    let nanos = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}
