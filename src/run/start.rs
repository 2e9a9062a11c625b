//! The walk of a run: registered -> compile -> admit -> execute -> ended.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use super::admission::{CompileCharge, Counted, Pass, shutting_down};
use super::answer;
use super::attach::Attached;
use super::audit::Reach;
use super::inflight::Flight;
use super::origin::Origin;
use super::record::{Granted, Pending, Run, unstarted};
use super::tenant::Tenant;
use super::{Runner, before};
use crate::limits::{Ceilings, Delivery, Limits, PAGE, StackClass};
use crate::log::End;
use crate::policy::Grants;
use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, ModuleRef, RunId, RunSpec};
use crate::sandbox::{
    self, CodeUse, CompilePermit, Entry, Input, Inspection, Loaded, Output, Prepared, Source,
    Surroundings, Variant, Wanted,
};
use crate::store::{Known, hashed, not_found};

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
    pub held: Option<Arc<dyn Any + Send + Sync>>,
}

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

/// What came of asking whose an idempotency key is.
enum Claim {
    /// It is the new run's, which starts.
    New(Pending),
    /// It is another run's, to which the caller is attached.
    Same(Attached),
}

/// A run whose module is ready; it needs a slot.
struct Ready {
    /// What the store knows of it; `None`: it came inline.
    known: Option<Arc<Known>>,
    loaded: Arc<Loaded>,
    entry: Entry,
    memory_pages: u32,
}

/// A run that has its module and its slot.
struct Admitted {
    granted: Granted,
    delivery: Delivery,
    prepared: Prepared,
    output: Arc<Output>,
    permit: Pass,
    flight: Flight,
    counted: Counted,
    reach: Option<Reach>,
}

impl Runner {
    /// Starts a run and attaches its caller to it; or attaches the caller to the run that has the same idempotency key.
    ///
    /// # Errors
    /// Whatever keeps it from its first instruction.
    pub async fn start(self: &Arc<Self>, asked: Box<Asked>) -> Result<Attached, Refused> {
        let Asked { spec, .. } = &*asked;
        let log = asked.origin.tenant.new_log();
        let run = Run::new(
            asked.id,
            asked.origin.clone(),
            spec.labels.clone(),
            spec.detach,
            spec.idempotency_key.clone(),
            log,
        );
        let tenant = &run.origin.tenant;
        let mut pending = Pending::new(Arc::clone(&run));
        // Before anybody else can be attached to it, and leave.
        let attached = Attached::first(&run, asked.delivery, self.inflight.untold());
        let refused = |pending: Pending, refusal| Refused {
            id: run.id,
            refusal: pending.refused(refusal),
        };
        if self.admission.is_closed() {
            return Err(refused(pending, shutting_down()));
        }
        let until = asked.until;
        if let Some(key) = &spec.idempotency_key {
            // In a box of its own: most runs have no key, and need not carry the room for it.
            pending = match Box::pin(self.claim(key, spec, until, &run, pending)).await? {
                Claim::New(pending) => pending,
                Claim::Same(attached) => return Ok(attached),
            };
        }
        let counted = match tenant.account.enter() {
            Ok(counted) => counted,
            Err(refusal) => return Err(refused(pending, refusal)),
        };
        tenant.registry.add(&run);
        if self.admission.is_closed() {
            // Registered before this look: a drain either ends it or is seen here.
            return Err(refused(pending, shutting_down()));
        }
        if !asked.spec.detach && asked.spec.idempotency_key.is_none() {
            self.carry(pending, asked, counted).await;
            return attached.begun(None).await;
        }
        // What others wait for, or goes on without its caller, is not this caller's to drop.
        let place = match self.admission.unattended(tenant.line) {
            Ok(place) => place,
            Err(refusal) => return Err(refused(pending, refusal)),
        };
        let runner = Arc::clone(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "ends by itself, at the latest when the run is asked to end"
        )]
        tokio::spawn(async move {
            runner.carry(pending, asked, counted).await;
            drop(place);
        });
        attached.begun(until).await
    }

    /// Finds out whether another run has a run's idempotency key already, and attaches the caller to that one.
    async fn claim(
        &self,
        key: &str,
        spec: &RunSpec,
        until: Option<Instant>,
        run: &Arc<Run>,
        mut pending: Pending,
    ) -> Result<Claim, Refused> {
        let refused = |pending: Pending, refusal| Refused {
            id: run.id,
            refusal: pending.refused(refusal),
        };
        let fingerprint = match before(until, fingerprint(spec)).await {
            Ok(fingerprint) => fingerprint,
            Err(refusal) => return Err(refused(pending, refusal)),
        };
        loop {
            let first = match run.origin.tenant.registry.keys.take(run, key, fingerprint) {
                Ok(None) => return Ok(Claim::New(pending)),
                Ok(Some(first)) => first,
                Err(refusal) => return Err(refused(pending, refusal)),
            };
            // This call is not a run of its own.
            pending.forget();
            let again = Attached::again(&first, self.inflight.untold());
            match again.begun(until).await {
                Err(refused) if refused.was_left() && first.was_left() => {
                    // It was dying when this call came, since its callers had left it. Its key is free now.
                    pending = Pending::new(Arc::clone(run));
                }
                attached => return attached.map(Claim::Same),
            }
        }
    }

    /// Takes a run to its start, or to its refusal.
    async fn carry(&self, pending: Pending, asked: Box<Asked>, counted: Counted) {
        let stop = Arc::clone(&pending.run.stop);
        let admitted = match stop.reason() {
            None => tokio::select! {
                biased;
                // Mostly at once, so that nothing need be woken by a stop.
                admitted = self.admit(&asked, &pending, counted) => admitted,
                () = stop.requested() => Err(unstarted(stop.reason())),
            },
            reason => Err(unstarted(reason)),
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
    async fn admit(
        &self,
        asked: &Asked,
        pending: &Pending,
        counted: Counted,
    ) -> Result<Admitted, Refusal> {
        let Asked {
            spec,
            delivery,
            input,
            until,
            origin,
            id: _,
            held: _,
        } = asked;
        let tenant = &origin.tenant;
        // One that goes on without its caller does so beyond the caller's patience; one that has several ends with the
        // last.
        let until = until.filter(|_| !spec.detach && spec.idempotency_key.is_none());
        sandbox::check_grants(spec, &tenant.policy.grants, &tenant.roots)?;
        let ready = match self.compiled(spec, pending)? {
            Some(ready) => ready,
            // In a box of its own, so that a run whose module is in memory does not carry the room for it.
            None => before(until, Box::pin(self.compile(spec, pending))).await?,
        };
        let queued = || pending.queued();
        let bytes = reserved(&spec.limits, ready.memory_pages, *delivery);
        let permit = self.admission.run(tenant.line, bytes, until, queued);
        let permit = permit.await?;
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
        let Ready {
            known,
            loaded,
            entry,
            memory_pages,
        } = ready;
        let around = Surroundings {
            module_name: known.as_ref().map_or("", |known| &known.record.name),
            grants: &tenant.policy.grants,
            roots: &tenant.roots,
            input: input.clone(),
            output: Arc::clone(&output),
            usage: Arc::clone(&run.usage),
            stop: Arc::clone(&run.stop),
            stall: self.stall_timeout,
            until,
            max_handles: tenant.policy.max_handles as usize,
            descriptors: Arc::clone(&tenant.descriptors),
        };
        Ok(Admitted {
            granted: Granted {
                memory_pages,
                limits: limits.clone(),
            },
            delivery: *delivery,
            prepared: sandbox::prepare(loaded, spec, memory_pages, entry, around)?,
            output,
            permit,
            flight,
            counted,
            reach: Reach::of(spec),
        })
    }

    /// Has a run executed. Nothing can refuse it any more.
    fn execute(&self, admitted: Admitted, pending: Pending) {
        let Admitted {
            granted,
            delivery,
            prepared,
            output,
            mut permit,
            flight,
            counted,
            reach,
        } = admitted;
        let lane = Arc::clone(pending.run.origin.tenant.account.lane());
        match delivery {
            // Its caller may read it long after the guest has ended.
            Delivery::Streamed => pending.run.reserve_answer(permit.split(answer::STREAMED)),
            Delivery::Captured => {}
        }
        pending.started(granted, reach.as_ref());
        let untold = self.inflight.untold_end();
        // The slot is free before anybody learns of the end, and all bytes but those of the answer.
        let ended = move |result: End| {
            drop(flight);
            let captured = output.take_captured();
            if let Some(captured) = &captured {
                let bytes = captured.bytes() as u64 + answer::WHOLE_REST;
                pending.run.reserve_answer(permit.split(bytes));
            }
            drop(permit);
            pending.run.count_until_answered(counted);
            pending.ended(result, captured);
            drop(untold);
        };
        self.sandbox.spawn(&lane, prepared, ended);
    }

    /// The module of a run by digest, where it is in memory, compiled, and the run may have what it needs.
    fn compiled(&self, spec: &RunSpec, pending: &Pending) -> Result<Option<Ready>, Refusal> {
        let ModuleRef::Loaded(digest) = spec.module else {
            return Ok(None);
        };
        pending.module(digest);
        let tenant = &pending.run.origin.tenant;
        let Some(known) = tenant.store.find_here(digest) else {
            return Ok(None);
        };
        let (code, code_use) = (tenant.code_of(digest), code_use(spec, tenant));
        let modules = self.sandbox.modules();
        let Some(loaded) = modules.in_memory(code, variant(spec), code_use) else {
            return Ok(None);
        };
        known.touch();
        let (entry, memory_pages) = settle(&loaded.inspection, spec, &tenant.policy.grants)?;
        Ok(Some(Ready {
            known: Some(known),
            loaded,
            entry,
            memory_pages,
        }))
    }

    /// Finds the module, checks that the run may have what it needs, and compiles it where it is not ready.
    async fn compile(&self, spec: &RunSpec, pending: &Pending) -> Result<Ready, Refusal> {
        let tenant = &pending.run.origin.tenant;
        let grants = &tenant.policy.grants;
        let variant = variant(spec);
        let (digest, wasm, known) = self.module_of(spec, pending).await?;
        let code_use = code_use(spec, tenant);
        let code = tenant.code_of(digest);
        let modules = self.sandbox.modules();
        let ready = modules.ready(code, variant, code_use).await?;
        let (loaded, (entry, memory_pages)) = match ready {
            Some(loaded) => {
                let settled = settle(&loaded.inspection, spec, grants)?;
                (loaded, settled)
            }
            None => {
                // Whatever refuses the run refuses it before anything is compiled.
                let wanted = self.wanted(tenant, code_use, wasm);
                let inspected = modules.inspect(code, wanted.clone()).await?;
                let settled = settle(&inspected.inspection, spec, grants)?;
                let (loaded, _) = modules.get(code, variant, wanted, inspected).await?;
                (loaded, settled)
            }
        };
        Ok(Ready {
            known,
            loaded,
            entry,
            memory_pages,
        })
    }

    /// Bytes to compile, when it is the tenant's turn and its quota has something left. What that takes of the processor
    /// is charged to the tenant.
    pub(super) fn wanted(&self, tenant: &Tenant, code_use: CodeUse, wasm: Source) -> Wanted {
        let (admission, line) = (Arc::clone(&self.admission), tenant.line);
        let account = Arc::clone(&tenant.account);
        Wanted::new(wasm, code_use, move |lane| {
            let (admission, account) = (Arc::clone(&admission), Arc::clone(&account));
            async move {
                account.may_compile()?;
                let (lane, pass) = admission.compile(line, lane).await?;
                // Others of its own may have used it up while this one waited.
                account.may_compile()?;
                let lease = Arc::clone(pass.lease());
                let charge = CompileCharge::new(account, Arc::clone(&lease));
                Ok((lane, CompilePermit::new(lease, (pass, charge))))
            }
        })
    }

    /// Which module the run is of, where its bytes are, and what the store knows of it.
    async fn module_of(
        &self,
        spec: &RunSpec,
        pending: &Pending,
    ) -> Result<(Digest, Source, Option<Arc<Known>>), Refusal> {
        match &spec.module {
            ModuleRef::Inline(wasm) => {
                let (wasm, digest) = hashed(wasm.clone()).await?;
                pending.module(digest);
                Ok((digest, Source::Here(wasm.into()), None))
            }
            ModuleRef::Loaded(digest) => {
                pending.module(*digest);
                let store = &pending.run.origin.tenant.store;
                let known = store.find(*digest).await?;
                let known = known.ok_or_else(|| not_found(*digest).at("spec.digest"))?;
                known.touch();
                let source = Source::Stored {
                    store: Arc::clone(store),
                    digest: *digest,
                    size: known.record.size,
                };
                Ok((*digest, source, Some(known)))
            }
        }
    }
}

/// The engine that a run needs.
fn variant(spec: &RunSpec) -> Variant {
    Variant {
        metered: spec.limits.fuel.is_some(),
        stack: spec.limits.stack,
    }
}

/// How a run of `tenant` uses the code of its module.
fn code_use(spec: &RunSpec, tenant: &Tenant) -> CodeUse {
    CodeUse {
        tenant: tenant.line,
        kept: matches!(spec.module, ModuleRef::Loaded(_)),
    }
}

/// Bytes that a run reserves: its memories, its stack, what is kept of its output while it goes on,
/// and its answer.
fn reserved(limits: &Limits, memory_pages: u32, delivery: Delivery) -> u64 {
    let output = match delivery {
        Delivery::Captured => limits.output.unwrap_or_default(),
        Delivery::Streamed => 0,
    };
    reservation(memory_pages, limits.stack, output)
}

/// Bytes that a run reserves at the most within `ceilings`.
pub fn largest_reservation(ceilings: &Ceilings) -> u64 {
    let stack = StackClass::at_least(ceilings.max_stack).unwrap_or(StackClass::M16);
    reservation(ceilings.max_memory_pages, stack, ceilings.max_output)
}

/// Bytes for a run with `output` bytes of each output stream.
fn reservation(memory_pages: u32, stack: StackClass, output: u64) -> u64 {
    let stack = u64::from(stack.bytes()) + sandbox::HOST_STACK as u64;
    let own = u64::from(memory_pages) * PAGE + stack + answer::STREAMED;
    own.saturating_add(output.saturating_mul(2))
}

/// What tells a spec from others.
async fn fingerprint(spec: &RunSpec) -> Result<Digest, Refusal> {
    let digest = match &spec.module {
        ModuleRef::Inline(wasm) => hashed(wasm.clone()).await?.1,
        ModuleRef::Loaded(digest) => *digest,
    };
    Ok(spec.fingerprint(digest))
}

/// Settles what a module says about a run of it: its proposals and imports are granted, its entry point fits, its memory
/// has room.
fn settle(
    inspection: &Inspection,
    spec: &RunSpec,
    grants: &Grants,
) -> Result<(Entry, u32), Refusal> {
    sandbox::check_proposals(inspection, grants)?;
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
