//! The backend that keeps objects in a folder of this host. A file is written aside, flushed, and
//! then renamed.
//!
//! ```text
//! modules/<hex>.wasm   records/<hex>.json   tmp/
//! ```
//!
//! Several daemons may share the folder. Each locks the file that it writes aside. A file that
//! nobody has locked was left by a daemon that was killed, and is removed at the next start.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::FlockOperation;
use tempfile::NamedTempFile;

use super::backend::{
    Backend, BackendError, BackendFuture, ObjectKey, ObjectKind, PutOutcome, WriteMode,
};
use super::blob::{Blob, is_full};
use crate::host_limit::HostLimit;
use crate::model::request::Digest;

/// Mode of the folders: only the daemon's own user sees what is in them.
const PRIVATE: u32 = 0o700;

/// A backend that keeps each object as a file in a folder.
pub(super) struct DirectoryBackend {
    paths: Arc<Paths>,
}

struct Paths {
    root: PathBuf,
}

/// Returns the folder for unfinished files, inside a store's folder.
pub(super) fn tmp_dir(root: &Path) -> PathBuf {
    root.join("tmp")
}

impl DirectoryBackend {
    /// Creates the folder where it is missing, and removes what killed daemons left.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let mut make = DirBuilder::new();
        make.recursive(true).mode(PRIVATE);
        make.create(tmp_dir(root))?;
        for kind in ObjectKind::ALL {
            make.create(root.join(kind.folder()))?;
        }
        remove_leftovers(&tmp_dir(root))?;
        // A folder that cannot be written is better found out now. One that is only full can still
        // be read.
        match tempfile::tempfile_in(tmp_dir(root)) {
            Err(error) if is_full(&error) => tracing::warn!(%error, "the module store has no room"),
            tried => drop(tried?),
        }
        Ok(Self {
            paths: Arc::new(Paths {
                root: root.to_owned(),
            }),
        })
    }

    fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Paths) -> io::Result<T> + Send + 'static,
    ) -> BackendFuture<'_, T> {
        let paths = Arc::clone(&self.paths);
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&paths)).await;
            let result = done.map_err(|error| BackendError::Down(error.to_string()))?;
            result.map_err(|error| {
                if let Some(limit) = HostLimit::of(&error) {
                    return BackendError::Host(limit);
                }
                let text = error.to_string();
                if is_full(&error) {
                    BackendError::Full(text)
                } else {
                    BackendError::Down(text)
                }
            })
        })
    }
}

/// Removes unfinished files that no running daemon is writing any more.
pub(super) fn remove_leftovers(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        // Only regular files can be ours, and opening anything else may never return.
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            tracing::info!(path = %path.display(), "removing what an earlier daemon left unfinished");
            // Another daemon may be removing the same file.
            if let Err(error) = present(fs::remove_file(&path)) {
                tracing::warn!(%error, path = %path.display(), "it cannot be removed");
            }
        }
    }
    Ok(())
}

/// Writes a temporary file in `dir` and renames it to `to`, so that `to` holds all of it or does
/// not exist, also after a crash.
pub(super) fn write_atomically(
    dir: &Path,
    to: &Path,
    mode: WriteMode,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<PutOutcome> {
    let mut aside = locked_in(dir)?;
    write(aside.as_file_mut())?;
    aside.as_file().sync_all()?;
    let named = match mode {
        WriteMode::Create => aside.persist_noclobber(to),
        WriteMode::Replace => aside.persist(to),
    };
    match named {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => {
            return Ok(PutOutcome::Exists);
        }
        Err(error) => return Err(error.error),
    }
    flush_names(to)?;
    Ok(PutOutcome::Written)
}

/// Creates a locked file in `dir`, which no other daemon takes for a leftover.
fn locked_in(dir: &Path) -> io::Result<NamedTempFile> {
    loop {
        let file = NamedTempFile::new_in(dir)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        // Another daemon may have swept the file before it was locked.
        if file.as_file().metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

/// Flushes the folder of `path`, so that the names in it survive a crash.
fn flush_names(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

impl Paths {
    fn of(&self, key: ObjectKey) -> PathBuf {
        self.root.join(key.kind.folder()).join(key.name())
    }
}

/// Returns `Ok(None)` for a file that does not exist.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Backend for DirectoryBackend {
    fn check(&self) -> BackendFuture<'_, ()> {
        self.work(|paths| {
            ObjectKind::ALL
                .into_iter()
                .try_for_each(|kind| fs::read_dir(paths.root.join(kind.folder())).map(drop))
        })
    }

    fn put(&self, key: ObjectKey, blob: Blob, mode: WriteMode) -> BackendFuture<'_, PutOutcome> {
        self.work(move |paths| {
            let to = paths.of(key);
            if mode == WriteMode::Create && to.try_exists()? {
                // The file may be another daemon's, which has not flushed its name yet.
                flush_names(&to)?;
                return Ok(PutOutcome::Exists);
            }
            write_atomically(&tmp_dir(&paths.root), &to, mode, |file| {
                io::copy(&mut blob.reader(), file).map(drop)
            })
        })
    }

    fn get(&self, key: ObjectKey, most: u64) -> BackendFuture<'_, Option<Bytes>> {
        self.work(move |paths| {
            let Some(file) = present(File::open(paths.of(key)))? else {
                return Ok(None);
            };
            let mut bytes = Vec::new();
            file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok(Some(bytes.into()))
        })
    }

    fn size(&self, key: ObjectKey) -> BackendFuture<'_, Option<u64>> {
        self.work(move |paths| {
            Ok(present(fs::metadata(paths.of(key)))?.map(|metadata| metadata.len()))
        })
    }

    fn delete(&self, key: ObjectKey) -> BackendFuture<'_, ()> {
        self.work(move |paths| {
            let path = paths.of(key);
            match present(fs::remove_file(&path))? {
                Some(()) => flush_names(&path),
                None => Ok(()),
            }
        })
    }

    fn records(&self, after: Option<Digest>, limit: usize) -> BackendFuture<'_, Vec<Digest>> {
        self.work(move |paths| {
            let mut digests = Vec::new();
            for entry in fs::read_dir(paths.root.join(ObjectKind::Record.folder()))? {
                let name = entry?.file_name();
                let digest = name
                    .to_str()
                    .and_then(|name| ObjectKind::Record.digest(name));
                digests.extend(digest.filter(|digest| Some(*digest) > after));
            }
            digests.sort_unstable();
            digests.truncate(limit);
            Ok(digests)
        })
    }

    fn used(&self, kind: ObjectKind) -> BackendFuture<'_, (u64, u64)> {
        self.work(move |paths| {
            let (mut count, mut bytes) = (0, 0);
            for entry in fs::read_dir(paths.root.join(kind.folder()))? {
                // A file that was deleted meanwhile takes no room.
                if let Some(metadata) = present(entry?.metadata())? {
                    count += 1;
                    bytes += metadata.len();
                }
            }
            Ok((count, bytes))
        })
    }

    fn old_modules(&self, age: Duration) -> BackendFuture<'_, Vec<Digest>> {
        self.work(move |paths| {
            let mut digests = Vec::new();
            for entry in fs::read_dir(paths.root.join(ObjectKind::Module.folder()))? {
                let entry = entry?;
                let name = entry.file_name();
                let digest = name
                    .to_str()
                    .and_then(|name| ObjectKind::Module.digest(name));
                let metadata = present(entry.metadata())?;
                let written =
                    metadata.and_then(|metadata| metadata.modified().ok()?.elapsed().ok());
                if written.is_some_and(|written| written > age) {
                    digests.extend(digest);
                }
            }
            Ok(digests)
        })
    }
}
