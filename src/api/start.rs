//! From a call to its run: decode, hand over, attach.

use std::sync::Arc;
use std::time::Instant;

use tonic::{Request, Response, Status};

use super::auth::tenant_of;
use super::intake::{Arrival, Charge};
use super::listen::Peer;
use super::status::refused;
use super::{decode, proto, status};
use crate::limits::Delivery;
use crate::refusal::Refusal;
use crate::request::{ModuleRef, RunId, RunSpec};
use crate::run::{Asked, Attached, Method, Origin, Refused, Runner, Tenant, Untold};
use crate::sandbox::Input;

/// A call that asks for a run.
pub(super) struct Call {
    id: RunId,
    origin: Origin,
    until: Result<Option<Instant>, Refusal>,
    charge: Option<Charge>,
}

impl Call {
    /// The one that `request` is.
    ///
    /// # Errors
    /// Where its tenant was not settled.
    pub(super) fn of<T>(
        runner: &Runner,
        request: &Request<T>,
        method: Method,
    ) -> Result<Self, Status> {
        let tenant = tenant_of(request).map_err(refused)?;
        let peer = request.extensions().get::<Peer>();
        let charge = Arrival::of(request).charge;
        let deadline = decode::until(request);
        Ok(Self::new(runner, method, tenant, peer, charge, deadline))
    }

    /// A call of `tenant`, which holds `charge`, and whose caller waits until `deadline`.
    pub(super) fn new(
        runner: &Runner,
        method: Method,
        tenant: Arc<Tenant>,
        peer: Option<&Peer>,
        charge: Option<Charge>,
        deadline: Result<Option<Instant>, Refusal>,
    ) -> Self {
        Self {
            id: RunId::new(runner.instance()),
            origin: Origin {
                method,
                caller: peer.map_or_else(|| "unknown".into(), Peer::name),
                tenant,
            },
            until: deadline,
            charge,
        }
    }

    /// When its caller gives up.
    ///
    /// # Errors
    /// `MALFORMED_REQUEST`.
    pub(super) fn until(&self) -> Result<Option<Instant>, Refusal> {
        self.until.clone()
    }

    /// Starts the run, whose guest reads `input` where there is one.
    ///
    /// # Errors
    /// Whatever keeps the run from its first instruction.
    pub(super) async fn start(
        self,
        runner: &Arc<Runner>,
        spec: Option<proto::RunSpec>,
        input: Option<Arc<Input>>,
    ) -> Result<Attached, Status> {
        let (spec, until) = match self.decoded(spec) {
            Ok(decoded) => decoded,
            Err(refusal) => return Err(self.refused(runner, refusal)),
        };
        let asked = Asked {
            delivery: self.delivery(),
            id: self.id,
            origin: self.origin,
            spec,
            input,
            until,
            held: self.charge.map(Charge::until_dropped),
        };
        let started = runner.start(Box::new(asked)).await;
        started.map_err(|Refused { id, refusal }| status::of_run(&refusal, &id))
    }

    /// Records that it was refused before it was a well-formed one.
    pub(super) fn refused(self, runner: &Runner, refusal: Refusal) -> Status {
        let refusal = runner.refused(&self.id, self.origin, refusal);
        status::of_run(&refusal, &self.id)
    }

    fn delivery(&self) -> Delivery {
        match self.origin.method {
            Method::Run => Delivery::Captured,
            Method::RunStream | Method::Interact => Delivery::Streamed,
        }
    }

    /// What is asked for, and until when.
    fn decoded(&self, spec: Option<proto::RunSpec>) -> Result<(RunSpec, Option<Instant>), Refusal> {
        let until = self.until()?;
        let mut spec = decode::spec(spec, &self.origin.tenant.policy, self.delivery())?;
        if self.origin.method == Method::Interact {
            decode::interactive(&spec)?;
        }
        spec.stdin = decode::charged(spec.stdin, self.charge.as_ref());
        if let ModuleRef::Inline(wasm) = spec.module {
            spec.module = ModuleRef::Inline(decode::charged(wasm, self.charge.as_ref()));
        }
        Ok((spec, until))
    }
}

/// Names the run in an answer, which a drain waits for.
pub(super) fn told_by<T>(response: &mut Response<T>, id: &RunId, untold: Option<Untold>) {
    if let Some(untold) = untold {
        response.extensions_mut().insert(untold);
    }
    status::name_run(response.metadata_mut().as_mut(), id);
}
