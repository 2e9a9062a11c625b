//! gRPC-Web: the same calls for browsers, which can neither send nor read HTTP trailers. tonic-web
//! translates requests and answers; in between they pass everything that a call of gRPC passes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Method, Request, Response};
use http_body::{Body as HttpBody, Frame};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_service::Service;

use super::dispatch::{CallDispatcher, CallService};
use super::layers::auth::HostChecked;
use super::layers::http_gate::{self, OfferedCalls};
use super::layers::request_body::WebRequestBody;
use super::listen::Peer;
use super::methods::{Contract, Effect};
use crate::model::refusal::{Reason, Refusal};

/// The beginning of the content types of gRPC-Web.
const GRPC_WEB: &[u8] = b"application/grpc-web";

/// A server of gRPC-Web calls. Clones share everything.
#[derive(Clone)]
pub struct GrpcWeb<S>(GrpcWebService<WebCalls<S>>);

/// The calls that requests of gRPC-Web are translated to.
#[derive(Clone)]
struct WebCalls<S> {
    calls: Arc<CallDispatcher<S>>,
    is_read_only: bool,
}

/// Reports whether a request is meant to be one of gRPC-Web.
pub fn is_grpc_web<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    let begins = |kind: &HeaderValue| {
        let beginning = kind.as_bytes().get(..GRPC_WEB.len());
        beginning.is_some_and(|it| it.eq_ignore_ascii_case(GRPC_WEB))
    };
    request.method() == Method::POST && kind.is_some_and(begins)
}

impl<S> GrpcWeb<S>
where
    S: CallService,
{
    /// Creates a server that hands its calls to `calls`. With `is_read_only`, calls that change
    /// something are refused.
    pub fn new(calls: CallDispatcher<S>, is_read_only: bool) -> Self {
        Self(GrpcWebLayer::new().layer(WebCalls {
            calls: Arc::new(calls),
            is_read_only,
        }))
    }

    /// Answers a request of gRPC-Web that came by a web server, which has checked its host.
    pub async fn answer(self, request: Request<Incoming>) -> Response<Body> {
        let peer = request.extensions().get::<Peer>();
        let unwanted = peer.map(Peer::unwanted_bodies).unwrap_or_default();
        self.answer_call(WebRequestBody::of(request, unwanted))
            .await
    }

    /// Answers a request of gRPC-Web whose host has been checked.
    pub(super) async fn answer_call(self, mut request: Request<WebRequestBody>) -> Response<Body> {
        let Some(kind) = http_gate::web_type(request.headers()) else {
            return http_gate::not_a_call(&request, OfferedCalls::GrpcWeb);
        };
        let kind = HeaderValue::from_static(kind);
        request.headers_mut().insert(CONTENT_TYPE, kind);
        request.extensions_mut().insert(HostChecked);
        let answered = self.0.oneshot(request).await;
        answered.unwrap_or_else(|never: Infallible| match never {})
    }
}

impl<S> Service<Request<Body>> for WebCalls<S>
where
    S: CallService,
{
    type Response = Response<WebResponseBody>;
    type Error = Infallible;
    type Future =
        Pin<Box<dyn Future<Output = Result<Response<WebResponseBody>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (calls, is_read_only) = (Arc::clone(&self.calls), self.is_read_only);
        Box::pin(async move {
            let effect = Contract::at(request.uri().path()).effect;
            let answer = match effect {
                Effect::Changes if is_read_only => read_only().into_http(),
                Effect::Reads | Effect::Changes => {
                    let peer = request.extensions().get::<Peer>().cloned();
                    match peer {
                        Some(peer) => calls.answer_web(&peer, request).await,
                        None => {
                            Status::from(Refusal::internal("a request without a peer")).into_http()
                        }
                    }
                }
            };
            Ok(answer.map(WebResponseBody))
        })
    }
}

/// Creates the refusal of a call that changes something.
fn read_only() -> Status {
    let message = "this listener only answers questions (admin.read_only)";
    Status::from(Refusal::new(Reason::Forbidden, message).with("limit", "admin.read_only"))
}

/// The body of an answer, before its trailers become a part of it. So its length is not known.
struct WebResponseBody(Body);

impl HttpBody for WebResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
