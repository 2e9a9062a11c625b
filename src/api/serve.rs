//! HTTP/2 on accepted connections: the limits of one, and how all of them end.
//!
//! tonic's own server would put a layer around everything that answers a short `grpc-timeout` with a bare CANCELLED.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::transport::server::Connected;
use tower::ServiceExt;
use tower::util::Oneshot;
use tower_service::Service;

use super::input_calls::{CONNECTION_WINDOW, STREAM_WINDOW};
use super::listen::{Connection, Peer};

/// The limits of an HTTP/2 connection. h2's own defaults let one connection hold hundreds of megabytes.
const MAX_STREAMS: u32 = 100;
const MAX_PENDING_RESETS: usize = 20;
const MAX_LOCAL_RESETS: usize = 64;
/// Bytes of the headers of a call that are looked at. More than the gate lets through, so that it can say so: what is over
/// this gets HTTP's 431, and what is over four times this ends the connection.
const MAX_HEADER_LIST: u32 = 32 << 10;

/// How often an idle connection is pinged, and how long the reply may take.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// From the last thing that came to the ping.
    pub interval: Duration,
    /// From the ping to its reply.
    pub timeout: Duration,
}

/// Serves `connections` by `service` until there are no more or `shutdown` resolves; then waits for the calls that are on
/// their way, on connections that take no new ones. Where it is dropped, so are they.
pub async fn serve<S>(
    connections: impl Stream<Item = io::Result<Connection>>,
    service: S,
    keep_alive: KeepAlive,
    shutdown: impl Future<Output = ()>,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let http2 = http2(keep_alive);
    let (end, ending) = watch::channel(());
    let mut served = JoinSet::new();
    {
        let mut shutdown = pin!(shutdown);
        let mut connections = pin!(connections);
        loop {
            let connection = tokio::select! {
                () = &mut shutdown => break,
                connection = connections.next() => connection,
                Some(_) = served.join_next() => continue,
            };
            match connection {
                Some(Ok(connection)) => {
                    let calls = ConnectionService {
                        peer: connection.connect_info(),
                        service: service.clone(),
                    };
                    served.spawn(serve_one(http2.clone(), connection, calls, ending.clone()));
                }
                Some(Err(error)) => tracing::debug!(%error, "a connection failed"),
                None => break,
            }
        }
        // What accepts is told here, by being dropped, and takes no more.
    }
    // Nobody listens where no connection is left.
    let _ = end.send(());
    while served.join_next().await.is_some() {}
}

fn http2(keep_alive: KeepAlive) -> http2::Builder<TokioExecutor> {
    let mut http2 = http2::Builder::new(TokioExecutor::new());
    http2
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_LOCAL_RESETS)
        .max_header_list_size(MAX_HEADER_LIST)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(keep_alive.interval)
        .keep_alive_timeout(keep_alive.timeout);
    http2
}

/// Serves one connection to its end, which it is asked for when `ending` changes.
async fn serve_one<S>(
    http2: http2::Builder<TokioExecutor>,
    connection: Connection,
    service: ConnectionService<S>,
    mut ending: watch::Receiver<()>,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    let mut served = pin!(http2.serve_connection(TokioIo::new(connection), service));
    let ended = tokio::select! {
        ended = &mut served => ended,
        _ = ending.changed() => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(
            error = &error as &dyn std::error::Error,
            "a connection ended"
        );
    }
}

/// The calls of one connection.
struct ConnectionService<S> {
    peer: Peer,
    service: S,
}

impl<S> hyper::service::Service<Request<Incoming>> for ConnectionService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Oneshot<S, Request<Body>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer.clone());
        self.service.clone().oneshot(request.map(Body::new))
    }
}
