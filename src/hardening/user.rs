//! Giving up root, capabilities, and the ability to gain new privileges.

use rustix::process::{Gid, Uid, geteuid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{HardeningError, WallError};
use crate::config::user_and_group;

/// Switches to the user "uid:gid" if the daemon is root and one is configured. The inner error says
/// that the daemon stays root.
///
/// # Errors
/// The user is configured but cannot be assumed.
pub(super) fn become_user(user: &str) -> Result<Result<&'static str, WallError>, HardeningError> {
    if !geteuid().is_root() {
        return Ok(Ok("user"));
    }
    let Some((uid, gid)) = user_and_group(user) else {
        return Ok(Err(WallError::RootWithoutUser));
    };
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let failed = |source| HardeningError::User {
        user: user.to_owned(),
        source,
    };
    // Only one thread exists yet, and all later threads inherit its user.
    set_thread_groups(&[]).map_err(failed)?;
    set_thread_res_gid(gid, gid, gid).map_err(failed)?;
    set_thread_res_uid(uid, uid, uid).map_err(failed)?;
    Ok(Ok("user"))
}

/// Ensures that no program that is executed gains privileges by it (no_new_privs).
pub(super) fn no_new_privileges() -> Result<&'static str, WallError> {
    set_no_new_privs(true)?;
    Ok("no_new_privs")
}

/// Gives up every capability. Without new privileges none can come back.
pub(super) fn no_capabilities() -> Result<&'static str, WallError> {
    // Kernels before 4.3 have no ambient capabilities.
    let _ = clear_ambient_capability_set();
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none)?;
    match capabilities(None)? {
        left if left == none => Ok("capabilities"),
        left => Err(WallError::CapabilitiesStay(left)),
    }
}
