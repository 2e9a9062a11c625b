//! Files in memory that nobody can change once they are sealed.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};

/// A file in memory, sealed against writing, growing and shrinking, also for whoever else has it open.
#[derive(Debug)]
pub struct Sealed {
    file: File,
    len: u64,
}

/// Creates a file in memory that can be sealed.
///
/// # Errors
/// Where the host has no descriptor or no memory for it.
pub fn unsealed(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into())
}

impl Sealed {
    /// Seals `file`, which [`unsealed`] made.
    ///
    /// # Errors
    /// Where anybody has it mapped to write.
    pub fn seal(file: File) -> io::Result<Self> {
        rustix::fs::fcntl_add_seals(
            &file,
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    /// Its bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file. Its position is nobody's to rely on.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Reads it from the start, whatever its position is.
    pub fn reader(&self) -> impl Read + '_ {
        Reader {
            sealed: self,
            at: 0,
        }
    }
}

struct Reader<'a> {
    sealed: &'a Sealed,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.sealed.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
