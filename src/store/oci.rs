//! Modules from OCI registries, in the CNCF's layout for WebAssembly artefacts: a manifest with one
//! layer, which is the module.

use std::io;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{FutureExt, TryStreamExt};
use http::HeaderValue;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciError, OciErrorCode};
use oci_client::manifest::{ImageIndexEntry, OciDescriptor, OciImageManifest, OciManifest};
use oci_client::{ParseError, Reference, RegistryOperation};

use super::blob::{Blob, BlobAssembler};
use super::docker_auth::{self, RegistryCredential};
use crate::model::refusal::{Reason, Refusal, printable, quote};
use crate::model::request::{Digest, module_too_large};
use crate::trust_store::{lacks_authorities, no_trust_store};

/// The scheme with which a reference starts.
pub const OCI_SCHEME: &str = "oci://";
/// The field of a request that holds the reference.
const FIELD: &str = "oci";
/// Media types of a module's layer: the one of the layout, and those of older tools.
const LAYERS: [&str; 3] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
    "application/vnd.module.wasm.content.layer.v1+wasm",
];
/// Architectures that stand for WebAssembly in an image index.
const ARCHITECTURES: [&str; 2] = ["wasm", "wasm32"];
/// Operating systems that stand for WebAssembly in an image index.
const SYSTEMS: [&str; 3] = ["wasip1", "wasip2", "wasi"];
/// The annotation that marks an entry of an index as a statement about another entry.
const ABOUT_ANOTHER: &str = "vnd.docker.reference.type";
/// Most entries of an index that an error lists.
const MOST_NAMED: usize = 5;
/// Longest reference in bytes.
const MAX_REFERENCE: usize = 1024;
/// Most bytes of foreign text that an error quotes.
const MOST_TOLD: usize = 600;
/// Longest that a whole pull may take.
const PULL: Duration = Duration::from_secs(600);
/// Longest that opening a connection may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for the next bytes of an answer.
const READ: Duration = Duration::from_secs(30);
/// The delay after which callers are told to retry while a registry is unavailable.
const RETRY: Duration = Duration::from_secs(1);
/// The delay after which callers are told to retry where the registry limits the rate of requests.
const RETRY_LESS_OFTEN: Duration = Duration::from_secs(30);

/// The client for the registries from which modules may be pulled.
#[derive(Debug, Default)]
pub struct OciPuller {
    allowed: Vec<OciRegistry>,
    credentials: Option<PathBuf>,
}

/// A registry from which modules may be pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OciRegistry {
    /// The address, as "host" or "host:port".
    pub host: String,
    /// Whether the registry speaks plain HTTP rather than HTTPS.
    pub plain: bool,
}

/// A module that was pulled from a registry.
pub struct Pulled {
    /// The bytes of the module.
    pub wasm: Blob,
    /// The digest of these bytes.
    pub digest: Digest,
    /// The reference, with the manifest's digest in place of a tag.
    pub resolved: String,
}

impl OciPuller {
    /// Creates a puller for the registries in `allowed`. The credentials are in a file like
    /// Docker's `config.json`, which is read for each pull.
    pub fn new(allowed: Vec<OciRegistry>, credentials: Option<PathBuf>) -> Self {
        let registries = Self {
            allowed,
            credentials,
        };
        if !registries.allowed.is_empty()
            && let Err(error) = registries.try_client()
            && lacks_authorities(&error)
        {
            tracing::warn!("oci.registries cannot be pulled from: {}", no_trust_store());
        }
        registries
    }

    /// Pulls a module into `assembly`, and verifies its digest.
    ///
    /// # Errors
    /// Returns `SPEC_INVALID` for text that is no reference, `POLICY_DENIED` for a registry that is
    /// not allowed, `MODULE_NOT_FOUND` for what the registry does not give to this daemon,
    /// `MODULE_INVALID` for another kind of artefact, `MODULE_TOO_LARGE`, `DIGEST_MISMATCH` for
    /// bytes that do not match their digest, and `STORE_UNAVAILABLE` for a registry that is
    /// unavailable.
    pub async fn pull(&self, reference: &str, assembly: BlobAssembler) -> Result<Pulled, Refusal> {
        let reference = self.check(reference)?;
        // The library panics on some answers of registries, because it assumes that they can be
        // sent on.
        let pull = AssertUnwindSafe(self.pull_checked(&reference, assembly)).catch_unwind();
        match tokio::time::timeout(PULL, pull).await {
            Ok(Ok(pulled)) => pulled,
            Ok(Err(_)) => Err(unavailable(&reference, "it answers what cannot be used")),
            Err(_) => Err(unavailable(&reference, "it took too long")),
        }
    }

    fn check(&self, text: &str) -> Result<Reference, Refusal> {
        if text.len() > MAX_REFERENCE {
            return Err(Refusal::above(FIELD, text.len(), MAX_REFERENCE));
        }
        let invalid = |why: &str| {
            let message = format!(
                "\"{}\" is not {OCI_SCHEME}REGISTRY/REPOSITORY:TAG or {OCI_SCHEME}REGISTRY/REPOSITORY@DIGEST: {why}",
                quote(text)
            );
            Refusal::invalid(FIELD, message)
        };
        let name = text
            .strip_prefix(OCI_SCHEME)
            .ok_or_else(|| invalid("another scheme"))?;
        let reference: Reference = name
            .parse()
            .map_err(|error: ParseError| invalid(&error.to_string()))?;
        // Without this check, a bare name would silently be one of Docker Hub's.
        let registry = reference.registry();
        let named = name.split_once('/').map_or("", |(named, _)| named);
        if named != registry && hub(named) != registry {
            return Err(invalid("it names no registry"));
        }
        if self.allowed.iter().any(|it| hub(&it.host) == registry) {
            return Ok(reference);
        }
        Err(Refusal::denied(
            FIELD,
            "oci.registries",
            format!("{} is not granted", quote(reference.registry())),
        ))
    }

    async fn pull_checked(
        &self,
        reference: &Reference,
        mut assembly: BlobAssembler,
    ) -> Result<Pulled, Refusal> {
        let client = self.client(reference)?;
        let RegistryCredential { auth, missing } = self.login(reference).await?;
        let refused = |error| refused(reference, error, missing.as_deref());
        let token = client.auth(reference, &auth, RegistryOperation::Pull).await;
        let token = token.map_err(refused)?.unwrap_or_default();
        if HeaderValue::from_str(&token).is_err() {
            return Err(unavailable(
                reference,
                "it gives a token that cannot be sent",
            ));
        }
        let manifest = client.pull_manifest(reference, &auth).await;
        let (manifest, digest) = match manifest.map_err(refused)? {
            (OciManifest::Image(manifest), digest) => (manifest, digest),
            (OciManifest::ImageIndex(index), _) => {
                let entry = entry(reference, &index.manifests)?;
                let one = reference.clone_with_digest(entry.digest.clone());
                match client.pull_manifest(&one, &auth).await.map_err(refused)? {
                    (OciManifest::Image(manifest), digest) => (manifest, digest),
                    (OciManifest::ImageIndex(_), _) => {
                        return Err(not_a_module(reference, "it is an index of indexes"));
                    }
                }
            }
        };
        let mut layer = layer(reference, manifest)?;
        // The manifest must not name other places to fetch the layer from: it could name any host.
        layer.urls = None;
        let size = u64::try_from(layer.size).unwrap_or(u64::MAX);
        if size > assembly.most() {
            return Err(module_too_large(FIELD, size, true, assembly.most()));
        }
        let expected = Digest::parse("digest", &layer.digest)
            .map_err(|_| not_a_module(reference, "its layer has no SHA-256"))?;
        let blob = client.pull_blob_stream(reference, &layer).await;
        let mut stream = blob.map_err(refused)?.stream;
        loop {
            match stream.try_next().await {
                Ok(Some(piece)) => assembly.push(piece).await?,
                Ok(None) => break,
                Err(error) if is_mismatch(&error) => return Err(tampered(reference)),
                Err(error) => return Err(unavailable(reference, &error.to_string())),
            }
        }
        let (wasm, found) = assembly.finish().await?;
        if found != expected {
            return Err(tampered(reference));
        }
        let (registry, repository) = (reference.registry(), reference.repository());
        Ok(Pulled {
            wasm,
            digest: found,
            resolved: format!("{OCI_SCHEME}{registry}/{repository}@{digest}"),
        })
    }

    /// Creates a client for one pull: a client keeps the credentials that it was given first.
    fn client(&self, reference: &Reference) -> Result<Client, Refusal> {
        self.try_client().map_err(|error| {
            if lacks_authorities(&error) {
                tracing::error!(%reference, "oci.registries: {}", no_trust_store());
                return unavailable(reference, "this host has no authorities to trust");
            }
            Refusal::internal(format_args!("a registry's client: {error}"))
        })
    }

    /// Creates a client. The library uses the host's certificate authorities, and fails without
    /// any, even for registries of plain HTTP.
    fn try_client(&self) -> Result<Client, OciDistributionError> {
        let plain = self.allowed.iter().filter(|it| it.plain);
        Client::try_from(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain.map(|it| it.host.clone()).collect()),
            // The library would choose an entry of an index by the host's platform, but a module is
            // the same for all.
            platform_resolver: None,
            connect_timeout: Some(CONNECT),
            read_timeout: Some(READ),
            ..ClientConfig::default()
        })
    }

    /// Looks up the credentials for a reference.
    async fn login(&self, reference: &Reference) -> Result<RegistryCredential, Refusal> {
        let Some(path) = &self.credentials else {
            return Ok(docker_auth::nothing("oci.credentials_file is not set"));
        };
        let unusable = |why: &dyn std::fmt::Display| {
            tracing::error!(path = %path.display(), error = %why, "oci.credentials_file cannot be used");
            let message = format!("oci.credentials_file cannot be used: {why}");
            let store = format!("{OCI_SCHEME}{}", quote(reference.registry()));
            Refusal::new(Reason::StoreUnavailable, message)
                .with("store", store)
                .retry_after(RETRY)
        };
        let text = tokio::fs::read(path).await.map_err(|it| unusable(&it))?;
        let found = docker_auth::find(&text, reference.registry(), reference.repository());
        let mut shown = found.map_err(|why| unusable(&why))?;
        shown.missing = shown
            .missing
            .map(|why| format!("oci.credentials_file: {why}"));
        Ok(shown)
    }
}

/// Returns the name that references use for Docker Hub if `host` is another of its names.
fn hub(host: &str) -> &str {
    match host {
        "index.docker.io" => "docker.io",
        host => host,
    }
}

/// Selects the entry of an index that is a module: the only one, or the only one for WebAssembly.
fn entry<'a>(
    reference: &Reference,
    entries: &'a [ImageIndexEntry],
) -> Result<&'a ImageIndexEntry, Refusal> {
    let is_about_another = |it: &ImageIndexEntry| {
        let annotations = it.annotations.as_ref();
        annotations.is_some_and(|it| it.contains_key(ABOUT_ANOTHER))
    };
    let own: Vec<_> = entries.iter().filter(|it| !is_about_another(it)).collect();
    if let [one] = own[..] {
        return Ok(one);
    }
    let is_wasm = |it: &ImageIndexEntry| {
        it.platform.as_ref().is_some_and(|platform| {
            let (os, architecture) = (platform.os.to_string(), platform.architecture.to_string());
            SYSTEMS.contains(&os.as_str()) || ARCHITECTURES.contains(&architecture.as_str())
        })
    };
    let wasm: Vec<_> = own.iter().copied().filter(|it| is_wasm(it)).collect();
    if let [one] = wasm[..] {
        return Ok(one);
    }
    let named = own.iter().take(MOST_NAMED).map(|it| {
        let platform = it.platform.as_ref();
        let platform = platform.map(|it| format!("{}/{}", it.os, it.architecture));
        format!("{} {}", platform.unwrap_or_default(), it.digest)
    });
    let named: Vec<String> = named.collect();
    let why = match (own.len(), wasm.len()) {
        (0, _) => "it is an index of nothing".to_owned(),
        (all, 0) => format!(
            "it is an index of {all}, none of them for wasm: {}",
            named.join(", ")
        ),
        (_, several) => format!(
            "it is an index of several, {several} of them for wasm: name one by its digest, of {}",
            named.join(", ")
        ),
    };
    Err(not_a_module(reference, &why))
}

/// Selects the one layer that is a module. Other layers, such as a description, are ignored.
fn layer(reference: &Reference, manifest: OciImageManifest) -> Result<OciDescriptor, Refusal> {
    let is_module = |layer: &OciDescriptor| {
        let kind = layer.media_type.split(';').next().unwrap_or_default();
        LAYERS.iter().any(|it| it.eq_ignore_ascii_case(kind.trim()))
    };
    let kinds: Vec<_> = manifest
        .layers
        .iter()
        .map(|it| quote(&it.media_type))
        .collect();
    let mut modules = manifest.layers.into_iter().filter(is_module);
    match (modules.next(), modules.next(), kinds.as_slice()) {
        (Some(layer), None, _) => Ok(layer),
        (Some(_), Some(_), _) => Err(not_a_module(reference, "it has several layers of modules")),
        (None, _, []) => Err(not_a_module(reference, "it has no layer")),
        (None, _, [kind]) => Err(not_a_module(reference, &format!("its layer is {kind}"))),
        (None, _, kinds) => {
            let kinds = kinds.get(..MOST_NAMED).unwrap_or(kinds).join(", ");
            let why = format!("none of its layers is a module: {kinds}");
            Err(not_a_module(reference, &why))
        }
    }
}

fn is_mismatch(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|error| error.is::<DigestError>())
}

/// Converts a registry's error to a refusal. `credentials` says why there were none, where that is
/// so.
fn refused(
    reference: &Reference,
    error: OciDistributionError,
    credentials: Option<&str>,
) -> Refusal {
    use OciDistributionError as Error;
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever else keeps a registry from answering"
    )]
    match error {
        Error::DigestError(_) => tampered(reference),
        Error::UnauthorizedError { .. }
        | Error::AuthenticationFailure(_)
        | Error::ServerError { code: 403, .. } => missing(reference, &error, credentials),
        Error::ImageManifestNotFoundError(_) | Error::ServerError { code: 404, .. } => {
            missing(reference, &error, None)
        }
        Error::ServerError { code: 429, .. } => too_often(reference),
        Error::RegistryError { ref envelope, .. }
            if envelope
                .errors
                .iter()
                .any(|error| error.code == OciErrorCode::Toomanyrequests) =>
        {
            too_often(reference)
        }
        Error::RegistryError { ref envelope, .. }
            if !envelope.errors.is_empty()
                && envelope.errors.iter().all(|error| {
                    matches!(
                        error.code,
                        OciErrorCode::ManifestUnknown
                            | OciErrorCode::NameUnknown
                            | OciErrorCode::BlobUnknown
                            | OciErrorCode::NotFound
                            | OciErrorCode::Denied
                            | OciErrorCode::Unauthorized
                    )
                }) =>
        {
            let denied = |it: &OciError| {
                matches!(it.code, OciErrorCode::Denied | OciErrorCode::Unauthorized)
            };
            let denied = envelope.errors.iter().any(denied);
            missing(reference, &error, credentials.filter(|_| denied))
        }
        Error::UnsupportedMediaTypeError(_)
        | Error::UnsupportedSchemaVersionError(_)
        | Error::ManifestParsingError(_)
        | Error::VersionedParsingError(_)
        | Error::ManifestEncodingError(_) => not_a_module(reference, &error.to_string()),
        error => unavailable(reference, &error.to_string()),
    }
}

fn missing(
    reference: &Reference,
    error: &OciDistributionError,
    credentials: Option<&str>,
) -> Refusal {
    tracing::info!(%reference, %error, credentials, "a registry does not give a module");
    let name = quote(&reference.to_string());
    let why = credentials.map_or_else(String::new, |why| {
        format!(", which shows no credentials: {}", told(why))
    });
    let message = format!("the registry does not give {name} to this daemon{why}");
    Refusal::new(Reason::ModuleNotFound, message).at_field(FIELD)
}

/// Cuts what a registry or a file says to the length that an error has room for.
fn told(why: &str) -> String {
    let why = printable(&why[..why.floor_char_boundary(MOST_TOLD)]);
    why[..why.floor_char_boundary(MOST_TOLD)].to_owned()
}

fn not_a_module(reference: &Reference, why: &str) -> Refusal {
    let (name, why) = (quote(&reference.to_string()), told(why));
    let message = format!("{name} is no WebAssembly artefact of one module: {why}");
    Refusal::new(Reason::ModuleInvalid, message).at_field(FIELD)
}

fn tampered(reference: &Reference) -> Refusal {
    tracing::error!(%reference, "a registry gave bytes that are not those of their digest");
    let name = quote(&reference.to_string());
    let message = format!("what the registry gives for {name} is not what its digest says");
    Refusal::new(Reason::DigestMismatch, message).at_field(FIELD)
}

fn too_often(reference: &Reference) -> Refusal {
    let registry = quote(reference.registry());
    tracing::warn!(%reference, "a registry has been asked too often");
    Refusal::new(
        Reason::StoreUnavailable,
        format!("the registry {registry} has been asked too often by this daemon"),
    )
    .with("store", format!("{OCI_SCHEME}{registry}"))
    .retry_after(RETRY_LESS_OFTEN)
}

fn unavailable(reference: &Reference, why: &str) -> Refusal {
    tracing::warn!(%reference, why, "a registry cannot be used");
    let registry = quote(reference.registry());
    Refusal::new(
        Reason::StoreUnavailable,
        format!("the registry {registry} cannot be reached, or does not work"),
    )
    .with("store", format!("{OCI_SCHEME}{registry}"))
    .retry_after(RETRY)
}
