//! Accepting: caps on connections, TLS handshakes beside each other, and a way on when no descriptor is left.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Listener;
use super::connection::{Connection, Patience, Transport};
use super::tls::Tls;

/// How long accepting rests after a failure that says nothing of itself.
const REST: Duration = Duration::from_millis(50);

/// Whom connections are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Origin {
    /// An address; of IPv6 the network of 64 bits, in which one host has all addresses that it likes.
    Address(IpAddr),
    /// A user on a unix socket.
    User(u32),
}

impl Origin {
    fn of(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = address.to_bits() & (u128::MAX << 64);
                IpAddr::V6(network.into())
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// The places that connections take.
#[derive(Debug)]
pub(super) struct Places {
    most: u32,
    per_origin: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    all: u32,
    by: HashMap<Origin, u32>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    origin: Option<Origin>,
}

impl Places {
    pub(super) fn new(most: u32, per_origin: u32) -> Arc<Self> {
        Arc::new(Self {
            most,
            per_origin,
            taken: Mutex::default(),
        })
    }

    /// A place for a connection of `origin`, where there is one.
    pub(super) fn take(self: &Arc<Self>, origin: Option<Origin>) -> Option<Place> {
        let mut taken = self.lock();
        if taken.all >= self.most {
            return None;
        }
        if let Some(origin) = origin {
            let of_it = taken.by.entry(origin).or_default();
            if *of_it >= self.per_origin {
                return None;
            }
            *of_it += 1;
        }
        taken.all += 1;
        Some(Place {
            places: Arc::clone(self),
            origin,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Taken> {
        // Nothing panics while it is held.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.all -= 1;
        if let Some(origin) = self.origin
            && let Some(of_it) = taken.by.get_mut(&origin)
        {
            *of_it -= 1;
            if *of_it == 0 {
                taken.by.remove(&origin);
            }
        }
    }
}

/// Accepts at one listener.
pub(super) struct Acceptor {
    pub(super) listener: Listener,
    pub(super) places: Arc<Places>,
    /// For TCP.
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) patience: Patience,
    pub(super) found: mpsc::Sender<io::Result<Connection>>,
}

enum Accepted {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

impl Acceptor {
    pub(super) async fn run(self) {
        // Given up when no other is left, so that whoever waits can be told so by being closed.
        let mut spare = File::open("/dev/null").ok();
        let mut shaking = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                Some(_) = shaking.join_next() => continue,
            };
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    if spare.take().is_some() && is_out_of_descriptors(&error) {
                        // Closed as soon as it is there.
                        let _ = tokio::time::timeout(REST, self.accept()).await;
                    } else {
                        tokio::time::sleep(REST).await;
                    }
                    spare = File::open("/dev/null").ok();
                    continue;
                }
            };
            let origin = match &accepted {
                Accepted::Tcp(_, address) => Some(Origin::of(*address)),
                Accepted::Unix(stream) => stream.peer_cred().ok().map(|it| Origin::User(it.uid())),
            };
            let Some(place) = self.places.take(origin) else {
                tracing::warn!(
                    ?origin,
                    "a connection was closed: server.max_connections, or max_connections_per_peer, are open"
                );
                continue;
            };
            match (accepted, &self.tls) {
                (Accepted::Unix(stream), _) => self.hand_on(Transport::Unix(stream), place).await,
                (Accepted::Tcp(stream, _), None) => {
                    self.hand_on(Transport::Tcp(stream), place).await;
                }
                (Accepted::Tcp(stream, _), Some(tls)) => {
                    let (tls, found, patience) =
                        (Arc::clone(tls), self.found.clone(), self.patience);
                    shaking.spawn(async move {
                        let shaken =
                            tokio::time::timeout(patience.greeting, tls.accept(stream)).await;
                        let Ok(Ok(stream)) = shaken else {
                            tracing::debug!(?origin, "a TLS handshake failed");
                            return;
                        };
                        let stream = Transport::tls(stream, tls);
                        let connection = Connection::new(stream, patience, place);
                        // Nobody takes it when nobody serves any more.
                        let _ = found.send(Ok(connection)).await;
                    });
                }
            }
        }
    }

    async fn hand_on(&self, transport: Transport, place: Place) {
        let connection = Connection::new(transport, self.patience, place);
        // Nobody takes it when nobody serves any more, and then this task ends too.
        let _ = self.found.send(Ok(connection)).await;
    }

    async fn accept(&self) -> io::Result<Accepted> {
        match &self.listener {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are small: waiting to fill a segment would cost more than it saves.
                let _ = stream.set_nodelay(true);
                Ok(Accepted::Tcp(stream, address.ip()))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Accepted::Unix(stream))
            }
        }
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}
