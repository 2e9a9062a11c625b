//! Serves HTTP/1.1 and HTTP/2 for tools and browsers, on a runtime of its own. Its connections have
//! the limits that those of the gRPC listeners have.

use std::convert::Infallible;
use std::error::Error;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as HttpBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tower::ServiceExt;
use tower_service::Service;

use super::listen::{
    BoundListeners, Connection, ConnectionCounters, EventLoop, EventLoops, ListenSettings,
    NewConnection,
};
use super::origin_guard::LocalAddress;
use super::serve::{
    CallExecutor, InContext, KeepAlive, MAX_HEADER_LIST, MAX_LOCAL_RESETS, MAX_PENDING_RESETS,
    MAX_STREAMS, limit_http1,
};

/// The settings of a web server.
#[derive(Clone, Debug)]
pub struct WebServerSettings {
    /// How connections are accepted.
    pub listen: ListenSettings,
    /// How it is found out that an HTTP/2 client is gone.
    pub keep_alive: KeepAlive,
    /// The runtime in whose context requests are answered: what they spawn belongs to it.
    pub beside: Handle,
}

/// Serves the connections of `bound` with `service` until `ending` changes, in the context of the
/// runtime that polls it. The requests in progress are then dropped.
pub async fn serve_web<S, B>(
    bound: BoundListeners,
    settings: WebServerSettings,
    counters: Arc<ConnectionCounters>,
    service: S,
    mut ending: watch::Receiver<bool>,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let (new, mut connections) = mpsc::unbounded_channel();
    let loops = EventLoops::new(vec![EventLoop::new(Handle::current(), new)]);
    let http = Arc::new(http_builder(&settings));
    let accepting = bound.accept(&settings.listen, &loops, &counters);
    let mut served = JoinSet::new();
    loop {
        let new = tokio::select! {
            _ = ending.changed() => break,
            new = connections.recv() => new,
            Some(_) = served.join_next() => continue,
        };
        let Some(new) = new else { break };
        let beside = settings.beside.clone();
        served.spawn(serve_one(Arc::clone(&http), new, service.clone(), beside));
    }
    drop(accepting);
}

fn http_builder(settings: &WebServerSettings) -> auto::Builder<CallExecutor> {
    let mut http = auto::Builder::new(CallExecutor(settings.beside.clone()));
    limit_http1(&mut http);
    http.http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .max_header_list_size(MAX_HEADER_LIST)
        .keep_alive_interval(settings.keep_alive.interval)
        .keep_alive_timeout(settings.keep_alive.timeout);
    http
}

/// Serves one connection to its end.
async fn serve_one<S, B>(
    http: Arc<auto::Builder<CallExecutor>>,
    new: NewConnection,
    service: S,
    beside: Handle,
) where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let connection = Connection::new(new);
    let (peer, local) = (connection.peer(), LocalAddress(connection.local_ip()));
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        request.extensions_mut().insert(local);
        // HTTP/1 has no executor: its requests are answered by the task of their connection.
        InContext {
            call: service.clone().oneshot(request),
            beside: beside.clone(),
        }
    });
    let ended = http
        .serve_connection(TokioIo::new(connection), service)
        .await;
    if let Err(error) = ended {
        tracing::debug!(error = &*error, "a connection of the admin listener ended");
    }
}
