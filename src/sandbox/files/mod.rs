//! Guests' file system calls, which block: the threads that make them, who is next for one, and who
//! is charged for it.
//!
//! A call has a thread to itself for as long as it takes, so that the processor time of that thread
//! is the call's: it is the run's, the tenant's quota's, and moves the tenant back among those whose
//! guests wait for the guest threads. How many calls of one tenant are made at once is in
//! [`shares`]. A call that its run does not wait for any more, because its time is over, keeps its
//! thread and its place until the kernel lets it go.

mod shares;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use nix::time::ClockId;
use rustix::io::Errno;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use wasmtime_wasi::runtime::spawn_blocking;

use self::shares::{CallId, CallTimes, LONG, Shares};
use super::threads::{Lane, OnThread, begin};
use crate::telemetry::refusable;

/// The most threads that make file system calls, of all tenants.
const MAX_THREADS: usize = 64;
/// So many threads are left idle before one is taken again. One that has just made a call is still on
/// its way to sleep, and whoever gave it the next would wait for that: it was seen to take a quarter
/// of the time of short calls.
const SPARE: usize = 2;
/// A thread that made no call for so long ends.
const IDLE_THREAD_ENDS: Duration = Duration::from_secs(10);
/// A call that took longer than this, and used its processor for less than half of that, is looked
/// at more closely: whether it waited for a disk, or for a processor.
const LOOKED_AT: Duration = Duration::from_micros(200);

/// The threads that make guests' file system calls.
pub(super) struct FileThreads {
    on_thread: OnThread,
    state: Mutex<State>,
}

struct State {
    shares: Shares<oneshot::Sender<Permit>>,
    /// The tenants of `shares`, by their position in it. There are as many as the config names.
    lanes: Vec<Arc<Lane>>,
    /// Threads that make no call, the one that did last at the end.
    idle: VecDeque<FileThread>,
    closed: bool,
}

impl State {
    /// What a tenant is called by among the calls.
    fn tenant(&mut self, lane: &Arc<Lane>) -> usize {
        let known = self.lanes.iter().position(|it| Arc::ptr_eq(it, lane));
        known.unwrap_or_else(|| {
            self.lanes.push(Arc::clone(lane));
            self.shares.add_tenant(lane.weight())
        })
    }
}

impl FileThreads {
    /// Creates the pool, whose threads begin with `on_thread`, on a host whose guests have
    /// `guest_threads`. No thread is started before the first call.
    pub(super) fn new(guest_threads: usize, on_thread: OnThread) -> Arc<Self> {
        Arc::new(Self {
            on_thread,
            state: Mutex::new(State {
                shares: Shares::new(MAX_THREADS, guest_threads),
                lanes: Vec::new(),
                idle: VecDeque::new(),
                closed: false,
            }),
        })
    }

    /// Ends all threads that make no call now, and each other one after its call.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        drop(idle);
    }

    /// Creates what one run of a tenant makes its calls by.
    pub(super) fn calls(self: &Arc<Self>, lane: &Arc<Lane>) -> FileCalls {
        FileCalls(Some(Arc::new(Caller {
            threads: Arc::clone(self),
            lane: Arc::clone(lane),
            tenant: OnceLock::new(),
            spent: AtomicU64::new(0),
        })))
    }

    /// Starts the calls that wait and have room now.
    fn start_waiting(self: &Arc<Self>) {
        let started = self.lock().shares.start_waiting(Instant::now());
        for (call, grant) in started {
            // Whoever has left meanwhile gives it back, by the drop of the permit.
            let _ = grant.send(Permit::new(self, call));
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
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one run makes its file system calls by.
#[derive(Clone)]
pub struct FileCalls(Option<Arc<Caller>>);

struct Caller {
    threads: Arc<FileThreads>,
    lane: Arc<Lane>,
    /// What the tenant is called by among the calls. It is looked up at the first one: most runs
    /// make none.
    tenant: OnceLock<usize>,
    /// Nanoseconds of processor time of the run's calls.
    spent: AtomicU64,
}

impl FileCalls {
    /// Creates what makes calls as they come, by no thread of their own: for those that cannot
    /// block.
    pub fn none() -> Self {
        Self(None)
    }

    /// The processor time of the calls that have ended.
    pub(super) fn spent(&self) -> Duration {
        let nanos = self.0.as_ref().map(|it| it.spent.load(Ordering::Relaxed));
        Duration::from_nanos(nanos.unwrap_or_default())
    }

    /// Awaits `call`, once there is a thread for it. All that it hands to tokio's `spawn_blocking`
    /// is done by that thread, one after the other. It may wait for nothing else: no timer and no
    /// socket works in it.
    pub(super) async fn run<F: Future>(&self, call: F) -> F::Output {
        let Some(caller) = &self.0 else {
            return call.await;
        };
        let permit = caller.permit().await;
        // Where the host has no descriptor or thread left, the call is made by one of those that
        // the runtime of the guests' timers has.
        let Ok(thread) = caller.threads.thread() else {
            return call.await;
        };
        let handle = thread.handle();
        let active = ActiveCall {
            thread: Some((thread, permit)),
            caller,
            start: Instant::now(),
        };
        let call = pin!(call);
        let output = InRuntime { call, handle }.await;
        active.finish();
        output
    }

    /// Does `work`, which may block, as one call.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        self.run(async { spawn_blocking(work).await }).await
    }
}

impl Caller {
    /// Waits for a place among the tenant's calls. A run that leaves meanwhile leaves the queue.
    async fn permit(&self) -> Permit {
        let threads = &self.threads;
        let (_place, mut granted) = {
            let mut state = threads.lock();
            let tenant = *self.tenant.get_or_init(|| state.tenant(&self.lane));
            if let Some(call) = state.shares.start(tenant, Instant::now()) {
                return Permit::new(threads, call);
            }
            let (grant, granted) = oneshot::channel();
            let ticket = state.shares.wait(tenant, grant);
            (
                QueuePlace {
                    threads,
                    tenant,
                    ticket,
                },
                granted,
            )
        };
        loop {
            match tokio::time::timeout(LONG, &mut granted).await {
                Ok(Ok(permit)) => return permit,
                // Nobody drops a sender whose receiver waits.
                Ok(Err(_dropped)) => std::future::pending().await,
                // Calls that are being made may have become long meanwhile.
                Err(_elapsed) => threads.start_waiting(),
            }
        }
    }

    /// Charges the run and the tenant for a call.
    fn charge(&self, cpu: Duration) {
        let nanos = u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX);
        self.spent.fetch_add(nanos, Ordering::Relaxed);
        self.lane.charge_beside(nanos);
    }
}

/// A place in the queue of a tenant's calls, which is left when this is dropped.
struct QueuePlace<'a> {
    threads: &'a FileThreads,
    tenant: usize,
    ticket: u64,
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        let left = self.threads.lock().shares.leave(self.tenant, self.ticket);
        drop(left);
    }
}

/// The right of a tenant to make one call, which is given back when this is dropped.
struct Permit {
    threads: Arc<FileThreads>,
    call: CallId,
    times: CallTimes,
}

impl Permit {
    fn new(threads: &Arc<FileThreads>, call: CallId) -> Self {
        Self {
            threads: Arc::clone(threads),
            call,
            times: CallTimes::default(),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.threads.lock().shares.end(self.call, self.times);
        self.threads.start_waiting();
    }
}

/// A call that is being made, by a thread of its own.
struct ActiveCall<'a> {
    thread: Option<(FileThread, Permit)>,
    caller: &'a Arc<Caller>,
    start: Instant,
}

impl ActiveCall<'_> {
    fn finish(mut self) {
        if let Some((thread, permit)) = self.thread.take() {
            thread.settle(permit, self.caller, self.start);
        }
    }
}

impl Drop for ActiveCall<'_> {
    /// The run does not wait for the call any more: what follows it on its thread settles it.
    fn drop(&mut self) {
        if let Some((thread, permit)) = self.thread.take() {
            let (caller, start) = (Arc::clone(self.caller), self.start);
            let handle = thread.handle();
            handle.spawn_blocking(move || thread.settle(permit, &caller, start));
        }
    }
}

/// A future that is polled as if a runtime polled it.
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

/// One thread: a runtime that polls nothing, and has one thread that may block.
struct FileThread {
    /// Taken only when it is dropped.
    runtime: Option<Runtime>,
    /// The kernel's number of the thread, which is another after each long rest; 0 before the first
    /// call.
    number: Arc<AtomicU64>,
    /// Which of its threads was looked at last, and what that had used by then.
    seen: (u64, Duration),
    /// How long it had waited for a processor by then.
    delayed: Duration,
    /// When it began the last call that it made: it rests since then at the longest.
    called: Instant,
}

impl FileThread {
    fn new(on_thread: OnThread) -> std::io::Result<Self> {
        let number = Arc::new(AtomicU64::new(0));
        let told = Arc::clone(&number);
        let runtime = Builder::new_current_thread()
            .max_blocking_threads(1)
            .thread_keep_alive(IDLE_THREAD_ENDS)
            .thread_name("guest-file")
            .on_thread_start(move || {
                begin(on_thread);
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

    /// Starts the thread again where it may have ended after a long rest.
    fn ensure_started(&self) -> std::io::Result<()> {
        match self.called.elapsed() < IDLE_THREAD_ENDS / 2 {
            true => Ok(()),
            false => self.start(),
        }
    }

    /// Starts the thread where there is none: its runtime would panic in the middle of a call where
    /// the host refuses it.
    fn start(&self) -> std::io::Result<()> {
        let handle = self.handle();
        let started = refusable(|| drop(handle.spawn_blocking(|| ())));
        started.ok_or_else(|| Errno::AGAIN.into())
    }

    fn handle(&self) -> Handle {
        match &self.runtime {
            Some(runtime) => runtime.handle().clone(),
            // It is there until the drop.
            None => Handle::current(),
        }
    }

    /// The processor time that it used since this was called last.
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

    /// What a call that took so long had of it, and of waiting for something else.
    fn times(&mut self, cpu: Duration, took: Duration) -> CallTimes {
        if took <= LOOKED_AT || cpu > took / 2 {
            return CallTimes {
                busy: took,
                blocked: Duration::ZERO,
            };
        }
        let delayed = processor_delay(self.seen.0);
        let since = delayed.map_or(took, |now| now.saturating_sub(self.delayed));
        self.delayed = delayed.unwrap_or_default();
        let busy = took.min(cpu + since);
        CallTimes {
            busy,
            blocked: took - busy,
        }
    }

    /// Ends a call that began at `start`: charges for it, goes back among those that make none, and
    /// gives the permit to whoever is next.
    fn settle(mut self, mut permit: Permit, caller: &Caller, start: Instant) {
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
            // May happen where waiting is not allowed; the thread ends when it has nothing to do.
            runtime.shutdown_background();
        }
    }
}

/// The processor time of a thread of this process.
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

/// How long a thread of this process has waited for a processor; `None` where the kernel does not
/// count that.
fn processor_delay(number: u64) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/self/task/{number}/schedstat")).ok()?;
    let nanos = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(nanos))
}
