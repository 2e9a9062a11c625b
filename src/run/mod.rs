//! Runs, from a well-formed spec until they are forgotten: compile -> admit -> execute -> history.
//!
//! Compiling comes before a slot is taken, so that a queue of slow compilations never holds the
//! slots that modules which are compiled already could use.

mod admission;
mod archive_feed;
mod archived;
mod attach;
mod audit;
mod bulk_cancel;
mod bulk_delete;
mod caller_deadline;
mod control;
mod deletion;
mod end_event;
mod fingerprint;
mod history_ring;
mod hold;
mod idempotency;
mod in_flight;
mod in_flight_bytes;
mod lifecycle;
mod log_lines;
mod metrics;
mod origin;
mod provided;
mod record;
mod refused_run;
mod registry;
mod request_charge;
mod reservation;
mod response_reservation;
mod run_end_guard;
mod run_needs;
mod sessions;
mod snapshot;
mod stats;
mod stats_watch;
mod tenant;
mod watch;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::admission::Admission;
use self::in_flight::InFlight;
use self::record::RunTerms;
use self::run_end_guard::RunEndGuard;
use self::stats::StatsClock;
use self::tenant::Tenants;
use crate::archive::Archive;
use crate::event_log::RunEnd;
use crate::model::limits::{OutputMode, RequestedLimits};
use crate::model::outcome::{CancelCause, Outcome};
use crate::model::refusal::Refusal;
use crate::model::request::{Labels, ModuleRef, RunId, RunSpec, SessionName};
use crate::model::trace_context::TraceContext;
use crate::otlp::{CallTrace, Exporter, TracedCall};
use crate::sandbox::{Sandbox, StopReason};
use crate::store::StoreError;
use bytes::Bytes;

pub use self::admission::{
    Capacity, Permit, QueueLoad, QueueLoads, Quota, not_started, share_of, share_of_memory,
    shutting_down,
};
pub use self::archive_feed::{ArchiveChoice, ArchiveFeed, EndedRun};
pub use self::attach::RunHandle;
pub use self::bulk_cancel::{BulkCancelReport, CancelledRun, MAX_MATCHED, MatchedRuns};
pub use self::caller_deadline::with_deadline;
pub use self::control::CancelReport;
pub use self::deletion::{DeletionReport, MAX_DELETED_IDS, MAX_TOLD_DELETED, RunDeletion};
pub use self::in_flight::PendingResponse;
pub use self::in_flight_bytes::{
    HeldBytes, InFlightLimit, RETRY_IN_FLIGHT, release_bytes, reserve_bytes,
};
pub use self::lifecycle::StartRequest;
pub use self::origin::{Origin, RunMethod, RunState, RunTrace};
pub use self::provided::ProvidedModules;
pub use self::record::Run;
pub use self::refused_run::RefusedRun;
pub use self::registry::{HistoryLimits, Selector};
pub use self::request_charge::RequestCharge;
pub use self::reservation::largest_reservation;
pub use self::response_reservation::{ResponseReservation, STREAMED_FRAMES};
pub use self::sessions::{SessionLimits, SessionRecord};
pub use self::snapshot::{GrantedLimits, RunRecord, UsageSnapshot};
pub use self::stats::{
    LatencyFigures, LiveRuns, STATS_HISTORY, SampleFigures, SpanFigures, StatsHistory, StatsReport,
};
pub use self::stats_watch::StatsWatch;
pub use self::tenant::{Tenant, TenantSettings};
pub use self::watch::{RunUpdate, Watch};

/// How often old runs and old idempotency keys are looked for and forgotten.
const AGING: Duration = Duration::from_secs(5);

/// The settings of a [`Runner`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Slots, memory and queues for all tenants together.
    pub capacity: Capacity,
    /// Whether tenants share compiled code.
    pub share_code: bool,
    /// How long a guest waits for a caller that reads nothing, before the run is ended.
    pub stall_timeout: Duration,
    /// The most bytes that one run's log holds.
    pub log_bytes: usize,
    /// The most bytes that the logs of all tenants hold together.
    pub log_budget: usize,
    /// How much is remembered of runs that have ended.
    pub history: HistoryLimits,
    /// How long an idempotency key holds, or longer while its run goes on.
    pub idempotency_window: Duration,
    /// The most idempotency keys at once, of all tenants together.
    pub idempotency_keys: usize,
    /// The most viewers and watches at once, of all tenants together.
    pub viewers: u32,
    /// The limits on the sessions of all tenants together.
    pub sessions: SessionLimits,
    /// What hands runs that have ended to the archive; `None`: there is no archive.
    pub archive: Option<Arc<ArchiveFeed>>,
}

/// The entry point to runs and modules. It owns what all runs share: the tenants, the sandbox,
/// admission, and the counts of what is in flight.
pub struct Runner {
    instance: String,
    tenants: Tenants,
    provided: ProvidedModules,
    sandbox: Sandbox,
    admission: Arc<Admission>,
    inflight: Arc<InFlight>,
    stats: StatsClock,
    stall_timeout: Duration,
    archive: Option<Arc<ArchiveFeed>>,
    /// The export of traces and output; `None` where nothing is exported.
    exporter: Option<Arc<Exporter>>,
}

impl Runner {
    /// Creates the runner of the daemon `instance`, for `tenants`. All of them may run the modules
    /// in `provided`.
    ///
    /// # Errors
    /// Fails where a tenant's mounts cannot be opened, or where there is no tenant.
    pub fn new(
        instance: String,
        sandbox: Sandbox,
        settings: Settings,
        tenants: Vec<TenantSettings>,
        provided: ProvidedModules,
    ) -> Result<Self, Refusal> {
        let weights: Vec<u32> = tenants.iter().map(|tenant| tenant.weight).collect();
        Ok(Self {
            tenants: Tenants::new(&instance, tenants, &settings)?,
            instance,
            provided,
            sandbox,
            admission: Arc::new(Admission::new(&settings.capacity, &weights)),
            inflight: InFlight::new(),
            stats: StatsClock::start(),
            stall_timeout: settings.stall_timeout,
            archive: settings.archive,
            exporter: None,
        })
    }

    /// Makes this a runner whose runs are traced, and whose output is exported, by `exporter`.
    #[must_use]
    pub fn exporting_to(mut self, exporter: Option<Arc<Exporter>>) -> Self {
        self.exporter = exporter;
        self
    }

    /// Returns the export of traces and output; `None` where nothing is exported.
    pub fn exporter(&self) -> Option<&Arc<Exporter>> {
        self.exporter.as_ref()
    }

    /// Begins the trace of a call of `method` whose headers `arrived` then. It is a part of the
    /// span of its caller where `parent` names one. `None`: the call belongs to no trace.
    pub fn begin_trace(
        &self,
        method: RunMethod,
        tenant: &Tenant,
        parent: Option<TraceContext>,
        arrived: Instant,
    ) -> Option<Arc<CallTrace>> {
        let tracer = self.exporter.as_ref().map(|exporter| exporter.tracer());
        CallTrace::begin(tracer, parent, || TracedCall {
            rpc: method.rpc(),
            tenant: Arc::clone(&tenant.name),
            arrived,
        })
    }

    /// Returns the archive of runs that have ended; `None` where there is none.
    pub fn archive(&self) -> Option<&Arc<Archive>> {
        self.archive.as_deref().map(ArchiveFeed::archive)
    }

    /// Returns the name of this daemon among its replicas.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Acquires the permit of a module that arrives in pieces.
    ///
    /// # Errors
    /// `QUEUE_FULL` where there are as many as may be, and `SHUTTING_DOWN`.
    pub(crate) fn acquire_upload(&self, tenant: &Tenant) -> Result<Permit, Refusal> {
        self.admission.acquire_upload(tenant.id)
    }

    /// Reports whether the daemon takes on nothing new any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.admission.is_closed()
    }

    /// Counts a response that a drain waits for until it is given.
    pub(crate) fn track_response(&self) -> PendingResponse {
        self.inflight.track_response()
    }

    /// Returns the tenant of that name; `None` where there is none.
    pub fn tenant(&self, name: &str) -> Option<&Arc<Tenant>> {
        self.tenants.get(name)
    }

    /// Returns the modules that the operator provides to all tenants.
    pub fn provided(&self) -> &ProvidedModules {
        &self.provided
    }

    /// Returns the sandbox that executes the guests.
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// Returns the number of runs in flight, and the load of each admission queue: what waits and
    /// what is held.
    pub fn load(&self) -> (u32, QueueLoads) {
        let in_flight = u32::try_from(self.inflight.count()).unwrap_or(u32::MAX);
        (in_flight, self.admission.loads())
    }

    /// Records a run that was refused before its spec was well-formed, and returns the refusal with
    /// the field names of its caller's messages.
    pub fn refused(
        &self,
        tenant: Arc<Tenant>,
        id: &RunId,
        origin: Origin,
        refusal: Refusal,
    ) -> Refusal {
        let log = tenant.new_log();
        let terms = RunTerms {
            labels: Labels::default(),
            detached: false,
            key: None,
            keeps_output: true,
        };
        let run = Run::new(*id, origin, terms, log, None);
        RunEndGuard::new(run, tenant).refuse(refusal)
    }

    /// Compiles and runs a module that does nothing, so that the first caller does not wait for
    /// what every run needs.
    ///
    /// # Errors
    /// Fails where the engine cannot run even that.
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

    /// Executes a module as the daemon's own tenant and within the default limits, and remembers
    /// nothing of it.
    ///
    /// # Errors
    /// Returns whatever keeps the module from its first instruction.
    pub async fn run_own(self: &Arc<Self>, wasm: Bytes) -> Result<Arc<RunEnd>, Refusal> {
        let own = &self.tenants.own;
        let policy = &own.policy;
        let spec = RunSpec {
            module: ModuleRef::Inline(wasm),
            entry_point: None,
            args: Vec::new(),
            env: Vec::new(),
            stdin: Bytes::new(),
            stdin_preface: 0,
            open_stdin: false,
            working_dir: None,
            mounts: Vec::new(),
            files: None,
            limits: policy
                .ceilings
                .grant(&RequestedLimits::default(), OutputMode::Captured)?,
            wasi: policy.wasi,
            host_functions: Default::default(),
            network: false,
            clock: policy.clock,
            labels: Labels::default(),
            detach: false,
            idempotency_key: None,
            session: None,
            keep_output: true,
        };
        let asked = StartRequest {
            id: RunId::new(&self.instance),
            tenant: Arc::clone(own),
            origin: Origin {
                method: RunMethod::Run,
                caller: self.instance.as_str().into(),
                tenant: Arc::clone(&own.name),
                trace: RunTrace::None,
            },
            spec,
            delivery: OutputMode::Captured,
            input: None,
            deadline: None,
            held_until_started: None,
        };
        // Nothing is left to forget: no caller asked for this run, and the daemon's own tenant has
        // no history.
        match self.start(Box::new(asked)).await {
            Ok(run) => Ok(run.wait_for_end().await),
            Err(refused) => Err(refused.refusal),
        }
    }

    /// Checks whether modules can be stored. Tenants share one storage place, so one of them stands
    /// for all.
    ///
    /// # Errors
    /// Says what the operator has to see to.
    pub async fn check_store(&self) -> Result<(), StoreError> {
        match self.tenants.named().next() {
            Some(tenant) => tenant.store.check().await,
            None => Ok(()),
        }
    }

    /// Reports whether the place where modules are stored answers now, which all tenants share.
    pub async fn is_store_reachable(&self) -> bool {
        match self.tenants.named().next() {
            Some(tenant) => tenant.store.is_reachable().await,
            None => true,
        }
    }

    /// Maintains the module stores, forgets what has grown too old, and samples the figures of all
    /// tenants, for as long as it is polled.
    pub async fn run_maintenance(&self) {
        let age = async {
            loop {
                tokio::time::sleep(AGING).await;
                for tenant in self.tenants.all() {
                    tenant.registry.age();
                    tenant.sessions.age();
                }
            }
        };
        let stores = self
            .tenants
            .named()
            .map(|tenant| tenant.store.run_maintenance());
        let stores = futures_util::future::join_all(stores);
        tokio::join!(stores, age, self.sample_periodically());
    }

    /// Lists the sessions of a tenant by their names.
    pub fn sessions(&self, tenant: &Tenant) -> Vec<SessionRecord> {
        tenant.sessions.list()
    }

    /// Ends a session of a tenant, and the program that it executes. Returns what it was.
    ///
    /// # Errors
    /// `SESSION_NOT_FOUND`.
    pub async fn close_session(
        &self,
        tenant: &Tenant,
        name: &SessionName,
    ) -> Result<SessionRecord, Refusal> {
        tenant.sessions.close(name).await
    }

    /// Returns the bytes of all logs, the number of runs in the history, and the bytes of their
    /// records, summed over all tenants.
    pub fn remembered(&self) -> (usize, usize, usize) {
        let mut sum = (0, 0, 0);
        for tenant in self.tenants.all() {
            let (runs, bytes) = tenant.registry.size();
            sum = (sum.0 + tenant.logged(), sum.1 + runs, sum.2 + bytes);
        }
        sum
    }

    /// Returns the bytes of all tenants' answers that no run's reservation covers.
    pub fn answer_bytes(&self) -> u64 {
        let each = |tenant: &Arc<Tenant>| tenant.answer_bytes.load(Ordering::Acquire);
        self.tenants.all().map(each).sum()
    }

    /// Closes admission: no run is accepted any more, and those that have not started are refused.
    pub fn close(&self) {
        self.admission.close();
        for run in self.live() {
            if run.log.started().is_none() {
                run.stop
                    .request(StopReason::Cancelled(CancelCause::Draining));
            }
        }
    }

    /// Asks every run that has not ended to end, because the daemon is draining.
    pub fn cancel_all(&self) {
        for run in self.live() {
            run.stop
                .request(StopReason::Cancelled(CancelCause::Draining));
        }
    }

    fn live(&self) -> impl Iterator<Item = Arc<Run>> {
        self.tenants.all().flat_map(|tenant| tenant.registry.live())
    }

    /// Ends every watch, since nothing will happen any more.
    pub fn end_watches(&self) {
        for tenant in self.tenants.all() {
            tenant.registry.close();
        }
        self.stats.ended.send_replace(true);
    }

    /// Returns the number of runs in flight, and of answers that their callers have not been given.
    pub fn unfinished(&self) -> (usize, usize) {
        (self.inflight.count(), self.inflight.pending_count())
    }

    /// Waits until no run is in flight and no answer or end is pending.
    pub async fn wait_until_idle(&self) {
        self.inflight.wait_until_idle().await;
    }
}
