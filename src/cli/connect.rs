//! Reaching a daemon: one that listens somewhere, or one of this process's own.

use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tonic::Status;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use super::credentials::{Bearer, Credentials};
use super::{Failure, PROGRAM};
use crate::api::proto::module_service_client::ModuleServiceClient;
use crate::api::proto::run_service_client::RunServiceClient;
use crate::api::proto::sandbox_service_client::SandboxServiceClient;
use crate::app;
use crate::config::{Overrides, SettingValue};

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// What the client is ready to take at once; the default halves the rate of a stream.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
const KEEPALIVE_EVERY: Duration = Duration::from_secs(20);
const KEEPALIVE_WAIT: Duration = Duration::from_secs(10);

/// A client of a daemon.
pub(super) type Client = SandboxServiceClient<Link>;

/// A connection, and what is shown over it.
pub(super) type Link = InterceptedService<Channel, Bearer>;

/// Connects to the daemon at `addr`.
pub(super) async fn connect(addr: &str, credentials: &Credentials) -> Result<Client, Failure> {
    channel(addr, credentials).await.map(sandbox)
}

/// Connects to the runs of the daemon at `addr`.
pub(super) async fn connect_runs(
    addr: &str,
    credentials: &Credentials,
) -> Result<RunServiceClient<Link>, Failure> {
    channel(addr, credentials).await.map(runs)
}

/// Connects to the modules of the daemon at `addr`.
pub(super) async fn connect_modules(
    addr: &str,
    credentials: &Credentials,
) -> Result<ModuleServiceClient<Link>, Failure> {
    let channel = channel(addr, credentials).await?;
    Ok(ModuleServiceClient::new(channel).max_decoding_message_size(usize::MAX))
}

/// A connection to `addr`: "host:port", "http://host:port", "https://host:port" or "unix:/path".
pub(super) async fn channel(addr: &str, credentials: &Credentials) -> Result<Link, Failure> {
    let bearer = credentials.bearer()?;
    let tls = credentials.tls(addr)?;
    let uri = if addr.contains("://") || addr.starts_with("unix:") {
        addr.to_owned()
    } else {
        let scheme = if tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{addr}")
    };
    let told = |error| Failure::new(format!("{addr} is no address: {error}"));
    let mut endpoint = Endpoint::from_shared(uri)
        .map_err(told)?
        .connect_timeout(CONNECT);
    if let Some(tls) = tls {
        endpoint = endpoint
            .tls_config(tls)
            .map_err(|error| Failure::new(format!("the credentials cannot be used: {error}")))?;
    }
    let connected = windows(endpoint).connect().await;
    let channel = connected.map_err(|error| {
        let mut why = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            // Some say what is below them already.
            let below = error.to_string();
            if !why.ends_with(&below) {
                why = format!("{why}: {below}");
            }
            source = error.source();
        }
        Failure::unreachable(format!("cannot reach the daemon at {addr}: {why}"))
    })?;
    Ok(InterceptedService::new(channel, bearer))
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

/// A call that failed: refused with a reason, or the daemon's failure.
pub(super) fn failure(status: &Status) -> Failure {
    Failure::of_status(status)
}
