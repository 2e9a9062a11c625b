//! Totals of all connections of the daemon since its start, for its metrics.

use std::fmt;
use std::sync::Arc;

use super::close_reason::CloseReason;
use crate::metrics::{Count, Level, MetricSource, MetricWriter, Unit};

/// Totals over all listeners. The counters of a listener's closed connections
/// (`close_counters`) are those since its last line in the log.
#[derive(Debug, Default)]
pub struct ConnectionCounters {
    pub(super) accepted: Count,
    pub(super) open: Level,
    pub(super) received: Count,
    pub(super) sent: Count,
    /// Connections that were closed, in the order of [`CloseReason::NAMES`].
    closed: [Count; CloseReason::NAMES.len()],
}

impl ConnectionCounters {
    /// Creates counters of no connections.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Counts a connection that the daemon closed, or refused.
    pub(super) fn count_closed(&self, reason: CloseReason) {
        self.closed[reason.index()].increment();
    }
}

/// The counters of the gRPC listeners' connections, and of those of the admin listener.
#[derive(Clone, Debug)]
pub struct ConnectionTotals {
    /// The connections of the gRPC listeners.
    pub grpc: Arc<ConnectionCounters>,
    /// The connections of the admin listener.
    pub admin: Arc<ConnectionCounters>,
}

impl MetricSource for ConnectionTotals {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let listeners = [("grpc", &self.grpc), ("admin", &self.admin)];
        to.counters(
            "connections_accepted",
            "Connections that got a slot of their listener, by listener.",
            None,
            listeners.map(|(listener, it)| ([("listener", listener)], it.accepted.get())),
        )?;
        to.gauges(
            "connections",
            "Connections that are open now, by listener.",
            None,
            listeners.map(|(listener, it)| ([("listener", listener)], it.open.get())),
        )?;
        let closed = listeners.into_iter().flat_map(|(listener, it)| {
            let reasons = CloseReason::NAMES.into_iter().zip(&it.closed);
            reasons.map(move |(reason, count)| {
                let labels = [("listener", listener), ("reason", reason)];
                (labels, count.get())
            })
        });
        to.counters(
            "connections_closed",
            "Connections that the daemon refused or closed, by listener and by reason.",
            None,
            closed,
        )?;
        let bytes = listeners.into_iter().flat_map(|(listener, it)| {
            let directions = [("received", &it.received), ("sent", &it.sent)];
            directions.map(|(direction, count)| {
                let labels = [("listener", listener), ("direction", direction)];
                (labels, count.get())
            })
        });
        to.counters(
            "network",
            "Bytes that connections received and sent, without those of TLS.",
            Some(&Unit::Bytes),
            bytes,
        )
    }
}
