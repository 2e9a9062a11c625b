//! The memory file system of a run as its guest has it: the directories that the guest begins with,
//! and the descriptors by which a core module knows what it has open.
//!
//! The runtime keeps the descriptor table of preview 1 to itself. A core module with a memory file
//! system therefore has a table of its own in front of it, in which a number leads either to a
//! descriptor of the runtime, under the number that the runtime knows, or into the memory file
//! system. A run without one has no such table, and its numbers are the runtime's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use wasmtime_wasi::p1::types::{self, Errno};
use wasmtime_wasi::p2::bindings::filesystem::types::ErrorCode;

use super::directory_snapshot::DirectorySnapshot;
use super::host_call_pacer::HostCallPacer;
use super::memory_fs::{FileError, MemoryFs, NodeId, SharedFs};
use super::stop_signal::Stopped;
use crate::model::request::{CollectCaps, CollectPattern};
use crate::sync::lock;

/// How many pieces of what was removed are freed before the guest yields.
const SWEPT_AT_ONCE: usize = 64;

/// A directory that the guest begins with, in the order in which the guest finds them.
#[derive(Clone, Debug)]
pub(in crate::sandbox) enum GuestPreopen {
    /// The next one of the host directories that the runtime has.
    Host,
    /// A directory of the memory file system, and the name by which the guest knows it.
    Memory(NodeId, String),
}

/// What a run with a memory file system has of it.
pub(in crate::sandbox) struct MemoryFiles {
    /// The file system itself.
    pub(in crate::sandbox) fs: SharedFs,
    /// The directories that the guest begins with.
    pub(in crate::sandbox) preopens: Vec<GuestPreopen>,
    /// The descriptors of a core module.
    pub(in crate::sandbox) descriptors: DescriptorTable,
    /// What is returned of the files when the run has ended.
    pub(in crate::sandbox) collect: Arc<[CollectPattern]>,
    /// The caps on what is returned.
    pub(in crate::sandbox) caps: CollectCaps,
}

impl MemoryFiles {
    /// Creates what a run has of `fs`, with the directories that its guest begins with.
    pub(in crate::sandbox) fn new(
        mut fs: MemoryFs,
        preopens: Vec<GuestPreopen>,
        collect: Arc<[CollectPattern]>,
        caps: CollectCaps,
    ) -> Self {
        for preopen in &preopens {
            if let GuestPreopen::Memory(node, _) = preopen {
                fs.retain(*node);
            }
        }
        Self {
            fs: Arc::new(Mutex::new(fs)),
            descriptors: DescriptorTable::new(&preopens),
            preopens,
            collect,
            caps,
        }
    }

    /// Frees what a call removed, in pieces.
    ///
    /// # Errors
    /// Returns [`Stopped`] where the run has to end; the rest is freed with the run.
    pub(in crate::sandbox) async fn sweep(
        fs: &SharedFs,
        pace: &mut HostCallPacer<'_>,
    ) -> Result<(), Stopped> {
        while lock(fs).sweep(SWEPT_AT_ONCE) {
            pace.checkpoint().await?;
        }
        Ok(())
    }
}

/// Where a call of a core module on some descriptors goes.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) enum Route<const N: usize> {
    /// To the runtime, under these numbers.
    Runtime([i32; N]),
    /// To the memory file system.
    Memory,
    /// Nowhere: one of the descriptors is none, or they belong to different file systems.
    Refused(Errno),
}

/// A descriptor of a core module in a run with a memory file system.
#[derive(Debug)]
enum GuestDescriptor {
    /// A descriptor of the runtime, under this number.
    Runtime(u32),
    Memory(MemoryDescriptor),
}

/// A file or directory of the memory file system that a core module has open.
#[derive(Debug)]
pub(in crate::sandbox) struct MemoryDescriptor {
    /// The file or directory.
    pub(in crate::sandbox) node: NodeId,
    /// Whether it is a directory.
    pub(in crate::sandbox) is_directory: bool,
    /// The name of a directory that the guest began with; `None` for all others.
    pub(in crate::sandbox) preopen: Option<String>,
    /// Whether the guest may read.
    pub(in crate::sandbox) can_read: bool,
    /// Whether the guest may write.
    pub(in crate::sandbox) can_write: bool,
    /// The descriptor flags of preview 1 that the guest gave.
    pub(in crate::sandbox) flags: u16,
    /// The position of the next read or write.
    pub(in crate::sandbox) position: u64,
    /// The listing of a directory that the guest reads.
    pub(in crate::sandbox) listing: Option<DirectorySnapshot>,
}

/// The descriptors of a core module, by the numbers that the guest knows.
#[derive(Debug)]
pub(in crate::sandbox) struct DescriptorTable {
    descriptors: BTreeMap<u32, GuestDescriptor>,
    /// The numbers below the highest that are free.
    free: BTreeSet<u32>,
}

/// What a number led to that leads nowhere any more.
#[derive(Debug)]
pub(in crate::sandbox) enum ClosedDescriptor {
    /// A descriptor of the runtime, which has to close it.
    Runtime(u32),
    /// A descriptor of the memory file system.
    Memory(MemoryDescriptor),
}

impl DescriptorTable {
    /// Creates the table of a guest that begins with the standard streams and `preopens`.
    fn new(preopens: &[GuestPreopen]) -> Self {
        let mut host = 3..;
        let streams = (0..3).map(GuestDescriptor::Runtime);
        let directories = preopens.iter().map(|preopen| match preopen {
            GuestPreopen::Host => GuestDescriptor::Runtime(host.next().unwrap_or(u32::MAX)),
            GuestPreopen::Memory(node, name) => {
                GuestDescriptor::Memory(MemoryDescriptor::preopen(*node, name.clone()))
            }
        });
        Self {
            descriptors: (0..).zip(streams.chain(directories)).collect(),
            free: BTreeSet::new(),
        }
    }

    /// Decides where a call on the descriptors `fds` goes. Where it does not go to the runtime as a
    /// whole, it is one on the memory file system only if all of them belong to that.
    pub(in crate::sandbox) fn route<const N: usize>(&self, fds: [i32; N]) -> Route<N> {
        let (mut runtime, mut memory) = (0, 0);
        let mut translated = fds;
        for (fd, to) in fds.into_iter().zip(&mut translated) {
            match self.descriptors.get(&fd.cast_unsigned()) {
                None => return Route::Refused(Errno::Badf),
                Some(GuestDescriptor::Runtime(number)) => {
                    *to = number.cast_signed();
                    runtime += 1;
                }
                Some(GuestDescriptor::Memory(_)) => memory += 1,
            }
        }
        match (runtime, memory) {
            (_, 0) => Route::Runtime(translated),
            (0, _) => Route::Memory,
            (_, _) => Route::Refused(Errno::Xdev),
        }
    }

    /// Returns a descriptor of the memory file system.
    ///
    /// # Errors
    /// Returns `Badf` where the number leads to none.
    pub(in crate::sandbox) fn memory(&mut self, fd: i32) -> Result<&mut MemoryDescriptor, Errno> {
        match self.descriptors.get_mut(&fd.cast_unsigned()) {
            Some(GuestDescriptor::Memory(descriptor)) => Ok(descriptor),
            Some(GuestDescriptor::Runtime(_)) | None => Err(Errno::Badf),
        }
    }

    /// Gives the lowest free number to a descriptor of the runtime, and returns it.
    pub(in crate::sandbox) fn add_runtime(&mut self, number: u32) -> u32 {
        self.add(GuestDescriptor::Runtime(number))
    }

    /// Gives the lowest free number to a descriptor of the memory file system, and returns it.
    pub(in crate::sandbox) fn add_memory(&mut self, descriptor: MemoryDescriptor) -> u32 {
        self.add(GuestDescriptor::Memory(descriptor))
    }

    fn add(&mut self, descriptor: GuestDescriptor) -> u32 {
        let above = || {
            self.descriptors
                .last_key_value()
                .map_or(0, |(last, _)| last + 1)
        };
        // The number of descriptors is bounded by the run's handles, and so are their numbers.
        let fd = self.free.first().copied().unwrap_or_else(above);
        self.free.remove(&fd);
        self.descriptors.insert(fd, descriptor);
        fd
    }

    /// Takes a descriptor out, and frees its number.
    ///
    /// # Errors
    /// Returns `Badf` where the number leads nowhere.
    pub(in crate::sandbox) fn close(&mut self, fd: i32) -> Result<ClosedDescriptor, Errno> {
        let fd = fd.cast_unsigned();
        let closed = self.descriptors.remove(&fd).ok_or(Errno::Badf)?;
        self.free.insert(fd);
        Ok(match closed {
            GuestDescriptor::Runtime(number) => ClosedDescriptor::Runtime(number),
            GuestDescriptor::Memory(descriptor) => ClosedDescriptor::Memory(descriptor),
        })
    }

    /// Makes the number `to` lead where `from` does, which is free after that. The descriptor that
    /// `to` led to was taken out before.
    pub(in crate::sandbox) fn renumber(&mut self, from: i32, to: i32) {
        let (from, to) = (from.cast_unsigned(), to.cast_unsigned());
        if let Some(descriptor) = self.descriptors.remove(&from) {
            self.descriptors.insert(to, descriptor);
            self.free.remove(&to);
            self.free.insert(from);
        }
    }

    /// Reports whether a number leads anywhere.
    pub(in crate::sandbox) fn contains(&self, fd: i32) -> bool {
        self.descriptors.contains_key(&fd.cast_unsigned())
    }
}

impl MemoryDescriptor {
    fn preopen(node: NodeId, name: String) -> Self {
        Self {
            node,
            is_directory: true,
            preopen: Some(name),
            can_read: true,
            can_write: false,
            flags: 0,
            position: 0,
            listing: None,
        }
    }
}

impl From<FileError> for Errno {
    fn from(error: FileError) -> Self {
        match error {
            FileError::BadDescriptor => Self::Badf,
            FileError::Busy => Self::Busy,
            FileError::Exists => Self::Exist,
            FileError::Invalid => Self::Inval,
            FileError::IsDirectory => Self::Isdir,
            FileError::Loop => Self::Loop,
            FileError::NameTooLong => Self::Nametoolong,
            FileError::NoSpace => Self::Nospc,
            FileError::NotDirectory => Self::Notdir,
            FileError::NotEmpty => Self::Notempty,
            FileError::NotFound => Self::Noent,
            FileError::NotPermitted => Self::Perm,
            FileError::ReadOnly => Self::Rofs,
            FileError::TooLarge => Self::Fbig,
        }
    }
}

impl From<FileError> for types::Error {
    fn from(error: FileError) -> Self {
        Errno::from(error).into()
    }
}

impl From<FileError> for ErrorCode {
    fn from(error: FileError) -> Self {
        match error {
            FileError::BadDescriptor => Self::BadDescriptor,
            FileError::Busy => Self::Busy,
            FileError::Exists => Self::Exist,
            FileError::Invalid => Self::Invalid,
            FileError::IsDirectory => Self::IsDirectory,
            FileError::Loop => Self::Loop,
            FileError::NameTooLong => Self::NameTooLong,
            FileError::NoSpace => Self::InsufficientSpace,
            FileError::NotDirectory => Self::NotDirectory,
            FileError::NotEmpty => Self::NotEmpty,
            FileError::NotFound => Self::NoEntry,
            FileError::NotPermitted => Self::NotPermitted,
            FileError::ReadOnly => Self::ReadOnly,
            FileError::TooLarge => Self::FileTooLarge,
        }
    }
}
