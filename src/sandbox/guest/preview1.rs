//! Replaces the host calls of WASI preview 1 and of `wasi_unstable` that a guest can make large, or
//! that open and close files. Large calls are done here in pieces (see [`super::host_call_pacer`]),
//! so that no size fails and none delays the run's end; the runtime's own functions see single
//! pieces. The sizes that a guest may pass are any buffer, paths of up to [`PATH`], and polls of as
//! many subscriptions as it may have handles.

use wasmtime::{Caller, Linker};
use wasmtime_wasi::p0::wasi_unstable;
use wasmtime_wasi::p1::types::{self, Errno};
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self, WasiSnapshotPreview1};
use wiggle::{GuestMemory, GuestPtr};

use super::guest_state::{GuestState, memory};
use super::handles::HandlesFull;
use super::host_call_pacer::{HostCallPacer, PIECE_BYTES};
use super::memory_files::Route;
use super::stdin::Input;
use super::stdio::GuestOutput;
use super::wasi::RANDOM_PIECE;
use crate::model::guest_limits::PATH;
use crate::sandbox::schedule::file_threads::FileCalls;

/// How many bytes the runtime may copy for one of its own calls: a piece, or two paths.
pub(in crate::sandbox) const CALL_BYTES: usize = PIECE_BYTES + (64 << 10);

/// The size of an iovec in bytes.
const IOVEC_BYTES: u32 = 8;
/// How many empty buffers are skipped before other guests may run.
const SKIPPED_AT_ONCE: u32 = 1 << 16;
const SUCCESS: i32 = 0;

/// The interface that a call belongs to, of the two that are replaced.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) enum WasiVersion {
    /// The interface `wasi_snapshot_preview1`, WASI preview 1.
    Preview1,
    /// The older interface `wasi_unstable`.
    Unstable,
}

/// Calls the runtime's own function in the given version of the interface.
macro_rules! runtime {
    ($version:expr, $name:ident($($arg:expr),* $(,)?)) => {
        match $version {
            WasiVersion::Preview1 => wasi_snapshot_preview1::$name($($arg),*).await,
            WasiVersion::Unstable => wasi_unstable::$name($($arg),*).await,
        }
    };
}

/// Defines a function in both versions of the interface.
macro_rules! define {
    ($linker:expr, $name:literal, $args:ty, $function:path $(, $more:expr)*) => {
        for (module, version) in [
            ("wasi_snapshot_preview1", WasiVersion::Preview1),
            ("wasi_unstable", WasiVersion::Unstable),
        ] {
            $linker.func_wrap_async(module, $name, move |caller: Caller<'_, GuestState>, args: $args| {
                Box::new($function(caller, args, version $(, $more)*))
            })?;
        }
    };
}

/// Decides where a call on descriptors goes. One that goes to the runtime goes on with the numbers
/// that the runtime knows; one on the memory file system is answered by `$memory`.
macro_rules! route {
    ($caller:expr, [$($fd:ident),+] => $memory:expr) => {
        let [$($fd),+] = match $caller.data().route([$($fd),+]) {
            Route::Runtime(fds) => fds,
            Route::Memory => return $memory,
            Route::Refused(errno) => return Ok(errno_code(errno)),
        };
    };
}

mod descriptors;
mod file_calls;
pub(in crate::sandbox) mod memory_calls;
mod memory_io;
pub(in crate::sandbox) mod memory_open;
mod poll;

/// Reports whether a path of the length that a guest gave is too long to be looked at.
pub(in crate::sandbox) fn is_too_long(len: i32) -> bool {
    u64::from(len.cast_unsigned()) > PATH.number
}

/// Returns the number of an error, which is the same in both interfaces.
pub(in crate::sandbox) fn errno_code(errno: Errno) -> i32 {
    errno as i32
}

/// Returns the error for a guest whose `open` finds no free handle.
pub(in crate::sandbox) fn errno_of(full: HandlesFull) -> i32 {
    errno_code(match full {
        HandlesFull::Run => Errno::Mfile,
        HandlesFull::Process => Errno::Nfile,
    })
}

/// Replaces the functions in `linker`. `path_open` is in [`super::file_types`], and the functions
/// that return file attributes are in [`super::file_times`].
pub(in crate::sandbox) fn add(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    define!(linker, "fd_read", VectoredIoArgs, read, None);
    define!(linker, "fd_write", VectoredIoArgs, write);
    define!(linker, "fd_pread", PositionedIoArgs, read_at);
    define!(linker, "fd_pwrite", PositionedIoArgs, write_at);
    define!(linker, "random_get", (i32, i32), random_get);
    define!(
        linker,
        "poll_oneoff",
        (i32, i32, i32, i32),
        poll::poll_oneoff
    );
    define!(linker, "fd_close", (i32,), descriptors::fd_close);
    define!(linker, "fd_renumber", (i32, i32), descriptors::fd_renumber);
    descriptors::add(linker)?;
    file_calls::add(linker)
}

/// The arguments of `fd_read` and `fd_write`: a descriptor, the buffers and their number, and where
/// the count of bytes goes.
type VectoredIoArgs = (i32, i32, i32, i32);
/// The arguments of `fd_pread` and `fd_pwrite`, which also have an offset.
type PositionedIoArgs = (i32, i32, i32, i64, i32);

async fn read_at(
    caller: Caller<'_, GuestState>,
    (fd, iovs, count, offset, out): PositionedIoArgs,
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    read(caller, (fd, iovs, count, out), version, Some(offset)).await
}

async fn write_at(
    caller: Caller<'_, GuestState>,
    (fd, iovs, count, offset, out): PositionedIoArgs,
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    route!(caller, [fd] => memory_io::write(caller, (fd, iovs, count, out), Some(offset)).await);
    write_file(caller, (fd, iovs, count, out), version, Some(offset)).await
}

/// A buffer of the guest, with the address of its iovec.
struct GuestBuffer {
    iovec: i32,
    start: u32,
    len: u32,
}

/// Finds the first of a guest's buffers that is not empty. Reading and writing may stop after it,
/// and the runtime does.
async fn first_buffer(
    memory: &GuestMemory<'_>,
    (iovs, count): (i32, i32),
    pace: &mut HostCallPacer<'_>,
) -> wasmtime::Result<Option<GuestBuffer>> {
    let iovecs = GuestPtr::<[types::Ciovec]>::new((iovs.cast_unsigned(), count.cast_unsigned()));
    for (i, iovec) in (0_u32..).zip(iovecs.iter()) {
        let iovec = iovec?;
        let types::Ciovec { buf, buf_len } = memory.read(iovec)?;
        if buf_len > 0 {
            return Ok(Some(GuestBuffer {
                iovec: iovec.offset().cast_signed(),
                start: buf.offset(),
                len: buf_len,
            }));
        }
        if i % SKIPPED_AT_ONCE == SKIPPED_AT_ONCE - 1 {
            pace.checkpoint().await?;
        }
    }
    Ok(None)
}

/// Reads into the first buffer that is not empty. A file is read until the buffer is full or the
/// file ends; stdin only as far as that does not wait.
async fn read(
    caller: Caller<'_, GuestState>,
    (fd, iovs, count, out): VectoredIoArgs,
    version: WasiVersion,
    offset: Option<i64>,
) -> wasmtime::Result<i32> {
    route!(caller, [fd] => {
        let args = (fd, iovs, count, out);
        // Boxed, so that the read of a guest without such files has no room for this one.
        Box::pin(memory_io::read(caller, args, offset)).await
    });
    read_runtime(caller, (fd, iovs, count, out), version, offset).await
}

/// Reads from a descriptor of the runtime.
async fn read_runtime(
    mut caller: Caller<'_, GuestState>,
    (fd, iovs, count, out): VectoredIoArgs,
    version: WasiVersion,
    offset: Option<i64>,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let stop = &*state.stop;
    let wasi = state.wasi.get();
    let mut pace = HostCallPacer::new(stop);
    let first = first_buffer(&memory, (iovs, count), &mut pace).await?;
    WasiSnapshotPreview1::set_hostcall_fuel(wasi, CALL_BYTES);
    let guest_fd = types::Fd::from(fd.cast_unsigned());
    // Stdin waits for its writer, which may take as long as the run.
    let is_file =
        offset.is_some() || WasiSnapshotPreview1::fd_tell(wasi, &mut memory, guest_fd).is_ok();
    let files = match is_file {
        true => state.files.clone(),
        false => FileCalls::none(),
    };
    let Some(buffer) = first.as_ref().filter(|it| it.len as usize > PIECE_BYTES) else {
        let (iovs, count) = first.map_or((0, 0), |buffer| (buffer.iovec, 1));
        let memory = &mut memory;
        let call = async {
            match offset {
                None => runtime!(version, fd_read(wasi, memory, fd, iovs, count, out)),
                Some(at) => runtime!(version, fd_pread(wasi, memory, fd, iovs, count, at, out)),
            }
        };
        return files.run(call).await;
    };
    let mut piece = ScratchMemory::new();
    let mut done = 0;
    while done < buffer.len {
        let want = piece.prepare(buffer.len - done);
        WasiSnapshotPreview1::set_hostcall_fuel(wasi, CALL_BYTES);
        let mut host = GuestMemory::Unshared(&mut piece.0);
        let iovec = GuestPtr::new((0, 1));
        let call = async {
            match offset {
                None => WasiSnapshotPreview1::fd_read(wasi, &mut host, guest_fd, iovec).await,
                Some(offset) => {
                    let at = offset.cast_unsigned().saturating_add(u64::from(done));
                    WasiSnapshotPreview1::fd_pread(wasi, &mut host, guest_fd, iovec, at).await
                }
            }
        };
        let read = match files.run(call).await {
            Ok(read) => read,
            Err(error) if done == 0 => return Ok(errno_code(error.downcast()?)),
            // What was read counts: the guest gets the error when it reads on.
            Err(error) => {
                let _: Errno = error.downcast()?;
                break;
            }
        };
        let start = buffer.start.checked_add(done);
        let start = start.ok_or(wasmtime::Trap::MemoryOutOfBounds)?;
        memory.copy_from_slice(piece.filled(read), GuestPtr::new((start, read)))?;
        done += read;
        if !has_more(state.input.as_deref(), is_file, read, read == want) {
            break;
        }
        pace.checkpoint().await?;
    }
    memory.write(GuestPtr::<u32>::new(out.cast_unsigned()), done)?;
    Ok(SUCCESS)
}

/// Reports whether a read goes on after a piece of `read` bytes. The piece filled its buffer if
/// `is_full`.
fn has_more(input: Option<&Input>, is_file: bool, read: u32, is_full: bool) -> bool {
    match is_file {
        // A file's stream returns less than was asked for at a time. Its end is where it returns
        // nothing.
        true => read > 0,
        false => is_full && input.is_none_or(Input::is_ready),
    }
}

async fn write(
    mut caller: Caller<'_, GuestState>,
    (fd, iovs, count, out): VectoredIoArgs,
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    if !matches!(fd, 1 | 2) || caller.data().replaced_stdio.contains(fd) {
        route!(caller, [fd] => {
            Box::pin(memory_io::write(caller, (fd, iovs, count, out), None)).await
        });
        // This is a separate future, so that each line of output does not allocate the space that a
        // file write takes.
        return Box::pin(write_file(caller, (fd, iovs, count, out), version, None)).await;
    }
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let longest = bytes.len();
    let mut memory = GuestMemory::Unshared(bytes);
    let stream = match fd {
        1 => &state.stdout,
        _ => &state.stderr,
    };
    let Some(written) = write_output(&memory, longest, (iovs, count), stream).await? else {
        return Ok(errno_code(Errno::Nomem));
    };
    memory.write(GuestPtr::<u32>::new(out.cast_unsigned()), written)?;
    Ok(SUCCESS)
}

/// Writes all buffers, however large, since not every guest looks at how much was written. Returns
/// `None` where the first buffer is longer than the guest's memory, `longest`, which no memory
/// could satisfy.
async fn write_output(
    memory: &GuestMemory<'_>,
    longest: usize,
    (iovs, count): (i32, i32),
    stream: &GuestOutput,
) -> wasmtime::Result<Option<u32>> {
    let mut pace = HostCallPacer::new(&stream.stop);
    let iovecs = GuestPtr::<[types::Ciovec]>::new((iovs.cast_unsigned(), count.cast_unsigned()));
    let mut written = 0_u32;
    for (i, iovec) in (0_u32..).zip(iovecs.iter()) {
        let types::Ciovec { buf, buf_len } = memory.read(iovec?)?;
        if buf_len as usize > longest {
            return Ok((written > 0).then_some(written));
        }
        if buf_len > 0 {
            // Buffers that overlap may add up to more than the count can hold. The guest has to
            // write the rest in another call.
            let Some(sum) = written.checked_add(buf_len) else {
                break;
            };
            let bytes = memory.as_cow(buf.as_array(buf_len))?;
            stream.write_all(&bytes, &mut pace).await?;
            written = sum;
        }
        if i % SKIPPED_AT_ONCE == SKIPPED_AT_ONCE - 1 {
            pace.checkpoint().await?;
        }
    }
    Ok(Some(written))
}

/// Writes the first buffer that is not empty, all of it if the file takes it.
async fn write_file(
    mut caller: Caller<'_, GuestState>,
    (fd, iovs, count, out): VectoredIoArgs,
    version: WasiVersion,
    offset: Option<i64>,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let stop = &*state.stop;
    let files = state.files.clone();
    let wasi = state.wasi.get();
    let mut pace = HostCallPacer::new(stop);
    let first = first_buffer(&memory, (iovs, count), &mut pace).await?;
    WasiSnapshotPreview1::set_hostcall_fuel(wasi, CALL_BYTES);
    let Some(buffer) = first.as_ref().filter(|it| it.len as usize > PIECE_BYTES) else {
        let (iovs, count) = first.map_or((0, 0), |buffer| (buffer.iovec, 1));
        let memory = &mut memory;
        let call = async {
            match offset {
                None => runtime!(version, fd_write(wasi, memory, fd, iovs, count, out)),
                Some(at) => runtime!(version, fd_pwrite(wasi, memory, fd, iovs, count, at, out)),
            }
        };
        return files.run(call).await;
    };
    let guest_fd = types::Fd::from(fd.cast_unsigned());
    let mut piece = ScratchMemory::new();
    let mut done = 0;
    while done < buffer.len {
        let want = piece.prepare(buffer.len - done);
        let start = buffer.start.checked_add(done);
        let start = start.ok_or(wasmtime::Trap::MemoryOutOfBounds)?;
        let bytes = memory.as_cow(GuestPtr::new((start, want)))?;
        piece.fill(&bytes);
        WasiSnapshotPreview1::set_hostcall_fuel(wasi, CALL_BYTES);
        let mut host = GuestMemory::Unshared(&mut piece.0);
        let iovec = GuestPtr::new((0, 1));
        let call = async {
            match offset {
                None => WasiSnapshotPreview1::fd_write(wasi, &mut host, guest_fd, iovec).await,
                Some(offset) => {
                    let at = offset.cast_unsigned().saturating_add(u64::from(done));
                    WasiSnapshotPreview1::fd_pwrite(wasi, &mut host, guest_fd, iovec, at).await
                }
            }
        };
        match files.run(call).await {
            Ok(0) => break,
            Ok(written) => done += written,
            Err(error) if done == 0 => return Ok(errno_code(error.downcast()?)),
            // What was written counts: the guest gets the error when it writes on.
            Err(error) => {
                let _: Errno = error.downcast()?;
                break;
            }
        }
        pace.checkpoint().await?;
    }
    memory.write(GuestPtr::<u32>::new(out.cast_unsigned()), done)?;
    Ok(SUCCESS)
}

/// A memory of the host that holds one iovec and its buffer, and that the runtime takes for the
/// guest's memory.
struct ScratchMemory(Vec<u8>);

impl ScratchMemory {
    fn new() -> Self {
        Self(vec![0; IOVEC_BYTES as usize + PIECE_BYTES])
    }

    /// Sets the buffer's length to `left`, or to one piece if that is less, and returns the length.
    fn prepare(&mut self, left: u32) -> u32 {
        let len = u32::try_from(PIECE_BYTES).map_or(left, |piece| left.min(piece));
        let (iovec, _) = self.0.split_at_mut(IOVEC_BYTES as usize);
        let (start, length) = iovec.split_at_mut(4);
        start.copy_from_slice(&IOVEC_BYTES.to_le_bytes());
        length.copy_from_slice(&len.to_le_bytes());
        len
    }

    fn fill(&mut self, bytes: &[u8]) {
        let start = IOVEC_BYTES as usize;
        self.0[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn filled(&self, len: u32) -> &[u8] {
        let start = IOVEC_BYTES as usize;
        &self.0[start..start + len as usize]
    }
}

async fn random_get(
    mut caller: Caller<'_, GuestState>,
    (buf, len): (i32, i32),
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let mut pace = HostCallPacer::new(&state.stop);
    let (mut start, mut left) = (buf.cast_unsigned(), len.cast_unsigned());
    loop {
        let piece = left.min(RANDOM_PIECE);
        let (wasi, at, len) = (state.wasi.get(), start.cast_signed(), piece.cast_signed());
        let result = match version {
            WasiVersion::Preview1 => wasi_snapshot_preview1::random_get(wasi, &mut memory, at, len),
            WasiVersion::Unstable => wasi_unstable::random_get(wasi, &mut memory, at, len),
        };
        let errno = result?;
        left -= piece;
        if left == 0 || errno != SUCCESS {
            return Ok(errno);
        }
        start = start
            .checked_add(piece)
            .ok_or(wasmtime::Trap::MemoryOutOfBounds)?;
        pace.checkpoint().await?;
    }
}

/// Reports whether a guest may poll for `count` subscriptions at once. Each takes two entries of
/// the guest's resource table for the duration of the call, and descriptors take at most a quarter
/// of that table.
pub(in crate::sandbox) fn may_poll(state: &GuestState, count: i32) -> bool {
    count.cast_unsigned() as usize <= state.handles.most()
}
