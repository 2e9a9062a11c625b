//! Reaching a daemon: one that listens somewhere, or one of this process's own.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;
use tower::service_fn;

use super::address::{DEFAULT_SERVER, ServerAddress};
use super::credentials::{Bearer, Credentials};
use super::dial::Dialer;
use super::{Failure, PROGRAM};
use crate::api::proto::module_service_client::ModuleServiceClient;
use crate::api::proto::run_service_client::RunServiceClient;
use crate::api::proto::sandbox_service_client::SandboxServiceClient;
use crate::app;
use crate::config::{Overrides, SettingValue};
use crate::refusal::quote;

/// What the client is ready to take at once; the default halves the rate of a stream.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_WAIT: Duration = Duration::from_secs(10);

/// A client of a daemon.
pub(super) type Client = SandboxServiceClient<Link>;

/// A connection, and what is shown over it.
pub(super) type Link = InterceptedService<Channel, Bearer>;

/// Which daemon is asked, and what is shown to it.
#[derive(Clone, Debug, Args)]
pub(super) struct DaemonArgs {
    /// The daemon, at "host:port", "https://host:port" or "unix:/path"
    #[arg(
        long,
        value_name = "ADDR",
        env = "RINGFENCE_SERVER",
        default_value = DEFAULT_SERVER,
        global = true
    )]
    server: String,
    #[command(flatten)]
    credentials: Credentials,
}

impl fmt::Display for DaemonArgs {
    /// Where it is, as it was given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.server.trim())
    }
}

/// Connects to `daemon`.
pub(super) async fn connect(daemon: &DaemonArgs) -> Result<Client, Failure> {
    channel(&daemon.server, &daemon.credentials)
        .await
        .map(sandbox)
}

/// Connects to the runs of `daemon`.
pub(super) async fn connect_runs(daemon: &DaemonArgs) -> Result<RunServiceClient<Link>, Failure> {
    channel(&daemon.server, &daemon.credentials).await.map(runs)
}

/// Connects to the modules of `daemon`.
pub(super) async fn connect_modules(
    daemon: &DaemonArgs,
) -> Result<ModuleServiceClient<Link>, Failure> {
    let channel = channel(&daemon.server, &daemon.credentials).await?;
    Ok(ModuleServiceClient::new(channel).max_decoding_message_size(usize::MAX))
}

/// A connection to the daemon at `server`, which has greeted as one of HTTP/2 does.
///
/// # Errors
/// What is wrong with the address or the credentials, and why nobody was reached that speaks as this does.
pub(super) async fn channel(server: &str, credentials: &Credentials) -> Result<Link, Failure> {
    let server = ServerAddress::parse(server)?;
    let bearer = credentials.bearer()?;
    let tls = credentials.tls(&server)?;
    let name = credentials.server_name()?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let authority = server.authority(name.as_deref());
    let unreachable =
        |why: String| Failure::unreachable(format!("cannot reach the daemon at {server}: {why}"));
    let told = |error: http::uri::InvalidUri| unreachable(error.to_string());
    let origin: Uri = format!("{scheme}://{authority}").parse().map_err(told)?;
    let dialer = Arc::new(Dialer {
        server: server.clone(),
        tls,
    });
    let (stream, greeting) = dialer.dial().await.map_err(unreachable)?;
    let mut first = Some(TokioIo::new(stream));
    let judged = Arc::new(AtomicBool::new(false));
    let was_judged = Arc::clone(&judged);
    let dial = service_fn(move |_: Uri| {
        let (first, dialer) = (first.take(), Arc::clone(&dialer));
        let was_judged = was_judged.load(Ordering::Acquire);
        async move {
            match first {
                Some(stream) => Ok(stream),
                None if !was_judged => Err(std::io::Error::other("it ended before the first call")),
                // The first connection broke, or ended when it had become old.
                None => match dialer.dial().await {
                    Ok((stream, _)) => Ok(TokioIo::new(stream)),
                    Err(why) => Err(std::io::Error::other(why)),
                },
            }
        }
    });
    // Where to is the dialer's affair, and so is TLS.
    let endpoint = windows(Endpoint::from_static("http://dialed")).origin(origin);
    let connected = endpoint.connect_with_connector(dial).await;
    greeting.judge().await.map_err(unreachable)?;
    judged.store(true, Ordering::Release);
    let channel = connected.map_err(|error| unreachable(causes(&error)))?;
    Ok(InterceptedService::new(channel, bearer))
}

/// An error with those below it.
fn causes(error: &dyn std::error::Error) -> String {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Some say what is below them already.
        let below = error.to_string();
        if !why.ends_with(&below) {
            why = format!("{why}: {below}");
        }
        source = error.source();
    }
    why
}

fn windows(endpoint: Endpoint) -> Endpoint {
    endpoint
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        // One that only listens would not notice otherwise that nobody is there any more.
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_WAIT)
}

/// A client over `channel`.
pub(super) fn sandbox(channel: Link) -> Client {
    SandboxServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

/// A client of runs over `channel`.
pub(super) fn runs(channel: Link) -> RunServiceClient<Link> {
    RunServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

/// A daemon of this process's own, reachable by nobody else, which ends with this.
pub(super) struct Embedded {
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Result<(), app::AppError>>,
}

impl Embedded {
    /// Starts it with the defaults and `values` over them.
    pub(super) async fn start(
        values: Vec<(String, SettingValue)>,
    ) -> Result<(Self, Link), Failure> {
        let overrides = Overrides {
            values,
            ..Overrides::default()
        };
        let (config, _) =
            app::load_config(&overrides).map_err(|problems| Failure::new(problems.to_string()))?;
        let (app, socket) = app::build_paired(&config, Path::new(PROGRAM))
            .map_err(|error| Failure::new(error.to_string()))?;
        let (stop, stopped) = oneshot::channel();
        #[expect(
            clippy::disallowed_methods,
            reason = "ended and awaited by `end`, or with the process"
        )]
        let served = tokio::spawn(app.serve_until(async {
            // Told or dropped: either ends it.
            let _ = stopped.await;
        }));
        // The name is never looked up: the one connection is there already.
        let endpoint = windows(Endpoint::from_static("http://embedded"));
        let mut socket = Some(TokioIo::new(socket));
        let channel = endpoint
            .connect_with_connector(service_fn(move |_| {
                let socket = socket.take().ok_or(std::io::ErrorKind::NotConnected);
                async move { socket.map_err(std::io::Error::from) }
            }))
            .await
            .map_err(|error| Failure::new(format!("the embedded daemon is gone: {error}")))?;
        let link = InterceptedService::new(channel, Bearer::default());
        Ok((Self { stop, served }, link))
    }

    /// Ends it.
    ///
    /// # Errors
    /// Where it had ended by itself, for a reason that its clients were not told.
    pub(super) async fn end(self) -> Result<(), Failure> {
        drop(self.stop);
        match self.served.await {
            Ok(served) => served.map_err(|error| Failure::new(error.to_string())),
            Err(error) => Err(Failure::new(format!("the embedded daemon failed: {error}"))),
        }
    }
}

/// A call that failed: refused with a reason, or the daemon's failure, or answered by something that is no daemon.
pub(super) fn failure(status: &Status) -> Failure {
    if status.get_details_error_info().is_some() {
        return Failure::of_status(status);
    }
    let message = quote(status.message());
    if message.starts_with("grpc-status header missing") {
        // What tonic says of an answer that has the status of HTTP only.
        return Failure::unreachable(format!(
            "what answers there speaks HTTP/2, but no gRPC ({message}): another server, or a proxy that does not pass \
             gRPC on"
        ));
    }
    if let Some(below) = std::error::Error::source(status) {
        // A status that came over the connection has nothing below it.
        let why = quote(&causes(below));
        return Failure::unreachable(format!("the connection broke: {why}"));
    }
    if status.code() == Code::Unimplemented {
        return Failure::unreachable(format!(
            "what answers there speaks gRPC, but does not have this call ({message}): another server, or a daemon of \
             another version"
        ));
    }
    Failure::of_status(status)
}
