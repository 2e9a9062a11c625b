//! The packed output of a run that has ended: what the history keeps while nobody holds on to the
//! run.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use super::{EventLog, EventLogBudget, Inner, OutputEvent, RunEnd};

/// The output of a run that has ended and that nobody reads, without what readers need.
///
/// Its bytes stay charged to the pool that they came from, until they are dropped ([`Self::evict`])
/// or belong to a log again ([`EventLog::reopen`]).
#[derive(Debug, Default)]
pub struct PackedOutput {
    /// The number of the first of `entries`.
    first: u64,
    entries: VecDeque<OutputEvent>,
    /// What the entries cost together, in bytes.
    held: usize,
}

impl PackedOutput {
    /// Reports whether there is output to evict.
    pub fn is_held(&self) -> bool {
        self.held > 0
    }

    /// Drops all of the output; whoever reads the run later is told that it is lost.
    pub fn evict(&mut self, pool: &EventLogBudget) {
        self.first += self.entries.len() as u64;
        self.entries = VecDeque::new();
        pool.sub(std::mem::take(&mut self.held));
    }
}

impl EventLog {
    /// Takes out the output of a run that has ended and whose last reader has left, and drops what
    /// was captured.
    pub fn pack(&self) -> PackedOutput {
        let mut inner = self.lock();
        if let Some(ticket) = inner.eviction_slot.take() {
            self.pool.leave(ticket);
        }
        let captured = inner.drop_captured();
        let entries = std::mem::take(&mut inner.entries);
        let kept = PackedOutput {
            first: inner.first_seq,
            held: std::mem::take(&mut inner.held),
            entries,
        };
        // The log's events keep their numbers.
        inner.first_seq += kept.entries.len() as u64;
        drop(inner);
        self.pool.sub(captured);
        kept
    }

    /// Creates the log of a run that has ended, with the output that is left of it, for whoever
    /// reads it again.
    pub fn reopen(
        bytes: usize,
        pool: Arc<EventLogBudget>,
        started: Option<SystemTime>,
        end: (SystemTime, Arc<RunEnd>),
        kept: PackedOutput,
    ) -> Arc<Self> {
        let PackedOutput {
            first,
            entries,
            held,
        } = kept;
        let inner = Inner {
            started,
            first_seq: first,
            entries,
            held,
            end: Some(end),
            evictable: true,
            ..Inner::default()
        };
        let log = Self::of(bytes, pool, inner);
        // The output was charged to the pool all along, so no room need be made.
        log.lock().eviction_slot = Some(log.pool.enter(log.me.clone(), false));
        log
    }
}
