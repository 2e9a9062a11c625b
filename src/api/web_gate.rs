//! The gate of the gRPC listeners for what browsers send, where gRPC-Web is served there: all that
//! comes by HTTP/1, and by HTTP/2 calls of gRPC-Web and preflights.
//!
//! Such a request has to be addressed to this host, and must not come from a web page of a foreign
//! origin. What is no call of gRPC-Web then gets its answer in plain HTTP, before anything runs.

use std::sync::Arc;

use http::header::ACCESS_CONTROL_REQUEST_METHOD;
use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use tonic::body::Body;

use super::dispatch::CallService;
use super::grpc_web::{GrpcWeb, is_grpc_web};
use super::layers::http_gate::{self, OfferedCalls};
use super::layers::request_body::WebRequestBody;
use super::listen::Peer;
use super::origin_guard::{LocalAddress, OriginGuard};

/// The gate for requests of browsers on the gRPC listeners. Clones share everything.
#[derive(Clone)]
pub struct WebGate<S> {
    guard: Arc<OriginGuard>,
    calls: GrpcWeb<S>,
}

impl<S> WebGate<S>
where
    S: CallService,
{
    /// Creates a gate that hands the calls to `calls` that `guard` lets in.
    pub fn new(guard: OriginGuard, calls: GrpcWeb<S>) -> Self {
        Self {
            guard: Arc::new(guard),
            calls,
        }
    }

    /// Reports whether a request is the gate's. Any other goes the way that it goes without
    /// gRPC-Web.
    pub(super) fn takes<B>(request: &Request<B>) -> bool {
        request.version() < Version::HTTP_2 || is_grpc_web(request) || is_preflight(request)
    }

    /// Answers a request of the gate, which came from `peer` to the address `local`.
    pub(super) async fn answer(
        self,
        peer: Arc<Peer>,
        local: LocalAddress,
        mut request: Request<Incoming>,
    ) -> Response<Body> {
        let unwanted = peer.unwanted_bodies();
        request.extensions_mut().insert(Peer::clone(&peer));
        request.extensions_mut().insert(local);
        let request = WebRequestBody::of(request, unwanted);
        let calls = self.calls;
        let plain = |status, why: &str| http_gate::plain(status, format!("{why}\n"));
        let admit = |request| admit(calls, request);
        self.guard.answer(request, plain, admit).await
    }
}

/// Answers a request that no page of a foreign origin may have made.
async fn admit<S: CallService>(
    calls: GrpcWeb<S>,
    request: Request<WebRequestBody>,
) -> Response<Body> {
    if is_grpc_web(&request) {
        // The call says by itself who makes it, and is refused in its own words.
        return calls.answer_call(request).await;
    }
    let offered = match request.version() < Version::HTTP_2 {
        true => OfferedCalls::GrpcWeb,
        false => OfferedCalls::Both,
    };
    http_gate::not_a_call(&request, offered)
}

/// Reports whether a page asks whether it may make a request.
fn is_preflight<B>(request: &Request<B>) -> bool {
    request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}
