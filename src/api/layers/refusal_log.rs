//! Logs the calls that were refused before anybody knew whose they are, at a limited rate.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::log_rate_limiter::{LogRateLimiter, SuppressedLines};
use crate::api::listen::{ConnectionOrigin, Peer};
use crate::model::refusal::Refusal;
use crate::sync::lock;

/// How often suppressed lines are reported, which is also the period of the rate limiter.
const TELL: Duration = Duration::from_secs(1);

/// The log of these calls. It writes a line for each while there are few, and counts them when
/// there are many. Clones share the counts.
#[derive(Clone, Debug, Default)]
pub struct RefusalLog(Arc<Mutex<LogRateLimiter>>);

impl RefusalLog {
    /// Logs a refused call, or counts it if the rate limiter allows no line.
    pub(in crate::api) fn refused(&self, peer: Option<&Peer>, refusal: &Refusal) {
        let origin = peer.map_or(ConnectionOrigin::Unknown, Peer::origin);
        if !self.lock().admit(origin) {
            return;
        }
        let peer = peer.map(Peer::name);
        tracing::info!(
            target: "ringfence::auth",
            peer = peer.as_deref(),
            reason = refusal.reason().as_str(),
            why = &*refusal.message(),
            "call refused"
        );
    }

    /// Reports each second how many calls had no line of their own, for as long as it is polled.
    pub async fn report_periodically(&self) {
        loop {
            tokio::time::sleep(TELL).await;
            self.report();
        }
    }

    /// Reports the calls that had no line of their own since the last report.
    pub fn report(&self) {
        let SuppressedLines { peers, others } = self.lock().roll();
        for (peer, left_out) in peers {
            tracing::info!(
                target: "ringfence::auth",
                %peer,
                left_out,
                "more calls of this peer were refused in this second"
            );
        }
        if others > 0 {
            tracing::info!(
                target: "ringfence::auth",
                left_out = others,
                "more calls of other peers were refused in this second"
            );
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, LogRateLimiter> {
        lock(&self.0)
    }
}
