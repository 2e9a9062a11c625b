//! The resource limits of the process (`ulimit`): what they are, what the configuration needs of
//! them, and what a lower one leads to.
//!
//! They are checked once, when the daemon starts. A limit that lets the daemon do nothing at all is
//! an error then; one that it may reach later is logged as a warning. An operation that reaches a
//! limit later fails for its own caller only.

use std::fmt;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{self, Config, StoreUrl};

/// The least number of file descriptors with which anything can be served: those of the runtime,
/// the listeners, and one compilation.
const FEWEST_DESCRIPTORS: u64 = 64;
/// File descriptors for each compile child: its socket, its artefact, its output, and the handle
/// that waits for its end.
const DESCRIPTORS_A_CHILD: u64 = 6;
/// File descriptors that the daemon itself needs.
const OWN_DESCRIPTORS: u64 = 64;
/// The share of the file descriptors, as a fraction, for connections, the store and compilations.
/// Guests have a share of the same size.
const PARTS: (u64, u64) = (3, 8);
/// The files that each run should be able to open, whatever other runs do.
const DESCRIPTORS_A_RUN: u64 = 4;
/// The smallest stack, in bytes, of the first thread, which reads the configuration.
const SMALLEST_STACK: u64 = 512 << 10;
/// The stack, in bytes, that the first thread's limit is raised to if that is allowed.
const STACK: u64 = 8 << 20;
/// Bytes of private memory that a daemon needs besides the stacks of the threads that compile.
const LEAST_DATA: u64 = 96 << 20;
/// Bytes of stack of each thread that compiles.
const COMPILE_STACK: u64 = 64 << 20;
/// Bytes of address space for the code, the threads and one memory of a guest, which takes 4 GiB
/// with its guard regions.
const LEAST_SPACE: u64 = 8 << 30;
/// Bytes of address space of one slot of an instance pool: that of two memories.
const SPACE_A_SLOT: u64 = 2 * ((4 << 30) + (64 << 20));
/// Threads in addition to those that are counted one by one.
const OTHER_THREADS: u64 = 16;
/// The most threads of a compile child, counting the child itself.
const THREADS_A_CHILD: u64 = 6;

/// The result of the check of the limits at the start.
#[derive(Debug, Default)]
pub struct ProcessLimits {
    /// All limits, formatted for the log.
    pub told: String,
    /// A warning for each limit that is lower than the configuration needs, with what that leads
    /// to.
    pub warnings: Vec<String>,
}

/// The error of a limit that lets nothing run.
#[derive(Debug, thiserror::Error)]
#[error("{limit} is {now}: at least {needed} {what} are needed to run anything")]
pub struct ProcessLimitError {
    limit: ProcessLimit,
    now: u64,
    needed: u64,
    /// What is limited, such as "open files".
    what: &'static str,
}

/// A resource limit of the process.
#[derive(Clone, Copy, Debug)]
struct ProcessLimit {
    resource: Resource,
    /// Its name in setrlimit(2); `flag` is its option of the shell's `ulimit`.
    name: &'static str,
    flag: &'static str,
}

/// Creates the description of a limit.
const fn limit(resource: Resource, name: &'static str, flag: &'static str) -> ProcessLimit {
    ProcessLimit {
        resource,
        name,
        flag,
    }
}

const DESCRIPTORS: ProcessLimit = limit(Resource::Nofile, "RLIMIT_NOFILE", "-n");
const FILE_SIZE: ProcessLimit = limit(Resource::Fsize, "RLIMIT_FSIZE", "-f");
const SPACE: ProcessLimit = limit(Resource::As, "RLIMIT_AS", "-v");
const DATA: ProcessLimit = limit(Resource::Data, "RLIMIT_DATA", "-d");
const TASKS: ProcessLimit = limit(Resource::Nproc, "RLIMIT_NPROC", "-u");
const STACK_SIZE: ProcessLimit = limit(Resource::Stack, "RLIMIT_STACK", "-s");
const LOCKED: ProcessLimit = limit(Resource::Memlock, "RLIMIT_MEMLOCK", "-l");
const CPU: ProcessLimit = limit(Resource::Cpu, "RLIMIT_CPU", "-t");
const CORE: ProcessLimit = limit(Resource::Core, "RLIMIT_CORE", "-c");
const ALL: [ProcessLimit; 9] = [
    DESCRIPTORS,
    FILE_SIZE,
    SPACE,
    DATA,
    TASKS,
    STACK_SIZE,
    LOCKED,
    CPU,
    CORE,
];

impl ProcessLimit {
    /// Returns the soft limit that is in force; `None` means no limit.
    fn now(self) -> Option<u64> {
        getrlimit(self.resource).current
    }

    /// Returns the limit that is in force if it is lower than `needed`.
    fn below(self, needed: u64) -> Option<u64> {
        self.now().filter(|now| *now < needed)
    }

    /// Checks that the limit is no lower than what is needed to run anything.
    fn require(self, needed: u64, what: &'static str) -> Result<(), ProcessLimitError> {
        match self.below(needed) {
            Some(now) => Err(ProcessLimitError {
                limit: self,
                now,
                needed,
                what,
            }),
            None => Ok(()),
        }
    }

    /// Raises the soft limit to the hard limit, but no further than `enough`.
    fn raise(self, enough: u64) {
        let Rlimit { current, maximum } = getrlimit(self.resource);
        let Some(now) = current else { return };
        let to = maximum.unwrap_or(enough).min(enough);
        if now < to {
            let raised = Rlimit {
                current: Some(to),
                maximum,
            };
            // The value that results is logged with the others.
            let _ = setrlimit(self.resource, raised);
        }
    }
}

impl fmt::Display for ProcessLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (ulimit {})", self.name, self.flag)
    }
}

/// Raises the limits of open files and of the first thread's stack as far as the host allows: the
/// configuration bounds how many files are opened.
pub fn raise() {
    DESCRIPTORS.raise(u64::MAX);
    STACK_SIZE.raise(STACK);
}

/// Checks the stack limit of the first thread, which everything else needs. [`raise`] is called
/// before.
///
/// # Errors
/// The stack is too small; the error says what the limit is and what is needed.
pub fn check_stack() -> Result<(), ProcessLimitError> {
    STACK_SIZE.require(SMALLEST_STACK, "bytes of stack")
}

/// Checks the limits of this process against the configuration. [`raise`] is called before.
///
/// # Errors
/// A limit lets nothing run; the error says which, what it is, and what is needed.
pub fn check(config: &Config) -> Result<ProcessLimits, ProcessLimitError> {
    DESCRIPTORS.require(FEWEST_DESCRIPTORS, "open files")?;
    SPACE.require(LEAST_SPACE, "bytes of address space")?;
    let least = LEAST_DATA + children(config) * COMPILE_STACK;
    DATA.require(least, "bytes of memory of its own")?;
    let checks = [descriptors, file_size, space, data, tasks, cpu];
    Ok(ProcessLimits {
        told: ALL.map(shown).join(" "),
        warnings: checks.iter().filter_map(|check| check(config)).collect(),
    })
}

/// Formats the limits that are set, to add to an error of the host that does not name the limit
/// that was reached. Returns `None` if there are none.
pub fn in_force() -> Option<String> {
    let some = [DESCRIPTORS, SPACE, DATA, TASKS, FILE_SIZE];
    let some = some.into_iter().filter(|limit| limit.now().is_some());
    let told: Vec<String> = some.map(shown).collect();
    (!told.is_empty()).then(|| told.join(" "))
}

/// Formats one limit for the log.
fn shown(limit: ProcessLimit) -> String {
    let name = limit.name.trim_start_matches("RLIMIT_").to_lowercase();
    match limit.now() {
        Some(now) => format!("{name}={now}"),
        None => format!("{name}=unlimited"),
    }
}

/// Warns if the open files may run out.
fn descriptors(config: &Config) -> Option<String> {
    let admin = match config.admin.listen.is_empty() {
        true => 0,
        false => u64::from(config.admin.max_connections),
    };
    let connections = u64::from(config.server.max_connections) + admin;
    let compiling = DESCRIPTORS_A_CHILD * children(config);
    let own = connections + u64::from(config.store.uploads) + compiling + OWN_DESCRIPTORS;
    let runs = u64::from(config.admission.slots) * DESCRIPTORS_A_RUN;
    let needed = own.max(runs).saturating_mul(PARTS.1) / PARTS.0;
    let now = DESCRIPTORS.below(needed)?;
    Some(format!(
        "{DESCRIPTORS} is {now} and cannot be raised; server.max_connections = {}, store.uploads = {}, compile.concurrency = {} and admission.slots = {} need {needed}: past it new connections wait or are closed, and runs and uploads that open files are refused",
        config.server.max_connections,
        config.store.uploads,
        config.compile.concurrency,
        config.admission.slots,
    ))
}

/// Warns if a module or an artefact may exceed the largest file.
fn file_size(config: &Config) -> Option<String> {
    let compile = &config.compile;
    let needed = compile.max_module.max(compile.max_artifact);
    let now = FILE_SIZE.below(needed.0)?;
    let where_to = match config.store.url {
        StoreUrl::Directory(_) => "store.url",
        StoreUrl::Memory | StoreUrl::Objects(_) => "store.spool",
    };
    Some(format!(
        "{FILE_SIZE} is {now} bytes; compile.max_module = {} and compile.max_artifact = {} need {}: larger modules are refused ({where_to}), writes of guests beyond it fail with EFBIG, and a log or an audit that is a file stops growing there",
        compile.max_module, compile.max_artifact, needed.0,
    ))
}

/// Warns if the address space is too small for the instance pool.
fn space(config: &Config) -> Option<String> {
    let slots = config.pool_slots();
    let needed = LEAST_SPACE.saturating_add(u64::from(slots).saturating_mul(SPACE_A_SLOT));
    let now = SPACE.below(needed)?;
    Some(format!(
        "{SPACE} is {now} bytes; a pool of {slots} slots (engine.pool_slots or admission.slots, and sessions.max) reserves {needed}, of which most is never used: where that is not to be had instances are allocated on demand, which is slower, and runs whose memories find no room are refused"
    ))
}

/// Warns if the memory budgets exceed the private memory that the process may have.
fn data(config: &Config) -> Option<String> {
    let needed = config
        .engine
        .cache_budget
        .0
        .saturating_add(config.server.inflight_request_bytes.0)
        .saturating_add(config.server.inflight_answer_bytes.0)
        .saturating_add(config.runs.log_budget.0);
    let now = DATA.below(needed)?;
    Some(format!(
        "{DATA} is {now} bytes; engine.cache_budget, server.inflight_request_bytes, server.inflight_answer_bytes and runs.log_budget alone may take {needed}: a daemon that gets no memory ends"
    ))
}

/// Warns if the user may not have as many threads and processes as the daemon may start.
fn tasks(config: &Config) -> Option<String> {
    if rustix::process::geteuid().is_root() {
        // The kernel does not apply this limit to root.
        return None;
    }
    let needed = threads(config) + children(config) * THREADS_A_CHILD;
    let now = TASKS.below(needed)?;
    Some(format!(
        "{TASKS} is {now}, for all processes of this user; the daemon needs up to {needed} threads and processes (server.threads, engine.guest_threads, compile.concurrency, compile.max_preempted): past it modules that have to be compiled are refused, and work waits for threads that are there"
    ))
}

/// Warns if the processor time is limited at all.
fn cpu(_config: &Config) -> Option<String> {
    let now = CPU.now()?;
    Some(format!(
        "{CPU} is {now} s: the kernel ends the daemon, with all its runs, when it has used that much processor time"
    ))
}

/// Returns how many compile children there may be at once.
fn children(config: &Config) -> u64 {
    let compile = &config.compile;
    u64::from(compile.concurrency) + u64::from(compile.max_preempted) + 1
}

/// Returns about how many threads a daemon has from its start on.
pub fn threads(config: &Config) -> u64 {
    let own = config::cores() + config.serving_threads() + config.guest_threads();
    let admin = u64::from(!config.admin.listen.is_empty());
    own as u64 + children(config) + admin + OTHER_THREADS
}
