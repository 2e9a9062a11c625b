//! Host directories for guests: matched against the operator's grants, then opened beneath the granted root.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::policy::MountGrant;
use crate::refusal::Refusal;
use crate::request::{GuestPath, Mount};

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

/// Opens `mounts`, and the working directory once more as ".", which is how preview 1 knows one.
///
/// # Errors
/// `POLICY_DENIED` for what no grant covers, the same for everything outside; `SPEC_INVALID` for what is inside but no
/// directory, and for a working directory that is under no mount.
pub(super) fn open(
    grants: &[MountGrant],
    mounts: &[Mount],
    working_dir: Option<&GuestPath>,
) -> Result<Vec<Opened>, Refusal> {
    let mut opened = mounts
        .iter()
        .map(|mount| open_one(grants, mount))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(dir) = working_dir.filter(|dir| dir.as_str() != "/") {
        opened.push(open_working_dir(&opened, mounts, dir)?);
    }
    Ok(opened)
}

fn open_one(grants: &[MountGrant], mount: &Mount) -> Result<Opened, Refusal> {
    let field = format!("spec.mounts[{}].host_path", mount.index);
    let outside = || Refusal::denied(&field, "policy.mounts", "is not granted");
    // By name first: what is outside is never looked at.
    let covering = || {
        grants
            .iter()
            .filter(|grant| mount.host.starts_with(&grant.host))
    };
    let grant = covering()
        .filter(|grant| grant.writable || mount.read_only)
        .max_by_key(|grant| grant.host.as_os_str().len());
    let Some(grant) = grant else {
        return Err(if covering().next().is_some() {
            let field = format!("spec.mounts[{}].read_only", mount.index);
            Refusal::denied(field, "policy.mounts", "only reading is granted here")
        } else {
            outside()
        });
    };
    let beneath = mount
        .host
        .strip_prefix(&grant.host)
        .map_err(|_| outside())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat(CWD, &grant.host, flags, Mode::empty())
        .and_then(|root| open_beneath(&root, beneath))
        .map_err(|errno| match errno {
            Errno::XDEV | Errno::LOOP => outside(),
            Errno::NOENT | Errno::NOTDIR => {
                Refusal::invalid(&field, "is not a directory that exists")
            }
            Errno::ACCESS | Errno::PERM => {
                Refusal::invalid(&field, "is not readable by the daemon")
            }
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
        Errno::XDEV | Errno::LOOP | Errno::NOENT | Errno::NOTDIR | Errno::ACCESS => {
            Refusal::invalid(FIELD, "is not a directory that exists under its mount")
        }
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
    openat2(
        root,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )
}
