//! Removes runs from the archive: those that somebody deletes, and those that have grown too old or
//! too many.
//!
//! A segment never changes. To delete runs of a segment N, its replacement R, which is N without
//! them and whose name follows from N's, is created unless it is there; then N's tombstone is
//! written, which has a hash of N; then N is deleted. Any number of daemons do so at once, stop
//! between any two steps, or are slow. What holds all the while:
//!
//! - A tombstone of N is written only after R was there. So with it there is R, or R's tombstone,
//!   and so on to a segment that has none: the runs that stay are always in one that holds. Nobody
//!   removes a tombstone but the retention, with all of its hour.
//! - N is deleted only after its tombstone is there. So whoever is slow, and creates R once more
//!   after it was replaced and deleted, finds R's tombstone, and deletes R again, which may have
//!   runs that others deleted in the meantime. Until then, or for good if they are killed, no
//!   listing takes R for a segment, because of its tombstone. The next deletion in the hour deletes
//!   such a segment.
//! - The first to create R may find R's tombstone as well, where R was replaced at once. The
//!   tombstone has the hash of the R that it is of, which tells the two apart.
//! - A deletion is acknowledged when each segment of a listing that holds has none of its runs, or
//!   was replaced by one without them. A run can come back only in the first R of an N that held
//!   then, and this is what the deletion has written itself.
//! - Whoever finds R there, or its tombstone, has deleted none of their own runs. They finish what
//!   the other began (N's tombstone, and N), list again, and find the runs in what replaced N.
//! - Whoever is killed before N's tombstone leaves N and R, which both hold: the deletion was not
//!   acknowledged, and a run that is in both is told of once.
//!
//! Where a store cannot create only what is absent, the name is looked for before it is written.
//! Then deletions of runs of one segment that create its replacement in the same moment, and only
//! those, may undo each other.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use blake3::OUT_LEN;

use super::opened_segment::{Opened, OpenedSegment, SegmentOpener, damaged};
use super::place::{ArchiveError, Object, Place};
use super::reader::{HourListing, LISTED_AGAIN, hours_of};
use super::segment::{EncodedRun, SegmentBuilder, read_all};
use super::segment_name::{Hour, SegmentName, day_of, hour_of, root};
use crate::model::request::{RunId, TimeRange};

/// The most runs of a deletion that are named.
const NAMED: usize = 1000;
/// The most runs of an hour that are known as counted. One that is in the archive twice is counted
/// twice beyond that.
const COUNTED: usize = 1 << 18;

/// What was deleted, or would be.
#[derive(Debug, Default)]
pub struct Removed {
    /// How many runs were deleted.
    pub runs: u64,
    /// The newest of them, at most a thousand.
    pub named: BTreeSet<RunId>,
    /// The numbers of the runs that were counted of the hour that is looked at, by instance: a run
    /// may be in two segments of its hour.
    counted: HashMap<Box<str>, HashSet<u128>>,
    counted_runs: usize,
    /// The runs that whoever asks has counted already.
    elsewhere: Option<(Box<str>, Arc<HashSet<u128>>)>,
}

/// Which runs go, and whether they really do.
#[derive(Clone, Copy, Debug)]
pub struct Removal<F> {
    /// Changes nothing, and counts what would go.
    pub dry_run: bool,
    /// Reports whether a run goes, by its id and its summary.
    pub takes: F,
}

impl Removed {
    /// Creates the count of a deletion that leaves the runs of `instance` with these numbers
    /// uncounted, since they were counted elsewhere.
    pub fn beside(instance: &str, numbers: Arc<HashSet<u128>>) -> Self {
        Self {
            elsewhere: Some((instance.into(), numbers)),
            ..Self::default()
        }
    }

    /// Begins the next hour, of which nothing is counted.
    fn begin_hour(&mut self) {
        self.counted.clear();
        self.counted_runs = 0;
    }

    /// Counts a run that was deleted, unless it is counted already.
    fn count(&mut self, id: RunId) {
        let (instance, number) = (id.instance(), id.number());
        let elsewhere = self.elsewhere.as_ref();
        if elsewhere.is_some_and(|(own, runs)| **own == *instance && runs.contains(&number)) {
            return;
        }
        let of_instance = self.counted.get(instance);
        if of_instance.is_some_and(|runs| runs.contains(&number)) {
            return;
        }
        if self.counted_runs < COUNTED {
            self.counted_runs += 1;
            let of_instance = self.counted.entry(instance.into()).or_default();
            of_instance.insert(number);
        }
        self.runs += 1;
        self.named.insert(id);
        if self.named.len() > NAMED {
            self.named.pop_first();
        }
    }
}

/// Deletes the runs of an hour that `removal` takes. Segments that are damaged are left as they
/// are, and the first of them is returned.
///
/// # Errors
/// The archive does not answer.
async fn remove_of_hour(
    (place, readers): (&Place, &Semaphore),
    (tenant, hour): (&str, Hour),
    range: TimeRange,
    removal: &Removal<impl Fn(&RunId, &[u8]) -> bool>,
    removed: &mut Removed,
) -> Result<Option<ArchiveError>, ArchiveError> {
    removed.begin_hour();
    let (mut seen, mut broken) = (BTreeSet::new(), None);
    let mut opener = SegmentOpener::default();
    for _ in 0..LISTED_AGAIN {
        let mut is_replaced = false;
        let HourListing {
            mut segments,
            mut replaced,
        } = HourListing::read(place, tenant, hour).await?;
        segments.retain(|(name, object)| {
            range.overlaps(name.first, name.last) && seen.insert(object.path.clone())
        });
        // Runs that are deleted may be in one that somebody has left so.
        replaced.retain(|(name, _)| range.overlaps(name.first, name.last) && !removal.dry_run);
        for (_, object) in replaced {
            place.delete(&object.path).await?;
        }
        while !segments.is_empty() {
            // A few segments at a time are in memory in the turn of whoever reads the archive.
            let _turn = readers.acquire().await;
            for opened in opener.open_last(place, &mut segments, usize::MAX).await {
                match remove_of_segment(place, tenant, opened, range, removal).await {
                    Ok(Some(gone)) => gone.into_iter().for_each(|id| removed.count(id)),
                    Ok(None) => is_replaced = true,
                    Err(error @ ArchiveError::Damaged { .. }) => broken = broken.or(Some(error)),
                    Err(error) => return Err(error),
                }
            }
        }
        // What another daemon has replaced in the meantime has another name now.
        if !is_replaced {
            return Ok(broken);
        }
    }
    Err(ArchiveError::Unavailable(
        "is being changed by other deletions again and again",
    ))
}

/// Deletes the runs of a segment that `removal` takes, and returns which; `None` where the segment
/// is not there any more, or another daemon replaces it.
async fn remove_of_segment(
    place: &Place,
    tenant: &str,
    opened: Opened,
    range: TimeRange,
    removal: &Removal<impl Fn(&RunId, &[u8]) -> bool>,
) -> Result<Option<BTreeSet<RunId>>, ArchiveError> {
    let Some(segment) = opened? else {
        return Ok(None);
    };
    let runs = segment.index.runs.iter();
    let goes: BTreeSet<RunId> = runs
        .filter(|run| range.has(RunId::millis_of(run.number())))
        .map(|run| (RunId::of(run.number(), &segment.name.instance), run))
        .filter(|(id, run)| (removal.takes)(id, &run.summary))
        .map(|(id, _)| id)
        .collect();
    if removal.dry_run || goes.is_empty() || rewrite(place, tenant, &segment, &goes).await? {
        return Ok(Some(goes));
    }
    Ok(None)
}

/// Replaces a segment by one without the runs that go. Returns false where another daemon has
/// replaced it already: then what it wrote holds, this one goes, and the hour is to be looked at
/// again. The module's description has the reasons for each step.
async fn rewrite(
    place: &Place,
    tenant: &str,
    segment: &OpenedSegment,
    goes: &BTreeSet<RunId>,
) -> Result<bool, ArchiveError> {
    let OpenedSegment { object, name, .. } = segment;
    let Some(bytes) = place.whole(object).await? else {
        return Ok(false);
    };
    let replaced = blake3::hash(&bytes);
    let read = tokio::task::spawn_blocking(move || read_all(&bytes)).await;
    let runs = match read {
        Ok(runs) => runs.map_err(|why| damaged(&object.path, &why))?,
        Err(_) => return Err(ArchiveError::Unavailable("could not be unpacked")),
    };
    let mut kept = runs;
    kept.retain(|run| !goes.contains(&RunId::of(run.number, &name.instance)));
    // One without runs is written too: whoever replaces the same one at once has to find it.
    let built = tokio::task::spawn_blocking(move || build(kept)).await;
    let Ok(Ok(bytes)) = built else {
        return Err(ArchiveError::Unavailable("could not be packed"));
    };
    let next = name.replacement();
    let own = blake3::hash(&bytes);
    let is_own = place.create(&next.path(tenant), bytes).await?
        && match place
            .part(&next.tombstone(tenant), 0..OUT_LEN as u64)
            .await?
        {
            None => true,
            Some(hash) => {
                place.delete(&next.path(tenant)).await?;
                *hash == *own.as_bytes()
            }
        };
    // The first tombstone is of the first segment of that name, and stays.
    let hash = bytes::Bytes::copy_from_slice(replaced.as_bytes());
    place.create(&name.tombstone(tenant), hash).await?;
    place.delete(&object.path).await?;
    Ok(is_own)
}

fn build(runs: Vec<EncodedRun>) -> std::io::Result<bytes::Bytes> {
    let mut builder = SegmentBuilder::new()?;
    for run in runs {
        builder.push(run)?;
    }
    builder.finish()
}

/// Deletes the runs of a tenant that were asked for in `range` and that `removal` takes, and adds
/// them to `removed` as they go.
///
/// # Errors
/// The archive does not answer, or segments are damaged, which are passed over.
pub(super) async fn remove(
    from: (&Place, &Semaphore),
    tenant: &str,
    range: TimeRange,
    removal: &Removal<impl Fn(&RunId, &[u8]) -> bool>,
    removed: &mut Removed,
) -> Result<(), ArchiveError> {
    let (place, _) = from;
    let mut hours = hours_of(place, tenant, range).await?;
    let mut broken = None;
    while let Some(hour) = hours.next(place, tenant).await? {
        let at = (tenant, hour);
        let found = remove_of_hour(from, at, range, removal, removed).await?;
        broken = broken.or(found);
    }
    broken.map_or(Ok(()), Err)
}

/// Deletes runs of a tenant that are among `ids` and that `removal` takes, and adds them to
/// `removed` as they go.
///
/// # Errors
/// The archive does not answer, or segments that may have one are damaged, which are passed over.
pub(super) async fn remove_named(
    from: (&Place, &Semaphore),
    tenant: &str,
    ids: &BTreeSet<RunId>,
    removal: &Removal<impl Fn(&RunId, &[u8]) -> bool>,
    removed: &mut Removed,
) -> Result<(), ArchiveError> {
    let mut hours: BTreeMap<Hour, TimeRange> = BTreeMap::new();
    for id in ids {
        let ms = id.millis();
        let range = hours.entry(Hour::of(ms)).or_insert(TimeRange::at(ms));
        range.since = range.since.min(ms);
        range.until = range.until.max(ms.saturating_add(1));
    }
    let mut broken = None;
    for (hour, range) in hours {
        let at = (tenant, hour);
        let found = remove_of_hour(from, at, range, removal, removed).await?;
        broken = broken.or(found);
    }
    broken.map_or(Ok(()), Err)
}

/// How long and how much is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct Retention {
    /// How long after the hour in which they were asked for; `None`: for ever.
    pub age: Option<Duration>,
    /// The most bytes of all segments; `None`: any number.
    pub bytes: Option<u64>,
}

/// Deletes what is beyond the retention at `now`, in milliseconds, whole hours at a time and the
/// oldest first. Returns how many segments that were.
///
/// # Errors
/// The archive does not answer, or refuses.
pub(super) async fn retain(
    place: &Place,
    retention: Retention,
    now: u64,
) -> Result<u64, ArchiveError> {
    let Retention { age, bytes } = retention;
    let oldest =
        age.map(|age| now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX)));
    let is_old = |hour: Hour| oldest.is_some_and(|oldest| hour.end() <= oldest);
    let mut hours: BTreeMap<Hour, Vec<Object>> = BTreeMap::new();
    let mut total = 0;
    for tenant in place.folders(&root()).await? {
        for day in place.folders(&tenant).await? {
            // Without a bound on bytes, only days that may be too old are listed.
            let Some(first) = day_of(&day) else { continue };
            if bytes.is_none() && !is_old(first) {
                continue;
            }
            for folder in place.folders(&day).await? {
                let Some(hour) = hour_of(&folder) else {
                    continue;
                };
                let objects = place.objects(&folder).await?;
                total += objects.iter().map(|object| object.size).sum::<u64>();
                hours.entry(hour).or_default().extend(objects);
            }
        }
    }
    let mut deleted = 0;
    for (hour, objects) in hours {
        let is_beyond = bytes.is_some_and(|bytes| total > bytes);
        if !is_beyond && !is_old(hour) {
            break;
        }
        // A tombstone goes after all that it tells of.
        let is_segment = |object: &Object| SegmentName::parse(&object.path).is_some();
        let (segments, rest): (Vec<_>, Vec<_>) = objects.into_iter().partition(is_segment);
        deleted += segments.len() as u64;
        for object in segments.into_iter().chain(rest) {
            place.delete(&object.path).await?;
            total -= object.size;
        }
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests;
