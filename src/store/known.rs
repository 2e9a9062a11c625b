//! What is known of a module: its record, and what this daemon has seen of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::module::Description;
use crate::request::{Digest, Labels};

/// What is known of a module that is kept. Fields that later versions add must have a default: daemons of several
/// versions read each other's records.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The name given when it was loaded.
    pub name: String,
    /// The labels given when it was loaded.
    pub labels: Labels,
    /// Bytes as received.
    pub size: u64,
    /// When it was loaded, in microseconds since 1970.
    pub(super) loaded: u64,
    /// What it is.
    pub description: Description,
}

/// A module that is kept, as this daemon knows it.
#[derive(Debug)]
pub struct Known {
    /// Its digest.
    pub digest: Digest,
    /// Its record.
    pub record: Record,
    /// When it last ran or was loaded here, in microseconds since 1970.
    pub(super) used: AtomicU64,
    /// When the place last said that it is there, in microseconds since 1970.
    pub(super) seen: AtomicU64,
    /// When this daemon last wrote its bytes, or read and checked them, in microseconds since 1970; 0: it did not, or
    /// they were damaged.
    pub(super) checked: AtomicU64,
}

impl Known {
    /// When it last ran or was loaded, as far as this daemon knows.
    pub fn last_used(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.used.load(Ordering::Relaxed))
    }

    /// Notes that it is used.
    pub fn touch(&self) {
        self.used.store(now(), Ordering::Relaxed);
    }

    /// The same without its exports and imports.
    pub(super) fn summary(&self) -> Self {
        let copy = |it: &AtomicU64| AtomicU64::new(it.load(Ordering::Relaxed));
        Self {
            digest: self.digest,
            record: Record {
                name: self.record.name.clone(),
                labels: self.record.labels.clone(),
                size: self.record.size,
                loaded: self.record.loaded,
                description: Description {
                    component: self.record.description.component,
                    name: self.record.description.name.clone(),
                    memory_minimum_pages: self.record.description.memory_minimum_pages,
                    exports: Vec::new(),
                    imports: Vec::new(),
                },
            },
            used: copy(&self.used),
            seen: copy(&self.seen),
            checked: copy(&self.checked),
        }
    }

    /// About how many bytes this takes.
    pub(super) fn weight(&self) -> u32 {
        const ENTRY: usize = 1024;
        let labels: usize = self
            .record
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len() + 64)
            .sum();
        let weight = self.record.description.weight() + self.record.name.len() + labels + ENTRY;
        u32::try_from(weight).unwrap_or(u32::MAX)
    }
}

/// Microseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// Whether `then` is no longer ago than `within`.
pub(super) fn is_fresh(then: u64, within: Duration) -> bool {
    u128::from(now().saturating_sub(then)) < within.as_micros()
}
