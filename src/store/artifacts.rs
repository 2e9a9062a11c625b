//! A persistent cache of the native code that compile children produced, in a folder of this host,
//! with least recently used eviction.
//!
//! What is read back is executed, so nothing is taken on trust: a keyed hash (BLAKE3, with the key
//! outside the folder) covers the bytes, the module's digest, the variant and what the code is
//! compatible with. A file in which anything is wrong is removed, logged and counted, and its
//! module is compiled again. Files never leave this host: hosts share modules, not code.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use blake3::{Hash, Hasher};
use rustix::io::Errno;

use super::backend::WriteMode;
use super::directory::{remove_leftovers, tmp_dir, write_atomically};
use super::private_files::{PrivateFolder, read_key};
use super::sealed::{SealedFile, create_sealable};
use crate::metrics::Count;
use crate::model::request::Digest;
use crate::sync::lock;

/// The bytes that every artefact file starts with; the digit is the version of the layout.
const MAGIC: &[u8; 16] = b"ringfence-code-1";
/// Length of the header in bytes, up to where the metadata begins: magic, digest, variant,
/// compatibility hash and the two lengths.
const HEADER: usize = MAGIC.len() + 32 + 1 + 8 + 4 + 8;
/// Longest metadata of an artefact that is accepted, in bytes.
const MAX_ABOUT: u32 = 64 << 20;
/// Mode of the folders: only the daemon's user may enter them.
const PRIVATE: u32 = 0o700;
/// Fewest bytes that a file counts for in the budget, so that the number of files is bounded too.
const LEAST: u64 = 16 << 10;
/// Bytes that are copied, and hashed, in one piece.
const PIECE: usize = 1 << 20;

/// The settings of the artefact cache (`artifacts.*` in the configuration).
#[derive(Clone, Debug)]
pub struct ArtifactCacheSettings {
    /// The folder that holds the artefact files.
    pub dir: PathBuf,
    /// Most bytes that all files may take together; the least recently used are evicted first.
    pub budget: u64,
    /// The file with the secret key; it is created where there is none.
    pub key_file: PathBuf,
}

/// The key of an artefact: it names one variant of a module's native code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ArtifactName {
    /// The digest of the module's WebAssembly bytes.
    pub digest: Digest,
    /// Whether the code counts fuel.
    pub metered: bool,
    /// A hash of everything that the code must be compatible with in order to be loaded.
    pub compatible: u64,
}

impl ArtifactName {
    /// Reports whether `file` has the form of an artefact's file name, so that other files in the
    /// folder are left alone.
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

    /// Returns the file name, which is made of the digest, the variant and the compatibility hash.
    pub fn file(self) -> String {
        let variant = if self.metered { "metered" } else { "plain" };
        format!("{}-{variant}-{:016x}", self.digest.hex(), self.compatible)
    }
}

/// The artefact cache: an index in memory over a folder that only this daemon's user can write.
#[derive(Debug)]
pub struct ArtifactCache {
    /// The path of the folder by its descriptor, which is valid while `_folder` is open.
    dir: PathBuf,
    /// Holds the folder's descriptor open, so that `dir` keeps leading to the same folder.
    _folder: PrivateFolder,
    budget: u64,
    key: [u8; 32],
    index: Mutex<Index>,
    rejected: AtomicU64,
    /// Files that were evicted since the daemon started.
    evicted: Count,
}

#[derive(Debug, Default)]
struct Index {
    files: HashMap<String, IndexedArtifact>,
    bytes: u64,
}

#[derive(Debug)]
struct IndexedArtifact {
    bytes: u64,
    used: SystemTime,
}

/// Why an artefact file was not accepted.
enum ArtifactReadError {
    /// The file is damaged, forged, or not the one that was asked for.
    Wrong(&'static str),
    /// The file cannot be read at the moment.
    Io(io::Error),
}

impl From<io::Error> for ArtifactReadError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Self::Wrong("it is too short")
        } else {
            Self::Io(error)
        }
    }
}

/// Why the artefact cache does not open.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactCacheError {
    /// The folder cannot be used, or others can write it.
    #[error("artifacts.dir: {}: {source}", path.display())]
    Folder {
        /// The folder of the artefacts.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
    /// The key cannot be used, or others can write it.
    #[error("artifacts.key_file: {}: {source}", path.display())]
    Key {
        /// The file of the key.
        path: PathBuf,
        /// What is wrong with it.
        source: io::Error,
    },
}

impl ArtifactCache {
    /// Opens the cache, and creates the folder and the key where they are missing.
    ///
    /// # Errors
    /// Fails where either cannot be used, or where others can write it.
    pub fn open(settings: &ArtifactCacheSettings) -> Result<Self, ArtifactCacheError> {
        let ArtifactCacheSettings {
            dir,
            budget,
            key_file,
        } = settings;
        let at_dir = |source| ArtifactCacheError::Folder {
            path: dir.clone(),
            source,
        };
        let at_key = |source| ArtifactCacheError::Key {
            path: key_file.clone(),
            source,
        };
        let folder = PrivateFolder::open(dir).map_err(at_dir)?;
        let own = folder.path();
        let mut make = DirBuilder::new();
        make.recursive(true).mode(PRIVATE);
        make.create(tmp_dir(&own)).map_err(at_dir)?;
        remove_leftovers(&tmp_dir(&own)).map_err(at_dir)?;
        let artifacts = Self {
            key: read_key(key_file).map_err(at_key)?,
            index: Mutex::new(Index::read(&own).map_err(at_dir)?),
            dir: own,
            _folder: folder,
            budget: *budget,
            rejected: AtomicU64::new(0),
            evicted: Count::default(),
        };
        // The budget may be smaller than it was at the last start.
        artifacts.make_room(0);
        Ok(artifacts)
    }

    /// Reports whether the index has a file of this name, without checking what is in it.
    pub fn has(&self, name: ArtifactName) -> bool {
        self.index().files.contains_key(&name.file())
    }

    /// Returns how many files were evicted to make room since the daemon started.
    pub fn evicted(&self) -> u64 {
        self.evicted.get()
    }

    /// Returns the bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.index().bytes
    }

    /// Returns how many files were rejected since the daemon started.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Reads and verifies an artefact, and returns its metadata and its code; `None` on a miss. It
    /// may block.
    pub fn load(&self, name: ArtifactName) -> Option<(Vec<u8>, SealedFile)> {
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
                // A failure does no harm: only the order of eviction after a restart depends on the
                // time.
                let _ = file.set_modified(now);
                Some(read)
            }
            Err(ArtifactReadError::Wrong(why)) => {
                self.reject(name, why);
                None
            }
            Err(ArtifactReadError::Io(error)) => {
                tracing::warn!(%error, file = file_name, "an artefact cannot be read");
                None
            }
        }
    }

    /// Removes an artefact that must not be executed, and counts and logs it. It may block.
    pub fn reject(&self, name: ArtifactName, why: &str) {
        let file = name.file();
        tracing::warn!(
            why,
            file,
            "an artefact is not taken; its module is compiled again"
        );
        self.rejected.fetch_add(1, Ordering::Relaxed);
        self.discard(&file);
    }

    /// Writes an artefact, with `about` as its metadata. A failure is only logged, since the cache
    /// is optional. It may block.
    pub fn save(
        &self,
        name: ArtifactName,
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
        let written = write_atomically(
            &tmp_dir(&self.dir),
            &self.dir.join(&file_name),
            WriteMode::Replace,
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
                self.index()
                    .insert(file_name, IndexedArtifact { bytes, used });
            }
            Err(error) => tracing::warn!(%error, "an artefact was not written to artifacts.dir"),
        }
    }

    /// Removes every artefact of a module. It may block.
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

    fn read(
        &self,
        name: ArtifactName,
        file: &mut File,
    ) -> Result<(Vec<u8>, SealedFile), ArtifactReadError> {
        let mut head = [0; HEADER];
        file.read_exact(&mut head)?;
        let [.., a, b, c, d, e, f, g, h, i, j, k, l] = head;
        let about_len = u32::from_le_bytes([a, b, c, d]);
        let len = u64::from_le_bytes([e, f, g, h, i, j, k, l]);
        if head != header(name, about_len, len) {
            return Err(ArtifactReadError::Wrong(
                "it is of another module or another version",
            ));
        }
        let expected = (HEADER as u64 + 32 + u64::from(about_len)).checked_add(len);
        if about_len > MAX_ABOUT || expected != Some(file.metadata()?.len()) {
            return Err(ArtifactReadError::Wrong("its length is not what it says"));
        }
        let mut hasher = Hasher::new_keyed(&self.key);
        hasher.update(&head);
        let mut about = Vec::new();
        file.take(about_len.into()).read_to_end(&mut about)?;
        hasher.update(&about);
        // The code is copied, so that what was checked is what is executed, whatever happens to the
        // file.
        let copy = create_sealable("ringfence-artifact")?;
        copy_and_hash(file, &copy, len, &mut hasher)?;
        let mut hash = [0; 32];
        file.read_exact(&mut hash)?;
        // The hashes are compared in constant time.
        if hasher.finalize() != Hash::from_bytes(hash) {
            return Err(ArtifactReadError::Wrong(
                "its bytes are not those that this daemon's key vouches for",
            ));
        }
        Ok((about, SealedFile::seal(copy)?))
    }

    /// Evicts the least recently used files until `bytes` more fit the budget.
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
                Some(name) => {
                    self.discard(&name);
                    self.evicted.increment();
                }
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
        lock(&self.index)
    }
}

impl Index {
    fn read(dir: &Path) -> io::Result<Self> {
        let mut index = Self::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            // A file that another daemon has just removed is passed over.
            let (Ok(metadata), Ok(name)) = (entry.metadata(), entry.file_name().into_string())
            else {
                continue;
            };
            if metadata.is_file() && ArtifactName::is_one(&name) {
                let (bytes, used) = (cost(metadata.len()), metadata.modified()?);
                index.insert(name, IndexedArtifact { bytes, used });
            }
        }
        Ok(index)
    }

    fn insert(&mut self, name: String, entry: IndexedArtifact) {
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

/// Copies `len` bytes on a second thread and hashes the copy at the same time: for a large
/// interpreter each of the two takes as long as starting it does.
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
                // The send fails only when hashing has failed, and that is reported by itself.
                let _ = told.send(copied);
            })
        });
        let Ok(copying) = copying else {
            // No thread can be had, so the two are done one after the other.
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

/// Copies `len` bytes from one file's position to the other's, in the kernel where it can, and
/// reports to `told` how many have been copied so far.
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

/// A writer that hashes everything that passes through it to the file.
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

/// Builds the header of an artefact file; the two lengths come last.
fn header(name: ArtifactName, about_len: u32, len: u64) -> [u8; HEADER] {
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

/// Returns what a file counts for in the budget: its size, but at least [`LEAST`].
fn cost(bytes: u64) -> u64 {
    bytes.max(LEAST)
}
