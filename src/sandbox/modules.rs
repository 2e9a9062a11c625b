//! The cache of compiled modules, in three tiers: code in memory within a byte budget, artefacts on
//! disk behind it, and behind those the compilation of a module's bytes.
//!
//! Identical work is done once for all requests of a tenant that ask for it (single flight), and
//! goes on when the caller that asked first leaves. A module is identified by its digest, or, for a
//! tenant that shares no code with others, by an identifier that stands for the digest.

pub(super) mod artifact_writer;
pub(super) mod code_cache;
pub(super) mod compile;
pub(super) mod compile_limit;
pub(super) mod compile_request;
pub(super) mod footprint;
pub(super) mod inspect;
pub(super) mod inspection;
pub(super) mod loaded;
pub(super) mod lookup;
mod restore;
pub(super) mod single_flight;
pub(super) mod validate;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use self::artifact_writer::ArtifactWriter;
use self::code_cache::{CacheLimits, CodeCache, CodeUse};
use self::compile::{
    CompileError, CompileLane, CompileSession, Compiler, LaneChooser, Placement,
    compatibility_hashes, estimate_compile_cost,
};
use self::compile_limit::compile_limit;
use self::compile_request::{CompileRequest, ModuleSource};
use self::inspection::Inspection;
use self::loaded::{LoadedModule, kib};
use self::restore::not_mapped;
use self::single_flight::SingleFlight;
use super::engine::{Engines, Variant};
use crate::metrics::Count;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::Digest;
use crate::model::tenant_id::TenantId;
use crate::store::ArtifactCache;
use crate::sync::lock;

/// Bytes of inspections that are cached apart from the compiled modules, for other variants of the
/// same module.
const INSPECTED: u64 = 32 << 20;
/// How long the store may take to deliver the bytes of a module that has its compile permit: other
/// modules wait for that permit.
const FETCH: Duration = Duration::from_secs(300);
/// How long the store may take to deliver the bytes of a small module, which are needed before it
/// has a permit. If they take longer, the module is compiled in the large lane, and its bytes are
/// fetched once it has a permit there.
const FETCH_SMALL: Duration = Duration::from_secs(1);
/// How many small modules may be fetched from stores at the same time.
const FETCHED_AT_ONCE: usize = 16;
/// How many times one request may start compiling a module. Two of the attempts may be lost, once
/// because the compile order comes too late and once because the module outgrows the small lane.
const ATTEMPTS: usize = 3;
/// How many modules may be read from disk at the same time.
const READ_AT_ONCE: usize = 4;
/// How many refusals of modules are remembered. The same bytes under the same budget would be
/// refused again.
const REMEMBERED: u64 = 10_000;
/// How long a refusal of a module is remembered.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// Moves work to the blocking pool: for a large module it takes milliseconds, too long for a
/// serving thread.
///
/// # Errors
/// Those of `work`, and `INTERNAL` where it panics or the daemon is shutting down.
async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refusal::internal(format_args!("loading a module: {error}")))?
}

/// Key of the code that is mapped in memory.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct LoadedKey {
    digest: Digest,
    variant: Variant,
}

/// The step at which a module was refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum RefusedStage {
    Inspection,
    /// Compilation of unmetered code.
    Compilation,
    /// Compilation of metered code, which is larger.
    MeteredCompilation,
}

impl RefusedStage {
    fn compilation(variant: Variant) -> Self {
        match variant.metered {
            true => Self::MeteredCompilation,
            false => Self::Compilation,
        }
    }
}

/// The result of an inspection. Where the inspection has just been done, its compile session is
/// still open, and whoever asks first has the module compiled without a second inspection.
#[derive(Clone)]
struct Inspected {
    /// What the inspection found out about the module.
    inspection: Arc<Inspection>,
    open_session: Option<Arc<Mutex<Option<CompileSession>>>>,
}

/// The caches of compiled modules, inspections and refusals, with the compiler behind them.
pub struct ModuleCache {
    inner: Arc<Inner>,
    restoring: SingleFlight<LoadedKey, Option<Arc<LoadedModule>>>,
    /// Compilations in flight, by digest, metering and tenant. The stack class is no part of the
    /// key, because the code is the same for all of them.
    compiling: SingleFlight<(Digest, bool, TenantId), Arc<LoadedModule>>,
    /// Inspections in flight, by digest and tenant. As with compilations, each tenant waits in a
    /// queue of its own; when its turn comes, it takes the result that another tenant has produced
    /// meanwhile.
    inspecting: SingleFlight<(Digest, TenantId), Inspected>,
}

/// Counts of lookups of modules' code, by where it was found.
#[derive(Default)]
struct LookupCounts {
    memory: Count,
    disk: Count,
    nowhere: Count,
}

struct Inner {
    engines: Arc<Engines>,
    compiler: Compiler,
    lanes: LaneChooser,
    /// Limits how many small modules are fetched from stores at the same time.
    fetching: Semaphore,
    artifacts: Option<Arc<ArtifactCache>>,
    /// Writes to `artifacts`; `None` where there is no cache on disk.
    artifact_writer: Option<ArtifactWriter>,
    /// Limits how many modules are read from disk at the same time.
    reading: Semaphore,
    /// Compatibility hashes of the code that the engines accept, unmetered and metered.
    compatible: [u64; 2],
    loaded: CodeCache<LoadedKey, Arc<LoadedModule>>,
    /// The least that any module counts for in `loaded`, in KiB.
    least_weight: u64,
    inspected: moka::sync::Cache<Digest, Arc<Inspection>>,
    /// How often lookups found code, and where.
    lookups: LookupCounts,
    /// Refusals by digest and by what was refused.
    refusals: moka::sync::Cache<(Digest, RefusedStage), Refusal>,
}

impl ModuleCache {
    /// Creates the caches, with the budget for compiled code in memory that `limits` gives.
    ///
    /// # Errors
    /// The host refuses a thread, or an engine refuses its settings.
    pub(super) fn new(
        engines: Arc<Engines>,
        compiler: Compiler,
        lanes: LaneChooser,
        artifacts: Option<Arc<ArtifactCache>>,
        limits: CacheLimits<'_>,
    ) -> wasmtime::Result<Self> {
        let lru = moka::policy::EvictionPolicy::lru;
        // A module whose memory has initial contents holds a file descriptor, so the descriptors
        // limit how many modules fit in the budget.
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
        let artifact_writer = artifacts.clone().map(ArtifactWriter::start).transpose()?;
        Ok(Self {
            inner: Arc::new(Inner {
                artifact_writer,
                reading: Semaphore::new(READ_AT_ONCE),
                compatible: compatibility_hashes(engines.compilers())?,
                engines,
                compiler,
                lanes,
                fetching: Semaphore::new(FETCHED_AT_ONCE),
                artifacts,
                loaded,
                least_weight,
                inspected,
                lookups: LookupCounts::default(),
                refusals: failed,
            }),
            restoring: SingleFlight::default(),
            compiling: SingleFlight::default(),
            inspecting: SingleFlight::default(),
        })
    }

    /// Returns where modules are compiled, and what confines the processes that compile them.
    pub fn compile_mode(&self) -> &str {
        self.inner.compiler.mode()
    }

    /// Returns how many compilations were run to their end since the start, those that failed
    /// included.
    pub fn compilations(&self) -> u64 {
        self.inner.compiler.compilations()
    }

    /// Returns how many compile children there are now.
    pub(in crate::sandbox) fn compile_children(&self) -> u64 {
        self.inner.compiler.children()
    }

    /// Waits until all code that was compiled so far is on disk, where there is a cache.
    pub(crate) async fn wait_until_written(&self) {
        if let Some(writer) = &self.inner.artifact_writer {
            writer.wait_until_written().await;
        }
    }

    /// Returns the cache on disk, where there is one.
    pub(in crate::sandbox) fn artifacts(&self) -> Option<&ArtifactCache> {
        self.inner.artifacts.as_deref()
    }

    /// Returns how many lookups found a module's code in memory, on disk, and nowhere.
    pub(in crate::sandbox) fn lookups(&self) -> [u64; 3] {
        let LookupCounts {
            memory,
            disk,
            nowhere,
        } = &self.inner.lookups;
        [memory.get(), disk.get(), nowhere.get()]
    }

    /// Returns how many modules were evicted from memory to make room for others.
    pub(in crate::sandbox) fn evicted(&self) -> u64 {
        self.inner.loaded.evicted()
    }

    /// Returns the most bytes of compiled modules that may be in memory.
    pub fn cache_budget(&self) -> u64 {
        self.inner.loaded.budget() << 10
    }

    /// Returns about how many bytes of compiled modules are in memory.
    pub fn cached_bytes(&self) -> u64 {
        self.inner.loaded.weight() << 10
    }

    /// Returns how many artefacts on disk were rejected since the start.
    pub fn rejected_artifacts(&self) -> u64 {
        self.inner
            .artifacts
            .as_ref()
            .map_or(0, |artifacts| artifacts.rejected())
    }

    /// Lists where compiled code of a module is cached: "memory", "disk".
    pub fn cached_in(&self, digest: Digest) -> Vec<&'static str> {
        let in_memory = Variant::all()
            .any(|variant| self.inner.loaded.contains(&LoadedKey { digest, variant }));
        let on_disk = [false, true]
            .into_iter()
            .any(|metered| self.inner.on_disk(digest, metered).is_some());
        [(in_memory, "memory"), (on_disk, "disk")]
            .into_iter()
            .filter_map(|(is, place)| is.then_some(place))
            .collect()
    }

    /// Returns the module in `variant` if it is in memory. From then on the tenant of `code_use` is
    /// one of its users, for as long as it stays in memory.
    pub fn in_memory(
        &self,
        digest: Digest,
        variant: Variant,
        code_use: CodeUse,
    ) -> Option<Arc<LoadedModule>> {
        let key = LoadedKey { digest, variant };
        let found = self.inner.loaded.get(&key, code_use);
        if found.is_some() {
            self.inner.lookups.memory.increment();
        }
        found
    }

    /// Notes that a tenant does not keep a module any more. What the tenant still uses of its code
    /// counts as inline use, which comes with its runs.
    pub fn demote_to_inline(&self, digest: Digest, tenant: TenantId) {
        for variant in Variant::all() {
            let key = LoadedKey { digest, variant };
            self.inner.loaded.demote_to_inline(&key, tenant);
        }
    }

    /// Drops everything that is cached for a module. Runs that already have its code keep it.
    ///
    /// # Errors
    /// The daemon is shutting down.
    pub async fn forget(&self, digest: Digest) -> Result<(), Refusal> {
        for variant in Variant::all() {
            self.inner.loaded.remove(&LoadedKey { digest, variant });
        }
        self.inner.inspected.invalidate(&digest);
        match &self.inner.artifacts {
            Some(artifacts) => {
                let artifacts = Arc::clone(artifacts);
                spawn_blocking(move || {
                    artifacts.remove(digest);
                    Ok(())
                })
                .await
            }
            None => Ok(()),
        }
    }
}

/// The outcome of opening a module for inspection or compilation.
enum OpenOutcome<T> {
    /// Another request has meanwhile done what the module was to be opened for.
    Done(T),
    Opened(Arc<Inspection>, CompileSession),
}

impl Inner {
    /// Returns the refusal of a failed attempt, and remembers it where it says something about the
    /// module itself.
    fn remember(&self, key: (Digest, RefusedStage), failed: CompileError) -> Refusal {
        let CompileError {
            refusal,
            is_permanent: for_good,
            outgrew_small_lane: outgrew,
        } = failed;
        // What was too much for the small lane need not be too much for the large one.
        if for_good && !outgrew {
            self.refusals.insert(key, refusal.clone());
        }
        refusal
    }

    /// Opens a module in its lane once its tenant gets a permit. Nothing is opened if `done` finds
    /// by then that another request has produced what is wanted.
    ///
    /// # Errors
    /// Those of the permit, of the store, and of [`Compiler::open`].
    async fn open<T>(
        &self,
        digest: Digest,
        request: &CompileRequest,
        done: impl Fn() -> Option<Result<T, Refusal>>,
    ) -> Result<OpenOutcome<T>, Refusal> {
        let (mut placement, wasm) = self.choose_placement(digest, request).await?;
        loop {
            let (lane, permit) = request.permit(placement.lane).await?;
            if let Some(done) = done() {
                return done.map(OpenOutcome::Done);
            }
            // The tenant's other modules may have closed the small lane to this one while it
            // waited.
            if lane == CompileLane::Small
                && self.choose_lane(digest, request, placement.cost) != lane
            {
                placement = Placement::LARGE;
                continue;
            }
            placement.lane = lane;
            // The bytes of a large module are fetched only now: if they were fetched earlier, the
            // bytes of all modules that wait for a permit would be in memory.
            let bytes = match wasm.clone() {
                ModuleSource::Inline(blob) => blob,
                ModuleSource::Stored { store, digest, .. } => {
                    let fetched = tokio::time::timeout(FETCH, store.read_wasm(digest)).await;
                    fetched.unwrap_or_else(|_| Err(too_slow()))?.into()
                }
                ModuleSource::Provided(module) => module.read().await?.into(),
            };
            match self.compiler.open(bytes, placement, permit).await {
                Ok((inspection, session)) => {
                    return Ok(OpenOutcome::Opened(Arc::new(inspection), session));
                }
                Err(failed) if failed.outgrew_small_lane => {
                    self.outgrew(digest, request, placement);
                    placement = Placement::LARGE;
                }
                Err(failed) => {
                    return Err(self.remember((digest, RefusedStage::Inspection), failed));
                }
            }
        }
    }

    /// Chooses where a module is compiled. The source that is returned holds the module's bytes if
    /// they had to be read for that.
    async fn choose_placement(
        &self,
        digest: Digest,
        request: &CompileRequest,
    ) -> Result<(Placement, ModuleSource), Refusal> {
        let large = || Ok((Placement::LARGE, request.wasm.clone()));
        if !self.lanes.may_be_small(digest, request.wasm.len()) {
            return large();
        }
        let blob = match request.wasm.clone() {
            ModuleSource::Inline(blob) => blob,
            ModuleSource::Stored { store, digest, .. } => {
                let fetch = async {
                    let _place = self.fetching.acquire().await.map_err(Refusal::internal)?;
                    store.read_wasm(digest).await
                };
                match tokio::time::timeout(FETCH_SMALL, fetch).await {
                    Ok(fetched) => fetched?.into(),
                    Err(_elapsed) => return large(),
                }
            }
            ModuleSource::Provided(module) => module.read().await?.into(),
        };
        let counted = blob.clone();
        let counted = tokio::task::spawn_blocking(move || {
            counted.read().map(|it| estimate_compile_cost(&it))
        });
        let Ok(Ok(cost)) = counted.await else {
            // Whoever compiles the module reports what is wrong with it.
            return large();
        };
        let lane = self.choose_lane(digest, request, cost);
        Ok((Placement { lane, cost }, ModuleSource::Inline(blob)))
    }

    fn choose_lane(&self, digest: Digest, request: &CompileRequest, cost: u64) -> CompileLane {
        self.lanes
            .choose(digest, request.owner(), cost, Instant::now())
    }

    fn outgrew(&self, digest: Digest, request: &CompileRequest, placement: Placement) {
        self.lanes
            .outgrew(digest, request.owner(), placement.cost, Instant::now());
    }

    async fn compile(
        self: Arc<Self>,
        key: LoadedKey,
        request: CompileRequest,
        inspected: Inspected,
    ) -> Result<Arc<LoadedModule>, Refusal> {
        let Inspected {
            inspection,
            open_session,
        } = inspected;
        let LoadedKey { digest, variant } = key;
        let mut opened = open_session.and_then(|parked| lock(&parked).take());
        let done = || match self
            .refusals
            .get(&(digest, RefusedStage::compilation(variant)))
        {
            Some(refusal) => Some(Err(refusal)),
            None => self.any_stack_class(key, request.code_use).map(Ok),
        };
        let mut compiled = None;
        for _ in 0..ATTEMPTS {
            let session = match opened.take() {
                Some(session) => session,
                None => match self.open(digest, &request, done).await? {
                    OpenOutcome::Done(loaded) => return Ok(loaded),
                    OpenOutcome::Opened(_, session) => session,
                },
            };
            let placement = session.placement;
            compiled = self.compiler.compile(session, variant.metered).await;
            match &compiled {
                Some(Err(failed)) if failed.outgrew_small_lane => {
                    self.outgrew(digest, &request, placement)
                }
                Some(_) => break,
                None => {}
            }
        }
        let compiled = compiled
            .ok_or_else(|| Refusal::internal("the compile thread did not take an order"))?;
        let failed = |failed| self.remember((digest, RefusedStage::compilation(variant)), failed);
        let artifact = Arc::new(compiled.map_err(failed)?);
        let this = Arc::clone(&self);
        spawn_blocking(move || {
            let loaded = this
                .map(variant, &artifact, &inspection)
                .map_err(not_mapped)?;
            if !this.fits(&loaded) {
                let size = |kib| bytesize::ByteSize::kib(kib).display().iec();
                let (asked, allowed) = (size(loaded.weight().into()), size(this.budget()));
                let message = format!("the compiled module takes {asked} of the cache");
                let refusal = compile_limit("engine.cache_budget", message, allowed);
                let failed = CompileError::permanent(refusal.with("asked", asked));
                return Err(this.remember((digest, RefusedStage::compilation(variant)), failed));
            }
            this.save(digest, variant.metered, artifact, inspection);
            Ok(loaded)
        })
        .await
    }
}

/// Returns how many modules may be loaded at once: one for every four file descriptors that the
/// process may open.
fn most_loaded() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(u64::MAX, |limit| (limit / 4).max(1))
}

fn too_slow() -> Refusal {
    let message = "the module store does not give back the module in time";
    Refusal::new(Reason::StoreUnavailable, message).retry_after(Duration::from_secs(1))
}
