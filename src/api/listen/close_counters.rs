//! Counters of the connections that the daemon closed, logged once a second as totals: a peer that
//! opens many connections cannot cause a log line for each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::close_reason::{CloseReason, ForeignProtocol};
use super::connection_counters::ConnectionCounters;
use super::origin::ConnectionOrigin;
use crate::api::layers::log_rate_limiter::LogRateLimiter;
use crate::sync::lock;

/// How often the counters are logged and reset.
const TELL: Duration = Duration::from_secs(1);

/// The counters of one listener, by reason, since they were last logged.
#[derive(Debug)]
pub(super) struct CloseCounters {
    listener: String,
    /// The same counts over all listeners, since the start.
    totals: Arc<ConnectionCounters>,
    /// Counts in the order of [`CloseReason::NAMES`].
    counts: [AtomicU64; CloseReason::NAMES.len()],
    /// Limits the debug lines that a peer without a credential can cause.
    lines: Mutex<LogRateLimiter>,
}

impl CloseCounters {
    /// Creates the counters of the listener that the log calls `listener`. They add to `totals`.
    pub(super) fn new(listener: String, totals: Arc<ConnectionCounters>) -> Self {
        Self {
            listener,
            totals,
            counts: Default::default(),
            lines: Mutex::new(LogRateLimiter::default()),
        }
    }

    /// Counts a closed connection of `peer`, and logs it at debug level where the rate limit
    /// allows.
    pub(super) fn count(&self, closure: CloseReason, peer: ConnectionOrigin) {
        let why = match closure {
            CloseReason::Refused(reached) => reached.as_str(),
            CloseReason::Evicted => {
                "it made way for another, having had no call that authenticates"
            }
            CloseReason::Overdue => "no call authenticated within server.first_call_timeout",
            CloseReason::Foreign(ForeignProtocol::Plaintext) => {
                "it spoke plaintext to a listener with TLS ([tls])"
            }
            CloseReason::Foreign(ForeignProtocol::Tls) => {
                "it spoke TLS to a listener without ([tls], or a unix socket)"
            }
            CloseReason::Foreign(ForeignProtocol::Http1) => {
                "it spoke HTTP/1, where gRPC wants HTTP/2"
            }
        };
        self.counts[closure.index()].fetch_add(1, Ordering::Relaxed);
        self.totals.count_closed(closure);
        self.debug(peer, why);
    }

    /// Returns the totals over all listeners.
    pub(super) fn totals(&self) -> &Arc<ConnectionCounters> {
        &self.totals
    }

    /// Logs at debug level why a connection was closed, where the rate limit has room for another
    /// line.
    pub(super) fn debug(&self, peer: ConnectionOrigin, why: &str) {
        if tracing::enabled!(tracing::Level::DEBUG) && self.lines().admit(peer) {
            tracing::debug!(listener = self.listener, %peer, why, "a connection was closed");
        }
    }

    /// Logs the counters once a second, where there is anything to log, for as long as it is
    /// polled.
    pub(super) async fn report_periodically(&self) {
        loop {
            tokio::time::sleep(TELL).await;
            self.report();
        }
    }

    /// Logs what was counted since the last report, and resets the counters.
    pub(super) fn report(&self) {
        // The number of suppressed debug lines is not needed: the counters cover those connections.
        let _ = self.lines().roll();
        let counts = self.counts.each_ref();
        let [refused, evicted, overdue, plaintext, tls, http1] =
            counts.map(|it| it.swap(0, Ordering::Relaxed));
        if refused + evicted + overdue > 0 {
            tracing::warn!(
                listener = self.listener,
                refused,
                evicted,
                overdue,
                "connections were closed: refused, since this listener's share of server.max_connections or their \
                 peer's is used up; evicted, to make way for others before a call had authenticated; overdue, since \
                 none had within server.first_call_timeout"
            );
        }
        if plaintext + tls + http1 > 0 {
            tracing::info!(
                listener = self.listener,
                plaintext,
                tls,
                http1,
                "connections spoke another protocol than this listener: plaintext where [tls] is set, TLS where it is \
                 not, or HTTP/1; telemetry.log_level = \"debug\" tells whose"
            );
        }
    }

    /// Locks the rate limiter of the debug lines.
    fn lines(&self) -> std::sync::MutexGuard<'_, LogRateLimiter> {
        lock(&self.lines)
    }
}
