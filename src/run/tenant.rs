//! A tenant, and everything that belongs to it: its policy, quota, modules, runs, idempotency keys
//! and mounts. Code that serves one tenant reaches these only through its own [`Tenant`].

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::Settings;
use super::admission::{Quota, QuotaUsage};
use super::idempotency::IdempotencyKeys;
use super::registry::{HistoryLimits, Registry};
use super::sessions::{SessionTotals, Sessions};
use crate::event_log::{EventLog, EventLogBudget};
use crate::metrics::{RunCounters, RunHistory};
use crate::model::policy::Policy;
use crate::model::refusal::Refusal;
use crate::model::request::Digest;
use crate::model::tenant_id::TenantId;
use crate::sandbox::{DescriptorAccount, DescriptorBudget, MountRoots, TenantQueue};
use crate::store::Store;

/// The name of the tenant that the daemon's own runs belong to. No configured tenant can have this
/// name.
const OWN: &str = "(ringfence)";
/// Requests of one tenant that are with the archive at once.
const ARCHIVE_AT_ONCE: usize = 2;

/// The configuration of a tenant.
pub struct TenantSettings {
    /// The name of the tenant.
    pub name: String,
    /// Its weight, which sets its share where tenants wait for each other.
    pub weight: u32,
    /// The policy: what it may ask for.
    pub policy: Policy,
    /// The most that it may use over time.
    pub quota: Quota,
    /// The store of its modules.
    pub store: Arc<Store>,
}

/// A tenant: its policy, and everything that it shares with no other tenant.
pub struct Tenant {
    /// The name of the tenant.
    pub name: Arc<str>,
    /// The policy: what it may ask for.
    pub policy: Policy,
    /// What its runs came to since the start.
    pub(crate) counters: RunCounters,
    /// What its runs came to in the last hour.
    pub(super) history: Mutex<RunHistory>,
    /// Bytes of its requests that are in flight.
    pub request_bytes: AtomicU64,
    /// Bytes of its answers that are on their way out, not counting those that the reservation of a
    /// run covers.
    pub answer_bytes: AtomicU64,
    /// Whether it is one of several tenants, and so leaves part of what they share to the others.
    pub has_neighbours: bool,
    /// The index of its line in the admission queues.
    pub(crate) id: TenantId,
    pub(super) quota_usage: Arc<QuotaUsage>,
    pub(super) roots: MountRoots,
    pub(crate) store: Arc<Store>,
    pub(super) registry: Arc<Registry>,
    pub(super) viewers: Arc<Semaphore>,
    pub(super) sessions: Arc<Sessions>,
    /// Permits for the requests of the tenant that are with the archive at once, so that those of
    /// others are not held up by them.
    archive: Semaphore,
    /// The permits that `viewers` has in all.
    max_viewers: usize,
    /// Its share of the file descriptors that guests may have open.
    pub(crate) descriptors: Arc<DescriptorAccount>,
    logs: Arc<EventLogBudget>,
    log_bytes: usize,
    /// Whether its compiled code is never shared with other tenants.
    apart: bool,
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Tenant {
    /// Returns the key under which its compiled code of a module is cached. The key is the tenant's
    /// own where code is not shared.
    pub(crate) fn code_key(&self, digest: Digest) -> Digest {
        if self.apart {
            return digest.scoped_to(&self.name);
        }
        digest
    }

    /// Reports whether its compiled code may be another tenant's too.
    pub(crate) fn shares_code(&self) -> bool {
        self.has_neighbours && !self.apart
    }

    /// Waits for the turn of a request of the tenant that reads or changes the archive.
    pub async fn acquire_archive(&self) -> Option<SemaphorePermit<'_>> {
        self.archive.acquire().await.ok()
    }

    /// Creates an event log for a new run of the tenant.
    pub(crate) fn new_log(&self) -> Arc<EventLog> {
        EventLog::new(self.log_bytes, Arc::clone(&self.logs))
    }

    /// Returns how many calls are attached to its runs, or watch them.
    pub(super) fn viewer_count(&self) -> u64 {
        (self.max_viewers - self.viewers.available_permits()) as u64
    }

    /// Returns how often output was evicted from one of its event logs.
    pub(super) fn logs_evicted(&self) -> u64 {
        self.logs.evicted()
    }

    /// Returns how many events readers of its event logs were told are lost.
    pub(super) fn events_lost(&self) -> u64 {
        self.logs.lost()
    }

    /// Returns the bytes that its event logs hold for callers who have yet to read them.
    pub(super) fn owed(&self) -> u64 {
        self.logs.owed() as u64
    }

    /// Returns the bytes that its event logs hold.
    pub(super) fn logged(&self) -> usize {
        self.logs.held()
    }
}

/// All tenants of the daemon, by name, and the daemon's own.
pub(super) struct Tenants {
    by_name: HashMap<Arc<str>, Arc<Tenant>>,
    /// The tenant to which the daemon's own runs belong.
    pub(super) own: Arc<Tenant>,
}

impl Tenants {
    /// Creates all tenants, and one for the daemon's own runs. Limits in `settings` that apply to
    /// all together are divided evenly.
    ///
    /// # Errors
    /// Fails where a mount cannot be opened, or where there is no tenant.
    pub(super) fn new(
        instance: &str,
        all: Vec<TenantSettings>,
        settings: &Settings,
    ) -> Result<Self, Refusal> {
        let instance: Arc<str> = instance.into();
        let (count, shares) = (all.len().max(1), all.len() > 1);
        let each = |n: usize| n.div_ceil(count);
        let descriptors = DescriptorBudget::of_process(settings.capacity.slots);
        let sessions = SessionTotals::new(settings.sessions, shares);
        let make = |id: TenantId, it: TenantSettings| {
            let roots = MountRoots::open(&it.policy.grants.mounts).map_err(Refusal::internal)?;
            let remembers = it.name != OWN;
            let share = |n: usize| if remembers { each(n) } else { 0 };
            let history = HistoryLimits {
                runs: share(settings.history.runs),
                bytes: share(settings.history.bytes),
                age: settings.history.age,
            };
            let logs = EventLogBudget::new(each(settings.log_budget));
            let keys =
                IdempotencyKeys::new(settings.idempotency_window, each(settings.idempotency_keys));
            let name: Arc<str> = it.name.into();
            let registry = Registry::new(
                Arc::clone(&instance),
                Arc::clone(&name),
                history,
                keys,
                (&logs, settings.log_bytes),
                settings.archive.clone().filter(|_| remembers),
            );
            Ok::<_, Refusal>(Arc::new(Tenant {
                name,
                sessions: Sessions::new(it.policy.max_sessions, Arc::clone(&sessions)),
                policy: it.policy,
                counters: RunCounters::default(),
                history: Mutex::new(RunHistory::one_of(count)),
                request_bytes: AtomicU64::new(0),
                answer_bytes: AtomicU64::new(0),
                has_neighbours: shares,
                id,
                quota_usage: QuotaUsage::new(it.quota, TenantQueue::new(it.weight)),
                roots,
                store: it.store,
                registry,
                viewers: Arc::new(Semaphore::new(each(settings.viewers as usize))),
                archive: Semaphore::new(ARCHIVE_AT_ONCE),
                max_viewers: each(settings.viewers as usize),
                descriptors: descriptors.account(shares),
                logs,
                log_bytes: settings.log_bytes,
                apart: !settings.share_code,
            }))
        };
        let own = all.first().map(|first| TenantSettings {
            name: OWN.to_owned(),
            weight: 1,
            policy: first.policy.clone(),
            quota: Quota::default(),
            store: Arc::clone(&first.store),
        });
        let own = own.ok_or_else(|| Refusal::internal("there is no tenant"))?;
        let mut by_name = HashMap::new();
        for (position, it) in (0..).zip(all) {
            let tenant = make(TenantId::Named(position), it)?;
            by_name.insert(Arc::clone(&tenant.name), tenant);
        }
        let own = make(TenantId::Own, own)?;
        Ok(Self { by_name, own })
    }

    /// Returns the tenant of that name.
    pub(super) fn get(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.by_name.get(name)
    }

    /// Returns the configured tenants, in no particular order.
    pub(super) fn named(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.by_name.values()
    }

    /// Returns the configured tenants and the daemon's own.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.named().chain([&self.own])
    }
}
