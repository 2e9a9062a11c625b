//! Tenants as numbers, for what is kept for each of them and compared between them.

use std::ops::{Index, IndexMut};

/// The weight of the daemon's own work where it waits beside that of tenants.
const OWN_WEIGHT: u32 = 1;

/// A tenant of this daemon, or the daemon itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TenantId {
    /// A tenant of the configuration, by its position there.
    Named(u32),
    /// The daemon itself, whose own runs count as no tenant's.
    Own,
}

/// One value for each tenant, and one for the daemon itself.
#[derive(Debug)]
pub struct ByTenant<T> {
    named: Vec<T>,
    own: T,
}

impl<T> ByTenant<T> {
    /// Makes a value for each of the tenants of `weights`, in their order, and one for the daemon.
    pub fn new(weights: &[u32], make: impl Fn(TenantId, u32) -> T) -> Self {
        let named = (0..).zip(weights);
        Self {
            named: named
                .map(|(position, weight)| make(TenantId::Named(position), *weight))
                .collect(),
            own: make(TenantId::Own, OWN_WEIGHT),
        }
    }

    /// Lists the tenants, the daemon last.
    pub fn ids(&self) -> impl Iterator<Item = TenantId> + use<T> {
        // There are fewer tenants than that: each was given a position.
        let count = u32::try_from(self.named.len()).unwrap_or(u32::MAX);
        (0..count).map(TenantId::Named).chain([TenantId::Own])
    }

    /// Lists the values in the order of [`Self::ids`].
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.named.iter().chain([&self.own])
    }
}

impl<T> Index<TenantId> for ByTenant<T> {
    type Output = T;

    fn index(&self, tenant: TenantId) -> &T {
        match tenant {
            TenantId::Named(position) => &self.named[position as usize],
            TenantId::Own => &self.own,
        }
    }
}

impl<T> IndexMut<TenantId> for ByTenant<T> {
    fn index_mut(&mut self, tenant: TenantId) -> &mut T {
        match tenant {
            TenantId::Named(position) => &mut self.named[position as usize],
            TenantId::Own => &mut self.own,
        }
    }
}
