//! The inodes of a memory file system: files, directories and symbolic links, without their names.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::contents::FileContents;

/// What an inode costs: its place in the table, twice, since the nodes of the table may be half
/// empty.
pub(super) const INODE_COST: usize = 320;
/// What a directory costs besides: the first node of its entries has room for eleven.
pub(super) const DIRECTORY_COST: usize = 320;
/// What a directory entry costs besides its name: its place among the entries, twice, and what the
/// allocator rounds up.
pub(super) const ENTRY_COST: usize = 96;
/// What a symbolic link costs besides its target: what the allocator rounds up.
pub(super) const LINK_COST: usize = 32;

/// The number of an inode, which is also the serial number that the guest sees. It is the run's
/// own: every run counts from 1, and a number is never used again in one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::sandbox) struct NodeId(pub(super) u64);

impl NodeId {
    /// Returns the number as the guest sees it.
    pub(in crate::sandbox) fn serial(self) -> u64 {
        self.0
    }
}

/// The kinds of file that a memory file system has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sandbox) enum NodeKind {
    /// A regular file with contents.
    File,
    /// A directory, which has entries.
    Directory,
    /// A symbolic link, which has a target.
    Symlink,
}

/// An inode: a file, a directory or a symbolic link.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) body: InodeBody,
    /// The number of directory entries that lead to it.
    pub(super) links: u32,
    /// The number of descriptors and streams by which the guest has it open.
    pub(super) handles: u32,
    pub(super) times: FileTimes,
}

/// What an inode has, by its kind.
#[derive(Debug)]
pub(super) enum InodeBody {
    File(FileContents),
    Directory(Directory),
    Symlink(Box<str>),
}

/// The times of a file, in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sandbox) struct FileTimes {
    /// When it was last accessed, which only the guest sets.
    pub(in crate::sandbox) accessed: u64,
    /// When its contents or entries were last changed.
    pub(in crate::sandbox) modified: u64,
    /// When anything of it was last changed.
    pub(in crate::sandbox) changed: u64,
}

impl FileTimes {
    pub(super) fn all(time: u64) -> Self {
        Self {
            accessed: time,
            modified: time,
            changed: time,
        }
    }

    pub(super) fn touch(&mut self, now: u64) {
        self.modified = now;
        self.changed = now;
    }
}

/// The entries of a directory, by name.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) entries: BTreeMap<Box<str>, NodeId>,
    /// The directory that this one is in; the root is in itself.
    pub(super) parent: NodeId,
    /// Whether a mount of the host covers the directory. It stays empty, and where it is.
    pub(super) is_mount_point: bool,
}

impl Directory {
    pub(super) fn new(parent: NodeId) -> Self {
        Self {
            entries: BTreeMap::new(),
            parent,
            is_mount_point: false,
        }
    }

    /// Iterates over the entries whose names come after `after`, or over all.
    pub(super) fn after<'a>(
        &'a self,
        after: Option<&'a str>,
    ) -> impl Iterator<Item = (&'a str, NodeId)> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let entries = self.entries.range::<str, _>((from, Bound::Unbounded));
        entries.map(|(name, id)| (&**name, *id))
    }
}

impl Inode {
    pub(super) fn new(body: InodeBody, now: u64) -> Self {
        Self {
            body,
            links: 1,
            handles: 0,
            times: FileTimes::all(now),
        }
    }

    pub(super) fn kind(&self) -> NodeKind {
        match &self.body {
            InodeBody::File(_) => NodeKind::File,
            InodeBody::Directory(_) => NodeKind::Directory,
            InodeBody::Symlink(_) => NodeKind::Symlink,
        }
    }

    pub(super) fn size(&self) -> u64 {
        match &self.body {
            InodeBody::File(contents) => contents.size(),
            InodeBody::Directory(_) => 0,
            InodeBody::Symlink(target) => target.len() as u64,
        }
    }

    /// Returns what the inode is charged besides the chunks of its contents.
    pub(super) fn cost(&self) -> usize {
        INODE_COST
            + match &self.body {
                InodeBody::File(_) => 0,
                InodeBody::Directory(_) => DIRECTORY_COST,
                InodeBody::Symlink(target) => LINK_COST + target.len(),
            }
    }
}
