//! Where modules live: their bytes by digest, in memory, in a folder or in an object store, and beside each a record of
//! what is known of it.
//!
//! A module is kept when its record is written while its bytes are there. Deleting takes the bytes first, so that whoever
//! loads the same module at the same time, here or on another daemon, either finds them gone and writes them again, or
//! has loaded before it was deleted. Bytes are checked against their digest whenever they are read, so that any number
//! of daemons can share a place. Nothing is ever evicted: a store without room refuses.

mod artifacts;
mod backend;
mod blob;
mod budget;
mod change;
mod directory;
mod docker_auth;
mod known;
mod objects;
mod oci;
mod private_files;
mod provider_error;
mod sealed;
mod tend;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::{Mutex, Semaphore};

use self::backend::{Backend, Fault, Key, Kind};
use self::budget::Budget;
pub use self::budget::Total;
use self::directory::Directory;
use self::known::{is_fresh, now};
use self::objects::Objects;
use crate::host_limit::HostLimit;
use crate::refusal::{Reason, Refusal};
use crate::request::Digest;

pub use self::artifacts::{Artifacts, ArtifactsSettings, Name as ArtifactName};
pub use self::blob::{Assembly, Blob, Spool};
pub use self::change::Keep;
pub use self::docker_auth::check_credentials;
pub use self::known::{Known, Record};
pub use self::objects::{check_variables, takes};
pub use self::oci::{Pulled, Registries, Registry};
pub use self::sealed::{Sealed, unsealed};

/// Bytes of a record at the most; more than a description of 1,000 exports and imports takes.
const MAX_RECORD: u64 = 4 << 20;
/// How long a place that others write to is taken to be as it was: what they delete is forgotten after that, at its
/// next use, and what they add is counted.
const TRUSTED: Duration = Duration::from_secs(30);
/// How much longer than that a module is run without asking first, and how long the answer is waited for.
const TRUSTED_UNSEEN: Duration = Duration::from_secs(60);
const ASKED: Duration = Duration::from_secs(1);
/// Large modules that are written or checked at once.
const HEAVY_AT_ONCE: usize = 2;
/// Records read at once for a listing.
const READ_AT_ONCE: usize = 8;
/// Locks for writers: those of one module take turns, those of others seldom.
const SHARDS: usize = 256;
/// What a caller is told to wait while the store is away.
const RETRY: Duration = Duration::from_secs(1);
/// The folder, beside those of the modules that are nobody's in particular, with one for each tenant.
const TENANTS: &str = "tenants";

/// Where modules are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this process, until it ends.
    Memory,
    /// In a folder.
    Directory(PathBuf),
    /// In an object store: "s3://", "gs://" or "az://".
    Objects {
        /// Its URL.
        url: url::Url,
        /// What its provider's variables say, by their names.
        variables: Vec<(String, String)>,
    },
}

/// How a store is made.
#[derive(Debug)]
pub struct Settings {
    /// Where.
    pub place: Place,
    /// Whose modules, where it is not all that the place has.
    pub tenant: Option<String>,
    /// Bytes of modules, with what is known of them, of all stores that share it.
    pub total: Arc<Total>,
    /// Bytes of this one's modules.
    pub bytes: Option<u64>,
    /// How many.
    pub modules: Option<u64>,
    /// Bytes of records kept in memory.
    pub records: u64,
    /// Bytes of one module.
    pub max_module: u64,
    /// Where uploads are put together where the place is no folder itself.
    pub spool: PathBuf,
}

/// Modules by digest, within a budget of bytes.
pub struct Store {
    backend: Box<dyn Backend>,
    /// Of the place, as errors tell it.
    name: &'static str,
    /// Whether others write to it.
    shared: bool,
    budget: Arc<Budget>,
    max_module: u64,
    spool: Spool,
    known: moka::sync::Cache<Digest, Arc<Known>>,
    /// Held by those who write or check a large module.
    heavy: Semaphore,
    shards: [Shard; SHARDS],
}

#[derive(Default)]
struct Shard {
    /// Held by whoever writes.
    writer: Mutex<()>,
    /// Moves when something is deleted: what was read before must not be learnt after.
    deletions: AtomicU64,
}

impl Store {
    /// Opens it.
    ///
    /// # Errors
    /// Where the folder cannot be written, or the URL or the credentials are not what the provider takes. Whether an
    /// object store answers is seen when it is needed.
    pub fn open(settings: &Settings) -> Result<Arc<Self>, String> {
        let spool = Spool {
            dir: settings.spool.clone(),
            key: "store.spool",
        };
        let (backend, name, spool): (Box<dyn Backend>, _, _) = match &settings.place {
            Place::Memory => (Box::new(Objects::memory()), "memory:", spool),
            Place::Directory(root) => {
                let root = &settings
                    .tenant
                    .iter()
                    .fold(root.clone(), |root, tenant| root.join(TENANTS).join(tenant));
                let directory = Directory::open(root)
                    .map_err(|error| format!("store.url: {}: {error}", root.display()))?;
                let spool = Spool {
                    dir: directory::aside(root),
                    key: "store.url",
                };
                (Box::new(directory), "file:", spool)
            }
            Place::Objects { url, variables } => {
                let mut url = url.clone();
                if let Some(tenant) = &settings.tenant {
                    let path = url.path().trim_end_matches('/');
                    let path = format!("{path}/{TENANTS}/{tenant}");
                    url.set_path(&path);
                }
                let objects = Objects::at(&url, variables);
                let objects = objects.map_err(|error| format!("store.url: {error}"))?;
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
            .weigher(|_: &Digest, known: &Arc<Known>| known.weight())
            .build();
        Ok(Arc::new(Self {
            backend,
            name,
            shared: settings.place != Place::Memory,
            budget: Budget::new(settings),
            max_module: settings.max_module,
            spool,
            known,
            heavy: Semaphore::new(HEAVY_AT_ONCE),
            shards: std::array::from_fn(|_| Shard::default()),
        }))
    }

    /// Looks whether the place can be used. One that is only away now is no error, but told in the log.
    ///
    /// # Errors
    /// What whoever runs the daemon has to see to before it is of any use.
    pub async fn check(&self) -> Result<(), String> {
        match self.backend.check().await {
            Ok(()) => Ok(()),
            Err(Fault::Refused {
                why,
                lasting: true,
                text,
            }) => {
                tracing::error!(
                    error = text,
                    store = self.name,
                    "the module store refuses this daemon"
                );
                Err(format!("store.url ({}): {why}", self.name))
            }
            Err(Fault::Refused { why, text, .. }) => {
                tracing::warn!(
                    error = text,
                    why,
                    store = self.name,
                    "the module store refuses this daemon"
                );
                Ok(())
            }
            Err(Fault::Host(limit)) => {
                let error = limit.sentence();
                tracing::warn!(
                    error,
                    store = self.name,
                    "the module store does not work yet"
                );
                Ok(())
            }
            Err(Fault::Down(error) | Fault::Full(error)) => {
                tracing::warn!(%error, store = self.name, "the module store does not work yet");
                Ok(())
            }
        }
    }

    /// Where modules that arrive in pieces are put together.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// What is known of a module; `None` where it is not kept.
    ///
    /// One that is known here is found without asking the place, which is asked behind it now and then, and first where
    /// the module was not used for long.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn find(self: &Arc<Self>, digest: Digest) -> Result<Option<Arc<Known>>, Refusal> {
        if let Some(known) = self.find_here(digest) {
            return Ok(Some(known));
        }
        let Some(known) = self.known.get(&digest) else {
            return self.fetch(digest).await;
        };
        // Not used for long: it may have been deleted long ago.
        if let Ok(Ok(found)) = tokio::time::timeout(ASKED, self.fetch(digest)).await {
            return Ok(found);
        }
        // A place that does not answer changes nothing: what is known goes on running.
        known.seen.store(now(), Ordering::Relaxed);
        Ok(Some(known))
    }

    /// What is known of a module where that holds without waiting for the place, as [`Self::find`] has it.
    pub fn find_here(self: &Arc<Self>, digest: Digest) -> Option<Arc<Known>> {
        let known = self.known.get(&digest)?;
        if self.trusts(&known) {
            return Some(known);
        }
        let seen = known.seen.load(Ordering::Relaxed);
        is_fresh(seen, TRUSTED_UNSEEN).then(|| {
            self.look_again(&known, seen);
            known
        })
    }

    /// Asks the place for a record.
    async fn fetch(&self, digest: Digest) -> Result<Option<Arc<Known>>, Refusal> {
        let shard = self.shard(digest);
        let deletions = shard.deletions.load(Ordering::Acquire);
        let key = Key {
            kind: Kind::Record,
            digest,
        };
        let bytes = self.backend.get(key, MAX_RECORD).await;
        let Some(bytes) = bytes.map_err(|fault| self.refused(fault))? else {
            self.known.invalidate(&digest);
            return Ok(None);
        };
        let record = serde_json::from_slice::<Record>(&bytes).map_err(|error| {
            tracing::error!(%digest, %error, store = self.name, "a module's record is damaged");
            self.known.invalidate(&digest);
            self.damaged(digest)
        })?;
        let known = self.as_known(digest, record);
        if shard.deletions.load(Ordering::Acquire) == deletions {
            self.known.insert(digest, Arc::clone(&known));
        }
        Ok(Some(known))
    }

    /// A record with what this daemon has seen of its module.
    fn as_known(&self, digest: Digest, record: Record) -> Arc<Known> {
        let before = self.known.get(&digest);
        let of = |what: fn(&Known) -> &AtomicU64| {
            before
                .as_ref()
                .map(|known| what(known).load(Ordering::Relaxed))
        };
        Arc::new(Known {
            digest,
            used: AtomicU64::new(of(|known| &known.used).unwrap_or(record.loaded)),
            seen: AtomicU64::new(now()),
            checked: AtomicU64::new(of(|known| &known.checked).unwrap_or_default()),
            record,
        })
    }

    /// Whether what is known of a module holds without asking the place.
    fn trusts(&self, known: &Known) -> bool {
        !self.shared || is_fresh(known.seen.load(Ordering::Relaxed), TRUSTED)
    }

    /// Has the place asked, behind the caller, whether a module is still there.
    fn look_again(self: &Arc<Self>, known: &Arc<Known>, seen: u64) {
        // Whoever moves the mark asks.
        let mine = known
            .seen
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
            // A place that does not answer changes nothing: what is known goes on running.
            let _ = store.fetch(digest).await;
        });
    }

    /// The bytes of a module that is kept.
    ///
    /// # Errors
    /// `MODULE_NOT_FOUND`, and `STORE_UNAVAILABLE`, also where the bytes are not those of the digest.
    pub async fn wasm(&self, digest: Digest) -> Result<Bytes, Refusal> {
        let key = Key {
            kind: Kind::Module,
            digest,
        };
        let checked = |at: u64| {
            if let Some(known) = self.known.get(&digest) {
                known.checked.store(at, Ordering::Relaxed);
            }
        };
        // What was acknowledged runs, also where this daemon would take no such large one any more.
        let known = self.known.get(&digest);
        let size = known.map_or(0, |known| known.record.size);
        let bytes = self.backend.get(key, self.max_module.max(size)).await;
        let Some(bytes) = bytes.map_err(|fault| self.refused(fault))? else {
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

    /// Up to `limit` modules after `after`, by digest, without their exports and imports.
    ///
    /// The second value is where the next page starts; `None` after the last.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn list(
        self: &Arc<Self>,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<(Vec<Known>, Option<Digest>), Refusal> {
        let digests = self.backend.records(after, limit).await;
        let digests = digests.map_err(|fault| self.refused(fault))?;
        let next = digests.last().copied().filter(|_| digests.len() >= limit);
        let summary = |digest| async move {
            let known = self.known.get(&digest);
            let found = match known.filter(|known| self.trusts(known)) {
                Some(known) => Ok(Some(known)),
                None => self.fetch(digest).await,
            };
            found.map(|known| known.map(|known| known.summary()))
        };
        let mut found = stream::iter(digests).map(summary).buffered(READ_AT_ONCE);
        let mut modules = Vec::new();
        while let Some(found) = found.next().await {
            match found {
                Ok(known) => modules.extend(known),
                // One that is damaged is in the log, and can be deleted or loaded again by its digest.
                Err(refusal) if refusal.retry().is_none() => {}
                Err(refusal) => return Err(refusal),
            }
        }
        Ok((modules, next))
    }

    fn shard(&self, digest: Digest) -> &Shard {
        &self.shards[usize::from(digest.as_bytes()[0]) % SHARDS]
    }

    fn refused(&self, fault: Fault) -> Refusal {
        match fault {
            Fault::Full(error) => {
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
            Fault::Host(limit) => {
                let why = limit.sentence();
                tracing::warn!(
                    store = self.name,
                    "a call to the module store failed: {why}"
                );
                let refusal = match limit {
                    // It would be the same next time.
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
            Fault::Refused { why, text, .. } => {
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
            Fault::Down(error) => {
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

/// Refuses a module that is not kept.
pub fn not_found(digest: Digest) -> Refusal {
    Refusal::new(
        Reason::ModuleNotFound,
        format!("no module {digest} is loaded here"),
    )
    .with("digest", digest)
}

/// `bytes` with their digest. Many take tens of milliseconds, which are not the serving threads' to give.
///
/// # Errors
/// Where the daemon is ending.
pub async fn hashed(bytes: Bytes) -> Result<(Bytes, Digest), Refusal> {
    /// The most bytes that are hashed on the thread that has them, which may have other connections to serve: about 50 us.
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
