//! Replaces the calls that return the attributes of files: kind, size and times. The times of a
//! host's files would tell the real time, as soon as somebody writes to a file or a guest sets a
//! time to "now". Where the real clock is withheld, all of them read as the start of the
//! deterministic clock, whatever they are. A time that a guest sets is set on the host, where
//! others see it.

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

use super::file_types::FILESYSTEM_INTERFACE;
use super::guest_state::{GuestState, memory};
use super::memory_files::Route;
use super::preview1::{CALL_BYTES, WasiVersion, errno_code, is_too_long, memory_calls};
use super::preview2::{self, memory_descriptor};
use super::stepped_clock::{ClockKind, START};

const SUCCESS: i32 = 0;
/// The number of times that a file has: of access, of modification, of status change.
const TIMES: u32 = 3;

/// Replaces `fd_filestat_get` and `path_filestat_get` of preview 1 and of `wasi_unstable`.
pub(in crate::sandbox) fn add_core(
    linker: &mut Linker<GuestState>,
    clock: ClockKind,
) -> wasmtime::Result<()> {
    for (module, version) in [
        ("wasi_snapshot_preview1", WasiVersion::Preview1),
        ("wasi_unstable", WasiVersion::Unstable),
    ] {
        linker.func_wrap_async(
            module,
            "fd_filestat_get",
            move |caller: Caller<'_, GuestState>, (fd, out): (i32, i32)| {
                Box::new(core_stat(caller, fd, None, out, version, clock))
            },
        )?;
        linker.func_wrap_async(
            module,
            "path_filestat_get",
            move |caller: Caller<'_, GuestState>,
                  (dir, flags, path, len, out): (i32, i32, i32, i32, i32)| {
                let path = Some((flags, path, len));
                Box::new(core_stat(caller, dir, path, out, version, clock))
            },
        )?;
    }
    Ok(())
}

/// Returns the attributes of a descriptor, or of a path below it (given with its lookup flags and
/// its length).
async fn core_stat(
    mut caller: Caller<'_, GuestState>,
    fd: i32,
    path: Option<(i32, i32, i32)>,
    out: i32,
    version: WasiVersion,
    clock: ClockKind,
) -> wasmtime::Result<i32> {
    if path.is_some_and(|(_, _, len)| is_too_long(len)) {
        return Ok(errno_code(Errno::Nametoolong));
    }
    let [fd] = match (caller.data().route([fd]), path) {
        (Route::Runtime(fd), _) => fd,
        (Route::Memory, None) => {
            return memory_calls::fd_filestat_get(caller, version, (fd, out)).await;
        }
        (Route::Memory, Some((flags, path, len))) => {
            let args = (fd, flags, path, len, out);
            return memory_calls::path_filestat_get(caller, version, args).await;
        }
        (Route::Refused(errno), _) => return Ok(errno_code(errno)),
    };
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut memory = GuestMemory::Unshared(bytes);
    let files = state.file_calls(fd);
    let (wasi, guest) = (state.wasi.get(), &mut memory);
    WasiSnapshotPreview1::set_hostcall_fuel(wasi, CALL_BYTES);
    let looking = async {
        match (version, path) {
            (WasiVersion::Preview1, None) => {
                wasi_snapshot_preview1::fd_filestat_get(wasi, guest, fd, out).await
            }
            (WasiVersion::Unstable, None) => {
                wasi_unstable::fd_filestat_get(wasi, guest, fd, out).await
            }
            (WasiVersion::Preview1, Some((flags, path, len))) => {
                wasi_snapshot_preview1::path_filestat_get(wasi, guest, fd, flags, path, len, out)
                    .await
            }
            (WasiVersion::Unstable, Some((flags, path, len))) => {
                wasi_unstable::path_filestat_get(wasi, guest, fd, flags, path, len, out).await
            }
        }
    };
    let errno = files.run(looking).await?;
    if errno == SUCCESS && clock == ClockKind::Stepped {
        let first = match version {
            WasiVersion::Preview1 => 40,
            WasiVersion::Unstable => 32,
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

/// Replaces the calls `stat` and `stat-at` of components.
pub(in crate::sandbox) fn add_component(
    linker: &mut component::Linker<GuestState>,
    clock: ClockKind,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut interface = linker.instance(FILESYSTEM_INTERFACE)?;
    interface.func_wrap_async(
        "[method]descriptor.stat",
        move |mut store: StoreContextMut<'_, GuestState>, (file,): (Resource<Descriptor>,)| {
            Box::new(async move {
                if let Some(file) = memory_descriptor::memory_file(store.data_mut(), &file) {
                    return Ok((file.stat(),));
                }
                let calls = store.data().files.clone();
                let mut files = store.data_mut().filesystem();
                let looking = HostDescriptor::stat(&mut files, file);
                component_stat(calls.run(looking).await, clock)
            })
        },
    )?;
    interface.func_wrap_async(
        "[method]descriptor.stat-at",
        move |mut store: StoreContextMut<'_, GuestState>,
              (dir, flags, given): (Resource<Descriptor>, PathFlags, WasmStr)| {
            Box::new(async move {
                let Some(path) = preview2::bounded_path(&store, &given)? else {
                    return Ok((Err(ErrorCode::NameTooLong),));
                };
                if let Some(dir) = memory_descriptor::memory_file(store.data_mut(), &dir) {
                    return Ok((dir.stat_at(flags, &path),));
                }
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

/// The return type of `stat` and `stat-at`.
type StatResult = (Result<DescriptorStat, ErrorCode>,);

fn component_stat(
    stat: FsResult<DescriptorStat>,
    clock: ClockKind,
) -> wasmtime::Result<StatResult> {
    let mut stat = match stat {
        Ok(stat) => stat,
        Err(error) => return Ok((Err(error.downcast()?),)),
    };
    if clock == ClockKind::Stepped {
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
