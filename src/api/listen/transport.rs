//! The byte stream of a connection, what it may speak, and how long it may make no progress.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::server::TlsStream;

use super::protocols::Protocols;
use super::tls::{ClientCertificate, ServerTls};

/// The byte stream that a connection runs on.
pub(super) enum Transport {
    /// A TCP connection without TLS.
    Tcp(TcpStream),
    /// A TCP connection with TLS, and the certificate that the client presented, if any.
    Tls(Box<TlsStream<TcpStream>>, Option<Arc<PeerCertificate>>),
    /// A connection over a unix socket.
    Unix(UnixStream),
}

/// A client's certificate, with the TLS configuration that decides whether it is still valid.
pub(super) struct PeerCertificate {
    pub(super) certificate: ClientCertificate,
    pub(super) tls: Arc<ServerTls>,
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.certificate.names.fmt(f)
    }
}

impl Transport {
    /// Creates the transport of a connection whose TLS handshake is complete.
    pub(super) fn tls(stream: TlsStream<TcpStream>, tls: Arc<ServerTls>) -> Self {
        let certificate = ClientCertificate::of(&stream);
        let shown = certificate.map(|certificate| Arc::new(PeerCertificate { certificate, tls }));
        Self::Tls(Box::new(stream), shown)
    }
}

/// What a connection may speak, and how long it may make no progress before it is closed.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionRules {
    /// From its acceptance to the end of the TLS handshake, and from there to the client's first
    /// bytes of HTTP.
    pub(super) greeting: Duration,
    /// How long the client may accept none of what is being written to it.
    pub(super) writing: Duration,
    /// What the connection may speak.
    pub(super) protocols: Protocols,
}
