//! Listeners and connections: TCP and unix sockets, a cap on connections, a bound on how long one may be silent.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;

/// What an HTTP/2 client says before anything is expected of us, keepalive included: its preface of 24 bytes and the
/// header of its first frame.
const GREETING: usize = 33;
/// How long accepting rests after a failure, such as no descriptor being left.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// How connections are taken.
#[derive(Clone, Copy, Debug)]
pub struct ListenSettings {
    /// Permissions of a unix socket.
    pub socket_mode: u32,
    /// Connections at once.
    pub max_connections: u32,
    /// How long a new connection may take to say its first bytes.
    pub handshake_timeout: Duration,
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

/// Sockets that are bound; nothing is accepted yet.
pub struct Bound {
    listeners: Vec<Listener>,
    addresses: Vec<Address>,
    /// A connection that is there already.
    paired: Option<UnixStream>,
    /// Removed with this.
    sockets: Sockets,
}

/// Binds every one of `addresses`, "host:port" or "unix:/path".
///
/// # Errors
/// The first that cannot be bound.
pub async fn bind(addresses: &[String], settings: &ListenSettings) -> Result<Bound, BindError> {
    let mut bound = Bound {
        listeners: Vec::new(),
        addresses: Vec::new(),
        paired: None,
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
            bound.listeners.push(Listener::Unix(listener));
            bound.addresses.push(Address::Unix(path.to_owned()));
        } else {
            let listener = TcpListener::bind(address).await.map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            bound.listeners.push(Listener::Tcp(listener));
            bound.addresses.push(Address::Tcp(local));
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
        listeners: Vec::new(),
        addresses: Vec::new(),
        paired: Some(ours),
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

    /// Accepts connections from now on, until the second value is dropped.
    pub fn accept(
        self,
        settings: &ListenSettings,
    ) -> (ReceiverStream<io::Result<Connection>>, Accepting) {
        let (found, connections) = mpsc::channel(1);
        let slots = Arc::new(Semaphore::new(settings.max_connections as usize));
        let mut tasks = JoinSet::new();
        if let Some(stream) = self.paired
            && let Ok(slot) = Arc::clone(&slots).try_acquire_owned()
        {
            let connection =
                Connection::new(Transport::Unix(stream), settings.handshake_timeout, slot);
            let found = found.clone();
            tasks.spawn(async move {
                // Nobody takes it when nobody serves any more.
                let _ = found.send(Ok(connection)).await;
                // The stream of connections ends when this does, and serving with it.
                std::future::pending().await
            });
        }
        for listener in self.listeners {
            let acceptor = Acceptor {
                listener,
                slots: Arc::clone(&slots),
                handshake: settings.handshake_timeout,
            };
            tasks.spawn(acceptor.run(found.clone()));
        }
        let accepting = Accepting {
            _tasks: tasks,
            _sockets: self.sockets,
        };
        (ReceiverStream::new(connections), accepting)
    }
}

/// The tasks that accept; dropping it ends them and removes the sockets.
pub struct Accepting {
    _tasks: JoinSet<()>,
    _sockets: Sockets,
}

struct Acceptor {
    listener: Listener,
    slots: Arc<Semaphore>,
    handshake: Duration,
}

impl Acceptor {
    async fn run(self, found: mpsc::Sender<io::Result<Connection>>) {
        loop {
            let accepted = match &self.listener {
                Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    // Answers are small: waiting to fill a segment would cost more than it saves.
                    let _ = stream.set_nodelay(true);
                    Transport::Tcp(stream)
                }),
                Listener::Unix(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| Transport::Unix(stream)),
            };
            let transport = match accepted {
                Ok(transport) => transport,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_REST).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                tracing::warn!("a connection was closed: server.max_connections are open");
                continue;
            };
            let connection = Connection::new(transport, self.handshake, slot);
            if found.send(Ok(connection)).await.is_err() {
                return;
            }
        }
    }
}

enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A connection, which holds its slot, and ends when it stays silent from the start.
pub struct Connection {
    transport: Transport,
    /// Gone once the greeting came.
    silent: Option<Pin<Box<Sleep>>>,
    /// Bytes that came while `silent` was there.
    heard: usize,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    fn new(transport: Transport, handshake: Duration, slot: OwnedSemaphorePermit) -> Self {
        Self {
            transport,
            silent: Some(Box::pin(tokio::time::sleep(handshake))),
            heard: 0,
            _slot: slot,
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer(Arc<str>);

impl Peer {
    /// An address and port, or the user and process at the other end of a unix socket.
    pub(super) fn name(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    fn of(transport: &Transport) -> Self {
        let name = match transport {
            Transport::Tcp(stream) => stream.peer_addr().map(|addr| addr.to_string()),
            Transport::Unix(stream) => stream.peer_cred().map(|peer| {
                let pid = peer.pid().unwrap_or_default();
                format!("unix:uid={},pid={pid}", peer.uid())
            }),
        };
        // A connection that broke already has no peer.
        Self(name.unwrap_or_else(|_| "unknown".to_owned()).into())
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer::of(&self.transport)
    }
}

/// Calls a method of whichever transport it is.
macro_rules! on {
    ($self:ident, $method:ident ( $($arg:expr),* )) => {
        match &mut $self.get_mut().transport {
            Transport::Tcp(stream) => Pin::new(stream).$method($($arg),*),
            Transport::Unix(stream) => Pin::new(stream).$method($($arg),*),
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = match &mut self.transport {
            Transport::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Unix(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        let Some(silent) = &mut self.silent else {
            return polled;
        };
        if polled.is_pending() {
            ready!(silent.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.heard += buf.filled().len() - before;
        if self.heard >= GREETING {
            self.silent = None;
        }
        polled
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        on!(self, poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on!(self, poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Tcp(stream) => stream.is_write_vectored(),
            Transport::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on!(self, poll_shutdown(cx))
    }
}
