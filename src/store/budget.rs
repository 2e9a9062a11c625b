//! Accounting of what a store uses of its budget: what was counted in the backend, and what is
//! reserved for writes in progress. Several stores share one total.

use std::sync::{Arc, Mutex, MutexGuard};

use super::Settings;
use crate::model::limits::share_of;
use crate::sync::lock;

/// Bytes charged for each module besides its contents and its record: what a file or an entry
/// costs.
pub(super) const EACH: u64 = 1 << 10;

/// A budget of bytes that several stores share.
#[derive(Debug)]
pub struct SharedBudget {
    most: u64,
    /// Most bytes that any one of the stores may hold.
    share: u64,
    /// The usage of each store that shares the budget.
    used: Mutex<Vec<Arc<Mutex<BudgetUsage>>>>,
}

impl SharedBudget {
    /// Creates a budget of `most` bytes. Where several stores share it, none of them may hold the
    /// last eighth.
    pub fn new(most: u64, stores: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            share: share_of(most, stores > 1),
            used: Mutex::default(),
        })
    }
}

/// The budget of one store: its part of the shared total, and the tenant's own quotas.
#[derive(Debug)]
pub(super) struct Budget {
    total: Arc<SharedBudget>,
    bytes: Option<u64>,
    modules: Option<u64>,
    used: Arc<Mutex<BudgetUsage>>,
}

#[derive(Debug, Default)]
struct BudgetUsage {
    /// What the backend holds; `None` until it was counted for the first time.
    counted: Option<StoredAmount>,
    /// What writes in progress have reserved.
    reserved: StoredAmount,
}

/// An amount of storage: bytes, and a number of modules.
#[derive(Clone, Copy, Debug, Default)]
pub struct StoredAmount {
    /// The bytes of modules and of their records.
    pub bytes: u64,
    /// The number of modules.
    pub modules: u64,
}

impl StoredAmount {
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

impl BudgetUsage {
    fn all(&self) -> StoredAmount {
        self.counted.unwrap_or_default().plus(self.reserved)
    }
}

/// A reservation for a write in progress. Dropping it releases the amount; [`Self::commit`] counts
/// it as stored first.
#[derive(Debug)]
pub(super) struct Reservation {
    budget: Arc<Budget>,
    amount: StoredAmount,
}

/// Why a reservation was refused.
#[derive(Debug)]
pub(super) enum BudgetExceeded {
    /// The shared total, which is `budget` bytes for all stores together, would be exceeded.
    Total { budget: u64, room: Room },
    /// The tenant's quota called `name` would be exceeded: `used` of it is taken, and `asked` more
    /// was requested.
    Quota {
        name: &'static str,
        most: u64,
        used: u64,
        asked: u64,
    },
}

/// What a store may be told about the bytes in its place, which is nothing about what others hold
/// there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// The store has the place to itself.
    Own { used: u64, left: u64 },
    /// The store is one of several, and would exceed its share.
    Share { share: u64, used: u64 },
    /// The store is one of several and within its share, but together they would hold too much.
    Shared,
}

impl Budget {
    pub(super) fn new(settings: &Settings) -> Arc<Self> {
        let used = Arc::<Mutex<BudgetUsage>>::default();
        lock(&settings.shared_budget.used).push(Arc::clone(&used));
        Arc::new(Self {
            total: Arc::clone(&settings.shared_budget),
            bytes: settings.bytes,
            modules: settings.modules,
            used,
        })
    }

    /// Returns the bytes that all stores of the place may hold together.
    pub(super) fn capacity(&self) -> u64 {
        self.total.most
    }

    /// Returns what the backend holds, without writes in progress; `None` where it has not been
    /// counted yet.
    pub(super) fn stored(&self) -> Option<StoredAmount> {
        self.lock().counted
    }

    /// Records what the backend holds. A later count replaces the first only where `again` is set,
    /// because others write to the place too; otherwise the amounts tracked since are right.
    pub(super) fn counted(&self, amount: StoredAmount, again: bool) {
        let mut used = self.lock();
        if again || used.counted.is_none() {
            used.counted = Some(amount);
        }
    }

    /// Reserves the amount of a write that is about to begin.
    pub(super) fn reserve(
        self: &Arc<Self>,
        amount: StoredAmount,
    ) -> Result<Reservation, BudgetExceeded> {
        // Held until the reservation is noted: of two that each fit alone, both together may be too
        // much.
        let all = lock(&self.total.used);
        let own = self.lock().all().plus(amount);
        let quotas = [
            ("stored_bytes", amount.bytes, own.bytes, self.bytes),
            ("modules", amount.modules, own.modules, self.modules),
        ];
        for (name, added, wanted, most) in quotas {
            // What adds nothing, such as a change of name, is allowed even where too much is stored
            // already.
            if let Some(most) = most
                && wanted > most
                && added > 0
            {
                return Err(BudgetExceeded::Quota {
                    name,
                    most,
                    used: wanted.saturating_sub(added),
                    asked: added,
                });
            }
        }
        let used: u64 = all.iter().map(|used| lock(used).all().bytes).sum();
        let SharedBudget { most, share, .. } = *self.total;
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
            return Err(BudgetExceeded::Total { budget: most, room });
        }
        let mut used = self.lock();
        used.reserved = used.reserved.plus(amount);
        drop(used);
        Ok(Reservation {
            budget: Arc::clone(self),
            amount,
        })
    }

    /// Subtracts what has been deleted.
    pub(super) fn release(&self, amount: StoredAmount) {
        let mut used = self.lock();
        used.counted = used.counted.map(|counted| counted.less(amount));
    }

    fn lock(&self) -> MutexGuard<'_, BudgetUsage> {
        lock(&self.used)
    }
}

impl Reservation {
    /// Counts the reserved amount as stored, now that the write is done.
    pub(super) fn commit(self) {
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
