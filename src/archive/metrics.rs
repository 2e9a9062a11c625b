//! The metrics of the archive.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Archive;
use crate::metrics::{MetricSource, MetricWriter, Unit};

impl MetricSource for Archive {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let counters = self.counters();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        to.counter(
            "archive_runs",
            "Ended runs that were written to the archive.",
            count(&counters.written),
        )?;
        to.counters(
            "archive_runs_dropped",
            "Ended runs that were not written to the archive, because as many bytes waited as may (queue_full), or because the archive could not be written before the daemon ended (failed).",
            None,
            [
                ([("reason", "queue_full")], count(&counters.dropped_full)),
                ([("reason", "failed")], count(&counters.dropped_failed)),
            ],
        )?;
        to.counter(
            "archive_failed_writes",
            "Requests to write a segment of the archive that failed. They are repeated.",
            count(&counters.failed_writes),
        )?;
        to.counter(
            "archive_segments",
            "Segments that were written to the archive.",
            count(&counters.segments),
        )?;
        to.counter(
            "archive_written_bytes",
            "Bytes of the segments that were written to the archive.",
            count(&counters.bytes),
        )?;
        to.gauge(
            "archive_queue",
            "Bytes of ended runs that wait to be written to the archive.",
            Some(&Unit::Bytes),
            self.waiting_bytes() as u64,
        )?;
        to.gauge(
            "archive_queue_capacity",
            "The most bytes of ended runs that may wait to be written to the archive (runs.archive_queue).",
            Some(&Unit::Bytes),
            self.queue_capacity() as u64,
        )
    }
}
