//! The client's side of TLS connections to a daemon, and explanations of TLS failures for people.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::aws_lc_rs;
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, InvalidDnsNameError, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::model::refusal::printable;

const NO_HTTP2: &str = "it speaks TLS, but does not offer HTTP/2 (ALPN \"h2\"), which gRPC needs: another server listens there, \
     or a proxy that does not forward gRPC";
/// The most names of a certificate that an explanation lists.
const NAMES: usize = 8;

/// The certificate authorities that a client trusts to certify daemons.
pub(crate) enum TrustedAuthorities {
    /// The authorities that this host trusts.
    OfHost,
    /// The certificates in a file.
    In {
        /// The content of the file.
        pem: Vec<u8>,
        /// The path of the file, which explanations name.
        path: PathBuf,
    },
}

/// What of a client's TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientTlsError {
    #[error(transparent)]
    Name(#[from] InvalidDnsNameError),
    #[error(transparent)]
    Versions(rustls::Error),
    #[error("{0} holds no certificate in PEM, or a damaged one")]
    NotCertificates(String),
    /// It has no source: the content of a key file is never shown.
    #[error("--tls-key holds no private key in PEM")]
    NotAKey,
    #[error("--tls-key is not the key of --tls-cert, or cannot be used: {0}")]
    AnotherKey(#[source] rustls::Error),
    #[error(
        "this host trusts no certificate authorities (SSL_CERT_FILE, /etc/ssl/certs): use --tls-ca (RINGFENCE_TLS_CA) to name a file with the daemon's authority"
    )]
    NoAuthorityOfHost,
    #[error("{0} holds no usable certificate of an authority")]
    NoAuthority(String),
}

/// The TLS configuration of a client that connects to a daemon.
#[derive(Clone)]
pub(crate) struct ClientTls {
    config: Arc<ClientConfig>,
    /// The name that the daemon's certificate has to be for.
    name: ServerName<'static>,
    /// Where the trusted authorities come from, for explanations.
    trusted: String,
    shows_certificate: bool,
}

/// A connection whose TLS handshake is complete.
pub(crate) type ClientTlsStream<S> = TlsStream<S>;

impl ClientTls {
    /// Reports whether a certificate can be for `name`, a host name or an address.
    pub(crate) fn may_be_certified(name: &str) -> bool {
        ServerName::try_from(name).is_ok()
    }

    /// Creates a configuration that expects a certificate for `name` by one of `authorities`. If
    /// `shown` is given, the client presents this certificate chain, with its key; both are in PEM.
    ///
    /// # Errors
    /// An explanation of what cannot be used.
    pub(crate) fn new(
        name: &str,
        authorities: &TrustedAuthorities,
        shown: Option<(Vec<u8>, Vec<u8>)>,
    ) -> Result<Self, ClientTlsError> {
        let name = ServerName::try_from(name.to_owned())?;
        let (roots, trusted) = roots(authorities)?;
        let builder = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(ClientTlsError::Versions)?
            .with_root_certificates(roots);
        let shows_certificate = shown.is_some();
        let mut config = match shown {
            Some((chain, key)) => {
                let chain = certificates("--tls-cert", &chain)?;
                let key =
                    PrivateKeyDer::from_pem_slice(&key).map_err(|_| ClientTlsError::NotAKey)?;
                let configured = builder.with_client_auth_cert(chain, key);
                configured.map_err(ClientTlsError::AnotherKey)?
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            name,
            trusted,
            shows_certificate,
        })
    }

    /// Performs the TLS handshake over `stream`, whose other end has to present a trusted
    /// certificate.
    pub(crate) async fn connect<S>(&self, stream: S) -> io::Result<ClientTlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let connector = TlsConnector::from(Arc::clone(&self.config));
        connector.connect(self.name.clone(), stream).await
    }

    /// Checks that the handshake agreed on HTTP/2.
    ///
    /// # Errors
    /// An explanation of what it means that it did not.
    pub(crate) fn has_http2<S>(stream: &ClientTlsStream<S>) -> Result<(), String> {
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Ok(()),
            Some(_) | None => Err(NO_HTTP2.to_owned()),
        }
    }

    /// Explains the error of a connection, or returns `None` if it is not an error of TLS.
    pub(crate) fn failure(&self, error: &io::Error) -> Option<String> {
        let inner = error.get_ref()?.downcast_ref()?;
        Some(self.tls_failed(inner))
    }

    fn tls_failed(&self, error: &rustls::Error) -> String {
        if let rustls::Error::InvalidCertificate(error) = error {
            return self.not_trusted(error);
        }
        if let rustls::Error::AlertReceived(alert) = error {
            return self.alerted(*alert);
        }
        format!("TLS failed: {error}")
    }

    /// Explains why the daemon's certificate is not accepted.
    fn not_trusted(&self, error: &CertificateError) -> String {
        let trusted = &self.trusted;
        let date = |at: &UnixTime| {
            let at = std::time::UNIX_EPOCH + Duration::from_secs(at.as_secs());
            humantime::format_rfc3339_seconds(at).to_string()
        };
        if let CertificateError::NotValidForNameContext {
            expected,
            presented,
        } = error
        {
            return format!(
                "its certificate is for {}, not for \"{}\": give the name to expect with --tls-server-name \
                 (RINGFENCE_TLS_SERVER_NAME)",
                presented_names(presented),
                expected.to_str()
            );
        }
        if let CertificateError::ExpiredContext { not_after, .. } = error {
            return format!(
                "its certificate expired at {}: the daemon needs a new one (tls.cert), or the clock of this host is \
                 wrong",
                date(not_after)
            );
        }
        if let CertificateError::NotValidYetContext { not_before, .. } = error {
            return format!(
                "its certificate is not valid before {}: the clock of one of the two hosts is wrong",
                date(not_before)
            );
        }
        // A wrong signature comes from an authority that was created anew under the same name.
        if matches!(
            error,
            CertificateError::UnknownIssuer | CertificateError::BadSignature
        ) {
            return format!(
                "its certificate is from an authority that this command does not trust (it trusts {trusted}): use \
                 --tls-ca (RINGFENCE_TLS_CA) to name a file with the daemon's authority"
            );
        }
        format!(
            "its certificate is not accepted ({error}); the trusted authorities are {trusted} (--tls-ca)"
        )
    }

    /// Explains the alert that the daemon sent in reply to this client's handshake.
    fn alerted(&self, alert: AlertDescription) -> String {
        if alert == AlertDescription::CertificateRequired {
            return "it requires a client certificate: present one with --tls-cert and --tls-key"
                .to_owned();
        }
        if alert == AlertDescription::NoApplicationProtocol {
            return NO_HTTP2.to_owned();
        }
        if alert == AlertDescription::UnrecognisedName {
            return "it has no certificate for this name: give another name with --tls-server-name (RINGFENCE_TLS_SERVER_NAME)"
                .to_owned();
        }
        let of_certificate = matches!(
            alert,
            AlertDescription::UnknownCA
                | AlertDescription::BadCertificate
                | AlertDescription::UnsupportedCertificate
                | AlertDescription::CertificateRevoked
                | AlertDescription::CertificateExpired
                | AlertDescription::CertificateUnknown
                | AlertDescription::DecryptError
        );
        if self.shows_certificate && of_certificate {
            return format!(
                "it does not accept the client certificate of --tls-cert ({alert:?}): the certificate must be valid now, \
                 and its authority must be in the daemon's tls.client_ca"
            );
        }
        format!("it refused the TLS handshake ({alert:?})")
    }
}

/// Loads the trusted authorities; the second value says where they come from, for explanations.
fn roots(authorities: &TrustedAuthorities) -> Result<(RootCertStore, String), ClientTlsError> {
    let mut roots = RootCertStore::empty();
    match authorities {
        TrustedAuthorities::OfHost => {
            let found = rustls_native_certs::load_native_certs();
            let (added, _) = roots.add_parsable_certificates(found.certs);
            match added {
                0 => Err(ClientTlsError::NoAuthorityOfHost),
                _ => Ok((roots, "those of this host".to_owned())),
            }
        }
        TrustedAuthorities::In { pem, path } => {
            let flag = format!("--tls-ca {}", path.display());
            let (added, _) = roots.add_parsable_certificates(certificates(&flag, pem)?);
            match added {
                0 => Err(ClientTlsError::NoAuthority(flag)),
                _ => Ok((roots, format!("those in {}", path.display()))),
            }
        }
    }
}

/// Parses the certificates in `pem`; `what` names their source in the error.
fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, ClientTlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err(ClientTlsError::NotCertificates(what.to_owned())),
    }
}

/// Formats the names in a certificate for people. rustls gives them as `DnsName("a.example")` and
/// `IpAddress(10.0.0.1)`.
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
        true => "no host (it has no subject alternative names)".to_owned(),
        false => names.join(", "),
    }
}
