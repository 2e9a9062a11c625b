//! Native code on disk: a cache of what compile children made, in a folder of this host.
//!
//! What is read back is executed, so nothing is taken on trust: a keyed hash (BLAKE3, the key outside the folder) covers
//! the bytes, the module's digest, the variant and what the code is compatible with. A file in which anything is wrong
//! is removed, logged and counted, and its module compiled again. Files never leave this host: hosts share modules,
//! not code.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use blake3::{Hash, Hasher};
use rustix::io::Errno;

use super::backend::Mode;
use super::directory::{aside, sweep, write_whole};
use super::private_files::{PrivateFolder, read_key};
use super::sealed::{Sealed, unsealed};
use crate::request::Digest;

/// What a file starts with; the digit is the layout's version.
const MAGIC: &[u8; 16] = b"ringfence-code-1";
/// Bytes before what is told about the code.
const HEADER: usize = MAGIC.len() + 32 + 1 + 8 + 4 + 8;
/// Bytes of what is told about the code, at the most.
const MAX_ABOUT: u32 = 64 << 20;
/// Who may see the folders.
const PRIVATE: u32 = 0o700;
/// Bytes that a file counts for at the least.
const LEAST: u64 = 16 << 10;
/// Bytes copied, and hashed, at once.
const PIECE: usize = 1 << 20;

/// How artefacts are kept.
#[derive(Clone, Debug)]
pub struct ArtifactsSettings {
    /// The folder.
    pub dir: PathBuf,
    /// Bytes of all files; the least recently used go first.
    pub budget: u64,
    /// The file with the key; it is made where there is none.
    pub key_file: PathBuf,
}

/// Which code it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Name {
    /// Of the module.
    pub digest: Digest,
    /// Whether it counts fuel.
    pub metered: bool,
    /// What it is compatible with.
    pub compatible: u64,
}

impl Name {
    /// Whether `file` may be one of ours.
    fn is_one(file: &str) -> bool {
        let mut parts = file.split('-');
        let hex = |part: Option<&str>, digits: usize| {
            part.is_some_and(|part| {
                part.len() == digits && part.bytes().all(|b| b.is_ascii_hexdigit())
            })
        };
        hex(parts.next(), 64)
            && matches!(parts.next(), Some("plain" | "metered"))
            && hex(parts.next(), 16)
            && parts.next().is_none()
    }

    /// The file's name.
    pub fn file(self) -> String {
        let variant = if self.metered { "metered" } else { "plain" };
        format!("{}-{variant}-{:016x}", self.digest.hex(), self.compatible)
    }
}

/// The cache.
#[derive(Debug)]
pub struct Artifacts {
    /// Where it is, by the name that `folder` has for it.
    dir: PathBuf,
    /// Keeps `dir` what it is.
    _folder: PrivateFolder,
    budget: u64,
    key: [u8; 32],
    index: Mutex<Index>,
    rejected: AtomicU64,
}

#[derive(Debug, Default)]
struct Index {
    files: HashMap<String, Entry>,
    bytes: u64,
}

#[derive(Debug)]
struct Entry {
    bytes: u64,
    used: SystemTime,
}

/// Why a file is not taken.
enum Bad {
    /// It is not what it says, or not what was asked for.
    Wrong(&'static str),
    /// It cannot be read at the moment.
    Io(io::Error),
}

impl From<io::Error> for Bad {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Wrong("it is too short")
        } else {
            Self::Io(error)
        }
    }
}

impl Artifacts {
    /// Opens the folder, making it and the key where they are missing.
    ///
    /// # Errors
    /// Where either cannot be used, or others can write them.
    pub fn open(settings: &ArtifactsSettings) -> Result<Self, String> {
        let ArtifactsSettings {
            dir,
            budget,
            key_file,
        } = settings;
        let at_dir = |error: io::Error| format!("artifacts.dir: {}: {error}", dir.display());
        let at_key =
            |error: io::Error| format!("artifacts.key_file: {}: {error}", key_file.display());
        let folder = PrivateFolder::open(dir).map_err(at_dir)?;
        let own = folder.path();
        let mut make = DirBuilder::new();
        make.recursive(true).mode(PRIVATE);
        make.create(aside(&own)).map_err(at_dir)?;
        sweep(&aside(&own)).map_err(at_dir)?;
        let artifacts = Self {
            key: read_key(key_file).map_err(at_key)?,
            index: Mutex::new(Index::read(&own).map_err(at_dir)?),
            dir: own,
            _folder: folder,
            budget: *budget,
            rejected: AtomicU64::new(0),
        };
        // The budget may be smaller than it was.
        artifacts.make_room(0);
        Ok(artifacts)
    }

    /// Whether there is code of this name, right or not.
    pub fn has(&self, name: Name) -> bool {
        self.index().files.contains_key(&name.file())
    }

    /// Files that were not taken since the start.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// The code of this name, with what is told about it. May block.
    pub fn load(&self, name: Name) -> Option<(Vec<u8>, Sealed)> {
        let file_name = name.file();
        let path = self.dir.join(&file_name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => {
                if error.kind() == io::ErrorKind::NotFound {
                    self.index().remove(&file_name);
                } else {
                    tracing::warn!(%error, file = file_name, "an artefact cannot be opened");
                }
                return None;
            }
        };
        match self.read(name, &mut file) {
            Ok(read) => {
                let now = SystemTime::now();
                if let Some(entry) = self.index().files.get_mut(&file_name) {
                    entry.used = now;
                }
                // Only the order in which files go after a restart depends on it.
                let _ = file.set_modified(now);
                Some(read)
            }
            Err(Bad::Wrong(why)) => {
                self.reject(name, why);
                None
            }
            Err(Bad::Io(error)) => {
                tracing::warn!(%error, file = file_name, "an artefact cannot be read");
                None
            }
        }
    }

    /// Removes code that must not be executed. May block.
    pub fn reject(&self, name: Name, why: &str) {
        let file = name.file();
        tracing::warn!(
            why,
            file,
            "an artefact is not taken; its module is compiled again"
        );
        self.rejected.fetch_add(1, Ordering::Relaxed);
        self.discard(&file);
    }

    /// Keeps code. Failing to is no failure of anybody's: it is logged. May block.
    pub fn save(
        &self,
        name: Name,
        about: &[u8],
        len: u64,
        code: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) {
        let bytes = (HEADER + about.len() + 32) as u64 + len;
        let (Ok(about_len), true) = (u32::try_from(about.len()), bytes <= self.budget) else {
            tracing::debug!(bytes, "a compiled module is larger than artifacts.budget");
            return;
        };
        let bytes = cost(bytes);
        self.make_room(bytes);
        let file_name = name.file();
        let written = write_whole(
            &aside(&self.dir),
            &self.dir.join(&file_name),
            Mode::Replace,
            |file| {
                let mut to = Hashing {
                    to: file,
                    hasher: Hasher::new_keyed(&self.key),
                };
                to.write_all(&header(name, about_len, len))?;
                to.write_all(about)?;
                code(&mut to)?;
                let hash = to.hasher.finalize();
                file.write_all(hash.as_bytes())
            },
        );
        match written {
            Ok(_) => {
                let used = SystemTime::now();
                self.index().insert(file_name, Entry { bytes, used });
            }
            Err(error) => tracing::warn!(%error, "an artefact was not written to artifacts.dir"),
        }
    }

    /// Forgets all code of a module. May block.
    pub fn remove(&self, digest: Digest) {
        let prefix = digest.hex();
        let names: Vec<String> = {
            let index = self.index();
            let names = index.files.keys();
            names
                .filter(|name| name.starts_with(&prefix))
                .cloned()
                .collect()
        };
        for name in names {
            self.discard(&name);
        }
    }

    fn read(&self, name: Name, file: &mut File) -> Result<(Vec<u8>, Sealed), Bad> {
        let mut head = [0; HEADER];
        file.read_exact(&mut head)?;
        let [.., a, b, c, d, e, f, g, h, i, j, k, l] = head;
        let about_len = u32::from_le_bytes([a, b, c, d]);
        let len = u64::from_le_bytes([e, f, g, h, i, j, k, l]);
        if head != header(name, about_len, len) {
            return Err(Bad::Wrong("it is of another module or another version"));
        }
        let expected = (HEADER as u64 + 32 + u64::from(about_len)).checked_add(len);
        if about_len > MAX_ABOUT || expected != Some(file.metadata()?.len()) {
            return Err(Bad::Wrong("its length is not what it says"));
        }
        let mut hasher = Hasher::new_keyed(&self.key);
        hasher.update(&head);
        let mut about = Vec::new();
        file.take(about_len.into()).read_to_end(&mut about)?;
        hasher.update(&about);
        // Copied, so that what was checked is what is executed, whatever happens to the file.
        let copy = unsealed("ringfence-artifact")?;
        copy_and_hash(file, &copy, len, &mut hasher)?;
        let mut hash = [0; 32];
        file.read_exact(&mut hash)?;
        // In constant time.
        if hasher.finalize() != Hash::from_bytes(hash) {
            return Err(Bad::Wrong(
                "its bytes are not those that this daemon's key vouches for",
            ));
        }
        Ok((about, Sealed::seal(copy)?))
    }

    /// Removes the least recently used files until `bytes` more fit the budget.
    fn make_room(&self, bytes: u64) {
        loop {
            let oldest = {
                let index = self.index();
                if index.bytes.saturating_add(bytes) <= self.budget {
                    return;
                }
                let oldest = index.files.iter().min_by_key(|(_, entry)| entry.used);
                oldest.map(|(name, _)| name.clone())
            };
            match oldest {
                Some(name) => self.discard(&name),
                None => return,
            }
        }
    }

    fn discard(&self, file_name: &str) {
        self.index().remove(file_name);
        if let Err(error) = fs::remove_file(self.dir.join(file_name))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, file = file_name, "an artefact cannot be removed");
        }
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Nothing panics while it is held.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Index {
    fn read(dir: &Path) -> io::Result<Self> {
        let mut index = Self::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // One that another daemon has just removed is none.
            let (Ok(metadata), Ok(name)) = (entry.metadata(), entry.file_name().into_string())
            else {
                continue;
            };
            if metadata.is_file() && Name::is_one(&name) {
                let (bytes, used) = (cost(metadata.len()), metadata.modified()?);
                index.insert(name, Entry { bytes, used });
            }
        }
        Ok(index)
    }

    fn insert(&mut self, name: String, entry: Entry) {
        self.remove(&name);
        self.bytes += entry.bytes;
        self.files.insert(name, entry);
    }

    fn remove(&mut self, name: &str) {
        if let Some(entry) = self.files.remove(name) {
            self.bytes -= entry.bytes;
        }
    }
}

/// Copies `len` bytes and hashes the copy, one beside the other: for a large interpreter each takes as long as starting
/// it does.
fn copy_and_hash(from: &File, to: &File, len: u64, hasher: &mut Hasher) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let mut hashed = 0;
    let mut hash_up_to = |copied: u64| {
        while hashed < copied {
            let n = usize::try_from(copied - hashed).map_or(PIECE, |left| left.min(PIECE));
            to.read_exact_at(&mut piece[..n], hashed)?;
            hasher.update(&piece[..n]);
            hashed += n as u64;
        }
        Ok(())
    };
    if len <= PIECE as u64 {
        copy(from, to, len, &mut |_| {})?;
        return hash_up_to(len);
    }
    std::thread::scope(|scope| {
        let (told, copied) = std::sync::mpsc::channel();
        let copying = std::thread::Builder::new().spawn_scoped(scope, move || {
            copy(from, to, len, &mut |copied| {
                // Hashing that failed is told by itself.
                let _ = told.send(copied);
            })
        });
        let Ok(copying) = copying else {
            // No thread can be had: one after the other.
            copy(from, to, len, &mut |_| {})?;
            return hash_up_to(len);
        };
        for copied in copied {
            hash_up_to(copied)?;
        }
        let gone = |_| Err(io::Error::other("copying panicked"));
        copying.join().unwrap_or_else(gone)
    })
}

/// Copies `len` bytes at the positions of the two files, in the kernel where it can, and tells how many there are.
fn copy(mut from: &File, mut to: &File, len: u64, told: &mut dyn FnMut(u64)) -> io::Result<()> {
    let mut copied = 0;
    while copied < len {
        let left = usize::try_from(len - copied).unwrap_or(usize::MAX);
        let n = match rustix::fs::sendfile(to, from, None, left.min(PIECE)) {
            Ok(n) => n as u64,
            Err(Errno::INTR) => continue,
            Err(Errno::INVAL | Errno::NOSYS) => {
                io::copy(&mut Read::by_ref(&mut from).take(len - copied), &mut to)?
            }
            Err(error) => return Err(error.into()),
        };
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        copied += n;
        told(copied);
    }
    Ok(())
}

/// Hashes what goes through it.
struct Hashing<'a> {
    to: &'a mut File,
    hasher: Hasher,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.to.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// What stands before the code; the lengths come last.
fn header(name: Name, about_len: u32, len: u64) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let parts: [&[u8]; 6] = [
        MAGIC,
        name.digest.as_bytes(),
        &[u8::from(name.metered)],
        &name.compatible.to_le_bytes(),
        &about_len.to_le_bytes(),
        &len.to_le_bytes(),
    ];
    header.copy_from_slice(&parts.concat());
    header
}

/// What a file takes of the budget: at least so much that their number is bounded too.
fn cost(bytes: u64) -> u64 {
    bytes.max(LEAST)
}
