//! The walk of a run: registered -> compile -> admit -> execute -> ended.

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::{Permit, shutting_down};
use super::attach::Attached;
use super::inflight::Flight;
use super::record::{Granted, Origin, Pending, Run, unstarted};
use super::{Runner, before};
use crate::limits::Delivery;
use crate::log::End;
use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, ModuleRef, RunId, RunSpec};
use crate::sandbox::{
    self, Entry, Input, Inspection, Loaded, Output, Prepared, Source, Surroundings, Variant,
};
use crate::store::{hashed, not_found};

/// A run that was asked for.
pub struct Asked {
    /// Its id.
    pub id: RunId,
    /// Who asks, and how.
    pub origin: Origin,
    /// What to run.
    pub spec: RunSpec,
    /// How its output is delivered.
    pub delivery: Delivery,
    /// What the guest reads while its caller still writes it.
    pub input: Option<Arc<Input>>,
    /// When its caller gives up.
    pub until: Option<Instant>,
    /// What is to be held until the run has started, or has not.
    pub held: Box<dyn Any + Send + Sync>,
}

/// What a refused caller is told to wait.
const RETRY: Duration = Duration::from_secs(1);

/// A run that did not start.
#[derive(Debug)]
pub struct Refused {
    /// Its id.
    pub id: RunId,
    /// Why.
    pub refusal: Refusal,
}

impl Refused {
    fn was_left(&self) -> bool {
        self.refusal.reason() == Reason::RunCancelled
    }
}

/// A run whose module is ready; it needs a slot.
struct Ready {
    loaded: Arc<Loaded>,
    entry: Entry,
    memory_pages: u32,
}

/// A run that has its module and its slot.
struct Admitted {
    granted: Granted,
    prepared: Prepared,
    output: Arc<Output>,
    permit: Permit,
    flight: Flight,
}

impl Runner {
    /// Starts a run and attaches its caller to it; or attaches the caller to the run that has the same idempotency key.
    ///
    /// # Errors
    /// Whatever keeps it from its first instruction.
    pub async fn start(self: &Arc<Self>, asked: Asked) -> Result<Attached, Refused> {
        let Asked { id, spec, .. } = &asked;
        let run = Run::new(
            id.clone(),
            asked.origin.clone(),
            spec.labels.clone(),
            spec.detach,
            spec.idempotency_key.clone(),
            self.new_log(),
        );
        let mut pending = Pending::new(Arc::clone(&run), Arc::clone(&self.registry));
        // Before anybody else can be attached to it, and leave.
        let attached = Attached::first(&run, asked.delivery, self.inflight.untold());
        let refused = |pending: Pending, refusal| Refused {
            id: run.id.clone(),
            refusal: pending.refused(refusal),
        };
        if self.admission.is_closed() {
            return Err(refused(pending, shutting_down()));
        }
        let until = asked.until;
        if let Some(key) = &spec.idempotency_key {
            let fingerprint = match before(until, fingerprint(spec)).await {
                Ok(fingerprint) => fingerprint,
                Err(refusal) => return Err(refused(pending, refusal)),
            };
            loop {
                let first = match self.registry.keys.take(&run, key, fingerprint) {
                    Ok(None) => break,
                    Ok(Some(first)) => first,
                    Err(refusal) => return Err(refused(pending, refusal)),
                };
                // This call is not a run of its own.
                pending.forget();
                let again = Attached::again(&first, self.inflight.untold());
                match again.begun(until).await {
                    Err(refused) if refused.was_left() && first.was_left() => {
                        // It was dying when this call came, since its callers had left it. Its key is free now.
                        pending = Pending::new(Arc::clone(&run), Arc::clone(&self.registry));
                    }
                    attached => return attached,
                }
            }
        }
        self.registry.add(&run);
        if self.admission.is_closed() {
            // Registered before this look: a drain either ends it or is seen here.
            return Err(refused(pending, shutting_down()));
        }
        if !asked.spec.detach && asked.spec.idempotency_key.is_none() {
            self.carry(pending, asked).await;
            return attached.begun(None).await;
        }
        // What others wait for, or goes on without its caller, is not this caller's to drop.
        let Ok(place) = Arc::clone(&self.unattended).try_acquire_owned() else {
            let message = "too many runs that go on without their callers wait (admission.queue)";
            let refusal = Refusal::new(Reason::QueueFull, message).retry_after(RETRY);
            return Err(refused(pending, refusal));
        };
        let runner = Arc::clone(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "ends by itself, at the latest when the run is asked to end"
        )]
        tokio::spawn(async move {
            runner.carry(pending, asked).await;
            drop(place);
        });
        attached.begun(until).await
    }

    /// Takes a run to its start, or to its refusal.
    async fn carry(&self, pending: Pending, asked: Asked) {
        let stop = Arc::clone(&pending.run.stop);
        let admitted = tokio::select! {
            biased;
            () = stop.requested() => Err(unstarted(stop.reason())),
            admitted = self.admit(&asked, &pending) => admitted,
        };
        match (admitted, stop.reason()) {
            (Ok(admitted), None) => self.execute(admitted, pending),
            (Ok(admitted), reason) => {
                // Its slot first.
                drop(admitted);
                pending.refused(unstarted(reason));
            }
            (Err(refusal), _) => {
                pending.refused(refusal);
            }
        }
    }

    /// Does all that can refuse a run: its module, its slot, its mounts.
    async fn admit(&self, asked: &Asked, pending: &Pending) -> Result<Admitted, Refusal> {
        let Asked {
            spec,
            delivery,
            input,
            until,
            id: _,
            origin: _,
            held: _,
        } = asked;
        // One that goes on without its caller does so beyond the caller's patience; one that has several ends with the
        // last.
        let until = until.filter(|_| !spec.detach && spec.idempotency_key.is_none());
        let ready = before(until, self.compile(spec, pending)).await?;
        let queued = || pending.queued();
        let permit = self.admission.admit(until, queued).await?;
        let flight = self.inflight.enter();
        if self.admission.is_closed() {
            // Counted before this look: a drain either waits for this run or is seen here.
            return Err(shutting_down());
        }
        let limits = &spec.limits;
        let run = &pending.run;
        let output = Arc::new(Output::new(
            limits.output,
            limits.output_policy,
            *delivery,
            Arc::clone(&run.log),
            Arc::clone(&run.usage),
        ));
        let around = Surroundings {
            grants: &self.policy.grants,
            roots: self.sandbox.roots(),
            input: input.clone(),
            output: Arc::clone(&output),
            usage: Arc::clone(&run.usage),
            stop: Arc::clone(&run.stop),
            stall: self.stall_timeout,
            until,
        };
        let Ready {
            loaded,
            entry,
            memory_pages,
        } = ready;
        Ok(Admitted {
            granted: Granted {
                memory_pages,
                limits: limits.clone(),
            },
            prepared: sandbox::prepare(loaded, spec, memory_pages, entry, around)?,
            output,
            permit,
            flight,
        })
    }

    /// Hands a run to the guest threads. Nothing can refuse it any more.
    fn execute(&self, admitted: Admitted, pending: Pending) {
        let Admitted {
            granted,
            prepared,
            output,
            permit,
            flight,
        } = admitted;
        pending.started(granted);
        let untold = self.inflight.untold();
        // The slot is free before anybody learns of the end.
        let ended = move |result: End| {
            drop(flight);
            drop(permit);
            pending.ended(result, output.take_captured());
            drop(untold);
        };
        self.sandbox.spawn(prepared, ended);
    }

    /// Finds the module, checks that the run may have what it needs, and compiles it where it is not ready.
    async fn compile(&self, spec: &RunSpec, pending: &Pending) -> Result<Ready, Refusal> {
        sandbox::check_grants(spec, &self.policy.grants, self.sandbox.roots())?;
        let variant = Variant {
            metered: spec.limits.fuel.is_some(),
            stack: spec.limits.stack,
        };
        let (digest, source) = self.module_of(spec, pending).await?;
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
            loaded,
            entry,
            memory_pages,
        })
    }

    /// Which module the run is of, and where its bytes are.
    async fn module_of(
        &self,
        spec: &RunSpec,
        pending: &Pending,
    ) -> Result<(Digest, Source), Refusal> {
        match &spec.module {
            ModuleRef::Inline(wasm) => {
                let (wasm, digest) = hashed(wasm.clone()).await?;
                pending.module(digest);
                Ok((digest, Source::Here(wasm.into())))
            }
            ModuleRef::Loaded(digest) => {
                pending.module(*digest);
                let known = self.store.find(*digest).await?;
                let known = known.ok_or_else(|| not_found(*digest).at("spec.digest"))?;
                known.touch();
                Ok((*digest, Source::Stored(Arc::clone(&self.store))))
            }
        }
    }
}

/// What tells a spec from others.
async fn fingerprint(spec: &RunSpec) -> Result<Digest, Refusal> {
    let digest = match &spec.module {
        ModuleRef::Inline(wasm) => hashed(wasm.clone()).await?.1,
        ModuleRef::Loaded(digest) => *digest,
    };
    Ok(spec.fingerprint(digest))
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
