//! Deletes runs that have ended, by id or by what a selector matches: a few at a time, so that
//! those who start and end runs meanwhile do not wait.

use std::time::Instant;

use super::deletion::{DeletionReport, MAX_TOLD_DELETED, RunDeletion};
use super::registry::{DeletedBatch, Registry};
use super::tenant::Tenant;
use super::{Runner, audit, with_deadline};
use crate::model::refusal::Refusal;
use crate::model::request::RunId;

/// The most runs of [`RunDeletion::Ids`] that are looked up before the lock is released for others.
const BATCH: usize = 64;

/// A deletion that goes on. Dropping it writes the line of what was deleted to the audit, also
/// where the caller leaves or its deadline passes.
struct DeletionInProgress<'a> {
    instance: &'a str,
    tenant: &'a str,
    caller: &'a str,
    deletion: &'a RunDeletion,
    dry_run: bool,
    report: DeletionReport,
}

impl Runner {
    /// Deletes a tenant's runs that have ended: from the history, with their output. Runs that go
    /// on are counted, and ids of runs that are not known are passed over. Runs that are asked for
    /// after this began are not touched. In a dry run, nothing changes. `caller` is told to the
    /// audit.
    ///
    /// # Errors
    /// `NOT_STARTED` where the caller's deadline passes first; some runs may be gone then.
    pub async fn delete_runs(
        &self,
        tenant: &Tenant,
        caller: &str,
        deletion: &RunDeletion,
        dry_run: bool,
        deadline: Option<Instant>,
    ) -> Result<DeletionReport, Refusal> {
        let mut progress = DeletionInProgress {
            instance: &self.instance,
            tenant: &tenant.name,
            caller,
            deletion,
            dry_run,
            report: DeletionReport::default(),
        };
        let work = async {
            progress.delete(&tenant.registry).await;
            Ok::<_, Refusal>(())
        };
        with_deadline(deadline, work).await?;
        Ok(progress.finish())
    }

    /// Writes to the audit what was deleted of the archive.
    pub fn audit_deletion(
        &self,
        tenant: &Tenant,
        caller: &str,
        deletion: &RunDeletion,
        report: &DeletionReport,
    ) {
        audit::deleted(&tenant.name, caller, deletion, report);
    }
}

impl DeletionInProgress<'_> {
    /// Deletes a few runs at a time, and lets others have the thread in between.
    async fn delete(&mut self, registry: &Registry) {
        match self.deletion {
            RunDeletion::Ids(ids) => {
                let own = ids.iter().filter(|id| id.instance() == self.instance);
                let mut numbers: Vec<u128> = own.map(RunId::number).collect();
                numbers.sort_unstable_by(|a, b| b.cmp(a));
                numbers.dedup();
                for some in numbers.chunks(BATCH) {
                    self.add(&registry.delete_numbers(some, self.dry_run));
                    tokio::task::yield_now().await;
                }
            }
            RunDeletion::Matching { labels, asked } => {
                self.report.end_number = registry.end_number();
                let mut end = Some(self.report.end_number);
                while let Some(number) = end {
                    let batch = registry.delete_matching(labels, *asked, number, self.dry_run);
                    self.add(&batch);
                    end = batch.next;
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    fn add(&mut self, batch: &DeletedBatch) {
        let report = &mut self.report;
        report.numbers.extend(&batch.deleted);
        report.deleted += batch.deleted.len() as u64;
        report.unfinished += batch.unfinished;
        let room = MAX_TOLD_DELETED - report.first.len();
        let told = batch.deleted.iter().take(room);
        let ids = told.map(|number| RunId::of(*number, self.instance));
        report.first.extend(ids);
    }

    /// Ends the deletion, and returns what it came to.
    fn finish(mut self) -> DeletionReport {
        self.audit();
        std::mem::take(&mut self.report)
    }

    /// Writes the line to the audit, if anything was deleted.
    fn audit(&self) {
        if !self.dry_run && self.report.deleted > 0 {
            audit::deleted(self.tenant, self.caller, self.deletion, &self.report);
        }
    }
}

impl Drop for DeletionInProgress<'_> {
    fn drop(&mut self) {
        self.audit();
    }
}
