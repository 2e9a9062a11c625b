//! A connection to a daemon, and in one line why there is none: who is there, what it speaks, what to do about it.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use super::address::ServerAddress;
use super::greeting::{Dialed, FRAME_HEADER, Greeting, Overheard, Stream};
use crate::api::{ClientTls, ClientTlsStream};
use crate::refusal::quote;

/// How long a connection may take, until the daemon has greeted.
const CONNECT: Duration = Duration::from_secs(5);

/// Where to connect, and how.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) server: ServerAddress,
    pub(super) tls: Option<ClientTls>,
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
        let (stream, greeting) = Dialed::new(stream, Arc::clone(self));
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
    ) -> Result<ClientTlsStream<Overheard>, String> {
        let (stream, heard) = Overheard::new(stream);
        let shaken = timeout_at(deadline, tls.connect(stream)).await;
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
        ClientTls::has_http2(&shaken)?;
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
    pub(super) fn broken(&self, error: &io::Error) -> String {
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
            true => self.closed(),
            false => error.to_string(),
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
    let (kind, there) = (error.kind(), std::fs::metadata(path));
    if kind == io::ErrorKind::NotFound {
        return Err(format!(
            "there is no such socket: is it running, with \"unix:{}\" in `listen`?",
            path.display()
        ));
    }
    if kind == io::ErrorKind::PermissionDenied {
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
        return Err(format!(
            "user {uid} may not use this socket ({whose}): who calls has to be in its group, or server.socket_mode has \
             to let others in"
        ));
    }
    if kind == io::ErrorKind::WouldBlock {
        return Err("too many wait to be connected already: try again".to_owned());
    }
    if kind == io::ErrorKind::ConnectionRefused {
        let is_socket = there.is_ok_and(|it| it.file_type().is_socket());
        return Err(match is_socket {
            true => "nobody listens on this socket any more: whoever made it is gone".to_owned(),
            false => "there is a file that is no socket".to_owned(),
        });
    }
    Err(error.to_string())
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
