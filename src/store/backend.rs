//! The interface of a storage backend: it holds objects under a key, each of them whole or not at
//! all.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::blob::Blob;
use crate::host_limit::HostLimit;
use crate::model::request::Digest;

/// The two kinds of object that are kept for each module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ObjectKind {
    /// The WebAssembly bytes of the module.
    Module,
    /// The JSON record of what is known of the module.
    Record,
}

/// The key of an object in a backend: a module's digest and the kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ObjectKey {
    pub(super) kind: ObjectKind,
    pub(super) digest: Digest,
}

impl ObjectKind {
    /// Every kind, in the order in which a module's objects are deleted.
    pub(super) const ALL: [Self; 2] = [Self::Module, Self::Record];

    /// Returns the name of the folder (or key prefix) for objects of this kind.
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

    /// Parses the digest from an object name of this kind; `None` for any other name.
    pub(super) fn digest(self, name: &str) -> Option<Digest> {
        Digest::from_hex(name.strip_suffix(self.extension())?)
    }
}

impl ObjectKey {
    /// Returns the object's name within its folder.
    pub(super) fn name(self) -> String {
        format!("{}{}", self.digest.hex(), self.kind.extension())
    }
}

/// What a put does when there is an object of that name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WriteMode {
    /// Leaves the existing object alone.
    Create,
    /// Replaces the existing object.
    Replace,
}

/// The outcome of a put that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PutOutcome {
    /// The object was written as a whole, and survives a crash.
    Written,
    /// An object was there already; its contents were not looked at.
    Exists,
}

/// Why a backend could not do what was asked.
#[derive(Debug)]
pub(super) enum BackendError {
    /// The backend has no room left; the text is the underlying error.
    Full(String),
    /// The backend refuses the request, for a reason that the daemon's operator has to see to.
    Refused {
        /// The reason, in words that callers may read too.
        why: String,
        /// Whether the reason holds for every request, rather than for this one alone.
        lasting: bool,
        /// The whole text of the error, for the log.
        text: String,
    },
    /// The backend cannot be reached, or does not work.
    Down(String),
    /// The daemon has reached a resource limit of its own process or host.
    Host(HostLimit),
}

/// The future that a backend's methods return.
pub(super) type BackendFuture<'a, T> = BoxFuture<'a, Result<T, BackendError>>;

/// A storage backend, such as a folder or an object store.
pub(super) trait Backend: Send + Sync {
    /// Checks whether the backend can be used at all.
    fn check(&self) -> BackendFuture<'_, ()> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Puts an object, as a whole or not at all.
    fn put(&self, key: ObjectKey, blob: Blob, mode: WriteMode) -> BackendFuture<'_, PutOutcome>;

    /// Reads an object; `None` where there is none. Of one that is larger than `most` bytes, not
    /// much more than that is read.
    fn get(&self, key: ObjectKey, most: u64) -> BackendFuture<'_, Option<Bytes>>;

    /// Returns the size of an object in bytes; `None` where there is none.
    fn size(&self, key: ObjectKey) -> BackendFuture<'_, Option<u64>>;

    /// Deletes an object, and succeeds also where there is none.
    fn delete(&self, key: ObjectKey) -> BackendFuture<'_, ()>;

    /// Returns the first `limit` digests after `after` that have a record. They are in order if the
    /// backend lists in order, as all that have been used so far do.
    fn records(&self, after: Option<Digest>, limit: usize) -> BackendFuture<'_, Vec<Digest>>;

    /// Returns how many objects of a kind there are, and their bytes in total.
    fn used(&self, kind: ObjectKind) -> BackendFuture<'_, (u64, u64)>;

    /// Returns the digests of modules whose bytes were written longer ago than `age`.
    fn old_modules(&self, age: Duration) -> BackendFuture<'_, Vec<Digest>>;
}
