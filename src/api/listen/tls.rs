//! TLS for TCP listeners: certificates that are read again when they change, and those that clients show.

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
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME;
use x509_parser::prelude::FromDer;

use crate::auth::{CertificateName, Parsed, Watched};

/// How often files are read again.
const LOOK: Duration = Duration::from_secs(1);
/// Certificates of a client's chain that are kept, and names of its own.
const MAX_CHAIN: usize = 8;
const MAX_NAMES: usize = 64;

/// Where certificates are.
#[derive(Clone, Debug)]
pub struct TlsSettings {
    /// The chain that is shown.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authorities of clients' certificates; `None`: clients show none.
    pub client_ca: Option<PathBuf>,
    /// Whether a client must show one.
    pub require: bool,
}

/// What connections are accepted with.
pub(super) struct Tls {
    identity: Watched<Identity>,
    /// The authorities of clients' certificates, apart from the rest: one that was taken out is not
    /// trusted any more, whatever is wrong with our own certificate.
    authorities: Option<Watched<Authorities>>,
    /// What hands are shaken with: made of both when either changes.
    config: ArcSwap<ServerConfig>,
}

/// The files of a daemon's certificates, to be read again when somebody asks for that.
#[derive(Clone)]
pub struct TlsFiles(pub(super) Arc<Tls>);

impl TlsFiles {
    /// Reads them again now.
    pub fn look(&self) {
        self.0.look();
    }
}

/// Our own certificate, with its chain and key.
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Whose certificates are taken; `None`: nobody's.
#[derive(Default)]
struct Authorities(Option<Arc<dyn ClientCertVerifier>>);

/// What a client showed, which was valid when its connection began.
#[derive(Debug)]
pub(super) struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    /// Its names, as [`CertificateName`] spells them.
    pub(super) names: Vec<String>,
}

impl Tls {
    /// Reads the files.
    pub(super) fn open(settings: &TlsSettings) -> Result<Arc<Self>, String> {
        let own = vec![settings.cert.clone(), settings.key.clone()];
        let identity = Watched::keeping("[tls]", own, identity)?;
        let require = settings.require;
        let authorities = settings.client_ca.clone().map(|path| {
            let meaning = move |contents: &[Vec<u8>]| authorities(&contents[0], require);
            Watched::revoking("tls.client_ca", vec![path], meaning)
        });
        let authorities = authorities.transpose()?;
        let verifier = authorities.as_ref().and_then(|it| it.get().0.clone());
        let config = config(&identity.get(), verifier)?;
        Ok(Arc::new(Self {
            identity,
            authorities,
            config: ArcSwap::from_pointee(config),
        }))
    }

    /// Reads files again that change, for as long as it is polled.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look();
        }
    }

    /// Reads the files again, and has what they say now in force.
    fn look(&self) {
        let own = self.identity.look();
        let clients = self.authorities.as_ref().is_some_and(Watched::look);
        if own || clients {
            self.configure();
        }
    }

    fn configure(&self) {
        let verifier = self.verifier();
        if verifier.is_none() && self.authorities.is_some() {
            // Nothing can be built that takes nobody's certificate: hands go on being shaken as they
            // were, and what clients show is refused at each call.
            return;
        }
        match config(&self.identity.get(), verifier) {
            Ok(config) => self.config.store(Arc::new(config)),
            Err(error) => tracing::error!(error, "[tls] stays as it was"),
        }
    }

    fn verifier(&self) -> Option<Arc<dyn ClientCertVerifier>> {
        self.authorities.as_ref().and_then(|it| it.get().0.clone())
    }

    /// Shakes hands. A failure comes with the connection, at which the client's last bytes may still arrive.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<TlsStream<TcpStream>, (io::Error, TcpStream)> {
        let acceptor = TlsAcceptor::from(self.config.load_full());
        acceptor.accept(stream).into_fallible().await
    }

    /// Whether what a client showed is valid now: a connection may last longer than its certificate, or its authority.
    pub(super) fn still_takes(&self, shown: &ClientCertificate) -> bool {
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
    /// Of a connection that shook hands; `None` where the client showed nothing.
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

/// The names in a certificate. An authority that checks others may leave the common name to whoever
/// asks for a certificate: it counts only where there are no alternative names of any kind.
fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let mut extensions = parsed.extensions().iter();
    let has_alternative = extensions.any(|it| it.oid == OID_X509_EXT_SUBJECT_ALT_NAME);
    let names: Vec<CertificateName> = match has_alternative {
        true => {
            // One that cannot be read has no names.
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

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn identity(contents: &[Vec<u8>]) -> Result<Parsed<Identity>, String> {
    let [cert, key] = contents else {
        return Err("a file is missing".to_owned());
    };
    let (chain, faults) = certificates(cert);
    if chain.is_empty() || faults > 0 {
        return Err("tls.cert has something else than certificates in PEM, or none".to_owned());
    }
    // What a key file holds is told to nobody.
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| "tls.key is not a private key in PEM".to_owned())?;
    let certified = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider())
        .map_err(|_| "tls.key is not the key of tls.cert".to_owned())?;
    certified
        .keys_match()
        .map_err(|_| "tls.key is not the key of tls.cert".to_owned())?;
    Ok(Identity { chain, key }.into())
}

/// Each certificate stands for itself: one that makes no sense takes nothing from the others.
fn authorities(pem: &[u8], require: bool) -> Result<Parsed<Authorities>, String> {
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
        return Err("has no certificates in PEM".to_owned());
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let builder = match require {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    let verifier = builder.build().map_err(|error| error.to_string())?;
    Ok(Parsed {
        value: Authorities(Some(verifier)),
        faults,
    })
}

fn config(
    identity: &Identity,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, String> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(identity.chain.clone(), identity.key.clone_key())
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// The certificates in a file, and how many are malformed.
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
