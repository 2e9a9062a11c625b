//! What changes the names of a memory file system: making, removing, renaming and linking files.

use std::sync::Arc;

use bytes::Bytes;

use super::contents::{self, FileContents};
use super::inode::{
    DIRECTORY_COST, Directory, ENTRY_COST, INODE_COST, InodeBody, NodeId, NodeKind,
};
use super::path::Resolved;
use super::{FileError, FollowLast, MAX_DEPTH, MAX_PATH, MemoryFs};

/// A name in a directory, found by its path.
struct NamedEntry {
    parent: NodeId,
    name: String,
    node: Option<NodeId>,
    is_directory_path: bool,
}

impl Resolved<'_> {
    /// Returns the name that was found, or the error `dot` where the path ends with "." or "..".
    fn named(self, dot: FileError) -> Result<NamedEntry, FileError> {
        Ok(NamedEntry {
            parent: self.parent,
            name: self.name.ok_or(dot)?.to_owned(),
            node: self.node,
            is_directory_path: self.is_directory_path,
        })
    }
}

impl MemoryFs {
    /// Resolves a path whose last name is to be made, removed or changed.
    fn named(&self, dir: NodeId, path: &str, dot: FileError) -> Result<NamedEntry, FileError> {
        self.resolve(dir, path, FollowLast::Never)?.named(dot)
    }

    fn directory_mut(&mut self, node: NodeId) -> Result<&mut Directory, FileError> {
        match &mut self.inode_mut(node)?.body {
            InodeBody::Directory(directory) => Ok(directory),
            InodeBody::File(_) | InodeBody::Symlink(_) => Err(FileError::NotDirectory),
        }
    }

    /// Adds an entry to a directory, where the name is free.
    fn add_entry(&mut self, parent: NodeId, name: &str, node: NodeId) -> Result<(), FileError> {
        if self.inode(parent)?.links == 0 {
            // The directory was removed while the guest has it open.
            return Err(FileError::NotFound);
        }
        if self.directory(parent)?.is_mount_point {
            return Err(FileError::ReadOnly);
        }
        self.charge(ENTRY_COST + name.len())?;
        let now = self.now();
        self.directory_mut(parent)?
            .entries
            .insert(name.into(), node);
        self.inode_mut(parent)?.times.touch(now);
        Ok(())
    }

    /// Removes an entry, and leaves what it led to.
    fn take_entry(&mut self, parent: NodeId, name: &str) -> Result<(), FileError> {
        let now = self.now();
        self.directory_mut(parent)?.entries.remove(name);
        self.inode_mut(parent)?.times.touch(now);
        self.account.release(ENTRY_COST + name.len());
        Ok(())
    }

    /// Takes one name from an inode, and drops it where that was the last one.
    fn unlink(&mut self, node: NodeId) -> Result<(), FileError> {
        let now = self.now();
        let inode = self.inode_mut(node)?;
        inode.links = inode.links.saturating_sub(1);
        inode.times.changed = now;
        self.drop_unused(node);
        Ok(())
    }

    /// Makes an inode with a name.
    pub(super) fn create(
        &mut self,
        parent: NodeId,
        name: &str,
        body: InodeBody,
    ) -> Result<NodeId, FileError> {
        let node = self.add_inode(body)?;
        if let Err(error) = self.add_entry(parent, name, node) {
            self.unlink(node)?;
            return Err(error);
        }
        Ok(node)
    }

    /// Makes the directories of a path from the root, those that are missing, and returns the last
    /// one. The path consists of plain names.
    ///
    /// # Errors
    /// Returns `NotDirectory` where a name is taken by something else, and `NoSpace`.
    pub(in crate::sandbox) fn make_directories(&mut self, path: &str) -> Result<NodeId, FileError> {
        let mut here = self.root();
        for name in path.split('/').filter(|name| !name.is_empty()) {
            here = match self.directory(here)?.entries.get(name) {
                Some(&there) => there,
                None => self.create(here, name, InodeBody::Directory(Directory::new(here)))?,
            };
        }
        self.directory(here)?;
        Ok(here)
    }

    /// Reports whether there is room for the directories of a path.
    pub(in crate::sandbox) fn has_room_for(&self, path: &str) -> bool {
        self.account.has_room(path_cost(path))
    }

    /// Makes the directory at which a mount of the host lies, and keeps it empty.
    ///
    /// # Errors
    /// Returns the errors of [`Self::make_directories`].
    pub(in crate::sandbox) fn make_mount_point(&mut self, path: &str) -> Result<(), FileError> {
        let node = self.make_directories(path)?;
        self.directory_mut(node)?.is_mount_point = true;
        Ok(())
    }

    /// Makes a file with `bytes`, and the directories above it. The path is from the root, and
    /// consists of plain names.
    ///
    /// # Errors
    /// Returns `Exists` where something has the name, `NotDirectory` where a name above is taken by
    /// a file, and `NoSpace`.
    pub(in crate::sandbox) fn put_file(
        &mut self,
        path: &str,
        bytes: &Bytes,
    ) -> Result<(), FileError> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let parent = self.make_directories(above)?;
        if self.directory(parent)?.entries.contains_key(name) {
            return Err(FileError::Exists);
        }
        let account = Arc::clone(&self.account);
        let contents = FileContents::new(bytes, self.copies_files, &account)?;
        self.create(parent, name, InodeBody::File(contents))?;
        Ok(())
    }

    /// Makes files as [`Self::put_file`] does, in place of those of the same names. It makes all of
    /// them, or none.
    ///
    /// # Errors
    /// Returns the index of a file that cannot be made, and why: `IsDirectory` where a directory
    /// has its name, `NotDirectory` where a name above is taken by something else, and `NoSpace`.
    pub(in crate::sandbox) fn replace_files(
        &mut self,
        files: &[(&str, &Bytes)],
    ) -> Result<(), (usize, FileError)> {
        let (mut needed, mut freed) = (0_usize, 0_usize);
        for (index, (path, bytes)) in files.iter().enumerate() {
            freed += self.replaced_bytes(path).map_err(|error| (index, error))?;
            needed += contents::most_charged(bytes.len()) + path_cost(path);
            if !self.account.has_room(needed.saturating_sub(freed)) {
                return Err((index, FileError::NoSpace));
            }
        }
        for (path, _) in files {
            // What cannot be replaced was found above.
            let _ = self.unlink_file_at(self.root(), path.trim_start_matches('/'));
        }
        while self.sweep(usize::MAX) {}
        for (index, (path, bytes)) in files.iter().enumerate() {
            self.put_file(path, bytes).map_err(|error| (index, error))?;
        }
        Ok(())
    }

    /// Returns how many bytes are free once a file is put at a path, because another is gone.
    ///
    /// # Errors
    /// Returns why no file can be put there.
    fn replaced_bytes(&self, path: &str) -> Result<usize, FileError> {
        let mut here = self.root();
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        while let Some(name) = names.next() {
            let Some(&there) = self.directory(here)?.entries.get(name) else {
                return Ok(0);
            };
            if names.peek().is_some() {
                here = there;
                continue;
            }
            let inode = self.inode(there)?;
            let is_last_use = inode.links == 1 && inode.handles == 0;
            return match &inode.body {
                InodeBody::Directory(_) => Err(FileError::IsDirectory),
                InodeBody::File(contents) if is_last_use => Ok(contents.charged()),
                InodeBody::File(_) | InodeBody::Symlink(_) => Ok(0),
            };
        }
        Err(FileError::IsDirectory)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// Returns `Exists` where something has the name, `NoSpace`, and the errors of a lookup.
    pub(in crate::sandbox) fn create_directory_at(
        &mut self,
        dir: NodeId,
        path: &str,
    ) -> Result<(), FileError> {
        let NamedEntry {
            parent, name, node, ..
        } = self.named(dir, path, FileError::Exists)?;
        if node.is_some() {
            return Err(FileError::Exists);
        }
        self.create(parent, &name, InodeBody::Directory(Directory::new(parent)))?;
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// Returns `NotEmpty`, `NotDirectory`, `Busy` for a mount point, `Invalid` for ".", and the
    /// errors of a lookup.
    pub(in crate::sandbox) fn remove_directory_at(
        &mut self,
        dir: NodeId,
        path: &str,
    ) -> Result<(), FileError> {
        let NamedEntry {
            parent, name, node, ..
        } = self.named(dir, path, FileError::Invalid)?;
        let node = node.ok_or(FileError::NotFound)?;
        self.check_removable(node)?;
        self.take_entry(parent, &name)?;
        self.unlink(node)
    }

    /// Checks that a directory is empty, and no mount point.
    fn check_removable(&self, node: NodeId) -> Result<(), FileError> {
        let directory = self.directory(node)?;
        if directory.is_mount_point {
            return Err(FileError::Busy);
        }
        match directory.entries.is_empty() {
            true => Ok(()),
            false => Err(FileError::NotEmpty),
        }
    }

    /// Removes the name of a file or of a symbolic link. The file lives on while it has another
    /// name, or the guest has it open.
    ///
    /// # Errors
    /// Returns `IsDirectory` for a directory, `NotDirectory` for a path that ends with a slash, and
    /// the errors of a lookup.
    pub(in crate::sandbox) fn unlink_file_at(
        &mut self,
        dir: NodeId,
        path: &str,
    ) -> Result<(), FileError> {
        let found = self.named(dir, path, FileError::IsDirectory)?;
        let node = found.node.ok_or(FileError::NotFound)?;
        if self.inode(node)?.kind() == NodeKind::Directory {
            return Err(FileError::IsDirectory);
        }
        if found.is_directory_path {
            return Err(FileError::NotDirectory);
        }
        self.take_entry(found.parent, &found.name)?;
        self.unlink(node)
    }

    /// Gives a file a second name.
    ///
    /// # Errors
    /// Returns `NotPermitted` for a directory, `Exists` where something has the new name,
    /// `NoSpace`, and the errors of a lookup.
    pub(in crate::sandbox) fn link_at(
        &mut self,
        (from_dir, from): (NodeId, &str),
        follow: FollowLast,
        (to_dir, to): (NodeId, &str),
    ) -> Result<(), FileError> {
        let node = self.find(from_dir, from, follow)?;
        let found = self.named(to_dir, to, FileError::Exists)?;
        if found.node.is_some() {
            return Err(FileError::Exists);
        }
        if found.is_directory_path {
            return Err(FileError::NotFound);
        }
        if self.inode(node)?.kind() == NodeKind::Directory {
            return Err(FileError::NotPermitted);
        }
        self.add_entry(found.parent, &found.name, node)?;
        let now = self.now();
        let inode = self.inode_mut(node)?;
        inode.links = inode.links.saturating_add(1);
        inode.times.changed = now;
        Ok(())
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// Returns `NotPermitted` for an absolute target, `NameTooLong` for one that is no path,
    /// `Exists` where something has the name, `NoSpace`, and the errors of a lookup.
    pub(in crate::sandbox) fn symlink_at(
        &mut self,
        target: &str,
        dir: NodeId,
        path: &str,
    ) -> Result<(), FileError> {
        if target.is_empty() {
            return Err(FileError::NotFound);
        }
        if target.contains('\0') {
            return Err(FileError::Invalid);
        }
        if target.starts_with('/') {
            return Err(FileError::NotPermitted);
        }
        if target.len() > MAX_PATH {
            return Err(FileError::NameTooLong);
        }
        let found = self.named(dir, path, FileError::Exists)?;
        if found.node.is_some() {
            return Err(FileError::Exists);
        }
        if found.is_directory_path {
            return Err(FileError::NotFound);
        }
        self.create(found.parent, &found.name, InodeBody::Symlink(target.into()))?;
        Ok(())
    }

    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    /// Returns `Invalid` for anything else, and the errors of a lookup.
    pub(in crate::sandbox) fn read_link_at(
        &self,
        dir: NodeId,
        path: &str,
    ) -> Result<&str, FileError> {
        let node = self.find(dir, path, FollowLast::UnlessNamed)?;
        match &self.inode(node)?.body {
            InodeBody::Symlink(target) => Ok(target),
            InodeBody::File(_) | InodeBody::Directory(_) => Err(FileError::Invalid),
        }
    }

    /// Renames a file, over what has the new name if that may be replaced.
    ///
    /// # Errors
    /// Returns `NotFound`, `NotDirectory`, `IsDirectory`, `NotEmpty`, `Invalid` and `Busy` as
    /// `renameat` of POSIX does, `NoSpace`, and the errors of a lookup.
    pub(in crate::sandbox) fn rename_at(
        &mut self,
        (from_dir, from): (NodeId, &str),
        (to_dir, to): (NodeId, &str),
    ) -> Result<(), FileError> {
        let from = self.resolve(from_dir, from, FollowLast::Never)?;
        let to = self.resolve(to_dir, to, FollowLast::Never)?;
        let (from, to) = (from.named(FileError::Busy)?, to.named(FileError::Busy)?);
        let node = from.node.ok_or(FileError::NotFound)?;
        let is_directory = self.inode(node)?.kind() == NodeKind::Directory;
        if !is_directory && (from.is_directory_path || to.is_directory_path) {
            return Err(FileError::NotDirectory);
        }
        if is_directory && self.is_above(node, to.parent)? {
            return Err(FileError::Invalid);
        }
        if to.node == Some(node) {
            return Ok(());
        }
        if is_directory && self.directory(node)?.is_mount_point {
            return Err(FileError::Busy);
        }
        if let Some(replaced) = to.node {
            let replaces_directory = self.inode(replaced)?.kind() == NodeKind::Directory;
            match (is_directory, replaces_directory) {
                (true, true) => self.check_removable(replaced)?,
                (true, false) => return Err(FileError::NotDirectory),
                (false, true) if self.is_above(replaced, from.parent)? => {
                    return Err(FileError::NotEmpty);
                }
                (false, true) => return Err(FileError::IsDirectory),
                (false, false) => {}
            }
            self.take_entry(to.parent, &to.name)?;
        }
        // The old name is taken away first, so that a new one that is no longer always has room.
        self.take_entry(from.parent, &from.name)?;
        if let Err(error) = self.add_entry(to.parent, &to.name, node) {
            self.restore_entry(&from, node);
            if let Some(replaced) = to.node {
                self.restore_entry(&to, replaced);
            }
            return Err(error);
        }
        let now = self.now();
        if is_directory {
            self.directory_mut(node)?.parent = to.parent;
        }
        self.inode_mut(node)?.times.changed = now;
        match to.node {
            Some(replaced) => self.unlink(replaced),
            None => Ok(()),
        }
    }

    /// Puts an entry back that was just taken away, and whose memory is free.
    fn restore_entry(&mut self, named: &NamedEntry, node: NodeId) {
        let restored = self.add_entry(named.parent, &named.name, node);
        debug_assert!(restored.is_ok(), "{restored:?}");
    }

    /// Reports whether `node` is `directory`, or a directory above it.
    fn is_above(&self, node: NodeId, directory: NodeId) -> Result<bool, FileError> {
        let mut here = directory;
        for _ in 0..MAX_DEPTH {
            if here == node || here == self.root() {
                return Ok(here == node);
            }
            here = self.directory(here)?.parent;
        }
        Err(FileError::NameTooLong)
    }
}

/// Returns the most that is charged for the inodes and entries of a path whose names are all new.
fn path_cost(path: &str) -> usize {
    let names = path.split('/').filter(|name| !name.is_empty());
    names
        .map(|name| INODE_COST + DIRECTORY_COST + ENTRY_COST + name.len())
        .sum()
}
