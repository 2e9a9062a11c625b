//! Decides which directories of the host a guest may mount, and opens them. A mount is matched
//! against the operator's grants by name, and then opened beneath the granted root with `openat2`,
//! so that no link leads out of it.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;

use crate::model::policy::MountGrant;
use crate::model::refusal::{Reason, Refusal, quote};
use crate::model::request::Mount;

/// How many times an open is tried while renames race with it.
const OPEN_TRIES: u32 = 16;
/// When a caller should retry after the process ran out of descriptors.
const RETRY: Duration = Duration::from_secs(1);
/// The maximum number of parent directories that are followed: a directory that has a path has no
/// more above it.
const MAX_DEPTH: usize = 4096;
/// A directory of Linux that is empty, and that nobody can put anything into.
const EMPTY: &str = "/proc/tty/ldisc";

/// A directory that is open and may be given to a guest as a preopen.
#[derive(Clone, Debug)]
pub(in crate::sandbox) struct Preopen {
    pub(in crate::sandbox) fd: Arc<OwnedFd>,
    /// The path at which the guest sees the directory.
    pub(in crate::sandbox) guest: String,
    /// Whether the guest is denied writes in the directory.
    pub(in crate::sandbox) read_only: bool,
}

impl Preopen {
    /// Returns a path that leads to exactly this directory, whatever has become of its name.
    pub(in crate::sandbox) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }
}

/// The directories that the operator grants, opened once at start. Whatever a guest or anybody else
/// later does to a name does not change where a grant leads.
#[derive(Debug, Default)]
pub struct MountRoots {
    granted: Vec<MountRoot>,
    /// An empty directory. It is `None` if nothing is granted.
    empty: Option<Arc<OwnedFd>>,
}

#[derive(Debug)]
struct MountRoot {
    grant: MountGrant,
    fd: OwnedFd,
}

/// The identity of a directory (device and inode number), by whatever name it is reached.
type InodeId = (u64, u64);

impl MountRoots {
    /// Opens the directories that `grants` name.
    ///
    /// # Errors
    /// Fails where one of them cannot be opened as a directory.
    pub fn open(grants: &[MountGrant]) -> std::io::Result<Self> {
        let open = |grant: &MountGrant| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = openat(CWD, &grant.host, flags, Mode::empty()).map_err(|errno| {
                std::io::Error::other(format!("policy.mounts {}: {errno}", grant.host.display()))
            })?;
            Ok(MountRoot {
                grant: grant.clone(),
                fd,
            })
        };
        let empty = match grants {
            [] => None,
            [..] => Some(Arc::new(open_empty()?)),
        };
        Ok(Self {
            granted: grants.iter().map(open).collect::<std::io::Result<_>>()?,
            empty,
        })
    }

    /// Returns an empty, read-only directory for the guest path `guest`, or `None` if nothing is
    /// granted.
    pub(in crate::sandbox) fn empty(&self, guest: &str) -> Option<Preopen> {
        self.empty.as_ref().map(|fd| Preopen {
            fd: Arc::clone(fd),
            guest: guest.to_owned(),
            read_only: true,
        })
    }

    /// Returns the innermost granted directory that `mount` is under.
    fn covering(&self, mount: &Mount) -> Result<&MountRoot, Refusal> {
        let grants = self.granted.iter().map(|root| &root.grant);
        let position = MountGrant::covering(grants, mount)?;
        Ok(&self.granted[position])
    }

    /// Refuses a writable mount of `fd` if that directory is, is inside, or contains a directory of
    /// which only reading is granted. This compares the directories themselves, since links and
    /// renames give them other names.
    fn check_writable(&self, mount: &Mount, fd: &OwnedFd) -> Result<(), Refusal> {
        let mut reading = self.granted.iter().filter(|root| !root.grant.writable);
        if mount.read_only || reading.clone().next().is_none() {
            return Ok(());
        }
        let above = ancestors(fd);
        let grant = above.iter().find_map(|dir| self.grant_of(*dir));
        if grant == Some(false) {
            return Err(MountGrant::only_reading(
                mount,
                "only reading is granted here",
            ));
        }
        let holds = |root: &MountRoot| {
            let dirs = ancestors(&root.fd);
            let is_reading = dirs.first().and_then(|dir| self.grant_of(*dir)) == Some(false);
            is_reading && above.first().is_some_and(|dir| dirs.contains(dir))
        };
        match reading.any(holds) {
            true => Err(MountGrant::only_reading(
                mount,
                "only reading is granted of a directory in it",
            )),
            false => Ok(()),
        }
    }

    /// Reports whether a granted root that is this very directory grants writing; `None` if no root
    /// is.
    fn grant_of(&self, dir: InodeId) -> Option<bool> {
        let same = |root: &&MountRoot| identity(&root.fd) == Ok(dir);
        let roots = self.granted.iter().filter(same);
        roots.map(|root| root.grant.writable).max()
    }
}

/// Returns the identity of directory `fd` and of those above it, from the inside out, as far up as
/// the daemon can go.
fn ancestors(fd: &OwnedFd) -> Vec<InodeId> {
    let mut dirs: Vec<InodeId> = identity(fd).into_iter().collect();
    let up = |from: &OwnedFd| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(from, "..", flags, Mode::empty())
    };
    let mut at = up(fd);
    while let Ok(dir) = at
        && let Ok(id) = identity(&dir)
        // Only the topmost directory is its own parent.
        && dirs.last() != Some(&id)
        && dirs.len() < MAX_DEPTH
    {
        dirs.push(id);
        at = up(&dir);
    }
    dirs
}

fn identity(fd: impl AsFd) -> rustix::io::Result<InodeId> {
    fstat(fd).map(|stat| (stat.st_dev, stat.st_ino))
}

/// Opens an empty directory: the one that Linux has, or, where that is missing, a temporary one
/// that is then removed.
fn open_empty() -> std::io::Result<OwnedFd> {
    let open = |path: &Path| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, path, flags, Mode::empty())
    };
    if let Ok(fd) = open(Path::new(EMPTY))
        && is_empty(&fd) == Ok(true)
    {
        return Ok(fd);
    }
    let dir = tempfile::tempdir()?;
    Ok(open(dir.path())?)
}

fn is_empty(dir: &OwnedFd) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let entries = Dir::new(openat(dir, ".", flags, Mode::empty())?)?;
    for entry in entries {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Returns the refusal of a run that needs more descriptors for its mounts than are free now.
pub(in crate::sandbox) fn no_descriptors() -> Refusal {
    let message = "the files that runs have open are all that this process may have (its limit of open files): there is none left for the run's mounts";
    Refusal::new(Reason::QueueFull, message)
        .at_field("spec.mounts")
        .retry_after(RETRY)
}

/// Opens `mounts`, in their order.
///
/// # Errors
/// Returns `POLICY_DENIED` for a mount that no grant covers, the same for everything outside.
/// Returns `SPEC_INVALID` for a mount that is inside a grant but is no directory, and for a mount
/// inside another that has other files at its place.
pub(in crate::sandbox) fn open_mounts(
    roots: &MountRoots,
    mounts: &[Mount],
) -> Result<Vec<Preopen>, Refusal> {
    let opened = mounts
        .iter()
        .map(|mount| open_one(roots, mount))
        .collect::<Result<Vec<_>, _>>()?;
    for (inner, inner_dir) in mounts.iter().zip(&opened) {
        for (outer, outer_dir) in mounts.iter().zip(&opened) {
            if let Some(place) = inner.guest.beneath(&outer.guest)
                && !place.is_empty()
            {
                check_place(inner, &inner_dir.fd, outer, &outer_dir.fd, Path::new(place))?;
            }
        }
    }
    Ok(opened)
}

/// Refuses a mount inside another that has something else at the inner one's place. Guests choose a
/// mount by how a path is spelt: "/outer/./inner/x" leads through the outer mount to what that has
/// there itself. This has to be the same directory, or nothing. A read-only mount inside a writable
/// one was refused before.
fn check_place(
    inner: &Mount,
    inner_fd: &OwnedFd,
    outer: &Mount,
    outer_fd: &OwnedFd,
    place: &Path,
) -> Result<(), Refusal> {
    let field = format!("spec.mounts[{}].guest_path", inner.index);
    let nothing_else = match open_beneath(outer_fd, place, OFlags::PATH) {
        Ok(there) => {
            let same = identity(&there).is_ok_and(|there| identity(inner_fd) == Ok(there));
            let is_dir =
                || fstat(&there).is_ok_and(|it| FileType::from_raw_mode(it.st_mode).is_dir());
            same || (is_dir() && is_empty(&there) == Ok(true))
        }
        // Guests cannot get there either.
        Err(
            Errno::NOENT
            | Errno::NOTDIR
            | Errno::XDEV
            | Errno::LOOP
            | Errno::NAMETOOLONG
            | Errno::ACCESS,
        ) => true,
        Err(Errno::MFILE | Errno::NFILE) => return Err(no_descriptors()),
        Err(errno) => {
            return Err(Refusal::of_host("looking into a mount", &errno));
        }
    };
    if nothing_else {
        return Ok(());
    }
    let message = format!(
        "\"{}\" lies in the mount at \"{}\", which has something else there that other spellings of the path \
         lead to; allowed is a place where it has nothing, an empty directory, or this very one",
        quote(inner.guest.as_str()),
        quote(outer.guest.as_str()),
    );
    Err(Refusal::invalid(field, message))
}

fn open_one(roots: &MountRoots, mount: &Mount) -> Result<Preopen, Refusal> {
    let field = format!("spec.mounts[{}].host_path", mount.index);
    let root = roots.covering(mount)?;
    let beneath = mount
        .host
        .strip_prefix(&root.grant.host)
        .map_err(|_| MountGrant::not_granted(mount))?;
    let fd = open_beneath(&root.fd, beneath, DIRECTORY).map_err(|errno| match errno {
        Errno::XDEV | Errno::LOOP => MountGrant::not_granted(mount),
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => {
            Refusal::invalid(&field, "is not a directory that exists")
        }
        Errno::ACCESS | Errno::PERM => Refusal::invalid(&field, "is not readable by the daemon"),
        Errno::MFILE | Errno::NFILE => no_descriptors(),
        errno => Refusal::of_host("opening a mount", &errno),
    })?;
    roots.check_writable(mount, &fd)?;
    Ok(Preopen {
        fd: Arc::new(fd),
        guest: mount.guest.as_str().to_owned(),
        read_only: mount.read_only,
    })
}

/// The flags for opening a directory that is only a place to start from.
pub(in crate::sandbox) const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY);

/// Opens a path without ever leaving `root`, whatever links there are.
pub(in crate::sandbox) fn open_beneath(
    root: &OwnedFd,
    path: &Path,
    flags: OFlags,
) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let mut tries = 0;
    loop {
        let opened = openat2(
            root,
            path,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        );
        tries += 1;
        // The kernel could not be sure that a concurrent rename did not lead out of the root;
        // openat2(2) says to try again.
        if opened.as_ref().err() != Some(&Errno::AGAIN) || tries == OPEN_TRIES {
            return opened;
        }
    }
}
