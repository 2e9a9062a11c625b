//! Inspects and compiles modules: bytes in, artefact out, a few at a time, within a budget.
//!
//! Both happen in a compile child, a process that sees one module and has no files and no network.
//! The child is killed when it goes over its budget: a compiler cannot be interrupted, and it ends
//! its process when it gets no memory. The daemon can stop a child in favour of another tenant's
//! module, and let it go on later (`lease`). For each compilation that may run at once, there is a
//! child ready. With `in-process`, the compile threads themselves compile, for hosts that cannot
//! start processes. Small modules have a thread of their own (`lanes`).

mod artifact;
mod child;
mod child_spawner;
mod child_worker;
mod confine;
mod cost;
mod lane_worker;
mod lanes;
mod lease;
mod precheck;
mod wire;

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use wasmtime::Engine;

use self::child::CompileChild;
use self::child_spawner::ChildSpawner;
use self::lane_worker::{CompileBackend, LaneWorker};
use self::wire::{CompileCommand, InspectError};
use super::compile_limit::compile_limit;
use super::inspect::{self, ImportRules};
use super::inspection::Inspection;
use crate::metrics::{Count, Level};
use crate::model::refusal::{Reason, Refusal, quote};
use crate::sandbox::engine;
use crate::sandbox::engine::features::ProposalSet;
use crate::store::Blob;

pub(in crate::sandbox) use self::artifact::Artifact;
pub use self::child::SUBCOMMAND;
pub use self::child_worker::serve as serve_as_child;
pub(in crate::sandbox) use self::cost::estimate_compile_cost;
pub use self::lanes::{CompileLane, SmallLane};
pub(in crate::sandbox) use self::lanes::{LaneChooser, Placement};
pub use self::lease::{CompileGrant, CompileLease, CompilePermit};

/// Nice value of what compiles in the large lane, which must never starve runs.
const NICE: i32 = 15;
/// Nice value of the small lane, which gets as much of the processor as a guest, beside whatever
/// else is compiled.
const SMALL_NICE: i32 = 10;
/// Stack size in bytes of a thread that compiles. Cranelift recurses with the nesting of what it
/// compiles.
const STACK: usize = 64 << 20;
/// How long a caller is told to wait when too many modules wait to be compiled.
const RETRY: Duration = Duration::from_secs(1);
/// Version of what an [`Inspection`] means. To be counted up whenever that changes.
const INSPECTION_VERSION: u32 = 2;

/// What compiling one module may take.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct CompileBudget {
    /// Processor time, from the module's arrival in the child; in the small lane, wall time.
    pub timeout: Duration,
    /// Memory that the compilation may take, in bytes.
    pub memory: u64,
}

/// What a module may be expected to take, checked before it is compiled.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct CompileBounds {
    /// Compared with what the module's counts take at the least: a module that goes over this is
    /// compiled in no lane.
    budget: CompileBudget,
    /// The highest estimated cost of all that the module contains, in microseconds of processor
    /// time.
    cost: u64,
}

/// The limit on the size of compiled code.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactLimit {
    /// The most bytes of compiled code.
    pub bytes: u64,
    /// The configuration key that sets the limit, for refusals to name.
    pub key: String,
}

/// The settings by which modules are compiled.
#[derive(Clone, Debug)]
pub struct CompileSettings {
    /// The program whose [`SUBCOMMAND`] compiles; with `None`, modules are compiled in this
    /// process.
    pub child: Option<PathBuf>,
    /// How many modules are compiled at once in the large lane.
    pub concurrency: u32,
    /// How many compilations may be stopped at once for those of other tenants, where modules are
    /// compiled in children.
    pub max_stopped: u32,
    /// How many modules may wait for the compile threads of each lane.
    pub queue: u32,
    /// The budget of each module in the large lane.
    pub budget: CompileBudget,
    /// The lane for small modules; with `None`, there is none.
    pub small: Option<SmallLane>,
    /// The limit on the artefact of each module.
    pub artifact: ArtifactLimit,
}

/// Why a module was not compiled, and whether it would be the same next time.
#[derive(Clone, Debug)]
pub(in crate::sandbox) struct CompileError {
    pub(in crate::sandbox) refusal: Refusal,
    /// Whether the failure says something about the module under this budget, rather than about the
    /// machine at that moment.
    pub(in crate::sandbox) is_permanent: bool,
    /// Whether the module went over the budget of the small lane only. Then the refusal is for
    /// nobody, and the module is to be compiled in the large lane.
    pub(in crate::sandbox) outgrew_small_lane: bool,
}

impl CompileError {
    pub(in crate::sandbox) fn permanent(refusal: Refusal) -> Self {
        Self {
            refusal,
            is_permanent: true,
            outgrew_small_lane: false,
        }
    }

    fn transient(refusal: Refusal) -> Self {
        Self {
            refusal,
            is_permanent: false,
            outgrew_small_lane: false,
        }
    }

    /// Marks the error as one that is about the budget of `lane`.
    fn over_budget_of(self, lane: CompileLane) -> Self {
        Self {
            outgrew_small_lane: lane == CompileLane::Small,
            ..self
        }
    }
}

/// A module to inspect and, if that is then wanted, to compile.
struct CompileJob {
    wasm: Blob,
    placement: Placement,
    permit: CompilePermit,
    inspected: oneshot::Sender<Result<(Inspection, CompileSession), CompileError>>,
}

type CompileOrder = (
    CompileCommand,
    oneshot::Sender<Result<Artifact, CompileError>>,
);

/// A session with a module that was inspected and waits, for a moment, to be compiled. Dropping it
/// ends the session, and frees the compile thread.
pub(in crate::sandbox) struct CompileSession {
    orders: SyncSender<CompileOrder>,
    pub(in crate::sandbox) placement: Placement,
    /// The permit of whoever asked first.
    _permit: CompilePermit,
}

impl CompileSession {
    /// Orders the module to be compiled, and waits for the result. `None` means that the order came
    /// too late, and that the module has to be opened again.
    async fn compile(self, metered: bool) -> Option<Result<Artifact, CompileError>> {
        let (done, compiled) = oneshot::channel();
        self.orders
            .try_send((CompileCommand { metered }, done))
            .ok()?;
        compiled.await.ok()
    }
}

/// The compiler: threads that inspect and compile a few modules at a time, behind a bounded queue
/// for each lane.
pub(in crate::sandbox) struct Compiler {
    /// Queue of the large lane.
    large: SyncSender<CompileJob>,
    /// Queue of the small lane, where there is one.
    small: Option<SyncSender<CompileJob>>,
    /// Compilations that were answered, failed ones included.
    compiled: Count,
    /// The compile children that there are.
    children: Level,
    /// Where modules are compiled, and what confines the children.
    mode: String,
}

impl Compiler {
    /// Starts the compile threads, and a first child to learn whether children become ready.
    ///
    /// # Errors
    /// The host refuses threads, or a child does not become ready.
    pub(in crate::sandbox) fn start(
        settings: &CompileSettings,
        engines: [Engine; 2],
        rules: ImportRules,
    ) -> wasmtime::Result<Self> {
        let rules = Arc::new(rules);
        let children = Level::default();
        let compatible = compatibility_hashes(&engines)?;
        let place = |lane| LaneWorker {
            lane,
            bounds: settings.bounds(lane),
            kind: match &settings.child {
                None => CompileBackend::InProcess {
                    engines: engines.clone(),
                    rules: Arc::clone(&rules),
                    max_artifact: settings.artifact.clone(),
                },
                Some(program) => CompileBackend::Child(ChildSpawner::new(
                    program, settings, lane, compatible, &children,
                )),
            },
        };
        let large = place(CompileLane::Large);
        let (mode, threads) = match &large.kind {
            // What goes on inside a thread cannot be stopped.
            CompileBackend::InProcess { .. } => ("in-process".to_owned(), settings.concurrency),
            CompileBackend::Child(spawner) => {
                let mut child = spawner
                    .spawn_ready()
                    .map_err(|none| wasmtime::Error::msg(none.why))?;
                let mode = confinement(&mut child).map_err(wasmtime::Error::msg)?;
                spawner.keep(child);
                // A thread whose child is stopped waits with it, so there is one more for each.
                let threads = settings.concurrency.saturating_add(settings.max_stopped);
                (mode, threads)
            }
        };
        let small = settings.small.map(|_| {
            let place = place(CompileLane::Small);
            Self::threads("compile-small", 1, settings.queue, place)
        });
        Ok(Self {
            large: Self::threads("compile", threads, settings.queue, large)?,
            small: small.transpose()?,
            compiled: Count::default(),
            children,
            mode,
        })
    }

    fn threads(
        name: &str,
        count: u32,
        queue: u32,
        place: LaneWorker,
    ) -> std::io::Result<SyncSender<CompileJob>> {
        let (jobs, queued) = sync_channel::<CompileJob>(queue as usize);
        let (queued, place) = (Arc::new(Mutex::new(queued)), Arc::new(place));
        for i in 0..count {
            let (queued, place) = (Arc::clone(&queued), Arc::clone(&place));
            std::thread::Builder::new()
                .name(format!("{name}-{i}"))
                .stack_size(STACK)
                .spawn(move || place.work(&queued))?;
        }
        Ok(jobs)
    }

    /// Returns where modules are compiled, and what confines the children.
    pub(in crate::sandbox) fn mode(&self) -> &str {
        &self.mode
    }

    /// Returns how many compile children there are now.
    pub(in crate::sandbox) fn children(&self) -> u64 {
        self.children.get()
    }

    /// Returns how many compilations were run to their end since the start, those that failed
    /// included.
    pub(in crate::sandbox) fn compilations(&self) -> u64 {
        self.compiled.get()
    }

    /// Validates `wasm` and reads what it is. The module can then be compiled at once, in the same
    /// lane. `permit` is held until that is over.
    ///
    /// # Errors
    /// As [`inspect::inspect`], `COMPILE_LIMIT_EXCEEDED`, `QUEUE_FULL`.
    pub(in crate::sandbox) async fn open(
        &self,
        wasm: Blob,
        placement: Placement,
        permit: CompilePermit,
    ) -> Result<(Inspection, CompileSession), CompileError> {
        let (inspected, answer) = oneshot::channel();
        let jobs = match (placement.lane, &self.small) {
            (CompileLane::Small, Some(small)) => small,
            (CompileLane::Small, None) | (CompileLane::Large, _) => &self.large,
        };
        let job = CompileJob {
            wasm,
            placement,
            permit,
            inspected,
        };
        jobs.try_send(job).map_err(|error| {
            CompileError::transient(match error {
                TrySendError::Full(_) => Refusal::new(
                    Reason::QueueFull,
                    "too many modules wait to be compiled (compile.queue)",
                )
                .retry_after(RETRY),
                TrySendError::Disconnected(_) => Refusal::internal("the compile threads are gone"),
            })
        })?;
        let gone = |_| {
            Err(CompileError::transient(Refusal::internal(
                "the compiler panicked",
            )))
        };
        answer.await.unwrap_or_else(gone)
    }

    /// Compiles what was inspected. `None` means that the order came too late, and that the module
    /// has to be opened again.
    ///
    /// # Errors
    /// `COMPILATION_FAILED`, `COMPILE_LIMIT_EXCEEDED`, `INTERNAL`.
    pub(in crate::sandbox) async fn compile(
        &self,
        session: CompileSession,
        metered: bool,
    ) -> Option<Result<Artifact, CompileError>> {
        let compiled = session.compile(metered).await;
        if compiled.is_some() {
            self.compiled.increment();
        }
        compiled
    }
}

impl CompileSettings {
    fn bounds(&self, lane: CompileLane) -> CompileBounds {
        CompileBounds {
            budget: self.budget,
            cost: match (lane, self.small) {
                (CompileLane::Small, Some(small)) => small.max_cost(),
                (CompileLane::Small, None) | (CompileLane::Large, _) => u64::MAX,
            },
        }
    }

    /// Returns what compiling one module in `lane` may take.
    fn budget(&self, lane: CompileLane) -> CompileBudget {
        match (lane, self.small) {
            (CompileLane::Small, Some(small)) => small.budget,
            (CompileLane::Small, None) | (CompileLane::Large, _) => self.budget,
        }
    }
}

/// Returns the nice value of what compiles in `lane`.
fn nice(lane: CompileLane) -> i32 {
    match lane {
        CompileLane::Small => SMALL_NICE,
        CompileLane::Large => NICE,
    }
}

/// Waits for a child and returns what confines it. What does not confine it is logged.
fn confinement(child: &mut CompileChild) -> Result<String, String> {
    let hello = child.wait_until_ready()?;
    for wall in ["landlock", "seccomp"] {
        if !hello.confinement.iter().any(|it| it == wall) {
            tracing::warn!(wall, "this host does not fully confine compile children");
        }
    }
    let words = std::iter::once("child").chain(hello.confinement.iter().map(String::as_str));
    Ok(words.collect::<Vec<_>>().join("+"))
}

/// Returns the binary form of a module, and what it is. A binary went through the pre-checks
/// before. What text stands for is seen here first, and has to be within `bounds`.
fn decode_and_inspect<'a>(
    bytes: &'a [u8],
    rules: &ImportRules,
    bounds: &CompileBounds,
) -> Result<(Cow<'a, [u8]>, Inspection), InspectError> {
    let binary = inspect::binary(bytes).map_err(InspectError::Refused)?;
    if let Cow::Owned(binary) = &binary {
        precheck::check(binary, &bounds.budget).map_err(InspectError::Refused)?;
        // Where nothing is too costly to be compiled, there is nothing to count.
        if bounds.cost < u64::MAX && estimate_compile_cost(binary) > bounds.cost {
            return Err(InspectError::TooCostly);
        }
    }
    let inspection = inspect::inspect(&binary, rules).map_err(InspectError::Refused)?;
    Ok((binary, inspection))
}

impl InspectError {
    fn into_compile_error(self, lane: CompileLane) -> CompileError {
        match self {
            Self::Refused(refusal) => CompileError::permanent(refusal),
            Self::TooCostly => {
                let message = "the module is expected to take longer".to_owned();
                let refusal = compile_limit("compile.small_timeout", message, "a quarter of it");
                CompileError::permanent(refusal).over_budget_of(lane)
            }
        }
    }
}

/// Compiles a binary module or component that was inspected. The code may have at most `most`
/// bytes.
fn precompile(
    engine: &Engine,
    wasm: &[u8],
    component: bool,
    most: &ArtifactLimit,
) -> Result<Vec<u8>, Refusal> {
    let compiled = if component {
        engine.precompile_component(wasm)
    } else {
        engine.precompile_module(wasm)
    };
    let bytes = compiled.map_err(|error| not_compiled(&format!("{error:#}")))?;
    let len = bytes.len() as u64;
    if len > most.bytes {
        let message = format!("the compiled module takes {len} bytes");
        return Err(compile_limit(&most.key, message, most.bytes).with("asked", len));
    }
    Ok(bytes)
}

/// Computes two numbers, for unmetered and for metered code, that two processes have in common if
/// each accepts what the other compiles. They are the same whatever proposals are turned on, since
/// a module's code depends on those that it needs itself.
pub(in crate::sandbox) fn compatibility_hashes(
    engines: &[Engine; 2],
) -> wasmtime::Result<[u64; 2]> {
    let number = |metered: bool| -> wasmtime::Result<u64> {
        // Its keys are constants, so the hash is the same in every process.
        let mut hasher = DefaultHasher::new();
        // What is recorded about the code belongs to this version: another may look for other
        // things in a module.
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        INSPECTION_VERSION.hash(&mut hasher);
        let engine = &engines[usize::from(metered)];
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let all = engine::compile_only_engine(ProposalSet::ALL, metered, false)?;
        all.precompile_compatibility_hash().hash(&mut hasher);
        Ok(hasher.finish())
    };
    Ok([number(false)?, number(true)?])
}

/// Creates an engine that compiles modules which need `proposals`; `None` where they need none. It
/// is made for one module, because few modules need any, and there are many sets of proposals.
fn with_proposals(proposals: ProposalSet, metered: bool) -> Result<Option<Engine>, Refusal> {
    if proposals.is_empty() {
        return Ok(None);
    }
    engine::compile_only_engine(proposals, metered, true)
        .map(Some)
        .map_err(|error| not_compiled(&format!("{error:#}")))
}

/// Builds the refusal for a module that the compiler does not accept.
fn not_compiled(why: &str) -> Refusal {
    let why = quote(why);
    let message = format!("the module cannot be compiled: {why}");
    Refusal::new(Reason::CompilationFailed, message).at_field("module")
}

/// Builds the refusal for a module that ends the compiler instead of being compiled. What the
/// compiler said goes to the log only, because it is about the compiler's own source.
fn crashed(words: &str) -> Refusal {
    tracing::warn!(%words, "a module crashes the compiler");
    not_compiled("the compiler fails on it")
}
