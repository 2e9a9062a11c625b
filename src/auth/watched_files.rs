//! Files that are read and parsed again when their contents change. What cannot be parsed either
//! leaves the last good value in force or revokes it.

use std::error::Error;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::model::request::Digest;
use crate::sync::lock;

/// The largest file that is read, in bytes.
const MOST: u64 = 4 << 20;
/// How often a fault of a file is logged again while it stays the same.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
/// The most faults of a file that are spelt out; the rest is a count.
const FAULTS_TOLD: usize = 8;

/// A parser of the contents of all files of one set.
type ParseFiles<T> = dyn Fn(&[Vec<u8>]) -> Result<Parsed<T>, FileSetError> + Send + Sync;

/// The outcome of parsing: the value, and the faults that did not prevent one.
#[derive(Debug)]
pub struct Parsed<T> {
    /// The value from everything that could be parsed.
    pub value: T,
    /// The faults in the rest, in words that hold nothing secret.
    pub faults: Vec<String>,
}

impl<T> From<T> for Parsed<T> {
    fn from(value: T) -> Self {
        Self {
            value,
            faults: Vec::new(),
        }
    }
}

/// Why a set of files cannot be used at the start, with what the files are for. It holds nothing of
/// what is in them.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct WatchedFilesError {
    what: &'static str,
    source: FileSetError,
}

/// Why files cannot be read or parsed.
#[derive(Debug, thiserror::Error)]
enum FileSetError {
    #[error("{}: {source}{}", path.display(), link_end.as_deref().map(denied).unwrap_or_default())]
    Unreadable {
        path: PathBuf,
        source: io::Error,
        /// Where the path leads to, if it is a symbolic link and access to it is denied.
        link_end: Option<PathBuf>,
    },
    #[error("{}: it is larger than {MOST} bytes", .0.display())]
    TooLarge(PathBuf),
    /// What the parser of these files says.
    #[error(transparent)]
    Malformed(Box<dyn Error + Send + Sync>),
    /// Faults that would not prevent a value, but do at the start.
    #[error("{}", listed(.0))]
    Faults(Vec<String>),
}

/// A value parsed from a set of files, kept up to date as they change.
pub struct WatchedFiles<T> {
    /// What the files are for, as the log names it.
    what: &'static str,
    paths: Vec<PathBuf>,
    parse: Box<ParseFiles<T>>,
    /// Makes the value that is in force when the files cannot be read or parsed. `None` keeps the
    /// last good value.
    fallback: Option<fn() -> T>,
    value: ArcSwap<T>,
    last: Mutex<LastLook>,
}

/// The state of the files when they were last checked.
struct LastLook {
    /// The digest of their contents, or of the error when they could not be read.
    seen: Digest,
    /// The fault of the files, and when it was last logged; `None` if there is none.
    complaint: Option<(String, Instant)>,
}

impl<T> WatchedFiles<T> {
    /// Reads `paths`, which the log calls `what`. After that, a change that cannot be read or
    /// parsed leaves the last good value in force. This suits what the daemon needs in order to go
    /// on, and what takes nothing from anybody.
    ///
    /// # Errors
    /// A file cannot be read, or anything in it cannot be parsed; the error does not contain what
    /// they hold.
    pub fn keep_last_good<E: Into<Box<dyn Error + Send + Sync>>>(
        what: &'static str,
        paths: Vec<PathBuf>,
        meaning: impl Fn(&[Vec<u8>]) -> Result<Parsed<T>, E> + Send + Sync + 'static,
    ) -> Result<Self, WatchedFilesError> {
        Self::open(what, paths, boxed(meaning), None)
    }

    /// Reads `paths`, which the log calls `what`. After that, what the files no longer say is no
    /// longer in force: if they cannot be read or parsed, nothing is. This suits credentials, so
    /// that what was taken out is refused whatever else is wrong.
    ///
    /// # Errors
    /// As [`Self::keep_last_good`].
    pub fn revoke_on_error<E: Into<Box<dyn Error + Send + Sync>>>(
        what: &'static str,
        paths: Vec<PathBuf>,
        meaning: impl Fn(&[Vec<u8>]) -> Result<Parsed<T>, E> + Send + Sync + 'static,
    ) -> Result<Self, WatchedFilesError>
    where
        T: Default,
    {
        Self::open(what, paths, boxed(meaning), Some(T::default))
    }

    /// Reads the files for the first time, when every fault is an error.
    fn open(
        what: &'static str,
        paths: Vec<PathBuf>,
        meaning: Box<ParseFiles<T>>,
        otherwise: Option<fn() -> T>,
    ) -> Result<Self, WatchedFilesError> {
        let named = |source| WatchedFilesError { what, source };
        let contents = read(&paths).map_err(named)?;
        let Parsed { value, faults } = meaning(&contents).map_err(named)?;
        if !faults.is_empty() {
            return Err(named(FileSetError::Faults(faults)));
        }
        Ok(Self {
            what,
            paths,
            parse: meaning,
            fallback: otherwise,
            value: ArcSwap::from_pointee(value),
            last: Mutex::new(LastLook {
                seen: digest(&contents),
                complaint: None,
            }),
        })
    }

    /// Returns the value that is in force.
    pub fn get(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Reads the files again, and returns whether another value is in force now. A fault is logged
    /// when it appears, and again from time to time while it stays.
    pub fn reload_if_changed(&self) -> bool {
        let contents = read(&self.paths);
        let seen = match &contents {
            Ok(contents) => digest(contents),
            Err(error) => Digest::of(error.to_string().as_bytes()),
        };
        let mut last = self.lock();
        if seen == last.seen {
            if let Some((complaint, told)) = &mut last.complaint
                && told.elapsed() >= TOLD_AGAIN
            {
                *told = Instant::now();
                tracing::error!(what = self.what, "{complaint}");
            }
            return false;
        }
        last.seen = seen;
        let (changed, complaint) = match contents.and_then(|contents| (self.parse)(&contents)) {
            Ok(Parsed { value, faults }) => {
                self.value.store(Arc::new(value));
                tracing::info!(what = self.what, "read again");
                let rest = (!faults.is_empty())
                    .then(|| format!("{}; the rest of it is in force", listed(&faults)));
                (true, rest)
            }
            Err(error) => match self.fallback {
                Some(otherwise) => {
                    self.value.store(Arc::new(otherwise()));
                    (true, Some(format!("{error}; nothing of it is in force")))
                }
                None => {
                    let kept = format!("{error}; what was read before stays in force");
                    (false, Some(kept))
                }
            },
        };
        if let Some(complaint) = &complaint {
            tracing::error!(what = self.what, "{complaint}");
        }
        last.complaint = complaint.map(|complaint| (complaint, Instant::now()));
        changed
    }

    /// Locks the state of the last check.
    fn lock(&self) -> std::sync::MutexGuard<'_, LastLook> {
        lock(&self.last)
    }
}

/// Wraps a parser so that its errors become those of the files.
fn boxed<T, E: Into<Box<dyn Error + Send + Sync>>>(
    meaning: impl Fn(&[Vec<u8>]) -> Result<Parsed<T>, E> + Send + Sync + 'static,
) -> Box<ParseFiles<T>> {
    Box::new(move |contents| {
        meaning(contents).map_err(|error| FileSetError::Malformed(error.into()))
    })
}

/// Joins the faults for a message, and counts those that are not spelt out.
fn listed(faults: &[String]) -> String {
    let mut told = faults[..faults.len().min(FAULTS_TOLD)].join("; ");
    if let Some(more) = faults.len().checked_sub(FAULTS_TOLD).filter(|it| *it > 0) {
        told.push_str(&format!("; and {more} more"));
    }
    told
}

/// Reads all files whole, and refuses one that is too large.
fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, FileSetError> {
    let one = |path: &PathBuf| {
        let unreadable = |source: io::Error| {
            let is_denied = source.kind() == io::ErrorKind::PermissionDenied;
            let real = is_denied.then(|| path.canonicalize().ok()).flatten();
            FileSetError::Unreadable {
                path: path.clone(),
                source,
                link_end: real.filter(|real| real != path),
            }
        };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        file.take(MOST + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() as u64 > MOST {
            return Err(FileSetError::TooLarge(path.clone()));
        }
        Ok(bytes)
    };
    paths.iter().map(one).collect()
}

/// Explains why access to a symbolic link may be denied that leads to `real` now.
fn denied(real: &Path) -> String {
    format!(
        ": it leads to {}, which its permissions keep from this daemon, or [hardening] does (hardening.read lets in \
         more than the folders on the way there at the start)",
        real.display()
    )
}

/// Returns one digest of the contents of all files.
fn digest(contents: &[Vec<u8>]) -> Digest {
    let parts: Vec<u8> = contents
        .iter()
        .flat_map(|it| *Digest::of(it).as_bytes())
        .collect();
    Digest::of(&parts)
}
