//! Serves HTTP/2 on accepted connections: runs the event loops, limits each connection, and shuts
//! all of them down.
//!
//! Each event loop is a thread with a runtime of its own, which takes its tasks first in, first
//! out: it reads all that has arrived, does all of it, and writes all answers. A runtime of several
//! threads polls a connection right after each answer, so that every answer is a write and a
//! wake-up of its own. What a call does besides (timers, files, object stores, and what goes on
//! without it) belongs to the daemon's own runtime.
//!
//! tonic's own server would put a layer around everything, which answers a short `grpc-timeout`
//! with a bare `CANCELLED`.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pin_project_lite::pin_project;
use tokio::runtime::{self, Handle, Runtime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::client_streaming_calls::{CONNECTION_WINDOW, STREAM_WINDOW};
use super::dispatch::{CallDispatcher, CallService};
use super::listen::{Connection, EventLoop, EventLoops, NewConnection};

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
    /// Starts the event loops, on which `calls` are answered. It has to be called in the context of
    /// the runtime that does what calls do besides.
    ///
    /// # Errors
    /// If the host refuses a thread or its descriptors.
    pub fn start<S>(settings: &ServerSettings, calls: &CallDispatcher<S>) -> io::Result<Self>
    where
        S: CallService,
    {
        let (ending, is_ending) = watch::channel(false);
        let http2 = http2_builder(settings.keep_alive);
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
    http2: http2::Builder<CallExecutor>,
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
        served.spawn(serve_one(http2.clone(), connection, calls, ending.clone()));
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

fn http2_builder(keep_alive: KeepAlive) -> http2::Builder<CallExecutor> {
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

/// Serves one connection to its end. When `ending` changes, the connection takes no new calls and
/// ends after those in progress.
async fn serve_one<S>(
    http2: http2::Builder<CallExecutor>,
    connection: Connection,
    calls: Arc<CallDispatcher<S>>,
    mut ending: watch::Receiver<bool>,
) where
    S: CallService,
{
    let peer = Arc::new(connection.peer());
    let service = service_fn(move |request| {
        // Boxed, because the task of a stream is moved several times before it is where it stays.
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
