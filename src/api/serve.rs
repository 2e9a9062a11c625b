//! Serves HTTP on accepted connections: runs the event loops, limits each connection, and shuts all
//! of them down. gRPC is spoken by HTTP/2. Where gRPC-Web is served too, connections may also speak
//! HTTP/1.1.
//!
//! Each event loop is a thread with a runtime of its own, which takes its tasks first in, first
//! out: it reads all that has arrived, does all of it, and writes all answers. A runtime of several
//! threads polls a connection right after each answer, so that every answer is a write and a
//! wake-up of its own. What a call does besides (timers, files, object stores, and what goes on
//! without it) belongs to the daemon's own runtime.
//!
//! tonic's own server would put a layer around everything, which answers a short `grpc-timeout`
//! with a bare `CANCELLED`.

use std::error::Error;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use futures_util::TryFutureExt;
use futures_util::future::Either;
use http::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use pin_project_lite::pin_project;
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::client_streaming_calls::{CONNECTION_WINDOW, STREAM_WINDOW};
use super::dispatch::{CallDispatcher, CallService};
use super::layers::response_body::AnyAnswerBody;
use super::listen::{Connection, EventLoop, EventLoops, NewConnection};
use super::origin_guard::LocalAddress;
use super::web_gate::WebGate;

/// The most streams that a connection may have open at once. This and the limits below are explicit
/// because h2's own defaults let one connection hold hundreds of megabytes.
pub(super) const MAX_STREAMS: u32 = 100;
/// The most streams that the client has reset and that were not accepted yet. With more, the
/// connection is closed.
pub(super) const MAX_PENDING_RESETS: usize = 20;
/// The most frames of the client that were answered by resetting their stream. With more, the
/// connection is closed.
///
/// An honest client may come close to this: one whose calls are all refused at once learns of it
/// only after it has sent all that the connection's window takes, in frames of 16 KiB.
pub(super) const MAX_LOCAL_RESETS: usize = 1024;
const _: () =
    assert!(MAX_LOCAL_RESETS > CONNECTION_WINDOW as usize / (16 << 10) + MAX_STREAMS as usize);
/// The most bytes of a call's headers that are looked at. This is more than the gate lets through,
/// so that the gate can say what is wrong. Larger headers get HTTP's 431, and those over four times
/// this end the connection.
pub(super) const MAX_HEADER_LIST: u32 = 32 << 10;
/// The most bytes of the head of an HTTP/1 request that are buffered.
const MAX_HTTP1_HEAD: usize = 16 << 10;
/// How long an HTTP/1 client may take for the head of its next request, and so how long an idle
/// connection is kept.
const HTTP1_HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// HTTP/2 keepalive: how often an idle connection is pinged, and how long the reply may take before
/// the connection is closed.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// The time from the last data that arrived to the ping.
    pub interval: Duration,
    /// How long the reply to a ping may take.
    pub timeout: Duration,
}

/// The settings of the server.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// The number of event loops, each on a thread of its own; 0 counts as 1.
    pub threads: usize,
    /// The keepalive settings, by which it is found out that a client is gone.
    pub keep_alive: KeepAlive,
    /// The function that each event loop's thread calls first.
    pub thread_init: fn(),
}

/// The event loops, which serve the connections that they are assigned. Dropping the server ends
/// everything on them.
pub struct Server {
    event_loops: EventLoops,
    /// True once no new connections are taken; closed when this is dropped.
    ending: watch::Sender<bool>,
    /// For each event loop, a receiver that resolves when the loop has ended.
    ended: Vec<oneshot::Receiver<()>>,
}

impl Server {
    /// Starts the event loops, on which `calls` are answered, and by `web` those of gRPC-Web where
    /// they are served. It has to be called in the context of the runtime that does what calls do
    /// besides.
    ///
    /// # Errors
    /// If the host refuses a thread or its descriptors.
    pub fn start<S>(
        settings: &ServerSettings,
        calls: &CallDispatcher<S>,
        web: Option<&WebGate<S>>,
    ) -> io::Result<Self>
    where
        S: CallService,
    {
        let (ending, is_ending) = watch::channel(false);
        let protocol = ServedProtocol::new(settings.keep_alive, web);
        let (mut loops, mut ended) = (Vec::new(), Vec::new());
        for i in 0..settings.threads.max(1) {
            let runtime = runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let (new, connections) = mpsc::unbounded_channel();
            loops.push(EventLoop::new(runtime.handle().clone(), new));
            let (end, has_ended) = oneshot::channel();
            ended.push(has_ended);
            let serving = serve(
                connections,
                protocol.clone(),
                Arc::new(calls.clone()),
                is_ending.clone(),
            );
            let on_thread = settings.thread_init;
            thread::Builder::new()
                .name(format!("serve-{i}"))
                .spawn(move || {
                    on_thread();
                    run(&runtime, serving);
                    // Dropping the runtime drops all of its tasks.
                    drop(runtime);
                    // Nobody listens if the server was dropped.
                    let _ = end.send(());
                })?;
        }
        Ok(Self {
            event_loops: EventLoops::new(loops),
            ending,
            ended,
        })
    }

    /// Returns the event loops, for the listeners that assign connections to them.
    pub fn event_loops(&self) -> &EventLoops {
        &self.event_loops
    }

    /// Serves until `shutdown` resolves. Then waits for the calls in progress, on connections that
    /// take no new ones.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        shutdown.await;
        let Self { ending, ended, .. } = self;
        ending.send_replace(true);
        for ended in ended {
            // An error means that the loop's thread is gone, and all that it served with it.
            let _ = ended.await;
        }
    }
}

/// Executes an event loop on this thread, on which short guests may begin.
fn run(runtime: &Runtime, serving: impl Future<Output = ()>) {
    crate::sandbox::allow_inline_guests();
    runtime.block_on(serving);
}

/// Serves the connections of one event loop, until `ending` changes and all of them have ended.
async fn serve<S>(
    mut connections: mpsc::UnboundedReceiver<NewConnection>,
    protocol: ServedProtocol<S>,
    calls: Arc<CallDispatcher<S>>,
    mut ending: watch::Receiver<bool>,
) where
    S: CallService,
{
    let mut served = JoinSet::new();
    loop {
        let new = tokio::select! {
            _ = ending.changed() => break,
            new = connections.recv() => new,
            Some(_) = served.join_next() => continue,
        };
        let Some(new) = new else { break };
        let (connection, calls) = (Connection::new(new), Arc::clone(&calls));
        let ending = ending.clone();
        match &protocol {
            ServedProtocol::Grpc(http2) => {
                served.spawn(serve_grpc(http2.clone(), connection, calls, ending));
            }
            ServedProtocol::GrpcAndWeb(server) => {
                served.spawn(Arc::clone(server).serve_one(connection, calls, ending));
            }
        }
    }
    // Connections that come too late are closed.
    drop(connections);
    let all = async { while served.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        // The channel is closed, because the server was dropped.
        Err(_) = ending.changed() => {}
    }
}

/// What is spoken on the connections of the event loops, and how.
enum ServedProtocol<S> {
    /// gRPC alone, by HTTP/2.
    Grpc(http2::Builder<CallExecutor>),
    /// gRPC by HTTP/2, and gRPC-Web by HTTP/1.1 and HTTP/2.
    GrpcAndWeb(Arc<WebConnectionServer<S>>),
}

impl<S> Clone for ServedProtocol<S> {
    fn clone(&self) -> Self {
        match self {
            Self::Grpc(http2) => Self::Grpc(http2.clone()),
            Self::GrpcAndWeb(server) => Self::GrpcAndWeb(Arc::clone(server)),
        }
    }
}

impl<S: CallService> ServedProtocol<S> {
    /// Creates the protocol of event loops on which requests of browsers are answered by `web`.
    fn new(keep_alive: KeepAlive, web: Option<&WebGate<S>>) -> Self {
        match web {
            None => Self::Grpc(http2_builder(keep_alive)),
            Some(web) => Self::GrpcAndWeb(Arc::new(WebConnectionServer {
                http: http_builder(keep_alive),
                web: web.clone(),
                beside: Handle::current(),
            })),
        }
    }
}

/// Limits HTTP/2 as spoken on each connection. The builders of hyper have the same methods, but no
/// trait with them.
macro_rules! limit_http2 {
    ($http2:expr, $keep_alive:expr) => {
        $http2
            .timer(TokioTimer::new())
            // gRPC has no use for the date of an answer.
            .auto_date_header(false)
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_local_error_reset_streams(MAX_LOCAL_RESETS)
            .max_header_list_size(MAX_HEADER_LIST)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .keep_alive_interval($keep_alive.interval)
            .keep_alive_timeout($keep_alive.timeout)
    };
}

fn http2_builder(keep_alive: KeepAlive) -> http2::Builder<CallExecutor> {
    let mut http2 = http2::Builder::new(CallExecutor(Handle::current()));
    limit_http2!(http2, keep_alive);
    http2
}

fn http_builder(keep_alive: KeepAlive) -> auto::Builder<CallExecutor> {
    let mut http = auto::Builder::new(CallExecutor(Handle::current()));
    limit_http2!(http.http2(), keep_alive);
    limit_http1(&mut http);
    http
}

/// Limits HTTP/1 as spoken on each connection.
pub(super) fn limit_http1(http: &mut auto::Builder<CallExecutor>) {
    http.http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HTTP1_HEAD_TIMEOUT)
        .max_buf_size(MAX_HTTP1_HEAD);
}

/// An executor that runs calls as tasks of the event loop that they came by, but in the context of
/// another runtime. What they spawn belongs to that runtime, and so do the timers, sockets and
/// blocking work that they ask for.
#[derive(Clone)]
pub(super) struct CallExecutor(pub(super) Handle);

impl<F> Executor<F> for CallExecutor
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, call: F) {
        let beside = self.0.clone();
        #[expect(
            clippy::disallowed_methods,
            reason = "ends with its stream, which ends with its connection, or with the event loop"
        )]
        tokio::spawn(InContext { call, beside });
    }
}

pin_project! {
    /// A call that is a task of one runtime and is polled in the context of another.
    pub(super) struct InContext<F> {
        #[pin]
        pub(super) call: F,
        pub(super) beside: Handle,
    }
}

impl<F: Future> Future for InContext<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let _beside = this.beside.enter();
        this.call.poll(cx)
    }
}

/// Serves gRPC on one connection to its end. When `ending` changes, the connection takes no new
/// calls and ends after those in progress.
async fn serve_grpc<S>(
    http2: http2::Builder<CallExecutor>,
    connection: Connection,
    calls: Arc<CallDispatcher<S>>,
    ending: watch::Receiver<bool>,
) where
    S: CallService,
{
    let peer = Arc::new(connection.peer());
    let service = service_fn(move |request| {
        // Boxed, because the task of a stream is moved several times before it is where it stays.
        Box::pin(Arc::clone(&calls).answer(Arc::clone(&peer), request))
    });
    let served = http2.serve_connection(TokioIo::new(connection), service);
    until_ended(served, ending, |served| served.graceful_shutdown()).await;
}

/// A server of connections on which gRPC and gRPC-Web are spoken.
struct WebConnectionServer<S> {
    http: auto::Builder<CallExecutor>,
    web: WebGate<S>,
    /// The runtime in whose context requests of HTTP/1 are answered. They are no tasks of their
    /// own, but parts of that of their connection.
    beside: Handle,
}

impl<S: CallService> WebConnectionServer<S> {
    /// Serves one connection as [`serve_grpc`] does, and what browsers send on it.
    async fn serve_one(
        self: Arc<Self>,
        connection: Connection,
        calls: Arc<CallDispatcher<S>>,
        ending: watch::Receiver<bool>,
    ) {
        let local = LocalAddress(connection.local_ip());
        let peer = Arc::new(connection.peer());
        let server = Arc::clone(&self);
        let service = service_fn(move |request: Request<Incoming>| {
            let peer = Arc::clone(&peer);
            if WebGate::<S>::takes(&request) {
                let call = Box::pin(server.web.clone().answer(peer, local, request));
                let beside = server.beside.clone();
                let answered =
                    async { Ok(InContext { call, beside }.await.map(AnyAnswerBody::Web)) };
                return Either::Right(Box::pin(answered));
            }
            let answered = Arc::clone(&calls).answer(peer, request);
            Either::Left(Box::pin(answered.map_ok(|it| it.map(AnyAnswerBody::Grpc))))
        });
        let served = self
            .http
            .serve_connection(TokioIo::new(connection), service);
        until_ended(served, ending, |served| served.graceful_shutdown()).await;
    }
}

/// Drives a connection to its end. When `ending` changes, `shut_down` has it take no new requests.
async fn until_ended<C, E>(
    served: C,
    mut ending: watch::Receiver<bool>,
    shut_down: impl FnOnce(Pin<&mut C>),
) where
    C: Future<Output = Result<(), E>>,
    E: Into<Box<dyn Error + Send + Sync>>,
{
    let mut served = pin!(served);
    let ended = tokio::select! {
        ended = &mut served => ended,
        _ = ending.changed() => {
            shut_down(served.as_mut());
            served.await
        }
    };
    if let Err(error) = ended {
        let error: Box<dyn Error + Send + Sync> = error.into();
        tracing::debug!(error = &*error as &dyn Error, "a connection ended");
    }
}
