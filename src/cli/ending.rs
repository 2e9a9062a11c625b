//! The result of a run, formatted for people and as JSON.

use std::process::ExitCode;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use super::write_all::write;
use super::{Failure, exit, print_to_stderr};
use crate::api::proto::{self, CancelCause, Outcome, Resources, RunResult};
use crate::model::limits::WASM_PAGE_BYTES;

/// Prints the values that the entry point returned, and explains the outcome unless the guest
/// exited by itself.
///
/// # Errors
/// Fails where the values cannot be printed.
pub(super) fn print_ending(result: &RunResult) -> Result<ExitCode, Failure> {
    for value in &result.values {
        let text = match value.value {
            Some(proto::value::Value::I32(v)) => v.to_string(),
            Some(proto::value::Value::I64(v)) => v.to_string(),
            Some(proto::value::Value::F32(v)) => v.to_string(),
            Some(proto::value::Value::F64(v)) => v.to_string(),
            None => continue,
        };
        write(std::io::stdout(), format!("{text}\n").as_bytes())?;
    }
    match (result.outcome(), result.exit_code) {
        (Outcome::Exited, Some(0..=255)) => {}
        (Outcome::Exited, Some(code)) => print_to_stderr(&format!("the guest exited with {code}")),
        _ => print_to_stderr(&why(result)),
    }
    if result.session.is_some_and(|session| session.ended) {
        print_to_stderr("the session has ended with this program, and its state is lost");
    }
    Ok(ExitCode::from(exit_code_of(result)))
}

/// Returns the exit code of the command for the outcome of the run.
pub(super) fn exit_code_of(result: &RunResult) -> u8 {
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

/// Explains why the guest did not exit by itself. For a limit, the text says how large it was and
/// which option raises it.
fn why(result: &RunResult) -> String {
    let granted = result.granted.unwrap_or_default();
    let of = |amount: Option<String>| amount.map(|it| format!(" of {it}")).unwrap_or_default();
    match result.outcome() {
        Outcome::TimedOut => timed_out(result),
        Outcome::MemoryExceeded => {
            let pages = granted.memory_pages.map(|pages| {
                let bytes = size(u64::from(pages) * WASM_PAGE_BYTES);
                format!("{pages} pages ({bytes})")
            });
            format!(
                "the guest went over the memory limit{}{}; --memory-pages (resources.memory_pages) asks for more",
                of(pages),
                trap_of(result)
            )
        }
        Outcome::FuelExhausted => format!(
            "the guest ran out of fuel: it went over the limit{}; --fuel (resources.fuel_limit) asks for more",
            of(granted.fuel_limit.map(|fuel| fuel.to_string()))
        ),
        Outcome::StackOverflow => format!(
            "the guest went over the stack limit{}; --stack (resources.stack_size) asks for more",
            of(granted.stack_size.map(|bytes| size(bytes.into())))
        ),
        Outcome::OutputExceeded => format!(
            "the guest went over the output limit{}; --output-limit (resources.output_limit) asks for more, and --truncate (resources.output_policy) drops the rest instead",
            of(granted.output_limit.map(size))
        ),
        Outcome::Trapped | Outcome::Cancelled | Outcome::Exited | Outcome::Unspecified => {
            briefly(result)
        }
    }
}

fn timed_out(result: &RunResult) -> String {
    let took = result.duration.unwrap_or_default();
    let took = Duration::try_from(took).unwrap_or_default();
    // Less than a millisecond is dropped, because a guest is stopped within a few milliseconds of
    // what it was granted.
    let whole = Duration::from_millis(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    format!(
        "the run timed out after {}; --timeout (spec.timeout) asks for more, up to the deadline of the call",
        humantime::format_duration(whole)
    )
}

fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

fn trap_of(result: &RunResult) -> String {
    let trap = result.trap.as_ref();
    trap.map(|trap| format!(": {} ({})", trap.message, trap.code))
        .unwrap_or_default()
}

/// Describes the outcome in a few words.
pub(super) fn briefly(result: &RunResult) -> String {
    let trap = trap_of(result);
    match result.outcome() {
        Outcome::Trapped => format!("the guest trapped{trap}"),
        Outcome::TimedOut => "timed out".to_owned(),
        Outcome::MemoryExceeded => format!("over the memory limit{trap}"),
        Outcome::FuelExhausted => "out of fuel".to_owned(),
        Outcome::StackOverflow => "over the stack limit".to_owned(),
        Outcome::OutputExceeded => "over the output limit".to_owned(),
        Outcome::Cancelled => format!("cancelled: {}", cause(result)),
        Outcome::Exited | Outcome::Unspecified => {
            "the daemon did not say how the run ended".to_owned()
        }
    }
}

fn cause(result: &RunResult) -> &'static str {
    match result.cancel_cause() {
        CancelCause::CancelRpc => "by a call",
        CancelCause::CallerGone => "the caller went away",
        CancelCause::ReaderStalled => "the reader stalled",
        CancelCause::Draining => "the daemon is ending",
        CancelCause::Unspecified => "the daemon did not say why",
    }
}

/// Formats a run and its output as JSON, with the names of the API.
pub(super) fn run_json(result: &RunResult, stdout: &[u8], stderr: &[u8]) -> Value {
    let mut report = result_json(result);
    for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
        match std::str::from_utf8(bytes) {
            Ok(text) => report[name] = text.into(),
            Err(_) => {
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                report[format!("{name}_base64")] = text.into();
            }
        }
    }
    let uncollected = result.uncollected.iter();
    let uncollected = uncollected.map(
        |file| json!({ "path": file.path, "size": file.size, "reason": file.reason().as_str_name() }),
    );
    report["uncollected"] = uncollected.collect();
    report["uncollected_total"] = result.uncollected_total.into();
    report
}

/// Formats a result as JSON, with the names of the API.
pub(super) fn result_json(result: &RunResult) -> Value {
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
        "stdin_bytes": result.stdin_bytes,
        "granted": result.granted.as_ref().map(resources_json),
        "values": result.values.iter().map(value).collect::<Vec<_>>(),
        "session": result.session.map(|it| json!({ "executions": it.executions, "ended": it.ended })),
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
        // An f32 needs fewer digits to be told from its neighbours than the same number as an f64.
        Some(proto::value::Value::F32(v)) => float(v.to_string().parse().unwrap_or(v.into())),
        Some(proto::value::Value::F64(v)) => float(v),
        None => Value::Null,
    }
}

/// Formats a number as protobuf's JSON does, which has names for the values that JSON lacks.
fn float(value: f64) -> Value {
    match serde_json::Number::from_f64(value) {
        Some(number) => number.into(),
        None if value.is_nan() => "NaN".into(),
        None if value > 0.0 => "Infinity".into(),
        None => "-Infinity".into(),
    }
}

/// Formats the resources that a run was granted as JSON.
pub(super) fn resources_json(granted: &Resources) -> Value {
    json!({
        "memory_pages": granted.memory_pages,
        "fuel_limit": granted.fuel_limit,
        "stack_size": granted.stack_size,
        "output_limit": granted.output_limit,
        "output_policy": granted.output_policy().as_str_name(),
    })
}
