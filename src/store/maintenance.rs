//! Background maintenance of a store: counting what is in it, and removing bytes that have no
//! record.

use std::time::Duration;

use super::backend::{BackendError, ObjectKey, ObjectKind};
use super::budget::{EACH, StoredAmount};
use super::{RECORD_FRESH_FOR, Store};

/// Age at which bytes without a record are removed; their daemon was killed between the two writes.
/// It is also the interval of the sweep.
const ORPHAN: Duration = Duration::from_secs(3600);

impl Store {
    /// Returns what the store holds, as it was last counted; `None` where it has not been counted
    /// yet, because its place has not answered.
    pub fn stored(&self) -> Option<StoredAmount> {
        let counted = self.budget.stored();
        // What is in memory is counted with the first module.
        counted.or_else(|| (!self.shared).then(StoredAmount::default))
    }

    /// Returns the bytes that all stores of the place may hold together.
    pub fn capacity(&self) -> u64 {
        self.budget.capacity()
    }

    /// Maintains the store, by counting and sweeping it, for as long as the future is polled.
    pub async fn run_maintenance(&self) {
        if !self.shared {
            // Nobody else writes to a store in memory, and nothing is left in it from before.
            return std::future::pending().await;
        }
        futures_util::future::join(self.keep_counting(), self.keep_sweeping()).await;
    }

    async fn keep_counting(&self) {
        loop {
            // A failure is tried again at the next round. Whoever needs the backend meanwhile gets
            // the error.
            if let Err(fault) = self.count().await {
                tracing::debug!(?fault, "the module store was not counted");
            }
            tokio::time::sleep(RECORD_FRESH_FOR).await;
        }
    }

    async fn keep_sweeping(&self) {
        loop {
            if let Err(fault) = self.sweep().await {
                tracing::debug!(?fault, "the module store was not swept");
            }
            tokio::time::sleep(ORPHAN).await;
        }
    }

    /// Counts what the backend holds, and notes it in the budget.
    pub(super) async fn count(&self) -> Result<(), BackendError> {
        let (modules, bytes) = self.backend.used(ObjectKind::Module).await?;
        let (_, records) = self.backend.used(ObjectKind::Record).await?;
        let amount = StoredAmount {
            bytes: bytes + records + modules * EACH,
            modules,
        };
        self.budget.counted(amount, self.shared);
        Ok(())
    }

    /// Removes bytes that have no record and are too old to be about to get one. Whoever loads such
    /// a module at this moment checks for the bytes after writing the record, and writes them
    /// again.
    async fn sweep(&self) -> Result<(), BackendError> {
        for digest in self.backend.old_modules(ORPHAN).await? {
            let key = |kind| ObjectKey { kind, digest };
            let _mine = self.lock_writer(digest).await;
            if self.backend.size(key(ObjectKind::Record)).await?.is_none() {
                self.backend.delete(key(ObjectKind::Module)).await?;
                tracing::info!(%digest, "removed bytes of a module that was never kept");
            }
        }
        Ok(())
    }
}
