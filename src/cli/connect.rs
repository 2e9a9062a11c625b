//! Connections to a daemon: one that listens at an address, or one that is embedded in this
//! process.

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
use super::credentials::{BearerInterceptor, ClientCredentials};
use super::dial::Dialer;
use super::{Failure, PROGRAM};
use crate::api::proto::execution_service_client::ExecutionServiceClient;
use crate::api::proto::module_service_client::ModuleServiceClient;
use crate::api::proto::run_service_client::RunServiceClient;
use crate::api::proto::sandbox_service_client::SandboxServiceClient;
use crate::api::proto::stats_service_client::StatsServiceClient;
use crate::app;
use crate::config::{Overrides, SettingValue};
use crate::host_limit::HostLimit;
use crate::model::refusal::quote;

/// HTTP/2 flow control window of a stream in bytes; the default halves a stream's rate.
const STREAM_WINDOW: u32 = 1 << 20;
/// HTTP/2 flow control window of the whole connection in bytes.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How often the connection is pinged.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
/// How long the reply to a ping may take before the connection is closed.
const KEEPALIVE_WAIT: Duration = Duration::from_secs(10);

/// A client of the daemon's sandbox service.
pub(super) type SandboxClient = SandboxServiceClient<DaemonChannel>;

/// A connection that adds the credentials to each call.
pub(super) type DaemonChannel = InterceptedService<Channel, BearerInterceptor>;

/// The arguments that say which daemon is called, and with which credentials.
#[derive(Clone, Debug, Args)]
pub(super) struct DaemonArgs {
    /// The address of the daemon: "host:port", "https://host:port" or "unix:/path"
    #[arg(
        long,
        value_name = "ADDR",
        env = "RINGFENCE_SERVER",
        default_value = DEFAULT_SERVER,
        global = true
    )]
    server: String,
    #[command(flatten)]
    credentials: ClientCredentials,
}

impl DaemonArgs {
    /// Connects to the daemon.
    pub(super) async fn channel(&self) -> Result<DaemonChannel, Failure> {
        channel(&self.server, &self.credentials).await
    }
}

impl fmt::Display for DaemonArgs {
    /// Writes the address as it was given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.server.trim())
    }
}

/// Connects to the sandbox service of `daemon`.
pub(super) async fn connect(daemon: &DaemonArgs) -> Result<SandboxClient, Failure> {
    channel(&daemon.server, &daemon.credentials)
        .await
        .map(sandbox_client)
}

/// Connects to the run service of `daemon`.
pub(super) async fn connect_runs(
    daemon: &DaemonArgs,
) -> Result<RunServiceClient<DaemonChannel>, Failure> {
    channel(&daemon.server, &daemon.credentials)
        .await
        .map(runs_client)
}

/// Connects to the service of figures of `daemon`.
pub(super) async fn connect_stats(
    daemon: &DaemonArgs,
) -> Result<StatsServiceClient<DaemonChannel>, Failure> {
    let channel = channel(&daemon.server, &daemon.credentials).await?;
    Ok(StatsServiceClient::new(channel).max_decoding_message_size(usize::MAX))
}

/// Connects to the module service of `daemon`.
pub(super) async fn connect_modules(
    daemon: &DaemonArgs,
) -> Result<ModuleServiceClient<DaemonChannel>, Failure> {
    let channel = channel(&daemon.server, &daemon.credentials).await?;
    Ok(ModuleServiceClient::new(channel).max_decoding_message_size(usize::MAX))
}

/// Connects to the daemon at `server`, and returns once it has greeted as an HTTP/2 server does.
///
/// # Errors
/// Returns what is wrong with the address or the credentials, or why no HTTP/2 server was reached.
pub(super) async fn channel(
    server: &str,
    credentials: &ClientCredentials,
) -> Result<DaemonChannel, Failure> {
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
                None if !was_judged => Err(std::io::Error::other(
                    "the connection ended before the first call",
                )),
                // The first connection broke, or ended because it had reached its maximum age.
                None => match dialer.dial().await {
                    Ok((stream, _)) => Ok(TokioIo::new(stream)),
                    Err(why) => Err(std::io::Error::other(why)),
                },
            }
        }
    });
    // The dialer decides where to connect to, and whether to use TLS.
    let endpoint = windows(Endpoint::from_static("http://dialed")).origin(origin);
    let connected = endpoint.connect_with_connector(dial).await;
    greeting.judge().await.map_err(unreachable)?;
    judged.store(true, Ordering::Release);
    let channel = connected.map_err(|error| unreachable(error_chain(&error)))?;
    Ok(InterceptedService::new(channel, bearer))
}

/// Checks the address and the credentials, without connecting.
///
/// # Errors
/// Returns what is wrong with one of them.
pub(super) fn check(server: &str, credentials: &ClientCredentials) -> Result<(), Failure> {
    let server = ServerAddress::parse(server)?;
    credentials.bearer()?;
    credentials.server_name()?;
    credentials.tls(&server).map(|_| ())
}

/// Formats an error with all its causes.
fn error_chain(error: &dyn std::error::Error) -> String {
    let mut why = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        // Some errors repeat the one below them in their own text.
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
        // A client that only listens would otherwise not notice that the daemon is gone.
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_WAIT)
}

/// Creates a client of the sandbox service over `channel`.
pub(super) fn sandbox_client(channel: DaemonChannel) -> SandboxClient {
    SandboxServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

/// Creates a client of the run service over `channel`.
pub(super) fn runs_client(channel: DaemonChannel) -> RunServiceClient<DaemonChannel> {
    RunServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

/// Creates a client of the execution service over `channel`.
pub(super) fn executions_client(channel: DaemonChannel) -> ExecutionServiceClient<DaemonChannel> {
    ExecutionServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX)
}

/// A daemon inside this process that nobody else can reach. It ends with the process at the latest.
pub(super) struct EmbeddedDaemon {
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Result<(), app::AppError>>,
}

impl EmbeddedDaemon {
    /// Starts the daemon with the default configuration and `values` over it.
    pub(super) async fn start(
        values: Vec<(String, SettingValue)>,
    ) -> Result<(Self, DaemonChannel), Failure> {
        Self::start_with(Overrides {
            values,
            ..Overrides::default()
        })
        .await
    }

    /// Starts the daemon with the configuration that `overrides` describe. Nobody else can reach
    /// it, so callers are not told apart, whatever the configuration says of that.
    pub(super) async fn start_with(
        mut overrides: Overrides,
    ) -> Result<(Self, DaemonChannel), Failure> {
        let nothing = ["auth.tokens_file", "auth.jwt.jwks", "tls.client_ca"];
        let nothing = nothing.map(|key| (key.to_owned(), SettingValue::from("")));
        overrides.values.extend(nothing);
        let nobody: Vec<SettingValue> = Vec::new();
        overrides.values.push(("tenants".to_owned(), nobody.into()));
        let (config, _) =
            app::load_config(&overrides).map_err(|problems| Failure::new(problems.to_string()))?;
        let (app, socket) = app::build_on_socketpair(&config, Path::new(PROGRAM))
            .await
            .map_err(|error| Failure::new(HostLimit::spell_out(&error.to_string())))?;
        let (stop, stopped) = oneshot::channel();
        #[expect(
            clippy::disallowed_methods,
            reason = "ended and awaited by `end`, or with the process"
        )]
        let served = tokio::spawn(app.serve_until(async {
            // The daemon ends when the sender is used or dropped.
            let _ = stopped.await;
        }));
        // The name is never looked up, because the only connection exists already.
        let endpoint = windows(Endpoint::from_static("http://embedded"));
        let mut socket = Some(TokioIo::new(socket));
        let connected = endpoint.connect_with_connector(service_fn(move |_| {
            let socket = socket.take().ok_or(std::io::ErrorKind::NotConnected);
            async move { socket.map_err(std::io::Error::from) }
        }));
        let connected = connected.await;
        let daemon = Self { stop, served };
        let channel = match connected {
            Ok(channel) => channel,
            Err(error) => {
                // A daemon that could not start says why.
                daemon.end().await?;
                let message = format!("the embedded daemon is gone: {error}");
                return Err(Failure::new(message));
            }
        };
        let link = InterceptedService::new(channel, BearerInterceptor::default());
        Ok((daemon, link))
    }

    /// Stops the daemon and waits until it has ended.
    ///
    /// # Errors
    /// Fails where the daemon had ended by itself, for a reason that its clients were not told.
    pub(super) async fn end(self) -> Result<(), Failure> {
        drop(self.stop);
        match self.served.await {
            Ok(served) => {
                served.map_err(|error| Failure::new(HostLimit::spell_out(&error.to_string())))
            }
            Err(error) => Err(Failure::new(format!("the embedded daemon failed: {error}"))),
        }
    }
}

/// Converts a failed call to a failure: a refusal with a reason, an error of the daemon, or an
/// answer from something that is no daemon.
pub(super) fn status_failure(status: &Status) -> Failure {
    if status.get_details_error_info().is_some() {
        return Failure::of_status(status);
    }
    let message = quote(status.message());
    if message.starts_with("grpc-status header missing") {
        // This is tonic's message for an answer that has an HTTP status only.
        return Failure::unreachable(format!(
            "the server there speaks HTTP/2 but not gRPC ({message}): it is another server, or a proxy that does not \
             forward gRPC"
        ));
    }
    if let Some(below) = std::error::Error::source(status) {
        // A status that came over the connection has no source.
        let why = quote(&error_chain(below));
        return Failure::unreachable(format!("the connection broke: {why}"));
    }
    if status.code() == Code::Unimplemented {
        return Failure::unreachable(format!(
            "the server there speaks gRPC but does not have this method ({message}): it is another server, or a daemon \
             of another version"
        ));
    }
    Failure::of_status(status)
}
