//! Runs, from a well-formed spec to the end of what is remembered of them: compile -> admit -> execute -> history.
//!
//! Compiling comes before a slot is taken, so that a queue of slow compilations never holds the slots that compiled
//! modules could use.

mod admission;
mod answer;
mod attach;
mod audit;
mod control;
mod deadline;
mod inflight;
mod keep;
mod keys;
mod line;
mod origin;
mod past;
mod record;
mod registry;
mod ring;
mod start;
mod tenant;
mod watch;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use self::admission::Admission;
use self::inflight::InFlight;
use self::record::Pending;
use self::tenant::Tenants;
use crate::limits::{Delivery, Requested};
use crate::log::End;
use crate::outcome::{CancelCause, Outcome};
use crate::refusal::Refusal;
use crate::request::{Labels, ModuleRef, RunId, RunSpec};
use crate::sandbox::{Sandbox, StopReason};
use crate::store::Registries;
use bytes::Bytes;

pub use self::admission::{
    Capacity, Load, Loads, Pass, Quota, not_started, share_of_memory, shutting_down,
};
pub use self::answer::{AnswerReservation, STREAMED_FRAMES};
pub use self::attach::Attached;
pub use self::control::Cancelled;
pub use self::deadline::before;
pub use self::inflight::Untold;
pub use self::keep::{About, Arriving, Kept, Taken};
pub use self::origin::{Method, Origin, State};
pub use self::past::{RunRecord, Used};
pub use self::record::{Granted, Run};
pub use self::registry::{History, Selector};
pub use self::start::{Asked, Refused, largest_reservation};
pub use self::tenant::{Tenant, TenantSettings};
pub use self::watch::{News, Watch};

/// How often what has grown too old is looked for.
const AGING: Duration = Duration::from_secs(5);

/// How a runner is made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// What there is for all tenants.
    pub capacity: Capacity,
    /// Whether tenants have compiled code in common.
    pub share_code: bool,
    /// How long a guest may wait for a caller that takes nothing.
    pub stall_timeout: Duration,
    /// Bytes of one run's log.
    pub log_bytes: usize,
    /// Bytes of all logs.
    pub log_budget: usize,
    /// What is remembered of runs that have ended.
    pub history: History,
    /// How long an idempotency key holds.
    pub idempotency_window: Duration,
    /// Idempotency keys at once.
    pub idempotency_keys: usize,
    /// Viewers and watches at once.
    pub viewers: u32,
    /// How long a module may take to arrive in pieces.
    pub upload_timeout: Duration,
}

/// Everything that a run needs, shared by all.
pub struct Runner {
    instance: String,
    tenants: Tenants,
    sandbox: Sandbox,
    registries: Registries,
    upload_timeout: Duration,
    admission: Arc<Admission>,
    inflight: Arc<InFlight>,
    stall_timeout: Duration,
}

impl Runner {
    /// Of `instance`, for `tenants`.
    ///
    /// # Errors
    /// Where a tenant's mounts cannot be opened.
    pub fn new(
        instance: String,
        sandbox: Sandbox,
        registries: Registries,
        settings: Settings,
        tenants: Vec<TenantSettings>,
    ) -> Result<Self, Refusal> {
        let mut weights: Vec<u32> = tenants.iter().map(|tenant| tenant.weight).collect();
        // The daemon's own.
        weights.push(1);
        Ok(Self {
            tenants: Tenants::new(&instance, tenants, &settings)?,
            instance,
            sandbox,
            registries,
            upload_timeout: settings.upload_timeout,
            admission: Arc::new(Admission::new(&settings.capacity, &weights)),
            inflight: InFlight::new(),
            stall_timeout: settings.stall_timeout,
        })
    }

    /// The name of this daemon among its replicas.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// The tenant of that name.
    pub fn tenant(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(name)
    }

    /// What executes the guests.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Runs in flight; and what waits, and is held, at each gate.
    pub fn load(&self) -> (u32, Loads) {
        let in_flight = u32::try_from(self.inflight.count()).unwrap_or(u32::MAX);
        (in_flight, self.admission.loads())
    }

    /// Records a run that was refused before it was a well-formed one, and answers with the refusal in its caller's terms.
    pub fn refused(&self, id: &RunId, origin: Origin, refusal: Refusal) -> Refusal {
        let tenant = Arc::clone(&origin.tenant);
        let log = tenant.new_log();
        let run = Run::new(*id, origin, Labels::default(), false, None, log);
        Pending::new(run).refused(refusal)
    }

    /// Compiles and runs a module that does nothing, so that the first caller does not wait for what every run needs.
    ///
    /// # Errors
    /// Where the engine cannot run even that.
    pub async fn warm(self: &Arc<Self>) -> Result<(), Refusal> {
        const NOTHING: &[u8] = br#"(module (memory 1) (func (export "_start")))"#;
        let end = self.run_own(Bytes::from_static(NOTHING)).await?;
        let outcome = (*end).as_ref().map_err(Refusal::clone)?.outcome;
        if outcome == Outcome::Exited(0) {
            return Ok(());
        }
        Err(Refusal::internal(format_args!(
            "a module that does nothing ended with {outcome:?}"
        )))
    }

    /// Runs a module for nobody, within the defaults, and forgets it.
    ///
    /// # Errors
    /// Whatever keeps it from its first instruction.
    pub async fn run_own(self: &Arc<Self>, wasm: Bytes) -> Result<Arc<End>, Refusal> {
        let own = &self.tenants.own;
        let policy = &own.policy;
        let spec = RunSpec {
            module: ModuleRef::Inline(wasm),
            entry_point: None,
            args: Vec::new(),
            env: Vec::new(),
            stdin: Bytes::new(),
            working_dir: None,
            mounts: Vec::new(),
            limits: policy
                .ceilings
                .grant(&Requested::default(), Delivery::Captured)?,
            wasi: policy.wasi,
            host_functions: Default::default(),
            network: false,
            clock: policy.clock,
            labels: Labels::default(),
            detach: false,
            idempotency_key: None,
        };
        let asked = Asked {
            id: RunId::new(&self.instance),
            origin: Origin {
                method: Method::Run,
                caller: self.instance.as_str().into(),
                tenant: Arc::clone(own),
            },
            spec,
            delivery: Delivery::Captured,
            input: None,
            until: None,
            held: None,
        };
        // Nobody asked for it, and the daemon's own tenant has no history.
        match self.start(Box::new(asked)).await {
            Ok(run) => Ok(run.ended().await),
            Err(refused) => Err(refused.refusal),
        }
    }

    /// Looks whether modules can be kept. Tenants share a place: one of them stands for all.
    ///
    /// # Errors
    /// What whoever runs the daemon has to see to.
    pub async fn check_store(&self) -> Result<(), String> {
        match self.tenants.named().next() {
            Some(tenant) => tenant.store.check().await,
            None => Ok(()),
        }
    }

    /// Looks after the stores, and forgets what is too old, for as long as it is polled.
    pub async fn tend(&self) {
        let age = async {
            loop {
                tokio::time::sleep(AGING).await;
                for tenant in self.tenants.all() {
                    tenant.registry.age();
                }
            }
        };
        let stores = self.tenants.named().map(|tenant| tenant.store.tend());
        tokio::join!(futures_util::future::join_all(stores), age);
    }

    /// Bytes of all logs, runs of the history, and bytes of their records.
    pub fn remembered(&self) -> (usize, usize, usize) {
        let mut sum = (0, 0, 0);
        for tenant in self.tenants.all() {
            let (runs, bytes) = tenant.registry.size();
            sum = (sum.0 + tenant.logged(), sum.1 + runs, sum.2 + bytes);
        }
        sum
    }

    /// Bytes of answers that no run's reservation holds, of all tenants.
    pub fn answer_bytes(&self) -> u64 {
        let each = |tenant: &Arc<Tenant>| tenant.answer_bytes.load(Ordering::Acquire);
        self.tenants.all().map(each).sum()
    }

    /// Takes no runs any more; those that have not started are refused.
    pub fn close(&self) {
        self.admission.close();
        for run in self.live() {
            if run.log.started().is_none() {
                run.stop
                    .request(StopReason::Cancelled(CancelCause::Draining));
            }
        }
    }

    /// Ends every run in flight.
    pub fn cancel_all(&self) {
        for run in self.live() {
            run.stop
                .request(StopReason::Cancelled(CancelCause::Draining));
        }
    }

    fn live(&self) -> impl Iterator<Item = Arc<Run>> {
        self.tenants.all().flat_map(|tenant| tenant.registry.live())
    }

    /// Ends every watch: nothing will happen any more.
    pub fn end_watches(&self) {
        for tenant in self.tenants.all() {
            tenant.registry.close();
        }
    }

    /// Runs in flight, and answers that their callers have not been given.
    pub fn unfinished(&self) -> (usize, usize) {
        (self.inflight.count(), self.inflight.untold_count())
    }

    /// Resolves when no run is in flight and every end is told.
    pub async fn idle(&self) {
        self.inflight.none_left().await;
    }
}
