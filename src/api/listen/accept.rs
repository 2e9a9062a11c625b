//! Accepting: a place for each connection, TLS handshakes beside each other, and a way on when no descriptor is left.

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::InvalidMessage;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Listener;
use super::closures::ForeignProtocol;
use super::connection::{Connection, Patience, Transport};
use super::origin::Origin;
use super::places::{Place, Places};
use super::tls::Tls;

/// How long accepting rests after a failure that says nothing of itself.
const REST: Duration = Duration::from_millis(50);

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
                Accepted::Tcp(_, address) => Origin::of(*address),
                Accepted::Unix(stream) => Origin::of_unix(stream),
            };
            let Some(place) = self.places.take(origin) else {
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
                        if let Some(connection) = shake_hands(stream, tls, patience, place).await {
                            // Nobody takes it when nobody serves any more.
                            let _ = found.send(Ok(connection)).await;
                        }
                    });
                }
            }
        }
    }

    async fn hand_on(&self, transport: Transport, place: Place) {
        let connection = Connection::new(transport, self.patience, Some(place));
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

/// The connection that comes of a TLS handshake; none where it fails, takes too long, or has to make way for another.
async fn shake_hands(
    stream: TcpStream,
    tls: Arc<Tls>,
    patience: Patience,
    mut place: Place,
) -> Option<Connection> {
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(patience.greeting, tls.accept(stream)) => shaken,
        () = poll_fn(|cx| place.poll_lost(cx)) => return None,
    };
    let stream = match shaken {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if is_plaintext(&error) => {
            place.is_foreign(ForeignProtocol::Plaintext);
            return None;
        }
        Ok(Err(error)) => {
            place.debug(&format!("its TLS handshake failed: {error}"));
            return None;
        }
        Err(_) => {
            place.debug("its TLS handshake took longer than server.handshake_timeout");
            return None;
        }
    };
    let transport = Transport::tls(stream, tls);
    Some(Connection::new(transport, patience, Some(place)))
}

/// Whether a handshake failed since what came was no TLS at all.
fn is_plaintext(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|it| it.downcast_ref());
    matches!(
        inner,
        Some(rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType
        ))
    )
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}
