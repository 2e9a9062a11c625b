//! What is known of one run, from the moment it is asked for, and one line of it in the log, on every path: refused,
//! ended, or left by its caller before it started.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::admission::{Counted, Pass, shutting_down};
use super::answer::AnswerReservation;
use super::audit::{self, Reach};
use super::line;
use super::registry::Registry;
use super::tenant::Tenant;
use crate::limits::Limits;
use crate::log::{Captured, End, Log};
use crate::outcome::{CancelCause, Ended, Outcome, Usage};
use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, Labels, RunId};
use crate::sandbox::{Stop, StopReason};

/// About what a record takes in memory besides its labels, its log and its result.
const RECORD: usize = 2048;
/// About what a label or a fact takes besides its text.
const ENTRY: usize = 128;

/// The method that a run was asked for by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// One answer with all output.
    Run,
    /// Output as it is written.
    RunStream,
    /// The same, with live input.
    Interact,
}

impl Method {
    /// What its messages call the spec.
    const fn spec_field(self) -> &'static str {
        match self {
            Self::Run | Self::RunStream => "spec",
            Self::Interact => "start",
        }
    }

    /// Its name in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Run => "Run",
            Self::RunStream => "RunStream",
            Self::Interact => "Interact",
        }
    }
}

/// Who asked for a run, and how.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The method.
    pub method: Method,
    /// The caller's address.
    pub caller: Arc<str>,
    /// Whose run it is.
    pub tenant: Arc<Tenant>,
}

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Its module is found, checked, compiled.
    Compiling,
    /// It waits for a slot.
    Queued,
    /// The guest executes.
    Running,
    /// It has ended, or was refused.
    Ended,
}

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
    over: bool,
    answer: AnswerParts,
}

/// What of the run's admission is its callers' until the answer is theirs.
#[derive(Debug, Default)]
struct AnswerParts {
    permit: Option<Pass>,
    quota: Option<Counted>,
}

/// One caller of a run, counted until this is dropped. A run that is not detached ends with the last of them.
#[derive(Debug)]
pub(super) struct Caller(Arc<Run>);

impl Drop for Caller {
    fn drop(&mut self) {
        let run = &self.0;
        let mut facts = run.lock();
        facts.callers -= 1;
        if facts.callers > 0 {
            return;
        }
        if facts.over {
            let answer = std::mem::take(&mut facts.answer);
            drop(facts);
            run.log.shelve(run.key.is_some());
            drop(answer);
        } else if !run.detached {
            // Wakes the run. Where the daemon is ending that drops it, which ends it by this lock.
            drop(facts);
            run.stop
                .request(StopReason::Cancelled(CancelCause::CallerGone));
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

    /// What its callers get whole.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND` where it is not kept any more.
    pub fn captured(&self) -> Result<Captured, Refusal> {
        self.log.captured().ok_or_else(|| {
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

    /// About what it takes in memory once it has ended, its log aside.
    pub(super) fn weight(&self) -> usize {
        let labels = self.labels.iter().map(|(k, v)| k.len() + v.len() + ENTRY);
        let labels: usize = labels.sum();
        let end = self.log.end().map_or(0, |(_, end)| match &*end {
            Ok(ended) => {
                let trap = ended.trap.as_ref().map_or(0, |trap| {
                    let names = trap.backtrace.iter().map(|frame| {
                        size_of_val(frame) + frame.func_name.len() + frame.module_name.len()
                    });
                    trap.message.len() + names.sum::<usize>()
                });
                trap + size_of_val(&*ended.values)
            }
            Err(refusal) => {
                let facts = refusal.metadata().iter();
                refusal.message().len() + facts.map(|(_, fact)| fact.len() + ENTRY).sum::<usize>()
            }
        });
        RECORD + labels + end
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

    /// Counts a caller.
    pub(super) fn join(self: &Arc<Self>) -> Caller {
        self.lock().callers += 1;
        Caller(Arc::clone(self))
    }

    /// Tells how it ended; everybody who waits learns of it.
    pub(super) fn finish(&self, end: End, captured: Option<Captured>) {
        self.log.finish(end, captured);
        let mut facts = self.lock();
        facts.over = true;
        if facts.callers == 0 {
            let answer = std::mem::take(&mut facts.answer);
            drop(facts);
            self.log.shelve(self.key.is_some());
            drop(answer);
        }
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
