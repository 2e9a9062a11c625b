//! The folder of modules that an agent may run by their path.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use crate::cli::Failure;
use crate::model::refusal::{printable, quote};

/// The largest file in bytes that is read. A daemon has a limit of its own
/// (`compile.max_module`), which is less unless its operator raised it.
const LARGEST: u64 = 1 << 30;

/// A folder whose files the agent may name. No path leads out of it, whatever links there are.
pub(super) struct ModuleFolder {
    path: PathBuf,
    folder: OwnedFd,
}

impl ModuleFolder {
    /// Opens the folder, so that its path means the same folder from now on.
    ///
    /// # Errors
    /// Fails where there is no such folder, or it cannot be opened.
    pub(super) fn open(path: PathBuf) -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match openat(CWD, &path, flags, Mode::empty()) {
            Ok(folder) => Ok(Self { path, folder }),
            Err(error) => Err(Failure::new(format!(
                "--module-dir: cannot open {}: {error}",
                printable(&path.display().to_string())
            ))),
        }
    }

    /// Reads the file at `path`, which is relative to the folder or begins with its path.
    ///
    /// # Errors
    /// Refuses the argument `path` where it names no file of the folder, or one that is too large.
    pub(super) fn read(&self, path: &str) -> Result<Bytes, Failure> {
        let refused = |asked: String| {
            let allowed = "the path of a module in the folder that --module-dir names";
            Failure::bad_argument("path", &asked, allowed)
        };
        let name = quote(path);
        let relative = Path::new(path);
        let relative = relative.strip_prefix(&self.path).unwrap_or(relative);
        // Without NONBLOCK, opening a pipe would wait for its writer.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let opened = openat2(&self.folder, relative, flags, Mode::empty(), beneath);
        let opened = opened
            .map_err(|error| refused(format!("\"{name}\", which cannot be opened ({error})")))?;
        let file = File::from(opened);
        let unreadable = |error| refused(format!("\"{name}\", which cannot be read ({error})"));
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(refused(format!("\"{name}\", which is no file")));
        }
        let mut bytes = Vec::new();
        let read = file.take(LARGEST + 1).read_to_end(&mut bytes);
        match read.map_err(unreadable)? {
            read if read as u64 > LARGEST => Err(refused(format!(
                "\"{name}\", which has more than {LARGEST} bytes"
            ))),
            _ => Ok(bytes.into()),
        }
    }
}
