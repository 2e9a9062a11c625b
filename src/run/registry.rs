//! All runs that are remembered: those that go on, and a bounded history of those that have ended.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::watch;

use super::keys::Keys;
use super::record::{Run, State};
use crate::log::End;
use crate::request::RunId;

/// Bytes of records on one page, about: what a client takes in one message, with room to spare.
const PAGE_BYTES: usize = 1 << 20;
/// Changes that a watcher takes at once.
const BATCH: usize = 64;

/// How much history there is.
#[derive(Clone, Copy, Debug)]
pub struct History {
    /// Runs.
    pub runs: usize,
    /// How long each.
    pub age: Duration,
    /// Bytes of their records, logs aside.
    pub bytes: usize,
}

/// The runs.
#[derive(Debug)]
pub(super) struct Registry {
    history: History,
    /// Which key belongs to which run.
    pub(super) keys: Keys,
    inner: Mutex<Inner>,
    /// The number of the last change; closed when no more will come.
    news: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct Inner {
    runs: BTreeMap<RunId, Known>,
    /// The last change of each run, in order: whoever follows sees the latest of each.
    changes: BTreeMap<u64, RunId>,
    last: u64,
    ended: VecDeque<Past>,
    bytes: usize,
}

#[derive(Debug)]
struct Known {
    run: Arc<Run>,
    change: u64,
}

#[derive(Debug)]
struct Past {
    id: RunId,
    at: Instant,
    weight: usize,
}

/// Which runs are asked for.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// In one of these states; none: in any.
    pub states: Vec<State>,
    /// With all of these labels.
    pub labels: BTreeMap<String, String>,
}

impl Selector {
    fn has_labels_of(&self, run: &Run) -> bool {
        let has = |(key, value): (&String, &String)| run.labels.get(key) == Some(value);
        self.labels.iter().all(has)
    }

    fn takes(&self, state: State) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }
}

impl Registry {
    /// With room for `history`, and `keys`.
    pub(super) fn new(history: History, keys: Keys) -> Arc<Self> {
        Arc::new(Self {
            history,
            keys,
            inner: Mutex::default(),
            news: watch::Sender::new(Some(0)),
        })
    }

    /// Takes a run in.
    pub(super) fn add(&self, run: &Arc<Run>) {
        let mut inner = self.lock();
        let known = Known {
            run: Arc::clone(run),
            change: 0,
        };
        inner.runs.insert(run.id.clone(), known);
        self.tell(inner, run);
    }

    /// Notes that a run is not as it was.
    pub(super) fn changed(&self, run: &Run) {
        self.tell(self.lock(), run);
    }

    /// Ends a run, and forgets what is too much. Whoever learns of the end finds it in the history.
    pub(super) fn end(&self, run: &Run, end: End, captured: Option<[Bytes; 2]>) {
        if run.log.started().is_none() {
            self.keys.free(run);
        }
        let mut inner = self.lock();
        run.finish(end, captured);
        let past = Past {
            id: run.id.clone(),
            at: Instant::now(),
            weight: run.weight(),
        };
        inner.bytes += past.weight;
        inner.ended.push_back(past);
        let forgotten = inner.forget(self.history);
        self.tell(inner, run);
        // A record frees its log, which takes locks of its own.
        drop(forgotten);
    }

    /// Forgets a run, whether it has ended or not.
    pub(super) fn remove(&self, id: &RunId) {
        let mut inner = self.lock();
        let at = inner.ended.iter().position(|past| past.id == *id);
        let past = at.and_then(|at| inner.ended.remove(at));
        inner.bytes -= past.map_or(0, |past| past.weight);
        let removed = inner.remove(id);
        drop(inner);
        drop(removed);
    }

    /// Forgets what has grown too old.
    pub(super) fn age(&self) {
        let forgotten = self.lock().forget(self.history);
        drop(forgotten);
        self.keys.age();
    }

    /// One run.
    pub(super) fn find(&self, id: &RunId) -> Option<Arc<Run>> {
        let inner = self.lock();
        inner.runs.get(id).map(|known| Arc::clone(&known.run))
    }

    /// Runs that have not ended.
    pub(super) fn live(&self) -> Vec<Arc<Run>> {
        let inner = self.lock();
        let runs = inner.runs.values().map(|known| &known.run);
        runs.filter(|run| run.state() != State::Ended)
            .cloned()
            .collect()
    }

    /// At most `size` runs that match, the newest first, older than `before`; and where others may follow, the last one
    /// that was looked at.
    pub(super) fn list(
        &self,
        selector: &Selector,
        before: Option<RunId>,
        size: usize,
    ) -> (Vec<Arc<Run>>, Option<RunId>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let inner = self.lock();
        let end = before.map_or(Unbounded, Excluded);
        let (mut found, mut bytes) = (Vec::new(), 0);
        for (id, Known { run, .. }) in inner.runs.range((Unbounded, end)).rev() {
            if !selector.has_labels_of(run) || !selector.takes(run.state()) {
                continue;
            }
            found.push(Arc::clone(run));
            bytes += run.weight();
            if found.len() == size || bytes >= PAGE_BYTES {
                return (found, Some(id.clone()));
            }
        }
        (found, None)
    }

    /// Follows the runs that match.
    pub(super) fn watch(self: &Arc<Self>, selector: Selector) -> Watch {
        let until = self.lock().last;
        Watch {
            news: self.news.subscribe(),
            registry: Arc::clone(self),
            selector,
            seen: 0,
            until,
            synced: false,
            told: HashSet::new(),
            ready: VecDeque::new(),
        }
    }

    /// Ends every watch.
    pub(super) fn close(&self) {
        self.news.send_replace(None);
    }

    /// Runs of the history, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.ended.len(), inner.bytes)
    }

    fn tell(&self, mut inner: MutexGuard<'_, Inner>, run: &Run) {
        let Inner {
            runs,
            changes,
            last,
            ..
        } = &mut *inner;
        // One that is forgotten already is no news.
        let Some(known) = runs.get_mut(&run.id) else {
            return;
        };
        *last += 1;
        changes.remove(&known.change);
        known.change = *last;
        changes.insert(*last, run.id.clone());
        let last = *last;
        drop(inner);
        self.news.send_modify(|news| {
            if let Some(news) = news {
                *news = last.max(*news);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, history: History) -> Vec<Known> {
        let mut forgotten = Vec::new();
        while let Some(oldest) = self.ended.front() {
            let fits = self.ended.len() <= history.runs
                && self.bytes <= history.bytes
                && oldest.at.elapsed() <= history.age;
            if fits {
                break;
            }
            let weight = oldest.weight;
            if let Some(past) = self.ended.pop_front() {
                self.bytes -= weight;
                forgotten.extend(self.remove(&past.id));
            }
        }
        forgotten
    }

    fn remove(&mut self, id: &RunId) -> Option<Known> {
        let known = self.runs.remove(id)?;
        self.changes.remove(&known.change);
        Some(known)
    }
}

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
    until: u64,
    synced: bool,
    /// Runs that go on and were told: they are told once more when they do not match any longer.
    told: HashSet<RunId>,
    ready: VecDeque<Arc<Run>>,
}

/// What a watch tells.
#[derive(Debug)]
pub enum News {
    /// A run, as it is now.
    Run(Arc<Run>),
    /// All that matched from the start were told.
    Synced,
}

impl Watch {
    /// The next piece of news; `None` when the daemon ends.
    pub async fn next(&mut self) -> Option<News> {
        loop {
            if let Some(run) = self.ready.pop_front() {
                return Some(News::Run(run));
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
            self.news.changed().await.ok()?;
        }
    }

    /// Looks at the next changes, and says whether there were any.
    fn fetch(&mut self) -> bool {
        let inner = self.registry.lock();
        let (from, to) = match self.synced {
            false => (self.seen + 1, self.until),
            true => (self.seen + 1, u64::MAX),
        };
        if from > to {
            return false;
        }
        let mut looked = false;
        for (change, id) in inner.changes.range(from..=to).take(BATCH) {
            looked = true;
            self.seen = *change;
            let Some(Known { run, .. }) = inner.runs.get(id) else {
                continue;
            };
            if !self.selector.has_labels_of(run) {
                continue;
            }
            let state = run.state();
            let matches = self.selector.takes(state);
            let was_told = if matches && state != State::Ended {
                self.told.insert(id.clone());
                true
            } else {
                self.told.remove(id)
            };
            if matches || was_told {
                self.ready.push_back(Arc::clone(run));
            }
        }
        looked
    }
}
