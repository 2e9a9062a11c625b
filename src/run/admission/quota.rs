//! What a tenant may use over time: runs at once, runs a second, processor time a minute. Nothing of it outlives the
//! daemon.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::refusal::{Reason, Refusal};
use crate::sandbox::{CompileLease, Lane};

/// What a refused caller is told to wait where nothing says how long.
const RETRY: Duration = Duration::from_millis(500);
/// A minute, over which processor time is counted.
const MINUTE: f64 = 60.0;

/// A tenant's quota. `None`: none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quota {
    /// Runs at once, those that wait included.
    pub runs: Option<u32>,
    /// Runs a second.
    pub runs_per_second: Option<f64>,
    /// Seconds of processor time a minute, of its guests and of what compiles its modules.
    pub cpu_seconds_per_minute: Option<f64>,
    /// Bytes of modules.
    pub stored_bytes: Option<u64>,
    /// Modules.
    pub modules: Option<u64>,
}

/// What a tenant has used of its quota.
#[derive(Debug)]
pub(in crate::run) struct Account {
    quota: Quota,
    used: Mutex<Used>,
    lane: Arc<Lane>,
}

#[derive(Debug)]
struct Used {
    runs: u32,
    rate: Option<Bucket>,
    cpu: Option<Bucket>,
    /// What the lane had used when it was looked at last.
    spent: Duration,
    /// What compiling took since then.
    compiled: Duration,
}

/// What comes back steadily, up to as much as there may be, and may be owed.
#[derive(Debug)]
struct Bucket {
    most: f64,
    per_second: f64,
    left: f64,
    at: Instant,
}

/// One of a tenant's runs at once, until this is dropped.
#[derive(Debug)]
pub(in crate::run) struct Counted(Arc<Account>);

/// Charges an account for a compilation when this is dropped.
#[derive(Debug)]
pub(in crate::run) struct CompileCharge {
    account: Arc<Account>,
    lease: Arc<CompileLease>,
}

impl CompileCharge {
    /// Charges `account` for what `lease` is told to have taken.
    pub(in crate::run) fn new(account: Arc<Account>, lease: Arc<CompileLease>) -> Self {
        Self { account, lease }
    }
}

impl Drop for CompileCharge {
    fn drop(&mut self) {
        self.account.lock().compiled += self.lease.processor_time();
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.lock().runs -= 1;
    }
}

impl Bucket {
    fn new(per_second: f64, most: f64) -> Self {
        Self {
            most,
            per_second,
            left: most,
            at: Instant::now(),
        }
    }

    /// Takes what was `spent` since it was looked at last, and gives back what came since.
    fn settle(&mut self, spent: f64) {
        let now = Instant::now();
        let since = now.duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + since * self.per_second - spent).min(self.most);
    }

    /// Until when there is `want`.
    fn wait_for(&self, want: f64) -> Duration {
        let seconds = ((want - self.left) / self.per_second).clamp(0.0, 3600.0);
        Duration::from_secs_f64(seconds).max(Duration::from_millis(1))
    }
}

impl Account {
    /// Of a tenant whose guests run in `lane`.
    pub(in crate::run) fn new(quota: Quota, lane: Arc<Lane>) -> Arc<Self> {
        // A second's worth of runs may come at once, and at least one.
        let rate = quota.runs_per_second;
        let cpu = quota.cpu_seconds_per_minute;
        Arc::new(Self {
            used: Mutex::new(Used {
                runs: 0,
                rate: rate.map(|rate| Bucket::new(rate, rate.max(1.0))),
                cpu: cpu.map(|cpu| Bucket::new(cpu / MINUTE, cpu)),
                spent: lane.spent(),
                compiled: Duration::ZERO,
            }),
            quota,
            lane,
        })
    }

    /// Where the tenant's guests run.
    pub(in crate::run) fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// Counts a run.
    ///
    /// # Errors
    /// `TENANT_QUOTA`, with when to come again.
    pub(in crate::run) fn enter(self: &Arc<Self>) -> Result<Counted, Refusal> {
        let mut used = self.lock();
        if let Some(most) = self.quota.runs
            && used.runs >= most
        {
            return Err(over("runs", most, RETRY));
        }
        self.check_processor_time(&mut used)?;
        if let Some(rate) = &mut used.rate {
            rate.settle(0.0);
            if rate.left < 1.0 {
                let most = self.quota.runs_per_second.unwrap_or_default();
                return Err(over("runs_per_second", most, rate.wait_for(1.0)));
            }
            rate.left -= 1.0;
        }
        used.runs += 1;
        Ok(Counted(Arc::clone(self)))
    }

    /// Refuses to compile where the processor time is used up.
    ///
    /// # Errors
    /// `TENANT_QUOTA`, with when to come again.
    pub(in crate::run) fn may_compile(&self) -> Result<(), Refusal> {
        self.check_processor_time(&mut self.lock())
    }

    fn check_processor_time(&self, used: &mut Used) -> Result<(), Refusal> {
        let spent = self.lane.spent();
        let since = spent.saturating_sub(used.spent) + std::mem::take(&mut used.compiled);
        used.spent = spent;
        if let Some(cpu) = &mut used.cpu {
            // What goes on when it is used up goes on: what that uses is owed.
            cpu.settle(since.as_secs_f64());
            if cpu.left <= 0.0 {
                let most = self.quota.cpu_seconds_per_minute.unwrap_or_default();
                return Err(over("cpu_seconds_per_minute", most, cpu.wait_for(0.0)));
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Used> {
        // Nothing panics while it is held.
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
