//! Compiled code in memory: a cache with a budget that is divided among tenants by weight, and that
//! evicts the least recently used code.
//!
//! A tenant may hold more than its share while there is room. When there is none, the tenant that
//! is furthest over its share loses its least recently used code: first code that only came with
//! runs (inline), then code that the tenant keeps. So a tenant within its share loses nothing to
//! another, and a tenant that runs many modules inline loses none that it has loaded. Code that
//! several tenants use counts in full for each of them, and is dropped when the last of them has
//! lost it.
//!
//! When code is used again that its tenant has used lately, it keeps its place in the order. A
//! module that is run over and over, and modules of many tenants, thus cost a look-up and no more.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};

use crate::metrics::Count;
use crate::model::tenant_id::{ByTenant, TenantId};
use crate::sync::lock;

/// A use of code: which tenant uses it, and whether that tenant keeps the module.
#[derive(Clone, Copy, Debug)]
pub struct CodeUse {
    /// The tenant that uses the code.
    pub tenant: TenantId,
    /// Whether the tenant keeps the module, rather than sending it with its runs.
    pub kept: bool,
}

/// The cache's budget, and the weights by which tenants share it.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct CacheLimits<'a> {
    /// Bytes of all code together.
    pub(in crate::sandbox) bytes: u64,
    /// Weights of the tenants, in their order.
    pub(in crate::sandbox) weights: &'a [u32],
}

/// Code counts as used lately, and keeps its place in the order when it is used again, if no more
/// uses were counted since than its tenant's number of entries divided by this.
const LATELY: u64 = 8;

/// The cache of compiled code, shared by threads behind one lock.
pub(in crate::sandbox) struct CodeCache<K, V> {
    budget: u64,
    shares: Mutex<CodeShares<K, V>>,
    /// Entries that were evicted.
    evicted: Count,
}

/// The cache's contents: the entries, and each tenant's share with the order in which it loses
/// them.
struct CodeShares<K, V> {
    budget: u64,
    entries: HashMap<K, CachedCode<V>>,
    tenants: ByTenant<TenantShare<K>>,
    weight: u64,
    /// Counts uses. An entry that was used later has a higher stamp.
    uses: u64,
}

struct CachedCode<V> {
    value: V,
    weight: u64,
    /// Each tenant that uses the code, with the key of its use in that tenant's order; sorted by
    /// tenant.
    used_by: Vec<(TenantId, EvictionKey)>,
}

/// The position of an entry in its tenant's order of eviction, lowest first: inline code goes
/// before code that is kept, and the least recently used of either goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct EvictionKey {
    kept: bool,
    used: u64,
}

/// One tenant's share of the budget and the entries that it uses.
struct TenantShare<K> {
    /// The tenant's weight. With 0 it has no share, and holds only what nobody else needs room for.
    weight: u64,
    /// What the tenant may hold however much others want, in the unit of the budget.
    share: u64,
    /// What the tenant's entries weigh together, in the unit of the budget.
    held: u64,
    order: BTreeMap<EvictionKey, K>,
}

impl<K: Copy + Eq + Hash, V: Clone> CodeCache<K, V> {
    /// Creates a cache of `budget`, in the unit that the weights of entries have, for tenants with
    /// these `weights`. The daemon itself is one more tenant, which has no share.
    pub(in crate::sandbox) fn new(budget: u64, weights: &[u32]) -> Self {
        Self {
            budget,
            shares: Mutex::new(CodeShares::new(budget, weights)),
            evicted: Count::default(),
        }
    }

    /// Returns the most that all entries may weigh together.
    pub(in crate::sandbox) fn budget(&self) -> u64 {
        self.budget
    }

    /// Returns how many entries were evicted since the cache was created.
    pub(in crate::sandbox) fn evicted(&self) -> u64 {
        self.evicted.get()
    }

    /// Returns what all entries weigh together now.
    pub(in crate::sandbox) fn weight(&self) -> u64 {
        self.lock().weight
    }

    /// Returns an entry, and counts that as a use of it.
    pub(in crate::sandbox) fn get(&self, key: &K, code_use: CodeUse) -> Option<V> {
        self.lock().touch(key, code_use).cloned()
    }

    /// Counts a use of an entry, if it is there.
    pub(in crate::sandbox) fn touch(&self, key: &K, code_use: CodeUse) {
        self.lock().touch(key, code_use);
    }

    /// Reports whether an entry is there, without counting a use of it.
    pub(in crate::sandbox) fn contains(&self, key: &K) -> bool {
        self.lock().entries.contains_key(key)
    }

    /// Inserts an entry unless it is there already, counts a use of it, and evicts others to make
    /// room. Evicted code is dropped after the lock is released: unmapping it takes a while.
    pub(in crate::sandbox) fn insert(&self, key: K, value: V, weight: u64, code_use: CodeUse) {
        let gone = self.lock().insert(key, value, weight, code_use);
        self.evicted.add(gone.len() as u64);
        drop(gone);
    }

    /// Removes an entry, whichever tenants use it.
    pub(in crate::sandbox) fn remove(&self, key: &K) {
        let gone = self.lock().remove(key);
        drop(gone);
    }

    /// Notes that a tenant does not keep an entry any more: its use of the entry becomes inline.
    pub(in crate::sandbox) fn demote_to_inline(&self, key: &K, tenant: TenantId) {
        self.lock().demote_to_inline(key, tenant);
    }

    fn lock(&self) -> MutexGuard<'_, CodeShares<K, V>> {
        lock(&self.shares)
    }
}

impl<K: Copy + Eq + Hash, V> CodeShares<K, V> {
    fn new(budget: u64, weights: &[u32]) -> Self {
        let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
        let tenant = |tenant, weight: u32| {
            // What the daemon itself runs has no share: it stays while there is room.
            let weight = match tenant {
                TenantId::Named(_) => weight,
                TenantId::Own => 0,
            };
            let share = u128::from(budget) * u128::from(weight) / sum.max(1);
            TenantShare {
                weight: u64::from(weight),
                share: u64::try_from(share).unwrap_or(budget),
                held: 0,
                order: BTreeMap::new(),
            }
        };
        Self {
            budget,
            entries: HashMap::new(),
            tenants: ByTenant::new(weights, tenant),
            weight: 0,
            uses: 0,
        }
    }

    /// Counts a use of an entry, and returns its value.
    fn touch(&mut self, key: &K, code_use: CodeUse) -> Option<&V> {
        let entry = self.entries.get_mut(key)?;
        let tenant = &mut self.tenants[code_use.tenant];
        self.uses += 1;
        let mut stamp = EvictionKey {
            kept: code_use.kept,
            used: self.uses,
        };
        match entry.user(code_use.tenant) {
            Ok(at) => {
                let last = &mut entry.used_by[at].1;
                stamp.kept |= last.kept;
                if stamp.kept != last.kept || !tenant.used_lately(*last, self.uses) {
                    tenant.order.remove(last);
                    tenant.order.insert(stamp, *key);
                    *last = stamp;
                }
            }
            Err(at) => {
                tenant.held += entry.weight;
                entry.used_by.insert(at, (code_use.tenant, stamp));
                tenant.order.insert(stamp, *key);
            }
        }
        Some(&entry.value)
    }

    /// Inserts an entry, and returns what had to be evicted for it.
    fn insert(&mut self, key: K, value: V, weight: u64, code_use: CodeUse) -> Vec<V> {
        let entry = self.entries.entry(key).or_insert_with(|| CachedCode {
            value,
            weight: 0,
            used_by: Vec::new(),
        });
        // An entry that is there already is the same code, and stays: runs that begin now share it.
        if entry.used_by.is_empty() {
            entry.weight = weight;
            self.weight += weight;
        }
        self.touch(&key, code_use);
        let mut gone = Vec::new();
        while self.weight > self.budget {
            let Some(tenant) = self.furthest_over() else {
                break;
            };
            let order = &self.tenants[tenant].order;
            let others = order.values().find(|other| **other != key);
            // If its tenant has nothing else, the new entry itself is evicted, so that a tenant
            // never takes from others.
            let victim = others.or_else(|| order.values().next()).copied();
            let Some(victim) = victim else {
                break;
            };
            gone.extend(self.lose(&victim, tenant));
        }
        gone
    }

    /// Returns the tenant that holds most for its weight, among those that hold more than their
    /// share. There is one whenever all entries together are over the budget, since the shares add
    /// up to no more than that.
    fn furthest_over(&self) -> Option<TenantId> {
        let over = self.tenants.ids().filter(|it| {
            let tenant = &self.tenants[*it];
            tenant.held > tenant.share
        });
        // What is held divided by the weight is compared by cross-multiplication.
        let is_further = |a: TenantId, b: TenantId| {
            let (a, b) = (&self.tenants[a], &self.tenants[b]);
            u128::from(a.held) * u128::from(b.weight) > u128::from(b.held) * u128::from(a.weight)
        };
        over.reduce(|furthest, it| {
            if is_further(it, furthest) {
                it
            } else {
                furthest
            }
        })
    }

    /// Takes an entry from a tenant. The value is returned if no other tenant uses it.
    fn lose(&mut self, key: &K, tenant: TenantId) -> Option<V> {
        let entry = self.entries.get_mut(key)?;
        let weight = entry.weight;
        if let Ok(at) = entry.user(tenant) {
            let (_, stamp) = entry.used_by.remove(at);
            let it = &mut self.tenants[tenant];
            it.order.remove(&stamp);
            it.held -= weight;
        }
        if !entry.used_by.is_empty() {
            return None;
        }
        self.weight -= weight;
        self.entries.remove(key).map(|entry| entry.value)
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        let entry = self.entries.remove(key)?;
        self.weight -= entry.weight;
        for (user, stamp) in entry.used_by {
            let it = &mut self.tenants[user];
            it.order.remove(&stamp);
            it.held -= entry.weight;
        }
        Some(entry.value)
    }

    fn demote_to_inline(&mut self, key: &K, tenant: TenantId) {
        let Some(entry) = self.entries.get_mut(key) else {
            return;
        };
        if let Ok(at) = entry.user(tenant) {
            let stamp = &mut entry.used_by[at].1;
            let order = &mut self.tenants[tenant].order;
            order.remove(stamp);
            stamp.kept = false;
            order.insert(*stamp, *key);
        }
    }
}

impl<V> CachedCode<V> {
    /// Finds a tenant among the users of the code: its position, or the position at which it would
    /// be inserted.
    fn user(&self, tenant: TenantId) -> Result<usize, usize> {
        self.used_by
            .binary_search_by_key(&tenant, |(user, _)| *user)
    }
}

impl<K> TenantShare<K> {
    /// Reports whether an entry whose last use is filed under `stamp` is among the most recently
    /// used of this tenant. It is if it is the newest, or if few uses were counted since, by any
    /// tenant ([`LATELY`]).
    fn used_lately(&self, stamp: EvictionKey, uses: u64) -> bool {
        let newest = self.order.last_key_value();
        newest.is_some_and(|(newest, _)| *newest == stamp)
            || uses - stamp.used <= self.order.len() as u64 / LATELY
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Shares = CodeShares<u32, u32>;

    const fn inline(tenant: u32) -> CodeUse {
        CodeUse {
            tenant: TenantId::Named(tenant),
            kept: false,
        }
    }

    const fn kept(tenant: u32) -> CodeUse {
        CodeUse {
            tenant: TenantId::Named(tenant),
            kept: true,
        }
    }

    fn held(shares: &Shares) -> Vec<u32> {
        let mut keys: Vec<u32> = shares.entries.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn inline_code_goes_before_code_that_is_kept_and_the_least_recently_used_first() {
        let mut shares = Shares::new(4, &[1]);
        shares.insert(0, 0, 1, kept(0));
        shares.insert(1, 1, 1, inline(0));
        shares.insert(2, 2, 1, inline(0));
        shares.insert(3, 3, 1, kept(0));
        shares.touch(&1, inline(0));
        assert_eq!(shares.insert(4, 4, 1, inline(0)), [2]);
        assert_eq!(shares.insert(5, 5, 1, kept(0)), [1]);
        assert_eq!(shares.insert(6, 6, 1, kept(0)), [4]);
        assert_eq!(shares.insert(7, 7, 1, kept(0)), [0]);
        // The new entry stays, for those who run it now.
        assert_eq!(shares.insert(8, 8, 1, inline(0)), [3]);
        assert_eq!(held(&shares), [5, 6, 7, 8]);
    }

    #[test]
    fn a_flood_of_one_tenant_takes_nothing_of_another_within_its_share() {
        for flood in [inline(0), kept(0)] {
            let mut shares = Shares::new(8, &[1, 1]);
            for key in 0..3 {
                shares.insert(key, key, 1, inline(1));
            }
            for key in 100..200 {
                shares.insert(key, key, 1, flood);
            }
            assert_eq!(held(&shares), [0, 1, 2, 195, 196, 197, 198, 199]);
        }
    }

    #[test]
    fn shares_are_by_weight_and_unused_room_is_anybodys() {
        let mut shares = Shares::new(8, &[1, 3]);
        for key in 0..8 {
            shares.insert(key, key, 1, kept(0));
        }
        assert_eq!(shares.tenants[TenantId::Named(0)].held, 8);
        for key in 10..30 {
            shares.insert(key, key, 1, kept(1));
        }
        assert_eq!(
            (
                shares.tenants[TenantId::Named(0)].held,
                shares.tenants[TenantId::Named(1)].held
            ),
            (2, 6)
        );
        // The daemon's own tenant has no share.
        let own = CodeUse {
            tenant: TenantId::Own,
            kept: true,
        };
        shares.insert(99, 99, 1, own);
        assert!(!shares.entries.contains_key(&99));
    }

    #[test]
    fn code_beyond_its_tenants_share_is_held_only_while_others_leave_it_room() {
        let mut shares = Shares::new(8, &[1, 1]);
        shares.insert(0, 0, 6, kept(0));
        shares.insert(1, 1, 2, kept(1));
        assert_eq!(held(&shares), [0, 1]);
        assert_eq!(shares.insert(2, 2, 2, kept(1)), [0]);
        assert_eq!(shares.insert(3, 3, 6, kept(0)), [3]);
        assert_eq!(held(&shares), [1, 2]);
    }

    #[test]
    fn code_in_common_stays_for_whoever_is_within_its_share() {
        let mut shares = Shares::new(4, &[1, 1]);
        shares.insert(0, 0, 1, inline(0));
        shares.insert(0, 0, 1, kept(1));
        for key in 10..20 {
            shares.insert(key, key, 1, inline(0));
        }
        assert_eq!(held(&shares), [0, 17, 18, 19]);
        assert_eq!(shares.entries[&0].used_by.len(), 1);
        shares.remove(&0);
        assert_eq!(
            (shares.tenants[TenantId::Named(1)].held, shares.weight),
            (0, 3)
        );
    }

    #[test]
    fn what_is_kept_no_longer_is_inline() {
        let mut shares = Shares::new(2, &[1]);
        shares.insert(0, 0, 1, kept(0));
        shares.insert(1, 1, 1, kept(0));
        shares.touch(&0, kept(0));
        shares.demote_to_inline(&0, TenantId::Named(0));
        assert_eq!(shares.insert(2, 2, 1, kept(0)), [0]);
    }

    /// Checks that an entry which many tenants use over and over is filed once for each of them.
    #[test]
    fn code_in_common_of_a_thousand_tenants_is_found_by_each_of_them() {
        const TENANTS: u32 = 1000;
        let mut shares = Shares::new(u64::from(TENANTS) * 4, &[1; TENANTS as usize]);
        shares.insert(7, 7, 4, kept(500));
        for tenant in (0..TENANTS).rev() {
            assert_eq!(shares.touch(&7, inline(tenant)), Some(&7));
        }
        let users: Vec<TenantId> = shares.entries[&7].used_by.iter().map(|it| it.0).collect();
        assert!(users.iter().copied().eq((0..TENANTS).map(TenantId::Named)));
        let filed = |shares: &Shares| -> Vec<EvictionKey> {
            let used_by = &shares.entries[&7].used_by;
            used_by.iter().map(|(_, stamp)| *stamp).collect()
        };
        let before = filed(&shares);
        for tenant in 0..TENANTS {
            shares.touch(&7, inline(tenant));
        }
        assert_eq!(filed(&shares), before);
        assert!(before[500].kept && !before[499].kept);
        // A tenant that keeps the module from now on files it anew.
        shares.touch(&7, kept(499));
        assert!(filed(&shares)[499].kept);
        for tenant in 0..TENANTS {
            assert_eq!(shares.entries.len(), 1);
            shares.lose(&7, TenantId::Named(tenant));
        }
        assert!(shares.entries.is_empty());
        assert!(
            shares
                .tenants
                .values()
                .all(|it| it.held == 0 && it.order.is_empty())
        );
    }

    #[test]
    fn what_was_not_used_for_long_goes_first_however_many_there_are() {
        const ENTRIES: u32 = 800;
        let mut shares = Shares::new(ENTRIES.into(), &[1]);
        for key in 0..ENTRIES {
            shares.insert(key, key, 1, kept(0));
        }
        // All but every fifth entry are used again, in another order.
        let used = (0..ENTRIES).rev().filter(|key| key % 5 != 0);
        for key in used.clone() {
            shares.touch(&key, kept(0));
        }
        for key in 0..ENTRIES / 5 {
            let gone = shares.insert(ENTRIES + key, 0, 1, kept(0));
            let gone = gone[0];
            // Entries among the newest eighth keep their place when they are used.
            assert!(
                gone.is_multiple_of(5) || gone >= ENTRIES - ENTRIES / 8,
                "{gone}"
            );
        }
    }

    proptest! {
        #[test]
        fn the_budget_holds_and_nobody_within_its_share_loses_anything(
            weights in proptest::collection::vec(1_u32..5, 1..4),
            steps in proptest::collection::vec((0_usize..4, 0_u32..12, 1_u64..9, any::<bool>(), 0_u8..8), 1..200),
        ) {
            const BUDGET: u64 = 24;
            let mut shares = Shares::new(BUDGET, &weights);
            for (tenant, key, weight, kept, what) in steps {
                let all: Vec<TenantId> = shares.tenants.ids().collect();
                let code_use = CodeUse { tenant: all[tenant % all.len()], kept };
                let before: Vec<(u64, Vec<u32>)> = shares
                    .tenants
                    .values()
                    .map(|it| (it.held, it.order.values().copied().collect()))
                    .collect();
                match what {
                    0 => drop(shares.remove(&key)),
                    1 => shares.demote_to_inline(&key, code_use.tenant),
                    2..4 => drop(shares.touch(&key, code_use)),
                    _ => {
                        shares.insert(key, key, weight, code_use);
                        for (i, (held, keys)) in all.iter().copied().zip(&before) {
                            if i != code_use.tenant && *held <= shares.tenants[i].share {
                                for key in keys {
                                    prop_assert!(shares.entries.contains_key(key), "{i:?} lost {key}");
                                }
                            }
                        }
                    }
                }
                prop_assert!(shares.weight <= BUDGET);
                let weight: u64 = shares.entries.values().map(|entry| entry.weight).sum();
                prop_assert_eq!(weight, shares.weight);
                for (i, tenant) in shares.tenants.ids().zip(shares.tenants.values()) {
                    let used = shares.entries.values().filter(|it| it.used_by.iter().any(|(user, _)| *user == i));
                    prop_assert_eq!(used.map(|it| it.weight).sum::<u64>(), tenant.held);
                    for (stamp, key) in &tenant.order {
                        prop_assert!(shares.entries[key].used_by.contains(&(i, *stamp)));
                    }
                }
            }
        }
    }
}
