//! Replaces the file functions of components: writes are made in pieces, paths have a bounded
//! length, and what is open is counted.

use std::sync::Arc;

use wasmtime::component::{Linker, Resource, ResourceType, WasmList, WasmStr};
use wasmtime_wasi::filesystem::WasiFilesystemView;
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Advice, Descriptor, DescriptorFlags, DescriptorType, ErrorCode, HostDescriptor,
    MetadataHashValue, NewTimestamp, PathFlags,
};

use super::file_streams::{self, WriteAt};
use super::memory_descriptor::{self, MemoryFile, memory_file, memory_files};
use super::{CallStore, memory_streams, open_in_memory, open_with_handle};
use crate::model::guest_limits::PATH;
use crate::sandbox::guest::guest_state::GuestState;
use crate::sandbox::guest::host_call_pacer::{HostCallPacer, PIECE_BYTES};
use crate::sandbox::guest::memory_fs;
use crate::sync::lock;

/// The interface whose functions are replaced, in the version that the runtime offers.
const INTERFACE: &str = "wasi:filesystem/types@0.2.12";

/// The return type of the functions on files.
type FileCallResult<T> = wasmtime::Result<(Result<T, ErrorCode>,)>;

/// Replaces all functions on files and directories that may block. The functions that return file
/// attributes are in [`crate::sandbox::guest::file_times`].
pub(super) fn add(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    add_files(linker)?;
    add_plain(linker)?;
    add_paths(linker)
}

/// Defines a function that takes no path: the runtime's own, run on the threads for file system
/// calls.
macro_rules! define_plain {
    ($interface:expr, $name:literal, $method:ident, ($($arg:ident: $a:ty),*) -> $result:ty) => {
        $interface.func_wrap_async(
            $name,
            |mut call: CallStore<'_>, (file, $($arg,)*): (Resource<Descriptor>, $($a,)*)| {
                Box::new(async move {
                    if let Some(memory) = memory_file(call.data_mut(), &file) {
                        let result: Result<$result, ErrorCode> = memory.$method($($arg),*);
                        memory.sweep(Arc::clone(&call.data().stop)).await?;
                        return Ok((result,));
                    }
                    let calls = call.data().files.clone();
                    let mut files = call.data_mut().filesystem();
                    let made = HostDescriptor::$method(&mut files, file, $($arg),*);
                    let result: FsResult<$result> = calls.run(made).await;
                    file_result(result)
                })
            },
        )?
    };
}

fn add_plain(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    define_plain!(
        interface, "[method]descriptor.advise", advise,
        (offset: u64, len: u64, advice: Advice) -> ()
    );
    define_plain!(interface, "[method]descriptor.sync-data", sync_data, () -> ());
    define_plain!(interface, "[method]descriptor.get-flags", get_flags, () -> DescriptorFlags);
    define_plain!(interface, "[method]descriptor.get-type", get_type, () -> DescriptorType);
    define_plain!(interface, "[method]descriptor.set-size", set_size, (size: u64) -> ());
    define_plain!(
        interface, "[method]descriptor.set-times", set_times,
        (accessed: NewTimestamp, modified: NewTimestamp) -> ()
    );
    define_plain!(
        interface, "[method]descriptor.read", read,
        (len: u64, offset: u64) -> (Vec<u8>, bool)
    );
    define_plain!(interface, "[method]descriptor.sync", sync, () -> ());
    define_plain!(
        interface, "[method]descriptor.metadata-hash", metadata_hash,
        () -> MetadataHashValue
    );
    interface.func_wrap_async(
        "[method]descriptor.is-same-object",
        |mut call: CallStore<'_>, (one, other): (Resource<Descriptor>, Resource<Descriptor>)| {
            Box::new(async move {
                match memory_files(call.data_mut(), &one, &other) {
                    Some(Ok([one, other])) => return Ok((one.node() == other.node(),)),
                    Some(Err(_)) => return Ok((false,)),
                    None => {}
                }
                let calls = call.data().files.clone();
                let mut files = call.data_mut().filesystem();
                let same = HostDescriptor::is_same_object(&mut files, one, other);
                Ok((calls.run(same).await?,))
            })
        },
    )
}

fn file_result<T>(result: FsResult<T>) -> FileCallResult<T> {
    Ok((match result {
        Ok(value) => Ok(value),
        Err(error) => Err(error.downcast()?),
    },))
}

fn add_files(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.func_wrap_async(
        "[method]descriptor.write",
        |mut call: CallStore<'_>,
         (to, bytes, offset): (Resource<Descriptor>, WasmList<u8>, u64)| {
            Box::new(async move { write_at(&mut call, &to, &bytes, offset).await })
        },
    )?;
    // A stream keeps its file open, whatever becomes of the descriptor from which it was made.
    interface.func_wrap(
        "[method]descriptor.read-via-stream",
        |mut call: CallStore<'_>, (file, offset): (Resource<Descriptor>, u64)| {
            if let Some(file) = memory_file(call.data_mut(), &file) {
                let stream = file.readable();
                let stream = stream.map(|node| memory_streams::reader(&file.fs, node, offset));
                return open_in_memory(call.data_mut(), stream);
            }
            open_with_handle(&mut call, ErrorCode::InsufficientMemory, |state| {
                file_streams::read(state, &file, offset)
            })
        },
    )?;
    interface.func_wrap(
        "[method]descriptor.write-via-stream",
        |mut call: CallStore<'_>, (file, offset): (Resource<Descriptor>, u64)| {
            if let Some(file) = memory_file(call.data_mut(), &file) {
                let (stream, at) = (file.writable(), memory_fs::WritePosition::Offset(offset));
                let stream = stream.map(|node| memory_streams::writer(&file.fs, node, at));
                return open_in_memory(call.data_mut(), stream);
            }
            open_with_handle(&mut call, ErrorCode::InsufficientMemory, |state| {
                file_streams::write(state, &file, WriteAt::Offset(offset))
            })
        },
    )?;
    interface.func_wrap(
        "[method]descriptor.append-via-stream",
        |mut call: CallStore<'_>, (file,): (Resource<Descriptor>,)| {
            if let Some(file) = memory_file(call.data_mut(), &file) {
                let (stream, at) = (file.writable(), memory_fs::WritePosition::End);
                let stream = stream.map(|node| memory_streams::writer(&file.fs, node, at));
                return open_in_memory(call.data_mut(), stream);
            }
            open_with_handle(&mut call, ErrorCode::InsufficientMemory, |state| {
                file_streams::write(state, &file, WriteAt::End)
            })
        },
    )?;
    interface.resource(
        "descriptor",
        ResourceType::host::<Descriptor>(),
        |mut call: CallStore<'_>, rep| {
            let state = call.data_mut();
            if memory_descriptor::close(state, rep)? {
                return Ok(());
            }
            HostDescriptor::drop(&mut state.filesystem(), Resource::new_own(rep))?;
            state.handles.close(rep);
            Ok(())
        },
    )
}

/// Writes all of `bytes` if the file takes them, and returns how many it took.
async fn write_at(
    call: &mut CallStore<'_>,
    to: &Resource<Descriptor>,
    bytes: &WasmList<u8>,
    offset: u64,
) -> FileCallResult<u64> {
    if let Some(file) = memory_file(call.data_mut(), to) {
        return write_in_memory(call, &file, bytes, offset).await;
    }
    let calls = call.data().files.clone();
    let stop = call.data().stop.clone();
    let mut pace = HostCallPacer::new(&stop);
    let mut done = 0;
    loop {
        let end = bytes.len().min(done + PIECE_BYTES);
        let piece = bytes.as_le_slice(&*call)[done..end].to_vec();
        let at = offset.saturating_add(done as u64);
        let again = Resource::new_borrow(to.rep());
        let mut files = call.data_mut().filesystem();
        let writing = HostDescriptor::write(&mut files, again, piece, at);
        let written = calls.run(writing).await;
        let written = match file_result(written)? {
            (Ok(written),) => written,
            // What was written counts: the guest gets the error when it writes on.
            (Err(_),) if done > 0 => 0,
            (Err(error),) => return Ok((Err(error),)),
        };
        done += usize::try_from(written).unwrap_or_default();
        if written == 0 || done >= bytes.len() {
            return Ok((Ok(done as u64),));
        }
        pace.checkpoint().await?;
    }
}

/// Writes to a file in memory as many of `bytes` as there is memory for, and returns how many.
async fn write_in_memory(
    call: &mut CallStore<'_>,
    file: &MemoryFile,
    bytes: &WasmList<u8>,
    offset: u64,
) -> FileCallResult<u64> {
    let node = match file.writable() {
        Ok(node) => node,
        Err(error) => return Ok((Err(error),)),
    };
    let stop = call.data().stop.clone();
    let mut pace = HostCallPacer::new(&stop);
    let mut done = 0;
    while done < bytes.len() {
        let end = bytes.len().min(done + PIECE_BYTES);
        let piece = &bytes.as_le_slice(&*call)[done..end];
        let at = memory_fs::WritePosition::Offset(offset.saturating_add(done as u64));
        match lock(&file.fs).write(node, at, piece) {
            Ok((written, _)) => done += written,
            Err(error) if done == 0 => return Ok((Err(error.into()),)),
            Err(_) => break,
        }
        if done < end {
            break;
        }
        pace.checkpoint().await?;
    }
    Ok((Ok(done as u64),))
}

/// Returns a path that a guest gave, or `None` if it is too long to be looked at.
pub(in crate::sandbox) fn bounded_path(
    call: &CallStore<'_>,
    path: &WasmStr,
) -> wasmtime::Result<Option<String>> {
    let path = path.to_str(call)?;
    Ok((path.len() <= PATH.size()).then(|| path.into_owned()))
}

/// Defines a function that takes one path, and the arguments before and after it.
macro_rules! define_path {
    (
        $interface:expr, $name:literal, $method:ident,
        ($($before:ident: $b:ty),*), ($($after:ident: $a:ty),*) -> $result:ty
    ) => {
        $interface.func_wrap_async(
            $name,
            |mut call: CallStore<'_>,
             (dir, $($before,)* given, $($after,)*): (
                Resource<Descriptor>, $($b,)* WasmStr, $($a,)*
            )| {
                Box::new(async move {
                    let Some(given) = bounded_path(&call, &given)? else {
                        return Ok((Err(ErrorCode::NameTooLong),));
                    };
                    if let Some(memory) = memory_file(call.data_mut(), &dir) {
                        let result: Result<$result, ErrorCode> =
                            memory.$method($($before,)* given, $($after,)*);
                        memory.sweep(Arc::clone(&call.data().stop)).await?;
                        return Ok((result,));
                    }
                    let calls = call.data().files.clone();
                    let mut files = call.data_mut().filesystem();
                    let made =
                        HostDescriptor::$method(&mut files, dir, $($before,)* given, $($after,)*);
                    let result: FsResult<$result> = calls.run(made).await;
                    file_result(result)
                })
            },
        )?
    };
}

fn add_paths(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    define_path!(
        interface, "[method]descriptor.create-directory-at", create_directory_at,
        (), () -> ()
    );
    define_path!(
        interface, "[method]descriptor.set-times-at", set_times_at,
        (flags: PathFlags), (accessed: NewTimestamp, modified: NewTimestamp) -> ()
    );
    define_path!(
        interface, "[method]descriptor.readlink-at", readlink_at,
        (), () -> String
    );
    define_path!(
        interface, "[method]descriptor.remove-directory-at", remove_directory_at,
        (), () -> ()
    );
    define_path!(
        interface, "[method]descriptor.unlink-file-at", unlink_file_at,
        (), () -> ()
    );
    add_two_paths(linker)
}

/// Defines the calls that take two paths.
fn add_two_paths(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    type LinkPaths = (
        Resource<Descriptor>,
        PathFlags,
        WasmStr,
        Resource<Descriptor>,
        WasmStr,
    );
    let mut interface = linker.instance(INTERFACE)?;
    interface.func_wrap_async(
        "[method]descriptor.link-at",
        |mut call: CallStore<'_>, (dir, flags, from, to_dir, to): LinkPaths| {
            Box::new(async move {
                let (Some(from), Some(to)) =
                    (bounded_path(&call, &from)?, bounded_path(&call, &to)?)
                else {
                    return Ok((Err(ErrorCode::NameTooLong),));
                };
                match memory_files(call.data_mut(), &dir, &to_dir) {
                    Some(Ok([dir, to_dir])) => {
                        return Ok((dir.link_at(flags, &from, &to_dir, &to),));
                    }
                    Some(Err(error)) => return Ok((Err(error),)),
                    None => {}
                }
                let calls = call.data().files.clone();
                let mut files = call.data_mut().filesystem();
                let made = HostDescriptor::link_at(&mut files, dir, flags, from, to_dir, to);
                file_result(calls.run(made).await)
            })
        },
    )?;
    type RenamePaths = (Resource<Descriptor>, WasmStr, Resource<Descriptor>, WasmStr);
    interface.func_wrap_async(
        "[method]descriptor.rename-at",
        |mut call: CallStore<'_>, (dir, from, to_dir, to): RenamePaths| {
            Box::new(async move {
                let (Some(from), Some(to)) =
                    (bounded_path(&call, &from)?, bounded_path(&call, &to)?)
                else {
                    return Ok((Err(ErrorCode::NameTooLong),));
                };
                match memory_files(call.data_mut(), &dir, &to_dir) {
                    Some(Ok([dir, to_dir])) => {
                        let renamed = dir.rename_at(&from, &to_dir, &to);
                        dir.sweep(Arc::clone(&call.data().stop)).await?;
                        return Ok((renamed,));
                    }
                    Some(Err(error)) => return Ok((Err(error),)),
                    None => {}
                }
                let calls = call.data().files.clone();
                let mut files = call.data_mut().filesystem();
                let made = HostDescriptor::rename_at(&mut files, dir, from, to_dir, to);
                file_result(calls.run(made).await)
            })
        },
    )?;
    add_symlink(linker)
}

/// Defines the call that makes a symbolic link.
fn add_symlink(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.func_wrap_async(
        "[method]descriptor.symlink-at",
        |mut call: CallStore<'_>, (dir, from, to): (Resource<Descriptor>, WasmStr, WasmStr)| {
            Box::new(async move {
                let (Some(from), Some(to)) =
                    (bounded_path(&call, &from)?, bounded_path(&call, &to)?)
                else {
                    return Ok((Err(ErrorCode::NameTooLong),));
                };
                if let Some(dir) = memory_file(call.data_mut(), &dir) {
                    return Ok((dir.symlink_at(&from, &to),));
                }
                let calls = call.data().files.clone();
                let mut files = call.data_mut().filesystem();
                let made = HostDescriptor::symlink_at(&mut files, dir, from, to);
                file_result(calls.run(made).await)
            })
        },
    )
}
