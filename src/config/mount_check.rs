//! Checks of `policy.mounts`: which directories of the host guests may be given.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use super::problems::Checker;
use super::schema::{Config, StoreUrl};

/// A folder that belongs to the daemon and to all tenants together.
struct OwnFolder<'a> {
    /// The key that names the folder.
    key: &'static str,
    path: &'a Path,
    /// What a guest would reach in it.
    holds: &'static str,
}

/// Checks the directories that a policy grants.
pub(super) fn check(c: &mut Checker, config: &Config) {
    let own = own_folders(config);
    for (i, mount) in config.policy.mounts.iter().enumerate() {
        let is_plain = mount.host.is_absolute()
            && mount
                .host
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
        let key = format!("policy.mounts[{i}].host");
        c.require(
            is_plain && mount.host.is_dir(),
            &key,
            mount.host.display(),
            "an absolute path without \".\" or \"..\" to a directory that exists",
        );
        let overlapping = own.iter().find(|own| overlaps(&mount.host, own.path));
        if let Some(OwnFolder {
            key: own, holds, ..
        }) = overlapping
        {
            let allowed = format!(
                "a directory that is not the folder of {own}, is not in it and does not contain it, because guests could reach {holds} there"
            );
            c.require(false, &key, mount.host.display(), allowed);
        }
    }
}

/// Returns the folders that no guest may reach.
fn own_folders(config: &Config) -> Vec<OwnFolder<'_>> {
    const RUNS: &str = "the archived runs of all tenants";
    let mut own = Vec::new();
    if let Some(StoreUrl::Directory(path)) = &config.runs.archive.0 {
        own.push(OwnFolder {
            key: "runs.archive",
            path,
            holds: RUNS,
        });
    }
    let spool = &config.runs.archive_spool;
    if !spool.as_os_str().is_empty() {
        own.push(OwnFolder {
            key: "runs.archive_spool",
            path: spool,
            holds: RUNS,
        });
    }
    if let StoreUrl::Directory(path) = &config.store.url {
        own.push(OwnFolder {
            key: "store.url",
            path,
            holds: "the modules of all tenants",
        });
    }
    own
}

/// Reports whether one of two folders is the other, or is in it.
fn overlaps(one: &Path, other: &Path) -> bool {
    let (one, other) = (real_path(one), real_path(other));
    is_within(&one, &other) || is_within(&other, &one)
}

/// Reports whether `inner`, or a folder above it, is `outer`: by its real path, or as the same
/// directory, which a bind mount may have under another path too.
fn is_within(inner: &Path, outer: &Path) -> bool {
    let same = directory(outer);
    inner
        .ancestors()
        .any(|above| above == outer || (same.is_some() && directory(above) == same))
}

/// Returns the identity of a directory on disk; `None` where there is none.
fn directory(path: &Path) -> Option<(u64, u64)> {
    let found = path.metadata().ok()?;
    Some((found.dev(), found.ino()))
}

/// Returns the path without links, as far as it exists; what does not exist is taken as it is
/// written.
fn real_path(path: &Path) -> PathBuf {
    let mut real = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::Normal(_) => real.push(part),
            Component::ParentDir => {
                real.pop();
            }
            Component::Prefix(_) | Component::CurDir => {}
        }
        if let Ok(on_disk) = real.canonicalize() {
            real = on_disk;
        }
    }
    real
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn folders_overlap_by_what_they_are_on_disk() {
        let dir = tempfile::TempDir::new().unwrap();
        let at = |path: &str| dir.path().join(path);
        for folder in ["own/in/deep", "data", "links"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        symlink("../own", at("links/own")).unwrap();
        symlink(at("own/in"), at("links/in")).unwrap();
        symlink("..", at("links/up")).unwrap();
        for (mount, own, expected) in [
            ("own", "own", true),
            ("own/in", "own", true),
            ("own", "own/in/deep", true),
            (".", "own", true),
            ("data", "own", false),
            // The beginning of a name is no folder that it is in.
            ("own", "own-2", false),
            ("links/own", "own", true),
            ("links/in", "own", true),
            ("own", "links/in/deep", true),
            ("links/up", "own", true),
            ("links", "own", false),
            // What does not exist yet.
            ("own", "own/later/archive", true),
            ("data", "own/later/archive", false),
            ("own", "links/own/later", true),
            ("own", "data/later/../../own/later", true),
            ("data", "links/../data/later", true),
        ] {
            assert_eq!(overlaps(&at(mount), &at(own)), expected, "{mount} {own}");
        }
    }
}
