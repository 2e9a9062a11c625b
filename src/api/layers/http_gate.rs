//! The gate that rejects requests other than gRPC calls. It answers them in plain HTTP, before the
//! caller is authenticated and before anything is read, charged or run. A form on another site's
//! page can make a browser send a request here, but the browser states the content type, which
//! gives the request away.
//!
//! The gate also checks what every call has, whatever its method: the size of its metadata, and its
//! deadline.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::Either;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::call_deadline::{CallTimeout, CallTiming};
use crate::api::methods::{Contract, DeadlineRule};
use crate::model::refusal::{Reason, Refusal, quote};
use crate::run::not_started;

/// The content types of a call of gRPC, as the answer to any other type lists them.
const GRPC_TYPES: &str = "application/grpc, application/grpc+proto";
/// The content types of a call of gRPC-Web: its messages as they are, or in base64.
const WEB_TYPES: [&str; 4] = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];
/// The most bytes of a call's metadata, counted as HTTP/2 does, with the method's path and the
/// authority.
const MAX_METADATA: usize = 8 << 10;
/// The bytes that HTTP/2 counts for each field, beside those of its name and value.
const FIELD: usize = 32;

/// The kinds of calls that a client is offered where its request arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfferedCalls {
    /// Calls of gRPC alone.
    Grpc,
    /// Calls of gRPC-Web alone, as by HTTP/1.
    GrpcWeb,
    /// Calls of gRPC and of gRPC-Web.
    Both,
}

/// The layer that lets gRPC calls through to the layers inside it, and answers every other request.
#[derive(Clone, Copy, Debug)]
pub struct HttpGate {
    offered: OfferedCalls,
}

impl HttpGate {
    /// Creates a gate that tells other clients which calls are `offered`.
    pub fn new(offered: OfferedCalls) -> Self {
        Self { offered }
    }
}

impl<S> Layer<S> for HttpGate {
    type Service = HttpGateService<S>;

    fn layer(&self, inner: S) -> HttpGateService<S> {
        HttpGateService {
            inner,
            offered: self.offered,
        }
    }
}

/// A service that the gate hands calls to.
#[derive(Clone, Debug)]
pub struct HttpGateService<S> {
    inner: S,
    offered: OfferedCalls,
}

type Boxed<R, E> = Pin<Box<dyn Future<Output = Result<R, E>> + Send>>;

impl<S> Service<Request<Body>> for HttpGateService<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<
        S::Future,
        Either<Ready<Result<S::Response, S::Error>>, Boxed<S::Response, S::Error>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let refused = |answer| Either::Right(Either::Left(ready(Ok(answer))));
        match check(&request) {
            Ok(()) => {}
            // The body is dropped unread in both cases.
            Err(GateRejection::NotACall) => return refused(not_a_call(&request, self.offered)),
            Err(GateRejection::Refused(refusal)) => {
                return refused(Status::from(&refusal).into_http());
            }
        }
        let arrived = CallTiming::now(request.headers());
        let deadline = match arrived.timeout {
            CallTimeout::Unset => None,
            _ if Contract::at(request.uri().path()).deadline == DeadlineRule::Method => None,
            CallTimeout::After(_) | CallTimeout::Malformed(_) => match arrived.deadline() {
                Ok(deadline) => deadline,
                Err(refusal) => return refused(Status::from(&refusal).into_http()),
            },
        };
        request.extensions_mut().insert(arrived);
        match deadline {
            None => Either::Left(self.inner.call(request)),
            Some(deadline) if deadline <= Instant::now() => refused(too_late()),
            Some(deadline) => {
                let answer = self.inner.call(request);
                Either::Right(Either::Right(Box::pin(async move {
                    let answer = tokio::time::timeout_at(deadline.into(), answer).await;
                    answer.unwrap_or_else(|_| Ok(too_late()))
                })))
            }
        }
    }
}

/// Creates the answer to a call whose deadline has passed.
fn too_late() -> Response<Body> {
    Status::from(&not_started()).into_http()
}

/// Why the gate does not let a request through.
enum GateRejection {
    /// The request is not a gRPC call, and is answered by HTTP.
    NotACall,
    /// The request is a gRPC call that the gate refuses.
    Refused(Refusal),
}

/// Reports whether a request is a call that the gate lets through, apart from its deadline.
pub(in crate::api) fn is_call<B>(request: &Request<B>) -> bool {
    check(request).is_ok()
}

/// Checks that a request is a gRPC call, and that its metadata is not too large.
fn check<B>(request: &Request<B>) -> Result<(), GateRejection> {
    if request.method() != Method::POST || !is_grpc(request.headers()) {
        return Err(GateRejection::NotACall);
    }
    check_metadata(request.uri(), request.headers()).map_err(GateRejection::Refused)
}

/// Reports whether a request has exactly one content type, which is that of gRPC with protobuf.
/// Case and parameters do not matter.
fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(given) = content_type(headers) else {
        return false;
    };
    if given == b"application/grpc" {
        return true;
    }
    let essence = essence(given);
    essence.eq_ignore_ascii_case(b"application/grpc")
        || essence.eq_ignore_ascii_case(b"application/grpc+proto")
}

/// Returns the content type of gRPC-Web that a request has, as its specification spells it; `None`
/// if it has another, several or none. Case and parameters do not matter.
pub(in crate::api) fn web_type(headers: &HeaderMap) -> Option<&'static str> {
    let essence = essence(content_type(headers)?);
    let mut all = WEB_TYPES.into_iter();
    all.find(|it| essence.eq_ignore_ascii_case(it.as_bytes()))
}

/// Returns the one content type of a request; `None` if there are several or none.
fn content_type(headers: &HeaderMap) -> Option<&[u8]> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    match (types.next(), types.next()) {
        (Some(given), None) => Some(given.as_bytes()),
        (_, _) => None,
    }
}

/// Removes the parameters of a content type.
fn essence(content_type: &[u8]) -> &[u8] {
    let essence = content_type.split(|byte| *byte == b';').next();
    essence.unwrap_or_default().trim_ascii()
}

/// Refuses metadata that is larger than any caller needs.
fn check_metadata(uri: &Uri, headers: &HeaderMap) -> Result<(), Refusal> {
    let fields = headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + FIELD);
    let path = uri.path_and_query().map_or(0, |it| it.as_str().len());
    let authority = uri.authority().map_or(0, |it| it.as_str().len());
    let size = fields.sum::<usize>() + path + authority;
    if size <= MAX_METADATA {
        return Ok(());
    }
    let largest = headers.iter().max_by_key(|(_, value)| value.len());
    let largest = largest.map_or("", |(name, _)| name.as_str());
    let message = format!(
        "the metadata of the call takes {size} bytes, of which the most may be {MAX_METADATA} ({} headers, each with 32 \
         bytes on top; the largest is {})",
        headers.len(),
        quote(largest)
    );
    Err(Refusal::new(Reason::MessageTooLarge, message)
        .with("asked", size)
        .with("allowed", MAX_METADATA))
}

/// Creates the answer that HTTP has for a request that is none of the calls that are `offered`: 405
/// or 415.
pub(in crate::api) fn not_a_call<B>(request: &Request<B>, offered: OfferedCalls) -> Response<Body> {
    match *request.method() {
        Method::POST => wrong_content_type(offered),
        ref method => wrong_method(method, offered),
    }
}

fn wrong_method(method: &Method, offered: OfferedCalls) -> Response<Body> {
    let how = match offered {
        OfferedCalls::Grpc => {
            "a call of gRPC is made with: POST, with the content type application/grpc, over HTTP/2"
        }
        OfferedCalls::GrpcWeb | OfferedCalls::Both => {
            "a call is made with: POST, with the content type application/grpc over HTTP/2, or application/grpc-web+proto over HTTP/1.1 or HTTP/2"
        }
    };
    let text = match *method {
        // The answer to `HEAD` has no body.
        Method::HEAD => String::new(),
        _ => format!("{} is not what {how}\n", quote(method.as_str())),
    };
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, text);
    let allowed = HeaderValue::from_static("POST");
    answer.headers_mut().insert(ALLOW, allowed);
    answer
}

fn wrong_content_type(offered: OfferedCalls) -> Response<Body> {
    let web = WEB_TYPES.join(", ");
    let (types, text) = match offered {
        OfferedCalls::Grpc => (
            GRPC_TYPES.to_owned(),
            format!(
                "the content type of a call of gRPC is one of: {GRPC_TYPES}; gRPC-Web and JSON are not offered here\n"
            ),
        ),
        OfferedCalls::GrpcWeb => {
            let text = format!(
                "the content type of a call of gRPC-Web is one of: {web}; gRPC itself needs HTTP/2 and a gRPC listener, and JSON is not offered here\n"
            );
            (web, text)
        }
        OfferedCalls::Both => {
            let types = format!("{GRPC_TYPES}, {web}");
            let text = format!(
                "the content type of a call of gRPC or gRPC-Web is one of: {types}; JSON is not offered here\n"
            );
            (types, text)
        }
    };
    let mut answer = plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    // All of the names are ASCII.
    if let Ok(accepted) = HeaderValue::try_from(types) {
        answer.headers_mut().insert(ACCEPT, accepted);
    }
    answer
}

/// Creates a plain-text answer for a client that does not speak gRPC.
pub(in crate::api) fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut answer = Response::new(Body::new(text));
    *answer.status_mut() = status;
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, text);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(types: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for content_type in types {
            headers.append(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        is_grpc(&headers)
    }

    #[test]
    fn content_types_of_calls_are_told_from_those_that_resemble_them() {
        for good in [
            "application/grpc",
            "Application/GRPC",
            "application/grpc+proto",
            "application/grpc;charset=utf-8",
            "application/grpc ; a=b",
            "application/grpc+PROTO; charset=utf-8",
        ] {
            assert!(with(&[good]), "{good}");
        }
        for bad in [
            "",
            "text/plain",
            "text/plain;application/grpc",
            "application/json",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=application/grpc",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc-web-text",
            "application/grpc+json",
            "application/grpc+",
            "application/grpcfoo",
            "application/grpc/",
            "application/grpc, text/plain",
        ] {
            assert!(!with(&[bad]), "{bad}");
        }
        assert!(!with(&[]));
        assert!(!with(&["application/grpc", "text/plain"]));
    }

    #[test]
    fn content_types_of_grpc_web_are_told_from_those_that_resemble_them() {
        let web = |types: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for content_type in types {
                headers.append(CONTENT_TYPE, HeaderValue::from_static(content_type));
            }
            web_type(&headers)
        };
        for (given, meant) in [
            ("application/grpc-web", "application/grpc-web"),
            ("Application/gRPC-Web+proto", "application/grpc-web+proto"),
            (
                "application/grpc-web-text; charset=utf-8",
                "application/grpc-web-text",
            ),
            (
                "application/grpc-web-text+PROTO",
                "application/grpc-web-text+proto",
            ),
        ] {
            assert_eq!(web(&[given]), Some(meant), "{given}");
        }
        for bad in [
            "application/grpc",
            "application/grpc-web+json",
            "application/grpc-webfoo",
            "application/grpc-web-text+",
            "text/plain; application/grpc-web",
        ] {
            assert_eq!(web(&[bad]), None, "{bad}");
        }
        assert_eq!(web(&[]), None);
        assert_eq!(web(&["application/grpc-web", "text/plain"]), None);
    }
}
