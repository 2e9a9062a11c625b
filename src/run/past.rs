//! Runs as data: what is told of one at a moment, and the compact form in which the history keeps those that have ended.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::origin::{Method, Origin, State};
use super::record::{Granted, Run};
use super::tenant::Tenant;
use crate::log::{End, KeptOutput};
use crate::outcome::{Ended, Outcome, Stream, Usage, Written};
use crate::request::{Digest, Labels, RunId};

/// About what a record takes in memory besides its labels, its log and its result.
const RECORD: usize = 2048;
/// About what a label or a fact takes besides its text.
const ENTRY: usize = 128;

/// All that is known of a run at one moment.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "plain data, named as the API names it")]
pub struct RunRecord {
    pub id: RunId,
    pub state: State,
    pub method: Method,
    pub caller: Arc<str>,
    pub labels: Labels,
    pub detached: bool,
    pub digest: Option<Digest>,
    pub asked: SystemTime,
    pub started: Option<SystemTime>,
    pub granted: Option<Granted>,
    pub used: Used,
    /// Wall time since it started, of one that goes on.
    pub elapsed: Option<Duration>,
    /// When it ended, and how.
    pub end: Option<(SystemTime, Arc<End>)>,
    /// The number of the event of its log that comes next.
    pub next_seq: u64,
    /// About what it takes in memory, its log aside.
    pub(super) weight: usize,
}

/// What a run has used, as it was counted from outside.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "plain data, named as `Usage` names it")]
pub struct Used {
    pub fuel: u64,
    pub memory: u64,
    /// Bytes of standard output and error.
    pub written: [u64; 2],
}

impl Used {
    /// What `usage` says now.
    pub(super) fn of(usage: &Usage) -> Self {
        Self {
            fuel: usage.fuel(),
            memory: usage.memory(),
            written: [Stream::Stdout, Stream::Stderr].map(|stream| usage.written(stream)),
        }
    }
}

/// About what a run with `labels`, which may have come to its `end`, takes in memory, its log aside.
pub(super) fn weight(labels: &Labels, end: Option<&End>) -> usize {
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

/// A run that has ended, as the history keeps it: in one piece, but for what few runs have, such as labels and traps.
#[derive(Debug)]
pub(super) struct PastRun {
    pub(super) number: u128,
    method: Method,
    detached: bool,
    caller: Arc<str>,
    labels: Labels,
    digest: Option<Digest>,
    granted: Option<Granted>,
    used: Used,
    asked: SystemTime,
    started: Option<SystemTime>,
    ended: SystemTime,
    end: PastEnd,
    next_seq: u64,
}

/// How a run ended.
#[derive(Debug)]
enum PastEnd {
    Plain(PlainEnd),
    /// With a trap, values or a refusal.
    Other(Arc<End>),
}

/// How a run ended of which there are numbers only to tell.
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

impl PastEnd {
    fn of(end: &Arc<End>) -> Self {
        let plain = end.as_ref().as_ref().ok().and_then(PlainEnd::of);
        plain.map_or_else(|| Self::Other(Arc::clone(end)), Self::Plain)
    }

    fn whole(&self) -> Arc<End> {
        match self {
            Self::Plain(plain) => Arc::new(Ok(plain.whole())),
            Self::Other(end) => Arc::clone(end),
        }
    }
}

impl PlainEnd {
    fn of(ended: &Ended) -> Option<Self> {
        let Ended {
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

    fn whole(&self) -> Ended {
        Ended {
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

impl PastRun {
    /// Of `run`, which started or did not, and ends now.
    pub(super) fn of(
        run: &Run,
        started: Option<SystemTime>,
        ended: SystemTime,
        end: &Arc<End>,
    ) -> Self {
        let (digest, granted) = run.settled();
        Self {
            number: run.id.number(),
            method: run.origin.method,
            detached: run.detached,
            caller: Arc::clone(&run.origin.caller),
            labels: run.labels.clone(),
            digest,
            granted,
            used: Used::of(&run.usage),
            asked: run.asked,
            started,
            ended,
            end: PastEnd::of(end),
            // The end is an event too.
            next_seq: run.log.next_seq() + 1,
        }
    }

    /// What is told of it, of a run that `instance` holds and that was weighed.
    pub(super) fn record(&self, instance: &str, weight: usize) -> RunRecord {
        RunRecord {
            id: RunId::of(self.number, instance),
            state: State::Ended,
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

    /// The run as a whole again, for whoever reads its output.
    pub(super) fn reopen(
        &self,
        instance: &str,
        tenant: &Arc<Tenant>,
        kept: KeptOutput,
    ) -> Arc<Run> {
        let end = (self.ended, self.end.whole());
        Run::over(
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
