//! What a compile thread does: takes a module, inspects it, and compiles it if that is then ordered.

use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::Engine;

use super::artifact::Artifact;
use super::child::Child;
use super::confine;
use super::lanes::CompileLane;
use super::lease::CompileLease;
use super::nursery::Nursery;
use super::wire::Order;
use super::{
    ArtifactLimit, Bounds, Commission, Failed, Job, Session, crashed, inspected, nice, precheck,
    precompile, with_proposals,
};
use crate::refusal::Refusal;
use crate::sandbox::cpu_time::thread_time;
use crate::sandbox::features::Proposals;
use crate::sandbox::inspect::{self, Rules};
use crate::sandbox::inspection::Inspection;
use crate::sandbox::panic_message;
use crate::store::Blob;

/// How long a module that was inspected waits for the order to compile it. Whoever asked has it at once, or is gone.
const ORDER: Duration = Duration::from_secs(5);

/// Where the modules of a lane are compiled.
pub(super) struct Place {
    pub(super) lane: CompileLane,
    /// What a module may be expected to take. What a binary costs is known before; text has to be read first.
    pub(super) bounds: Bounds,
    pub(super) kind: PlaceKind,
}

/// In which process.
pub(super) enum PlaceKind {
    /// On the compile threads.
    Here {
        engines: [Engine; 2],
        rules: Arc<Rules>,
        max_artifact: ArtifactLimit,
    },
    /// In children.
    Child(Nursery),
}

impl Place {
    /// Serves modules, one after the other, for as long as there is a compiler.
    pub(super) fn work(&self, queued: &Mutex<Receiver<Job>>) {
        // Raising one's own nice value is always permitted; where it is not, compiling is merely less polite.
        let _ = rustix::process::setpriority_process(None, nice(self.lane));
        confine::block_signals();
        loop {
            if let PlaceKind::Child(nursery) = &self.kind {
                nursery.replenish();
            }
            let job = queued.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(job) = job else { return };
            // A panic is that job's failure, told to its caller by the sender that is dropped with it.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                self.serve(job);
            }));
        }
    }

    /// Inspects a module, says what it is, and compiles it if that is then ordered.
    fn serve(&self, job: Job) {
        let Job {
            wasm,
            placement,
            permit,
            inspected,
        } = job;
        let lease = Arc::clone(permit.lease());
        let (opened, commission) = match self.open(&wasm, &lease) {
            Err(failed) => {
                // Its tenant is charged before it hears of it. A caller that left does not need it.
                drop(permit);
                let _ = inspected.send(Err(failed));
                return;
            }
            Ok((inspection, opened)) => {
                let (orders, commission) = sync_channel::<Commission>(1);
                let session = Session {
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
    ) -> Result<(Inspection, Opened<'_>), Failed> {
        // What does not fit in memory is read only now: as many at once as there are compile threads.
        let wasm = wasm
            .read()
            .map_err(|error| Failed::this_time(Refusal::of_host("reading a module", &error)))?;
        if wasm.starts_with(b"\0asm") {
            precheck::check(&wasm, &self.bounds.budget).map_err(Failed::for_good)?;
        }
        match &self.kind {
            PlaceKind::Here {
                engines,
                rules,
                max_artifact,
            } => {
                let inspected = charged(lease, || inspected(&wasm, rules, &self.bounds));
                let (binary, inspection) = inspected.map_err(|why| why.failed(self.lane))?;
                let opened = Opened::Here {
                    engines,
                    proposals: inspection.proposals,
                    bytes: binary.into_owned(),
                    max_artifact,
                };
                Ok((inspection, opened))
            }
            PlaceKind::Child(nursery) => {
                // Text is read in the child only: a little of it can take a lot of memory to read.
                let mut child = nursery.take()?;
                let inspection = match child.inspect(&wasm, lease) {
                    // When memory runs out the kernel kills children first. Once more, where there may be room.
                    Err(failed) if !failed.for_good && child.was_killed() => {
                        child = nursery.take()?;
                        child.inspect(&wasm, lease)?
                    }
                    inspected => inspected?,
                };
                Ok((inspection, Opened::Child(child)))
            }
        }
    }
}

/// Does some work on this thread, and charges what it takes of the processor.
fn charged<T>(lease: &CompileLease, work: impl FnOnce() -> T) -> T {
    let before = thread_time();
    let done = work();
    lease.charge(thread_time().saturating_sub(before));
    done
}

/// A module that is inspected.
enum Opened<'a> {
    Here {
        engines: &'a [Engine; 2],
        proposals: Proposals,
        bytes: Vec<u8>,
        max_artifact: &'a ArtifactLimit,
    },
    Child(Child),
}

impl Opened<'_> {
    fn compile(self, order: &Order, lease: &CompileLease) -> Result<Artifact, Failed> {
        match self {
            Self::Child(child) => child.compile(order, lease),
            Self::Here {
                engines,
                proposals,
                bytes,
                max_artifact,
            } => {
                let engine = &engines[usize::from(order.metered)];
                let own = with_proposals(proposals, order.metered).map_err(Failed::for_good)?;
                let engine = own.as_ref().unwrap_or(engine);
                let component = inspect::is_component(&bytes);
                let start = Instant::now();
                let work = || precompile(engine, &bytes, component, max_artifact);
                charged(lease, || {
                    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
                })
                .map_err(|panic| Failed::for_good(crashed(&panic_message(panic.as_ref()))))?
                .map(|bytes| Artifact::own(bytes, start.elapsed()))
                .map_err(Failed::for_good)
            }
        }
    }
}
