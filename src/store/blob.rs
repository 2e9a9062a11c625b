//! Bytes of a module: in memory, or in a nameless file where they are many. Where no folder can be written, as in a
//! container whose root is read-only, that file is in memory too.

use std::any::Any;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use sha2::{Digest as _, Sha256};

use super::sealed::unsealed;
use crate::host_limit::HostLimit;
use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, module_too_large};

/// What a module that arrives holds for as long as it is not all in memory.
pub(super) type Held = Box<dyn Any + Send + Sync>;

/// Bytes of a module.
#[derive(Clone, Debug)]
pub enum Blob {
    /// In memory.
    Memory(Bytes),
    /// In a file.
    Spooled(Arc<Spooled>),
}

/// Bytes in a file that has no name: it goes when nobody holds it, also when the daemon is killed.
#[derive(Debug)]
pub struct Spooled {
    file: File,
    len: u64,
    /// The place that it takes among those that arrive, for as long as there is the file.
    _place: Held,
}

impl From<Bytes> for Blob {
    fn from(bytes: Bytes) -> Self {
        Self::Memory(bytes)
    }
}

impl Blob {
    /// How many bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::Spooled(spooled) => spooled.len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in memory. May block.
    ///
    /// # Errors
    /// Those of the file.
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

    /// Reads them from the start. May block.
    pub fn reader(&self) -> impl Read + '_ {
        Reader { blob: self, at: 0 }
    }
}

struct Reader<'a> {
    blob: &'a Blob,
    at: u64,
}

impl Read for Reader<'_> {
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

/// Where bytes that arrive in pieces are put together.
#[derive(Clone, Debug)]
pub struct Spool {
    /// The folder for what is too large for memory.
    pub dir: PathBuf,
    /// What it is called in errors.
    pub key: &'static str,
}

/// Bytes of a module that arrive in pieces.
pub struct Assembly {
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
    place: Held,
}

impl Spool {
    /// Bytes that are put together in memory; what is larger goes to a file.
    pub const THRESHOLD: usize = 1 << 20;

    /// Starts on a module of at most `most` bytes, which comes by `field` and takes `place` for as long as it is not all
    /// in memory.
    pub fn assemble(&self, field: &'static str, most: u64, place: Held) -> Assembly {
        Assembly {
            state: Some(State {
                spool: self.clone(),
                hash: Sha256::new(),
                memory: BytesMut::new(),
                file: None,
                place,
            }),
            field,
            len: 0,
            most,
        }
    }

    /// Whether the folder can be written.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) fn check(&self) -> io::Result<()> {
        tempfile::tempfile_in(&self.dir).map(drop)
    }

    /// A file without a name: in the folder, or in memory where that cannot be written. A folder that is full is one
    /// that can: what is refused then finds room later, and memory was not meant for it.
    fn file(&self) -> io::Result<File> {
        match tempfile::tempfile_in(&self.dir) {
            Err(error) if !is_full(&error) => {
                tracing::debug!(%error, dir = %self.dir.display(), "a module is spooled in memory");
                unsealed("ringfence-spool")
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

/// Whether `error` says that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

impl Assembly {
    /// Bytes that it takes at the most.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Adds the next piece.
    ///
    /// # Errors
    /// `MODULE_TOO_LARGE`, `STORE_FULL` or `STORE_UNAVAILABLE` of the spool.
    pub async fn push(&mut self, piece: Bytes) -> Result<(), Refusal> {
        self.len += piece.len() as u64;
        if self.len > self.most {
            // How much more there is, only its sender knows.
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

    /// All that was added, and its digest.
    ///
    /// # Errors
    /// As [`Self::push`].
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

    /// Works off the serving threads: hashing and writing are not theirs.
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
