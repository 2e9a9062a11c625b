//! The load of an admission queue, as Health reports it, and within which bounds a refused caller
//! is told to retry.

use std::time::Duration;

/// The least that a caller whom a full queue refuses is told to wait.
pub(super) const MIN_RETRY: Duration = Duration::from_millis(100);
/// The most that it is told to wait.
pub(super) const MAX_RETRY: Duration = Duration::from_secs(30);

/// How much of an admission queue's capacity is held, and how many requests wait for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLoad {
    /// Permits that are held now.
    pub held: u32,
    /// Permits that there are in all.
    pub permits: u32,
    /// Requests that wait now.
    pub waiting: u32,
    /// Bytes that are held now.
    pub bytes: u64,
    /// Bytes that there are in all; `u64::MAX` where they are not limited.
    pub capacity: u64,
}

impl QueueLoad {
    /// Adds the load of a second queue to this one. The longer of the two queues counts as what
    /// waits, since whoever waits in the second waits in the first as well.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            held: self.held + other.held,
            permits: self.permits + other.permits,
            waiting: self.waiting.max(other.waiting),
            bytes: self.bytes.saturating_add(other.bytes),
            capacity: self.capacity.saturating_add(other.capacity),
        }
    }
}
