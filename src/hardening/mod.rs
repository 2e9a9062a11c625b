//! Self-confinement of the daemon before it accepts any input. It gives up root, capabilities, new
//! privileges and access to all files except those that are configured. The threads that serve, and
//! those that execute guests, also give up all system calls except those that they make.
//!
//! This has to happen before any other thread exists, since threads inherit it. Health reports
//! which protections are in force.

mod landlock_rules;
mod real_paths;
mod seccomp;
mod user;

use std::path::PathBuf;
use std::sync::OnceLock;

use landlock::RulesetError;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::CapabilitySets;

use self::seccomp::SeccompError;
use crate::config::{Config, HardeningMode};

/// The protections that are in force; empty until [`apply`] has succeeded, or if hardening is off.
static STATE: OnceLock<State> = OnceLock::new();

/// The protections that are in force in this process.
#[derive(Debug, Default)]
struct State {
    walls: Vec<&'static str>,
    seccomp: Option<seccomp::Filters>,
}

/// What could not be confined, or made accessible, on this host.
#[derive(Debug, Default)]
pub struct HardeningGaps {
    /// The protections that are missing, each with the reason.
    pub walls: Vec<String>,
    /// The configured paths that cannot be made accessible, each with the reason.
    pub paths: Vec<String>,
}

/// Paths that the daemon may reach besides those in its configuration.
#[derive(Debug, Default)]
pub struct ExtraPaths {
    /// Files that it may read.
    pub read: Vec<PathBuf>,
    /// Files and folders of certificates, which it may read if it connects to other hosts.
    pub trust: Vec<PathBuf>,
    /// Folders that it may write to.
    pub write: Vec<PathBuf>,
}

/// Why the daemon cannot be confined as the configuration requires.
#[derive(Debug, thiserror::Error)]
pub enum HardeningError {
    /// The configured user cannot be assumed.
    #[error("hardening.user = {user}: {source}")]
    User {
        /// The user and the group, as they are configured.
        user: String,
        /// What the kernel says.
        source: Errno,
    },
    /// All protections are required, and some are missing.
    #[error("hardening.mode is \"require\", and this host or user lacks: {}", walls.join("; "))]
    Missing {
        /// The protections that are missing, each with the reason.
        walls: Vec<String>,
    },
}

/// Why a protection is not in force.
#[derive(Debug, thiserror::Error)]
enum WallError {
    #[error("started as root without hardening.user")]
    RootWithoutUser,
    #[error(transparent)]
    Kernel(#[from] Errno),
    #[error("some stay: {0:?}")]
    CapabilitiesStay(CapabilitySets),
    #[error("the kernel has no Landlock")]
    NoLandlock,
    #[error(transparent)]
    Landlock(#[from] RulesetError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// Confines this process as `config` says, except for the paths in `besides`, and returns what
/// could not be confined.
///
/// # Errors
/// All protections are required and some are missing; the error says which. Or the configured user
/// could not be assumed.
pub fn apply(config: &Config, besides: &ExtraPaths) -> Result<HardeningGaps, HardeningError> {
    let mode = config.hardening.mode;
    if mode == HardeningMode::Off {
        return Ok(HardeningGaps::default());
    }
    let mut state = State::default();
    let HardeningGaps {
        mut walls,
        mut paths,
    } = HardeningGaps::default();
    let mut wall =
        |state: &mut State, name: &'static str, done: Result<&'static str, WallError>| match done {
            Ok(done) => state.walls.push(done),
            Err(why) => walls.push(format!("{name}: {why}")),
        };
    // Core dumps are off, so that no guest's memory is written to a disk when the daemon is killed.
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let _ = setrlimit(Resource::Core, none);
    wall(
        &mut state,
        "user",
        user::become_user(&config.hardening.user)?,
    );
    wall(&mut state, "no_new_privs", user::no_new_privileges());
    wall(&mut state, "capabilities", user::no_capabilities());
    let restricted = landlock_rules::restrict(config, besides, &mut paths);
    wall(&mut state, "landlock", restricted);
    let filters = seccomp::filters().map_err(WallError::from);
    let filtered = filters.map(|filters| {
        state.seccomp = Some(filters);
        "seccomp"
    });
    wall(&mut state, "seccomp", filtered);
    if mode == HardeningMode::Require && !walls.is_empty() {
        return Err(HardeningError::Missing { walls });
    }
    // A process calls this once.
    let _ = STATE.set(state);
    Ok(HardeningGaps { walls, paths })
}

/// Returns the names of the protections that are in force, joined by "+", or "none".
pub fn protections_in_force() -> String {
    match STATE.get().map(|state| state.walls.join("+")) {
        Some(walls) if !walls.is_empty() => walls,
        Some(_) | None => "none".to_owned(),
    }
}

/// Restricts the system calls of the calling thread to those of guests' work. Each thread that does
/// such work calls it first.
pub fn confine_guest_thread() {
    confine(|filters| &filters.guests);
}

/// Restricts the system calls of the calling thread to those of serving. Each thread that serves
/// calls it first.
pub fn confine_serving_thread() {
    confine(|filters| &filters.serving);
}

/// Applies a seccomp filter to the calling thread, if seccomp is in force and the thread has no
/// filter yet.
fn confine(which: fn(&seccomp::Filters) -> &seccomp::Filter) {
    if seccomp::is_confined() {
        // The thread has inherited the filter of the thread that started it.
        return;
    }
    if let Some(filters) = STATE.get().and_then(|state| state.seccomp.as_ref())
        && let Err(error) = which(filters).apply()
    {
        // The filter could be applied at the start: a kernel that changed its mind is not to be
        // trusted with guests.
        tracing::error!(%error, "a thread cannot be confined by seccomp");
        std::process::abort();
    }
}
