//! The gate in front of every path of the admin listener.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::Body;
use http::header::{CONTENT_LENGTH, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response, StatusCode};
use hyper::body::Incoming;
use tower::ServiceExt;
use tower_service::Service;

use super::page;
use super::plain_text::plain;
use super::routes::{self, Routes};
use super::{AdminSettings, AdminSources, GrpcWebHandler};
use crate::api::{Authentication, LocalAddress, OriginGuard, is_grpc_web};
use crate::config::OpenPath;
use crate::model::refusal::{Reason, Refusal};

/// The service that answers the requests of the admin listener.
#[derive(Clone)]
pub(super) struct AdminService(Arc<Inner>);

struct Inner {
    guard: OriginGuard,
    open: Vec<OpenPath>,
    /// Whether those who come by TCP can read nothing but the open paths.
    is_open_only: bool,
    has_page: bool,
    authentication: Authentication,
    router: Router,
    grpc_web: GrpcWebHandler,
}

impl AdminService {
    /// Creates the service, which answers from `sources`. With `is_open_only`, whoever comes by TCP
    /// can read the open paths and nothing else.
    pub(super) fn new(
        guard: OriginGuard,
        settings: &AdminSettings,
        is_open_only: bool,
        sources: AdminSources,
    ) -> Self {
        Self(Arc::new(Inner {
            guard,
            open: settings.open.clone(),
            is_open_only,
            has_page: settings.has_page,
            authentication: sources.authentication.clone(),
            grpc_web: Arc::clone(&sources.grpc_web),
            router: Routes::new(sources, &settings.server.beside, settings.has_page).router(),
        }))
    }
}

impl Inner {
    /// Answers a request that is addressed to this host, once its caller is known where that is
    /// needed.
    async fn admit(&self, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let is_open = routes::is_open(path, &self.open);
        // The page's files hold no data, and its user cannot show a credential before it is there.
        // Where all that it would ask for is refused, it is refused too: a reason helps more than a
        // page does that asks for a token which nobody can have.
        let is_page = self.has_page && page::has_file(path);
        if self.is_open_only && !is_open && is_tcp(&request) {
            const WHY: &str = "only the paths in admin.open can be read here, because other hosts reach this listener and nothing authenticates callers: configure [auth] or tls.client_ca (server.insecure_listen = true allows it without either)";
            return plain(StatusCode::FORBIDDEN, WHY);
        }
        if is_grpc_web(&request) {
            // The call says by itself who makes it, and is refused in its own words.
            return (self.grpc_web)(request).await.map(Body::new);
        }
        let (mut head, body) = request.into_parts();
        if !is_open && !is_page {
            match self.authentication.authenticate_http(&head).await {
                Ok(tenant) => {
                    head.extensions.insert(tenant);
                }
                Err(refusal) => return refused(&refusal),
            }
        }
        let request = Request::from_parts(head, Body::new(body));
        // A router cannot fail.
        let answered = self.router.clone().oneshot(request).await;
        answered.unwrap_or_else(|never: Infallible| match never {})
    }
}

/// Reports whether a request came by TCP, rather than by a unix socket.
fn is_tcp(request: &Request<Incoming>) -> bool {
    let local = request.extensions().get::<LocalAddress>();
    local.is_none_or(|LocalAddress(ip)| ip.is_some())
}

/// Creates the answer to a caller that is not let in.
fn refused(refusal: &Refusal) -> Response<Body> {
    let reason = refusal.reason();
    let asks = reason == Reason::CredentialsInvalid;
    let status = if asks {
        StatusCode::UNAUTHORIZED
    } else if reason == Reason::Forbidden {
        StatusCode::FORBIDDEN
    } else if reason == Reason::RuntimeUnavailable {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        // Authentication has no other reason but a failure of the daemon.
        StatusCode::INTERNAL_SERVER_ERROR
    };
    let mut answer = plain(status, &refusal.message());
    if asks {
        let bearer = HeaderValue::from_static("Bearer");
        answer.headers_mut().insert(WWW_AUTHENTICATE, bearer);
    }
    answer
}

impl Service<Request<Incoming>> for AdminService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let inner = Arc::clone(&self.0);
        Box::pin(async move {
            let admit = |request| inner.admit(request);
            let mut answer = inner.guard.answer(request, plain, admit).await;
            if answer.status() == StatusCode::NOT_MODIFIED {
                // The router counts the bytes that it sends, and not those that the client has.
                answer.headers_mut().remove(CONTENT_LENGTH);
            }
            Ok(answer)
        })
    }
}
