//! The calls of core modules on the files of their run's memory file system. They need no thread
//! for file calls: each takes microseconds, and what a guest can make large is done in pieces.

use std::sync::Arc;

use wasmtime::Caller;
use wasmtime_wasi::p1::types::{self, Errno, Fdflags, Filetype, Fstflags, Lookupflags, Rights};
use wiggle::{GuestMemory, GuestPtr};

use super::{SUCCESS, WasiVersion, errno_code};
use crate::sandbox::guest::guest_state::{GuestState, memory};
use crate::sandbox::guest::host_call_pacer::HostCallPacer;
use crate::sandbox::guest::memory_files::{MemoryDescriptor, MemoryFiles};
use crate::sandbox::guest::memory_fs::{FileStat, FollowLast, NewTime, NodeId, NodeKind};
use crate::sync::lock;

/// What a call on the memory file system returns to the code around it.
type MemoryCallResult = Result<(), types::Error>;

/// Makes a call on the memory file system that does not wait.
pub(in crate::sandbox) fn call_now(
    caller: &mut Caller<'_, GuestState>,
    call: impl FnOnce(&mut GuestMemory<'_>, &mut MemoryFiles) -> MemoryCallResult,
) -> wasmtime::Result<i32> {
    let memory = memory(caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut *caller);
    let mut guest = GuestMemory::Unshared(bytes);
    let made = match &mut state.memory_files {
        Some(files) => call(&mut guest, files),
        None => Err(Errno::Badf.into()),
    };
    match made {
        Ok(()) => Ok(SUCCESS),
        Err(error) => Ok(errno_code(error.downcast()?)),
    }
}

/// Makes a call on the memory file system, and then frees what the call removed, in pieces.
async fn call(
    mut caller: Caller<'_, GuestState>,
    call: impl FnOnce(&mut GuestMemory<'_>, &mut MemoryFiles) -> MemoryCallResult,
) -> wasmtime::Result<i32> {
    let errno = call_now(&mut caller, call)?;
    sweep(&mut caller).await?;
    Ok(errno)
}

/// Frees what calls have removed from the memory file system, in pieces.
pub(in crate::sandbox) async fn sweep(caller: &mut Caller<'_, GuestState>) -> wasmtime::Result<()> {
    let files = caller.data().memory_files.as_ref();
    let Some(fs) = files.map(|files| Arc::clone(&files.fs)) else {
        return Ok(());
    };
    let stop = Arc::clone(&caller.data().stop);
    MemoryFiles::sweep(&fs, &mut HostCallPacer::new(&stop)).await?;
    Ok(())
}

impl MemoryFiles {
    /// Returns the file that a descriptor leads to.
    fn file(&mut self, fd: i32) -> Result<&mut MemoryDescriptor, Errno> {
        let descriptor = self.descriptors.memory(fd)?;
        match descriptor.is_directory {
            false => Ok(descriptor),
            true => Err(Errno::Badf),
        }
    }

    /// Returns the directory that a descriptor leads to.
    fn directory(&mut self, fd: i32) -> Result<NodeId, Errno> {
        let descriptor = self.descriptors.memory(fd)?;
        match descriptor.is_directory {
            true => Ok(descriptor.node),
            false => Err(Errno::Badf),
        }
    }
}

/// Reads a path from the guest's memory.
pub(super) fn read_path(
    guest: &GuestMemory<'_>,
    path: i32,
    len: i32,
) -> Result<String, types::Error> {
    let path = GuestPtr::<str>::new((path.cast_unsigned(), len.cast_unsigned()));
    Ok(guest.as_cow_str(path)?.into_owned())
}

/// Decides whether lookup flags ask to follow a symbolic link at the end of a path.
pub(super) fn follow_of(flags: i32) -> Result<FollowLast, types::Error> {
    let flags = Lookupflags::try_from(flags.cast_unsigned())?;
    Ok(FollowLast::when(
        flags.contains(Lookupflags::SYMLINK_FOLLOW),
    ))
}

/// Returns the flags of an argument that has 16 bits.
pub(super) fn flags16(flags: i32) -> Result<u16, Errno> {
    u16::try_from(flags.cast_unsigned()).map_err(|_| Errno::Inval)
}

fn file_type(kind: NodeKind) -> Filetype {
    match kind {
        NodeKind::File => Filetype::RegularFile,
        NodeKind::Directory => Filetype::Directory,
        NodeKind::Symlink => Filetype::SymbolicLink,
    }
}

/// Writes the attributes of a file to where the guest wants them. The two versions of the interface
/// have different layouts.
fn write_stat(
    guest: &mut GuestMemory<'_>,
    out: i32,
    version: WasiVersion,
    stat: &FileStat,
) -> MemoryCallResult {
    let (mut bytes, links, size) = match version {
        WasiVersion::Preview1 => (vec![0; 64], 24..32, 32),
        WasiVersion::Unstable => (vec![0; 56], 20..24, 24),
    };
    // All files of the run are on one device.
    bytes[..8].copy_from_slice(&1_u64.to_le_bytes());
    bytes[8..16].copy_from_slice(&stat.id.serial().to_le_bytes());
    bytes[16] = file_type(stat.kind) as u8;
    let count = u64::from(stat.links).to_le_bytes();
    bytes[links.clone()].copy_from_slice(&count[..links.len()]);
    let times = &stat.times;
    let numbers = [stat.size, times.accessed, times.modified, times.changed];
    for (number, place) in numbers.into_iter().zip(bytes[size..].chunks_exact_mut(8)) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    let length = u32::try_from(bytes.len()).unwrap_or_default();
    guest.copy_from_slice(&bytes, GuestPtr::new((out.cast_unsigned(), length)))?;
    Ok(())
}

/// Returns the time that the flags of a call ask for, or `None` where the time stays as it is.
fn new_time(set: bool, set_now: bool, time: i64) -> Result<Option<NewTime>, Errno> {
    match (set, set_now) {
        (true, true) => Err(Errno::Inval),
        (true, false) => Ok(Some(NewTime::At(time.cast_unsigned()))),
        (false, true) => Ok(Some(NewTime::Now)),
        (false, false) => Ok(None),
    }
}

/// Returns the times that a call sets, of access and of modification.
fn new_times(
    accessed: i64,
    modified: i64,
    which: i32,
) -> Result<[Option<NewTime>; 2], types::Error> {
    let which = Fstflags::try_from(flags16(which)?)?;
    let has = |flag| which.contains(flag);
    Ok([
        new_time(has(Fstflags::ATIM), has(Fstflags::ATIM_NOW), accessed)?,
        new_time(has(Fstflags::MTIM), has(Fstflags::MTIM_NOW), modified)?,
    ])
}

/// Answers `fd_advise`, which changes nothing.
pub(super) async fn fd_advise(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (fd, _, _, advice): (i32, i64, i64, i32),
) -> wasmtime::Result<i32> {
    call(caller, |_, files| {
        files.file(fd)?;
        u8::try_from(advice).map_err(|_| Errno::Inval)?;
        types::Advice::try_from(advice)?;
        Ok(())
    })
    .await
}

/// Answers `fd_allocate`: what the file lacks is allocated, in pieces.
pub(super) async fn fd_allocate(
    mut caller: Caller<'_, GuestState>,
    (fd, offset, size): (i32, i64, i64),
) -> wasmtime::Result<i32> {
    let (mut at, end) = (offset.cast_unsigned(), offset.checked_add(size));
    let end = match end {
        Some(end) if offset >= 0 && size > 0 => end.cast_unsigned(),
        Some(_) => return Ok(errno_code(Errno::Inval)),
        None => return Ok(errno_code(Errno::Fbig)),
    };
    let stop = Arc::clone(&caller.data().stop);
    let mut pace = HostCallPacer::new(&stop);
    while at < end {
        let errno = call_now(&mut caller, |_, files| {
            let descriptor = files.file(fd)?;
            if !descriptor.can_write {
                return Err(Errno::Badf.into());
            }
            let node = descriptor.node;
            at = lock(&files.fs).allocate_piece(node, at, end)?;
            Ok(())
        })?;
        if errno != SUCCESS {
            return Ok(errno);
        }
        pace.checkpoint().await?;
    }
    Ok(SUCCESS)
}

/// Answers `fd_datasync`: there is nothing to write back to.
pub(super) async fn fd_datasync(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (fd,): (i32,),
) -> wasmtime::Result<i32> {
    call(caller, |_, files| Ok(files.file(fd).map(|_| ())?)).await
}

/// Answers `fd_sync`: there is nothing to write back to.
pub(super) async fn fd_sync(
    caller: Caller<'_, GuestState>,
    version: WasiVersion,
    args: (i32,),
) -> wasmtime::Result<i32> {
    fd_datasync(caller, version, args).await
}

/// Returns the rights that the runtime reports for a descriptor of the same kind.
fn rights_of(descriptor: &MemoryDescriptor) -> (Rights, Rights) {
    if descriptor.preopen.is_some() {
        let files = Rights::FD_DATASYNC
            | Rights::FD_READ
            | Rights::FD_SEEK
            | Rights::FD_FDSTAT_SET_FLAGS
            | Rights::FD_SYNC
            | Rights::FD_TELL
            | Rights::FD_WRITE
            | Rights::FD_ADVISE
            | Rights::FD_ALLOCATE
            | Rights::FD_FILESTAT_SET_SIZE
            | Rights::POLL_FD_READWRITE;
        let directories = Rights::PATH_CREATE_DIRECTORY
            | Rights::PATH_CREATE_FILE
            | Rights::PATH_LINK_SOURCE
            | Rights::PATH_LINK_TARGET
            | Rights::PATH_OPEN
            | Rights::FD_READDIR
            | Rights::PATH_READLINK
            | Rights::PATH_RENAME_SOURCE
            | Rights::PATH_RENAME_TARGET
            | Rights::PATH_SYMLINK
            | Rights::PATH_REMOVE_DIRECTORY
            | Rights::PATH_UNLINK_FILE
            | Rights::PATH_FILESTAT_GET
            | Rights::PATH_FILESTAT_SET_TIMES
            | Rights::FD_FILESTAT_GET
            | Rights::FD_FILESTAT_SET_TIMES;
        return (directories, directories | files);
    }
    let mut rights = Rights::all();
    if descriptor.is_directory {
        rights &=
            !(Rights::FD_SEEK | Rights::FD_FILESTAT_SET_SIZE | Rights::PATH_FILESTAT_SET_SIZE);
    }
    if !descriptor.can_read {
        rights &= !(Rights::FD_READ | Rights::FD_READDIR);
    }
    if !descriptor.can_write {
        rights &= !Rights::FD_WRITE;
    }
    (rights, rights)
}

/// Answers `fd_fdstat_get` with what the descriptor was opened for.
pub(super) async fn fd_fdstat_get(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (fd, out): (i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let descriptor = files.descriptors.memory(fd)?;
        let (base, inheriting) = rights_of(descriptor);
        let kind = match descriptor.is_directory {
            true => Filetype::Directory,
            false => Filetype::RegularFile,
        };
        let mut bytes = [0; 24];
        bytes[0] = kind as u8;
        bytes[2..4].copy_from_slice(&descriptor.flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&base.bits().to_le_bytes());
        bytes[16..24].copy_from_slice(&inheriting.bits().to_le_bytes());
        guest.copy_from_slice(&bytes, GuestPtr::new((out.cast_unsigned(), 24)))?;
        Ok(())
    })
    .await
}

/// Answers `fd_fdstat_set_flags`, which can change whether writes append.
pub(super) fn fd_fdstat_set_flags(
    caller: &mut Caller<'_, GuestState>,
    (fd, flags): (i32, i32),
) -> wasmtime::Result<i32> {
    call_now(caller, |_, files| {
        let descriptor = files.file(fd)?;
        let flags = Fdflags::try_from(flags16(flags)?)?;
        if flags.intersects(Fdflags::DSYNC | Fdflags::SYNC | Fdflags::RSYNC) {
            return Err(Errno::Inval.into());
        }
        descriptor.flags = flags.bits();
        Ok(())
    })
}

/// Answers `fd_prestat_get` with the length of the name of a directory that the guest began with.
pub(super) fn fd_prestat_get(
    caller: &mut Caller<'_, GuestState>,
    (fd, out): (i32, i32),
) -> wasmtime::Result<i32> {
    call_now(caller, |guest, files| {
        let descriptor = files.descriptors.memory(fd)?;
        let name = descriptor.preopen.as_deref().ok_or(Errno::Badf)?;
        let length = u32::try_from(name.len()).unwrap_or_default();
        let mut bytes = [0; 8];
        bytes[4..].copy_from_slice(&length.to_le_bytes());
        guest.copy_from_slice(&bytes, GuestPtr::new((out.cast_unsigned(), 8)))?;
        Ok(())
    })
}

/// Answers `fd_prestat_dir_name` with the name of a directory that the guest began with.
pub(super) fn fd_prestat_dir_name(
    caller: &mut Caller<'_, GuestState>,
    (fd, path, most): (i32, i32, i32),
) -> wasmtime::Result<i32> {
    call_now(caller, |guest, files| {
        let descriptor = files.descriptors.memory(fd)?;
        let name = descriptor.preopen.as_deref().ok_or(Errno::Notdir)?;
        let length = u32::try_from(name.len()).unwrap_or_default();
        if length > most.cast_unsigned() {
            return Err(Errno::Nametoolong.into());
        }
        let place = GuestPtr::new((path.cast_unsigned(), length));
        guest.copy_from_slice(name.as_bytes(), place)?;
        Ok(())
    })
}

/// Answers `fd_filestat_get` with the attributes of an open file.
pub(in crate::sandbox) async fn fd_filestat_get(
    caller: Caller<'_, GuestState>,
    version: WasiVersion,
    (fd, out): (i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let node = files.descriptors.memory(fd)?.node;
        let stat = lock(&files.fs).stat(node)?;
        write_stat(guest, out, version, &stat)
    })
    .await
}

/// Answers `path_filestat_get` with the attributes of what a path leads to.
pub(in crate::sandbox) async fn path_filestat_get(
    caller: Caller<'_, GuestState>,
    version: WasiVersion,
    (dir, flags, path, len, out): (i32, i32, i32, i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let (dir, path) = (files.directory(dir)?, read_path(guest, path, len)?);
        let stat = lock(&files.fs).stat_at(dir, &path, follow_of(flags)?)?;
        write_stat(guest, out, version, &stat)
    })
    .await
}

/// Answers `fd_filestat_set_size`: sets the size of an open file.
pub(super) async fn fd_filestat_set_size(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (fd, size): (i32, i64),
) -> wasmtime::Result<i32> {
    call(caller, |_, files| {
        let descriptor = files.file(fd)?;
        if !descriptor.can_write || size < 0 {
            return Err(Errno::Inval.into());
        }
        let node = descriptor.node;
        Ok(lock(&files.fs).set_size(node, size.cast_unsigned())?)
    })
    .await
}

/// Answers `fd_filestat_set_times`: sets the times of an open file or directory.
pub(super) async fn fd_filestat_set_times(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (fd, accessed, modified, which): (i32, i64, i64, i32),
) -> wasmtime::Result<i32> {
    call(caller, |_, files| {
        let node = files.descriptors.memory(fd)?.node;
        let [accessed, modified] = new_times(accessed, modified, which)?;
        Ok(lock(&files.fs).set_times(node, accessed, modified)?)
    })
    .await
}

/// Answers `path_filestat_set_times`: sets the times of what a path leads to.
pub(super) async fn path_filestat_set_times(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (dir, flags, path, len, accessed, modified, which): (i32, i32, i32, i32, i64, i64, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let (dir, path) = (files.directory(dir)?, read_path(guest, path, len)?);
        let [accessed, modified] = new_times(accessed, modified, which)?;
        let follow = follow_of(flags)?;
        let mut fs = lock(&files.fs);
        Ok(fs.set_times_at(dir, &path, follow, accessed, modified)?)
    })
    .await
}

/// Answers `fd_tell` with the position of an open file.
pub(super) fn fd_tell(
    caller: &mut Caller<'_, GuestState>,
    (fd, out): (i32, i32),
) -> wasmtime::Result<i32> {
    call_now(caller, |guest, files| {
        let position = files.file(fd)?.position;
        guest.write(GuestPtr::<u64>::new(out.cast_unsigned()), position)?;
        Ok(())
    })
}

/// Answers `fd_seek`: moves the position of an open file. The two versions of the interface number
/// the places to start from differently.
pub(super) async fn fd_seek(
    caller: Caller<'_, GuestState>,
    version: WasiVersion,
    (fd, offset, whence, out): (i32, i64, i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let descriptor = files.file(fd)?;
        let (node, position) = (descriptor.node, descriptor.position);
        let from = match (version, whence) {
            (WasiVersion::Preview1, 0) | (WasiVersion::Unstable, 2) => 0,
            (WasiVersion::Preview1, 1) | (WasiVersion::Unstable, 0) => position,
            (WasiVersion::Preview1, 2) | (WasiVersion::Unstable, 1) => {
                lock(&files.fs).stat(node)?.size
            }
            (WasiVersion::Preview1 | WasiVersion::Unstable, _) => return Err(Errno::Inval.into()),
        };
        let moved = from.checked_add_signed(offset);
        let moved = moved.filter(|moved| i64::try_from(*moved).is_ok());
        let moved = moved.ok_or(Errno::Inval)?;
        files.file(fd)?.position = moved;
        guest.write(GuestPtr::<u64>::new(out.cast_unsigned()), moved)?;
        Ok(())
    })
    .await
}

/// Answers `path_create_directory`: makes a directory.
pub(super) async fn path_create_directory(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (dir, path, len): (i32, i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let (dir, path) = (files.directory(dir)?, read_path(guest, path, len)?);
        Ok(lock(&files.fs).create_directory_at(dir, &path)?)
    })
    .await
}

/// Answers `path_link`: gives a file a second name.
pub(super) async fn path_link(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (dir, flags, path, len, to_dir, to, to_len): (i32, i32, i32, i32, i32, i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let (dir, to_dir) = (files.directory(dir)?, files.directory(to_dir)?);
        let (path, to) = (read_path(guest, path, len)?, read_path(guest, to, to_len)?);
        let follow = follow_of(flags)?;
        Ok(lock(&files.fs).link_at((dir, &path), follow, (to_dir, &to))?)
    })
    .await
}

/// Answers `path_readlink` with as much of the target of a symbolic link as the buffer takes.
pub(super) async fn path_readlink(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (dir, path, len, buf, buf_len, out): (i32, i32, i32, i32, i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let (dir, path) = (files.directory(dir)?, read_path(guest, path, len)?);
        let fs = lock(&files.fs);
        let target = fs.read_link_at(dir, &path)?.as_bytes();
        let length = u32::try_from(target.len()).unwrap_or_default();
        let length = length.min(buf_len.cast_unsigned());
        let place = GuestPtr::new((buf.cast_unsigned(), length));
        guest.copy_from_slice(&target[..length as usize], place)?;
        guest.write(GuestPtr::<u32>::new(out.cast_unsigned()), length)?;
        Ok(())
    })
    .await
}

/// Answers `path_remove_directory`: removes an empty directory.
pub(super) async fn path_remove_directory(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (dir, path, len): (i32, i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let (dir, path) = (files.directory(dir)?, read_path(guest, path, len)?);
        Ok(lock(&files.fs).remove_directory_at(dir, &path)?)
    })
    .await
}

/// Answers `path_rename`: renames a file or directory.
pub(super) async fn path_rename(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (dir, path, len, to_dir, to, to_len): (i32, i32, i32, i32, i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let (dir, to_dir) = (files.directory(dir)?, files.directory(to_dir)?);
        let (path, to) = (read_path(guest, path, len)?, read_path(guest, to, to_len)?);
        Ok(lock(&files.fs).rename_at((dir, &path), (to_dir, &to))?)
    })
    .await
}

/// Answers `path_symlink`: makes a symbolic link.
pub(super) async fn path_symlink(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (path, len, dir, to, to_len): (i32, i32, i32, i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let dir = files.directory(dir)?;
        let (target, to) = (read_path(guest, path, len)?, read_path(guest, to, to_len)?);
        Ok(lock(&files.fs).symlink_at(&target, dir, &to)?)
    })
    .await
}

/// Answers `path_unlink_file`: removes a name of a file.
pub(super) async fn path_unlink_file(
    caller: Caller<'_, GuestState>,
    _: WasiVersion,
    (dir, path, len): (i32, i32, i32),
) -> wasmtime::Result<i32> {
    call(caller, |guest, files| {
        let (dir, path) = (files.directory(dir)?, read_path(guest, path, len)?);
        Ok(lock(&files.fs).unlink_file_at(dir, &path)?)
    })
    .await
}
