//! What was exported, what was dropped and why, and how often the collector failed.

use crate::metrics::Count;

/// Why something is not exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DropReason {
    /// As much waits already as may (`telemetry.otlp_queue`).
    QueueFull,
    /// The collector refuses it, and would do so again.
    Rejected,
    /// The collector was away, or failed, for as long as it is tried again.
    Undelivered,
}

impl DropReason {
    /// Every reason, in the order of the counts.
    pub(super) const ALL: [Self; 3] = [Self::QueueFull, Self::Rejected, Self::Undelivered];

    /// Returns its name in metrics.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Rejected => "rejected",
            Self::Undelivered => "undelivered",
        }
    }
}

/// The counts of one signal: of spans, or of log records.
#[derive(Debug, Default)]
pub(super) struct SignalCounters {
    /// Those that the collector took.
    pub(super) exported: Count,
    dropped: [Count; DropReason::ALL.len()],
    /// Requests that the collector did not take.
    pub(super) failures: Count,
}

impl SignalCounters {
    /// Counts records that are not exported.
    pub(super) fn count_dropped(&self, reason: DropReason, records: u64) {
        self.dropped[reason as usize].add(records);
    }

    /// Returns how many were dropped for a reason.
    pub(super) fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].get()
    }
}

/// The counts of everything that is exported.
#[derive(Debug, Default)]
pub(super) struct ExportCounters {
    pub(super) spans: SignalCounters,
    pub(super) log_records: SignalCounters,
    /// Bytes of guests' output that found no room in the queue.
    pub(super) dropped_output: Count,
}
