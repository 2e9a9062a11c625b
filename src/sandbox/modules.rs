//! Compiled modules by digest and variant: in memory within a byte budget, behind it on disk, behind that from their
//! bytes.
//!
//! Identical work is done once for all who ask, and goes on when whoever asked first leaves.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use wasmtime::component::Component;
use wasmtime::{InstancePre, Module};
use wasmtime_wasi::p2::bindings::CommandPre;

use super::compile::{Artifact, Compiler, Failed, Session, compatibility, compile_limit};
use super::engine::{Engines, Linked, Variant};
use super::flight::SingleFlight;
use super::host::{Clock, State};
use super::inspect::import_not_allowed;
use super::inspection::Inspection;
use crate::refusal::{Reason, Refusal, quote};
use crate::request::Digest;
use crate::store::{ArtifactName, Artifacts, Blob, Store};

/// What a module costs besides its code, in bytes: tables, metadata, linkage.
const OVERHEAD: usize = 64 << 10;
/// Bytes of inspections kept apart from compiled modules, for other variants of the same module.
const INSPECTED: u64 = 32 << 20;
/// Refusals of modules that are remembered, and for how long: the same bytes under the same budget fare no better.
const REMEMBERED: u64 = 10_000;
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// A module ready to be instantiated in one variant of the engine.
pub struct Loaded {
    /// What it is.
    pub inspection: Arc<Inspection>,
    /// How long its compilation took; zero where an artefact of it was there already.
    pub compiled_in: Duration,
    linked: Arc<Linked>,
    code: Code,
}

enum Code {
    Core {
        module: Module,
        /// By clock.
        linked: [OnceLock<InstancePre<State>>; 2],
    },
    Component {
        component: Component,
        /// By clock.
        linked: [OnceLock<CommandPre<State>>; 2],
    },
}

/// A module with its imports resolved.
pub enum Linkage<'a> {
    /// A core module.
    Core(&'a InstancePre<State>),
    /// A component.
    Component(&'a CommandPre<State>),
}

impl Loaded {
    /// The engine that runs it.
    pub fn engine(&self) -> &wasmtime::Engine {
        &self.linked.engine
    }

    /// The module with its imports resolved against those of `clock`.
    ///
    /// # Errors
    /// `IMPORT_NOT_ALLOWED` for an import of another type than what is offered under its name.
    pub fn linkage(&self, clock: Clock) -> Result<Linkage<'_>, Refusal> {
        let mismatch = |error: wasmtime::Error| {
            let names = [quote(&format!("{error:#}"))];
            import_not_allowed(&names, "offered by this daemon")
        };
        match &self.code {
            Code::Core { module, linked } => {
                let slot = &linked[clock as usize];
                if let Some(pre) = slot.get() {
                    return Ok(Linkage::Core(pre));
                }
                let linker = self.linked.core(clock);
                let pre = linker.instantiate_pre(module).map_err(mismatch)?;
                Ok(Linkage::Core(slot.get_or_init(|| pre)))
            }
            Code::Component { component, linked } => {
                let slot = &linked[clock as usize];
                if let Some(pre) = slot.get() {
                    return Ok(Linkage::Component(pre));
                }
                let linker = self.linked.component(clock);
                let pre = linker.instantiate_pre(component).map_err(mismatch)?;
                let pre = CommandPre::new(pre).map_err(|error| {
                    let why = quote(&format!("{error:#}"));
                    let message = format!("the component's wasi:cli/run cannot be called: {why}");
                    Refusal::new(Reason::EntryPointSignature, message).at("module")
                })?;
                Ok(Linkage::Component(slot.get_or_init(|| pre)))
            }
        }
    }

    fn serialize(&self) -> wasmtime::Result<Vec<u8>> {
        match &self.code {
            Code::Core { module, .. } => module.serialize(),
            Code::Component { component, .. } => component.serialize(),
        }
    }

    /// What it takes of the cache's budget, in KiB.
    fn weight(&self) -> u32 {
        let image = match &self.code {
            Code::Core { module, .. } => module.image_range(),
            Code::Component { component, .. } => component.image_range(),
        };
        let image = image.end as usize - image.start as usize;
        kib(image
            .saturating_add(self.inspection.weight())
            .saturating_add(OVERHEAD))
    }
}

/// Does what takes milliseconds, for a large module, off the serving threads.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Refusal::internal(format_args!("loading a module: {error}")))?
}

fn kib(bytes: usize) -> u32 {
    // Rounded up: what weighs nothing is never evicted.
    u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX)
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    digest: Digest,
    variant: Variant,
}

/// Where a module's bytes are to be had when they are needed.
#[derive(Clone)]
pub enum Source {
    /// Here.
    Here(Blob),
    /// In the store.
    Stored(Arc<Store>),
}

impl Source {
    async fn fetch(self, digest: Digest) -> Result<Blob, Refusal> {
        match self {
            Self::Here(blob) => Ok(blob),
            Self::Stored(store) => store.wasm(digest).await.map(Blob::from),
        }
    }
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
    compiling: SingleFlight<Key, Arc<Loaded>>,
    inspecting: SingleFlight<Digest, Inspected>,
}

struct Inner {
    engines: Arc<Engines>,
    compiler: Compiler,
    artifacts: Option<Arc<Artifacts>>,
    /// Of the code that the engines take, unmetered and metered.
    compatible: [u64; 2],
    loaded: moka::sync::Cache<Key, Arc<Loaded>>,
    inspected: moka::sync::Cache<Digest, Arc<Inspection>>,
    /// Of what inspecting a module, or compiling it metered or not, came to.
    failed: moka::sync::Cache<(Digest, Option<bool>), Refusal>,
}

impl Modules {
    /// Of `budget` bytes in memory.
    pub(super) fn new(
        engines: Arc<Engines>,
        compiler: Compiler,
        artifacts: Option<Arc<Artifacts>>,
        budget: u64,
    ) -> Self {
        let lru = moka::policy::EvictionPolicy::lru;
        let loaded = moka::sync::Cache::builder()
            .max_capacity(budget >> 10)
            .eviction_policy(lru())
            .weigher(|_: &Key, loaded: &Arc<Loaded>| loaded.weight())
            .support_invalidation_closures()
            .build();
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
        Self {
            inner: Arc::new(Inner {
                compatible: engines.compilers().each_ref().map(compatibility),
                engines,
                compiler,
                artifacts,
                loaded,
                inspected,
                failed,
            }),
            restoring: SingleFlight::default(),
            compiling: SingleFlight::default(),
            inspecting: SingleFlight::default(),
        }
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
        self.inner.loaded.run_pending_tasks();
        self.inner.loaded.weighted_size() << 10
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
            Variant::all().any(|variant| self.inner.loaded.contains_key(&Key { digest, variant }));
        let on_disk = [false, true]
            .into_iter()
            .any(|metered| self.inner.on_disk(digest, metered).is_some());
        [(in_memory, "memory"), (on_disk, "disk")]
            .into_iter()
            .filter_map(|(is, place)| is.then_some(place))
            .collect()
    }

    /// The module in `variant` where it need not be compiled: it is in memory, or its code is there for another stack
    /// or on disk.
    ///
    /// # Errors
    /// A failure of the daemon.
    pub async fn ready(
        &self,
        digest: Digest,
        variant: Variant,
    ) -> Result<Option<Arc<Loaded>>, Refusal> {
        let (inner, key) = (&self.inner, Key { digest, variant });
        if let Some(loaded) = inner.loaded.get(&key) {
            return Ok(Some(loaded));
        }
        let can_be_had = inner.on_disk(digest, variant.metered).is_some()
            || Variant::with_metering(variant.metered)
                .any(|variant| inner.loaded.contains_key(&Key { digest, variant }));
        if !can_be_had {
            return Ok(None);
        }
        let work = || {
            let inner = Arc::clone(inner);
            aside(move || inner.restore(key))
        };
        let ready = || inner.loaded.get(&key).map(Some);
        let (restored, _) = self.restoring.run(key, ready, work).await?;
        Ok(restored)
    }

    /// Validates a module and reads what it is.
    ///
    /// # Errors
    /// `MODULE_INVALID`, `FEATURE_NOT_ENABLED`, `IMPORT_NOT_ALLOWED`, `COMPILE_LIMIT_EXCEEDED`, `QUEUE_FULL`, and those
    /// of the store.
    pub async fn inspect(&self, digest: Digest, wasm: Source) -> Result<Inspected, Refusal> {
        let inner = &self.inner;
        if let Some(refusal) = inner.failed.get(&(digest, None)) {
            return Err(refusal);
        }
        let work = || {
            let inner = Arc::clone(inner);
            async move {
                let (inspection, session) = inner.open(digest, wasm).await?;
                let inspection = Arc::new(inspection);
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
        let (inspected, _) = self.inspecting.run(digest, ready, work).await?;
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
        wasm: Source,
        inspected: Inspected,
    ) -> Result<(Arc<Loaded>, bool), Refusal> {
        let (inner, key) = (&self.inner, Key { digest, variant });
        if let Some(refusal) = inner.failed.get(&(digest, Some(variant.metered))) {
            return Err(refusal);
        }
        // Dropped where the work is under way already: a session that nobody uses would hold a compile thread.
        let work = || {
            let inner = Arc::clone(inner);
            async move {
                let loaded = Arc::clone(&inner).compile(key, wasm, inspected).await?;
                inner.loaded.insert(key, Arc::clone(&loaded));
                Ok(loaded)
            }
        };
        self.compiling
            .run(key, || inner.loaded.get(&key), work)
            .await
    }

    /// Drops all that is held of a module; runs that have it keep it.
    ///
    /// # Errors
    /// Where the daemon is ending.
    pub async fn forget(&self, digest: Digest) -> Result<(), Refusal> {
        for variant in Variant::all() {
            self.inner.loaded.invalidate(&Key { digest, variant });
        }
        self.inner.inspected.invalidate(&digest);
        match &self.inner.artifacts {
            Some(artifacts) => {
                let artifacts = Arc::clone(artifacts);
                aside(move || Ok(artifacts.remove(digest))).await
            }
            None => Ok(()),
        }
    }
}

impl Inner {
    /// The name of a module's code on disk, where there is some.
    fn on_disk(&self, digest: Digest, metered: bool) -> Option<(&Arc<Artifacts>, ArtifactName)> {
        let artifacts = self.artifacts.as_ref()?;
        let name = self.name(digest, metered);
        artifacts.has(name).then_some((artifacts, name))
    }

    fn name(&self, digest: Digest, metered: bool) -> ArtifactName {
        ArtifactName {
            digest,
            metered,
            compatible: self.compatible[usize::from(metered)],
        }
    }

    /// Keeps in mind what says something about the module itself.
    fn remember(&self, key: (Digest, Option<bool>), failed: Failed) -> Refusal {
        let Failed { refusal, for_good } = failed;
        if for_good {
            self.failed.insert(key, refusal.clone());
        }
        refusal
    }

    async fn open(&self, digest: Digest, wasm: Source) -> Result<(Inspection, Session), Refusal> {
        let wasm = wasm.fetch(digest).await?;
        let opened = self.compiler.open(wasm).await;
        opened.map_err(|failed| self.remember((digest, None), failed))
    }

    async fn compile(
        self: Arc<Self>,
        key: Key,
        wasm: Source,
        inspected: Inspected,
    ) -> Result<Arc<Loaded>, Refusal> {
        let Inspected { inspection, parked } = inspected;
        let Key { digest, variant } = key;
        let parked = parked.and_then(|parked| {
            // Nothing panics while it is held.
            parked.lock().unwrap_or_else(PoisonError::into_inner).take()
        });
        let session = match parked {
            Some(session) => session,
            None => self.open(digest, wasm).await?.1,
        };
        let compiled = self.compiler.compile(session, variant.metered).await;
        let artifact =
            compiled.map_err(|failed| self.remember((digest, Some(variant.metered)), failed))?;
        aside(move || {
            let artifact = Arc::new(artifact);
            let loaded = self.map(variant, &artifact, &inspection).map_err(|error| {
                Refusal::internal(format_args!("mapping a compiled module: {error:#}"))
            })?;
            let budget = self.loaded.policy().max_capacity().unwrap_or(u64::MAX);
            // It would be dropped as soon as it is inserted, and compiled again for every run.
            if u64::from(loaded.weight()) > budget {
                let message = "the compiled module does not fit the cache".to_owned();
                let allowed = bytesize::ByteSize::kib(budget).display().iec();
                return Err(compile_limit("engine.cache_budget", message, allowed));
            }
            self.save(digest, variant.metered, artifact, inspection);
            Ok(loaded)
        })
        .await
    }

    /// Writes code to disk, behind whoever waits for it.
    fn save(
        &self,
        digest: Digest,
        metered: bool,
        artifact: Arc<Artifact>,
        inspection: Arc<Inspection>,
    ) {
        let Some(artifacts) = self.artifacts.clone() else {
            return;
        };
        let name = self.name(digest, metered);
        tokio::task::spawn_blocking(move || match serde_json::to_vec(&*inspection) {
            Ok(about) => artifacts.save(name, &about, artifact.len(), |to| artifact.write_to(to)),
            Err(error) => tracing::warn!(%error, "an inspection cannot be written down"),
        });
    }

    /// The module from code that is there: of another stack, or on disk. May block.
    fn restore(&self, key: Key) -> Result<Option<Arc<Loaded>>, Refusal> {
        let Key { digest, variant } = key;
        let sibling = Variant::with_metering(variant.metered).find_map(|variant| {
            let loaded = self.loaded.get(&Key { digest, variant })?;
            let code = loaded.serialize().ok()?;
            let artifact = Artifact::own(code, Duration::ZERO);
            Some((artifact, Arc::clone(&loaded.inspection)))
        });
        let found = match sibling {
            Some(found) => Some(found),
            None => self.read(digest, variant.metered),
        };
        let Some((artifact, inspection)) = found else {
            return Ok(None);
        };
        match self.map(variant, &artifact, &inspection) {
            Ok(loaded) => {
                self.loaded.insert(key, Arc::clone(&loaded));
                Ok(Some(loaded))
            }
            Err(error) => {
                if let Some((artifacts, name)) = self.on_disk(digest, variant.metered) {
                    artifacts.reject(name, &format!("the engine does not take it: {error:#}"));
                }
                Ok(None)
            }
        }
    }

    fn read(&self, digest: Digest, metered: bool) -> Option<(Artifact, Arc<Inspection>)> {
        let (artifacts, name) = self.on_disk(digest, metered)?;
        let (about, code) = artifacts.load(name)?;
        let inspection = match serde_json::from_slice(&about) {
            Ok(inspection) => inspection,
            Err(error) => {
                artifacts.reject(name, &format!("what it says of its module: {error}"));
                return None;
            }
        };
        match Artifact::sealed(code, Duration::ZERO) {
            Ok(artifact) => Some((artifact, Arc::new(inspection))),
            Err(error) => {
                tracing::warn!(%error, "an artefact cannot be read");
                None
            }
        }
    }

    fn map(
        &self,
        variant: Variant,
        artifact: &Artifact,
        inspection: &Arc<Inspection>,
    ) -> wasmtime::Result<Arc<Loaded>> {
        // What is too large for a slot of the pool fails here and runs on demand.
        if let Some(linked) = self.engines.pooled(variant)? {
            match Self::map_into(linked, artifact, inspection) {
                Ok(loaded) => return Ok(Arc::new(loaded)),
                Err(error) => tracing::debug!(%error, "a module does not fit the pool"),
            }
        }
        let linked = self.engines.on_demand(variant)?;
        Self::map_into(linked, artifact, inspection).map(Arc::new)
    }

    fn map_into(
        linked: Arc<Linked>,
        artifact: &Artifact,
        inspection: &Arc<Inspection>,
    ) -> wasmtime::Result<Loaded> {
        let code = if inspection.description.component {
            Code::Component {
                component: artifact.component(&linked.engine)?,
                linked: Default::default(),
            }
        } else {
            Code::Core {
                module: artifact.module(&linked.engine)?,
                linked: Default::default(),
            }
        };
        Ok(Loaded {
            inspection: Arc::clone(inspection),
            compiled_in: artifact.took,
            linked,
            code,
        })
    }
}
