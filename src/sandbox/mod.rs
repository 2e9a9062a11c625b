//! All that knows wasmtime: compile a module, settle a run, execute it.
//!
//! ```text
//! bytes -> inspect -> compile -> Loaded -> prepare -> Prepared -> spawn -> Ended
//! ```
//!
//! A guest gets a fresh store, executes on the guest threads, unless it is over in a moment, and its store is gone before its end is told.

mod clock;
mod code_cache;
mod compile;
mod cpu_time;
mod directories;
mod engine;
mod entry;
mod execute;
mod features;
mod file_times;
mod files;
mod flight;
mod footprint;
mod habit;
mod handles;
mod host;
mod inline;
mod inspect;
mod inspection;
mod listing;
mod loaded;
mod meter;
mod modules;
mod mounts;
mod pace;
mod preview1;
mod preview2;
mod regular;
mod saver;
mod stdin;
mod stdio;
mod stop;
mod threads;
mod trap;
mod turn;
mod validate;
mod wanted;
mod wasi;
mod working_dir;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use wasmtime::PoolingAllocationConfig;

use self::code_cache::CacheLimits;
use self::compile::{Compiler, Lanes};
use self::engine::{EngineSettings, Engines};
use self::features::Proposals;
use self::inspect::Rules;
use self::threads::Threads;
use crate::limits::{PAGE, StackClass};
use crate::outcome::Ended;
use crate::policy::Grants;
use crate::refusal::Refusal;
use crate::request::RunSpec;
use crate::store::Artifacts;

pub use self::code_cache::CodeUse;
pub use self::compile::{
    ArtifactLimit, Budget, CompileLane, CompileLease, CompilePermit, CompileSettings, SUBCOMMAND,
    SmallLane, serve_as_child,
};
pub use self::engine::{HOST_STACK, Variant};
pub use self::entry::Entry;
pub use self::execute::{Prepared, Surroundings, prepare};
pub use self::features::FEATURE_NAMES;
pub use self::files::FileCalls;
pub use self::handles::{DescriptorAccount, DescriptorBudget};
pub use self::host::HOST_FUNCTION_NAMES;
pub use self::inline::begin_guests_here;
pub use self::inspection::Inspection;
pub use self::loaded::Loaded;
pub use self::modules::{Inspected, Modules};
pub use self::mounts::Roots;
pub use self::stdin::{Input, MAX_STDIN_CHUNK, StdinDemand};
pub use self::stdio::Output;
pub use self::stop::{Stop, StopReason};
pub use self::threads::{Lane, OnThread};
pub use self::wanted::{Source, Wanted};

/// The runtime's version.
pub const WASMTIME_VERSION: &str = "48.0.8";

/// How a sandbox is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Threads that execute guests.
    pub guest_threads: usize,
    /// Instances that one pool holds.
    pub pool_slots: u32,
    /// How often guests are interrupted.
    pub epoch_interval: Duration,
    /// Reset memories by PAGEMAP_SCAN; `None`: where it is there and safe.
    pub pagemap_scan: Option<bool>,
    /// Bytes of compiled modules held in memory.
    pub cache_budget: u64,
    /// The weights of the tenants, by which each has a share of that.
    pub tenant_weights: Vec<u32>,
    /// The most bytes of one linear memory.
    pub max_memory: usize,
    /// How modules are compiled.
    pub compile: CompileSettings,
    /// Where code is kept on disk.
    pub artifacts: Option<Arc<Artifacts>>,
    /// What each thread that does guests' work does first.
    pub on_thread: OnThread,
}

/// The engine with its modules and threads.
pub struct Sandbox {
    /// First to go: a guest that gives way then is not taken up again.
    threads: Threads,
    modules: Modules,
    /// Last: until then epochs have guests give way.
    engines: Arc<Engines>,
}

impl Sandbox {
    /// Starts the threads and makes the engine that most runs use.
    ///
    /// # Errors
    /// Where the host refuses threads, or the engine its settings.
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
        let rules = Rules::of(&compilers[0])?;
        let compiler = Compiler::start(&settings.compile, compilers, rules)?;
        let modules = Modules::new(
            Arc::clone(&engines),
            compiler,
            Lanes::new(settings.compile.small),
            settings.artifacts.clone(),
            CacheLimits {
                bytes: settings.cache_budget,
                weights: &settings.tenant_weights,
            },
        )?;
        let sandbox = Self {
            engines,
            modules,
            threads: Threads::start(
                settings.guest_threads,
                settings.epoch_interval,
                settings.on_thread,
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

    /// How instances get their memory in the engine that most runs use.
    pub fn pool_mode(&self) -> &'static str {
        let variant = Variant {
            metered: false,
            stack: StackClass::K512,
        };
        match self.engines.pooled(variant, Proposals::default()) {
            Ok(Some(_)) if self.engines.pagemap_scan() => "pooled+pagemap_scan",
            Ok(Some(_)) => "pooled",
            Ok(None) | Err(_) => "on-demand",
        }
    }

    /// Instances that pools hold now.
    pub fn pooled_instances(&self) -> u64 {
        self.engines.pooled_instances()
    }

    /// Compiled modules.
    pub fn modules(&self) -> &Modules {
        &self.modules
    }

    /// Executes a run in a lane: on the guest threads, or, where it is expected to be over in a moment and they have
    /// nothing to do, on the thread that calls, which it leaves at its first epoch or when it waits. When it has ended
    /// and its store is gone, `ended` is called.
    pub fn spawn(
        &self,
        lane: &Arc<Lane>,
        prepared: Prepared,
        ended: impl FnOnce(Result<Ended, Refusal>) + Send + 'static,
    ) {
        let active = self.engines.active();
        let loaded = prepared.loaded();
        // Of a module of which nothing is known, its tenant's other modules tell what to expect.
        let known = loaded.habit.is_short();
        let newcomers = known.is_none().then(|| Arc::clone(lane));
        let is_short = known.or_else(|| lane.newcomers.is_short()) == Some(true);
        let memory = loaded.inspection.description.memory_minimum_pages;
        let may_begin_here = is_short && memory * PAGE <= inline::MEMORY;
        let noted = Arc::clone(&loaded);
        let files = match prepared.has_files() {
            true => self.threads.file_calls(lane),
            false => FileCalls::none(),
        };
        let run = async move {
            let result = AssertUnwindSafe(prepared.execute(files))
                .catch_unwind()
                .await
                .unwrap_or_else(|panic| Err(Refusal::internal(panic_message(panic.as_ref()))));
            if let Ok(ended) = &result {
                noted.habit.ended(ended.cpu_time);
                if let Some(lane) = newcomers {
                    lane.newcomers.ended(ended.cpu_time);
                }
            }
            drop(active);
            ended(result);
        };
        if !may_begin_here {
            self.threads.spawn(lane, run);
        } else if let Some(spent) = self.threads.begin_here(lane, run) {
            loaded.habit.note(spent);
            if known.is_none() {
                lane.newcomers.note(spent);
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
        return Err(inspect::import_not_allowed(
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
    Err(inspect::import_not_allowed(
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
    Err(validate::not_enabled(&missing))
}

/// Refuses what no grant covers.
///
/// # Errors
/// `POLICY_DENIED`, naming the rule; `SPEC_INVALID` for a host function that is not offered at all.
pub fn check_grants(spec: &RunSpec, grants: &Grants, roots: &Roots) -> Result<(), Refusal> {
    const FIELD: &str = "spec.security.allowed_host_functions";
    for name in &spec.host_functions {
        if !HOST_FUNCTION_NAMES.contains(&name.as_str()) {
            let message = format!(
                "\"{}\" is not offered; there are: {}",
                crate::refusal::quote(name),
                HOST_FUNCTION_NAMES.join(", ")
            );
            return Err(Refusal::invalid(FIELD, message));
        }
        if !grants.host_functions.contains(name) {
            let message = format!("{name} is not granted");
            return Err(Refusal::denied(FIELD, "policy.host_functions", message));
        }
    }
    if spec.network && grants.network.is_empty() {
        return Err(Refusal::denied(
            "spec.security.enable_network",
            "policy.network",
            "no address is granted",
        ));
    }
    spec.mounts.iter().try_for_each(|mount| roots.check(mount))
}

fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    format!("host code panicked: {text}")
}

/// Whether to reset memories by PAGEMAP_SCAN. It is quicker, but with swap on a kernel may keep a swapped-out page of
/// one guest for the next (wasmtime pull request 14357).
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
