//! Runs of the archive: how they get there, and how the API tells of them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use prost::Message;
use tokio::sync::OwnedSemaphorePermit;
use tokio_stream::Stream;
use tonic::Status;

use super::proto::run_info::End;
use super::proto::stream_event::Event as Wire;
use super::proto::{self, RunInfo, StreamEvent};
use super::{archived_line, encode};
use crate::archive::{Archive, ArchiveError, ArchivedEntry, EncodedRun};
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::RunId;
use crate::run::EndedRun;

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

/// Reads what the archive knows of a run, and its output; `None` where it does not have it.
///
/// # Errors
/// `ARCHIVE_UNAVAILABLE` or `ARCHIVE_DAMAGED`.
pub(super) async fn read(
    archive: &Archive,
    tenant: &str,
    id: &RunId,
) -> Result<Option<(RunInfo, Vec<StreamEvent>)>, Refusal> {
    // A deletion of other runs may replace the segment between the two looks.
    for _ in 0..LOOKS {
        let Some((info, entry)) = find(archive, tenant, id).await? else {
            return Ok(None);
        };
        let line = archive.line(&entry).await;
        let Some(line) = line.map_err(|error| refusal(&error))? else {
            continue;
        };
        let run_id = info.run_id.clone();
        let output = tokio::task::spawn_blocking(move || archived_line::output(&run_id, &line));
        let output = output.await.unwrap_or(None);
        let output = output.ok_or_else(|| unreadable(id))?;
        return Ok(Some((info, output)));
    }
    Ok(None)
}

/// The stream that replays a run of the archive.
pub struct ArchivedStream {
    events: VecDeque<StreamEvent>,
    /// The place among the tenant's viewers.
    _permit: OwnedSemaphorePermit,
}

impl ArchivedStream {
    /// Creates the stream of a run's events from event `from` on.
    ///
    /// # Errors
    /// `SPEC_INVALID` where the run has not come as far as `from`.
    pub(super) fn new(
        info: RunInfo,
        output: Vec<StreamEvent>,
        from: u64,
        permit: OwnedSemaphorePermit,
    ) -> Result<Self, Refusal> {
        let last = info.next_seq.saturating_sub(1);
        if from > last {
            let message = format!("{from} is beyond the run's next event, {last}");
            let refusal = Refusal::invalid("from_seq", message);
            return Err(refusal.with("asked", from).with("allowed", last));
        }
        Ok(Self {
            events: events(info, output, from),
            _permit: permit,
        })
    }
}

impl Stream for ArchivedStream {
    type Item = Result<StreamEvent, Status>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.events.pop_front().map(Ok))
    }
}

/// Returns the events of a run from `from` on: its start, its output, with what is not there as
/// lost, and its end.
fn events(info: RunInfo, output: Vec<StreamEvent>, from: u64) -> VecDeque<StreamEvent> {
    let event = |seq, time, event| StreamEvent {
        run_id: info.run_id.clone(),
        seq,
        time,
        event: Some(event),
    };
    let last = info.next_seq.saturating_sub(1);
    let mut events = VecDeque::new();
    if let (0, Some(started)) = (from, info.started) {
        let module_digest = info.module_digest.clone();
        let granted = info.granted;
        let start = proto::RunStarted {
            module_digest,
            granted,
        };
        events.push_back(event(0, Some(started), Wire::Started(start)));
    }
    let mut next = from.max(1);
    let lost = |next: u64, to: u64| {
        let lost = proto::Lost {
            first_seq: next,
            count: to - next,
        };
        event(next - 1, info.ended, Wire::Lost(lost))
    };
    for piece in output {
        if piece.seq < next || piece.seq >= last {
            continue;
        }
        if piece.seq > next {
            events.push_back(lost(next, piece.seq));
        }
        next = piece.seq + 1;
        events.push_back(piece);
    }
    if next < last {
        events.push_back(lost(next, last));
    }
    match info.end.clone() {
        Some(End::Result(result)) => {
            events.push_back(event(last, info.ended, Wire::Exit(result)));
        }
        Some(End::Error(error)) => events.push_back(event(last, info.ended, Wire::Error(error))),
        None => {}
    }
    events
}
