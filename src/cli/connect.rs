//! Reaching a daemon: one that listens somewhere, or one of this process's own.

use std::time::Duration;

use tokio::sync::oneshot;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use tonic_types::StatusExt;

use super::{Failure, exit};
use crate::api::proto::sandbox_service_client::SandboxServiceClient;
use crate::app::{self, App};
use crate::config::Overrides;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// What the client is ready to take at once; the default halves the rate of a stream.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// A client of a daemon.
pub(super) type Client = SandboxServiceClient<Channel>;

/// Connects to `addr`: "host:port", "http://host:port" or "unix:/path".
pub(super) async fn connect(addr: &str) -> Result<Client, Failure> {
    let uri = if addr.contains("://") || addr.starts_with("unix:") {
        addr.to_owned()
    } else {
        format!("http://{addr}")
    };
    let channel = Endpoint::from_shared(uri)
        .map_err(|error| Failure::new(format!("{addr} is no address: {error}")))?
        .connect_timeout(CONNECT)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect()
        .await
        .map_err(|error| {
            let mut why = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(error) = source {
                why = format!("{why}: {error}");
                source = error.source();
            }
            Failure::new(format!("cannot reach the daemon at {addr}: {why}"))
        })?;
    Ok(SandboxServiceClient::new(channel)
        .max_decoding_message_size(usize::MAX)
        .max_encoding_message_size(usize::MAX))
}

/// A daemon of this process's own, reachable by nobody else, which ends with this.
pub(super) struct Embedded {
    stop: oneshot::Sender<()>,
    served: tokio::task::JoinHandle<Result<(), app::AppError>>,
    /// Holds the socket; removed at the end.
    _dir: tempfile::TempDir,
}

impl Embedded {
    /// Starts it with the defaults and `set` over them.
    pub(super) async fn start(set: Vec<(String, String)>) -> Result<(Self, Client), Failure> {
        // 0700: nobody else gets to the socket.
        let dir = tempfile::tempdir()
            .map_err(|error| Failure::new(format!("cannot make a folder for a socket: {error}")))?;
        let addr = format!("unix:{}", dir.path().join("s").display());
        let mut overrides = Overrides {
            set,
            ..Overrides::default()
        };
        overrides
            .set
            .push(("listen".to_owned(), format!("[{addr:?}]")));
        let (config, _) =
            app::load_config(&overrides).map_err(|problems| Failure::new(problems.to_string()))?;
        let app: App = app::build(&config)
            .await
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
        let client = connect(&addr).await?;
        let embedded = Self {
            stop,
            served,
            _dir: dir,
        };
        Ok((embedded, client))
    }

    /// Ends it.
    pub(super) async fn end(self) {
        drop(self.stop);
        // How it ended no longer matters to a run that has.
        let _ = self.served.await;
    }
}

/// A call that failed: refused with a reason, or the daemon's failure.
pub(super) fn failure(status: &Status) -> Failure {
    let details = status.get_error_details();
    match details.error_info() {
        Some(info) if info.reason != "INTERNAL" => Failure {
            code: exit::REFUSED,
            message: format!("refused: {}: {}", info.reason, status.message()),
        },
        _ => Failure::new(format!(
            "the daemon failed: {:?}: {}",
            status.code(),
            status.message()
        )),
    }
}
