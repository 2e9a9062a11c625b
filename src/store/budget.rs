//! How much of its budget a store uses: what was counted, and what is being written. Several stores share a total.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Settings;
use crate::limits::share_of;

/// What a module takes besides its bytes and its record: what a file or an entry costs.
pub(super) const EACH: u64 = 1 << 10;

/// What several stores may hold together.
#[derive(Debug)]
pub struct Total {
    most: u64,
    /// What one of the stores may hold.
    share: u64,
    /// Of each store.
    used: Mutex<Vec<Arc<Mutex<Used>>>>,
}

impl Total {
    /// Of so many bytes, for so many stores, none of which may hold the last eighth where there are several.
    pub fn new(most: u64, stores: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            share: share_of(most, stores > 1),
            used: Mutex::default(),
        })
    }
}

/// A store's budget.
#[derive(Debug)]
pub(super) struct Budget {
    total: Arc<Total>,
    bytes: Option<u64>,
    modules: Option<u64>,
    used: Arc<Mutex<Used>>,
}

#[derive(Debug, Default)]
struct Used {
    /// What is there; `None` until it was counted once.
    counted: Option<Amount>,
    /// What is being written.
    reserved: Amount,
}

/// Bytes, and modules.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Amount {
    pub(super) bytes: u64,
    pub(super) modules: u64,
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            modules: self.modules.saturating_add(other.modules),
        }
    }

    fn less(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(other.bytes),
            modules: self.modules.saturating_sub(other.modules),
        }
    }
}

impl Used {
    fn all(&self) -> Amount {
        self.counted.unwrap_or_default().plus(self.reserved)
    }
}

/// What is being written; given back when it is dropped before it is there.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    amount: Amount,
}

/// There is no room.
#[derive(Debug)]
pub(super) enum Full {
    /// In the place, which holds `budget` for all its stores together.
    Total { budget: u64, room: Room },
    /// In the tenant's quota of that name, of which so much is used, and which so much would be added to.
    Quota {
        name: &'static str,
        most: u64,
        used: u64,
        asked: u64,
    },
}

/// What a store may know of the bytes in its place: of what others hold there, nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// It has the place to itself.
    Own { used: u64, left: u64 },
    /// One of several, which would go over its share.
    Share { share: u64, used: u64 },
    /// One of several, within its share: together they hold too much.
    Shared,
}

impl Budget {
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        let used = Arc::<Mutex<Used>>::default();
        lock(&settings.total.used).push(Arc::clone(&used));
        Arc::new(Self {
            total: Arc::clone(&settings.total),
            bytes: settings.bytes,
            modules: settings.modules,
            used,
        })
    }

    /// Whether it was counted at all.
    pub(super) fn is_counted(&self) -> bool {
        self.lock().counted.is_some()
    }

    /// Notes what is there, again where others write there too; otherwise what was noted since is right.
    pub(super) fn counted(&self, amount: Amount, again: bool) {
        let mut used = self.lock();
        if again || used.counted.is_none() {
            used.counted = Some(amount);
        }
    }

    /// Takes what is about to be written.
    pub(super) fn reserve(self: &Arc<Self>, amount: Amount) -> Result<Reservation, Full> {
        // Held until it is noted: of two that fit one by one, one may be too much.
        let all = lock(&self.total.used);
        let own = self.lock().all().plus(amount);
        let quotas = [
            ("stored_bytes", amount.bytes, own.bytes, self.bytes),
            ("modules", amount.modules, own.modules, self.modules),
        ];
        for (name, added, wanted, most) in quotas {
            // What adds nothing, such as another name, goes through also where there is too much already.
            if let Some(most) = most
                && wanted > most
                && added > 0
            {
                return Err(Full::Quota {
                    name,
                    most,
                    used: wanted.saturating_sub(added),
                    asked: added,
                });
            }
        }
        let used: u64 = all.iter().map(|used| lock(used).all().bytes).sum();
        let Total { most, share, .. } = *self.total;
        let too_much = own.bytes > share || used.saturating_add(amount.bytes) > most;
        if too_much && amount.bytes > 0 {
            let room = if all.len() == 1 {
                let left = most.saturating_sub(used);
                Room::Own { used, left }
            } else if own.bytes > share {
                let used = own.bytes.saturating_sub(amount.bytes);
                Room::Share { share, used }
            } else {
                Room::Shared
            };
            return Err(Full::Total { budget: most, room });
        }
        let mut used = self.lock();
        used.reserved = used.reserved.plus(amount);
        drop(used);
        Ok(Reservation {
            budget: Arc::clone(self),
            amount,
        })
    }

    /// Notes what is there no more.
    pub(super) fn freed(&self, amount: Amount) {
        let mut used = self.lock();
        used.counted = used.counted.map(|counted| counted.less(amount));
    }

    fn lock(&self) -> MutexGuard<'_, Used> {
        lock(&self.used)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reservation {
    /// Notes that it is there.
    pub(super) fn written(self) {
        let mut used = self.budget.lock();
        used.counted = used.counted.map(|counted| counted.plus(self.amount));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = self.budget.lock();
        used.reserved = used.reserved.less(self.amount);
    }
}
