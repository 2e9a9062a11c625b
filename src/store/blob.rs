//! The bytes of a module: in memory, or spooled to a nameless file where there are many. Where no
//! folder can be written, as in a container whose root is read-only, that file is in memory too.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};

use super::sealed::create_sealable;
use crate::host_limit::HostLimit;
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::{Digest, module_too_large};

/// A slot for an upload, which an upload holds for as long as it is not entirely in memory.
/// Dropping it releases the slot.
pub trait UploadSlot: Send + Sync + fmt::Debug {}

/// The slot of one upload, whoever granted it.
type UploadGuard = Box<dyn UploadSlot>;

/// An immutable sequence of bytes, usually a module.
#[derive(Clone, Debug)]
pub enum Blob {
    /// The bytes are held in memory.
    Memory(Bytes),
    /// The bytes are in a nameless file.
    Spooled(Arc<Spooled>),
}

/// Bytes in a file that has no name: the file is gone when nobody holds it any more, also when the
/// daemon is killed.
#[derive(Debug)]
pub struct Spooled {
    file: File,
    len: u64,
    /// The upload slot, which is released together with the file.
    _place: UploadGuard,
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self::Memory(bytes)
    }
}

impl Blob {
    /// Returns the number of bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spooled(spooled) => spooled.len,
        }
    }

    /// Reports whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads all bytes into memory. It may block.
    ///
    /// # Errors
    /// Fails where the file cannot be read.
    pub fn read(&self) -> io::Result<Bytes> {
        match self {
            Self::Memory(bytes) => Ok(bytes.clone()),
            Self::Spooled(spooled) => {
                let len = usize::try_from(spooled.len).unwrap_or_default();
                let mut bytes = Vec::with_capacity(len);
                self.reader().read_to_end(&mut bytes)?;
                Ok(bytes.into())
            }
        }
    }

    /// Returns a reader that starts at the first byte. Reading may block.
    pub fn reader(&self) -> impl Read + '_ {
        BlobReader { blob: self, at: 0 }
    }
}

struct BlobReader<'a> {
    blob: &'a Blob,
    at: u64,
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = match self.blob {
            Blob::Memory(bytes) => {
                let at = usize::try_from(self.at).unwrap_or(usize::MAX);
                bytes.get(at..).unwrap_or_default().read(buf)?
            }
            Blob::Spooled(spooled) => spooled.file.read_at(buf, self.at)?,
        };
        self.at += n as u64;
        Ok(n)
    }
}

/// The place where modules that arrive in pieces are assembled.
#[derive(Clone, Debug)]
pub struct Spool {
    /// The folder for the files of those that are too large for memory.
    pub dir: PathBuf,
    /// The configuration key of this folder, for error messages.
    pub key: &'static str,
}

/// Collects the pieces of an upload and hashes them as they arrive. It refuses more than `most`
/// bytes.
pub struct BlobAssembler {
    state: Option<State>,
    field: &'static str,
    len: u64,
    most: u64,
}

struct State {
    spool: Spool,
    hash: Sha256,
    memory: BytesMut,
    file: Option<File>,
    place: UploadGuard,
}

impl Spool {
    /// Most bytes that are assembled in memory (1 MiB); an upload that is larger goes to a file.
    pub const THRESHOLD: usize = 1 << 20;

    /// Starts to assemble a module of at most `most` bytes, which errors call `field`. `place` is
    /// held for as long as the module is not all in memory.
    pub fn assemble(
        &self,
        field: &'static str,
        most: u64,
        place: impl UploadSlot + 'static,
    ) -> BlobAssembler {
        BlobAssembler {
            state: Some(State {
                spool: self.clone(),
                hash: Sha256::new(),
                memory: BytesMut::new(),
                file: None,
                place: Box::new(place),
            }),
            field,
            len: 0,
            most,
        }
    }

    /// Checks that a file can be created in the folder.
    ///
    /// # Errors
    /// Returns the error that keeps the folder from being written.
    pub(super) fn check(&self) -> io::Result<()> {
        tempfile::tempfile_in(&self.dir).map(drop)
    }

    /// Creates a file without a name: in the folder, or in memory where the folder cannot be
    /// written. A full folder is an error instead, because it may have room later, and because
    /// memory was not meant for this.
    fn file(&self) -> io::Result<File> {
        match tempfile::tempfile_in(&self.dir) {
            Err(error) if !is_full(&error) => {
                tracing::debug!(%error, dir = %self.dir.display(), "a module is spooled in memory");
                create_sealable("ringfence-spool")
            }
            made => made,
        }
    }

    fn failed(&self, error: &io::Error) -> Refusal {
        let full = is_full(error);
        let reason = if full {
            Reason::StoreFull
        } else {
            Reason::StoreUnavailable
        };
        tracing::warn!(%error, dir = %self.dir.display(), "spooling a module failed");
        let state = match HostLimit::of(error) {
            Some(limit) => format!("cannot be used now: {}", limit.sentence()),
            None if full => "is full".to_owned(),
            None => "cannot be used".to_owned(),
        };
        Refusal::new(
            reason,
            format!(
                "the folder for modules that are arriving {state} ({})",
                self.key
            ),
        )
        .with("store", self.key)
    }
}

/// Reports whether `error` says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

impl BlobAssembler {
    /// Returns the most bytes that this module may have.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Adds the next piece of the module.
    ///
    /// # Errors
    /// Returns `MODULE_TOO_LARGE`, or `STORE_FULL` or `STORE_UNAVAILABLE` for the spool.
    pub async fn push(&mut self, piece: Bytes) -> Result<(), Refusal> {
        self.len += piece.len() as u64;
        if self.len > self.most {
            // Only the sender knows how much more there is.
            return Err(module_too_large(self.field, self.len, false, self.most));
        }
        self.with(move |state| {
            state.hash.update(&piece);
            state
                .add(&piece)
                .map_err(|error| state.spool.failed(&error))
        })
        .await
    }

    /// Ends the upload, and returns all bytes and their digest.
    ///
    /// # Errors
    /// Returns the errors of [`Self::push`].
    pub async fn finish(self) -> Result<(Blob, Digest), Refusal> {
        let State {
            hash,
            memory,
            file,
            place,
            ..
        } = self.state.ok_or_else(already_failed)?;
        let blob = match file {
            Some(file) => Blob::Spooled(Arc::new(Spooled {
                file,
                len: self.len,
                _place: place,
            })),
            None => Blob::Memory(memory.freeze()),
        };
        Ok((blob, Digest::from(hash)))
    }

    /// Performs `work` on a blocking thread, because hashing and writing must not hold up the
    /// serving threads.
    async fn with<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut State) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let mut state = self.state.take().ok_or_else(already_failed)?;
        let done = tokio::task::spawn_blocking(move || (work(&mut state), state));
        let (result, state) = done.await.map_err(Refusal::internal)?;
        self.state = Some(state);
        result
    }
}

fn already_failed() -> Refusal {
    Refusal::internal("a module was put together after a failure")
}

impl State {
    fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.file.is_none() && self.memory.len() + piece.len() <= Spool::THRESHOLD {
            self.memory.extend_from_slice(piece);
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut file = self.spool.file()?;
                file.write_all(&std::mem::take(&mut self.memory))?;
                self.file.insert(file)
            }
        };
        file.write_all(piece)
    }
}
