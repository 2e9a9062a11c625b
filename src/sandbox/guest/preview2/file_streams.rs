//! Streams that read and write files. The runtime's own streams would start reads and writes that
//! nothing waits for, as many at once as a guest has streams. These streams make one call at a time
//! for each run, on the threads for file system calls, and only while the guest waits for it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::{BoxFuture, FutureExt};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::filesystem::types::{Descriptor, ErrorCode};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, InputStream, OutputStream, Pollable, StreamError, StreamResult,
};
use wasmtime_wasi::{WasiView, async_trait};

use crate::sandbox::guest::guest_state::GuestState;
use crate::sandbox::guest::stdio::ANY_AMOUNT;
use crate::sandbox::schedule::file_threads::FileCalls;

/// The maximum number of bytes of one read or write, which a stream holds for its guest without
/// being charged.
pub(super) const FILE_PIECE: usize = 64 << 10;
/// How many bytes a stream that writes to a file says it takes: any amount, in pieces. No other
/// stream says the same number.
pub(super) const ANY_AMOUNT_OF_FILE: usize = ANY_AMOUNT - 1;
/// How many bytes are read ahead for a guest that only asked whether there is something to read.
const READ_AHEAD: usize = 4 << 10;

/// The result of creating a stream: the stream, or the reason why there is none.
type NewStreamResult<T> = wasmtime::Result<Result<Resource<T>, ErrorCode>>;

/// Creates a stream that reads a file from an offset on.
pub(super) fn read(
    state: &mut GuestState,
    file: &Resource<Descriptor>,
    offset: u64,
) -> NewStreamResult<DynInputStream> {
    let files = state.files.clone();
    let table = state.ctx().table;
    let file = match table.get(file)? {
        Descriptor::File(file) => Arc::clone(&file.file),
        Descriptor::Dir(_) => return Ok(Err(ErrorCode::IsDirectory)),
    };
    let stream: DynInputStream = Box::new(FileReader {
        file,
        files,
        offset,
        state: ReadState::Idle,
    });
    Ok(Ok(table.push(stream)?))
}

/// Creates a stream that writes to a file at `at`.
pub(super) fn write(
    state: &mut GuestState,
    file: &Resource<Descriptor>,
    at: WriteAt,
) -> NewStreamResult<DynOutputStream> {
    let files = state.files.clone();
    let table = state.ctx().table;
    let file = match table.get(file)? {
        Descriptor::File(file) if file.perms.write_not_permitted() => {
            return Ok(Err(ErrorCode::NotPermitted));
        }
        Descriptor::File(file) => Arc::clone(&file.file),
        Descriptor::Dir(_) => return Ok(Err(ErrorCode::BadDescriptor)),
    };
    let stream: DynOutputStream = Box::new(FileWriter {
        file,
        files,
        at,
        state: WriteState::Idle,
    });
    Ok(Ok(table.push(stream)?))
}

/// An input stream that reads a file, one piece at a time.
struct FileReader {
    file: Arc<File>,
    files: FileCalls,
    offset: u64,
    state: ReadState,
}

enum ReadState {
    Idle,
    /// A read that has begun, or will begin once the guest waits for it.
    Reading(BoxFuture<'static, io::Result<Bytes>>),
    Read(Bytes),
    Failed(io::Error),
    Closed,
}

impl FileReader {
    /// Begins a read of at most `size` bytes, which makes progress when it is awaited.
    fn begin(&mut self, size: usize) {
        let (file, files, offset) = (Arc::clone(&self.file), self.files.clone(), self.offset);
        let size = size.min(FILE_PIECE);
        let reading = async move { files.blocking(move || read_at(&file, size, offset)).await };
        self.state = ReadState::Reading(reading.boxed());
    }

    /// Waits for the read that has begun, if there is one.
    async fn wait(&mut self) {
        if let ReadState::Reading(reading) = &mut self.state {
            self.state = match reading.await {
                Ok(bytes) if bytes.is_empty() => ReadState::Closed,
                Ok(bytes) => ReadState::Read(bytes),
                Err(error) => ReadState::Failed(error),
            };
        }
    }
}

fn read_at(file: &File, size: usize, offset: u64) -> io::Result<Bytes> {
    let mut bytes = BytesMut::zeroed(size);
    loop {
        match file.read_at(&mut bytes, offset) {
            Ok(read) => {
                bytes.truncate(read);
                return Ok(bytes.freeze());
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[async_trait]
impl Pollable for FileReader {
    async fn ready(&mut self) {
        if matches!(self.state, ReadState::Idle) {
            self.begin(READ_AHEAD);
        }
        self.wait().await;
    }
}

#[async_trait]
impl InputStream for FileReader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match &mut self.state {
            ReadState::Idle if size == 0 => Ok(Bytes::new()),
            ReadState::Idle => {
                self.begin(size);
                Ok(Bytes::new())
            }
            ReadState::Reading(_) => Ok(Bytes::new()),
            ReadState::Read(bytes) => {
                let now = bytes.split_to(bytes.len().min(size));
                if bytes.is_empty() {
                    self.state = ReadState::Idle;
                }
                self.offset += now.len() as u64;
                Ok(now)
            }
            ReadState::Failed(_) => {
                let failed = std::mem::replace(&mut self.state, ReadState::Closed);
                let ReadState::Failed(error) = failed else {
                    return Err(StreamError::Closed);
                };
                Err(StreamError::LastOperationFailed(error.into()))
            }
            ReadState::Closed => Err(StreamError::Closed),
        }
    }

    async fn blocking_read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size > 0 && matches!(self.state, ReadState::Idle) {
            self.begin(size);
        }
        self.wait().await;
        self.read(size)
    }
}

/// The position at which a stream writes.
#[derive(Clone, Copy, Debug)]
pub(super) enum WriteAt {
    /// At an offset, which advances with each write.
    Offset(u64),
    /// At the end of the file, wherever that is at the time of the write.
    End,
}

/// An output stream that writes to a file, one piece at a time.
struct FileWriter {
    file: Arc<File>,
    files: FileCalls,
    at: WriteAt,
    state: WriteState,
}

enum WriteState {
    Idle,
    /// A write that has begun, or will begin once the guest waits for it.
    Writing(BoxFuture<'static, io::Result<usize>>),
    Failed(io::Error),
    Closed,
}

impl FileWriter {
    /// Begins a write, which makes progress when it is awaited.
    fn begin(&mut self, bytes: Bytes) {
        let (file, files, at) = (Arc::clone(&self.file), self.files.clone(), self.at);
        let writing = async move { files.blocking(move || write_all(&file, &bytes, at)).await };
        self.state = WriteState::Writing(writing.boxed());
    }

    /// Waits for the write that has begun, if there is one.
    async fn wait(&mut self) {
        if let WriteState::Writing(writing) = &mut self.state {
            self.state = match writing.await {
                Ok(written) => {
                    if let WriteAt::Offset(offset) = &mut self.at {
                        *offset += written as u64;
                    }
                    WriteState::Idle
                }
                Err(error) => WriteState::Failed(error),
            };
        }
    }

    /// Returns the error of the last write, once; after that, returns that the stream is closed. It
    /// succeeds where no write failed.
    fn failure(&mut self) -> StreamResult<()> {
        match self.state {
            WriteState::Idle | WriteState::Writing(_) => Ok(()),
            WriteState::Failed(_) => {
                let failed = std::mem::replace(&mut self.state, WriteState::Closed);
                let WriteState::Failed(error) = failed else {
                    return Err(StreamError::Closed);
                };
                Err(StreamError::LastOperationFailed(error.into()))
            }
            WriteState::Closed => Err(StreamError::Closed),
        }
    }
}

fn write_all(file: &File, bytes: &[u8], at: WriteAt) -> io::Result<usize> {
    match at {
        WriteAt::Offset(offset) => file.write_all_at(bytes, offset)?,
        WriteAt::End => {
            let mut left = bytes;
            while !left.is_empty() {
                let written = append(file, left)?;
                left = left.get(written..).unwrap_or_default();
            }
        }
    }
    Ok(bytes.len())
}

/// Writes at the end of a file. The descriptor's own position stays where it is.
fn append(file: &File, bytes: &[u8]) -> io::Result<usize> {
    let pieces = [io::IoSlice::new(bytes)];
    match pwritev2(file, &pieces, 0, ReadWriteFlags::APPEND) {
        Ok(written) => Ok(written),
        Err(Errno::INTR) => Ok(0),
        // A kernel that cannot append gets a write at the file's current length. Nothing else of
        // this run writes meanwhile.
        Err(Errno::NOSYS | Errno::OPNOTSUPP) => file.write_at(bytes, file.metadata()?.len()),
        Err(error) => Err(error.into()),
    }
}

#[async_trait]
impl Pollable for FileWriter {
    async fn ready(&mut self) {
        self.wait().await;
    }
}

#[async_trait]
impl OutputStream for FileWriter {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.failure()?;
        if matches!(self.state, WriteState::Writing(_)) || bytes.len() > FILE_PIECE {
            return Err(StreamError::trap("wrote more than there is room for"));
        }
        self.begin(bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.failure()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.failure()?;
        Ok(match self.state {
            WriteState::Writing(_) => 0,
            WriteState::Idle | WriteState::Failed(_) | WriteState::Closed => ANY_AMOUNT_OF_FILE,
        })
    }

    async fn blocking_write_and_flush(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.wait().await;
        self.write(bytes)?;
        self.wait().await;
        self.failure()
    }
}
