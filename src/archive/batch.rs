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

/// Runs that ended longer than this after they were asked for have segments of their own, so that
/// those of all others span a few seconds, and few of them have to be looked at for one run.
const LONG: Duration = Duration::from_secs(10);

/// Bytes that a run holds besides what it is encoded as.
const REST: usize = 512;

/// What the runs of one segment have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct SegmentKey {
    tenant: Arc<str>,
    instance: Arc<str>,
    hour: Hour,
    is_long: bool,
}

struct OpenSegment {
    first: u64,
    last: u64,
    builder: SegmentBuilder,
    runs: u64,
    pending: Vec<PendingRun>,
}

/// Runs that are encoded, and wait for their segments to end.
pub(super) struct Batch {
    pub(super) opened: Instant,
    segments: HashMap<SegmentKey, OpenSegment>,
    /// Has the same runs, until they are written.
    spool: Option<SpoolFile>,
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

/// A batch that is ready to be written.
#[derive(Debug)]
pub(super) struct SealedBatch {
    pub(super) segments: Vec<SealedSegment>,
    /// Has the same runs, until they are written.
    pub(super) spool: Option<SpoolFile>,
    /// Whether some runs are in the file alone, as they could not be compressed.
    pub(super) is_partial: bool,
}

impl Batch {
    /// Creates a batch without runs, whose runs are also written to a file in `spool`.
    ///
    /// # Errors
    /// The file cannot be created.
    pub(super) fn new(spool: Option<&Path>) -> io::Result<Self> {
        Ok(Self {
            spool: spool.map(SpoolFile::create).transpose()?,
            ..Self::without_spool()
        })
    }

    /// Creates a batch without runs and without a file.
    pub(super) fn without_spool() -> Self {
        Self {
            opened: Instant::now(),
            segments: HashMap::new(),
            spool: None,
        }
    }

    /// Creates a batch of the runs that a daemon left in `file`.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn recovered(file: SpoolFile, records: Vec<SpoolRecord>) -> io::Result<Self> {
        let mut batch = Self::without_spool();
        batch.spool = Some(file);
        for record in records {
            let SpoolRecord {
                tenant,
                instance,
                number,
                is_long,
                summary,
                line,
            } = record;
            let number = u128::from_be_bytes(number.try_into().unwrap_or_default());
            let run = EncodedRun {
                number,
                summary,
                line,
            };
            batch.push((tenant.into(), instance.into(), is_long), run, None)?;
        }
        Ok(batch)
    }

    /// Returns how many bytes of lines and summaries the segments have so far: whoever reads or
    /// replaces a segment has them in memory, however well they are compressed.
    pub(super) fn unpacked(&self) -> usize {
        let segments = self.segments.values();
        segments.map(|segment| segment.builder.unpacked()).sum()
    }

    /// Encodes runs of `instance`, and takes them into their segments and into the file.
    ///
    /// # Errors
    /// Some of them could not be written to the file. All are in the segments even so.
    pub(super) fn add(&mut self, instance: &Arc<str>, runs: Vec<QueuedRun>) -> io::Result<()> {
        let mut spooled = Ok(());
        for run in runs {
            let QueuedRun {
                tenant,
                took,
                encode,
                mut pending,
            } = run;
            // A run that cannot be encoded must not end the thread.
            let encoded = catch_unwind(AssertUnwindSafe(encode));
            let Ok(run) = encoded else { continue };
            pending.recharge(REST + run.summary.len() + run.line.len());
            let is_long = took > LONG;
            if let Some(spool) = &mut self.spool
                && spooled.is_ok()
            {
                spooled = spool.append(&SpoolRecord {
                    tenant: tenant.to_string(),
                    instance: instance.to_string(),
                    number: run.number.to_be_bytes().to_vec(),
                    is_long,
                    summary: run.summary.clone(),
                    line: run.line.clone(),
                });
            }
            let key = (tenant, Arc::clone(instance), is_long);
            if let Err(error) = self.push(key, run, Some(pending)) {
                tracing::error!(%error, "an ended run could not be compressed");
            }
        }
        spooled
    }

    fn push(
        &mut self,
        (tenant, instance, is_long): (Arc<str>, Arc<str>, bool),
        run: EncodedRun,
        pending: Option<PendingRun>,
    ) -> io::Result<()> {
        let ms = RunId::millis_of(run.number);
        let key = SegmentKey {
            tenant,
            instance,
            hour: Hour::of(ms),
            is_long,
        };
        let segment = match self.segments.entry(key) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(OpenSegment {
                first: ms,
                last: ms,
                builder: SegmentBuilder::new()?,
                runs: 0,
                pending: Vec::new(),
            }),
        };
        segment.first = segment.first.min(ms);
        segment.last = segment.last.max(ms);
        segment.runs += 1;
        segment.pending.extend(pending);
        segment.builder.push(run)
    }

    /// Ends the segments. Runs of one that cannot be compressed are dropped.
    pub(super) fn seal(self) -> SealedBatch {
        let mut batch = SealedBatch {
            segments: Vec::new(),
            spool: self.spool,
            is_partial: false,
        };
        for (key, segment) in self.segments {
            let name = SegmentName::new(segment.first, segment.last, &key.instance);
            match segment.builder.finish() {
                Ok(bytes) => batch.segments.push(SealedSegment {
                    path: name.path(&key.tenant),
                    bytes,
                    runs: segment.runs,
                    pending: segment.pending,
                }),
                Err(error) => {
                    tracing::error!(%error, runs = segment.runs, "ended runs could not be compressed");
                    batch.is_partial = true;
                }
            }
        }
        batch
    }
}
