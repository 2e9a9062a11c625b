//! A run, from a well-formed spec to its end: compile -> admit -> execute.
//!
//! Compiling comes before a slot is taken, so that a queue of slow compilations never holds the slots that compiled
//! modules could use.

mod admission;
mod inflight;
mod keep;
mod record;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::Semaphore;

use self::admission::{Admission, Permit, not_started, shutting_down};
use self::inflight::{Flight, InFlight};
use self::record::Record;
use crate::limits::{Delivery, Limits, Requested};
use crate::outcome::{CancelCause, Ended, Outcome};
use crate::policy::Policy;
use crate::refusal::Refusal;
use crate::request::{Digest, Labels, ModuleRef, RunId, RunSpec};
use crate::sandbox::{
    self, Entry, Inspection, Item, Loaded, Output, Prepared, Sandbox, Source, Stop, StopReason,
    Surroundings, Variant,
};
use crate::store::{Registries, Store, hashed, not_found};

pub use self::inflight::Untold;
pub use self::keep::{About, Arriving, Kept, Taken};

/// How a runner is made.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Runs at once.
    pub slots: u32,
    /// Runs that may wait.
    pub queue: u32,
    /// How long one may wait.
    pub max_wait: Duration,
    /// How long a guest may wait for a reader that takes nothing.
    pub stall_timeout: Duration,
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
    stall_timeout: Duration,
}

/// A run that was asked for.
pub struct Asked {
    /// Its id.
    pub id: RunId,
    /// What to run.
    pub spec: RunSpec,
    /// How its output is delivered.
    pub delivery: Delivery,
    /// When its caller gives up.
    pub until: Option<Instant>,
}

/// A run that has started. Its caller owns it: dropping it before the end cancels the run.
pub struct Running {
    /// Its id.
    pub id: RunId,
    /// What it runs.
    pub digest: Digest,
    /// What it got.
    pub granted: Granted,
    /// When.
    pub started: SystemTime,
    output: Arc<Output>,
    stop: Arc<Stop>,
    /// A drain waits for what has not been told yet; the answer takes a clone along.
    pub untold: Untold,
}

/// What a run got.
#[derive(Clone, Debug)]
pub struct Granted {
    /// Pages of linear memory.
    pub memory_pages: u32,
    /// The rest.
    pub limits: Limits,
}

/// A run whose module is ready; it needs a slot.
struct Ready {
    digest: Digest,
    loaded: Arc<Loaded>,
    entry: Entry,
    memory_pages: u32,
}

/// A run that has its module and its slot.
struct Admitted {
    digest: Digest,
    memory_pages: u32,
    prepared: Prepared,
    output: Arc<Output>,
    stop: Arc<Stop>,
    permit: Permit,
    flight: Flight,
    untold: Untold,
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

    /// Records a run that was refused before it was a well-formed one.
    pub fn refused(&self, id: &RunId, refusal: &Refusal) {
        Record::new(id.clone()).refused(refusal);
    }

    /// Starts a run.
    ///
    /// # Errors
    /// Whatever keeps it from its first instruction.
    pub async fn start(&self, asked: Asked) -> Result<Running, Refusal> {
        let mut record = Record::new(asked.id.clone());
        match self.admit(&asked, &mut record).await {
            Ok(admitted) => Ok(self.execute(asked, admitted, record)),
            Err(refusal) => {
                record.refused(&refusal);
                Err(refusal)
            }
        }
    }

    /// Does all that can refuse a run: its module, its slot, its mounts.
    async fn admit(&self, asked: &Asked, record: &mut Record) -> Result<Admitted, Refusal> {
        let Asked {
            id,
            spec,
            delivery,
            until,
        } = asked;
        let ready = before(*until, self.compile(spec, record)).await?;
        let permit = self.admission.admit(*until).await?;
        let stop = Arc::new(Stop::default());
        let (flight, untold) = self.inflight.enter(id.clone(), Arc::clone(&stop));
        if self.admission.is_closed() {
            // Counted before this look: a drain either waits for this run or is seen here.
            return Err(shutting_down());
        }
        let limits = &spec.limits;
        let output = Arc::new(Output::new(limits.output, limits.output_policy, *delivery));
        let around = Surroundings {
            grants: &self.policy.grants,
            roots: self.sandbox.roots(),
            output: Arc::clone(&output),
            stop: Arc::clone(&stop),
            stall: self.stall_timeout,
            until: *until,
        };
        Ok(Admitted {
            digest: ready.digest,
            memory_pages: ready.memory_pages,
            prepared: sandbox::prepare(
                ready.loaded,
                spec,
                ready.memory_pages,
                ready.entry,
                around,
            )?,
            output,
            stop,
            permit,
            flight,
            untold,
        })
    }

    /// Hands a run to the guest threads. Nothing can refuse it any more.
    fn execute(&self, asked: Asked, admitted: Admitted, record: Record) -> Running {
        let Admitted {
            digest,
            memory_pages,
            prepared,
            output,
            stop,
            permit,
            flight,
            untold,
        } = admitted;
        let started = SystemTime::now();
        // The slot is free, and the record written, before anybody learns of the end.
        let ended = move |result: &Result<Ended, Refusal>| {
            record.ended(result);
            drop(flight);
            drop(permit);
        };
        self.sandbox.spawn(prepared, Arc::clone(&output), ended);
        Running {
            id: asked.id,
            digest,
            granted: Granted {
                memory_pages,
                limits: asked.spec.limits,
            },
            started,
            output,
            stop,
            untold,
        }
    }

    /// Finds the module, checks that the run may have what it needs, and compiles it where it is not ready.
    async fn compile(&self, spec: &RunSpec, record: &mut Record) -> Result<Ready, Refusal> {
        sandbox::check_grants(spec, &self.policy.grants, self.sandbox.roots())?;
        let variant = Variant {
            metered: spec.limits.fuel.is_some(),
            stack: spec.limits.stack,
        };
        let (digest, source) = match &spec.module {
            ModuleRef::Inline(wasm) => {
                let (wasm, digest) = hashed(wasm.clone()).await?;
                record.module(digest);
                (digest, Source::Here(wasm.into()))
            }
            ModuleRef::Loaded(digest) => {
                record.module(*digest);
                let known = self.store.find(*digest).await?;
                let known = known.ok_or_else(|| not_found(*digest).at("spec.digest"))?;
                known.touch();
                (*digest, Source::Stored(Arc::clone(&self.store)))
            }
        };
        let modules = self.sandbox.modules();
        let (loaded, (entry, memory_pages)) = match modules.ready(digest, variant).await? {
            Some(loaded) => {
                let settled = settle(&loaded.inspection, spec)?;
                (loaded, settled)
            }
            None => {
                // Whatever refuses the run refuses it before anything is compiled.
                let inspected = modules.inspect(digest, source.clone()).await?;
                let settled = settle(&inspected.inspection, spec)?;
                let (loaded, _) = modules.get(digest, variant, source, inspected).await?;
                (loaded, settled)
            }
        };
        Ok(Ready {
            digest,
            loaded,
            entry,
            memory_pages,
        })
    }

    /// Compiles and runs a module that does nothing, so that the first caller does not wait for what every run needs.
    ///
    /// # Errors
    /// Where the engine cannot run even that.
    pub async fn warm(&self) -> Result<(), Refusal> {
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
        };
        let id = RunId::new(&self.instance);
        let run = self
            .start(Asked {
                id,
                spec,
                delivery: Delivery::Captured,
                until: None,
            })
            .await?;
        let outcome = run.finished().await?.outcome;
        if outcome == Outcome::Exited(0) {
            return Ok(());
        }
        Err(Refusal::internal(format_args!(
            "a module that does nothing ended with {outcome:?}"
        )))
    }

    /// Looks after the store for as long as it is polled.
    pub async fn tend(&self) {
        self.store.tend().await;
    }

    /// Takes no runs any more; those that wait are refused.
    pub fn close(&self) {
        self.admission.close();
    }

    /// Ends every run in flight.
    pub fn cancel_all(&self) {
        self.inflight.cancel_all(CancelCause::Draining);
    }

    /// Resolves when no run is in flight and every end is told.
    pub async fn idle(&self) {
        self.inflight.none_left().await;
    }
}

/// Settles what a module says about a run of it: its imports are granted, its entry point fits, its memory has room.
fn settle(inspection: &Inspection, spec: &RunSpec) -> Result<(Entry, u32), Refusal> {
    sandbox::check_imports(inspection, spec)?;
    let entry = Entry::resolve(inspection, spec.entry_point.as_deref(), &spec.args)?;
    if !spec.wasi && entry.params.is_empty() && !spec.args.is_empty() {
        return Err(Refusal::invalid(
            "spec.args",
            "needs WASI, which security.enable_wasi turns off, or an entry point with parameters",
        ));
    }
    let pages = spec
        .limits
        .memory_pages(inspection.description.memory_minimum_pages)?;
    Ok((entry, pages))
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

impl Running {
    /// The next thing that happens; `None` after the end.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.output.poll_next(cx)
    }

    /// How it ended, for a run whose output is captured.
    ///
    /// # Errors
    /// A failure of the daemon.
    pub async fn finished(&self) -> Result<Ended, Refusal> {
        loop {
            match poll_fn(|cx| self.poll_next(cx)).await {
                // Captured output comes with the end: there is nothing else to wait for.
                Some(Item::Chunk(_)) => {}
                Some(Item::End(end)) => return *end,
                None => return Err(Refusal::internal("a run ended twice")),
            }
        }
    }

    /// What was captured, once it has ended.
    pub fn captured(&self) -> [Bytes; 2] {
        self.output.captured()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After the end neither does anything.
        self.stop
            .request(StopReason::Cancelled(CancelCause::CallerGone));
        self.output.close();
    }
}
