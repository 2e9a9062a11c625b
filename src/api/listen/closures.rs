//! Connections that the daemon closed, told by their number: whoever opens them can make no line of the log for each.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::connection_table::BoundReached;
use super::origin::Origin;
use crate::api::line_budget::LineBudget;

/// How often the numbers are told.
const TELL: Duration = Duration::from_secs(1);

/// Why a connection was closed, or not taken.
#[derive(Clone, Copy, Debug)]
pub(super) enum Closure {
    /// There was no place, and nobody to make way.
    Refused(BoundReached),
    /// It had not authenticated, and made way for another.
    Evicted,
    /// It had not authenticated in time.
    Overdue,
    /// It spoke another protocol than its listener.
    Foreign(ForeignProtocol),
}

/// What a connection speaks that its listener does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ForeignProtocol {
    /// Something without TLS, where it is wanted.
    Plaintext,
    /// TLS, where there is none.
    Tls,
    /// HTTP/1.
    Http1,
}

/// The numbers of one listener.
#[derive(Debug)]
pub(super) struct Closures {
    listener: String,
    refused: AtomicU64,
    evicted: AtomicU64,
    overdue: AtomicU64,
    plaintext: AtomicU64,
    tls: AtomicU64,
    http1: AtomicU64,
    /// For the lines of debugging.
    lines: Mutex<LineBudget>,
}

impl Closures {
    pub(super) fn new(listener: String) -> Self {
        Self {
            listener,
            refused: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            overdue: AtomicU64::new(0),
            plaintext: AtomicU64::new(0),
            tls: AtomicU64::new(0),
            http1: AtomicU64::new(0),
            lines: Mutex::new(LineBudget::default()),
        }
    }

    /// Counts a connection of `peer`.
    pub(super) fn count(&self, closure: Closure, peer: Origin) {
        let (count, why) = match closure {
            Closure::Refused(reached) => (&self.refused, reached.as_str()),
            Closure::Evicted => (
                &self.evicted,
                "it made way for another, having had no call that authenticates",
            ),
            Closure::Overdue => (
                &self.overdue,
                "no call authenticated within server.first_call_timeout",
            ),
            Closure::Foreign(ForeignProtocol::Plaintext) => (
                &self.plaintext,
                "it spoke plaintext to a listener with TLS ([tls])",
            ),
            Closure::Foreign(ForeignProtocol::Tls) => (
                &self.tls,
                "it spoke TLS to a listener without ([tls], or a unix socket)",
            ),
            Closure::Foreign(ForeignProtocol::Http1) => {
                (&self.http1, "it spoke HTTP/1, where gRPC wants HTTP/2")
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        self.debug(peer, why);
    }

    /// Says of a connection why it was closed, where somebody debugs and there is room for a line.
    pub(super) fn debug(&self, peer: Origin, why: &str) {
        if tracing::enabled!(tracing::Level::DEBUG) && self.lines().admit(peer) {
            tracing::debug!(listener = self.listener, %peer, why, "a connection was closed");
        }
    }

    /// Tells the numbers, where there are any, for as long as it is polled.
    pub(super) async fn keep_telling(&self) {
        loop {
            tokio::time::sleep(TELL).await;
            self.tell();
        }
    }

    /// Tells what has not been told yet.
    pub(super) fn tell(&self) {
        // Of the lines that were left out these are the numbers.
        let _ = self.lines().roll();
        let counts = [&self.refused, &self.evicted, &self.overdue];
        let [refused, evicted, overdue] = counts.map(|it| it.swap(0, Ordering::Relaxed));
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
        let counts = [&self.plaintext, &self.tls, &self.http1];
        let [plaintext, tls, http1] = counts.map(|it| it.swap(0, Ordering::Relaxed));
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

    fn lines(&self) -> std::sync::MutexGuard<'_, LineBudget> {
        // Nothing panics while it is held.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
