//! The listeners of the daemon: TCP, with or without TLS, and unix sockets. The accept loop is in
//! [`accept`], and a connection's I/O in [`connection`]. [`connection_table`] decides who may hold
//! a connection and who is evicted.

mod accept;
mod authority;
mod close_counters;
mod close_reason;
mod connection;
mod connection_counters;
mod connection_slots;
mod connection_table;
mod event_loop;
mod origin;
mod protocol_sniffer;
mod protocols;
mod tcp;
mod tls;
mod transport;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use self::accept::Acceptor;
use self::connection_slots::ConnectionSlots;
use self::connection_table::TableLimits;
pub use self::protocols::Protocols;
use self::tls::ServerTls;
use self::transport::{ConnectionRules, Transport};

pub(super) use self::connection::{Connection, Peer};
pub use self::connection_counters::{ConnectionCounters, ConnectionTotals};
pub(super) use self::connection_slots::UnauthenticatedCall;
pub(super) use self::event_loop::EventLoop;
pub use self::event_loop::EventLoops;
pub(super) use self::event_loop::NewConnection;
pub(super) use self::origin::ConnectionOrigin;
pub use self::tls::{ServerTlsError, TlsReloader, TlsSettings};

/// The settings by which connections are accepted.
#[derive(Clone, Debug)]
pub struct ListenSettings {
    /// The permission bits of a unix socket's file.
    pub socket_mode: u32,
    /// The most connections at once, which all listeners share evenly.
    pub max_connections: u32,
    /// The most connections of one address, or of one user of a unix socket, at each listener.
    pub max_per_peer: u32,
    /// How long a connection may take from its acceptance to the first call that authenticates on
    /// it.
    pub first_call_timeout: Duration,
    /// The certificate and key for TCP connections. `None` means plaintext.
    pub tls: Option<TlsSettings>,
    /// How long a new connection may take to finish its TLS handshake, and then to send its first
    /// bytes of HTTP.
    pub handshake_timeout: Duration,
    /// How long a client may accept nothing of what is written to it.
    pub write_timeout: Duration,
    /// What the connections speak.
    pub protocols: Protocols,
}

/// The address that a listener is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A TCP address, with the port that was configured or that the kernel chose.
    Tcp(SocketAddr),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why the daemon cannot listen as it is configured to.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Address {
        /// The address, as it is configured.
        address: String,
        /// What the host says.
        source: io::Error,
    },
    /// The TLS settings cannot be used.
    #[error("cannot listen on TCP with TLS: {0}")]
    Tls(#[from] ServerTlsError),
}

/// A listening socket of either kind.
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// Registers the socket with the reactor of the runtime that this is called in.
    fn adopt(self) -> io::Result<Self> {
        Ok(match self {
            Self::Tcp(listener) => Self::Tcp(TcpListener::from_std(listener.into_std()?)?),
            Self::Unix(listener) => Self::Unix(UnixListener::from_std(listener.into_std()?)?),
        })
    }
}

/// The listening sockets that one configured address resulted in.
struct ListenerGroup {
    /// The address as the log shows it.
    name: String,
    /// One listener for each address that the name resolved to. They share their connection slots.
    listeners: Vec<Listener>,
}

/// The sockets of a daemon, bound but not yet accepting.
pub struct BoundListeners {
    entries: Vec<ListenerGroup>,
    addresses: Vec<Address>,
    /// The daemon's end of a socket pair, which is served without being accepted; see
    /// [`socketpair`].
    paired: Option<UnixStream>,
    tls: Option<Arc<ServerTls>>,
    /// The socket files, which are removed when this is dropped.
    sockets: SocketFiles,
}

/// Binds each of `addresses`, which have the form "host:port" or "unix:/path".
///
/// # Errors
/// The first address that cannot be bound, or TLS files that cannot be used.
pub async fn bind(
    addresses: &[String],
    settings: &ListenSettings,
) -> Result<BoundListeners, BindError> {
    let tls = settings
        .tls
        .as_ref()
        .map(|tls| ServerTls::open(tls, settings.protocols))
        .transpose();
    let mut bound = BoundListeners {
        entries: Vec::new(),
        addresses: Vec::new(),
        paired: None,
        tls: tls?,
        sockets: SocketFiles::default(),
    };
    for address in addresses {
        let failed = |source| BindError::Address {
            address: address.clone(),
            source,
        };
        if let Some(path) = address.strip_prefix("unix:") {
            let path = Path::new(path);
            let listener = bind_unix(path, settings.socket_mode)
                .await
                .map_err(failed)?;
            bound.sockets.add(path).map_err(failed)?;
            let own = Address::Unix(path.to_owned());
            bound.entries.push(ListenerGroup {
                name: own.to_string(),
                listeners: vec![Listener::Unix(listener)],
            });
            bound.addresses.push(own);
        } else {
            let apart = tcp::is_apart(address, addresses);
            let listeners = tcp::bind(address, apart).await.map_err(failed)?;
            let mut name = address.clone();
            for listener in &listeners {
                if settings.protocols == Protocols::Http1AndHttp2 {
                    tcp::fix_send_buffer(listener).map_err(failed)?;
                }
                let local = Address::Tcp(listener.local_addr().map_err(failed)?);
                if listeners.len() == 1 {
                    name = local.to_string();
                }
                bound.addresses.push(local);
            }
            let listeners = listeners.into_iter().map(Listener::Tcp).collect();
            bound.entries.push(ListenerGroup { name, listeners });
        }
    }
    Ok(bound)
}

/// Creates a daemon's sockets without a listener but with one connection, whose other end is the
/// second value. Nobody else can reach it.
///
/// # Errors
/// The host has no file descriptor left.
pub fn socketpair() -> Result<(BoundListeners, UnixStream), BindError> {
    let (ours, theirs) = UnixStream::pair().map_err(|source| BindError::Address {
        address: "a socket pair".to_owned(),
        source,
    })?;
    let bound = BoundListeners {
        entries: Vec::new(),
        addresses: Vec::new(),
        paired: Some(ours),
        tls: None,
        sockets: SocketFiles::default(),
    };
    Ok((bound, theirs))
}

/// Binds a unix socket under a hidden name and then renames it. So the socket has its permissions
/// from the first moment that anybody can find it, and a stale one is replaced atomically.
async fn bind_unix(path: &Path, mode: u32) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "there is a file that is no socket",
            ));
        }
        Ok(_) if UnixStream::connect(path).await.is_ok() => {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another process answers on this socket",
            ));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let hidden = path.with_file_name(format!(".rf{}", std::process::id()));
    match std::fs::remove_file(&hidden) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&hidden)?;
    let named = std::fs::set_permissions(&hidden, std::fs::Permissions::from_mode(mode))
        .and_then(|()| std::fs::rename(&hidden, path));
    if let Err(error) = named {
        // The error that is reported is the first one.
        let _ = std::fs::remove_file(&hidden);
        return Err(error);
    }
    Ok(listener)
}

/// The unix socket files that this daemon created, by path, device and inode. Dropping it removes
/// each file unless another has taken its place.
#[derive(Debug, Default)]
struct SocketFiles(Vec<(PathBuf, u64, u64)>);

impl SocketFiles {
    /// Remembers the socket file at `path` so that it is removed at the end.
    fn add(&mut self, path: &Path) -> io::Result<()> {
        let meta = std::fs::symlink_metadata(path)?;
        self.0.push((path.to_owned(), meta.dev(), meta.ino()));
        Ok(())
    }
}

impl Drop for SocketFiles {
    fn drop(&mut self) {
        for (path, dev, ino) in &self.0 {
            let ours = std::fs::symlink_metadata(path)
                .is_ok_and(|meta| (meta.dev(), meta.ino()) == (*dev, *ino));
            if ours {
                // It is fine if the file is already gone.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl BoundListeners {
    /// Returns the addresses that are bound.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Hands the sockets to `runtime`, which accepts their connections from then on. They are bound
    /// by a thread that may do that, and served by one that may not.
    ///
    /// # Errors
    /// The host refuses to register a socket.
    pub fn adopted_by(mut self, runtime: &Handle) -> io::Result<Self> {
        let _context = runtime.enter();
        for entry in &mut self.entries {
            let listeners = std::mem::take(&mut entry.listeners).into_iter();
            let adopted: io::Result<_> = listeners.map(Listener::adopt).collect();
            entry.listeners = adopted?;
        }
        Ok(self)
    }

    /// Returns what reads the TLS files again, or `None` without TLS.
    pub fn tls_files(&self) -> Option<TlsReloader> {
        self.tls.clone().map(TlsReloader)
    }

    /// Starts accepting connections for `event_loops`, until the tasks that it returns are dropped.
    /// They are counted in `counters`.
    pub fn accept(
        self,
        settings: &ListenSettings,
        event_loops: &EventLoops,
        counters: &Arc<ConnectionCounters>,
    ) -> AcceptTasks {
        let rules = ConnectionRules {
            greeting: settings.handshake_timeout,
            writing: settings.write_timeout,
            protocols: settings.protocols,
        };
        let mut tasks = JoinSet::new();
        if let Some(stream) = self.paired {
            let assignment = event_loops.assign();
            match assignment.adopt_unix(stream) {
                Ok(stream) => assignment.hand_over(Transport::Unix(stream), rules, None),
                // The other end sees that the connection is closed.
                Err(error) => tracing::error!(%error, "the only connection cannot be served"),
            }
        }
        let shares = shares(settings.max_connections, self.entries.len());
        let mut all_places = Vec::new();
        for (entry, share) in self.entries.into_iter().zip(shares) {
            let limits = TableLimits {
                connections: share,
                per_peer: settings.max_per_peer,
            };
            let places = ConnectionSlots::new(
                limits,
                settings.first_call_timeout,
                entry.name,
                Arc::clone(counters),
            );
            let places = Arc::new(places);
            all_places.push(Arc::clone(&places));
            let tells = Arc::clone(&places);
            tasks.spawn(async move { tells.closures().report_periodically().await });
            for listener in entry.listeners {
                let acceptor = Acceptor {
                    listener,
                    slots: Arc::clone(&places),
                    tls: self.tls.clone(),
                    rules,
                    event_loops: event_loops.clone(),
                };
                tasks.spawn(acceptor.run());
            }
        }
        if let Some(tls) = self.tls {
            tasks.spawn(async move { tls.watch().await });
        }
        AcceptTasks {
            _tasks: tasks,
            _sockets: self.sockets,
            slots: all_places,
        }
    }
}

/// Divides the connection slots among the listeners as evenly as possible, so that a flood at one
/// listener takes no slot of another.
fn shares(places: u32, listeners: usize) -> impl Iterator<Item = u32> {
    // A configuration has far fewer listeners than that.
    let listeners = u32::try_from(listeners).unwrap_or(u32::MAX);
    (0..listeners).map(move |n| places / listeners + u32::from(n < places % listeners))
}

/// The tasks that accept connections. Dropping it ends them, removes the socket files, and logs
/// what was not yet reported of closed connections.
pub struct AcceptTasks {
    _tasks: JoinSet<()>,
    _sockets: SocketFiles,
    slots: Vec<Arc<ConnectionSlots>>,
}

impl Drop for AcceptTasks {
    fn drop(&mut self) {
        for places in &self.slots {
            places.closures().report();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::shares;

    #[test]
    fn listeners_share_all_places_and_nearly_evenly() {
        let shared = |places, listeners| shares(places, listeners).collect::<Vec<_>>();
        assert_eq!(shared(1024, 1), [1024]);
        assert_eq!(shared(1024, 3), [342, 341, 341]);
        assert_eq!(shared(3, 3), [1, 1, 1]);
        assert!(shared(8, 0).is_empty());
    }
}
