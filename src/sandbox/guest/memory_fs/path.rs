//! Finds what a path of the guest leads to. A path begins at a directory that the guest has open,
//! and never leads out of it: not by "..", not by an absolute path, and not by a symbolic link.

use super::inode::{Directory, InodeBody, NodeId};
use super::{FileError, MAX_NAME, MAX_PATH, MemoryFs};

/// The most symbolic links that are followed for one path.
const MAX_LINKS: usize = 40;
/// The most bytes of the targets of all symbolic links that are followed for one path. It bounds
/// the work of one lookup.
const MAX_TARGETS: usize = 16 << 10;

/// What is done about a symbolic link at the end of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::sandbox) enum FollowLast {
    /// It is followed to its target.
    Always,
    /// It is the link that is meant, unless a slash comes after it.
    UnlessNamed,
    /// It is the link that is meant. With a slash after it, the path leads nowhere.
    Never,
}

impl FollowLast {
    /// Reports whether a link at the end of a path is followed.
    fn follows(self, is_directory_path: bool) -> bool {
        match self {
            Self::Always => true,
            Self::UnlessNamed => is_directory_path,
            Self::Never => false,
        }
    }

    /// Returns what a lookup flag of WASI asks for.
    pub(in crate::sandbox) fn when(follow: bool) -> Self {
        match follow {
            true => Self::Always,
            false => Self::UnlessNamed,
        }
    }
}

/// What a path leads to.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    /// The directory that has the last name of the path.
    pub(super) parent: NodeId,
    /// The last name of the path; `None` where that is "." or "..".
    pub(super) name: Option<&'a str>,
    /// What has the name; `None` where nothing has.
    pub(super) node: Option<NodeId>,
    /// Whether the path ends with a slash, and so means a directory.
    pub(super) is_directory_path: bool,
}

/// Adds the names of a path, the last one first, and reports whether it ends with a slash. A "."
/// counts only at the end.
fn push_names<'a>(path: &'a str, names: &mut Vec<&'a str>) -> bool {
    let trimmed = path.trim_end_matches('/');
    let mut parts = trimmed.rsplit('/').filter(|part| !part.is_empty());
    names.extend(parts.next());
    names.extend(parts.filter(|part| *part != "."));
    trimmed.len() < path.len()
}

/// Checks what can be told of a path without a lookup.
fn check_path(path: &str) -> Result<(), FileError> {
    if path.is_empty() {
        Err(FileError::NotFound)
    } else if path.len() > MAX_PATH {
        Err(FileError::NameTooLong)
    } else if path.contains('\0') {
        Err(FileError::Invalid)
    } else if path.starts_with('/') {
        Err(FileError::NotPermitted)
    } else {
        Ok(())
    }
}

impl MemoryFs {
    /// Resolves a path from the directory `base`.
    ///
    /// # Errors
    /// Returns `NotFound` for an empty path or a missing directory, `NotDirectory` where a name in
    /// the middle is no directory, `NotPermitted` where the path leads out of `base`, `NameTooLong`
    /// for a name or path that is too long, and `Loop` for too many symbolic links.
    pub(super) fn resolve<'a>(
        &'a self,
        base: NodeId,
        path: &'a str,
        follow: FollowLast,
    ) -> Result<Resolved<'a>, FileError> {
        check_path(path)?;
        let mut names = Vec::new();
        let mut is_directory_path = push_names(path, &mut names);
        // The directories from `base` to where the path has led so far.
        let mut trail = vec![base];
        let (mut links, mut targets) = (0, 0);
        loop {
            let here = *trail.last().ok_or(FileError::NotPermitted)?;
            let directory = self.directory(here)?;
            let Some(name) = names.pop() else {
                return Ok(Resolved::directory(here, is_directory_path));
            };
            let is_last = names.is_empty();
            if name == "." {
                if is_last {
                    return Ok(Resolved::directory(here, is_directory_path));
                }
                continue;
            }
            if name == ".." {
                trail.pop();
                if trail.is_empty() {
                    return Err(FileError::NotPermitted);
                }
                continue;
            }
            if name.len() > MAX_NAME {
                return Err(FileError::NameTooLong);
            }
            let node = directory.entries.get(name).copied();
            let found = Resolved {
                parent: here,
                name: Some(name),
                node,
                is_directory_path,
            };
            let Some(node) = node else {
                return if is_last {
                    Ok(found)
                } else {
                    Err(FileError::NotFound)
                };
            };
            if let InodeBody::Symlink(target) = &self.inode(node)?.body {
                if is_last && !follow.follows(is_directory_path) {
                    return Ok(found);
                }
                links += 1;
                targets += target.len();
                if links > MAX_LINKS || targets > MAX_TARGETS {
                    return Err(FileError::Loop);
                }
                if target.starts_with('/') {
                    return Err(FileError::NotPermitted);
                }
                let slash = push_names(target, &mut names);
                is_directory_path |= is_last && slash;
            } else if is_last {
                return Ok(found);
            } else {
                trail.push(node);
            }
        }
    }

    /// Resolves a path and returns what is there.
    ///
    /// # Errors
    /// Returns the errors of [`Self::resolve`], and `NotFound` where nothing is there.
    pub(super) fn find(
        &self,
        base: NodeId,
        path: &str,
        follow: FollowLast,
    ) -> Result<NodeId, FileError> {
        let found = self.resolve(base, path, follow)?;
        let node = found.node.ok_or(FileError::NotFound)?;
        if found.is_directory_path && self.directory(node).is_err() {
            return Err(FileError::NotDirectory);
        }
        Ok(node)
    }

    /// Returns an inode as the directory that it is.
    ///
    /// # Errors
    /// Returns `NotDirectory` for any other kind.
    pub(super) fn directory(&self, node: NodeId) -> Result<&Directory, FileError> {
        match &self.inode(node)?.body {
            InodeBody::Directory(directory) => Ok(directory),
            InodeBody::File(_) | InodeBody::Symlink(_) => Err(FileError::NotDirectory),
        }
    }
}

impl Resolved<'_> {
    fn directory(node: NodeId, is_directory_path: bool) -> Self {
        Self {
            parent: node,
            name: None,
            node: Some(node),
            is_directory_path,
        }
    }
}
