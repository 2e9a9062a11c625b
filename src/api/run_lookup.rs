//! Looks runs up in this daemon's memory and in the archive, as if they were one.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::Stream;
use tonic::{Response, Status};

use super::archived_runs::{self, ArchivedStream, ReplayRequest};
use super::decode_runs::RunPage;
use super::layers::response_watchdog::ResponseWatchdog;
use super::proto::{self, RunInfo, StreamEvent};
use super::run_event_stream::RunEventStream;
use super::start::attach_run_metadata;
use super::{encode, proto::ListRunsResponse};
use crate::archive::{Archive, ArchiveState, PageRequest, Removal, Removed};
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::{Labels, RunId, millis_since_epoch};
use crate::run::{
    DeletionReport, MAX_TOLD_DELETED, RunDeletion, RunState, Runner, Tenant, with_deadline,
};

/// Runs of one tenant, wherever they are remembered.
pub(super) struct RunLookup<'a> {
    runner: &'a Runner,
    tenant: &'a Arc<Tenant>,
    responses: &'a ResponseWatchdog,
}

/// The stream that answers `AttachRun`: of a run in this daemon's memory, or of one in the archive.
pub enum AttachedStream {
    /// The run is in memory, and may go on.
    Remembered(RunEventStream),
    /// The run has ended, and is read from the archive.
    Archived(Box<ArchivedStream>),
}

impl Stream for AttachedStream {
    type Item = Result<StreamEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match self.get_mut() {
            Self::Remembered(stream) => Pin::new(stream).poll_next(cx),
            Self::Archived(stream) => Pin::new(stream).poll_next(cx),
        }
    }
}

/// Reports whether a run that is not in memory may be in the archive.
fn is_absent(refusal: &Refusal) -> bool {
    matches!(refusal.reason(), Reason::RunNotFound | Reason::RunElsewhere)
}

fn has_labels(info: &RunInfo, labels: &Labels) -> bool {
    let mut asked = labels.iter();
    asked.all(|(key, value)| info.labels.get(key).is_some_and(|it| it == value))
}

impl<'a> RunLookup<'a> {
    /// Creates the lookup for the runs of `tenant`. What is read of the archive for a viewer is
    /// charged to the budget of `responses`.
    pub(super) fn new(
        runner: &'a Runner,
        tenant: &'a Arc<Tenant>,
        responses: &'a ResponseWatchdog,
    ) -> Self {
        Self {
            runner,
            tenant,
            responses,
        }
    }

    /// Returns the archive where a run that is not found for the reason `refusal` may be in it.
    ///
    /// # Errors
    /// Returns `refusal` where it may not.
    fn archive_instead(&self, refusal: &Refusal) -> Result<&'a Archive, Refusal> {
        let archive = self.runner.archive().filter(|_| is_absent(refusal));
        archive.map(|it| &**it).ok_or_else(|| refusal.clone())
    }

    /// Returns everything that is known of a run.
    ///
    /// # Errors
    /// `RUN_NOT_FOUND`, `RUN_ELSEWHERE`, `ARCHIVE_UNAVAILABLE` or `ARCHIVE_DAMAGED`.
    pub(super) async fn get(&self, id: &RunId) -> Result<RunInfo, Refusal> {
        match self.runner.find(self.tenant, id) {
            Ok(record) => Ok(encode::run(&record)),
            Err(refusal) => {
                let archive = self.archive_instead(&refusal)?;
                let _turn = self.tenant.acquire_archive().await;
                let found = archived_runs::find(archive, &self.tenant.name, id).await?;
                found.map(|(info, _)| info).ok_or(refusal)
            }
        }
    }

    /// Attaches a viewer that reads a run from event `from` on.
    ///
    /// # Errors
    /// Those of [`Self::get`]; `QUEUE_FULL`, and `CAPACITY_EXCEEDED` for output of the archive for
    /// which there is never room; `SPEC_INVALID` where the run has not come as far.
    pub(super) async fn attach(
        &self,
        id: &RunId,
        from: u64,
    ) -> Result<Response<AttachedStream>, Refusal> {
        let refusal = match self.runner.attach(self.tenant, id, from) {
            Ok(attached) => {
                if attached.has_lost()
                    && let Some(archived) = self.archived_instead(id, from).await?
                {
                    return Ok(archived);
                }
                return Ok(RunEventStream::answer(attached).map(AttachedStream::Remembered));
            }
            Err(refusal) => refusal,
        };
        let archive = self.archive_instead(&refusal)?;
        let permit = self.runner.acquire_viewer(self.tenant)?;
        let replayed = self.replay(archive, id, from, permit).await?;
        replayed.ok_or(refusal)
    }

    /// Attaches to the archive's copy of a run whose output is not in memory any more; `None` where
    /// the archive does not give it.
    ///
    /// # Errors
    /// `QUEUE_FULL` where there is no room for the output now: whoever tries again gets all of it.
    async fn archived_instead(
        &self,
        id: &RunId,
        from: u64,
    ) -> Result<Option<Response<AttachedStream>>, Refusal> {
        let is_archived = self.runner.find(self.tenant, id).is_ok_and(|record| {
            record.keeps_output && record.archive == Some(ArchiveState::Written)
        });
        let archive = self.runner.archive().filter(|_| is_archived);
        let permit = self.runner.acquire_viewer(self.tenant).ok();
        let (Some(archive), Some(permit)) = (archive, permit) else {
            return Ok(None);
        };
        match self.replay(archive, id, from, permit).await {
            Ok(replayed) => Ok(replayed),
            Err(refusal) if refusal.reason() == Reason::QueueFull => Err(refusal),
            Err(_) => Ok(None),
        }
    }

    /// Builds the answer that replays a run of the archive; `None` where the archive does not have
    /// it.
    async fn replay(
        &self,
        archive: &Archive,
        id: &RunId,
        from: u64,
        permit: OwnedSemaphorePermit,
    ) -> Result<Option<Response<AttachedStream>>, Refusal> {
        let request = ReplayRequest {
            archive,
            responses: self.responses,
            tenant: self.tenant,
            from,
        };
        let _turn = self.tenant.acquire_archive().await;
        let Some(stream) = request.read(id, permit).await? else {
            return Ok(None);
        };
        let mut response = Response::new(AttachedStream::Archived(Box::new(stream)));
        attach_run_metadata(&mut response, id, None);
        Ok(Some(response))
    }

    /// Lists one page of runs. The archive is read if a time is asked for.
    ///
    /// # Errors
    /// `ARCHIVE_UNAVAILABLE`.
    pub(super) async fn list(&self, page: &RunPage) -> Result<ListRunsResponse, Refusal> {
        let RunPage {
            size,
            before,
            selector,
            asked,
            is_timed: _,
        } = page;
        let (runs, next) = (self.runner).runs(self.tenant, selector, *asked, *before, *size);
        let runs = runs.iter().map(|run| (run.id, encode::listed_run(run)));
        let remembered = ListedPart {
            runs: runs.collect(),
            next,
        };
        let archive = self.runner.archive().filter(|_| page.reads_archive());
        let Some(archive) = archive else {
            return Ok(answer(remembered, ListedPart::default(), *size, Vec::new()));
        };
        let request = PageRequest {
            range: *asked,
            before: *before,
            size: *size,
        };
        let takes = |summary: &[u8]| {
            archived_runs::info(summary).is_some_and(|info| has_labels(&info, &selector.labels))
        };
        let _turn = self.tenant.acquire_archive().await;
        let listed = archive.list(&self.tenant.name, request, takes).await;
        let listed = listed.map_err(|error| archived_runs::refusal(&error))?;
        let runs = listed.runs.iter().filter_map(|entry| {
            let info = archived_runs::info(&entry.summary)?;
            Some((entry.id, encode::listed_info(info)))
        });
        let archived = ListedPart {
            runs: runs.collect(),
            next: listed.next,
        };
        Ok(answer(remembered, archived, *size, listed.damaged))
    }

    /// Deletes runs that have ended, in memory and in the archive. `caller` is told to the audit.
    ///
    /// # Errors
    /// `NOT_STARTED` where the caller's deadline passes first, `ARCHIVE_UNAVAILABLE` or
    /// `ARCHIVE_DAMAGED`. Some runs may be gone then.
    pub(super) async fn delete(
        &self,
        caller: &str,
        deletion: &RunDeletion,
        dry_run: bool,
        deadline: Option<Instant>,
    ) -> Result<proto::DeleteRunsResponse, Refusal> {
        let began = millis_since_epoch(SystemTime::now());
        let deleted = (self.runner).delete_runs(self.tenant, caller, deletion, dry_run, deadline);
        let mut report = deleted.await?;
        if let Some(archive) = self.runner.archive() {
            let remembered: HashSet<u128> = report.numbers.iter().copied().collect();
            let remembered = Arc::new(remembered);
            let mut archived = ArchiveDeletion {
                lookup: self,
                caller,
                deletion,
                dry_run,
                removed: Removed::beside(self.runner.instance(), Arc::clone(&remembered)),
                remembered,
            };
            let last = last_asked(began, report.end_number);
            with_deadline(deadline, archived.remove(archive, last)).await?;
            let removed = archived.report();
            report.deleted += removed.deleted;
            let mut first: BTreeSet<RunId> = removed.first.into_iter().collect();
            first.extend(report.first.drain(..));
            report.first = first.into_iter().rev().take(MAX_TOLD_DELETED).collect();
        }
        Ok(encode::deleted_runs(&report))
    }
}

/// A deletion from the archive that goes on. Dropping it writes the line of what was deleted to the
/// audit, also where it fails, the caller leaves or its deadline passes.
struct ArchiveDeletion<'a> {
    lookup: &'a RunLookup<'a>,
    caller: &'a str,
    deletion: &'a RunDeletion,
    dry_run: bool,
    /// The numbers of the runs that were deleted from this daemon's memory.
    remembered: Arc<HashSet<u128>>,
    /// What was deleted of the archive, without those runs.
    removed: Removed,
}

/// Returns the last millisecond of the runs that a call deletes which `began` then, and which has
/// looked at the runs in memory below `end_number`. The clock may have been turned back since those
/// were asked for, and it goes on between the two looks.
fn last_asked(began: u64, end_number: u128) -> u64 {
    began.max(RunId::millis_of(end_number.saturating_sub(1)))
}

impl ArchiveDeletion<'_> {
    /// Deletes the runs, but none that was asked for after the millisecond `last`, since 1970.
    async fn remove(&mut self, archive: &Archive, last: u64) -> Result<(), Refusal> {
        let RunLookup { runner, tenant, .. } = *self.lookup;
        let remembered = &self.remembered;
        let may_go = |id: &RunId| {
            // A run that went on when memory was looked through has ended since: it stays.
            id.instance() != runner.instance()
                || remembered.contains(&id.number())
                || runner.find(tenant, id).is_err()
        };
        // While this waits for another deletion, the tenant's other requests have their turns.
        let _lock = match self.dry_run {
            true => None,
            false => Some(archive.lock_deletions(&tenant.name).await),
        };
        let _turn = tenant.acquire_archive().await;
        let (name, dry_run) = (&*tenant.name, self.dry_run);
        let removed = &mut self.removed;
        let done = match self.deletion {
            RunDeletion::Ids(ids) => {
                let ids: BTreeSet<RunId> = ids.iter().copied().collect();
                let takes = |id: &RunId, _: &[u8]| ids.contains(id) && may_go(id);
                let removal = Removal { dry_run, takes };
                archive.remove_named(name, &ids, &removal, removed).await
            }
            RunDeletion::Matching { labels, asked } => {
                let takes = |id: &RunId, summary: &[u8]| {
                    let info = archived_runs::info(summary);
                    info.is_some_and(|info| has_labels(&info, labels)) && may_go(id)
                };
                let removal = Removal { dry_run, takes };
                let range = asked.up_to(last);
                archive.remove(name, range, &removal, removed).await
            }
        };
        done.map_err(|error| archived_runs::refusal(&error))
    }

    /// Reports the runs that were not in this daemon's memory.
    fn report(&self) -> DeletionReport {
        DeletionReport {
            deleted: self.removed.runs,
            first: self.removed.named.iter().rev().copied().collect(),
            ..DeletionReport::default()
        }
    }
}

impl Drop for ArchiveDeletion<'_> {
    fn drop(&mut self) {
        let report = self.report();
        if !self.dry_run && report.deleted > 0 {
            let RunLookup { runner, tenant, .. } = *self.lookup;
            runner.audit_deletion(tenant, self.caller, self.deletion, &report);
        }
    }
}

impl RunPage {
    /// Reports whether runs of the archive are listed too.
    fn reads_archive(&self) -> bool {
        let states = &self.selector.states;
        self.is_timed && (states.is_empty() || states.contains(&RunState::Ended))
    }
}

/// A part of a page: the runs of one source, the newest first.
#[derive(Default)]
struct ListedPart {
    runs: Vec<(RunId, RunInfo)>,
    /// The last run that was looked at, where others may follow.
    next: Option<RunId>,
}

/// Merges two sources of runs into one page, the newest first. A run of both is the remembered one.
fn answer(
    remembered: ListedPart,
    archived: ListedPart,
    size: usize,
    damaged: Vec<String>,
) -> ListRunsResponse {
    // Below this, one of the sources has not been looked at.
    let floor = remembered.next.max(archived.next);
    let both = archived.runs.into_iter().chain(remembered.runs);
    let mut runs: BTreeMap<Reverse<RunId>, RunInfo> =
        both.map(|(id, info)| (Reverse(id), info)).collect();
    runs.retain(|id, _| floor.is_none_or(|floor| id.0 >= floor));
    let next = match runs.keys().nth(size.saturating_sub(1)) {
        Some(last) if runs.len() > size => Some(last.0),
        Some(_) | None => floor,
    };
    ListRunsResponse {
        runs: runs.into_values().take(size).collect(),
        next_page_token: next.map(|id| id.to_string()).unwrap_or_default(),
        damaged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(numbers: &[u128], next: Option<u128>, instance: &str) -> ListedPart {
        let run = |number: &u128| {
            let id = RunId::of(*number, instance);
            let info = RunInfo {
                run_id: id.to_string(),
                method: instance.to_owned(),
                ..RunInfo::default()
            };
            (id, info)
        };
        ListedPart {
            runs: numbers.iter().map(run).collect(),
            next: next.map(|number| RunId::of(number, instance)),
        }
    }

    fn numbers(answer: &ListRunsResponse) -> Vec<u128> {
        let ids = answer.runs.iter();
        ids.map(|run| RunId::parse("x", &run.run_id).unwrap().number())
            .collect()
    }

    fn next(answer: &ListRunsResponse) -> Option<u128> {
        let token = &answer.next_page_token;
        (!token.is_empty()).then(|| RunId::parse("x", token).unwrap().number())
    }

    #[test]
    fn pages_of_two_sources_are_in_order_and_leave_nothing_out() {
        for (remembered, archived, size, runs, then) in [
            (
                (vec![9, 7], None),
                (vec![8, 6], None),
                9,
                vec![9, 8, 7, 6],
                None,
            ),
            (
                (vec![9, 7], None),
                (vec![8, 6], None),
                4,
                vec![9, 8, 7, 6],
                None,
            ),
            (
                (vec![9, 7], None),
                (vec![8, 6], None),
                3,
                vec![9, 8, 7],
                Some(7),
            ),
            // The archive has not been looked at below 8, so that 7 has to wait.
            (
                (vec![9, 7], None),
                (vec![8], Some(8)),
                9,
                vec![9, 8],
                Some(8),
            ),
            (
                (vec![9], Some(5)),
                (vec![8, 6, 4], None),
                9,
                vec![9, 8, 6],
                Some(5),
            ),
            (
                (vec![9, 8], None),
                (vec![9, 8, 7], None),
                9,
                vec![9, 8, 7],
                None,
            ),
            ((vec![], None), (vec![], Some(3)), 9, vec![], Some(3)),
        ] {
            let remembered = part(&remembered.0, remembered.1, "a");
            let archived = part(&archived.0, archived.1, "a");
            let answer = answer(remembered, archived, size, Vec::new());
            assert_eq!((numbers(&answer), next(&answer)), (runs, then));
        }
    }

    #[test]
    fn what_is_deleted_from_memory_is_deleted_from_the_archive_too() {
        let end = |millis| RunId::first_number_at(millis) | 7;
        // Ids by selectors only, a clock that was turned back, one that went on, and no run since.
        for (end, last) in [
            (0, 1000),
            (end(9000), 9000),
            (end(1001), 1001),
            (end(5), 1000),
        ] {
            assert_eq!(last_asked(1000, end), last);
        }
        // No run in memory is as new as the first of that millisecond.
        assert_eq!(last_asked(1000, RunId::first_number_at(1002)), 1001);
    }

    #[test]
    fn a_run_of_both_sources_is_the_remembered_one() {
        let mut remembered = part(&[5], None, "a");
        remembered.runs[0].1.method = "remembered".to_owned();
        let answer = answer(remembered, part(&[5], None, "a"), 9, Vec::new());
        assert_eq!(answer.runs.len(), 1);
        assert_eq!(answer.runs[0].method, "remembered");
    }
}
