//! TLS for the TCP listeners. The certificate, its key and the authorities of client certificates
//! are read again when their files change, and client certificates are verified and named here.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, aws_lc_rs};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{VerifierBuilderError, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::FromDer;

use super::protocols::Protocols;
use crate::auth::{CertificateName, Parsed, WatchedFiles, WatchedFilesError};
use crate::metrics::{MetricSource, MetricWriter, Unit};

/// How often the files are checked for changes.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// The most certificates of a client's chain that are kept.
const MAX_CHAIN: usize = 8;
/// The most names that are taken from a client's certificate.
const MAX_NAMES: usize = 64;

/// The files of certificates and keys, and whether clients must present a certificate.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// The file of the certificate chain that the daemon presents.
    pub cert: PathBuf,
    /// The file of the certificate's private key.
    pub key: PathBuf,
    /// The file of the authorities that sign client certificates. `None` means that clients present
    /// none.
    pub client_ca: Option<PathBuf>,
    /// Whether the handshake of a client that presents no certificate fails.
    pub require: bool,
}

/// The TLS configuration that connections are accepted with, which follows changes of the files.
pub(super) struct ServerTls {
    identity: WatchedFiles<ServerIdentity>,
    /// The authorities of client certificates. They are watched apart from the rest: an authority
    /// that was taken out is no longer trusted, whatever is wrong with our own certificate.
    authorities: Option<WatchedFiles<ClientAuthorities>>,
    /// What is offered to clients.
    protocols: Protocols,
    /// The configuration for handshakes, built from both when either changes.
    config: ArcSwap<ServerConfig>,
}

/// A handle to the daemon's TLS files that has them read again on request.
#[derive(Clone)]
pub struct TlsReloader(pub(super) Arc<ServerTls>);

impl MetricSource for TlsReloader {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let identity = self.0.identity.get();
        let expires = identity.chain.first().and_then(|certificate| {
            let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
            u64::try_from(parsed.validity().not_after.timestamp()).ok()
        });
        to.gauges(
            "tls_certificate_not_after_timestamp",
            "When the daemon's own certificate expires, in seconds since 1970.",
            Some(&Unit::Seconds),
            expires.map(|expires| ([], expires)),
        )
    }
}

impl TlsReloader {
    /// Reads the TLS files again now, and uses what they contain if it changed.
    pub fn reload_if_changed(&self) {
        self.0.reload_if_changed();
    }
}

/// Why TLS cannot be served.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum ServerTlsError {
    /// The files of certificates and keys cannot be used.
    Files(#[from] WatchedFilesError),
    /// The TLS library accepts no configuration made of them.
    Config(#[from] rustls::Error),
}

/// What is wrong with the contents of certificate and key files.
#[derive(Debug, thiserror::Error)]
enum TlsFileError {
    #[error("a file is missing")]
    Missing,
    #[error("tls.cert has something else than certificates in PEM, or none")]
    NotCertificates,
    /// It has no source: the contents of a key file must not reach an error message.
    #[error("tls.key is not a private key in PEM")]
    NotAKey,
    #[error("tls.key is not the key of tls.cert")]
    AnotherKey(#[source] rustls::Error),
    #[error("has no certificates in PEM")]
    NoAuthorities,
    #[error(transparent)]
    Verifier(#[from] VerifierBuilderError),
}

/// The daemon's own certificate chain and private key.
struct ServerIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// The verifier of client certificates. `None` trusts nobody's certificate.
#[derive(Default)]
struct ClientAuthorities(Option<Arc<dyn ClientCertVerifier>>);

/// A client's certificate chain, which was valid when its connection began.
#[derive(Debug)]
pub(super) struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    /// The names in the client's certificate, as [`CertificateName`] spells them.
    pub(super) names: Vec<String>,
}

impl ServerTls {
    /// Reads the certificate, the key and the authorities, and builds the configuration from them.
    pub(super) fn open(
        settings: &TlsSettings,
        protocols: Protocols,
    ) -> Result<Arc<Self>, ServerTlsError> {
        let own = vec![settings.cert.clone(), settings.key.clone()];
        let identity = WatchedFiles::keep_last_good("[tls]", own, identity)?;
        let require = settings.require;
        let authorities = settings.client_ca.clone().map(|path| {
            let meaning = move |contents: &[Vec<u8>]| authorities(&contents[0], require);
            WatchedFiles::revoke_on_error("tls.client_ca", vec![path], meaning)
        });
        let authorities = authorities.transpose()?;
        let verifier = authorities.as_ref().and_then(|it| it.get().0.clone());
        let config = config(&identity.get(), verifier, protocols)?;
        Ok(Arc::new(Self {
            identity,
            authorities,
            protocols,
            config: ArcSwap::from_pointee(config),
        }))
    }

    /// Checks the files for changes once a second, for as long as it is polled.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(CHECK_INTERVAL).await;
            self.reload_if_changed();
        }
    }

    /// Reads the files again, and builds a new configuration if either changed.
    fn reload_if_changed(&self) {
        let own = self.identity.reload_if_changed();
        let clients = self
            .authorities
            .as_ref()
            .is_some_and(WatchedFiles::reload_if_changed);
        if own || clients {
            self.configure();
        }
    }

    /// Builds the configuration for future handshakes from what the files say now.
    fn configure(&self) {
        let verifier = self.verifier();
        if verifier.is_none() && self.authorities.is_some() {
            // No configuration can be built that trusts nobody's certificate. Handshakes continue
            // with the previous one, and what clients present is refused at each call.
            return;
        }
        match config(&self.identity.get(), verifier, self.protocols) {
            Ok(config) => self.config.store(Arc::new(config)),
            Err(error) => tracing::error!(error = error.to_string(), "[tls] stays as it was"),
        }
    }

    /// Returns the verifier of client certificates that is in force now.
    fn verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        self.authorities.as_ref().and_then(|it| it.get().0.clone())
    }

    /// Performs the TLS handshake. An error comes with the socket, so that the client's last bytes
    /// can still be read.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, (io::Error, TcpStream)> {
        let acceptor = TlsAcceptor::from(self.config.load_full());
        acceptor.accept(stream).into_fallible().await
    }

    /// Reports whether a client's certificate is valid now: a connection may outlive its
    /// certificate, or its authority.
    pub(super) fn still_trusts(&self, shown: &ClientCertificate) -> bool {
        let (Some(verifier), Some((own, between))) = (self.verifier(), shown.chain.split_first())
        else {
            return false;
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = UnixTime::since_unix_epoch(now.unwrap_or_default());
        verifier.verify_client_cert(own, between, now).is_ok()
    }
}

impl ClientCertificate {
    /// Takes the certificate of a connection after its handshake; `None` if the client presented
    /// none.
    pub(super) fn of(stream: &TlsStream<TcpStream>) -> Option<Self> {
        let (_, session) = stream.get_ref();
        let chain = session.peer_certificates()?;
        let chain: Vec<_> = chain
            .iter()
            .take(MAX_CHAIN)
            .map(|it| it.clone().into_owned())
            .collect();
        let names = names(chain.first()?);
        Some(Self { chain, names })
    }
}

/// Extracts the names in a certificate. An authority that verifies the other names may leave the
/// common name to whoever requests a certificate, so it counts only if there are no alternative
/// names of any kind.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let mut extensions = parsed.extensions().iter();
    let has_alternative = extensions.any(|it| it.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
    let names: Vec<CertificateName> = match has_alternative {
        true => {
            // An extension that cannot be parsed has no names.
            let alternative = parsed.subject_alternative_name().ok().flatten();
            let alternative = alternative.iter().flat_map(|it| &it.value.general_names);
            alternative.filter_map(name).take(MAX_NAMES).collect()
        }
        false => {
            let common = parsed.subject().iter_common_name();
            let common = common.filter_map(|name| name.as_str().ok());
            let common = common.map(|name| CertificateName::Common(name.to_owned()));
            common.take(MAX_NAMES).collect()
        }
    };
    names.iter().map(ToString::to_string).collect()
}

/// Converts an alternative name; `None` if it is of a kind that names no tenant.
fn name(name: &GeneralName<'_>) -> Option<CertificateName> {
    match name {
        GeneralName::URI(name) => Some(CertificateName::Uri((*name).to_owned())),
        GeneralName::DNSName(name) => Some(CertificateName::dns(name)),
        GeneralName::RFC822Name(name) => Some(CertificateName::email(name)),
        GeneralName::IPAddress(bytes) => {
            let of_4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let address = of_4.or_else(|_| <[u8; 16]>::try_from(*bytes).map(IpAddr::from));
            address.ok().map(CertificateName::Ip)
        }
        GeneralName::OtherName(..)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    }
}

/// Returns the cryptography provider, aws-lc.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Parses the certificate chain and the key, and checks that they belong together.
fn identity(contents: &[Vec<u8>]) -> Result<Parsed<ServerIdentity>, TlsFileError> {
    let [cert, key] = contents else {
        return Err(TlsFileError::Missing);
    };
    let (chain, faults) = certificates(cert);
    if chain.is_empty() || faults > 0 {
        return Err(TlsFileError::NotCertificates);
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| TlsFileError::NotAKey)?;
    CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
        .and_then(|certified| certified.keys_match())
        .map_err(TlsFileError::AnotherKey)?;
    Ok(ServerIdentity { chain, key }.into())
}

/// Builds the verifier from the authorities in a file. Each certificate stands for itself: a
/// malformed one does not invalidate the others.
fn authorities(pem: &[u8], require: bool) -> Result<Parsed<ClientAuthorities>, TlsFileError> {
    let (found, malformed) = certificates(pem);
    let mut roots = RootCertStore::empty();
    let mut faults = Vec::new();
    if malformed > 0 {
        faults.push(format!("{malformed} of its certificates are malformed"));
    }
    for certificate in found {
        if let Err(error) = roots.add(certificate) {
            faults.push(error.to_string());
        }
    }
    if roots.is_empty() {
        return Err(TlsFileError::NoAuthorities);
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = match require {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    let verifier = builder.build()?;
    Ok(Parsed {
        value: ClientAuthorities(Some(verifier)),
        faults,
    })
}

/// Builds the TLS configuration, which offers `protocols` (ALPN).
fn config(
    identity: &ServerIdentity,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    protocols: Protocols,
) -> Result<ServerConfig, rustls::Error> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(identity.chain.clone(), identity.key.clone_key())?;
    config.alpn_protocols = match protocols {
        Protocols::Http2 => vec![b"h2".to_vec()],
        Protocols::Http1AndHttp2 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
    };
    Ok(config)
}

/// Returns the certificates in a PEM file, and how many of them are malformed.
fn certificates(pem: &[u8]) -> (Vec<CertificateDer<'static>>, usize) {
    let (mut found, mut malformed) = (Vec::new(), 0);
    for certificate in CertificateDer::pem_slice_iter(pem) {
        match certificate {
            Ok(certificate) => found.push(certificate),
            Err(_) => malformed += 1,
        }
    }
    (found, malformed)
}
