//! What a gate holds: places and bytes.

use crate::limits::LEFT_TO_OTHERS;

/// Places and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    pub(super) places: u32,
    pub(super) bytes: u64,
}

impl Amount {
    /// One place, with so many bytes.
    pub(super) fn one(bytes: u64) -> Self {
        Self { places: 1, bytes }
    }

    /// Of places only, of which no number of bytes is too much.
    pub(super) fn places(places: u32) -> Self {
        Self {
            places,
            bytes: u64::MAX,
        }
    }

    /// Whether `more` fits beside this into `most`.
    pub(super) fn has_room(self, more: Self, most: Self) -> bool {
        self.places.saturating_add(more.places) <= most.places
            && self.bytes.saturating_add(more.bytes) <= most.bytes
    }

    /// Adds `more`.
    pub(super) fn add(&mut self, more: Self) {
        self.places += more.places;
        self.bytes += more.bytes;
    }

    /// Takes `less` away, which is in it.
    pub(super) fn sub(&mut self, less: Self) {
        self.places -= less.places;
        self.bytes -= less.bytes;
    }

    /// An eighth of it, and at least one place.
    pub(super) fn eighth(self) -> Self {
        let places = u64::from(self.places).div_ceil(LEFT_TO_OTHERS);
        Self {
            places: u32::try_from(places).unwrap_or(self.places),
            bytes: self.bytes / LEFT_TO_OTHERS,
        }
    }

    /// What one of several tenants may hold.
    pub(super) fn share(self) -> Self {
        let rest = |all: u64, least: u64| all - all.div_ceil(LEFT_TO_OTHERS).min(all - least);
        let places = rest(u64::from(self.places), 1);
        Self {
            places: u32::try_from(places).unwrap_or(self.places),
            bytes: match self.bytes {
                u64::MAX => u64::MAX,
                bytes => rest(bytes, bytes.min(1)),
            },
        }
    }
}
