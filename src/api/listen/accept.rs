//! The accept loop of a listener. It takes a slot for each connection, runs TLS handshakes
//! concurrently, and keeps accepting when the process has run out of file descriptors.

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
use super::close_reason::ForeignProtocol;
use super::connection_slots::{ConnectionSlot, ConnectionSlots};
use super::event_loop::{EventLoopAssignment, EventLoops};
use super::origin::ConnectionOrigin;
use super::tls::ServerTls;
use super::transport::{ConnectionRules, Transport};

/// How long the accept loop pauses after a failed accept, and how long it waits for the connection
/// that it closes when no file descriptor is left.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// How long a connection whose TLS handshake failed is still read, so that the TLS alert reaches
/// its client.
const LINGER: Duration = Duration::from_secs(1);
/// The most bytes that are read, and discarded, from a connection whose TLS handshake failed.
const LINGER_BYTES: u64 = 64 << 10;

/// The accept loop of one listener, with all that it needs to hand a connection to an event loop.
pub(super) struct Acceptor {
    pub(super) listener: Listener,
    pub(super) slots: Arc<ConnectionSlots>,
    /// The TLS configuration of a TCP listener. `None` means plaintext; a unix socket never uses
    /// it.
    pub(super) tls: Option<Arc<ServerTls>>,
    pub(super) rules: ConnectionRules,
    pub(super) event_loops: EventLoops,
}

/// A socket that was just accepted, and for TCP the address of its client.
enum AcceptedStream {
    Tcp(TcpStream, IpAddr),
    Unix(UnixStream),
}

impl Acceptor {
    /// Accepts connections for as long as it is polled, and drives their TLS handshakes meanwhile.
    pub(super) async fn run(self) {
        // This spare descriptor is released when no other is left: the client that waits can then
        // be accepted and told so by being closed.
        let mut spare = File::open("/dev/null").ok();
        let mut handshakes = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.accept() => accepted,
                Some(_) = handshakes.join_next() => continue,
            };
            let accepted = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    if spare.take().is_some() && is_out_of_descriptors(&error) {
                        // The connection is closed as soon as it has been accepted.
                        let _ = tokio::time::timeout(ACCEPT_RETRY_DELAY, self.accept()).await;
                    } else {
                        tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                    }
                    spare = File::open("/dev/null").ok();
                    continue;
                }
            };
            let origin = match &accepted {
                AcceptedStream::Tcp(_, address) => ConnectionOrigin::of(*address),
                AcceptedStream::Unix(stream) => ConnectionOrigin::of_unix(stream),
            };
            let Some(slot) = self.slots.acquire(origin) else {
                continue;
            };
            if let Some(handshake) = self.assign(accepted, slot) {
                handshakes.spawn(handshake);
            }
        }
    }

    /// Assigns a connection to an event loop. For TLS it returns the handshake as a future, which
    /// the accept loop drives: an event loop that did its arithmetic would keep its other
    /// connections waiting.
    fn assign(
        &self,
        accepted: AcceptedStream,
        slot: ConnectionSlot,
    ) -> Option<impl Future<Output = ()> + Send + 'static> {
        let assignment = self.event_loops.assign();
        let adopted = match accepted {
            AcceptedStream::Unix(stream) => assignment.adopt_unix(stream).map(Transport::Unix),
            AcceptedStream::Tcp(stream, _) => assignment.adopt_tcp(stream).map(Transport::Tcp),
        };
        let transport = match adopted {
            Ok(transport) => transport,
            Err(error) => {
                slot.log_closure(&format!("it could not be handed to an event loop: {error}"));
                return None;
            }
        };
        let rules = self.rules;
        match (transport, &self.tls) {
            (Transport::Tcp(stream), Some(tls)) => {
                let tls = Arc::clone(tls);
                Some(tls_handshake(stream, tls, rules, slot, assignment))
            }
            (transport, _) => {
                assignment.hand_over(transport, rules, Some(slot));
                None
            }
        }
    }

    /// Waits for the next connection of this listener.
    async fn accept(&self) -> io::Result<AcceptedStream> {
        match &self.listener {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Responses are small: waiting to fill a segment would cost more than it saves.
                let _ = stream.set_nodelay(true);
                Ok(AcceptedStream::Tcp(stream, address.ip()))
            }
            Listener::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(AcceptedStream::Unix(stream))
            }
        }
    }
}

/// Performs the TLS handshake and hands the encrypted connection to its event loop. The connection
/// is closed instead if the handshake fails, takes too long, or its slot goes to another
/// connection.
async fn tls_handshake(
    stream: TcpStream,
    tls: Arc<ServerTls>,
    rules: ConnectionRules,
    mut slot: ConnectionSlot,
    assignment: EventLoopAssignment,
) {
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(rules.greeting, tls.accept(stream)) => shaken,
        () = poll_fn(|cx| slot.poll_revoked(cx)) => return,
    };
    let (error, stream) = match shaken {
        Ok(Ok(stream)) => {
            assignment.hand_over(Transport::tls(stream, tls), rules, Some(slot));
            return;
        }
        Ok(Err(failure)) => failure,
        Err(_) => {
            slot.log_closure("its TLS handshake took longer than server.handshake_timeout");
            return;
        }
    };
    match is_plaintext(&error) {
        true => slot.count_foreign_protocol(ForeignProtocol::Plaintext),
        false => slot.log_closure(&format!("its TLS handshake failed: {error}")),
    }
    tokio::select! {
        _ = tokio::time::timeout(LINGER, close_gently(stream)) => (),
        () = poll_fn(|cx| slot.poll_revoked(cx)) => (),
    }
}

/// Closes a connection so that the TLS alert that was written last arrives. A socket that is closed
/// while it holds unread bytes resets the connection, and the client may see the reset before the
/// alert. A TLS 1.3 client sends more before it can know that its certificate was refused.
async fn close_gently(mut stream: TcpStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut unread = stream.take(LINGER_BYTES);
    tokio::io::copy(&mut unread, &mut tokio::io::sink()).await?;
    Ok(())
}

/// Reports whether a handshake failed because the client did not speak TLS at all.
fn is_plaintext(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|it| it.downcast_ref());
    matches!(
        inner,
        Some(rustls::Error::InvalidMessage(
            InvalidMessage::InvalidContentType
        ))
    )
}

/// Reports whether accepting failed because this process, or the host, has no file descriptor left.
fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}
