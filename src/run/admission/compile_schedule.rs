//! Who compiles next, and who has to stop for another: weighted fair queueing by virtual time.
//!
//! What counts is time, not turns: a tenant's virtual time advances by what its compilations really take, divided by its
//! weight, and the tenant whose virtual time is lowest is served next. A compilation is charged an estimate when it starts,
//! so that several at once are not free, and what it took when it stops or ends. A tenant that comes after it was idle
//! starts at the virtual time of whoever was served last: it cannot save up credit.
//!
//! A compilation that has had its quantum, of a tenant that is ahead of one that waits by more than that, is asked to stop.
//! It keeps its work and its memory and waits for a place again, at the front of its tenant's line. As many may be stopped
//! at once as there is memory for.
//!
//! All of it is pure: it is told what happens, and when, and answers with what is to be done.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::limits::LEFT_TO_OTHERS;

/// What a tenant's compilation is taken to cost before one of it has ended.
const FIRST_ESTIMATE: Duration = Duration::from_secs(1);
/// Smoothing of moving averages: each compilation that ends contributes one eighth.
const SMOOTHING: u32 = 8;

/// Names a compilation to the schedule.
pub(super) type JobId = u64;

/// How many compile at once and wait, and when one has to stop for another.
#[derive(Clone, Copy, Debug)]
pub(super) struct ScheduleRules {
    /// Compilations at once.
    pub(super) places: u32,
    /// Compilations that may wait to start.
    pub(super) queue: u32,
    /// Compilations that may be stopped at once, beside those that go on.
    pub(super) max_stopped: u32,
    /// How long a compilation goes on at the least, and by how much its tenant has to be ahead of another, before it is
    /// stopped.
    pub(super) quantum: Duration,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It has a place.
    Start(JobId),
    /// It was stopped, and has a place again.
    Resume(JobId),
    /// It is to stop, and to say so when it has.
    Stop(JobId),
    /// It is turned away, since a tenant with less in the queue comes.
    TurnAway(JobId),
}

/// The schedule.
#[derive(Debug)]
pub(super) struct CompileSchedule {
    rules: ScheduleRules,
    /// What one tenant may hold.
    share: u32,
    /// Whether there are several tenants, one of which may have to stop for another.
    has_several: bool,
    lines: Vec<CompileLine>,
    jobs: HashMap<JobId, ScheduledJob>,
    last_id: JobId,
    /// The virtual time of the line that was served last.
    now: u64,
    held: u32,
    stopped: u32,
    /// About how long a compilation holds its place.
    usual_hold: Duration,
}

/// One tenant's compilations.
#[derive(Debug)]
struct CompileLine {
    weight: u64,
    /// Its virtual time, in nanoseconds.
    at: u64,
    /// The moving average of what its compilations cost.
    usual: Duration,
    held: u32,
    /// Those that wait, in their order: first those that were stopped.
    waiting: VecDeque<JobId>,
    /// How many of these wait to start.
    fresh: u32,
}

#[derive(Debug)]
struct ScheduledJob {
    line: usize,
    phase: JobPhase,
    /// Whether it can be stopped.
    preemptible: bool,
    /// How long it went on before it was stopped last.
    ran: Duration,
    /// What its line was charged for it.
    charged: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobPhase {
    /// In line, to start.
    Waiting,
    /// It holds a place since then.
    Running(Instant),
    /// The same, and it is asked to stop.
    Stopping(Instant),
    /// In line, to go on.
    Stopped,
}

impl ScheduledJob {
    /// How long it has held a place in all.
    fn ran_until(&self, now: Instant) -> Duration {
        self.ran + self.slice_until(now)
    }

    /// How long it has held its place since it started or went on.
    fn slice_until(&self, now: Instant) -> Duration {
        match self.phase {
            JobPhase::Running(since) | JobPhase::Stopping(since) => {
                now.saturating_duration_since(since)
            }
            JobPhase::Waiting | JobPhase::Stopped => Duration::ZERO,
        }
    }

    fn holds_a_place(&self) -> bool {
        match self.phase {
            JobPhase::Running(_) | JobPhase::Stopping(_) => true,
            JobPhase::Waiting | JobPhase::Stopped => false,
        }
    }
}

impl CompileLine {
    /// Charges the line for a job that was charged `charged` and has cost `cost`. What was charged too much is given back,
    /// but not beyond `floor`.
    fn settle(&mut self, charged: Duration, cost: Duration, floor: u64) {
        if cost >= charged {
            self.at = self.at.saturating_add(self.share_of(cost - charged));
        } else {
            let back = self.at.saturating_sub(self.share_of(charged - cost));
            self.at = back.max(floor.min(self.at));
        }
    }

    /// By how much a time moves the line on.
    fn share_of(&self, time: Duration) -> u64 {
        nanos(time) / self.weight
    }
}

impl CompileSchedule {
    /// For tenants of `weights`, the last of which is the daemon itself.
    pub(super) fn new(rules: ScheduleRules, weights: &[u32]) -> Self {
        let line = |weight: &u32| CompileLine {
            weight: u64::from(*weight).max(1),
            at: 0,
            usual: FIRST_ESTIMATE,
            held: 0,
            waiting: VecDeque::new(),
            fresh: 0,
        };
        let has_several = weights.len() > 2;
        let places = u64::from(rules.places);
        // One place at the least is left to others, where there are two.
        let left = places
            .div_ceil(LEFT_TO_OTHERS)
            .min(places.saturating_sub(1));
        let share = u32::try_from(places - left).unwrap_or(rules.places);
        Self {
            share: if has_several { share } else { rules.places },
            has_several,
            rules,
            lines: weights.iter().map(line).collect(),
            jobs: HashMap::new(),
            last_id: 0,
            now: 0,
            held: 0,
            stopped: 0,
            usual_hold: Duration::ZERO,
        }
    }

    /// A compilation of the tenant `line` comes. It starts at once, or waits; `None` where too many wait already.
    pub(super) fn arrive(
        &mut self,
        line: usize,
        now: Instant,
        decisions: &mut Vec<Decision>,
    ) -> Option<JobId> {
        self.last_id += 1;
        let id = self.last_id;
        self.jobs.insert(
            id,
            ScheduledJob {
                line,
                phase: JobPhase::Waiting,
                preemptible: false,
                ran: Duration::ZERO,
                charged: Duration::ZERO,
            },
        );
        let (virtual_now, it) = (self.now, &mut self.lines[line]);
        if it.waiting.is_empty() {
            // What it did not use while nobody of it waited is not its to catch up on.
            it.at = it.at.max(virtual_now);
        }
        it.waiting.push_back(id);
        it.fresh += 1;
        self.serve(now, decisions);
        if self.fresh() > self.rules.queue {
            match self.longest_line_before(line) {
                Some(longest) => {
                    let newest = self.lines[longest].waiting.back().copied();
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

    /// One that waits to start leaves. Nothing happens where it does not wait.
    pub(super) fn leave(&mut self, id: JobId) {
        let Some(job) = self.jobs.get(&id) else {
            return;
        };
        if job.phase != JobPhase::Waiting {
            return;
        }
        let it = &mut self.lines[job.line];
        it.waiting.retain(|other| *other != id);
        it.fresh -= 1;
        self.jobs.remove(&id);
    }

    /// One that had a place, or was stopped, is over. It took `processor_time`; its tenant is charged that, or for how
    /// long it held its place where that was longer.
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
        let (virtual_now, it) = (self.now, &mut self.lines[job.line]);
        it.settle(job.charged, cost, virtual_now);
        it.usual = average(it.usual, cost);
        if job.holds_a_place() {
            it.held -= 1;
            self.held -= 1;
        } else {
            it.waiting.retain(|other| *other != id);
            self.stopped -= 1;
        }
        self.usual_hold = average(self.usual_hold, ran);
        self.serve(now, decisions);
    }

    /// Says whether a compilation that has a place can be stopped.
    pub(super) fn set_preemptible(&mut self, id: JobId, preemptible: bool) {
        if let Some(job) = self.jobs.get_mut(&id) {
            job.preemptible = preemptible;
        }
    }

    /// One that was asked to stop has. False where it was not asked.
    pub(super) fn has_stopped(
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
        let it = &mut self.lines[job.line];
        // What it was expected to take beyond that it has not taken yet.
        it.settle(job.charged, job.ran, self.now);
        job.charged = job.ran;
        it.held -= 1;
        it.waiting.push_front(id);
        self.held -= 1;
        self.stopped += 1;
        self.serve(now, decisions);
        true
    }

    /// Asks one to stop where another tenant waits that is behind by more than a quantum. To be called now and then while
    /// somebody waits.
    pub(super) fn preempt(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        self.accrue(now);
        let is_stopping = |job: &ScheduledJob| matches!(job.phase, JobPhase::Stopping(_));
        if !self.has_several || self.jobs.values().any(is_stopping) {
            return;
        }
        // Stopping one makes room for another to go on, or for one more to start.
        let may_start = self.stopped < self.rules.max_stopped;
        let Some(next) = self.next_line(may_start) else {
            return;
        };
        let behind = self.lines[next].at;
        let quantum = self.rules.quantum;
        let victims = self.jobs.iter().filter(|(_, job)| {
            job.line != next
                && job.preemptible
                && job.holds_a_place()
                && job.slice_until(now) >= quantum
                && self.used(job.line, now) > behind + self.lines[job.line].share_of(quantum)
        });
        let victim = victims.max_by_key(|(id, job)| (self.used(job.line, now), **id));
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

    /// Compilations that hold a place.
    pub(super) fn held(&self) -> u32 {
        self.held
    }

    /// Compilations that wait to start, or to go on.
    pub(super) fn waiting(&self) -> u32 {
        self.fresh() + self.stopped
    }

    /// When somebody that comes now may start, about: all that wait are before it, and as many go at once as there are
    /// places.
    pub(super) fn expected_wait(&self) -> Duration {
        let before = f64::from(self.waiting() + 1) / f64::from(self.rules.places.max(1));
        self.usual_hold.mul_f64(before)
    }

    /// Compilations that wait to start.
    fn fresh(&self) -> u32 {
        self.lines.iter().map(|line| line.fresh).sum()
    }

    /// Charges lines for what goes on beyond what was expected.
    fn accrue(&mut self, now: Instant) {
        for job in self.jobs.values_mut() {
            let ran = job.ran_until(now);
            if ran > job.charged {
                let it = &mut self.lines[job.line];
                it.at = it.at.saturating_add(it.share_of(ran - job.charged));
                job.charged = ran;
            }
        }
    }

    /// The virtual time of a line by what its jobs have taken, without what they are expected to take.
    fn used(&self, line: usize, now: Instant) -> u64 {
        let jobs = self.jobs.values().filter(|job| job.line == line);
        let expected = jobs.map(|job| job.charged.saturating_sub(job.ran_until(now)));
        let it = &self.lines[line];
        it.at.saturating_sub(it.share_of(expected.sum()))
    }

    /// The line that is served next where there is a place: the one with the least virtual time. One whose head waits to
    /// start is passed by unless one more may start.
    fn next_line(&self, may_start: bool) -> Option<usize> {
        let own = self.lines.len().saturating_sub(1);
        let may_go = |line: &usize| {
            let it = &self.lines[*line];
            let Some(head) = it.waiting.front().and_then(|id| self.jobs.get(id)) else {
                return false;
            };
            // The daemon's own work is no tenant.
            let limit = if *line == own {
                self.rules.places
            } else {
                self.share
            };
            it.held < limit && (may_start || head.phase == JobPhase::Stopped)
        };
        let lines = (0..self.lines.len()).filter(may_go);
        lines.min_by_key(|line| self.lines[*line].at)
    }

    /// Gives out the places that are free.
    fn serve(&mut self, now: Instant, decisions: &mut Vec<Decision>) {
        while self.held < self.rules.places {
            // Each that was started has its memory until it ends.
            let most = self.rules.places.saturating_add(self.rules.max_stopped);
            let Some(line) = self.next_line(self.held + self.stopped < most) else {
                return;
            };
            let it = &mut self.lines[line];
            let Some(id) = it.waiting.pop_front() else {
                return;
            };
            let Some(job) = self.jobs.get_mut(&id) else {
                continue;
            };
            self.now = self.now.max(it.at);
            self.held += 1;
            it.held += 1;
            if job.phase == JobPhase::Stopped {
                self.stopped -= 1;
                decisions.push(Decision::Resume(id));
            } else {
                it.fresh -= 1;
                job.charged = it.usual;
                it.at = it.at.saturating_add(it.share_of(it.usual));
                decisions.push(Decision::Start(id));
            }
            job.phase = JobPhase::Running(now);
        }
    }

    /// The line whose newest gives its place in the queue to the newest of `line`: the longest by weight, where that is
    /// longer.
    fn longest_line_before(&self, line: usize) -> Option<usize> {
        // Compared crosswise: lengths are divided by weights.
        let is_longer = |a: usize, b: usize| {
            let (a, b) = (&self.lines[a], &self.lines[b]);
            u64::from(a.fresh) * b.weight > u64::from(b.fresh) * a.weight
        };
        let longer = (0..self.lines.len()).filter(|it| is_longer(*it, line));
        longer.reduce(|longest, it| if is_longer(it, longest) { it } else { longest })
    }
}

/// The moving average once `next` is part of it.
fn average(of: Duration, next: Duration) -> Duration {
    (of * (SMOOTHING - 1) + next) / SMOOTHING
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
