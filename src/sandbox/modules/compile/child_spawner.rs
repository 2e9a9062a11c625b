//! Starts compile children ahead of need, and checks them before they see a module.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use super::child::CompileChild;
use super::lanes::CompileLane;
use super::wire::ChildSetup;
use super::{CompileBudget, CompileError, CompileSettings, RETRY, nice};
use crate::host_limit::HostLimit;
use crate::metrics::Level;
use crate::model::refusal::{Reason, Refusal};
use crate::sync::lock;

/// The most threads that one child compiles with.
const MAX_CHILD_THREADS: usize = 4;

/// Why a compile child could not be had.
pub(super) struct NoChild {
    /// The reason in full, for the log.
    pub(super) why: String,
    /// The limit of the host that was met; `None` where that is not known.
    limit: Option<HostLimit>,
}

/// Starts the children of one lane, and keeps a stock of them.
pub(super) struct ChildSpawner {
    program: PathBuf,
    setup: ChildSetup,
    budget: CompileBudget,
    lane: CompileLane,
    /// The hashes, unmetered and metered, that a child has to report for its artefacts to be
    /// accepted.
    compatible: [u64; 2],
    /// Children that were started ahead of need.
    idle: Mutex<Vec<CompileChild>>,
    /// How many children are kept ahead of need.
    stock: usize,
    /// The number of children of all lanes.
    alive: Level,
}

impl ChildSpawner {
    /// Creates a spawner for children that execute `program`, whose artefacts have to be
    /// `compatible` with the daemon's engines. They count towards `alive`.
    pub(super) fn new(
        program: &Path,
        settings: &CompileSettings,
        lane: CompileLane,
        compatible: [u64; 2],
        alive: &Level,
    ) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let budget = settings.budget(lane);
        Self {
            program: program.to_owned(),
            setup: ChildSetup {
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
            idle: Mutex::default(),
            stock: match lane {
                CompileLane::Small => 1,
                CompileLane::Large => settings.concurrency as usize,
            },
            alive: alive.clone(),
        }
    }

    /// Keeps a child for the next module that needs one.
    pub(super) fn keep(&self, child: CompileChild) {
        self.waiting().push(child);
    }

    /// Starts a child ahead of need if one is missing. If it cannot be started now, that is tried
    /// again for the module that needs it, whose caller is told why.
    pub(super) fn replenish(&self) {
        let mut waiting = self.waiting();
        if waiting.len() < self.stock {
            waiting.extend(self.spawn());
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<CompileChild>> {
        lock(&self.idle)
    }

    /// Starts a child, which makes itself ready.
    fn spawn(&self) -> std::io::Result<CompileChild> {
        CompileChild::spawn(
            &self.program,
            &self.setup,
            self.budget,
            self.lane,
            &self.alive,
        )
    }

    /// Starts a child and waits until it is ready.
    pub(super) fn spawn_ready(&self) -> Result<CompileChild, NoChild> {
        let child = self.spawn().map_err(|error| NoChild {
            why: format!("{} cannot be started: {error}", self.program.display()),
            limit: HostLimit::of(&error),
        })?;
        self.handshake(child).map_err(|why| {
            // This is what the child said itself before it ended.
            let said = why.rsplit_once("ringfence: ");
            let limit = said.and_then(|(_, words)| HostLimit::of_words(words));
            NoChild { why, limit }
        })
    }

    fn handshake(&self, mut child: CompileChild) -> Result<CompileChild, String> {
        if child.wait_until_ready()?.compatible != self.compatible {
            return Err("the compile child is another version than the daemon".to_owned());
        }
        Ok(child)
    }

    /// Returns a child that was started ahead of need, once it is ready, or starts another if there
    /// is none that is.
    pub(super) fn take_ready(&self) -> Result<CompileChild, CompileError> {
        let started = self.waiting().pop();
        let ready = match started.map(|child| self.handshake(child)) {
            Some(Ok(child)) => Ok(child),
            // The child may have been killed while it waited.
            Some(Err(_)) | None => self.spawn_ready(),
        };
        ready.map_err(|NoChild { why, limit }| {
            // What the host does not give now it may give later, and others' runs go on meanwhile.
            tracing::error!(why, "there is no process to compile a module");
            const WORK: &str = "starting a process that compiles the module";
            CompileError::transient(match limit {
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
