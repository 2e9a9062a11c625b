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
use tonic::Status;

use super::layers::auth::Authentication;
use super::layers::call_deadline::CallTiming;
use super::layers::http_gate;
use super::layers::request_limits::RequestLimits;
use super::layers::response_body::ResponseBody;
use super::listen::Peer;
use super::methods::ApiMethod;
use super::start::RunCall;
use super::{decode, encode, proto, status};
use crate::event_log::CapturedOutput;
use crate::model::refusal::Refusal;
use crate::run::{RunHandle, RunMethod, Runner};

/// The header that says how messages are compressed, which is not offered.
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
/// The content type of an answer.
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// The handler that answers calls of `Run`.
pub(super) struct RunFastPath {
    pub(super) authentication: Authentication,
    pub(super) request_limits: RequestLimits,
    pub(super) runner: Arc<Runner>,
}

impl RunFastPath {
    /// Reports whether a request of `method` is a call of `Run` that this path can take. A request
    /// whose headers are wrong is left to the layers, which refuse it.
    pub(super) fn takes<B>(method: Option<ApiMethod>, request: &Request<B>) -> bool {
        let encoding = request.headers().get(ENCODING);
        method == Some(ApiMethod::SandboxRun)
            && encoding.is_none_or(|it| it == "identity")
            && http_gate::is_call(request)
    }

    /// Answers a call of `Run`; a failure becomes a refusal.
    pub(super) async fn answer<B>(&self, peer: &Peer, request: Request<B>) -> Response<ResponseBody>
    where
        B: http_body::Body<Data = Bytes> + Unpin,
    {
        let answered = self.run(peer, request).await;
        answered.unwrap_or_else(|status| status.into_http().map(ResponseBody::Layered))
    }

    /// Executes the run of a call, and returns the answer.
    async fn run<B>(
        &self,
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
        drop(head);
        let tenant = admitted.tenant.as_ref();
        let tenant =
            tenant.ok_or_else(|| Status::from(&Refusal::internal("a run without a tenant")))?;
        let taken = self
            .request_limits
            .read_unary(ApiMethod::SandboxRun, Arc::clone(tenant), body)
            .await?;
        let (proto::RunRequest { spec }, charge) = taken;
        let call = RunCall::new(
            &self.runner,
            RunMethod::Run,
            Arc::clone(tenant),
            Some(peer),
            Some(charge),
            decode::unexpired_response_deadline(&arrived),
        );
        let mut attached = call.start(&self.runner, spec, None).await?;
        let (message, output) = finished(&attached).await?;
        let run = &attached.run;
        let delivery = self.request_limits.response_watchdog().watch_run_response(
            tenant,
            &message,
            output,
            run.take_answer_reservation(),
            attached.pending_response.take(),
        );
        let delivery = delivery.map_err(|refusal| status::for_run(&refusal, &run.id))?;
        let mut response = Response::new(ResponseBody::Run(delivery));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, GRPC);
        status::name_run(headers, &run.id);
        Ok(response)
    }
}

/// Waits for the end of a run, and returns the answer's message and the output that belongs in it.
///
/// # Errors
/// If the daemon failed, or if the output is not kept any more.
async fn finished(attached: &RunHandle) -> Result<(proto::RunResponse, CapturedOutput), Status> {
    let run = &attached.run;
    let refused = |refusal: &Refusal| status::for_run(refusal, &run.id);
    let end = attached.wait_for_end().await;
    let ended = (*end).as_ref().map_err(refused)?;
    let captured = run.take_captured().map_err(|refusal| refused(&refusal))?;
    let message = proto::RunResponse {
        result: Some(encode::result(run, ended)),
        ..proto::RunResponse::default()
    };
    Ok((message, captured))
}
