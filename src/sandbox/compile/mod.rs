//! Inspecting and compiling modules: bytes in, artefact out, a few at a time, within a budget.
//!
//! Both happen in a compile child, a process that sees one module, has no files and no network, and is killed when it
//! goes over its budget: a compiler cannot be interrupted, and ends its process when it gets no memory. Each compile
//! thread keeps one child ready. `in-process` compiles on those threads themselves, for hosts that cannot start
//! processes.

mod artifact;
mod child;
mod confine;
mod precheck;
mod wire;
mod worker;

use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use wasmtime::Engine;

use self::child::Child;
use self::wire::{Order, Setup};
use super::inspect::{self, Rules};
use super::inspection::Inspection;
use super::panic_message;
use super::wanted::Turn;
use crate::refusal::{Reason, Refusal, quote};
use crate::store::Blob;

pub(super) use self::artifact::Artifact;
pub use self::child::SUBCOMMAND;
pub use self::worker::serve as serve_as_child;

/// How much compile threads yield to all else: compiling must never starve runs.
const NICE: i32 = 15;
/// The stack of a thread that compiles. Cranelift recurses with the nesting of what it compiles.
const STACK: usize = 64 << 20;
/// What a caller is told to wait when too many modules wait to be compiled.
const RETRY: Duration = Duration::from_secs(1);
/// How long a module that was inspected waits for the order to compile it. Whoever asked has it at once, or is gone.
const ORDER: Duration = Duration::from_secs(5);
/// To be counted up where an [`Inspection`] changes what it means.
const INSPECTION: u32 = 1;
/// Threads of a child at the most.
const MAX_CHILD_THREADS: usize = 4;

/// What compiling one module may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Processor time, from the module's arrival in the child.
    pub timeout: Duration,
    /// Bytes of memory.
    pub memory: u64,
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
    /// That may wait.
    pub queue: u32,
    /// For each.
    pub budget: Budget,
    /// For what comes of each.
    pub artifact: ArtifactLimit,
}

/// Why a module was not compiled, and whether it would be the same next time.
#[derive(Clone, Debug)]
pub(super) struct Failed {
    pub(super) refusal: Refusal,
    /// It says something about the module under this budget, rather than about the machine at that moment.
    pub(super) for_good: bool,
}

impl Failed {
    fn for_good(refusal: Refusal) -> Self {
        Self {
            refusal,
            for_good: true,
        }
    }

    fn this_time(refusal: Refusal) -> Self {
        Self {
            refusal,
            for_good: false,
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
    turn: Turn,
    inspected: oneshot::Sender<Result<(Inspection, Session), Failed>>,
}

type Commission = (Order, oneshot::Sender<Result<Artifact, Failed>>);

/// A module that was inspected and waits, for a moment, to be compiled. Dropping it ends that.
pub(super) struct Session {
    orders: SyncSender<Commission>,
    /// Of whoever asked first.
    _turn: Turn,
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
    jobs: SyncSender<Job>,
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
        features: &[String],
        engines: [Engine; 2],
        rules: Rules,
    ) -> wasmtime::Result<Self> {
        let mut mode = "in-process".to_owned();
        let mut first = None;
        let place = match &settings.child {
            None => Place::Here {
                engines,
                rules,
                max_artifact: settings.artifact.clone(),
            },
            Some(program) => {
                let threads = std::thread::available_parallelism().map_or(1, usize::from);
                let nursery = Nursery {
                    program: program.clone(),
                    setup: Setup {
                        features: features.to_vec(),
                        memory: settings.budget.memory,
                        cpu: settings.budget.timeout,
                        artifact: settings.artifact.clone(),
                        threads: threads.min(MAX_CHILD_THREADS),
                    },
                    budget: settings.budget,
                    compatible: engines.each_ref().map(compatibility),
                };
                let mut child = nursery.ready().map_err(wasmtime::Error::msg)?;
                let hello = child.ready().map_err(wasmtime::Error::msg)?;
                for wall in ["landlock", "seccomp"] {
                    if !hello.confinement.iter().any(|it| it == wall) {
                        tracing::warn!(wall, "this host does not fully confine compile children");
                    }
                }
                mode = std::iter::once("child")
                    .chain(hello.confinement.iter().map(String::as_str))
                    .collect::<Vec<_>>()
                    .join("+");
                first = Some(child);
                Place::Child(nursery)
            }
        };
        Ok(Self {
            jobs: Self::threads(settings, place, first)?,
            compiled: AtomicU64::new(0),
            mode,
        })
    }

    fn threads(
        settings: &CompileSettings,
        place: Place,
        mut first: Option<Child>,
    ) -> std::io::Result<SyncSender<Job>> {
        let (jobs, queued) = sync_channel::<Job>(settings.queue as usize);
        let (queued, place) = (Arc::new(Mutex::new(queued)), Arc::new(place));
        for i in 0..settings.concurrency {
            let (queued, place, ready) = (Arc::clone(&queued), Arc::clone(&place), first.take());
            std::thread::Builder::new()
                .name(format!("compile-{i}"))
                .stack_size(STACK)
                .spawn(move || place.work(&queued, ready))?;
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

    /// Validates `wasm` and reads what it is; it can then be compiled at once. `turn` is held until that is over.
    ///
    /// # Errors
    /// As [`inspect::inspect`], `COMPILE_LIMIT_EXCEEDED`, `QUEUE_FULL`.
    pub(super) async fn open(
        &self,
        wasm: Blob,
        turn: Turn,
    ) -> Result<(Inspection, Session), Failed> {
        let (inspected, answer) = oneshot::channel();
        let job = Job {
            wasm,
            turn,
            inspected,
        };
        self.jobs.try_send(job).map_err(|error| {
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

/// Where modules are compiled.
enum Place {
    /// On the compile threads.
    Here {
        engines: [Engine; 2],
        rules: Rules,
        max_artifact: ArtifactLimit,
    },
    /// In children.
    Child(Nursery),
}

impl Place {
    fn work(&self, queued: &Mutex<Receiver<Job>>, mut ready: Option<Child>) {
        // Raising one's own nice value is always permitted; where it is not, compiling is merely less polite.
        let _ = rustix::process::setpriority_process(None, NICE);
        loop {
            if let (Self::Child(nursery), None) = (self, &ready) {
                // One that cannot be started now is tried again for the module that needs it, which is told why.
                ready = nursery.spawn().ok();
            }
            let job = queued.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            // A panic is that job's failure, told to its caller by the sender that is dropped with it.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.serve(job, &mut ready);
            }));
        }
    }

    /// Inspects a module, says what it is, and compiles it if that is then ordered.
    fn serve(&self, job: Job, ready: &mut Option<Child>) {
        let Job {
            wasm,
            turn,
            inspected,
        } = job;
        let (opened, commission) = match self.open(&wasm, ready) {
            Err(failed) => {
                // A caller that left does not need it.
                let _ = inspected.send(Err(failed));
                return;
            }
            Ok((inspection, opened)) => {
                let (orders, commission) = sync_channel::<Commission>(1);
                let session = Session {
                    orders,
                    _turn: turn,
                };
                if inspected.send(Ok((inspection, session))).is_err() {
                    return;
                }
                (opened, commission)
            }
        };
        let (order, done) = match commission.recv_timeout(ORDER) {
            Ok(commissioned) => commissioned,
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => return,
        };
        let _ = done.send(opened.compile(&order));
    }

    fn open(
        &self,
        wasm: &Blob,
        ready: &mut Option<Child>,
    ) -> Result<(Inspection, Opened<'_>), Failed> {
        // What does not fit in memory is read only now: as many at once as there are compile threads.
        let wasm = wasm.read().map_err(|error| {
            Failed::this_time(Refusal::internal(format_args!("reading a module: {error}")))
        })?;
        if wasm.starts_with(b"\0asm") {
            precheck::check(&wasm).map_err(Failed::for_good)?;
        }
        match self {
            Self::Here {
                engines,
                rules,
                max_artifact,
            } => {
                let (binary, inspection) = inspected(&wasm, rules).map_err(Failed::for_good)?;
                let opened = Opened::Here {
                    engines,
                    bytes: binary.into_owned(),
                    max_artifact,
                };
                Ok((inspection, opened))
            }
            Self::Child(nursery) => {
                // Text is read in the child only: a little of it can take a lot of memory to read.
                let mut child = nursery.make_ready(ready.take())?;
                let inspection = match child.inspect(&wasm) {
                    // When memory runs out the kernel kills children first. Once more, where there may be room.
                    Err(failed) if !failed.for_good && child.was_killed() => {
                        child = nursery.make_ready(None)?;
                        child.inspect(&wasm)?
                    }
                    inspected => inspected?,
                };
                Ok((inspection, Opened::Child(child)))
            }
        }
    }
}

/// A module that is inspected.
enum Opened<'a> {
    Here {
        engines: &'a [Engine; 2],
        bytes: Vec<u8>,
        max_artifact: &'a ArtifactLimit,
    },
    Child(Child),
}

impl Opened<'_> {
    fn compile(self, order: &Order) -> Result<Artifact, Failed> {
        match self {
            Self::Child(child) => child.compile(order),
            Self::Here {
                engines,
                bytes,
                max_artifact,
            } => {
                let engine = &engines[usize::from(order.metered)];
                let component = inspect::is_component(&bytes);
                let start = Instant::now();
                let work = || precompile(engine, &bytes, component, max_artifact);
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                    .map_err(|panic| {
                        let words = panic_message(panic.as_ref());
                        Failed::this_time(Refusal::internal(format_args!(
                            "the compiler panicked: {words}"
                        )))
                    })?
                    .map(|bytes| Artifact::own(bytes, start.elapsed()))
                    .map_err(Failed::for_good)
            }
        }
    }
}

/// Starts children.
struct Nursery {
    program: PathBuf,
    setup: Setup,
    budget: Budget,
    /// What artefacts must be compatible with.
    compatible: [u64; 2],
}

impl Nursery {
    fn spawn(&self) -> std::io::Result<Child> {
        Child::spawn(&self.program, &self.setup, self.budget)
    }

    /// A child that is ready.
    fn ready(&self) -> Result<Child, String> {
        let child = self
            .spawn()
            .map_err(|error| format!("{} cannot be started: {error}", self.program.display()))?;
        self.greet(child)
    }

    fn greet(&self, mut child: Child) -> Result<Child, String> {
        if child.ready()?.compatible != self.compatible {
            return Err("the compile child is another version than the daemon".to_owned());
        }
        Ok(child)
    }

    /// `started` once it is ready, or another where it is not.
    fn make_ready(&self, started: Option<Child>) -> Result<Child, Failed> {
        let ready = match started.map(|child| self.greet(child)) {
            Some(Ok(child)) => Ok(child),
            // It may have been killed while it waited.
            Some(Err(_)) | None => self.ready(),
        };
        ready.map_err(|why| Failed::this_time(Refusal::internal(why)))
    }
}

/// The binary form of a module, and what it is. A binary went through the pre-checks before; what text says is seen here
/// first.
fn inspected<'a>(bytes: &'a [u8], rules: &Rules) -> Result<(Cow<'a, [u8]>, Inspection), Refusal> {
    let binary = inspect::binary(bytes)?;
    if let Cow::Owned(binary) = &binary {
        precheck::check(binary)?;
    }
    let inspection = inspect::inspect(&binary, rules)?;
    Ok((binary, inspection))
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
    let bytes = compiled.map_err(|error| {
        let why = quote(&format!("{error:#}"));
        Refusal::new(
            Reason::CompilationFailed,
            format!("the module cannot be compiled: {why}"),
        )
        .at("module")
    })?;
    let len = bytes.len() as u64;
    if len > most.bytes {
        let message = format!("the compiled module takes {len} bytes");
        return Err(compile_limit(&most.key, message, most.bytes).with("asked", len));
    }
    Ok(bytes)
}

/// A number that two engines have in common if one takes what the other compiles.
pub(super) fn compatibility(engine: &Engine) -> u64 {
    // Its keys are constants: the same in every process.
    let mut hasher = DefaultHasher::new();
    // What is told about the code is this version's: another may look for other things in a module.
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    INSPECTION.hash(&mut hasher);
    engine.precompile_compatibility_hash().hash(&mut hasher);
    hasher.finish()
}
