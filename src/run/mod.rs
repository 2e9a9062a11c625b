//! Runs, from a well-formed spec to the end of what is remembered of them: compile -> admit -> execute -> history.
//!
//! Compiling comes before a slot is taken, so that a queue of slow compilations never holds the slots that compiled
//! modules could use.

mod admission;
mod attach;
mod control;
mod inflight;
mod keep;
mod keys;
mod record;
mod registry;
mod start;

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::Semaphore;

use self::admission::{Admission, not_started};
use self::inflight::InFlight;
use self::keys::Keys;
use self::record::Pending;
use self::registry::Registry;
use crate::limits::{Delivery, Requested};
use crate::log::{Log, Pool};
use crate::outcome::{CancelCause, Outcome};
use crate::policy::Policy;
use crate::refusal::Refusal;
use crate::request::{Labels, ModuleRef, RunId, RunSpec};
use crate::sandbox::{Sandbox, StopReason};
use crate::store::{Registries, Store};

pub use self::admission::shutting_down;
pub use self::attach::Attached;
pub use self::control::Cancelled;
pub use self::inflight::Untold;
pub use self::keep::{About, Arriving, Kept, Taken};
pub use self::record::{Granted, Method, Origin, Run, State};
pub use self::registry::{History, News, Selector, Watch};
pub use self::start::{Asked, Refused};

/// How often what has grown too old is looked for.
const AGING: Duration = Duration::from_secs(5);

/// How a runner is made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Runs at once.
    pub slots: u32,
    /// Runs that may wait.
    pub queue: u32,
    /// How long one may wait.
    pub max_wait: Duration,
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
    /// Modules that may arrive at once, in pieces or from a registry.
    pub arrivals: u32,
    /// How long one may take to arrive in pieces.
    pub upload_timeout: Duration,
}

/// Everything that a run needs, shared by all.
pub struct Runner {
    instance: String,
    policy: Arc<Policy>,
    sandbox: Sandbox,
    store: Arc<Store>,
    registries: Registries,
    arrivals: Arc<Semaphore>,
    upload_timeout: Duration,
    admission: Admission,
    inflight: Arc<InFlight>,
    registry: Arc<Registry>,
    viewers: Arc<Semaphore>,
    /// Runs that are taken to their start without their callers.
    unattended: Arc<Semaphore>,
    logs: Arc<Pool>,
    log_bytes: usize,
    stall_timeout: Duration,
}

impl Runner {
    /// Of `instance`.
    pub fn new(
        instance: String,
        policy: Arc<Policy>,
        sandbox: Sandbox,
        store: Arc<Store>,
        registries: Registries,
        settings: Settings,
    ) -> Self {
        Self {
            instance,
            policy,
            sandbox,
            store,
            registries,
            arrivals: Arc::new(Semaphore::new(settings.arrivals as usize)),
            upload_timeout: settings.upload_timeout,
            admission: Admission::new(settings.slots, settings.queue, settings.max_wait),
            inflight: InFlight::new(),
            registry: Registry::new(
                settings.history,
                Keys::new(settings.idempotency_window, settings.idempotency_keys),
            ),
            viewers: Arc::new(Semaphore::new(settings.viewers as usize)),
            // As many as may run or wait for a slot.
            unattended: Arc::new(Semaphore::new(
                settings.slots as usize + settings.queue as usize,
            )),
            logs: Pool::new(settings.log_budget),
            log_bytes: settings.log_bytes,
            stall_timeout: settings.stall_timeout,
        }
    }

    /// The name of this daemon among its replicas.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// What the operator allows.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// What executes the guests.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Runs in flight, runs that wait, slots.
    pub fn load(&self) -> (u32, u32, u32) {
        let in_flight = u32::try_from(self.inflight.count()).unwrap_or(u32::MAX);
        (
            in_flight,
            self.admission.queued(),
            self.admission.capacity(),
        )
    }

    /// Records a run that was refused before it was a well-formed one, and answers with the refusal in its caller's terms.
    pub fn refused(&self, id: &RunId, origin: Origin, refusal: Refusal) -> Refusal {
        let log = self.new_log();
        let run = Run::new(id.clone(), origin, Labels::default(), false, None, log);
        Pending::new(run, Arc::clone(&self.registry)).refused(refusal)
    }

    fn new_log(&self) -> Arc<Log> {
        Log::new(self.log_bytes, Arc::clone(&self.logs))
    }

    /// Compiles and runs a module that does nothing, so that the first caller does not wait for what every run needs.
    ///
    /// # Errors
    /// Where the engine cannot run even that.
    pub async fn warm(self: &Arc<Self>) -> Result<(), Refusal> {
        const NOTHING: &[u8] = br#"(module (memory 1) (func (export "_start")))"#;
        let spec = RunSpec {
            module: ModuleRef::Inline(Bytes::from_static(NOTHING)),
            entry_point: None,
            args: Vec::new(),
            env: Vec::new(),
            stdin: Bytes::new(),
            working_dir: None,
            mounts: Vec::new(),
            limits: self
                .policy
                .ceilings
                .grant(&Requested::default(), Delivery::Captured)?,
            wasi: self.policy.wasi,
            host_functions: Default::default(),
            network: false,
            clock: self.policy.clock,
            labels: Labels::default(),
            detach: false,
            idempotency_key: None,
        };
        let id = RunId::new(&self.instance);
        let asked = Asked {
            id: id.clone(),
            origin: Origin {
                method: Method::Run,
                caller: self.instance.as_str().into(),
            },
            spec,
            delivery: Delivery::Captured,
            input: None,
            until: None,
            held: Box::new(()),
        };
        let run = self.start(asked).await;
        let end = run.map_err(|refused| refused.refusal)?.ended().await;
        // Nobody asked for it.
        self.registry.remove(&id);
        let outcome = (*end).as_ref().map_err(Refusal::clone)?.outcome;
        if outcome == Outcome::Exited(0) {
            return Ok(());
        }
        Err(Refusal::internal(format_args!(
            "a module that does nothing ended with {outcome:?}"
        )))
    }

    /// Looks after the store, and forgets what is too old, for as long as it is polled.
    pub async fn tend(&self) {
        let age = async {
            loop {
                tokio::time::sleep(AGING).await;
                self.registry.age();
            }
        };
        tokio::join!(self.store.tend(), age);
    }

    /// Bytes of all logs, runs of the history, and bytes of their records.
    pub fn remembered(&self) -> (usize, usize, usize) {
        let (runs, bytes) = self.registry.size();
        (self.logs.held(), runs, bytes)
    }

    /// Takes no runs any more; those that have not started are refused.
    pub fn close(&self) {
        self.admission.close();
        for run in self.registry.live() {
            if run.log.started().is_none() {
                run.stop
                    .request(StopReason::Cancelled(CancelCause::Draining));
            }
        }
    }

    /// Ends every run in flight.
    pub fn cancel_all(&self) {
        for run in self.registry.live() {
            run.stop
                .request(StopReason::Cancelled(CancelCause::Draining));
        }
    }

    /// Ends every watch: nothing will happen any more.
    pub fn end_watches(&self) {
        self.registry.close();
    }

    /// Resolves when no run is in flight and every end is told.
    pub async fn idle(&self) {
        self.inflight.none_left().await;
    }
}

/// `work`, unless the caller's deadline passes first.
///
/// # Errors
/// Those of the work, and `NOT_STARTED`.
pub async fn before<T, E: From<Refusal>>(
    until: Option<Instant>,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match until {
        None => work.await,
        Some(until) => tokio::time::timeout_at(until.into(), work)
            .await
            .unwrap_or_else(|_| Err(not_started().into())),
    }
}
