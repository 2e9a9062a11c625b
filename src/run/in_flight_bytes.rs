//! A byte budget for what is in flight, of requests or of answers: how bytes are reserved, and
//! refused where the budget is used up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::model::refusal::{Reason, Refusal};

/// How long a refused caller is told to wait before it tries again.
pub const RETRY_IN_FLIGHT: Duration = Duration::from_millis(500);

/// The budget that bytes in flight are reserved from, as a refusal names it.
#[derive(Clone, Copy, Debug)]
pub struct InFlightLimit {
    /// What the bytes belong to, in words.
    pub of: &'static str,
    /// The setting that bounds them.
    pub setting: &'static str,
}

/// A count of bytes that are held, and the most that it may reach.
#[derive(Clone, Copy, Debug)]
pub struct HeldBytes<'a> {
    /// The bytes that are held now.
    pub held: &'a AtomicU64,
    /// The most that may be held.
    pub max: u64,
}

impl HeldBytes<'_> {
    fn reserve(self, bytes: u64, limit: InFlightLimit) -> Result<(), Refusal> {
        let Self { held, max } = self;
        let fits = held.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            held.checked_add(bytes).filter(|held| *held <= max)
        });
        let InFlightLimit { of, setting } = limit;
        fits.map(|_| ()).map_err(|_| {
            let message = format!(
                "{bytes} bytes more would be over the {max} that {of} may hold together ({setting})"
            );
            Refusal::new(Reason::QueueFull, message)
                .with("allowed", max)
                .with("limit", setting)
                .retry_after(RETRY_IN_FLIGHT)
        })
    }
}

/// Reserves `bytes` of a tenant's share of a budget, if there is one, and of the budget itself.
/// Where either has no room, neither is changed. [`release_bytes`] gives the bytes back.
///
/// # Errors
/// `QUEUE_FULL` where the share or the budget has no room for them.
pub fn reserve_bytes(
    bytes: u64,
    share: Option<HeldBytes<'_>>,
    budget: HeldBytes<'_>,
    limit: InFlightLimit,
) -> Result<(), Refusal> {
    if let Some(share) = share {
        share.reserve(bytes, limit)?;
    }
    budget.reserve(bytes, limit).inspect_err(|_| {
        if let Some(share) = share {
            share.held.fetch_sub(bytes, Ordering::AcqRel);
        }
    })
}

/// Gives back what [`reserve_bytes`] reserved.
pub fn release_bytes(bytes: u64, share: Option<&AtomicU64>, budget: &AtomicU64) {
    budget.fetch_sub(bytes, Ordering::AcqRel);
    if let Some(share) = share {
        share.fetch_sub(bytes, Ordering::AcqRel);
    }
}
