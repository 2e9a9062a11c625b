//! Opens segments: reads their indexes, of several at once where many are needed.

use bytes::Bytes;
use futures_util::future::join_all;
use object_store::path::Path;

use super::place::{ArchiveError, Object, Place};
use super::segment::{
    DamagedBytes, LinePlace, MAX_SEGMENT, MIN_SEGMENT, RunEntry, SegmentIndex, TAIL, index_place,
    unpacked_index,
};
use super::segment_name::SegmentName;
use crate::model::request::{RunId, TimeRange};

/// The most segments that are opened at once.
const AT_ONCE: usize = 16;
/// Bytes of segments that are opened at once, unless one alone has more.
const BYTES_AT_ONCE: u64 = 4 << 20;
/// Bytes of unpacked indexes that are in memory at once, unless one alone has more: how small they
/// are when they are compressed says little of that.
const INDEX_BYTES_AT_ONCE: u64 = 8 << 20;

/// A run that was found in the archive.
#[derive(Clone, Debug)]
pub struct ArchivedEntry {
    /// The id of the run.
    pub id: RunId,
    /// What is known of it, as it was encoded.
    pub summary: Vec<u8>,
    pub(super) segment: Path,
    pub(super) line: LinePlace,
}

impl ArchivedEntry {
    /// Returns the most bytes of memory that it takes to read the line of the run and to decode it
    /// into no more than its own length.
    pub fn line_memory(&self) -> u64 {
        self.line.memory()
    }
}

/// The error of a part that could not be unpacked for want of a thread or of memory.
const UNREADABLE: ArchiveError = ArchiveError::Unavailable("could not be unpacked");

/// A segment and its index.
pub(super) struct OpenedSegment {
    pub(super) object: Object,
    pub(super) name: SegmentName,
    pub(super) index: SegmentIndex,
}

/// A segment whose index has been read, and is still compressed.
struct PackedSegment {
    object: Object,
    name: SegmentName,
    packed: Bytes,
    /// The bytes of the index once it is unpacked.
    unpacked: u64,
}

/// Returns the error for a segment that is not what was written.
pub(super) fn damaged(path: &Path, why: &DamagedBytes) -> ArchiveError {
    ArchiveError::Damaged {
        name: path.to_string(),
        why: why.to_string(),
    }
}

impl PackedSegment {
    /// Reads the index of a segment; `None` where it is not there any more.
    ///
    /// # Errors
    /// The archive does not answer, or the segment is damaged.
    async fn read(
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
        let unpacked = unpacked_index(&packed).map_err(|why| damaged(path, &why))?;
        Ok(Some(Self {
            object,
            name,
            packed,
            unpacked,
        }))
    }

    /// Decodes the index.
    ///
    /// # Errors
    /// The segment is damaged, or there is no thread for it.
    async fn open(self) -> Result<OpenedSegment, ArchiveError> {
        let Self {
            object,
            name,
            packed,
            unpacked: _,
        } = self;
        let index = tokio::task::spawn_blocking(move || SegmentIndex::decode_packed(&packed));
        let index = index.await.map_err(|_| UNREADABLE)?;
        let index = index.map_err(|why| damaged(&object.path, &why))?;
        Ok(OpenedSegment {
            object,
            name,
            index,
        })
    }

    /// Opens what was read, if anything was.
    async fn open_read(read: Result<Option<Self>, ArchiveError>) -> Opened {
        match read? {
            Some(packed) => packed.open().await.map(Some),
            None => Ok(None),
        }
    }
}

impl OpenedSegment {
    /// Reads the index of a segment; `None` where it is not there any more.
    ///
    /// # Errors
    /// The archive does not answer, or the segment is damaged.
    pub(super) async fn open(place: &Place, object: Object, name: SegmentName) -> Opened {
        PackedSegment::open_read(PackedSegment::read(place, object, name).await).await
    }

    /// Returns the runs that `range` has, in any order. Those whose lines nobody can read are left
    /// out, and the error for the first of them is returned too.
    pub(super) fn entries(&self, range: TimeRange) -> (Vec<ArchivedEntry>, Option<ArchiveError>) {
        let within = self.index.runs.iter();
        let within = within.filter(|run| range.has(RunId::millis_of(run.number())));
        let mut broken = None;
        let entry = |run: &RunEntry| {
            let id = RunId::of(run.number(), &self.name.instance);
            match self.index.place(run) {
                Ok(line) => Some(ArchivedEntry {
                    id,
                    summary: run.summary.clone(),
                    segment: self.object.path.clone(),
                    line,
                }),
                Err(why) => {
                    let why = DamagedBytes::new(&format!("the run {id}: {why}"));
                    broken.get_or_insert_with(|| damaged(&self.object.path, &why));
                    None
                }
            }
        };
        let entries = within.filter_map(entry).collect();
        (entries, broken)
    }
}

/// Counts the first of `sizes` that are together no more than `most`, and the very first in any
/// case.
fn count_fitting(sizes: impl Iterator<Item = u64>, most: u64) -> usize {
    let mut bytes = 0_u64;
    let fit = sizes.take_while(|size| {
        bytes = bytes.saturating_add(*size);
        bytes <= most
    });
    fit.count().max(1)
}

/// Opens segments one after the other, and the more of them at once the more are needed: the first
/// often suffices, and an object store takes its time for each.
#[derive(Debug)]
pub(super) struct SegmentOpener {
    at_once: usize,
}

impl Default for SegmentOpener {
    fn default() -> Self {
        Self { at_once: 1 }
    }
}

/// A segment as it was opened; `None` where it is not there any more.
pub(super) type Opened = Result<Option<OpenedSegment>, ArchiveError>;

impl SegmentOpener {
    /// Takes the last of `segments`, and some before it, but at most `most`, and opens them.
    pub(super) async fn open_last(
        &mut self,
        place: &Place,
        segments: &mut Vec<(SegmentName, Object)>,
        most: usize,
    ) -> Vec<Opened> {
        let some = self.take_last(segments, most).into_iter().rev();
        let read = some.map(|(name, object)| PackedSegment::read(place, object, name));
        let mut read = join_all(read).await;
        let unpacked = read.iter().map(|it| match it {
            Ok(Some(packed)) => packed.unpacked,
            Ok(None) | Err(_) => 0,
        });
        let fitting = count_fitting(unpacked, INDEX_BYTES_AT_ONCE).min(read.len());
        // Those that are left are read again.
        let left = read.split_off(fitting);
        for packed in left.into_iter().rev() {
            match packed {
                Ok(Some(packed)) => segments.push((packed.name, packed.object)),
                absent @ (Ok(None) | Err(_)) => read.push(absent),
            }
        }
        let opened = read.into_iter().map(PackedSegment::open_read);
        join_all(opened).await
    }

    /// Takes those that are opened now, the last alone at least.
    fn take_last(
        &mut self,
        segments: &mut Vec<(SegmentName, Object)>,
        most: usize,
    ) -> Vec<(SegmentName, Object)> {
        let newest = segments.iter().rev().take(self.at_once.min(most));
        let sizes = newest.map(|(_, object)| object.size);
        let taken = count_fitting(sizes, BYTES_AT_ONCE).min(segments.len());
        self.at_once = (self.at_once * 2).min(AT_ONCE);
        segments.split_off(segments.len() - taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(sizes: &[u64]) -> Vec<(SegmentName, Object)> {
        let sizes = sizes.iter();
        let segment = |size: &u64| {
            let name = SegmentName::new(1, 2, &"a".into());
            let path = name.path("t");
            (name, Object { path, size: *size })
        };
        sizes.map(segment).collect()
    }

    #[test]
    fn the_more_segments_are_needed_the_more_are_opened_at_once() {
        let mut opener = SegmentOpener::default();
        let mut left = segments(&[1000; 60]);
        let last = left.last().unwrap().1.path.clone();
        let first = opener.take_last(&mut left, usize::MAX);
        assert_eq!(first[0].1.path, last, "the newest is needed first");
        let mut taken = vec![first.len()];
        while !left.is_empty() {
            taken.push(opener.take_last(&mut left, usize::MAX).len());
        }
        assert_eq!(taken, [1, 2, 4, 8, 16, 16, 13]);
    }

    #[test]
    fn large_segments_are_opened_alone_and_never_more_than_may_be() {
        let mut opener = SegmentOpener { at_once: AT_ONCE };
        let half = BYTES_AT_ONCE / 2;
        let mut left = segments(&[1, half, half, half + 1, BYTES_AT_ONCE * 9, 5, 5, 5]);
        let mut taken = vec![opener.take_last(&mut left, 2).len()];
        while !left.is_empty() {
            taken.push(opener.take_last(&mut left, usize::MAX).len());
        }
        assert_eq!(taken, [2, 1, 1, 1, 2, 1]);
    }
}
