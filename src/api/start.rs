//! Starts the run that a call asks for: decodes the request, hands it to the runner, and attaches
//! the caller.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Request, Response, Status};

use super::layers::auth::tenant_of;
use super::layers::request_limits::ChargeExtension;
use super::listen::Peer;
use super::{decode, proto, status};
use crate::model::limits::OutputMode;
use crate::model::refusal::Refusal;
use crate::model::request::{ModuleRef, RunId, RunSpec};
use crate::run::{
    Origin, PendingResponse, RefusedRun, RequestCharge, RunHandle, RunMethod, Runner, StartRequest,
    Tenant,
};
use crate::sandbox::Input;

/// A call that asks for a run, which has its id already.
pub(super) struct RunCall {
    id: RunId,
    tenant: Arc<Tenant>,
    origin: Origin,
    deadline: Result<Option<Instant>, Refusal>,
    charge: Option<RequestCharge>,
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
        Ok(Self::new(runner, method, tenant, peer, charge, deadline))
    }

    /// Creates a call of `tenant` that holds `charge`, and whose answer has to be on its way by
    /// `deadline`.
    pub(super) fn new(
        runner: &Runner,
        method: RunMethod,
        tenant: Arc<Tenant>,
        peer: Option<&Peer>,
        charge: Option<RequestCharge>,
        deadline: Result<Option<Instant>, Refusal>,
    ) -> Self {
        Self {
            id: RunId::new(runner.instance()),
            origin: Origin {
                method,
                caller: peer.map_or_else(|| "unknown".into(), Peer::name),
                tenant: Arc::clone(&tenant.name),
            },
            tenant,
            deadline,
            charge,
        }
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
        self,
        runner: &Arc<Runner>,
        spec: Option<proto::RunSpec>,
        input: Option<Arc<Input>>,
    ) -> Result<RunHandle, Status> {
        let (spec, deadline) = match self.decoded(spec) {
            Ok(decoded) => decoded,
            Err(refusal) => return Err(self.record_refusal(runner, refusal)),
        };
        let input = input.or_else(|| spec.open_stdin.then(Arc::default));
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
        let started = runner.start(Box::new(asked)).await;
        started.map_err(|RefusedRun { id, refusal }| status::for_run(&refusal, &id))
    }

    /// Records a run that was refused before its request was known to be well formed, and returns
    /// the status for its caller.
    pub(super) fn record_refusal(self, runner: &Runner, refusal: Refusal) -> Status {
        let refusal = runner.refused(self.tenant, &self.id, self.origin, refusal);
        status::for_run(&refusal, &self.id)
    }

    /// Returns how the caller gets the run's output: as a whole at the end, or as it is written.
    fn delivery(&self) -> OutputMode {
        match self.origin.method {
            RunMethod::Run => OutputMode::Captured,
            RunMethod::RunStream | RunMethod::Interact => OutputMode::Streamed,
        }
    }

    /// Decodes what is asked for and by when the answer has to be on its way. Input and module keep
    /// the request's charge.
    fn decoded(&self, spec: Option<proto::RunSpec>) -> Result<(RunSpec, Option<Instant>), Refusal> {
        let deadline = self.deadline()?;
        let mut spec = decode::spec(spec, &self.tenant.policy, self.delivery())?;
        if self.origin.method == RunMethod::Interact {
            decode::interactive(&spec)?;
        }
        spec.stdin = decode::hold_charge_with(spec.stdin, self.charge.as_ref());
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
