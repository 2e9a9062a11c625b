//! Dispatches every call on a connection: `Run` and `Execute` go to their fast path, and all other
//! methods go to the service with the layers around it.

use std::convert::Infallible;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tonic::body::Body;
use tower::ServiceExt;
use tower_service::Service;

use super::call_counters::{CallCounters, CallTimer};
use super::layers::auth::Authentication;
use super::layers::request_body::RequestBody;
use super::layers::request_limits::RequestLimits;
use super::layers::response_body::{ResponseBody, TimedBody};
use super::listen::Peer;
use super::methods::ApiMethod;
use super::run_fast_path::RunFastPath;
use crate::language::Catalogue;
use crate::run::Runner;

/// A service that answers calls, with the layers around it.
pub trait CallService:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send + 'static>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> CallService for S where
    S: Service<
            Request<Body>,
            Response = Response<Body>,
            Error = Infallible,
            Future: Send + 'static,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// A dispatcher that answers a `Run` or an `Execute` on its own path, and any other call with a
/// service that has layers around it.
#[derive(Clone)]
pub struct CallDispatcher<S> {
    run: Arc<RunFastPath>,
    layered: S,
    counters: Arc<CallCounters>,
}

impl<S> CallDispatcher<S> {
    /// Creates a dispatcher. Its fast path uses the same `authentication` and `limits` that are
    /// around `layered`. Each call is counted in `counters`.
    pub fn new(
        authentication: Authentication,
        limits: RequestLimits,
        (runner, catalogue): (Arc<Runner>, Arc<Catalogue>),
        layered: S,
        counters: Arc<CallCounters>,
    ) -> Self {
        let run = RunFastPath {
            authentication,
            request_limits: limits,
            runner,
            catalogue,
        };
        Self {
            run: Arc::new(run),
            layered,
            counters,
        }
    }
}

impl<S> CallDispatcher<S>
where
    S: CallService,
{
    /// Answers a call from `peer`. A request body that nobody reads is drained if it is short.
    pub(super) async fn answer(
        self: Arc<Self>,
        peer: Arc<Peer>,
        mut request: Request<Incoming>,
    ) -> Result<Response<TimedBody>, Infallible> {
        let method = ApiMethod::at(request.uri().path());
        let timer = self.counters.begin(method);
        let unwanted = peer.unwanted_bodies();
        let body = |body| RequestBody::new(body, unwanted);
        if let Some(method) = RunFastPath::takes(method, &request) {
            let answer = self.run.answer(method, &peer, request.map(body)).await;
            return Ok(timed(answer, timer));
        }
        request.extensions_mut().insert(Peer::clone(&peer));
        // Boxed separately, so that the future of a `Run` has no room set aside for it.
        let answer = Box::pin(self.layered(request.map(|incoming| Body::new(body(incoming)))));
        Ok(timed(answer.await, timer))
    }

    /// Answers a call that was translated from gRPC-Web.
    pub(super) async fn answer_web(&self, peer: &Peer, request: Request<Body>) -> Response<Body> {
        let method = ApiMethod::at(request.uri().path());
        let timer = self.counters.begin(method);
        let answer = match RunFastPath::takes(method, &request) {
            Some(method) => self.run.answer(method, peer, request).await,
            None => self.layered(request).await,
        };
        timed(answer, timer).map(Body::new)
    }

    /// Answers a call of any method that has no path of its own.
    async fn layered(&self, request: Request<Body>) -> Response<ResponseBody> {
        let answered = self.layered.clone().oneshot(request).await;
        let answer = answered.unwrap_or_else(|never| match never {});
        answer.map(ResponseBody::Layered)
    }
}

/// Notes how a call was answered, and measures it until its answer has been taken.
fn timed(answer: Response<ResponseBody>, mut timer: CallTimer) -> Response<TimedBody> {
    match answer.status() {
        StatusCode::OK => match answer.body() {
            // Only the trailers say how it ended.
            ResponseBody::Run(_) => {}
            ResponseBody::Layered(_) => timer.note_end(answer.headers()),
        },
        _ => timer.note_foreign(),
    }
    answer.map(|body| TimedBody::new(body, timer))
}
