//! The module store: it keeps the bytes of modules by digest, in memory, in a folder or in an
//! object store, and beside each a record of what is known of it.
//!
//! A module is kept when its record is written while its bytes are there. Deleting takes the bytes
//! first. Whoever loads the same module at the same time, here or on another daemon, then either
//! finds them gone and writes them again, or has loaded before it was deleted. Bytes are checked
//! against their digest whenever they are read, so that any number of daemons can share a place.
//! Nothing is ever evicted: a store without room refuses.

mod artifacts;
mod backend;
mod blob;
mod budget;
mod change;
mod directory;
mod docker_auth;
mod maintenance;
mod module_entry;
mod objects;
mod oci;
mod private_files;
mod provided;
mod provider_error;
mod sealed;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::{Mutex, Semaphore};

use self::backend::{Backend, BackendError, ObjectKey, ObjectKind};
use self::budget::Budget;
pub use self::budget::{SharedBudget, StoredAmount};
use self::directory::DirectoryBackend;
use self::module_entry::{is_fresh, now};
use self::objects::ObjectStoreBackend;
use crate::host_limit::HostLimit;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::Digest;

pub use self::artifacts::{ArtifactCache, ArtifactCacheError, ArtifactCacheSettings, ArtifactName};
pub use self::blob::{Blob, BlobAssembler, Spool, UploadSlot};
pub use self::change::NewModule;
pub use self::docker_auth::{DockerAuthError, DockerConfigError, check_credentials};
pub use self::module_entry::{ModuleEntry, ModuleRecord};
pub use self::objects::{
    ClientTimes, ObjectStoreError, accepts_variable, check_variables, object_store_client,
};
pub use self::oci::{OCI_SCHEME, OciPuller, OciRegistry, Pulled};
pub use self::provided::{ProvidedModule, ProvidedModuleError};
pub(crate) use self::provider_error::cannot_create_only;
pub use self::sealed::{SealedFile, create_sealable};

/// Largest record in bytes, which is more than a description of 1,000 exports and imports takes.
const MAX_RECORD: u64 = 4 << 20;
/// How long a record is trusted after a shared backend confirmed it, and how often such a backend
/// is counted. What other daemons delete is noticed at the next use after that.
const RECORD_FRESH_FOR: Duration = Duration::from_secs(30);
/// Age of a record up to which it is served at once, while the backend is asked in the background.
const STALE_WHILE_REVALIDATE: Duration = Duration::from_secs(60);
/// How long a caller waits for the backend's answer about an older record before the cached one is
/// used.
const REVALIDATE_TIMEOUT: Duration = Duration::from_secs(1);
/// Number of large modules that are written or verified at the same time.
const HEAVY_AT_ONCE: usize = 2;
/// Number of records that are read concurrently for a listing.
const READ_AT_ONCE: usize = 8;
/// Number of writer locks. Writers of the same module always take turns; those of different modules
/// rarely do.
const SHARDS: usize = 256;
/// The delay after which callers are told to retry while the store is unavailable.
const RETRY: Duration = Duration::from_secs(1);
/// Name of the folder that has one folder for each tenant, beside the modules that belong to no
/// tenant in particular.
const TENANTS: &str = "tenants";

/// The kind of storage that modules are kept in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// In this process, until it ends.
    Memory,
    /// In this folder of the host.
    Directory(PathBuf),
    /// In an object store, with a URL of "s3://", "gs://" or "az://".
    Objects {
        /// The URL of the bucket, with the prefix of all object names as its path.
        url: url::Url,
        /// The provider's environment variables, as names and values.
        variables: Vec<(String, String)>,
    },
}

/// The settings with which a store is opened.
#[derive(Debug)]
pub struct Settings {
    /// The storage in which the modules are kept.
    pub location: StoreLocation,
    /// The tenant to whom the modules belong; `None` for a store that has the whole place.
    pub tenant: Option<String>,
    /// The budget of bytes that all stores of the place share, for modules and their records.
    pub shared_budget: Arc<SharedBudget>,
    /// Most bytes that this store's modules may take; `None` for no quota.
    pub bytes: Option<u64>,
    /// Most modules that this store may hold; `None` for no quota.
    pub modules: Option<u64>,
    /// Bytes of records that are cached in memory.
    pub records: u64,
    /// Most bytes that one module may have.
    pub max_module: u64,
    /// The folder in which uploads are assembled, if the storage is not a folder itself.
    pub spool: PathBuf,
}

/// Why a store cannot be used as `store.url` says.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The folder cannot be written.
    #[error("store.url: {}: {source}", path.display())]
    Directory {
        /// The folder of the store.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The client of the object store cannot be created.
    #[error("store.url: {0}")]
    Objects(#[from] ObjectStoreError),
    /// The storage refuses this daemon for good.
    #[error("store.url ({store}): {why}")]
    Refused {
        /// The kind of storage, such as "s3:".
        store: &'static str,
        /// What the operator has to fix.
        why: String,
    },
}

/// A store of modules by digest, within a budget of bytes. Its records are cached in memory with
/// least recently used eviction.
pub struct Store {
    backend: Box<dyn Backend>,
    /// The name of the storage in errors, such as "s3:".
    name: &'static str,
    /// Whether other daemons may write to the storage.
    shared: bool,
    budget: Arc<Budget>,
    max_module: u64,
    spool: Spool,
    entries: moka::sync::Cache<Digest, Arc<ModuleEntry>>,
    /// Permits for writing or verifying a large module.
    heavy: Semaphore,
    shards: [Shard; SHARDS],
}

#[derive(Default)]
struct Shard {
    /// The lock that a writer holds.
    writer: Mutex<()>,
    /// A counter of deletions: a record that was read before a deletion must not enter the cache
    /// after it.
    deletions: AtomicU64,
}

impl Store {
    /// Opens the store that the settings describe.
    ///
    /// # Errors
    /// Fails where the folder cannot be written, or where the provider does not accept the URL or
    /// the credentials. Whether an object store answers is found out when it is needed.
    pub fn open(settings: &Settings) -> Result<Arc<Self>, StoreError> {
        let spool = Spool {
            dir: settings.spool.clone(),
            key: "store.spool",
        };
        let (backend, name, spool): (Box<dyn Backend>, _, _) = match &settings.location {
            StoreLocation::Memory => (Box::new(ObjectStoreBackend::memory()), "memory:", spool),
            StoreLocation::Directory(root) => {
                let root = &settings
                    .tenant
                    .iter()
                    .fold(root.clone(), |root, tenant| root.join(TENANTS).join(tenant));
                let directory =
                    DirectoryBackend::open(root).map_err(|source| StoreError::Directory {
                        path: root.clone(),
                        source,
                    })?;
                let spool = Spool {
                    dir: directory::tmp_dir(root),
                    key: "store.url",
                };
                (Box::new(directory), "file:", spool)
            }
            StoreLocation::Objects { url, variables } => {
                let mut url = url.clone();
                if let Some(tenant) = &settings.tenant {
                    let path = url.path().trim_end_matches('/');
                    let path = format!("{path}/{TENANTS}/{tenant}");
                    url.set_path(&path);
                }
                let objects = ObjectStoreBackend::at(&url, variables)?;
                let name = match url.scheme() {
                    "gs" => "gs:",
                    "az" => "az:",
                    _ => "s3:",
                };
                (Box::new(objects), name, spool)
            }
        };
        if let Err(error) = spool.check() {
            tracing::warn!(%error, dir = %spool.dir.display(),
                "{} cannot be written: modules over 1 MiB are held in memory while they arrive, up to \
                 store.uploads times compile.max_module", spool.key);
        }
        let known = moka::sync::Cache::builder()
            .max_capacity(settings.records)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .weigher(|_: &Digest, known: &Arc<ModuleEntry>| known.weight())
            .build();
        Ok(Arc::new(Self {
            backend,
            name,
            shared: settings.location != StoreLocation::Memory,
            budget: Budget::new(settings),
            max_module: settings.max_module,
            spool,
            entries: known,
            heavy: Semaphore::new(HEAVY_AT_ONCE),
            shards: std::array::from_fn(|_| Shard::default()),
        }))
    }

    /// Reports whether the storage answers now.
    pub async fn is_reachable(&self) -> bool {
        self.backend.check().await.is_ok()
    }

    /// Checks whether the storage can be used. Storage that is only unreachable at the moment is
    /// logged and is no error.
    ///
    /// # Errors
    /// Returns what the operator has to fix before the storage is of any use.
    pub async fn check(&self) -> Result<(), StoreError> {
        match self.backend.check().await {
            Ok(()) => Ok(()),
            Err(BackendError::Refused {
                why,
                lasting: true,
                text,
            }) => {
                tracing::error!(
                    error = text,
                    store = self.name,
                    "the module store refuses this daemon"
                );
                Err(StoreError::Refused {
                    store: self.name,
                    why,
                })
            }
            Err(BackendError::Refused { why, text, .. }) => {
                tracing::warn!(
                    error = text,
                    why,
                    store = self.name,
                    "the module store refuses this daemon"
                );
                Ok(())
            }
            Err(BackendError::Host(limit)) => {
                let error = limit.sentence();
                tracing::warn!(
                    error,
                    store = self.name,
                    "the module store does not work yet"
                );
                Ok(())
            }
            Err(BackendError::Down(error) | BackendError::Full(error)) => {
                tracing::warn!(%error, store = self.name, "the module store does not work yet");
                Ok(())
            }
        }
    }

    /// Returns the place where uploads are assembled.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// Finds a module's entry; `None` where the module is not kept.
    ///
    /// An entry that is cached here is usually returned without asking the backend. Once it is
    /// stale, the backend is asked in the background, and if the module has not been used for long,
    /// it is asked first.
    ///
    /// # Errors
    /// Returns `STORE_UNAVAILABLE` where the backend fails.
    pub async fn find(
        self: &Arc<Self>,
        digest: Digest,
    ) -> Result<Option<Arc<ModuleEntry>>, Refusal> {
        if let Some(known) = self.find_cached(digest) {
            return Ok(Some(known));
        }
        let Some(known) = self.entries.get(&digest) else {
            return self.fetch_record(digest).await;
        };
        // The module was not used for long, so it may have been deleted long ago.
        if let Ok(Ok(found)) =
            tokio::time::timeout(REVALIDATE_TIMEOUT, self.fetch_record(digest)).await
        {
            return Ok(found);
        }
        // A backend that does not answer changes nothing: a module that is known can still be run.
        known.confirmed_at.store(now(), Ordering::Relaxed);
        Ok(Some(known))
    }

    /// Returns a module's entry if it can be used without waiting for the backend, as
    /// [`Self::find`] describes.
    pub fn find_cached(self: &Arc<Self>, digest: Digest) -> Option<Arc<ModuleEntry>> {
        let known = self.entries.get(&digest)?;
        if self.trusts(&known) {
            return Some(known);
        }
        let seen = known.confirmed_at.load(Ordering::Relaxed);
        is_fresh(seen, STALE_WHILE_REVALIDATE).then(|| {
            self.revalidate_in_background(&known, seen);
            known
        })
    }

    /// Fetches a module's record from the backend, and caches it.
    async fn fetch_record(&self, digest: Digest) -> Result<Option<Arc<ModuleEntry>>, Refusal> {
        let shard = self.shard(digest);
        let deletions = shard.deletions.load(Ordering::Acquire);
        let key = ObjectKey {
            kind: ObjectKind::Record,
            digest,
        };
        let bytes = self.backend.get(key, MAX_RECORD).await;
        let Some(bytes) = bytes.map_err(|fault| self.backend_refusal(fault))? else {
            self.entries.invalidate(&digest);
            return Ok(None);
        };
        let record = serde_json::from_slice::<ModuleRecord>(&bytes).map_err(|error| {
            tracing::error!(%digest, %error, store = self.name, "a module's record is damaged");
            self.entries.invalidate(&digest);
            self.damaged(digest)
        })?;
        let known = self.as_known(digest, record);
        if shard.deletions.load(Ordering::Acquire) == deletions {
            self.entries.insert(digest, Arc::clone(&known));
        }
        Ok(Some(known))
    }

    /// Creates an entry from a record, and keeps what this daemon has seen of the module so far.
    fn as_known(&self, digest: Digest, record: ModuleRecord) -> Arc<ModuleEntry> {
        let before = self.entries.get(&digest);
        let of = |what: fn(&ModuleEntry) -> &AtomicU64| {
            before
                .as_ref()
                .map(|known| what(known).load(Ordering::Relaxed))
        };
        Arc::new(ModuleEntry {
            digest,
            used: AtomicU64::new(of(|known| &known.used).unwrap_or(record.loaded)),
            confirmed_at: AtomicU64::new(now()),
            verified_at: AtomicU64::new(of(|known| &known.verified_at).unwrap_or_default()),
            record,
        })
    }

    /// Reports whether an entry can be used without asking the backend.
    fn trusts(&self, known: &ModuleEntry) -> bool {
        !self.shared || is_fresh(known.confirmed_at.load(Ordering::Relaxed), RECORD_FRESH_FOR)
    }

    /// Starts a task that asks the backend whether a module is still there, while the caller goes
    /// on.
    fn revalidate_in_background(self: &Arc<Self>, known: &Arc<ModuleEntry>, seen: u64) {
        // Single flight: whoever moves the mark asks.
        let mine = known
            .confirmed_at
            .compare_exchange(seen, now(), Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
        if !mine {
            return;
        }
        let (store, digest) = (Arc::clone(self), known.digest);
        #[expect(
            clippy::disallowed_methods,
            reason = "bounded by the place's own timeouts; ends by itself"
        )]
        tokio::spawn(async move {
            // A backend that does not answer changes nothing: a module that is known can still be
            // run.
            let _ = store.fetch_record(digest).await;
        });
    }

    /// Reads the bytes of a module, and verifies them against its digest.
    ///
    /// # Errors
    /// Returns `MODULE_NOT_FOUND`, or `STORE_UNAVAILABLE`, which is also the answer where the bytes
    /// do not match the digest.
    pub async fn read_wasm(&self, digest: Digest) -> Result<Bytes, Refusal> {
        let key = ObjectKey {
            kind: ObjectKind::Module,
            digest,
        };
        let checked = |at: u64| {
            if let Some(known) = self.entries.get(&digest) {
                known.verified_at.store(at, Ordering::Relaxed);
            }
        };
        // A module that was accepted can be run, even where this daemon would no longer accept one
        // so large.
        let known = self.entries.get(&digest);
        let size = known.map_or(0, |known| known.record.size);
        let bytes = self.backend.get(key, self.max_module.max(size)).await;
        let Some(bytes) = bytes.map_err(|fault| self.backend_refusal(fault))? else {
            checked(0);
            return Err(not_found(digest));
        };
        let (bytes, found) = hashed(bytes).await?;
        if found != digest {
            checked(0);
            tracing::error!(%digest, %found, store = self.name, "a stored module is damaged");
            return Err(self.damaged(digest));
        }
        checked(now());
        Ok(bytes)
    }

    /// Lists up to `limit` modules after `after`, by digest, without their exports and imports.
    ///
    /// The second value is the digest after which the next page starts; `None` after the last page.
    ///
    /// # Errors
    /// Returns `STORE_UNAVAILABLE` where the backend fails.
    pub async fn list(
        self: &Arc<Self>,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<(Vec<ModuleEntry>, Option<Digest>), Refusal> {
        let digests = self.backend.records(after, limit).await;
        let digests = digests.map_err(|fault| self.backend_refusal(fault))?;
        let next = digests.last().copied().filter(|_| digests.len() >= limit);
        let summary = |digest| async move {
            let known = self.entries.get(&digest);
            let found = match known.filter(|known| self.trusts(known)) {
                Some(known) => Ok(Some(known)),
                None => self.fetch_record(digest).await,
            };
            found.map(|known| known.map(|known| known.summary()))
        };
        let mut found = stream::iter(digests).map(summary).buffered(READ_AT_ONCE);
        let mut modules = Vec::new();
        while let Some(found) = found.next().await {
            match found {
                Ok(known) => modules.extend(known),
                // A damaged record has been logged, and can be deleted or loaded again by its
                // digest.
                Err(refusal) if refusal.retry().is_none() => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok((modules, next))
    }

    fn shard(&self, digest: Digest) -> &Shard {
        &self.shards[usize::from(digest.as_bytes()[0]) % SHARDS]
    }

    fn backend_refusal(&self, fault: BackendError) -> Refusal {
        match fault {
            BackendError::Full(error) => {
                tracing::warn!(%error, store = self.name, "the module store has no room");
                Refusal::new(
                    Reason::StoreFull,
                    format!(
                        "the place of the module store has no room left, whatever store.budget says ({}, store.url)",
                        self.name
                    ),
                )
                .with("store", self.name)
            }
            BackendError::Host(limit) => {
                let why = limit.sentence();
                tracing::warn!(
                    store = self.name,
                    "a call to the module store failed: {why}"
                );
                let refusal = match limit {
                    // A retry would meet the same limit.
                    HostLimit::FileSize => Refusal::new(Reason::StoreFull, why),
                    HostLimit::Descriptors
                    | HostLimit::HostDescriptors
                    | HostLimit::Memory
                    | HostLimit::Tasks => {
                        Refusal::new(Reason::StoreUnavailable, why).retry_after(RETRY)
                    }
                };
                refusal.with("store", self.name)
            }
            BackendError::Refused { why, text, .. } => {
                tracing::error!(
                    error = text,
                    why,
                    store = self.name,
                    "the module store refuses this daemon"
                );
                Refusal::new(
                    Reason::StoreUnavailable,
                    format!(
                        "the module store refuses this daemon ({}): {why}",
                        self.name
                    ),
                )
                .with("store", self.name)
                .retry_after(RETRY)
            }
            BackendError::Down(error) => {
                tracing::warn!(%error, store = self.name, "the module store does not work");
                Refusal::new(
                    Reason::StoreUnavailable,
                    format!(
                        "the module store cannot be reached ({}): {error}",
                        self.name
                    ),
                )
                .with("store", self.name)
                .retry_after(RETRY)
            }
        }
    }

    fn damaged(&self, digest: Digest) -> Refusal {
        Refusal::new(
            Reason::StoreUnavailable,
            format!("what the module store has of {digest} is damaged; load the module again"),
        )
        .with("store", self.name)
        .with("digest", digest)
    }
}

/// Builds the refusal of a module that is not kept.
pub fn not_found(digest: Digest) -> Refusal {
    Refusal::new(
        Reason::ModuleNotFound,
        format!("no module {digest} is loaded here"),
    )
    .with("digest", digest)
}

/// Hashes `bytes`, and returns them with their digest. Many bytes take tens of milliseconds, so
/// those are hashed on a blocking thread.
///
/// # Errors
/// Fails where the daemon is shutting down.
pub async fn hashed(bytes: Bytes) -> Result<(Bytes, Digest), Refusal> {
    /// Most bytes that are hashed on the caller's thread, which may have other connections to
    /// serve: about 50 us of work.
    const INLINE: usize = 64 << 10;
    if bytes.len() <= INLINE {
        let digest = Digest::of(&bytes);
        return Ok((bytes, digest));
    }
    tokio::task::spawn_blocking(move || {
        let digest = Digest::of(&bytes);
        (bytes, digest)
    })
    .await
    .map_err(|error| Refusal::internal(format_args!("hashing: {error}")))
}
