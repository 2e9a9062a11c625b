//! The weighted fair queue in front of the compile threads of a lane. It connects
//! [`CompileSchedule`], which decides, to the callers that wait on one side and the compilations
//! that hold a slot on the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::compile_schedule::{CompileSchedule, Decision, JobId, ScheduleRules};
use super::fair_queue::Rejected;
use super::load::{MAX_RETRY, MIN_RETRY, QueueLoad};
use super::permits_and_bytes::PermitsAndBytes;
use crate::model::tenant_id::TenantId;
use crate::sandbox::CompileLease;
use crate::sync::lock;

/// How often a waiter checks whether another compilation has to be preempted for it.
const PREEMPTION_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// A weighted fair queue, by compile time, in front of the compile threads of one lane.
#[derive(Debug)]
pub(super) struct CompileFairQueue {
    rules: ScheduleRules,
    state: Mutex<CompileQueueState>,
}

#[derive(Debug)]
struct CompileQueueState {
    schedule: CompileSchedule,
    /// The channels of the compilations that wait to start.
    waiting: HashMap<JobId, CompileGrantSender>,
    /// The leases of the compilations that hold a slot, or were stopped.
    leases: HashMap<JobId, Arc<CompileLease>>,
    /// When preemption was last checked for. One check is enough for all that wait.
    looked: Instant,
}

type CompileGrantSender = oneshot::Sender<Result<CompileThreadPermit, Rejected>>;

/// The permit to use a compile thread. Dropping it releases the thread's slot and charges the
/// tenant for the time.
#[derive(Debug)]
pub(in crate::run) struct CompileThreadPermit {
    queue: Arc<CompileFairQueue>,
    id: JobId,
    lease: Arc<CompileLease>,
}

impl CompileThreadPermit {
    /// Returns the lease, through which the compile thread and admission communicate while the
    /// module is compiled.
    pub(in crate::run) fn lease(&self) -> &Arc<CompileLease> {
        &self.lease
    }
}

impl Drop for CompileThreadPermit {
    fn drop(&mut self) {
        let took = self.lease.processor_time();
        let mut state = self.queue.lock();
        state.leases.remove(&self.id);
        let mut decisions = Vec::new();
        let now = Instant::now();
        state.schedule.end(self.id, took, now, &mut decisions);
        self.queue.carry_out(state, decisions);
    }
}

/// A waiter's position in its line. Dropping it takes the waiter out of the line, if it still
/// waits.
struct CompileWaiterGuard<'a> {
    queue: &'a CompileFairQueue,
    id: JobId,
}

impl Drop for CompileWaiterGuard<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.waiting.remove(&self.id);
        state.schedule.leave(self.id);
    }
}

impl CompileFairQueue {
    /// Creates a queue for tenants of `weights`, and for the daemon itself.
    pub(super) fn new(rules: ScheduleRules, weights: &[u32]) -> Arc<Self> {
        Arc::new(Self {
            rules,
            state: Mutex::new(CompileQueueState {
                schedule: CompileSchedule::new(rules, weights),
                waiting: HashMap::new(),
                leases: HashMap::new(),
                looked: Instant::now(),
            }),
        })
    }

    /// Acquires a compile thread for `tenant`, waiting for at most `patience`. While it
    /// waits it checks from time to time whether a compilation has to be preempted.
    ///
    /// # Errors
    /// Returns why the request is rejected.
    pub(super) async fn acquire(
        self: &Arc<Self>,
        tenant: TenantId,
        patience: Duration,
    ) -> Result<CompileThreadPermit, Rejected> {
        let (id, mut told) = self.arrive(tenant)?;
        let _place = CompileWaiterGuard { queue: self, id };
        let now = tokio::time::Instant::now();
        let deadline = now.checked_add(patience);
        loop {
            let look = tokio::time::Instant::now() + PREEMPTION_CHECK_INTERVAL;
            let next = deadline.map_or(look, |deadline| deadline.min(look));
            match tokio::time::timeout_at(next, &mut told).await {
                Ok(Ok(what)) => return what,
                Ok(Err(_gone)) => return Err(Rejected::Closed),
                Err(_elapsed) if Some(next) == deadline => {
                    // The permit may have been granted at that very moment.
                    return told.try_recv().unwrap_or(Err(Rejected::Expired));
                }
                Err(_elapsed) => self.check_preemption(None),
            }
        }
    }

    fn arrive(
        self: &Arc<Self>,
        tenant: TenantId,
    ) -> Result<
        (
            JobId,
            oneshot::Receiver<Result<CompileThreadPermit, Rejected>>,
        ),
        Rejected,
    > {
        let (sender, told) = oneshot::channel();
        let mut state = self.lock();
        let mut decisions = Vec::new();
        let now = Instant::now();
        let id = state.schedule.arrive(tenant, now, &mut decisions);
        if let Some(id) = id {
            state.waiting.insert(id, sender);
        }
        self.carry_out(state, decisions);
        Ok((id.ok_or(Rejected::Full)?, told))
    }

    /// Checks whether a compilation has to be preempted. `stopped` names a compilation that reports
    /// that it has stopped, which is taken account of first.
    fn check_preemption(self: &Arc<Self>, stopped: Option<JobId>) {
        let (mut state, now) = (self.lock(), Instant::now());
        if stopped.is_none()
            && now.saturating_duration_since(state.looked) < PREEMPTION_CHECK_INTERVAL / 2
        {
            return;
        }
        state.looked = now;
        let CompileQueueState {
            schedule, leases, ..
        } = &mut *state;
        for (id, lease) in leases {
            schedule.set_preemptible(*id, lease.is_preemptible());
        }
        let mut decisions = Vec::new();
        if !stopped.is_some_and(|id| schedule.note_stopped(id, now, &mut decisions)) {
            schedule.preempt(now, &mut decisions);
        }
        self.carry_out(state, decisions);
    }

    /// Carries out `decisions`. Compile threads are told under the lock, so that they are told in
    /// order. Waiters are told after it is released, since a permit whose waiter has left takes the
    /// lock when it is dropped.
    fn carry_out(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, CompileQueueState>,
        decisions: Vec<Decision>,
    ) {
        let mut later = Vec::new();
        for decision in decisions {
            match decision {
                Decision::Start(id) => {
                    let lease = self.lease(id);
                    state.leases.insert(id, Arc::clone(&lease));
                    let permit = CompileThreadPermit {
                        queue: Arc::clone(self),
                        id,
                        lease,
                    };
                    later.push((state.waiting.remove(&id), Ok(permit)));
                }
                Decision::TurnAway(id) => {
                    later.push((state.waiting.remove(&id), Err(Rejected::Full)))
                }
                Decision::Stop(id) => {
                    if let Some(lease) = state.leases.get(&id) {
                        lease.ask_to_stop();
                    }
                }
                Decision::Resume(id) => {
                    if let Some(lease) = state.leases.get(&id) {
                        lease.resume();
                    }
                }
            }
        }
        drop(state);
        for (sender, what) in later {
            if let Some(sender) = sender {
                // Where the waiter has left, the drop of what was sent releases the permit.
                let _ = sender.send(what);
            }
        }
    }

    fn lease(self: &Arc<Self>, id: JobId) -> Arc<CompileLease> {
        let queue: Weak<Self> = Arc::downgrade(self);
        CompileLease::new(move || {
            if let Some(queue) = queue.upgrade() {
                queue.check_preemption(Some(id));
            }
        })
    }

    /// Returns the most compilations that may wait to start.
    pub(super) fn max_waiting(&self) -> u32 {
        self.rules.max_waiting
    }

    /// Returns how many compilations hold a slot and how many wait.
    pub(super) fn load(&self) -> QueueLoad {
        let state = self.lock();
        QueueLoad {
            held: state.schedule.held(),
            permits: self.rules.slots,
            waiting: state.schedule.waiting(),
            bytes: 0,
            capacity: PermitsAndBytes::places(self.rules.slots).bytes,
        }
    }

    /// Estimates when a compilation that arrives now would start, from 100 ms to 30 s.
    pub(super) fn retry_after(&self) -> Duration {
        let wait = self.lock().schedule.expected_wait();
        wait.clamp(MIN_RETRY, MAX_RETRY)
    }

    fn lock(&self) -> MutexGuard<'_, CompileQueueState> {
        lock(&self.state)
    }
}
