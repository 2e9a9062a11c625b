//! The registry of a tenant's runs: those in flight, and a bounded history of those that have
//! ended, from which the oldest is evicted first.
//!
//! Runs in flight are kept in a slab. Runs that have ended are kept as [`ArchivedRun`]s with their
//! output in two [rings](HistoryRing), one of them for runs that were refused before they started.
//! An ordered index maps the number of a run to its place, and lists the newest first. An ended run
//! stays whole while somebody holds on to it, or if it has an idempotency key. Otherwise it is
//! packed into its place when the last holder leaves, and is made whole again for whoever reads its
//! output later.
//!
//! Where several locks are held, they are taken in this order: the registry's, a run's, its log's,
//! and the one of the budget for logs.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use slab::Slab;
use tokio::sync::watch;

use super::archive_feed::{ArchiveFeed, EndedRun};
use super::archived::ArchivedRun;
use super::history_ring::{HistoryRing, RingBounds};
use super::idempotency::IdempotencyKeys;
use super::origin::RunState;
use super::record::{LeftRun, Run};
use super::snapshot::{RunRecord, weight};
use crate::archive::ArchiveMark;
use crate::event_log::{Event, EventLog, EventLogBudget, PackedOutput, RunEnd};
use crate::model::request::{Labels, RunId, TimeRange};
use crate::sync::lock;

mod removal;

pub(super) use self::removal::DeletedBatch;

/// The approximate limit of one page of records, in bytes: what a client accepts in one message,
/// with room to spare.
const PAGE_BYTES: usize = 1 << 20;
/// Refused runs may fill one part in this many of the history, by runs and by bytes.
const REFUSED_SHARE: usize = 10;
/// The most runs that one page looks at: where few match the selector, the page ends early.
const LOOKED_AT: usize = 10_000;
/// The most runs, or changes, that are looked at before the lock is released for others.
const BATCH: usize = 64;

/// The bounds of the history of runs that have ended.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    /// The most runs that are remembered.
    pub runs: usize,
    /// How long each run is remembered after its end.
    pub age: Duration,
    /// The most bytes that their records take, not counting logs.
    pub bytes: usize,
}

/// The runs of one tenant, in flight and ended, with their idempotency keys.
#[derive(Debug)]
pub(super) struct Registry {
    /// The name of the daemon instance that holds the runs.
    instance: Arc<str>,
    /// The name of the tenant whose runs these are.
    tenant: Arc<str>,
    history: HistoryLimits,
    /// The idempotency keys, each of which belongs to one run.
    pub(super) keys: IdempotencyKeys,
    /// The budget that the output of the runs is charged to.
    logs: Arc<EventLogBudget>,
    /// Bytes of one run's log.
    log_bytes: usize,
    /// What hands the runs that have ended to the archive, where there is one.
    archive: Option<Arc<ArchiveFeed>>,
    /// Bytes of the tenant's runs that wait for the archive.
    archive_share: Arc<AtomicUsize>,
    inner: Mutex<Inner>,
    /// The number of the last change, for those who watch; `None` when no more will come.
    news: watch::Sender<Option<u64>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// The place of each run, by the run's number.
    index: BTreeMap<u128, RunLocation>,
    live: Slab<Live>,
    /// The number of the last change of any run.
    last: u64,
    ended: HistoryRing<HistoryEntry>,
    /// Runs that were refused before they started. They are remembered apart, since they cost their
    /// callers nothing and must not crowd out others. None of them has output.
    refused: HistoryRing<HistoryEntry>,
    /// The number of the place in `ended` before which no output is kept.
    first_kept: u64,
}

/// A run in flight, and the number of its last change.
#[derive(Debug)]
struct Live {
    run: Arc<Run>,
    change: u64,
}

/// A run that has ended. Its end was its last change, so a ring is in the order of changes.
#[derive(Debug)]
struct HistoryEntry {
    run: ArchivedRun,
    /// Its output, packed, while it is not `whole`.
    kept: PackedOutput,
    whole: Option<Arc<Run>>,
}

#[derive(Clone, Copy, Debug)]
enum RunLocation {
    Live(usize),
    Ended(u64),
    Refused(u64),
}

/// The result of looking up a run.
#[derive(Debug)]
pub(super) enum FoundRun {
    Live(Arc<Run>),
    /// The run has ended; this is its record.
    Ended(Box<RunRecord>),
}

impl FoundRun {
    /// Returns the record of the run as it is now.
    pub(super) fn record(self) -> RunRecord {
        match self {
            Self::Live(run) => run.record(),
            Self::Ended(record) => *record,
        }
    }

    fn labels(&self) -> &Labels {
        match self {
            Self::Live(run) => &run.labels,
            Self::Ended(record) => &record.labels,
        }
    }
}

/// A filter for runs, by state and by labels.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// The states in which a run matches, at most as many as there are states. If this is empty,
    /// any state matches.
    pub states: Vec<RunState>,
    /// The labels, all of which a run must have to match.
    pub labels: Labels,
}

impl Selector {
    pub(super) fn has_labels_of(&self, run: &FoundRun) -> bool {
        self.is_among(run.labels())
    }

    /// Reports whether a run with `labels` has all that are asked for.
    pub(super) fn is_among(&self, labels: &Labels) -> bool {
        self.labels.are_among(labels)
    }

    pub(super) fn takes(&self, state: RunState) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }
}

impl Registry {
    /// Creates an empty registry for the runs of a tenant on `instance`. The output of its runs is
    /// charged to `logs`, which evicts the oldest output of the history when room is needed.
    pub(super) fn new(
        instance: Arc<str>,
        tenant: Arc<str>,
        history: HistoryLimits,
        keys: IdempotencyKeys,
        (logs, log_bytes): (&Arc<EventLogBudget>, usize),
        archive: Option<Arc<ArchiveFeed>>,
    ) -> Arc<Self> {
        let registry = Arc::new(Self {
            instance,
            tenant,
            history,
            keys,
            logs: Arc::clone(logs),
            log_bytes,
            archive,
            archive_share: Arc::default(),
            inner: Mutex::default(),
            news: watch::Sender::new(Some(0)),
        });
        let giver = Arc::downgrade(&registry);
        logs.set_history(move || giver.upgrade().is_some_and(|it| it.evict_oldest_output()));
        registry
    }

    /// Adds a run in flight, and tells those who watch.
    pub(super) fn add(&self, run: &Arc<Run>) {
        let mut inner = self.lock();
        inner.last += 1;
        let change = inner.last;
        let key = inner.live.insert(Live {
            run: Arc::clone(run),
            change,
        });
        inner.index.insert(run.id.number(), RunLocation::Live(key));
        drop(inner);
        self.tell(change);
    }

    /// Records that a run in flight has changed, for those who watch.
    pub(super) fn changed(&self, run: &Run) {
        // Nobody watches. Whoever begins to watch after this looks at every run as it is then.
        if self.news.receiver_count() == 0 {
            return;
        }
        let mut inner = self.lock();
        inner.last += 1;
        let change = inner.last;
        if let Some(RunLocation::Live(key)) = inner.index.get(&run.id.number()).copied()
            && let Some(live) = inner.live.get_mut(key)
        {
            live.change = change;
        }
        drop(inner);
        self.tell(change);
    }

    /// Ends a run: moves it into the history, evicts what is then beyond the bounds, and tells
    /// those who watch. Whoever learns of the end finds the run in the history.
    pub(super) fn end(&self, run: &Arc<Run>, end: RunEnd) {
        let started = run.log.started();
        if started.is_none() {
            self.keys.free(run);
        }
        run.forget_if_left();
        let (at, now) = (SystemTime::now(), Instant::now());
        let end = Arc::new(end);
        let weight = weight(&run.labels, Some(&end));
        let archived = self.archive.as_ref().and_then(|it| it.take(run, &end));
        let (mark, output) = archived.unzip();
        let archived = ArchivedRun::of(run, started, at, &end, mark.clone());
        self.archive_run(&archived, weight, mark, output);
        let past = HistoryEntry {
            run: archived,
            kept: PackedOutput::default(),
            whole: Some(Arc::clone(run)),
        };
        let mut inner = self.lock();
        inner.last += 1;
        let change = inner.last;
        let (came, most) = ((now, weight), self.history.runs);
        let place = match started {
            Some(_) => RunLocation::Ended(inner.ended.push(past, change, came, most)),
            None => RunLocation::Refused(inner.refused.push(past, change, came, most)),
        };
        // A run whose caller left while its module was being read was never added.
        if let Some(RunLocation::Live(key)) = inner.index.insert(run.id.number(), place) {
            inner.live.try_remove(key);
        }
        inner.forget(self.history, now, &self.logs);
        drop(inner);
        if let Some(left) = run.finish(at, end) {
            self.settle(run, left);
        }
        self.tell(change);
    }

    /// Hands a run that ends to the archive, with its `output`, where it is to be archived.
    fn archive_run(
        &self,
        run: &ArchivedRun,
        weight: usize,
        mark: Option<Arc<ArchiveMark>>,
        output: Option<Vec<Event>>,
    ) {
        if let (Some(feed), Some(mark), Some(output)) = (&self.archive, mark, output) {
            let ended = EndedRun {
                tenant: Arc::clone(&self.tenant),
                record: run.record(&self.instance, weight),
                output,
            };
            feed.offer(ended, mark, &self.archive_share);
        }
    }

    /// Packs a run away where it is to be, and then releases what it kept for its callers.
    pub(super) fn settle(&self, run: &Run, left: LeftRun) {
        if left.is_to_be_packed {
            self.pack(run);
        }
    }

    /// Packs the output of an ended run into its place in the history, where nobody holds on to the
    /// run any more.
    fn pack(&self, run: &Run) {
        let mut inner = self.lock();
        let packed = inner.pack(run.id.number());
        drop(inner);
        drop(packed);
        self.logs.make_room();
    }

    /// Passes a run to `view`, whole: it is unpacked first where it was packed. `view` is called
    /// under the lock, so that nobody packs the run before `view` has taken hold of it. If `view`
    /// fails, the run is packed again, unless somebody else holds on to it. Returns `None` where
    /// the run is not known.
    pub(super) fn view<T, E>(
        &self,
        id: &RunId,
        view: impl FnOnce(&Arc<Run>) -> Result<T, E>,
    ) -> Option<Result<T, E>> {
        let mut inner = self.lock();
        let run = match *inner.index.get(&id.number())? {
            RunLocation::Live(key) => Arc::clone(&inner.live.get(key)?.run),
            place @ (RunLocation::Ended(_) | RunLocation::Refused(_)) => {
                let past = inner.past_mut(place)?;
                let HistoryEntry {
                    run, kept, whole, ..
                } = past;
                let reopen_log = |started, end, kept| {
                    EventLog::reopen(self.log_bytes, Arc::clone(&self.logs), started, end, kept)
                };
                let reopen = || {
                    let kept = std::mem::take(kept);
                    run.reopen(&self.instance, &self.tenant, kept, reopen_log)
                };
                Arc::clone(whole.get_or_insert_with(reopen))
            }
        };
        let viewed = view(&run);
        if viewed.is_err() {
            inner.pack(id.number());
        }
        Some(viewed)
    }

    /// Evicts ended runs and idempotency keys that have grown too old, and releases memory that the
    /// rings do not need.
    pub(super) fn age(&self) {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.forget(self.history, now, &self.logs);
        inner.ended.shrink();
        inner.refused.shrink();
        drop(inner);
        self.keys.age(now);
    }

    /// Looks up one run; returns `None` where it is not known.
    pub(super) fn find(&self, id: &RunId) -> Option<FoundRun> {
        let inner = self.lock();
        let place = inner.index.get(&id.number())?;
        inner.found(*place, &self.instance)
    }

    /// Returns the runs in flight.
    pub(super) fn live(&self) -> Vec<Arc<Run>> {
        let inner = self.lock();
        let runs = inner.live.iter().map(|(_, live)| &live.run);
        runs.cloned().collect()
    }

    /// Returns at most `size` runs that match, were asked for within `asked`, and are older than
    /// `before`, the newest first. The second value is the last run that was looked at, where
    /// others may follow.
    pub(super) fn list(
        &self,
        selector: &Selector,
        asked: TimeRange,
        before: Option<RunId>,
        size: usize,
    ) -> (Vec<RunRecord>, Option<RunId>) {
        let (mut page, mut bytes, mut looked) = (Vec::new(), 0, 0);
        let first = asked.first_number();
        let before = before.map(|id| {
            // A run of another instance may stand between two of this one.
            let is_later = id.instance() > &*self.instance;
            id.number().saturating_add(u128::from(is_later))
        });
        let mut end = match (before, asked.end_number()) {
            (Some(before), Some(end)) => Some(before.min(end)),
            (before, end) => before.or(end),
        };
        loop {
            // The lock is taken for a few runs at a time, since those who start and end runs wait
            // for it.
            let batch: Vec<(u128, FoundRun)> = {
                let inner = self.lock();
                let places = inner.newest_first(first, end).take(BATCH);
                let found = places.filter_map(|(number, place)| {
                    Some((number, inner.found(place, &self.instance)?))
                });
                found.collect()
            };
            let last = batch.len() < BATCH;
            for (number, found) in batch {
                looked += 1;
                end = Some(number);
                if selector.has_labels_of(&found) {
                    let record = found.record();
                    if selector.takes(record.state) {
                        bytes += record.weight;
                        page.push(record);
                    }
                }
                if page.len() == size || bytes >= PAGE_BYTES || looked == LOOKED_AT {
                    let next = self.lock().newest_first(first, end).next().is_some();
                    return (page, next.then(|| RunId::of(number, &self.instance)));
                }
            }
            if last {
                return (page, None);
            }
        }
    }

    /// Subscribes to changes: returns the number of the last one, which is closed when no more will
    /// come, and the last change before the subscription.
    pub(super) fn subscribe(&self) -> (watch::Receiver<Option<u64>>, u64) {
        // Before anything is looked at: see `changed`.
        let news = self.news.subscribe();
        let last = self.lock().last;
        (news, last)
    }

    /// Returns the first changes numbered from `from` to `to`, in order and at most [`BATCH`] of
    /// them. Only the last change of each run counts.
    pub(super) fn changes(&self, from: u64, to: u64) -> Vec<(u64, FoundRun)> {
        let inner = self.lock();
        let mut changes: Vec<(u64, RunLocation)> = Vec::new();
        let live = inner.live.iter();
        changes.extend(live.map(|(key, live)| (live.change, RunLocation::Live(key))));
        changes.retain(|(change, _)| (from..=to).contains(change));
        let places: [fn(u64) -> RunLocation; 2] = [RunLocation::Ended, RunLocation::Refused];
        for (ring, place) in [&inner.ended, &inner.refused].into_iter().zip(places) {
            let past = ring.after(from).take(BATCH);
            let past = past
                .map_while(|(number, change, _)| (change <= to).then_some((change, place(number))));
            changes.extend(past);
        }
        changes.sort_unstable_by_key(|(change, _)| *change);
        changes.truncate(BATCH);
        let found = changes
            .into_iter()
            .filter_map(|(change, place)| Some((change, inner.found(place, &self.instance)?)));
        found.collect()
    }

    /// Removes from `told`, and returns, the runs that have ended and been evicted from the
    /// history.
    pub(super) fn take_forgotten(&self, told: &mut HashMap<u128, Arc<Run>>) -> Vec<Arc<Run>> {
        let inner = self.lock();
        let gone = told.extract_if(|number, run| {
            // A run that is about to end is told of again when it has ended.
            !inner.index.contains_key(number) && run.log.end().is_some()
        });
        gone.map(|(_, run)| run).collect()
    }

    /// Ends every watch of this registry: no more changes will come.
    pub(super) fn close(&self) {
        self.news.send_replace(None);
    }

    /// Returns the number of runs in flight.
    pub(super) fn live_count(&self) -> u64 {
        self.lock().live.len() as u64
    }

    /// Returns the number of runs in the history, and the bytes that their records take.
    pub(super) fn size(&self) -> (usize, usize) {
        let inner = self.lock();
        let Inner { ended, refused, .. } = &*inner;
        (ended.len() + refused.len(), ended.bytes() + refused.bytes())
    }

    /// Evicts the oldest output of the history; returns false where there is none left.
    fn evict_oldest_output(&self) -> bool {
        let mut inner = self.lock();
        let Inner {
            ended, first_kept, ..
        } = &mut *inner;
        while let Some((number, past)) = ended.first_mut(*first_kept) {
            *first_kept = number + 1;
            if past.kept.is_held() {
                past.kept.evict(&self.logs);
                return true;
            }
        }
        false
    }

    /// Tells those who watch of a change, by its number.
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
        lock(&self.inner)
    }
}

impl Inner {
    /// Iterates over the runs whose numbers are `first` or larger and smaller than `end`, the
    /// newest first.
    fn newest_first(
        &self,
        first: u128,
        end: Option<u128>,
    ) -> impl Iterator<Item = (u128, RunLocation)> {
        // The map panics at a range that ends before it begins, and such a range has no runs.
        let first = end.map_or(first, |end| first.min(end));
        let range = (Included(first), end.map_or(Unbounded, Excluded));
        let places = self.index.range(range).rev();
        places.map(|(number, place)| (*number, *place))
    }

    fn found(&self, place: RunLocation, instance: &str) -> Option<FoundRun> {
        let (past, weight) = match place {
            RunLocation::Live(key) => {
                return Some(FoundRun::Live(Arc::clone(&self.live.get(key)?.run)));
            }
            RunLocation::Ended(number) => self.ended.get(number)?,
            RunLocation::Refused(number) => self.refused.get(number)?,
        };
        Some(FoundRun::Ended(Box::new(past.run.record(instance, weight))))
    }

    fn past_mut(&mut self, place: RunLocation) -> Option<&mut HistoryEntry> {
        match place {
            RunLocation::Live(_) => None,
            RunLocation::Ended(number) => self.ended.get_mut(number),
            RunLocation::Refused(number) => self.refused.get_mut(number),
        }
    }

    /// Packs the output of a run, where it has ended and nobody holds on to it. Returns the whole
    /// run, so that the caller can drop it after the lock is released.
    fn pack(&mut self, number: u128) -> Option<Arc<Run>> {
        let place = *self.index.get(&number)?;
        let past = self.past_mut(place)?;
        let whole = past.whole.take_if(|run| run.may_be_packed())?;
        past.kept = whole.log.pack();
        if let RunLocation::Ended(number) = place {
            self.first_kept = self.first_kept.min(number);
        }
        Some(whole)
    }

    /// Evicts the oldest runs that are beyond the bounds of `history`, or too old.
    fn forget(&mut self, history: HistoryLimits, now: Instant, logs: &EventLogBudget) {
        let HistoryLimits { runs, age, bytes } = history;
        let share = RingBounds {
            places: runs.div_ceil(REFUSED_SHARE),
            bytes: bytes / REFUSED_SHARE,
            age,
        };
        while let Some(mut past) = self.refused.pop_beyond(share, now) {
            self.index.remove(&past.run.number);
            past.kept.evict(logs);
        }
        // The room that refused runs take is theirs; the others have the rest.
        let rest = RingBounds {
            places: runs - self.refused.len(),
            bytes: bytes - self.refused.bytes(),
            age,
        };
        while let Some(mut past) = self.ended.pop_beyond(rest, now) {
            self.index.remove(&past.run.number);
            past.kept.evict(logs);
        }
    }
}

#[cfg(test)]
mod tests;
