//! Compiled modules by digest and variant: in memory within a byte budget, behind it on disk, behind that from their
//! bytes.
//!
//! Identical work is done once for all of a tenant who ask, and goes on when whoever asked first leaves. Modules are known
//! here by their digest, or by what stands for it where a tenant shares no code.

mod restore;

use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use self::restore::not_mapped;
use super::code_cache::{CacheLimits, CodeCache, CodeUse};
use super::compile::{
    CompileLane, Compiler, Failed, Lanes, Placement, Session, compatibilities, compile_limit,
    estimate,
};
use super::engine::{Engines, Variant};
use super::flight::SingleFlight;
use super::inspection::Inspection;
use super::loaded::{Loaded, kib};
use super::saver::{Save, start_saver};
use super::wanted::{Source, Wanted};
use crate::refusal::{Reason, Refusal};
use crate::request::Digest;
use crate::store::Artifacts;

/// Bytes of inspections kept apart from compiled modules, for other variants of the same module.
const INSPECTED: u64 = 32 << 20;
/// How long a module's bytes may take to come from the store: others wait for the turn that it has.
const FETCH: Duration = Duration::from_secs(300);
/// The same for a small module, whose bytes are needed before it has a turn: where they take longer they come in the
/// turn of a large one. So many come at once.
const FETCH_SMALL: Duration = Duration::from_secs(1);
const FETCHED_AT_ONCE: usize = 16;
/// How often a module is begun to be compiled for one who asks: an order can come too late, and a module can outgrow the
/// small lane, each once.
const ATTEMPTS: usize = 3;
/// Modules that are read from disk at once.
const READ_AT_ONCE: usize = 4;
/// Refusals of modules that are remembered, and for how long: the same bytes under the same budget fare no better.
const REMEMBERED: u64 = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// Does what takes milliseconds, for a large module, off the serving threads.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refusal::internal(format_args!("loading a module: {error}")))?
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    digest: Digest,
    variant: Variant,
}

/// A module that was inspected. Where that was just now, whoever asks first has it compiled without another look.
#[derive(Clone)]
pub struct Inspected {
    /// What was found.
    pub inspection: Arc<Inspection>,
    parked: Option<Arc<Mutex<Option<Session>>>>,
}

/// The caches.
pub struct Modules {
    inner: Arc<Inner>,
    restoring: SingleFlight<Key, Option<Arc<Loaded>>>,
    /// By metering: the code is the same for every stack class.
    compiling: SingleFlight<(Digest, bool, usize), Arc<Loaded>>,
    /// By owner, as compiling is: each waits in a line of its own, and what another has done meanwhile is taken then.
    inspecting: SingleFlight<(Digest, usize), Inspected>,
}

struct Inner {
    engines: Arc<Engines>,
    compiler: Compiler,
    lanes: Lanes,
    /// Small modules whose bytes come from a store at once.
    fetching: Semaphore,
    artifacts: Option<Arc<Artifacts>>,
    /// Writes to them.
    saver: Option<SyncSender<Save>>,
    /// Modules that are read from disk at once.
    reading: Semaphore,
    /// Of the code that the engines take, unmetered and metered.
    compatible: [u64; 2],
    loaded: CodeCache<Key, Arc<Loaded>>,
    /// What a module weighs in it at the least, in KiB.
    least_weight: u64,
    inspected: moka::sync::Cache<Digest, Arc<Inspection>>,
    /// Of what inspecting a module, or compiling it metered or not, came to.
    failed: moka::sync::Cache<(Digest, Option<bool>), Refusal>,
}

impl Modules {
    /// With so much compiled code in memory.
    ///
    /// # Errors
    /// Where the host refuses a thread.
    pub(super) fn new(
        engines: Arc<Engines>,
        compiler: Compiler,
        lanes: Lanes,
        artifacts: Option<Arc<Artifacts>>,
        limits: CacheLimits<'_>,
    ) -> wasmtime::Result<Self> {
        let lru = moka::policy::EvictionPolicy::lru;
        // One that has memory to begin with holds a descriptor.
        let least_weight = (limits.bytes / most_loaded()) >> 10;
        let loaded = CodeCache::new(limits.bytes >> 10, limits.weights);
        let inspected = moka::sync::Cache::builder()
            .max_capacity(INSPECTED >> 10)
            .eviction_policy(lru())
            .weigher(|_: &Digest, inspection: &Arc<Inspection>| kib(inspection.weight()))
            .build();
        let failed = moka::sync::Cache::builder()
            .max_capacity(REMEMBERED)
            .eviction_policy(lru())
            .time_to_live(REMEMBERED_FOR)
            .build();
        let saver = match &artifacts {
            Some(artifacts) => Some(start_saver(Arc::clone(artifacts))?),
            None => None,
        };
        Ok(Self {
            inner: Arc::new(Inner {
                saver,
                reading: Semaphore::new(READ_AT_ONCE),
                compatible: compatibilities(engines.compilers())?,
                engines,
                compiler,
                lanes,
                fetching: Semaphore::new(FETCHED_AT_ONCE),
                artifacts,
                loaded,
                least_weight,
                inspected,
                failed,
            }),
            restoring: SingleFlight::default(),
            compiling: SingleFlight::default(),
            inspecting: SingleFlight::default(),
        })
    }

    /// Where modules are compiled, and what confines that.
    pub fn compile_mode(&self) -> &str {
        self.inner.compiler.mode()
    }

    /// Compilations that were begun.
    pub fn compilations(&self) -> u64 {
        self.inner.compiler.compilations()
    }

    /// Bytes of compiled modules in memory, about.
    pub fn cached_bytes(&self) -> u64 {
        self.inner.loaded.weight() << 10
    }

    /// Artefacts on disk that were not taken.
    pub fn rejected_artifacts(&self) -> u64 {
        self.inner
            .artifacts
            .as_ref()
            .map_or(0, |artifacts| artifacts.rejected())
    }

    /// Where compiled code of a module is: "memory", "disk".
    pub fn cached_in(&self, digest: Digest) -> Vec<&'static str> {
        let in_memory =
            Variant::all().any(|variant| self.inner.loaded.contains(&Key { digest, variant }));
        let on_disk = [false, true]
            .into_iter()
            .any(|metered| self.inner.on_disk(digest, metered).is_some());
        [(in_memory, "memory"), (on_disk, "disk")]
            .into_iter()
            .filter_map(|(is, place)| is.then_some(place))
            .collect()
    }

    /// The module in `variant` where it is in memory. It is one of its tenant's from then on, as long as it is there.
    pub fn in_memory(
        &self,
        digest: Digest,
        variant: Variant,
        code_use: CodeUse,
    ) -> Option<Arc<Loaded>> {
        self.inner.loaded.get(&Key { digest, variant }, code_use)
    }

    /// The module in `variant` where it need not be compiled: it is in memory, or its code is there for another stack
    /// or on disk. It is one of its tenant's from then on, for as long as it is in memory.
    ///
    /// # Errors
    /// A failure of the daemon.
    pub async fn ready(
        &self,
        digest: Digest,
        variant: Variant,
        code_use: CodeUse,
    ) -> Result<Option<Arc<Loaded>>, Refusal> {
        let (inner, key) = (&self.inner, Key { digest, variant });
        if let Some(loaded) = inner.loaded.get(&key, code_use) {
            return Ok(Some(loaded));
        }
        let on_disk = || inner.on_disk(digest, variant.metered).is_some();
        if inner.sibling(key, code_use).is_none() && !on_disk() {
            return Ok(None);
        }
        let work = || {
            let inner = Arc::clone(inner);
            async move {
                let _place = inner.reading.acquire().await.map_err(Refusal::internal)?;
                let reader = Arc::clone(&inner);
                aside(move || reader.restore(key, code_use)).await
            }
        };
        let ready = || inner.loaded.get(&key, code_use).map(Some);
        let (restored, _) = self.restoring.run(key, ready, work).await?;
        // Another tenant may have begun it.
        inner.loaded.touch(&key, code_use);
        Ok(restored)
    }

    /// Validates a module and reads what it is.
    ///
    /// # Errors
    /// `MODULE_INVALID`, `FEATURE_NOT_ENABLED`, `IMPORT_NOT_ALLOWED`, `COMPILE_LIMIT_EXCEEDED`, `QUEUE_FULL`, and those
    /// of the store.
    pub async fn inspect(&self, digest: Digest, wanted: Wanted) -> Result<Inspected, Refusal> {
        let inner = &self.inner;
        if let Some(refusal) = inner.failed.get(&(digest, None)) {
            return Err(refusal);
        }
        let key = (digest, wanted.owner());
        let work = || {
            let inner = Arc::clone(inner);
            async move {
                // What another did meanwhile, or failed at.
                let done = || match inner.failed.get(&(digest, None)) {
                    Some(refusal) => Some(Err(refusal)),
                    None => inner.inspected.get(&digest).map(Ok),
                };
                let (inspection, session) = match inner.open(digest, &wanted, done).await? {
                    Opening::Done(inspection) => {
                        return Ok(Inspected {
                            inspection,
                            parked: None,
                        });
                    }
                    Opening::Opened(inspection, session) => (inspection, session),
                };
                inner.inspected.insert(digest, Arc::clone(&inspection));
                Ok(Inspected {
                    inspection,
                    parked: Some(Arc::new(Mutex::new(Some(session)))),
                })
            }
        };
        let ready = || {
            let inspection = inner.inspected.get(&digest)?;
            Some(Inspected {
                inspection,
                parked: None,
            })
        };
        let (inspected, _) = self.inspecting.run(key, ready, work).await?;
        Ok(inspected)
    }

    /// The module in `variant`, compiled where it is not ready; whether it was is the second value.
    ///
    /// # Errors
    /// `COMPILATION_FAILED`, `COMPILE_LIMIT_EXCEEDED`, `QUEUE_FULL`, and those of the store.
    pub async fn get(
        &self,
        digest: Digest,
        variant: Variant,
        wanted: Wanted,
        inspected: Inspected,
    ) -> Result<(Arc<Loaded>, bool), Refusal> {
        let (inner, key) = (&self.inner, Key { digest, variant });
        if let Some(refusal) = inner.failed.get(&(digest, Some(variant.metered))) {
            return Err(refusal);
        }
        let code = (digest, variant.metered, wanted.owner());
        let code_use = wanted.code_use;
        // Dropped where the work is under way already: a session that nobody uses would hold a compile thread.
        let work = || {
            let inner = Arc::clone(inner);
            async move {
                let loaded = Arc::clone(&inner).compile(key, wanted, inspected).await?;
                // Under what it is: another may have had it compiled meanwhile, for another stack class.
                let key = Key {
                    variant: loaded.variant,
                    ..key
                };
                inner.hold(key, &loaded, code_use);
                Ok(loaded)
            }
        };
        let (loaded, ready) = self
            .compiling
            .run(code, || inner.sibling(key, code_use), work)
            .await?;
        if loaded.variant == variant {
            return Ok((loaded, ready));
        }
        // Compiled for another stack class: the same code is mapped for this one.
        let artifact = loaded.artifact().map_err(not_mapped)?;
        let inspection = Arc::clone(&loaded.inspection);
        let mapper = Arc::clone(inner);
        let loaded = aside(move || {
            let loaded = mapper
                .map(variant, &artifact, &inspection)
                .map_err(not_mapped)?;
            mapper.hold(key, &loaded, code_use);
            Ok(loaded)
        });
        Ok((loaded.await?, ready))
    }

    /// Notes that a tenant does not keep a module any more: what it still uses of it, it uses from its requests.
    pub fn keep_no_longer(&self, digest: Digest, tenant: usize) {
        for variant in Variant::all() {
            let key = Key { digest, variant };
            self.inner.loaded.keep_no_longer(&key, tenant);
        }
    }

    /// Drops all that is held of a module; runs that have it keep it.
    ///
    /// # Errors
    /// Where the daemon is ending.
    pub async fn forget(&self, digest: Digest) -> Result<(), Refusal> {
        for variant in Variant::all() {
            self.inner.loaded.remove(&Key { digest, variant });
        }
        self.inner.inspected.invalidate(&digest);
        match &self.inner.artifacts {
            Some(artifacts) => {
                let artifacts = Arc::clone(artifacts);
                aside(move || {
                    artifacts.remove(digest);
                    Ok(())
                })
                .await
            }
            None => Ok(()),
        }
    }
}

/// What came of opening a module.
enum Opening<T> {
    /// Another did what it was to be opened for.
    Done(T),
    Opened(Arc<Inspection>, Session),
}

impl Inner {
    /// Keeps in mind what says something about the module itself.
    fn remember(&self, key: (Digest, Option<bool>), failed: Failed) -> Refusal {
        let Failed {
            refusal,
            for_good,
            outgrew,
        } = failed;
        // What was too much for the small lane may not be too much.
        if for_good && !outgrew {
            self.failed.insert(key, refusal.clone());
        }
        refusal
    }

    /// Opens a module in its lane, when it is its tenant's turn. Where what it is wanted for is `done` by then, that is
    /// all.
    ///
    /// # Errors
    /// Those of the turn, of the store, and of [`Compiler::open`].
    async fn open<T>(
        &self,
        digest: Digest,
        wanted: &Wanted,
        done: impl Fn() -> Option<Result<T, Refusal>>,
    ) -> Result<Opening<T>, Refusal> {
        let (mut placement, wasm) = self.place(digest, wanted).await?;
        loop {
            let (lane, permit) = wanted.permit(placement.lane).await?;
            if let Some(done) = done() {
                return done.map(Opening::Done);
            }
            // What its tenant's others did while it waited may have closed the small lane to it.
            if lane == CompileLane::Small && self.lane(digest, wanted, placement.cost) != lane {
                placement = Placement::LARGE;
                continue;
            }
            placement.lane = lane;
            // Only now, but for small ones: as many as wait for a turn would be in memory otherwise.
            let bytes = match wasm.clone() {
                Source::Here(blob) => blob,
                Source::Stored { store, digest, .. } => {
                    let fetched = tokio::time::timeout(FETCH, store.wasm(digest)).await;
                    fetched.unwrap_or_else(|_| Err(too_slow()))?.into()
                }
            };
            match self.compiler.open(bytes, placement, permit).await {
                Ok((inspection, session)) => {
                    return Ok(Opening::Opened(Arc::new(inspection), session));
                }
                Err(failed) if failed.outgrew => {
                    self.outgrew(digest, wanted, placement);
                    placement = Placement::LARGE;
                }
                Err(failed) => return Err(self.remember((digest, None), failed)),
            }
        }
    }

    /// Where a module is to be compiled, with its bytes where they were needed to tell.
    async fn place(&self, digest: Digest, wanted: &Wanted) -> Result<(Placement, Source), Refusal> {
        let large = || Ok((Placement::LARGE, wanted.wasm.clone()));
        if !self.lanes.may_be_small(digest, wanted.wasm.len()) {
            return large();
        }
        let blob = match wanted.wasm.clone() {
            Source::Here(blob) => blob,
            Source::Stored { store, digest, .. } => {
                let fetch = async {
                    let _place = self.fetching.acquire().await.map_err(Refusal::internal)?;
                    store.wasm(digest).await
                };
                match tokio::time::timeout(FETCH_SMALL, fetch).await {
                    Ok(fetched) => fetched?.into(),
                    Err(_elapsed) => return large(),
                }
            }
        };
        let counted = blob.clone();
        let counted = tokio::task::spawn_blocking(move || counted.read().map(|it| estimate(&it)));
        let Ok(Ok(cost)) = counted.await else {
            // Whatever is wrong with it is told by who compiles it.
            return large();
        };
        let lane = self.lane(digest, wanted, cost);
        Ok((Placement { lane, cost }, Source::Here(blob)))
    }

    fn lane(&self, digest: Digest, wanted: &Wanted, cost: u64) -> CompileLane {
        self.lanes
            .choose(digest, wanted.owner(), cost, Instant::now())
    }

    fn outgrew(&self, digest: Digest, wanted: &Wanted, placement: Placement) {
        self.lanes
            .outgrew(digest, wanted.owner(), placement.cost, Instant::now());
    }

    async fn compile(
        self: Arc<Self>,
        key: Key,
        wanted: Wanted,
        inspected: Inspected,
    ) -> Result<Arc<Loaded>, Refusal> {
        let Inspected { inspection, parked } = inspected;
        let Key { digest, variant } = key;
        let mut opened = parked.and_then(|parked| {
            // Nothing panics while it is held.
            parked.lock().unwrap_or_else(PoisonError::into_inner).take()
        });
        let done = || match self.failed.get(&(digest, Some(variant.metered))) {
            Some(refusal) => Some(Err(refusal)),
            None => self.sibling(key, wanted.code_use).map(Ok),
        };
        let mut compiled = None;
        for _ in 0..ATTEMPTS {
            let session = match opened.take() {
                Some(session) => session,
                None => match self.open(digest, &wanted, done).await? {
                    Opening::Done(loaded) => return Ok(loaded),
                    Opening::Opened(_, session) => session,
                },
            };
            let placement = session.placement;
            compiled = self.compiler.compile(session, variant.metered).await;
            match &compiled {
                Some(Err(failed)) if failed.outgrew => self.outgrew(digest, &wanted, placement),
                Some(_) => break,
                None => {}
            }
        }
        let compiled = compiled
            .ok_or_else(|| Refusal::internal("the compile thread did not take an order"))?;
        let failed = |failed| self.remember((digest, Some(variant.metered)), failed);
        let artifact = Arc::new(compiled.map_err(failed)?);
        let this = Arc::clone(&self);
        aside(move || {
            let loaded = this
                .map(variant, &artifact, &inspection)
                .map_err(not_mapped)?;
            if !this.fits(&loaded) {
                let size = |kib| bytesize::ByteSize::kib(kib).display().iec();
                let (asked, allowed) = (size(loaded.weight().into()), size(this.budget()));
                let message = format!("the compiled module takes {asked} of the cache");
                let refusal = compile_limit("engine.cache_budget", message, allowed);
                let failed = Failed::for_good(refusal.with("asked", asked));
                return Err(this.remember((digest, Some(variant.metered)), failed));
            }
            this.save(digest, variant.metered, artifact, inspection);
            Ok(loaded)
        })
        .await
    }
}

/// How many modules may be loaded at once: they may take a quarter of the descriptors that the process may have.
fn most_loaded() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(u64::MAX, |limit| (limit / 4).max(1))
}

fn too_slow() -> Refusal {
    let message = "the module store does not give back the module in time";
    Refusal::new(Reason::StoreUnavailable, message).retry_after(Duration::from_secs(1))
}
