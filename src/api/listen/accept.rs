//! Accepting: a place for each connection, TLS handshakes beside each other, and a way on when no descriptor is left.

use std::fs::File;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::InvalidMessage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;

use super::Listener;
use super::closures::ForeignProtocol;
use super::connection::{Patience, Transport};
use super::event_loop::{Assignment, EventLoops};
use super::origin::Origin;
use super::places::{Place, Places};
use super::tls::Tls;

/// How long accepting rests after a failure that says nothing of itself.
const REST: Duration = Duration::from_millis(50);

/// How long, and for how many bytes, a connection whose TLS handshake failed is read for its alert to arrive.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: u64 = 64 << 10;

/// Accepts at one listener.
pub(super) struct Acceptor {
    pub(super) listener: Listener,
    pub(super) places: Arc<Places>,
    /// For TCP.
    pub(super) tls: Option<Arc<Tls>>,
    pub(super) patience: Patience,
    pub(super) event_loops: EventLoops,
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
            if let Some(handshake) = self.assign(accepted, place) {
                shaking.spawn(handshake);
            }
        }
    }

    /// Has an event loop serve a connection. Where a TLS handshake comes before that, it is what is returned: a loop that
    /// did the arithmetic of it would keep its other connections waiting.
    fn assign(
        &self,
        accepted: Accepted,
        place: Place,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let assignment = self.event_loops.assign();
        let adopted = match accepted {
            Accepted::Unix(stream) => assignment.adopt_unix(stream).map(Transport::Unix),
            Accepted::Tcp(stream, _) => assignment.adopt_tcp(stream).map(Transport::Tcp),
        };
        let transport = match adopted {
            Ok(transport) => transport,
            Err(error) => {
                place.debug(&format!("it could not be handed to an event loop: {error}"));
                return None;
            }
        };
        let patience = self.patience;
        match (transport, &self.tls) {
            (Transport::Tcp(stream), Some(tls)) => {
                let tls = Arc::clone(tls);
                Some(shake_hands(stream, tls, patience, place, assignment))
            }
            (transport, _) => {
                assignment.hand_over(transport, patience, Some(place));
                None
            }
        }
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

/// Shakes hands by TLS, and has the event loop serve what comes of it; nothing where that fails, takes too long, or has
/// to make way for another.
async fn shake_hands(
    stream: TcpStream,
    tls: Arc<Tls>,
    patience: Patience,
    mut place: Place,
    assignment: Assignment,
) {
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(patience.greeting, tls.accept(stream)) => shaken,
        () = poll_fn(|cx| place.poll_lost(cx)) => return,
    };
    let (error, stream) = match shaken {
        Ok(Ok(stream)) => {
            assignment.hand_over(Transport::tls(stream, tls), patience, Some(place));
            return;
        }
        Ok(Err(failure)) => failure,
        Err(_) => {
            place.debug("its TLS handshake took longer than server.handshake_timeout");
            return;
        }
    };
    match is_plaintext(&error) {
        true => place.is_foreign(ForeignProtocol::Plaintext),
        false => place.debug(&format!("its TLS handshake failed: {error}")),
    }
    tokio::select! {
        _ = tokio::time::timeout(LINGER, close_gently(stream)) => (),
        () = poll_fn(|cx| place.poll_lost(cx)) => (),
    }
}

/// Ends a connection so that the alert that was written last arrives: a socket that is closed while bytes of the client
/// are unread resets the connection, and the client may see the reset before the alert. A client of TLS 1.3 speaks on
/// before it can know that its certificate was refused.
async fn close_gently(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut unread = stream.take(LINGER_BYTES);
    tokio::io::copy(&mut unread, &mut tokio::io::sink()).await?;
    Ok(())
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
