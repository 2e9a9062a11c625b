//! The backend that keeps objects in an object store, or in this process's memory as if it were
//! one.

use std::panic::AssertUnwindSafe;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    ClientConfigKey, Error, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions,
    PutPayload, RetryConfig,
};

use super::backend::{
    Backend, BackendError, BackendFuture, ObjectKey, ObjectKind, PutOutcome, WriteMode,
};
use super::blob::Blob;
use super::provider_error::{
    Asking, backend_error, cannot_create_only, is_absent, no_object_store,
};
use crate::model::request::Digest;
use crate::trust_store::{NoTrustStore, lacks_authorities, no_trust_store};

/// Longest that a whole request may take, with its body.
const REQUEST: Duration = Duration::from_secs(600);
/// Longest that a small request may take.
const SMALL: Duration = Duration::from_secs(15);
/// Longest wait for the next bytes of an answer.
const READ: Duration = Duration::from_secs(15);
/// Longest that opening a connection may take.
const CONNECT: &str = "3s";
/// Longest that a failed request is retried.
const RETRYING: Duration = Duration::from_secs(5);
/// Most retries of a failed request.
const RETRIES: usize = 3;
/// Longest that the daemon's start waits to learn whether the object store can be used.
const CHECK: Duration = Duration::from_secs(5);

/// A backend over the `object_store` library.
pub(super) struct ObjectStoreBackend {
    store: Arc<dyn ObjectStore>,
    /// Whether the objects are held in this process.
    in_memory: bool,
    /// Whether the server has turned out not to support creating an object only where it is absent.
    creates_by_replacing: AtomicBool,
}

/// Why the client of an object store cannot be created.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum ObjectStoreError {
    /// The provider does not accept the URL, a variable or the credentials.
    Provider(#[from] Error),
    /// The path of the URL names no folder of objects.
    Prefix(#[from] object_store::path::Error),
    /// The host has no certificate authorities.
    NoTrustStore(#[from] NoTrustStore),
}

/// Reports whether the provider of object stores with URLs of `scheme` accepts the variable `name`.
pub fn accepts_variable(scheme: &str, name: &str) -> bool {
    let key = name.to_ascii_lowercase();
    match scheme {
        "gs" => {
            name == "SERVICE_ACCOUNT"
                || (name.starts_with("GOOGLE_") && key.parse::<GoogleConfigKey>().is_ok())
        }
        "az" => {
            name == "IDENTITY_ENDPOINT"
                || (name.starts_with("AZURE_") && key.parse::<AzureConfigKey>().is_ok())
        }
        _ => name.starts_with("AWS_") && key.parse::<AmazonS3ConfigKey>().is_ok(),
    }
}

/// Checks that a provider accepts the values of its variables.
///
/// # Errors
/// Returns the variable that is not accepted, if it is a single one, and the reason.
pub fn check_variables(
    url: &url::Url,
    variables: &[(String, String)],
) -> Result<(), (Option<String>, ObjectStoreError)> {
    let Err(why) = ObjectStoreBackend::at(url, variables) else {
        return Ok(());
    };
    // The variable is at fault if everything is accepted without it.
    let guilty = variables.iter().find(|(name, _)| {
        let others = variables.iter().filter(|(other, _)| other != name);
        let others: Vec<_> = others.cloned().collect();
        ObjectStoreBackend::at(url, &others).is_ok()
    });
    Err((guilty.map(|(name, _)| name.clone()), why))
}

/// The options of a client that are set whatever the environment says.
type ClientOptions<'a> = [(ClientConfigKey, &'a str); 3];

/// Converts the name of a variable to the key that the provider's library has for its setting.
fn key_of<K: FromStr<Err = Error>>(name: &str) -> Result<K, Error> {
    name.to_ascii_lowercase().parse()
}

impl ObjectStoreBackend {
    /// Creates a backend that holds its objects in memory.
    pub(super) fn memory() -> Self {
        Self {
            store: Arc::new(InMemory::new()),
            in_memory: true,
            creates_by_replacing: AtomicBool::new(false),
        }
    }

    /// Creates a backend for `url`, with credentials and settings from the variables that the
    /// provider's own tools use.
    ///
    /// # Errors
    /// Fails where the provider does not accept the URL or the credentials, or where it uses TLS
    /// and this host has no trusted certificate authorities.
    pub(super) fn at(
        url: &url::Url,
        variables: &[(String, String)],
    ) -> Result<Self, ObjectStoreError> {
        let times = ClientTimes {
            request: REQUEST,
            read: READ,
        };
        Ok(Self {
            store: object_store_client("store.url", url, variables, times)?,
            in_memory: false,
            creates_by_replacing: AtomicBool::new(false),
        })
    }
}

/// How long a client of an object store waits.
#[derive(Clone, Copy, Debug)]
pub struct ClientTimes {
    /// The longest that a whole request may take, with its body.
    pub request: Duration,
    /// The longest wait for the next bytes of an answer. The first wait begins with the request, so
    /// that no body may take longer to be sent.
    pub read: Duration,
}

/// Creates the client of the object store at `url`, which the setting `key` names. Credentials and
/// settings come from the variables that the provider's own tools use.
///
/// # Errors
/// The provider does not accept the URL or the credentials, or it uses TLS and this host has no
/// trusted certificate authorities.
pub fn object_store_client(
    key: &'static str,
    url: &url::Url,
    variables: &[(String, String)],
    times: ClientTimes,
) -> Result<Arc<dyn ObjectStore>, ObjectStoreError> {
    let retry = RetryConfig {
        max_retries: RETRIES,
        retry_timeout: RETRYING,
        ..RetryConfig::default()
    };
    let [request, read] = [times.request, times.read].map(|it| format!("{}s", it.as_secs()));
    // The options are set one by one, because setting all at once would replace what the
    // environment says.
    let options = [
        (ClientConfigKey::Timeout, request.as_str()),
        (ClientConfigKey::ReadTimeout, read.as_str()),
        (ClientConfigKey::ConnectTimeout, CONNECT),
    ];
    let store = match url.scheme() {
        "gs" => google(key, url, variables, options, retry)?,
        "az" => azure(key, url, variables, options, retry)?,
        _ => amazon(key, url, variables, options, retry)?,
    };
    let prefix = Path::from_url_path(url.path().trim_matches('/'))?;
    if prefix.as_ref().is_empty() {
        return Ok(store);
    }
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

/// Creates the client of a bucket of Google's.
fn google(
    setting: &'static str,
    url: &url::Url,
    variables: &[(String, String)],
    options: ClientOptions<'_>,
    retry: RetryConfig,
) -> Result<Arc<dyn ObjectStore>, ObjectStoreError> {
    let mut builder = GoogleCloudStorageBuilder::new().with_url(url.as_str());
    for (name, value) in variables {
        builder = builder.with_config(key_of(name)?, value);
    }
    for (key, value) in options {
        builder = builder.with_config(GoogleConfigKey::Client(key), value);
    }
    let builder = builder.with_retry(retry);
    let plain = is_plain(builder.get_config_value(&GoogleConfigKey::BaseUrl));
    build(setting, plain, |key, value| {
        let key = GoogleConfigKey::Client(key);
        builder.clone().with_config(key, value).build()
    })
}

/// Creates the client of a container of Azure's.
fn azure(
    setting: &'static str,
    url: &url::Url,
    variables: &[(String, String)],
    options: ClientOptions<'_>,
    retry: RetryConfig,
) -> Result<Arc<dyn ObjectStore>, ObjectStoreError> {
    let mut builder = MicrosoftAzureBuilder::new().with_url(url.as_str());
    for (name, value) in variables {
        builder = match name.as_str() {
            "IDENTITY_ENDPOINT" => builder.with_msi_endpoint(value),
            name => builder.with_config(key_of(name)?, value),
        };
    }
    for (key, value) in options {
        builder = builder.with_config(AzureConfigKey::Client(key), value);
    }
    let builder = builder.with_retry(retry);
    let emulated = builder.get_config_value(&AzureConfigKey::UseEmulator);
    let plain = is_plain(builder.get_config_value(&AzureConfigKey::Endpoint))
        || emulated.is_some_and(|it| it == "true");
    build(setting, plain, |key, value| {
        let key = AzureConfigKey::Client(key);
        builder.clone().with_config(key, value).build()
    })
}

/// Creates the client of a bucket of S3, or of a server that is compatible with it.
fn amazon(
    setting: &'static str,
    url: &url::Url,
    variables: &[(String, String)],
    options: ClientOptions<'_>,
    retry: RetryConfig,
) -> Result<Arc<dyn ObjectStore>, ObjectStoreError> {
    let mut builder = AmazonS3Builder::new().with_url(url.as_str());
    for (name, value) in variables {
        builder = builder.with_config(key_of(name)?, value);
    }
    for (key, value) in options {
        builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
    }
    // A custom endpoint says by its own URL whether it is plain HTTP. Compatible
    // servers may not support deleting in bulk.
    let builder = builder.with_allow_http(true).with_disable_bulk_delete(true);
    let builder = builder.with_retry(retry);
    let plain = is_plain(builder.get_config_value(&AmazonS3ConfigKey::Endpoint));
    build(setting, plain, |key, value| {
        let key = AmazonS3ConfigKey::Client(key);
        builder.clone().with_config(key, value).build()
    })
}

fn is_plain(endpoint: Option<String>) -> bool {
    endpoint.is_some_and(|it| it.trim_start().starts_with("http://"))
}

/// Builds a client by `with`, which sets one option of it. On a host without trusted certificate
/// authorities, a server that is reached by `plain` HTTP needs none, so its client is built with
/// none.
fn build<T: ObjectStore>(
    setting: &'static str,
    plain: bool,
    with: impl Fn(ClientConfigKey, &str) -> Result<T, Error>,
) -> Result<Arc<dyn ObjectStore>, ObjectStoreError> {
    let key = ClientConfigKey::NoSystemCertificates;
    let built = match with(key, "false") {
        Err(error) if lacks_authorities(&error) => match plain {
            true => {
                tracing::warn!(
                    "{setting} is reached by plain HTTP only: {}",
                    no_trust_store()
                );
                with(key, "true")
            }
            false => return Err(no_trust_store().into()),
        },
        built => built,
    };
    Ok(Arc::new(built?))
}

fn path(key: ObjectKey) -> Path {
    Path::from_iter([key.kind.folder(), key.name().as_str()])
}

/// Limits a small request to the time that a working server needs for one.
async fn with_timeout<T>(call: impl Future<Output = T>) -> Result<T, BackendError> {
    let done = tokio::time::timeout(SMALL, catch_panics(call)).await;
    done.map_err(|_| BackendError::Down(format!("no answer within {SMALL:?}")))?
}

/// Converts a panic of the library into an error: it assumes that some of what it is given, such as
/// a token from another server, can be sent in a header.
async fn catch_panics<T>(call: impl Future<Output = T>) -> Result<T, BackendError> {
    let done = AssertUnwindSafe(call).catch_unwind().await;
    done.map_err(|_| BackendError::Down("what is to be sent cannot be".to_owned()))
}

/// Returns `None` for an object that is not there.
fn present<T>(result: Result<T, Error>, asking: Asking) -> Result<Option<T>, BackendError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(backend_error(&error, asking)),
    }
}

/// Reads the body of an answer, and stops not far beyond `most` bytes.
async fn bounded(answer: GetResult, most: u64) -> Result<Bytes, BackendError> {
    let read = |error| backend_error(&error, Asking::Get);
    let whole = answer.meta.size;
    let size = whole.min(most);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    let mut pieces = answer.into_stream();
    while let Some(piece) = pieces.try_next().await.map_err(read)? {
        if piece.len() as u64 == whole {
            // The piece is the whole body, so it needs no copy.
            return Ok(piece);
        }
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > most {
            break;
        }
    }
    Ok(bytes.into())
}

/// Converts the result of a put; a failed precondition means that the object exists.
fn written<T>(done: Result<T, Error>) -> Result<PutOutcome, BackendError> {
    match done {
        Ok(_) => Ok(PutOutcome::Written),
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(PutOutcome::Exists),
        Err(error) => Err(backend_error(&error, Asking::Put)),
    }
}

fn listed(error: Error) -> BackendError {
    backend_error(&error, Asking::List)
}

impl Backend for ObjectStoreBackend {
    fn check(&self) -> BackendFuture<'_, ()> {
        Box::pin(async move {
            let folder = Path::from(ObjectKind::Record.folder());
            let mut listing = self.store.list(Some(&folder));
            let first = tokio::time::timeout(CHECK, catch_panics(listing.try_next())).await;
            let first =
                first.map_err(|_| BackendError::Down(format!("no answer within {CHECK:?}")))?;
            first?.map_err(listed)?;
            // Something that answers every request, as a web page may, is no object store. This is
            // nobody's digest.
            let digest = Digest::from_hex(&"0".repeat(64));
            let nothing = digest.map(|digest| {
                path(ObjectKey {
                    kind: ObjectKind::Record,
                    digest,
                })
            });
            let nothing = nothing.ok_or_else(|| BackendError::Down("no digest".to_owned()))?;
            match present(with_timeout(self.store.get(&nothing)).await?, Asking::Get)? {
                Some(_) => Err(no_object_store()),
                None => Ok(()),
            }
        })
    }

    fn put(&self, key: ObjectKey, blob: Blob, mode: WriteMode) -> BackendFuture<'_, PutOutcome> {
        Box::pin(async move {
            let in_memory = self.in_memory;
            let read = tokio::task::spawn_blocking(move || match &blob {
                // The bytes are copied, because what is kept must not hold on to the request that
                // it came with.
                Blob::Memory(bytes) if in_memory => Ok(Bytes::copy_from_slice(bytes)),
                Blob::Memory(_) | Blob::Spooled(_) => blob.read(),
            });
            let down = |error: &dyn std::fmt::Display| BackendError::Down(error.to_string());
            let bytes = read.await.map_err(|error| down(&error))?;
            let payload = PutPayload::from(bytes.map_err(|error| down(&error))?);
            let to = path(key);
            let put = |mode: PutMode| {
                let payload = payload.clone();
                self.store.put_opts(&to, payload, PutOptions::from(mode))
            };
            let by_replacing = &self.creates_by_replacing;
            let replaces = mode == WriteMode::Replace || by_replacing.load(Ordering::Relaxed);
            if replaces {
                let done = catch_panics(put(PutMode::Overwrite)).await?;
                return written(done);
            }
            match catch_panics(put(PutMode::Create)).await? {
                // The server cannot create only what is absent. Replacing is as good, because the
                // bytes of a name are always the same. A server that refuses for another reason
                // refuses the plain put too, and says why.
                Err(error) if cannot_create_only(&error) => {
                    let done = written(catch_panics(put(PutMode::Overwrite)).await?)?;
                    if !by_replacing.swap(true, Ordering::Relaxed) {
                        tracing::info!(%error, "the object store cannot create only what is absent; objects are replaced");
                    }
                    Ok(done)
                }
                done => written(done),
            }
        })
    }

    fn get(&self, key: ObjectKey, most: u64) -> BackendFuture<'_, Option<Bytes>> {
        Box::pin(async move {
            match present(with_timeout(self.store.get(&path(key))).await?, Asking::Get)? {
                Some(answer) => bounded(answer, most).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn size(&self, key: ObjectKey) -> BackendFuture<'_, Option<u64>> {
        Box::pin(async move {
            let meta = present(
                with_timeout(self.store.head(&path(key))).await?,
                Asking::Get,
            )?;
            Ok(meta.map(|meta| meta.size))
        })
    }

    fn delete(&self, key: ObjectKey) -> BackendFuture<'_, ()> {
        Box::pin(async move {
            let done = with_timeout(self.store.delete(&path(key))).await?;
            present(done, Asking::Delete).map(drop)
        })
    }

    fn records(&self, after: Option<Digest>, limit: usize) -> BackendFuture<'_, Vec<Digest>> {
        Box::pin(async move {
            let kind = ObjectKind::Record;
            let folder = Path::from(kind.folder());
            let listing = match after {
                Some(digest) => self
                    .store
                    .list_with_offset(Some(&folder), &path(ObjectKey { kind, digest })),
                None => self.store.list(Some(&folder)),
            };
            let named = |meta: object_store::ObjectMeta| {
                let digest = meta.location.filename().and_then(|name| kind.digest(name));
                std::future::ready(Ok(digest))
            };
            let page = listing.try_filter_map(named).take(limit).try_collect();
            let mut digests: Vec<Digest> = with_timeout(page).await?.map_err(listed)?;
            digests.sort_unstable();
            Ok(digests)
        })
    }

    fn used(&self, kind: ObjectKind) -> BackendFuture<'_, (u64, u64)> {
        Box::pin(async move {
            let folder = Path::from(kind.folder());
            let sizes = self.store.list(Some(&folder)).map_ok(|meta| meta.size);
            let sum = |(count, bytes), size| std::future::ready(Ok((count + 1, bytes + size)));
            catch_panics(sizes.try_fold((0, 0), sum))
                .await?
                .map_err(listed)
        })
    }

    fn old_modules(&self, age: Duration) -> BackendFuture<'_, Vec<Digest>> {
        Box::pin(async move {
            let folder = Path::from(ObjectKind::Module.folder());
            let old = |meta: object_store::ObjectMeta| {
                let written = SystemTime::from(meta.last_modified);
                let old = written.elapsed().is_ok_and(|written| written > age);
                let digest = meta
                    .location
                    .filename()
                    .and_then(|name| ObjectKind::Module.digest(name));
                std::future::ready(Ok(digest.filter(|_| old)))
            };
            let listing = self.store.list(Some(&folder));
            let old = listing.try_filter_map(old).try_collect();
            catch_panics(old).await?.map_err(listed)
        })
    }
}
