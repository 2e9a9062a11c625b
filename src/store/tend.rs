//! What is done for a store beside its callers: counting what is in it, and removing bytes that nobody kept.

use std::time::Duration;

use super::backend::{Fault, Key, Kind};
use super::budget::EACH;
use super::{Store, TRUSTED};

/// Bytes whose record never came, since their daemon was killed between the two, are removed when they are so old.
const ORPHAN: Duration = Duration::from_secs(3600);
/// How many rounds of counting there are between two of looking for such bytes.
const ROUNDS: u32 = 120;

impl Store {
    /// Looks after the store for as long as it is polled.
    pub async fn tend(&self) {
        let mut round = 0;
        loop {
            // What fails now is tried again in the next round; whoever needs the place is told then.
            if let Err(fault) = self.count().await {
                tracing::debug!(?fault, "the module store was not counted");
            }
            if round % ROUNDS == 0
                && let Err(fault) = self.sweep().await
            {
                tracing::debug!(?fault, "the module store was not swept");
            }
            round += 1;
            if !self.shared {
                // Nobody else writes to it.
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(TRUSTED).await;
        }
    }

    /// Counts what is there.
    pub(super) async fn count(&self) -> Result<(), Fault> {
        let (modules, bytes) = self.backend.used(Kind::Module).await?;
        let (_, records) = self.backend.used(Kind::Record).await?;
        self.budget.counted(bytes + records + modules * EACH);
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
