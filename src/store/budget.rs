//! How much of a store's budget is used: what was counted, and what is being written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a module takes besides its bytes and its record: what a file or an entry costs.
pub(super) const EACH: u64 = 1 << 10;

/// Bytes of a store's budget.
#[derive(Debug)]
pub(super) struct Budget {
    most: u64,
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    /// What is there; `None` until it was counted once.
    counted: Option<u64>,
    /// What is being written.
    reserved: u64,
}

/// Bytes that are being written; given back when it is dropped before they are there.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    bytes: u64,
}

/// There is no room.
#[derive(Debug)]
pub(super) struct Full {
    /// Bytes that are used.
    pub(super) used: u64,
    /// Bytes that there may be.
    pub(super) most: u64,
}

impl Budget {
    pub(super) fn new(most: u64) -> Arc<Self> {
        Arc::new(Self {
            most,
            used: Mutex::default(),
        })
    }

    /// Whether it was counted at all.
    pub(super) fn is_counted(&self) -> bool {
        self.lock().counted.is_some()
    }

    /// Notes what is there, again where others write there too; otherwise what was noted since is right.
    pub(super) fn counted(&self, bytes: u64, again: bool) {
        let mut used = self.lock();
        if again || used.counted.is_none() {
            used.counted = Some(bytes);
        }
    }

    /// Takes `bytes` for what is about to be written.
    pub(super) fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, Full> {
        let mut used = self.lock();
        let before = used.counted.unwrap_or_default() + used.reserved;
        if before.saturating_add(bytes) > self.most {
            return Err(Full {
                used: before,
                most: self.most,
            });
        }
        used.reserved += bytes;
        Ok(Reservation {
            budget: Arc::clone(self),
            bytes,
        })
    }

    /// Notes that `bytes` are there no more.
    pub(super) fn freed(&self, bytes: u64) {
        let mut used = self.lock();
        used.counted = used.counted.map(|counted| counted.saturating_sub(bytes));
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        // Nothing panics while it is held.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reservation {
    /// Notes that the bytes are there.
    pub(super) fn written(self) {
        let mut used = self.budget.lock();
        used.counted = used
            .counted
            .map(|counted| counted.saturating_add(self.bytes));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = self.budget.lock();
        used.reserved = used.reserved.saturating_sub(self.bytes);
    }
}
