//! The log line of a run. There is one on every path: refused, ended, failed, or left by its caller
//! before it started. It never has content: no arguments, environment, input or output.

use std::time::Duration;

use super::record::Run;
use crate::model::outcome::{CancelCause, RunReport};
use crate::model::refusal::Refusal;
use crate::telemetry;
use crate::telemetry::micros;

/// Logs that a run was refused, and why.
pub(super) fn refused(run: &Run, refusal: &Refusal) {
    telemetry::log_line!(
        target: "ringfence::run",
        INFO,
        "run refused",
        run_id = &run.id,
        tenant = &*run.origin.tenant,
        digest = run.digest(),
        reason = refusal.reason().as_str(),
        field = refusal.field(),
    );
}

/// Logs how an admitted run ended, and what it used.
pub(super) fn ended(run: &Run, ended: &RunReport, waited: Duration) {
    telemetry::log_line!(
        target: "ringfence::run",
        INFO,
        "run ended",
        run_id = &run.id,
        tenant = &*run.origin.tenant,
        digest = run.digest(),
        outcome = ended.outcome.as_str(),
        exit_code = ended.outcome.exit_code(),
        cause = ended.outcome.cause().map(CancelCause::as_str),
        trap = ended.trap.as_ref().map(|trap| trap.code),
        duration_us = micros(ended.duration),
        cpu_us = micros(ended.cpu_time),
        waited_us = micros(waited),
        fuel = ended.fuel_consumed,
        memory = ended.memory_used,
        memory_denied = ended.memory_denied,
        stdout = ended.stdout.bytes,
        stderr = ended.stderr.bytes,
    );
}

/// Logs as an error that an admitted run ended because the daemon failed.
pub(super) fn failed(run: &Run, refusal: &Refusal) {
    telemetry::log_line!(
        target: "ringfence::run",
        ERROR,
        "run failed",
        run_id = &run.id,
        digest = run.digest(),
        reason = refusal.reason().as_str(),
    );
}

/// Logs that a caller left its run before it started.
pub(super) fn left(run: &Run) {
    telemetry::log_line!(
        target: "ringfence::run",
        INFO,
        "run left by its caller before it started",
        run_id = &run.id,
        digest = run.digest(),
    );
}
