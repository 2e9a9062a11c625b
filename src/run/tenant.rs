//! Tenants: what each may do, and what is each one's own. Everything that one tenant could see of another is reached
//! through its own [`Tenant`] only: runs, keys, modules, mounts.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::SystemTime;

use tokio::sync::Semaphore;

use super::Settings;
use super::admission::{Account, Quota};
use super::keys::Keys;
use super::registry::{History, Registry};
use crate::log::{End, KeptOutput, Log, Pool};
use crate::policy::Policy;
use crate::refusal::Refusal;
use crate::request::Digest;
use crate::sandbox::{DescriptorAccount, DescriptorBudget, Lane, Roots};
use crate::store::Store;

/// The name of the tenant that the daemon's own runs are of. No tenant can be called so.
const OWN: &str = "(ringfence)";

/// How a tenant is made.
pub struct TenantSettings {
    /// Its name.
    pub name: String,
    /// Its share where tenants wait for each other.
    pub weight: u32,
    /// What it may ask for.
    pub policy: Policy,
    /// What it may use over time.
    pub quota: Quota,
    /// Its modules.
    pub store: Arc<Store>,
}

/// A tenant.
pub struct Tenant {
    /// Its name.
    pub name: Arc<str>,
    /// What it may ask for.
    pub policy: Policy,
    /// Bytes of its requests in flight.
    pub request_bytes: AtomicU64,
    /// Bytes of its answers on their way out, those that a run's reservation holds aside.
    pub answer_bytes: AtomicU64,
    /// Whether it is one of several, and leaves something to the others.
    pub shares: bool,
    /// Where it stands in admission.
    pub(super) line: usize,
    pub(super) account: Arc<Account>,
    pub(super) roots: Roots,
    pub(super) store: Arc<Store>,
    pub(super) registry: Arc<Registry>,
    pub(super) viewers: Arc<Semaphore>,
    /// Its share of what guests may have open.
    pub(crate) descriptors: Arc<DescriptorAccount>,
    logs: Arc<Pool>,
    log_bytes: usize,
    /// Whether its compiled code is nobody else's.
    apart: bool,
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Tenant {
    /// What its compiled form of a module is kept under.
    pub(super) fn code_of(&self, digest: Digest) -> Digest {
        if self.apart {
            return digest.apart(&self.name);
        }
        digest
    }

    /// Whether its compiled code may be another's too.
    pub(super) fn has_code_in_common(&self) -> bool {
        self.shares && !self.apart
    }

    /// A log for a run of it.
    pub(crate) fn new_log(&self) -> Arc<Log> {
        Log::new(self.log_bytes, Arc::clone(&self.logs))
    }

    /// The log of a run of it that has ended, with the output that is kept of it.
    pub(super) fn reopened_log(
        &self,
        started: Option<SystemTime>,
        end: (SystemTime, Arc<End>),
        kept: KeptOutput,
    ) -> Arc<Log> {
        Log::reopen(self.log_bytes, Arc::clone(&self.logs), started, end, kept)
    }

    /// Bytes of its logs.
    pub(super) fn logged(&self) -> usize {
        self.logs.held()
    }
}

impl Drop for Tenants {
    fn drop(&mut self) {
        // A run knows its tenant, which would know it for ever.
        for tenant in self.all() {
            tenant.registry.clear();
        }
    }
}

/// All of them.
pub(super) struct Tenants {
    by_name: HashMap<Arc<str>, Arc<Tenant>>,
    /// Whose runs are the daemon's own.
    pub(super) own: Arc<Tenant>,
}

impl Tenants {
    /// Makes them; what `settings` says of all is divided evenly.
    ///
    /// # Errors
    /// Where a mount cannot be opened.
    pub(super) fn new(
        instance: &str,
        all: Vec<TenantSettings>,
        settings: &Settings,
    ) -> Result<Self, Refusal> {
        let instance: Arc<str> = instance.into();
        let count = all.len().max(1);
        let shares = count > 1;
        let each = |n: usize| n.div_ceil(count);
        let descriptors = DescriptorBudget::of_process(settings.capacity.slots);
        let make = |line: usize, it: TenantSettings| {
            let roots = Roots::open(&it.policy.grants.mounts).map_err(Refusal::internal)?;
            let remembers = it.name != OWN;
            let share = |n: usize| if remembers { each(n) } else { 0 };
            let history = History {
                runs: share(settings.history.runs),
                bytes: share(settings.history.bytes),
                age: settings.history.age,
            };
            let logs = Pool::new(each(settings.log_budget));
            let keys = Keys::new(settings.idempotency_window, each(settings.idempotency_keys));
            Ok::<_, Refusal>(Arc::new(Tenant {
                name: it.name.into(),
                policy: it.policy,
                request_bytes: AtomicU64::new(0),
                answer_bytes: AtomicU64::new(0),
                shares,
                line,
                account: Account::new(it.quota, Lane::new(it.weight)),
                roots,
                store: it.store,
                registry: Registry::new(Arc::clone(&instance), history, keys, &logs),
                viewers: Arc::new(Semaphore::new(each(settings.viewers as usize))),
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
        for (line, it) in all.into_iter().enumerate() {
            let tenant = make(line, it)?;
            by_name.insert(Arc::clone(&tenant.name), tenant);
        }
        let own = make(by_name.len(), own)?;
        Ok(Self { by_name, own })
    }

    /// One of them.
    pub(super) fn get(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.by_name.get(name)
    }

    /// Each of them.
    pub(super) fn named(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.by_name.values()
    }

    /// Each of them, and the daemon's own.
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.named().chain([&self.own])
    }
}
