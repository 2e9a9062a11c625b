//! The record of one run, from the moment it is asked for: its facts, its log, who holds it, and
//! the means to stop it.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use super::admission::{Permit, RunQuotaGuard};
use super::origin::{Origin, RunState};
use super::response_reservation::ResponseReservation;
use super::snapshot::{GrantedLimits, RunRecord, UsageSnapshot, weight};
use crate::event_log::{CapturedOutput, EventLog, RunEnd};
use crate::model::outcome::{CancelCause, LiveUsage};
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::{Digest, Labels, RunId, RunSpec};
use crate::sandbox::{Input, StopReason, StopSignal};
use crate::sync::lock;

/// What the caller of a run asked for besides its execution.
#[derive(Debug)]
pub(super) struct RunTerms {
    /// The labels that the caller gave the run.
    pub(super) labels: Labels,
    /// Whether the run goes on without its callers.
    pub(super) detached: bool,
    /// The idempotency key, under which others may ask for the same run; `None`: it has none.
    pub(super) key: Option<String>,
    /// Whether the output is kept once the callers were told of the end.
    pub(super) keeps_output: bool,
}

impl RunTerms {
    /// Collects what `spec` says of it.
    pub(super) fn of(spec: &RunSpec) -> Self {
        Self {
            labels: spec.labels.clone(),
            detached: spec.detach,
            key: spec.idempotency_key.clone(),
            keeps_output: spec.keep_output,
        }
    }
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
    /// Whether the output is kept once the callers were told of the end.
    pub keeps_output: bool,
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
    /// Whether the run was deleted, so that nothing of it is kept once no caller holds it.
    deleted: bool,
    /// Whether the output was dropped, because it was not to be kept.
    forgotten: bool,
    /// What writers append to while the run goes on; `None` where its input was never open.
    input: Option<Arc<Input>>,
    answer: ResponseParts,
}

/// The parts of the run's admission that belong to its callers until they have the answer.
#[derive(Debug, Default)]
struct ResponseParts {
    permit: Option<Permit>,
    quota: Option<RunQuotaGuard>,
}

/// Who holds on to a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A caller that asked for the run.
    Caller,
    /// A viewer that reads its output.
    Viewer,
}

/// A run that has ended and that no caller holds. Dropping this releases what the run kept for its
/// callers, which is done once the run is packed away.
#[must_use]
pub(super) struct LeftRun {
    /// Whether nobody reads the run's output either, so that its registry packs the run away.
    pub(super) is_to_be_packed: bool,
    _answer: ResponseParts,
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
    /// Creates the record of a run that was just asked for. `input` is its stdin where others may
    /// write to it while it goes on.
    pub(super) fn new(
        id: RunId,
        origin: Origin,
        terms: RunTerms,
        log: Arc<EventLog>,
        input: Option<Arc<Input>>,
    ) -> Arc<Self> {
        let RunTerms {
            labels,
            detached,
            key,
            keeps_output,
        } = terms;
        let facts = RunFacts {
            input,
            ..RunFacts::default()
        };
        Arc::new(Self {
            id,
            origin,
            labels,
            detached,
            key,
            keeps_output,
            asked: id.time_asked(SystemTime::now()),
            log,
            usage: Arc::default(),
            stop: Arc::default(),
            clock: Instant::now(),
            facts: Mutex::new(facts),
        })
    }

    /// Recreates a run that has ended, because somebody wants to read its output again. It has no
    /// key any more, whatever its `terms` were. `settled` is its module and the limits that it was
    /// granted.
    pub(super) fn reopened(
        id: RunId,
        origin: Origin,
        terms: RunTerms,
        asked: SystemTime,
        settled: (Option<Digest>, Option<GrantedLimits>),
        log: Arc<EventLog>,
    ) -> Arc<Self> {
        let (digest, granted) = settled;
        let RunTerms {
            labels,
            detached,
            key: _,
            keeps_output,
        } = terms;
        let facts = RunFacts {
            digest,
            granted,
            over: true,
            forgotten: !keeps_output,
            ..RunFacts::default()
        };
        Arc::new(Self {
            id,
            origin,
            labels,
            detached,
            key: None,
            keeps_output,
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
            keeps_output: self.keeps_output,
            trace_id: self.origin.trace.id(),
            digest,
            asked: self.asked,
            started: self.log.started(),
            granted,
            used: UsageSnapshot::of(&self.usage),
            elapsed: self.elapsed(),
            weight: weight(&self.labels, end.as_ref().map(|(_, end)| &**end)),
            end,
            next_seq: self.log.next_seq(),
            // It is known of ended runs only, by their places in the history.
            archive: None,
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

    /// Returns the run's stdin where it is open to writers; `None` where it never was, or the run
    /// has ended.
    pub(super) fn live_input(&self) -> Option<Arc<Input>> {
        self.lock().input.clone()
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

    /// Counts one more holder.
    pub(super) fn count_hold(&self, by: Holder) {
        *self.lock().held_by(by) += 1;
    }

    /// Takes one holder off the count, and returns what is left to do where the run has ended and
    /// this was the last of its callers. A run that is not detached and goes on is asked to end.
    pub(super) fn release_hold(&self, by: Holder) -> Option<LeftRun> {
        let mut facts = self.lock();
        *facts.held_by(by) -= 1;
        if facts.callers > 0 {
            return None;
        }
        if facts.over {
            return Some(self.leave(facts));
        }
        if self.forgets(&facts) && self.log.end().is_some() {
            // This caller was told of the end before `finish` could note it, which does the rest.
            self.forget(facts);
            return None;
        }
        if by == Holder::Caller && !self.detached {
            // This wakes the run. Where the daemon is ending, that drops the run, which ends it by
            // this lock.
            drop(facts);
            self.stop
                .request(StopReason::Cancelled(CancelCause::CallerGone));
        }
        None
    }

    /// Notes that the run ended `at` and how, and wakes everybody who waits for the end. Returns
    /// what is left to do where the run has no caller any more.
    pub(super) fn finish(&self, at: SystemTime, end: Arc<RunEnd>) -> Option<LeftRun> {
        self.log.finish(at, end);
        let mut facts = self.lock();
        facts.over = true;
        let input = facts.input.take();
        let left = (facts.callers == 0).then(|| self.leave(facts));
        drop(input);
        left
    }

    /// Takes out what the run kept for its callers, now that it has ended and none of them is left,
    /// and drops its output where that is not to be kept.
    fn leave(&self, mut facts: MutexGuard<'_, RunFacts>) -> LeftRun {
        let answer = std::mem::take(&mut facts.answer);
        let is_read = facts.viewers > 0;
        if self.forgets(&facts) {
            self.forget(facts);
        } else {
            drop(facts);
        }
        let is_to_be_packed = !is_read && !self.stays_whole();
        if !is_to_be_packed {
            self.log.mark_evictable(self.key.is_some());
        }
        LeftRun {
            is_to_be_packed,
            _answer: answer,
        }
    }

    /// Reports whether the run stays whole when nobody holds it, because whoever has its key is
    /// given all of it.
    fn stays_whole(&self) -> bool {
        self.key.is_some() && self.keeps_output
    }

    /// Reports whether nobody needs the run as a whole any more.
    pub(super) fn may_be_packed(&self) -> bool {
        let facts = self.lock();
        facts.over && facts.callers + facts.viewers == 0 && !self.stays_whole()
    }

    /// Notes that the run was deleted, and drops its output, or leaves that to the last of its
    /// callers: they are given all that they asked for.
    pub(super) fn delete(&self) {
        let mut facts = self.lock();
        facts.deleted = true;
        if facts.over && facts.callers == 0 {
            self.forget(facts);
        }
    }

    /// Drops the output of a run whose guest has ended where it is not to be kept and no caller is
    /// left. This comes before anybody learns of the end.
    pub(super) fn forget_if_left(&self) {
        // No run is deleted before its end.
        if self.keeps_output {
            return;
        }
        let facts = self.lock();
        if facts.callers == 0 {
            self.forget(facts);
        }
    }

    /// Reports whether nothing of the output is kept once no caller holds the run.
    fn forgets(&self, facts: &RunFacts) -> bool {
        facts.deleted || !self.keeps_output
    }

    /// Drops the output. That is noted under the lock, so that whoever becomes a caller after this
    /// learns of it.
    fn forget(&self, mut facts: MutexGuard<'_, RunFacts>) {
        facts.forgotten = true;
        drop(facts);
        self.log.forget_output();
    }

    /// Reports whether the run started, and has nothing for another caller any more: it was
    /// deleted, or its output was not to be kept and is gone. While a caller holds the run, only a
    /// deletion changes this.
    pub(super) fn is_forgotten(&self) -> bool {
        if self.log.started().is_none() {
            return false;
        }
        let facts = self.lock();
        facts.deleted || facts.forgotten
    }

    fn lock(&self) -> MutexGuard<'_, RunFacts> {
        lock(&self.facts)
    }
}
