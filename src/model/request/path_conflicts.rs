//! Checks for paths of a run that contradict each other, or that guests of some make would misread.

use super::{GuestPath, Mount, RunSpec, WORKING_DIR_FIELD};
use crate::model::refusal::{Refusal, quote};

/// Refuses paths that contradict each other, or that guests of some make would misread: mounts in
/// mounts, and a working directory beside mounts and the environment.
///
/// # Errors
/// `SPEC_INVALID`, naming the field.
pub fn check_path_conflicts(spec: &RunSpec) -> Result<(), Refusal> {
    check_nesting(&spec.mounts)?;
    let Some(dir) = &spec.working_dir else {
        return Ok(());
    };
    let is_other = |(name, value): &(String, String)| {
        name == "PWD" && GuestPath::parse("", value).as_ref().ok() != Some(dir)
    };
    if let Some(i) = spec.env.iter().position(is_other) {
        let message = "sets PWD to another directory than spec.working_dir; it is set for the run when left out";
        return Err(Refusal::invalid(format!("spec.env[{i}]"), message));
    }
    if dir.is_root() {
        return Ok(());
    }
    if !spec.mounts.iter().any(|mount| dir.is_in(&mount.guest)) {
        return Err(Refusal::invalid(WORKING_DIR_FIELD, "is not under a mount"));
    }
    if spec.mounts.iter().any(|mount| mount.guest.is_root()) {
        let message = format!(
            "\"{0}\" cannot go with a mount at \"/\": C, Rust and Python programs do not tell the two apart, and would \
             open \"{0}/x\" for \"/x\"; allowed are \"/\", and mounts at other places",
            quote(dir.as_str())
        );
        return Err(Refusal::invalid(WORKING_DIR_FIELD, message));
    }
    spec.mounts
        .iter()
        .try_for_each(|below| check_namesakes(spec, dir, below))
}

/// Refuses a mount below the working directory whose path from there overlaps another mount's path
/// from "/".
fn check_namesakes(spec: &RunSpec, dir: &GuestPath, below: &Mount) -> Result<(), Refusal> {
    let name = match below.guest.beneath(dir) {
        None | Some("") => return Ok(()),
        Some(name) => GuestPath(format!("/{name}")),
    };
    let is_namesake = |it: &&Mount| name.is_in(&it.guest) || it.guest.is_in(&name);
    let Some(mount) = spec.mounts.iter().find(is_namesake) else {
        return Ok(());
    };
    let message = format!(
        "from \"{}\", the mount at \"{}\" is \"{}\", which C, Rust and Python programs do not tell from the mount at \
         \"{}\"; allowed is a mount by another name",
        quote(dir.as_str()),
        quote(below.guest.as_str()),
        quote(&name.0[1..]),
        quote(mount.guest.as_str()),
    );
    Err(Refusal::invalid(WORKING_DIR_FIELD, message))
}

/// Refuses a read-only mount inside a writable one. A guest finds its mount by how it spells a
/// path, so that "/outer/./inner/x" would be written through the outer one.
fn check_nesting(mounts: &[Mount]) -> Result<(), Refusal> {
    for inner in mounts.iter().filter(|mount| mount.read_only) {
        let is_around = |outer: &&Mount| {
            !outer.read_only && outer.guest != inner.guest && inner.guest.is_in(&outer.guest)
        };
        if let Some(outer) = mounts.iter().find(is_around) {
            let message = format!(
                "\"{}\" is read-only in the writable mount at \"{}\", through which other spellings of its path \
                 could be written; allowed is a place beside that mount, or one mode for both",
                quote(inner.guest.as_str()),
                quote(outer.guest.as_str()),
            );
            let field = format!("spec.mounts[{}].guest_path", inner.index);
            return Err(Refusal::invalid(field, message));
        }
    }
    Ok(())
}
