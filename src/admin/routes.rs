//! The paths of the admin listener.

use std::fmt::Write;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::routing::get;
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use tokio::runtime::Handle;

use super::AdminSources;
use super::page;
use super::plain_text::plain;
use super::readiness::Readiness;
use super::scrapes::{ScrapeError, Scrapes};
use crate::config::{Config, OpenPath};
use crate::metrics::CONTENT_TYPE as METRICS;
use crate::run::Tenant;

/// Reports whether everybody may read a path.
pub(super) fn is_open(path: &str, open: &[OpenPath]) -> bool {
    let path = match path {
        "/livez" => OpenPath::Livez,
        "/readyz" => OpenPath::Readyz,
        "/metrics" => OpenPath::Metrics,
        _ => return false,
    };
    open.contains(&path)
}

/// What the paths answer from.
pub(super) struct Routes {
    scrapes: Scrapes,
    readiness: Readiness,
    config: Arc<Config>,
    has_page: bool,
}

impl Routes {
    /// Creates the routes, which answer from `sources`. With `has_page`, those of the page are
    /// among them.
    pub(super) fn new(sources: AdminSources, beside: &Handle, has_page: bool) -> Self {
        Self {
            scrapes: Scrapes::new(sources.metrics),
            readiness: Readiness::new(sources.phase, sources.runner, beside.clone()),
            config: sources.config,
            has_page,
        }
    }

    /// Builds the router of all paths.
    pub(super) fn router(self) -> Router {
        let router = Router::new();
        let router = match self.has_page {
            true => page::add_routes(router).route("/page.json", get(page_settings)),
            false => router,
        };
        router
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .route("/debug/config", get(config))
            .fallback(nothing)
            .method_not_allowed_fallback(wrong_method)
            .with_state(Arc::new(self))
    }
}

/// Answers that the process answers.
async fn livez() -> Response<Body> {
    plain(StatusCode::OK, "ok")
}

/// Answers whether the daemon can take runs, with a line for each check.
async fn readyz(State(routes): State<Arc<Routes>>) -> Response<Body> {
    let mut text = String::new();
    let mut is_ready = true;
    for check in routes.readiness.checks().await {
        // Writing to a string does not fail.
        let _ = match check.failure {
            None => writeln!(text, "[+] {}: ok", check.name),
            Some(why) => writeln!(text, "[-] {}: {why}", check.name),
        };
        is_ready &= check.failure.is_none();
    }
    match is_ready {
        true => plain(StatusCode::OK, &format!("{text}ready")),
        false => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("{text}not ready")),
    }
}

/// Answers with all metrics, in the format that the client prefers. A caller that had to say who it
/// is gets the series of its own tenant.
async fn metrics(State(routes): State<Arc<Routes>>, request: Request) -> Response<Body> {
    let accepted = request.headers().get(ACCEPT);
    let accepted = accepted.and_then(|it| it.to_str().ok()).unwrap_or_default();
    let is_openmetrics = accepted.contains("application/openmetrics-text");
    let text = match request.extensions().get::<Arc<Tenant>>() {
        Some(tenant) => routes.scrapes.of_tenant(is_openmetrics, &tenant.name),
        None => routes.scrapes.all(is_openmetrics),
    };
    match text {
        Ok(text) => {
            let [openmetrics, older] = METRICS;
            let kind = if is_openmetrics { openmetrics } else { older };
            let mut answer = Response::new(Body::from(text));
            let kind = HeaderValue::from_static(kind);
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            answer
        }
        Err(ScrapeError::TooMany) => {
            const WHY: &str = "too many readers of metrics have not taken them yet";
            let mut answer = plain(StatusCode::SERVICE_UNAVAILABLE, WHY);
            let second = HeaderValue::from_static("1");
            answer.headers_mut().insert(RETRY_AFTER, second);
            answer
        }
        Err(ScrapeError::Failed(error)) => {
            tracing::error!(%error, "the metrics cannot be written");
            plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the metrics cannot be written",
            )
        }
    }
}

/// Answers with the settings in force, as TOML: all of them where there is one tenant, and else
/// those of the caller's own tenant.
async fn config(State(routes): State<Arc<Routes>>, request: Request) -> Response<Body> {
    let tenant = request.extensions().get::<Arc<Tenant>>();
    let name = tenant.map_or("", |tenant| &*tenant.name);
    match routes.config.shown_to(name) {
        Ok(text) => {
            let mut answer = plain(StatusCode::OK, text.trim_end());
            let toml = HeaderValue::from_static("application/toml; charset=utf-8");
            answer.headers_mut().insert(CONTENT_TYPE, toml);
            answer
        }
        Err(error) => {
            tracing::error!(%error, "the settings cannot be shown");
            plain(
                StatusCode::INTERNAL_SERVER_ERROR,
                "the settings cannot be shown",
            )
        }
    }
}

/// Answers with the settings that the page goes by, as JSON.
async fn page_settings(State(routes): State<Arc<Routes>>) -> Response<Body> {
    let config = &routes.config;
    let settings = serde_json::json!({
        "trace_url": config.admin.trace_url,
        "archive": config.runs.archive.0.is_some(),
    });
    let mut answer = plain(StatusCode::OK, &settings.to_string());
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(CONTENT_TYPE, json);
    answer
}

/// Answers a path that there is not with those that there are.
async fn nothing(State(routes): State<Arc<Routes>>) -> Response<Body> {
    const PATHS: &str = "/livez, /readyz, /metrics and /debug/config";
    let page = if routes.has_page {
        "/ (a page for browsers), "
    } else {
        ""
    };
    let text = format!("there is nothing at this path; there are {page}{PATHS}");
    plain(StatusCode::NOT_FOUND, &text)
}

/// Answers a method that the path does not take.
async fn wrong_method() -> Response<Body> {
    plain(
        StatusCode::METHOD_NOT_ALLOWED,
        "this path is only read, with GET or HEAD",
    )
}
