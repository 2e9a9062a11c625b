//! Snapshots of directories for listings: a directory's names are read once, in pieces, and charged
//! to the run's memory.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, fstat, openat, statat};
use rustix::io::Errno;
use wasmtime_wasi::p1::types::Filetype;
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;
use wasmtime_wasi::p2::{FsError, FsResult};

use super::host_call_pacer::HostCallPacer;
use super::memory_fs::{NodeId, NodeKind, SharedFs};
use super::memory_limiter::MemoryLimiter;
use super::stop_signal::{StopSignal, Stopped};
use crate::sandbox::schedule::file_threads::FileCalls;
use crate::sync::lock;

/// The size of the buffer that the kernel fills at once, in bytes. An entry that does not fit
/// fails: the longest names of any file system are a few hundred bytes.
const KERNEL_BUFFER: usize = 32 << 10;
/// How many bytes of records a piece may hold before it ends. Together with the buffer, this is
/// what a run holds without being charged while a piece is read.
const PIECE_BYTES: usize = 32 << 10;
/// How long a piece may take on a slow file system before it ends. Between pieces, the run's stop
/// request is checked.
const PIECE_TIME: Duration = Duration::from_millis(5);
/// What a listing costs beyond its records, in bytes: the listing itself, its place among the
/// others, and the guest's handle for it.
const LISTING_OVERHEAD: usize = 512;
/// What a chunk costs beyond its records, in bytes: the vector of chunks grows by doubling, and the
/// allocator rounds up.
const CHUNK_OVERHEAD: usize = 2 * size_of::<SnapshotChunk>() + 32;

/// The names that a directory had when it was listed. A position in the listing stays valid
/// whatever becomes of the directory: an entry removed meanwhile is still listed, one added is not.
///
/// A name that is not UTF-8 is left out. WASI's paths are UTF-8, so no guest could open or remove
/// what it names; wasmtime fails the whole listing for it.
#[derive(Debug)]
pub(in crate::sandbox) struct DirectorySnapshot {
    /// The directory that was read.
    dir: ListedDirectory,
    /// The directory's own serial number.
    serial: u64,
    chunks: Vec<SnapshotChunk>,
    entries: u64,
    charged: usize,
    /// The position of the entry that `next` returns.
    next: u64,
    /// Where the last requested entry begins, since the next request is usually for the one after
    /// it.
    cursor: SnapshotCursor,
}

/// The directory of a listing, by which its descriptors are recognized.
#[derive(Debug)]
enum ListedDirectory {
    /// The descriptor through which it was read, which this does not keep open.
    Host(Weak<File>),
    /// A directory of the run's memory file system.
    Memory(NodeId),
}

/// The records of one piece. Each has a serial number (8 bytes), a file type (1), the length of the
/// name (2), and the name.
#[derive(Debug)]
struct SnapshotChunk {
    /// The position of the chunk's first entry.
    first: u64,
    records: Box<[u8]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct SnapshotCursor {
    position: u64,
    chunk: usize,
    offset: usize,
}

/// One entry of a directory listing.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct ListedEntry<'a> {
    /// The number that a guest takes for the inode's number.
    pub serial: u64,
    /// The file type, as preview 1 numbers them.
    pub file_type: u8,
    /// The name of the entry, which is never "." or "..".
    pub name: &'a str,
}

impl DirectorySnapshot {
    /// Reads all names of `dir`, through a separate descriptor, and charges `memory_limiter` for
    /// them as they arrive.
    ///
    /// # Errors
    /// Returns `InsufficientMemory` where the run may not hold that many, the error of the file
    /// system, or a trap where the run has to stop.
    pub(in crate::sandbox) async fn read(
        dir: Arc<File>,
        files: &FileCalls,
        memory_limiter: &mut MemoryLimiter,
        stop: &StopSignal,
    ) -> FsResult<Self> {
        let mut listing = Self::empty(ListedDirectory::Host(Arc::downgrade(&dir)), 0);
        let read = listing.read_all(dir, files, memory_limiter, stop).await;
        match read {
            Ok(()) => Ok(listing),
            Err(error) => {
                listing.release(memory_limiter);
                Err(error)
            }
        }
    }

    /// Reads all names of a directory in memory, as [`Self::read`] does.
    ///
    /// # Errors
    /// Returns `InsufficientMemory` where the run may not hold that many, the error of the file
    /// system, or a trap where the run has to stop.
    pub(in crate::sandbox) async fn read_memory(
        dir: NodeId,
        fs: &SharedFs,
        memory_limiter: &mut MemoryLimiter,
        stop: &StopSignal,
    ) -> FsResult<Self> {
        let mut listing = Self::empty(ListedDirectory::Memory(dir), dir.serial());
        let read = listing.read_all_memory(dir, fs, memory_limiter, stop).await;
        match read {
            Ok(()) => Ok(listing),
            Err(error) => {
                listing.release(memory_limiter);
                Err(error)
            }
        }
    }

    fn empty(dir: ListedDirectory, serial: u64) -> Self {
        Self {
            dir,
            serial,
            chunks: Vec::new(),
            entries: 0,
            charged: 0,
            next: 0,
            cursor: SnapshotCursor::default(),
        }
    }

    async fn read_all_memory(
        &mut self,
        dir: NodeId,
        fs: &SharedFs,
        memory_limiter: &mut MemoryLimiter,
        stop: &StopSignal,
    ) -> FsResult<()> {
        self.charge(memory_limiter, LISTING_OVERHEAD)?;
        let mut pace = HostCallPacer::new(stop);
        let mut last: Option<String> = None;
        loop {
            let (mut records, mut entries) = (Vec::with_capacity(PIECE_BYTES), 0);
            let mut reached = String::new();
            let listed = lock(fs).list(dir, last.as_deref(), |name, node, kind| {
                let file_type = match kind {
                    NodeKind::File => Filetype::RegularFile,
                    NodeKind::Directory => Filetype::Directory,
                    NodeKind::Symlink => Filetype::SymbolicLink,
                };
                append_record(node.serial(), file_type, name, &mut records);
                entries += 1;
                name.clone_into(&mut reached);
                records.len() < PIECE_BYTES
            });
            let is_last = !listed.map_err(ErrorCode::from)?;
            let piece = SnapshotPiece {
                records: records.into_boxed_slice(),
                entries,
                is_last,
            };
            self.append(piece, memory_limiter)?;
            if is_last {
                return Ok(());
            }
            last = Some(reached);
            pace.checkpoint().await.map_err(FsError::trap)?;
        }
    }

    async fn read_all(
        &mut self,
        dir: Arc<File>,
        files: &FileCalls,
        memory_limiter: &mut MemoryLimiter,
        stop: &StopSignal,
    ) -> FsResult<()> {
        self.charge(memory_limiter, LISTING_OVERHEAD)?;
        let open = move || DirectoryReader::open(&dir).map(DirectoryReader::read);
        let opened = files.blocking(open);
        let (mut reader, mut piece) = opened.await.map_err(io::Error::from)?;
        self.serial = reader.serial;
        loop {
            let read = piece.map_err(io::Error::from)?;
            let is_last = read.is_last;
            self.append(read, memory_limiter)?;
            if is_last {
                return Ok(());
            }
            if stop.reason().is_some() {
                return Err(FsError::trap(Stopped));
            }
            (reader, piece) = files.blocking(move || reader.read()).await;
        }
    }

    fn append(&mut self, piece: SnapshotPiece, memory_limiter: &mut MemoryLimiter) -> FsResult<()> {
        if piece.entries == 0 {
            return Ok(());
        }
        self.charge(memory_limiter, piece.records.len() + CHUNK_OVERHEAD)?;
        self.chunks.push(SnapshotChunk {
            first: self.entries,
            records: piece.records,
        });
        self.entries += piece.entries;
        Ok(())
    }

    fn charge(&mut self, memory_limiter: &mut MemoryLimiter, bytes: usize) -> FsResult<()> {
        if !memory_limiter.charge(bytes) {
            return Err(ErrorCode::InsufficientMemory.into());
        }
        self.charged += bytes;
        Ok(())
    }

    /// Releases the memory that the listing was charged for.
    pub(in crate::sandbox) fn release(self, memory_limiter: &mut MemoryLimiter) {
        memory_limiter.release(self.charged);
    }

    /// Returns the serial number of the directory itself.
    pub(in crate::sandbox) fn serial(&self) -> u64 {
        self.serial
    }

    /// Returns the entry after the one that the last call of this returned.
    pub(in crate::sandbox) fn next(&mut self) -> Option<ListedEntry<'_>> {
        let position = self.next;
        self.next = position.saturating_add(1);
        self.entry(position)
    }

    /// Returns the entry that the last call of [`Self::next`] returned.
    fn last_read(&mut self) -> Option<ListedEntry<'_>> {
        let position = self.next.checked_sub(1)?;
        self.entry(position)
    }

    /// Returns the entry at a position, or `None` past the last one.
    pub(in crate::sandbox) fn entry(&mut self, position: u64) -> Option<ListedEntry<'_>> {
        if position >= self.entries {
            return None;
        }
        let after = self.chunks.partition_point(|it| it.first <= position);
        let at = after.checked_sub(1)?;
        let chunk = self.chunks.get(at)?;
        let (mut reached, mut offset) =
            if self.cursor.chunk == at && self.cursor.position <= position {
                (self.cursor.position, self.cursor.offset)
            } else {
                (chunk.first, 0)
            };
        loop {
            let (entry, next) = decode(&chunk.records, offset)?;
            if reached == position {
                self.cursor = SnapshotCursor {
                    position,
                    chunk: at,
                    offset,
                };
                return Some(entry);
            }
            (reached, offset) = (reached + 1, next);
        }
    }
}

/// Decodes the record at an offset, and returns it with the offset of the next one.
fn decode(records: &[u8], offset: usize) -> Option<(ListedEntry<'_>, usize)> {
    let rest = records.get(offset..)?;
    let (serial, rest) = rest.split_first_chunk()?;
    let (&file_type, rest) = rest.split_first()?;
    let (length, rest) = rest.split_first_chunk()?;
    let length = usize::from(u16::from_le_bytes(*length));
    let (name, rest) = rest.split_at_checked(length)?;
    let entry = ListedEntry {
        serial: u64::from_le_bytes(*serial),
        file_type,
        name: str::from_utf8(name).ok()?,
    };
    Some((entry, records.len() - rest.len()))
}

/// A reader of a directory, one piece at a time, on threads that may block.
struct DirectoryReader {
    fd: OwnedFd,
    device: u64,
    serial: u64,
}

struct SnapshotPiece {
    records: Box<[u8]>,
    entries: u64,
    is_last: bool,
}

impl DirectoryReader {
    /// Opens the directory again, since an offset is shared by all users of a descriptor.
    fn open(dir: &File) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let fd = openat(dir, c".", flags, Mode::empty())?;
        let stat = fstat(&fd)?;
        Ok(Self {
            fd,
            device: stat.st_dev,
            serial: serial(stat.st_dev, stat.st_ino),
        })
    }

    fn read(self) -> (Self, Result<SnapshotPiece, Errno>) {
        let piece = self.piece();
        (self, piece)
    }

    fn piece(&self) -> Result<SnapshotPiece, Errno> {
        let start = Instant::now();
        let mut buffer = Vec::with_capacity(KERNEL_BUFFER);
        let mut dir = RawDir::new(self.fd.as_fd(), buffer.spare_capacity_mut());
        let (mut records, mut entries) = (Vec::with_capacity(PIECE_BYTES), 0);
        let is_last = loop {
            match dir.next() {
                None => break true,
                Some(Err(Errno::INTR)) => continue,
                // The directory itself was removed, and has no names any more.
                Some(Err(Errno::NOENT)) => break true,
                Some(Err(error)) => return Err(error),
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    if let Some(file_type) = self.file_type(name, entry.file_type())
                        && self.encode(name, entry.ino(), file_type, &mut records)
                    {
                        entries += 1;
                    }
                }
            }
            let is_full = records.len() >= PIECE_BYTES || start.elapsed() >= PIECE_TIME;
            // What the kernel returned is consumed as a whole, since its next answer begins after
            // it.
            if is_full && dir.is_buffer_empty() {
                break false;
            }
        };
        Ok(SnapshotPiece {
            records: records.into_boxed_slice(),
            entries,
            is_last,
        })
    }

    /// Appends a record and returns true, unless a guest could not use the name.
    fn encode(&self, name: &CStr, inode: u64, file_type: Filetype, records: &mut Vec<u8>) -> bool {
        match name.to_str() {
            Ok("." | "..") | Err(_) => false,
            Ok(name) => append_record(serial(self.device, inode), file_type, name, records),
        }
    }

    /// Returns the type of the entry as upstream tells it, or `None` if the entry is gone. The file
    /// system is asked only where the directory entry has no type.
    fn file_type(&self, name: &CStr, told: FileType) -> Option<Filetype> {
        let known = match told {
            FileType::Unknown => match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(Errno::NOENT) => return None,
                Err(_) => FileType::Unknown,
            },
            FileType::RegularFile
            | FileType::Directory
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice => told,
        };
        Some(match known {
            FileType::RegularFile => Filetype::RegularFile,
            FileType::Directory => Filetype::Directory,
            FileType::Symlink => Filetype::SymbolicLink,
            FileType::CharacterDevice => Filetype::CharacterDevice,
            FileType::BlockDevice => Filetype::BlockDevice,
            FileType::Fifo | FileType::Socket | FileType::Unknown => Filetype::Unknown,
        })
    }
}

/// Appends a record and returns true, unless the name is longer than any file system has.
fn append_record(serial: u64, file_type: Filetype, name: &str, records: &mut Vec<u8>) -> bool {
    let Ok(length) = u16::try_from(name.len()) else {
        return false;
    };
    records.extend(serial.to_le_bytes());
    records.push(file_type as u8);
    records.extend(length.to_le_bytes());
    records.extend(name.as_bytes());
    true
}

/// Returns the serial number of an open file or directory.
pub(in crate::sandbox) fn serial_of(file: &File) -> Result<u64, Errno> {
    fstat(file).map(|stat| serial(stat.st_dev, stat.st_ino))
}

/// Returns the number that upstream tells guests as the inode's number, so that an entry has the
/// same one as a stat of it. The entries of a directory on which something is mounted, or that is
/// made of several file systems, have another one.
fn serial(device: u64, inode: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (device, inode).hash(&mut hasher);
    hasher.finish()
}

/// The open listings of a run, by descriptor of preview 1 or by handle of a component. A run has
/// only one of the two kinds.
#[derive(Debug, Default)]
pub struct OpenListings {
    listings: BTreeMap<u32, DirectorySnapshot>,
    next: u32,
    /// The handle that was last read from.
    last: u32,
}

impl OpenListings {
    /// Returns the listing of a descriptor or handle, or `None` if there is none.
    pub(in crate::sandbox) fn get_mut(&mut self, key: u32) -> Option<&mut DirectorySnapshot> {
        self.listings.get_mut(&key)
    }

    /// Stores a listing for a descriptor that has none.
    pub(in crate::sandbox) fn keep(&mut self, key: u32, listing: DirectorySnapshot) {
        self.listings.insert(key, listing);
    }

    /// Stores a listing and returns a new handle for it. Each listing takes at least 512 bytes of
    /// its run's memory, so there are always free handles.
    pub(in crate::sandbox) fn keep_new(&mut self, listing: DirectorySnapshot) -> u32 {
        while self.listings.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let key = self.next;
        self.next = self.next.wrapping_add(1);
        self.listings.insert(key, listing);
        key
    }

    /// Returns the next entry of a handle's listing.
    pub(in crate::sandbox) fn read(&mut self, key: u32) -> Option<ListedEntry<'_>> {
        self.last = key;
        self.get_mut(key)?.next()
    }

    /// Returns the last entry that was read, of all listings, if it was read through this
    /// descriptor.
    pub(in crate::sandbox) fn read_last(&mut self, dir: &Arc<File>) -> Option<ListedEntry<'_>> {
        let last = self.last;
        let listing = self.get_mut(last)?;
        match &listing.dir {
            ListedDirectory::Host(read) if std::ptr::eq(read.as_ptr(), Arc::as_ptr(dir)) => {}
            ListedDirectory::Host(_) | ListedDirectory::Memory(_) => return None,
        }
        listing.last_read()
    }

    /// Returns the last entry that was read, of all listings, if it is one of the directory `dir`
    /// in memory.
    pub(in crate::sandbox) fn read_last_memory(&mut self, dir: NodeId) -> Option<ListedEntry<'_>> {
        let last = self.last;
        let listing = self.get_mut(last)?;
        match &listing.dir {
            ListedDirectory::Memory(read) if *read == dir => listing.last_read(),
            ListedDirectory::Host(_) | ListedDirectory::Memory(_) => None,
        }
    }

    /// Drops the listing of a descriptor or handle, if there is one.
    pub(in crate::sandbox) fn close(&mut self, key: u32, memory_limiter: &mut MemoryLimiter) {
        if let Some(listing) = self.listings.remove(&key) {
            listing.release(memory_limiter);
        }
    }

    /// Moves a descriptor's listing to another descriptor, whose own listing is dropped.
    pub(in crate::sandbox) fn renumber(
        &mut self,
        from: u32,
        to: u32,
        memory_limiter: &mut MemoryLimiter,
    ) {
        if from != to {
            self.close(to, memory_limiter);
            if let Some(listing) = self.listings.remove(&from) {
                self.listings.insert(to, listing);
            }
        }
    }
}
