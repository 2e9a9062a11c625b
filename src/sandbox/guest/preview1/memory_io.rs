//! Reads and writes of core modules on files of their run's memory file system, in pieces.

use std::sync::Arc;

use wasmtime::Caller;
use wasmtime_wasi::p1::types::{Errno, Fdflags};
use wiggle::{GuestMemory, GuestPtr};

use super::{GuestBuffer, SUCCESS, VectoredIoArgs, errno_code, first_buffer};
use crate::sandbox::guest::guest_state::{GuestState, memory};
use crate::sandbox::guest::host_call_pacer::{HostCallPacer, PIECE_BYTES};
use crate::sandbox::guest::memory_files::MemoryDescriptor;
use crate::sandbox::guest::memory_fs::{NodeId, SharedFs, WritePosition};
use crate::sync::lock;

/// A file that a guest reads or writes.
struct OpenFile {
    fs: SharedFs,
    node: NodeId,
    position: u64,
    appends: bool,
}

impl OpenFile {
    /// Finds the file of a descriptor, if it was opened for what is to be done.
    fn of(
        state: &mut GuestState,
        fd: i32,
        offset: Option<i64>,
        allows: impl FnOnce(&MemoryDescriptor) -> bool,
    ) -> Result<Self, Errno> {
        let files = state.memory_files.as_mut().ok_or(Errno::Badf)?;
        let fs = Arc::clone(&files.fs);
        let descriptor = files.descriptors.memory(fd)?;
        if descriptor.is_directory || !allows(descriptor) {
            return Err(Errno::Badf);
        }
        let position = match offset {
            Some(offset) => u64::try_from(offset).map_err(|_| Errno::Inval)?,
            None => descriptor.position,
        };
        Ok(Self {
            fs,
            node: descriptor.node,
            position,
            appends: descriptor.flags & Fdflags::APPEND.bits() != 0,
        })
    }

    /// Moves the descriptor's position, unless the call had an offset of its own.
    fn moved(state: &mut GuestState, fd: i32, offset: Option<i64>, position: u64) {
        let files = state.memory_files.as_mut();
        if let (None, Some(files)) = (offset, files)
            && let Ok(descriptor) = files.descriptors.memory(fd)
        {
            descriptor.position = position;
        }
    }
}

/// Returns the part of a guest's buffer that begins after `done` bytes, at most a piece.
fn piece(buffer: &GuestBuffer, done: u32) -> wasmtime::Result<GuestPtr<[u8]>> {
    let left = buffer.len - done;
    let length = u32::try_from(PIECE_BYTES).map_or(left, |piece| left.min(piece));
    let start = buffer.start.checked_add(done);
    let start = start.ok_or(wasmtime::Trap::MemoryOutOfBounds)?;
    Ok(GuestPtr::new((start, length)))
}

/// Reads into the first buffer that is not empty, until it is full or the file ends.
pub(super) async fn read(
    mut caller: Caller<'_, GuestState>,
    (fd, iovs, count, out): VectoredIoArgs,
    offset: Option<i64>,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut guest = GuestMemory::Unshared(bytes);
    let stop = Arc::clone(&state.stop);
    let mut pace = HostCallPacer::new(&stop);
    let first = first_buffer(&guest, (iovs, count), &mut pace).await?;
    let file = match OpenFile::of(state, fd, offset, |descriptor| descriptor.can_read) {
        Ok(file) => file,
        Err(errno) => return Ok(errno_code(errno)),
    };
    let mut done = 0;
    while let Some(buffer) = first.as_ref().filter(|buffer| done < buffer.len) {
        let Some(into) = guest.as_slice_mut(piece(buffer, done)?)? else {
            return Ok(errno_code(Errno::Fault));
        };
        let at = file.position.saturating_add(u64::from(done));
        let read = match lock(&file.fs).read(file.node, at, into) {
            Ok(read) => u32::try_from(read).unwrap_or_default(),
            Err(error) => return Ok(errno_code(error.into())),
        };
        if read == 0 {
            break;
        }
        done += read;
        pace.checkpoint().await?;
    }
    OpenFile::moved(state, fd, offset, file.position + u64::from(done));
    guest.write(GuestPtr::<u32>::new(out.cast_unsigned()), done)?;
    Ok(SUCCESS)
}

/// Writes the first buffer that is not empty, all of it if there is memory for it.
pub(super) async fn write(
    mut caller: Caller<'_, GuestState>,
    (fd, iovs, count, out): VectoredIoArgs,
    offset: Option<i64>,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut guest = GuestMemory::Unshared(bytes);
    let stop = Arc::clone(&state.stop);
    let mut pace = HostCallPacer::new(&stop);
    let first = first_buffer(&guest, (iovs, count), &mut pace).await?;
    let file = match OpenFile::of(state, fd, offset, |descriptor| descriptor.can_write) {
        Ok(file) => file,
        Err(errno) => return Ok(errno_code(errno)),
    };
    let (mut done, mut position) = (0, file.position);
    while let Some(buffer) = first.as_ref().filter(|buffer| done < buffer.len) {
        let from = guest.as_cow(piece(buffer, done)?)?;
        let at = match file.appends {
            true => WritePosition::End,
            false => WritePosition::Offset(position),
        };
        let written = lock(&file.fs).write(file.node, at, &from);
        let (written, end) = match written {
            Ok(written) => written,
            Err(error) if done == 0 => return Ok(errno_code(error.into())),
            // What was written counts: the guest gets the error when it writes on.
            Err(_) => break,
        };
        let is_short = written < from.len();
        position = end;
        done += u32::try_from(written).unwrap_or_default();
        if is_short {
            break;
        }
        pace.checkpoint().await?;
    }
    OpenFile::moved(state, fd, offset, position);
    guest.write(GuestPtr::<u32>::new(out.cast_unsigned()), done)?;
    Ok(SUCCESS)
}
