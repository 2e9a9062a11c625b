//! Dialing of a daemon, with a one-line diagnosis when it fails: who answered, which protocol that
//! speaks, and what to do about it.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::address::ServerAddress;
use super::greeting::{ByteStream, FRAME_HEADER, Greeting, GreetingRecorder, HandshakeRecorder};
use crate::api::{ClientTls, ClientTlsStream};
use crate::model::refusal::quote;
use crate::sync::lock;

/// Longest that connecting may take, until the daemon has greeted.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The address to connect to, and the TLS client to use; `None` for plaintext.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) server: ServerAddress,
    pub(super) tls: Option<ClientTls>,
}

/// The pending first bytes of a server, by which a connection is verified.
pub(super) struct PendingGreeting {
    dialer: Arc<Dialer>,
    greeting: oneshot::Receiver<Greeting>,
    deadline: Instant,
}

impl Dialer {
    /// Connects, with TLS where that is requested. Whether the other end is an HTTP/2 server is
    /// only known once the connection is used, and is reported by [`PendingGreeting::judge`].
    ///
    /// # Errors
    /// Returns the reason in a form for people.
    pub(super) async fn dial(
        self: &Arc<Self>,
    ) -> Result<(GreetingRecorder, PendingGreeting), String> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let stream: Box<dyn ByteStream> = match &self.server {
            ServerAddress::Unix(path) => Box::new(unix(path).await?),
            ServerAddress::Tcp { host, port, .. } => {
                let stream = tcp(host, *port, deadline).await?;
                match &self.tls {
                    None => Box::new(stream),
                    Some(tls) => Box::new(self.tls_handshake(stream, tls, deadline).await?),
                }
            }
        };
        let dialer = Arc::clone(self);
        let explain = move |error: &io::Error| dialer.explain_broken(error);
        let (stream, greeting) = GreetingRecorder::new(stream, Box::new(explain));
        let pending = PendingGreeting {
            dialer: Arc::clone(self),
            greeting,
            deadline,
        };
        Ok((stream, pending))
    }

    async fn tls_handshake(
        &self,
        stream: TcpStream,
        tls: &ClientTls,
        deadline: Instant,
    ) -> Result<ClientTlsStream<HandshakeRecorder>, String> {
        let (stream, heard) = HandshakeRecorder::new(stream);
        let shaken = timeout_at(deadline, tls.connect(stream)).await;
        let shaken = shaken.map_err(|_| {
            format!(
                "it accepted the connection but sent nothing within {}: it may not speak TLS",
                humantime::format_duration(CONNECT_TIMEOUT)
            )
        })?;
        let shaken = shaken.map_err(|error| {
            let heard = lock(&heard);
            self.explain_handshake_failure(&heard, &error)
        })?;
        ClientTls::has_http2(&shaken)?;
        Ok(shaken)
    }

    /// Explains why a TLS handshake failed in which the other end sent `heard`.
    fn explain_handshake_failure(&self, heard: &[u8], error: &io::Error) -> String {
        let server = &self.server;
        if is_settings(heard) {
            return format!(
                "it speaks plaintext, but this command speaks TLS: write \"http://{server}\" and leave out --tls-ca \
                 (RINGFENCE_TLS_CA) and the other TLS options, or configure [tls] for the daemon"
            );
        }
        if heard.starts_with(b"HTTP/") {
            return format!(
                "it speaks HTTP/1 in plaintext (\"{}\"), but this command speaks TLS: another server listens there",
                first_line(heard)
            );
        }
        if !heard.is_empty() && !is_tls(heard) {
            return format!(
                "it does not speak TLS, and says \"{}\": another server listens there",
                first_line(heard)
            );
        }
        self.explain_broken(error)
    }

    /// Explains why an established connection broke.
    pub(super) fn explain_broken(&self, error: &io::Error) -> String {
        let told = self.tls.as_ref().and_then(|tls| tls.failure(error));
        if let Some(told) = told {
            return told;
        }
        let is_end = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof
                | io::ErrorKind::ConnectionReset
                | io::ErrorKind::BrokenPipe
        );
        match is_end {
            true => self.explain_closed(),
            false => error.to_string(),
        }
    }

    fn explain_closed(&self) -> String {
        let instead = match (&self.server, &self.tls) {
            (ServerAddress::Unix(_), _) => "",
            (ServerAddress::Tcp { .. }, None) => {
                ", or speaks TLS (\"https://\", --tls-ca) while this command speaks plaintext"
            }
            (ServerAddress::Tcp { .. }, Some(_)) => {
                ", or speaks plaintext (\"http://\") while this command speaks TLS"
            }
        };
        format!(
            "it closed the connection without sending anything: it has as many connections as it may \
             (server.max_connections), or is not a daemon{instead}"
        )
    }

    /// Succeeds where `greeting` is that of an HTTP/2 server. Otherwise it returns what the other
    /// end seems to be.
    fn judge(&self, greeting: &Greeting) -> Result<(), String> {
        let heard = match greeting {
            Greeting::Bytes(heard) => heard,
            Greeting::Closed => return Err(self.explain_closed()),
            Greeting::Broken(why) => return Err(why.clone()),
        };
        let server = &self.server;
        if is_settings(heard) {
            return Ok(());
        }
        if is_tls(heard) {
            return Err(format!(
                "it speaks TLS, but this command speaks plaintext: write \"https://{server}\", and add --tls-ca \
                 (RINGFENCE_TLS_CA) if this host does not trust the authority of its certificate"
            ));
        }
        let line = first_line(heard);
        if heard.starts_with(b"HTTP/") {
            return Err(format!(
                "it speaks HTTP/1 (\"{line}\"), not gRPC: another server listens there, or it expects TLS \
                 (\"https://{server}\")"
            ));
        }
        Err(format!(
            "it does not speak HTTP/2, and says \"{line}\": another server listens there"
        ))
    }
}

impl PendingGreeting {
    /// Waits until the server has sent its first bytes, and verifies them.
    ///
    /// # Errors
    /// Fails where the other end is no HTTP/2 server, or sends nothing.
    pub(super) async fn judge(self) -> Result<(), String> {
        match timeout_at(self.deadline, self.greeting).await {
            Ok(Ok(greeting)) => self.dialer.judge(&greeting),
            // The connection is gone, and so are its first bytes.
            Ok(Err(_)) => Err(self.dialer.explain_closed()),
            Err(_) => Err(format!(
                "it accepted the connection but sent nothing within {}: it is not a daemon, or it hangs",
                humantime::format_duration(CONNECT_TIMEOUT)
            )),
        }
    }
}

async fn tcp(host: &str, port: u16, deadline: Instant) -> Result<TcpStream, String> {
    let found = timeout_at(deadline, tokio::net::lookup_host((host, port))).await;
    let unknown = |why: &str| {
        format!(
            "the host \"{host}\" is not found ({why}): check that it is spelled right and that DNS knows it"
        )
    };
    let found: Vec<_> = match found {
        Ok(Ok(found)) => found.collect(),
        Ok(Err(error)) => return Err(unknown(&error.to_string())),
        Err(_) => return Err(unknown("DNS did not answer in time")),
    };
    let mut why = unknown("it has no address");
    let mut left = u32::try_from(found.len()).unwrap_or(u32::MAX);
    for address in found {
        // Each address has an even share of the time that is left, so that one that does not answer
        // leaves time to the others.
        let now = Instant::now();
        let share = now + deadline.saturating_duration_since(now) / left.max(1);
        left = left.saturating_sub(1);
        why = match timeout_at(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => {
                // Requests are small, so waiting to fill a segment would cost more than it saves.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => format!(
                "nothing listens at {address} (connection refused): check that the daemon is running and listens there \
                 (`listen`)"
            ),
            Ok(Err(error)) => format!("{address} cannot be reached: {error}"),
            Err(_) => format!(
                "nothing answers at {address} within {}: check that the daemon listens there (`listen`), and that no \
                 firewall or NetworkPolicy holds this host back",
                humantime::format_duration(CONNECT_TIMEOUT)
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
    let (kind, there) = (error.kind(), std::fs::metadata(path));
    if kind == io::ErrorKind::NotFound {
        return Err(format!(
            "there is no such socket: check that the daemon is running, with \"unix:{}\" in `listen`",
            path.display()
        ));
    }
    if kind == io::ErrorKind::PermissionDenied {
        let uid = rustix::process::geteuid().as_raw();
        let whose = match &there {
            Ok(there) => format!(
                "its mode is {:04o}, and its owner is {}:{}",
                there.mode() & 0o7777,
                there.uid(),
                there.gid()
            ),
            Err(_) => "a folder above it is closed to the user".to_owned(),
        };
        return Err(format!(
            "user {uid} may not use this socket ({whose}): add the user to its group, or let others in with \
             server.socket_mode"
        ));
    }
    if kind == io::ErrorKind::WouldBlock {
        return Err("too many clients are waiting to connect: try again".to_owned());
    }
    if kind == io::ErrorKind::ConnectionRefused {
        let is_socket = there.is_ok_and(|it| it.file_type().is_socket());
        return Err(match is_socket {
            true => "nothing listens on this socket any more: check that the daemon is running"
                .to_owned(),
            false => "the file there is not a socket".to_owned(),
        });
    }
    Err(error.to_string())
}

/// Reports whether the bytes begin as those of an HTTP/2 server do: with a SETTINGS frame on stream
/// 0.
fn is_settings(heard: &[u8]) -> bool {
    let Some(header) = heard.first_chunk::<FRAME_HEADER>() else {
        return false;
    };
    let [_, _, length, kind, flags, stream @ ..] = header;
    // The length fits two bytes because no server sends 64 KiB of settings, and the first frame
    // cannot be an acknowledgement.
    header[..2] == [0, 0] && length % 6 == 0 && *kind == 4 && *flags == 0 && stream == &[0; 4]
}

/// Reports whether the bytes begin with a TLS record: an alert or a handshake, of major version 3.
fn is_tls(heard: &[u8]) -> bool {
    matches!(heard, [21 | 22, 3, ..])
}

fn first_line(heard: &[u8]) -> String {
    let line = heard.split(|b| matches!(b, b'\r' | b'\n')).next();
    let line = String::from_utf8_lossy(line.unwrap_or_default());
    quote(&line)
}
