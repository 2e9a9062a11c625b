//! The compile scheduler: decides which tenant compiles next, and which compilation is preempted,
//! by weighted fair queueing in virtual time.
//!
//! What counts is time, not turns: a tenant's virtual time advances by the time that its
//! compilations really take, divided by its weight, and the tenant with the lowest virtual time is
//! served next. A compilation is charged an estimate when it starts, so that several at once are
//! not free, and the time that it really took when it stops or ends. A tenant that comes back after
//! it was idle starts at the virtual time of whoever was served last: it cannot save up credit.
//!
//! A compilation is asked to stop once it has run for its quantum and its tenant is ahead of a
//! waiting one by more than a quantum. It keeps its work and its memory, and waits for a slot again
//! at the front of its tenant's line. As many may be stopped at once as there is memory for.
//!
//! The scheduler is pure: it is told what happens and when, and answers with the decisions to carry
//! out.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::model::limits::OTHERS_DIVISOR;
use crate::model::tenant_id::{ByTenant, TenantId};

/// The estimated cost of a tenant's compilation before one of its compilations has ended.
const FIRST_ESTIMATE: Duration = Duration::from_secs(1);
/// Smoothing of moving averages: each compilation that ends contributes one eighth.
const SMOOTHING: u32 = 8;

/// Identifies a compilation within a schedule.
pub(super) type JobId = u64;

/// The limits of a compile schedule: how many compile at once and wait, and when one is preempted.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScheduleRules {
    /// The most compilations that may run at once.
    pub(super) slots: u32,
    /// The most compilations that may wait to start. Stopped ones that wait to go on do not count.
    pub(super) max_waiting: u32,
    /// The most compilations that may be stopped at once, besides those that run.
    pub(super) max_stopped: u32,
    /// The shortest slice that a compilation gets before it is preempted, and how far its tenant
    /// must be ahead of a waiting one by then.
    pub(super) quantum: Duration,
}

/// What the caller of the schedule is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// The compilation has a slot and starts.
    Start(JobId),
    /// The compilation was stopped, and has a slot again.
    Resume(JobId),
    /// The compilation is to stop, and to report when it has.
    Stop(JobId),
    /// The compilation is rejected, since a tenant with fewer in the queue has arrived.
    TurnAway(JobId),
}

/// The state of the compile scheduler: one line of compilations for each tenant, and the virtual
/// times by which they are served.
#[derive(Debug)]
pub(super) struct CompileSchedule {
    rules: ScheduleRules,
    /// The most slots that one tenant may hold.
    share: u32,
    /// Whether there are several tenants. Only then is a compilation preempted.
    has_several: bool,
    tenants: ByTenant<TenantCompiles>,
    jobs: HashMap<JobId, ScheduledJob>,
    last_id: JobId,
    /// The virtual time of the schedule: the highest at which a line has been served so far.
    virtual_now: u64,
    held: u32,
    stopped: u32,
    /// A moving average of how long a compilation holds its slot.
    mean_hold: Duration,
}

/// One tenant's line of compilations that wait, and what the tenant holds.
#[derive(Debug)]
struct TenantCompiles {
    weight: u64,
    /// Its virtual time, in nanoseconds for a weight of one.
    virtual_time: u64,
    /// A moving average of what its compilations cost: the estimate for the next one.
    usual: Duration,
    held: u32,
    /// Compilations that wait, in the order in which they are served: those that were stopped come
    /// first.
    waiting: VecDeque<JobId>,
    /// How many of those in `waiting` have not started yet.
    not_started: u32,
}

#[derive(Debug)]
struct ScheduledJob {
    tenant: TenantId,
    phase: JobPhase,
    /// Whether it could stop soon if it were asked to.
    preemptible: bool,
    /// How long it had run in all when it was stopped last.
    ran: Duration,
    /// How much its tenant has been charged for it so far.
    charged: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobPhase {
    /// It waits in line to start.
    Waiting,
    /// It has held a slot since that time.
    Running(Instant),
    /// It has held a slot since that time, and has been asked to stop.
    Stopping(Instant),
    /// It was stopped, and waits in line to go on.
    Stopped,
}

impl ScheduledJob {
    /// Returns how long it has held a slot in all.
    fn ran_until(&self, now: Instant) -> Duration {
        self.ran + self.slice_until(now)
    }

    /// Returns how long it has held its slot since it started or last went on.
    fn slice_until(&self, now: Instant) -> Duration {
        match self.phase {
            JobPhase::Running(since) | JobPhase::Stopping(since) => {
                now.saturating_duration_since(since)
            }
            JobPhase::Waiting | JobPhase::Stopped => Duration::ZERO,
        }
    }

    fn holds_a_slot(&self) -> bool {
        match self.phase {
            JobPhase::Running(_) | JobPhase::Stopping(_) => true,
            JobPhase::Waiting | JobPhase::Stopped => false,
        }
    }
}

impl TenantCompiles {
    /// Corrects the line's virtual time for a job that was charged `charged` and has cost `cost`.
    /// An excess charge is given back, but not below the virtual time `floor`.
    fn settle(&mut self, charged: Duration, cost: Duration, floor: u64) {
        if cost >= charged {
            self.virtual_time = self
                .virtual_time
                .saturating_add(self.share_of(cost - charged));
        } else {
            let back = self
                .virtual_time
                .saturating_sub(self.share_of(charged - cost));
            self.virtual_time = back.max(floor.min(self.virtual_time));
        }
    }

    /// Converts a time into virtual time: nanoseconds divided by the weight.
    fn share_of(&self, time: Duration) -> u64 {
        nanos(time) / self.weight
    }
}

impl CompileSchedule {
    /// Creates a schedule for tenants of `weights`, and for the daemon itself.
    pub(super) fn new(rules: ScheduleRules, weights: &[u32]) -> Self {
        let tenant = |_, weight: u32| TenantCompiles {
            weight: u64::from(weight).max(1),
            virtual_time: 0,
            usual: FIRST_ESTIMATE,
            held: 0,
            waiting: VecDeque::new(),
            not_started: 0,
        };
        let has_several = weights.len() > 1;
        let places = u64::from(rules.slots);
        // At least one slot is left to others, where there are two.
        let left = places
            .div_ceil(OTHERS_DIVISOR)
            .min(places.saturating_sub(1));
        let share = u32::try_from(places - left).unwrap_or(rules.slots);
        Self {
            share: if has_several { share } else { rules.slots },
            has_several,
            rules,
            tenants: ByTenant::new(weights, tenant),
            jobs: HashMap::new(),
            last_id: 0,
            virtual_now: 0,
            held: 0,
            stopped: 0,
            mean_hold: Duration::ZERO,
        }
    }

    /// Adds a compilation of `tenant`, which starts at once or waits. Returns `None`
    /// where it is rejected, since too many wait already.
    pub(super) fn arrive(
        &mut self,
        tenant: TenantId,
        now: Instant,
        decisions: &mut Vec<Decision>,
    ) -> Option<JobId> {
        self.last_id += 1;
        let id = self.last_id;
        self.jobs.insert(
            id,
            ScheduledJob {
                tenant,
                phase: JobPhase::Waiting,
                preemptible: false,
                ran: Duration::ZERO,
                charged: Duration::ZERO,
            },
        );
        let (virtual_now, it) = (self.virtual_now, &mut self.tenants[tenant]);
        if it.waiting.is_empty() {
            // A tenant cannot save up what it did not use while it had nobody waiting.
            it.virtual_time = it.virtual_time.max(virtual_now);
        }
        it.waiting.push_back(id);
        it.not_started += 1;
        self.serve(now, decisions);
        if self.not_started() > self.rules.max_waiting {
            match self.tenant_to_evict_from(tenant) {
                Some(longest) => {
                    let newest = self.tenants[longest].waiting.back().copied();
                    if let Some(newest) = newest {
                        self.leave(newest);
                        decisions.push(Decision::TurnAway(newest));
                    }
                }
                None => {
                    self.leave(id);
                    return None;
                }
            }
        }
        Some(id)
    }

    /// Removes a compilation that waits to start, and does nothing where it does not wait.
    pub(super) fn leave(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.phase != JobPhase::Waiting {
            return;
        }
        let it = &mut self.tenants[job.tenant];
        it.waiting.retain(|other| *other != id);
        it.not_started -= 1;
        self.jobs.remove(&id);
    }

    /// Ends a compilation that held a slot, or was stopped. Its tenant is charged `processor_time`,
    /// or the time for which it held its slot where that was longer.
    pub(super) fn end(
        &mut self,
        id: JobId,
        processor_time: Duration,
        now: Instant,
        decisions: &mut Vec<Decision>,
    ) {
        self.accrue(now);
        let Some(job) = self.jobs.remove(&id) else {
            return;
        };
        let ran = job.ran_until(now);
        let cost = ran.max(processor_time);
        let (virtual_now, it) = (self.virtual_now, &mut self.tenants[job.tenant]);
        it.settle(job.charged, cost, virtual_now);
        it.usual = average(it.usual, cost);
        if job.holds_a_slot() {
            it.held -= 1;
            self.held -= 1;
        } else {
            it.waiting.retain(|other| *other != id);
            self.stopped -= 1;
        }
        self.mean_hold = average(self.mean_hold, ran);
        self.serve(now, decisions);
    }

    /// Sets whether a compilation that holds a slot can be preempted.
    pub(super) fn set_preemptible(&mut self, id: JobId, preemptible: bool) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.preemptible = preemptible;
        }
    }

    /// Takes the slot back from a compilation that was asked to stop and now has. Returns false
    /// where it was not asked.
    pub(super) fn note_stopped(
        &mut self,
        id: JobId,
        now: Instant,
        decisions: &mut Vec<Decision>,
    ) -> bool {
        self.accrue(now);
        let Some(job) = self.jobs.get_mut(&id) else {
            return false;
        };
        if !matches!(job.phase, JobPhase::Stopping(_)) {
            return false;
        }
        job.ran = job.ran_until(now);
        job.phase = JobPhase::Stopped;
        let it = &mut self.tenants[job.tenant];
        // The rest of the estimate is given back, since it has not taken that yet.
        it.settle(job.charged, job.ran, self.virtual_now);
        job.charged = job.ran;
        it.held -= 1;
        it.waiting.push_front(id);
        self.held -= 1;
        self.stopped += 1;
        self.serve(now, decisions);
        true
    }

    /// Preempts one compilation where another tenant waits that is behind by more than a quantum.
    /// The caller repeats this from time to time while somebody waits.
    pub(super) fn preempt(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        self.accrue(now);
        let is_stopping = |job: &ScheduledJob| matches!(job.phase, JobPhase::Stopping(_));
        if !self.has_several || self.jobs.values().any(is_stopping) {
            return;
        }
        // Stopping one makes room for a stopped one to go on, or for one more to start.
        let may_start = self.stopped < self.rules.max_stopped;
        let Some(next) = self.next_tenant(may_start) else {
            return;
        };
        let behind = self.tenants[next].virtual_time;
        let quantum = self.rules.quantum;
        let victims = self.jobs.iter().filter(|(_, job)| {
            job.tenant != next
                && job.preemptible
                && job.holds_a_slot()
                && job.slice_until(now) >= quantum
                && self.used(job.tenant, now) > behind + self.tenants[job.tenant].share_of(quantum)
        });
        let victim = victims.max_by_key(|(id, job)| (self.used(job.tenant, now), **id));
        let Some(id) = victim.map(|(id, _)| *id) else {
            return;
        };
        if let Some(job) = self.jobs.get_mut(&id)
            && let JobPhase::Running(since) = job.phase
        {
            job.phase = JobPhase::Stopping(since);
            decisions.push(Decision::Stop(id));
        }
    }

    /// Returns how many compilations hold a slot.
    pub(super) fn held(&self) -> u32 {
        self.held
    }

    /// Returns how many compilations wait to start or to go on.
    pub(super) fn waiting(&self) -> u32 {
        self.not_started() + self.stopped
    }

    /// Estimates when a compilation that arrives now would start: all that wait go before it, and
    /// as many run at once as there are slots.
    pub(super) fn expected_wait(&self) -> Duration {
        let before = f64::from(self.waiting() + 1) / f64::from(self.rules.slots.max(1));
        self.mean_hold.mul_f64(before)
    }

    /// Returns how many compilations wait to start.
    fn not_started(&self) -> u32 {
        self.tenants.values().map(|tenant| tenant.not_started).sum()
    }

    /// Charges tenants for compilations that have by now run longer than they were charged for.
    fn accrue(&mut self, now: Instant) {
        for job in self.jobs.values_mut() {
            let ran = job.ran_until(now);
            if ran > job.charged {
                let it = &mut self.tenants[job.tenant];
                it.virtual_time = it
                    .virtual_time
                    .saturating_add(it.share_of(ran - job.charged));
                job.charged = ran;
            }
        }
    }

    /// Returns the virtual time of a line without the part of the estimates that its compilations
    /// have not used yet.
    fn used(&self, tenant: TenantId, now: Instant) -> u64 {
        let jobs = self.jobs.values().filter(|job| job.tenant == tenant);
        let expected = jobs.map(|job| job.charged.saturating_sub(job.ran_until(now)));
        let it = &self.tenants[tenant];
        it.virtual_time.saturating_sub(it.share_of(expected.sum()))
    }

    /// Returns the line that is served next when there is a slot: the one with the lowest virtual
    /// time whose tenant is below its share. Unless `may_start`, only a line whose head was stopped
    /// is considered.
    fn next_tenant(&self, may_start: bool) -> Option<TenantId> {
        let may_go = |tenant: &TenantId| {
            let it = &self.tenants[*tenant];
            let Some(head) = it.waiting.front().and_then(|id| self.jobs.get(id)) else {
                return false;
            };
            // The daemon's own work counts as no tenant.
            let limit = match tenant {
                TenantId::Named(_) => self.share,
                TenantId::Own => self.rules.slots,
            };
            it.held < limit && (may_start || head.phase == JobPhase::Stopped)
        };
        let tenants = self.tenants.ids().filter(may_go);
        tenants.min_by_key(|tenant| self.tenants[*tenant].virtual_time)
    }

    /// Gives the free slots to waiting compilations.
    fn serve(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        while self.held < self.rules.slots {
            // Each compilation that was started keeps its memory until it ends.
            let most = self.rules.slots.saturating_add(self.rules.max_stopped);
            let Some(tenant) = self.next_tenant(self.held + self.stopped < most) else {
                return;
            };
            let it = &mut self.tenants[tenant];
            let Some(id) = it.waiting.pop_front() else {
                return;
            };
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            self.virtual_now = self.virtual_now.max(it.virtual_time);
            self.held += 1;
            it.held += 1;
            if job.phase == JobPhase::Stopped {
                self.stopped -= 1;
                decisions.push(Decision::Resume(id));
            } else {
                it.not_started -= 1;
                job.charged = it.usual;
                it.virtual_time = it.virtual_time.saturating_add(it.share_of(it.usual));
                decisions.push(Decision::Start(id));
            }
            job.phase = JobPhase::Running(now);
        }
    }

    /// Returns the tenant whose line loses its newest waiter to the newest one of `tenant`: the
    /// longest by weight, if it is longer than that of `tenant`.
    fn tenant_to_evict_from(&self, tenant: TenantId) -> Option<TenantId> {
        // The comparison is crosswise, since lengths are divided by weights.
        let is_longer = |a: TenantId, b: TenantId| {
            let (a, b) = (&self.tenants[a], &self.tenants[b]);
            u64::from(a.not_started) * b.weight > u64::from(b.not_started) * a.weight
        };
        let longer = self.tenants.ids().filter(|it| is_longer(*it, tenant));
        longer.reduce(|longest, it| if is_longer(it, longest) { it } else { longest })
    }
}

/// Returns the moving average `of` after `next` has been added to it.
fn average(of: Duration, next: Duration) -> Duration {
    (of * (SMOOTHING - 1) + next) / SMOOTHING
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
