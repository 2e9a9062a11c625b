//! All runs that are remembered: those that go on, and a bounded history of those that have ended.
//!
//! Runs that go on stand in a slab. Those that have ended stand in two [rings](Ring), one of them for those that never
//! started, as [`PastRun`]s with their output; an ordered index leads from a run's number to its place, and lists the
//! newest first. A run that has ended stays whole for as long as somebody holds on to it, and where it has an idempotency
//! key; it is packed into its place when the last one leaves, and is made whole again for whoever reads its output later.
//!
//! Where several locks are held, they are taken in this order: the registry's, a run's, its log's, the pool's of logs.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use slab::Slab;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::keys::Keys;
use super::origin::State;
use super::past::{PastRun, RunRecord, weight};
use super::record::Run;
use super::ring::{Bounds, Ring};
use super::tenant::Tenant;
use super::watch::{Told, Watch};
use crate::log::{Captured, End, KeptOutput, Pool};
use crate::request::{Labels, RunId};

/// Bytes of records on one page, about: what a client takes in one message, with room to spare.
const PAGE_BYTES: usize = 1 << 20;
/// One in so many runs, and bytes, of the history may be of runs that were refused.
const REFUSED_SHARE: usize = 10;
/// Runs that one page looks at, at the most: a selector that few match ends a page early.
const LOOKED_AT: usize = 10_000;
/// Runs, or changes, that are looked at before others may have the lock.
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

/// The runs of one tenant.
#[derive(Debug)]
pub(super) struct Registry {
    /// What holds them.
    instance: Arc<str>,
    history: History,
    /// Which key belongs to which run.
    pub(super) keys: Keys,
    /// What the output is charged to.
    logs: Arc<Pool>,
    inner: Mutex<Inner>,
    /// The number of the last change; closed when no more will come.
    news: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Where each run is, by its number.
    index: BTreeMap<u128, Place>,
    live: Slab<Live>,
    /// The number of the last change.
    last: u64,
    ended: Ring<Past>,
    /// Runs that were refused are remembered apart: they cost their callers nothing, and must not crowd out others. None
    /// of them has output.
    refused: Ring<Past>,
    /// The place in `ended` before which no output is kept.
    first_kept: u64,
}

/// A run that goes on, and its last change.
#[derive(Debug)]
struct Live {
    run: Arc<Run>,
    change: u64,
}

/// A run that has ended. That was its last change: a ring is in the order of these too.
#[derive(Debug)]
struct Past {
    run: PastRun,
    change: u64,
    /// Its output, where it is not whole.
    kept: KeptOutput,
    whole: Option<Arc<Run>>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Live(usize),
    Ended(u64),
    Refused(u64),
}

/// A run that was looked up.
#[derive(Debug)]
pub(super) enum Found {
    Live(Arc<Run>),
    /// It has ended.
    Past(Box<RunRecord>),
}

impl Found {
    /// What is known of it now.
    pub(super) fn record(self) -> RunRecord {
        match self {
            Self::Live(run) => run.record(),
            Self::Past(record) => *record,
        }
    }

    fn labels(&self) -> &Labels {
        match self {
            Self::Live(run) => &run.labels,
            Self::Past(record) => &record.labels,
        }
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
    pub(super) fn has_labels_of(&self, run: &Found) -> bool {
        let (mut labels, of) = (self.labels.iter(), run.labels());
        labels.all(|(key, value)| of.get(key) == Some(value))
    }

    pub(super) fn takes(&self, state: State) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }
}

impl Registry {
    /// Of runs that `instance` holds, with room for `history`, and `keys`; their output is charged to `logs`.
    pub(super) fn new(
        instance: Arc<str>,
        history: History,
        keys: Keys,
        logs: &Arc<Pool>,
    ) -> Arc<Self> {
        let registry = Arc::new(Self {
            instance,
            history,
            keys,
            logs: Arc::clone(logs),
            inner: Mutex::default(),
            news: watch::Sender::new(Some(0)),
        });
        let giver = Arc::downgrade(&registry);
        logs.set_history(move || giver.upgrade().is_some_and(|it| it.let_output_go()));
        registry
    }

    /// Takes a run in.
    pub(super) fn add(&self, run: &Arc<Run>) {
        let mut inner = self.lock();
        inner.last += 1;
        let change = inner.last;
        let key = inner.live.insert(Live {
            run: Arc::clone(run),
            change,
        });
        inner.index.insert(run.id.number(), Place::Live(key));
        drop(inner);
        self.tell(change);
    }

    /// Notes that a run is not as it was.
    pub(super) fn changed(&self, run: &Run) {
        // Whoever begins to watch after this looks at every run as it is then.
        if self.news.receiver_count() == 0 {
            return;
        }
        let mut inner = self.lock();
        inner.last += 1;
        let change = inner.last;
        if let Some(Place::Live(key)) = inner.index.get(&run.id.number()).copied()
            && let Some(live) = inner.live.get_mut(key)
        {
            live.change = change;
        }
        drop(inner);
        self.tell(change);
    }

    /// Ends a run, and forgets what is too much. Whoever learns of the end finds it in the history.
    pub(super) fn end(&self, run: &Arc<Run>, end: End, captured: Option<Captured>) {
        let started = run.log.started();
        if started.is_none() {
            self.keys.free(run);
        }
        let (at, now) = (SystemTime::now(), Instant::now());
        let end = Arc::new(end);
        let weight = weight(&run.labels, Some(&end));
        let mut past = Past {
            run: PastRun::of(run, started, at, &end),
            change: 0,
            kept: KeptOutput::default(),
            whole: Some(Arc::clone(run)),
        };
        let mut inner = self.lock();
        inner.last += 1;
        let change = inner.last;
        past.change = change;
        let most = self.history.runs;
        let place = match started {
            Some(_) => Place::Ended(inner.ended.push(past, now, weight, most)),
            None => Place::Refused(inner.refused.push(past, now, weight, most)),
        };
        // One whose caller left while its module was being read was never taken in.
        if let Some(Place::Live(key)) = inner.index.insert(run.id.number(), place) {
            inner.live.try_remove(key);
        }
        inner.forget(self.history, now, &self.logs);
        drop(inner);
        run.finish(at, end, captured);
        self.tell(change);
    }

    /// Packs the output of a run that has ended into its place, where nobody holds on to the run any more.
    pub(super) fn pack(&self, run: &Run) {
        let mut inner = self.lock();
        let packed = inner.pack(run.id.number());
        drop(inner);
        drop(packed);
        self.logs.make_room();
    }

    /// Hands a run to `view`, whole, in the moment in which it says whether it holds on to it.
    pub(super) fn view<T, E>(
        &self,
        tenant: &Arc<Tenant>,
        id: &RunId,
        view: impl FnOnce(&Arc<Run>) -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let mut inner = self.lock();
        let run = match *inner.index.get(&id.number())? {
            Place::Live(key) => Arc::clone(&inner.live.get(key)?.run),
            place @ (Place::Ended(_) | Place::Refused(_)) => {
                let past = inner.past_mut(place)?;
                let Past {
                    run, kept, whole, ..
                } = past;
                let reopen = || run.reopen(&self.instance, tenant, std::mem::take(kept));
                Arc::clone(whole.get_or_insert_with(reopen))
            }
        };
        let viewed = view(&run);
        if viewed.is_err() {
            inner.pack(id.number());
        }
        Some(viewed)
    }

    /// Forgets all runs.
    pub(super) fn clear(&self) {
        let nothing = History {
            runs: 0,
            age: Duration::ZERO,
            bytes: 0,
        };
        let mut inner = self.lock();
        inner.forget(nothing, Instant::now(), &self.logs);
        let live = std::mem::take(&mut inner.live);
        inner.index.clear();
        drop(inner);
        drop(live);
    }

    /// Forgets what has grown too old.
    pub(super) fn age(&self) {
        let mut inner = self.lock();
        inner.forget(self.history, Instant::now(), &self.logs);
        inner.ended.shrink();
        inner.refused.shrink();
        drop(inner);
        self.keys.age();
    }

    /// One run.
    pub(super) fn find(&self, id: &RunId) -> Option<Found> {
        let inner = self.lock();
        let place = inner.index.get(&id.number())?;
        inner.found(*place, &self.instance)
    }

    /// Runs that have not ended.
    pub(super) fn live(&self) -> Vec<Arc<Run>> {
        let inner = self.lock();
        let runs = inner.live.iter().map(|(_, live)| &live.run);
        runs.cloned().collect()
    }

    /// At most `size` runs that match, the newest first, older than `before`; and where others may follow, the last one
    /// that was looked at.
    pub(super) fn list(
        &self,
        selector: &Selector,
        before: Option<RunId>,
        size: usize,
    ) -> (Vec<RunRecord>, Option<RunId>) {
        let (mut page, mut bytes, mut looked) = (Vec::new(), 0, 0);
        let mut end = match before {
            None => Unbounded,
            // One of another instance stands between two of this one.
            Some(id) if id.instance() > &*self.instance => Included(id.number()),
            Some(id) => Excluded(id.number()),
        };
        loop {
            // A few at a time: those who start and end runs wait for the lock.
            let batch: Vec<(u128, Found)> = {
                let inner = self.lock();
                let places = inner.index.range((Unbounded, end)).rev().take(BATCH);
                let found = places.filter_map(|(number, place)| {
                    Some((*number, inner.found(*place, &self.instance)?))
                });
                found.collect()
            };
            let last = batch.len() < BATCH;
            for (number, found) in batch {
                looked += 1;
                end = Excluded(number);
                if selector.has_labels_of(&found) {
                    let record = found.record();
                    if selector.takes(record.state) {
                        bytes += record.weight;
                        page.push(record);
                    }
                }
                if page.len() == size || bytes >= PAGE_BYTES || looked == LOOKED_AT {
                    let next = self.has_older(number);
                    return (page, next.then(|| RunId::of(number, &self.instance)));
                }
            }
            if last {
                return (page, None);
            }
        }
    }

    fn has_older(&self, number: u128) -> bool {
        self.lock().index.range(..number).next().is_some()
    }

    /// Follows the runs that match.
    pub(super) fn watch(
        self: &Arc<Self>,
        selector: Selector,
        place: OwnedSemaphorePermit,
    ) -> Watch {
        // Before anything is looked at: see `changed`.
        let news = self.news.subscribe();
        let last = self.lock().last;
        Watch::new(Arc::clone(self), news, selector, last, place)
    }

    /// The first few changes numbered from `from` to `to`, in order, each the last one of its run.
    pub(super) fn changes(&self, from: u64, to: u64) -> Vec<(u64, Found)> {
        let inner = self.lock();
        let mut changes: Vec<(u64, Place)> = Vec::new();
        let live = inner.live.iter();
        changes.extend(live.map(|(key, live)| (live.change, Place::Live(key))));
        changes.retain(|(change, _)| (from..=to).contains(change));
        let places: [fn(u64) -> Place; 2] = [Place::Ended, Place::Refused];
        for (ring, place) in [&inner.ended, &inner.refused].into_iter().zip(places) {
            let past = ring.after(|past| past.change < from).take(BATCH);
            let past = past.map_while(|(number, past)| {
                (past.change <= to).then_some((past.change, place(number)))
            });
            changes.extend(past);
        }
        changes.sort_unstable_by_key(|(change, _)| *change);
        changes.truncate(BATCH);
        let found = changes
            .into_iter()
            .filter_map(|(change, place)| Some((change, inner.found(place, &self.instance)?)));
        found.collect()
    }

    /// Takes those out of `told` that have ended and are forgotten.
    pub(super) fn take_forgotten(&self, told: &mut Told) -> Vec<Arc<Run>> {
        let inner = self.lock();
        let gone = told.extract_if(|number, run| {
            // One that is about to end is told of again when it has.
            !inner.index.contains_key(number) && run.log.end().is_some()
        });
        gone.map(|(_, run)| run).collect()
    }

    /// Ends every watch.
    pub(super) fn close(&self) {
        self.news.send_replace(None);
    }

    /// Runs of the history, and their bytes.
    pub(super) fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        let Inner { ended, refused, .. } = &*inner;
        (ended.len() + refused.len(), ended.bytes() + refused.bytes())
    }

    /// Lets the oldest output of the history go; false where there is none.
    fn let_output_go(&self) -> bool {
        let mut inner = self.lock();
        let Inner {
            ended, first_kept, ..
        } = &mut *inner;
        *first_kept = ended.numbers().start.max(*first_kept);
        while let Some(past) = ended.get_mut(*first_kept) {
            *first_kept += 1;
            if past.kept.is_held() {
                past.kept.let_go(&self.logs);
                return true;
            }
        }
        false
    }

    /// Tells those who watch of a change.
    fn tell(&self, change: u64) {
        if self.news.receiver_count() == 0 {
            // Whoever begins to watch looks at the changes from then on, this one included.
            return;
        }
        self.news.send_modify(|news| {
            if let Some(news) = news {
                *news = change.max(*news);
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn found(&self, place: Place, instance: &str) -> Option<Found> {
        let (past, weight) = match place {
            Place::Live(key) => return Some(Found::Live(Arc::clone(&self.live.get(key)?.run))),
            Place::Ended(number) => self.ended.get(number)?,
            Place::Refused(number) => self.refused.get(number)?,
        };
        Some(Found::Past(Box::new(past.run.record(instance, weight))))
    }

    fn past_mut(&mut self, place: Place) -> Option<&mut Past> {
        match place {
            Place::Live(_) => None,
            Place::Ended(number) => self.ended.get_mut(number),
            Place::Refused(number) => self.refused.get_mut(number),
        }
    }

    /// Packs the output of a run away, where it has ended and nobody holds on to it; the run is for the caller to drop
    /// when the lock is let go.
    fn pack(&mut self, number: u128) -> Option<Arc<Run>> {
        let place = *self.index.get(&number)?;
        let past = self.past_mut(place)?;
        let whole = past.whole.take_if(|run| run.may_be_packed())?;
        past.kept = whole.log.pack();
        if let Place::Ended(number) = place {
            self.first_kept = self.first_kept.min(number);
        }
        Some(whole)
    }

    /// Forgets what is too much, or too old.
    fn forget(&mut self, history: History, now: Instant, logs: &Pool) {
        let History { runs, age, bytes } = history;
        let share = Bounds {
            places: runs.div_ceil(REFUSED_SHARE),
            bytes: bytes / REFUSED_SHARE,
            age,
        };
        while let Some(mut past) = self.refused.pop_beyond(share, now) {
            self.index.remove(&past.run.number);
            past.kept.let_go(logs);
        }
        // What the refused take is theirs.
        let rest = Bounds {
            places: runs - self.refused.len(),
            bytes: bytes - self.refused.bytes(),
            age,
        };
        while let Some(mut past) = self.ended.pop_beyond(rest, now) {
            self.index.remove(&past.run.number);
            past.kept.let_go(logs);
        }
    }
}

#[cfg(test)]
mod tests;
