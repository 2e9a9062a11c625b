//! Bytes in flight, of requests or of answers: how they are taken of a budget, and refused where it is used up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::refusal::{Reason, Refusal};

/// What a refused caller is told to wait.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// What bytes in flight are of, and the setting that bounds them.
#[derive(Clone, Copy, Debug)]
pub(super) struct InflightBytes {
    pub(super) of: &'static str,
    pub(super) setting: &'static str,
}

/// Takes `bytes` of a budget.
///
/// # Errors
/// `QUEUE_FULL`.
pub(super) fn take(
    held: &AtomicU64,
    bytes: u64,
    budget: u64,
    InflightBytes { of, setting }: InflightBytes,
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
            .retry_after(RETRY)
    })
}
