//! The text of all metrics, made once for scrapes that come at the same moment. How many of these
//! texts are in memory is bounded, since whoever reaches the listener may read them slowly.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::metrics::{Level, LevelGuard, MetricRegistry};
use crate::sync::lock;

/// How long a text is given to further scrapes.
const FRESH: Duration = Duration::from_millis(100);
/// The most texts that may be in memory at once, those included that slow readers still take.
const MAX_TEXTS: u64 = 16;

/// The latest text of each of the two formats.
pub(super) struct Scrapes {
    metrics: MetricRegistry,
    latest: [Mutex<Option<(Instant, Bytes)>>; 2],
    alive: Level,
}

/// Why there is no text for a scrape.
pub(super) enum ScrapeError {
    /// As many texts are in memory as may be.
    TooMany,
    /// A source could not write its metrics.
    Failed(fmt::Error),
}

/// A text, counted until its last reader has taken it.
struct ScrapeText {
    text: String,
    _alive: LevelGuard,
}

impl AsRef<[u8]> for ScrapeText {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Scrapes {
    /// Creates the texts of `metrics`, none of which is made yet.
    pub(super) fn new(metrics: MetricRegistry) -> Self {
        Self {
            metrics,
            latest: Default::default(),
            alive: Level::default(),
        }
    }

    /// Returns the text of all metrics, as it was a moment ago at the most.
    ///
    /// # Errors
    /// There are too many texts in memory, or a source fails.
    pub(super) fn all(&self, is_openmetrics: bool) -> Result<Bytes, ScrapeError> {
        let mut latest = lock(&self.latest[usize::from(is_openmetrics)]);
        if let Some((made, text)) = &*latest
            && made.elapsed() < FRESH
        {
            return Ok(text.clone());
        }
        // What is replaced is counted as long as somebody still reads it.
        *latest = None;
        let text = self.make(is_openmetrics, None)?;
        *latest = Some((Instant::now(), text.clone()));
        Ok(text)
    }

    /// Returns the text for a tenant, with the series of no other.
    ///
    /// # Errors
    /// Those of [`Self::all`].
    pub(super) fn of_tenant(&self, is_openmetrics: bool, name: &str) -> Result<Bytes, ScrapeError> {
        self.make(is_openmetrics, Some(name))
    }

    fn make(&self, is_openmetrics: bool, tenant: Option<&str>) -> Result<Bytes, ScrapeError> {
        let alive = self.alive.enter();
        if self.alive.get() > MAX_TEXTS {
            return Err(ScrapeError::TooMany);
        }
        let text = self.metrics.encode(is_openmetrics, tenant);
        Ok(Bytes::from_owner(ScrapeText {
            text: text.map_err(ScrapeError::Failed)?,
            _alive: alive,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_somebody_still_reads_are_bounded() {
        let scrapes = Scrapes::new(MetricRegistry::default());
        let read = || scrapes.of_tenant(false, "a");
        let mut held: Vec<Bytes> = (0..MAX_TEXTS).filter_map(|_| read().ok()).collect();
        assert_eq!(held.len() as u64, MAX_TEXTS);
        assert!(matches!(read(), Err(ScrapeError::TooMany)));
        assert!(matches!(scrapes.all(true), Err(ScrapeError::TooMany)));
        held.pop();
        // One is made, and given to all who come at the same moment.
        let first = scrapes.all(true).ok().unwrap();
        let second = scrapes.all(true).ok().unwrap();
        assert_eq!(first.as_ptr(), second.as_ptr());
        assert!(first.ends_with(b"# EOF\n"));
        drop((first, second, held));
        assert!(read().is_ok());
        // The latest stays for a moment.
        assert_eq!(scrapes.alive.get(), 1);
    }
}
