//! The way to a compile thread: [`CompileSchedule`] with those that wait, and those that hold a place, at its two ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::amount::Amount;
use super::compile_schedule::{CompileSchedule, Decision, JobId, ScheduleRules};
use super::gate::Turned;
use super::load::Load;
use crate::sandbox::CompileLease;

/// How often one that waits looks whether another has to stop for it.
const LOOK: Duration = Duration::from_millis(100);
/// What a caller that is refused is told to wait, at the least and at the most.
const SOONEST: Duration = Duration::from_millis(100);
const LATEST: Duration = Duration::from_secs(30);

/// Lets modules through to the compile threads of a lane.
#[derive(Debug)]
pub(super) struct CompileGate {
    rules: ScheduleRules,
    state: Mutex<GateState>,
}

#[derive(Debug)]
struct GateState {
    schedule: CompileSchedule,
    /// Those that wait to start.
    waiting: HashMap<JobId, PassSender>,
    /// Those that hold a place, or were stopped.
    leases: HashMap<JobId, Arc<CompileLease>>,
    /// When somebody looked last whether one has to stop: once for all that wait is enough.
    looked: Instant,
}

type PassSender = oneshot::Sender<Result<CompilePass, Turned>>;

/// A place at a compile thread, until this is dropped: then the tenant is charged for it.
#[derive(Debug)]
pub(in crate::run) struct CompilePass {
    gate: Arc<CompileGate>,
    id: JobId,
    lease: Arc<CompileLease>,
}

impl CompilePass {
    /// What the compile thread and admission tell each other meanwhile.
    pub(in crate::run) fn lease(&self) -> &Arc<CompileLease> {
        &self.lease
    }
}

impl Drop for CompilePass {
    fn drop(&mut self) {
        let took = self.lease.processor_time();
        let mut state = self.gate.lock();
        state.leases.remove(&self.id);
        let mut decisions = Vec::new();
        let now = Instant::now();
        state.schedule.end(self.id, took, now, &mut decisions);
        self.gate.carry_out(state, decisions);
    }
}

/// One that waits, until this is dropped.
struct WaitingPlace<'a> {
    gate: &'a CompileGate,
    id: JobId,
}

impl Drop for WaitingPlace<'_> {
    fn drop(&mut self) {
        let mut state = self.gate.lock();
        state.waiting.remove(&self.id);
        state.schedule.leave(self.id);
    }
}

impl CompileGate {
    /// For tenants of `weights`, the last of which is the daemon itself.
    pub(super) fn new(rules: ScheduleRules, weights: &[u32]) -> Arc<Self> {
        Arc::new(Self {
            rules,
            state: Mutex::new(GateState {
                schedule: CompileSchedule::new(rules, weights),
                waiting: HashMap::new(),
                leases: HashMap::new(),
                looked: Instant::now(),
            }),
        })
    }

    /// Waits for a place for the tenant `line`, no longer than `patience`.
    ///
    /// # Errors
    /// Why it is turned away.
    pub(super) async fn enter(
        self: &Arc<Self>,
        line: usize,
        patience: Duration,
    ) -> Result<CompilePass, Turned> {
        let (id, mut told) = self.arrive(line)?;
        let _place = WaitingPlace { gate: self, id };
        let now = tokio::time::Instant::now();
        let deadline = now.checked_add(patience);
        loop {
            let look = tokio::time::Instant::now() + LOOK;
            let next = deadline.map_or(look, |deadline| deadline.min(look));
            match tokio::time::timeout_at(next, &mut told).await {
                Ok(Ok(what)) => return what,
                Ok(Err(_gone)) => return Err(Turned::Closed),
                Err(_elapsed) if Some(next) == deadline => {
                    // It may have been let through at that moment.
                    return told.try_recv().unwrap_or(Err(Turned::Expired));
                }
                Err(_elapsed) => self.look(None),
            }
        }
    }

    fn arrive(
        self: &Arc<Self>,
        line: usize,
    ) -> Result<(JobId, oneshot::Receiver<Result<CompilePass, Turned>>), Turned> {
        let (sender, told) = oneshot::channel();
        let mut state = self.lock();
        let mut decisions = Vec::new();
        let now = Instant::now();
        let id = state.schedule.arrive(line, now, &mut decisions);
        if let Some(id) = id {
            state.waiting.insert(id, sender);
        }
        self.carry_out(state, decisions);
        Ok((id.ok_or(Turned::Full)?, told))
    }

    /// Looks whether one has to stop for another; `stopped` is one that says that it has.
    fn look(self: &Arc<Self>, stopped: Option<JobId>) {
        let (mut state, now) = (self.lock(), Instant::now());
        if stopped.is_none() && now.saturating_duration_since(state.looked) < LOOK / 2 {
            return;
        }
        state.looked = now;
        let GateState {
            schedule, leases, ..
        } = &mut *state;
        for (id, lease) in leases {
            schedule.set_preemptible(*id, lease.is_preemptible());
        }
        let mut decisions = Vec::new();
        if !stopped.is_some_and(|id| schedule.has_stopped(id, now, &mut decisions)) {
            schedule.preempt(now, &mut decisions);
        }
        self.carry_out(state, decisions);
    }

    /// Does what was decided. Compile threads are told under the lock, so that they are told in order; whoever waits to
    /// start is told when it is free again, since one that has left gives its place back.
    fn carry_out(self: &Arc<Self>, mut state: MutexGuard<'_, GateState>, decisions: Vec<Decision>) {
        let mut later = Vec::new();
        for decision in decisions {
            match decision {
                Decision::Start(id) => {
                    let lease = self.lease(id);
                    state.leases.insert(id, Arc::clone(&lease));
                    let pass = CompilePass {
                        gate: Arc::clone(self),
                        id,
                        lease,
                    };
                    later.push((state.waiting.remove(&id), Ok(pass)));
                }
                Decision::TurnAway(id) => {
                    later.push((state.waiting.remove(&id), Err(Turned::Full)))
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
                // One that has left gives back what it got, by the drop.
                let _ = sender.send(what);
            }
        }
    }

    fn lease(self: &Arc<Self>, id: JobId) -> Arc<CompileLease> {
        let gate: Weak<Self> = Arc::downgrade(self);
        CompileLease::new(move || {
            if let Some(gate) = gate.upgrade() {
                gate.look(Some(id));
            }
        })
    }

    /// How many may wait.
    pub(super) fn queue(&self) -> u32 {
        self.rules.queue
    }

    /// What it holds.
    pub(super) fn load(&self) -> Load {
        let state = self.lock();
        Load {
            held: state.schedule.held(),
            places: self.rules.places,
            waiting: state.schedule.waiting(),
            bytes: 0,
            capacity: Amount::places(self.rules.places).bytes,
        }
    }

    /// When somebody that comes now may start, about.
    pub(super) fn retry_after(&self) -> Duration {
        let wait = self.lock().schedule.expected_wait();
        wait.clamp(SOONEST, LATEST)
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        // Nothing panics while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
