//! Tenant quotas: runs at once, runs a second (token bucket), processor time a minute (token
//! bucket) and stored modules. The counters here do not outlive the daemon.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::compile_fair_queue::CompileThreadPermit;
use crate::model::refusal::{Reason, Refusal};
use crate::sandbox::{CompileGrant, CompileLease, TenantQueue};
use crate::sync::lock;

/// The delay after which a refused caller is told to retry, where no better estimate is known.
const RETRY: Duration = Duration::from_millis(500);
/// Seconds in a minute, the period over which processor time is counted.
const MINUTE: f64 = 60.0;
/// The bounds of the delay that a caller is told for whom a bucket has too few tokens.
const SOONEST: Duration = Duration::from_millis(1);
const LATEST: Duration = Duration::from_secs(3600);
/// The shortest time, in which the least that a bucket can have comes back.
const TICK: Duration = Duration::from_nanos(1);

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
///
/// What is missing is kept as the time when the bucket will be full. So a refill changes nothing
/// and loses nothing to rounding, and it is known to the nanosecond when a token is there.
#[derive(Debug)]
struct TokenBucket {
    /// How long one token takes to come back.
    per_token: Duration,
    /// How long it takes until an empty bucket is full.
    capacity: Duration,
    full_at: Instant,
    /// When it was last looked at.
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
    fn new(per_second: f64, most: f64, now: Instant) -> Self {
        let per_token = Duration::from_secs_f64(1.0 / per_second);
        Self {
            per_token,
            capacity: per_token.mul_f64(most),
            full_at: now,
            at: now,
        }
    }

    /// Takes away the tokens `spent` since the last refill, and adds those that have come back
    /// meanwhile.
    fn refill(&mut self, spent: f64, now: Instant) {
        self.full_at = self.full_at.max(self.at) + self.per_token.mul_f64(spent);
        self.at = self.at.max(now);
    }

    /// Takes one token away.
    fn take_one(&mut self) {
        self.full_at = self.full_at.max(self.at) + self.per_token;
    }

    /// Returns how long it takes until one token is there, or nothing where it is.
    fn wait_for_one(&self) -> Option<Duration> {
        self.wait_for(self.per_token)
    }

    /// Returns how long it takes until there is anything at all, or nothing where there is.
    fn wait_for_any(&self) -> Option<Duration> {
        self.wait_for(TICK)
    }

    /// Returns how long it takes until there is what comes back in the time `want`, or nothing
    /// where that is there.
    fn wait_for(&self, want: Duration) -> Option<Duration> {
        let missing = self.full_at.saturating_duration_since(self.at);
        let wait = (missing + want).saturating_sub(self.capacity);
        (!wait.is_zero()).then_some(wait)
    }
}

impl QuotaUsage {
    /// Creates the counters of a tenant whose guests run in the scheduler queue `tenant_queue`.
    pub(in crate::run) fn new(quota: Quota, tenant_queue: Arc<TenantQueue>) -> Arc<Self> {
        Self::new_at(quota, tenant_queue, Instant::now())
    }

    fn new_at(quota: Quota, tenant_queue: Arc<TenantQueue>, now: Instant) -> Arc<Self> {
        // A second's worth of runs may come at once, and always at least one.
        let rate = quota.runs_per_second;
        let cpu = quota.cpu_seconds_per_minute;
        Arc::new(Self {
            used: Mutex::new(QuotaCounters {
                runs: 0,
                rate: rate.map(|rate| TokenBucket::new(rate, rate.max(1.0), now)),
                cpu: cpu.map(|cpu| TokenBucket::new(cpu / MINUTE, cpu, now)),
                spent: tenant_queue.cpu_time(),
                compiled: Duration::ZERO,
            }),
            quota,
            tenant_queue,
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
        self.count_run_at(Instant::now())
    }

    fn count_run_at(self: &Arc<Self>, now: Instant) -> Result<RunQuotaGuard, Refusal> {
        let mut used = self.lock();
        if let Some(most) = self.quota.runs
            && used.runs >= most
        {
            return Err(over("runs", most, RETRY));
        }
        self.check_processor_time(&mut used, now)?;
        if let Some(rate) = &mut used.rate {
            rate.refill(0.0, now);
            if let Some(wait) = rate.wait_for_one() {
                let most = self.quota.runs_per_second.unwrap_or_default();
                let wait = wait.clamp(SOONEST, LATEST);
                return Err(over("runs_per_second", most, wait));
            }
            rate.take_one();
        }
        used.runs += 1;
        Ok(RunQuotaGuard(Arc::clone(self)))
    }

    /// Refuses to compile a module where the tenant's processor time is used up.
    ///
    /// # Errors
    /// `TENANT_QUOTA`, with the delay after which the caller may retry.
    pub(in crate::run) fn may_compile(&self) -> Result<(), Refusal> {
        self.check_processor_time(&mut self.lock(), Instant::now())
    }

    fn check_processor_time(&self, used: &mut QuotaCounters, now: Instant) -> Result<(), Refusal> {
        let spent = self.tenant_queue.cpu_time();
        let since = spent.saturating_sub(used.spent) + std::mem::take(&mut used.compiled);
        used.spent = spent;
        if let Some(cpu) = &mut used.cpu {
            // Work that is under way when the time is used up goes on; what it then uses becomes a
            // debt.
            cpu.refill(since.as_secs_f64(), now);
            if let Some(wait) = cpu.wait_for_any() {
                let most = self.quota.cpu_seconds_per_minute.unwrap_or_default();
                let wait = wait.clamp(SOONEST, LATEST);
                return Err(over("cpu_seconds_per_minute", most, wait));
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, QuotaCounters> {
        lock(&self.used)
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

#[cfg(test)]
mod tests;
