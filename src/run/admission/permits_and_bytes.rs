//! The vector of resources that an admission queue hands out: permits and bytes.

use crate::model::limits::OTHERS_DIVISOR;

/// An amount of permits and of bytes, either of which may run out first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PermitsAndBytes {
    pub(super) permits: u32,
    pub(super) bytes: u64,
}

impl PermitsAndBytes {
    /// Creates a request for one permit and so many bytes.
    pub(super) fn one_permit(bytes: u64) -> Self {
        Self { permits: 1, bytes }
    }

    /// Creates a capacity of `places` permits and unlimited bytes.
    pub(super) fn places(places: u32) -> Self {
        Self {
            permits: places,
            bytes: u64::MAX,
        }
    }

    /// Reports whether `more` fits within `most` in addition to this.
    pub(super) fn has_room(self, more: Self, most: Self) -> bool {
        self.permits.saturating_add(more.permits) <= most.permits
            && self.bytes.saturating_add(more.bytes) <= most.bytes
    }

    /// Adds `more` to this.
    pub(super) fn add(&mut self, more: Self) {
        self.permits += more.permits;
        self.bytes += more.bytes;
    }

    /// Subtracts `less`, which must not exceed this.
    pub(super) fn sub(&mut self, less: Self) {
        self.permits -= less.permits;
        self.bytes -= less.bytes;
    }

    /// Returns an eighth of this, and at least one permit.
    pub(super) fn eighth(self) -> Self {
        let places = u64::from(self.permits).div_ceil(OTHERS_DIVISOR);
        Self {
            permits: u32::try_from(places).unwrap_or(self.permits),
            bytes: self.bytes / OTHERS_DIVISOR,
        }
    }

    /// Returns the most that one of several tenants may hold: all but an eighth, which is left to
    /// the others. Unlimited bytes stay unlimited.
    pub(super) fn share(self) -> Self {
        let rest = |all: u64, least: u64| all - all.div_ceil(OTHERS_DIVISOR).min(all - least);
        let places = rest(u64::from(self.permits), 1);
        Self {
            permits: u32::try_from(places).unwrap_or(self.permits),
            bytes: match self.bytes {
                u64::MAX => u64::MAX,
                bytes => rest(bytes, bytes.min(1)),
            },
        }
    }
}
