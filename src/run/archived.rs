//! The compact form in which the history keeps a run that has ended, and how that becomes a whole
//! run again for somebody who reads its output.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::origin::{Origin, RunMethod, RunState, RunTrace};
use super::record::{Run, RunTerms};
use super::snapshot::{GrantedLimits, RunRecord, UsageSnapshot};
use crate::archive::ArchiveMark;
use crate::event_log::{EventLog, PackedOutput, RunEnd};
use crate::model::outcome::{Outcome, RunReport, SessionReport, Written};
use crate::model::request::{Digest, Labels, RunId};
use crate::model::trace_context::TraceId;

/// A run that has ended, as the history keeps it. It is one flat value; only what few runs have,
/// such as labels and traps, is allocated apart.
#[derive(Debug)]
pub(super) struct ArchivedRun {
    pub(super) number: u128,
    method: RunMethod,
    detached: bool,
    keeps_output: bool,
    caller: Arc<str>,
    /// The trace that the run's call belonged to; `None` where it belonged to none.
    trace_id: Option<TraceId>,
    labels: Labels,
    digest: Option<Digest>,
    granted: Option<GrantedLimits>,
    used: UsageSnapshot,
    asked: SystemTime,
    started: Option<SystemTime>,
    ended: SystemTime,
    end: ArchivedEnd,
    next_seq: u64,
    /// Says whether the archive has the run; `None` where it is not to.
    mark: Option<Arc<ArchiveMark>>,
}

/// How an archived run ended, in the smallest form that holds it.
#[derive(Debug)]
enum ArchivedEnd {
    Plain(PlainEnd),
    /// An end with a trap, values, uncollected files or a refusal.
    Other(Arc<RunEnd>),
}

/// The end of a run that has only numbers to tell: no trap, no values, no uncollected
/// files and no refusal.
#[derive(Debug)]
struct PlainEnd {
    outcome: Outcome,
    duration: Duration,
    cpu_time: Duration,
    fuel_consumed: Option<u64>,
    memory_used: u64,
    memory_denied: bool,
    stdin_read: u64,
    stdout: Written,
    stderr: Written,
    session: Option<SessionReport>,
}

impl ArchivedEnd {
    fn of(end: &Arc<RunEnd>) -> Self {
        let plain = end.as_ref().as_ref().ok().and_then(PlainEnd::of);
        plain.map_or_else(|| Self::Other(Arc::clone(end)), Self::Plain)
    }

    fn whole(&self) -> Arc<RunEnd> {
        match self {
            Self::Plain(plain) => Arc::new(Ok(plain.whole())),
            Self::Other(end) => Arc::clone(end),
        }
    }
}

impl PlainEnd {
    fn of(ended: &RunReport) -> Option<Self> {
        let RunReport {
            outcome,
            trap: None,
            duration,
            instantiation: _,
            cpu_time,
            fuel_consumed,
            memory_used,
            memory_denied,
            values,
            stdin_read,
            stdout,
            stderr,
            uncollected: None,
            session,
        } = ended
        else {
            return None;
        };
        values.is_empty().then_some(Self {
            outcome: *outcome,
            duration: *duration,
            cpu_time: *cpu_time,
            fuel_consumed: *fuel_consumed,
            memory_used: *memory_used,
            memory_denied: *memory_denied,
            stdin_read: *stdin_read,
            stdout: *stdout,
            stderr: *stderr,
            session: *session,
        })
    }

    fn whole(&self) -> RunReport {
        RunReport {
            outcome: self.outcome,
            trap: None,
            duration: self.duration,
            instantiation: None,
            cpu_time: self.cpu_time,
            fuel_consumed: self.fuel_consumed,
            memory_used: self.memory_used,
            memory_denied: self.memory_denied,
            values: Vec::new(),
            stdin_read: self.stdin_read,
            stdout: self.stdout,
            stderr: self.stderr,
            uncollected: None,
            session: self.session,
        }
    }
}

impl ArchivedRun {
    /// Archives `run`, which ends now. `started` is `None` where it never started.
    pub(super) fn of(
        run: &Run,
        started: Option<SystemTime>,
        ended: SystemTime,
        end: &Arc<RunEnd>,
        mark: Option<Arc<ArchiveMark>>,
    ) -> Self {
        let (digest, granted) = run.module_and_limits();
        Self {
            number: run.id.number(),
            method: run.origin.method,
            detached: run.detached,
            keeps_output: run.keeps_output,
            caller: Arc::clone(&run.origin.caller),
            trace_id: run.origin.trace.id(),
            labels: run.labels.clone(),
            digest,
            granted,
            used: UsageSnapshot::of(&run.usage),
            asked: run.asked,
            started,
            ended,
            end: ArchivedEnd::of(end),
            // The end is an event of the log too, and is not written to it yet.
            next_seq: run.log.next_seq() + 1,
            mark,
        }
    }

    /// Returns the labels that the run was given.
    pub(super) fn labels(&self) -> &Labels {
        &self.labels
    }

    /// Returns the record of this run, which `instance` holds. `weight` is what the run was weighed
    /// at when it entered the history.
    pub(super) fn record(&self, instance: &str, weight: usize) -> RunRecord {
        RunRecord {
            id: RunId::of(self.number, instance),
            state: RunState::Ended,
            method: self.method,
            caller: Arc::clone(&self.caller),
            labels: self.labels.clone(),
            detached: self.detached,
            keeps_output: self.keeps_output,
            trace_id: self.trace_id,
            digest: self.digest,
            asked: self.asked,
            started: self.started,
            granted: self.granted.clone(),
            used: self.used,
            elapsed: None,
            end: Some((self.ended, self.end.whole())),
            next_seq: self.next_seq,
            archive: self.mark.as_deref().map(ArchiveMark::state),
            weight,
        }
    }

    /// Rebuilds the whole run from its archived form and from the output `kept` of it, for whoever
    /// reads that output.
    pub(super) fn reopen(
        &self,
        instance: &str,
        tenant: &Arc<str>,
        kept: PackedOutput,
        reopen_log: impl FnOnce(
            Option<SystemTime>,
            (SystemTime, Arc<RunEnd>),
            PackedOutput,
        ) -> Arc<EventLog>,
    ) -> Arc<Run> {
        let end = (self.ended, self.end.whole());
        Run::reopened(
            RunId::of(self.number, instance),
            Origin {
                method: self.method,
                caller: Arc::clone(&self.caller),
                tenant: Arc::clone(tenant),
                trace: self.trace_id.map_or(RunTrace::None, RunTrace::Ended),
            },
            RunTerms {
                labels: self.labels.clone(),
                detached: self.detached,
                key: None,
                keeps_output: self.keeps_output,
            },
            self.asked,
            (self.digest, self.granted.clone()),
            reopen_log(self.started, end, kept),
        )
    }
}
