//! Every call on a connection, to whatever answers it.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;
use tonic::body::Body;
use tower::ServiceExt;
use tower_service::Service;

use super::auth::Authentication;
use super::body::AnswerBody;
use super::intake::Intake;
use super::listen::Peer;
use super::request_body::RequestBody;
use super::run_call::RunCalls;
use crate::run::Runner;

/// What answers calls: a `Run` on its own path, all others by a service with layers around it.
#[derive(Clone)]
pub struct Calls<S> {
    run: Arc<RunCalls>,
    layered: S,
}

impl<S> Calls<S> {
    /// Creates what answers a `Run` by the same `authentication` and `intake` that are around `layered`.
    pub fn new(
        authentication: Authentication,
        intake: Intake,
        runner: Arc<Runner>,
        layered: S,
    ) -> Self {
        let run = RunCalls {
            authentication,
            intake,
            runner,
        };
        Self {
            run: Arc::new(run),
            layered,
        }
    }
}

impl<S> Calls<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    /// Answers a call that `peer` makes.
    pub(super) async fn answer(
        self: Arc<Self>,
        peer: Arc<Peer>,
        mut request: Request<Incoming>,
    ) -> Result<Response<AnswerBody>, Infallible> {
        let unwanted = peer.unwanted_bodies();
        let body = |body| RequestBody::new(body, unwanted);
        if RunCalls::takes(&request) {
            return Ok(self.run.answer(&peer, request.map(body)).await);
        }
        request.extensions_mut().insert(Peer::clone(&peer));
        let service = self.layered.clone();
        // In a box of its own, so that a `Run` does not carry the room for it.
        let answer =
            Box::pin(service.oneshot(request.map(|incoming| Body::new(body(incoming))))).await?;
        Ok(answer.map(AnswerBody::Layered))
    }
}
