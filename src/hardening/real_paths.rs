//! Resolution of symbolic links, with the folders that a path passes through. Landlock allows
//! folders, not names, so every folder in which a link on the way may be replaced has to be known.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

/// The most links that are followed, which is the kernel's own limit.
const MAX_LINKS: usize = 40;

/// The result of resolving a path.
#[derive(Debug, Default)]
pub(super) struct ResolvedPath {
    /// The folders that hold a link on the way, each by its real path. Kubernetes, for example,
    /// mounts a secret as a link to a file in a folder that is itself a link, and replaces the
    /// latter when the secret changes.
    pub(super) links_in: Vec<PathBuf>,
    /// The real path, as far as it exists.
    pub(super) end: PathBuf,
}

/// Resolves an absolute path, even if its end does not exist yet.
pub(super) fn resolve_links(path: &Path) -> ResolvedPath {
    let mut way = ResolvedPath {
        links_in: Vec::new(),
        end: PathBuf::from("/"),
    };
    let mut ahead = names(path);
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        if name == ".." {
            way.end.pop();
            continue;
        }
        let next = way.end.join(&name);
        let Ok(target) = std::fs::read_link(&next) else {
            way.end = next;
            continue;
        };
        links += 1;
        if links > MAX_LINKS {
            break;
        }
        if !way.links_in.contains(&way.end) {
            way.links_in.push(way.end.clone());
        }
        if target.is_absolute() {
            way.end = PathBuf::from("/");
        }
        let rest = std::mem::take(&mut ahead);
        ahead = names(&target).into_iter().chain(rest).collect();
    }
    way
}

/// Splits a path into the names of its components, with ".." kept.
fn names(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|it| match it {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_folder_with_a_link_on_the_way_is_told() {
        let dir = tempfile::TempDir::new().unwrap();
        let root = dir.path().canonicalize().unwrap();
        for folder in ["own", "mount/..first"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        std::fs::write(root.join("mount/..first/tokens"), "").unwrap();
        symlink("..first", root.join("mount/..data")).unwrap();
        symlink("..data/tokens", root.join("mount/tokens")).unwrap();
        symlink("../mount/tokens", root.join("own/tokens")).unwrap();
        let way = resolve_links(&root.join("own/tokens"));
        assert_eq!(way.links_in, [root.join("own"), root.join("mount")]);
        assert_eq!(way.end, root.join("mount/..first/tokens"));
        // A link whose target does not exist, and one that leads to itself.
        symlink("/nowhere/at/all", root.join("own/dangling")).unwrap();
        let way = resolve_links(&root.join("own/dangling"));
        assert_eq!(way.end, Path::new("/nowhere/at/all"));
        symlink("round", root.join("own/round")).unwrap();
        assert_eq!(
            resolve_links(&root.join("own/round")).links_in,
            [root.join("own")]
        );
    }
}
