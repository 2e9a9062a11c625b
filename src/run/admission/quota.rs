//! Tenant quotas: runs at once, runs a second (token bucket), processor time a minute (token
//! bucket) and stored modules. The counters here do not outlive the daemon.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::compile_fair_queue::CompileThreadPermit;
use crate::model::refusal::{Reason, Refusal};
use crate::sandbox::{CompileGrant, CompileLease, TenantQueue};

/// The delay after which a refused caller is told to retry, where no better estimate is known.
const RETRY: Duration = Duration::from_millis(500);
/// Seconds in a minute, the period over which processor time is counted.
const MINUTE: f64 = 60.0;

/// The quota of a tenant. A field that is `None` sets no limit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quota {
    /// The most runs at once, including those that wait.
    pub runs: Option<u32>,
    /// The most runs that the tenant may ask for each second, on average.
    pub runs_per_second: Option<f64>,
    /// Seconds of processor time a minute, for the tenant's guests and for compiling its modules.
    pub cpu_seconds_per_minute: Option<f64>,
    /// The most bytes of modules that the tenant may store.
    pub stored_bytes: Option<u64>,
    /// The most modules that the tenant may store.
    pub modules: Option<u64>,
}

/// What a tenant has used of its quota so far.
#[derive(Debug)]
pub(in crate::run) struct QuotaUsage {
    quota: Quota,
    used: Mutex<QuotaCounters>,
    tenant_queue: Arc<TenantQueue>,
}

#[derive(Debug)]
struct QuotaCounters {
    runs: u32,
    rate: Option<TokenBucket>,
    cpu: Option<TokenBucket>,
    /// Processor time that the tenant's guests had used at the last check.
    spent: Duration,
    /// Processor time that compiling has taken since the last check.
    compiled: Duration,
}

/// A token bucket: tokens come back at a steady rate up to a capacity, and their number may be
/// negative, which is a debt.
#[derive(Debug)]
struct TokenBucket {
    capacity: f64,
    per_second: f64,
    tokens: f64,
    at: Instant,
}

/// One of a tenant's runs at once. Dropping it lowers the count of runs.
#[derive(Debug)]
pub(in crate::run) struct RunQuotaGuard(Arc<QuotaUsage>);

/// A pending charge for a compilation. Dropping it charges the account the processor time that was
/// spent.
#[derive(Debug)]
struct CompileCharge {
    account: Arc<QuotaUsage>,
    lease: Arc<CompileLease>,
}

/// A thread to compile on, and the charge for its time, which is made when the thread is free
/// again.
pub(in crate::run) struct ChargedCompile {
    permit: CompileThreadPermit,
    // After the permit, whose drop asks the lease for the same time.
    _charge: CompileCharge,
}

impl ChargedCompile {
    /// Charges the use of `permit` to `account`.
    pub(in crate::run) fn new(permit: CompileThreadPermit, account: Arc<QuotaUsage>) -> Self {
        let lease = Arc::clone(permit.lease());
        Self {
            permit,
            _charge: CompileCharge { account, lease },
        }
    }
}

impl CompileGrant for ChargedCompile {
    fn lease(&self) -> &Arc<CompileLease> {
        self.permit.lease()
    }
}

impl Drop for CompileCharge {
    fn drop(&mut self) {
        self.account.lock().compiled += self.lease.processor_time();
    }
}

impl Drop for RunQuotaGuard {
    fn drop(&mut self) {
        self.0.lock().runs -= 1;
    }
}

impl TokenBucket {
    fn new(per_second: f64, most: f64) -> Self {
        Self {
            capacity: most,
            per_second,
            tokens: most,
            at: Instant::now(),
        }
    }

    /// Adds the tokens that have come back since the last refill, and takes away those `spent`
    /// meanwhile.
    fn refill(&mut self, spent: f64) {
        let now = Instant::now();
        let since = now.duration_since(self.at).as_secs_f64();
        self.at = now;
        self.tokens = (self.tokens + since * self.per_second - spent).min(self.capacity);
    }

    /// Returns how long it takes until there are `want` tokens: from a millisecond to an hour.
    fn wait_for(&self, want: f64) -> Duration {
        let seconds = ((want - self.tokens) / self.per_second).clamp(0.0, 3600.0);
        Duration::from_secs_f64(seconds).max(Duration::from_millis(1))
    }
}

impl QuotaUsage {
    /// Creates the counters of a tenant whose guests run in the scheduler queue `lane`.
    pub(in crate::run) fn new(quota: Quota, lane: Arc<TenantQueue>) -> Arc<Self> {
        // A second's worth of runs may come at once, and always at least one.
        let rate = quota.runs_per_second;
        let cpu = quota.cpu_seconds_per_minute;
        Arc::new(Self {
            used: Mutex::new(QuotaCounters {
                runs: 0,
                rate: rate.map(|rate| TokenBucket::new(rate, rate.max(1.0))),
                cpu: cpu.map(|cpu| TokenBucket::new(cpu / MINUTE, cpu)),
                spent: lane.cpu_time(),
                compiled: Duration::ZERO,
            }),
            quota,
            tenant_queue: lane,
        })
    }

    /// Returns the scheduler queue in which the tenant's guests run.
    pub(in crate::run) fn tenant_queue(&self) -> &Arc<TenantQueue> {
        &self.tenant_queue
    }

    /// Counts a run until the guard is dropped, and takes a token from the bucket of runs a second.
    ///
    /// # Errors
    /// `TENANT_QUOTA`, with the delay after which the caller may retry.
    pub(in crate::run) fn count_run(self: &Arc<Self>) -> Result<RunQuotaGuard, Refusal> {
        let mut used = self.lock();
        if let Some(most) = self.quota.runs
            && used.runs >= most
        {
            return Err(over("runs", most, RETRY));
        }
        self.check_processor_time(&mut used)?;
        if let Some(rate) = &mut used.rate {
            rate.refill(0.0);
            if rate.tokens < 1.0 {
                let most = self.quota.runs_per_second.unwrap_or_default();
                return Err(over("runs_per_second", most, rate.wait_for(1.0)));
            }
            rate.tokens -= 1.0;
        }
        used.runs += 1;
        Ok(RunQuotaGuard(Arc::clone(self)))
    }

    /// Refuses to compile a module where the tenant's processor time is used up.
    ///
    /// # Errors
    /// `TENANT_QUOTA`, with the delay after which the caller may retry.
    pub(in crate::run) fn may_compile(&self) -> Result<(), Refusal> {
        self.check_processor_time(&mut self.lock())
    }

    fn check_processor_time(&self, used: &mut QuotaCounters) -> Result<(), Refusal> {
        let spent = self.tenant_queue.cpu_time();
        let since = spent.saturating_sub(used.spent) + std::mem::take(&mut used.compiled);
        used.spent = spent;
        if let Some(cpu) = &mut used.cpu {
            // Work that is under way when the time is used up goes on; what it then uses becomes a
            // debt.
            cpu.refill(since.as_secs_f64());
            if cpu.tokens <= 0.0 {
                let most = self.quota.cpu_seconds_per_minute.unwrap_or_default();
                return Err(over("cpu_seconds_per_minute", most, cpu.wait_for(0.0)));
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, QuotaCounters> {
        // Nothing panics while the lock is held, so it is never poisoned.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn over(quota: &'static str, allowed: impl std::fmt::Display, retry: Duration) -> Refusal {
    let message =
        format!("the tenant's quota is used up: {quota} is {allowed} (tenants.quota.{quota})");
    Refusal::new(Reason::TenantQuota, message)
        .with("quota", quota)
        .with("allowed", allowed)
        .with("limit", format_args!("tenants.quota.{quota}"))
        .retry_after(retry)
}
