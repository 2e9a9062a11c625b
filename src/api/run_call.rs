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
use super::start::{Call, finished};
use super::{decode, http_gate, proto, status};
use crate::refusal::Refusal;
use crate::run::{Method, Runner};

/// Where `Run` is asked for.
const PATH: &str = "/ringfence.v1.SandboxService/Run";
/// How messages are compressed, which is not offered.
const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");
const RUN_ID: HeaderName = HeaderName::from_static(status::RUN_ID);

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

    /// Answers one.
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
            &output,
            run.take_answer_reservation(),
            attached.untold.take(),
        );
        let delivery = delivery.map_err(|refusal| status::of_run(&refusal, &run.id))?;
        let mut response = Response::new(AnswerBody::Run(delivery));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, GRPC);
        headers.extend(status::run_id_header(&run.id).map(|id| (RUN_ID, id)));
        Ok(response)
    }
}
