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

/// Reserves `bytes` of a `budget` of which `held` bytes are reserved already. The caller subtracts
/// them from `held` when they are no longer in use.
///
/// # Errors
/// `QUEUE_FULL` where the budget has no room for them.
pub fn reserve_bytes(
    held: &AtomicU64,
    bytes: u64,
    budget: u64,
    InFlightLimit { of, setting }: InFlightLimit,
) -> Result<(), Refusal> {
    let fits = held.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
        held.checked_add(bytes).filter(|held| *held <= budget)
    });
    fits.map(|_| ()).map_err(|_| {
        let message = format!(
            "{bytes} bytes more would be over the {budget} that {of} may hold together ({setting})"
        );
        Refusal::new(Reason::QueueFull, message)
            .with("allowed", budget)
            .with("limit", setting)
            .retry_after(RETRY_IN_FLIGHT)
    })
}
