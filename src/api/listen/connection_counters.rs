//! Totals of all connections of the daemon since its start, for its metrics.

use std::fmt;
use std::sync::Arc;

use super::close_counters::{CloseReason, ForeignProtocol};
use crate::metrics::{Count, Level, MetricSource, MetricWriter, Unit};

/// Totals over all listeners. The counters of a listener's closed connections
/// ([`super::close_counters`]) are those since its last line in the log.
#[derive(Debug, Default)]
pub struct ConnectionCounters {
    pub(super) accepted: Count,
    pub(super) open: Level,
    pub(super) received: Count,
    pub(super) sent: Count,
    refused: Count,
    evicted: Count,
    overdue: Count,
    plaintext: Count,
    tls: Count,
    http1: Count,
}

impl ConnectionCounters {
    /// Creates counters of no connections.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Counts a connection that the daemon closed, or refused.
    pub(super) fn count_closed(&self, reason: CloseReason) {
        let count = match reason {
            CloseReason::Refused(_) => &self.refused,
            CloseReason::Evicted => &self.evicted,
            CloseReason::Overdue => &self.overdue,
            CloseReason::Foreign(ForeignProtocol::Plaintext) => &self.plaintext,
            CloseReason::Foreign(ForeignProtocol::Tls) => &self.tls,
            CloseReason::Foreign(ForeignProtocol::Http1) => &self.http1,
        };
        count.increment();
    }
}

impl MetricSource for ConnectionCounters {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        to.counter(
            "connections_accepted",
            "Connections that got a slot of server.max_connections.",
            self.accepted.get(),
        )?;
        to.gauge(
            "connections",
            "Connections that are open now.",
            None,
            self.open.get(),
        )?;
        let closed = [
            ("refused", &self.refused),
            ("evicted", &self.evicted),
            ("overdue", &self.overdue),
            ("plaintext", &self.plaintext),
            ("tls", &self.tls),
            ("http1", &self.http1),
        ];
        to.counters(
            "connections_closed",
            "Connections that the daemon refused or closed, by reason.",
            None,
            closed.map(|(reason, count)| ([("reason", reason)], count.get())),
        )?;
        let bytes = [("received", &self.received), ("sent", &self.sent)];
        to.counters(
            "network",
            "Bytes that connections received and sent, without those of TLS.",
            Some(&Unit::Bytes),
            bytes.map(|(direction, count)| ([("direction", direction)], count.get())),
        )
    }
}
