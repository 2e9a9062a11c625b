//! Replaces the calls that open files, so that guests open regular files and directories only. A
//! FIFO would hold a thread until somebody opens its other end, and a device is nobody's data. No
//! guest can make either. One race remains: what the host has put into a writable mount can be
//! renamed by one guest between the check and the open of another, which then holds a thread as it
//! would have without the check.

use std::sync::Arc;

use wasmtime::component::{self, Resource, WasmStr};
use wasmtime::{Caller, Linker, StoreContextMut};
use wasmtime_wasi::filesystem::WasiFilesystemView;
use wasmtime_wasi::p0::wasi_unstable;
use wasmtime_wasi::p1::types::{self, Errno, Filetype};
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self, WasiSnapshotPreview1};
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Descriptor, DescriptorFlags, DescriptorType, ErrorCode, HostDescriptor, OpenFlags, PathFlags,
};
use wiggle::{GuestMemory, GuestPtr};

use super::guest_state::{GuestState, memory};
use super::memory_files::Route;
use super::preview1::{errno_code, errno_of, is_too_long, memory_open};
use super::preview2::{self, memory_descriptor};
use crate::model::guest_limits::PATH;

/// The component interface that opens files, in the version that the runtime offers.
pub(in crate::sandbox) const FILESYSTEM_INTERFACE: &str = "wasi:filesystem/types@0.2.12";
/// The error that a core module gets for a file that it may not open.
const ERRNO_ACCES: i32 = 2;
const ERRNO_SUCCESS: i32 = 0;

/// The arguments of `path_open` of core modules.
type PathOpenArgs = (i32, i32, i32, i32, i32, i64, i64, i32, i32);

/// Replaces the call `path_open` of preview 1 and of `wasi_unstable`.
pub(in crate::sandbox) fn add_core(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    linker.func_wrap_async(
        "wasi_snapshot_preview1",
        "path_open",
        |caller: Caller<'_, GuestState>, args: PathOpenArgs| {
            Box::new(path_open(caller, args, false))
        },
    )?;
    linker.func_wrap_async(
        "wasi_unstable",
        "path_open",
        |caller: Caller<'_, GuestState>, args: PathOpenArgs| {
            Box::new(path_open(caller, args, true))
        },
    )?;
    Ok(())
}

async fn path_open(
    caller: Caller<'_, GuestState>,
    mut args: PathOpenArgs,
    unstable: bool,
) -> wasmtime::Result<i32> {
    if is_too_long(args.3) {
        return Ok(errno_code(Errno::Nametoolong));
    }
    match caller.data().route([args.0]) {
        Route::Runtime([dir]) => {
            args.0 = dir;
            open_on_host(caller, args, unstable).await
        }
        Route::Memory => Box::pin(memory_open::path_open(caller, args)).await,
        Route::Refused(errno) => Ok(errno_code(errno)),
    }
}

/// Opens a file of the host, from a directory that the runtime has under the number `dir`.
async fn open_on_host(
    mut caller: Caller<'_, GuestState>,
    (dir, follow, path, len, how, base, inheriting, flags, out): PathOpenArgs,
    unstable: bool,
) -> wasmtime::Result<i32> {
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let files = state.files.clone();
    let wasi = state.wasi.get();
    WasiSnapshotPreview1::set_hostcall_fuel(wasi, PATH.size());
    if let Ok(lookup) = types::Lookupflags::try_from(follow.cast_unsigned()) {
        let name = GuestPtr::<str>::new((path.cast_unsigned(), len.cast_unsigned()));
        let dir = types::Fd::from(dir.cast_unsigned());
        let stat = WasiSnapshotPreview1::path_filestat_get(wasi, &mut memory, dir, lookup, name);
        // A path without attributes does not exist, or is refused below for what it is.
        if let Ok(stat) = files.run(stat).await
            && !matches!(
                stat.filetype,
                Filetype::RegularFile | Filetype::Directory | Filetype::SymbolicLink
            )
        {
            return Ok(ERRNO_ACCES);
        }
    }
    if let Err(full) = state.handles.reserve() {
        return Ok(errno_of(full));
    }
    WasiSnapshotPreview1::set_hostcall_fuel(wasi, PATH.size());
    // The two versions take the same arguments.
    macro_rules! open {
        ($version:ident) => {
            $version::path_open(
                wasi,
                &mut memory,
                dir,
                follow,
                path,
                len,
                how,
                base,
                inheriting,
                flags,
                out,
            )
            .await
        };
    }
    let opening = async {
        match unstable {
            true => open!(wasi_unstable),
            false => open!(wasi_snapshot_preview1),
        }
    };
    let errno = files.run(opening).await?;
    if errno == ERRNO_SUCCESS {
        let out = GuestPtr::<u32>::new(out.cast_unsigned());
        let fd = memory.read(out)?;
        state.handles.bind(fd);
        if let Some(files) = &mut state.memory_files {
            memory.write(out, files.descriptors.add_runtime(fd))?;
        }
    } else {
        state.handles.release_reserved();
    }
    Ok(errno)
}

/// Replaces the call `open-at` of components.
pub(in crate::sandbox) fn add_component(
    linker: &mut component::Linker<GuestState>,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut interface = linker.instance(FILESYSTEM_INTERFACE)?;
    interface.func_wrap_async(
        "[method]descriptor.open-at",
        |store: StoreContextMut<'_, GuestState>, args: OpenAtArgs| Box::new(open_at(store, args)),
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The arguments and the return type of `open-at`.
type OpenAtArgs = (
    Resource<Descriptor>,
    PathFlags,
    WasmStr,
    OpenFlags,
    DescriptorFlags,
);
type OpenAtResult = (Result<Resource<Descriptor>, ErrorCode>,);

async fn open_at(
    mut store: StoreContextMut<'_, GuestState>,
    (dir, follow, path, how, flags): OpenAtArgs,
) -> wasmtime::Result<OpenAtResult> {
    let Some(path) = preview2::bounded_path(&store, &path)? else {
        return Ok((Err(ErrorCode::NameTooLong),));
    };
    if let Some(dir) = memory_descriptor::memory_file(store.data_mut(), &dir) {
        let how = (how, flags);
        let state = store.data_mut();
        let opened = memory_descriptor::open_at(state, &dir, follow, &path, how)?;
        dir.sweep(Arc::clone(&store.data().stop)).await?;
        return Ok((opened,));
    }
    let calls = store.data().files.clone();
    let mut files = store.data_mut().filesystem();
    let again = Resource::new_borrow(dir.rep());
    let stat = HostDescriptor::stat_at(&mut files, again, follow, path.clone());
    // A path without attributes does not exist, or is refused below for what it is.
    if let Ok(stat) = calls.run(stat).await
        && !matches!(
            stat.type_,
            DescriptorType::RegularFile | DescriptorType::Directory | DescriptorType::SymbolicLink
        )
    {
        return Ok((Err(ErrorCode::Access),));
    }
    if store.data_mut().handles.reserve().is_err() {
        return Ok((Err(ErrorCode::InsufficientMemory),));
    }
    let mut files = store.data_mut().filesystem();
    let opening = HostDescriptor::open_at(&mut files, dir, follow, path, how, flags);
    let opened = calls.run(opening).await;
    let handles = &mut store.data_mut().handles;
    match opened {
        Ok(opened) => {
            handles.bind(opened.rep());
            Ok((Ok(opened),))
        }
        Err(error) => {
            handles.release_reserved();
            Ok((Err(error.downcast()?),))
        }
    }
}
