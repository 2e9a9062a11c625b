//! Files that are read again when they change.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::request::Digest;

/// Bytes of such a file at the most.
const MOST: u64 = 4 << 20;
/// How often what is wrong with a file is told again while it stays so.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
/// The faults of a file that are spelt out; the rest is a count.
const FAULTS_TOLD: usize = 8;

/// What the contents of some files come to.
type Meaning<T> = dyn Fn(&[Vec<u8>]) -> Result<Parsed<T>, String> + Send + Sync;

/// What makes sense of some files, and what does not.
#[derive(Debug)]
pub struct Parsed<T> {
    /// What makes sense, which is in force.
    pub value: T,
    /// What does not, each in words that hold nothing secret.
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

/// What some files say now.
pub struct Watched<T> {
    /// What they are, for the log.
    what: &'static str,
    paths: Vec<PathBuf>,
    meaning: Box<Meaning<T>>,
    /// What is in force where they cannot be read or make no sense at all; `None`: what was read
    /// before.
    otherwise: Option<fn() -> T>,
    value: ArcSwap<T>,
    last: Mutex<LastLook>,
}

/// What was seen when the files were looked at last.
struct LastLook {
    /// Of their contents, or of the error.
    seen: Digest,
    /// What is wrong with them, and when that was told.
    complaint: Option<(String, Instant)>,
}

impl<T> Watched<T> {
    /// Reads `paths`, which are `what`. Once they are open, a change that cannot be read or makes no
    /// sense leaves in force what was read before: for what is needed to go on at all, and takes
    /// nothing from anybody.
    ///
    /// # Errors
    /// Where they cannot be read, or anything in them makes no sense; without their contents.
    pub fn keeping(
        what: &'static str,
        paths: Vec<PathBuf>,
        meaning: impl Fn(&[Vec<u8>]) -> Result<Parsed<T>, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        Self::open(what, paths, Box::new(meaning), None)
    }

    /// Reads `paths`, which are `what`. What they do not say any more is not in force any more: where
    /// they cannot be read, or make no sense at all, that is nothing. For credentials, so that what
    /// was taken out is refused whatever else is wrong.
    ///
    /// # Errors
    /// As [`Self::keeping`].
    pub fn revoking(
        what: &'static str,
        paths: Vec<PathBuf>,
        meaning: impl Fn(&[Vec<u8>]) -> Result<Parsed<T>, String> + Send + Sync + 'static,
    ) -> Result<Self, String>
    where
        T: Default,
    {
        Self::open(what, paths, Box::new(meaning), Some(T::default))
    }

    fn open(
        what: &'static str,
        paths: Vec<PathBuf>,
        meaning: Box<Meaning<T>>,
        otherwise: Option<fn() -> T>,
    ) -> Result<Self, String> {
        let named = |error: String| format!("{what}: {error}");
        let contents = read(&paths).map_err(named)?;
        let Parsed { value, faults } = meaning(&contents).map_err(named)?;
        if !faults.is_empty() {
            return Err(named(listed(&faults)));
        }
        Ok(Self {
            what,
            paths,
            meaning,
            otherwise,
            value: ArcSwap::from_pointee(value),
            last: Mutex::new(LastLook {
                seen: digest(&contents),
                complaint: None,
            }),
        })
    }

    /// What they say.
    pub fn get(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Reads them again, and says whether something else is in force now. What is wrong with them is
    /// told in the log when it comes to be, and now and then while it stays.
    pub fn look(&self) -> bool {
        let contents = read(&self.paths);
        let seen = match &contents {
            Ok(contents) => digest(contents),
            Err(error) => Digest::of(error.as_bytes()),
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
        let (changed, complaint) = match contents.and_then(|contents| (self.meaning)(&contents)) {
            Ok(Parsed { value, faults }) => {
                self.value.store(Arc::new(value));
                tracing::info!(what = self.what, "read again");
                let rest = (!faults.is_empty())
                    .then(|| format!("{}; the rest of it is in force", listed(&faults)));
                (true, rest)
            }
            Err(error) => match self.otherwise {
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

    fn lock(&self) -> std::sync::MutexGuard<'_, LastLook> {
        // Nothing panics while it is held.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listed(faults: &[String]) -> String {
    let mut told = faults[..faults.len().min(FAULTS_TOLD)].join("; ");
    if let Some(more) = faults.len().checked_sub(FAULTS_TOLD).filter(|it| *it > 0) {
        told.push_str(&format!("; and {more} more"));
    }
    told
}

fn read(paths: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let one = |path: &PathBuf| {
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|error| unreadable(path, &error))?;
        file.take(MOST + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| unreadable(path, &error))?;
        if bytes.len() as u64 > MOST {
            return Err(format!(
                "{}: it is larger than {MOST} bytes",
                path.display()
            ));
        }
        Ok(bytes)
    };
    paths.iter().map(one).collect()
}

/// Says why a file cannot be read, and of a link to one that is denied where it leads to by now.
fn unreadable(path: &Path, error: &io::Error) -> String {
    let told = format!("{}: {error}", path.display());
    if error.kind() != io::ErrorKind::PermissionDenied {
        return told;
    }
    match path.canonicalize() {
        Ok(real) if real != path => format!(
            "{told}: it leads to {}, which its permissions keep from this daemon, or [hardening] does (hardening.read lets in \
             more than the folders on the way there at the start)",
            real.display()
        ),
        Ok(_) | Err(_) => told,
    }
}

fn digest(contents: &[Vec<u8>]) -> Digest {
    let parts: Vec<u8> = contents
        .iter()
        .flat_map(|it| *Digest::of(it).as_bytes())
        .collect();
    Digest::of(&parts)
}
