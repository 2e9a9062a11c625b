//! Deletes ended runs from a registry, a few at a time, and gives back what they took: places and
//! weights of the history, and the bytes that their output is charged to the budget of logs.

use std::sync::MutexGuard;

use super::{BATCH, HistoryEntry, Inner, Registry, RunLocation};
use crate::model::request::{Labels, TimeRange};

/// What was found and deleted in one look at a registry.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::run) struct DeletedBatch {
    /// The numbers of the ended runs that were deleted, or would be, in the order of the look.
    pub(in crate::run) deleted: Vec<u128>,
    /// How many runs matched and have not ended.
    pub(in crate::run) unfinished: u64,
    /// The number that the next look begins below; `None` where all was looked at.
    pub(in crate::run) next: Option<u128>,
}

impl Registry {
    /// Deletes those of `numbers` that are runs which have ended, in this order. In a dry run,
    /// nothing changes.
    pub(in crate::run) fn delete_numbers(&self, numbers: &[u128], dry_run: bool) -> DeletedBatch {
        let inner = self.lock();
        let found = numbers.iter().filter_map(|number| {
            let place = inner.index.get(number)?;
            Some((*number, *place))
        });
        let found = found.collect();
        self.delete(inner, found, dry_run)
    }

    /// Looks at the next runs below the number `end` that were asked for within `asked`, and
    /// deletes those that have `labels` and have ended. In a dry run, nothing changes.
    pub(in crate::run) fn delete_matching(
        &self,
        labels: &Labels,
        asked: TimeRange,
        end: u128,
        dry_run: bool,
    ) -> DeletedBatch {
        let inner = self.lock();
        let first = asked.first_number();
        let end = asked.end_number().map_or(end, |asked| asked.min(end));
        let looked: Vec<_> = inner.newest_first(first, Some(end)).take(BATCH).collect();
        let last = looked.last().map(|(number, _)| *number);
        let next = last.filter(|_| looked.len() == BATCH);
        let matching = looked.into_iter().filter(|(_, place)| {
            let of_run = inner.labels(*place);
            of_run.is_some_and(|of_run| labels.are_among(of_run))
        });
        let matching = matching.collect();
        DeletedBatch {
            next,
            ..self.delete(inner, matching, dry_run)
        }
    }

    /// Returns the number that the ids of all runs that are known now are smaller than.
    pub(in crate::run) fn end_number(&self) -> u128 {
        let newest = self
            .lock()
            .index
            .last_key_value()
            .map(|(number, _)| *number);
        newest.map_or(0, |newest| newest.saturating_add(1))
    }

    /// Deletes the runs of `found` that have ended, and counts the others.
    fn delete(
        &self,
        mut inner: MutexGuard<'_, Inner>,
        found: Vec<(u128, RunLocation)>,
        dry_run: bool,
    ) -> DeletedBatch {
        let mut batch = DeletedBatch::default();
        let mut removed = Vec::new();
        for (number, place) in found {
            match place {
                RunLocation::Live(_) => batch.unfinished += 1,
                RunLocation::Ended(_) | RunLocation::Refused(_) => {
                    batch.deleted.push(number);
                    if !dry_run {
                        removed.extend(inner.remove(number));
                    }
                }
            }
        }
        // Nobody finds the runs any more. What they held is freed when the lock is released.
        drop(inner);
        for HistoryEntry {
            run: _,
            mut kept,
            whole,
        } in removed
        {
            kept.evict(&self.logs);
            if let Some(run) = whole {
                run.delete();
            }
        }
        batch
    }
}

impl Inner {
    /// Returns the labels of the run at `place`; `None` where there is none.
    fn labels(&self, place: RunLocation) -> Option<&Labels> {
        match place {
            RunLocation::Live(key) => self.live.get(key).map(|live| &live.run.labels),
            RunLocation::Ended(at) => self.ended.get(at).map(|(past, _)| past.run.labels()),
            RunLocation::Refused(at) => self.refused.get(at).map(|(past, _)| past.run.labels()),
        }
    }

    /// Removes an ended run from the history and from the index; `None` where it goes on or is not
    /// known.
    fn remove(&mut self, number: u128) -> Option<HistoryEntry> {
        let removed = match *self.index.get(&number)? {
            RunLocation::Live(_) => return None,
            RunLocation::Ended(at) => self.ended.remove(at),
            RunLocation::Refused(at) => self.refused.remove(at),
        };
        self.index.remove(&number);
        removed
    }
}

#[cfg(test)]
mod tests;
