//! What is done for a store beside its callers: counting what is in it, and removing bytes that nobody kept.

use std::time::Duration;

use super::backend::{Fault, Key, Kind};
use super::budget::{Amount, EACH};
use super::{Store, TRUSTED};

/// Bytes whose record never came, since their daemon was killed between the two, are removed when they are so old. They
/// are looked for as often.
const ORPHAN: Duration = Duration::from_secs(3600);

impl Store {
    /// Looks after the store for as long as it is polled.
    pub async fn tend(&self) {
        if !self.shared {
            // Nobody else writes to it, and nothing is left from before.
            return std::future::pending().await;
        }
        futures_util::future::join(self.keep_counting(), self.keep_sweeping()).await;
    }

    async fn keep_counting(&self) {
        loop {
            // What fails now is tried again; whoever needs the place is told then.
            if let Err(fault) = self.count().await {
                tracing::debug!(?fault, "the module store was not counted");
            }
            tokio::time::sleep(TRUSTED).await;
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

    /// Counts what is there.
    pub(super) async fn count(&self) -> Result<(), Fault> {
        let (modules, bytes) = self.backend.used(Kind::Module).await?;
        let (_, records) = self.backend.used(Kind::Record).await?;
        let amount = Amount {
            bytes: bytes + records + modules * EACH,
            modules,
        };
        self.budget.counted(amount, self.shared);
        Ok(())
    }

    /// Removes bytes that have no record and are not just about to get one. Whoever loads such a module at this moment
    /// looks for the bytes after the record is there, and writes them again.
    async fn sweep(&self) -> Result<(), Fault> {
        for digest in self.backend.old_modules(ORPHAN).await? {
            let key = |kind| Key { kind, digest };
            let _mine = self.writer(digest).await;
            if self.backend.size(key(Kind::Record)).await?.is_none() {
                self.backend.delete(key(Kind::Module)).await?;
                tracing::info!(%digest, "removed bytes of a module that was never kept");
            }
        }
        Ok(())
    }
}
