//! The target of the audit log. It is either a file, which is appended to and opened again if
//! somebody renames or removes it, or a stream (one of this process's own descriptors, a FIFO, a
//! device), which is opened once.
//!
//! A stream is opened before the daemon gives up root and paths. Afterwards `/dev/stdout` could not
//! be opened again: under systemd it is a socket, and elsewhere it belongs to whoever started the
//! daemon. A regular file is opened after that, so that it belongs to the daemon's user, who has to
//! be able to open it again.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};

use crate::config::TelemetryConfig;

/// The mode of an audit file that is created: only the daemon's user and group can read it.
const MODE: u32 = 0o640;
/// The most links that are followed on the way to a descriptor, which is the kernel's own limit.
const MAX_LINKS: usize = 40;

/// The target of the audit log, opened as far as it must be before the daemon confines itself.
#[derive(Debug)]
pub enum AuditTarget {
    /// There is no audit log.
    None,
    /// A regular file at this path, which is created if it does not exist.
    File(PathBuf),
    /// A stream that is open already.
    Stream(File),
}

/// Why the target of the audit log cannot be opened, or cannot be written to.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.audit_file: {}: {source}", path.display())]
pub struct AuditFileError {
    path: PathBuf,
    source: io::Error,
}

impl AuditFileError {
    pub(super) fn new(path: &Path, source: io::Error) -> Self {
        Self {
            path: path.to_owned(),
            source,
        }
    }
}

impl AuditTarget {
    /// Determines what `telemetry.audit_file` names, and opens it if it is a stream.
    ///
    /// # Errors
    /// It cannot be opened, or is nothing that lines can be written to; the error names the path.
    pub fn open(telemetry: &TelemetryConfig) -> Result<Self, AuditFileError> {
        let path = &telemetry.audit_file;
        if path.as_os_str().is_empty() {
            return Ok(Self::None);
        }
        Self::of(path).map_err(|source| AuditFileError::new(path, source))
    }

    /// Determines what kind of target `path` is, and opens a stream.
    fn of(path: &Path) -> io::Result<Self> {
        if let Some(number) = own_descriptor(path) {
            return match duplicate(number) {
                Ok(descriptor) => Ok(Self::Stream(File::from(descriptor))),
                // The kernel, or a seccomp filter, may not allow duplicating the descriptor.
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
            // The file will be created, or whoever opens it as another user learns why it cannot
            // be.
            Err(_) => Ok(Self::File(path.to_owned())),
        }
    }

    /// Returns the folders that must stay writable so that the file can be opened again later; a
    /// stream needs none.
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

/// Opens a regular file for appending, and creates it if it does not exist.
pub(super) fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(MODE)
        .open(path)
}

/// Opens a device, such as a terminal, for writing.
fn stream(path: &Path) -> io::Result<File> {
    // NOCTTY keeps a terminal from becoming the controlling one, whose hang-up would end the
    // daemon.
    OpenOptions::new()
        .append(true)
        .custom_flags(flags(OFlags::NOCTTY))
        .open(path)
}

/// Opens a FIFO without waiting for its reader. It is opened for reading too, so that lines wait in
/// it until a reader comes.
fn fifo(path: &Path) -> io::Result<File> {
    let both = OpenOptions::new().read(true).write(true).open(path);
    match both {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // The daemon may only have permission to write it.
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

/// Converts open flags to the type that the standard library takes.
fn flags(flags: OFlags) -> i32 {
    // The flags are small numbers, so the conversion does not fail.
    i32::try_from(flags.bits()).unwrap_or_default()
}

/// Returns the number of this process's descriptor that `path` names, through any number of links;
/// `None` if it names none.
fn own_descriptor(path: &Path) -> Option<RawFd> {
    // These names are known everywhere, even where nobody created the links.
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

/// Reports whether `folder` is the descriptor folder of one of the process's threads; `own` is that
/// of the process.
fn is_of_a_thread(folder: &Path, own: &Path) -> bool {
    let tasks = own.with_file_name("task");
    folder.starts_with(tasks) && folder.ends_with("fd")
}

/// Parses the number of a descriptor.
fn number(name: &OsStr) -> Option<RawFd> {
    name.to_str()?.parse().ok()
}

/// Duplicates the descriptor `number` of this process.
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
