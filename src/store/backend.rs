//! What a place for objects must do: hold bytes under a key, whole or not at all.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::blob::Blob;
use crate::host_limit::HostLimit;
use crate::request::Digest;

/// What is kept of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    /// Its bytes.
    Module,
    /// What is known of it.
    Record,
}

/// Where an object stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) kind: Kind,
    pub(super) digest: Digest,
}

impl Kind {
    /// Every kind, in the order in which a module is deleted.
    pub(super) const ALL: [Self; 2] = [Self::Module, Self::Record];

    /// The folder.
    pub(super) fn folder(self) -> &'static str {
        match self {
            Self::Module => "modules",
            Self::Record => "records",
        }
    }

    fn extension(self) -> &'static str {
        match self {
            Self::Module => ".wasm",
            Self::Record => ".json",
        }
    }

    /// The digest in a name of this kind; `None` for a name of something else.
    pub(super) fn digest(self, name: &str) -> Option<Digest> {
        Digest::from_hex(name.strip_suffix(self.extension())?)
    }
}

impl Key {
    /// The name in the folder.
    pub(super) fn name(self) -> String {
        format!("{}{}", self.digest.hex(), self.kind.extension())
    }
}

/// What to do about an object that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Leave it.
    Create,
    /// Replace it.
    Replace,
}

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// The object is there, whole, also after a crash.
    Written,
    /// One was there already, whatever it holds.
    Exists,
}

/// Why a place failed.
#[derive(Debug)]
pub(super) enum Fault {
    /// It has no room.
    Full(String),
    /// It refuses, for a reason that whoever runs the daemon has to see to.
    Refused {
        /// What that is, for callers too.
        why: String,
        /// Whether it holds for everything that may be asked.
        lasting: bool,
        /// All that was said.
        text: String,
    },
    /// It cannot be reached, or does not work.
    Down(String),
    /// The daemon has come to a limit of its own.
    Host(HostLimit),
}

/// A future of a backend.
pub(super) type Promise<'a, T> = BoxFuture<'a, Result<T, Fault>>;

/// A place for objects.
pub(super) trait Backend: Send + Sync {
    /// Looks whether the place can be used at all.
    fn check(&self) -> Promise<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Puts an object, whole or not at all.
    fn put(&self, key: Key, blob: Blob, mode: Mode) -> Promise<'_, Put>;

    /// An object of at most `most` bytes; `None` where there is none.
    fn get(&self, key: Key, most: u64) -> Promise<'_, Option<Bytes>>;

    /// The size of an object; `None` where there is none.
    fn size(&self, key: Key) -> Promise<'_, Option<u64>>;

    /// Deletes an object, whether there is one or not.
    fn delete(&self, key: Key) -> Promise<'_, ()>;

    /// The first `limit` digests after `after` that have a record, in order, where the place lists in order; all that
    /// are asked of so far do.
    fn records(&self, after: Option<Digest>, limit: usize) -> Promise<'_, Vec<Digest>>;

    /// How many objects of a kind there are, and their bytes.
    fn used(&self, kind: Kind) -> Promise<'_, (u64, u64)>;

    /// Digests of modules that were written longer ago than `age`.
    fn old_modules(&self, age: Duration) -> Promise<'_, Vec<Digest>>;
}
