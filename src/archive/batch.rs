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

    /// Ends the segment. Its runs are given up where that fails.
    ///
    /// # Errors
    /// There is no memory for it.
    fn seal(self, key: &SegmentKey) -> io::Result<SealedSegment> {
        let AskedSpan { first, last } = self.span;
        let name = SegmentName::new(first, last, &key.instance);
        Ok(SealedSegment {
            path: name.path(&key.tenant),
            bytes: self.builder.finish()?,
            runs: self.runs,
            pending: self.pending,
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
}

/// A segment that is ready to be written.
#[derive(Debug)]
pub(super) struct SealedSegment {
    pub(super) path: object_store::path::Path,
    pub(super) bytes: Bytes,
    pub(super) runs: u64,
    /// The runs that came out of the queue.
    pub(super) pending: Vec<PendingRun>,
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
        for record in records {
            let SpoolRecord {
                tenant,
                instance,
                number,
                summary,
                line,
            } = record;
            let number = u128::from_be_bytes(number.try_into().unwrap_or_default());
            let run = EncodedRun {
                number,
                summary,
                line,
            };
            batch.push((tenant.into(), instance.into()), run, None)?;
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
            if let Some(spool) = &mut self.spool
                && spooled.is_ok()
            {
                spooled = spool.append(&SpoolRecord {
                    tenant: tenant.to_string(),
                    instance: instance.to_string(),
                    number: run.number.to_be_bytes().to_vec(),
                    summary: run.summary.clone(),
                    line: run.line.clone(),
                });
                if spooled.is_ok() {
                    pending.note_spooled();
                }
            }
            let whose = (tenant, Arc::clone(instance));
            if let Err(error) = self.push(whose, run, Some(pending)) {
                tracing::error!(%error, "an ended run could not be compressed");
                self.is_partial = true;
            }
        }
        spooled
    }

    fn push(
        &mut self,
        (tenant, instance): (Arc<str>, Arc<str>),
        run: EncodedRun,
        pending: Option<PendingRun>,
    ) -> io::Result<()> {
        let ms = RunId::millis_of(run.number);
        let key = SegmentKey {
            tenant,
            instance,
            hour: Hour::of(ms),
        };
        let open = self.segments.entry(key).or_default();
        let spans = open.iter().map(|segment| segment.span);
        let segment = match AskedSpan::choose(spans, ms, self.widest) {
            Some(at) => &mut open[at],
            None => open.push_mut(OpenSegment::new(ms)?),
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
        for (key, open) in self.segments {
            for segment in open {
                let runs = segment.runs;
                match segment.seal(&key) {
                    Ok(segment) => batch.segments.push(segment),
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
mod tests {
    use proptest::prelude::*;

    use super::super::queue::{ArchivableRun, ArchiveMark, ArchiveQueue, ArchiveState};
    use super::super::segment::read_all;
    use super::*;

    /// 2026-12-01T12:00:00Z, with which an hour begins.
    const NOON: u64 = 1_796_126_400_000;
    const HOUR: u64 = 3_600_000;
    const SECOND: Duration = Duration::from_secs(1);
    /// The widest span of a batch of a second.
    const WIDEST: u64 = 10_000;

    /// Seals a batch with a run of each time after noon, and returns the segments' spans after
    /// noon, each with the times of its runs, in order.
    fn sealed(times: &[u64], interval: Duration) -> Vec<((u64, u64), Vec<u64>)> {
        let mut batch = Batch::without_spool(interval);
        for (low, after) in (0_u128..).zip(times) {
            let run = EncodedRun {
                number: RunId::first_number_at(NOON + after) | low,
                summary: Vec::new(),
                line: b"{}".to_vec(),
            };
            batch.push(("t".into(), "i".into()), run, None).unwrap();
        }
        let sealed = batch.seal();
        assert!(!sealed.is_partial);
        let segment = |sealed: SealedSegment| {
            let name = SegmentName::parse(&sealed.path).unwrap();
            let runs = read_all(&sealed.bytes).unwrap();
            assert_eq!(sealed.runs, runs.len() as u64);
            let times = runs.iter().map(|run| RunId::millis_of(run.number) - NOON);
            let mut times: Vec<u64> = times.collect();
            times.sort_unstable();
            ((name.first - NOON, name.last - NOON), times)
        };
        let mut segments: Vec<_> = sealed.segments.into_iter().map(segment).collect();
        segments.sort();
        segments
    }

    fn spans(times: &[u64]) -> Vec<(u64, u64)> {
        sealed(times, SECOND)
            .into_iter()
            .map(|(span, _)| span)
            .collect()
    }

    #[test]
    fn a_segment_spans_ten_seconds_and_no_more() {
        assert_eq!(spans(&[5000, 0, 10_000]), [(0, 10_000)]);
        assert_eq!(spans(&[0, 10_001]), [(0, 0), (10_001, 10_001)]);
        // The nearer one is too wide with it already.
        assert_eq!(
            spans(&[0, 9000, 14_000, 11_000]),
            [(0, 9000), (11_000, 14_000)]
        );
        // Of two that it fits into, it joins the nearer.
        assert_eq!(spans(&[0, 12_000, 7000]), [(0, 0), (7000, 12_000)]);
        // Runs that gather for a minute span more.
        let minute = sealed(&[0, 120_000, 120_001], 60 * SECOND);
        assert_eq!(minute.len(), 2);
        assert_eq!(minute[0].0, (0, 120_000));
    }

    #[test]
    fn segments_that_no_more_may_be_opened_beside_take_what_is_nearest() {
        let minutes: Vec<u64> = (0..8).map(|minute| minute * 60_000).collect();
        let before: Vec<(u64, u64)> = minutes.iter().map(|ms| (*ms, *ms)).collect();
        assert_eq!(spans(&minutes), before);
        let mut after = before.clone();
        after[7].1 = 3_000_000;
        after[2].0 = 95_000;
        let more = [&minutes[..], &[3_000_000, 95_000]].concat();
        assert_eq!(spans(&more), after);
        // Runs of other hours have segments of their own.
        let more = [&minutes[..], &[HOUR, HOUR + 20_000]].concat();
        assert_eq!(spans(&more).len(), 10);
    }

    /// Takes a run on that was asked for at noon, and adds it to the batch.
    fn added(batch: &mut Batch, queue: &Arc<ArchiveQueue>, low: u128) -> (Arc<ArchiveMark>, bool) {
        let mark = ArchiveMark::queued();
        let number = RunId::first_number_at(NOON) | low;
        queue.offer(ArchivableRun {
            tenant: "t".into(),
            number,
            share: Arc::default(),
            cost: 10,
            mark: Arc::clone(&mark),
            encode: Box::new(move || EncodedRun {
                number,
                summary: Vec::new(),
                line: b"{}".to_vec(),
            }),
        });
        let runs = queue.take(Instant::now()).runs;
        (mark, batch.add(&"i".into(), runs).is_ok())
    }

    #[test]
    fn a_run_that_the_file_could_not_take_is_lost_when_it_is_given_up_and_the_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let queue = ArchiveQueue::new(1 << 20, 1 << 20);
        let mut batch = Batch::new(Some(folder.path()), SECOND).unwrap();
        let (kept, is_spooled) = added(&mut batch, &queue, 1);
        assert!(is_spooled);
        batch.spool.as_mut().unwrap().refuse_more();
        let (lost, is_spooled) = added(&mut batch, &queue, 2);
        assert!(!is_spooled);
        let sealed = batch.seal();
        let runs: u64 = sealed.segments.iter().map(|segment| segment.runs).sum();
        assert_eq!(runs, 2, "they can be written while the daemon is there");
        sealed.segments.into_iter().for_each(SealedSegment::give_up);
        assert_eq!(kept.state(), ArchiveState::Queued);
        assert_eq!(lost.state(), ArchiveState::Dropped);
        let dropped = &queue.counters.dropped_failed;
        assert_eq!(dropped.load(std::sync::atomic::Ordering::Relaxed), 1);
        drop(sealed.spool);
        let (_, records) = super::super::spool::adopt(folder.path()).unwrap().unwrap();
        assert_eq!(records.len(), 1);
    }

    proptest! {
        #[test]
        fn runs_of_a_few_moments_are_divided_by_them_in_any_order(
            times in Just(
                (0..8)
                    .flat_map(|moment| (0..5).map(move |run| moment * 400_000 + run * 2500))
                    .collect::<Vec<u64>>()
            )
            .prop_shuffle()
        ) {
            let moments: Vec<(u64, u64)> =
                (0..8).map(|moment| (moment * 400_000, moment * 400_000 + 10_000)).collect();
            prop_assert_eq!(spans(&times), moments);
        }

        #[test]
        fn segments_are_few_and_narrow_unless_there_may_be_no_more(
            times in prop::collection::vec(0..HOUR, 1..60),
            within in prop::sample::select(vec![5000, 40_000, HOUR]),
        ) {
            let mut times: Vec<u64> = times.into_iter().map(|ms| ms % within).collect();
            let segments = sealed(&times, SECOND);
            prop_assert!(segments.len() <= MOST_OPEN);
            for ((first, last), runs) in &segments {
                prop_assert_eq!((Some(first), Some(last)), (runs.first(), runs.last()));
                prop_assert!(last - first <= WIDEST || segments.len() == MOST_OPEN);
            }
            // Two that are next to each other would not fit into one.
            for pair in segments.windows(2) {
                prop_assert!(pair[1].0.1 - pair[0].0.0 > WIDEST);
            }
            let mut all: Vec<u64> = segments.into_iter().flat_map(|(_, runs)| runs).collect();
            all.sort_unstable();
            times.sort_unstable();
            prop_assert_eq!(all, times);
        }
    }
}
