//! Checks for paths of a run that contradict each other, or that guests of some make would misread.

use super::{FileSpec, GuestPath, Mount, RunSpec, WORKING_DIR_FIELD};
use crate::model::refusal::{Refusal, quote};

/// Refuses paths that contradict each other, or that guests of some make would misread: mounts in
/// mounts, and a working directory beside mounts and the environment.
///
/// # Errors
/// `SPEC_INVALID`, naming the field.
pub fn check_path_conflicts(spec: &RunSpec) -> Result<(), Refusal> {
    check_nesting(&spec.mounts)?;
    if let Some(files) = &spec.files {
        check_files(spec, files)?;
    }
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
    let is_in_mount = spec.mounts.iter().any(|mount| dir.is_in(&mount.guest));
    if !is_in_mount && spec.files.is_none() {
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

/// Refuses files in memory, and patterns of files to collect, that lie where something else does.
fn check_files(spec: &RunSpec, files: &FileSpec) -> Result<(), Refusal> {
    let dir = spec.working_dir.as_ref().filter(|dir| !dir.is_root());
    for (index, file) in files.given.iter().enumerate() {
        let at = || format!("spec.files[{index}].path");
        check_outside_mounts(&spec.mounts, &file.path, at)?;
        if let Some(mount) = spec.mounts.iter().find(|it| it.guest.is_in(&file.path)) {
            return Err(conflict(
                &at(),
                &file.path,
                "is above the mount at",
                &mount.guest,
            ));
        }
        if let Some(dir) = dir.filter(|dir| dir.is_in(&file.path)) {
            return Err(conflict(
                &at(),
                &file.path,
                "is above the working directory",
                dir,
            ));
        }
        let is_in_root = file.path.as_str().rfind('/') == Some(0);
        if let Some(dir) = dir.filter(|_| is_in_root) {
            return Err(not_in_root(&at(), &file.path, dir));
        }
    }
    for (index, pattern) in files.collect.iter().enumerate() {
        let at = || format!("spec.collect[{index}]");
        let directory = pattern.directory();
        check_outside_mounts(&spec.mounts, directory, at)?;
        if let Some(file) = files.given.iter().find(|it| directory.is_in(&it.path)) {
            return Err(conflict(
                &at(),
                directory,
                "lies in the file at",
                &file.path,
            ));
        }
        if let Some(dir) = dir.filter(|_| directory.is_root()) {
            return Err(not_in_root(&at(), directory, dir));
        }
    }
    Ok(())
}

/// Refuses a path of a file in memory that lies in a mount.
fn check_outside_mounts(
    mounts: &[Mount],
    path: &GuestPath,
    at: impl FnOnce() -> String,
) -> Result<(), Refusal> {
    match mounts.iter().find(|mount| path.is_in(&mount.guest)) {
        Some(mount) => Err(conflict(&at(), path, "lies in the mount at", &mount.guest)),
        None => Ok(()),
    }
}

/// Returns the refusal of a path that `is` in conflict with another.
fn conflict(field: &str, path: &GuestPath, is: &str, other: &GuestPath) -> Refusal {
    let (path, other) = (quote(path.as_str()), quote(other.as_str()));
    let message = format!("\"{path}\" {is} \"{other}\"; allowed is a place beside that");
    Refusal::invalid(field, message)
}

/// Returns the refusal of a file directly in "/" for a run that has a working directory and so does
/// not get "/".
fn not_in_root(field: &str, path: &GuestPath, dir: &GuestPath) -> Refusal {
    let message = format!(
        "\"{}\" cannot go with the working directory \"{}\": C, Rust and Python programs do not tell that from \"/\"; \
         allowed are files in other directories than \"/\", and the working directory \"/\"",
        quote(path.as_str()),
        quote(dir.as_str()),
    );
    Refusal::invalid(field, message)
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
