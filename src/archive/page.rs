//! Lists ended runs of the archive by pages, the newest first.

use std::collections::{BTreeSet, BinaryHeap};

use super::opened_segment::{ArchivedEntry, SegmentOpener};
use super::place::{ArchiveError, Object, Place};
use super::reader::{LISTED_AGAIN, hours_of, segments_of};
use super::segment_name::{Hour, SegmentName};
use crate::model::request::{RunId, TimeRange};

/// The most runs that one page looks at: where few match, the page ends early.
const LOOKED_AT: usize = 10_000;
/// The segments that one page opens besides those that it takes to look at its first run. Whoever
/// asks for the next page gets further in this way also where all segments have the same times, and
/// those that are open already are opened again for each page.
const OPENED: usize = 256;
/// The most damaged segments that a page names.
const DAMAGED: usize = 10;
/// The approximate limit of one page in bytes, which a client accepts in one message.
const PAGE_BYTES: usize = 1 << 20;
/// The most hours that one page looks at.
const HOURS: usize = 100;

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
    /// Segments that were opened since a run was looked at.
    opened: usize,
    opener: SegmentOpener,
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
            let opens =
                |next: &(SegmentName, Object)| newest.is_none_or(|newest| newest <= next.0.last);
            if segments.last().is_some_and(opens) {
                if self.opened == OPENED {
                    self.page.next = self.last;
                    return Ok(true);
                }
                let most = OPENED - self.opened;
                let opened = self.opener.open_last(place, &mut segments, most).await;
                if self.looked > 0 {
                    self.opened += opened.len();
                }
                for segment in opened {
                    let (entries, broken) = match segment {
                        Ok(Some(segment)) => segment.entries(range),
                        Ok(None) => {
                            is_to_be_listed = listings < LISTED_AGAIN;
                            continue;
                        }
                        Err(error) => (Vec::new(), Some(error)),
                    };
                    found.extend(entries.into_iter().map(Candidate));
                    broken.map_or(Ok(()), |error| self.note(error))?;
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
        opened: 0,
        opener: SegmentOpener::default(),
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
