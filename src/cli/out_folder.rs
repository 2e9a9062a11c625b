//! The folder into which `ringfence exec --out` writes the files that a program leaves.
//!
//! The names come from a program that nobody trusts, by way of a daemon that may be somebody
//! else's: no name leads out of the folder, and nothing is written through a link.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Failure, print_to_stderr};
use crate::api::proto::{FileChunk, RunResult, UncollectedReason};
use crate::model::refusal::printable;
use crate::sync::lock;

/// The directory of a program's file system whose files are written to the folder.
const SOURCE: &str = "/out";
/// The flag of `open` that refuses a link as the last part of a path.
const NO_LINKS: i32 = libc::O_NOFOLLOW;

/// A folder that receives files, which may come in pieces.
pub(super) struct OutFolder {
    folder: PathBuf,
    /// The file whose pieces are coming, with its path in the program's file system.
    open: Mutex<Option<(String, File)>>,
    /// Whether a file could not be written.
    has_failed: AtomicBool,
}

impl OutFolder {
    /// Creates the folder, if it does not exist.
    pub(super) fn create(folder: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(folder).map_err(|error| unwritable(folder, &error))?;
        let folder = std::fs::canonicalize(folder).map_err(|error| unwritable(folder, &error))?;
        Ok(Self {
            folder,
            open: Mutex::default(),
            has_failed: AtomicBool::new(false),
        })
    }

    /// Returns the patterns of the files to ask for.
    pub(super) fn patterns() -> Vec<String> {
        vec![format!("{SOURCE}/**")]
    }

    /// Reports whether a file could not be written, which was said on standard error.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Relaxed)
    }

    /// Writes a piece of a file. What fails is said, and hides nothing of how the program ended.
    pub(super) fn write_chunk(&self, chunk: &FileChunk) {
        let mut open = lock(&self.open);
        if chunk.offset == 0 {
            let made = self.create_file(&chunk.path);
            *open = self.told(made).map(|file| (chunk.path.clone(), file));
        }
        // A file that could not be made has been told of.
        if let Some((path, file)) = open.as_mut().filter(|(path, _)| *path == chunk.path) {
            let written = file.write_all(&chunk.data);
            let written = written.map_err(|error| unwritable(Path::new(path.as_str()), &error));
            self.told(written);
        }
    }

    /// Writes a whole file, and says what fails.
    pub(super) fn write_file(&self, path: &str, data: &[u8]) {
        if let Some(mut file) = self.told(self.create_file(path)) {
            let written = file.write_all(data);
            self.told(written.map_err(|error| unwritable(Path::new(path), &error)));
        }
    }

    /// Prints what failed, if anything did.
    fn told<T>(&self, result: Result<T, Failure>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(failure) => {
                self.has_failed.store(true, Ordering::Relaxed);
                print_to_stderr(&failure.message);
                None
            }
        }
    }

    /// Creates the file for a path of the program's file system, and the folders above it.
    fn create_file(&self, path: &str) -> Result<File, Failure> {
        let inside = inside(path).ok_or_else(|| {
            let path = printable(path);
            Failure::new(format!(
                "{path}: the file is not in {SOURCE}, and is not written"
            ))
        })?;
        let target = self.folder.join(&inside);
        let parent = target.parent().unwrap_or(&self.folder);
        // A link that stands in the folder already could lead anywhere. What is made beneath a
        // folder that is none is inside too.
        let existing = parent.ancestors().find(|it| it.exists());
        let existing = existing.unwrap_or(&self.folder);
        let real = std::fs::canonicalize(existing).map_err(|error| unwritable(existing, &error))?;
        if !real.starts_with(&self.folder) {
            let existing = printable(&existing.display().to_string());
            return Err(Failure::new(format!(
                "{existing} leads out of the folder of --out"
            )));
        }
        std::fs::create_dir_all(parent).map_err(|error| unwritable(parent, &error))?;
        let opened = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(NO_LINKS)
            .open(&target);
        opened.map_err(|error| unwritable(&target, &error))
    }
}

/// Returns the path of a file relative to `/out`; `None` where it is not plainly beneath it.
fn inside(path: &str) -> Option<PathBuf> {
    let inside = Path::new(path).strip_prefix(SOURCE).ok()?;
    let plain = inside
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    (plain && inside.components().next().is_some()).then(|| inside.to_owned())
}

/// Returns why a file is not returned, for people.
pub(super) fn why_uncollected(reason: UncollectedReason) -> &'static str {
    match reason {
        UncollectedReason::NotFound => "there is no such file",
        UncollectedReason::NotRegular => "it is no regular file",
        UncollectedReason::TooManyFiles => "there are too many files (policy.max_collect_files)",
        UncollectedReason::TooManyBytes => "they are too large (policy.max_collect_bytes)",
        UncollectedReason::PathTooLong => "its path is too long",
        UncollectedReason::SearchTimedOut => "the search for files took too long",
        UncollectedReason::Unspecified => "the daemon does not say why",
    }
}

/// Prints to standard error which files were not returned.
pub(super) fn tell_uncollected(result: &RunResult) {
    for file in &result.uncollected {
        let why = why_uncollected(file.reason());
        print_to_stderr(&format!(
            "{} was not returned: {why}",
            printable(&file.path)
        ));
    }
    let rest = result
        .uncollected_total
        .saturating_sub(result.uncollected.len() as u64);
    if rest > 0 {
        print_to_stderr(&format!("{rest} more files were not returned"));
    }
}

/// Builds the failure for a path that cannot be written.
fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    let path = printable(&path.display().to_string());
    Failure::new(format!("cannot write {path}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_plainly_beneath_out_is_inside() {
        for (path, expected) in [
            ("/out/a", Some("a")),
            ("/out/a/b.txt", Some("a/b.txt")),
            ("/out//a/./b", Some("a/b")),
            ("/out", None),
            ("/out/", None),
            ("/outside/a", None),
            ("/etc/passwd", None),
            ("/out/../etc/passwd", None),
            ("/out/a/../../b", None),
            ("out/a", None),
            ("", None),
        ] {
            assert_eq!(inside(path).as_deref(), expected.map(Path::new), "{path}");
        }
    }

    #[test]
    fn nothing_is_written_through_links() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        let out = OutFolder::create(folder.path()).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join("led")).unwrap();
        std::os::unix::fs::symlink("/dev/null", folder.path().join("file")).unwrap();
        for name in ["/out/led/a", "/out/led/b/c", "/out/file", "/etc/x"] {
            out.write_file(name, b"x");
            assert!(out.has_failed.swap(false, Ordering::Relaxed), "{name}");
        }
        assert_eq!(elsewhere.path().read_dir().unwrap().count(), 0);
        out.write_file("/out/new/a", b"x");
        assert!(!out.has_failed());
        assert_eq!(std::fs::read(folder.path().join("new/a")).unwrap(), b"x");
    }

    #[test]
    fn pieces_are_joined_and_one_out_of_turn_is_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let out = OutFolder::create(&folder.path().join("made")).unwrap();
        let chunk = |path: &str, offset: u64, data: &'static [u8]| FileChunk {
            path: path.to_owned(),
            offset,
            data: data.into(),
            ..FileChunk::default()
        };
        out.write_chunk(&chunk("/out/a", 0, b"one "));
        out.write_chunk(&chunk("/out/a", 4, b"two"));
        out.write_chunk(&chunk("/out/b", 0, b""));
        out.write_chunk(&chunk("/out/a", 7, b"three"));
        assert!(!out.has_failed());
        assert_eq!(
            std::fs::read(folder.path().join("made/a")).unwrap(),
            b"one two"
        );
        assert_eq!(std::fs::read(folder.path().join("made/b")).unwrap(), b"");
    }
}
