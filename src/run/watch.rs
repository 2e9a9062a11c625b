//! Following the runs of a tenant.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::origin::State;
use super::past::RunRecord;
use super::record::Run;
use super::registry::{Found, Registry, Selector};

/// A watch rests so long between two looks, so that many of them cost little while runs come and go.
const REST: Duration = Duration::from_millis(50);

/// Runs that go on and were told, by their numbers.
pub(super) type Told = HashMap<u128, Arc<Run>>;

/// Follows runs: first all that match, then each that changes. Of one that changes faster than it is followed, the
/// latest is told.
#[derive(Debug)]
pub struct Watch {
    registry: Arc<Registry>,
    news: watch::Receiver<Option<u64>>,
    selector: Selector,
    /// The last change that was looked at.
    seen: u64,
    /// The last change before the watch began.
    before: u64,
    synced: bool,
    /// These are told once more when they do not match any longer.
    told: Told,
    /// What is to be told.
    ready: VecDeque<Found>,
    rest: Option<Instant>,
    _place: OwnedSemaphorePermit,
}

/// What a watch tells.
#[derive(Debug)]
pub enum News {
    /// A run, as it is now.
    Run(Box<RunRecord>),
    /// All that matched from the start were told.
    Synced,
}

impl Watch {
    /// Of `registry`, which tells its `news`, from before its change `before` on.
    pub(super) fn new(
        registry: Arc<Registry>,
        news: watch::Receiver<Option<u64>>,
        selector: Selector,
        before: u64,
        place: OwnedSemaphorePermit,
    ) -> Self {
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

    /// The next piece of news; `None` when the daemon ends.
    pub async fn next(&mut self) -> Option<News> {
        loop {
            if let Some(found) = self.ready.pop_front() {
                let (record, goes_on) = match found {
                    Found::Past(record) => (record, false),
                    Found::Live(run) => (Box::new(run.record()), true),
                };
                if goes_on && record.state == State::Ended {
                    // That is a change of its own.
                    continue;
                }
                return Some(News::Run(record));
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
                return Some(News::Synced);
            }
            if self.news.borrow().is_none() {
                return None;
            }
            self.rest = Some(Instant::now() + REST);
            self.news.changed().await.ok()?;
        }
    }
    /// Looks at the next changes, and says whether there were any.
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
        // One that is forgotten already has ended all the same.
        for run in self.registry.take_forgotten(&mut self.told) {
            self.ready.push_back(Found::Past(Box::new(run.record())));
            looked = true;
        }
        looked || !self.ready.is_empty()
    }

    fn look_at(&mut self, found: Found) {
        let tells = match &found {
            Found::Live(run) => {
                let (number, state) = (run.id.number(), run.state());
                if state == State::Ended {
                    // That is a change of its own.
                    return;
                }
                if self.selector.takes(state) {
                    self.told.insert(number, Arc::clone(run));
                    true
                } else {
                    self.told.remove(&number).is_some()
                }
            }
            Found::Past(record) => {
                let was_told = self.told.remove(&record.id.number()).is_some();
                was_told || self.selector.takes(State::Ended)
            }
        };
        if tells {
            self.ready.push_back(found);
        }
    }
}
