//! The admin listener: probes, metrics and the settings in force over plain HTTP, and for browsers
//! a page and the services of the API by gRPC-Web.
//!
//! It runs on a thread of its own, so that it answers while the gRPC side is busy, and until the
//! very end of a drain. Every request passes the same gate (`service`): it has to be addressed to
//! this host, must not come from a web page of another origin (`api/origin_guard`), and says who
//! calls unless its path is open to everybody.

mod page;
mod plain_text;
mod readiness;
mod routes;
mod scrapes;
mod service;

use std::pin::Pin;
use std::sync::Arc;
use std::thread;

use http::{Request, Response};
use hyper::body::Incoming;
use tokio::runtime::{self, Handle};
use tokio::sync::watch;
use tonic::body::Body;

use self::service::AdminService;
use crate::api::{
    Address, Authentication, BindError, BoundListeners, ConnectionCounters, DaemonPhase,
    OriginGuard, OriginGuardSettings, TlsReloader, WebServerSettings, bind, serve_web,
};
use crate::config::{Config, OpenPath};
use crate::metrics::MetricRegistry;
use crate::run::Runner;

/// The settings of the admin listener.
#[derive(Clone, Debug)]
pub struct AdminSettings {
    /// The addresses to listen on.
    pub listen: Vec<String>,
    /// How connections are accepted and kept alive.
    pub server: WebServerSettings,
    /// The paths that need no credential.
    pub open: Vec<OpenPath>,
    /// Whether the page for browsers is served.
    pub has_page: bool,
    /// Whether callers have to be authenticated on a listener that other hosts can reach. If nobody
    /// is, such a listener has nothing but the open paths.
    pub is_authenticated: bool,
    /// The hosts and the origins of web pages that requests may name.
    pub origins: OriginGuardSettings,
    /// The function that the listener's thread calls first.
    pub thread_init: fn(),
}

/// Why the admin listener does not start.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The host refuses a thread, or the thread's descriptors.
    #[error("the thread of the admin listener does not start: {0}")]
    Thread(#[from] std::io::Error),
    /// An address cannot be listened on.
    #[error("the admin listener: {0}")]
    Bind(#[from] BindError),
}

/// The server of gRPC-Web calls, whichever layers it has.
pub type GrpcWebHandler = Arc<
    dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Response<Body>> + Send>> + Send + Sync,
>;

/// What the admin listener tells of the daemon.
pub struct AdminSources {
    /// The sources of metrics.
    pub metrics: MetricRegistry,
    /// How callers are identified.
    pub authentication: Authentication,
    /// The tenants and their runs.
    pub runner: Arc<Runner>,
    /// The phase of the daemon's life.
    pub phase: watch::Receiver<DaemonPhase>,
    /// The configuration in force.
    pub config: Arc<Config>,
    /// The counters of the listener's connections.
    pub connections: Arc<ConnectionCounters>,
    /// Answers the calls of gRPC-Web.
    pub grpc_web: GrpcWebHandler,
}

/// The admin listener, bound to its addresses. Dropping it ends its thread.
pub struct AdminListener {
    bound: BoundListeners,
    settings: AdminSettings,
    runtime: Handle,
    ending: watch::Sender<bool>,
}

impl AdminListener {
    /// Binds the sockets of the listener and starts its thread, which they are handed to.
    ///
    /// # Errors
    /// An address cannot be listened on, or the host refuses a thread.
    pub async fn bind(settings: AdminSettings) -> Result<Self, AdminError> {
        let bound = bind(&settings.listen, &settings.server.listen).await?;
        let (ending, is_ending) = watch::channel(false);
        let runtime = start_thread(is_ending, settings.thread_init)?;
        Ok(Self {
            bound: bound.adopted_by(&runtime)?,
            settings,
            runtime,
            ending,
        })
    }

    /// Returns the addresses that the listener is bound to, with the actual ports.
    pub fn addrs(&self) -> &[Address] {
        self.bound.addresses()
    }

    /// Returns what reads the TLS files again, or `None` without TLS.
    pub fn tls_files(&self) -> Option<TlsReloader> {
        self.bound.tls_files()
    }

    /// Serves what `sources` tell until the guard that is returned is dropped.
    pub fn serve(self, sources: AdminSources) -> AdminServerGuard {
        let Self {
            bound,
            settings,
            runtime,
            ending,
        } = self;
        let connections = Arc::clone(&sources.connections);
        // A caller by loopback may be in another container of the same pod.
        let is_public = |address: &Address| match address {
            Address::Tcp(address) => !address.ip().to_canonical().is_loopback(),
            Address::Unix(_) => false,
        };
        let is_open_only = !settings.is_authenticated && bound.addresses().iter().any(is_public);
        let is_page_served = settings.has_page && !is_open_only;
        let is_tls = bound.tls_files().is_some();
        for address in bound.addresses() {
            tracing::info!(admin = %address, "the admin listener listens");
            if is_page_served && let Some(url) = page::url(address, is_tls) {
                tracing::info!(page = %url, "runs can be watched in a browser");
            }
        }
        let guard = OriginGuard::new(settings.origins.clone());
        let service = AdminService::new(guard, &settings, is_open_only, sources);
        let is_ending = ending.subscribe();
        // The task ends with the guard, or with its runtime.
        runtime.spawn(serve_web(
            bound,
            settings.server,
            connections,
            service,
            is_ending,
        ));
        AdminServerGuard { _ending: ending }
    }
}

/// Serves for as long as it is held. Dropping it ends the thread of the admin listener, and drops
/// the requests in progress.
pub struct AdminServerGuard {
    _ending: watch::Sender<bool>,
}

/// Starts a thread that drives a runtime until `ending` changes or is closed.
fn start_thread(
    mut ending: watch::Receiver<bool>,
    thread_init: fn(),
) -> Result<Handle, std::io::Error> {
    let (started, runtime) = std::sync::mpsc::sync_channel(1);
    thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || {
            thread_init();
            let runtime = runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => {
                    // Nobody is there to take it if the daemon gave up meanwhile.
                    let _ = started.send(Ok(runtime.handle().clone()));
                    // An error means that the sender is gone.
                    let _ = runtime.block_on(ending.changed());
                    runtime.shutdown_background();
                }
                Err(error) => {
                    let _ = started.send(Err(error));
                }
            }
        })?;
    let gone = |_| std::io::Error::other("it ended");
    runtime.recv().map_err(gone)?
}
