//! Where the audit goes: a file that is appended to, and opened again where somebody renamed or removed it; or a stream
//! (one of this process's own descriptors, a FIFO, a device), which is opened once.
//!
//! A stream is opened before the daemon gives up root and paths: afterwards `/dev/stdout` could not be opened again, which
//! is a socket under systemd, and belongs to whoever started the daemon elsewhere. A regular file is opened after that,
//! so that it belongs to the daemon's user, which has to open it again.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::config::Telemetry;

/// Nobody but the daemon's user and group reads it.
const MODE: u32 = 0o640;
/// Links that are followed on the way to a descriptor, as the kernel follows them.
const MAX_LINKS: usize = 40;

/// Where the audit goes, opened as far as it has to be before the daemon is confined.
#[derive(Debug)]
pub enum AuditTarget {
    /// Nowhere.
    None,
    /// To a regular file of that name, or one that is made.
    File(PathBuf),
    /// To what is open already.
    Stream(File),
}

impl AuditTarget {
    /// Opens what `telemetry.audit_file` names, where that is a stream.
    ///
    /// # Errors
    /// Where it cannot be opened, or is nothing that lines can be written to; with the path.
    pub fn open(telemetry: &Telemetry) -> Result<Self, String> {
        let path = &telemetry.audit_file;
        if path.as_os_str().is_empty() {
            return Ok(Self::None);
        }
        Self::of(path).map_err(|error| told(path, &error))
    }

    fn of(path: &Path) -> io::Result<Self> {
        if let Some(number) = own_descriptor(path) {
            return match duplicate(number) {
                Ok(descriptor) => Ok(Self::Stream(File::from(descriptor))),
                // Another kernel, or a filter that knows no better.
                Err(_) => stream(path).map(Self::Stream),
            };
        }
        match std::fs::metadata(path) {
            Ok(there) if there.is_file() => Ok(Self::File(path.to_owned())),
            Ok(there) => {
                let kind = there.file_type();
                let refused = |what: &str| {
                    Err(io::Error::other(format!(
                        "it is {what}; allowed is a file, a FIFO, a character device, or /dev/stdout and the like"
                    )))
                };
                if kind.is_dir() {
                    refused("a folder")
                } else if kind.is_socket() {
                    refused("a socket")
                } else if kind.is_block_device() {
                    refused("a block device")
                } else if kind.is_fifo() {
                    fifo(path).map(Self::Stream)
                } else {
                    stream(path).map(Self::Stream)
                }
            }
            // It is made; or whoever opens it as another user learns why it cannot be.
            Err(_) => Ok(Self::File(path.to_owned())),
        }
    }

    /// The folders that have to be written for it later.
    pub fn folders(&self) -> Vec<PathBuf> {
        let Self::File(path) = self else {
            return Vec::new();
        };
        let leads_to = path.canonicalize().ok();
        let paths = [Some(path.clone()), leads_to];
        let folders = paths
            .into_iter()
            .flatten()
            .filter_map(|it| it.parent().map(Path::to_owned));
        folders.collect()
    }
}

/// An error with the key and the path.
pub(super) fn told(path: &Path, error: &io::Error) -> String {
    format!("telemetry.audit_file: {}: {error}", path.display())
}

/// Opens a regular file, which is made where there is none.
pub(super) fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(MODE)
        .open(path)
}

/// Opens a device.
fn stream(path: &Path) -> io::Result<File> {
    // A terminal does not become the one whose hang-up ends the daemon.
    OpenOptions::new()
        .append(true)
        .custom_flags(flags(OFlags::NOCTTY))
        .open(path)
}

/// Opens a FIFO without waiting for whoever reads it: with a reader of our own, so that lines wait in it until one comes.
fn fifo(path: &Path) -> io::Result<File> {
    let both = OpenOptions::new().read(true).write(true).open(path);
    match both {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // It may be ours to write only.
            let file = OpenOptions::new()
                .write(true)
                .custom_flags(flags(OFlags::NONBLOCK))
                .open(path)
                .map_err(|error| match error.raw_os_error() {
                    Some(libc::ENXIO) => io::Error::other("nobody has this FIFO open to read"),
                    _ => error,
                })?;
            rustix::io::ioctl_fionbio(&file, false)?;
            Ok(file)
        }
        opened => opened,
    }
}

fn flags(flags: OFlags) -> i32 {
    // They are small.
    i32::try_from(flags.bits()).unwrap_or_default()
}

/// The number of the descriptor of this process that `path` names, by whatever links.
fn own_descriptor(path: &Path) -> Option<RawFd> {
    // As they are called everywhere, also where nobody made the links.
    let by_name = match path.to_str()? {
        "/dev/stdin" => Some(0),
        "/dev/stdout" => Some(1),
        "/dev/stderr" => Some(2),
        _ => None,
    };
    let own = PathBuf::from(format!("/proc/{}/fd", getpid().as_raw_nonzero()));
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let folder = path.parent()?;
        let name = match path.components().next_back()? {
            Component::Normal(name) => name.to_owned(),
            Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::ParentDir => {
                return by_name;
            }
        };
        let Ok(folder) = folder.canonicalize() else {
            return by_name;
        };
        if folder == own || is_of_a_thread(&folder, &own) {
            return number(&name);
        }
        match std::fs::read_link(folder.join(&name)) {
            Ok(to) => path = folder.join(to),
            Err(_) => return by_name,
        }
    }
    by_name
}

/// Whether `folder` is what `own` is, as one of the process's threads has it.
fn is_of_a_thread(folder: &Path, own: &Path) -> bool {
    let tasks = own.with_file_name("task");
    folder.starts_with(tasks) && folder.ends_with("fd")
}

fn number(name: &OsStr) -> Option<RawFd> {
    name.to_str()?.parse().ok()
}

/// Another descriptor of what is open as `number`.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    let (stdin, stdout, stderr) = (io::stdin(), io::stdout(), io::stderr());
    let standard: Option<BorrowedFd<'_>> = match number {
        0 => Some(stdin.as_fd()),
        1 => Some(stdout.as_fd()),
        2 => Some(stderr.as_fd()),
        _ => None,
    };
    if let Some(standard) = standard {
        return standard.try_clone_to_owned();
    }
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
}
