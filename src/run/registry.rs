//! All runs that are remembered: those that go on, and a bounded history of those that have ended.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, watch};

use super::keys::Keys;
use super::record::{Run, State};
use crate::log::{Captured, End};
use crate::request::{Labels, RunId};

/// Bytes of records on one page, about: what a client takes in one message, with room to spare.
const PAGE_BYTES: usize = 1 << 20;
/// One in so many runs, and bytes, of the history may be of runs that were refused.
const REFUSED_SHARE: usize = 10;
/// Runs that one page looks at, at the most: a selector that few match ends a page early.
const LOOKED_AT: usize = 10_000;
/// Runs, or changes, that are looked at before others may have the lock.
const BATCH: usize = 64;
/// A watch rests so long between two looks, so that many of them cost little while runs come and go.
const REST: Duration = Duration::from_millis(50);

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
    ended: Past,
    /// Runs that were refused are remembered apart: they cost their callers nothing, and must not crowd out others.
    refused: Past,
}

#[derive(Debug)]
struct Known {
    run: Arc<Run>,
    change: u64,
}

/// Runs that are over, in the order in which they ended.
#[derive(Debug, Default)]
struct Past {
    runs: VecDeque<Gone>,
    bytes: usize,
}

#[derive(Debug)]
struct Gone {
    id: RunId,
    at: Instant,
    weight: usize,
}

impl Past {
    fn push(&mut self, gone: Gone) {
        self.bytes += gone.weight;
        self.runs.push_back(gone);
    }

    /// Takes the oldest where there is more than `runs`, or `bytes`, or one that is older than `age`.
    fn pop_beyond(&mut self, runs: usize, bytes: usize, age: Duration) -> Option<RunId> {
        let oldest = self.runs.front()?;
        let fits = self.runs.len() <= runs && self.bytes <= bytes && oldest.at.elapsed() <= age;
        if fits {
            return None;
        }
        let gone = self.runs.pop_front()?;
        self.bytes -= gone.weight;
        Some(gone.id)
    }
}

/// Which runs are asked for.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// In one of these states, at most as many as there are; none: in any.
    pub states: Vec<State>,
    /// With all of these labels.
    pub labels: Labels,
}

impl Selector {
    fn has_labels_of(&self, run: &Run) -> bool {
        let mut labels = self.labels.iter();
        labels.all(|(key, value)| run.labels.get(key) == Some(value))
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
        // Whoever begins to watch after this looks at every run as it is then.
        if self.news.receiver_count() > 0 {
            self.tell(self.lock(), run);
        }
    }

    /// Ends a run, and forgets what is too much. Whoever learns of the end finds it in the history.
    pub(super) fn end(&self, run: &Arc<Run>, end: End, captured: Option<Captured>) {
        if run.log.started().is_none() {
            self.keys.free(run);
        }
        let mut inner = self.lock();
        // One whose caller left while its module was being read is told of for the first time.
        inner.runs.entry(run.id.clone()).or_insert_with(|| Known {
            run: Arc::clone(run),
            change: 0,
        });
        run.finish(end, captured);
        let gone = Gone {
            id: run.id.clone(),
            at: Instant::now(),
            weight: run.weight(),
        };
        if run.log.started().is_some() {
            inner.ended.push(gone);
        } else {
            inner.refused.push(gone);
        }
        let forgotten = inner.forget(self.history);
        self.tell(inner, run);
        // A record frees its log, which takes locks of its own.
        drop(forgotten);
    }

    /// Forgets a run, whether it has ended or not.
    pub(super) fn remove(&self, id: &RunId) {
        let mut inner = self.lock();
        let ended = &mut inner.ended;
        if let Some(at) = ended.runs.iter().position(|gone| gone.id == *id)
            && let Some(gone) = ended.runs.remove(at)
        {
            ended.bytes -= gone.weight;
        }
        let removed = inner.remove(id);
        drop(inner);
        drop(removed);
    }

    /// Forgets all runs.
    pub(super) fn clear(&self) {
        let forgotten = std::mem::take(&mut *self.lock());
        drop(forgotten);
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
        let (mut found, mut bytes, mut looked) = (Vec::new(), 0, 0);
        let mut before = before;
        loop {
            // A few at a time: those who start and end runs wait for the lock.
            let batch: Vec<Arc<Run>> = {
                let inner = self.lock();
                let end = before.clone().map_or(Unbounded, Excluded);
                let runs = inner.runs.range((Unbounded, end)).rev();
                runs.take(BATCH)
                    .map(|(_, known)| Arc::clone(&known.run))
                    .collect()
            };
            let last = batch.len() < BATCH;
            for run in batch {
                looked += 1;
                let id = run.id.clone();
                before = Some(id.clone());
                if selector.has_labels_of(&run) && selector.takes(run.state()) {
                    bytes += run.weight();
                    found.push(run);
                }
                if found.len() == size || bytes >= PAGE_BYTES || looked == LOOKED_AT {
                    let next = self.has_older(&id).then_some(id);
                    return (found, next);
                }
            }
            if last {
                return (found, None);
            }
        }
    }

    fn has_older(&self, id: &RunId) -> bool {
        self.lock().runs.range(..id.clone()).next().is_some()
    }

    /// Follows the runs that match.
    pub(super) fn watch(
        self: &Arc<Self>,
        selector: Selector,
        place: OwnedSemaphorePermit,
    ) -> Watch {
        // Before anything is looked at: see `changed`.
        let news = self.news.subscribe();
        let until = self.lock().last;
        Watch {
            news,
            registry: Arc::clone(self),
            selector,
            seen: 0,
            until,
            synced: false,
            told: HashMap::new(),
            ready: VecDeque::new(),
            rest: None,
            _place: place,
        }
    }

    /// Ends every watch.
    pub(super) fn close(&self) {
        self.news.send_replace(None);
    }

    /// Runs of the history, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        let Inner { ended, refused, .. } = &*inner;
        let runs = ended.runs.len() + refused.runs.len();
        (runs, ended.bytes + refused.bytes)
    }

    fn tell(&self, mut inner: MutexGuard<'_, Inner>, run: &Run) {
        let Inner {
            runs,
            changes,
            last,
            ..
        } = &mut *inner;
        *last += 1;
        if let Some(known) = runs.get_mut(&run.id) {
            changes.remove(&known.change);
            known.change = *last;
            changes.insert(*last, run.id.clone());
        }
        let last = *last;
        drop(inner);
        if self.news.receiver_count() == 0 {
            // Whoever begins to watch looks at the changes from then on, this one included.
            return;
        }
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
        let History { runs, age, bytes } = history;
        let share = (runs.div_ceil(REFUSED_SHARE), bytes / REFUSED_SHARE);
        let mut forgotten = Vec::new();
        while let Some(id) = self.refused.pop_beyond(share.0, share.1, age) {
            forgotten.extend(self.remove(&id));
        }
        // What the refused take is theirs.
        let rest = (runs - self.refused.runs.len(), bytes - self.refused.bytes);
        while let Some(id) = self.ended.pop_beyond(rest.0, rest.1, age) {
            forgotten.extend(self.remove(&id));
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
    told: HashMap<RunId, Arc<Run>>,
    /// What is to be told, with whether it had ended.
    ready: VecDeque<(Arc<Run>, bool)>,
    rest: Option<Instant>,
    _place: OwnedSemaphorePermit,
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
            if let Some((run, ended)) = self.ready.pop_front() {
                if !ended && run.state() == State::Ended {
                    // That is a change of its own.
                    continue;
                }
                return Some(News::Run(run));
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
                self.told.insert(id.clone(), Arc::clone(run));
                true
            } else {
                self.told.remove(id).is_some()
            };
            if matches || was_told {
                let ended = state == State::Ended;
                self.ready.push_back((Arc::clone(run), ended));
            }
        }
        // One that is forgotten already has ended all the same.
        let ready = &mut self.ready;
        self.told.retain(|id, run| {
            let known = inner.runs.contains_key(id);
            if !known {
                ready.push_back((Arc::clone(run), true));
            }
            known
        });
        looked || !ready.is_empty()
    }
}
