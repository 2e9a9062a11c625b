//! Resource limits of the process (`ulimit`): what they are, what the configuration needs of them, and what comes of
//! one that is lower.
//!
//! They are looked at once, when the daemon starts. One that lets it do nothing at all is an error then; one that it may
//! meet later is told in the log. What meets it then is the error of one caller.

use std::fmt;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{self, Config, StoreUrl};

/// Descriptors without which nothing can be served: those of the runtime, the listeners, and one compilation.
const FEWEST_DESCRIPTORS: u64 = 64;
/// Descriptors of a compile child: its socket, its artefact, what it says, and what waits for it.
const DESCRIPTORS_A_CHILD: u64 = 6;
/// Descriptors of the daemon itself.
const OWN_DESCRIPTORS: u64 = 64;
/// Connections, the store and compilations have three of so many parts of the descriptors, and guests as many.
const PARTS: (u64, u64) = (3, 8);
/// Files that each run should be able to open, whatever others do.
const DESCRIPTORS_A_RUN: u64 = 4;
/// The stack that the first thread needs, which reads the configuration.
const SMALLEST_STACK: u64 = 512 << 10;
/// The stack that it is given where it may have it.
const STACK: u64 = 8 << 20;
/// Memory of its own that a daemon has beside the stacks of the threads that compile.
const LEAST_DATA: u64 = 96 << 20;
/// The stack of each of those.
const COMPILE_STACK: u64 = 64 << 20;
/// Address space for the code, the threads and one memory of a guest, which is 4 GiB with what guards it.
const LEAST_SPACE: u64 = 8 << 30;
/// Address space of a slot of a pool: that of two memories.
const SPACE_A_SLOT: u64 = 2 * ((4 << 30) + (64 << 20));
/// Threads beside those that are counted.
const OTHER_THREADS: u64 = 16;
/// Threads of a compile child at the most, with the child itself.
const THREADS_A_CHILD: u64 = 6;

/// What is known of the limits.
#[derive(Debug, Default)]
pub struct ProcessLimits {
    /// All of them, for the log.
    pub told: String,
    /// What is lower than the configuration needs, and what comes of it.
    pub warnings: Vec<String>,
}

/// One limit.
#[derive(Clone, Copy)]
struct Limit {
    resource: Resource,
    /// As the manual has it, and as a shell does.
    name: &'static str,
    flag: &'static str,
}

const fn limit(resource: Resource, name: &'static str, flag: &'static str) -> Limit {
    Limit {
        resource,
        name,
        flag,
    }
}

const DESCRIPTORS: Limit = limit(Resource::Nofile, "RLIMIT_NOFILE", "-n");
const FILE_SIZE: Limit = limit(Resource::Fsize, "RLIMIT_FSIZE", "-f");
const SPACE: Limit = limit(Resource::As, "RLIMIT_AS", "-v");
const DATA: Limit = limit(Resource::Data, "RLIMIT_DATA", "-d");
const TASKS: Limit = limit(Resource::Nproc, "RLIMIT_NPROC", "-u");
const STACK_SIZE: Limit = limit(Resource::Stack, "RLIMIT_STACK", "-s");
const LOCKED: Limit = limit(Resource::Memlock, "RLIMIT_MEMLOCK", "-l");
const CPU: Limit = limit(Resource::Cpu, "RLIMIT_CPU", "-t");
const CORE: Limit = limit(Resource::Core, "RLIMIT_CORE", "-c");
const ALL: [Limit; 9] = [
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

impl Limit {
    /// What is in force; `None`: no limit.
    fn now(self) -> Option<u64> {
        getrlimit(self.resource).current
    }

    /// What is in force, where that is less than `needed`.
    fn below(self, needed: u64) -> Option<u64> {
        self.now().filter(|now| *now < needed)
    }

    /// Requires it to be no less than what is needed to run anything.
    fn require(self, needed: u64, what: &str) -> Result<(), String> {
        match self.below(needed) {
            Some(now) => Err(format!(
                "{self} is {now}: at least {needed} {what} are needed to run anything"
            )),
            None => Ok(()),
        }
    }

    /// Raises what is in force to what it may be at the most, but no further than `enough`.
    fn raise(self, enough: u64) {
        let Rlimit { current, maximum } = getrlimit(self.resource);
        let Some(now) = current else { return };
        let to = maximum.unwrap_or(enough).min(enough);
        if now < to {
            let raised = Rlimit {
                current: Some(to),
                maximum,
            };
            // What it stays at is told with the others.
            let _ = setrlimit(self.resource, raised);
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (ulimit {})", self.name, self.flag)
    }
}

/// Raises the limits of open files and of the first thread's stack as far as the host lets this process: what is opened
/// is bounded by the configuration.
pub fn raise() {
    DESCRIPTORS.raise(u64::MAX);
    STACK_SIZE.raise(STACK);
}

/// Looks at the stack of the first thread, which everything else needs. It is to have been raised.
///
/// # Errors
/// Where it is too small: what it is, and what is needed.
pub fn check_stack() -> Result<(), String> {
    STACK_SIZE.require(SMALLEST_STACK, "bytes of stack")
}

/// Looks at the limits of this process, which are to have been raised.
///
/// # Errors
/// Where one of them lets nothing run: which, what it is, and what is needed.
pub fn check(config: &Config) -> Result<ProcessLimits, String> {
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

/// The limits that there are, to stand beside an error of the host's that does not name the one that was met.
pub fn in_force() -> Option<String> {
    let some = [DESCRIPTORS, SPACE, DATA, TASKS, FILE_SIZE];
    let some = some.into_iter().filter(|limit| limit.now().is_some());
    let told: Vec<String> = some.map(shown).collect();
    (!told.is_empty()).then(|| told.join(" "))
}

fn shown(limit: Limit) -> String {
    let name = limit.name.trim_start_matches("RLIMIT_").to_lowercase();
    match limit.now() {
        Some(now) => format!("{name}={now}"),
        None => format!("{name}=unlimited"),
    }
}

fn descriptors(config: &Config) -> Option<String> {
    let connections = u64::from(config.server.max_connections);
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

fn space(config: &Config) -> Option<String> {
    let slots = match config.engine.pool_slots {
        0 => config.admission.slots,
        slots => slots,
    };
    let needed = LEAST_SPACE.saturating_add(u64::from(slots).saturating_mul(SPACE_A_SLOT));
    let now = SPACE.below(needed)?;
    Some(format!(
        "{SPACE} is {now} bytes; a pool of {slots} slots (engine.pool_slots, or admission.slots) reserves {needed}, of which most is never used: where that is not to be had instances are allocated on demand, which is slower, and runs whose memories find no room are refused"
    ))
}

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

fn tasks(config: &Config) -> Option<String> {
    if rustix::process::geteuid().is_root() {
        // The kernel does not count root's.
        return None;
    }
    let needed = threads(config) + children(config) * THREADS_A_CHILD;
    let now = TASKS.below(needed)?;
    Some(format!(
        "{TASKS} is {now}, for all processes of this user; the daemon needs up to {needed} threads and processes (server.threads, engine.guest_threads, compile.concurrency, compile.max_preempted): past it modules that have to be compiled are refused, and work waits for threads that are there"
    ))
}

fn cpu(_config: &Config) -> Option<String> {
    let now = CPU.now()?;
    Some(format!(
        "{CPU} is {now} s: the kernel ends the daemon, with all its runs, when it has used that much processor time"
    ))
}

/// Compile children at once.
fn children(config: &Config) -> u64 {
    let compile = &config.compile;
    u64::from(compile.concurrency) + u64::from(compile.max_preempted) + 1
}

/// Threads that a daemon has from its start on, about.
pub fn threads(config: &Config) -> u64 {
    let own = config::cores() + config.serving_threads() + config.guest_threads();
    own as u64 + children(config) + OTHER_THREADS
}
