//! The log's lines about calls that were refused before anybody knew whose they are.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::line_budget::{LineBudget, LinesLeftOut};
use super::listen::{Origin, Peer};
use crate::refusal::Refusal;

/// How often what was left out is told: the period of the budget.
const TELL: Duration = Duration::from_secs(1);

/// Writes a line for each such call while there are few, and counts them where there are many.
#[derive(Clone, Debug, Default)]
pub struct RefusalLog(Arc<Mutex<LineBudget>>);

impl RefusalLog {
    /// Tells of a refused call, or counts it.
    pub(super) fn refused(&self, peer: Option<&Peer>, refusal: &Refusal) {
        let origin = peer.map_or(Origin::Unknown, Peer::origin);
        if !self.lock().admit(origin) {
            return;
        }
        let peer = peer.map(Peer::name);
        tracing::info!(
            target: "ringfence::auth",
            peer = peer.as_deref(),
            reason = refusal.reason().as_str(),
            why = refusal.message(),
            "call refused"
        );
    }

    /// Tells how many calls had no line of their own, for as long as it is polled.
    pub async fn keep_telling(&self) {
        loop {
            tokio::time::sleep(TELL).await;
            self.tell();
        }
    }

    /// Tells what has not been told yet.
    pub fn tell(&self) {
        let LinesLeftOut { peers, others } = self.lock().roll();
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

    fn lock(&self) -> std::sync::MutexGuard<'_, LineBudget> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
