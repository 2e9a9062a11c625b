//! What browsers are told with each answer of a listener that they can reach: what they may not do
//! with it (guess its type, show it in a frame, keep it), and which pages of other origins may read
//! it (CORS).

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, CACHE_CONTROL, CONTENT_SECURITY_POLICY,
    ORIGIN, REFERRER_POLICY, VARY, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};

use super::origin_guard::{OriginGuard, RequestOrigin};

/// The headers of every answer that does not set them itself, as those of the admin listener's page
/// do: it is not guessed what the answer is, nor is it shown in a frame, stored, or read by pages
/// of other origins.
const ALWAYS: [(HeaderName, HeaderValue); 5] = [
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    ),
    (CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];
/// The methods that pages of an allowed origin may use.
const CORS_METHODS: HeaderValue = HeaderValue::from_static("GET, POST");
/// The headers that pages of an allowed origin may send.
const CORS_HEADERS: HeaderValue =
    HeaderValue::from_static("authorization, content-type, grpc-timeout, x-grpc-web, x-user-agent");
/// The headers of answers that pages of an allowed origin may read.
const CORS_EXPOSED: HeaderValue = HeaderValue::from_static(
    "grpc-status, grpc-message, grpc-status-details-bin, ringfence-run-id",
);
/// How long, in seconds, a browser may remember what it was allowed.
const CORS_MAX_AGE: HeaderValue = HeaderValue::from_static("600");

impl OriginGuard {
    /// Answers a request with `answer`, if no page of a foreign origin may have made it, and else
    /// with 403 and the sentence that `plain` makes an answer of.
    pub async fn answer<B, R, F>(
        &self,
        request: Request<B>,
        plain: fn(StatusCode, &str) -> Response<R>,
        answer: impl FnOnce(Request<B>) -> F,
    ) -> Response<R>
    where
        R: Default,
        F: Future<Output = Response<R>>,
    {
        let mut answer = match self.check(&request) {
            Err(why) => plain(StatusCode::FORBIDDEN, &why),
            Ok(RequestOrigin::Own) => answer(request).await,
            Ok(RequestOrigin::Allowed(origin)) => shared_with(origin, answer(request).await),
            Ok(RequestOrigin::Preflight(origin)) => shared_with(origin, preflight()),
        };
        let headers = answer.headers_mut();
        for (name, value) in ALWAYS {
            headers.entry(name).or_insert(value);
        }
        answer
    }
}

/// Lets pages of `origin` read an answer.
fn shared_with<R>(origin: HeaderValue, mut answer: Response<R>) -> Response<R> {
    let headers = answer.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, CORS_EXPOSED);
    headers.append(VARY, HeaderValue::from(ORIGIN));
    answer
}

/// Creates the answer to a page that asks whether it may make a request.
fn preflight<R: Default>() -> Response<R> {
    let mut answer = Response::new(R::default());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    headers.insert(ACCESS_CONTROL_ALLOW_METHODS, CORS_METHODS);
    headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, CORS_HEADERS);
    headers.insert(ACCESS_CONTROL_MAX_AGE, CORS_MAX_AGE);
    answer
}
