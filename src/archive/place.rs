//! Where segments are: a folder of the host, or an object store.

use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{Error, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::store::{
    ClientTimes, ObjectStoreError, StoreLocation, cannot_create_only, object_store_client,
};

/// The longest that one request may take, without what it reads or writes.
const REQUEST: Duration = Duration::from_secs(15);
/// The bytes that a request may read or write in a second at the slowest.
const SLOWEST: u64 = 64 << 10;
/// The times of the client, which end no request here: each has a limit of its own. A client that
/// waits for the answer to a large segment for a shorter time gives the segment up while it is
/// still being sent, again and again.
const CLIENT: ClientTimes = ClientTimes {
    request: Duration::from_secs(3600),
    read: Duration::from_secs(3600),
};
/// How often it is tried to create an object that is said to be there, and is not.
const CREATED_AGAIN: usize = 3;
/// The mode of folders that the daemon creates: what guests wrote is nobody else's.
const PRIVATE: u32 = 0o700;
/// The folder of an archive that has all of its segments.
const RUNS: &str = "runs";
/// A file in it, where the archive is a folder of the host.
const KEPT: &str = ".keep";
/// The name of an object that there never is.
const NOTHING: &str = "runs/nothing";
/// The key that says where the archive is.
const KEY: &str = "runs.archive";

/// Why an archive cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveOpenError {
    /// The folder cannot be made or used.
    #[error("{key}: {}: {source}", path.display())]
    Folder {
        /// The key that names the folder.
        key: &'static str,
        /// The folder that was to be used.
        path: std::path::PathBuf,
        /// What is wrong with it.
        source: std::io::Error,
    },
    /// The client of the object store cannot be created.
    #[error("runs.archive: {0}")]
    Objects(#[from] ObjectStoreError),
    /// The library does not take the folder.
    #[error("runs.archive: {0}")]
    Place(#[from] Error),
    /// There is no thread or memory for what writes it.
    #[error("runs.archive: {0}")]
    Host(std::io::Error),
    /// A place that is no archive.
    #[error("runs.archive: \"memory:\" does not outlive the daemon")]
    Memory,
}

/// Why the archive did not do what was asked. The text is for callers; the log has the whole error.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum ArchiveError {
    /// It cannot be reached, or refuses this daemon.
    #[error("the archive of runs {0}")]
    Unavailable(&'static str),
    /// A segment is not as it was written.
    #[error("a part of the archive is damaged: {name}: {why}")]
    Damaged {
        /// The segment, as it is named in the archive.
        name: String,
        /// What is wrong with it.
        why: String,
    },
}

/// An object of the archive.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) path: Path,
    pub(super) size: u64,
}

/// The place of an archive.
#[derive(Debug)]
pub(super) struct Place {
    store: Arc<dyn ObjectStore>,
    /// The folder of all segments, where the place is a folder of the host.
    folder: Option<std::path::PathBuf>,
}

/// Creates a folder that only the daemon's user can read, unless it is there.
///
/// # Errors
/// It cannot be created.
pub(super) fn create_folder(
    key: &'static str,
    path: &std::path::Path,
) -> Result<(), ArchiveOpenError> {
    let made = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE)
        .create(path);
    made.map_err(|source| ArchiveOpenError::Folder {
        key,
        path: path.to_owned(),
        source,
    })
}

impl Place {
    /// Opens the place, which is not asked anything yet.
    ///
    /// # Errors
    /// The folder cannot be made, or the provider does not accept what it is given.
    pub(super) fn open(location: &StoreLocation) -> Result<Self, ArchiveOpenError> {
        let mut folder = None;
        let store: Arc<dyn ObjectStore> = match location {
            StoreLocation::Memory => return Err(ArchiveOpenError::Memory),
            StoreLocation::Directory(path) => {
                // All that is in it is below this one, which is private however the other is.
                let runs = path.join(RUNS);
                create_folder(KEY, &runs)?;
                // Folders that have become empty are deleted, but this one is to stay as it is.
                let kept = runs.join(KEPT);
                std::fs::write(&kept, "").map_err(|source| ArchiveOpenError::Folder {
                    key: KEY,
                    path: kept,
                    source,
                })?;
                folder = Some(runs);
                Arc::new(LocalFileSystem::new_with_prefix(path)?.with_automatic_cleanup(true))
            }
            StoreLocation::Objects { url, variables } => {
                object_store_client(KEY, url, variables, CLIENT)?
            }
        };
        Ok(Self { store, folder })
    }

    /// Returns the folder of all segments, where the archive is a folder of the host.
    pub(super) fn folder(&self) -> Option<&std::path::Path> {
        self.folder.as_deref()
    }

    /// Writes an object, whole or not at all.
    ///
    /// # Errors
    /// It was not written, as far as is known.
    pub(super) async fn put(&self, path: &Path, bytes: Bytes) -> Result<(), ArchiveError> {
        let limit = limit_for(bytes.len() as u64);
        let put = self.store.put(path, PutPayload::from(bytes));
        let put = asked_within(limit, put).await?;
        put.map(drop).map_err(|error| told("write", &error))
    }

    /// Writes an object, unless there is one of that name; reports whether it was written.
    ///
    /// # Errors
    /// It was not written, as far as is known.
    pub(super) async fn create(&self, path: &Path, bytes: Bytes) -> Result<bool, ArchiveError> {
        let limit = limit_for(bytes.len() as u64);
        for _ in 0..CREATED_AGAIN {
            let mode = PutOptions::from(PutMode::Create);
            let payload = PutPayload::from(bytes.clone());
            let put = self.store.put_opts(path, payload, mode);
            match asked_within(limit, put).await? {
                Ok(_) => return Ok(true),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {}
                // The server, or the file system, cannot create only what is absent.
                Err(error) if cannot_create_only(&error) || self.has_no_links(&error) => {
                    if self.has(path).await? {
                        return Ok(false);
                    }
                    return self.put(path, bytes).await.map(|()| true);
                }
                Err(error) => return Err(told("write", &error)),
            }
            // A server also says so while somebody else writes or deletes it, who may not succeed.
            if self.has(path).await? {
                return Ok(false);
            }
        }
        Err(ArchiveError::Unavailable(
            "is being changed by others again and again",
        ))
    }

    /// Reports whether there is an object.
    ///
    /// # Errors
    /// The archive does not answer.
    pub(super) async fn has(&self, path: &Path) -> Result<bool, ArchiveError> {
        let found = present(asked_raw(self.store.head(path)).await)?;
        Ok(found.is_some())
    }

    /// Reports whether an error may be that of a file system without hard links, with which a
    /// folder creates what is absent.
    fn has_no_links(&self, error: &Error) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let (Some(error), true) = (cause, self.folder.is_some()) {
            if let Some(error) = error.downcast_ref::<std::io::Error>() {
                let kinds = [ErrorKind::PermissionDenied, ErrorKind::Unsupported];
                return kinds.contains(&error.kind());
            }
            cause = error.source();
        }
        false
    }

    /// Reads a part of an object; `None` where there is none.
    ///
    /// # Errors
    /// The archive does not answer.
    pub(super) async fn part(
        &self,
        path: &Path,
        range: Range<u64>,
    ) -> Result<Option<Bytes>, ArchiveError> {
        let limit = limit_for(range.end.saturating_sub(range.start));
        present(asked_within(limit, self.store.get_range(path, range)).await)
    }

    /// Reads the bytes that an object had when it was listed; `None` where there is none now.
    ///
    /// # Errors
    /// The archive does not answer.
    pub(super) async fn whole(&self, object: &Object) -> Result<Option<Bytes>, ArchiveError> {
        self.part(&object.path, 0..object.size).await
    }

    /// Lists the objects below a folder, in any order.
    ///
    /// # Errors
    /// The archive does not answer.
    pub(super) async fn objects(&self, folder: &Path) -> Result<Vec<Object>, ArchiveError> {
        let mut listing = self.store.list(Some(folder));
        let mut objects = Vec::new();
        // A long listing comes in pages, each of which has its time.
        while let Some(meta) = asked("list", listing.try_next()).await? {
            objects.push(Object {
                path: meta.location,
                size: meta.size,
            });
        }
        if objects.is_empty() {
            self.check().await?;
        }
        Ok(objects)
    }

    /// Lists the folders directly in a folder, in the order of their names.
    ///
    /// # Errors
    /// The archive does not answer.
    pub(super) async fn folders(&self, folder: &Path) -> Result<Vec<Path>, ArchiveError> {
        let listed = self.store.list_with_delimiter(Some(folder));
        let mut folders = asked("list", listed).await?.common_prefixes;
        if folders.is_empty() {
            self.check().await?;
        }
        folders.sort();
        Ok(folders)
    }

    /// Checks that what answers is an archive: something that answers every request, as a web page
    /// may, has an empty listing too.
    async fn check(&self) -> Result<(), ArchiveError> {
        if let Some(folder) = &self.folder {
            return match folder.is_dir() {
                true => Ok(()),
                false => Err(ArchiveError::Unavailable("is not where runs.archive says")),
            };
        }
        let nothing = Path::from(NOTHING);
        match present(asked_raw(self.store.head(&nothing)).await)? {
            None => Ok(()),
            Some(_) => Err(ArchiveError::Unavailable("has what nobody has put there")),
        }
    }

    /// Deletes an object, and succeeds also where there is none.
    ///
    /// # Errors
    /// The archive does not answer, or refuses.
    pub(super) async fn delete(&self, path: &Path) -> Result<(), ArchiveError> {
        present(asked_raw(self.store.delete(path)).await).map(drop)
    }
}

/// The outcome of a request: an answer of the library, or why there is none.
type Answer<T> = Result<Result<T, Error>, ArchiveError>;

/// Waits for the answer to a request as long as a working place takes. The library may panic for
/// what cannot be sent in a header.
async fn asked_raw<T>(request: impl Future<Output = Result<T, Error>>) -> Answer<T> {
    asked_within(REQUEST, request).await
}

/// Returns the longest that a request may take which reads or writes so many bytes.
fn limit_for(bytes: u64) -> Duration {
    REQUEST + Duration::from_secs(bytes / SLOWEST)
}

async fn asked_within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, Error>>,
) -> Answer<T> {
    let request = AssertUnwindSafe(request).catch_unwind();
    match tokio::time::timeout(limit, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(ArchiveError::Unavailable("was asked what cannot be sent")),
        Err(_) => {
            tracing::debug!(
                seconds = limit.as_secs(),
                "no answer of the archive of runs"
            );
            Err(ArchiveError::Unavailable("does not answer"))
        }
    }
}

async fn asked<T>(
    what: &'static str,
    request: impl Future<Output = Result<T, Error>>,
) -> Result<T, ArchiveError> {
    asked_raw(request)
        .await?
        .map_err(|error| told(what, &error))
}

/// Writes an error to the log, and returns what it means to whoever asked for a run.
fn told(what: &'static str, error: &Error) -> ArchiveError {
    tracing::debug!(%error, "the archive of runs does not {what}");
    unavailable(error)
}

fn present<T>(answer: Answer<T>) -> Result<Option<T>, ArchiveError> {
    match answer? {
        Ok(value) => Ok(Some(value)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(told("answer", &error)),
    }
}

/// Returns what an error means to whoever asked for a run.
fn unavailable(error: &Error) -> ArchiveError {
    let why = if matches!(
        error,
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. }
    ) {
        "refuses this daemon"
    } else if matches!(error, Error::NotFound { .. }) {
        "is not where runs.archive says"
    } else {
        "does not answer as it should"
    };
    ArchiveError::Unavailable(why)
}
