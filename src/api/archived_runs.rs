//! Runs of the archive: how they get there, and how the API tells of them.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message;
use prost_types::Timestamp;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::Stream;
use tonic::Status;

use super::archived_output::ArchivedOutput;
use super::layers::response_budget::BudgetedBytes;
use super::layers::response_watchdog::ResponseWatchdog;
use super::proto::run_info::End;
use super::proto::stream_event::Event as Wire;
use super::proto::{self, RunInfo, StreamEvent};
use super::{archived_line, encode};
use crate::archive::{Archive, ArchiveError, ArchivedEntry, EncodedRun, PackedLine};
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::RunId;
use crate::run::{EndedRun, Tenant};

/// How often a run is looked for whose segment is replaced at the same time.
const LOOKS: usize = 5;
/// How long a caller is told to wait before it asks the archive again.
const RETRY: Duration = Duration::from_secs(1);

/// Encodes a run for the archive.
pub fn encode_ended(ended: &EndedRun) -> EncodedRun {
    let mut info = encode::run(&ended.record);
    info.archive = proto::ArchiveState::Unspecified.into();
    let outcome = match ended.record.end.as_ref().map(|(_, end)| &**end) {
        Some(Ok(report)) => report.outcome.as_str(),
        Some(Err(_)) => "refused",
        None => "",
    };
    EncodedRun {
        number: ended.record.id.number(),
        line: archived_line::encode(&ended.tenant, outcome, &info, &ended.output),
        summary: info.encode_to_vec(),
    }
}

/// Decodes what the archive knows of a run; `None` for what no daemon has written.
pub(super) fn info(summary: &[u8]) -> Option<RunInfo> {
    let mut info = RunInfo::decode(summary).ok()?;
    info.archive = proto::ArchiveState::Written.into();
    Some(info)
}

/// Returns the refusal of a call that needs the archive.
pub(super) fn refusal(error: &ArchiveError) -> Refusal {
    let message = error.to_string();
    match error {
        ArchiveError::Unavailable(_) => {
            Refusal::new(Reason::ArchiveUnavailable, message).retry_after(RETRY)
        }
        ArchiveError::Damaged { name, .. } => {
            Refusal::new(Reason::ArchiveDamaged, message).with("segment", name)
        }
    }
}

/// Returns the refusal of a run whose part of a segment is whole, but not what a daemon writes.
fn unreadable(id: &RunId) -> Refusal {
    let message = format!("what the archive has of the run {id} is not what a daemon writes");
    Refusal::new(Reason::ArchiveDamaged, message).with("run_id", id)
}

/// Finds what the archive knows of a run; `None` where it does not have it.
///
/// # Errors
/// `ARCHIVE_UNAVAILABLE` or `ARCHIVE_DAMAGED`.
pub(super) async fn find(
    archive: &Archive,
    tenant: &str,
    id: &RunId,
) -> Result<Option<(RunInfo, ArchivedEntry)>, Refusal> {
    let found = archive.find(tenant, id).await;
    let Some(entry) = found.map_err(|error| refusal(&error))? else {
        return Ok(None);
    };
    let info = info(&entry.summary).ok_or_else(|| unreadable(id))?;
    Ok(Some((info, entry)))
}

/// A request to replay a run of the archive.
pub(super) struct ReplayRequest<'a> {
    /// The archive that may have the run.
    pub(super) archive: &'a Archive,
    /// What is charged for the output on its way.
    pub(super) responses: &'a ResponseWatchdog,
    /// The tenant whose run it is, and who is charged.
    pub(super) tenant: &'a Arc<Tenant>,
    /// The number of the first event that is asked for.
    pub(super) from: u64,
}

impl ReplayRequest<'_> {
    /// Reads a run and its output, and returns the stream of its events; `None` where the archive
    /// does not have it. `permit` is the place among the tenant's viewers.
    ///
    /// # Errors
    /// `ARCHIVE_UNAVAILABLE` or `ARCHIVE_DAMAGED`; `SPEC_INVALID` where the run has not come as
    /// far; `QUEUE_FULL` or `CAPACITY_EXCEEDED` where there is no room for its output.
    pub(super) async fn read(
        &self,
        id: &RunId,
        permit: OwnedSemaphorePermit,
    ) -> Result<Option<ArchivedStream>, Refusal> {
        // A deletion of other runs may replace the segment between the two looks.
        for _ in 0..LOOKS {
            let found = find(self.archive, &self.tenant.name, id).await?;
            let Some((info, entry)) = found else {
                return Ok(None);
            };
            let last = info.next_seq.saturating_sub(1);
            let from = self.from;
            if from > last {
                let message = format!("{from} is beyond the run's next event, {last}");
                let refusal = Refusal::invalid("from_seq", message);
                return Err(refusal.with("asked", from).with("allowed", last));
            }
            let tenant = Arc::clone(self.tenant);
            let charge = (self.responses).reserve_replay(tenant, entry.line_memory())?;
            let line = self.archive.line(&entry).await;
            let Some(line) = line.map_err(|error| refusal(&error))? else {
                continue;
            };
            // The charge goes along, since this goes on where its caller leaves.
            let read = move || (unpack(line, from.max(1)..last), charge);
            let read = tokio::task::spawn_blocking(read).await;
            let Ok((output, mut charge)) = read else {
                return Err(unreadable(id));
            };
            let output = output.map_err(|error| refusal(&error))?;
            let output = output.ok_or_else(|| unreadable(id))?;
            charge.shrink_to(output.bytes());
            let output = (output, charge);
            return Ok(Some(ArchivedStream::new(info, from, output, permit)));
        }
        Ok(None)
    }
}

/// Decodes the output of a run whose numbers are in `wanted`; `None` for a line that nobody wrote.
fn unpack(line: PackedLine, wanted: Range<u64>) -> Result<Option<ArchivedOutput>, ArchiveError> {
    let mut output = ArchivedOutput::default();
    let is_read = line.decode(|line| {
        archived_line::read_output(line, &mut |event| {
            if wanted.contains(&event.seq) {
                output.push(&event);
            }
        })
    });
    output.seal();
    Ok(is_read?.then_some(output))
}

/// The stream that replays a run of the archive: its start, its output, with what is not there as
/// lost, and its end.
pub struct ArchivedStream {
    run_id: String,
    start: Option<StreamEvent>,
    output: ArchivedOutput,
    /// An event of the output that is taken once the viewer was told what is lost before it.
    after_lost: Option<StreamEvent>,
    /// The number of the event of the output that comes next.
    next: u64,
    end: Option<StreamEvent>,
    /// The number of the end.
    last: u64,
    ended: Option<Timestamp>,
    /// The charge for what `output` holds.
    charge: BudgetedBytes,
    /// The place among the tenant's viewers.
    _permit: OwnedSemaphorePermit,
}

impl ArchivedStream {
    /// Creates the stream of a run's events from event `from` on.
    fn new(
        info: RunInfo,
        from: u64,
        (output, charge): (ArchivedOutput, BudgetedBytes),
        permit: OwnedSemaphorePermit,
    ) -> Self {
        let event = |seq, time, event| StreamEvent {
            run_id: info.run_id.clone(),
            seq,
            time,
            event: Some(event),
        };
        let start = info.started.filter(|_| from == 0).map(|started| {
            let start = proto::RunStarted {
                module_digest: info.module_digest.clone(),
                granted: info.granted,
            };
            event(0, Some(started), Wire::Started(start))
        });
        let last = info.next_seq.saturating_sub(1);
        let end = info.end.clone().map(|end| match end {
            End::Result(result) => Wire::Exit(result),
            End::Error(error) => Wire::Error(error),
        });
        let end = end.map(|end| event(last, info.ended, end));
        Self {
            start,
            output,
            after_lost: None,
            next: from.max(1),
            end,
            last,
            ended: info.ended,
            run_id: info.run_id,
            charge,
            _permit: permit,
        }
    }

    /// Returns the next event; `None` after the end.
    fn next_event(&mut self) -> Option<StreamEvent> {
        if let Some(start) = self.start.take() {
            return Some(start);
        }
        if let Some(event) = self.after_lost.take() {
            self.next = event.seq.saturating_add(1);
            return Some(event);
        }
        while let Some(mut event) = self.output.pop() {
            self.charge.shrink_to(self.output.bytes());
            if event.seq < self.next {
                continue;
            }
            event.run_id = self.run_id.clone();
            if event.seq > self.next {
                let lost = self.lost(event.seq);
                self.after_lost = Some(event);
                return Some(lost);
            }
            self.next += 1;
            return Some(event);
        }
        if self.next < self.last {
            let lost = self.lost(self.last);
            self.next = self.last;
            return Some(lost);
        }
        self.end.take()
    }

    /// Creates the event that tells that all output before event `to` is lost.
    fn lost(&self, to: u64) -> StreamEvent {
        let lost = proto::Lost {
            first_seq: self.next,
            count: to - self.next,
        };
        StreamEvent {
            run_id: self.run_id.clone(),
            seq: self.next - 1,
            time: self.ended,
            event: Some(Wire::Lost(lost)),
        }
    }
}

impl Stream for ArchivedStream {
    type Item = Result<StreamEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.next_event().map(Ok))
    }
}
