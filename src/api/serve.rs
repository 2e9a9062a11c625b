//! HTTP/2 on accepted connections: the event loops that serve them, the limits of one connection, and how all of them end.
//!
//! Each event loop is a thread with a runtime of its own, which takes its tasks first in, first out: it reads all that has
//! arrived, does all of it, and writes all answers. A runtime of several threads polls a connection right after each
//! answer, so that every answer is a write and a wake-up of its own. What a call does beside that, timers, files, object
//! stores and what goes on without it, belongs to the daemon's own runtime.
//!
//! tonic's own server would put a layer around everything that answers a short `grpc-timeout` with a bare CANCELLED.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use http::{Request, Response};
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tonic::body::Body;
use tower_service::Service;

use super::calls::Calls;
use super::input_calls::{CONNECTION_WINDOW, STREAM_WINDOW};
use super::listen::{Connection, EventLoop, EventLoops, NewConnection};

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

/// How connections are served.
#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// Event loops, at least one.
    pub threads: usize,
    /// How it is found out that a client is gone.
    pub keep_alive: KeepAlive,
    /// What each loop's thread does first.
    pub on_thread: fn(),
}

/// Event loops that serve what they are assigned. Where this is dropped, so is everything on them.
pub struct Server {
    event_loops: EventLoops,
    /// True once no new connection is taken; closed when this is dropped.
    ending: watch::Sender<bool>,
    /// Resolves when the loop of its place has ended.
    ended: Vec<oneshot::Receiver<()>>,
}

impl Server {
    /// Starts event loops, on which `calls` are answered. In the context of the runtime that does what calls do
    /// beside that.
    ///
    /// # Errors
    /// Where the host refuses a thread or its descriptors.
    pub fn start<S>(settings: &ServerSettings, calls: &Calls<S>) -> io::Result<Self>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
        S: Clone + Send + Sync + 'static,
        S::Future: Send + 'static,
    {
        let (ending, is_ending) = watch::channel(false);
        let http2 = http2(settings.keep_alive);
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
                http2.clone(),
                Arc::new(calls.clone()),
                is_ending.clone(),
            );
            let on_thread = settings.on_thread;
            thread::Builder::new()
                .name(format!("serve-{i}"))
                .spawn(move || {
                    on_thread();
                    run(&runtime, serving);
                    // All tasks are dropped with it.
                    drop(runtime);
                    // Nobody listens where the server was dropped.
                    let _ = end.send(());
                })?;
        }
        Ok(Self {
            event_loops: EventLoops::new(loops),
            ending,
            ended,
        })
    }

    /// What assigns connections to the loops.
    pub fn event_loops(&self) -> &EventLoops {
        &self.event_loops
    }

    /// Serves until `shutdown` resolves; then waits for the calls that are on their way, on connections that take no new
    /// ones.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        shutdown.await;
        let Self { ending, ended, .. } = self;
        ending.send_replace(true);
        for ended in ended {
            // An error: its thread is gone, and all that it served with it.
            let _ = ended.await;
        }
    }
}

/// Executes an event loop, on which short guests may begin.
fn run(runtime: &Runtime, serving: impl Future<Output = ()>) {
    crate::sandbox::begin_guests_here();
    runtime.block_on(serving);
}

/// Serves the connections of one event loop.
async fn serve<S>(
    mut connections: mpsc::UnboundedReceiver<NewConnection>,
    http2: http2::Builder<CallExecutor>,
    calls: Arc<Calls<S>>,
    mut ending: watch::Receiver<bool>,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
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
        served.spawn(serve_one(http2.clone(), connection, calls, ending.clone()));
    }
    // Those that come too late are closed.
    drop(connections);
    let all = async { while served.join_next().await.is_some() {} };
    tokio::select! {
        () = all => {}
        // Closed: the server was dropped.
        Err(_) = ending.changed() => {}
    }
}

fn http2(keep_alive: KeepAlive) -> http2::Builder<CallExecutor> {
    let mut http2 = http2::Builder::new(CallExecutor(Handle::current()));
    http2
        .timer(TokioTimer::new())
        // gRPC has no use for the date of an answer.
        .auto_date_header(false)
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

/// Executes calls as tasks of the event loop that they came by, in the context of another runtime: what they spawn, and
/// the timers, sockets and blocking work that they ask for, are that one's.
#[derive(Clone)]
struct CallExecutor(Handle);

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
    /// A call that is polled in the context of another runtime than the one whose task it is.
    struct InContext<F> {
        #[pin]
        call: F,
        beside: Handle,
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

/// Serves one connection to its end, which it is asked for when `ending` changes.
async fn serve_one<S>(
    http2: http2::Builder<CallExecutor>,
    connection: Connection,
    calls: Arc<Calls<S>>,
    mut ending: watch::Receiver<bool>,
) where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S: Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    let peer = Arc::new(connection.peer());
    let service = service_fn(move |request| {
        // In a box: the task of a stream is moved several times before it is where it stays.
        Box::pin(Arc::clone(&calls).answer(Arc::clone(&peer), request))
    });
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
