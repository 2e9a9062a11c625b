//! The runs of a short time, which become a segment for each tenant and hour.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::queue::{PendingRun, QueuedRun};
use super::segment::{EncodedRun, SegmentBuilder};
use super::segment_name::{Hour, SegmentName};
use super::spool::{SpoolFile, SpoolRecord};
use crate::model::request::RunId;

/// The widest span of the times at which a segment's runs were asked for. Runs end together that
/// were asked for hours apart; a segment that has such runs would have to be looked at for every
/// run in between.
const WIDEST_SPAN: Duration = Duration::from_secs(10);
/// How many times the time that a batch gathers runs that span is at the least, so that the short
/// runs of a batch are one segment.
const WIDEST_INTERVALS: u32 = 2;
/// The most segments of a tenant and an hour in a batch, since each is an object of its own.
const MOST_OPEN: usize = 8;

/// Bytes that a run holds besides what it is encoded as.
const REST: usize = 512;

/// What the runs of one segment have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SegmentKey {
    tenant: Arc<str>,
    instance: Arc<str>,
    hour: Hour,
    /// Whether they are in the file: those that it could not take are not to be in one segment with
    /// them, or whoever recovers the file would make another one under the same name.
    is_spooled: bool,
}

impl SegmentKey {
    /// Returns the hash of where the runs of a segment come from, which is number `at` of this key
    /// in the file of that name.
    fn origin(&self, file: &str, at: usize) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        for text in [file, &*self.tenant, &*self.instance] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        hasher.update(&self.hour.0.to_le_bytes());
        hasher.update(&(at as u64).to_le_bytes());
        hasher.finalize()
    }
}

/// The times at which the oldest and the newest run of a segment were asked for, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AskedSpan {
    first: u64,
    last: u64,
}

impl AskedSpan {
    /// Creates the span of one run.
    fn of(ms: u64) -> Self {
        let (first, last) = (ms, ms);
        Self { first, last }
    }

    /// Returns the span with one run more.
    fn with(self, ms: u64) -> Self {
        Self {
            first: self.first.min(ms),
            last: self.last.max(ms),
        }
    }

    fn width(self) -> u64 {
        self.last - self.first
    }

    /// Chooses the segment that a run joins among those that are open: the nearest in time that
    /// stays narrow, or the nearest of all where no more may be opened. Returns `None` where the
    /// run opens another.
    fn choose(
        open: impl ExactSizeIterator<Item = Self> + Clone,
        ms: u64,
        widest: u64,
    ) -> Option<usize> {
        let is_full = open.len() >= MOST_OPEN;
        let distance = |(_, span): &(usize, Self)| span.with(ms).width() - span.width();
        let all = open.enumerate();
        let narrow = all.clone();
        let narrow = narrow.filter(|(_, span)| span.with(ms).width() <= widest);
        let nearest = match narrow.min_by_key(distance) {
            None if is_full => all.min_by_key(distance),
            nearest => nearest,
        };
        nearest.map(|(at, _)| at)
    }
}

struct OpenSegment {
    span: AskedSpan,
    builder: SegmentBuilder,
    runs: u64,
    pending: Vec<PendingRun>,
}

impl OpenSegment {
    /// Creates a segment whose first run will be one of this time, in milliseconds.
    ///
    /// # Errors
    /// There is no memory for it.
    fn new(ms: u64) -> io::Result<Self> {
        Ok(Self {
            span: AskedSpan::of(ms),
            builder: SegmentBuilder::new()?,
            runs: 0,
            pending: Vec::new(),
        })
    }

    /// Ends the segment, whose runs come from `origin` if they are in a file. Its runs are given up
    /// where that fails.
    ///
    /// # Errors
    /// There is no memory for it.
    fn seal(self, key: &SegmentKey, origin: Option<blake3::Hash>) -> io::Result<SealedSegment> {
        let AskedSpan { first, last } = self.span;
        let name = match origin {
            Some(origin) => SegmentName::derived(first, last, &key.instance, origin),
            None => SegmentName::new(first, last, &key.instance),
        };
        Ok(SealedSegment {
            path: name.path(&key.tenant),
            tombstone: name.tombstone(&key.tenant),
            bytes: self.builder.finish()?,
            runs: self.runs,
            pending: self.pending,
            is_recovered: false,
        })
    }
}

/// Runs that are encoded, and wait for their segments to end.
pub(super) struct Batch {
    pub(super) opened: Instant,
    /// The widest span of a segment, in milliseconds.
    widest: u64,
    segments: HashMap<SegmentKey, Vec<OpenSegment>>,
    /// Has the same runs, but for those that it could not take, until they are written.
    spool: Option<SpoolFile>,
    /// Whether some runs are in the file alone.
    is_partial: bool,
    /// Whether a daemon that was killed left the runs, and may have written some segments of them.
    is_recovered: bool,
}

/// A segment that is ready to be written.
#[derive(Debug)]
pub(super) struct SealedSegment {
    pub(super) path: object_store::path::Path,
    /// The place of its tombstone, which is there if it was written before, and then replaced.
    pub(super) tombstone: object_store::path::Path,
    pub(super) bytes: Bytes,
    pub(super) runs: u64,
    /// The runs that came out of the queue.
    pub(super) pending: Vec<PendingRun>,
    /// Whether it may have been written before.
    pub(super) is_recovered: bool,
}

impl SealedSegment {
    /// Ends the way of a segment that could not be written while the daemon was there. Each of its
    /// runs is told as what it knows of itself: it is in the file beside the archive, or is lost.
    pub(super) fn give_up(self) {
        let spooled = self.pending.iter().filter(|run| run.is_spooled()).count();
        // Runs that another daemon left are in its file.
        let lost = self.pending.len() - spooled;
        let kept = self.runs.saturating_sub(lost as u64);
        if kept > 0 {
            tracing::warn!(
                runs = kept,
                "ended runs stay beside the archive until a daemon with this archive starts"
            );
        }
        if lost > 0 {
            tracing::error!(
                runs = lost,
                "ended runs are lost, because the archive could not be written"
            );
        }
    }
}

/// A batch that is ready to be written.
#[derive(Debug)]
pub(super) struct SealedBatch {
    pub(super) segments: Vec<SealedSegment>,
    /// Has the same runs, but for those that it could not take, until they are written.
    pub(super) spool: Option<SpoolFile>,
    /// Whether some runs are in the file alone, as they could not be compressed.
    pub(super) is_partial: bool,
}

impl Batch {
    /// Creates a batch without runs, which gathers them for `interval`. They are also written to a
    /// file in `spool`.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(super) fn new(spool: Option<&Path>, interval: Duration) -> io::Result<Self> {
        Ok(Self {
            spool: spool.map(SpoolFile::create).transpose()?,
            ..Self::without_spool(interval)
        })
    }

    /// Creates a batch without runs and without a file.
    pub(super) fn without_spool(interval: Duration) -> Self {
        let widest = WIDEST_SPAN.max(interval * WIDEST_INTERVALS);
        Self {
            opened: Instant::now(),
            widest: u64::try_from(widest.as_millis()).unwrap_or(u64::MAX),
            segments: HashMap::new(),
            spool: None,
            is_partial: false,
            is_recovered: false,
        }
    }

    /// Creates a batch of the runs that a daemon left in `file`.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn recovered(
        file: SpoolFile,
        records: Vec<SpoolRecord>,
        interval: Duration,
    ) -> io::Result<Self> {
        let mut batch = Self::without_spool(interval);
        batch.spool = Some(file);
        batch.is_recovered = true;
        for record in records {
            let SpoolRecord {
                tenant,
                instance,
                number,
                summary,
                line,
                segment,
            } = record;
            let number = u128::from_be_bytes(number.try_into().unwrap_or_default());
            let run = EncodedRun {
                number,
                summary,
                line,
            };
            let ms = RunId::millis_of(number);
            let key = SegmentKey {
                tenant: tenant.into(),
                instance: instance.into(),
                hour: Hour::of(ms),
                is_spooled: true,
            };
            let at = match segment {
                Some(at) => at as usize,
                None => batch.choose(&key, ms),
            };
            batch.push(key, at, run, None)?;
        }
        Ok(batch)
    }

    /// Returns how many bytes of lines and summaries the segments have so far: whoever reads or
    /// replaces a segment has them in memory, however well they are compressed.
    pub(super) fn unpacked(&self) -> usize {
        let segments = self.segments.values().flatten();
        segments.map(|segment| segment.builder.unpacked()).sum()
    }

    /// Encodes runs of `instance`, and takes them into their segments and into the file.
    ///
    /// # Errors
    /// Some of them could not be written to the file. All are in the segments even so, and those
    /// that are in the file know it.
    pub(super) fn add(&mut self, instance: &Arc<str>, runs: Vec<QueuedRun>) -> io::Result<()> {
        let mut spooled = Ok(());
        for run in runs {
            let QueuedRun {
                tenant,
                encode,
                mut pending,
            } = run;
            // A run that cannot be encoded must not end the thread.
            let encoded = catch_unwind(AssertUnwindSafe(encode));
            let Ok(run) = encoded else { continue };
            pending.recharge(REST + run.summary.len() + run.line.len());
            let ms = RunId::millis_of(run.number);
            let mut key = SegmentKey {
                tenant,
                instance: Arc::clone(instance),
                hour: Hour::of(ms),
                is_spooled: self.spool.is_some() && spooled.is_ok(),
            };
            let mut at = self.choose(&key, ms);
            if key.is_spooled {
                spooled = self.spool(&key, at, &run);
                match spooled {
                    Ok(()) => pending.note_spooled(),
                    Err(_) => {
                        key.is_spooled = false;
                        at = self.choose(&key, ms);
                    }
                }
            }
            if let Err(error) = self.push(key, at, run, Some(pending)) {
                tracing::error!(%error, "an ended run could not be compressed");
                self.is_partial = true;
            }
        }
        spooled
    }

    /// Writes a run to the file, before it is taken into segment `at` of those of `key`.
    ///
    /// # Errors
    /// It was not written.
    fn spool(&mut self, key: &SegmentKey, at: usize, run: &EncodedRun) -> io::Result<()> {
        let Some(spool) = &mut self.spool else {
            return Ok(());
        };
        spool.append(&SpoolRecord {
            tenant: key.tenant.to_string(),
            instance: key.instance.to_string(),
            number: run.number.to_be_bytes().to_vec(),
            summary: run.summary.clone(),
            line: run.line.clone(),
            segment: u32::try_from(at).ok(),
        })
    }

    /// Chooses which of the segments of `key` a run of that time joins, or is the first of.
    fn choose(&self, key: &SegmentKey, ms: u64) -> usize {
        let open = self.segments.get(key).map_or(&[][..], Vec::as_slice);
        let spans = open.iter().map(|segment| segment.span);
        AskedSpan::choose(spans, ms, self.widest).unwrap_or(open.len())
    }

    /// Takes a run into segment `at` of those of `key`, or into one more.
    fn push(
        &mut self,
        key: SegmentKey,
        at: usize,
        run: EncodedRun,
        pending: Option<PendingRun>,
    ) -> io::Result<()> {
        let ms = RunId::millis_of(run.number);
        let open = self.segments.entry(key).or_default();
        let segment = match at < open.len() {
            true => &mut open[at],
            false => open.push_mut(OpenSegment::new(ms)?),
        };
        segment.span = segment.span.with(ms);
        segment.runs += 1;
        segment.pending.extend(pending);
        segment.builder.push(run)
    }

    /// Ends the segments. Runs of one that cannot be compressed stay in the file, or are dropped.
    pub(super) fn seal(self) -> SealedBatch {
        let mut batch = SealedBatch {
            segments: Vec::new(),
            spool: self.spool,
            is_partial: self.is_partial,
        };
        // Whoever recovers a file of which some runs are in no segment makes others of it.
        let file = batch.spool.as_ref().filter(|_| !self.is_partial);
        let file = file.map(|file| file.name().into_owned());
        let is_recovered = self.is_recovered;
        for (key, open) in self.segments {
            let file = file.as_deref().filter(|_| key.is_spooled);
            for (at, segment) in open.into_iter().enumerate() {
                let runs = segment.runs;
                match segment.seal(&key, file.map(|file| key.origin(file, at))) {
                    Ok(segment) => batch.segments.push(SealedSegment {
                        is_recovered,
                        ..segment
                    }),
                    Err(error) => {
                        tracing::error!(%error, runs, "ended runs could not be compressed");
                        batch.is_partial = true;
                    }
                }
            }
        }
        batch
    }
}

#[cfg(test)]
mod tests;
