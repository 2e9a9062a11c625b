//! What is known of a run at one moment: its state, its limits, what it has used, and its end.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::origin::{RunMethod, RunState};
use crate::archive::ArchiveState;
use crate::event_log::RunEnd;
use crate::model::limits::Limits;
use crate::model::outcome::{LiveUsage, Stream};
use crate::model::request::{Digest, Labels, RunId};
use crate::model::trace_context::TraceId;

/// Rough size in bytes of a run's record in memory, besides its labels, its log and its result.
const RECORD: usize = 2048;
/// Rough overhead in bytes of one label or fact, besides its text.
const ENTRY: usize = 128;

/// The limits that a run was granted.
#[derive(Clone, Debug)]
pub struct GrantedLimits {
    /// Pages of linear memory, of 64 KiB each.
    pub memory_pages: u32,
    /// The limits other than memory.
    pub limits: Limits,
}

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
    /// Whether the output is kept once the callers were told of the end.
    pub keeps_output: bool,
    /// The trace that the run's call belongs to; `None` where it belongs to none.
    pub trace_id: Option<TraceId>,
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
    /// Whether the archive has the run; `None` where it goes on or is not archived.
    pub archive: Option<ArchiveState>,
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
            let uncollected = ended.uncollected.as_ref().map_or(0, |files| {
                size_of_val(&**files) + size_of_val(&*files.named) + files.named_bytes()
            });
            trap + uncollected + size_of_val(&*ended.values)
        }
        Some(Err(refusal)) => {
            let facts = refusal.metadata().iter();
            refusal.message().len() + facts.map(|(_, fact)| fact.len() + ENTRY).sum::<usize>()
        }
    };
    RECORD + labels + end
}
