//! Makes the memory file system that a run begins with: the files of its spec, the directories of
//! what it collects, and a place for each mount of the host. It also arranges the directories that
//! the guest is given.
//!
//! The guest gets the whole file system as "/", and its mounts beside it. A working directory other
//! than "/" cannot go with "/" ([`super::working_dir`] says why): then the guest gets the directory
//! as ".", and each of the topmost directories by its name.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::memory_files::{GuestPreopen, MemoryFiles};
use super::memory_fs::account::FileMemoryAccount;
use super::memory_fs::{FileError, FollowLast, MemoryFs, NodeId};
use super::mounts::{Preopen, no_descriptors, open_beneath};
use super::working_dir;
use crate::model::outcome::LiveUsage;
use crate::model::refusal::{Reason, Refusal, quote};
use crate::model::request::{FileSpec, GuestPath, RunSpec, WORKING_DIR_FIELD};

/// The spec's field that a run's files stand in.
const FIELD: &str = "spec.files";

/// A memory file system that a run begins with, and what is around it.
pub(in crate::sandbox) struct PreparedFiles {
    /// What the run has of the file system.
    pub(in crate::sandbox) files: MemoryFiles,
    /// The account of what it holds.
    pub(in crate::sandbox) account: Arc<FileMemoryAccount>,
    /// The host directories that the guest is given, in their order.
    pub(in crate::sandbox) host: Vec<Preopen>,
}

/// The memory that a run may have, in bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct MemoryBounds {
    /// The most that the run may have.
    pub(in crate::sandbox) limit: usize,
    /// What its module begins with.
    pub(in crate::sandbox) minimum: usize,
}

/// How many bytes more than fit may be made of what a run begins with, so that the refusal of a run
/// that misses by little has the exact number.
const TRIED: usize = 256 << 10;

/// Makes the memory file system of `spec`, which has `given`. `opened` are the spec's mounts in
/// their order.
///
/// # Errors
/// Returns `LIMIT_ABOVE_MAXIMUM` where the files do not fit into the run's memory beside what its
/// module begins with, and `SPEC_INVALID` for a working directory that some guests would misread.
pub(in crate::sandbox) fn prepare(
    spec: &RunSpec,
    given: &FileSpec,
    opened: Vec<Preopen>,
    bounds: MemoryBounds,
    (usage, fixed_time): (&Arc<LiveUsage>, Option<u64>),
) -> Result<PreparedFiles, Refusal> {
    // What does not fit by far is never made.
    let room = bounds.limit.saturating_sub(bounds.minimum);
    let account = FileMemoryAccount::new(room.saturating_add(TRIED), Arc::clone(usage));
    let made = MemoryFs::new(Arc::clone(&account), fixed_time).map_err(not_made);
    let made = made.and_then(|mut fs| {
        if spec.session.is_some() {
            fs.copy_files();
        }
        let (host, preopens) = fill(&mut fs, spec, given, opened)?;
        Ok((fs, host, preopens))
    });
    let (fs, host, preopens) = match made {
        Err(_) if account.denied() => return Err(does_not_fit(account.held(), bounds)),
        made => made?,
    };
    if account.held() > room {
        return Err(does_not_fit(account.held(), bounds));
    }
    account.set_limit(bounds.limit);
    let files = MemoryFiles::new(fs, preopens, Arc::clone(&given.collect), given.caps);
    Ok(PreparedFiles {
        files,
        account,
        host,
    })
}

fn does_not_fit(held: usize, MemoryBounds { limit, minimum }: MemoryBounds) -> Refusal {
    let message = format!(
        "the files take at least {held} bytes with their names, and the module begins with {minimum} bytes of \
         memory; both together may have {limit} (resources.memory_pages, at most policy.max_memory_pages)"
    );
    Refusal::new(Reason::LimitAboveMaximum, message)
        .at_field(FIELD)
        .with("asked", held.saturating_add(minimum))
        .with("allowed", limit)
}

/// Returns the refusal for a path that cannot be made. Paths are checked before, so none is known.
fn not_made(error: FileError) -> Refusal {
    Refusal::invalid(FIELD, format!("cannot be made: {error:?}"))
}

/// Makes everything that the file system begins with, and arranges the guest's directories.
fn fill(
    fs: &mut MemoryFs,
    spec: &RunSpec,
    given: &FileSpec,
    opened: Vec<Preopen>,
) -> Result<(Vec<Preopen>, Vec<GuestPreopen>), Refusal> {
    for mount in &spec.mounts {
        fs.make_mount_point(mount.guest.as_str())
            .map_err(not_made)?;
    }
    for file in &given.given {
        fs.put_file(file.path.as_str(), &file.bytes)
            .map_err(not_made)?;
    }
    for directory in given.directories {
        fs.make_directories(directory).map_err(not_made)?;
    }
    for pattern in given.collect.iter() {
        let directory = pattern.directory().as_str();
        fs.make_directories(directory).map_err(not_made)?;
    }
    let Some(dir) = spec.working_dir.as_ref().filter(|dir| !dir.is_root()) else {
        let root = GuestPreopen::Memory(fs.root(), "/".to_owned());
        let mounts = opened.iter().map(|_| GuestPreopen::Host);
        let preopens = [root].into_iter().chain(mounts).collect();
        return Ok((opened, preopens));
    };
    let is_in_mount = spec.mounts.iter().any(|mount| dir.is_in(&mount.guest));
    let first = match is_in_mount {
        true => None,
        false => Some(fs.make_directories(dir.as_str()).map_err(not_made)?),
    };
    let tops = topmost(fs).map_err(not_made)?;
    match first {
        Some(node) => beside_memory(fs, spec, (dir, node), &tops, opened),
        None => beside_mount(spec, dir, &tops, opened),
    }
}

/// Returns the directories directly in "/", with their names.
fn topmost(fs: &MemoryFs) -> Result<Vec<(NodeId, GuestPath)>, FileError> {
    let mut names = BTreeSet::new();
    fs.list(fs.root(), None, |name, node, _| {
        names.insert((name.to_owned(), node));
        true
    })?;
    let tops = names.into_iter().map(|(name, node)| {
        let path = GuestPath::parse(FIELD, &format!("/{name}"));
        path.map(|path| (node, path))
            .map_err(|_| FileError::Invalid)
    });
    tops.collect()
}

/// Arranges the directories of a guest whose working directory is in memory.
fn beside_memory(
    fs: &MemoryFs,
    spec: &RunSpec,
    (dir, node): (&GuestPath, NodeId),
    tops: &[(NodeId, GuestPath)],
    opened: Vec<Preopen>,
) -> Result<(Vec<Preopen>, Vec<GuestPreopen>), Refusal> {
    let names = tops.iter().map(|(_, top)| top);
    let mounts = spec.mounts.iter().map(|mount| &mount.guest);
    for name in names.chain(mounts) {
        let there = fs.stat_at(node, &name.as_str()[1..], FollowLast::Never);
        if there.is_ok() {
            return Err(has_namesake(dir, name));
        }
    }
    let below = working_dir::below(&spec.mounts, dir, &opened);
    let mut preopens = vec![GuestPreopen::Memory(node, ".".to_owned())];
    preopens.extend(tops.iter().map(memory_preopen));
    let host: Vec<Preopen> = opened.into_iter().chain(below).collect();
    preopens.extend(host.iter().map(|_| GuestPreopen::Host));
    Ok((host, preopens))
}

/// Arranges the directories of a guest whose working directory is in a mount of the host.
fn beside_mount(
    spec: &RunSpec,
    dir: &GuestPath,
    tops: &[(NodeId, GuestPath)],
    opened: Vec<Preopen>,
) -> Result<(Vec<Preopen>, Vec<GuestPreopen>), Refusal> {
    let host = working_dir::beginning_in(dir, &spec.mounts, opened)?;
    let is_mount = |top: &GuestPath| spec.mounts.iter().any(|mount| mount.guest == *top);
    // A mount directly in "/" covers its place in memory.
    let tops = tops.iter().filter(|(_, top)| !is_mount(top));
    for (_, top) in tops.clone() {
        let Some(first) = host.first() else {
            break;
        };
        let name = Path::new(&top.as_str()[1..]);
        match open_beneath(&first.fd, name, OFlags::PATH | OFlags::NOFOLLOW) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => {}
            Err(Errno::MFILE | Errno::NFILE) => return Err(no_descriptors()),
            Ok(_) | Err(_) => return Err(has_namesake(dir, top)),
        }
    }
    let mut preopens: Vec<GuestPreopen> = host.iter().map(|_| GuestPreopen::Host).collect();
    preopens.extend(tops.map(memory_preopen));
    Ok((host, preopens))
}

fn memory_preopen((node, top): &(NodeId, GuestPath)) -> GuestPreopen {
    GuestPreopen::Memory(*node, top.as_str().to_owned())
}

/// Returns the refusal for a working directory that has an entry with the name of one of the
/// guest's directories. Programs that do not distinguish "data/x" from "/data/x" would open the
/// other file.
fn has_namesake(dir: &GuestPath, other: &GuestPath) -> Refusal {
    let (dir, other) = (dir.as_str(), other.as_str());
    let message = format!(
        "\"{}\" has \"{}\" in it, which C, Rust and Python programs take for the directory at \"{}\"; allowed is a \
         directory by another name",
        quote(dir),
        quote(&other[1..]),
        quote(other),
    );
    Refusal::invalid(WORKING_DIR_FIELD, message)
}
