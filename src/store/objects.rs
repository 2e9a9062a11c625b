//! Objects in an object store, or in this process's memory as if it were one.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{
    ClientOptions, Error, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
    RetryConfig,
};

use super::backend::{Backend, Fault, Key, Kind, Mode, Promise, Put};
use super::blob::Blob;
use crate::request::Digest;

/// How long a request may take in all, a connection, and trying again.
const REQUEST: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(3);
const RETRYING: Duration = Duration::from_secs(5);
const RETRIES: usize = 3;

/// Objects by path.
pub(super) struct Objects(Arc<dyn ObjectStore>);

impl Objects {
    /// In memory.
    pub(super) fn memory() -> Self {
        Self(Arc::new(InMemory::new()))
    }

    /// At `url`, with credentials from the environment variables that the provider's own tools use.
    ///
    /// # Errors
    /// Where the URL or the credentials are not what the provider takes.
    pub(super) fn at(url: &url::Url) -> Result<Self, Error> {
        let retry = RetryConfig {
            max_retries: RETRIES,
            retry_timeout: RETRYING,
            ..RetryConfig::default()
        };
        let allow_http = url.scheme() == "s3";
        let client = ClientOptions::default()
            .with_timeout(REQUEST)
            .with_connect_timeout(CONNECT);
        let store: Arc<dyn ObjectStore> = match url.scheme() {
            "gs" => Arc::new(
                GoogleCloudStorageBuilder::from_env()
                    .with_url(url.as_str())
                    .with_client_options(client)
                    .with_retry(retry)
                    .build()?,
            ),
            "az" => Arc::new(
                MicrosoftAzureBuilder::from_env()
                    .with_url(url.as_str())
                    .with_client_options(client)
                    .with_retry(retry)
                    .build()?,
            ),
            _ => Arc::new(
                AmazonS3Builder::from_env()
                    .with_url(url.as_str())
                    // Whether an endpoint of one's own is plain HTTP is for its own URL to say.
                    .with_client_options(client.with_allow_http(allow_http))
                    .with_retry(retry)
                    .build()?,
            ),
        };
        let prefix = Path::parse(url.path().trim_matches('/'))?;
        Ok(Self(if prefix.as_ref().is_empty() {
            store
        } else {
            Arc::new(PrefixStore::new(store, prefix))
        }))
    }
}

fn path(key: Key) -> Path {
    Path::from_iter([key.kind.folder(), key.name().as_str()])
}

fn fault(error: Error) -> Fault {
    Fault::Down(error.to_string())
}

/// `None` for what is not there.
fn present<T>(result: Result<T, Error>) -> Result<Option<T>, Fault> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(fault(error)),
    }
}

/// The bytes of an answer, and not many more than `most` of them.
async fn bounded(answer: GetResult, most: u64) -> Result<Bytes, Fault> {
    let mut bytes = Vec::new();
    let mut pieces = answer.into_stream();
    while let Some(piece) = pieces.try_next().await.map_err(fault)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() as u64 > most {
            break;
        }
    }
    Ok(bytes.into())
}

impl Backend for Objects {
    fn put(&self, key: Key, blob: Blob, mode: Mode) -> Promise<'_, Put> {
        Box::pin(async move {
            // A copy: what is kept must not hold on to the request that it came with.
            let copy = tokio::task::spawn_blocking(move || {
                let bytes = blob.read()?;
                Ok::<_, std::io::Error>(Bytes::from(bytes.to_vec()))
            });
            let bytes = copy
                .await
                .map_err(|error| Fault::Down(error.to_string()))?
                .map_err(|error| Fault::Down(error.to_string()))?;
            let options = PutOptions::from(match mode {
                Mode::Create => PutMode::Create,
                Mode::Replace => PutMode::Overwrite,
            });
            let (to, payload) = (path(key), PutPayload::from(bytes));
            match self.0.put_opts(&to, payload, options).await {
                Ok(_) => Ok(Put::Written),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Put::Exists),
                Err(error) => Err(fault(error)),
            }
        })
    }

    fn get(&self, key: Key, most: u64) -> Promise<'_, Option<Bytes>> {
        Box::pin(async move {
            match present(self.0.get(&path(key)).await)? {
                Some(answer) => bounded(answer, most).await.map(Some),
                None => Ok(None),
            }
        })
    }

    fn size(&self, key: Key) -> Promise<'_, Option<u64>> {
        Box::pin(async move {
            let meta = present(self.0.head(&path(key)).await)?;
            Ok(meta.map(|meta| meta.size))
        })
    }

    fn delete(&self, key: Key) -> Promise<'_, ()> {
        Box::pin(async move { present(self.0.delete(&path(key)).await).map(drop) })
    }

    fn records(&self, after: Option<Digest>, limit: usize) -> Promise<'_, Vec<Digest>> {
        Box::pin(async move {
            let kind = Kind::Record;
            let folder = Path::from(kind.folder());
            let listing = match after {
                Some(digest) => self
                    .0
                    .list_with_offset(Some(&folder), &path(Key { kind, digest })),
                None => self.0.list(Some(&folder)),
            };
            let named = |meta: object_store::ObjectMeta| {
                let digest = meta.location.filename().and_then(|name| kind.digest(name));
                std::future::ready(Ok(digest))
            };
            let mut digests: Vec<Digest> = listing
                .try_filter_map(named)
                .take(limit)
                .try_collect()
                .await
                .map_err(fault)?;
            digests.sort_unstable();
            Ok(digests)
        })
    }

    fn used(&self) -> Promise<'_, u64> {
        Box::pin(async move {
            let folder = Path::from(Kind::Module.folder());
            let sizes = self.0.list(Some(&folder)).map_ok(|meta| meta.size);
            sizes
                .try_fold(0, |sum, size| std::future::ready(Ok(sum + size)))
                .await
                .map_err(fault)
        })
    }
}
