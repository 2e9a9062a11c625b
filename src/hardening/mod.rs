//! What the daemon gives up before it takes anything in: root, capabilities, new privileges, all files but those that are
//! configured, and, on the threads that serve and those that execute guests, all system calls but those they make.
//!
//! To be done before any other thread is there: threads inherit it. What of it the host has is in Health.

mod files;
mod real_paths;
mod seccomp;
mod user;

use std::path::PathBuf;
use std::sync::OnceLock;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::config::{Config, HardeningMode};

/// What is in force, once it is.
static STATE: OnceLock<State> = OnceLock::new();

/// What is in force.
#[derive(Debug, Default)]
struct State {
    walls: Vec<&'static str>,
    seccomp: Option<seccomp::Filters>,
}

/// What was not to be had.
#[derive(Debug, Default)]
pub struct Missing {
    /// The walls that are not there, each with its reason.
    pub walls: Vec<String>,
    /// Paths that are configured and cannot be let in, each with its reason.
    pub paths: Vec<String>,
}

/// What the daemon may reach besides what its configuration names.
#[derive(Debug, Default)]
pub struct Besides {
    /// Files to read.
    pub read: Vec<PathBuf>,
    /// Files and folders of certificates, which are let in where the daemon connects to others.
    pub trust: Vec<PathBuf>,
    /// Folders to write.
    pub write: Vec<PathBuf>,
}

/// Gives up what `config` says, but for what is `besides`, and returns what could not be.
///
/// # Errors
/// Where all of it is required, what is missing; where a user is to be become and cannot be, why.
pub fn apply(config: &Config, besides: &Besides) -> Result<Missing, String> {
    let mode = config.hardening.mode;
    if mode == HardeningMode::Off {
        return Ok(Missing::default());
    }
    let mut state = State::default();
    let Missing {
        mut walls,
        mut paths,
    } = Missing::default();
    let mut wall =
        |state: &mut State, name: &'static str, done: Result<&'static str, String>| match done {
            Ok(done) => state.walls.push(done),
            Err(why) => walls.push(format!("{name}: {why}")),
        };
    // No guest's memory is written to a disk when the daemon is killed.
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
    let restricted = files::restrict(config, besides, &mut paths);
    wall(&mut state, "landlock", restricted);
    match seccomp::filters() {
        Ok(filters) => {
            state.walls.push("seccomp");
            state.seccomp = Some(filters);
        }
        Err(why) => walls.push(format!("seccomp: {why}")),
    }
    if mode == HardeningMode::Require && !walls.is_empty() {
        let told = walls.join("; ");
        return Err(format!(
            "hardening.mode is \"require\", and this host or user lacks: {told}"
        ));
    }
    // Once in a process.
    let _ = STATE.set(state);
    Ok(Missing { walls, paths })
}

/// What is in force: walls joined by "+", or "none".
pub fn state() -> String {
    match STATE.get().map(|state| state.walls.join("+")) {
        Some(walls) if !walls.is_empty() => walls,
        Some(_) | None => "none".to_owned(),
    }
}

/// To be called by each thread that does guests' work, before it does any.
pub fn on_guest_thread() {
    confine(|filters| &filters.guests);
}

/// To be called by each thread that serves, before it does.
pub fn on_serving_thread() {
    confine(|filters| &filters.serving);
}

fn confine(which: fn(&seccomp::Filters) -> &seccomp::Filter) {
    if seccomp::is_confined() {
        // By the thread that started it.
        return;
    }
    if let Some(filters) = STATE.get().and_then(|state| state.seccomp.as_ref())
        && let Err(error) = which(filters).apply()
    {
        // It worked at the start: a kernel that changed its mind is not to be trusted with guests.
        tracing::error!(%error, "a thread cannot be confined by seccomp");
        std::process::abort();
    }
}
