//! How a run ended, for people and for programs.

use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use super::follow::write;
use super::{Failure, complain, exit};
use crate::api::proto::{self, CancelCause, Outcome, RunError, RunResult};

/// Prints what an entry point returned, and says why the run ended where the guest did not end it.
pub(super) fn conclude(result: &RunResult) -> ExitCode {
    for value in &result.values {
        let text = match value.value {
            Some(proto::value::Value::I32(v)) => v.to_string(),
            Some(proto::value::Value::I64(v)) => v.to_string(),
            Some(proto::value::Value::F32(v)) => v.to_string(),
            Some(proto::value::Value::F64(v)) => v.to_string(),
            None => continue,
        };
        // As for output: a reader that went away needs no values.
        let _ = write(std::io::stdout(), format!("{text}\n").as_bytes());
    }
    match (result.outcome(), result.exit_code) {
        (Outcome::Exited, Some(0..=255)) => {}
        (Outcome::Exited, Some(code)) => complain(&format!("the guest exited with {code}")),
        _ => complain(&why(result)),
    }
    ExitCode::from(code(result))
}

/// The exit code that tells of it.
pub(super) fn code(result: &RunResult) -> u8 {
    match result.outcome() {
        Outcome::Exited => u8::try_from(result.exit_code.unwrap_or_default()).unwrap_or(u8::MAX),
        Outcome::Trapped => exit::TRAPPED,
        Outcome::TimedOut => exit::TIMED_OUT,
        Outcome::MemoryExceeded
        | Outcome::FuelExhausted
        | Outcome::StackOverflow
        | Outcome::OutputExceeded
        | Outcome::Cancelled => exit::KILLED,
        Outcome::Unspecified => exit::FAILED,
    }
}

/// What happened, in a few words, where the guest did not end by itself.
pub(super) fn why(result: &RunResult) -> String {
    let trap = result.trap.as_ref();
    let trap = trap
        .map(|trap| format!(": {} ({})", trap.message, trap.code))
        .unwrap_or_default();
    match result.outcome() {
        Outcome::Trapped => format!("the guest trapped{trap}"),
        Outcome::TimedOut => "timed out".to_owned(),
        Outcome::MemoryExceeded => format!("over the memory limit{trap}"),
        Outcome::FuelExhausted => "out of fuel".to_owned(),
        Outcome::StackOverflow => "over the stack limit".to_owned(),
        Outcome::OutputExceeded => "over the output limit".to_owned(),
        Outcome::Cancelled => format!("cancelled: {}", cause(result)),
        Outcome::Exited | Outcome::Unspecified => "the daemon told no outcome".to_owned(),
    }
}

fn cause(result: &RunResult) -> &'static str {
    match result.cancel_cause() {
        CancelCause::CancelRpc => "by a call",
        CancelCause::CallerGone => "the caller went away",
        CancelCause::ReaderStalled => "the reader stalled",
        CancelCause::Draining => "the daemon is ending",
        CancelCause::Unspecified => "no cause told",
    }
}

/// A run that was refused, or that the daemon failed.
pub(super) fn broken(error: &RunError) -> Failure {
    if error.reason == "INTERNAL" {
        let message = format!("the daemon failed: {}: {}", error.reason, error.message);
        return Failure::new(message);
    }
    Failure {
        code: exit::REFUSED,
        message: format!("refused: {}: {}", error.reason, error.message),
    }
}

/// A run with its output as JSON, in the names of the API.
pub(super) fn report(result: &RunResult, stdout: &[u8], stderr: &[u8]) -> Value {
    let mut report = self::result(result);
    for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
        match std::str::from_utf8(bytes) {
            Ok(text) => report[name] = text.into(),
            Err(_) => {
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                report[format!("{name}_base64")] = text.into();
            }
        }
    }
    report
}

/// A result as JSON, in the names of the API.
pub(super) fn result(result: &RunResult) -> Value {
    let seconds = |duration: &Option<prost_types::Duration>| {
        let duration = duration.unwrap_or_default();
        Duration::try_from(duration)
            .unwrap_or_default()
            .as_secs_f64()
    };
    let cancelled = result.outcome() == Outcome::Cancelled;
    json!({
        "run_id": result.run_id,
        "module_digest": result.module_digest,
        "outcome": result.outcome().as_str_name(),
        "exit_code": result.exit_code,
        "cancel_cause": cancelled.then(|| result.cancel_cause().as_str_name()),
        "trap": result.trap.as_ref().map(trap),
        "duration_seconds": seconds(&result.duration),
        "cpu_seconds": seconds(&result.cpu_time),
        "fuel_consumed": result.fuel_consumed,
        "memory_used": result.memory_used,
        "memory_denied": result.memory_denied,
        "stdout_bytes": result.stdout_bytes,
        "stderr_bytes": result.stderr_bytes,
        "stdout_truncated": result.stdout_truncated,
        "stderr_truncated": result.stderr_truncated,
        "values": result.values.iter().map(value).collect::<Vec<_>>(),
    })
}

fn trap(trap: &proto::Trap) -> Value {
    let frames: Vec<Value> = trap
        .backtrace
        .iter()
        .map(|frame| json!({ "func_index": frame.func_index, "func_name": frame.func_name, "module_offset": frame.module_offset }))
        .collect();
    json!({ "code": trap.code, "message": trap.message, "backtrace": frames })
}

fn value(value: &proto::Value) -> Value {
    match value.value {
        Some(proto::value::Value::I32(v)) => v.into(),
        // A JSON number loses the low bits of a large i64.
        Some(proto::value::Value::I64(v)) => v.to_string().into(),
        Some(proto::value::Value::F32(v)) => f64::from(v).into(),
        Some(proto::value::Value::F64(v)) => v.into(),
        None => Value::Null,
    }
}
