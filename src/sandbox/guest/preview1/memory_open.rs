//! Opening files of the memory file system by core modules.

use wasmtime::Caller;
use wasmtime_wasi::p1::types::{Errno, Fdflags, Oflags, Rights};
use wiggle::GuestPtr;

use super::errno_code;
use super::memory_calls::{call_now, flags16, follow_of, read_path, sweep};
use crate::sandbox::guest::guest_state::GuestState;
use crate::sandbox::guest::memory_files::MemoryDescriptor;
use crate::sandbox::guest::memory_fs::{NodeKind, OpenHow};
use crate::sync::lock;

/// Answers `path_open`: opens a file or directory, or makes a file.
pub(in crate::sandbox) async fn path_open(
    mut caller: Caller<'_, GuestState>,
    (dir, follow, path, len, how, base, _, flags, out): (
        i32,
        i32,
        i32,
        i32,
        i32,
        i64,
        i64,
        i32,
        i32,
    ),
) -> wasmtime::Result<i32> {
    if !caller.data_mut().handles.take_in_memory() {
        return Ok(errno_code(Errno::Mfile));
    }
    let mut is_open = false;
    let errno = call_now(&mut caller, |guest, files| {
        let descriptor = files.descriptors.memory(dir)?;
        if !descriptor.is_directory {
            return Err(Errno::Notdir.into());
        }
        let (dir, path) = (descriptor.node, read_path(guest, path, len)?);
        let how = Oflags::try_from(flags16(how)?)?;
        let flags = Fdflags::try_from(flags16(flags)?)?;
        let rights = Rights::from_bits_truncate(base.cast_unsigned());
        let can_write = rights.contains(Rights::FD_WRITE);
        let how = OpenHow {
            follow: follow_of(follow)?,
            create: how.contains(Oflags::CREAT),
            exclusive: how.contains(Oflags::EXCL),
            truncate: how.contains(Oflags::TRUNC),
            directory: how.contains(Oflags::DIRECTORY),
            write: can_write,
        };
        let (node, kind) = {
            let mut fs = lock(&files.fs);
            let node = fs.open_at(dir, &path, how)?;
            (node, fs.stat(node)?.kind)
        };
        is_open = true;
        let fd = files.descriptors.add_memory(MemoryDescriptor {
            node,
            is_directory: kind == NodeKind::Directory,
            preopen: None,
            can_read: rights.contains(Rights::FD_READ) || !can_write,
            can_write,
            flags: flags.bits(),
            position: 0,
            listing: None,
        });
        guest.write(GuestPtr::<u32>::new(out.cast_unsigned()), fd)?;
        Ok(())
    });
    if !is_open {
        caller.data_mut().handles.release_in_memory();
    }
    let errno = errno?;
    sweep(&mut caller).await?;
    Ok(errno)
}
