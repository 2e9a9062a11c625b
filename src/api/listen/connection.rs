//! A client connection as HTTP reads and writes it, and the peer at its other end. The connection
//! holds its slot, detects foreign protocols, repairs authorities, and ends when it stays silent,
//! accepts no data, or is evicted.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::authority::AuthorityRewriter;
use super::close_reason::ForeignProtocol;
use super::connection_counters::ConnectionCounters;
use super::connection_slots::{ConnectionAuthState, ConnectionSlot, UnauthenticatedCall};
use super::event_loop::{EventLoopAssignment, NewConnection};
use super::origin::ConnectionOrigin;
use super::protocol_sniffer::{HTTP1_ANSWER, ProtocolSniffer, SniffedProtocol};
use super::transport::{PeerCertificate, Transport};
use crate::api::client_streaming_calls::ClientStreamingCalls;
use crate::api::layers::request_body::UnwantedBodies;
use crate::model::refusal::{Reason, Refusal};

/// Bytes that an HTTP/2 client sends before anything is expected of us, keepalive included: its
/// preface of 24 bytes and the header of its first frame.
const GREETING: usize = 33;
/// The most pieces of 4 KiB that are read from an HTTP/1 request and discarded, so that our
/// response to it arrives.
const MAX_SKIPPED: usize = 16;

/// A client connection as HTTP reads and writes it. It holds its slot until it is dropped. It
/// ends when its client stays silent at the start, accepts no data for too long, or loses the slot.
pub(in crate::api) struct Connection {
    transport: Transport,
    _assignment: EventLoopAssignment,
    /// Closes the connection if the client's first bytes do not come in time; `None` once they
    /// have.
    greeting_timer: Option<Pin<Box<Sleep>>>,
    /// Bytes that are yet to come before `greeting_timer` is stopped.
    greeting_left: usize,
    /// Detects the client's protocol; `None` once that is known.
    sniffer: Option<Box<ProtocolSniffer>>,
    /// What the sniffer held back and was not written yet.
    unsent: Vec<u8>,
    /// How long the client may accept nothing of what is written to it. HTTP/2's own keepalive
    /// cannot end a connection that it cannot write to.
    write_timeout: Duration,
    /// Runs while the client accepts nothing; `None` otherwise.
    write_stall_timer: Option<Pin<Box<Sleep>>>,
    /// `None` for the daemon's own connection, which exists before anything is accepted.
    slot: Option<ConnectionSlot>,
    /// Where the bytes are counted; `None` for the daemon's own connection.
    totals: Option<Arc<ConnectionCounters>>,
    /// Only for a unix socket, whose clients may send its path as the authority of HTTP/2.
    authority_rewriter: Option<AuthorityRewriter>,
    /// Whether the connection lost its slot, or nobody authenticated in time. Nothing is read any
    /// more then, and only what can be written at once is.
    revoked: bool,
}

/// Calls a method of the stream that the transport holds.
macro_rules! on {
    ($self:expr, $method:ident ( $($arg:expr),* )) => {
        match &mut $self.transport {
            Transport::Tcp(stream) => Pin::new(stream).$method($($arg),*),
            Transport::Tls(stream, _) => Pin::new(&mut **stream).$method($($arg),*),
            Transport::Unix(stream) => Pin::new(stream).$method($($arg),*),
        }
    };
}

impl Connection {
    /// Creates a connection whose time starts now. It must be called in the context of its event
    /// loop, whose timers it uses.
    pub(in crate::api) fn new(new: NewConnection) -> Self {
        let NewConnection {
            transport,
            rules,
            slot: place,
            assignment,
        } = new;
        let authority_rewriter = match &transport {
            Transport::Unix(_) => Some(AuthorityRewriter::new()),
            Transport::Tcp(_) | Transport::Tls(..) => None,
        };
        let sniffer = |_| Box::new(ProtocolSniffer::new(rules.protocols));
        Self {
            transport,
            _assignment: assignment,
            authority_rewriter,
            greeting_timer: Some(Box::pin(tokio::time::sleep(rules.greeting))),
            greeting_left: GREETING,
            // A connection without a slot is the daemon's own, and speaks HTTP/2.
            sniffer: place.as_ref().map(sniffer),
            unsent: Vec::new(),
            write_timeout: rules.writing,
            write_stall_timer: None,
            totals: place.as_ref().map(|place| Arc::clone(place.totals())),
            slot: place,
            revoked: false,
        }
    }

    /// Returns the peer at the other end of the connection.
    pub(in crate::api) fn peer(&self) -> Peer {
        let auth_state = self.slot.as_ref().map(ConnectionSlot::auth_state);
        Peer::of(&self.transport, auth_state.cloned())
    }

    /// Returns the address of this host that the connection was made to, which is unspecified for
    /// one that is already broken; `None` for a unix socket.
    pub(in crate::api) fn local_ip(&self) -> Option<IpAddr> {
        let local = match &self.transport {
            Transport::Tcp(stream) => stream.local_addr(),
            Transport::Tls(stream, _) => stream.get_ref().0.local_addr(),
            Transport::Unix(_) => return None,
        };
        let unknown = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        Some(local.map_or(unknown, |address| address.ip().to_canonical()))
    }

    /// Reports whether the connection must be closed. If not, the task is woken when it must be.
    fn is_revoked(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.revoked
            && let Some(place) = &mut self.slot
        {
            self.revoked = place.poll_revoked(cx).is_ready();
        }
        self.revoked
    }

    /// Passes the first bytes to the sniffer, counts a foreign protocol, and answers HTTP/1.
    /// Returns whether the connection is to end because the client speaks HTTP/1.
    fn sniff_protocol(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> bool {
        let Some(sniffer) = &mut self.sniffer else {
            return false;
        };
        let Some(spoken) = sniffer.hear(bytes) else {
            return false;
        };
        let spoke_already = !sniffer.holds();
        self.unsent.append(&mut sniffer.release());
        self.sniffer = None;
        match spoken {
            SniffedProtocol::Http2 => {}
            // A request of HTTP/1 may be shorter than the greeting of HTTP/2.
            SniffedProtocol::Http1 => {
                self.greeting_timer = None;
                self.authority_rewriter = None;
            }
            SniffedProtocol::Other => self.authority_rewriter = None,
            SniffedProtocol::Foreign(protocol) => {
                if let Some(place) = &self.slot {
                    place.count_foreign_protocol(protocol);
                }
                if protocol == ForeignProtocol::Http1 && !spoke_already {
                    self.unsent = HTTP1_ANSWER.to_vec();
                    self.skip(cx);
                }
            }
        }
        // What the socket does not accept at once is written before anything else. After an answer
        // to HTTP/1 nothing else is written, and that answer fits into any socket's buffer.
        let _ = self.send_unsent(cx);
        spoken == SniffedProtocol::Foreign(ForeignProtocol::Http1)
    }

    /// Reads what has arrived and discards it: a socket that is closed with unread bytes loses what
    /// was written to it.
    fn skip(&mut self, cx: &mut Context<'_>) {
        let mut piece = [0; 4 << 10];
        for _ in 0..MAX_SKIPPED {
            let mut piece = ReadBuf::new(&mut piece);
            let polled = on!(self, poll_read(cx, &mut piece));
            if !matches!(polled, Poll::Ready(Ok(()))) || piece.filled().is_empty() {
                return;
            }
        }
    }

    /// Writes what the sniffer held back, before anything else is written.
    fn send_unsent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.unsent.is_empty() {
            let written = ready!(on!(self, poll_write(cx, &self.unsent)))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.unsent.drain(..written);
        }
        // With TLS, a write counts as done once it is encrypted, so it still has to be flushed.
        on!(self, poll_flush(cx))
    }

    /// Counts the bytes that a write has written.
    fn count_sent(&self, polled: &Poll<io::Result<usize>>) {
        if let (Some(totals), Poll::Ready(Ok(written))) = (&self.totals, polled) {
            totals.sent.add(*written as u64);
        }
    }

    /// Turns the result of a write into an error if the connection is revoked, or if the client
    /// accepted nothing for the write timeout.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.write_stall_timer = None;
            return polled;
        }
        if self.is_revoked(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let patience = self.write_timeout;
        let stuck = self
            .write_stall_timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// The peer at the other end of a connection, as its calls see it, with the state that all calls of
/// the connection share.
#[derive(Clone, Debug)]
pub(in crate::api) struct Peer {
    name: Arc<str>,
    uid: Option<u32>,
    certificate: Option<Arc<PeerCertificate>>,
    origin: ConnectionOrigin,
    auth_state: Option<Arc<ConnectionAuthState>>,
    input_calls: ClientStreamingCalls,
    unwanted_bodies: UnwantedBodies,
}

impl Peer {
    /// Returns the origin that the connection is counted under.
    pub(in crate::api) fn origin(&self) -> ConnectionOrigin {
        self.origin
    }

    /// Registers a call whose caller is not authenticated yet. Returns `None` if a call has
    /// authenticated on the connection already, or if it has no slot.
    pub(in crate::api) fn begin_call(&self) -> Option<UnauthenticatedCall> {
        self.auth_state
            .as_ref()
            .and_then(ConnectionAuthState::begin_call)
    }

    /// Records that a call authenticated: from now on the connection keeps its slot.
    pub(in crate::api) fn mark_authenticated(&self) {
        if let Some(auth_state) = &self.auth_state {
            auth_state.mark_authenticated();
        }
    }

    /// Returns the limit on the calls of this connection that stream input.
    pub(in crate::api) fn client_streaming_calls(&self) -> &ClientStreamingCalls {
        &self.input_calls
    }

    /// Returns the counter of this connection's request bodies that nobody wants but that are read.
    pub(in crate::api) fn unwanted_bodies(&self) -> UnwantedBodies {
        self.unwanted_bodies.clone()
    }

    /// Returns the peer's address and port, or the user and process at the other end of a unix
    /// socket.
    pub(in crate::api) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// Returns the user id at the other end of a unix socket; `None` for TCP.
    pub(in crate::api) fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Reports whether the other end is a process of the daemon's own user on this host.
    pub(in crate::api) fn is_own_user(&self) -> bool {
        self.uid == Some(rustix::process::geteuid().as_raw())
    }

    /// Reports whether the client presented a certificate.
    pub(in crate::api) fn has_certificate(&self) -> bool {
        self.certificate.is_some()
    }

    /// Returns the names in the client's certificate, or `None` if it presented none.
    ///
    /// # Errors
    /// `CREDENTIALS_INVALID` if the certificate is no longer valid.
    pub(in crate::api) fn certificate(&self) -> Result<Option<&[String]>, Refusal> {
        let Some(certificate) = &self.certificate else {
            return Ok(None);
        };
        if !certificate.tls.still_trusts(&certificate.certificate) {
            return Err(Refusal::new(
                Reason::CredentialsInvalid,
                "the client certificate is not valid any more",
            ));
        }
        Ok(Some(&certificate.certificate.names))
    }

    /// Describes the peer of `transport`; the state is that of the connection's slot, if it has
    /// one.
    fn of(transport: &Transport, auth_state: Option<Arc<ConnectionAuthState>>) -> Self {
        let tcp = |stream: &TcpStream| stream.peer_addr().map(|addr| addr.to_string());
        let (name, uid, certificate) = match transport {
            Transport::Tcp(stream) => (tcp(stream), None, None),
            Transport::Tls(stream, certificate) => {
                (tcp(stream.get_ref().0), None, certificate.clone())
            }
            Transport::Unix(stream) => match stream.peer_cred() {
                Ok(peer) => {
                    let pid = peer.pid().unwrap_or_default();
                    let name = format!("unix:uid={},pid={pid}", peer.uid());
                    (Ok(name), Some(peer.uid()), None)
                }
                Err(error) => (Err(error), None, None),
            },
        };
        let origin = match (&auth_state, uid) {
            (Some(auth_state), _) => auth_state.origin(),
            (None, Some(uid)) => ConnectionOrigin::User(uid),
            (None, None) => ConnectionOrigin::Unknown,
        };
        Self {
            // A connection that is already broken has no peer address.
            name: name.unwrap_or_else(|_| "unknown".to_owned()).into(),
            uid,
            certificate,
            origin,
            auth_state,
            input_calls: ClientStreamingCalls::default(),
            unwanted_bodies: UnwantedBodies::default(),
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_revoked(cx) {
            // To HTTP/2 it looks as if the client had left: responses on their way are still
            // written as far as the socket accepts them at once.
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = on!(self, poll_read(cx, buf));
        if let Some(totals) = &self.totals {
            totals.received.add((buf.filled().len() - before) as u64);
        }
        if self.sniffer.is_some() && self.sniff_protocol(cx, &buf.filled()[before..]) {
            // To HTTP/2 it looks as if the client had left.
            buf.set_filled(before);
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        if let Some(sniffer) = &mut this.sniffer
            && polled.is_pending()
            && sniffer.poll_over(cx).is_ready()
        {
            this.unsent.append(&mut sniffer.release());
            // What the socket does not accept at once is written before anything else.
            let _ = this.send_unsent(cx);
        }
        if let Some(authority_rewriter) = &mut self.authority_rewriter {
            authority_rewriter.rewrite(&mut buf.filled_mut()[before..]);
        }
        let Some(silent) = &mut self.greeting_timer else {
            return polled;
        };
        if polled.is_pending() {
            ready!(silent.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        let came = buf.filled().len() - before;
        self.greeting_left = self.greeting_left.saturating_sub(came);
        if self.greeting_left == 0 {
            self.greeting_timer = None;
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
        let this = self.get_mut();
        if let Some(sniffer) = &mut this.sniffer {
            if sniffer.hold(buf) {
                return Poll::Ready(Ok(buf.len()));
            }
            this.unsent.append(&mut sniffer.release());
        }
        let polled = match this.send_unsent(cx) {
            Poll::Ready(Ok(())) => on!(this, poll_write(cx, buf)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        this.count_sent(&polled);
        this.written(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let holds = this.sniffer.as_ref().is_some_and(|it| it.holds());
        if holds || !this.unsent.is_empty() {
            let first = bufs.iter().find(|it| !it.is_empty());
            let first = first.map_or(&[][..], |it| &**it);
            return Pin::new(this).poll_write(cx, first);
        }
        let polled = on!(this, poll_write_vectored(cx, bufs));
        this.count_sent(&polled);
        this.written(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Tcp(stream) => stream.is_write_vectored(),
            Transport::Tls(stream, _) => stream.is_write_vectored(),
            Transport::Unix(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // With TLS, a write counts as done once it is encrypted; it is here that it waits for the
        // socket.
        let this = self.get_mut();
        if this.sniffer.as_ref().is_some_and(|it| it.holds()) {
            return Poll::Ready(Ok(()));
        }
        let sent = this.send_unsent(cx);
        let polled = match matches!(sent, Poll::Ready(Ok(()))) {
            true => on!(this, poll_flush(cx)),
            false => sent,
        };
        this.written(cx, polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = on!(this, poll_shutdown(cx));
        this.written(cx, polled)
    }
}
