//! Where module bytes live: in memory, by digest, until the daemon ends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use crate::refusal::{Reason, Refusal};
use crate::request::{Digest, Labels};

/// A module that is kept.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Its bytes as received.
    pub wasm: Bytes,
    /// The name given when it was loaded.
    pub name: String,
    /// The labels given when it was loaded.
    pub labels: Labels,
    /// When it last ran or was loaded.
    pub last_used: SystemTime,
}

/// Modules by digest, within a budget of bytes. It evicts nothing: what was acknowledged stays.
#[derive(Clone, Debug)]
pub struct Store {
    budget: u64,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    modules: HashMap<Digest, Stored>,
    bytes: u64,
}

impl Store {
    /// Of `budget` bytes.
    pub fn new(budget: u64) -> Self {
        Self {
            budget,
            inner: Arc::default(),
        }
    }

    /// The bytes of a module, which counts as using it.
    pub fn take(&self, digest: Digest) -> Option<Bytes> {
        let mut inner = self.lock();
        let stored = inner.modules.get_mut(&digest)?;
        stored.last_used = SystemTime::now();
        Some(stored.wasm.clone())
    }

    /// Keeps a module. One that is there already gets the new name and labels.
    ///
    /// # Errors
    /// `STORE_FULL` where it does not fit the budget.
    pub fn keep(
        &self,
        digest: Digest,
        wasm: &Bytes,
        name: String,
        labels: Labels,
    ) -> Result<Stored, Refusal> {
        // A copy: the request's buffer is larger, and is charged until it goes. Made before the lock is taken.
        let copy = Bytes::copy_from_slice(wasm);
        let mut inner = self.lock();
        let last_used = SystemTime::now();
        if let Some(stored) = inner.modules.get_mut(&digest) {
            stored.name = name;
            stored.labels = labels;
            stored.last_used = last_used;
            return Ok(stored.clone());
        }
        let bytes = inner.bytes.saturating_add(wasm.len() as u64);
        if bytes > self.budget {
            return Err(Refusal::new(
                Reason::StoreFull,
                format!(
                    "the module store is full: {} of {} bytes are used, {} more are needed (store.budget)",
                    inner.bytes,
                    self.budget,
                    wasm.len()
                ),
            )
            .with("store", "memory:")
            .with("asked", wasm.len())
            .with("allowed", self.budget.saturating_sub(inner.bytes)));
        }
        let stored = Stored {
            wasm: copy,
            name,
            labels,
            last_used,
        };
        inner.bytes = bytes;
        inner.modules.insert(digest, stored.clone());
        Ok(stored)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
