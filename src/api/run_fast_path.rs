//! Answers `Run` on one path from the HTTP request to the answer: it authenticates the caller,
//! decodes the request, starts the run, and encodes how the run ended.
//!
//! `Run` is the method that everything else is measured by. Every rule on this path is a function
//! that the layers around the other methods call too. The path saves what lies between layers:
//! boxed futures and bodies, and extensions.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Request, Response};
use tonic::{Code, Status};

use super::layers::auth::Authentication;
use super::layers::call_deadline::CallTiming;
use super::layers::http_gate;
use super::layers::request_limits::RequestLimits;
use super::layers::response_body::ResponseBody;
use super::layers::response_watchdog::WatchedBody;
use super::listen::Peer;
use super::methods::{ApiMessage, ApiMethod};
use super::start::{AskedRun, RunCall};
use super::{decode, encode, proto, status, trace_parent};
use crate::event_log::CapturedOutput;
use crate::language::{Catalogue, reported_value};
use crate::model::refusal::Refusal;
use crate::run::{PendingResponse, RequestCharge, Run, RunHandle, RunMethod, Runner, Tenant};

/// The header that says how messages are compressed, which is not offered.
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// The content type of an answer.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The handler that answers calls of `Run`.
pub(super) struct RunFastPath {
    pub(super) authentication: Authentication,
    pub(super) request_limits: RequestLimits,
    pub(super) runner: Arc<Runner>,
    pub(super) catalogue: Arc<Catalogue>,
}

/// The methods that the fast path answers, whose output is given whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CapturedMethod {
    /// The method that runs a module.
    Run,
    /// The method that executes a program.
    Execute,
}

impl RunFastPath {
    /// Returns the method of a request that this path can take; `None` for one of another method. A
    /// request whose headers are wrong is left to the layers, which refuse it.
    pub(super) fn takes<B>(
        method: Option<ApiMethod>,
        request: &Request<B>,
    ) -> Option<CapturedMethod> {
        let method = match method? {
            ApiMethod::SandboxRun => CapturedMethod::Run,
            ApiMethod::ExecutionExecute => CapturedMethod::Execute,
            ApiMethod::ExecutionExecuteStream
            | ApiMethod::ExecutionListLanguages
            | ApiMethod::ExecutionListSessions
            | ApiMethod::ExecutionCloseSession
            | ApiMethod::ModuleUploadModule
            | ApiMethod::ModuleListModules
            | ApiMethod::ModuleGetModule
            | ApiMethod::ModuleDeleteModule
            | ApiMethod::RunListRuns
            | ApiMethod::RunWatchRuns
            | ApiMethod::RunGetRun
            | ApiMethod::RunCancelRun
            | ApiMethod::RunCancelRuns
            | ApiMethod::RunDeleteRuns
            | ApiMethod::RunAttachRun
            | ApiMethod::RunInteract
            | ApiMethod::RunSendInput
            | ApiMethod::SandboxRunStream
            | ApiMethod::SandboxLoadModule
            | ApiMethod::SandboxHealth
            | ApiMethod::StatsGetStats
            | ApiMethod::StatsWatchStats
            | ApiMethod::HealthCheck
            | ApiMethod::HealthList
            | ApiMethod::HealthWatch => return None,
        };
        let encoding = request.headers().get(ENCODING);
        let takes = encoding.is_none_or(|it| it == "identity") && http_gate::is_call(request);
        takes.then_some(method)
    }

    /// Answers a call of `method`; a failure becomes a refusal.
    pub(super) async fn answer<B>(
        &self,
        method: CapturedMethod,
        peer: &Peer,
        request: Request<B>,
    ) -> Response<ResponseBody>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let answered = self.run(method, peer, request).await;
        answered.unwrap_or_else(|status| status.into_http().map(ResponseBody::Layered))
    }

    /// Executes the run of a call, and returns the answer.
    async fn run<B>(
        &self,
        method: CapturedMethod,
        peer: &Peer,
        request: Request<B>,
    ) -> Result<Response<ResponseBody>, Status>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let (head, body) = request.into_parts();
        let arrived = CallTiming::now(&head.headers);
        let admitted = self
            .authentication
            .authenticate_call(&head, Some(peer))
            .await?;
        let parent = trace_parent::of(&head.headers).map(Box::new);
        drop(head);
        let tenant = admitted.tenant.as_ref();
        let tenant =
            tenant.ok_or_else(|| Status::from(&Refusal::internal("a run without a tenant")))?;
        let (asked, charge) = match method {
            CapturedMethod::Run => {
                let (proto::RunRequest { spec }, charge) =
                    self.read(ApiMethod::SandboxRun, tenant, body).await?;
                (AskedRun::Module(spec), charge)
            }
            CapturedMethod::Execute => {
                let (proto::ExecuteRequest { spec }, charge) =
                    self.read(ApiMethod::ExecutionExecute, tenant, body).await?;
                (AskedRun::Program(spec, &self.catalogue), charge)
            }
        };
        let method_of_run = method.run_method();
        let parent = parent.map(|parent| *parent);
        let trace = self
            .runner
            .begin_trace(method_of_run, tenant, parent, arrived.at);
        let call = RunCall::new(
            &self.runner,
            method_of_run,
            Arc::clone(tenant),
            (Some(peer), trace),
            Some(charge),
            decode::unexpired_response_deadline(&arrived),
        );
        let mut attached = call.start(&self.runner, asked, None).await?;
        let answered = self.answer_of(method, tenant, &mut attached).await;
        let code = answered.as_ref().map_or_else(Status::code, |_| Code::Ok);
        attached.span.end(status::code_name(code));
        answered
    }

    /// Waits for the end of a run, and makes the answer.
    async fn answer_of(
        &self,
        method: CapturedMethod,
        tenant: &Arc<Tenant>,
        attached: &mut RunHandle,
    ) -> Result<Response<ResponseBody>, Status> {
        let finished = finished(attached).await?;
        let run = &attached.run;
        let pending = attached.pending_response.take();
        let delivery = self.deliver(method, tenant, run, finished, pending);
        let delivery = delivery.map_err(|refusal| status::for_run(&refusal, &run.id))?;
        let mut response = Response::new(ResponseBody::Run(delivery));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, GRPC);
        status::name_run(headers, &run.id);
        Ok(response)
    }

    /// Encodes the answer of a run that has finished, and begins to deliver it.
    fn deliver(
        &self,
        method: CapturedMethod,
        tenant: &Arc<Tenant>,
        run: &Run,
        (result, output): (proto::RunResult, CapturedOutput),
        pending: Option<PendingResponse>,
    ) -> Result<WatchedBody, Refusal> {
        let watchdog = self.request_limits.response_watchdog();
        let is_truncated = result.stdout_truncated;
        let (result, reservation) = (Some(result), run.take_answer_reservation());
        match method {
            CapturedMethod::Run => {
                let message = proto::RunResponse {
                    result,
                    ..proto::RunResponse::default()
                };
                watchdog.watch_run_response(tenant, &message, output, reservation, pending)
            }
            CapturedMethod::Execute => {
                let message = proto::ExecuteResponse {
                    result,
                    value: reported_value(&output.stdout, is_truncated),
                    ..proto::ExecuteResponse::default()
                };
                watchdog.watch_run_response(tenant, &message, output, reservation, pending)
            }
        }
    }

    /// Reads the one message of a call of `tenant`, with what it holds of the budget.
    async fn read<M, B>(
        &self,
        method: ApiMethod,
        tenant: &Arc<Tenant>,
        body: B,
    ) -> Result<(M, RequestCharge), Status>
    where
        M: ApiMessage,
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let limits = &self.request_limits;
        limits.read_unary(method, Arc::clone(tenant), body).await
    }
}

impl CapturedMethod {
    /// Returns the method as the record of the run has it.
    fn run_method(self) -> RunMethod {
        match self {
            Self::Run => RunMethod::Run,
            Self::Execute => RunMethod::Execute,
        }
    }
}

/// Waits for the end of a run, and returns its result and the output that belongs in the answer.
///
/// # Errors
/// If the daemon failed, or if the output is not kept any more.
async fn finished(attached: &RunHandle) -> Result<(proto::RunResult, CapturedOutput), Status> {
    let run = &attached.run;
    let refused = |refusal: &Refusal| status::for_run(refusal, &run.id);
    let end = attached.wait_for_end().await;
    let ended = (*end).as_ref().map_err(refused)?;
    let captured = run.take_captured().map_err(|refusal| refused(&refusal))?;
    Ok((encode::result(run, ended), captured))
}
