//! Starts the run that a call asks for: decodes the request, hands it to the runner, and attaches
//! the caller.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Request, Response, Status};

use super::layers::auth::tenant_of;
use super::layers::request_limits::ChargeExtension;
use super::listen::Peer;
use super::{decode, decode_execution, decode_files, proto, status, trace_parent};
use crate::language::Catalogue;
use crate::model::limits::OutputMode;
use crate::model::refusal::Refusal;
use crate::model::request::{ModuleRef, RunId, RunSpec};
use crate::otlp::{CallSpan, CallTrace};
use crate::run::{
    Origin, PendingResponse, RefusedRun, RequestCharge, RunHandle, RunMethod, Runner, StartRequest,
    Tenant,
};
use crate::sandbox::Input;

/// What a call asks for, as it came over the wire.
pub(super) enum AskedRun<'a> {
    /// The run of a module.
    Module(Option<proto::RunSpec>),
    /// The execution of a program in a language of the catalogue.
    Program(Option<proto::ExecutionSpec>, &'a Catalogue),
}

/// A call that asks for a run, which has its id already.
pub(super) struct RunCall {
    id: RunId,
    tenant: Arc<Tenant>,
    origin: Origin,
    deadline: Result<Option<Instant>, Refusal>,
    charge: Option<RequestCharge>,
    /// The span of the call, which ends with its answer.
    span: CallSpan,
}

impl RunCall {
    /// Creates the call that `request` is, from the extensions that the layers put there.
    ///
    /// # Errors
    /// `INTERNAL` if the request has no tenant.
    pub(super) fn from_request<T>(
        runner: &Runner,
        request: &Request<T>,
        method: RunMethod,
    ) -> Result<Self, Status> {
        let tenant = tenant_of(request)?;
        let peer = request.extensions().get::<Peer>();
        let charge = ChargeExtension::of(request).charge;
        let deadline = decode::response_deadline(request);
        let parent = trace_parent::of(request.metadata().as_ref());
        let arrived = decode::arrival(request);
        let trace = runner.begin_trace(method, &tenant, parent, arrived);
        let call = (peer, trace);
        Ok(Self::new(runner, method, tenant, call, charge, deadline))
    }

    /// Creates a call of `tenant` by a peer and with the trace that it belongs to. The call holds
    /// `charge`, and its answer has to be on its way by `deadline`.
    pub(super) fn new(
        runner: &Runner,
        method: RunMethod,
        tenant: Arc<Tenant>,
        (peer, trace): (Option<&Peer>, Option<Arc<CallTrace>>),
        charge: Option<RequestCharge>,
        deadline: Result<Option<Instant>, Refusal>,
    ) -> Self {
        let id = RunId::new(runner.instance());
        let span = CallSpan::new(trace.as_ref());
        span.attach(id);
        Self {
            id,
            span,
            origin: Origin {
                method,
                caller: peer.map_or_else(|| "unknown".into(), Peer::name),
                tenant: Arc::clone(&tenant.name),
                trace: trace.into(),
            },
            tenant,
            deadline,
            charge,
        }
    }

    /// Makes this a call whose run executes a program rather than a module.
    pub(super) fn executes(mut self) -> Self {
        self.origin.method = RunMethod::InteractExecute;
        self
    }

    /// Returns by when the answer has to be on its way; `None` if the caller did not say how long
    /// it waits.
    ///
    /// # Errors
    /// `MALFORMED_REQUEST` for an invalid header; `NOT_STARTED` if the deadline had passed already.
    pub(super) fn deadline(&self) -> Result<Option<Instant>, Refusal> {
        self.deadline.clone()
    }

    /// Starts the run. Its guest reads `input`, if there is any, or live input of its own where the
    /// spec leaves the input open.
    ///
    /// # Errors
    /// Whatever keeps the run from its first instruction.
    pub(super) async fn start(
        mut self,
        runner: &Arc<Runner>,
        asked: AskedRun<'_>,
        input: Option<Arc<Input>>,
    ) -> Result<RunHandle, Status> {
        let (spec, deadline) = match self.decoded(asked) {
            Ok(decoded) => decoded,
            Err(refusal) => return Err(self.record_refusal(runner, refusal)),
        };
        let input = input.or_else(|| spec.open_stdin.then(Arc::default));
        let mut span = std::mem::take(&mut self.span);
        let asked = StartRequest {
            delivery: self.delivery(),
            id: self.id,
            tenant: self.tenant,
            origin: self.origin,
            spec,
            input,
            deadline,
            held_until_started: self.charge,
        };
        match runner.start(Box::new(asked)).await {
            Ok(handle) => Ok(handle.in_span(span)),
            Err(RefusedRun { id, refusal }) => {
                let status = status::for_run(&refusal, &id);
                span.end(status::code_name(status.code()));
                Err(status)
            }
        }
    }

    /// Records a run that was refused before its request was known to be well formed, and returns
    /// the status for its caller.
    pub(super) fn record_refusal(mut self, runner: &Runner, refusal: Refusal) -> Status {
        let refusal = runner.refused(self.tenant, &self.id, self.origin, refusal);
        let status = status::for_run(&refusal, &self.id);
        self.span.end(status::code_name(status.code()));
        status
    }

    /// Returns how the caller gets the run's output: as a whole at the end, or as it is written.
    fn delivery(&self) -> OutputMode {
        match self.origin.method {
            RunMethod::Run | RunMethod::Execute => OutputMode::Captured,
            RunMethod::RunStream
            | RunMethod::Interact
            | RunMethod::InteractExecute
            | RunMethod::ExecuteStream => OutputMode::Streamed,
        }
    }

    /// Decodes what is asked for and by when the answer has to be on its way. Input, files and
    /// module keep the request's charge.
    fn decoded(&self, asked: AskedRun<'_>) -> Result<(RunSpec, Option<Instant>), Refusal> {
        let deadline = self.deadline()?;
        let (policy, charge) = (&self.tenant.policy, self.charge.as_ref());
        let mut spec = match asked {
            AskedRun::Module(spec) => decode::spec(spec, policy, self.delivery())?,
            AskedRun::Program(spec, catalogue) => {
                let input = self.origin.method == RunMethod::InteractExecute;
                let delivery = (self.delivery(), input);
                decode_execution::execution(spec, catalogue, policy, delivery, charge)?
            }
        };
        if matches!(
            self.origin.method,
            RunMethod::Interact | RunMethod::InteractExecute
        ) {
            decode::interactive(&spec)?;
        }
        spec.stdin = decode::hold_charge_with(spec.stdin, self.charge.as_ref());
        if let Some(files) = &mut spec.files {
            let charge = self.charge.as_ref();
            decode_files::share_files(files, |bytes| decode::hold_charge_with(bytes, charge));
        }
        if let ModuleRef::Inline(wasm) = spec.module {
            spec.module = ModuleRef::Inline(decode::hold_charge_with(wasm, self.charge.as_ref()));
        }
        Ok((spec, deadline))
    }
}

/// Adds the run's id to an answer, and `pending_response`, which makes a drain wait until the
/// answer is given.
pub(super) fn attach_run_metadata<T>(
    response: &mut Response<T>,
    id: &RunId,
    pending_response: Option<PendingResponse>,
) {
    if let Some(pending_response) = pending_response {
        response.extensions_mut().insert(pending_response);
    }
    status::name_run(response.metadata_mut().as_mut(), id);
}
