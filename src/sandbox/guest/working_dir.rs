//! Gives a guest its working directory, in such a way that guests of every toolchain find it.
//!
//! Preview 1 has no way to tell it, and the libraries of components do not ask for what they are
//! told (`initial-cwd`). Each library looks for the working directory among the directories that it
//! is given, in its own way:
//!
//! - wasi-libc, on which C, Rust and Python are built, for preview 1 and in components, starts in
//!   "/" and drops "/" and "./" from the beginning of names and paths. A path leads to the
//!   directory with the longest name that it begins with, or, among equal names, the last. So it
//!   does not distinguish "." from "/", nor "x" from "/x".
//! - Go starts in the environment's PWD, or else in the first directory, and makes paths absolute
//!   and clean before it looks for the longest name.
//! - Zig without a libc starts in the first directory, and opens no absolute paths.
//!
//! So the working directory is given a second time as ".", before all others, with the mounts below
//! it by their relative names, and PWD is set. A layout that one of them would still misread is
//! refused.

use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::mounts::{DIRECTORY, MountRoots, Preopen, no_descriptors, open_beneath};
use crate::model::refusal::{Refusal, quote};
use crate::model::request::{GuestPath, Mount, RunSpec, WORKING_DIR_FIELD as FIELD};

/// Arranges the directories that a guest is given: `opened`, which are the spec's mounts in their
/// order, and the working directory.
///
/// # Errors
/// Returns `SPEC_INVALID` for a working directory that does not exist, or that has an entry which
/// some guests take for a mount.
pub(in crate::sandbox) fn preopens(
    roots: &MountRoots,
    spec: &RunSpec,
    opened: Vec<Preopen>,
) -> Result<Vec<Preopen>, Refusal> {
    match &spec.working_dir {
        Some(dir) if !dir.is_root() => beginning_in(dir, &spec.mounts, opened),
        dir => Ok(beginning_in_root(roots, dir.is_some(), opened)),
    }
}

/// Returns how many directories [`preopens`] gives to the guest of `spec`.
pub(in crate::sandbox) fn count_preopens(spec: &RunSpec) -> usize {
    let mounts = spec.mounts.len();
    match &spec.working_dir {
        Some(dir) if !dir.is_root() => {
            let below = |mount: &&Mount| mount.guest != *dir && mount.guest.is_in(dir);
            1 + mounts + spec.mounts.iter().filter(below).count()
        }
        Some(_) | None if spec.mounts.iter().any(|mount| mount.guest.is_root()) => mounts,
        Some(_) | None => mounts + usize::from(mounts > 0),
    }
}

/// Returns the environment variable that tells a guest where it starts, or `None` if the spec sets
/// it or there is nothing to tell.
pub(in crate::sandbox) fn variable(spec: &RunSpec) -> Option<(&'static str, &str)> {
    const NAME: &str = "PWD";
    let dir = match &spec.working_dir {
        Some(dir) => dir.as_str(),
        None if spec.mounts.is_empty() && spec.files.is_none() => return None,
        None => "/",
    };
    let is_set = spec.env.iter().any(|(name, _)| name == NAME);
    (!is_set).then_some((NAME, dir))
}

/// Puts "/" first: what is mounted there, or an empty directory. Where the spec has no working
/// directory, the empty one comes last, since programs that go by number look for their first mount
/// in the first place.
fn beginning_in_root(roots: &MountRoots, asked: bool, mut opened: Vec<Preopen>) -> Vec<Preopen> {
    if let Some(root) = opened.iter().position(|dir| dir.guest == "/") {
        opened[..=root].rotate_right(1);
    } else if !opened.is_empty() {
        let at = if asked { 0 } else { opened.len() };
        opened.splice(at..at, roots.empty("/"));
    }
    opened
}

/// Arranges the directories of a guest that starts in `dir`, which is in one of `mounts`.
///
/// # Errors
/// Returns those of [`preopens`].
pub(in crate::sandbox) fn beginning_in(
    dir: &GuestPath,
    mounts: &[Mount],
    opened: Vec<Preopen>,
) -> Result<Vec<Preopen>, Refusal> {
    let (place, beneath) = opened
        .iter()
        .zip(mounts)
        .filter_map(|(open, mount)| Some((open, dir.beneath(&mount.guest)?)))
        .min_by_key(|(_, beneath)| beneath.len())
        .ok_or_else(|| Refusal::invalid(FIELD, "is not under a mount"))?;
    let fd =
        open_beneath(&place.fd, Path::new(beneath), DIRECTORY).map_err(|errno| match errno {
            Errno::XDEV
            | Errno::LOOP
            | Errno::NOENT
            | Errno::NOTDIR
            | Errno::NAMETOOLONG
            | Errno::ACCESS => {
                Refusal::invalid(FIELD, "is not a directory that exists under its mount")
            }
            Errno::MFILE | Errno::NFILE => no_descriptors(),
            errno => Refusal::of_host("opening the working directory", &errno),
        })?;
    for mount in mounts {
        // This is the mount's name without its slash, resolved from the working directory.
        let namesake = &mount.guest.as_str()[1..];
        match open_beneath(&fd, Path::new(namesake), OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {}
            Err(Errno::MFILE | Errno::NFILE) => return Err(no_descriptors()),
            Ok(_) | Err(_) => return Err(has_namesake(dir, mount)),
        }
    }
    let first = Preopen {
        fd: Arc::new(fd),
        guest: ".".to_owned(),
        read_only: place.read_only,
    };
    let below = below(mounts, dir, &opened);
    Ok([first].into_iter().chain(opened).chain(below).collect())
}

/// Returns the mounts below `dir`, by their names from there. `opened` are `mounts` in their order.
pub(in crate::sandbox) fn below(
    mounts: &[Mount],
    dir: &GuestPath,
    opened: &[Preopen],
) -> Vec<Preopen> {
    let below = opened.iter().zip(mounts).filter_map(|(open, mount)| {
        let name = mount.guest.beneath(dir)?;
        (!name.is_empty()).then(|| Preopen {
            guest: name.to_owned(),
            ..open.clone()
        })
    });
    below.collect()
}

/// Returns the refusal for a working directory that has an entry with a mount's name. Programs that
/// do not distinguish "data/x" from "/data/x" would open the mount's file instead of the working
/// directory's.
fn has_namesake(dir: &GuestPath, mount: &Mount) -> Refusal {
    let (dir, mount) = (dir.as_str(), mount.guest.as_str());
    let message = format!(
        "\"{}\" has \"{}\" in it, which C, Rust and Python programs take for the mount at \"{}\"; allowed is a \
         mount by another name",
        quote(dir),
        quote(&mount[1..]),
        quote(mount),
    );
    Refusal::invalid(FIELD, message)
}
