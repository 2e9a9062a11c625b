//! gRPC-Web: the same calls for browsers, which can neither send nor read HTTP trailers. tonic-web
//! translates requests and answers; in between they pass everything that a call of gRPC passes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use tonic::Status;
use tonic::body::Body;
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::ServiceExt;
use tower_layer::Layer;
use tower_service::Service;

use super::dispatch::{CallDispatcher, CallService};
use super::layers::auth::HostChecked;
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

/// Reports whether a request is one of gRPC-Web.
pub fn is_grpc_web<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(CONTENT_TYPE);
    request.method() == Method::POST
        && kind.is_some_and(|kind| kind.as_bytes().starts_with(GRPC_WEB))
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
    pub async fn answer(self, mut request: Request<Incoming>) -> Response<Body> {
        request.extensions_mut().insert(HostChecked);
        let is_http1 = request.version() < Version::HTTP_2;
        let request = request.map(|body| WebRequestBody {
            body,
            is_http1,
            has_ended: false,
        });
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

/// The body of a request, as a web server reads it.
struct WebRequestBody {
    body: Incoming,
    is_http1: bool,
    has_ended: bool,
}

impl HttpBody for WebRequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.has_ended |= matches!(polled, Poll::Ready(None));
        polled
    }

    fn is_end_stream(&self) -> bool {
        // A body of HTTP/1 in chunks does not say by itself that it has ended, and one that is
        // broken off fails. HTTP/2 ends a body that was reset, too.
        self.body.is_end_stream() || (self.is_http1 && self.has_ended)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
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
