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
use crate::request::{ModuleRef, RunId};
use crate::run::{Asked, Attached, Method, Origin, Refused, Runner, Untold};
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
        let arrival = Arrival::of(request);
        let peer = request.extensions().get::<Peer>();
        Ok(Self {
            id: RunId::new(runner.instance()),
            origin: Origin {
                method,
                caller: peer.map_or_else(|| "unknown".into(), Peer::name),
                tenant: tenant_of(request).map_err(refused)?,
            },
            until: decode::until(request),
            charge: arrival.charge,
        })
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
        let asked = match self.asked(spec, input) {
            Ok(asked) => asked,
            Err(refusal) => return Err(self.refused(runner, refusal)),
        };
        let started = runner.start(asked).await;
        started.map_err(|Refused { id, refusal }| status::of_run(&refusal, &id))
    }

    /// Records that it was refused before it was a well-formed one.
    pub(super) fn refused(self, runner: &Runner, refusal: Refusal) -> Status {
        let refusal = runner.refused(&self.id, self.origin, refusal);
        status::of_run(&refusal, &self.id)
    }

    fn asked(
        &self,
        spec: Option<proto::RunSpec>,
        input: Option<Arc<Input>>,
    ) -> Result<Asked, Refusal> {
        let delivery = match self.origin.method {
            Method::Run => Delivery::Captured,
            Method::RunStream | Method::Interact => Delivery::Streamed,
        };
        let until = self.until()?;
        let mut spec = decode::spec(spec, &self.origin.tenant.policy, delivery)?;
        if self.origin.method == Method::Interact {
            decode::interactive(&spec)?;
        }
        spec.stdin = decode::charged(spec.stdin, self.charge.clone());
        if let ModuleRef::Inline(wasm) = spec.module {
            spec.module = ModuleRef::Inline(decode::charged(wasm, self.charge.clone()));
        }
        Ok(Asked {
            id: self.id,
            origin: self.origin.clone(),
            spec,
            delivery,
            input,
            until,
            held: Box::new(self.charge.clone()),
        })
    }
}

/// Names the run in an answer, which a drain waits for.
pub(super) fn told_by<T>(response: &mut Response<T>, id: &RunId, untold: Option<Untold>) {
    if let Some(untold) = untold {
        response.extensions_mut().insert(untold);
    }
    if let Some(value) = status::run_id_value(id) {
        response.metadata_mut().insert(status::RUN_ID, value);
    }
}
