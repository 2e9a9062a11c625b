//! Listeners: TCP, plain or with TLS, and unix sockets. What they accept is in [`accept`], what comes of it in
//! [`connection`]. Who may hold a connection, and who makes way, is decided in [`connection_table`].

mod accept;
mod authority;
mod closures;
mod connection;
mod connection_table;
mod event_loop;
mod opening;
mod origin;
mod places;
mod tcp;
mod tls;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinSet;

use self::accept::Acceptor;
use self::connection::{Patience, Transport};
use self::connection_table::TableLimits;
use self::places::Places;
use self::tls::Tls;

pub(super) use self::connection::{Connection, NewConnection, Peer};
pub(super) use self::event_loop::EventLoop;
pub use self::event_loop::EventLoops;
pub(super) use self::origin::Origin;
pub(super) use self::places::UnauthenticatedCall;
pub use self::tls::{TlsFiles, TlsSettings};

/// How connections are taken.
#[derive(Clone, Debug)]
pub struct ListenSettings {
    /// Permissions of a unix socket.
    pub socket_mode: u32,
    /// Connections at once, which all listeners share evenly.
    pub max_connections: u32,
    /// Of one address, or one user of a unix socket, at each listener.
    pub max_per_peer: u32,
    /// From accepting a connection to the first call that authenticates on it.
    pub first_call_timeout: Duration,
    /// What TCP connections are encrypted with.
    pub tls: Option<TlsSettings>,
    /// How long a new connection may take to say its first bytes.
    pub handshake_timeout: Duration,
    /// How long one may take nothing of what is written to it.
    pub write_timeout: Duration,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// TCP, with the port that was given or found.
    Tcp(SocketAddr),
    /// A unix socket.
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

/// Why an address cannot be listened on.
#[derive(Debug)]
pub struct BindError {
    address: String,
    source: io::Error,
}

impl BindError {
    fn tls(error: String) -> Self {
        Self {
            address: "TCP with TLS".to_owned(),
            source: io::Error::other(error),
        }
    }
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.address, self.source)
    }
}

impl std::error::Error for BindError {}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What one configured address came to.
struct Entry {
    /// As it is told.
    name: String,
    /// One for each address that a name stands for. They share their places.
    listeners: Vec<Listener>,
}

/// Sockets that are bound; nothing is accepted yet.
pub struct Bound {
    entries: Vec<Entry>,
    addresses: Vec<Address>,
    /// A connection that is there already.
    paired: Option<UnixStream>,
    tls: Option<Arc<Tls>>,
    /// Removed with this.
    sockets: Sockets,
}

/// Binds every one of `addresses`, "host:port" or "unix:/path".
///
/// # Errors
/// The first that cannot be bound.
pub async fn bind(addresses: &[String], settings: &ListenSettings) -> Result<Bound, BindError> {
    let tls = settings.tls.as_ref().map(Tls::open).transpose();
    let mut bound = Bound {
        entries: Vec::new(),
        addresses: Vec::new(),
        paired: None,
        tls: tls.map_err(BindError::tls)?,
        sockets: Sockets::default(),
    };
    for address in addresses {
        let failed = |source| BindError {
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
            bound.entries.push(Entry {
                name: own.to_string(),
                listeners: vec![Listener::Unix(listener)],
            });
            bound.addresses.push(own);
        } else {
            let apart = tcp::is_apart(address, addresses);
            let listeners = tcp::bind(address, apart).await.map_err(failed)?;
            let mut name = address.clone();
            for listener in &listeners {
                let local = Address::Tcp(listener.local_addr().map_err(failed)?);
                if listeners.len() == 1 {
                    name = local.to_string();
                }
                bound.addresses.push(local);
            }
            let listeners = listeners.into_iter().map(Listener::Tcp).collect();
            bound.entries.push(Entry { name, listeners });
        }
    }
    Ok(bound)
}

/// No listener, and one connection, whose other end is the second value: reachable by nobody else.
///
/// # Errors
/// Where the host has no descriptors left.
pub fn pair() -> Result<(Bound, UnixStream), BindError> {
    let (ours, theirs) = UnixStream::pair().map_err(|source| BindError {
        address: "a socket pair".to_owned(),
        source,
    })?;
    let bound = Bound {
        entries: Vec::new(),
        addresses: Vec::new(),
        paired: Some(ours),
        tls: None,
        sockets: Sockets::default(),
    };
    Ok((bound, theirs))
}

/// Binds under another name and renames, so that the socket has its permissions from the first moment that anybody can
/// find it, and a stale one is replaced in one step.
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
        // The failure that is told is the first one.
        let _ = std::fs::remove_file(&hidden);
        return Err(error);
    }
    Ok(listener)
}

/// Socket files that are ours, removed at the end unless another has taken their place.
#[derive(Debug, Default)]
struct Sockets(Vec<(PathBuf, u64, u64)>);

impl Sockets {
    fn add(&mut self, path: &Path) -> io::Result<()> {
        let meta = std::fs::symlink_metadata(path)?;
        self.0.push((path.to_owned(), meta.dev(), meta.ino()));
        Ok(())
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        for (path, dev, ino) in &self.0 {
            let ours = std::fs::symlink_metadata(path)
                .is_ok_and(|meta| (meta.dev(), meta.ino()) == (*dev, *ino));
            if ours {
                // Gone is what it should be.
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

impl Bound {
    /// What is listened on.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The files of its certificates, where it has any.
    pub fn tls_files(&self) -> Option<TlsFiles> {
        self.tls.clone().map(TlsFiles)
    }

    /// Accepts connections for `event_loops` from now on, until what it returns is dropped.
    pub fn accept(self, settings: &ListenSettings, event_loops: &EventLoops) -> Accepting {
        let patience = Patience {
            greeting: settings.handshake_timeout,
            writing: settings.write_timeout,
        };
        let mut tasks = JoinSet::new();
        if let Some(stream) = self.paired {
            let assignment = event_loops.assign();
            match assignment.adopt_unix(stream) {
                Ok(stream) => assignment.hand_over(Transport::Unix(stream), patience, None),
                // Its other end is closed with it, and told so.
                Err(error) => tracing::error!(%error, "the only connection cannot be served"),
            }
        }
        let shares = shares(settings.max_connections, self.entries.len());
        let mut all_places = Vec::new();
        for (entry, share) in self.entries.into_iter().zip(shares) {
            let limits = TableLimits {
                places: share,
                per_peer: settings.max_per_peer,
            };
            let places = Places::new(limits, settings.first_call_timeout, entry.name);
            let places = Arc::new(places);
            all_places.push(Arc::clone(&places));
            let tells = Arc::clone(&places);
            tasks.spawn(async move { tells.closures().keep_telling().await });
            for listener in entry.listeners {
                let acceptor = Acceptor {
                    listener,
                    places: Arc::clone(&places),
                    tls: self.tls.clone(),
                    patience,
                    event_loops: event_loops.clone(),
                };
                tasks.spawn(acceptor.run());
            }
        }
        if let Some(tls) = self.tls {
            tasks.spawn(async move { tls.watch().await });
        }
        Accepting {
            _tasks: tasks,
            _sockets: self.sockets,
            places: all_places,
        }
    }
}

/// What each of `listeners` has of `places`: no flood at one of them takes those of another.
fn shares(places: u32, listeners: usize) -> impl Iterator<Item = u32> {
    // The configuration has far fewer.
    let listeners = u32::try_from(listeners).unwrap_or(u32::MAX);
    (0..listeners).map(move |n| places / listeners + u32::from(n < places % listeners))
}

/// The tasks that accept; dropping it ends them and removes the sockets.
pub struct Accepting {
    _tasks: JoinSet<()>,
    _sockets: Sockets,
    places: Vec<Arc<Places>>,
}

impl Drop for Accepting {
    fn drop(&mut self) {
        for places in &self.places {
            places.closures().tell();
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
