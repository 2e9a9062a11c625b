//! TLS for TCP listeners: certificates that are read again when they change, and those that clients show.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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
use x509_parser::prelude::FromDer;

use crate::auth::Watched;

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
    files: Watched<Read>,
}

/// What the files say.
struct Read {
    config: Arc<ServerConfig>,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
}

/// What a client showed, which was valid when its connection began.
#[derive(Debug)]
pub(super) struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    /// Its URIs and DNS names; its common name where it has none of these.
    pub(super) names: Vec<String>,
}

impl Tls {
    /// Reads the files.
    pub(super) fn open(settings: &TlsSettings) -> Result<Arc<Self>, String> {
        let mut paths = vec![settings.cert.clone(), settings.key.clone()];
        paths.extend(settings.client_ca.clone());
        let require = settings.require;
        let files = Watched::open("[tls]", paths, move |contents| read(contents, require))?;
        Ok(Arc::new(Self { files }))
    }

    /// Reads files again that change, for as long as it is polled.
    pub(super) async fn watch(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.files.look();
        }
    }

    /// Shakes hands.
    pub(super) async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.files.get().config));
        acceptor.accept(stream).await
    }

    /// Whether what a client showed is valid now: a connection may last longer than its certificate, or its authority.
    pub(super) fn still_takes(&self, shown: &ClientCertificate) -> bool {
        let files = self.files.get();
        let (Some(verifier), Some((own, between))) = (&files.verifier, shown.chain.split_first())
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

fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let alternative = parsed.subject_alternative_name().ok().flatten();
    let alternative = alternative.iter().flat_map(|it| &it.value.general_names);
    let told = alternative.filter_map(|name| match name {
        GeneralName::URI(name) | GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::OtherName(..)
        | GeneralName::RFC822Name(_)
        | GeneralName::X400Address(_)
        | GeneralName::DirectoryName(_)
        | GeneralName::EDIPartyName(_)
        | GeneralName::IPAddress(_)
        | GeneralName::RegisteredID(_)
        | GeneralName::Invalid(..) => None,
    });
    let common = parsed
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok().map(str::to_owned));
    let told: Vec<String> = told.take(MAX_NAMES).collect();
    if told.is_empty() {
        // An authority that checks other names may leave this one to whoever asks for a certificate.
        return common.take(MAX_NAMES).collect();
    }
    told
}

fn read(contents: &[Vec<u8>], require: bool) -> Result<Read, String> {
    let [cert, key, rest @ ..] = contents else {
        return Err("a file is missing".to_owned());
    };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chain = certificates(cert).map_err(|why| format!("tls.cert {why}"))?;
    // What a key file holds is told to nobody.
    let key = PrivateKeyDer::from_pem_slice(key)
        .map_err(|_| "tls.key is not a private key in PEM".to_owned())?;
    let certified = CertifiedKey::from_der(chain.clone(), key.clone_key(), &provider)
        .map_err(|_| "tls.key is not the key of tls.cert".to_owned())?;
    certified
        .keys_match()
        .map_err(|_| "tls.key is not the key of tls.cert".to_owned())?;
    let verifier = match rest {
        [] => None,
        [ca, ..] => Some(verifier(ca, require, &provider)?),
    };
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &verifier {
        Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(chain, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Read {
        config: Arc::new(config),
        verifier,
    })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(_) => Err("has no certificates in PEM".to_owned()),
    }
}

fn verifier(
    ca: &[u8],
    require: bool,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca).map_err(|why| format!("tls.client_ca {why}"))? {
        roots
            .add(certificate)
            .map_err(|error| format!("tls.client_ca: {error}"))?;
    }
    let roots = Arc::new(roots);
    let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
    let builder = match require {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    builder
        .build()
        .map_err(|error| format!("tls.client_ca: {error}"))
}
