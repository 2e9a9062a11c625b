//! The sources of standard input for the guest of `ringfence run`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Failure;
use crate::model::refusal::printable;

/// The standard input that a guest is given.
pub(super) enum GuestStdin {
    /// The input ends at once.
    Empty,
    /// The input is sent with the run.
    Whole(Bytes),
    /// The input is read as the guest asks for it.
    Live(StdinSource),
}

/// A source of live input. It has no buffer in this process, so that nothing is read ahead.
#[derive(Debug)]
pub(super) struct StdinSource {
    file: File,
    /// The name of the source, for error messages.
    name: String,
    /// Whether the source can seek, so that what was read can be given back.
    seekable: bool,
}

impl StdinSource {
    /// Opens this command's standard input; `None` where it is closed or /dev/null, so that nothing
    /// can come from it.
    pub(super) fn standard() -> Result<Option<Self>, Failure> {
        let name = "standard input".to_owned();
        // The clone is the same open file, and shares its position with whoever reads after this
        // command.
        let file = io::stdin().as_fd().try_clone_to_owned();
        let file = file.map_err(|error| unreadable(&name, &error))?;
        let file = File::from(file);
        let metadata = file.metadata().map_err(|error| unreadable(&name, &error))?;
        // A standard input that was closed has been /dev/null since the start of this program.
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

    /// Opens the file at `path` as a source.
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

    /// Reads the whole input, up to its end.
    pub(super) fn read_whole(mut self) -> Result<Bytes, Failure> {
        let mut bytes = Vec::new();
        let read = self.file.read_to_end(&mut bytes);
        read.map_err(|error| unreadable(&self.name, &error))?;
        Ok(bytes.into())
    }

    /// Reports whether what was read can be given back.
    pub(super) fn is_seekable(&self) -> bool {
        self.seekable
    }

    /// Converts an error of reading the source to a failure.
    pub(super) fn unreadable(&self, error: &io::Error) -> Failure {
        unreadable(&self.name, error)
    }

    /// Waits until a read would return something: bytes, the end or an error. For a file that is
    /// always so. It returns false if nothing is there at once and `patient` is false.
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

    /// Reads once; `None` where another reader took what was there.
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
            // The seek is relative to the current position, since others may read from the same
            // open file.
            let _ = (&self.file).seek(SeekFrom::Current(-bytes));
        }
    }
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::new(format!("cannot read {name}: {error}"))
}
