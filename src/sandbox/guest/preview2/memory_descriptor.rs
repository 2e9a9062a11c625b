//! Descriptors of components that lead into their run's memory file system.
//!
//! The resource table does not care what a handle of a guest stands for, so a descriptor of a file
//! in memory is a type of its own in the same table. Each function of `wasi:filesystem` first asks
//! whether the descriptor is one of those. A run without a memory file system has none.

use std::sync::Arc;

use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::WasiFilesystemView;
use wasmtime_wasi::p2::bindings::clocks::wall_clock::Datetime;
use wasmtime_wasi::p2::bindings::filesystem::preopens;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    Advice, Descriptor, DescriptorFlags, DescriptorStat, DescriptorType, ErrorCode,
    MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};

use super::CallStore;
use super::file_streams::FILE_PIECE;
use crate::sandbox::guest::guest_state::GuestState;
use crate::sandbox::guest::host_call_pacer::HostCallPacer;
use crate::sandbox::guest::memory_files::{GuestPreopen, MemoryFiles};
use crate::sandbox::guest::memory_fs::{
    FileStat, FollowLast, NewTime, NodeId, NodeKind, OpenHow, SharedFs,
};
use crate::sandbox::guest::stop_signal::StopSignal;
use crate::sync::lock;

/// The result of a function on a descriptor, as the guest gets it.
type MemoryResult<T> = Result<T, ErrorCode>;

/// The upper half of all metadata hashes of files in memory. The lower half is the file's number.
const UPPER_HALF: u64 = 1;
const NANOS: u64 = 1_000_000_000;

/// What a handle of a guest stands for in the resource table.
#[derive(Clone, Copy, Debug)]
struct MemoryHandle {
    node: NodeId,
    kind: NodeKind,
    can_read: bool,
    can_write: bool,
}

/// A file or directory in memory that a component has open.
pub(in crate::sandbox) struct MemoryFile {
    /// The file system in which it is.
    pub(in crate::sandbox) fs: SharedFs,
    handle: MemoryHandle,
}

/// Returns what a descriptor leads to, if that is in memory.
pub(in crate::sandbox) fn memory_file(
    state: &mut GuestState,
    descriptor: &Resource<Descriptor>,
) -> Option<MemoryFile> {
    let fs = Arc::clone(&state.memory_files.as_ref()?.fs);
    let table = state.wasi.get().ctx().table;
    let handle = table.get(&Resource::<MemoryHandle>::new_borrow(descriptor.rep()));
    let handle = *handle.ok()?;
    Some(MemoryFile { fs, handle })
}

/// Returns what two descriptors lead to, if that is in memory. Where only one of them is, it
/// returns the error of a call across file systems.
pub(super) fn memory_files(
    state: &mut GuestState,
    one: &Resource<Descriptor>,
    other: &Resource<Descriptor>,
) -> Option<MemoryResult<[MemoryFile; 2]>> {
    match (memory_file(state, one), memory_file(state, other)) {
        (Some(one), Some(other)) => Some(Ok([one, other])),
        (None, None) => None,
        (Some(_), None) | (None, Some(_)) => Some(Err(ErrorCode::CrossDevice)),
    }
}

/// Returns the metadata hash of the file with the number `serial`.
pub(in crate::sandbox) fn hash_of(serial: u64) -> MetadataHashValue {
    MetadataHashValue {
        lower: serial,
        upper: UPPER_HALF,
    }
}

/// Replaces the function that tells a component which directories it begins with.
pub(super) fn add(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut interface = linker.instance("wasi:filesystem/preopens@0.2.12")?;
    interface.func_wrap("get-directories", |mut call: CallStore<'_>, (): ()| {
        Ok((directories(call.data_mut())?,))
    })
}

fn directories(state: &mut GuestState) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
    let host = preopens::Host::get_directories(&mut state.filesystem())?;
    let Some(files) = &state.memory_files else {
        return Ok(host);
    };
    let (fs, preopens) = (Arc::clone(&files.fs), files.preopens.clone());
    let mut host = host.into_iter();
    let mut all = Vec::with_capacity(preopens.len());
    for preopen in preopens {
        match preopen {
            GuestPreopen::Host => all.extend(host.next()),
            GuestPreopen::Memory(node, name) => {
                let handle = MemoryHandle {
                    node,
                    kind: NodeKind::Directory,
                    can_read: true,
                    can_write: true,
                };
                all.push((push(state, &fs, handle)?, name));
            }
        }
    }
    Ok(all)
}

/// Puts a descriptor into the resource table, which has it open from now on.
fn push(
    state: &mut GuestState,
    fs: &SharedFs,
    handle: MemoryHandle,
) -> wasmtime::Result<Resource<Descriptor>> {
    let resource = state.wasi.get().ctx().table.push(handle)?;
    lock(fs).retain(handle.node);
    Ok(Resource::new_own(resource.rep()))
}

/// Opens what a path leads to from the directory `dir`, and takes a handle for it.
pub(in crate::sandbox) fn open_at(
    state: &mut GuestState,
    dir: &MemoryFile,
    follow: PathFlags,
    path: &str,
    (how, flags): (OpenFlags, DescriptorFlags),
) -> wasmtime::Result<MemoryResult<Resource<Descriptor>>> {
    if !state.handles.take_in_memory() {
        return Ok(Err(ErrorCode::InsufficientMemory));
    }
    let can_write = flags.contains(DescriptorFlags::WRITE);
    let how = OpenHow {
        follow: follow_of(follow),
        create: how.contains(OpenFlags::CREATE),
        exclusive: how.contains(OpenFlags::EXCLUSIVE),
        truncate: how.contains(OpenFlags::TRUNCATE),
        directory: how.contains(OpenFlags::DIRECTORY),
        write: can_write,
    };
    let opened = dir.directory().and_then(|node| {
        let mut fs = lock(&dir.fs);
        let node = fs.open_at(node, path, how)?;
        Ok((node, fs.stat(node)?.kind))
    });
    let (node, kind) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            state.handles.release_in_memory();
            return Ok(Err(error));
        }
    };
    let handle = MemoryHandle {
        node,
        kind,
        can_read: flags.contains(DescriptorFlags::READ) || !can_write,
        can_write,
    };
    let pushed = push(state, &dir.fs, handle);
    // The table has it open by now, or never will.
    lock(&dir.fs).release(node);
    match pushed {
        Ok(resource) => {
            state.handles.bind_in_memory(resource.rep());
            Ok(Ok(resource))
        }
        Err(error) => {
            state.handles.release_in_memory();
            Err(error)
        }
    }
}

/// Closes a descriptor if it is one of a file in memory, and reports whether it was.
pub(super) fn close(state: &mut GuestState, rep: u32) -> wasmtime::Result<bool> {
    let Some(file) = memory_file(state, &Resource::new_borrow(rep)) else {
        return Ok(false);
    };
    let table = state.wasi.get().ctx().table;
    table.delete(Resource::<MemoryHandle>::new_own(rep))?;
    lock(&file.fs).release(file.handle.node);
    state.handles.close(rep);
    Ok(true)
}

fn follow_of(flags: PathFlags) -> FollowLast {
    FollowLast::when(flags.contains(PathFlags::SYMLINK_FOLLOW))
}

fn new_time(time: NewTimestamp) -> MemoryResult<Option<NewTime>> {
    match time {
        NewTimestamp::NoChange => Ok(None),
        NewTimestamp::Now => Ok(Some(NewTime::Now)),
        NewTimestamp::Timestamp(Datetime {
            seconds,
            nanoseconds,
        }) => {
            let nanos = seconds.checked_mul(NANOS);
            let nanos = nanos.and_then(|nanos| nanos.checked_add(nanoseconds.into()));
            Ok(Some(NewTime::At(nanos.ok_or(ErrorCode::Overflow)?)))
        }
    }
}

fn datetime(nanos: u64) -> Option<Datetime> {
    Some(Datetime {
        seconds: nanos / NANOS,
        nanoseconds: u32::try_from(nanos % NANOS).unwrap_or_default(),
    })
}

fn descriptor_type(kind: NodeKind) -> DescriptorType {
    match kind {
        NodeKind::File => DescriptorType::RegularFile,
        NodeKind::Directory => DescriptorType::Directory,
        NodeKind::Symlink => DescriptorType::SymbolicLink,
    }
}

fn descriptor_stat(stat: FileStat) -> DescriptorStat {
    DescriptorStat {
        type_: descriptor_type(stat.kind),
        link_count: stat.links.into(),
        size: stat.size,
        data_access_timestamp: datetime(stat.times.accessed),
        data_modification_timestamp: datetime(stat.times.modified),
        status_change_timestamp: datetime(stat.times.changed),
    }
}

/// The functions of `wasi:filesystem` on one descriptor, by their names.
impl MemoryFile {
    /// Returns the number of the file.
    pub(in crate::sandbox) fn node(&self) -> NodeId {
        self.handle.node
    }

    /// Returns the number of the directory.
    ///
    /// # Errors
    /// Returns `NotDirectory` for a file.
    pub(in crate::sandbox) fn directory(&self) -> MemoryResult<NodeId> {
        match self.handle.kind {
            NodeKind::Directory => Ok(self.handle.node),
            NodeKind::File | NodeKind::Symlink => Err(ErrorCode::NotDirectory),
        }
    }

    /// Returns the number of the file, which `allows` says may be used so.
    fn file(&self, allows: impl FnOnce(&MemoryHandle) -> bool) -> MemoryResult<NodeId> {
        match self.handle.kind {
            NodeKind::File if allows(&self.handle) => Ok(self.handle.node),
            NodeKind::File | NodeKind::Directory | NodeKind::Symlink => {
                Err(ErrorCode::BadDescriptor)
            }
        }
    }

    /// Returns the number of a file that a stream may read.
    pub(super) fn readable(&self) -> MemoryResult<NodeId> {
        match self.handle.kind {
            NodeKind::Directory => Err(ErrorCode::IsDirectory),
            NodeKind::File | NodeKind::Symlink => self.file(|handle| handle.can_read),
        }
    }

    /// Returns the number of a file that a stream may write.
    pub(super) fn writable(&self) -> MemoryResult<NodeId> {
        self.file(|handle| handle.can_write)
    }

    /// Frees what a call has removed, in pieces.
    ///
    /// # Errors
    /// Fails where the run has to end.
    pub(in crate::sandbox) async fn sweep(&self, stop: Arc<StopSignal>) -> wasmtime::Result<()> {
        MemoryFiles::sweep(&self.fs, &mut HostCallPacer::new(&stop)).await?;
        Ok(())
    }

    pub(super) fn advise(&self, _offset: u64, _len: u64, _advice: Advice) -> MemoryResult<()> {
        self.file(|_| true).map(|_| ())
    }

    #[expect(clippy::unused_self, reason = "one of the functions by their names")]
    pub(super) fn sync_data(&self) -> MemoryResult<()> {
        Ok(())
    }

    #[expect(clippy::unused_self, reason = "one of the functions by their names")]
    pub(super) fn sync(&self) -> MemoryResult<()> {
        Ok(())
    }

    pub(super) fn get_flags(&self) -> MemoryResult<DescriptorFlags> {
        let mut flags = DescriptorFlags::empty();
        if self.handle.can_read {
            flags |= DescriptorFlags::READ;
        }
        flags |= match self.handle.kind {
            NodeKind::Directory => DescriptorFlags::MUTATE_DIRECTORY,
            NodeKind::File | NodeKind::Symlink if self.handle.can_write => DescriptorFlags::WRITE,
            NodeKind::File | NodeKind::Symlink => DescriptorFlags::empty(),
        };
        Ok(flags)
    }

    pub(super) fn get_type(&self) -> MemoryResult<DescriptorType> {
        Ok(descriptor_type(self.handle.kind))
    }

    pub(super) fn set_size(&self, size: u64) -> MemoryResult<()> {
        let node = self.file(|handle| handle.can_write)?;
        Ok(lock(&self.fs).set_size(node, size)?)
    }

    pub(super) fn set_times(
        &self,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> MemoryResult<()> {
        let (accessed, modified) = (new_time(accessed)?, new_time(modified)?);
        Ok(lock(&self.fs).set_times(self.handle.node, accessed, modified)?)
    }

    pub(super) fn read(&self, len: u64, offset: u64) -> MemoryResult<(Vec<u8>, bool)> {
        let node = self.readable()?;
        let fs = lock(&self.fs);
        let left = fs.stat(node)?.size.saturating_sub(offset);
        let length = usize::try_from(len.min(left)).unwrap_or(FILE_PIECE);
        let mut bytes = vec![0; length.min(FILE_PIECE)];
        let read = fs.read(node, offset, &mut bytes)?;
        bytes.truncate(read);
        Ok((bytes, read == 0))
    }

    pub(super) fn metadata_hash(&self) -> MemoryResult<MetadataHashValue> {
        Ok(hash_of(self.handle.node.serial()))
    }

    pub(in crate::sandbox) fn metadata_hash_at(
        &self,
        follow: PathFlags,
        path: &str,
    ) -> MemoryResult<MetadataHashValue> {
        let dir = self.directory()?;
        let stat = lock(&self.fs).stat_at(dir, path, follow_of(follow))?;
        Ok(hash_of(stat.id.serial()))
    }

    pub(in crate::sandbox) fn stat(&self) -> MemoryResult<DescriptorStat> {
        Ok(descriptor_stat(lock(&self.fs).stat(self.handle.node)?))
    }

    pub(in crate::sandbox) fn stat_at(
        &self,
        follow: PathFlags,
        path: &str,
    ) -> MemoryResult<DescriptorStat> {
        let dir = self.directory()?;
        let stat = lock(&self.fs).stat_at(dir, path, follow_of(follow))?;
        Ok(descriptor_stat(stat))
    }

    pub(super) fn create_directory_at(&self, path: String) -> MemoryResult<()> {
        let dir = self.directory()?;
        Ok(lock(&self.fs).create_directory_at(dir, &path)?)
    }

    pub(super) fn set_times_at(
        &self,
        follow: PathFlags,
        path: String,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> MemoryResult<()> {
        let dir = self.directory()?;
        let (accessed, modified) = (new_time(accessed)?, new_time(modified)?);
        let mut fs = lock(&self.fs);
        Ok(fs.set_times_at(dir, &path, follow_of(follow), accessed, modified)?)
    }

    pub(super) fn readlink_at(&self, path: String) -> MemoryResult<String> {
        let dir = self.directory()?;
        Ok(lock(&self.fs).read_link_at(dir, &path)?.to_owned())
    }

    pub(super) fn remove_directory_at(&self, path: String) -> MemoryResult<()> {
        let dir = self.directory()?;
        Ok(lock(&self.fs).remove_directory_at(dir, &path)?)
    }

    pub(super) fn unlink_file_at(&self, path: String) -> MemoryResult<()> {
        let dir = self.directory()?;
        Ok(lock(&self.fs).unlink_file_at(dir, &path)?)
    }

    pub(super) fn symlink_at(&self, target: &str, path: &str) -> MemoryResult<()> {
        let dir = self.directory()?;
        Ok(lock(&self.fs).symlink_at(target, dir, path)?)
    }

    pub(super) fn link_at(
        &self,
        follow: PathFlags,
        from: &str,
        to_dir: &Self,
        to: &str,
    ) -> MemoryResult<()> {
        let (from_dir, to_dir) = (self.directory()?, to_dir.directory()?);
        Ok(lock(&self.fs).link_at((from_dir, from), follow_of(follow), (to_dir, to))?)
    }

    pub(super) fn rename_at(&self, from: &str, to_dir: &Self, to: &str) -> MemoryResult<()> {
        let (from_dir, to_dir) = (self.directory()?, to_dir.directory()?);
        Ok(lock(&self.fs).rename_at((from_dir, from), (to_dir, to))?)
    }
}
