//! Takes a run from its request to its end: joins it to another by its idempotency key, finds and
//! compiles its module, acquires its permit, has it executed, and then releases the permit before
//! anybody learns of the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::admission::{ChargedCompile, Permit, RunQuotaGuard, shutting_down};
use super::attach::RunHandle;
use super::audit::Capabilities;
use super::fingerprint::fingerprint;
use super::idempotency::forgotten_run;
use super::in_flight::InFlightGuard;
use super::origin::Origin;
use super::record::{Run, RunTerms};
use super::refused_run::RefusedRun;
use super::request_charge::RequestCharge;
use super::reservation::{collect_reservation, reserved, value_bytes};
use super::response_reservation;
use super::run_end_guard::{RunEndGuard, never_started};
use super::run_needs::{code_use, output_of, resolve_entry, session_terms, variant};
use super::sessions::SessionClaim;
use super::snapshot::GrantedLimits;
use super::tenant::Tenant;
use super::{Runner, with_deadline};
use crate::event_log::RunEnd;
use crate::model::limits::OutputMode;
use crate::model::refusal::Refusal;
use crate::model::request::{Digest, ModuleRef, RunId, RunSpec};
use crate::sandbox::{
    self, CodeUse, CompilePermit, CompileRequest, EntryPoint, HOST_FUNCTION_NAMES, Input,
    LoadedModule, Lookup, ModuleSource, Output, PreparedRun, RunContext, Variant,
};
use crate::store::{ModuleEntry, hashed, not_found};

/// A request to start a run.
pub struct StartRequest {
    /// The id that the run gets.
    pub id: RunId,
    /// The tenant whose run it is.
    pub tenant: Arc<Tenant>,
    /// Who asks for the run, and how.
    pub origin: Origin,
    /// What to run, and within which limits.
    pub spec: RunSpec,
    /// How the output is delivered: captured whole, or streamed.
    pub delivery: OutputMode,
    /// Live standard input, which the guest reads while its caller still writes it; `None`: the
    /// spec has all of it.
    pub input: Option<Arc<Input>>,
    /// When the caller gives up; `None`: never.
    pub deadline: Option<Instant>,
    /// The charge for the request's memory, which is held until the run has started or was refused.
    pub held_until_started: Option<RequestCharge>,
}

/// The result of claiming an idempotency key.
enum ClaimResult {
    /// The key belongs to the new run, which is to start.
    New(RunEndGuard),
    /// The key belongs to another run, to which the caller is now attached.
    Same(RunHandle),
}

/// A run whose module is compiled, and which needs a slot.
struct CompiledRun {
    /// The store's entry of the module; `None` where the module came inline.
    module_entry: Option<Arc<ModuleEntry>>,
    loaded: Arc<LoadedModule>,
    entry: EntryPoint,
    memory_pages: u32,
}

/// A run that has its module and its slot, and is ready to execute.
struct AdmittedRun {
    granted: GrantedLimits,
    delivery: OutputMode,
    /// What the run reserves for the files that it returns, in bytes.
    collect_bytes: u64,
    prepared: PreparedRun,
    /// The session that the run belongs to; `None` where it belongs to none.
    session: Option<SessionClaim>,
    output: Arc<Output>,
    permit: Permit,
    flight: InFlightGuard,
    run_quota: RunQuotaGuard,
    capabilities: Option<Capabilities>,
}

impl Runner {
    /// Starts a run and attaches its caller to it, or attaches the caller to the run that has the
    /// same idempotency key. Returns when the run has started.
    ///
    /// # Errors
    /// Returns whatever keeps the run from its first instruction.
    pub async fn start(
        self: &Arc<Self>,
        asked: Box<StartRequest>,
    ) -> Result<RunHandle, RefusedRun> {
        let StartRequest { spec, .. } = &*asked;
        let log = asked.tenant.new_log();
        let run = Run::new(
            asked.id,
            asked.origin.clone(),
            RunTerms::of(spec),
            log,
            asked.input.clone(),
        );
        let tenant = &asked.tenant;
        let mut pending = RunEndGuard::new(Arc::clone(&run), Arc::clone(tenant));
        // The caller is attached before anybody else can be attached, and leave.
        let attached = {
            let response = self.inflight.track_response();
            RunHandle::owner(&tenant.registry, &run, asked.delivery, response)
        };
        let refused = |pending: RunEndGuard, refusal| RefusedRun {
            id: run.id,
            refusal: pending.refuse(refusal),
        };
        if self.admission.is_closed() {
            return Err(refused(pending, shutting_down()));
        }
        let deadline = asked.deadline;
        if let Some(key) = &spec.idempotency_key {
            // Boxed: most runs have no key, and their future need not carry the room for this one.
            pending = match Box::pin(self.claim(key, spec, deadline, &run, pending)).await? {
                ClaimResult::New(pending) => pending,
                ClaimResult::Same(attached) => return Ok(attached),
            };
        }
        let run_quota = match tenant.quota_usage.count_run() {
            Ok(run_quota) => run_quota,
            Err(refusal) => return Err(refused(pending, refusal)),
        };
        tenant.registry.add(&run);
        if self.admission.is_closed() {
            // The run is registered before this look: a drain either ends it or is seen here.
            return Err(refused(pending, shutting_down()));
        }
        if !asked.spec.detach && asked.spec.idempotency_key.is_none() {
            self.drive_to_start(pending, asked, run_quota).await;
            return attached.wait_for_start(None).await;
        }
        // The run goes on without its caller, or others may wait for it: a task of its own drives
        // it, so that this caller cannot drop it.
        let place = match self.admission.acquire_detached_start(tenant.id) {
            Ok(place) => place,
            Err(refusal) => return Err(refused(pending, refusal)),
        };
        let runner = Arc::clone(self);
        #[expect(
            clippy::disallowed_methods,
            reason = "ends by itself, at the latest when the run is asked to end"
        )]
        tokio::spawn(async move {
            runner.drive_to_start(pending, asked, run_quota).await;
            drop(place);
        });
        attached.wait_for_start(deadline).await
    }

    /// Claims an idempotency key for a run, or attaches the caller to the run that has the key
    /// already.
    async fn claim(
        &self,
        key: &str,
        spec: &RunSpec,
        deadline: Option<Instant>,
        run: &Arc<Run>,
        mut pending: RunEndGuard,
    ) -> Result<ClaimResult, RefusedRun> {
        let refused = |pending: RunEndGuard, refusal| RefusedRun {
            id: run.id,
            refusal: pending.refuse(refusal),
        };
        let tenant = Arc::clone(&pending.tenant);
        let fingerprint = match with_deadline(deadline, fingerprint(spec)).await {
            Ok(fingerprint) => fingerprint,
            Err(refusal) => return Err(refused(pending, refusal)),
        };
        loop {
            let keys = &tenant.registry.keys;
            let first = match keys.take(run, key, fingerprint, Instant::now()) {
                Ok(None) => return Ok(ClaimResult::New(pending)),
                Ok(Some(first)) => first,
                Err(refusal) => return Err(refused(pending, refusal)),
            };
            let again = RunHandle::join(&tenant.registry, &first, self.inflight.track_response());
            // While this caller holds the run, its output is not dropped any more.
            if first.is_forgotten() {
                return Err(refused(pending, forgotten_run(&first.id)));
            }
            // This call is not a run of its own, so its record is dropped without an end.
            pending.forget();
            match again.wait_for_start(deadline).await {
                Err(refused) if refused.was_left() && first.was_abandoned() => {
                    // The first run was dying when this call came, since its callers had left it.
                    // Its key is free now.
                    pending = RunEndGuard::new(Arc::clone(run), Arc::clone(&tenant));
                }
                attached => return attached.map(ClaimResult::Same),
            }
        }
    }

    /// Drives a run until it has started or was refused.
    async fn drive_to_start(
        &self,
        pending: RunEndGuard,
        asked: Box<StartRequest>,
        run_quota: RunQuotaGuard,
    ) {
        let stop = Arc::clone(&pending.run.stop);
        let admitted = match stop.reason() {
            None => tokio::select! {
                biased;
                // Polled first: a run is mostly admitted at once, and then nothing need be woken by
                // a stop.
                admitted = self.admit(&asked, &pending, run_quota) => admitted,
                () = stop.requested() => Err(never_started(stop.reason())),
            },
            reason => Err(never_started(reason)),
        };
        match (admitted, stop.reason()) {
            (Ok(admitted), None) => self.execute(admitted, pending),
            (Ok(admitted), reason) => {
                // The slot is released before the refusal is recorded.
                drop(admitted);
                pending.refuse(never_started(reason));
            }
            (Err(refusal), _) => {
                pending.refuse(refusal);
            }
        }
    }

    /// Does everything that can refuse a run: finds its module, acquires its slot, and prepares its
    /// mounts.
    async fn admit(
        &self,
        asked: &StartRequest,
        pending: &RunEndGuard,
        run_quota: RunQuotaGuard,
    ) -> Result<AdmittedRun, Refusal> {
        let StartRequest {
            spec,
            delivery,
            input,
            deadline,
            tenant,
            origin: _,
            id: _,
            held_until_started: _,
        } = asked;
        // A detached run outlasts its caller's deadline, and a run with a key may have several
        // callers and ends with the last: neither is bound by this caller's deadline.
        let deadline = deadline.filter(|_| !spec.detach && spec.idempotency_key.is_none());
        tenant.policy.authorize(spec, &HOST_FUNCTION_NAMES)?;
        pending.note_asked();
        let ready = match self.find_compiled(spec, pending)? {
            Some(ready) => ready,
            // Boxed: a run whose module is in memory need not carry the room for this future.
            None => with_deadline(deadline, Box::pin(self.compile(spec, pending))).await?,
        };
        pending.note_module_ready();
        let session = self.claim_session(spec, pending, ready.memory_pages);
        let session = session.await?;
        let method = asked.origin.method;
        let live = input.is_some();
        let bytes = reserved(spec, method, *delivery, live, ready.memory_pages);
        let bytes = bytes - session.as_ref().map_or(0, SessionClaim::held_bytes);
        let permit = self.acquire_permit(pending, bytes, deadline).await?;
        let flight = self.inflight.track_run();
        // The run is counted before this look: a drain either waits for it or is seen here.
        if self.admission.is_closed() {
            return Err(shutting_down());
        }
        let output = output_of(&pending.run, spec, *delivery, self.exporter.as_deref());
        let CompiledRun {
            module_entry,
            loaded,
            entry,
            memory_pages,
        } = ready;
        let context = RunContext {
            module_name: module_entry.as_deref().map_or("", ModuleEntry::name),
            input: input.clone(),
            deadline,
            session: session.as_ref().map(SessionClaim::slot),
            ..self.run_context(pending, &output)
        };
        Ok(AdmittedRun {
            granted: GrantedLimits {
                memory_pages,
                limits: spec.limits.clone(),
            },
            delivery: *delivery,
            collect_bytes: collect_reservation(spec),
            prepared: sandbox::prepare(loaded, spec, memory_pages, entry, context)?,
            session,
            output,
            permit,
            flight,
            run_quota,
            capabilities: Capabilities::of(spec),
        })
    }

    /// Returns what preparing a run needs of its tenant and its record.
    fn run_context<'a>(&self, pending: &'a RunEndGuard, output: &Arc<Output>) -> RunContext<'a> {
        let RunEndGuard { run, tenant, .. } = pending;
        RunContext {
            module_name: "",
            grants: &tenant.policy.grants,
            roots: &tenant.roots,
            input: None,
            output: Arc::clone(output),
            usage: Arc::clone(&run.usage),
            stop: Arc::clone(&run.stop),
            stall_timeout: self.stall_timeout,
            deadline: None,
            max_handles: tenant.policy.max_handles as usize,
            descriptors: Arc::clone(&tenant.descriptors),
            session: None,
        }
    }

    /// Claims the session that a run belongs to, if it belongs to one.
    async fn claim_session(
        &self,
        spec: &RunSpec,
        pending: &RunEndGuard,
        memory_pages: u32,
    ) -> Result<Option<SessionClaim>, Refusal> {
        let (Some(asked), ModuleRef::Provided(module)) = (&spec.session, &spec.module) else {
            return Ok(None);
        };
        let terms = session_terms(spec, *module, memory_pages);
        let sessions = &pending.tenant.sessions;
        // Boxed: most runs belong to no session.
        let claimed = Box::pin(sessions.claim(asked, terms, &pending.run)).await;
        claimed.map(Some)
    }

    /// Acquires the slot of a run and its `bytes` of memory, and measures how long that takes.
    async fn acquire_permit(
        &self,
        pending: &RunEndGuard,
        bytes: u64,
        deadline: Option<Instant>,
    ) -> Result<Permit, Refusal> {
        let tenant = &pending.tenant;
        let mut queued = None;
        let waits = || {
            queued = Some(Instant::now());
            pending.note_queued();
        };
        let permit = self
            .admission
            .acquire_run(tenant.id, bytes, deadline, waits);
        let permit = permit.await?;
        let waited = queued.map_or(Duration::ZERO, |queued| queued.elapsed());
        tenant.counters.observe_wait(waited);
        Ok(permit)
    }

    /// Hands an admitted run to the sandbox to be executed. Nothing can refuse it any more.
    fn execute(&self, admitted: AdmittedRun, pending: RunEndGuard) {
        let AdmittedRun {
            granted,
            delivery,
            collect_bytes,
            prepared,
            session,
            output,
            mut permit,
            flight,
            run_quota,
            capabilities,
        } = admitted;
        let tenant_queue = Arc::clone(pending.tenant.quota_usage.tenant_queue());
        match delivery {
            // The caller may read the output long after the guest has ended.
            OutputMode::Streamed => {
                let bytes = response_reservation::STREAMED_BYTES + collect_bytes;
                pending.run.reserve_answer(permit.split(bytes));
            }
            OutputMode::Captured => {}
        }
        pending.note_started(granted, capabilities.as_ref());
        let pending_response = self.inflight.track_end();
        // The slot, and all reserved bytes but those of the answer, are released before anybody
        // learns of the end.
        let ended = move |mut result: RunEnd| {
            drop(flight);
            output.finish_export();
            if let (Some(session), Ok(report)) = (session, &mut result) {
                report.session = Some(session.finish(&mut permit));
            }
            if let Some(captured) = output.keep_captured() {
                let bytes = captured as u64 + response_reservation::UNARY_REST;
                let bytes = bytes + value_bytes(pending.run.origin.method, captured as u64);
                pending.run.reserve_answer(permit.split(bytes));
            }
            drop(permit);
            pending.run.count_until_answered(run_quota);
            pending.end(result);
            drop(pending_response);
        };
        self.sandbox.spawn(&tenant_queue, prepared, ended);
    }

    /// Returns the run's module where it is named by digest, its compiled code is in memory, and
    /// the run may have what it needs; `None` where the module has to be found or compiled first.
    fn find_compiled(
        &self,
        spec: &RunSpec,
        pending: &RunEndGuard,
    ) -> Result<Option<CompiledRun>, Refusal> {
        let digest = match spec.module {
            ModuleRef::Inline(_) => return Ok(None),
            ModuleRef::Provided(digest) => return self.find_provided(digest, spec, pending),
            ModuleRef::Loaded(digest) => digest,
        };
        pending.note_module(digest);
        let tenant = &pending.tenant;
        let Some(module_entry) = tenant.store.find_cached(digest) else {
            return Ok(None);
        };
        let (code, code_use) = (tenant.code_key(digest), code_use(spec, tenant));
        let modules = self.sandbox.modules();
        let Some(loaded) = modules.in_memory(code, variant(spec), code_use) else {
            return Ok(None);
        };
        module_entry.touch();
        let (entry, memory_pages) = resolve_entry(&loaded.inspection, spec, &tenant.policy.grants)?;
        Ok(Some(CompiledRun {
            module_entry: Some(module_entry),
            loaded,
            entry,
            memory_pages,
        }))
    }

    /// Returns a module that the operator provides, where its compiled code is in memory and the
    /// run may have what it needs; `None` where it has to be compiled first.
    fn find_provided(
        &self,
        digest: Digest,
        spec: &RunSpec,
        pending: &RunEndGuard,
    ) -> Result<Option<CompiledRun>, Refusal> {
        pending.note_module(digest);
        let tenant = &pending.tenant;
        let modules = self.sandbox.modules();
        let variant = variant(spec);
        let prepared = self.provided.prepared(digest, variant);
        let Some(loaded) =
            prepared.or_else(|| modules.in_memory(digest, variant, code_use(spec, tenant)))
        else {
            return Ok(None);
        };
        let (entry, memory_pages) = resolve_entry(&loaded.inspection, spec, &tenant.policy.grants)?;
        Ok(Some(CompiledRun {
            module_entry: None,
            loaded,
            entry,
            memory_pages,
        }))
    }

    /// Compiles a module that the operator provides, at the cost of the daemon itself, and keeps
    /// its code for as long as the daemon lives.
    ///
    /// # Errors
    /// Returns whatever keeps the module from being compiled.
    pub async fn prepare_provided(&self, digest: Digest, variant: Variant) -> Result<(), Refusal> {
        let own = &self.tenants.own;
        let code_use = CodeUse {
            tenant: own.id,
            kept: true,
        };
        let modules = self.sandbox.modules();
        let loaded = match modules.look_up(digest, variant, code_use).await? {
            Lookup::Loaded(loaded) => loaded,
            Lookup::Missing(missing) => {
                let source = ModuleSource::Provided(self.provided.module(digest)?);
                let request = self.compile_request(own, code_use, source);
                missing.inspect(request).await?.compile().await?.0
            }
        };
        self.provided.keep(digest, variant, loaded);
        Ok(())
    }

    /// Finds the module, checks that the run may have what it needs, and compiles it where no
    /// compiled form is at hand.
    async fn compile(&self, spec: &RunSpec, pending: &RunEndGuard) -> Result<CompiledRun, Refusal> {
        let tenant = &pending.tenant;
        let grants = &tenant.policy.grants;
        let variant = variant(spec);
        let (digest, wasm, module_entry) = self.module_of(spec, pending).await?;
        let code_use = code_use(spec, tenant);
        let code = match spec.module {
            // The code of what the operator provides is nobody's secret.
            ModuleRef::Provided(digest) => digest,
            ModuleRef::Inline(_) | ModuleRef::Loaded(_) => tenant.code_key(digest),
        };
        let modules = self.sandbox.modules();
        let (loaded, (entry, memory_pages)) = match modules.look_up(code, variant, code_use).await?
        {
            Lookup::Loaded(loaded) => {
                let settled = resolve_entry(&loaded.inspection, spec, grants)?;
                (loaded, settled)
            }
            Lookup::Missing(missing) => {
                // Whatever refuses the run does so before anything is compiled.
                let asked = Instant::now();
                let request = self.compile_request(tenant, code_use, wasm);
                let inspected = missing.inspect(request).await?;
                let settled = resolve_entry(inspected.inspection(), spec, grants)?;
                let (loaded, _) = inspected.compile().await?;
                tenant.counters.observe_compile(asked.elapsed());
                (loaded, settled)
            }
        };
        Ok(CompiledRun {
            module_entry,
            loaded,
            entry,
            memory_pages,
        })
    }

    /// Builds the request to compile `wasm`. The request waits for the tenant's turn, is refused
    /// where the tenant's quota is used up, and charges the processor time that it takes to the
    /// tenant.
    pub(crate) fn compile_request(
        &self,
        tenant: &Tenant,
        code_use: CodeUse,
        wasm: ModuleSource,
    ) -> CompileRequest {
        let (admission, id) = (Arc::clone(&self.admission), tenant.id);
        let account = Arc::clone(&tenant.quota_usage);
        CompileRequest::new(wasm, code_use, move |lane| {
            let (admission, account) = (Arc::clone(&admission), Arc::clone(&account));
            async move {
                account.may_compile()?;
                let (lane, permit) = admission.acquire_compile(id, lane).await?;
                // Other work of the tenant may have used the quota up while this request waited.
                account.may_compile()?;
                let grant = ChargedCompile::new(permit, account);
                Ok((lane, CompilePermit::new(grant)))
            }
        })
    }

    /// Finds out which module the run is of, where its bytes are, and what the store knows of it
    /// (`None` for an inline module).
    async fn module_of(
        &self,
        spec: &RunSpec,
        pending: &RunEndGuard,
    ) -> Result<(Digest, ModuleSource, Option<Arc<ModuleEntry>>), Refusal> {
        match &spec.module {
            ModuleRef::Inline(wasm) => {
                let (wasm, digest) = hashed(wasm.clone()).await?;
                pending.note_module(digest);
                Ok((digest, ModuleSource::Inline(wasm.into()), None))
            }
            ModuleRef::Loaded(digest) => {
                pending.note_module(*digest);
                let store = &pending.tenant.store;
                let module_entry = store.find(*digest).await?;
                let module_entry =
                    module_entry.ok_or_else(|| not_found(*digest).at_field("spec.digest"))?;
                module_entry.touch();
                let source = ModuleSource::Stored {
                    store: Arc::clone(store),
                    digest: *digest,
                    size: module_entry.record.size,
                };
                Ok((*digest, source, Some(module_entry)))
            }
            ModuleRef::Provided(digest) => {
                pending.note_module(*digest);
                let module = self.provided.module(*digest)?;
                Ok((*digest, ModuleSource::Provided(module), None))
            }
        }
    }
}
