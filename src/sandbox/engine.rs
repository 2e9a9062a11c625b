//! Engines: one for each variant in use, its pool and its linkers; and the thread that advances their epochs.
//!
//! Metering is compiled in, so metered and unmetered code are two artefacts: the one counts fuel and the other looks at
//! epochs, and neither pays for both ([`super::turn`]). The stack's size is an engine's property at run time and does
//! not change the artefact: every stack class deserialises the same one.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig,
    WasmBacktraceDetails, WasmFeatures,
};

use super::features::Proposals;
use super::host::{self, Clock, State};
use super::turn::Epochs;
use crate::guest_limits::BACKTRACE_FRAMES;
use crate::limits::StackClass;

/// What host calls may need on a guest's stack beyond its own; overflowing it would abort the process.
pub const HOST_STACK: usize = 1 << 20;
/// Bytes of each linear memory, and of each table, that stay resident for the next run after a reset, where a run has
/// touched them.
const KEEP_RESIDENT: usize = 1 << 20;
const KEEP_TABLE: usize = 64 << 10;
/// The same of each stack, which are written with zeros at each reset whether a run has touched them or not: what a short
/// run and its host calls need.
const KEEP_STACK: usize = 16 << 10;
/// Epochs after the end, so that no guest goes on by itself.
const LAST_EPOCHS: u32 = 3;
/// How long epochs go on when nothing runs, so that not every one of some short runs has to wake their thread.
const LINGER: Duration = Duration::from_millis(100);
/// What one run may take of a pool. A module or component that needs more runs in an on-demand engine, so that a pool
/// of n slots never fails one of n runs.
const MEMORIES_PER_RUN: u32 = 2;
const TABLES_PER_RUN: u32 = 4;
const CORE_INSTANCES_PER_RUN: u32 = 20;
/// Pools for modules that need proposals: each set of proposals in each variant has an engine, and
/// pools reserve address space, of which 47 bits hold about sixty of them.
const POOLS_WITH_PROPOSALS: usize = 8;
/// Elements of a pooled table; the largest interpreters have about 12,000.
pub(super) const POOLED_TABLE_ELEMENTS: usize = 1 << 16;

/// How engines are made.
#[derive(Clone, Debug)]
pub(super) struct EngineSettings {
    /// Instances that one pool holds.
    pub slots: u32,
    /// The most bytes of one linear memory.
    pub max_memory: usize,
    /// Reset memories by PAGEMAP_SCAN.
    pub pagemap_scan: bool,
}

/// How a run of a module is executed. Which engine that takes depends on the module's proposals too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Whether fuel is counted.
    pub metered: bool,
    /// The stack.
    pub stack: StackClass,
}

impl Variant {
    /// Every variant, metered or not.
    pub(super) fn with_metering(metered: bool) -> impl Iterator<Item = Self> {
        let variant = move |stack| Self { metered, stack };
        StackClass::ALL.into_iter().map(variant)
    }

    /// Every variant.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [false, true].into_iter().flat_map(Self::with_metering)
    }
}

/// An engine with all that a module may import.
pub(super) struct Linked {
    /// The engine.
    pub engine: Engine,
    /// Its epochs.
    pub epochs: Epochs,
    core: [wasmtime::Linker<State>; 2],
    component: [wasmtime::component::Linker<State>; 2],
}

impl Linked {
    fn new(engine: Engine, epochs: Epochs) -> wasmtime::Result<Self> {
        Ok(Self {
            epochs,
            core: [
                host::core_linker(&engine, Clock::Real)?,
                host::core_linker(&engine, Clock::Stepped)?,
            ],
            component: [
                host::component_linker(&engine, Clock::Real)?,
                host::component_linker(&engine, Clock::Stepped)?,
            ],
            engine,
        })
    }

    /// What a core module may import.
    pub(super) fn core(&self, clock: Clock) -> &wasmtime::Linker<State> {
        &self.core[clock as usize]
    }

    /// What a component may import.
    pub(super) fn component(&self, clock: Clock) -> &wasmtime::component::Linker<State> {
        &self.component[clock as usize]
    }
}

/// The engines of one variant: the pooled one where the host has room for its pool, and the one for what does not fit.
struct Pair {
    pooled: Option<Arc<Linked>>,
    on_demand: OnceLock<Arc<Linked>>,
}

/// All engines, made when first needed.
pub(super) struct Engines {
    settings: EngineSettings,
    pairs: Mutex<HashMap<(Variant, Proposals), Arc<Pair>>>,
    compilers: [Engine; 2],
    ticker: Ticker,
}

impl Engines {
    /// With epochs that advance each `interval` while a run is active.
    pub(super) fn new(settings: EngineSettings, interval: Duration) -> wasmtime::Result<Self> {
        let compiler = |metered| compiler(Proposals::default(), metered, false);
        Ok(Self {
            compilers: [compiler(false)?, compiler(true)?],
            settings,
            pairs: Mutex::default(),
            ticker: Ticker::start(interval)?,
        })
    }

    /// Engines that compile modules which need no proposals, unmetered and metered.
    pub(super) fn compilers(&self) -> &[Engine; 2] {
        &self.compilers
    }

    /// Whether memories are reset by PAGEMAP_SCAN.
    pub(super) fn pagemap_scan(&self) -> bool {
        self.settings.pagemap_scan
    }

    /// The pooled engine for a variant of modules that need `proposals`; `None` where the host has no
    /// room for its pool.
    pub(super) fn pooled(
        &self,
        variant: Variant,
        proposals: Proposals,
    ) -> wasmtime::Result<Option<Arc<Linked>>> {
        Ok(self.pair(variant, proposals)?.pooled.clone())
    }

    /// The on-demand engine for a variant of modules that need `proposals`.
    pub(super) fn on_demand(
        &self,
        variant: Variant,
        proposals: Proposals,
    ) -> wasmtime::Result<Arc<Linked>> {
        let pair = self.pair(variant, proposals)?;
        if let Some(linked) = pair.on_demand.get() {
            return Ok(Arc::clone(linked));
        }
        let linked = self.link(&config(proposals, variant))?;
        // Two callers may race; the loser's engine holds nothing yet.
        Ok(Arc::clone(pair.on_demand.get_or_init(|| linked)))
    }

    /// Counts a run as active until the guard is dropped.
    pub(super) fn active(&self) -> Active {
        self.ticker.active()
    }

    /// Instances that pools hold now, over all variants.
    pub(super) fn pooled_instances(&self) -> u64 {
        lock(&self.pairs)
            .values()
            .filter_map(|pair| pair.pooled.as_ref()?.engine.pooling_allocator_metrics())
            .map(|metrics| metrics.core_instances())
            .sum()
    }

    fn pair(&self, variant: Variant, proposals: Proposals) -> wasmtime::Result<Arc<Pair>> {
        let mut pairs = lock(&self.pairs);
        if let Some(pair) = pairs.get(&(variant, proposals)) {
            return Ok(Arc::clone(pair));
        }
        let others = pairs.keys().filter(|(_, other)| !other.is_empty()).count();
        let pooled = if proposals.is_empty() || others < POOLS_WITH_PROPOSALS {
            self.pool(variant, proposals)
        } else {
            None
        };
        let pair = Arc::new(Pair {
            pooled,
            on_demand: OnceLock::new(),
        });
        pairs.insert((variant, proposals), Arc::clone(&pair));
        Ok(pair)
    }

    fn pool(&self, variant: Variant, proposals: Proposals) -> Option<Arc<Linked>> {
        let mut config = config(proposals, variant);
        let pool = pool(&self.settings, proposals);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        // A limit on address space, some hosts and some containers refuse the reservation.
        match self.link(&config) {
            Ok(linked) => Some(linked),
            Err(error) => {
                tracing::warn!(?variant, slots = self.settings.slots, %error,
                    "no room for an instance pool; instances are allocated on demand, which is slower");
                None
            }
        }
    }

    fn link(&self, config: &Config) -> wasmtime::Result<Arc<Linked>> {
        let epochs = self.ticker.shared.epochs.clone();
        let linked = Arc::new(Linked::new(Engine::new(config)?, epochs)?);
        self.ticker.add(&linked.engine);
        Ok(linked)
    }
}

/// An engine that only compiles, on one thread or on all that rayon has.
///
/// # Errors
/// Where the proposals contradict each other.
pub(super) fn compiler(
    proposals: Proposals,
    metered: bool,
    parallel: bool,
) -> wasmtime::Result<Engine> {
    let stack = StackClass::K512;
    let mut config = config(proposals, Variant { metered, stack });
    Engine::new(config.parallel_compilation(parallel))
}

/// What every engine of a variant has in common; by default it allocates on demand.
fn config(proposals: Proposals, variant: Variant) -> Config {
    let mut config = Config::new();
    let stack = variant.stack.bytes() as usize;
    let enabled = proposals.enabled();
    for feature in (WasmFeatures::WASM3 | Proposals::ALL.enabled()).iter() {
        config.wasm_features(feature, enabled.contains(feature));
    }
    config
        .consume_fuel(variant.metered)
        .epoch_interruption(!variant.metered)
        .max_wasm_stack(stack)
        .async_stack_size(stack + HOST_STACK)
        .async_stack_zeroing(true)
        .memory_init_cow(true)
        .shared_memory(false)
        .concurrency_support(false)
        .parallel_compilation(false)
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES.size()))
        // Debug sections are a guest's bytes, and large ones: nothing parses them.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config
}

fn pool(settings: &EngineSettings, proposals: Proposals) -> PoolingAllocationConfig {
    let slots = settings.slots;
    // A run's GC heap, where there is one, takes a memory's slot.
    let gc = proposals.enabled().contains(WasmFeatures::GC_TYPES);
    let memories = MEMORIES_PER_RUN + u32::from(gc);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(slots)
        .total_core_instances(slots.saturating_mul(CORE_INSTANCES_PER_RUN))
        .total_memories(slots.saturating_mul(memories))
        .total_tables(slots.saturating_mul(TABLES_PER_RUN))
        .total_stacks(slots)
        .total_gc_heaps(if gc { slots } else { 0 })
        .max_memories_per_module(MEMORIES_PER_RUN)
        .max_tables_per_module(TABLES_PER_RUN)
        .max_memories_per_component(MEMORIES_PER_RUN)
        .max_tables_per_component(TABLES_PER_RUN)
        .max_core_instances_per_component(CORE_INSTANCES_PER_RUN)
        .max_memory_size(settings.max_memory)
        .table_elements(POOLED_TABLE_ELEMENTS)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(KEEP_TABLE)
        .async_stack_keep_resident(KEEP_STACK)
        .pagemap_scan(if settings.pagemap_scan {
            Enabled::Yes
        } else {
            Enabled::No
        });
    pool
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is under these locks is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread that advances the epochs of all engines while runs are active, and sleeps when none has been for a moment.
struct Ticker {
    shared: Arc<Ticks>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

struct Ticks {
    epochs: Epochs,
    engines: Mutex<Vec<Engine>>,
    /// Runs now; [`ENDED`] says that the thread is to end.
    active: AtomicUsize,
}

const ENDED: usize = usize::MAX;

/// An active run.
pub(super) struct Active {
    shared: Arc<Ticks>,
}

impl Ticks {
    fn advance(&self) {
        // First, so that a guest which looks since its engine says so knows of it.
        self.epochs.advance();
        for engine in lock(&self.engines).iter() {
            engine.increment_epoch();
        }
    }
}

impl Ticker {
    fn start(interval: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Ticks {
            epochs: Epochs::default(),
            engines: Mutex::default(),
            active: AtomicUsize::new(0),
        });
        let ticks = Arc::clone(&shared);
        let handle = std::thread::Builder::new()
            .name("epoch".to_owned())
            .spawn(move || tick(&ticks, interval))?;
        Ok(Self {
            shared,
            thread: handle.thread().clone(),
            handle: Some(handle),
        })
    }

    fn add(&self, engine: &Engine) {
        lock(&self.shared.engines).push(engine.clone());
    }

    fn active(&self) -> Active {
        if self.shared.active.fetch_add(1, Ordering::SeqCst) == 0 {
            self.thread.unpark();
        }
        Active {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.active.store(ENDED, Ordering::SeqCst);
        self.thread.unpark();
        if let Some(handle) = self.handle.take() {
            // It only returns.
            let _ = handle.join();
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        // After the end the count no longer matters, but it must not leave ENDED.
        let _ = self
            .shared
            .active
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n != ENDED).then(|| n.saturating_sub(1))
            });
    }
}

fn tick(ticks: &Ticks, interval: Duration) {
    let mut quiet = Duration::ZERO;
    loop {
        match ticks.active.load(Ordering::SeqCst) {
            ENDED => {
                // What a guest may get before it gives way for the first time, and once more.
                for _ in 0..LAST_EPOCHS {
                    std::thread::sleep(interval);
                    ticks.advance();
                }
                return;
            }
            0 if quiet >= LINGER => {
                std::thread::park();
                quiet = Duration::ZERO;
            }
            active => {
                quiet = if active == 0 {
                    quiet + interval
                } else {
                    Duration::ZERO
                };
                std::thread::sleep(interval);
                ticks.advance();
            }
        }
    }
}
