//! Runs as plain data: the record of a run at one moment, and the compact form in which the history
//! keeps a run that has ended.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::origin::{Origin, RunMethod, RunState};
use super::record::{GrantedLimits, Run};
use super::tenant::Tenant;
use crate::event_log::{PackedOutput, RunEnd};
use crate::outcome::{LiveUsage, Outcome, RunReport, Stream, Written};
use crate::request::{Digest, Labels, RunId};

/// Rough size in bytes of a run's record in memory, besides its labels, its log and its result.
const RECORD: usize = 2048;
/// Rough overhead in bytes of one label or fact, besides its text.
const ENTRY: usize = 128;

/// A snapshot of all that is known of a run at one moment.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "plain data, named as the API names it")]
pub struct RunRecord {
    pub id: RunId,
    pub state: RunState,
    pub method: RunMethod,
    pub caller: Arc<str>,
    pub labels: Labels,
    pub detached: bool,
    pub digest: Option<Digest>,
    pub asked: SystemTime,
    pub started: Option<SystemTime>,
    pub granted: Option<GrantedLimits>,
    pub used: UsageSnapshot,
    /// Wall time since the run started; `None` where it has not started, or comes from the history.
    pub elapsed: Option<Duration>,
    /// When the run ended, and how; `None` while it goes on.
    pub end: Option<(SystemTime, Arc<RunEnd>)>,
    /// The number of the next event of the run's log.
    pub next_seq: u64,
    /// Rough size of the record in memory in bytes, the log aside.
    pub(super) weight: usize,
}

/// What a run has used at one moment, as counted from outside the guest.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "plain data, named as `Usage` names it")]
pub struct UsageSnapshot {
    pub fuel: u64,
    pub memory: u64,
    /// Bytes written to standard output and to standard error, in this order.
    pub written: [u64; 2],
}

impl UsageSnapshot {
    /// Reads the counters of `usage` as they are now.
    pub(super) fn of(usage: &LiveUsage) -> Self {
        Self {
            fuel: usage.fuel(),
            memory: usage.memory(),
            written: [Stream::Stdout, Stream::Stderr].map(|stream| usage.written(stream)),
        }
    }
}

/// Estimates how many bytes of memory a run with `labels` takes, its log aside. `end` is how it
/// ended; `None` where it goes on.
pub(super) fn weight(labels: &Labels, end: Option<&RunEnd>) -> usize {
    let labels = labels.iter().map(|(k, v)| k.len() + v.len() + ENTRY);
    let labels: usize = labels.sum();
    let end = match end {
        None => 0,
        Some(Ok(ended)) => {
            let trap = ended.trap.as_ref().map_or(0, |trap| {
                let names = trap.backtrace.iter().map(|frame| {
                    size_of_val(frame) + frame.func_name.len() + frame.module_name.len()
                });
                trap.message.len() + names.sum::<usize>()
            });
            trap + size_of_val(&*ended.values)
        }
        Some(Err(refusal)) => {
            let facts = refusal.metadata().iter();
            refusal.message().len() + facts.map(|(_, fact)| fact.len() + ENTRY).sum::<usize>()
        }
    };
    RECORD + labels + end
}

/// A run that has ended, as the history keeps it. It is one flat value; only what few runs have,
/// such as labels and traps, is allocated apart.
#[derive(Debug)]
pub(super) struct ArchivedRun {
    pub(super) number: u128,
    method: RunMethod,
    detached: bool,
    caller: Arc<str>,
    labels: Labels,
    digest: Option<Digest>,
    granted: Option<GrantedLimits>,
    used: UsageSnapshot,
    asked: SystemTime,
    started: Option<SystemTime>,
    ended: SystemTime,
    end: ArchivedEnd,
    next_seq: u64,
}

/// How an archived run ended, in the smallest form that holds it.
#[derive(Debug)]
enum ArchivedEnd {
    Plain(PlainEnd),
    /// An end with a trap, values or a refusal.
    Other(Arc<RunEnd>),
}

/// The end of a run that has only numbers to tell: no trap, no values and no refusal.
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
            cpu_time,
            fuel_consumed,
            memory_used,
            memory_denied,
            values,
            stdin_read,
            stdout,
            stderr,
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
        })
    }

    fn whole(&self) -> RunReport {
        RunReport {
            outcome: self.outcome,
            trap: None,
            duration: self.duration,
            cpu_time: self.cpu_time,
            fuel_consumed: self.fuel_consumed,
            memory_used: self.memory_used,
            memory_denied: self.memory_denied,
            values: Vec::new(),
            stdin_read: self.stdin_read,
            stdout: self.stdout,
            stderr: self.stderr,
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
    ) -> Self {
        let (digest, granted) = run.module_and_limits();
        Self {
            number: run.id.number(),
            method: run.origin.method,
            detached: run.detached,
            caller: Arc::clone(&run.origin.caller),
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
        }
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
            digest: self.digest,
            asked: self.asked,
            started: self.started,
            granted: self.granted.clone(),
            used: self.used,
            elapsed: None,
            end: Some((self.ended, self.end.whole())),
            next_seq: self.next_seq,
            weight,
        }
    }

    /// Rebuilds the whole run from its archived form and from the output `kept` of it, for whoever
    /// reads that output.
    pub(super) fn reopen(
        &self,
        instance: &str,
        tenant: &Arc<Tenant>,
        kept: PackedOutput,
    ) -> Arc<Run> {
        let end = (self.ended, self.end.whole());
        Run::reopened(
            RunId::of(self.number, instance),
            Origin {
                method: self.method,
                caller: Arc::clone(&self.caller),
                tenant: Arc::clone(tenant),
            },
            self.labels.clone(),
            self.detached,
            self.asked,
            (self.digest, self.granted.clone()),
            tenant.reopened_log(self.started, end, kept),
        )
    }
}
