//! Compilation, behind the seam that a compile child can take: bytes in, artefact out, on threads of its own.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::oneshot;
use wasmtime::Engine;

use super::inspect::{self, Inspection, Rules};
use crate::refusal::{Reason, Refusal, quote};

/// How much the threads yield to all else: compiling must never starve runs.
const NICE: i32 = 15;
/// The stack of a compile thread. Cranelift recurses with the nesting of what it compiles.
const STACK: usize = 64 << 20;
/// What a caller is told to wait when too many modules wait to be compiled.
const RETRY: Duration = Duration::from_secs(1);

/// Native code that this daemon compiled, ready to be mapped into an engine.
pub(super) struct Artifact {
    bytes: Vec<u8>,
    /// How long it took.
    pub took: Duration,
}

impl Artifact {
    /// Of a module that an engine of this process holds.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        Self {
            bytes,
            took: Duration::ZERO,
        }
    }

    /// Maps a core module into `engine`.
    pub(super) fn module(&self, engine: &Engine) -> wasmtime::Result<wasmtime::Module> {
        // SAFETY: `bytes` is what this process's compiler returned, held in private memory since: the field is
        // private, and only `Compiler::compile` and `Artifact::of` (a module's own serialisation) fill it.
        #[expect(unsafe_code, reason = "native code that this process compiled itself")]
        let module = unsafe { wasmtime::Module::deserialize(engine, &self.bytes) }?;
        module.initialize_copy_on_write_image()?;
        Ok(module)
    }

    /// Maps a component into `engine`.
    pub(super) fn component(
        &self,
        engine: &Engine,
    ) -> wasmtime::Result<wasmtime::component::Component> {
        // SAFETY: as in `module`.
        #[expect(unsafe_code, reason = "native code that this process compiled itself")]
        let component =
            unsafe { wasmtime::component::Component::deserialize(engine, &self.bytes) }?;
        component.initialize_copy_on_write_image()?;
        Ok(component)
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Inspects and compiles modules, a few at a time, the rest in a bounded queue.
pub(super) struct Compiler {
    jobs: SyncSender<Job>,
    rules: Arc<Rules>,
}

impl Compiler {
    /// With `concurrency` threads and room for `queue` waiting jobs.
    pub(super) fn new(concurrency: u32, queue: u32, rules: Rules) -> std::io::Result<Self> {
        let (jobs, queued) = sync_channel::<Job>(queue as usize);
        let queued = Arc::new(Mutex::new(queued));
        for i in 0..concurrency {
            let queued = Arc::clone(&queued);
            std::thread::Builder::new()
                .name(format!("compile-{i}"))
                .stack_size(STACK)
                .spawn(move || work(&queued))?;
        }
        Ok(Self {
            jobs,
            rules: Arc::new(rules),
        })
    }

    /// Validates `wasm` and reads what it is.
    ///
    /// # Errors
    /// As [`inspect::inspect`], and `QUEUE_FULL`.
    pub(super) async fn inspect(&self, wasm: Bytes) -> Result<Inspection, Refusal> {
        let rules = Arc::clone(&self.rules);
        self.run(move || inspect::inspect(&inspect::binary(&wasm)?, &rules))
            .await?
    }

    /// Compiles `wasm`, which was inspected.
    ///
    /// # Errors
    /// `COMPILATION_FAILED`, and `QUEUE_FULL`.
    pub(super) async fn compile(
        &self,
        engine: Engine,
        wasm: Bytes,
        component: bool,
    ) -> Result<Artifact, Refusal> {
        self.run(move || {
            let wasm = inspect::binary(&wasm)?;
            let start = Instant::now();
            let compiled = if component {
                engine.precompile_component(&wasm)
            } else {
                engine.precompile_module(&wasm)
            };
            let bytes = compiled.map_err(|error| {
                let why = quote(&format!("{error:#}"));
                Refusal::new(
                    Reason::CompilationFailed,
                    format!("the module cannot be compiled: {why}"),
                )
                .at("module")
            })?;
            Ok(Artifact {
                bytes,
                took: start.elapsed(),
            })
        })
        .await?
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (done, result) = oneshot::channel();
        let job: Job = Box::new(move || {
            // A caller that left does not need it.
            let _ = done.send(job());
        });
        self.jobs.try_send(job).map_err(|error| match error {
            TrySendError::Full(_) => Refusal::new(
                Reason::QueueFull,
                "too many modules wait to be compiled (compile.queue)",
            )
            .retry_after(RETRY),
            TrySendError::Disconnected(_) => Refusal::internal("the compile threads are gone"),
        })?;
        result
            .await
            .map_err(|_| Refusal::internal("the compiler panicked"))
    }
}

fn work(queued: &Mutex<Receiver<Job>>) {
    // Raising one's own nice value is always permitted; where it is not, compiling is merely less polite.
    let _ = rustix::process::setpriority_process(None, NICE);
    loop {
        let job = queued.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = job else { return };
        // A panic is that job's failure, told to its caller by the sender that is dropped with it.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    }
}
