//! A connection to a daemon, and in one line why there is none: who is there, what it speaks, what to do about it.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use super::address::ServerAddress;
use super::credentials::ClientTls;
use crate::refusal::{printable, quote};

/// How long a connection may take, until the daemon has greeted.
const CONNECT: Duration = Duration::from_secs(5);
/// Bytes of what the other end says first that tell what it is.
const GREETING: usize = 64;
/// Bytes of the header of a frame of HTTP/2.
const FRAME_HEADER: usize = 9;
/// Names of a certificate that are told.
const NAMES: usize = 8;

/// Where to connect, and how.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) server: ServerAddress,
    pub(super) tls: Option<ClientTls>,
}

/// A byte stream of any kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What the other end said first.
#[derive(Debug)]
enum Greeting {
    /// Bytes, at least a frame's header of them unless it ended before.
    Bytes(Vec<u8>),
    /// Nothing, and it closed the connection.
    Closed,
    /// The connection broke: what that means.
    Broken(String),
}

/// A connection that listens to what the other end says first.
pub(super) struct Dialed {
    stream: Box<dyn Stream>,
    unheard: Option<(Vec<u8>, oneshot::Sender<Greeting>)>,
    dialer: Arc<Dialer>,
}

/// What the other end of a connection has yet to say first.
pub(super) struct PendingGreeting {
    dialer: Arc<Dialer>,
    greeting: oneshot::Receiver<Greeting>,
    deadline: Instant,
}

impl Dialer {
    /// Connects, with TLS where that was asked for. That the other end is a server of HTTP/2 shows when the connection is
    /// used, and [`PendingGreeting::judge`] says so.
    ///
    /// # Errors
    /// Why not, for people.
    pub(super) async fn dial(self: &Arc<Self>) -> Result<(Dialed, PendingGreeting), String> {
        let deadline = Instant::now() + CONNECT;
        let stream: Box<dyn Stream> = match &self.server {
            ServerAddress::Unix(path) => Box::new(unix(path).await?),
            ServerAddress::Tcp { host, port, .. } => {
                let stream = tcp(host, *port, deadline).await?;
                match &self.tls {
                    None => Box::new(stream),
                    Some(tls) => Box::new(self.shake_hands(stream, tls, deadline).await?),
                }
            }
        };
        let (tell, greeting) = oneshot::channel();
        let stream = Dialed {
            stream,
            unheard: Some((Vec::new(), tell)),
            dialer: Arc::clone(self),
        };
        let pending = PendingGreeting {
            dialer: Arc::clone(self),
            greeting,
            deadline,
        };
        Ok((stream, pending))
    }

    async fn shake_hands(
        &self,
        stream: TcpStream,
        tls: &ClientTls,
        deadline: Instant,
    ) -> Result<tokio_rustls::client::TlsStream<Overheard>, String> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let stream = Overheard {
            stream,
            heard: Arc::clone(&heard),
        };
        let connector = TlsConnector::from(Arc::clone(&tls.config));
        let shaken = timeout_at(deadline, connector.connect(tls.name.clone(), stream)).await;
        let shaken = shaken.map_err(|_| {
            format!(
                "it took the connection and said nothing within {}: it may not speak TLS",
                humantime::format_duration(CONNECT)
            )
        })?;
        let shaken = shaken.map_err(|error| {
            let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            self.no_handshake(&heard, &error)
        })?;
        if shaken.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(
                "it speaks TLS, but not HTTP/2 in it (ALPN \"h2\"), which gRPC needs: another server listens there, \
                 or a proxy that does not pass gRPC on"
                    .to_owned(),
            );
        }
        Ok(shaken)
    }

    /// Why a handshake failed in which the other end said `heard`.
    fn no_handshake(&self, heard: &[u8], error: &io::Error) -> String {
        let server = &self.server;
        if is_settings(heard) {
            return format!(
                "it speaks plaintext where this command speaks TLS: write \"http://{server}\" and leave out --tls-ca \
                 (RINGFENCE_TLS_CA) and the like, or set [tls] at the daemon"
            );
        }
        if heard.starts_with(b"HTTP/") {
            return format!(
                "it speaks HTTP/1 in plaintext (\"{}\") where this command speaks TLS: another server listens there",
                first_line(heard)
            );
        }
        if !heard.is_empty() && !is_tls(heard) {
            return format!(
                "it does not speak TLS, and says \"{}\": another server listens there",
                first_line(heard)
            );
        }
        self.broken(error)
    }

    /// What a connection that broke means.
    fn broken(&self, error: &io::Error) -> String {
        let inner = error.get_ref().and_then(|it| it.downcast_ref());
        match inner {
            Some(error) => self.tls_failed(error),
            None if error.kind() == io::ErrorKind::UnexpectedEof => self.closed(),
            None if error.kind() == io::ErrorKind::ConnectionReset => self.closed(),
            None if error.kind() == io::ErrorKind::BrokenPipe => self.closed(),
            None => error.to_string(),
        }
    }

    fn closed(&self) -> String {
        let instead = match (&self.server, &self.tls) {
            (ServerAddress::Unix(_), _) => "",
            (ServerAddress::Tcp { .. }, None) => {
                ", or speaks TLS (\"https://\", --tls-ca), where this command speaks plaintext"
            }
            (ServerAddress::Tcp { .. }, Some(_)) => {
                ", or speaks plaintext (\"http://\"), where this command speaks TLS"
            }
        };
        format!(
            "it closed the connection without a word: it has no place for one more (server.max_connections), is no \
             daemon{instead}"
        )
    }

    fn tls_failed(&self, error: &rustls::Error) -> String {
        match error {
            rustls::Error::InvalidCertificate(error) => self.not_trusted(error),
            rustls::Error::AlertReceived(alert) => self.alerted(*alert),
            error => format!("TLS failed: {error}"),
        }
    }

    /// What is wrong with its certificate.
    fn not_trusted(&self, error: &CertificateError) -> String {
        let trusted = self.tls.as_ref().map_or("", |tls| &tls.trusted);
        let date = |at: &rustls_pki_types::UnixTime| {
            let at = std::time::UNIX_EPOCH + Duration::from_secs(at.as_secs());
            humantime::format_rfc3339_seconds(at).to_string()
        };
        match error {
            CertificateError::NotValidForNameContext {
                expected,
                presented,
            } => format!(
                "its certificate is for {}, not for \"{}\": --tls-server-name (RINGFENCE_TLS_SERVER_NAME) says which of \
                 these to expect",
                presented_names(presented),
                expected.to_str()
            ),
            CertificateError::NotValidForName => {
                "its certificate is for another name: --tls-server-name (RINGFENCE_TLS_SERVER_NAME) says which to expect"
                    .to_owned()
            }
            // A signature that is wrong is that of an authority which was made anew under the same name.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => format!(
                "its certificate is of an authority that is not among the trusted, {trusted}: --tls-ca \
                 (RINGFENCE_TLS_CA) names a file with the daemon's"
            ),
            CertificateError::ExpiredContext { not_after, .. } => format!(
                "its certificate expired at {}: the daemon needs a new one (tls.cert), or the clock of this host is \
                 wrong",
                date(not_after)
            ),
            CertificateError::NotValidYetContext { not_before, .. } => format!(
                "its certificate is not valid before {}: the clock of one of the two hosts is wrong",
                date(not_before)
            ),
            error => format!(
                "its certificate is not taken ({error}); the trusted are {trusted} (--tls-ca)"
            ),
        }
    }

    /// What it said of this command's handshake.
    fn alerted(&self, alert: AlertDescription) -> String {
        let shows = self.tls.as_ref().is_some_and(|tls| tls.shows_certificate);
        match alert {
            AlertDescription::CertificateRequired => {
                "it wants a client certificate: show one with --tls-cert and --tls-key".to_owned()
            }
            AlertDescription::NoApplicationProtocol => {
                "it speaks TLS, but not HTTP/2 in it (ALPN \"h2\"), which gRPC needs: another server listens there"
                    .to_owned()
            }
            AlertDescription::UnknownCA
            | AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::DecryptError
                if shows =>
            {
                format!(
                    "it does not take the client certificate of --tls-cert ({alert:?}): its authority has to be in \
                     tls.client_ca there, and it has to be valid now"
                )
            }
            AlertDescription::UnrecognisedName => {
                "it has no certificate for this name: --tls-server-name (RINGFENCE_TLS_SERVER_NAME) says another"
                    .to_owned()
            }
            alert => format!("it refused TLS as this command speaks it ({alert:?})"),
        }
    }

    /// Nothing where `greeting` is that of a server of HTTP/2; else what the other end seems to be.
    fn judge(&self, greeting: &Greeting) -> Result<(), String> {
        let heard = match greeting {
            Greeting::Bytes(heard) => heard,
            Greeting::Closed => return Err(self.closed()),
            Greeting::Broken(why) => return Err(why.clone()),
        };
        let server = &self.server;
        if is_settings(heard) {
            return Ok(());
        }
        if is_tls(heard) {
            return Err(format!(
                "it speaks TLS where this command speaks plaintext: write \"https://{server}\", with --tls-ca \
                 (RINGFENCE_TLS_CA) where its authority is not among this host's"
            ));
        }
        let line = first_line(heard);
        if heard.starts_with(b"HTTP/") {
            return Err(format!(
                "it speaks HTTP/1 (\"{line}\") and no gRPC: another server listens there, or TLS is wanted \
                 (\"https://{server}\")"
            ));
        }
        Err(format!(
            "it speaks no HTTP/2, and says \"{line}\": another server listens there"
        ))
    }
}

impl PendingGreeting {
    /// Waits until the other end has said what it is.
    ///
    /// # Errors
    /// Where it is no server of HTTP/2, or says nothing.
    pub(super) async fn judge(self) -> Result<(), String> {
        match timeout_at(self.deadline, self.greeting).await {
            Ok(Ok(greeting)) => self.dialer.judge(&greeting),
            // The connection is gone, and with it what it had to say.
            Ok(Err(_)) => Err(self.dialer.closed()),
            Err(_) => Err(format!(
                "it took the connection and said nothing within {}: it is no daemon, or hangs",
                humantime::format_duration(CONNECT)
            )),
        }
    }
}

async fn tcp(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, String> {
    let found = timeout_at(deadline, tokio::net::lookup_host((host, port))).await;
    let unknown = |why: &str| {
        format!(
            "the host \"{host}\" is not found ({why}): is it spelled right, and does DNS know it?"
        )
    };
    let found: Vec<_> = match found {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Err(unknown(&error.to_string())),
        Err(_) => return Err(unknown("nobody answered")),
    };
    let mut why = unknown("it has no address");
    let mut left = u32::try_from(found.len()).unwrap_or(u32::MAX);
    for address in found {
        // Each has an even share of what is left: one that answers nothing leaves the others their time.
        let now = Instant::now();
        let share = now + deadline.saturating_duration_since(now) / left.max(1);
        left = left.saturating_sub(1);
        why = match timeout_at(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Requests are small: waiting to fill a segment would cost more than it saves.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => format!(
                "nothing listens at {address} (connection refused): is it running, and is that its address (`listen`)?"
            ),
            Ok(Err(error)) => format!("{address} cannot be reached: {error}"),
            Err(_) => format!(
                "nobody answers at {address} within {}: is that its address, and does a firewall or a NetworkPolicy \
                 let this host through?",
                humantime::format_duration(CONNECT)
            ),
        };
    }
    Err(why)
}

async fn unix(path: &Path) -> Result<UnixStream, String> {
    let error = match UnixStream::connect(path).await {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    let there = std::fs::metadata(path);
    Err(match error.kind() {
        io::ErrorKind::NotFound => format!(
            "there is no such socket: is it running, with \"unix:{}\" in `listen`?",
            path.display()
        ),
        io::ErrorKind::PermissionDenied => {
            let uid = rustix::process::geteuid().as_raw();
            let whose = match &there {
                Ok(there) => format!(
                    "its mode is {:04o}, its owner {}:{}",
                    there.mode() & 0o7777,
                    there.uid(),
                    there.gid()
                ),
                Err(_) => "a folder above it is closed to it".to_owned(),
            };
            format!(
                "user {uid} may not use this socket ({whose}): who calls has to be in its group, or server.socket_mode \
                 has to let others in"
            )
        }
        io::ErrorKind::ConnectionRefused if there.is_ok_and(|it| !it.file_type().is_socket()) => {
            "there is a file that is no socket".to_owned()
        }
        io::ErrorKind::ConnectionRefused => {
            "nobody listens on this socket any more: whoever made it is gone".to_owned()
        }
        io::ErrorKind::WouldBlock => "too many wait to be connected already: try again".to_owned(),
        _ => error.to_string(),
    })
}

/// Whether this begins as a server of HTTP/2 does: with a frame of settings, on no stream.
fn is_settings(heard: &[u8]) -> bool {
    let Some(header) = heard.first_chunk::<FRAME_HEADER>() else {
        return false;
    };
    let [_, _, length, kind, flags, stream @ ..] = header;
    // No setting takes 64 KiB of them, and an acknowledgement cannot be first.
    header[..2] == [0, 0] && length % 6 == 0 && *kind == 4 && *flags == 0 && stream == &[0; 4]
}

/// Whether this begins as a record of TLS does: an alert or a handshake, of a version 3.
fn is_tls(heard: &[u8]) -> bool {
    matches!(heard, [21 | 22, 3, ..])
}

fn first_line(heard: &[u8]) -> String {
    let line = heard.split(|b| matches!(b, b'\r' | b'\n')).next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    quote(&line)
}

/// Names as rustls has them, `DnsName("a.example")` and `IpAddress(10.0.0.1)`, for people.
fn presented_names(presented: &[String]) -> String {
    let plain = |name: &String| {
        let inner = name.split_once('(').map_or(name.as_str(), |(_, it)| it);
        let inner = inner.trim_end_matches(')').trim_matches('"');
        format!("\"{}\"", printable(inner))
    };
    let mut names: Vec<_> = presented.iter().take(NAMES).map(plain).collect();
    if presented.len() > NAMES {
        names.push(format!("{} more", presented.len() - NAMES));
    }
    match names.is_empty() {
        true => "no name of a host (it has no alternative names)".to_owned(),
        false => names.join(", "),
    }
}

impl Dialed {
    /// Takes note of what was said first, and tells it once enough of it is there, or nothing more will be.
    fn hear(&mut self, bytes: &[u8], polled: &io::Result<()>) {
        let Some((heard, _)) = &mut self.unheard else {
            return;
        };
        heard.extend(bytes.iter().take(GREETING - heard.len()));
        match polled {
            Ok(()) if heard.len() < FRAME_HEADER && !bytes.is_empty() => {}
            Err(error) if heard.is_empty() => {
                let why = self.dialer.broken(error);
                self.tell(Some(Greeting::Broken(why)));
            }
            Ok(()) | Err(_) => self.tell(None),
        }
    }

    /// Tells what was said first: `greeting`, or what was heard.
    fn tell(&mut self, greeting: Option<Greeting>) {
        let Some((heard, tell)) = self.unheard.take() else {
            return;
        };
        let heard = match heard.is_empty() {
            true => Greeting::Closed,
            false => Greeting::Bytes(heard),
        };
        // Of a connection that replaces a broken one nobody asks.
        let _ = tell.send(greeting.unwrap_or(heard));
    }

    /// What came of a write. A connection that breaks in one may have said why before.
    fn wrote<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &polled
            && self.unheard.is_some()
        {
            let mut last = [0; GREETING];
            let mut last = ReadBuf::new(&mut last);
            // What matters is what is there; that the connection broke is known.
            let _ = Pin::new(&mut self.stream).poll_read(cx, &mut last);
            self.hear(last.filled(), &Ok(()));
            let told = Err(io::Error::new(error.kind(), error.to_string()));
            self.hear(&[], &told);
        }
        polled
    }
}

impl Drop for Dialed {
    fn drop(&mut self) {
        // Who gives up after less than a frame's header reads no more.
        self.tell(None);
    }
}

impl AsyncRead for Dialed {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        if let Poll::Ready(result) = &polled
            && this.unheard.is_some()
        {
            let bytes = buf.filled()[before..].to_vec();
            this.hear(&bytes, result);
        }
        polled
    }
}

impl AsyncWrite for Dialed {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.wrote(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.wrote(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_flush(cx);
        this.wrote(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A TCP connection whose first bytes are kept while hands are shaken on it.
pub(super) struct Overheard {
    stream: TcpStream,
    heard: Arc<Mutex<Vec<u8>>>,
}

impl AsyncRead for Overheard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.len() < GREETING {
            let left = GREETING - heard.len();
            heard.extend(buf.filled()[before..].iter().take(left));
        }
        drop(heard);
        polled
    }
}

impl AsyncWrite for Overheard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
