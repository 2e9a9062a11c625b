//! The audit's file: appended to, and opened again where somebody renamed or removed it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Nobody but the daemon's user and group reads it.
const MODE: u32 = 0o640;
/// How often it is looked at whether the file is still the one of that name.
const LOOK: Duration = Duration::from_secs(1);

/// The file.
pub(super) struct AuditFile {
    path: PathBuf,
    file: File,
    looked: Instant,
    /// Whether the last line may be there in part.
    torn: bool,
    /// Lines that could not be written, and when that was said last.
    lost: u64,
    complained: Option<Instant>,
}

impl AuditFile {
    /// Opens it, or makes it.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: append_to(path)?,
            looked: Instant::now(),
            torn: false,
            lost: 0,
            complained: None,
        })
    }

    /// Follows the name where it leads to another file, or none, by now. Where that cannot be opened the old one goes on.
    fn follow(&mut self) {
        if self.looked.elapsed() < LOOK {
            return;
        }
        self.looked = Instant::now();
        let identity =
            |meta: io::Result<std::fs::Metadata>| meta.ok().map(|it| (it.dev(), it.ino()));
        if identity(std::fs::metadata(&self.path)) == identity(self.file.metadata()) {
            return;
        }
        match append_to(&self.path) {
            Ok(file) => {
                self.file = file;
                self.torn = false;
            }
            Err(error) => tracing::error!(%error, "telemetry.audit_file cannot be opened again"),
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(MODE)
        .open(path)
}

impl Write for AuditFile {
    /// Takes a whole line, or says in the log that it is lost: the thread that writes has nobody to tell.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.follow();
        let end: &[u8] = if self.torn { b"\n" } else { b"" };
        let written = self.file.write_all(&[end, line].concat());
        self.torn = written.is_err();
        match written {
            Err(error) => {
                self.lost += 1;
                if self.complained.is_none_or(|at| at.elapsed() >= LOOK) {
                    self.complained = Some(Instant::now());
                    tracing::error!(%error, lost = self.lost, "lines of the audit are lost");
                }
            }
            Ok(()) if self.lost > 0 => {
                tracing::error!(lost = self.lost, "lines of the audit were lost; it goes on");
                self.lost = 0;
            }
            Ok(()) => {}
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
