//! The calls of core modules that open no file but change or describe a descriptor: closing,
//! renumbering, and what a guest asks of the directories that it begins with.

use wasmtime::{Caller, Linker};
use wasmtime_wasi::p0::wasi_unstable;
use wasmtime_wasi::p1::types::Errno;
use wasmtime_wasi::p1::wasi_snapshot_preview1;
use wiggle::GuestMemory;

use super::{SUCCESS, WasiVersion, errno_code, memory_calls};
use crate::sandbox::guest::guest_state::{GuestState, memory};
use crate::sandbox::guest::memory_files::{ClosedDescriptor, Route};
use crate::sync::lock;

/// Defines a function that does not wait, in both versions of the interface. It is the runtime's
/// own, unless it is called on the memory file system.
macro_rules! define_now {
    ($linker:expr, $name:ident, ($fd:ident $(, $arg:ident: $type:ty)*) => $memory:expr) => {
        $linker.func_wrap(
            "wasi_snapshot_preview1",
            stringify!($name),
            |mut caller: Caller<'_, GuestState>, $fd: i32 $(, $arg: $type)*| -> wasmtime::Result<i32> {
                route!(caller, [$fd] => $memory(&mut caller, ($fd, $($arg,)*)));
                let memory = memory(&mut caller)?;
                let (bytes, state) = memory.data_and_store_mut(&mut caller);
                let mut memory = GuestMemory::Unshared(bytes);
                let wasi = state.wasi.get();
                wasi_snapshot_preview1::$name(wasi, &mut memory, $fd $(, $arg)*)
            },
        )?;
        $linker.func_wrap(
            "wasi_unstable",
            stringify!($name),
            |mut caller: Caller<'_, GuestState>, $fd: i32 $(, $arg: $type)*| -> wasmtime::Result<i32> {
                route!(caller, [$fd] => $memory(&mut caller, ($fd, $($arg,)*)));
                let memory = memory(&mut caller)?;
                let (bytes, state) = memory.data_and_store_mut(&mut caller);
                let mut memory = GuestMemory::Unshared(bytes);
                let wasi = state.wasi.get();
                wasi_unstable::$name(wasi, &mut memory, $fd $(, $arg)*)
            },
        )?;
    };
}

/// Replaces the functions that describe a descriptor, and `fd_allocate`, which files in memory
/// have and others do not.
pub(super) fn add(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    define_now!(linker, fd_fdstat_set_flags, (fd, flags: i32) => memory_calls::fd_fdstat_set_flags);
    define_now!(linker, fd_fdstat_set_rights, (fd, base: i64, inheriting: i64) => unsupported);
    define_now!(linker, fd_prestat_get, (fd, out: i32) => memory_calls::fd_prestat_get);
    define_now!(
        linker,
        fd_prestat_dir_name,
        (fd, path: i32, len: i32) => memory_calls::fd_prestat_dir_name
    );
    define_now!(linker, fd_tell, (fd, out: i32) => memory_calls::fd_tell);
    for (module, version) in [
        ("wasi_snapshot_preview1", WasiVersion::Preview1),
        ("wasi_unstable", WasiVersion::Unstable),
    ] {
        linker.func_wrap_async(
            module,
            "fd_allocate",
            move |caller: Caller<'_, GuestState>, args: (i32, i64, i64)| {
                Box::new(fd_allocate(caller, args, version))
            },
        )?;
    }
    Ok(())
}

/// Answers `fd_fdstat_set_rights`: no descriptor has rights that could be changed.
fn unsupported(_: &mut Caller<'_, GuestState>, _: (i32, i64, i64)) -> wasmtime::Result<i32> {
    Ok(errno_code(Errno::Notsup))
}

async fn fd_allocate(
    mut caller: Caller<'_, GuestState>,
    (fd, offset, size): (i32, i64, i64),
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    route!(caller, [fd] => memory_calls::fd_allocate(caller, (fd, offset, size)).await);
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let (mut memory, wasi) = (GuestMemory::Unshared(bytes), state.wasi.get());
    match version {
        WasiVersion::Preview1 => {
            wasi_snapshot_preview1::fd_allocate(wasi, &mut memory, fd, offset, size)
        }
        WasiVersion::Unstable => wasi_unstable::fd_allocate(wasi, &mut memory, fd, offset, size),
    }
}

/// Closes a descriptor, of the runtime or of the memory file system.
pub(super) async fn fd_close(
    mut caller: Caller<'_, GuestState>,
    (fd,): (i32,),
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    let Some(files) = &mut caller.data_mut().memory_files else {
        return close_runtime(&mut caller, fd, version).await;
    };
    match files.descriptors.close(fd) {
        Ok(closed) => close(&mut caller, fd, closed, version).await,
        Err(errno) => Ok(errno_code(errno)),
    }
}

/// Closes what a number of the guest led to.
async fn close(
    caller: &mut Caller<'_, GuestState>,
    fd: i32,
    closed: ClosedDescriptor,
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    let state = caller.data_mut();
    state.replaced_stdio.add(fd);
    match closed {
        ClosedDescriptor::Runtime(number) => {
            close_runtime(caller, number.cast_signed(), version).await
        }
        ClosedDescriptor::Memory(descriptor) => {
            if let Some(listing) = descriptor.listing {
                listing.release(&mut state.memory_limiter);
            }
            // The directories that a guest begins with are counted as host directories are.
            state.handles.release_in_memory();
            if let Some(files) = &state.memory_files {
                lock(&files.fs).release(descriptor.node);
            }
            memory_calls::sweep(caller).await?;
            Ok(SUCCESS)
        }
    }
}

/// Closes a descriptor that the runtime has under the number `fd`.
async fn close_runtime(
    caller: &mut Caller<'_, GuestState>,
    fd: i32,
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    let memory = memory(caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut *caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let errno = runtime!(version, fd_close(state.wasi.get(), &mut memory, fd))?;
    if errno == SUCCESS {
        let number = fd.cast_unsigned();
        state.replaced_stdio.add(fd);
        state.handles.close(number);
        state.listings.close(number, &mut state.memory_limiter);
    }
    Ok(errno)
}

/// Makes one number lead where another does.
pub(super) async fn fd_renumber(
    mut caller: Caller<'_, GuestState>,
    (from, to): (i32, i32),
    version: WasiVersion,
) -> wasmtime::Result<i32> {
    if let Some(files) = &mut caller.data_mut().memory_files {
        let table = &mut files.descriptors;
        if !table.contains(from) || !table.contains(to) {
            return Ok(errno_code(Errno::Badf));
        }
        if from == to {
            return Ok(SUCCESS);
        }
        let replaced = table.close(to);
        table.renumber(from, to);
        caller.data_mut().replaced_stdio.add(from);
        return match replaced {
            Ok(replaced) => close(&mut caller, to, replaced, version).await,
            Err(errno) => Ok(errno_code(errno)),
        };
    }
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let errno = runtime!(
        version,
        fd_renumber(state.wasi.get(), &mut memory, from, to)
    )?;
    if errno == SUCCESS && from != to {
        state.replaced_stdio.add(from);
        state.replaced_stdio.add(to);
        let (from, to) = (from.cast_unsigned(), to.cast_unsigned());
        state.handles.renumber(from, to);
        state.listings.renumber(from, to, &mut state.memory_limiter);
    }
    Ok(errno)
}
