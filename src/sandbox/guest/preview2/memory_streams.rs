//! Streams of components that read and write files in memory. They are always ready.

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;
use wasmtime_wasi::async_trait;
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, InputStream, OutputStream, Pollable, StreamError, StreamResult,
};

use super::file_streams::{ANY_AMOUNT_OF_FILE, FILE_PIECE};
use crate::sandbox::guest::memory_fs::{FileError, NodeId, SharedFs, WritePosition};
use crate::sync::lock;

/// A file that a stream has open until it is dropped.
struct StreamedFile {
    fs: SharedFs,
    node: NodeId,
}

impl StreamedFile {
    fn open(fs: &SharedFs, node: NodeId) -> Self {
        lock(fs).retain(node);
        Self {
            fs: Arc::clone(fs),
            node,
        }
    }
}

impl Drop for StreamedFile {
    fn drop(&mut self) {
        lock(&self.fs).release(self.node);
    }
}

/// Returns the error of the system that stands for `error`, from which the guest gets its code.
fn io_error(error: FileError) -> io::Error {
    let errno = match error {
        FileError::NoSpace => Errno::NOSPC,
        FileError::TooLarge => Errno::FBIG,
        FileError::IsDirectory => Errno::ISDIR,
        FileError::BadDescriptor
        | FileError::Busy
        | FileError::Exists
        | FileError::Invalid
        | FileError::Loop
        | FileError::NameTooLong
        | FileError::NotDirectory
        | FileError::NotEmpty
        | FileError::NotFound
        | FileError::NotPermitted
        | FileError::ReadOnly => Errno::IO,
    };
    errno.into()
}

/// Creates a stream that reads a file from an offset on.
pub(super) fn reader(fs: &SharedFs, node: NodeId, offset: u64) -> DynInputStream {
    Box::new(MemoryReader {
        file: StreamedFile::open(fs, node),
        offset,
    })
}

/// Creates a stream that writes to a file.
pub(super) fn writer(fs: &SharedFs, node: NodeId, at: WritePosition) -> DynOutputStream {
    Box::new(MemoryWriter {
        file: StreamedFile::open(fs, node),
        at,
        is_closed: false,
    })
}

/// An input stream that reads a file in memory.
struct MemoryReader {
    file: StreamedFile,
    offset: u64,
}

#[async_trait]
impl Pollable for MemoryReader {
    async fn ready(&mut self) {}
}

#[async_trait]
impl InputStream for MemoryReader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let mut bytes = BytesMut::zeroed(size.min(FILE_PIECE));
        let read = lock(&self.file.fs).read(self.file.node, self.offset, &mut bytes);
        match read {
            Ok(0) => Err(StreamError::Closed),
            Ok(read) => {
                self.offset += read as u64;
                bytes.truncate(read);
                Ok(bytes.freeze())
            }
            Err(error) => Err(StreamError::LastOperationFailed(io_error(error).into())),
        }
    }
}

/// An output stream that writes to a file in memory.
struct MemoryWriter {
    file: StreamedFile,
    at: WritePosition,
    /// Whether a write has failed, after which there are no more.
    is_closed: bool,
}

#[async_trait]
impl Pollable for MemoryWriter {
    async fn ready(&mut self) {}
}

#[async_trait]
impl OutputStream for MemoryWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.check_write()?;
        if bytes.len() > FILE_PIECE {
            return Err(StreamError::trap("wrote more than there is room for"));
        }
        let mut left = &*bytes;
        while !left.is_empty() {
            let written = lock(&self.file.fs).write(self.file.node, self.at, left);
            match written {
                Ok((written, end)) => {
                    if let WritePosition::Offset(offset) = &mut self.at {
                        *offset = end;
                    }
                    left = left.get(written..).unwrap_or_default();
                }
                Err(error) => {
                    self.is_closed = true;
                    return Err(StreamError::LastOperationFailed(io_error(error).into()));
                }
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.check_write().map(|_| ())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        match self.is_closed {
            false => Ok(ANY_AMOUNT_OF_FILE),
            true => Err(StreamError::Closed),
        }
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.write(bytes)
    }
}
