//! How much of a gate is held, as Health tells it.

/// What a gate holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Places that are held.
    pub held: u32,
    /// Places in all.
    pub places: u32,
    /// Those that wait.
    pub waiting: u32,
    /// Bytes that are held.
    pub bytes: u64,
    /// Bytes in all.
    pub capacity: u64,
}

impl Load {
    /// What two gates hold together, for the second of which nobody waits who does not wait for the first as well.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            held: self.held + other.held,
            places: self.places + other.places,
            waiting: self.waiting.max(other.waiting),
            bytes: self.bytes.saturating_add(other.bytes),
            capacity: self.capacity.saturating_add(other.capacity),
        }
    }
}
