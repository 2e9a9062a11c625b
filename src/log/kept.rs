//! The output of a run that has ended, packed away: what the history keeps while nobody holds the run.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::SystemTime;

use super::{End, Entry, Inner, Log, Pool};

/// The output of a run that has ended and that nobody reads, without what readers need.
///
/// Its bytes stay charged to the pool that they came from, until they are let go ([`Self::let_go`]) or are a log's again
/// ([`Log::reopen`]).
#[derive(Debug, Default)]
pub struct KeptOutput {
    /// The number of the first of `entries`.
    first: u64,
    entries: VecDeque<Entry>,
    /// What the entries cost.
    held: usize,
}

impl KeptOutput {
    /// Whether there is something to let go.
    pub fn is_held(&self) -> bool {
        self.held > 0
    }

    /// Lets all of it go; whoever reads the run later is told that it is lost.
    pub fn let_go(&mut self, pool: &Pool) {
        self.first += self.entries.len() as u64;
        self.entries = VecDeque::new();
        pool.sub(std::mem::take(&mut self.held));
    }
}

impl Log {
    /// Takes the output out, of a run that has ended and whose last reader has left, and lets go what was captured.
    pub fn pack(&self) -> KeptOutput {
        let mut inner = self.lock();
        if let Some(ticket) = inner.ticket.take() {
            self.pool.leave(ticket);
        }
        let captured = inner.drop_captured();
        let entries = std::mem::take(&mut inner.entries);
        let kept = KeptOutput {
            first: inner.first,
            held: std::mem::take(&mut inner.held),
            entries,
        };
        // Its events keep their numbers.
        inner.first += kept.entries.len() as u64;
        drop(inner);
        self.pool.sub(captured);
        kept
    }

    /// The log of a run that has ended, with the output that is left of it, for whoever reads it again.
    pub fn reopen(
        bytes: usize,
        pool: Arc<Pool>,
        started: Option<SystemTime>,
        end: (SystemTime, Arc<End>),
        kept: KeptOutput,
    ) -> Arc<Self> {
        let KeptOutput {
            first,
            entries,
            held,
        } = kept;
        let inner = Inner {
            started,
            first,
            entries,
            held,
            end: Some(end),
            shelved: true,
            ..Inner::default()
        };
        let log = Self::of(bytes, pool, inner);
        // There is as much room as before.
        log.lock().ticket = Some(log.pool.enter(log.me.clone(), false));
        log
    }
}
