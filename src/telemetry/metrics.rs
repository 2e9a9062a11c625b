//! The metrics of the log and of the audit log, which are this process's.

use std::fmt;

use super::audit_writer::LOST;
use super::run_lines::dropped_lines;
use crate::metrics::{MetricSource, MetricWriter};

/// The log and the audit log of this process, as a source of metrics.
#[derive(Clone, Copy, Debug)]
pub struct LogMetrics;

impl MetricSource for LogMetrics {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        to.counter(
            "log_lines_dropped",
            "Lines of the log that were dropped because nobody reads standard error fast enough.",
            dropped_lines(),
        )?;
        to.counter(
            "audit_lines_lost",
            "Lines of the audit log that could not be written.",
            LOST.get(),
        )
    }
}
