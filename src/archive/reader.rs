//! Reads ended runs from the archive: one by its id, or those of a time, the newest first.

use std::collections::{BTreeSet, BinaryHeap};

use object_store::path::Path;

use super::packed_line::PackedLine;
use super::place::{ArchiveError, Object, Place};
use super::segment::{
    DamagedBytes, LinePlace, MAX_SEGMENT, MIN_SEGMENT, SegmentIndex, TAIL, index_place,
};
use super::segment_name::{
    Hour, SegmentName, day_of, hour_folder, hour_of, hours_of_day, tenant_folder,
};
use crate::model::request::{RunId, TimeRange};

/// The most runs that one page looks at: where few match, the page ends early.
const LOOKED_AT: usize = 10_000;
/// The most damaged segments that a page names.
const DAMAGED: usize = 10;
/// The approximate limit of one page in bytes, which a client accepts in one message.
const PAGE_BYTES: usize = 1 << 20;
/// How often an hour is listed at the most, where segments of it are replaced while it is read.
pub(super) const LISTED_AGAIN: usize = 5;
/// The most hours that one page looks at.
const HOURS: usize = 100;
/// The longest range whose hours are asked for one by one, without looking which there are.
const FEW_HOURS: u64 = 72;

/// A run that was found in the archive.
#[derive(Clone, Debug)]
pub struct ArchivedEntry {
    /// The id of the run.
    pub id: RunId,
    /// What is known of it, as it was encoded.
    pub summary: Vec<u8>,
    segment: Path,
    line: LinePlace,
}

impl ArchivedEntry {
    /// Returns the most bytes of memory that it takes to read the line of the run and to decode it
    /// into no more than its own length.
    pub fn line_memory(&self) -> u64 {
        self.line.memory()
    }
}

/// A page of runs.
#[derive(Debug, Default)]
pub struct ArchivedPage {
    /// The runs, the newest first.
    pub runs: Vec<ArchivedEntry>,
    /// The last run that was looked at, where others may follow.
    pub next: Option<RunId>,
    /// The segments that could not be read, with the reason.
    pub damaged: Vec<String>,
}

/// The error of a part that could not be unpacked for want of a thread or of memory.
const UNREADABLE: ArchiveError = ArchiveError::Unavailable("could not be unpacked");

/// A segment and its index.
pub(super) struct OpenedSegment {
    pub(super) object: Object,
    pub(super) name: SegmentName,
    pub(super) index: SegmentIndex,
}

/// Returns the error for a segment that is not what was written.
pub(super) fn damaged(path: &Path, why: &DamagedBytes) -> ArchiveError {
    ArchiveError::Damaged {
        name: path.to_string(),
        why: why.to_string(),
    }
}

impl OpenedSegment {
    /// Reads the index of a segment; `None` where it is not there any more.
    ///
    /// # Errors
    /// The archive does not answer, or the segment is damaged.
    pub(super) async fn open(
        place: &Place,
        object: Object,
        name: SegmentName,
    ) -> Result<Option<Self>, ArchiveError> {
        let (path, size) = (&object.path, object.size);
        let broken = |why: &'static str| damaged(path, &DamagedBytes::new(why));
        if !(MIN_SEGMENT..=MAX_SEGMENT).contains(&size) {
            return Err(broken("no segment has its size"));
        }
        let begin = size.saturating_sub(TAIL);
        let Some(tail) = place.part(path, begin..size).await? else {
            return Ok(None);
        };
        if tail.len() as u64 != size - begin {
            return Err(broken("it has another size than was listed"));
        }
        let range = index_place(size, &tail).map_err(|why| damaged(path, &why))?;
        let packed = if range.start >= begin {
            let at = |offset: u64| usize::try_from(offset - begin).unwrap_or(usize::MAX);
            let packed = tail.get(at(range.start)..at(range.end));
            let packed = packed.ok_or_else(|| broken("its index is larger than itself"))?;
            tail.slice_ref(packed)
        } else {
            match place.part(path, range).await? {
                Some(packed) => packed,
                None => return Ok(None),
            }
        };
        let index = tokio::task::spawn_blocking(move || SegmentIndex::decode_packed(&packed));
        let index = index.await.map_err(|_| UNREADABLE)?;
        let index = index.map_err(|why| damaged(path, &why))?;
        Ok(Some(Self {
            object,
            name,
            index,
        }))
    }

    /// Returns the runs that `range` has, in any order.
    fn entries(&self, range: TimeRange) -> Result<Vec<ArchivedEntry>, ArchiveError> {
        let within = self.index.runs.iter();
        let within = within.filter(|run| range.has(RunId::millis_of(run.number())));
        let entry = |run| {
            let line = self.index.place(run);
            Ok(ArchivedEntry {
                id: RunId::of(run.number(), &self.name.instance),
                summary: run.summary.clone(),
                segment: self.object.path.clone(),
                line: line.map_err(|why| damaged(&self.object.path, &why))?,
            })
        };
        within.map(entry).collect()
    }
}

/// Lists the segments of an hour.
///
/// # Errors
/// The archive does not answer.
pub(super) async fn segments_of(
    place: &Place,
    tenant: &str,
    hour: Hour,
) -> Result<Vec<(SegmentName, Object)>, ArchiveError> {
    let objects = place.objects(&hour_folder(tenant, hour)).await?;
    let named = objects.into_iter().filter_map(|object| {
        let name = SegmentName::parse(&object.path)?;
        Some((name, object))
    });
    Ok(named.collect())
}

/// Returns the hours of a tenant that there are in `range`, the latest first.
///
/// # Errors
/// The archive does not answer.
pub(super) async fn hours_of(
    place: &Place,
    tenant: &str,
    range: TimeRange,
) -> Result<HourWalk, ArchiveError> {
    let (first, last) = (
        Hour::of(range.since),
        Hour::of(range.until.saturating_sub(1)),
    );
    if range.since >= range.until {
        return Ok(HourWalk::default());
    }
    if last.0 - first.0 < FEW_HOURS {
        return Ok(HourWalk {
            hours: (first.0..=last.0).map(Hour).collect(),
            days: Vec::new(),
            range,
        });
    }
    let folders = place.folders(&tenant_folder(tenant)).await?;
    let mut days: Vec<Hour> = folders.iter().filter_map(day_of).collect();
    days.retain(|day| hours_of_day(*day).any(|hour| (first..=last).contains(&hour)));
    days.sort();
    Ok(HourWalk {
        hours: Vec::new(),
        days,
        range,
    })
}

/// The hours of a tenant that are still to be looked at.
#[derive(Debug)]
pub(super) struct HourWalk {
    /// Hours, of which the last comes first.
    hours: Vec<Hour>,
    /// Days, of which the last comes first, after `hours`.
    days: Vec<Hour>,
    range: TimeRange,
}

impl Default for HourWalk {
    fn default() -> Self {
        Self {
            hours: Vec::new(),
            days: Vec::new(),
            range: TimeRange::ALL,
        }
    }
}

impl HourWalk {
    /// Returns the next hour, which is earlier than all before it.
    ///
    /// # Errors
    /// The archive does not answer.
    pub(super) async fn next(
        &mut self,
        place: &Place,
        tenant: &str,
    ) -> Result<Option<Hour>, ArchiveError> {
        let range = self.range;
        let (first, last) = (
            Hour::of(range.since),
            Hour::of(range.until.saturating_sub(1)),
        );
        loop {
            if let Some(hour) = self.hours.pop() {
                return Ok(Some(hour));
            }
            let Some(day) = self.days.pop() else {
                return Ok(None);
            };
            let folder = hour_folder(tenant, day);
            let day = folder.parts().take(3);
            let folders = place.folders(&Path::from_iter(day)).await?;
            self.hours = folders.iter().filter_map(hour_of).collect();
            self.hours.retain(|hour| (first..=last).contains(hour));
            self.hours.sort();
        }
    }
}

/// Finds a run by its id; `None` where the archive does not have it.
///
/// # Errors
/// The archive does not answer, or the part of it that may have the run is damaged.
pub(super) async fn find(
    place: &Place,
    tenant: &str,
    id: &RunId,
) -> Result<Option<ArchivedEntry>, ArchiveError> {
    let ms = id.millis();
    let at = TimeRange::at(ms);
    let mut broken = None;
    for _ in 0..LISTED_AGAIN {
        let mut is_replaced = false;
        for (name, object) in segments_of(place, tenant, Hour::of(ms)).await? {
            if !name.spans(ms) || &*name.instance != id.instance() {
                continue;
            }
            let entries = match OpenedSegment::open(place, object, name).await {
                Ok(Some(segment)) => segment.entries(at),
                Ok(None) => {
                    is_replaced = true;
                    continue;
                }
                Err(error) => Err(error),
            };
            match entries {
                Ok(entries) => {
                    if let Some(found) = entries.into_iter().find(|entry| entry.id == *id) {
                        return Ok(Some(found));
                    }
                }
                Err(error @ ArchiveError::Damaged { .. }) => broken = Some(error),
                Err(error) => return Err(error),
            }
        }
        // A deletion may have replaced the segment that has the run since it was listed.
        if !is_replaced {
            break;
        }
    }
    broken.map_or(Ok(None), Err)
}

/// Reads the line of a run, which stays packed; `None` where it was deleted in the meantime.
///
/// # Errors
/// The archive does not answer.
pub(super) async fn line(
    place: &Place,
    entry: &ArchivedEntry,
) -> Result<Option<PackedLine>, ArchiveError> {
    let at = entry.line.clone();
    let frame = place.part(&entry.segment, at.frame.clone()).await?;
    Ok(frame.map(|frame| PackedLine::new(entry.segment.clone(), at, frame)))
}

/// A run among those that a page has found, which are taken the newest first.
struct Candidate(ArchivedEntry);

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.0.id == other.0.id
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.id.cmp(&other.0.id)
    }
}

/// What a page of the archive is to have.
#[derive(Clone, Copy, Debug)]
pub struct PageRequest {
    /// When its runs were asked for.
    pub range: TimeRange,
    /// The run that all of its runs are older than.
    pub before: Option<RunId>,
    /// The most runs of the page.
    pub size: usize,
}

/// A page while it is filled, the newest run first.
struct PageBuilder<F> {
    asked: PageRequest,
    takes: F,
    page: ArchivedPage,
    last: Option<RunId>,
    looked: usize,
    bytes: usize,
}

impl<F: Fn(&[u8]) -> bool> PageBuilder<F> {
    /// Looks at a run, which is older than all before it, and reports whether the page has ended.
    fn look_at(&mut self, entry: ArchivedEntry) -> bool {
        let PageRequest { before, size, .. } = self.asked;
        // A run is twice in the archive where a daemon was killed after it had written it, and
        // where its segment is replaced just now.
        let limit = self.last.or(before);
        if limit.is_some_and(|limit| entry.id >= limit) {
            return false;
        }
        self.last = Some(entry.id);
        self.looked += 1;
        if (self.takes)(&entry.summary) {
            self.bytes += entry.summary.len();
            self.page.runs.push(entry);
        }
        let is_full = self.page.runs.len() == size || self.bytes >= PAGE_BYTES;
        let ends = is_full || self.looked == LOOKED_AT;
        if ends {
            self.page.next = self.last;
        }
        ends
    }

    /// Notes a segment that cannot be read, if that is because it is damaged.
    fn note(&mut self, error: ArchiveError) -> Result<(), ArchiveError> {
        let ArchiveError::Damaged { name, why } = error else {
            return Err(error);
        };
        if self.page.damaged.len() < DAMAGED {
            self.page.damaged.push(format!("{name}: {why}"));
        }
        Ok(())
    }

    /// Looks at the runs of an hour, and reports whether the page has ended.
    async fn look_at_hour(
        &mut self,
        place: &Place,
        tenant: &str,
        hour: Hour,
    ) -> Result<bool, ArchiveError> {
        let range = self.asked.range;
        let (mut segments, mut seen) = (Vec::new(), BTreeSet::new());
        let mut listings = 0;
        let mut is_to_be_listed = true;
        let mut found = BinaryHeap::<Candidate>::new();
        loop {
            if is_to_be_listed {
                // A deletion replaces segments by others of the same times.
                is_to_be_listed = false;
                listings += 1;
                let mut listed = segments_of(place, tenant, hour).await?;
                listed.retain(|(name, object)| {
                    let is_within = range.overlaps(name.first, name.last);
                    is_within && seen.insert(object.path.clone())
                });
                segments.extend(listed);
                segments.sort_by_key(|(name, _)| name.last);
            }
            // A segment that is not open yet may have newer runs than all that were found.
            let newest = found.peek().map(|it| it.0.id.millis());
            let opens = |next: &mut (SegmentName, Object)| {
                newest.is_none_or(|newest| newest <= next.0.last)
            };
            if let Some((name, object)) = segments.pop_if(opens) {
                let entries = match OpenedSegment::open(place, object, name).await {
                    Ok(Some(segment)) => segment.entries(range),
                    Ok(None) => {
                        is_to_be_listed = listings < LISTED_AGAIN;
                        continue;
                    }
                    Err(error) => Err(error),
                };
                match entries {
                    Ok(entries) => found.extend(entries.into_iter().map(Candidate)),
                    Err(error) => self.note(error)?,
                }
                continue;
            }
            let Some(Candidate(entry)) = found.pop() else {
                return Ok(false);
            };
            if self.look_at(entry) {
                return Ok(true);
            }
        }
    }
}

/// Lists runs whose summary `takes` accepts, the newest first.
///
/// # Errors
/// The archive does not answer.
pub(super) async fn list(
    place: &Place,
    tenant: &str,
    mut asked: PageRequest,
    takes: impl Fn(&[u8]) -> bool,
) -> Result<ArchivedPage, ArchiveError> {
    if let Some(before) = asked.before {
        asked.range = asked.range.up_to(before.millis());
    }
    let mut page = PageBuilder {
        asked,
        takes,
        page: ArchivedPage::default(),
        last: None,
        looked: 0,
        bytes: 0,
    };
    let mut hours = hours_of(place, tenant, asked.range).await?;
    let mut hours_seen = 0;
    while let Some(hour) = hours.next(place, tenant).await? {
        if page.look_at_hour(place, tenant, hour).await? {
            break;
        }
        hours_seen += 1;
        if hours_seen == HOURS {
            page.page.next = Some(before_all_of(hour));
            break;
        }
    }
    Ok(page.page)
}

/// Returns an id that is older than every run of `hour`, and newer than all before.
fn before_all_of(hour: Hour) -> RunId {
    RunId::of(RunId::first_number_at(hour.begin()), "-")
}
