//! Writes ended runs behind the daemon: a thread encodes and compresses them, and a task puts the
//! segments into the archive, again and again until they are there.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use tokio::sync::{mpsc, watch};

use super::batch::{Batch, SealedBatch, SealedSegment};
use super::place::{ArchiveError, Place};
use super::queue::{ArchiveQueue, PendingRun};
use super::spool;

/// Bytes of lines in a batch, about, after which it is written before that.
const BATCH_BYTES: usize = 8 << 20;
/// How often it is looked whether another daemon has left runs behind.
const RECOVERY: Duration = Duration::from_secs(30);
/// How often it is looked whether what such a daemon left has been written, and there is more.
const NEXT_RECOVERY: Duration = Duration::from_millis(100);
/// How many batches may be on their way before no other ends because it is due, or because somebody
/// waits for it: runs gather in it instead, until it is large. Each batch has a file open, and so a
/// store that is away for long must not make them many, and one that is slow gets larger segments.
const MOST_ON_THEIR_WAY: usize = 16;
/// How often it is looked whether a batch that is due may end.
const NEXT_LOOK: Duration = Duration::from_millis(100);
/// Segments of a batch that are written at once.
const AT_ONCE: usize = 8;
/// The first and the longest wait before a segment is tried again.
const RETRY: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(10)];
/// How often the log says that the archive cannot be written.
const TOLD_EVERY: Duration = Duration::from_secs(60);

/// A batch on its way, and what is dropped when it has arrived.
pub(super) type SentBatch = (SealedBatch, Arc<()>);

/// Reports whether one more batch may be on its way, where each has a clone of `way`.
fn has_room(way: &Arc<()>) -> bool {
    Arc::strong_count(way) <= MOST_ON_THEIR_WAY
}

/// What the thread needs to encode runs.
pub(super) struct Encoder {
    pub(super) queue: Arc<ArchiveQueue>,
    pub(super) instance: Arc<str>,
    /// How long a batch gathers runs.
    pub(super) interval: Duration,
    /// The folder for files of runs on their way; `None`: there are no such files.
    pub(super) spool: Option<PathBuf>,
    /// Where batches go. How many wait there is bounded: those that end in time by
    /// [`MOST_ON_THEIR_WAY`], and those that are large by what the queue holds. So the thread never
    /// waits: runs are in the file beside the archive also while the archive is away.
    pub(super) sealed: mpsc::UnboundedSender<SentBatch>,
}

impl Encoder {
    /// Encodes runs until the queue is closed and empty.
    pub(super) fn run(self) {
        let mut batch: Option<Batch> = None;
        let mut recovery = Instant::now();
        let mut told = SpoolWarning::default();
        let mut recovered = Weak::new();
        // Each batch on its way has a clone.
        let way = Arc::new(());
        let (mut is_urgent, mut asked) = (false, 0);
        loop {
            if Instant::now() >= recovery {
                let has_more = self.recover(&mut recovered, &mut told);
                if !has_more {
                    self.queue.note_recovered(asked);
                }
                let wait = if has_more { NEXT_RECOVERY } else { RECOVERY };
                recovery = Instant::now() + wait;
            }
            let due = batch.as_ref().map(|batch| self.due(batch, is_urgent));
            let taken = self.queue.take(due.unwrap_or(recovery).min(recovery));
            if taken.recovery > asked {
                asked = taken.recovery;
                recovery = Instant::now();
            }
            let runs = taken.runs;
            if !runs.is_empty() {
                let batch = batch.get_or_insert_with(|| self.new_batch(&mut told));
                if let Err(error) = batch.add(&self.instance, runs) {
                    told.warn(&error);
                }
            }
            is_urgent |= taken.is_urgent;
            let ends = |batch: &Batch| {
                let is_due = is_urgent || batch.opened.elapsed() >= self.interval;
                let is_full = batch.unpacked() >= BATCH_BYTES;
                taken.is_closed || is_full || (is_due && has_room(&way))
            };
            if batch.as_ref().is_some_and(ends)
                && let Some(batch) = batch.take()
            {
                // The task ends after this thread.
                drop(self.sealed.send((batch.seal(), Arc::clone(&way))));
            }
            is_urgent &= batch.is_some();
            if taken.is_closed {
                // Nobody is to wait for what nobody does any more.
                return self.queue.note_recovered(u64::MAX);
            }
        }
    }

    /// Returns when it is to be seen to whether a batch ends. One that is due, and waits for those
    /// that are on their way, is looked at again.
    fn due(&self, batch: &Batch, is_urgent: bool) -> Instant {
        let (now, due) = (Instant::now(), batch.opened + self.interval);
        match is_urgent || due <= now {
            true => now + NEXT_LOOK,
            false => due,
        }
    }

    fn new_batch(&self, told: &mut SpoolWarning) -> Batch {
        Batch::new(self.spool.as_deref(), self.interval).unwrap_or_else(|error| {
            told.warn(&error);
            Batch::without_spool(self.interval)
        })
    }

    /// Takes over one file that a daemon which was killed has left, unless the one before is still
    /// on its way. Reports whether there may be more.
    fn recover(&self, before: &mut Weak<()>, told: &mut SpoolWarning) -> bool {
        let Some(folder) = &self.spool else {
            return false;
        };
        if before.upgrade().is_some() {
            return true;
        }
        let recovered = spool::adopt(folder).and_then(|adopted| {
            let batch =
                adopted.map(|(file, records)| Batch::recovered(file, records, self.interval));
            batch.transpose()
        });
        match recovered {
            Ok(Some(batch)) => {
                tracing::info!("ended runs that a daemon left are written to the archive");
                let way = Arc::new(());
                *before = Arc::downgrade(&way);
                drop(self.sealed.send((batch.seal(), way)));
                true
            }
            Ok(None) => false,
            Err(error) => {
                told.warn(&error);
                false
            }
        }
    }
}

/// Says now and then that the folder for runs on their way cannot be used.
#[derive(Default)]
struct SpoolWarning(Option<Instant>);

impl SpoolWarning {
    fn warn(&mut self, error: &io::Error) {
        if self.0.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
            tracing::warn!(%error, "the folder for runs on their way to the archive cannot be used (runs.archive_spool)");
            self.0 = Some(Instant::now());
        }
    }
}

/// Puts batches into the archive.
pub(super) struct Uploader {
    pub(super) queue: Arc<ArchiveQueue>,
    pub(super) place: Arc<Place>,
    pub(super) sealed: mpsc::UnboundedReceiver<SentBatch>,
    /// Whether what cannot be written is given up.
    pub(super) gives_up: watch::Receiver<bool>,
}

impl Uploader {
    /// Writes batches, in order, until no more come.
    pub(super) async fn run(mut self) {
        while let Some((batch, way)) = self.sealed.recv().await {
            let SealedBatch {
                segments,
                spool,
                is_partial,
            } = batch;
            let written = stream::iter(segments)
                .map(|segment| self.write(segment))
                .buffer_unordered(AT_ONCE);
            let all = written.fold(!is_partial, async |all, one| all && one).await;
            if let (true, Some(spool)) = (all, spool)
                && let Err(error) = spool.remove()
            {
                tracing::warn!(%error, "a file of archived runs stays (runs.archive_spool)");
            }
            drop(way);
        }
    }

    /// Puts a segment into the archive once. One that may have been there before may have been
    /// replaced since, because some of its runs were deleted: then it is not written once more, and
    /// the other holds.
    ///
    /// # Errors
    /// It was not written, as far as is known.
    async fn put(&self, segment: &SealedSegment, is_new: bool) -> Result<(), ArchiveError> {
        let (path, bytes) = (&segment.path, segment.bytes.clone());
        if is_new {
            return self.place.put(path, bytes).await;
        }
        self.place.create(path, bytes).await?;
        if self.place.has(&segment.tombstone).await? {
            self.place.delete(path).await?;
        }
        Ok(())
    }

    /// Writes a segment, and reports whether it is in the archive.
    async fn write(&self, segment: SealedSegment) -> bool {
        let mut gives_up = self.gives_up.clone();
        let mut told: Option<Instant> = None;
        let mut wait = RETRY[0];
        let mut is_new = !segment.is_recovered;
        let counters = &self.queue.counters;
        loop {
            let put = self.put(&segment, is_new);
            let put = tokio::select! {
                put = put => put,
                // An error says that the archive is gone.
                _ = gives_up.wait_for(|gives_up| *gives_up) => {
                    segment.give_up();
                    return false;
                }
            };
            let Err(error) = put else { break };
            // It may have been written although there was no answer.
            is_new = false;
            counters.failed_writes.fetch_add(1, Ordering::Relaxed);
            if told.is_none_or(|told| told.elapsed() >= TOLD_EVERY) {
                tracing::warn!(%error, runs = segment.runs, "ended runs wait, because the archive cannot be written");
                told = Some(Instant::now());
            }
            let ends = gives_up.wait_for(|gives_up| *gives_up);
            if tokio::time::timeout(wait, ends).await.is_ok() {
                segment.give_up();
                return false;
            }
            wait = (wait * 2).min(RETRY[1]);
        }
        counters.segments.fetch_add(1, Ordering::Relaxed);
        let bytes = segment.bytes.len() as u64;
        counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        segment.pending.into_iter().for_each(PendingRun::written);
        true
    }
}

/// Starts the thread that encodes.
///
/// # Errors
/// The host has no thread for it.
pub(super) fn start_encoder(encoder: Encoder) -> io::Result<std::thread::JoinHandle<()>> {
    let builder = std::thread::Builder::new().name("archive".to_owned());
    builder.spawn(move || encoder.run())
}

#[cfg(test)]
mod tests;
