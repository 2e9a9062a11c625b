//! What is known of one run, from the moment it is asked for, and one line of it in the log, on every path: refused,
//! ended, or left by its caller before it started.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::admission::{Counted, Pass, shutting_down};
use super::answer::AnswerReservation;
use super::audit::{self, Reach};
use super::line;
use super::origin::{Origin, State};
use super::past::{RunRecord, Used, weight};
use super::registry::Registry;
use crate::limits::Limits;
use crate::log::{Captured, End, Log};
use crate::outcome::{CancelCause, Ended, Outcome, Usage};
use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, Labels, RunId};
use crate::sandbox::{Stop, StopReason};

/// What a run got.
#[derive(Clone, Debug)]
pub struct Granted {
    /// Pages of linear memory.
    pub memory_pages: u32,
    /// The rest.
    pub limits: Limits,
}

/// A run: its record, its log, and the means to end it.
#[derive(Debug)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Who asked for it.
    pub origin: Origin,
    /// Its metadata.
    pub labels: Labels,
    /// Whether it goes on without its callers.
    pub detached: bool,
    /// Under which key others may ask for the same.
    pub(super) key: Option<String>,
    /// When it was asked for.
    pub asked: SystemTime,
    /// What happens in it.
    pub log: Arc<Log>,
    /// What it has used so far.
    pub usage: Arc<Usage>,
    pub(super) stop: Arc<Stop>,
    clock: Instant,
    facts: Mutex<Facts>,
}

#[derive(Debug, Default)]
struct Facts {
    queued: bool,
    digest: Option<Digest>,
    granted: Option<Granted>,
    started: Option<Instant>,
    callers: usize,
    viewers: usize,
    over: bool,
    answer: AnswerParts,
}

/// What of the run's admission is its callers' until the answer is theirs.
#[derive(Debug, Default)]
struct AnswerParts {
    permit: Option<Pass>,
    quota: Option<Counted>,
}

/// A hold on a run, counted until this is dropped. A run that is not detached ends with the last of its callers; its
/// output is packed away when it has ended and nobody holds on to it.
#[derive(Debug)]
pub(super) struct Hold {
    run: Arc<Run>,
    by: Holder,
}

/// Who holds on to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// One that asked for it.
    Caller,
    /// One that reads its output.
    Viewer,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let run = &self.run;
        let mut facts = run.lock();
        *facts.held_by(self.by) -= 1;
        if facts.callers > 0 {
            return;
        }
        if facts.over {
            run.leave(facts);
        } else if self.by == Holder::Caller && !run.detached {
            // Wakes the run. Where the daemon is ending that drops it, which ends it by this lock.
            drop(facts);
            run.stop
                .request(StopReason::Cancelled(CancelCause::CallerGone));
        }
    }
}

impl Facts {
    fn held_by(&mut self, holder: Holder) -> &mut usize {
        match holder {
            Holder::Caller => &mut self.callers,
            Holder::Viewer => &mut self.viewers,
        }
    }
}

impl Run {
    /// One that was just asked for.
    pub(super) fn new(
        id: RunId,
        origin: Origin,
        labels: Labels,
        detached: bool,
        key: Option<String>,
        log: Arc<Log>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            origin,
            labels,
            detached,
            key,
            asked: SystemTime::now(),
            log,
            usage: Arc::default(),
            stop: Arc::default(),
            clock: Instant::now(),
            facts: Mutex::default(),
        })
    }

    /// One that has ended, of which somebody wants to read the output again; `settled` is its module and what it got.
    pub(super) fn over(
        id: RunId,
        origin: Origin,
        labels: Labels,
        detached: bool,
        asked: SystemTime,
        settled: (Option<Digest>, Option<Granted>),
        log: Arc<Log>,
    ) -> Arc<Self> {
        let (digest, granted) = settled;
        let facts = Facts {
            digest,
            granted,
            over: true,
            ..Facts::default()
        };
        Arc::new(Self {
            id,
            origin,
            labels,
            detached,
            key: None,
            asked,
            log,
            usage: Arc::default(),
            stop: Arc::default(),
            clock: Instant::now(),
            facts: Mutex::new(facts),
        })
    }

    /// All that is known of it now.
    pub(super) fn record(&self) -> RunRecord {
        // In this order: one that ends in between is told as ended, with its end.
        let state = self.state();
        let end = self.log.end();
        let (digest, granted) = self.settled();
        RunRecord {
            id: self.id,
            state: if end.is_some() { State::Ended } else { state },
            method: self.origin.method,
            caller: Arc::clone(&self.origin.caller),
            labels: self.labels.clone(),
            detached: self.detached,
            digest,
            asked: self.asked,
            started: self.log.started(),
            granted,
            used: Used::of(&self.usage),
            elapsed: self.elapsed(),
            weight: weight(&self.labels, end.as_ref().map(|(_, end)| &**end)),
            end,
            next_seq: self.log.next_seq(),
        }
    }

    /// Which module it runs and what it got, where these are settled.
    pub(super) fn settled(&self) -> (Option<Digest>, Option<Granted>) {
        let facts = self.lock();
        (facts.digest, facts.granted.clone())
    }

    /// Where it is.
    pub fn state(&self) -> State {
        if self.log.end().is_some() {
            return State::Ended;
        }
        let facts = self.lock();
        match (facts.started, facts.queued) {
            (Some(_), _) => State::Running,
            (None, true) => State::Queued,
            (None, false) => State::Compiling,
        }
    }

    /// Which module it runs, where that is known.
    pub fn digest(&self) -> Option<Digest> {
        self.lock().digest
    }

    /// What it got, once it has started.
    pub fn granted(&self) -> Option<Granted> {
        self.lock().granted.clone()
    }

    /// Wall time since it was asked for.
    pub(super) fn age(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Wall time since it started.
    pub fn elapsed(&self) -> Option<Duration> {
        self.lock().started.map(|started| started.elapsed())
    }

    /// What its callers get whole. Where it has no key, its only caller gets it once.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND` where it is not kept any more.
    pub fn take_captured(&self) -> Result<Captured, Refusal> {
        let captured = match self.key {
            None => self.log.take_captured(),
            // Whoever has the key may ask again.
            Some(_) => self.log.captured(),
        };
        captured.ok_or_else(|| {
            let id = &self.id;
            let message = format!(
                "run {id} had this key, and its output is not kept any more (runs.log_budget)"
            );
            Refusal::new(Reason::RunNotFound, message)
                .at("spec.idempotency_key")
                .with("run_id", id)
        })
    }

    /// Keeps a part of its reservation for its answer.
    pub(super) fn reserve_answer(&self, permit: Pass) {
        let before = self.lock().answer.permit.replace(permit);
        drop(before);
    }

    /// Counts it among its tenant's runs at once until its answer is its caller's, or no caller is
    /// left.
    pub(super) fn count_until_answered(&self, quota: Counted) {
        let before = self.lock().answer.quota.replace(quota);
        drop(before);
    }

    /// Hands over what was kept for its answer, to the first that asks; `None`: nothing is.
    pub fn take_answer_reservation(&self) -> Option<AnswerReservation> {
        let mut facts = self.lock();
        let permit = facts.answer.permit.take()?;
        Some(AnswerReservation::new(permit, facts.answer.quota.take()))
    }

    /// Whether it never started because its callers left it.
    pub(super) fn was_left(&self) -> bool {
        let left = StopReason::Cancelled(CancelCause::CallerGone);
        self.log.started().is_none() && self.stop.reason() == Some(left)
    }

    /// Asks it to end because somebody called for it, and says whether that was the first reason for it to end.
    pub fn cancel(&self) -> bool {
        self.stop
            .request(StopReason::Cancelled(CancelCause::CancelRpc))
    }

    /// Notes which module it runs.
    pub(super) fn set_digest(&self, digest: Digest) {
        self.lock().digest = Some(digest);
    }

    /// Notes that it waits for a slot.
    pub(super) fn set_queued(&self) {
        self.lock().queued = true;
    }

    /// Notes that it starts.
    pub(super) fn start(&self, granted: Granted) {
        let mut facts = self.lock();
        facts.granted = Some(granted);
        facts.started = Some(Instant::now());
        drop(facts);
        self.log.start(SystemTime::now());
    }

    /// Holds on to it.
    pub(super) fn hold(self: &Arc<Self>, by: Holder) -> Hold {
        *self.lock().held_by(by) += 1;
        Hold {
            run: Arc::clone(self),
            by,
        }
    }

    /// Tells that it ended `at`, and how; everybody who waits learns of it.
    pub(super) fn finish(&self, at: SystemTime, end: Arc<End>, captured: Option<Captured>) {
        self.log.finish(at, end, captured);
        let mut facts = self.lock();
        facts.over = true;
        if facts.callers == 0 {
            self.leave(facts);
        }
    }

    /// Gives back what it kept for its callers, now that it has ended and none of them is left.
    fn leave(&self, mut facts: MutexGuard<'_, Facts>) {
        let answer = std::mem::take(&mut facts.answer);
        let is_read = facts.viewers > 0;
        drop(facts);
        if is_read || self.key.is_some() {
            self.log.shelve(self.key.is_some());
        } else {
            self.origin.tenant.registry.pack(self);
        }
        drop(answer);
    }

    /// Whether nobody may need it as a whole any more. Who has its key is given all of it.
    pub(super) fn may_be_packed(&self) -> bool {
        let facts = self.lock();
        facts.over && facts.callers + facts.viewers == 0 && self.key.is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Facts> {
        // Nothing panics while it is held.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A run that has not ended. It ends, and its line is written, at the latest when this is dropped. The line never has
/// content: no arguments, environment, input or output.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) run: Arc<Run>,
    over: bool,
}

impl Pending {
    /// Of a run that is registered, or will be at its end.
    pub(super) fn new(run: Arc<Run>) -> Self {
        Self { run, over: false }
    }

    fn registry(&self) -> &Registry {
        &self.run.origin.tenant.registry
    }

    /// Notes which module it runs.
    pub(super) fn module(&self, digest: Digest) {
        self.run.set_digest(digest);
    }

    /// Notes that it waits for a slot.
    pub(super) fn queued(&self) {
        self.run.set_queued();
        self.registry().changed(&self.run);
    }

    /// Notes that it starts.
    pub(super) fn started(&self, granted: Granted, reach: Option<&Reach>) {
        if let Some(reach) = reach {
            audit::admitted(&self.run, &granted, reach);
        }
        self.run.start(granted);
        self.registry().changed(&self.run);
    }

    /// Ends it before its first instruction, and answers with the refusal as its caller's messages have it.
    pub(super) fn refused(mut self, refusal: Refusal) -> Refusal {
        let refusal = refusal.renamed("spec", self.run.origin.method.spec_field());
        line::refused(&self.run, &refusal);
        audit::refused(&self.run, &refusal);
        self.finish(Err(refusal.clone()), None);
        refusal
    }

    /// Leaves it to another that it turned out to be.
    pub(super) fn forget(mut self) {
        self.over = true;
    }

    /// Ends it; what was `captured` is for its callers.
    pub(super) fn ended(mut self, result: End, captured: Option<Captured>) {
        self.write(&result);
        self.finish(result, captured);
    }

    fn finish(&mut self, end: End, captured: Option<Captured>) {
        self.over = true;
        self.registry().end(&self.run, end, captured);
    }

    fn write(&self, result: &End) {
        match result {
            Ok(ended) => {
                let waited = self.waited(ended);
                audit::ended(&self.run, ended, waited);
                line::ended(&self.run, ended, waited);
            }
            Err(refusal) => {
                audit::failed(&self.run, refusal);
                line::failed(&self.run, refusal);
            }
        }
    }

    fn waited(&self, ended: &Ended) -> Duration {
        self.run.clock.elapsed().saturating_sub(ended.duration)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.over {
            line::left(&self.run);
            let refusal = unstarted(None);
            audit::refused(&self.run, &refusal);
            self.finish(Err(refusal), None);
        }
    }
}

/// Why a run that was asked to end for `reason`, or left, never started.
pub(super) fn unstarted(reason: Option<StopReason>) -> Refusal {
    let why = match reason {
        Some(StopReason::Cancelled(CancelCause::Draining)) => return shutting_down(),
        Some(StopReason::Cancelled(CancelCause::CancelRpc)) => "was cancelled",
        Some(
            StopReason::TimedOut
            | StopReason::Cancelled(CancelCause::CallerGone | CancelCause::ReaderStalled),
        )
        | None => "was left by its caller",
    };
    Refusal::new(
        Reason::RunCancelled,
        format!("the run {why} before its first instruction"),
    )
}

pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

pub(super) fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Exited(_) => "exited",
        Outcome::Trapped => "trapped",
        Outcome::MemoryExceeded(_) => "memory_exceeded",
        Outcome::FuelExhausted => "fuel_exhausted",
        Outcome::StackOverflow => "stack_overflow",
        Outcome::TimedOut => "timed_out",
        Outcome::OutputExceeded => "output_exceeded",
        Outcome::Cancelled(_) => "cancelled",
    }
}

pub(super) fn cause_name(outcome: Outcome) -> Option<&'static str> {
    let Outcome::Cancelled(cause) = outcome else {
        return None;
    };
    Some(match cause {
        CancelCause::CancelRpc => "cancel_rpc",
        CancelCause::CallerGone => "caller_gone",
        CancelCause::ReaderStalled => "reader_stalled",
        CancelCause::Draining => "draining",
    })
}
