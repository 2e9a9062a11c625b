//! Slices of what a run has written: from any place of its event log, bounded, and without waiting
//! for more than there is.

use crate::api::proto::run_service_client::RunServiceClient;
use crate::api::proto::stream_event::Event;
use crate::api::proto::{
    AttachRunRequest, GetRunRequest, RunError, RunInfo, RunResult, RunState, StreamEvent,
};
use crate::cli::Failure;
use crate::cli::connect::{DaemonChannel, status_failure};
use crate::cli::follow::broke_off;

/// The longest part of a character in UTF-8 that a slice may have cut off.
const LONGEST_PART: usize = 3;

/// A place in the event log of a run: an event, and how many bytes of its output come before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct LogPosition {
    pub(super) seq: u64,
    pub(super) byte: usize,
}

/// How a run ended.
pub(super) enum SliceEnd {
    Executed(Box<RunResult>),
    /// It was refused, or the daemon failed.
    Failed(RunError),
}

/// What a run wrote between two places.
#[derive(Default)]
pub(super) struct OutputSlice {
    /// Standard output and standard error, in this order.
    pub(super) output: [Vec<u8>; 2],
    /// How many events the daemon no longer has.
    pub(super) lost_events: u64,
    /// Where the next slice begins.
    pub(super) next: LogPosition,
    /// How the run ended, if the slice reaches its end.
    pub(super) end: Option<SliceEnd>,
    /// Whether the slice ends before what there is, since it is full.
    pub(super) is_cut: bool,
    /// The state of the run when the slice was asked for.
    pub(super) state: RunState,
    /// The event of the last piece of output, for which stream it was, and where it was cut.
    last: Option<(LogPosition, usize)>,
}

/// Reads what the run has written after `from`, at most `max_bytes`.
///
/// # Errors
/// Returns why the daemon refused it, or that the connection broke.
pub(super) async fn read_slice(
    client: &mut RunServiceClient<DaemonChannel>,
    run_id: &str,
    from: LogPosition,
    max_bytes: usize,
) -> Result<OutputSlice, Failure> {
    let run_id = run_id.to_owned();
    let request = GetRunRequest {
        run_id: run_id.clone(),
    };
    let answer = client.get_run(request).await;
    let answer = answer.map_err(|status| status_failure(&status))?;
    let run: RunInfo = answer.into_inner().run.unwrap_or_default();
    let mut slice = OutputSlice {
        next: from,
        state: run.state(),
        ..OutputSlice::default()
    };
    let (first, due) = match run.state() {
        // After the last event there is nothing to attach to, but it tells how the run ended.
        RunState::Ended if from.seq == run.next_seq => (from.seq.saturating_sub(1), run.next_seq),
        RunState::Ended
        | RunState::Compiling
        | RunState::Queued
        | RunState::Running
        | RunState::Unspecified => (from.seq, run.next_seq),
    };
    if from.byte > 0 && from.seq >= due {
        return Err(no_output(from));
    }
    if first == due {
        return Ok(slice);
    }
    let request = AttachRunRequest {
        run_id,
        from_seq: first,
    };
    let answer = client.attach_run(request).await;
    let mut events = answer
        .map_err(|status| status_failure(&status))?
        .into_inner();
    loop {
        let event = events.message().await;
        let event = event.map_err(|status| status_failure(&status))?;
        slice.add(event.ok_or_else(broke_off)?, max_bytes)?;
        if slice.is_cut || slice.end.is_some() || slice.next.seq >= due {
            break;
        }
    }
    slice.keep_characters_whole();
    Ok(slice)
}

impl OutputSlice {
    /// Creates a slice of standard output that did not come from the log.
    pub(super) fn of_stdout(stdout: &[u8]) -> Self {
        Self {
            output: [stdout.to_vec(), Vec::new()],
            ..Self::default()
        }
    }

    /// Appends an event, or as much of it as there is room for.
    fn add(&mut self, event: StreamEvent, max_bytes: usize) -> Result<(), Failure> {
        let StreamEvent { seq, event, .. } = event;
        let is_output = matches!(event, Some(Event::Stdout(_) | Event::Stderr(_)));
        let is_lost = matches!(event, Some(Event::Lost(_)));
        if self.next.byte > 0 && self.next.seq == seq && !is_output && !is_lost {
            return Err(no_output(self.next));
        }
        let after = LogPosition {
            seq: seq + 1,
            byte: 0,
        };
        match event {
            Some(Event::Stdout(bytes)) => return self.append(0, seq, &bytes, max_bytes),
            Some(Event::Stderr(bytes)) => return self.append(1, seq, &bytes, max_bytes),
            Some(Event::Lost(lost)) => {
                self.lost_events += lost.count;
                self.next = LogPosition {
                    seq: lost.first_seq + lost.count,
                    byte: 0,
                };
            }
            Some(Event::Exit(result)) => {
                self.end = Some(SliceEnd::Executed(result));
                self.next = after;
            }
            Some(Event::Error(error)) => {
                self.end = Some(SliceEnd::Failed(error));
                self.next = after;
            }
            // It has no number of its own.
            Some(Event::StdinDemand(_)) => {}
            // Files are not output: an agent asks for them by their own way.
            Some(Event::Started(_) | Event::File(_)) | None => self.next = after,
        }
        Ok(())
    }

    /// Appends output of the event `seq` to a stream, as far as there is room.
    fn append(
        &mut self,
        stream: usize,
        seq: u64,
        bytes: &[u8],
        max_bytes: usize,
    ) -> Result<(), Failure> {
        let skipped = match self.next.seq == seq {
            true => self.next.byte,
            false => 0,
        };
        let Some(rest) = bytes.get(skipped..) else {
            let allowed = format!("at most {}, the bytes of the event {seq}", bytes.len());
            let asked = skipped.to_string();
            return Err(Failure::bad_argument("from_byte", &asked, &allowed));
        };
        let room = max_bytes - self.output.iter().map(Vec::len).sum::<usize>();
        let taken = rest.len().min(room);
        self.is_cut = taken < rest.len();
        self.output[stream].extend_from_slice(&rest[..taken]);
        let end = LogPosition {
            seq,
            byte: skipped + taken,
        };
        if taken > 0 {
            self.last = Some((end, stream));
        }
        self.next = match self.is_cut {
            true => end,
            false => LogPosition {
                seq: seq + 1,
                byte: 0,
            },
        };
        Ok(())
    }

    /// Leaves a character that the end of the slice cuts in two to the next slice, so that text
    /// stays text.
    fn keep_characters_whole(&mut self) {
        let Some((end, stream)) = self.last else {
            return;
        };
        if self.end.is_some() {
            return;
        }
        let output = &mut self.output[stream];
        let part = match std::str::from_utf8(output) {
            Err(error) if error.error_len().is_none() => output.len() - error.valid_up_to(),
            Ok(_) | Err(_) => return,
        };
        // A slice that holds nothing else has to be told as it is, or no slice would get past it.
        if part <= LONGEST_PART && part <= end.byte && part < output.len() {
            output.truncate(output.len() - part);
            self.next = LogPosition {
                byte: end.byte - part,
                ..end
            };
        }
    }
}

/// Refuses to skip bytes of an event that has none.
fn no_output(at: LogPosition) -> Failure {
    let allowed = format!("0 or left out: the event {} is no output", at.seq);
    Failure::bad_argument("from_byte", &at.byte.to_string(), &allowed)
}
