//! Replaces the directory listings of guests. Each listing is one snapshot of names, so it is as
//! long as its directory was, whatever becomes of that meanwhile. Upstream reads and stats the
//! whole directory for each piece of preview 1, and holds it in memory that nobody is charged for.
//!
//! For preview 1, the snapshot is taken where a listing begins, at cookie 0, and kept for the
//! descriptor until that is closed or listed from the beginning again; cookies are positions in the
//! snapshot. A component has one in each `directory-entry-stream`.

use std::fs::File;
use std::sync::Arc;

use wasmtime::component::{self, Resource, ResourceType, WasmStr};
use wasmtime::{Caller, Linker, StoreContextMut};
use wasmtime_wasi::WasiView;
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::p1::types::{self, Errno, Filetype};
use wasmtime_wasi::p1::wasi_snapshot_preview1::WasiSnapshotPreview1;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorType, DirectoryEntry, ErrorCode, HostDescriptor, MetadataHashValue, PathFlags,
};
use wiggle::{GuestMemory, GuestPtr};

use super::directory_snapshot::{DirectorySnapshot, ListedEntry, serial_of};
use super::file_types::FILESYSTEM_INTERFACE;
use super::guest_state::{GuestState, memory};
use super::memory_files::Route;
use super::preview2::{bounded_path, memory_descriptor};
use super::stop_signal::{StopSignal, Stopped};
use super::wasi::WASI_MODULES;
use crate::sandbox::schedule::file_threads::FileCalls;

/// How many bytes of one call are copied before the guest yields and checks whether it has to stop.
const COPIED_AT_ONCE: u32 = 256 << 10;
/// The constant that upstream combines with the lower half of a hash to make the upper half.
const UPPER_HALF: u64 = std::f64::consts::PI.to_bits();
/// How many open directories are checked in one call.
const STATTED_AT_ONCE: usize = 16;
/// The names "." and "..", which a snapshot does not contain.
const DOTS: [&str; 2] = [".", ".."];

/// Replaces `fd_readdir` of preview 1 and of `wasi_unstable`, whose entries have the same layout.
/// Whatever closes a descriptor closes its listing too ([`super::preview1`]).
pub(in crate::sandbox) fn add_core(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    for module in WASI_MODULES {
        linker.func_wrap_async(
            module,
            "fd_readdir",
            |caller: Caller<'_, GuestState>, args: ReaddirArgs| Box::new(fd_readdir(caller, args)),
        )?;
    }
    Ok(())
}

/// The arguments of `fd_readdir`: the descriptor, the buffer, its length, the cookie, and where the
/// number of bytes goes.
type ReaddirArgs = (i32, i32, i32, i64, i32);

async fn fd_readdir(
    mut caller: Caller<'_, GuestState>,
    (fd, buffer, length, cookie, out): ReaddirArgs,
) -> wasmtime::Result<i32> {
    let fd = match caller.data().route([fd]) {
        Route::Runtime([fd]) => ListedDescriptor::Runtime(fd.cast_unsigned()),
        Route::Memory => ListedDescriptor::Memory(fd),
        Route::Refused(errno) => return Ok(i32::from(errno as u16)),
    };
    let memory = memory(&mut caller)?;
    let (bytes, state) = memory.data_and_store_mut(&mut caller);
    let mut destination = ReaddirBuffer {
        memory: GuestMemory::Unshared(bytes),
        at: GuestPtr::new(buffer.cast_unsigned()),
        left: length.cast_unsigned(),
    };
    let filled = async {
        let listing = match fd {
            ListedDescriptor::Runtime(fd) => listing_of(state, fd, cookie == 0).await?,
            ListedDescriptor::Memory(fd) => memory_listing_of(state, fd, cookie == 0).await?,
        };
        fill(&mut destination, listing, cookie.cast_unsigned()).await?;
        let used = length.cast_unsigned() - destination.left;
        let out = GuestPtr::<u32>::new(out.cast_unsigned());
        destination.memory.write(out, used)?;
        Ok::<_, types::Error>(())
    };
    match filled.await {
        Ok(()) => Ok(0),
        Err(error) => Ok(i32::from(error.downcast()? as u16)),
    }
}

/// The descriptor of a directory that a core module lists.
#[derive(Clone, Copy, Debug)]
enum ListedDescriptor {
    /// One of the runtime, by the runtime's number.
    Runtime(u32),
    /// One of the memory file system, by the guest's number.
    Memory(i32),
}

/// Returns the listing of a descriptor of the memory file system, as [`listing_of`] does.
async fn memory_listing_of(
    state: &mut GuestState,
    fd: i32,
    begins: bool,
) -> Result<StoppableSnapshot<'_>, types::Error> {
    let GuestState {
        memory_files,
        memory_limiter,
        stop,
        ..
    } = state;
    let files = memory_files.as_mut().ok_or(Errno::Badf)?;
    let descriptor = files.descriptors.memory(fd)?;
    if !descriptor.is_directory {
        return Err(Errno::Badf.into());
    }
    if begins || descriptor.listing.is_none() {
        if let Some(listing) = descriptor.listing.take() {
            listing.release(memory_limiter);
        }
        let reading =
            DirectorySnapshot::read_memory(descriptor.node, &files.fs, memory_limiter, stop);
        descriptor.listing = Some(reading.await?);
    }
    let listing = descriptor.listing.as_mut().ok_or(Errno::Badf)?;
    Ok(StoppableSnapshot { listing, stop })
}

/// Returns the listing of a descriptor. It is read first where there is none, or where a new
/// listing `begins`.
async fn listing_of(
    state: &mut GuestState,
    fd: u32,
    begins: bool,
) -> Result<StoppableSnapshot<'_>, types::Error> {
    let GuestState {
        wasi,
        memory_limiter,
        stop,
        listings,
        files,
        ..
    } = state;
    if begins || listings.get_mut(fd).is_none() {
        listings.close(fd, memory_limiter);
        let dir = directory_of(wasi.get(), files, stop, fd).await?;
        let listing = DirectorySnapshot::read(dir, files, memory_limiter, stop).await?;
        listings.keep(fd, listing);
    }
    let listing = listings.get_mut(fd).ok_or(Errno::Badf)?;
    Ok(StoppableSnapshot { listing, stop })
}

/// A listing together with the stop signal of its run.
struct StoppableSnapshot<'a> {
    listing: &'a mut DirectorySnapshot,
    stop: &'a StopSignal,
}

/// Finds the directory behind a descriptor of preview 1.
///
/// Upstream keeps the table of these descriptors private, but it tells a serial number, and every
/// directory that the run has open is among its resources. Two with the same number are the same
/// directory, and either will do.
async fn directory_of(
    wasi: &mut WasiP1Ctx,
    files: &FileCalls,
    stop: &StopSignal,
    fd: u32,
) -> Result<Arc<File>, types::Error> {
    let mut nothing = GuestMemory::Unshared(&mut []);
    let stat = WasiSnapshotPreview1::fd_filestat_get(wasi, &mut nothing, types::Fd::from(fd));
    let stat = files.run(stat).await?;
    if stat.filetype != Filetype::Directory {
        return Err(Errno::Badf.into());
    }
    let table = wasi.ctx().table;
    // No key is larger than the table's capacity.
    let keys = u32::try_from(table.max_capacity()).unwrap_or(u32::MAX);
    let open: Vec<Arc<File>> = (0..keys)
        .filter_map(|key| match table.get(&Resource::new_borrow(key)) {
            Ok(Descriptor::Dir(dir)) => Some(Arc::clone(&dir.dir)),
            Ok(Descriptor::File(_)) | Err(_) => None,
        })
        .collect();
    for some in open.chunks(STATTED_AT_ONCE) {
        let some = some.to_vec();
        let is_it = move |dir: &Arc<File>| serial_of(dir) == Ok(stat.ino);
        let found = files.blocking(move || some.into_iter().find(is_it)).await;
        if let Some(dir) = found {
            return Ok(dir);
        }
        if stop.reason().is_some() {
            return Err(types::Error::trap(Stopped.into()));
        }
    }
    Err(Errno::Io.into())
}

/// The part of the guest's buffer that is not filled yet.
struct ReaddirBuffer<'a> {
    memory: GuestMemory<'a>,
    at: GuestPtr<u8>,
    left: u32,
}

impl ReaddirBuffer<'_> {
    /// Writes as much of `bytes` as there is room for, and reports whether there is room left.
    fn write(&mut self, bytes: &[u8]) -> Result<bool, types::Error> {
        let length = u32::try_from(bytes.len()).map_or(self.left, |length| length.min(self.left));
        let written = bytes.get(..length as usize).unwrap_or(bytes);
        self.memory
            .copy_from_slice(written, self.at.as_array(length))?;
        self.at = self.at.add(length)?;
        self.left -= length;
        Ok(self.left > 0)
    }
}

/// Writes entries from a cookie on, until there are no more or the buffer is full; then the last
/// entry is cut off. A guest takes a result shorter than its buffer for the end of the listing.
async fn fill(
    destination: &mut ReaddirBuffer<'_>,
    StoppableSnapshot { listing, stop }: StoppableSnapshot<'_>,
    mut cookie: u64,
) -> Result<(), types::Error> {
    let mut yield_at = destination.left.saturating_sub(COPIED_AT_ONCE);
    let directory = listing.serial();
    loop {
        let entry = match cookie.checked_sub(2) {
            Some(position) => listing.entry(position),
            None => usize::try_from(cookie).ok().and_then(|dot| {
                DOTS.get(dot).map(|name| ListedEntry {
                    serial: directory,
                    file_type: Filetype::Directory as u8,
                    name,
                })
            }),
        };
        let Some(entry) = entry else {
            break;
        };
        // A name is at most 64 KiB.
        let length = u32::try_from(entry.name.len()).unwrap_or_default();
        let mut head = [0; 24];
        cookie = cookie.saturating_add(1);
        head[..8].copy_from_slice(&cookie.to_le_bytes());
        head[8..16].copy_from_slice(&entry.serial.to_le_bytes());
        head[16..20].copy_from_slice(&length.to_le_bytes());
        head[20] = entry.file_type;
        if !destination.write(&head)? || !destination.write(entry.name.as_bytes())? {
            break;
        }
        if destination.left < yield_at {
            yield_at = destination.left.saturating_sub(COPIED_AT_ONCE);
            tokio::task::yield_now().await;
            if stop.reason().is_some() {
                return Err(types::Error::trap(Stopped.into()));
            }
        }
    }
    Ok(())
}

/// Replaces `read-directory` of components, the stream that it returns, and `metadata-hash-at`.
pub(in crate::sandbox) fn add_component(
    linker: &mut component::Linker<GuestState>,
) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut interface = linker.instance(FILESYSTEM_INTERFACE)?;
    interface.resource(
        "directory-entry-stream",
        ResourceType::host::<ListingStream>(),
        |mut store, rep| {
            let GuestState {
                listings,
                memory_limiter,
                ..
            } = store.data_mut();
            listings.close(rep, memory_limiter);
            Ok(())
        },
    )?;
    interface.func_wrap_async(
        "[method]descriptor.read-directory",
        |store: StoreContextMut<'_, GuestState>, (dir,): (Resource<Descriptor>,)| {
            Box::new(read_directory(store, dir))
        },
    )?;
    interface.func_wrap(
        "[method]directory-entry-stream.read-directory-entry",
        |mut store: StoreContextMut<'_, GuestState>, (stream,): (Resource<ListingStream>,)| {
            Ok(read_directory_entry(store.data_mut(), stream.rep()))
        },
    )?;
    interface.func_wrap_async(
        "[method]descriptor.metadata-hash-at",
        |store: StoreContextMut<'_, GuestState>, args: MetadataHashAtArgs| {
            Box::new(metadata_hash_at(store, args))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// A `directory-entry-stream`. Its listing is kept among the run's other listings.
struct ListingStream;

/// The return types of `read-directory` and `read-directory-entry`.
type ReadDirectoryResult = (Result<Resource<ListingStream>, ErrorCode>,);
type ReadEntryResult = (Result<Option<DirectoryEntry>, ErrorCode>,);

async fn read_directory(
    mut store: StoreContextMut<'_, GuestState>,
    dir: Resource<Descriptor>,
) -> wasmtime::Result<ReadDirectoryResult> {
    let state = store.data_mut();
    if let Some(file) = memory_descriptor::memory_file(state, &dir) {
        let GuestState {
            memory_limiter,
            stop,
            ..
        } = state;
        let dir = match file.directory() {
            Ok(dir) => dir,
            Err(error) => return Ok((Err(error),)),
        };
        return match DirectorySnapshot::read_memory(dir, &file.fs, memory_limiter, stop).await {
            Ok(listing) => {
                let rep = state.listings.keep_new(listing);
                Ok((Ok(Resource::new_own(rep)),))
            }
            Err(error) => Ok((Err(error.downcast()?),)),
        };
    }
    let dir = match state.filesystem().table.get(&dir)? {
        Descriptor::Dir(dir) => Arc::clone(&dir.dir),
        Descriptor::File(_) => return Ok((Err(ErrorCode::NotDirectory),)),
    };
    let GuestState {
        files,
        memory_limiter,
        stop,
        ..
    } = state;
    match DirectorySnapshot::read(dir, files, memory_limiter, stop).await {
        Ok(listing) => {
            let rep = state.listings.keep_new(listing);
            Ok((Ok(Resource::new_own(rep)),))
        }
        Err(error) => Ok((Err(error.downcast()?),)),
    }
}

fn read_directory_entry(state: &mut GuestState, rep: u32) -> ReadEntryResult {
    let Some(entry) = state.listings.read(rep) else {
        return (Ok(None),);
    };
    let entry = DirectoryEntry {
        type_: descriptor_type(entry.file_type),
        name: entry.name.to_owned(),
    };
    (Ok(Some(entry)),)
}

/// The arguments and the return type of `metadata-hash-at`.
type MetadataHashAtArgs = (Resource<Descriptor>, PathFlags, WasmStr);
type MetadataHashResult = (Result<MetadataHashValue, ErrorCode>,);

/// Returns the metadata hash as upstream does, and also for an entry that was just read and is
/// gone. Guests' libraries ask for the hash of each entry, since an entry has no number in it, and
/// where that fails their whole listing fails.
async fn metadata_hash_at(
    mut store: StoreContextMut<'_, GuestState>,
    (dir, follow, given): MetadataHashAtArgs,
) -> wasmtime::Result<MetadataHashResult> {
    let Some(path) = bounded_path(&store, &given)? else {
        return Ok((Err(ErrorCode::NameTooLong),));
    };
    if let Some(file) = memory_descriptor::memory_file(store.data_mut(), &dir) {
        let hash = file.metadata_hash_at(follow, &path);
        if !matches!(hash, Err(ErrorCode::NoEntry)) {
            return Ok((hash,));
        }
        let listings = &mut store.data_mut().listings;
        let gone = listings.read_last_memory(file.node());
        let gone = gone.filter(|entry| follow == PathFlags::empty() && entry.name == path);
        return Ok((gone.map_or(hash, |entry| Ok(memory_descriptor::hash_of(entry.serial))),));
    }
    let calls = store.data().files.clone();
    let mut files = store.data_mut().filesystem();
    let again = Resource::new_borrow(dir.rep());
    let hash = HostDescriptor::metadata_hash_at(&mut files, again, follow, path.clone());
    let error = match calls.run(hash).await {
        Ok(hash) => return Ok((Ok(hash),)),
        Err(error) => error.downcast()?,
    };
    let state = store.data_mut();
    if matches!(error, ErrorCode::NoEntry)
        && follow == PathFlags::empty()
        && let Descriptor::Dir(dir) = state.wasi.get().ctx().table.get(&dir)?
        && let Some(entry) = state.listings.read_last(&dir.dir)
        && entry.name == path
    {
        return Ok((Ok(MetadataHashValue {
            lower: entry.serial,
            upper: entry.serial ^ UPPER_HALF,
        }),));
    }
    Ok((Err(error),))
}

fn descriptor_type(file_type: u8) -> DescriptorType {
    match Filetype::try_from(file_type) {
        Ok(Filetype::RegularFile) => DescriptorType::RegularFile,
        Ok(Filetype::Directory) => DescriptorType::Directory,
        Ok(Filetype::SymbolicLink) => DescriptorType::SymbolicLink,
        Ok(Filetype::CharacterDevice) => DescriptorType::CharacterDevice,
        Ok(Filetype::BlockDevice) => DescriptorType::BlockDevice,
        Ok(Filetype::Unknown | Filetype::SocketDgram | Filetype::SocketStream) | Err(_) => {
            DescriptorType::Unknown
        }
    }
}
