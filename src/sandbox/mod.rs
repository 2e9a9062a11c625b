//! The only part of the daemon that knows wasmtime: it compiles modules, prepares runs and executes
//! them.
//!
//! ```text
//! bytes -> inspect -> compile -> LoadedModule -> prepare -> PreparedRun -> spawn -> RunReport
//! ```
//!
//! Each guest gets a fresh store, but for a program of a session, whose interpreter has one already
//! ([`SessionSlot`]). It executes on the guest threads, unless it is expected to be over in a
//! moment. Its store is dropped before its end is reported, or left to its session.

mod engine;
mod guest;
mod metrics;
mod modules;
mod schedule;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use wasmtime::PoolingAllocationConfig;

use self::engine::features::ProposalSet;
use self::engine::{EngineSettings, Engines};
use self::modules::code_cache::CacheLimits;
use self::modules::compile::{Compiler, LaneChooser};
use self::modules::inspect::ImportRules;
use self::modules::inspect::import_not_allowed;
use self::modules::validate::not_enabled;
use self::schedule::inline::MAX_INLINE_MEMORY;
use self::schedule::scheduler::GuestScheduler;
use crate::model::limits::StackClass;
use crate::model::outcome::RunReport;
use crate::model::policy::Grants;
use crate::model::refusal::Refusal;
use crate::model::request::RunSpec;
use crate::store::ArtifactCache;

pub use self::engine::features::FEATURE_NAMES;
pub use self::engine::{HOST_STACK_BYTES, Variant};
pub use self::guest::entry::EntryPoint;
pub use self::guest::execute::{PreparedRun, RunContext, prepare};
pub use self::guest::handles::{DescriptorAccount, DescriptorBudget};
pub use self::guest::imports::HOST_FUNCTION_NAMES;
pub use self::guest::input_buffer::{AcceptedInput, InputRejection};
pub use self::guest::mounts::MountRoots;
pub use self::guest::session::{SessionSlot, check_session};
pub use self::guest::stdin::{Input, MAX_LIVE_INPUT, MAX_STDIN_CHUNK, StdinDemand};
pub use self::guest::stdio::Output;
pub use self::guest::stop_signal::{StopReason, StopSignal};
pub use self::modules::ModuleCache;
pub use self::modules::code_cache::CodeUse;
pub use self::modules::compile::{
    ArtifactLimit, CompileBudget, CompileGrant, CompileLane, CompileLease, CompilePermit,
    CompileSettings, SUBCOMMAND, SmallLane, serve_as_child,
};
pub use self::modules::compile_request::{CompileRequest, ModuleSource};
pub use self::modules::inspection::Inspection;
pub use self::modules::loaded::LoadedModule;
pub use self::modules::lookup::{InspectedModule, Lookup, MissingModule};
pub use self::schedule::file_threads::FileCalls;
pub use self::schedule::guest_thread::ThreadInit;
pub use self::schedule::inline::allow_inline_guests;
pub use self::schedule::tenant_queue::TenantQueue;

/// The version of wasmtime that this daemon is built with.
pub const WASMTIME_VERSION: &str = "48.0.8";

/// The settings that a sandbox is started with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Number of threads that execute guests.
    pub guest_threads: usize,
    /// Number of instances that one pool holds.
    pub pool_slots: u32,
    /// How often guests are interrupted to check whether they have to stop or yield.
    pub epoch_interval: Duration,
    /// Whether memories are reset by PAGEMAP_SCAN; `None` uses it where it is available and safe.
    pub pagemap_scan: Option<bool>,
    /// Bytes of compiled modules that are held in memory.
    pub cache_budget: u64,
    /// Weights of the tenants, by which `cache_budget` is divided among them.
    pub tenant_weights: Vec<u32>,
    /// The most bytes that one linear memory may have.
    pub max_memory: usize,
    /// How modules are compiled, and within which limits.
    pub compile: CompileSettings,
    /// The cache of compiled code on disk; `None` keeps no code there.
    pub artifacts: Option<Arc<ArtifactCache>>,
    /// What each thread that does guests' work executes first.
    pub thread_init: ThreadInit,
}

/// The sandbox: wasmtime's engines, the module cache and the guest scheduler. Its fields are
/// dropped in the order in which they are declared.
pub struct Sandbox {
    /// Dropped first: a guest that yields after that is not resumed.
    scheduler: GuestScheduler,
    modules: ModuleCache,
    pool_slots: u32,
    /// Dropped last: until then, epochs make guests yield.
    engines: Arc<Engines>,
}

impl Sandbox {
    /// Starts the threads and creates the engine that most runs use.
    ///
    /// # Errors
    /// The host refuses threads, or the engine refuses its settings.
    pub fn start(settings: &Settings) -> wasmtime::Result<Self> {
        let pagemap_scan = choose_pagemap_scan(settings.pagemap_scan);
        let engines = Arc::new(Engines::new(
            EngineSettings {
                slots: settings.pool_slots,
                max_memory: settings.max_memory,
                pagemap_scan,
            },
            settings.epoch_interval,
        )?);
        let compilers = engines.compilers().clone();
        let rules = ImportRules::of(&compilers[0])?;
        let compiler = Compiler::start(&settings.compile, compilers, rules)?;
        let modules = ModuleCache::new(
            Arc::clone(&engines),
            compiler,
            LaneChooser::new(settings.compile.small),
            settings.artifacts.clone(),
            CacheLimits {
                bytes: settings.cache_budget,
                weights: &settings.tenant_weights,
            },
        )?;
        let sandbox = Self {
            engines,
            modules,
            pool_slots: settings.pool_slots,
            scheduler: GuestScheduler::start(
                settings.guest_threads,
                settings.epoch_interval,
                settings.thread_init,
            )?,
        };
        tracing::info!(
            pool_mode = sandbox.pool_mode(),
            slots = settings.pool_slots,
            guest_threads = settings.guest_threads,
            "engine ready"
        );
        Ok(sandbox)
    }

    /// Returns how instances get their memory in the engine that most runs use.
    pub fn pool_mode(&self) -> &'static str {
        let variant = Variant {
            metered: false,
            stack: StackClass::K512,
        };
        match self.engines.pooled(variant, ProposalSet::default()) {
            Ok(Some(_)) if self.engines.pagemap_scan() => "pooled+pagemap_scan",
            Ok(Some(_)) => "pooled",
            Ok(None) | Err(_) => "on-demand",
        }
    }

    /// Returns how many instances the pools hold now.
    pub fn pooled_instances(&self) -> u64 {
        self.engines.pooled_instances()
    }

    /// Returns how many guest threads execute a guest now, and how many there are.
    pub fn guest_threads(&self) -> [u32; 2] {
        let [busy, threads, _waiting] = self.scheduler.load();
        [busy, threads].map(|count| u32::try_from(count).unwrap_or(u32::MAX))
    }

    /// Returns the cache of compiled modules.
    pub fn modules(&self) -> &ModuleCache {
        &self.modules
    }

    /// Executes a run for the tenant whose queue is `tenant_queue`, and calls `ended` when the run
    /// has ended and its store is dropped. The run executes on the guest threads. If it is expected
    /// to be over in a moment and those threads have nothing to do, it begins on the calling
    /// thread, and moves to them at its first epoch or when it waits.
    pub fn spawn(
        &self,
        tenant_queue: &Arc<TenantQueue>,
        prepared: PreparedRun,
        ended: impl FnOnce(Result<RunReport, Refusal>) + Send + 'static,
    ) {
        let active = self.engines.mark_active();
        let loaded = prepared.loaded();
        // If nothing is known about this module yet, the first runs of its tenant's other modules
        // tell what to expect.
        let known = loaded.short_run_predictor.predicts_short();
        let new_module_queue = known.is_none().then(|| Arc::clone(tenant_queue));
        let is_short =
            known.or_else(|| tenant_queue.new_module_predictor.predicts_short()) == Some(true);
        let may_begin_here = is_short && prepared.memory() <= MAX_INLINE_MEMORY;
        let noted = Arc::clone(&loaded);
        let files = match prepared.has_files() {
            true => self.scheduler.file_calls(tenant_queue),
            false => FileCalls::none(),
        };
        let run = async move {
            let result = AssertUnwindSafe(prepared.execute(files))
                .catch_unwind()
                .await
                .unwrap_or_else(|panic| Err(Refusal::internal(panic_message(panic.as_ref()))));
            if let Ok(ended) = &result {
                noted.short_run_predictor.observe_run(ended.cpu_time);
                if let Some(tenant_queue) = new_module_queue {
                    tenant_queue
                        .new_module_predictor
                        .observe_run(ended.cpu_time);
                }
            }
            drop(active);
            ended(result);
        };
        if !may_begin_here {
            self.scheduler.spawn(tenant_queue, run);
        } else if let Some(spent) = self.scheduler.spawn_inline(tenant_queue, run) {
            loaded.short_run_predictor.observe_slice(spent);
            if known.is_none() {
                tenant_queue.new_module_predictor.observe_slice(spent);
            }
        }
    }
}

/// Refuses a run whose module imports what the run may not have.
///
/// # Errors
/// `IMPORT_NOT_ALLOWED`, naming the imports.
pub fn check_imports(inspection: &Inspection, spec: &RunSpec) -> Result<(), Refusal> {
    if !inspection.imports_wasi.is_empty() && !spec.wasi {
        return Err(import_not_allowed(
            &inspection.imports_wasi,
            "granted to a run without WASI (security.enable_wasi)",
        ));
    }
    let refused: Vec<String> = inspection
        .imports_host
        .difference(&spec.host_functions)
        .cloned()
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    Err(import_not_allowed(
        &refused,
        "named in security.allowed_host_functions",
    ))
}

/// Refuses a module that needs proposals which the operator has not turned on.
///
/// # Errors
/// `FEATURE_NOT_ENABLED`, naming the proposals.
pub fn check_proposals(inspection: &Inspection, grants: &Grants) -> Result<(), Refusal> {
    let missing: Vec<String> = inspection
        .proposals
        .names()
        .filter(|name| !grants.features.contains(*name))
        .map(str::to_owned)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(not_enabled(&missing))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    format!("host code panicked: {text}")
}

/// Decides whether memories are reset by PAGEMAP_SCAN. It is faster, but with swap on, a kernel may
/// leave a swapped-out page of one guest to the next (wasmtime pull request 14357).
fn choose_pagemap_scan(asked: Option<bool>) -> bool {
    let available = PoolingAllocationConfig::is_pagemap_scan_available();
    let swap_off = std::fs::read_to_string("/proc/swaps")
        .is_ok_and(|swaps| swaps.lines().skip(1).all(|line| line.trim().is_empty()));
    let chosen = match asked {
        Some(asked) => asked && available,
        None => available && swap_off,
    };
    if asked == Some(true) && !available {
        tracing::warn!(
            "engine.pagemap_scan is on, but this kernel has no PAGEMAP_SCAN (Linux 6.7)"
        );
    }
    tracing::info!(chosen, available, swap_off, "pagemap_scan");
    chosen
}
