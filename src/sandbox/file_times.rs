//! What guests learn of files: their kind, size and times. The times of a host's files tell the real
//! time, as soon as somebody writes to one, or a guest sets one to "now". Where the real clock is
//! withheld, all of them read as the start of the deterministic one, whatever they are; what a guest
//! sets is set on the host, where others see it.

use std::time::Duration;

use wasmtime::component::{self, Resource, WasmStr};
use wasmtime::{Caller, Linker, StoreContextMut};
use wasmtime_wasi::filesystem::WasiFilesystemView;
use wasmtime_wasi::p0::wasi_unstable;
use wasmtime_wasi::p1::types::Errno;
use wasmtime_wasi::p1::wasi_snapshot_preview1::{self, WasiSnapshotPreview1};
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Descriptor, DescriptorStat, ErrorCode, HostDescriptor, PathFlags,
};
use wiggle::{GuestMemory, GuestPtr};

use super::clock::START;
use super::host::{Clock, State, memory};
use super::preview1::{CALL_BYTES, Version, code, is_too_long};
use super::preview2;
use super::regular::INTERFACE;

const SUCCESS: i32 = 0;
/// Times of a file: of access, of modification, of change.
const TIMES: u32 = 3;

/// Replaces `fd_filestat_get` and `path_filestat_get` of preview 1 and of `wasi_unstable`.
pub(super) fn add_core(linker: &mut Linker<State>, clock: Clock) -> wasmtime::Result<()> {
    for (module, version) in [
        ("wasi_snapshot_preview1", Version::Preview1),
        ("wasi_unstable", Version::Unstable),
    ] {
        linker.func_wrap_async(
            module,
            "fd_filestat_get",
            move |caller: Caller<'_, State>, (fd, out): (i32, i32)| {
                Box::new(core_stat(caller, fd, None, out, version, clock))
            },
        )?;
        linker.func_wrap_async(
            module,
            "path_filestat_get",
            move |caller: Caller<'_, State>,
                  (dir, flags, path, len, out): (i32, i32, i32, i32, i32)| {
                let path = Some((flags, path, len));
                Box::new(core_stat(caller, dir, path, out, version, clock))
            },
        )?;
    }
    Ok(())
}

/// Looks at a descriptor, or at a path (with how it is followed, and its length) from there.
async fn core_stat(
    mut caller: Caller<'_, State>,
    fd: i32,
    path: Option<(i32, i32, i32)>,
    out: i32,
    version: Version,
    clock: Clock,
) -> wasmtime::Result<i32> {
    if path.is_some_and(|(_, _, len)| is_too_long(len)) {
        return Ok(code(Errno::Nametoolong));
    }
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let files = state.file_calls(fd);
    let (wasi, guest) = (state.wasi.get(), &mut memory);
    WasiSnapshotPreview1::set_hostcall_fuel(wasi, CALL_BYTES);
    let looking = async {
        match (version, path) {
            (Version::Preview1, None) => {
                wasi_snapshot_preview1::fd_filestat_get(wasi, guest, fd, out).await
            }
            (Version::Unstable, None) => wasi_unstable::fd_filestat_get(wasi, guest, fd, out).await,
            (Version::Preview1, Some((flags, path, len))) => {
                wasi_snapshot_preview1::path_filestat_get(wasi, guest, fd, flags, path, len, out)
                    .await
            }
            (Version::Unstable, Some((flags, path, len))) => {
                wasi_unstable::path_filestat_get(wasi, guest, fd, flags, path, len, out).await
            }
        }
    };
    let errno = files.run(looking).await?;
    if errno == SUCCESS && clock == Clock::Stepped {
        let first = match version {
            Version::Preview1 => 40,
            Version::Unstable => 32,
        };
        let times = GuestPtr::<u64>::new(out.cast_unsigned()).cast::<u8>();
        let times = times.add(first)?.cast::<u64>().as_array(TIMES);
        for time in times.iter() {
            memory.write(time?, nanoseconds(START))?;
        }
    }
    Ok(errno)
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Replaces `stat` and `stat-at` of components.
pub(super) fn add_component(
    linker: &mut component::Linker<State>,
    clock: Clock,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut interface = linker.instance(INTERFACE)?;
    interface.func_wrap_async(
        "[method]descriptor.stat",
        move |mut store: StoreContextMut<'_, State>, (file,): (Resource<Descriptor>,)| {
            Box::new(async move {
                let calls = store.data().files.clone();
                let mut files = store.data_mut().filesystem();
                let looking = HostDescriptor::stat(&mut files, file);
                component_stat(calls.run(looking).await, clock)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]descriptor.stat-at",
        move |mut store: StoreContextMut<'_, State>,
              (dir, flags, given): (Resource<Descriptor>, PathFlags, WasmStr)| {
            Box::new(async move {
                let Some(path) = preview2::path(&store, &given)? else {
                    return Ok((Err(ErrorCode::NameTooLong),));
                };
                let calls = store.data().files.clone();
                let mut files = store.data_mut().filesystem();
                let looking = HostDescriptor::stat_at(&mut files, dir, flags, path);
                component_stat(calls.run(looking).await, clock)
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// What `stat` and `stat-at` give.
type Stat = (Result<DescriptorStat, ErrorCode>,);

fn component_stat(stat: FsResult<DescriptorStat>, clock: Clock) -> wasmtime::Result<Stat> {
    let mut stat = match stat {
        Ok(stat) => stat,
        Err(error) => return Ok((Err(error.downcast()?),)),
    };
    if clock == Clock::Stepped {
        let start = Datetime {
            seconds: START.as_secs(),
            nanoseconds: START.subsec_nanos(),
        };
        stat.data_access_timestamp = Some(start);
        stat.data_modification_timestamp = Some(start);
        stat.status_change_timestamp = Some(start);
    }
    Ok((Ok(stat),))
}
