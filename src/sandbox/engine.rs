//! Wasmtime engines with their linkers and pools: a pooled and an on-demand engine for each variant
//! and set of proposals in use, made when first needed. One thread advances the epochs of all of
//! them.
//!
//! Metering is compiled in, so metered and unmetered code are two artefacts: metered code counts
//! fuel, unmetered code checks epochs, and neither pays for both ([`super::guest::preempt`]). The
//! size of the stack is a property of the engine at run time and does not change the artefact:
//! every stack class deserialises the same one.

pub(super) mod features;

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{JoinHandle, Thread};
use std::time::Duration;

use wasmtime::{
    Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig,
    WasmBacktraceDetails, WasmFeatures,
};

use self::features::ProposalSet;
use super::guest::guest_state::GuestState;
use super::guest::imports;
use super::guest::memory_limiter::POOLED_TABLE_ELEMENTS;
use super::guest::preempt::EpochCounter;
use super::guest::stepped_clock::ClockKind;
use crate::model::guest_limits::BACKTRACE_FRAMES;
use crate::model::limits::StackClass;
use crate::sync::lock;

/// Bytes that host calls may need on a guest's stack beyond its own. Overflowing them would abort
/// the process.
pub const HOST_STACK_BYTES: usize = 1 << 20;
/// Bytes of each linear memory that stay resident for the next run after a reset, as far as a run
/// has touched them.
const MEMORY_KEEP_RESIDENT: usize = 1 << 20;
/// Bytes of each table that stay resident for the next run after a reset, as far as a run has
/// touched them.
const TABLE_KEEP_RESIDENT: usize = 64 << 10;
/// Bytes of each stack that stay resident after a reset: what a short run and its host calls need.
/// They are written with zeros at each reset, whether a run has touched them or not.
const STACK_KEEP_RESIDENT: usize = 16 << 10;
/// Epochs that are still advanced after the shutdown begins, so that no guest keeps running on its
/// own.
const SHUTDOWN_EPOCHS: u32 = 3;
/// How long epochs keep advancing when nothing runs, so that not every one of a series of short
/// runs has to wake the epoch thread.
const IDLE_LINGER: Duration = Duration::from_millis(100);
/// Linear memories that one run may take from a pool. A module or component that needs more of
/// anything than one run may take is run in an on-demand engine, so that a pool of n slots never
/// fails one of n runs.
const MEMORIES_PER_RUN: u32 = 2;
/// Tables that one run may take from a pool.
const TABLES_PER_RUN: u32 = 4;
/// Core instances that one run may take from a pool.
const CORE_INSTANCES_PER_RUN: u32 = 20;
/// The most pools for modules that need proposals. Each set of proposals in each variant has an
/// engine of its own, and pools reserve address space, of which 47 bits hold about sixty of them.
const POOLS_WITH_PROPOSALS: usize = 8;

/// The settings that all engines have in common.
#[derive(Clone, Debug)]
pub(super) struct EngineSettings {
    /// Number of instances that one pool holds.
    pub slots: u32,
    /// The most bytes that one linear memory may have.
    pub max_memory: usize,
    /// Whether memories are reset by PAGEMAP_SCAN.
    pub pagemap_scan: bool,
}

/// How a module's runs are executed: with or without fuel metering, and on which stack. The
/// proposals that the module needs decide which engine that takes, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Whether fuel is counted; if not, the guest is interrupted by epochs.
    pub metered: bool,
    /// The size class of the guest's stack.
    pub stack: StackClass,
}

impl Variant {
    /// Lists every stack class with or without metering.
    pub(super) fn with_metering(metered: bool) -> impl Iterator<Item = Self> {
        let variant = move |stack| Self { metered, stack };
        StackClass::ALL.into_iter().map(variant)
    }

    /// Lists every variant: each stack class, unmetered and metered.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        [false, true].into_iter().flat_map(Self::with_metering)
    }
}

/// An engine with linkers for all that a module may import.
pub(super) struct LinkedEngine {
    /// The wasmtime engine itself.
    pub engine: Engine,
    /// Counts the epochs that this engine has seen.
    pub epochs: EpochCounter,
    core: [wasmtime::Linker<GuestState>; 2],
    component: [wasmtime::component::Linker<GuestState>; 2],
}

impl LinkedEngine {
    fn new(engine: Engine, epochs: EpochCounter) -> wasmtime::Result<Self> {
        Ok(Self {
            epochs,
            core: [
                imports::core_linker(&engine, ClockKind::Real)?,
                imports::core_linker(&engine, ClockKind::Stepped)?,
            ],
            component: [
                imports::component_linker(&engine, ClockKind::Real)?,
                imports::component_linker(&engine, ClockKind::Stepped)?,
            ],
            engine,
        })
    }

    /// Returns the linker with what a core module may import.
    pub(super) fn core(&self, clock: ClockKind) -> &wasmtime::Linker<GuestState> {
        &self.core[clock as usize]
    }

    /// Returns the linker with what a component may import.
    pub(super) fn component(&self, clock: ClockKind) -> &wasmtime::component::Linker<GuestState> {
        &self.component[clock as usize]
    }
}

/// The engines of one variant: the pooled one, if the host has room for its pool, and the on-demand
/// one for what does not fit in the pool.
struct EnginePair {
    pooled: Option<Arc<LinkedEngine>>,
    on_demand: OnceLock<Arc<LinkedEngine>>,
}

/// All engines of the daemon, made when first needed.
pub(super) struct Engines {
    settings: EngineSettings,
    pairs: Mutex<HashMap<(Variant, ProposalSet), Arc<EnginePair>>>,
    compilers: [Engine; 2],
    ticker: EpochTicker,
}

impl Engines {
    /// Creates the compile-only engines and starts the thread that advances the epochs every
    /// `interval` while a run is active.
    pub(super) fn new(settings: EngineSettings, interval: Duration) -> wasmtime::Result<Self> {
        let compiler = |metered| compile_only_engine(ProposalSet::default(), metered, false);
        Ok(Self {
            compilers: [compiler(false)?, compiler(true)?],
            settings,
            pairs: Mutex::default(),
            ticker: EpochTicker::start(interval)?,
        })
    }

    /// Returns the engines that compile modules which need no proposals, unmetered and metered.
    pub(super) fn compilers(&self) -> &[Engine; 2] {
        &self.compilers
    }

    /// Reports whether memories are reset by PAGEMAP_SCAN.
    pub(super) fn pagemap_scan(&self) -> bool {
        self.settings.pagemap_scan
    }

    /// Returns the pooled engine for a variant of modules that need `proposals`; `None` if the host
    /// has no room for its pool, or too many pools exist already.
    pub(super) fn pooled(
        &self,
        variant: Variant,
        proposals: ProposalSet,
    ) -> wasmtime::Result<Option<Arc<LinkedEngine>>> {
        Ok(self.pair(variant, proposals)?.pooled.clone())
    }

    /// Returns the on-demand engine for a variant of modules that need `proposals`.
    pub(super) fn on_demand(
        &self,
        variant: Variant,
        proposals: ProposalSet,
    ) -> wasmtime::Result<Arc<LinkedEngine>> {
        let pair = self.pair(variant, proposals)?;
        if let Some(linked) = pair.on_demand.get() {
            return Ok(Arc::clone(linked));
        }
        let linked = self.create_engine(&engine_config(proposals, variant))?;
        // Two callers may race; the loser's engine holds nothing yet.
        Ok(Arc::clone(pair.on_demand.get_or_init(|| linked)))
    }

    /// Counts a run as active until the returned guard is dropped.
    pub(super) fn mark_active(&self) -> ActiveRunGuard {
        self.ticker.mark_active()
    }

    /// Returns how many instances the pools hold now, over all variants.
    pub(super) fn pooled_instances(&self) -> u64 {
        lock(&self.pairs)
            .values()
            .filter_map(|pair| pair.pooled.as_ref()?.engine.pooling_allocator_metrics())
            .map(|metrics| metrics.core_instances())
            .sum()
    }

    fn pair(&self, variant: Variant, proposals: ProposalSet) -> wasmtime::Result<Arc<EnginePair>> {
        let mut pairs = lock(&self.pairs);
        if let Some(pair) = pairs.get(&(variant, proposals)) {
            return Ok(Arc::clone(pair));
        }
        let others = pairs.keys().filter(|(_, other)| !other.is_empty()).count();
        let pooled = if proposals.is_empty() || others < POOLS_WITH_PROPOSALS {
            self.pooled_engine(variant, proposals)
        } else {
            None
        };
        let pair = Arc::new(EnginePair {
            pooled,
            on_demand: OnceLock::new(),
        });
        pairs.insert((variant, proposals), Arc::clone(&pair));
        Ok(pair)
    }

    fn pooled_engine(&self, variant: Variant, proposals: ProposalSet) -> Option<Arc<LinkedEngine>> {
        let mut config = engine_config(proposals, variant);
        let pool = pool_config(&self.settings, proposals);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        // A limit on address space, some hosts and some containers refuse the reservation.
        match self.create_engine(&config) {
            Ok(linked) => Some(linked),
            Err(error) => {
                tracing::warn!(?variant, slots = self.settings.slots, %error,
                    "no room for an instance pool; instances are allocated on demand, which is slower");
                None
            }
        }
    }

    fn create_engine(&self, config: &Config) -> wasmtime::Result<Arc<LinkedEngine>> {
        let epochs = self.ticker.shared.epochs.clone();
        let linked = Arc::new(LinkedEngine::new(Engine::new(config)?, epochs)?);
        self.ticker.add(&linked.engine);
        Ok(linked)
    }
}

/// Creates an engine that only compiles, either on one thread or on all that rayon has
/// (`parallel`).
///
/// # Errors
/// The proposals contradict each other.
pub(super) fn compile_only_engine(
    proposals: ProposalSet,
    metered: bool,
    parallel: bool,
) -> wasmtime::Result<Engine> {
    let stack = StackClass::K512;
    let mut config = engine_config(proposals, Variant { metered, stack });
    Engine::new(config.parallel_compilation(parallel))
}

/// Returns the configuration that every engine of a variant has in common. By default it allocates
/// on demand.
fn engine_config(proposals: ProposalSet, variant: Variant) -> Config {
    let mut config = Config::new();
    let stack = variant.stack.bytes() as usize;
    let enabled = proposals.enabled();
    for feature in (WasmFeatures::WASM3 | ProposalSet::ALL.enabled()).iter() {
        config.wasm_features(feature, enabled.contains(feature));
    }
    config
        .consume_fuel(variant.metered)
        .epoch_interruption(!variant.metered)
        .max_wasm_stack(stack)
        .async_stack_size(stack + HOST_STACK_BYTES)
        .async_stack_zeroing(true)
        .memory_init_cow(true)
        .shared_memory(false)
        .concurrency_support(false)
        .parallel_compilation(false)
        .wasm_backtrace_max_frames(NonZeroUsize::new(BACKTRACE_FRAMES.size()))
        // Debug sections are the guest's bytes and can be large. With this setting, nothing parses
        // them.
        .wasm_backtrace_details(WasmBacktraceDetails::Disable);
    config
}

fn pool_config(settings: &EngineSettings, proposals: ProposalSet) -> PoolingAllocationConfig {
    let slots = settings.slots;
    // A run's GC heap, if it has one, takes the slot of a memory.
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
        .linear_memory_keep_resident(MEMORY_KEEP_RESIDENT)
        .table_keep_resident(TABLE_KEEP_RESIDENT)
        .async_stack_keep_resident(STACK_KEEP_RESIDENT)
        .pagemap_scan(if settings.pagemap_scan {
            Enabled::Yes
        } else {
            Enabled::No
        });
    pool
}

/// The thread that advances the epochs of all engines while runs are active, and sleeps when none
/// has been active for a moment. Dropping it stops the thread and waits for it.
struct EpochTicker {
    shared: Arc<EpochTickerShared>,
    thread: Thread,
    handle: Option<JoinHandle<()>>,
}

/// The state that the epoch thread shares with the engines and the guards of active runs.
struct EpochTickerShared {
    epochs: EpochCounter,
    engines: Mutex<Vec<Engine>>,
    /// Number of active runs; [`TICKER_STOPPED`] tells the thread to end.
    active: AtomicUsize,
}

/// Value of [`EpochTickerShared::active`] that tells the thread to end.
const TICKER_STOPPED: usize = usize::MAX;

/// An active run, which keeps the epochs advancing. Dropping the guard ends that.
pub(super) struct ActiveRunGuard {
    shared: Arc<EpochTickerShared>,
}

impl EpochTickerShared {
    fn advance(&self) {
        // The counter is advanced first, so that a guest which its engine interrupts finds the new
        // epoch there.
        self.epochs.advance();
        for engine in lock(&self.engines).iter() {
            engine.increment_epoch();
        }
    }
}

impl EpochTicker {
    fn start(interval: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(EpochTickerShared {
            epochs: EpochCounter::default(),
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

    fn mark_active(&self) -> ActiveRunGuard {
        if self.shared.active.fetch_add(1, Ordering::SeqCst) == 0 {
            self.thread.unpark();
        }
        ActiveRunGuard {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for EpochTicker {
    fn drop(&mut self) {
        self.shared.active.store(TICKER_STOPPED, Ordering::SeqCst);
        self.thread.unpark();
        if let Some(handle) = self.handle.take() {
            // The thread returns nothing, so there is no result to look at.
            let _ = handle.join();
        }
    }
}

impl Drop for ActiveRunGuard {
    fn drop(&mut self) {
        // After the shutdown the count no longer matters, but it must stay at TICKER_STOPPED.
        let _ = self
            .shared
            .active
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| {
                (n != TICKER_STOPPED).then(|| n.saturating_sub(1))
            });
    }
}

fn tick(ticks: &EpochTickerShared, interval: Duration) {
    let mut quiet = Duration::ZERO;
    loop {
        match ticks.active.load(Ordering::SeqCst) {
            TICKER_STOPPED => {
                // These epochs cover the time that a guest may run before it yields for the first
                // time, and once more.
                for _ in 0..SHUTDOWN_EPOCHS {
                    std::thread::sleep(interval);
                    ticks.advance();
                }
                return;
            }
            0 if quiet >= IDLE_LINGER => {
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
