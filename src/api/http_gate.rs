//! What is no gRPC is answered here, as HTTP answers it, before anybody asks who calls, and before anything is read, charged
//! or run: a form on somebody else's page can send a browser here, and a browser says what it sends.
//!
//! The gate also looks at what every call has, whatever its method: the size of its metadata, and its deadline.

use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::future::Either;
use http::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::call_deadline::{Arrived, CallTimeout};
use super::status;
use crate::refusal::{Reason, Refusal, quote};
use crate::run::not_started;

/// The content types of a call, in the words of an answer to any other.
const CALLS: &str = "application/grpc, application/grpc+proto";
/// Bytes of a call's metadata, counted as HTTP/2 does, with the method's path and the authority.
const MAX_METADATA: usize = 8 << 10;
/// What HTTP/2 counts for each field beside its bytes.
const FIELD: usize = 32;

/// Lets calls of gRPC through to the layers inside, and answers everything else.
#[derive(Clone, Copy, Debug)]
pub struct HttpGate;

impl<S> Layer<S> for HttpGate {
    type Service = Gated<S>;

    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner }
    }
}

/// A service behind the gate.
#[derive(Clone, Debug)]
pub struct Gated<S> {
    inner: S,
}

type Boxed<R, E> = Pin<Box<dyn Future<Output = Result<R, E>> + Send>>;

impl<S> Service<Request<Body>> for Gated<S>
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
            // Its body is dropped unread, in either case.
            Err(NoCall::Http(answer)) => return refused(answer),
            Err(NoCall::Refused(refusal)) => return refused(status::from(&refusal).into_http()),
        }
        let arrived = Arrived::now(request.headers());
        let deadline = match arrived.timeout {
            CallTimeout::Unset => None,
            _ if keeps_its_deadline(request.uri().path()) => None,
            CallTimeout::After(_) | CallTimeout::Malformed(_) => match arrived.deadline() {
                Ok(deadline) => deadline,
                Err(refusal) => return refused(status::from(&refusal).into_http()),
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

/// Whether a method looks at its caller's deadline by itself, since it has more to say of it than that it passed: a run is
/// recorded, and goes on where it is detached.
fn keeps_its_deadline(path: &str) -> bool {
    matches!(
        path,
        "/ringfence.v1.SandboxService/Run"
            | "/ringfence.v1.SandboxService/RunStream"
            | "/ringfence.v1.SandboxService/LoadModule"
            | "/ringfence.v1.RunService/Interact"
            | "/ringfence.v1.RunService/CancelRun"
    ) || path.starts_with("/ringfence.v1.ModuleService/")
}

fn too_late() -> Response<Body> {
    status::from(&not_started()).into_http()
}

/// Why a request goes no further.
enum NoCall {
    /// It is none of gRPC; what HTTP says of that.
    Http(Response<Body>),
    /// It is one, and a bad one.
    Refused(Refusal),
}

/// Whether the gate lets a request through.
pub(super) fn is_call<B>(request: &Request<B>) -> bool {
    check(request).is_ok()
}

/// Looks whether a request is a call.
#[expect(
    clippy::result_large_err,
    reason = "the error is the answer, which is made once and handed on"
)]
fn check<B>(request: &Request<B>) -> Result<(), NoCall> {
    if request.method() != Method::POST {
        return Err(NoCall::Http(wrong_method(request.method())));
    }
    if !is_grpc(request.headers()) {
        return Err(NoCall::Http(wrong_content_type()));
    }
    check_metadata(request.uri(), request.headers()).map_err(NoCall::Refused)
}

/// Whether the one content type that is given is that of gRPC with protobuf in it, whatever its case and parameters.
fn is_grpc(headers: &HeaderMap) -> bool {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (Some(given), None) = (types.next(), types.next()) else {
        return false;
    };
    let given = given.as_bytes();
    if given == b"application/grpc" {
        return true;
    }
    let essence = given.split(|byte| *byte == b';').next();
    let essence = essence.unwrap_or_default().trim_ascii();
    essence.eq_ignore_ascii_case(b"application/grpc")
        || essence.eq_ignore_ascii_case(b"application/grpc+proto")
}

/// Refuses metadata that is larger than what any caller needs.
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

fn wrong_method(method: &Method) -> Response<Body> {
    let text = format!(
        "{} is not what a call of gRPC is made with: POST, with the content type application/grpc, over HTTP/2\n",
        quote(method.as_str())
    );
    let text = match *method {
        // Its answer has no body.
        Method::HEAD => String::new(),
        _ => text,
    };
    let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, text);
    let allowed = HeaderValue::from_static("POST");
    answer.headers_mut().insert(ALLOW, allowed);
    answer
}

fn wrong_content_type() -> Response<Body> {
    let text = format!(
        "the content type of a call of gRPC is one of: {CALLS}; gRPC-Web and JSON are not offered here\n"
    );
    let mut answer = plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, text);
    let accepted = HeaderValue::from_static(CALLS);
    answer.headers_mut().insert(ACCEPT, accepted);
    answer
}

/// An answer for whoever does not speak gRPC.
fn plain(status: StatusCode, text: String) -> Response<Body> {
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
}
