//! The two compile lanes, which keep a small module from waiting behind one that takes long.
//!
//! The small lane has a thread, a ready child and a budget of its own. It takes modules that are
//! estimated (`cost`) to be compiled well within that budget. A module that goes over the budget
//! all the same is not refused: it has outgrown the lane, starts again in the large one, and goes
//! there at once from then on. For a while, the small lane takes only much cheaper modules of the
//! same tenant. A tenant with many modules that cost more than they look thus delays its own others
//! by one budget, rather than by one for each of those modules.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::CompileBudget;
use crate::model::request::Digest;
use crate::model::tenant_id::TenantId;
use crate::sync::lock;

/// How many modules that outgrew the small lane are remembered.
const REMEMBERED: u64 = 10_000;
/// How long a module that outgrew the small lane is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Divisor of the small lane's timeout that gives the highest estimate which the lane accepts.
/// Estimates are off by a factor of two for honest programs, and by as much again where guests and
/// compilers share the processors.
const MARGIN: u32 = 4;
/// How many times cheaper than a module that outgrew the lane its tenant's others must be from then
/// on.
const DISTRUST: u64 = 16;
/// Estimated cost, in microseconds, up to which the lane always takes a module, so that no tenant
/// loses the lane: a module of a few operators.
const ALWAYS: u64 = 64;
/// How long a tenant's modules have to be cheaper after one outgrew the lane.
const DISTRUSTED_FOR: Duration = Duration::from_secs(60);

/// The lane in which a module is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompileLane {
    /// Within `compile.small_timeout`, on a thread that takes nothing else.
    Small,
    /// Within `compile.timeout`, on one of the other compile threads.
    Large,
}

/// What the small lane accepts, and within which budget.
#[derive(Clone, Copy, Debug)]
pub struct SmallLane {
    /// The most bytes of a module, as received.
    pub max_module: u64,
    /// The budget of each module. Its timeout is wall time: other modules wait that long.
    pub budget: CompileBudget,
}

impl SmallLane {
    /// Returns the highest estimated cost of a module in the small lane, in microseconds.
    pub(super) fn max_cost(&self) -> u64 {
        let most = self.budget.timeout / MARGIN;
        u64::try_from(most.as_micros()).unwrap_or(u64::MAX)
    }
}

/// The lane of a module, and what compiling it was estimated to cost.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct Placement {
    pub(in crate::sandbox) lane: CompileLane,
    pub(in crate::sandbox) cost: u64,
}

impl Placement {
    /// Placement in the large lane, whatever the module costs.
    pub(in crate::sandbox) const LARGE: Self = Self {
        lane: CompileLane::Large,
        cost: u64::MAX,
    };
}

/// Chooses the lane of each module, and remembers which modules and tenants outgrew the small one.
pub(in crate::sandbox) struct LaneChooser {
    small: Option<SmallLane>,
    outgrown: moka::sync::Cache<Digest, ()>,
    /// Tenants of which a module outgrew the small lane lately, by index.
    distrusted: Mutex<HashMap<TenantId, Distrust>>,
}

/// What a tenant's modules may cost in the small lane, and until when that holds.
struct Distrust {
    max_cost: u64,
    ends: Instant,
}

impl LaneChooser {
    /// Creates a chooser; with `None` there is no small lane, and all modules are large.
    pub(in crate::sandbox) fn new(small: Option<SmallLane>) -> Self {
        Self {
            small,
            outgrown: moka::sync::Cache::builder()
                .max_capacity(REMEMBERED)
                .time_to_live(REMEMBERED_FOR)
                .build(),
            distrusted: Mutex::default(),
        }
    }

    /// Reports whether a module of `len` bytes may be one for the small lane, as far as can be said
    /// without its bytes.
    pub(in crate::sandbox) fn may_be_small(&self, digest: Digest, len: u64) -> bool {
        self.small.is_some_and(|small| len <= small.max_module)
            && !self.outgrown.contains_key(&digest)
    }

    /// Chooses the lane for a module of the tenant `owner` that is estimated to cost `cost`.
    pub(in crate::sandbox) fn choose(
        &self,
        digest: Digest,
        owner: TenantId,
        cost: u64,
        now: Instant,
    ) -> CompileLane {
        let Some(small) = self.small else {
            return CompileLane::Large;
        };
        let most = small.max_cost().min(self.trusted_with(owner, now));
        if cost > most || self.outgrown.contains_key(&digest) {
            return CompileLane::Large;
        }
        CompileLane::Small
    }

    /// Notes that a module went over the budget of the small lane.
    pub(in crate::sandbox) fn outgrew(
        &self,
        digest: Digest,
        owner: TenantId,
        cost: u64,
        now: Instant,
    ) {
        self.outgrown.insert(digest, ());
        let most = cost.min(self.trusted_with(owner, now));
        let distrust = Distrust {
            max_cost: (most / DISTRUST).max(ALWAYS),
            ends: now + DISTRUSTED_FOR,
        };
        self.lock().insert(owner, distrust);
    }

    /// Returns the highest cost that a tenant's module may have in the small lane, given what its
    /// other modules did.
    fn trusted_with(&self, owner: TenantId, now: Instant) -> u64 {
        let mut distrusted = self.lock();
        match distrusted.get(&owner) {
            Some(distrust) if now < distrust.ends => distrust.max_cost,
            Some(_) => {
                distrusted.remove(&owner);
                u64::MAX
            }
            None => u64::MAX,
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Distrust>> {
        lock(&self.distrusted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: TenantId = TenantId::Named(3);
    const OTHER: TenantId = TenantId::Named(4);
    /// A quarter of the budget below, in microseconds.
    const MOST: u64 = 250_000;

    fn lanes() -> LaneChooser {
        LaneChooser::new(Some(SmallLane {
            max_module: 1000,
            budget: CompileBudget {
                timeout: Duration::from_secs(1),
                memory: 0,
            },
        }))
    }

    fn digest(of: u64) -> Digest {
        Digest::of(&of.to_le_bytes())
    }

    #[test]
    fn size_and_cost_both_have_to_be_small() {
        let (lanes, now) = (lanes(), Instant::now());
        assert!(lanes.may_be_small(digest(0), 1000));
        assert!(!lanes.may_be_small(digest(0), 1001));
        let lane = |cost| lanes.choose(digest(0), TENANT, cost, now);
        assert_eq!(lane(0), CompileLane::Small);
        assert_eq!(lane(MOST), CompileLane::Small);
        assert_eq!(lane(MOST + 1), CompileLane::Large);
    }

    #[test]
    fn without_a_small_lane_all_is_large() {
        let lanes = LaneChooser::new(None);
        assert!(!lanes.may_be_small(digest(0), 0));
        let lane = lanes.choose(digest(0), TENANT, 0, Instant::now());
        assert_eq!(lane, CompileLane::Large);
    }

    #[test]
    fn what_outgrew_the_lane_is_known_whoever_has_it() {
        let (lanes, now) = (lanes(), Instant::now());
        lanes.outgrew(digest(0), TENANT, 1000, now);
        assert!(!lanes.may_be_small(digest(0), 1));
        for owner in [TENANT, OTHER] {
            assert_eq!(
                lanes.choose(digest(0), owner, 0, now),
                CompileLane::Large,
                "{owner:?}"
            );
        }
    }

    #[test]
    fn a_tenant_whose_module_outgrew_the_lane_has_only_cheaper_ones_in_it_for_a_while() {
        let (lanes, now) = (lanes(), Instant::now());
        lanes.outgrew(digest(0), TENANT, 160_000, now);
        let later = now + DISTRUSTED_FOR;
        for (owner, cost, at, lane) in [
            (TENANT, 10_000, now, CompileLane::Small),
            (TENANT, 10_001, now, CompileLane::Large),
            (OTHER, MOST, now, CompileLane::Small),
            (TENANT, MOST, later, CompileLane::Small),
        ] {
            assert_eq!(
                lanes.choose(digest(1), owner, cost, at),
                lane,
                "{owner:?} {cost}"
            );
        }
    }

    #[test]
    fn each_module_that_outgrows_the_lane_leaves_less_and_never_nothing() {
        let (lanes, now) = (lanes(), Instant::now());
        let mut outgrew = 0;
        let mut most = MOST;
        // A tenant that knows the rule sends the dearest module that is still taken.
        while most > ALWAYS {
            lanes.outgrew(digest(outgrew), TENANT, most, now);
            outgrew += 1;
            most = (most / DISTRUST).max(ALWAYS);
            assert_eq!(
                lanes.choose(digest(1000), TENANT, most, now),
                CompileLane::Small
            );
            assert_eq!(
                lanes.choose(digest(1000), TENANT, most + 1, now),
                CompileLane::Large
            );
        }
        assert!(outgrew <= 3, "{outgrew}");
        lanes.outgrew(digest(outgrew), TENANT, ALWAYS, now);
        assert_eq!(
            lanes.choose(digest(1000), TENANT, ALWAYS, now),
            CompileLane::Small
        );
    }
}
