//! Where modules live: their bytes by digest, in memory, in a folder or in an object store, and beside each a record of
//! what is known of it.
//!
//! A module is kept from the moment that its record is written, which comes after its bytes; deleting takes them in the
//! other order. Bytes are checked against their digest whenever they are read, so that any number of daemons can share
//! a place. Nothing is ever evicted: a store without room refuses.

mod artifacts;
mod backend;
mod blob;
mod directory;
mod objects;
mod oci;
mod sealed;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};

use self::backend::{Backend, Fault, Key, Kind, Mode, Put};
use self::directory::Directory;
use self::objects::Objects;
use crate::module::Description;
use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, Labels};

pub use self::artifacts::{Artifacts, ArtifactsSettings, Name as ArtifactName};
pub use self::blob::{Assembly, Blob, Spool};
pub use self::oci::{Pulled, Registries, Registry};
pub use self::sealed::{Sealed, unsealed};

/// Bytes of a record at the most.
const MAX_RECORD: u64 = 4 << 20;
/// Bytes of records kept in memory.
const RECORDS: u64 = 32 << 20;
/// How long a place that others write to is taken to be as it was: what they delete is forgotten after that, at its
/// next use, and what they add is counted.
const TRUSTED: Duration = Duration::from_secs(30);
/// Records read at once for a listing.
const READ_AT_ONCE: usize = 8;
/// Writers of different modules at once; those of one module take turns.
const SHARDS: usize = 64;
/// What a caller is told to wait while the store is away.
const RETRY: Duration = Duration::from_secs(1);

/// Where modules are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this process, until it ends.
    Memory,
    /// In a folder.
    Directory(PathBuf),
    /// In an object store: "s3://", "gs://" or "az://".
    Objects(url::Url),
}

/// How a store is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where.
    pub place: Place,
    /// Bytes of modules.
    pub budget: u64,
    /// Bytes of one module.
    pub max_module: u64,
    /// Where uploads are put together where the place is no folder itself.
    pub spool: PathBuf,
}

/// What is known of a module that is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The name given when it was loaded.
    pub name: String,
    /// The labels given when it was loaded.
    pub labels: Labels,
    /// Bytes as received.
    pub size: u64,
    /// When it was loaded, in milliseconds since 1970.
    loaded: u64,
    /// What it is.
    pub description: Description,
}

/// A module that is kept, as this daemon knows it.
#[derive(Debug)]
pub struct Known {
    /// Its digest.
    pub digest: Digest,
    /// Its record.
    pub record: Record,
    /// When it last ran or was loaded here, in milliseconds since 1970.
    used: AtomicU64,
    /// When the place last said that it is there, in milliseconds since the store was opened.
    seen: AtomicU64,
    /// Whether this daemon has written its bytes, or read and checked them.
    checked: AtomicBool,
}

impl Known {
    /// When it last ran or was loaded, as far as this daemon knows.
    pub fn last_used(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.used.load(Ordering::Relaxed))
    }

    /// Notes that it is used.
    pub fn touch(&self) {
        self.used.store(now(), Ordering::Relaxed);
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Modules by digest, within a budget of bytes.
pub struct Store {
    backend: Box<dyn Backend>,
    /// Of the place, as errors tell it.
    name: &'static str,
    /// Whether others write to it.
    shared: bool,
    budget: u64,
    max_module: u64,
    spool: Spool,
    opened: Instant,
    known: moka::sync::Cache<Digest, Arc<Known>>,
    used: Mutex<Option<Usage>>,
    writers: [Mutex<()>; SHARDS],
}

/// Bytes that are kept, when they were counted.
struct Usage {
    bytes: u64,
    at: Instant,
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
                let directory = Directory::open(root)
                    .map_err(|error| format!("store.url: {}: {error}", root.display()))?;
                let spool = Spool {
                    dir: directory::aside(root),
                    key: "store.url",
                };
                (Box::new(directory), "file:", spool)
            }
            Place::Objects(url) => {
                let objects = Objects::at(url).map_err(|error| format!("store.url: {error}"))?;
                let name = match url.scheme() {
                    "gs" => "gs:",
                    "az" => "az:",
                    _ => "s3:",
                };
                (Box::new(objects), name, spool)
            }
        };
        let known = moka::sync::Cache::builder()
            .max_capacity(RECORDS)
            .weigher(|_: &Digest, known: &Arc<Known>| {
                let weight = known.record.description.weight() + known.record.name.len() + 1024;
                u32::try_from(weight).unwrap_or(u32::MAX)
            })
            .build();
        Ok(Arc::new(Self {
            backend,
            name,
            shared: settings.place != Place::Memory,
            budget: settings.budget,
            max_module: settings.max_module,
            spool,
            opened: Instant::now(),
            known,
            used: Mutex::new(None),
            writers: std::array::from_fn(|_| Mutex::new(())),
        }))
    }

    /// Where modules that arrive in pieces are put together.
    pub fn spool(&self) -> &Spool {
        &self.spool
    }

    /// What is known of a module; `None` where it is not kept.
    ///
    /// One that is known here is found without asking the place, which is asked behind it now and then.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn find(self: &Arc<Self>, digest: Digest) -> Result<Option<Arc<Known>>, Refusal> {
        if let Some(known) = self.known.get(&digest) {
            self.look_again(&known);
            return Ok(Some(known));
        }
        self.fetch(digest).await
    }

    /// Asks the place for a record.
    async fn fetch(&self, digest: Digest) -> Result<Option<Arc<Known>>, Refusal> {
        let key = Key {
            kind: Kind::Record,
            digest,
        };
        let bytes = self.backend.get(key, MAX_RECORD).await;
        let Some(bytes) = bytes.map_err(|fault| self.refused(fault))? else {
            self.known.invalidate(&digest);
            return Ok(None);
        };
        match serde_json::from_slice::<Record>(&bytes) {
            Ok(record) => Ok(Some(self.learn(digest, record, false))),
            Err(error) => {
                tracing::error!(%digest, %error, store = self.name, "a module's record is damaged");
                Err(self.damaged(digest))
            }
        }
    }

    fn learn(&self, digest: Digest, record: Record, checked: bool) -> Arc<Known> {
        let before = self.known.get(&digest);
        let used = before
            .as_ref()
            .map_or(record.loaded, |known| known.used.load(Ordering::Relaxed));
        let known = Arc::new(Known {
            digest,
            record,
            used: AtomicU64::new(used),
            seen: AtomicU64::new(self.elapsed()),
            checked: AtomicBool::new(
                checked || before.is_some_and(|known| known.checked.load(Ordering::Relaxed)),
            ),
        });
        self.known.insert(digest, Arc::clone(&known));
        known
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Has the place asked, behind the caller, whether a module is still there, where that was not asked for a while.
    fn look_again(self: &Arc<Self>, known: &Arc<Known>) {
        let (now, seen) = (self.elapsed(), known.seen.load(Ordering::Relaxed));
        let trusted = u64::try_from(TRUSTED.as_millis()).unwrap_or(u64::MAX);
        if !self.shared || now.saturating_sub(seen) < trusted {
            return;
        }
        // Whoever moves the mark asks.
        let mine = known
            .seen
            .compare_exchange(seen, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok();
        if !mine {
            return;
        }
        let (store, digest) = (Arc::clone(self), known.digest);
        #[expect(
            clippy::disallowed_methods,
            reason = "bounded by the store's own timeouts; ends by itself"
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
        let bytes = self.backend.get(key, self.max_module).await;
        let bytes = bytes
            .map_err(|fault| self.refused(fault))?
            .ok_or_else(|| not_found(digest))?;
        let (bytes, found) = hashed(bytes).await?;
        if found != digest {
            tracing::error!(%digest, %found, store = self.name, "a stored module is damaged");
            return Err(self.damaged(digest));
        }
        if let Some(known) = self.known.get(&digest) {
            known.checked.store(true, Ordering::Relaxed);
        }
        Ok(bytes)
    }

    /// Keeps a module. One that is there already gets the new name and labels.
    ///
    /// # Errors
    /// `STORE_FULL` where it does not fit the budget or the place; `STORE_UNAVAILABLE`.
    pub async fn keep(
        &self,
        digest: Digest,
        wasm: &Blob,
        name: String,
        labels: Labels,
        description: Description,
    ) -> Result<Arc<Known>, Refusal> {
        let _mine = self.writer(digest).await;
        let record = Record {
            name,
            labels,
            size: wasm.len(),
            loaded: now(),
            description,
        };
        self.keep_bytes(digest, wasm).await?;
        let key = Key {
            kind: Kind::Record,
            digest,
        };
        let there = self.backend.size(key).await;
        let there = there.map_err(|fault| self.refused(fault))?.is_some();
        let same = |known: &Arc<Known>| {
            known.record.name == record.name && known.record.labels == record.labels
        };
        if there && let Some(known) = self.known.get(&digest).filter(same) {
            known.touch();
            known.checked.store(true, Ordering::Relaxed);
            return Ok(known);
        }
        let text = serde_json::to_vec(&record).map_err(Refusal::internal)?;
        let put = self
            .backend
            .put(key, Bytes::from(text).into(), Mode::Replace);
        put.await.map_err(|fault| self.refused(fault))?;
        let known = self.learn(digest, record, true);
        known.touch();
        Ok(known)
    }

    /// Makes the place hold the bytes: those that are there are taken for right only where this daemon wrote or read
    /// them before.
    async fn keep_bytes(&self, digest: Digest, wasm: &Blob) -> Result<(), Refusal> {
        let key = Key {
            kind: Kind::Module,
            digest,
        };
        let refused = |fault| self.refused(fault);
        let checked = |known: Arc<Known>| known.checked.load(Ordering::Relaxed);
        let there = self.backend.size(key).await.map_err(refused)?;
        if there == Some(wasm.len()) && self.known.get(&digest).is_some_and(checked) {
            return Ok(());
        }
        if there.is_none() {
            self.reserve(wasm.len()).await?;
            let put = self.backend.put(key, wasm.clone(), Mode::Create).await;
            match put {
                Ok(Put::Written) => return Ok(()),
                Ok(Put::Exists) => self.release(wasm.len()).await,
                Err(fault) => {
                    self.release(wasm.len()).await;
                    return Err(refused(fault));
                }
            }
        }
        match self.wasm(digest).await {
            Ok(_) => Ok(()),
            Err(_) => {
                let put = self.backend.put(key, wasm.clone(), Mode::Replace).await;
                put.map(drop).map_err(refused)
            }
        }
    }

    /// Deletes a module; false where it was not kept.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn delete(&self, digest: Digest) -> Result<bool, Refusal> {
        let _mine = self.writer(digest).await;
        let key = |kind| Key { kind, digest };
        let sizes = futures_util::future::try_join(
            self.backend.size(key(Kind::Record)),
            self.backend.size(key(Kind::Module)),
        );
        let (record, module) = sizes.await.map_err(|fault| self.refused(fault))?;
        for kind in [Kind::Record, Kind::Module] {
            let deleted = self.backend.delete(key(kind)).await;
            deleted.map_err(|fault| self.refused(fault))?;
            self.known.invalidate(&digest);
        }
        self.release(module.unwrap_or_default()).await;
        Ok(record.is_some())
    }

    /// Up to `limit` modules after `after`, by digest, and where the next page starts.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn list(
        self: &Arc<Self>,
        after: Option<Digest>,
        limit: usize,
    ) -> Result<(Vec<Arc<Known>>, Option<Digest>), Refusal> {
        let digests = self.backend.records(after, limit).await;
        let digests = digests.map_err(|fault| self.refused(fault))?;
        let next = digests.last().copied().filter(|_| digests.len() == limit);
        let found = stream::iter(digests)
            .map(|digest| async move { (digest, self.find(digest).await) })
            .buffered(READ_AT_ONCE)
            .collect::<Vec<_>>()
            .await;
        let mut modules = Vec::with_capacity(found.len());
        for (digest, found) in found {
            match found {
                Ok(known) => modules.extend(known),
                // One that is damaged is told in the log, and can be deleted or loaded again by its digest.
                Err(refusal) if refusal.retry().is_none() => {
                    tracing::warn!(%digest, "left out of a listing");
                }
                Err(refusal) => return Err(refusal),
            }
        }
        Ok((modules, next))
    }

    async fn writer(&self, digest: Digest) -> MutexGuard<'_, ()> {
        let shard = usize::from(digest.as_bytes()[0]) % SHARDS;
        self.writers[shard].lock().await
    }

    /// Takes `bytes` of the budget.
    async fn reserve(&self, bytes: u64) -> Result<(), Refusal> {
        let mut used = self.used.lock().await;
        let fresh = used
            .as_ref()
            .filter(|used| !self.shared || used.at.elapsed() < TRUSTED);
        let before = match fresh {
            Some(used) => used.bytes,
            None => {
                let counted = self.backend.used().await;
                counted.map_err(|fault| self.refused(fault))?
            }
        };
        let at = fresh.map_or_else(Instant::now, |used| used.at);
        let after = before.saturating_add(bytes);
        let fits = after <= self.budget;
        *used = Some(Usage {
            bytes: if fits { after } else { before },
            at,
        });
        if fits {
            return Ok(());
        }
        Err(Refusal::new(
            Reason::StoreFull,
            format!(
                "the module store is full: {before} of {} bytes are used, {bytes} more are needed (store.budget)",
                self.budget
            ),
        )
        .with("store", self.name)
        .with("asked", bytes)
        .with("allowed", self.budget.saturating_sub(before)))
    }

    /// Gives `bytes` of the budget back.
    async fn release(&self, bytes: u64) {
        if let Some(used) = self.used.lock().await.as_mut() {
            used.bytes = used.bytes.saturating_sub(bytes);
        }
    }

    fn refused(&self, fault: Fault) -> Refusal {
        match fault {
            Fault::Full(error) => {
                tracing::warn!(%error, store = self.name, "the module store has no room");
                Refusal::new(
                    Reason::StoreFull,
                    format!("the module store has no room left ({})", self.name),
                )
                .with("store", self.name)
            }
            Fault::Down(error) => {
                tracing::warn!(%error, store = self.name, "the module store does not work");
                Refusal::new(
                    Reason::StoreUnavailable,
                    format!("the module store cannot be reached ({})", self.name),
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
    /// The most bytes that are hashed on the thread that has them.
    const INLINE: usize = 1 << 20;
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
