//! The connection of an agent's server to its daemon, which is made again when it broke.

use tokio::sync::Mutex;

use crate::cli::Failure;
use crate::cli::connect::{self, DaemonChannel};
use crate::cli::credentials::ClientCredentials;
use crate::cli::incident_causes::IncidentCauses;

/// The way to a daemon: one inside this process, or one at an address that may come and go.
pub(super) enum DaemonLink {
    Embedded {
        channel: DaemonChannel,
        causes: IncidentCauses,
    },
    Remote {
        server: String,
        credentials: ClientCredentials,
        /// The connection, from the first call that reached the daemon to the first that failed to.
        connected: Mutex<Option<DaemonChannel>>,
    },
}

impl DaemonLink {
    /// Creates the link to a daemon inside this process.
    pub(super) fn embedded(channel: DaemonChannel, causes: IncidentCauses) -> Self {
        Self::Embedded { channel, causes }
    }

    /// Creates the link to the daemon at `server`, which need not be there yet.
    pub(super) fn remote(server: String, credentials: ClientCredentials) -> Self {
        Self::Remote {
            server,
            credentials,
            connected: Mutex::new(None),
        }
    }

    /// Connects to the daemon, unless that has been done. The files of the credentials are read
    /// each time, since they may be replaced while the agent lives.
    ///
    /// # Errors
    /// Returns why the daemon cannot be reached.
    pub(super) async fn channel(&self) -> Result<DaemonChannel, Failure> {
        match self {
            Self::Embedded { channel, .. } => Ok(channel.clone()),
            Self::Remote {
                server,
                credentials,
                connected,
            } => {
                let mut connected = connected.lock().await;
                if let Some(channel) = &*connected {
                    return Ok(channel.clone());
                }
                let channel = connect::channel(server, credentials).await?;
                *connected = Some(channel.clone());
                Ok(channel)
            }
        }
    }

    /// Explains the failure of a call, and drops the connection where a new one may help.
    pub(super) async fn explain(&self, failure: Failure) -> Failure {
        match self {
            Self::Embedded { causes, .. } => causes.explain(failure),
            Self::Remote { connected, .. } => {
                if failure.needs_new_connection() {
                    *connected.lock().await = None;
                }
                failure
            }
        }
    }
}
