//! The event of a run's end. The log and the audit write it from the same values, each by its own
//! names. It never has content: no arguments, environment, input or output.

use std::time::Duration;

use super::record::Run;
use crate::model::outcome::{CancelCause, RunReport};
use crate::telemetry::{self, micros};

/// How an admitted run ended, and what it used.
pub(super) struct EndOfRun<'a> {
    run: &'a Run,
    ended: &'a RunReport,
    outcome: &'static str,
    exit_code: Option<u32>,
    cause: Option<&'static str>,
    trap: Option<&'static str>,
    waited_us: u64,
    duration_us: u64,
    cpu_us: u64,
}

impl<'a> EndOfRun<'a> {
    /// Creates the event of a run that waited so long before its guest executed.
    pub(super) fn new(run: &'a Run, ended: &'a RunReport, waited: Duration) -> Self {
        Self {
            run,
            ended,
            outcome: ended.outcome.as_str(),
            exit_code: ended.outcome.exit_code(),
            cause: ended.outcome.cause().map(CancelCause::as_str),
            trap: ended.trap.as_ref().map(|trap| trap.code),
            waited_us: micros(waited),
            duration_us: micros(ended.duration),
            cpu_us: micros(ended.cpu_time),
        }
    }

    /// Writes the event to the audit, if there is one.
    pub(super) fn audit(&self) {
        let Self { run, ended, .. } = self;
        telemetry::audit_line!(
            run_id = &run.id,
            tenant = &*run.origin.tenant,
            caller = &*run.origin.caller,
            digest = run.digest(),
            event = "end",
            outcome = self.outcome,
            exit_code = self.exit_code,
            cause = self.cause,
            trap = self.trap,
            waited_us = self.waited_us,
            duration_us = self.duration_us,
            cpu_us = self.cpu_us,
            fuel = ended.fuel_consumed,
            memory_bytes = ended.memory_used,
            memory_denied = ended.memory_denied,
            stdout_bytes = ended.stdout.bytes,
            stderr_bytes = ended.stderr.bytes,
            trace_id = run.origin.trace.id(),
        );
    }

    /// Writes the event to the log.
    pub(super) fn log(&self) {
        let Self { run, ended, .. } = self;
        telemetry::log_line!(
            target: "ringfence::run",
            INFO,
            "run ended",
            run_id = &run.id,
            tenant = &*run.origin.tenant,
            digest = run.digest(),
            outcome = self.outcome,
            exit_code = self.exit_code,
            cause = self.cause,
            trap = self.trap,
            duration_us = self.duration_us,
            cpu_us = self.cpu_us,
            waited_us = self.waited_us,
            fuel = ended.fuel_consumed,
            memory = ended.memory_used,
            memory_denied = ended.memory_denied,
            stdout = ended.stdout.bytes,
            stderr = ended.stderr.bytes,
            trace_id = run.origin.trace.id(),
        );
    }
}
