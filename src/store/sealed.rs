//! Files in memory (memfd) that nobody can change once they are sealed.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags};

/// A file in memory that is sealed against writing, growing and shrinking, for everybody who has it
/// open.
#[derive(Debug)]
pub struct SealedFile {
    file: File,
    len: u64,
}

/// Creates a file in memory that can be sealed later.
///
/// # Errors
/// Fails where the host has no descriptor or no memory for it.
pub fn create_sealable(name: &str) -> io::Result<File> {
    Ok(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?.into())
}

impl SealedFile {
    /// Seals `file`, which [`create_sealable`] made.
    ///
    /// # Errors
    /// Fails where anybody has the file mapped for writing.
    pub fn seal(file: File) -> io::Result<Self> {
        rustix::fs::fcntl_add_seals(
            &file,
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        let len = file.metadata()?.len();
        Ok(Self { file, len })
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Reports whether the file is empty.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the file. Its position is undefined.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Returns a reader from the start of the file, which ignores the file's position.
    pub fn reader(&self) -> impl Read + '_ {
        SealedReader {
            sealed: self,
            at: 0,
        }
    }
}

struct SealedReader<'a> {
    sealed: &'a SealedFile,
    at: u64,
}

impl Read for SealedReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.sealed.file.read_at(buf, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
