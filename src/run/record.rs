//! The record of one run from the moment it is asked for, and the guards that hold on to it.
//! [`RunGuard`] sees to it that every run ends and is logged in one line, on every path: refused,
//! ended, failed, or left by its caller before it started.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use super::admission::{Permit, RunQuotaGuard, shutting_down};
use super::archived::{RunRecord, UsageSnapshot, weight};
use super::audit::{self, Capabilities};
use super::log_lines;
use super::origin::{Origin, RunState};
use super::registry::Registry;
use super::response_reservation::ResponseReservation;
use crate::event_log::{CapturedOutput, EventLog, RunEnd};
use crate::limits::Limits;
use crate::outcome::{CancelCause, LiveUsage, Outcome, RunReport};
use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, Labels, RunId};
use crate::sandbox::{StopReason, StopSignal};

/// The limits that a run was granted.
#[derive(Clone, Debug)]
pub struct GrantedLimits {
    /// Pages of linear memory, of 64 KiB each.
    pub memory_pages: u32,
    /// The limits other than memory.
    pub limits: Limits,
}

/// A run: its record, its event log, and the means to end it.
#[derive(Debug)]
pub struct Run {
    /// The id that names the run.
    pub id: RunId,
    /// Who asked for the run, and how.
    pub origin: Origin,
    /// The labels that its caller gave it.
    pub labels: Labels,
    /// Whether the run goes on without its callers.
    pub detached: bool,
    /// The idempotency key, under which others may ask for the same run; `None`: it has none.
    pub(super) key: Option<String>,
    /// When the run was asked for.
    pub asked: SystemTime,
    /// The events of the run, with its output.
    pub log: Arc<EventLog>,
    /// What the run has used so far.
    pub usage: Arc<LiveUsage>,
    pub(super) stop: Arc<StopSignal>,
    clock: Instant,
    facts: Mutex<RunFacts>,
}

#[derive(Debug, Default)]
struct RunFacts {
    queued: bool,
    digest: Option<Digest>,
    granted: Option<GrantedLimits>,
    started: Option<Instant>,
    callers: usize,
    viewers: usize,
    over: bool,
    answer: ResponseParts,
}

/// The parts of the run's admission that belong to its callers until they have the answer.
#[derive(Debug, Default)]
struct ResponseParts {
    permit: Option<Permit>,
    quota: Option<RunQuotaGuard>,
}

/// A guard that counts one hold on a run until it is dropped. A run that is not detached is asked
/// to end with the last hold of a caller. Its output is packed away when it has ended and nobody
/// holds on to it.
#[derive(Debug)]
pub(super) struct Hold {
    run: Arc<Run>,
    by: Holder,
}

/// Who holds on to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A caller that asked for the run.
    Caller,
    /// A viewer that reads its output.
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
            // The request wakes the run. Where the daemon is ending, that drops the run, which ends
            // it and takes this lock; so the lock is released first.
            drop(facts);
            run.stop
                .request(StopReason::Cancelled(CancelCause::CallerGone));
        }
    }
}

impl RunFacts {
    fn held_by(&mut self, holder: Holder) -> &mut usize {
        match holder {
            Holder::Caller => &mut self.callers,
            Holder::Viewer => &mut self.viewers,
        }
    }
}

impl Run {
    /// Creates the record of a run that was just asked for.
    pub(super) fn new(
        id: RunId,
        origin: Origin,
        labels: Labels,
        detached: bool,
        key: Option<String>,
        log: Arc<EventLog>,
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

    /// Recreates a run that has ended, because somebody wants to read its output again. `settled`
    /// is its module and the limits that it was granted.
    pub(super) fn reopened(
        id: RunId,
        origin: Origin,
        labels: Labels,
        detached: bool,
        asked: SystemTime,
        settled: (Option<Digest>, Option<GrantedLimits>),
        log: Arc<EventLog>,
    ) -> Arc<Self> {
        let (digest, granted) = settled;
        let facts = RunFacts {
            digest,
            granted,
            over: true,
            ..RunFacts::default()
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

    /// Returns a snapshot of all that is known of the run now.
    pub(super) fn record(&self) -> RunRecord {
        // The state is read before the end: a run that ends in between is reported as ended, with
        // its end.
        let state = self.state();
        let end = self.log.end();
        let (digest, granted) = self.module_and_limits();
        RunRecord {
            id: self.id,
            state: if end.is_some() {
                RunState::Ended
            } else {
                state
            },
            method: self.origin.method,
            caller: Arc::clone(&self.origin.caller),
            labels: self.labels.clone(),
            detached: self.detached,
            digest,
            asked: self.asked,
            started: self.log.started(),
            granted,
            used: UsageSnapshot::of(&self.usage),
            elapsed: self.elapsed(),
            weight: weight(&self.labels, end.as_ref().map(|(_, end)| &**end)),
            end,
            next_seq: self.log.next_seq(),
        }
    }

    /// Returns the digest of the run's module and its granted limits; each is `None` until it is
    /// settled.
    pub(super) fn module_and_limits(&self) -> (Option<Digest>, Option<GrantedLimits>) {
        let facts = self.lock();
        (facts.digest, facts.granted.clone())
    }

    /// Returns the state that the run is in.
    pub fn state(&self) -> RunState {
        if self.log.end().is_some() {
            return RunState::Ended;
        }
        let facts = self.lock();
        match (facts.started, facts.queued) {
            (Some(_), _) => RunState::Running,
            (None, true) => RunState::Queued,
            (None, false) => RunState::Compiling,
        }
    }

    /// Returns the digest of the run's module; `None` until it is known.
    pub fn digest(&self) -> Option<Digest> {
        self.lock().digest
    }

    /// Returns the limits that the run was granted; `None` until it has started.
    pub fn granted(&self) -> Option<GrantedLimits> {
        self.lock().granted.clone()
    }

    /// Returns the wall time since the run was asked for.
    pub(super) fn age(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Returns the wall time since the run started; `None` where it has not, or was read back from
    /// the history.
    pub fn elapsed(&self) -> Option<Duration> {
        self.lock().started.map(|started| started.elapsed())
    }

    /// Returns the captured output for a caller of the run. Where the run has no key, its only
    /// caller takes the output and the log keeps none of it.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND` where the output is not kept any more.
    pub fn take_captured(&self) -> Result<CapturedOutput, Refusal> {
        let captured = match self.key {
            None => self.log.take_captured(),
            // Whoever has the key may ask for the output again.
            Some(_) => self.log.captured(),
        };
        captured.ok_or_else(|| {
            let id = &self.id;
            let message = format!(
                "run {id} had this key, and its output is not kept any more (runs.log_budget)"
            );
            Refusal::new(Reason::RunNotFound, message)
                .at_field("spec.idempotency_key")
                .with("run_id", id)
        })
    }

    /// Keeps `permit`, which is a part of the run's reservation, for its answer.
    pub(super) fn reserve_answer(&self, permit: Permit) {
        let before = self.lock().answer.permit.replace(permit);
        drop(before);
    }

    /// Counts the run among its tenant's runs at once until its answer belongs to its caller, or no
    /// caller is left.
    pub(super) fn count_until_answered(&self, quota: RunQuotaGuard) {
        let before = self.lock().answer.quota.replace(quota);
        drop(before);
    }

    /// Hands over what was kept for the answer to the first caller that asks; `None` where nothing
    /// is kept.
    pub fn take_answer_reservation(&self) -> Option<ResponseReservation> {
        let mut facts = self.lock();
        let permit = facts.answer.permit.take()?;
        Some(ResponseReservation::new(permit, facts.answer.quota.take()))
    }

    /// Reports whether the run never started because its callers left it.
    pub(super) fn was_abandoned(&self) -> bool {
        let left = StopReason::Cancelled(CancelCause::CallerGone);
        self.log.started().is_none() && self.stop.reason() == Some(left)
    }

    /// Asks the run to end because somebody called for it, and reports whether that was the first
    /// reason for it to end.
    pub fn cancel(&self) -> bool {
        self.stop
            .request(StopReason::Cancelled(CancelCause::CancelRpc))
    }

    /// Notes the digest of the run's module.
    pub(super) fn set_digest(&self, digest: Digest) {
        self.lock().digest = Some(digest);
    }

    /// Notes that the run waits for a slot.
    pub(super) fn set_queued(&self) {
        self.lock().queued = true;
    }

    /// Notes that the run starts now, with the limits that it was granted.
    pub(super) fn start(&self, granted: GrantedLimits) {
        let mut facts = self.lock();
        facts.granted = Some(granted);
        facts.started = Some(Instant::now());
        drop(facts);
        self.log.start(SystemTime::now());
    }

    /// Counts a hold on the run until the returned guard is dropped.
    pub(super) fn hold(self: &Arc<Self>, by: Holder) -> Hold {
        *self.lock().held_by(by) += 1;
        Hold {
            run: Arc::clone(self),
            by,
        }
    }

    /// Notes that the run ended `at` and how, and wakes everybody who waits for the end.
    pub(super) fn finish(
        &self,
        at: SystemTime,
        end: Arc<RunEnd>,
        captured: Option<CapturedOutput>,
    ) {
        self.log.finish(at, end, captured);
        let mut facts = self.lock();
        facts.over = true;
        if facts.callers == 0 {
            self.leave(facts);
        }
    }

    /// Releases what the run kept for its callers, now that it has ended and none of them is left.
    fn leave(&self, mut facts: MutexGuard<'_, RunFacts>) {
        let answer = std::mem::take(&mut facts.answer);
        let is_read = facts.viewers > 0;
        drop(facts);
        if is_read || self.key.is_some() {
            self.log.mark_evictable(self.key.is_some());
        } else {
            self.origin.tenant.registry.pack(self);
        }
        drop(answer);
    }

    /// Reports whether nobody needs the run as a whole any more. A run with a key stays whole,
    /// because whoever has the key is given all of it.
    pub(super) fn may_be_packed(&self) -> bool {
        let facts = self.lock();
        facts.over && facts.callers + facts.viewers == 0 && self.key.is_none()
    }

    fn lock(&self) -> MutexGuard<'_, RunFacts> {
        // Nothing panics while the lock is held, so it is never poisoned.
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A guard for a run that has not ended. The run ends, and its log line is written, at the latest
/// when this is dropped. The line never has content: no arguments, environment, input or output.
#[derive(Debug)]
pub(super) struct RunGuard {
    pub(super) run: Arc<Run>,
    over: bool,
}

impl RunGuard {
    /// Creates the guard of a run that is registered, or will be when it ends.
    pub(super) fn new(run: Arc<Run>) -> Self {
        Self { run, over: false }
    }

    fn registry(&self) -> &Registry {
        &self.run.origin.tenant.registry
    }

    /// Notes the digest of the run's module.
    pub(super) fn module(&self, digest: Digest) {
        self.run.set_digest(digest);
    }

    /// Notes that the run waits for a slot, and announces the change to watches.
    pub(super) fn queued(&self) {
        self.run.set_queued();
        self.registry().changed(&self.run);
    }

    /// Notes that the run starts, announces the change to watches, and writes the audit line of its
    /// admission where `reach` is given.
    pub(super) fn started(&self, granted: GrantedLimits, reach: Option<&Capabilities>) {
        if let Some(reach) = reach {
            audit::admitted(&self.run, &granted, reach);
        }
        self.run.start(granted);
        self.registry().changed(&self.run);
    }

    /// Ends the run before its first instruction, and returns the refusal with the field names of
    /// its caller's messages.
    pub(super) fn refused(mut self, refusal: Refusal) -> Refusal {
        let refusal = refusal.renamed("spec", self.run.origin.method.spec_field());
        log_lines::refused(&self.run, &refusal);
        audit::refused(&self.run, &refusal);
        self.finish(Err(refusal.clone()), None);
        refusal
    }

    /// Drops this record without an end: the idempotency key already belongs to another run.
    pub(super) fn forget(mut self) {
        self.over = true;
    }

    /// Ends the run, and keeps what was `captured` for its callers.
    pub(super) fn ended(mut self, result: RunEnd, captured: Option<CapturedOutput>) {
        self.write(&result);
        self.finish(result, captured);
    }

    fn finish(&mut self, end: RunEnd, captured: Option<CapturedOutput>) {
        self.over = true;
        self.registry().end(&self.run, end, captured);
    }

    fn write(&self, result: &RunEnd) {
        match result {
            Ok(ended) => {
                let waited = self.waited(ended);
                audit::ended(&self.run, ended, waited);
                log_lines::ended(&self.run, ended, waited);
            }
            Err(refusal) => {
                audit::failed(&self.run, refusal);
                log_lines::failed(&self.run, refusal);
            }
        }
    }

    fn waited(&self, ended: &RunReport) -> Duration {
        self.run.clock.elapsed().saturating_sub(ended.duration)
    }
}

impl Drop for RunGuard {
    fn drop(&mut self) {
        if !self.over {
            log_lines::left(&self.run);
            let refusal = never_started(None);
            audit::refused(&self.run, &refusal);
            self.finish(Err(refusal), None);
        }
    }
}

/// Returns the refusal of a run that never started because it was asked to end for `reason` or,
/// where that is `None`, because its caller left.
pub(super) fn never_started(reason: Option<StopReason>) -> Refusal {
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
