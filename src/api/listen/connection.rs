//! A connection, and who is at its other end.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

use super::authority::AuthorityMender;
use super::closures::ForeignProtocol;
use super::event_loop::Assignment;
use super::opening::{HTTP1_ANSWER, Opening, Spoken};
use super::origin::Origin;
use super::places::{Place, Standing, UnauthenticatedCall};
use super::tls::{ClientCertificate, Tls};
use crate::api::input_calls::InputCalls;
use crate::api::request_body::UnwantedBodies;
use crate::refusal::{Reason, Refusal};

/// What an HTTP/2 client says before anything is expected of us, keepalive included: its preface of 24 bytes and the
/// header of its first frame.
const GREETING: usize = 33;
/// Pieces of 4 KiB of a request that is not answered by its content which are read so that it is answered at all.
const MAX_SKIPPED: usize = 16;

/// What a connection is made of.
pub(super) enum Transport {
    /// Plain.
    Tcp(TcpStream),
    /// Encrypted, with what the client showed.
    Tls(Box<TlsStream<TcpStream>>, Option<Arc<Shown>>),
    /// A unix socket.
    Unix(UnixStream),
}

/// A client's certificate, and who says whether it is valid still.
pub(super) struct Shown {
    certificate: ClientCertificate,
    tls: Arc<Tls>,
}

impl fmt::Debug for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.certificate.names.fmt(f)
    }
}

impl Transport {
    /// One that shook hands.
    pub(super) fn tls(stream: TlsStream<TcpStream>, tls: Arc<Tls>) -> Self {
        let certificate = ClientCertificate::of(&stream);
        let shown = certificate.map(|certificate| Arc::new(Shown { certificate, tls }));
        Self::Tls(Box::new(stream), shown)
    }
}

/// How long a connection may do nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// From its start to its greeting.
    pub(super) greeting: Duration,
    /// While something is written to it.
    pub(super) writing: Duration,
}

/// A connection that was accepted, and that its event loop has yet to take.
pub(in crate::api) struct NewConnection {
    pub(super) transport: Transport,
    pub(super) patience: Patience,
    /// None of one that was there before anything was accepted.
    pub(super) place: Option<Place>,
    pub(super) assignment: Assignment,
}

/// A connection, which holds its place, and ends when it stays silent from the start or loses its place.
pub(in crate::api) struct Connection {
    transport: Transport,
    _assignment: Assignment,
    /// Gone once the greeting came.
    silent: Option<Pin<Box<Sleep>>>,
    /// Bytes that came while `silent` was there.
    heard: usize,
    /// Until it is known what the other end speaks.
    opening: Option<Box<Opening>>,
    /// What was held back until then, as far as it is not written yet.
    unsent: Vec<u8>,
    /// How long the other end may take nothing of what is written to it. HTTP/2's own keepalive cannot end a connection
    /// that it cannot write to.
    patience: Duration,
    /// Set while it takes nothing.
    stuck: Option<Pin<Box<Sleep>>>,
    /// None of one that was there before anything was accepted.
    place: Option<Place>,
    /// Of a unix socket, whose clients may send its path as the authority.
    mender: Option<AuthorityMender>,
    /// Its place is another's, or nobody authenticated in time: nothing is read any more, and only what can be written at
    /// once is.
    lost: bool,
}

/// Calls a method of whichever transport it is.
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
    /// Begins to serve one, in the context of its event loop, whose timers it uses.
    pub(in crate::api) fn new(new: NewConnection) -> Self {
        let NewConnection {
            transport,
            patience,
            place,
            assignment,
        } = new;
        let mender = match &transport {
            Transport::Unix(_) => Some(AuthorityMender::new()),
            Transport::Tcp(_) | Transport::Tls(..) => None,
        };
        Self {
            transport,
            _assignment: assignment,
            mender,
            silent: Some(Box::pin(tokio::time::sleep(patience.greeting))),
            heard: 0,
            // One that was there before anything was accepted is our own.
            opening: place.as_ref().map(|_| Box::default()),
            unsent: Vec::new(),
            patience: patience.writing,
            stuck: None,
            place,
            lost: false,
        }
    }

    /// Who is at its other end.
    pub(in crate::api) fn peer(&self) -> Peer {
        let standing = self.place.as_ref().map(Place::standing);
        Peer::of(&self.transport, standing.cloned())
    }

    /// Whether the connection is to be closed. Where not, whoever polls is woken when it is.
    fn is_lost(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.lost
            && let Some(place) = &mut self.place
        {
            self.lost = place.poll_lost(cx).is_ready();
        }
        self.lost
    }

    /// Takes note of the first bytes that came; whether they are for somebody else.
    fn open(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> bool {
        let Some(opening) = &mut self.opening else {
            return false;
        };
        let Some(spoken) = opening.hear(bytes) else {
            return false;
        };
        let spoke_already = !opening.holds();
        self.unsent.append(&mut opening.release());
        self.opening = None;
        if let Spoken::Foreign(protocol) = spoken {
            if let Some(place) = &self.place {
                place.is_foreign(protocol);
            }
            if protocol == ForeignProtocol::Http1 && !spoke_already {
                self.unsent = HTTP1_ANSWER.to_vec();
                self.skip(cx);
            }
        }
        // What is not taken at once is written before anything else is; nobody else writes after an answer to HTTP/1, and
        // that fits into any socket.
        let _ = self.send_unsent(cx);
        spoken == Spoken::Foreign(ForeignProtocol::Http1)
    }

    /// Reads what is there and drops it: a socket that is closed with something unread loses what was written to it.
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

    /// Writes what was held back.
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
        // With TLS, a write is done when it is encrypted.
        on!(self, poll_flush(cx))
    }

    /// What came of a write, which fails where nothing could be written for too long.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.stuck = None;
            return polled;
        }
        if self.is_lost(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let patience = self.patience;
        let stuck = self
            .stuck
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        ready!(stuck.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(in crate::api) struct Peer {
    name: Arc<str>,
    uid: Option<u32>,
    shown: Option<Arc<Shown>>,
    origin: Origin,
    standing: Option<Arc<Standing>>,
    input_calls: InputCalls,
    unwanted_bodies: UnwantedBodies,
}

impl Peer {
    /// Whom it is counted as.
    pub(in crate::api) fn origin(&self) -> Origin {
        self.origin
    }

    /// Takes note of a call whose caller may be nobody; none where somebody has authenticated on the connection.
    pub(in crate::api) fn begin_call(&self) -> Option<UnauthenticatedCall> {
        self.standing.as_ref().and_then(Standing::begin_call)
    }

    /// Takes note that a call authenticated: from now on the connection keeps its place.
    pub(in crate::api) fn authenticated(&self) {
        if let Some(standing) = &self.standing {
            standing.authenticated();
        }
    }

    /// Calls of its connection that take input as it comes.
    pub(in crate::api) fn input_calls(&self) -> &InputCalls {
        &self.input_calls
    }

    /// Bodies of its connection's calls that nobody wants.
    pub(in crate::api) fn unwanted_bodies(&self) -> UnwantedBodies {
        self.unwanted_bodies.clone()
    }

    /// An address and port, or the user and process at the other end of a unix socket.
    pub(in crate::api) fn name(&self) -> Arc<str> {
        Arc::clone(&self.name)
    }

    /// The user at the other end of a unix socket.
    pub(in crate::api) fn uid(&self) -> Option<u32> {
        self.uid
    }

    /// Whether the other end is a process of the daemon's own user on this host.
    pub(in crate::api) fn is_own_user(&self) -> bool {
        self.uid == Some(rustix::process::geteuid().as_raw())
    }

    /// The names in the client's certificate, where it showed one.
    ///
    /// # Errors
    /// `CREDENTIALS_INVALID` where that is not valid any more.
    pub(in crate::api) fn certificate(&self) -> Result<Option<&[String]>, Refusal> {
        let Some(shown) = &self.shown else {
            return Ok(None);
        };
        if !shown.tls.still_takes(&shown.certificate) {
            return Err(Refusal::new(
                Reason::CredentialsInvalid,
                "the client certificate is not valid any more",
            ));
        }
        Ok(Some(&shown.certificate.names))
    }

    fn of(transport: &Transport, standing: Option<Arc<Standing>>) -> Self {
        let tcp = |stream: &TcpStream| stream.peer_addr().map(|addr| addr.to_string());
        let (name, uid, shown) = match transport {
            Transport::Tcp(stream) => (tcp(stream), None, None),
            Transport::Tls(stream, shown) => (tcp(stream.get_ref().0), None, shown.clone()),
            Transport::Unix(stream) => match stream.peer_cred() {
                Ok(peer) => {
                    let pid = peer.pid().unwrap_or_default();
                    let name = format!("unix:uid={},pid={pid}", peer.uid());
                    (Ok(name), Some(peer.uid()), None)
                }
                Err(error) => (Err(error), None, None),
            },
        };
        let origin = match (&standing, uid) {
            (Some(standing), _) => standing.origin(),
            (None, Some(uid)) => Origin::User(uid),
            (None, None) => Origin::Unknown,
        };
        Self {
            // A connection that broke already has no peer.
            name: name.unwrap_or_else(|_| "unknown".to_owned()).into(),
            uid,
            shown,
            origin,
            standing,
            input_calls: InputCalls::default(),
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
        if self.is_lost(cx) {
            // As if its client had left: answers that are on their way are written as far as they can be at once.
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = on!(self, poll_read(cx, buf));
        if self.opening.is_some() && self.open(cx, &buf.filled()[before..]) {
            // As if its client had left.
            buf.set_filled(before);
            return Poll::Ready(Ok(()));
        }
        let this = &mut *self;
        if let Some(opening) = &mut this.opening
            && polled.is_pending()
            && opening.poll_over(cx).is_ready()
        {
            this.unsent.append(&mut opening.release());
            // What is not taken at once is written before anything else is.
            let _ = this.send_unsent(cx);
        }
        if let Some(mender) = &mut self.mender {
            mender.mend(&mut buf.filled_mut()[before..]);
        }
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
        let this = self.get_mut();
        if let Some(opening) = &mut this.opening {
            if opening.hold(buf) {
                return Poll::Ready(Ok(buf.len()));
            }
            this.unsent.append(&mut opening.release());
        }
        let polled = match this.send_unsent(cx) {
            Poll::Ready(Ok(())) => on!(this, poll_write(cx, buf)),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        this.written(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let holds = this.opening.as_ref().is_some_and(|it| it.holds());
        if holds || !this.unsent.is_empty() {
            let first = bufs.iter().find(|it| !it.is_empty());
            let first = first.map_or(&[][..], |it| &**it);
            return Pin::new(this).poll_write(cx, first);
        }
        let polled = on!(this, poll_write_vectored(cx, bufs));
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
        // With TLS, a write is done when it is encrypted, and waits here.
        let this = self.get_mut();
        if this.opening.as_ref().is_some_and(|it| it.holds()) {
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
