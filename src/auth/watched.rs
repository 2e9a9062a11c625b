//! Files that are read again when they change.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use crate::request::Digest;

/// Bytes of such a file at the most.
const MOST: u64 = 4 << 20;

/// What the contents of some files come to.
type Meaning<T> = dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync;

/// What some files say now, or said when they last made sense.
pub struct Watched<T> {
    /// What they are, for the log.
    what: &'static str,
    paths: Vec<PathBuf>,
    meaning: Box<Meaning<T>>,
    value: ArcSwap<T>,
    /// Of the contents that were looked at last.
    seen: Mutex<Digest>,
}

impl<T> Watched<T> {
    /// Reads `paths`, which are `what`.
    ///
    /// # Errors
    /// Where they cannot be read, or mean nothing; without their contents.
    pub fn open(
        what: &'static str,
        paths: Vec<PathBuf>,
        meaning: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read(&paths).map_err(|error| format!("{what}: {error}"))?;
        let value = meaning(&contents).map_err(|error| format!("{what}: {error}"))?;
        Ok(Self {
            what,
            paths,
            meaning: Box::new(meaning),
            value: ArcSwap::from_pointee(value),
            seen: Mutex::new(digest(&contents)),
        })
    }

    /// What they say.
    pub fn get(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Reads them again, and says whether they say something else now. What makes no sense, such as a file that is half
    /// written, or a key that is not its certificate's yet, changes nothing.
    pub fn look(&self) -> bool {
        let contents = match read(&self.paths) {
            Ok(contents) => contents,
            Err(error) => {
                self.complain(Digest::of(error.to_string().as_bytes()), &error.to_string());
                return false;
            }
        };
        let now = digest(&contents);
        if now == *self.lock() {
            return false;
        }
        match (self.meaning)(&contents) {
            Ok(value) => {
                *self.lock() = now;
                self.value.store(Arc::new(value));
                tracing::info!(what = self.what, "read again");
                true
            }
            Err(error) => {
                self.complain(now, &error);
                false
            }
        }
    }

    /// Says once what is wrong.
    fn complain(&self, now: Digest, error: &str) {
        let mut seen = self.lock();
        if *seen != now {
            *seen = now;
            tracing::error!(
                what = self.what,
                error,
                "what was read before stays in force"
            );
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Digest> {
        // Nothing panics while it is held.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(paths: &[PathBuf]) -> io::Result<Vec<Vec<u8>>> {
    let one = |path: &PathBuf| {
        let named = |error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(named)?;
        file.take(MOST + 1).read_to_end(&mut bytes).map_err(named)?;
        if bytes.len() as u64 > MOST {
            return Err(named(io::Error::other("it is too large")));
        }
        Ok(bytes)
    };
    paths.iter().map(one).collect()
}

fn digest(contents: &[Vec<u8>]) -> Digest {
    let parts: Vec<u8> = contents
        .iter()
        .flat_map(|it| *Digest::of(it).as_bytes())
        .collect();
    Digest::of(&parts)
}
