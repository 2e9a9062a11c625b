//! Finds ended runs in the archive by their ids, and the hours and segments of a time.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use object_store::path::Path;

use super::opened_segment::{ArchivedEntry, OpenedSegment};
use super::packed_line::PackedLine;
use super::place::{ArchiveError, Object, Place};
use super::segment_name::{
    Hour, SegmentName, day_of, hour_folder, hour_of, hours_of_day, tenant_folder,
};
use crate::model::request::{RunId, TimeRange};

/// How often an hour is listed at the most, where segments of it are replaced while it is read.
pub(super) const LISTED_AGAIN: usize = 5;
/// How often an hour is listed at the most, where the list misses a segment.
const LISTED_FOR_MISSED: usize = 3;
/// The longest range whose hours are asked for one by one, without looking which there are.
const FEW_HOURS: u64 = 2;

/// The segments of an hour, with their names.
#[derive(Debug, Default)]
pub(super) struct HourListing {
    /// Those that hold their runs.
    pub(super) segments: Vec<(SegmentName, Object)>,
    /// Those that others have replaced. They hold nothing any more, and are still there because who
    /// replaced them has not deleted them yet or was killed, or because somebody slow has written
    /// them once more and has not deleted them yet.
    pub(super) replaced: Vec<(SegmentName, Object)>,
}

impl HourListing {
    /// Divides objects into segments that hold and those that were replaced. Returns also whether
    /// the list misses a segment: with each tombstone there is what replaced its segment, or that
    /// one's tombstone, unless it came while the list was being made.
    fn new(objects: Vec<Object>) -> (Self, bool) {
        let mut listed = Vec::new();
        let mut gone = BTreeSet::new();
        for object in objects {
            match SegmentName::parse(&object.path) {
                Some(name) => listed.push((name, object)),
                None => gone.extend(SegmentName::parse_tombstone(&object.path)),
            }
        }
        if gone.is_empty() {
            let segments = listed;
            return (
                Self {
                    segments,
                    ..Self::default()
                },
                false,
            );
        }
        let all: BTreeSet<&SegmentName> = listed.iter().map(|(name, _)| name).collect();
        let is_missed = gone.iter().any(|name| {
            let next = name.replacement();
            !all.contains(&next) && !gone.contains(&next)
        });
        let holds = |(name, _): &(SegmentName, Object)| !gone.contains(name);
        let (segments, replaced) = listed.into_iter().partition(holds);
        (Self { segments, replaced }, is_missed)
    }

    /// Lists the segments of an hour.
    ///
    /// # Errors
    /// The archive does not answer.
    pub(super) async fn read(
        place: &Place,
        tenant: &str,
        hour: Hour,
    ) -> Result<Self, ArchiveError> {
        let folder = hour_folder(tenant, hour);
        let mut listed = 1;
        loop {
            let (listing, is_missed) = Self::new(place.objects(&folder).await?);
            // Nothing comes any more where the retention was stopped within an hour.
            if !is_missed || listed == LISTED_FOR_MISSED {
                return Ok(listing);
            }
            listed += 1;
        }
    }
}

/// Lists the segments of an hour, without those that others have replaced.
///
/// # Errors
/// The archive does not answer.
pub(super) async fn segments_of(
    place: &Place,
    tenant: &str,
    hour: Hour,
) -> Result<Vec<(SegmentName, Object)>, ArchiveError> {
    let listing = HourListing::read(place, tenant, hour).await?;
    Ok(listing.segments)
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
    let last = range.until.saturating_sub(1);
    let mut walk = HourWalk {
        hours: Vec::new(),
        days: Vec::new(),
        within: Hour::of(range.since)..=Hour::of(last),
    };
    if range.since >= range.until {
        return Ok(walk);
    }
    let (first, last) = (walk.within.start().0, walk.within.end().0);
    if last - first < FEW_HOURS {
        walk.hours = (first..=last).map(Hour).collect();
        return Ok(walk);
    }
    let folders = place.folders(&tenant_folder(tenant)).await?;
    walk.days = folders.iter().filter_map(day_of).collect();
    let within = &walk.within;
    let is_within = |day: &Hour| hours_of_day(*day).any(|hour| within.contains(&hour));
    walk.days.retain(is_within);
    walk.days.sort();
    Ok(walk)
}

/// The hours of a tenant that are still to be looked at.
#[derive(Debug)]
pub(super) struct HourWalk {
    /// Hours, of which the last comes first.
    hours: Vec<Hour>,
    /// Days, of which the last comes first, after `hours`.
    days: Vec<Hour>,
    /// The hours that are asked for.
    within: RangeInclusive<Hour>,
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
            self.hours.retain(|hour| self.within.contains(hour));
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
            let (entries, error) = match OpenedSegment::open(place, object, name).await {
                Ok(Some(segment)) => segment.entries(at),
                Ok(None) => {
                    is_replaced = true;
                    continue;
                }
                Err(error) => (Vec::new(), Some(error)),
            };
            if let Some(found) = entries.into_iter().find(|entry| entry.id == *id) {
                return Ok(Some(found));
            }
            match error {
                None => {}
                Some(error @ ArchiveError::Damaged { .. }) => broken = Some(error),
                Some(error) => return Err(error),
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
