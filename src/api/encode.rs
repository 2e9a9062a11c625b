//! Encodes runs, their events and modules for the wire.

use std::time::SystemTime;

use bytes::Bytes;

use super::{proto, status};
use crate::archive::ArchiveState;
use crate::library::{StoreReceipt, StoredModule};
use crate::model::collected::{FileHead, UncollectedFile, UncollectedReason};
use crate::model::limits::OutputPolicy;
use crate::model::module::{Exported, Imported};
use crate::model::outcome::{CancelCause, Frame, Outcome, RunReport, Stream, Trap, Value};
use crate::model::request::{Digest, RunId};
use crate::run::{
    BulkCancelReport, CancelledRun, DeletionReport, GrantedLimits, Run, RunRecord, RunState,
    SessionRecord,
};
use crate::sandbox::AcceptedInput;

/// Encodes how a run ended.
pub(crate) fn result(run: &Run, ended: &RunReport) -> proto::RunResult {
    result_of(&run.id, run.digest(), run.granted().as_ref(), ended)
}

fn result_of(
    id: &RunId,
    digest: Option<Digest>,
    granted: Option<&GrantedLimits>,
    ended: &RunReport,
) -> proto::RunResult {
    let RunReport {
        outcome,
        trap,
        duration,
        instantiation: _,
        cpu_time,
        fuel_consumed,
        memory_used,
        memory_denied,
        values,
        stdin_read,
        stdout,
        stderr,
        uncollected,
        session,
    } = ended;
    let uncollected = uncollected.as_deref();
    proto::RunResult {
        run_id: id.to_string(),
        module_digest: self::digest(digest),
        outcome: self::outcome(*outcome).into(),
        exit_code: outcome.exit_code(),
        cancel_cause: cancel_cause(*outcome).into(),
        trap: trap.as_ref().map(self::trap),
        duration: Some(self::duration(*duration)),
        cpu_time: Some(self::duration(*cpu_time)),
        fuel_consumed: *fuel_consumed,
        memory_used: *memory_used,
        memory_denied: *memory_denied,
        granted: granted.map(self::granted),
        stdout_bytes: stdout.bytes,
        stderr_bytes: stderr.bytes,
        stdout_truncated: stdout.truncated,
        stderr_truncated: stderr.truncated,
        values: values.iter().copied().map(value).collect(),
        stdin_bytes: *stdin_read,
        uncollected: uncollected.map_or_else(Vec::new, |files| {
            files.named.iter().map(uncollected_file).collect()
        }),
        uncollected_total: uncollected.map_or(0, |files| files.count),
        session: session.map(|session| proto::SessionState {
            executions: session.executions,
            ended: session.ended,
        }),
    }
}

/// Encodes what a listing tells of a session.
pub(super) fn session(session: &SessionRecord) -> proto::Session {
    proto::Session {
        name: session.name.to_string(),
        language: session.language.clone(),
        module_digest: session.module.to_string(),
        began: Some(session.begun.into()),
        used: Some(session.used.into()),
        expires: session.expires.map(Into::into),
        executions: session.executions,
        run_id: session.busy.map_or_else(String::new, |run| run.to_string()),
        memory_bytes: session.memory,
    }
}

/// Encodes everything that is known of a run.
pub(super) fn run(record: &RunRecord) -> proto::RunInfo {
    use proto::run_info::End;
    let RunRecord {
        id,
        digest,
        granted,
        end,
        ..
    } = record;
    let (ended, end) = end.as_ref().map(|(at, end)| (*at, &**end)).unzip();
    let labels = record.labels.iter();
    proto::RunInfo {
        run_id: id.to_string(),
        state: state(record.state).into(),
        module_digest: self::digest(*digest),
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        method: record.method.as_str().to_owned(),
        caller: record.caller.to_string(),
        detached: record.detached,
        asked: Some(record.asked.into()),
        started: record.started.map(Into::into),
        ended: ended.map(Into::into),
        granted: granted.as_ref().map(self::granted),
        usage: usage(record),
        next_seq: record.next_seq,
        end: end.map(|end| match end {
            Ok(ended) => {
                let result = result_of(id, *digest, granted.as_ref(), ended);
                End::Result(Box::new(result))
            }
            Err(refusal) => End::Error(status::run_error(refusal)),
        }),
        archive: archive_state(record.archive).into(),
        trace_id: record.trace_id.map(|id| id.to_string()).unwrap_or_default(),
    }
}

/// Encodes a run for a listing, which leaves out the returned values, the files that were not
/// collected, and the backtrace of a trap.
pub(super) fn listed_run(record: &RunRecord) -> proto::RunInfo {
    listed_info(run(record))
}

/// Leaves out what a listing does not tell of a run.
pub(super) fn listed_info(mut info: proto::RunInfo) -> proto::RunInfo {
    if let Some(proto::run_info::End::Result(result)) = &mut info.end {
        result.values.clear();
        result.uncollected.clear();
        result.uncollected_total = 0;
        if let Some(trap) = &mut result.trap {
            trap.backtrace.clear();
        }
    }
    info
}

fn archive_state(state: Option<ArchiveState>) -> proto::ArchiveState {
    match state {
        None => proto::ArchiveState::Unspecified,
        Some(ArchiveState::Queued) => proto::ArchiveState::Queued,
        Some(ArchiveState::Written) => proto::ArchiveState::Written,
        Some(ArchiveState::Dropped) => proto::ArchiveState::Dropped,
    }
}

/// Encodes what became of the runs that a selector matched.
pub(super) fn cancelled_runs(report: &BulkCancelReport) -> proto::CancelRunsResponse {
    let BulkCancelReport { runs, unfinished } = report;
    let run = |run: &CancelledRun| {
        let CancelledRun { id, found, by_this } = run;
        proto::CancelledRun {
            run_id: id.to_string(),
            found: state(*found).into(),
            cancelled: *by_this,
        }
    };
    proto::CancelRunsResponse {
        runs: runs.iter().map(run).collect(),
        unfinished: u32::try_from(*unfinished).unwrap_or(u32::MAX),
    }
}

/// Encodes how many runs were deleted, or would be, and the ids of the first of them.
pub(super) fn deleted_runs(report: &DeletionReport) -> proto::DeleteRunsResponse {
    let DeletionReport {
        deleted,
        first,
        numbers: _,
        unfinished,
        end_number: _,
    } = report;
    proto::DeleteRunsResponse {
        deleted: *deleted,
        run_ids: first.iter().map(RunId::to_string).collect(),
        unfinished: *unfinished,
    }
}

/// Encodes what a run has used so far, or used until its end; `None` if it has not started.
fn usage(record: &RunRecord) -> Option<proto::Usage> {
    let granted = record.granted.as_ref()?;
    let metered = granted.limits.fuel.is_some();
    let over = record.end.as_ref();
    let result = over.and_then(|(_, end)| end.as_ref().as_ref().ok());
    let elapsed = match (result, over) {
        (Some(ended), _) => ended.duration,
        // The daemon failed, and nothing was measured.
        (None, Some((over, _))) => over.duration_since(record.started?).unwrap_or_default(),
        (None, None) => record.elapsed?,
    };
    let used = &record.used;
    let [stdout_bytes, stderr_bytes] = used.written;
    Some(proto::Usage {
        elapsed: Some(duration(elapsed)),
        fuel_consumed: match result {
            Some(ended) => ended.fuel_consumed,
            None => metered.then_some(used.fuel),
        },
        memory_used: result.map_or(used.memory, |ended| ended.memory_used),
        stdout_bytes,
        stderr_bytes,
    })
}

/// Encodes the state of a run.
pub(super) fn state(state: RunState) -> proto::RunState {
    match state {
        RunState::Compiling => proto::RunState::Compiling,
        RunState::Queued => proto::RunState::Queued,
        RunState::Running => proto::RunState::Running,
        RunState::Ended => proto::RunState::Ended,
    }
}

fn digest(digest: Option<Digest>) -> String {
    digest.map(|digest| digest.to_string()).unwrap_or_default()
}

/// Encodes an event of a run's stream, with its sequence number and time.
pub(super) fn event(
    id: &RunId,
    seq: u64,
    at: SystemTime,
    event: proto::stream_event::Event,
) -> proto::StreamEvent {
    proto::StreamEvent {
        run_id: id.to_string(),
        seq,
        time: Some(at.into()),
        event: Some(event),
    }
}

/// Encodes the first event of a run's stream.
pub(super) fn started(run: &Run) -> proto::RunStarted {
    proto::RunStarted {
        module_digest: digest(run.digest()),
        granted: run.granted().as_ref().map(granted),
    }
}

/// Encodes what became of input that was sent to a run.
pub(super) fn accepted_input(input: AcceptedInput) -> proto::SendInputResponse {
    let AcceptedInput {
        accepted,
        next_offset,
        closed,
    } = input;
    proto::SendInputResponse {
        accepted,
        next_offset,
        closed,
    }
}

/// Encodes the receipt for a module that was loaded. If it was pulled from a registry, `resolved`
/// is the reference with the digest that was found there.
pub(super) fn loaded(taken: &StoreReceipt, resolved: Option<String>) -> proto::LoadModuleResponse {
    let StoreReceipt {
        kept,
        cached,
        compiled_in,
        pending_response: _,
    } = taken;
    proto::LoadModuleResponse {
        module: Some(module(kept)),
        cached: *cached,
        compile_duration: Some(duration(*compiled_in)),
        resolved: resolved.unwrap_or_default(),
    }
}

/// Encodes the receipt for a module that was uploaded.
pub(super) fn uploaded(taken: &StoreReceipt) -> proto::UploadModuleResponse {
    let proto::LoadModuleResponse {
        module,
        cached,
        compile_duration,
        resolved: _,
    } = loaded(taken, None);
    proto::UploadModuleResponse {
        module,
        cached,
        compile_duration,
    }
}

/// Encodes a module for a listing, which leaves out its exports and imports.
pub(super) fn listed(kept: &StoredModule) -> proto::ModuleInfo {
    let StoredModule { known, cached_in } = kept;
    let record = &known.record;
    let kind = if record.description.component {
        proto::ModuleKind::Component
    } else {
        proto::ModuleKind::Core
    };
    let labels = record.labels.iter();
    proto::ModuleInfo {
        digest: known.digest.to_string(),
        name: record.name.clone(),
        name_section: record.description.name.clone(),
        kind: kind.into(),
        exports: Vec::new(),
        imports: Vec::new(),
        size: record.size,
        memory_minimum_pages: record.description.memory_minimum_pages,
        labels: labels
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        last_used: Some(known.last_used().into()),
        cached_in: cached_in.iter().map(|place| (*place).to_owned()).collect(),
    }
}

/// Encodes everything that is reported of a module.
pub(super) fn module(kept: &StoredModule) -> proto::ModuleInfo {
    let description = &kept.known.record.description;
    proto::ModuleInfo {
        exports: description.exports.iter().map(export).collect(),
        imports: description.imports.iter().map(import).collect(),
        ..listed(kept)
    }
}

/// Encodes bytes of one output stream as an event.
pub(super) fn output(stream: Stream, bytes: Bytes) -> proto::stream_event::Event {
    match stream {
        Stream::Stdout => proto::stream_event::Event::Stdout(bytes),
        Stream::Stderr => proto::stream_event::Event::Stderr(bytes),
    }
}

/// Encodes a piece of a file that a run returns as an event.
pub(super) fn file_chunk(head: &FileHead, offset: u64, bytes: Bytes) -> proto::stream_event::Event {
    let FileHead {
        path,
        content_type,
        size,
    } = head;
    proto::stream_event::Event::File(proto::FileChunk {
        path: path.clone(),
        content_type: (*content_type).to_owned(),
        size: *size,
        offset,
        data: bytes,
    })
}

fn uncollected_file(file: &UncollectedFile) -> proto::UncollectedFile {
    let UncollectedFile { path, size, reason } = file;
    let reason = match reason {
        UncollectedReason::NotFound => proto::UncollectedReason::NotFound,
        UncollectedReason::NotRegular => proto::UncollectedReason::NotRegular,
        UncollectedReason::TooManyFiles => proto::UncollectedReason::TooManyFiles,
        UncollectedReason::TooManyBytes => proto::UncollectedReason::TooManyBytes,
        UncollectedReason::PathTooLong => proto::UncollectedReason::PathTooLong,
        UncollectedReason::SearchTimedOut => proto::UncollectedReason::SearchTimedOut,
    };
    proto::UncollectedFile {
        path: path.clone(),
        size: *size,
        reason: reason.into(),
    }
}

/// Encodes a length of time.
pub(super) fn duration(duration: std::time::Duration) -> prost_types::Duration {
    // A duration that does not fit is longer than the age of the universe.
    duration.try_into().unwrap_or_default()
}

fn export(export: &Exported) -> proto::Export {
    let Exported {
        name,
        kind,
        signature,
    } = export;
    proto::Export {
        name: name.clone(),
        kind: kind.clone().into_owned(),
        r#type: signature.clone(),
    }
}

fn import(import: &Imported) -> proto::Import {
    let Imported { module, name, kind } = import;
    proto::Import {
        module: module.clone(),
        name: name.clone(),
        kind: kind.clone().into_owned(),
    }
}

fn granted(granted: &GrantedLimits) -> proto::Resources {
    let limits = &granted.limits;
    proto::Resources {
        memory_pages: Some(granted.memory_pages),
        fuel_limit: limits.fuel,
        stack_size: Some(limits.stack.bytes()),
        output_limit: limits.output,
        output_policy: match limits.output_policy {
            OutputPolicy::Stop => proto::OutputPolicy::Stop,
            OutputPolicy::Truncate => proto::OutputPolicy::Truncate,
        }
        .into(),
    }
}

fn outcome(outcome: Outcome) -> proto::Outcome {
    match outcome {
        Outcome::Exited(_) => proto::Outcome::Exited,
        Outcome::Trapped => proto::Outcome::Trapped,
        Outcome::MemoryExceeded(_) => proto::Outcome::MemoryExceeded,
        Outcome::FuelExhausted => proto::Outcome::FuelExhausted,
        Outcome::StackOverflow => proto::Outcome::StackOverflow,
        Outcome::TimedOut => proto::Outcome::TimedOut,
        Outcome::OutputExceeded => proto::Outcome::OutputExceeded,
        Outcome::Cancelled(_) => proto::Outcome::Cancelled,
    }
}

fn cancel_cause(outcome: Outcome) -> proto::CancelCause {
    match outcome {
        Outcome::Cancelled(CancelCause::CancelRpc) => proto::CancelCause::CancelRpc,
        Outcome::Cancelled(CancelCause::CallerGone) => proto::CancelCause::CallerGone,
        Outcome::Cancelled(CancelCause::ReaderStalled) => proto::CancelCause::ReaderStalled,
        Outcome::Cancelled(CancelCause::Draining) => proto::CancelCause::Draining,
        Outcome::Exited(_)
        | Outcome::Trapped
        | Outcome::MemoryExceeded(_)
        | Outcome::FuelExhausted
        | Outcome::StackOverflow
        | Outcome::TimedOut
        | Outcome::OutputExceeded => proto::CancelCause::Unspecified,
    }
}

fn trap(trap: &Trap) -> proto::Trap {
    let Trap {
        code,
        message,
        backtrace,
    } = trap;
    proto::Trap {
        code: (*code).to_owned(),
        message: message.clone(),
        backtrace: backtrace.iter().map(frame).collect(),
    }
}

fn frame(frame: &Frame) -> proto::Frame {
    let Frame {
        func_index,
        func_name,
        module_name,
        module_offset,
    } = frame;
    proto::Frame {
        func_index: *func_index,
        func_name: func_name.clone(),
        module_name: module_name.clone(),
        module_offset: *module_offset,
    }
}

fn value(value: Value) -> proto::Value {
    use proto::value::Value as Wire;
    proto::Value {
        value: Some(match value {
            Value::I32(v) => Wire::I32(v),
            Value::I64(v) => Wire::I64(v),
            Value::F32(v) => Wire::F32(v),
            Value::F64(v) => Wire::F64(v),
        }),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::run::MAX_MATCHED;

    #[test]
    fn the_longest_list_of_ended_runs_fits_into_an_answer() {
        /// Seven eighths of the least that `server.inflight_answer_bytes` may be, and less than
        /// clients take by default.
        const SHARE: usize = (4 << 20) / 8 * 7;
        let run = CancelledRun {
            id: RunId::new(&"i".repeat(64)),
            found: RunState::Running,
            by_this: true,
        };
        let report = BulkCancelReport {
            runs: vec![run; MAX_MATCHED],
            unfinished: usize::MAX,
        };
        let answer = cancelled_runs(&report);
        assert_eq!(answer.unfinished, u32::MAX);
        let bytes = answer.encoded_len();
        assert!(bytes > MAX_MATCHED * 100 && bytes < SHARE / 2, "{bytes}");
    }
}
