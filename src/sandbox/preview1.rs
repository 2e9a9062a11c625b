//! Host calls of preview 1 and of `wasi_unstable` that a guest can make large, or that open and
//! close files. Large ones are done here in pieces (see [`super::pace`]), so that no size fails and
//! none delays the run's end; the runtime's own functions see single pieces. What a guest may pass
//! by size: any buffer, paths of [`PATH`], polls of as many subscriptions as it may have
//! handles.

use wasmtime::{Caller, Linker};
use wasmtime_wasi::p0::wasi_unstable;
use wasmtime_wasi::p1::types::{self, Errno};
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self, WasiSnapshotPreview1};
use wiggle::{GuestMemory, GuestPtr};

use super::files::FileCalls;
use super::handles::HandlesFull;
use super::host::{State, memory};
use super::pace::{PIECE_BYTES, Pace};
use super::stdio::GuestOutput;
use crate::guest_limits::PATH;

/// What the runtime may copy for one of its own calls: a piece, or two paths.
pub(super) const CALL_BYTES: usize = PIECE_BYTES + (64 << 10);
/// What it may copy for each subscription and event of a poll.
const POLL_BYTES: usize = 256;
/// The most random bytes of one piece.
pub(super) const RANDOM_PIECE: u32 = 64 << 10;
/// Bytes of an iovec.
const IOVEC_BYTES: u32 = 8;
/// Empty buffers that are skipped before others may run.
const SKIPPED_AT_ONCE: u32 = 1 << 16;
const SUCCESS: i32 = 0;

/// Which of the two interfaces a call is of.
#[derive(Clone, Copy, Debug)]
pub(super) enum Version {
    /// `wasi_snapshot_preview1`
    Preview1,
    /// `wasi_unstable`
    Unstable,
}

/// Calls the runtime's own function of the version.
macro_rules! runtime {
    ($version:expr, $name:ident($($arg:expr),* $(,)?)) => {
        match $version {
            Version::Preview1 => wasi_snapshot_preview1::$name($($arg),*).await,
            Version::Unstable => wasi_unstable::$name($($arg),*).await,
        }
    };
}

/// Defines a function in both interfaces.
macro_rules! define {
    ($linker:expr, $name:literal, $args:ty, $function:ident $(, $more:expr)*) => {
        for (module, version) in [
            ("wasi_snapshot_preview1", Version::Preview1),
            ("wasi_unstable", Version::Unstable),
        ] {
            $linker.func_wrap_async(module, $name, move |caller: Caller<'_, State>, args: $args| {
                Box::new($function(caller, args, version $(, $more)*))
            })?;
        }
    };
}

mod file_calls;

/// Whether a path of a length that a guest gave is too long to be looked at.
pub(super) fn is_too_long(len: i32) -> bool {
    u64::from(len.cast_unsigned()) > PATH.number
}

/// What stands for an error in both interfaces.
pub(super) fn code(errno: Errno) -> i32 {
    errno as i32
}

/// What a guest is told whose `open` finds no place.
pub(super) fn errno_of(full: HandlesFull) -> i32 {
    code(match full {
        HandlesFull::Run => Errno::Mfile,
        HandlesFull::Process => Errno::Nfile,
    })
}

/// Replaces the functions. `path_open` is in [`super::regular`], and what tells of files in
/// [`super::file_times`].
pub(super) fn add(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    define!(linker, "fd_read", Vector, read, None);
    define!(linker, "fd_write", Vector, write);
    define!(linker, "fd_pread", VectorAt, read_at);
    define!(linker, "fd_pwrite", VectorAt, write_at);
    define!(linker, "random_get", (i32, i32), random_get);
    define!(linker, "poll_oneoff", (i32, i32, i32, i32), poll_oneoff);
    define!(linker, "fd_close", (i32,), fd_close);
    define!(linker, "fd_renumber", (i32, i32), fd_renumber);
    file_calls::add(linker)
}

/// What `fd_read` and `fd_write` take: a descriptor, buffers and their number, where the count of
/// bytes goes.
type Vector = (i32, i32, i32, i32);
/// What `fd_pread` and `fd_pwrite` take, which have an offset beside that.
type VectorAt = (i32, i32, i32, i64, i32);

async fn read_at(
    caller: Caller<'_, State>,
    (fd, iovs, count, offset, out): VectorAt,
    version: Version,
) -> wasmtime::Result<i32> {
    read(caller, (fd, iovs, count, out), version, Some(offset)).await
}

async fn write_at(
    caller: Caller<'_, State>,
    (fd, iovs, count, offset, out): VectorAt,
    version: Version,
) -> wasmtime::Result<i32> {
    write_file(caller, (fd, iovs, count, out), version, Some(offset)).await
}

/// A buffer of the guest, and where its iovec stands.
struct Buffer {
    iovec: i32,
    start: u32,
    len: u32,
}

/// The first of a guest's buffers that is not empty: reading and writing may stop after it, and the
/// runtime does.
async fn first_buffer(
    memory: &GuestMemory<'_>,
    (iovs, count): (i32, i32),
    pace: &mut Pace<'_>,
) -> wasmtime::Result<Option<Buffer>> {
    let iovecs = GuestPtr::<[types::Ciovec]>::new((iovs.cast_unsigned(), count.cast_unsigned()));
    for (i, iovec) in (0_u32..).zip(iovecs.iter()) {
        let iovec = iovec?;
        let types::Ciovec { buf, buf_len } = memory.read(iovec)?;
        if buf_len > 0 {
            return Ok(Some(Buffer {
                iovec: iovec.offset().cast_signed(),
                start: buf.offset(),
                len: buf_len,
            }));
        }
        if i % SKIPPED_AT_ONCE == SKIPPED_AT_ONCE - 1 {
            pace.between().await?;
        }
    }
    Ok(None)
}

/// Reads into the first buffer that is not empty: a file until that is full, or the file at its
/// end; input as long as that does not wait.
async fn read(
    mut caller: Caller<'_, State>,
    (fd, iovs, count, out): Vector,
    version: Version,
    offset: Option<i64>,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let stop = &*state.stop;
    let wasi = state.wasi.get();
    let mut pace = Pace::new(stop);
    let first = first_buffer(&memory, (iovs, count), &mut pace).await?;
    WasiSnapshotPreview1::set_hostcall_fuel(wasi, CALL_BYTES);
    let guest_fd = types::Fd::from(fd.cast_unsigned());
    // Input waits for its writer, which may take as long as the run.
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
            Err(error) if done == 0 => return Ok(code(error.downcast()?)),
            // What was read counts: the guest meets the error when it reads on.
            Err(error) => {
                let _: Errno = error.downcast()?;
                break;
            }
        };
        let start = buffer.start.checked_add(done);
        let start = start.ok_or(wasmtime::Trap::MemoryOutOfBounds)?;
        memory.copy_from_slice(piece.filled(read), GuestPtr::new((start, read)))?;
        done += read;
        // A file's stream gives less than was asked for at a time; its end is where it gives
        // nothing.
        let more = match is_file {
            true => read > 0,
            false => read == want && state.input.as_ref().is_none_or(|input| input.is_ready()),
        };
        if !more {
            break;
        }
        pace.between().await?;
    }
    memory.write(GuestPtr::<u32>::new(out.cast_unsigned()), done)?;
    Ok(SUCCESS)
}

async fn write(
    mut caller: Caller<'_, State>,
    (fd, iovs, count, out): Vector,
    version: Version,
) -> wasmtime::Result<i32> {
    if !matches!(fd, 1 | 2) || caller.data().moved.contains(fd) {
        // Apart, so that room for what a file takes is not made for each line of output.
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
        return Ok(code(Errno::Nomem));
    };
    memory.write(GuestPtr::<u32>::new(out.cast_unsigned()), written)?;
    Ok(SUCCESS)
}

/// Writes all buffers, however large: not every guest looks at how much was written. `None` where the
/// first is longer than the guest's memory, `longest`, which no memory could make right.
async fn write_output(
    memory: &GuestMemory<'_>,
    longest: usize,
    (iovs, count): (i32, i32),
    stream: &GuestOutput,
) -> wasmtime::Result<Option<u32>> {
    let mut pace = Pace::new(&stream.stop);
    let iovecs = GuestPtr::<[types::Ciovec]>::new((iovs.cast_unsigned(), count.cast_unsigned()));
    let mut written = 0_u32;
    for (i, iovec) in (0_u32..).zip(iovecs.iter()) {
        let types::Ciovec { buf, buf_len } = memory.read(iovec?)?;
        if buf_len as usize > longest {
            return Ok((written > 0).then_some(written));
        }
        if buf_len > 0 {
            // Buffers that overlap may be more than a count can tell: the rest is another write's.
            let Some(sum) = written.checked_add(buf_len) else {
                break;
            };
            let bytes = memory.as_cow(buf.as_array(buf_len))?;
            stream.write_all(&bytes, &mut pace).await?;
            written = sum;
        }
        if i % SKIPPED_AT_ONCE == SKIPPED_AT_ONCE - 1 {
            pace.between().await?;
        }
    }
    Ok(Some(written))
}

/// Writes the first buffer that is not empty, all of it where the file takes it.
async fn write_file(
    mut caller: Caller<'_, State>,
    (fd, iovs, count, out): Vector,
    version: Version,
    offset: Option<i64>,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let stop = &*state.stop;
    let files = state.files.clone();
    let wasi = state.wasi.get();
    let mut pace = Pace::new(stop);
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
            Err(error) if done == 0 => return Ok(code(error.downcast()?)),
            // What was written counts: the guest meets the error when it writes on.
            Err(error) => {
                let _: Errno = error.downcast()?;
                break;
            }
        }
        pace.between().await?;
    }
    memory.write(GuestPtr::<u32>::new(out.cast_unsigned()), done)?;
    Ok(SUCCESS)
}

/// A memory of the host's that holds one iovec and its buffer, which the runtime takes for the
/// guest's.
struct ScratchMemory(Vec<u8>);

impl ScratchMemory {
    fn new() -> Self {
        Self(vec![0; IOVEC_BYTES as usize + PIECE_BYTES])
    }

    /// Makes the buffer as large as `left`, or a piece, and returns that.
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
    mut caller: Caller<'_, State>,
    (buf, len): (i32, i32),
    version: Version,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let mut pace = Pace::new(&state.stop);
    let (mut start, mut left) = (buf.cast_unsigned(), len.cast_unsigned());
    loop {
        let piece = left.min(RANDOM_PIECE);
        let (wasi, at, len) = (state.wasi.get(), start.cast_signed(), piece.cast_signed());
        let result = match version {
            Version::Preview1 => wasi_snapshot_preview1::random_get(wasi, &mut memory, at, len),
            Version::Unstable => wasi_unstable::random_get(wasi, &mut memory, at, len),
        };
        let errno = result?;
        left -= piece;
        if left == 0 || errno != SUCCESS {
            return Ok(errno);
        }
        start = start
            .checked_add(piece)
            .ok_or(wasmtime::Trap::MemoryOutOfBounds)?;
        pace.between().await?;
    }
}

async fn poll_oneoff(
    mut caller: Caller<'_, State>,
    (subs, events, count, out): (i32, i32, i32, i32),
    version: Version,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    if !may_poll(state, count) {
        return Ok(code(Errno::Inval));
    }
    let mut memory = GuestMemory::Unshared(bytes);
    let wasi = state.wasi.get();
    WasiSnapshotPreview1::set_hostcall_fuel(wasi, count.cast_unsigned() as usize * POLL_BYTES);
    runtime!(
        version,
        poll_oneoff(wasi, &mut memory, subs, events, count, out)
    )
}

/// Whether a guest may poll for so much at once. Each subscription takes two entries of its
/// resource table for as long as the call takes, and descriptors take at most a quarter of that.
pub(super) fn may_poll(state: &State, count: i32) -> bool {
    count.cast_unsigned() as usize <= state.handles.most()
}

async fn fd_close(
    mut caller: Caller<'_, State>,
    (fd,): (i32,),
    version: Version,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let errno = runtime!(version, fd_close(state.wasi.get(), &mut memory, fd))?;
    if errno == SUCCESS {
        let number = fd.cast_unsigned();
        state.moved.add(fd);
        state.handles.close(number);
        state.listings.close(number, &mut state.meter);
    }
    Ok(errno)
}

async fn fd_renumber(
    mut caller: Caller<'_, State>,
    (from, to): (i32, i32),
    version: Version,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let errno = runtime!(
        version,
        fd_renumber(state.wasi.get(), &mut memory, from, to)
    )?;
    if errno == SUCCESS && from != to {
        state.moved.add(from);
        state.moved.add(to);
        let (from, to) = (from.cast_unsigned(), to.cast_unsigned());
        state.handles.renumber(from, to);
        state.listings.renumber(from, to, &mut state.meter);
    }
    Ok(errno)
}
