//! What is known of a module: its record in the backend, and what this daemon has seen of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::model::module::ModuleDescription;
use crate::model::request::{Digest, Labels};

/// The record that is stored beside a module's bytes. Fields that later versions add must have a
/// default, because daemons of several versions read each other's records.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ModuleRecord {
    /// The name that was given when the module was loaded.
    pub name: String,
    /// The labels that were given when the module was loaded.
    pub labels: Labels,
    /// Size of the module as received, in bytes.
    pub size: u64,
    /// When the module was loaded, in microseconds since 1970.
    pub(super) loaded: u64,
    /// The module's exports, imports and other properties.
    pub description: ModuleDescription,
}

/// The cached entry of a module: its record, and when this daemon last used, confirmed and verified
/// it.
#[derive(Debug)]
pub struct ModuleEntry {
    /// The digest of the module's bytes.
    pub digest: Digest,
    /// The record that the backend holds.
    pub record: ModuleRecord,
    /// When the module was last run or loaded here, in microseconds since 1970.
    pub(super) used: AtomicU64,
    /// When the backend last confirmed that the module is there, in microseconds since 1970.
    pub(super) confirmed_at: AtomicU64,
    /// When this daemon last wrote the bytes, or read and verified them, in microseconds since
    /// 1970. It is 0 if the daemon did neither, or if the bytes were damaged.
    pub(super) verified_at: AtomicU64,
}

impl ModuleEntry {
    /// Returns the name under which the module was loaded, for people; empty if it has none.
    pub fn name(&self) -> &str {
        &self.record.name
    }

    /// Returns when the module was last run or loaded, as far as this daemon knows.
    pub fn last_used(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_micros(self.used.load(Ordering::Relaxed))
    }

    /// Marks the module as used now.
    pub fn touch(&self) {
        self.used.store(now(), Ordering::Relaxed);
    }

    /// Copies the entry without the module's exports and imports.
    pub(super) fn summary(&self) -> Self {
        let copy = |it: &AtomicU64| AtomicU64::new(it.load(Ordering::Relaxed));
        Self {
            digest: self.digest,
            record: ModuleRecord {
                name: self.record.name.clone(),
                labels: self.record.labels.clone(),
                size: self.record.size,
                loaded: self.record.loaded,
                description: ModuleDescription {
                    component: self.record.description.component,
                    name: self.record.description.name.clone(),
                    memory_minimum_pages: self.record.description.memory_minimum_pages,
                    exports: Vec::new(),
                    imports: Vec::new(),
                },
            },
            used: copy(&self.used),
            confirmed_at: copy(&self.confirmed_at),
            verified_at: copy(&self.verified_at),
        }
    }

    /// Estimates how many bytes of memory the entry takes, for the cache.
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

/// Returns the present time in microseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_micros()).unwrap_or(u64::MAX)
}

/// Reports whether `then`, in microseconds since 1970, is no longer ago than `within`.
pub(super) fn is_fresh(then: u64, within: Duration) -> bool {
    u128::from(now().saturating_sub(then)) < within.as_micros()
}
