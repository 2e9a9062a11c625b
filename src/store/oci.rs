//! Modules from OCI registries, in the layout that the CNCF gives WebAssembly artefacts: a manifest with one layer, the
//! module.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::TryStreamExt;
use oci_client::client::{Client, ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::manifest::{OciDescriptor, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{ParseError, Reference};
use serde::Deserialize;

use super::blob::{Assembly, Blob};
use crate::config::{lacks_authorities, no_trust_store};
use crate::refusal::{Reason, Refusal, quote};
use crate::request::{Digest, module_too_large};

/// What a reference starts with.
const SCHEME: &str = "oci://";
/// The field that holds one.
const FIELD: &str = "oci";
/// What a module's layer is called: by the layout, and by tools from before it.
const LAYERS: [&str; 2] = [
    "application/wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
];
/// Bytes of a reference at the most.
const MAX_REFERENCE: usize = 1024;
/// How long a pull may take in all, a connection, and the next bytes.
const PULL: Duration = Duration::from_secs(600);
const CONNECT: Duration = Duration::from_secs(5);
const READ: Duration = Duration::from_secs(30);
/// What a caller is told to wait while a registry is away.
const RETRY: Duration = Duration::from_secs(1);

/// The registries that modules may be pulled from.
#[derive(Debug, Default)]
pub struct Registries {
    allowed: Vec<Registry>,
    credentials: Option<PathBuf>,
}

/// A registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// "host" or "host:port".
    pub host: String,
    /// Whether it speaks plain HTTP.
    pub plain: bool,
}

/// A module that was pulled.
pub struct Pulled {
    /// Its bytes.
    pub wasm: Blob,
    /// Their digest.
    pub digest: Digest,
    /// The reference with the manifest's digest.
    pub resolved: String,
}

/// A Docker configuration, as far as it holds credentials.
#[derive(Deserialize)]
struct Credentials {
    #[serde(default)]
    auths: HashMap<String, Login>,
}

#[derive(Deserialize)]
struct Login {
    /// "user:password" in base64.
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    #[serde(rename = "registrytoken")]
    token: Option<String>,
}

impl Registries {
    /// Those in `allowed`, with credentials from a file as Docker's `config.json`, which is read for each pull.
    pub fn new(allowed: Vec<Registry>, credentials: Option<PathBuf>) -> Self {
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

    /// Pulls a module into `assembly`.
    ///
    /// # Errors
    /// `SPEC_INVALID` for what is no reference, `POLICY_DENIED` for a registry that is not allowed, `MODULE_NOT_FOUND`
    /// for what the registry does not give to this daemon, `MODULE_INVALID` for another artefact, `MODULE_TOO_LARGE`,
    /// `DIGEST_MISMATCH` for bytes that are not what they should be, `STORE_UNAVAILABLE` for a registry that is away.
    pub async fn pull(&self, reference: &str, assembly: Assembly) -> Result<Pulled, Refusal> {
        let reference = self.check(reference)?;
        let pull = self.pull_checked(&reference, assembly);
        let pulled = tokio::time::timeout(PULL, pull).await;
        pulled.unwrap_or_else(|_| Err(unavailable(&reference, "it took too long")))
    }

    fn check(&self, text: &str) -> Result<Reference, Refusal> {
        if text.len() > MAX_REFERENCE {
            return Err(Refusal::above(FIELD, text.len(), MAX_REFERENCE));
        }
        let invalid = |why: &str| {
            let message = format!(
                "\"{}\" is not {SCHEME}REGISTRY/REPOSITORY:TAG or {SCHEME}REGISTRY/REPOSITORY@DIGEST: {why}",
                quote(text)
            );
            Refusal::invalid(FIELD, message)
        };
        let name = text
            .strip_prefix(SCHEME)
            .ok_or_else(|| invalid("another scheme"))?;
        let reference: Reference = name
            .parse()
            .map_err(|error: ParseError| invalid(&error.to_string()))?;
        // Without this check a bare name would quietly be one of Docker Hub's.
        if !name.starts_with(&format!("{}/", reference.registry())) {
            return Err(invalid("it names no registry"));
        }
        if self
            .allowed
            .iter()
            .any(|it| it.host == reference.registry())
        {
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
        mut assembly: Assembly,
    ) -> Result<Pulled, Refusal> {
        let client = self.client(reference)?;
        let auth = self.login(reference.registry()).await?;
        let manifest = client.pull_manifest(reference, &auth).await;
        let (manifest, digest) = manifest.map_err(|error| refused(reference, error))?;
        let mut layer = layer(reference, manifest)?;
        // Where else it might be had is not for a manifest to say: any host could stand there.
        layer.urls = None;
        let size = u64::try_from(layer.size).unwrap_or(u64::MAX);
        if size > assembly.most() {
            return Err(module_too_large(FIELD, size, true, assembly.most()));
        }
        let expected = Digest::parse("digest", &layer.digest)
            .map_err(|_| not_a_module(reference, "its layer has no SHA-256"))?;
        let blob = client.pull_blob_stream(reference, &layer).await;
        let mut stream = blob.map_err(|error| refused(reference, error))?.stream;
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
            resolved: format!("{SCHEME}{registry}/{repository}@{digest}"),
        })
    }

    /// One for each pull: a client keeps the credentials that it was given first.
    fn client(&self, reference: &Reference) -> Result<Client, Refusal> {
        self.try_client().map_err(|error| {
            if lacks_authorities(&error) {
                tracing::error!(%reference, "oci.registries: {}", no_trust_store());
                return unavailable(reference, "this host has no authorities to trust");
            }
            Refusal::internal(format_args!("a registry's client: {error}"))
        })
    }

    /// The library takes the host's authorities, and makes no client without any, not even for registries of plain HTTP.
    fn try_client(&self) -> Result<Client, OciDistributionError> {
        let plain = self.allowed.iter().filter(|it| it.plain);
        Client::try_from(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(plain.map(|it| it.host.clone()).collect()),
            // An index has a module for each platform: there is one for all.
            platform_resolver: None,
            connect_timeout: Some(CONNECT),
            read_timeout: Some(READ),
            ..ClientConfig::default()
        })
    }

    async fn login(&self, registry: &str) -> Result<RegistryAuth, Refusal> {
        let Some(path) = &self.credentials else {
            return Ok(RegistryAuth::Anonymous);
        };
        let unreadable = |error: &dyn std::fmt::Display| {
            Refusal::internal(format_args!(
                "oci.credentials_file: {}: {error}",
                path.display()
            ))
        };
        let text = tokio::fs::read(path)
            .await
            .map_err(|error| unreadable(&error))?;
        let Credentials { mut auths } =
            // What serde says of a mistake quotes the text: it holds secrets.
            serde_json::from_slice(&text).map_err(|_| unreadable(&"it is no Docker configuration"))?;
        let login = auths
            .remove(registry)
            .or_else(|| auths.remove(&format!("https://{registry}")));
        match login {
            None => Ok(RegistryAuth::Anonymous),
            Some(login) => login
                .into_auth()
                .ok_or_else(|| unreadable(&"an entry has no user and password, and no token")),
        }
    }
}

impl Login {
    fn into_auth(self) -> Option<RegistryAuth> {
        if let Some(token) = self.token {
            return Some(RegistryAuth::Bearer(token));
        }
        if let (Some(username), Some(password)) = (self.username, self.password) {
            return Some(RegistryAuth::Basic(username, password));
        }
        let auth = String::from_utf8(STANDARD.decode(self.auth?).ok()?).ok()?;
        let (username, password) = auth.split_once(':')?;
        Some(RegistryAuth::Basic(
            username.to_owned(),
            password.to_owned(),
        ))
    }
}

/// The one layer that is a module.
fn layer(reference: &Reference, manifest: OciManifest) -> Result<OciDescriptor, Refusal> {
    let OciManifest::Image(manifest) = manifest else {
        return Err(not_a_module(reference, "it is an index of several"));
    };
    let mut layers = manifest.layers.into_iter();
    match (layers.next(), layers.next()) {
        (Some(layer), None) if LAYERS.contains(&layer.media_type.as_str()) => Ok(layer),
        (Some(layer), None) => {
            let kind = quote(&layer.media_type);
            Err(not_a_module(reference, &format!("its layer is {kind}")))
        }
        (None, _) => Err(not_a_module(reference, "it has no layer")),
        (Some(_), Some(_)) => Err(not_a_module(reference, "it has several layers")),
    }
}

fn is_mismatch(error: &io::Error) -> bool {
    error
        .get_ref()
        .is_some_and(|error| error.is::<DigestError>())
}

fn refused(reference: &Reference, error: OciDistributionError) -> Refusal {
    use OciDistributionError as Error;
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever else keeps a registry from answering"
    )]
    match error {
        Error::DigestError(_) => tampered(reference),
        Error::ImageManifestNotFoundError(_)
        | Error::UnauthorizedError { .. }
        | Error::AuthenticationFailure(_)
        | Error::ServerError { code: 404, .. } => missing(reference, &error),
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
            missing(reference, &error)
        }
        Error::UnsupportedMediaTypeError(_)
        | Error::UnsupportedSchemaVersionError(_)
        | Error::ManifestParsingError(_)
        | Error::VersionedParsingError(_)
        | Error::ManifestEncodingError(_) => not_a_module(reference, &error.to_string()),
        error => unavailable(reference, &error.to_string()),
    }
}

fn missing(reference: &Reference, error: &OciDistributionError) -> Refusal {
    tracing::info!(%reference, %error, "a registry does not give a module");
    let name = quote(&reference.to_string());
    let message = format!("the registry does not give {name} to this daemon");
    Refusal::new(Reason::ModuleNotFound, message).at(FIELD)
}

fn not_a_module(reference: &Reference, why: &str) -> Refusal {
    let (name, why) = (quote(&reference.to_string()), quote(why));
    let message = format!("{name} is no WebAssembly artefact of one module: {why}");
    Refusal::new(Reason::ModuleInvalid, message).at(FIELD)
}

fn tampered(reference: &Reference) -> Refusal {
    tracing::error!(%reference, "a registry gave bytes that are not those of their digest");
    let name = quote(&reference.to_string());
    let message = format!("what the registry gives for {name} is not what its digest says");
    Refusal::new(Reason::DigestMismatch, message).at(FIELD)
}

fn unavailable(reference: &Reference, why: &str) -> Refusal {
    tracing::warn!(%reference, why, "a registry cannot be used");
    let registry = quote(reference.registry());
    Refusal::new(
        Reason::StoreUnavailable,
        format!("the registry {registry} cannot be reached, or does not work"),
    )
    .with("store", format!("{SCHEME}{registry}"))
    .retry_after(RETRY)
}
