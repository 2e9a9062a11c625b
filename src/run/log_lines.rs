//! The log line of a run. There is one on every path: refused, ended, failed, or left by its caller
//! before it started. It never has content: no arguments, environment, input or output.

use super::record::Run;
use crate::model::refusal::Refusal;
use crate::telemetry;

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
        trace_id = run.origin.trace.id(),
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
        trace_id = run.origin.trace.id(),
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
        trace_id = run.origin.trace.id(),
    );
}
