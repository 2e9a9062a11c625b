//! Inspecting and compiling modules: bytes in, artefact out, a few at a time, within a budget.
//!
//! Both happen in a compile child, a process that sees one module, has no files and no network, and is killed when it
//! goes over its budget: a compiler cannot be interrupted, and ends its process when it gets no memory. It can be stopped
//! as it is for another tenant's module, and go on later (`lease`). For each compilation at once there is a child ready. `in-process` compiles on those threads themselves, for hosts that cannot start
//! processes. Small modules have a thread of their own (`lanes`).

mod artifact;
mod child;
mod confine;
mod cost;
mod lanes;
mod lease;
mod nursery;
mod place;
mod precheck;
mod wire;
mod worker;

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use wasmtime::Engine;

use self::child::Child;
use self::nursery::Nursery;
use self::place::{Place, PlaceKind};
use self::wire::{NotInspected, Order};
use super::engine;
use super::features::Proposals;
use super::inspect::{self, Rules};
use super::inspection::Inspection;
use crate::refusal::{Reason, Refusal, quote};
use crate::store::Blob;

pub(super) use self::artifact::Artifact;
pub use self::child::SUBCOMMAND;
pub(super) use self::cost::estimate;
pub use self::lanes::{CompileLane, SmallLane};
pub(super) use self::lanes::{Lanes, Placement};
pub use self::lease::{CompileLease, CompilePermit};
pub use self::worker::serve as serve_as_child;

/// How much compile threads yield to all else: compiling must never starve runs.
const NICE: i32 = 15;
/// The same for the small lane, which has as much of the processor as a guest, beside whatever is compiled.
const SMALL_NICE: i32 = 10;
/// The stack of a thread that compiles. Cranelift recurses with the nesting of what it compiles.
const STACK: usize = 64 << 20;
/// What a caller is told to wait when too many modules wait to be compiled.
const RETRY: Duration = Duration::from_secs(1);
/// To be counted up where an [`Inspection`] changes what it means.
const INSPECTION: u32 = 2;

/// What compiling one module may take.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Budget {
    /// Processor time, from the module's arrival in the child; in the small lane, wall time.
    pub timeout: Duration,
    /// Bytes of memory.
    pub memory: u64,
}

/// What a module may be expected to take before it is compiled.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Bounds {
    /// By its counts alone: what goes over this is compiled in no lane.
    budget: Budget,
    /// By all that it contains, in microseconds of processor time.
    cost: u64,
}

/// What compiled code may take.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArtifactLimit {
    /// Bytes of it.
    pub bytes: u64,
    /// The key that says so.
    pub key: String,
}

/// How modules are compiled.
#[derive(Clone, Debug)]
pub struct CompileSettings {
    /// The program whose [`SUBCOMMAND`] compiles; `None`: in this process.
    pub child: Option<PathBuf>,
    /// At once.
    pub concurrency: u32,
    /// That may be stopped at once for those of other tenants, where they are compiled in children.
    pub max_stopped: u32,
    /// That may wait.
    pub queue: u32,
    /// For each.
    pub budget: Budget,
    /// The lane for small modules, where there is one.
    pub small: Option<SmallLane>,
    /// For what comes of each.
    pub artifact: ArtifactLimit,
}

/// Why a module was not compiled, and whether it would be the same next time.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) refusal: Refusal,
    /// It says something about the module under this budget, rather than about the machine at that moment.
    pub(super) for_good: bool,
    /// It went over the budget of the small lane only: the refusal is for nobody, and the module is to be compiled in the
    /// large one.
    pub(super) outgrew: bool,
}

impl Failed {
    pub(super) fn for_good(refusal: Refusal) -> Self {
        Self {
            refusal,
            for_good: true,
            outgrew: false,
        }
    }

    fn this_time(refusal: Refusal) -> Self {
        Self {
            refusal,
            for_good: false,
            outgrew: false,
        }
    }

    /// The same where it is about the budget of `lane`.
    fn over_budget_of(self, lane: CompileLane) -> Self {
        Self {
            outgrew: lane == CompileLane::Small,
            ..self
        }
    }
}

/// Refuses a module whose compilation takes more than `limit` allows.
pub(super) fn compile_limit(
    limit: &str,
    message: String,
    allowed: impl std::fmt::Display,
) -> Refusal {
    Refusal::new(
        Reason::CompileLimitExceeded,
        format!("{message}; allowed is {allowed} ({limit})"),
    )
    .at("module")
    .with("limit", limit)
    .with("allowed", allowed)
}

/// A module to inspect and, if that is then wanted, to compile.
struct Job {
    wasm: Blob,
    placement: Placement,
    permit: CompilePermit,
    inspected: oneshot::Sender<Result<(Inspection, Session), Failed>>,
}

type Commission = (Order, oneshot::Sender<Result<Artifact, Failed>>);

/// A module that was inspected and waits, for a moment, to be compiled. Dropping it ends that.
pub(super) struct Session {
    orders: SyncSender<Commission>,
    pub(super) placement: Placement,
    /// Of whoever asked first.
    _permit: CompilePermit,
}

impl Session {
    /// Compiles it; `None` where the order comes too late, and it has to be opened again.
    async fn compile(self, metered: bool) -> Option<Result<Artifact, Failed>> {
        let (done, compiled) = oneshot::channel();
        self.orders.try_send((Order { metered }, done)).ok()?;
        compiled.await.ok()
    }
}

/// Inspects and compiles modules, a few at a time, the rest in a bounded queue.
pub(super) struct Compiler {
    /// Of the large lane.
    large: SyncSender<Job>,
    /// Of the small lane, where there is one.
    small: Option<SyncSender<Job>>,
    compiled: AtomicU64,
    mode: String,
}

impl Compiler {
    /// Starts the threads, and their children.
    ///
    /// # Errors
    /// Where the host refuses threads, or a child does not become ready.
    pub(super) fn start(
        settings: &CompileSettings,
        engines: [Engine; 2],
        rules: Rules,
    ) -> wasmtime::Result<Self> {
        let rules = Arc::new(rules);
        let compatible = compatibilities(&engines)?;
        let place = |lane| Place {
            lane,
            bounds: settings.bounds(lane),
            kind: match &settings.child {
                None => PlaceKind::Here {
                    engines: engines.clone(),
                    rules: Arc::clone(&rules),
                    max_artifact: settings.artifact.clone(),
                },
                Some(program) => {
                    PlaceKind::Child(Nursery::new(program, settings, lane, compatible))
                }
            },
        };
        let large = place(CompileLane::Large);
        let (mode, threads) = match &large.kind {
            // What goes on inside a thread cannot be stopped.
            PlaceKind::Here { .. } => ("in-process".to_owned(), settings.concurrency),
            PlaceKind::Child(nursery) => {
                let mut child = nursery
                    .ready()
                    .map_err(|none| wasmtime::Error::msg(none.why))?;
                let mode = confinement(&mut child).map_err(wasmtime::Error::msg)?;
                nursery.keep(child);
                // One whose child is stopped waits with it.
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
            compiled: AtomicU64::new(0),
            mode,
        })
    }

    fn threads(
        name: &str,
        count: u32,
        queue: u32,
        place: Place,
    ) -> std::io::Result<SyncSender<Job>> {
        let (jobs, queued) = sync_channel::<Job>(queue as usize);
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

    /// Where modules are compiled, and what confines that.
    pub(super) fn mode(&self) -> &str {
        &self.mode
    }

    /// Compilations that were ordered.
    pub(super) fn compilations(&self) -> u64 {
        self.compiled.load(Ordering::Relaxed)
    }

    /// Validates `wasm` and reads what it is; it can then be compiled at once, in the same lane. `permit` is held until
    /// that is over.
    ///
    /// # Errors
    /// As [`inspect::inspect`], `COMPILE_LIMIT_EXCEEDED`, `QUEUE_FULL`.
    pub(super) async fn open(
        &self,
        wasm: Blob,
        placement: Placement,
        permit: CompilePermit,
    ) -> Result<(Inspection, Session), Failed> {
        let (inspected, answer) = oneshot::channel();
        let jobs = match (placement.lane, &self.small) {
            (CompileLane::Small, Some(small)) => small,
            (CompileLane::Small, None) | (CompileLane::Large, _) => &self.large,
        };
        let job = Job {
            wasm,
            placement,
            permit,
            inspected,
        };
        jobs.try_send(job).map_err(|error| {
            Failed::this_time(match error {
                TrySendError::Full(_) => Refusal::new(
                    Reason::QueueFull,
                    "too many modules wait to be compiled (compile.queue)",
                )
                .retry_after(RETRY),
                TrySendError::Disconnected(_) => Refusal::internal("the compile threads are gone"),
            })
        })?;
        let gone = |_| {
            Err(Failed::this_time(Refusal::internal(
                "the compiler panicked",
            )))
        };
        answer.await.unwrap_or_else(gone)
    }

    /// Compiles what was inspected; `None` where the order comes too late, and it has to be opened again.
    ///
    /// # Errors
    /// `COMPILATION_FAILED`, `COMPILE_LIMIT_EXCEEDED`, `INTERNAL`.
    pub(super) async fn compile(
        &self,
        session: Session,
        metered: bool,
    ) -> Option<Result<Artifact, Failed>> {
        let compiled = session.compile(metered).await;
        if compiled.is_some() {
            self.compiled.fetch_add(1, Ordering::Relaxed);
        }
        compiled
    }
}

impl CompileSettings {
    fn bounds(&self, lane: CompileLane) -> Bounds {
        Bounds {
            budget: self.budget,
            cost: match (lane, self.small) {
                (CompileLane::Small, Some(small)) => small.max_cost(),
                (CompileLane::Small, None) | (CompileLane::Large, _) => u64::MAX,
            },
        }
    }

    /// What compiling one module may take.
    fn budget(&self, lane: CompileLane) -> Budget {
        match (lane, self.small) {
            (CompileLane::Small, Some(small)) => small.budget,
            (CompileLane::Small, None) | (CompileLane::Large, _) => self.budget,
        }
    }
}

/// The nice value of what compiles.
fn nice(lane: CompileLane) -> i32 {
    match lane {
        CompileLane::Small => SMALL_NICE,
        CompileLane::Large => NICE,
    }
}

/// Tells what confines a child, and the log what does not.
fn confinement(child: &mut Child) -> Result<String, String> {
    let hello = child.ready()?;
    for wall in ["landlock", "seccomp"] {
        if !hello.confinement.iter().any(|it| it == wall) {
            tracing::warn!(wall, "this host does not fully confine compile children");
        }
    }
    let words = std::iter::once("child").chain(hello.confinement.iter().map(String::as_str));
    Ok(words.collect::<Vec<_>>().join("+"))
}

/// The binary form of a module, and what it is. A binary went through the pre-checks before; what text says is seen here
/// first, and has to be within `bounds`.
fn inspected<'a>(
    bytes: &'a [u8],
    rules: &Rules,
    bounds: &Bounds,
) -> Result<(Cow<'a, [u8]>, Inspection), NotInspected> {
    let binary = inspect::binary(bytes).map_err(NotInspected::Refused)?;
    if let Cow::Owned(binary) = &binary {
        precheck::check(binary, &bounds.budget).map_err(NotInspected::Refused)?;
        // Where all may be compiled there is nothing to count.
        if bounds.cost < u64::MAX && estimate(binary) > bounds.cost {
            return Err(NotInspected::TooCostly);
        }
    }
    let inspection = inspect::inspect(&binary, rules).map_err(NotInspected::Refused)?;
    Ok((binary, inspection))
}

impl NotInspected {
    fn failed(self, lane: CompileLane) -> Failed {
        match self {
            Self::Refused(refusal) => Failed::for_good(refusal),
            Self::TooCostly => {
                let message = "the module is expected to take longer".to_owned();
                let refusal = compile_limit("compile.small_timeout", message, "a quarter of it");
                Failed::for_good(refusal).over_budget_of(lane)
            }
        }
    }
}

/// Compiles a binary module or component that was inspected, to at most `most` bytes.
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

/// Numbers that two processes have in common if each takes what the other compiles, unmetered and metered. They are the
/// same whatever proposals are turned on, since a module's code depends on those that it needs itself.
pub(super) fn compatibilities(engines: &[Engine; 2]) -> wasmtime::Result<[u64; 2]> {
    let number = |metered: bool| -> wasmtime::Result<u64> {
        // Its keys are constants: the same in every process.
        let mut hasher = DefaultHasher::new();
        // What is told about the code is this version's: another may look for other things in a module.
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        INSPECTION.hash(&mut hasher);
        let engine = &engines[usize::from(metered)];
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let all = engine::compiler(Proposals::ALL, metered, false)?;
        all.precompile_compatibility_hash().hash(&mut hasher);
        Ok(hasher.finish())
    };
    Ok([number(false)?, number(true)?])
}

/// An engine that compiles modules which need `proposals`, where they need any. It is made for one module: few need
/// some, and there are many sets of them.
fn with_proposals(proposals: Proposals, metered: bool) -> Result<Option<Engine>, Refusal> {
    if proposals.is_empty() {
        return Ok(None);
    }
    engine::compiler(proposals, metered, true)
        .map(Some)
        .map_err(|error| not_compiled(&format!("{error:#}")))
}

/// Refuses a module that the compiler does not take.
fn not_compiled(why: &str) -> Refusal {
    let why = quote(why);
    let message = format!("the module cannot be compiled: {why}");
    Refusal::new(Reason::CompilationFailed, message).at("module")
}

/// Refuses a module that ends the compiler instead of being compiled. What the compiler said is for the log: it is about
/// the compiler's own source.
fn crashed(words: &str) -> Refusal {
    tracing::warn!(%words, "a module crashes the compiler");
    not_compiled("the compiler fails on it")
}
