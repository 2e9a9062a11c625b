//! Objects in a folder of this host: written aside, flushed, then named.
//!
//! ```text
//! modules/<hex>.wasm   records/<hex>.json   tmp/
//! ```
//!
//! Several daemons may share it. What is written aside is locked by whoever writes it; what nobody has locked any more
//! was left by a daemon that was killed, and is removed at the next start.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::FlockOperation;
use tempfile::NamedTempFile;

use super::backend::{Backend, Fault, Key, Kind, Mode, Promise, Put};
use super::blob::{Blob, is_full};
use crate::host_limit::HostLimit;
use crate::request::Digest;

/// Only the daemon's own user sees what is in it.
const PRIVATE: u32 = 0o700;

/// A folder with objects.
pub(super) struct Directory {
    paths: Arc<Paths>,
}

struct Paths {
    root: PathBuf,
}

/// The folder in which a store's folder has what is not finished.
pub(super) fn aside(root: &Path) -> PathBuf {
    root.join("tmp")
}

impl Directory {
    /// Makes the folder where it is missing, and removes what killed daemons left.
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        let mut make = DirBuilder::new();
        make.recursive(true).mode(PRIVATE);
        make.create(aside(root))?;
        for kind in Kind::ALL {
            make.create(root.join(kind.folder()))?;
        }
        sweep(&aside(root))?;
        // What cannot be written is better learnt now; one that is only full still has what is in it.
        match tempfile::tempfile_in(aside(root)) {
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
    ) -> Promise<'_, T> {
        let paths = Arc::clone(&self.paths);
        Box::pin(async move {
            let done = tokio::task::spawn_blocking(move || work(&paths)).await;
            let result = done.map_err(|error| Fault::Down(error.to_string()))?;
            result.map_err(|error| {
                if let Some(limit) = HostLimit::of(&error) {
                    return Fault::Host(limit);
                }
                let text = error.to_string();
                if is_full(&error) {
                    Fault::Full(text)
                } else {
                    Fault::Down(text)
                }
            })
        })
    }
}

/// Removes files that nobody writes any more.
pub(super) fn sweep(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        // Only what is ours; opening anything else may not even return.
        if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let Ok(file) = File::open(&path) else {
            continue;
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            tracing::info!(path = %path.display(), "removing what an earlier daemon left unfinished");
            // Another daemon may be doing the same.
            if let Err(error) = present(fs::remove_file(&path)) {
                tracing::warn!(%error, path = %path.display(), "it cannot be removed");
            }
        }
    }
    Ok(())
}

/// Writes a file of its own in `dir`, so that `to` holds all of it or is not there, also after a crash.
pub(super) fn write_whole(
    dir: &Path,
    to: &Path,
    mode: Mode,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<Put> {
    let mut aside = locked_in(dir)?;
    write(aside.as_file_mut())?;
    aside.as_file().sync_all()?;
    let named = match mode {
        Mode::Create => aside.persist_noclobber(to),
        Mode::Replace => aside.persist(to),
    };
    match named {
        Ok(_) => {}
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => return Ok(Put::Exists),
        Err(error) => return Err(error.error),
    }
    flush_names(to)?;
    Ok(Put::Written)
}

/// A file in `dir` that no other daemon takes for one that was left there.
fn locked_in(dir: &Path) -> io::Result<NamedTempFile> {
    loop {
        let file = NamedTempFile::new_in(dir)?;
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        // Between the two another may have swept it.
        if file.as_file().metadata()?.nlink() > 0 {
            return Ok(file);
        }
    }
}

/// Makes the names beside `path` survive a crash.
fn flush_names(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

impl Paths {
    fn of(&self, key: Key) -> PathBuf {
        self.root.join(key.kind.folder()).join(key.name())
    }
}

/// `Ok(None)` for what is not there.
fn present<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Backend for Directory {
    fn put(&self, key: Key, blob: Blob, mode: Mode) -> Promise<'_, Put> {
        self.work(move |paths| {
            let to = paths.of(key);
            if mode == Mode::Create && to.try_exists()? {
                // It may be another daemon's, which has not seen to this yet.
                flush_names(&to)?;
                return Ok(Put::Exists);
            }
            write_whole(&aside(&paths.root), &to, mode, |file| {
                io::copy(&mut blob.reader(), file).map(drop)
            })
        })
    }

    fn get(&self, key: Key, most: u64) -> Promise<'_, Option<Bytes>> {
        self.work(move |paths| {
            let Some(file) = present(File::open(paths.of(key)))? else {
                return Ok(None);
            };
            let mut bytes = Vec::new();
            file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
            Ok(Some(bytes.into()))
        })
    }

    fn size(&self, key: Key) -> Promise<'_, Option<u64>> {
        self.work(move |paths| {
            Ok(present(fs::metadata(paths.of(key)))?.map(|metadata| metadata.len()))
        })
    }

    fn delete(&self, key: Key) -> Promise<'_, ()> {
        self.work(move |paths| {
            let path = paths.of(key);
            match present(fs::remove_file(&path))? {
                Some(()) => flush_names(&path),
                None => Ok(()),
            }
        })
    }

    fn records(&self, after: Option<Digest>, limit: usize) -> Promise<'_, Vec<Digest>> {
        self.work(move |paths| {
            let mut digests = Vec::new();
            for entry in fs::read_dir(paths.root.join(Kind::Record.folder()))? {
                let name = entry?.file_name();
                let digest = name.to_str().and_then(|name| Kind::Record.digest(name));
                digests.extend(digest.filter(|digest| Some(*digest) > after));
            }
            digests.sort_unstable();
            digests.truncate(limit);
            Ok(digests)
        })
    }

    fn used(&self, kind: Kind) -> Promise<'_, (u64, u64)> {
        self.work(move |paths| {
            let (mut count, mut bytes) = (0, 0);
            for entry in fs::read_dir(paths.root.join(kind.folder()))? {
                // One that was deleted meanwhile takes nothing.
                if let Some(metadata) = present(entry?.metadata())? {
                    count += 1;
                    bytes += metadata.len();
                }
            }
            Ok((count, bytes))
        })
    }

    fn old_modules(&self, age: Duration) -> Promise<'_, Vec<Digest>> {
        self.work(move |paths| {
            let mut digests = Vec::new();
            for entry in fs::read_dir(paths.root.join(Kind::Module.folder()))? {
                let entry = entry?;
                let name = entry.file_name();
                let digest = name.to_str().and_then(|name| Kind::Module.digest(name));
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
