//! Where compile children come from: started ahead of need, checked before they see a module.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::child::Child;
use super::lanes::CompileLane;
use super::wire::Setup;
use super::{Budget, CompileSettings, Failed, RETRY, nice};
use crate::host_limit::HostLimit;
use crate::refusal::{Reason, Refusal};

/// Threads of a child at the most.
const MAX_CHILD_THREADS: usize = 4;

/// Why there is no child.
pub(super) struct NoChild {
    /// In full, for the log.
    pub(super) why: String,
    /// The limit that was met, where it is known.
    limit: Option<HostLimit>,
}

/// Starts the children of a lane.
pub(super) struct Nursery {
    program: PathBuf,
    setup: Setup,
    budget: Budget,
    lane: CompileLane,
    /// What artefacts must be compatible with.
    compatible: [u64; 2],
    /// Those that were started ahead of need, and how many there are to be.
    waiting: Mutex<Vec<Child>>,
    stock: usize,
}

impl Nursery {
    /// Of `program`, whose artefacts are to be `compatible` with the daemon's engines.
    pub(super) fn new(
        program: &Path,
        settings: &CompileSettings,
        lane: CompileLane,
        compatible: [u64; 2],
    ) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let budget = settings.budget(lane);
        Self {
            program: program.to_owned(),
            setup: Setup {
                memory: budget.memory,
                cpu: budget.timeout,
                artifact: settings.artifact.clone(),
                threads: threads.min(MAX_CHILD_THREADS),
                nice: nice(lane),
                bounds: settings.bounds(lane),
            },
            budget,
            lane,
            compatible,
            waiting: Mutex::default(),
            stock: match lane {
                CompileLane::Small => 1,
                CompileLane::Large => settings.concurrency as usize,
            },
        }
    }

    /// Keeps a child for whoever needs one.
    pub(super) fn keep(&self, child: Child) {
        self.waiting().push(child);
    }

    /// Starts a child ahead of need, where one is missing. One that cannot be started now is tried again for the module
    /// that needs it, which is told why.
    pub(super) fn replenish(&self) {
        let mut waiting = self.waiting();
        if waiting.len() < self.stock {
            waiting.extend(self.spawn());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Child>> {
        // Nothing panics while it is held.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a child, which makes itself ready.
    fn spawn(&self) -> std::io::Result<Child> {
        Child::spawn(&self.program, &self.setup, self.budget, self.lane)
    }

    /// A child that is ready.
    pub(super) fn ready(&self) -> Result<Child, NoChild> {
        let child = self.spawn().map_err(|error| NoChild {
            why: format!("{} cannot be started: {error}", self.program.display()),
            limit: HostLimit::of(&error),
        })?;
        self.greet(child).map_err(|why| {
            // What it said itself before it ended.
            let said = why.rsplit_once("ringfence: ");
            let limit = said.and_then(|(_, words)| HostLimit::of_words(words));
            NoChild { why, limit }
        })
    }

    fn greet(&self, mut child: Child) -> Result<Child, String> {
        if child.ready()?.compatible != self.compatible {
            return Err("the compile child is another version than the daemon".to_owned());
        }
        Ok(child)
    }

    /// A child that was started ahead of need, once it is ready, or another where it is not.
    pub(super) fn take(&self) -> Result<Child, Failed> {
        let started = self.waiting().pop();
        let ready = match started.map(|child| self.greet(child)) {
            Some(Ok(child)) => Ok(child),
            // It may have been killed while it waited.
            Some(Err(_)) | None => self.ready(),
        };
        ready.map_err(|NoChild { why, limit }| {
            // What the host does not give now it may give later, and others' runs go on meanwhile.
            tracing::error!(why, "there is no process to compile a module");
            const WORK: &str = "starting a process that compiles the module";
            Failed::this_time(match limit {
                Some(limit) => limit.refusal(WORK),
                None => Refusal::new(
                    Reason::RuntimeUnavailable,
                    format!("{WORK} failed; the daemon's log tells why"),
                )
                .retry_after(RETRY),
            })
        })
    }
}
