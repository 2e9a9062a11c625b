//! What the guest of `ringfence run` reads.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Failure;
use crate::refusal::printable;

/// Standard input of a guest.
pub(super) enum GuestStdin {
    /// The end of file at once.
    Empty,
    /// Bytes that go with the run.
    Whole(Bytes),
    /// What is read as the guest asks for it.
    Live(StdinSource),
}

/// Where live input comes from. Nothing is read ahead by this process's own buffers.
#[derive(Debug)]
pub(super) struct StdinSource {
    file: File,
    /// For messages.
    name: String,
    /// Whether what was read can be given back.
    seekable: bool,
}

impl StdinSource {
    /// This command's standard input; `None` where nothing can come from it: it is closed, or /dev/null.
    pub(super) fn standard() -> Result<Option<Self>, Failure> {
        let name = "standard input".to_owned();
        // The same open file, with the position that it shares with whoever reads after this command.
        let file = io::stdin().as_fd().try_clone_to_owned();
        let file = file.map_err(|error| unreadable(&name, &error))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(|error| unreadable(&name, &error))?;
        // What was closed is /dev/null since this program's start.
        let null = std::fs::metadata("/dev/null").map(|null| null.rdev());
        let is_null =
            metadata.file_type().is_char_device() && null.is_ok_and(|null| null == metadata.rdev());
        let seekable = metadata.is_file();
        Ok((!is_null).then_some(Self {
            file,
            name,
            seekable,
        }))
    }

    /// The file at `path`.
    pub(super) fn open(path: &OsStr) -> Result<Self, Failure> {
        let name = printable(&Path::new(path).display().to_string());
        let opened = File::open(path).and_then(|file| {
            let metadata = file.metadata()?;
            match metadata.is_dir() {
                true => Err(io::ErrorKind::IsADirectory.into()),
                false => Ok((file, metadata.is_file())),
            }
        });
        let (file, seekable) = opened.map_err(|error| unreadable(&name, &error))?;
        Ok(Self {
            file,
            name,
            seekable,
        })
    }

    /// All of it, to its end.
    pub(super) fn read_whole(mut self) -> Result<Bytes, Failure> {
        let mut bytes = Vec::new();
        let read = self.file.read_to_end(&mut bytes);
        read.map_err(|error| unreadable(&self.name, &error))?;
        Ok(bytes.into())
    }

    /// Whether what was read can be given back.
    pub(super) fn is_seekable(&self) -> bool {
        self.seekable
    }

    /// The failure to read it.
    pub(super) fn unreadable(&self, error: &io::Error) -> Failure {
        unreadable(&self.name, error)
    }

    /// Waits until a read would give something: bytes, the end or an error. A file always does. False where it does not
    /// within no time, and `patient` is false.
    pub(super) fn wait(&self, patient: bool) -> io::Result<bool> {
        if self.seekable {
            return Ok(true);
        }
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let timeout = (!patient).then_some(&at_once);
        loop {
            let mut fds = [PollFd::new(&self.file, PollFlags::IN)];
            match poll(&mut fds, timeout) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads once; `None` where another took what was there.
    pub(super) fn read(&self, piece: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match (&self.file).read(piece) {
                Ok(n) => return Ok(Some(n)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Gives the last `bytes` that were read back to whoever reads next.
    pub(super) fn give_back(&self, bytes: u64) {
        if self.seekable
            && bytes > 0
            && let Ok(bytes) = i64::try_from(bytes)
        {
            // Beside this command's own place, since others may read the same open file.
            let _ = (&self.file).seek(SeekFrom::Current(-bytes));
        }
    }
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::new(format!("cannot read {name}: {error}"))
}
