//! Objects in an object store, or in this process's memory as if it were one.

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

use super::backend::{Backend, Fault, Key, Kind, Mode, Promise, Put};
use super::blob::Blob;
use super::provider_error::{Asking, cannot_create_only, explained, is_absent, no_object_store};
use crate::config::{lacks_authorities, no_trust_store};
use crate::request::Digest;

/// How long a request may take in all, what is small, the next bytes of an answer, a connection, and trying again.
const REQUEST: Duration = Duration::from_secs(600);
const SMALL: Duration = Duration::from_secs(15);
const READ: &str = "15s";
const CONNECT: &str = "3s";
const RETRYING: Duration = Duration::from_secs(5);
const RETRIES: usize = 3;
/// How long a start waits to be told whether the place can be used.
const CHECK: Duration = Duration::from_secs(5);

/// Objects by path.
pub(super) struct Objects {
    store: Arc<dyn ObjectStore>,
    /// Whether what is put stays in this process.
    in_memory: bool,
    /// Whether the server has been found not to know how to create only what is absent.
    creates_by_replacing: AtomicBool,
}

/// Whether the provider of an object store with URLs of `scheme` takes the variable `name`.
pub fn takes(scheme: &str, name: &str) -> bool {
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

/// Checks that a provider takes what its variables say.
///
/// # Errors
/// The variable that it does not take, where it is one, and why.
pub fn check_variables(
    url: &url::Url,
    variables: &[(String, String)],
) -> Result<(), (Option<String>, String)> {
    let Err(why) = Objects::at(url, variables) else {
        return Ok(());
    };
    // The one without which all is well.
    let guilty = variables.iter().find(|(name, _)| {
        let others = variables.iter().filter(|(other, _)| other != name);
        let others: Vec<_> = others.cloned().collect();
        Objects::at(url, &others).is_ok()
    });
    Err((guilty.map(|(name, _)| name.clone()), why))
}

/// What the provider's library calls the setting of a variable.
fn key_of<K: FromStr<Err = Error>>(name: &str) -> Result<K, String> {
    name.to_ascii_lowercase()
        .parse()
        .map_err(|error: Error| error.to_string())
}

impl Objects {
    /// In memory.
    pub(super) fn memory() -> Self {
        Self {
            store: Arc::new(InMemory::new()),
            in_memory: true,
            creates_by_replacing: AtomicBool::new(false),
        }
    }

    /// At `url`, with credentials and more from variables that the provider's own tools use.
    ///
    /// # Errors
    /// Where the URL or the credentials are not what the provider takes, or it speaks TLS and this host trusts nobody.
    pub(super) fn at(url: &url::Url, variables: &[(String, String)]) -> Result<Self, String> {
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: RETRYING,
            ..RetryConfig::default()
        };
        let whole = format!("{}s", REQUEST.as_secs());
        // Set one by one: as a whole they would replace what the environment says.
        let options = [
            (ClientConfigKey::Timeout, whole.as_str()),
            (ClientConfigKey::ReadTimeout, READ),
            (ClientConfigKey::ConnectTimeout, CONNECT),
        ];
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "gs" => {
                let mut builder = GoogleCloudStorageBuilder::new().with_url(url.as_str());
                for (name, value) in variables {
                    builder = builder.with_config(key_of(name)?, value);
                }
                for (key, value) in options {
                    builder = builder.with_config(GoogleConfigKey::Client(key), value);
                }
                let builder = builder.with_retry(retry);
                let plain = is_plain(builder.get_config_value(&GoogleConfigKey::BaseUrl));
                build(plain, |key, value| {
                    let key = GoogleConfigKey::Client(key);
                    builder.clone().with_config(key, value).build()
                })?
            }
            "az" => {
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
                build(plain, |key, value| {
                    let key = AzureConfigKey::Client(key);
                    builder.clone().with_config(key, value).build()
                })?
            }
            _ => {
                let mut builder = AmazonS3Builder::new().with_url(url.as_str());
                for (name, value) in variables {
                    builder = builder.with_config(key_of(name)?, value);
                }
                for (key, value) in options {
                    builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
                }
                // Whether an endpoint of one's own is plain HTTP is for its own URL to say. Compatible servers may not
                // know how to delete in bulk.
                let builder = builder.with_allow_http(true).with_disable_bulk_delete(true);
                let builder = builder.with_retry(retry);
                let plain = is_plain(builder.get_config_value(&AmazonS3ConfigKey::Endpoint));
                build(plain, |key, value| {
                    let key = AmazonS3ConfigKey::Client(key);
                    builder.clone().with_config(key, value).build()
                })?
            }
        };
        let prefix = Path::from_url_path(url.path().trim_matches('/'));
        let prefix = prefix.map_err(|error| error.to_string())?;
        let store = if prefix.as_ref().is_empty() {
            store
        } else {
            Arc::new(PrefixStore::new(store, prefix))
        };
        Ok(Self {
            store,
            in_memory: false,
            creates_by_replacing: AtomicBool::new(false),
        })
    }
}

fn is_plain(endpoint: Option<String>) -> bool {
    endpoint.is_some_and(|it| it.trim_start().starts_with("http://"))
}

/// Makes a store by `with` a setting of its client. On a host that has no authorities to trust, one of a server that
/// speaks `plain` HTTP trusts nobody and needs nobody.
fn build<T: ObjectStore>(
    plain: bool,
    with: impl Fn(ClientConfigKey, &str) -> Result<T, Error>,
) -> Result<Arc<dyn ObjectStore>, String> {
    let key = ClientConfigKey::NoSystemCertificates;
    let built = match with(key, "false") {
        Err(error) if lacks_authorities(&error) => match plain {
            true => {
                tracing::warn!(
                    "store.url is reached by plain HTTP only: {}",
                    no_trust_store()
                );
                with(key, "true")
            }
            false => return Err(no_trust_store()),
        },
        built => built,
    };
    match built {
        Ok(store) => Ok(Arc::new(store)),
        Err(error) => Err(error.to_string()),
    }
}

fn path(key: Key) -> Path {
    Path::from_iter([key.kind.folder(), key.name().as_str()])
}

/// What takes no longer than a server that works takes for something small.
async fn soon<T>(call: impl Future<Output = T>) -> Result<T, Fault> {
    let done = tokio::time::timeout(SMALL, guarded(call)).await;
    done.map_err(|_| Fault::Down(format!("no answer within {SMALL:?}")))?
}

/// What panics nowhere: the library takes some of what it is given, such as a token of another server, for sendable.
async fn guarded<T>(call: impl Future<Output = T>) -> Result<T, Fault> {
    let done = AssertUnwindSafe(call).catch_unwind().await;
    done.map_err(|_| Fault::Down("what is to be sent cannot be".to_owned()))
}

/// `None` for what is not there.
fn present<T>(result: Result<T, Error>, asking: Asking) -> Result<Option<T>, Fault> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(explained(&error, asking)),
    }
}

/// The bytes of an answer, and not many more than `most` of them.
async fn bounded(answer: GetResult, most: u64) -> Result<Bytes, Fault> {
    let read = |error| explained(&error, Asking::Get);
    let whole = answer.meta.size;
    let size = whole.min(most);
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
    let mut pieces = answer.into_stream();
    while let Some(piece) = pieces.try_next().await.map_err(read)? {
        if piece.len() as u64 == whole {
            // All there is, as it stands in memory.
            return Ok(piece);
        }
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > most {
            break;
        }
    }
    Ok(bytes.into())
}

/// What became of a put.
fn written<T>(done: Result<T, Error>) -> Result<Put, Fault> {
    match done {
        Ok(_) => Ok(Put::Written),
        Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Put::Exists),
        Err(error) => Err(explained(&error, Asking::Put)),
    }
}

fn listed(error: Error) -> Fault {
    explained(&error, Asking::List)
}

impl Backend for Objects {
    fn check(&self) -> Promise<'_, ()> {
        Box::pin(async move {
            let folder = Path::from(Kind::Record.folder());
            let mut listing = self.store.list(Some(&folder));
            let first = tokio::time::timeout(CHECK, guarded(listing.try_next())).await;
            let first = first.map_err(|_| Fault::Down(format!("no answer within {CHECK:?}")))?;
            first?.map_err(listed)?;
            // What answers to everything, as a web page may, is no object store: this is nobody's digest.
            let digest = Digest::from_hex(&"0".repeat(64));
            let nothing = digest.map(|digest| {
                path(Key {
                    kind: Kind::Record,
                    digest,
                })
            });
            let nothing = nothing.ok_or_else(|| Fault::Down("no digest".to_owned()))?;
            match present(soon(self.store.get(&nothing)).await?, Asking::Get)? {
                Some(_) => Err(no_object_store()),
                None => Ok(()),
            }
        })
    }

    fn put(&self, key: Key, blob: Blob, mode: Mode) -> Promise<'_, Put> {
        Box::pin(async move {
            let in_memory = self.in_memory;
            let read = tokio::task::spawn_blocking(move || match &blob {
                // A copy: what is kept must not hold on to the request that it came with.
                Blob::Memory(bytes) if in_memory => Ok(Bytes::copy_from_slice(bytes)),
                Blob::Memory(_) | Blob::Spooled(_) => blob.read(),
            });
            let down = |error: &dyn std::fmt::Display| Fault::Down(error.to_string());
            let bytes = read.await.map_err(|error| down(&error))?;
            let payload = PutPayload::from(bytes.map_err(|error| down(&error))?);
            let to = path(key);
            let put = |mode: PutMode| {
                let payload = payload.clone();
                self.store.put_opts(&to, payload, PutOptions::from(mode))
            };
            let by_replacing = &self.creates_by_replacing;
            let replaces = mode == Mode::Replace || by_replacing.load(Ordering::Relaxed);
            if replaces {
                let done = guarded(put(PutMode::Overwrite)).await?;
                return written(done);
            }
            match guarded(put(PutMode::Create)).await? {
                // A server that cannot create only what is absent: the bytes of a name are the same anyway. One that
                // refuses for another reason refuses the plain put too, and says why.
                Err(error) if cannot_create_only(&error) => {
                    let done = written(guarded(put(PutMode::Overwrite)).await?)?;
                    if !by_replacing.swap(true, Ordering::Relaxed) {
                        tracing::info!(%error, "the object store cannot create only what is absent; objects are replaced");
                    }
                    Ok(done)
                }
                done => written(done),
            }
        })
    }

    fn get(&self, key: Key, most: u64) -> Promise<'_, Option<Bytes>> {
        Box::pin(async move {
            match present(soon(self.store.get(&path(key))).await?, Asking::Get)? {
                Some(answer) => bounded(answer, most).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn size(&self, key: Key) -> Promise<'_, Option<u64>> {
        Box::pin(async move {
            let meta = present(soon(self.store.head(&path(key))).await?, Asking::Get)?;
            Ok(meta.map(|meta| meta.size))
        })
    }

    fn delete(&self, key: Key) -> Promise<'_, ()> {
        Box::pin(async move {
            let done = soon(self.store.delete(&path(key))).await?;
            present(done, Asking::Delete).map(drop)
        })
    }

    fn records(&self, after: Option<Digest>, limit: usize) -> Promise<'_, Vec<Digest>> {
        Box::pin(async move {
            let kind = Kind::Record;
            let folder = Path::from(kind.folder());
            let listing = match after {
                Some(digest) => self
                    .store
                    .list_with_offset(Some(&folder), &path(Key { kind, digest })),
                None => self.store.list(Some(&folder)),
            };
            let named = |meta: object_store::ObjectMeta| {
                let digest = meta.location.filename().and_then(|name| kind.digest(name));
                std::future::ready(Ok(digest))
            };
            let page = listing.try_filter_map(named).take(limit).try_collect();
            let mut digests: Vec<Digest> = soon(page).await?.map_err(listed)?;
            digests.sort_unstable();
            Ok(digests)
        })
    }

    fn used(&self, kind: Kind) -> Promise<'_, (u64, u64)> {
        Box::pin(async move {
            let folder = Path::from(kind.folder());
            let sizes = self.store.list(Some(&folder)).map_ok(|meta| meta.size);
            let sum = |(count, bytes), size| std::future::ready(Ok((count + 1, bytes + size)));
            guarded(sizes.try_fold((0, 0), sum)).await?.map_err(listed)
        })
    }

    fn old_modules(&self, age: Duration) -> Promise<'_, Vec<Digest>> {
        Box::pin(async move {
            let folder = Path::from(Kind::Module.folder());
            let old = |meta: object_store::ObjectMeta| {
                let written = SystemTime::from(meta.last_modified);
                let old = written.elapsed().is_ok_and(|written| written > age);
                let digest = meta
                    .location
                    .filename()
                    .and_then(|name| Kind::Module.digest(name));
                std::future::ready(Ok(digest.filter(|_| old)))
            };
            let listing = self.store.list(Some(&folder));
            let old = listing.try_filter_map(old).try_collect();
            guarded(old).await?.map_err(listed)
        })
    }
}
