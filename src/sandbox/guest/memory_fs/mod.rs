//! The in-memory file system of one run: a tree of files, directories and symbolic links that
//! begins with what the caller gave and is gone with the run.
//!
//! It is a data structure and knows no interface of WASI. Inodes are in a table by number, and
//! directories have names and numbers, so nothing in it is recursive, however deep a guest nests
//! directories. Whatever it holds is charged to the run's memory ([`account`]): the bytes of files
//! as they are allocated ([`contents`]), names, and a fixed cost for each inode and entry. What
//! removing a large file gives up is freed in pieces by [`MemoryFs::sweep`], so that no call of a
//! guest takes long.

pub(super) mod account;
mod contents;
mod inode;
mod names;
mod path;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;

use self::account::FileMemoryAccount;
use self::contents::{Discarded, FileContents};
use self::inode::{Directory, ENTRY_COST, FileTimes, Inode, InodeBody};
use crate::model::outcome::LiveUsage;

pub(in crate::sandbox) use self::inode::{NodeId, NodeKind};
pub(in crate::sandbox) use self::path::FollowLast;

/// The most bytes of a name.
pub(in crate::sandbox) const MAX_NAME: usize = 255;
/// The most bytes of a path, as on Linux.
pub(in crate::sandbox) const MAX_PATH: usize = 4096;
/// The largest size of a file, holes included.
const MAX_SIZE: u64 = i64::MAX.unsigned_abs();
/// The most directories that are above one that is renamed; more are not looked at.
const MAX_DEPTH: usize = 1 << 14;

/// Why a file system call failed. Each has its number in both interfaces of WASI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sandbox) enum FileError {
    /// The descriptor is none of the kind that the call takes.
    BadDescriptor,
    /// It is a mount point, or the directory that the path begins at.
    Busy,
    /// Something has the name already.
    Exists,
    /// The call is not possible with these arguments.
    Invalid,
    /// It is a directory, which the call does not take.
    IsDirectory,
    /// Too many symbolic links, or one where none may be.
    Loop,
    /// A name or a path is too long.
    NameTooLong,
    /// The run may hold no more memory.
    NoSpace,
    /// It is no directory, which the call takes only.
    NotDirectory,
    /// The directory has entries.
    NotEmpty,
    /// Nothing is at the path.
    NotFound,
    /// The path leads out of its directory, or the descriptor was not opened for this.
    NotPermitted,
    /// The directory is a mount point, whose entries are the mount's.
    ReadOnly,
    /// The offset is past the largest one.
    TooLarge,
}

/// The attributes of a file.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct FileStat {
    /// The number of the inode.
    pub(in crate::sandbox) id: NodeId,
    /// The kind of the file.
    pub(in crate::sandbox) kind: NodeKind,
    /// How many names the file has.
    pub(in crate::sandbox) links: u32,
    /// The size in bytes: of a symbolic link that of its target, of a directory 0.
    pub(in crate::sandbox) size: u64,
    /// The times of the file.
    pub(in crate::sandbox) times: FileTimes,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) struct OpenHow {
    /// What is done about a symbolic link at the end of the path.
    pub(in crate::sandbox) follow: FollowLast,
    /// Whether a file is made where there is none.
    pub(in crate::sandbox) create: bool,
    /// Whether it fails where there is something.
    pub(in crate::sandbox) exclusive: bool,
    /// Whether the file is emptied.
    pub(in crate::sandbox) truncate: bool,
    /// Whether only a directory is opened.
    pub(in crate::sandbox) directory: bool,
    /// Whether the file is opened for writing.
    pub(in crate::sandbox) write: bool,
}

/// A memory file system that a run's store shares with the streams of its guest.
pub(in crate::sandbox) type SharedFs = Arc<Mutex<MemoryFs>>;

/// A file system in memory, of one run.
#[derive(Debug)]
pub(in crate::sandbox) struct MemoryFs {
    account: Arc<FileMemoryAccount>,
    inodes: BTreeMap<NodeId, Inode>,
    next: u64,
    /// What was removed and is not freed yet.
    discarded: Vec<Discarded>,
    /// The time that all files have, in nanoseconds since the Unix epoch, where the run has no real
    /// clock; `None` where it has.
    fixed_time: Option<u64>,
    /// Whether files that came with a request are copied. A file that shares the request's bytes
    /// would hold all of the request for as long as a session holds the file.
    copies_files: bool,
}

impl MemoryFs {
    /// Creates an empty file system, whose files have the time `fixed_time` if that is given.
    ///
    /// # Errors
    /// Returns `NoSpace` where there is no memory even for its root.
    pub(in crate::sandbox) fn new(
        account: Arc<FileMemoryAccount>,
        fixed_time: Option<u64>,
    ) -> Result<Self, FileError> {
        let mut files = Self {
            account,
            inodes: BTreeMap::new(),
            next: 1,
            discarded: Vec::new(),
            fixed_time,
            copies_files: false,
        };
        let body = InodeBody::Directory(Directory::new(files.root()));
        files.add_inode(body)?;
        Ok(files)
    }

    /// Returns the number of the root directory.
    #[expect(clippy::unused_self, reason = "a root belongs to a file system")]
    pub(in crate::sandbox) fn root(&self) -> NodeId {
        NodeId(1)
    }

    /// Lets files that come with a request be copied.
    pub(in crate::sandbox) fn copy_files(&mut self) {
        self.copies_files = true;
    }

    /// Gives the file system the account of the next run of its session, which reports to `usage`,
    /// and returns it.
    pub(in crate::sandbox) fn renew_account(
        &mut self,
        usage: &Arc<LiveUsage>,
    ) -> Arc<FileMemoryAccount> {
        self.account = self.account.renewed(Arc::clone(usage));
        Arc::clone(&self.account)
    }

    fn now(&self) -> u64 {
        self.fixed_time.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
        })
    }

    fn inode(&self, node: NodeId) -> Result<&Inode, FileError> {
        self.inodes.get(&node).ok_or(FileError::NotFound)
    }

    fn inode_mut(&mut self, node: NodeId) -> Result<&mut Inode, FileError> {
        self.inodes.get_mut(&node).ok_or(FileError::NotFound)
    }

    fn charge(&self, bytes: usize) -> Result<(), FileError> {
        match self.account.charge(bytes) {
            true => Ok(()),
            false => Err(FileError::NoSpace),
        }
    }

    /// Adds an inode that one name will lead to.
    fn add_inode(&mut self, body: InodeBody) -> Result<NodeId, FileError> {
        let inode = Inode::new(body, self.now());
        self.charge(inode.cost())?;
        let node = NodeId(self.next);
        self.next += 1;
        self.inodes.insert(node, inode);
        Ok(node)
    }

    /// Drops an inode that no name leads to, once the guest has it open no more.
    fn drop_unused(&mut self, node: NodeId) {
        let is_unused = |inode: &Inode| inode.links == 0 && inode.handles == 0;
        if !self.inodes.get(&node).is_some_and(is_unused) {
            return;
        }
        let Some(mut inode) = self.inodes.remove(&node) else {
            return;
        };
        self.account.release(inode.cost());
        if let InodeBody::File(contents) = &mut inode.body {
            self.discarded.extend(contents.free(&self.account));
        }
    }

    /// Frees up to `most` pieces of what was removed, and reports whether there is more.
    pub(in crate::sandbox) fn sweep(&mut self, most: usize) -> bool {
        for _ in 0..most {
            let Some(last) = self.discarded.last_mut() else {
                return false;
            };
            if !last.free_one(&self.account) {
                self.discarded.pop();
            }
        }
        !self.discarded.is_empty()
    }

    /// Removes up to `most` pieces of the whole file system, which nobody uses any more, and
    /// reports whether there is more.
    pub(in crate::sandbox) fn dismantle(&mut self, most: usize) -> bool {
        if self.sweep(most) {
            return true;
        }
        for _ in 0..most {
            let Some(mut last) = self.inodes.last_entry() else {
                return !self.discarded.is_empty();
            };
            let is_empty = match &mut last.get_mut().body {
                InodeBody::Directory(directory) => match directory.entries.pop_last() {
                    Some((name, _)) => {
                        self.account.release(ENTRY_COST + name.len());
                        false
                    }
                    None => true,
                },
                InodeBody::File(contents) => {
                    self.discarded.extend(contents.free(&self.account));
                    true
                }
                InodeBody::Symlink(_) => true,
            };
            if is_empty {
                self.account.release(last.remove().cost());
            }
        }
        true
    }

    /// Notes that the guest has an inode open once more.
    pub(in crate::sandbox) fn retain(&mut self, node: NodeId) {
        if let Some(inode) = self.inodes.get_mut(&node) {
            inode.handles = inode.handles.saturating_add(1);
        }
    }

    /// Notes that the guest has closed an inode once.
    pub(in crate::sandbox) fn release(&mut self, node: NodeId) {
        if let Some(inode) = self.inodes.get_mut(&node) {
            inode.handles = inode.handles.saturating_sub(1);
            self.drop_unused(node);
        }
    }

    /// Opens what a path leads to, or makes a file there, and returns its number. It is open until
    /// [`Self::release`].
    ///
    /// # Errors
    /// Returns `Exists`, `IsDirectory`, `Loop`, `NotDirectory`, `NotFound` and `Invalid` as
    /// `openat` of POSIX does, `NoSpace`, and the errors of a lookup.
    pub(in crate::sandbox) fn open_at(
        &mut self,
        dir: NodeId,
        path: &str,
        how: OpenHow,
    ) -> Result<NodeId, FileError> {
        let follow = match how.create && how.exclusive {
            true => FollowLast::Never,
            false => how.follow,
        };
        if how.directory && (how.create || how.exclusive || how.truncate) {
            return Err(FileError::Invalid);
        }
        if how.create && path.ends_with('/') {
            let found = self.resolve(dir, path, FollowLast::Never)?;
            if found.name.is_some() {
                return Err(FileError::IsDirectory);
            }
        }
        let found = self.resolve(dir, path, follow)?;
        let Some(node) = found.node else {
            let name = found.name.ok_or(FileError::NotFound)?;
            if !how.create {
                return Err(FileError::NotFound);
            }
            if found.is_directory_path {
                return Err(FileError::IsDirectory);
            }
            let (parent, name) = (found.parent, name.to_owned());
            let body = InodeBody::File(FileContents::default());
            let node = self.create(parent, &name, body)?;
            self.retain(node);
            return Ok(node);
        };
        if how.create && how.exclusive {
            return Err(FileError::Exists);
        }
        let is_directory_path = found.is_directory_path;
        match self.inode(node)?.kind() {
            NodeKind::Symlink => return Err(FileError::Loop),
            NodeKind::Directory if how.write || how.create || how.truncate => {
                return Err(FileError::IsDirectory);
            }
            NodeKind::File if how.directory || is_directory_path => {
                return Err(FileError::NotDirectory);
            }
            NodeKind::File if how.truncate => self.set_size(node, 0)?,
            NodeKind::File | NodeKind::Directory => {}
        }
        self.retain(node);
        Ok(node)
    }

    /// Returns the attributes of an inode.
    ///
    /// # Errors
    /// Returns `NotFound` where there is no such inode.
    pub(in crate::sandbox) fn stat(&self, node: NodeId) -> Result<FileStat, FileError> {
        let inode = self.inode(node)?;
        let times = self.fixed_time.map_or(inode.times, FileTimes::all);
        Ok(FileStat {
            id: node,
            kind: inode.kind(),
            links: inode.links,
            size: inode.size(),
            times,
        })
    }

    /// Returns the attributes of what a path leads to.
    ///
    /// # Errors
    /// Returns the errors of a lookup.
    pub(in crate::sandbox) fn stat_at(
        &self,
        dir: NodeId,
        path: &str,
        follow: FollowLast,
    ) -> Result<FileStat, FileError> {
        self.stat(self.find(dir, path, follow)?)
    }

    /// Sets the times of an inode, those that are given.
    ///
    /// # Errors
    /// Returns `NotFound` where there is no such inode.
    pub(in crate::sandbox) fn set_times(
        &mut self,
        node: NodeId,
        accessed: Option<NewTime>,
        modified: Option<NewTime>,
    ) -> Result<(), FileError> {
        let now = self.now();
        let time = |new: NewTime| match new {
            NewTime::Now => now,
            NewTime::At(time) => time,
        };
        let times = &mut self.inode_mut(node)?.times;
        times.accessed = accessed.map_or(times.accessed, time);
        times.modified = modified.map_or(times.modified, time);
        times.changed = now;
        Ok(())
    }

    /// Sets the times of what a path leads to.
    ///
    /// # Errors
    /// Returns the errors of a lookup.
    pub(in crate::sandbox) fn set_times_at(
        &mut self,
        dir: NodeId,
        path: &str,
        follow: FollowLast,
        accessed: Option<NewTime>,
        modified: Option<NewTime>,
    ) -> Result<(), FileError> {
        let node = self.find(dir, path, follow)?;
        self.set_times(node, accessed, modified)
    }

    /// Reads from a file at an offset, and returns how many bytes there were.
    ///
    /// # Errors
    /// Returns `IsDirectory` for a directory.
    pub(in crate::sandbox) fn read(
        &self,
        node: NodeId,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<usize, FileError> {
        Ok(contents(&self.inode(node)?.body)?.read(offset, buffer))
    }

    /// Writes to a file, and returns how many bytes there was memory for, and where they end.
    ///
    /// # Errors
    /// Returns `NoSpace` where there is memory for none, and `TooLarge` past the largest offset.
    pub(in crate::sandbox) fn write(
        &mut self,
        node: NodeId,
        at: WritePosition,
        bytes: &[u8],
    ) -> Result<(usize, u64), FileError> {
        let (now, account) = (self.now(), Arc::clone(&self.account));
        let inode = self.inode_mut(node)?;
        let contents = contents_mut(&mut inode.body)?;
        let offset = match at {
            WritePosition::Offset(offset) => offset,
            WritePosition::End => contents.size(),
        };
        let written = contents.write(offset, bytes, &account)?;
        inode.times.touch(now);
        Ok((written, offset + written as u64))
    }

    /// Sets the size of a file. What is added reads as zeros, and takes no memory.
    ///
    /// # Errors
    /// Returns `IsDirectory` for a directory, and `TooLarge` past the largest size.
    pub(in crate::sandbox) fn set_size(
        &mut self,
        node: NodeId,
        size: u64,
    ) -> Result<(), FileError> {
        if size > MAX_SIZE {
            return Err(FileError::TooLarge);
        }
        let (now, account) = (self.now(), Arc::clone(&self.account));
        let inode = self.inode_mut(node)?;
        let gone = contents_mut(&mut inode.body)?.set_size(size, &account);
        inode.times.touch(now);
        self.discarded.extend(gone);
        Ok(())
    }

    /// Allocates a piece of what a file lacks between two offsets, and returns up to where it has
    /// memory now.
    ///
    /// # Errors
    /// Returns `NoSpace` where there is no memory, and `TooLarge` past the largest size.
    pub(in crate::sandbox) fn allocate_piece(
        &mut self,
        node: NodeId,
        offset: u64,
        end: u64,
    ) -> Result<u64, FileError> {
        if end > MAX_SIZE {
            return Err(FileError::TooLarge);
        }
        let account = Arc::clone(&self.account);
        let contents = contents_mut(&mut self.inode_mut(node)?.body)?;
        contents.allocate_piece(offset, end, &account)
    }

    /// Returns the contents of a file in pieces of at most 64 KiB, which share their bytes with it.
    ///
    /// # Errors
    /// Returns `IsDirectory` for a directory.
    pub(in crate::sandbox) fn share(&mut self, node: NodeId) -> Result<Vec<Bytes>, FileError> {
        let account = Arc::clone(&self.account);
        let contents = contents_mut(&mut self.inode_mut(node)?.body)?;
        Ok(contents.share(&account))
    }

    /// Calls `take` for the entries of a directory whose names come after `after`, or for all,
    /// until that returns false or there are no more; reports whether there are.
    ///
    /// # Errors
    /// Returns `NotDirectory` for any other kind of file.
    pub(in crate::sandbox) fn list(
        &self,
        dir: NodeId,
        after: Option<&str>,
        mut take: impl FnMut(&str, NodeId, NodeKind) -> bool,
    ) -> Result<bool, FileError> {
        for (name, node) in self.directory(dir)?.after(after) {
            let kind = self.inode(node)?.kind();
            if !take(name, node, kind) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// A time that a guest gives to a file.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) enum NewTime {
    /// The time of the call.
    Now,
    /// A time in nanoseconds since the Unix epoch.
    At(u64),
}

/// The position at which bytes are written.
#[derive(Clone, Copy, Debug)]
pub(in crate::sandbox) enum WritePosition {
    /// At an offset from the beginning.
    Offset(u64),
    /// At the end of the file, wherever that is at the time of the write.
    End,
}

fn contents(body: &InodeBody) -> Result<&FileContents, FileError> {
    match body {
        InodeBody::File(contents) => Ok(contents),
        InodeBody::Directory(_) => Err(FileError::IsDirectory),
        InodeBody::Symlink(_) => Err(FileError::BadDescriptor),
    }
}

fn contents_mut(body: &mut InodeBody) -> Result<&mut FileContents, FileError> {
    match body {
        InodeBody::File(contents) => Ok(contents),
        InodeBody::Directory(_) => Err(FileError::IsDirectory),
        InodeBody::Symlink(_) => Err(FileError::BadDescriptor),
    }
}

#[cfg(test)]
mod comparison {
    mod tests;
}
#[cfg(test)]
mod tests;
