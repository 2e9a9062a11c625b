//! Host directories for guests: matched against the operator's grants, then opened beneath the granted root.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::policy::MountGrant;
use crate::refusal::{Reason, Refusal};
use crate::request::{GuestPath, Mount};

/// How often an open is tried while renames race with it.
const OPEN_TRIES: u32 = 16;
/// When to come again where there are no descriptors.
const RETRY: Duration = Duration::from_secs(1);

/// A directory that is open and may be handed to a guest.
#[derive(Debug)]
pub(super) struct Opened {
    fd: OwnedFd,
    /// What the guest sees it as.
    pub guest: String,
    /// Deny writes.
    pub read_only: bool,
}

impl Opened {
    /// A path that leads to exactly this directory, whatever has become of its name.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }
}

/// The directories that the operator grants, opened once at start: what a guest or anybody else later does to a name
/// changes nothing about where a grant leads.
#[derive(Debug, Default)]
pub struct Roots(Vec<Root>);

#[derive(Debug)]
struct Root {
    grant: MountGrant,
    fd: OwnedFd,
}

impl Roots {
    /// Opens what `grants` name.
    ///
    /// # Errors
    /// Where one cannot be opened as a directory.
    pub fn open(grants: &[MountGrant]) -> std::io::Result<Self> {
        let open = |grant: &MountGrant| {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = openat(CWD, &grant.host, flags, Mode::empty()).map_err(|errno| {
                std::io::Error::other(format!("policy.mounts {}: {errno}", grant.host.display()))
            })?;
            Ok(Root {
                grant: grant.clone(),
                fd,
            })
        };
        grants.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Matches `mount` against the grants, by name only: what is outside is never looked at.
    ///
    /// # Errors
    /// `POLICY_DENIED` for what no grant covers, the same for everything outside.
    pub fn check(&self, mount: &Mount) -> Result<(), Refusal> {
        self.covering(mount).map(|_| ())
    }

    fn covering(&self, mount: &Mount) -> Result<&Root, Refusal> {
        let covering = || {
            self.0
                .iter()
                .filter(|root| mount.host.starts_with(&root.grant.host))
        };
        covering()
            .filter(|root| root.grant.writable || mount.read_only)
            .max_by_key(|root| root.grant.host.as_os_str().len())
            .ok_or_else(|| match covering().next() {
                Some(_) => {
                    let field = format!("spec.mounts[{}].read_only", mount.index);
                    Refusal::denied(field, "policy.mounts", "only reading is granted here")
                }
                None => outside(mount),
            })
    }
}

fn outside(mount: &Mount) -> Refusal {
    let field = format!("spec.mounts[{}].host_path", mount.index);
    Refusal::denied(field, "policy.mounts", "is not granted")
}

/// How many descriptors a run's mounts and its working directory take.
pub(super) fn descriptors(mounts: &[Mount], working_dir: Option<&GuestPath>) -> usize {
    mounts.len() + usize::from(working_dir.is_some())
}

/// A run that mounts more than there are descriptors for now.
pub(super) fn no_descriptors() -> Refusal {
    let message = "the files that runs have open are all that this process may have (its limit of open files): there is none left for the run's mounts";
    Refusal::new(Reason::QueueFull, message)
        .at("spec.mounts")
        .retry_after(RETRY)
}

/// Opens `mounts`, and the working directory once more as ".", which is how preview 1 knows one.
///
/// # Errors
/// `POLICY_DENIED` for what no grant covers, the same for everything outside; `SPEC_INVALID` for what is inside but no
/// directory, and for a working directory that is under no mount.
pub(super) fn open(
    roots: &Roots,
    mounts: &[Mount],
    working_dir: Option<&GuestPath>,
) -> Result<Vec<Opened>, Refusal> {
    let mut opened = mounts
        .iter()
        .map(|mount| open_one(roots, mount))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(dir) = working_dir.filter(|dir| dir.as_str() != "/") {
        opened.push(open_working_dir(&opened, mounts, dir)?);
    }
    Ok(opened)
}

fn open_one(roots: &Roots, mount: &Mount) -> Result<Opened, Refusal> {
    let field = format!("spec.mounts[{}].host_path", mount.index);
    let root = roots.covering(mount)?;
    let beneath = mount
        .host
        .strip_prefix(&root.grant.host)
        .map_err(|_| outside(mount))?;
    let fd = open_beneath(&root.fd, beneath).map_err(|errno| match errno {
        Errno::XDEV | Errno::LOOP => outside(mount),
        Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG => {
            Refusal::invalid(&field, "is not a directory that exists")
        }
        Errno::ACCESS | Errno::PERM => Refusal::invalid(&field, "is not readable by the daemon"),
        Errno::MFILE | Errno::NFILE => no_descriptors(),
        errno => Refusal::internal(format_args!("opening a mount: {errno}")),
    })?;
    Ok(Opened {
        fd,
        guest: mount.guest.as_str().to_owned(),
        read_only: mount.read_only,
    })
}

fn open_working_dir(
    opened: &[Opened],
    mounts: &[Mount],
    dir: &GuestPath,
) -> Result<Opened, Refusal> {
    const FIELD: &str = "spec.working_dir";
    let (mount, beneath) = opened
        .iter()
        .zip(mounts)
        .filter_map(|(open, mount)| Some((open, dir.beneath(&mount.guest)?)))
        .min_by_key(|(_, beneath)| beneath.len())
        .ok_or_else(|| Refusal::invalid(FIELD, "is not under a mount"))?;
    let fd = open_beneath(&mount.fd, Path::new(beneath)).map_err(|errno| match errno {
        Errno::XDEV
        | Errno::LOOP
        | Errno::NOENT
        | Errno::NOTDIR
        | Errno::NAMETOOLONG
        | Errno::ACCESS => {
            Refusal::invalid(FIELD, "is not a directory that exists under its mount")
        }
        Errno::MFILE | Errno::NFILE => no_descriptors(),
        errno => Refusal::internal(format_args!("opening the working directory: {errno}")),
    })?;
    Ok(Opened {
        fd,
        guest: ".".to_owned(),
        read_only: mount.read_only,
    })
}

/// Opens a directory without ever leaving `root`, by whatever links there are.
fn open_beneath(root: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
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
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
        );
        tries += 1;
        // The kernel could not be sure that a rename beside it did not lead out: openat2(2) says to try again.
        if opened.as_ref().err() != Some(&Errno::AGAIN) || tries == OPEN_TRIES {
            return opened;
        }
    }
}
