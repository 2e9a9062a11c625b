//! Compiled modules, cached by digest and variant within a byte budget.
//!
//! Identical loads share one compilation, which goes on when its first caller leaves.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use wasmtime::component::Component;
use wasmtime::{InstancePre, Module};
use wasmtime_wasi::p2::bindings::CommandPre;

use super::compiler::{Artifact, Compiler};
use super::engine::{Engines, Linked, Variant};
use super::flight::SingleFlight;
use super::host::{Clock, State};
use super::inspect::{Inspection, import_not_allowed};
use crate::refusal::{Reason, Refusal, quote};
use crate::request::Digest;

/// What a module costs besides its code, in bytes: tables, metadata, linkage.
const OVERHEAD: usize = 64 << 10;
/// Bytes of inspections kept apart from compiled modules, for other variants of the same module.
const INSPECTED: u64 = 32 << 20;

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
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Refusal::internal(format_args!("loading a module: {error}")))
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

/// The cache.
pub struct Modules {
    inner: Arc<Inner>,
    compiling: SingleFlight<Key, Arc<Loaded>>,
    inspecting: SingleFlight<Digest, Arc<Inspection>>,
}

struct Inner {
    engines: Arc<Engines>,
    compiler: Compiler,
    loaded: moka::sync::Cache<Key, Arc<Loaded>>,
    inspected: moka::sync::Cache<Digest, Arc<Inspection>>,
}

impl Modules {
    /// Of `budget` bytes.
    pub(super) fn new(engines: Arc<Engines>, compiler: Compiler, budget: u64) -> Self {
        let loaded = moka::sync::Cache::builder()
            .max_capacity(budget >> 10)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .weigher(|_: &Key, loaded: &Arc<Loaded>| loaded.weight())
            .build();
        let inspected = moka::sync::Cache::builder()
            .max_capacity(INSPECTED >> 10)
            .eviction_policy(moka::policy::EvictionPolicy::lru())
            .weigher(|_: &Digest, inspection: &Arc<Inspection>| kib(inspection.weight()))
            .build();
        Self {
            inner: Arc::new(Inner {
                engines,
                compiler,
                loaded,
                inspected,
            }),
            compiling: SingleFlight::default(),
            inspecting: SingleFlight::default(),
        }
    }

    /// The module where it is ready in `variant`.
    pub fn cached(&self, digest: Digest, variant: Variant) -> Option<Arc<Loaded>> {
        self.inner.loaded.get(&Key { digest, variant })
    }

    /// Validates `wasm` and reads what it is.
    ///
    /// # Errors
    /// `MODULE_INVALID`, `FEATURE_NOT_ENABLED`, `IMPORT_NOT_ALLOWED`, `QUEUE_FULL`.
    pub async fn inspect(&self, digest: Digest, wasm: Bytes) -> Result<Arc<Inspection>, Refusal> {
        let inner = &self.inner;
        let work = || {
            let inner = Arc::clone(inner);
            async move {
                let inspection = Arc::new(inner.compiler.inspect(wasm).await?);
                inner.inspected.insert(digest, Arc::clone(&inspection));
                Ok(inspection)
            }
        };
        let ready = || inner.inspected.get(&digest);
        self.inspecting
            .run(digest, ready, work)
            .await
            .map(|(inspection, _)| inspection)
    }

    /// The module in `variant`, compiled from `wasm` where it is not ready; whether it was is the second value.
    ///
    /// # Errors
    /// `COMPILATION_FAILED`, `QUEUE_FULL`.
    pub async fn get(
        &self,
        digest: Digest,
        variant: Variant,
        wasm: Bytes,
        inspection: Arc<Inspection>,
    ) -> Result<(Arc<Loaded>, bool), Refusal> {
        let key = Key { digest, variant };
        let inner = &self.inner;
        let work = || {
            let inner = Arc::clone(inner);
            async move {
                let loaded = Arc::clone(&inner).load(key, wasm, inspection).await?;
                inner.loaded.insert(key, Arc::clone(&loaded));
                Ok(loaded)
            }
        };
        self.compiling
            .run(key, || inner.loaded.get(&key), work)
            .await
    }
}

impl Inner {
    async fn load(
        self: Arc<Self>,
        key: Key,
        wasm: Bytes,
        inspection: Arc<Inspection>,
    ) -> Result<Arc<Loaded>, Refusal> {
        let sibling = {
            let this = Arc::clone(&self);
            aside(move || this.sibling(key)).await?
        };
        let artifact = match sibling {
            Some(artifact) => artifact,
            None => {
                let engine = self.engines.compiler(key.variant.metered).clone();
                self.compiler
                    .compile(engine, wasm, inspection.component)
                    .await?
            }
        };
        let budget = self.loaded.policy().max_capacity().unwrap_or(u64::MAX);
        let loaded = aside(move || self.map(key.variant, &artifact, inspection))
            .await?
            .map_err(|error| {
                Refusal::internal(format_args!("mapping a compiled module: {error:#}"))
            })?;
        // It would be dropped as soon as it is inserted, and compiled again for every run.
        if u64::from(loaded.weight()) > budget {
            return Err(Refusal::new(
                Reason::CompilationFailed,
                "the compiled module alone is larger than engine.cache_budget",
            )
            .at("module"));
        }
        Ok(loaded)
    }

    /// The artefact of the same code in another stack class, where one is ready.
    fn sibling(&self, key: Key) -> Option<Artifact> {
        crate::limits::StackClass::ALL
            .into_iter()
            .find_map(|stack| {
                let variant = Variant {
                    stack,
                    ..key.variant
                };
                let loaded = self.loaded.get(&Key { variant, ..key })?;
                loaded.serialize().ok().map(Artifact::of)
            })
    }

    fn map(
        &self,
        variant: Variant,
        artifact: &Artifact,
        inspection: Arc<Inspection>,
    ) -> wasmtime::Result<Arc<Loaded>> {
        // What is too large for a slot of the pool fails here and runs on demand.
        if let Some(linked) = self.engines.pooled(variant)? {
            match Self::map_into(linked, artifact, &inspection) {
                Ok(loaded) => return Ok(Arc::new(loaded)),
                Err(error) => tracing::debug!(%error, "a module does not fit the pool"),
            }
        }
        let linked = self.engines.on_demand(variant)?;
        Self::map_into(linked, artifact, &inspection).map(Arc::new)
    }

    fn map_into(
        linked: Arc<Linked>,
        artifact: &Artifact,
        inspection: &Arc<Inspection>,
    ) -> wasmtime::Result<Loaded> {
        let code = if inspection.component {
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
