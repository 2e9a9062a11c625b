//! Defines the calls on files and directories that are the runtime's own, but run on the threads
//! for file system calls ([`crate::sandbox::schedule::file_threads`]) and with paths of a bounded
//! length. The functions that return file attributes are in [`crate::sandbox::guest::file_times`].

use wasmtime::{Caller, Linker};
use wasmtime_wasi::p0::wasi_unstable;
use wasmtime_wasi::p1::types::Errno;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self, WasiSnapshotPreview1};
use wiggle::GuestMemory;

use super::{CALL_BYTES, WasiVersion, errno_code, is_too_long, memory_calls};
use crate::sandbox::guest::guest_state::{GuestState, memory};
use crate::sandbox::guest::memory_files::Route;

/// Defines a function on descriptors or paths. For paths, the arguments that hold their lengths are
/// named, so that a path that is too long is not looked at; and so are the descriptors, by which it
/// is decided where the call goes.
macro_rules! define_call {
    (
        $linker:expr, $name:ident, ($first:ident $(, $arg:ident)*), [$($len:ident),*],
        [$($fd:ident),+]
    ) => {
        for (module, version) in [
            ("wasi_snapshot_preview1", WasiVersion::Preview1),
            ("wasi_unstable", WasiVersion::Unstable),
        ] {
            $linker.func_wrap_async(
                module,
                stringify!($name),
                move |mut caller: Caller<'_, GuestState>,
                      ($first, $($arg,)*): (i32, $(argument!(@type $arg),)*)| {
                    Box::new(async move {
                        let lengths: [i32; _] = [$($len),*];
                        if lengths.into_iter().any(is_too_long) {
                            return Ok(errno_code(Errno::Nametoolong));
                        }
                        route!(caller, [$($fd),+] => {
                            memory_calls::$name(caller, version, ($first, $($arg,)*)).await
                        });
                        let memory = memory(&mut caller)?;
                        let (bytes, state) = memory.data_and_store_mut(&mut caller);
                        let mut memory = GuestMemory::Unshared(bytes);
                        let files = argument!(@calls $first, $first, state);
                        let wasi = state.wasi.get();
                        WasiSnapshotPreview1::set_hostcall_fuel(wasi, CALL_BYTES);
                        let call = async {
                            runtime!(version, $name(wasi, &mut memory, $first, $($arg),*))
                        };
                        files.run(call).await
                    })
                },
            )?;
        }
    };
}

/// Gives the type of an argument, by its name, and, by the name of the first argument, what makes
/// the call: a call on a standard stream needs no thread.
macro_rules! argument {
    (@type accessed) => {
        i64
    };
    (@type modified) => {
        i64
    };
    (@type offset) => {
        i64
    };
    (@type size) => {
        i64
    };
    (@type $arg:ident) => {
        i32
    };
    (@calls fd, $fd:ident, $state:ident) => {
        $state.file_calls($fd)
    };
    (@calls $first:ident, $same:ident, $state:ident) => {
        $state.files.clone()
    };
}

/// Replaces these functions in `linker`, for descriptors and for paths.
pub(super) fn add(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    add_descriptors(linker)?;
    add_paths(linker)
}

fn add_descriptors(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    define_call!(linker, fd_advise, (fd, offset, size, advice), [], [fd]);
    define_call!(linker, fd_datasync, (fd), [], [fd]);
    define_call!(linker, fd_fdstat_get, (fd, out), [], [fd]);
    define_call!(linker, fd_filestat_set_size, (fd, size), [], [fd]);
    define_call!(
        linker,
        fd_filestat_set_times,
        (fd, accessed, modified, which),
        [],
        [fd]
    );
    define_call!(linker, fd_seek, (fd, offset, whence, out), [], [fd]);
    define_call!(linker, fd_sync, (fd), [], [fd]);
    Ok(())
}

fn add_paths(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    define_call!(
        linker,
        path_create_directory,
        (dir, path, len),
        [len],
        [dir]
    );
    define_call!(
        linker,
        path_filestat_set_times,
        (dir, flags, path, len, accessed, modified, which),
        [len],
        [dir]
    );
    define_call!(
        linker,
        path_link,
        (dir, flags, path, len, to_dir, to, to_len),
        [len, to_len],
        [dir, to_dir]
    );
    define_call!(
        linker,
        path_readlink,
        (dir, path, len, buf, buf_len, out),
        [len],
        [dir]
    );
    define_call!(
        linker,
        path_remove_directory,
        (dir, path, len),
        [len],
        [dir]
    );
    define_call!(
        linker,
        path_rename,
        (dir, path, len, to_dir, to, to_len),
        [len, to_len],
        [dir, to_dir]
    );
    define_call!(
        linker,
        path_symlink,
        (path, len, dir, to, to_len),
        [len, to_len],
        [dir]
    );
    define_call!(linker, path_unlink_file, (dir, path, len), [len], [dir]);
    Ok(())
}
