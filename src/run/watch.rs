//! Watches: subscriptions to the runs of a tenant, with a snapshot first and then each change.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::origin::RunState;
use super::record::Run;
use super::registry::{FoundRun, Registry, Selector};
use super::snapshot::RunRecord;

/// How long a watch rests between two looks at the registry, so that many watches cost little while
/// runs come and go.
const REST: Duration = Duration::from_millis(50);

/// A subscription to runs: it reports first all that match, then each that changes. Of a run that
/// changes faster than it is followed, only the latest state is reported.
#[derive(Debug)]
pub struct Watch {
    registry: Arc<Registry>,
    news: watch::Receiver<Option<u64>>,
    selector: Selector,
    /// The number of the last change that was looked at; 0 before the first.
    seen: u64,
    /// The number of the last change before the watch began: the snapshot goes up to here.
    before: u64,
    synced: bool,
    /// Runs that were reported, and that are reported once more when they do not match any longer.
    told: HashMap<u128, Arc<Run>>,
    /// Runs that are to be reported next, in order.
    ready: VecDeque<FoundRun>,
    rest: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

/// One update of a watch.
#[derive(Debug)]
pub enum RunUpdate {
    /// A run, as it is now.
    Run(Box<RunRecord>),
    /// The snapshot is complete: all runs that matched from the start were reported.
    Synced,
}

impl Watch {
    /// Starts to watch the runs of `registry` that match, holding the permit `place` for as long as
    /// the watch exists.
    pub(super) fn start(
        registry: &Arc<Registry>,
        selector: Selector,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let (news, before) = registry.subscribe();
        let registry = Arc::clone(registry);
        Self {
            registry,
            news,
            selector,
            seen: 0,
            before,
            synced: false,
            told: HashMap::new(),
            ready: VecDeque::new(),
            rest: None,
            _place: place,
        }
    }

    /// Waits for the next update; `None` when the daemon ends.
    pub async fn next(&mut self) -> Option<RunUpdate> {
        loop {
            if let Some(found) = self.ready.pop_front() {
                let (record, goes_on) = match found {
                    FoundRun::Ended(record) => (record, false),
                    FoundRun::Live(run) => (Box::new(run.record()), true),
                };
                if goes_on && record.state == RunState::Ended {
                    // The end is a change of its own, and is reported as such.
                    continue;
                }
                return Some(RunUpdate::Run(record));
            }
            if let Some(rest) = self.rest.take() {
                tokio::time::sleep_until(rest.into()).await;
            }
            self.news.mark_unchanged();
            if self.fetch() {
                continue;
            }
            if !self.synced {
                self.synced = true;
                return Some(RunUpdate::Synced);
            }
            if self.news.borrow().is_none() {
                return None;
            }
            self.rest = Some(Instant::now() + REST);
            self.news.changed().await.ok()?;
        }
    }
    /// Looks at the next changes in the registry, and reports whether there was anything.
    fn fetch(&mut self) -> bool {
        let to = if self.synced { u64::MAX } else { self.before };
        if self.seen >= to {
            return false;
        }
        let changes = self.registry.changes(self.seen + 1, to);
        let mut looked = !changes.is_empty();
        for (change, found) in changes {
            self.seen = change;
            if self.selector.has_labels_of(&found) {
                self.look_at(found);
            }
        }
        // A run that the history has forgotten already has ended all the same.
        for run in self.registry.take_forgotten(&mut self.told) {
            self.ready
                .push_back(FoundRun::Ended(Box::new(run.record())));
            looked = true;
        }
        looked || !self.ready.is_empty()
    }

    fn look_at(&mut self, found: FoundRun) {
        let tells = match &found {
            FoundRun::Live(run) => {
                let (number, state) = (run.id.number(), run.state());
                if state == RunState::Ended {
                    // The end is a change of its own, and is looked at as such.
                    return;
                }
                if self.selector.takes(state) {
                    self.told.insert(number, Arc::clone(run));
                    true
                } else {
                    self.told.remove(&number).is_some()
                }
            }
            FoundRun::Ended(record) => {
                let was_told = self.told.remove(&record.id.number()).is_some();
                was_told || self.selector.takes(RunState::Ended)
            }
        };
        if tells {
            self.ready.push_back(found);
        }
    }
}
