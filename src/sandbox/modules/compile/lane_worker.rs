//! The work of a compile thread: it takes a module from its lane's queue, inspects it, and compiles
//! it if that is then ordered.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wasmtime::Engine;

use super::artifact::Artifact;
use super::child::CompileChild;
use super::child_spawner::ChildSpawner;
use super::confine;
use super::lanes::CompileLane;
use super::lease::CompileLease;
use super::wire::CompileCommand;
use super::{
    ArtifactLimit, CompileBounds, CompileError, CompileJob, CompileOrder, CompileSession, crashed,
    decode_and_inspect, nice, precheck, precompile, with_proposals,
};
use crate::model::refusal::Refusal;
use crate::sandbox::engine::features::ProposalSet;
use crate::sandbox::modules::inspect::{self, ImportRules};
use crate::sandbox::modules::inspection::Inspection;
use crate::sandbox::panic_message;
use crate::sandbox::schedule::cpu_time::thread_time;
use crate::store::Blob;
use crate::sync::lock;

/// How long a module that was inspected waits for the order to compile it. Whoever asked has the
/// order at once, or is gone.
const ORDER: Duration = Duration::from_secs(5);

/// What the threads of one lane work with: the lane, its bounds, and the backend that compiles.
pub(super) struct LaneWorker {
    pub(super) lane: CompileLane,
    /// What a module may be expected to take. The cost of a binary is known before it comes here;
    /// text has to be parsed first.
    pub(super) bounds: CompileBounds,
    pub(super) kind: CompileBackend,
}

/// The process in which a lane's modules are compiled.
pub(super) enum CompileBackend {
    /// Modules are compiled in the daemon, on the compile threads.
    InProcess {
        engines: [Engine; 2],
        rules: Arc<ImportRules>,
        max_artifact: ArtifactLimit,
    },
    /// Modules are compiled in compile children.
    Child(ChildSpawner),
}

impl LaneWorker {
    /// Serves one module after the other from the lane's queue, for as long as the
    /// [`super::Compiler`] exists.
    pub(super) fn work(&self, queued: &Mutex<Receiver<CompileJob>>) {
        // Raising one's own nice value is always permitted; where it is not, compiling is merely
        // less polite.
        let _ = rustix::process::setpriority_process(None, nice(self.lane));
        confine::block_signals();
        loop {
            if let CompileBackend::Child(spawner) = &self.kind {
                spawner.replenish();
            }
            let job = lock(queued).recv();
            let Ok(job) = job else { return };
            // A panic is a failure of that job. Its caller is told by the sender that is dropped
            // with the job.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.serve(job);
            }));
        }
    }

    /// Inspects a module, reports what it is, and compiles it if that is then ordered.
    fn serve(&self, job: CompileJob) {
        let CompileJob {
            wasm,
            placement,
            permit,
            inspected,
        } = job;
        let lease = Arc::clone(permit.lease());
        let (opened, commission) = match self.open(&wasm, &lease) {
            Err(failed) => {
                // The tenant is charged before it hears of the failure. A caller that has left does
                // not need the answer.
                drop(permit);
                let _ = inspected.send(Err(failed));
                return;
            }
            Ok((inspection, opened)) => {
                let (orders, commission) = sync_channel::<CompileOrder>(1);
                let session = CompileSession {
                    orders,
                    placement,
                    _permit: permit,
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
        let _ = done.send(opened.compile(&order, &lease));
    }

    fn open(
        &self,
        wasm: &Blob,
        lease: &Arc<CompileLease>,
    ) -> Result<(Inspection, PendingCompile<'_>), CompileError> {
        // A module that does not fit in memory is read only now, so that at most as many are read
        // at once as there are compile threads.
        let wasm = wasm.read().map_err(|error| {
            CompileError::transient(Refusal::of_host("reading a module", &error))
        })?;
        if wasm.starts_with(b"\0asm") {
            precheck::check(&wasm, &self.bounds.budget).map_err(CompileError::permanent)?;
        }
        match &self.kind {
            CompileBackend::InProcess {
                engines,
                rules,
                max_artifact,
            } => {
                let inspected = charged(lease, || decode_and_inspect(&wasm, rules, &self.bounds));
                let (binary, inspection) =
                    inspected.map_err(|why| why.into_compile_error(self.lane))?;
                let opened = PendingCompile::InProcess {
                    engines,
                    proposals: inspection.proposals,
                    bytes: binary.into_owned(),
                    max_artifact,
                };
                Ok((inspection, opened))
            }
            CompileBackend::Child(spawner) => {
                // Text is parsed in the child only: a little text can take a lot of memory to
                // parse.
                let mut child = spawner.take_ready()?;
                let inspection = match child.inspect(&wasm, lease) {
                    // When memory runs out, the kernel kills children first. It is tried once more,
                    // since there may be room now.
                    Err(failed) if !failed.is_permanent && child.was_killed() => {
                        child = spawner.take_ready()?;
                        child.inspect(&wasm, lease)?
                    }
                    inspected => inspected?,
                };
                Ok((inspection, PendingCompile::Child(child)))
            }
        }
    }
}

/// Does some work on this thread, and charges the processor time that it takes to the lease.
fn charged<T>(lease: &CompileLease, work: impl FnOnce() -> T) -> T {
    let before = thread_time();
    let done = work();
    lease.charge(thread_time().saturating_sub(before));
    done
}

/// A module that is inspected and waits to be compiled.
enum PendingCompile<'a> {
    InProcess {
        engines: &'a [Engine; 2],
        proposals: ProposalSet,
        bytes: Vec<u8>,
        max_artifact: &'a ArtifactLimit,
    },
    Child(CompileChild),
}

impl PendingCompile<'_> {
    fn compile(
        self,
        order: &CompileCommand,
        lease: &CompileLease,
    ) -> Result<Artifact, CompileError> {
        match self {
            Self::Child(child) => child.compile(order, lease),
            Self::InProcess {
                engines,
                proposals,
                bytes,
                max_artifact,
            } => {
                let engine = &engines[usize::from(order.metered)];
                let own =
                    with_proposals(proposals, order.metered).map_err(CompileError::permanent)?;
                let engine = own.as_ref().unwrap_or(engine);
                let component = inspect::is_component(&bytes);
                let start = Instant::now();
                let work = || precompile(engine, &bytes, component, max_artifact);
                charged(lease, || {
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                })
                .map_err(|panic| CompileError::permanent(crashed(&panic_message(panic.as_ref()))))?
                .map(|bytes| Artifact::from_bytes(bytes, start.elapsed()))
                .map_err(CompileError::permanent)
            }
        }
    }
}
