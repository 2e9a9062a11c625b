//! `Run` on one path, from the HTTP request to its answer: who calls, what is asked, the run, how it ended.
//!
//! It is the method that everything else is measured by. Every rule on this path is a function that the layers around the
//! other methods call too; what is spared is what lies between layers: boxed futures and bodies, and extensions.

use std::sync::Arc;

use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Request, Response};
use tonic::Status;

use super::auth::Authentication;
use super::body::AnswerBody;
use super::call_deadline::Arrived;
use super::intake::Intake;
use super::listen::Peer;
use super::request_body::RequestBody;
use super::start::Call;
use super::{decode, encode, http_gate, proto, status};
use crate::log::Captured;
use crate::refusal::Refusal;
use crate::run::{Attached, Method, Runner};

/// Where `Run` is asked for.
const PATH: &str = "/ringfence.v1.SandboxService/Run";
/// How messages are compressed, which is not offered.
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// What answers calls of `Run`.
pub(super) struct RunCalls {
    pub(super) authentication: Authentication,
    pub(super) intake: Intake,
    pub(super) runner: Arc<Runner>,
}

impl RunCalls {
    /// Whether a request is such a call. What is wrong with its headers is left to the layers to refuse.
    pub(super) fn takes<B>(request: &Request<B>) -> bool {
        let encoding = request.headers().get(ENCODING);
        request.uri().path() == PATH
            && encoding.is_none_or(|it| it == "identity")
            && http_gate::is_call(request)
    }

    /// Answers one, whatever becomes of it.
    pub(super) async fn answer(
        &self,
        peer: &Peer,
        request: Request<RequestBody>,
    ) -> Response<AnswerBody> {
        let answered = self.run(peer, request).await;
        answered.unwrap_or_else(|status| status.into_http().map(AnswerBody::Layered))
    }

    async fn run(
        &self,
        peer: &Peer,
        request: Request<RequestBody>,
    ) -> Result<Response<AnswerBody>, Status> {
        let (head, body) = request.into_parts();
        let arrived = Arrived::now(&head.headers);
        let admitted = self.authentication.admit(&head, Some(peer)).await?;
        drop(head);
        let tenant = admitted.tenant.as_ref();
        let tenant =
            tenant.ok_or_else(|| status::from(&Refusal::internal("a run without a tenant")))?;
        let taken = self.intake.unary(PATH, Arc::clone(tenant), body).await?;
        let (proto::RunRequest { spec }, charge) = taken;
        let call = Call::new(
            &self.runner,
            Method::Run,
            Arc::clone(tenant),
            Some(peer),
            Some(charge),
            decode::answer_deadline(&arrived),
        );
        let mut attached = call.start(&self.runner, spec, None).await?;
        let (message, output) = finished(&attached).await?;
        let run = &attached.run;
        let delivery = self.intake.deliveries().send_run(
            tenant,
            &message,
            output,
            run.take_answer_reservation(),
            attached.untold.take(),
        );
        let delivery = delivery.map_err(|refusal| status::of_run(&refusal, &run.id))?;
        let mut response = Response::new(AnswerBody::Run(delivery));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, GRPC);
        status::name_run(headers, &run.id);
        Ok(response)
    }
}

/// The answer to a call for a run, once that has ended: its message, and the output that belongs into it.
///
/// # Errors
/// Where the host failed, or the output is not kept any more.
async fn finished(attached: &Attached) -> Result<(proto::RunResponse, Captured), Status> {
    let run = &attached.run;
    let refused = |refusal: &Refusal| status::of_run(refusal, &run.id);
    let end = attached.ended().await;
    let ended = (*end).as_ref().map_err(refused)?;
    let captured = run.take_captured().map_err(|refusal| refused(&refusal))?;
    let message = proto::RunResponse {
        result: Some(encode::result(run, ended)),
        ..proto::RunResponse::default()
    };
    Ok((message, captured))
}
