//! The guard of a run that has not ended: it sees to it that the run ends and is told of once, on
//! every path: refused, ended, failed, or left by its caller before it started.

use std::sync::Arc;
use std::time::Duration;

use super::admission::shutting_down;
use super::audit::{self, Capabilities};
use super::end_event::EndOfRun;
use super::log_lines;
use super::record::Run;
use super::registry::Registry;
use super::snapshot::GrantedLimits;
use super::tenant::Tenant;
use crate::event_log::RunEnd;
use crate::model::outcome::{CancelCause, RunReport};
use crate::model::refusal::{Reason, Refusal};
use crate::model::request::Digest;
use crate::otlp::RunMoment;
use crate::sandbox::StopReason;

/// A guard for a run that has not ended. The run ends, and its log line is written, at the latest
/// when this is dropped. The line never has content: no arguments, environment, input or output.
#[derive(Debug)]
pub(super) struct RunEndGuard {
    pub(super) run: Arc<Run>,
    /// The tenant whose run it is, and whose registry learns of its end.
    pub(super) tenant: Arc<Tenant>,
    over: bool,
}

impl RunEndGuard {
    /// Creates the guard of a run that is registered, or will be when it ends.
    pub(super) fn new(run: Arc<Run>, tenant: Arc<Tenant>) -> Self {
        Self {
            run,
            tenant,
            over: false,
        }
    }

    fn registry(&self) -> &Registry {
        &self.tenant.registry
    }

    /// Notes the digest of the run's module.
    pub(super) fn note_module(&self, digest: Digest) {
        self.run.set_digest(digest);
    }

    /// Notes for the run's trace that its module is looked for.
    pub(super) fn note_asked(&self) {
        self.run.origin.trace.note(RunMoment::Asked);
    }

    /// Notes for the run's trace that its module is compiled, and that the run may have what it
    /// needs.
    pub(super) fn note_module_ready(&self) {
        self.run.origin.trace.note(RunMoment::ModuleReady);
    }

    /// Notes that the run waits for a slot, and announces the change to watches.
    pub(super) fn note_queued(&self) {
        self.run.set_queued();
        self.run.origin.trace.note(RunMoment::Queued);
        self.registry().changed(&self.run);
    }

    /// Notes that the run starts, announces the change to watches, and writes the audit line of its
    /// admission where `reach` is given.
    pub(super) fn note_started(&self, granted: GrantedLimits, reach: Option<&Capabilities>) {
        if let Some(reach) = reach {
            audit::admitted(&self.run, &granted, reach);
        }
        self.run.start(granted);
        self.run.origin.trace.note(RunMoment::Started);
        self.registry().changed(&self.run);
    }

    /// Ends the run before its first instruction, and returns the refusal with the field names of
    /// its caller's messages.
    pub(super) fn refuse(mut self, refusal: Refusal) -> Refusal {
        let refusal = refusal.with_spec_named(self.run.origin.method.spec_field());
        log_lines::refused(&self.run, &refusal);
        audit::refused(&self.run, &refusal);
        self.finish(Err(refusal.clone()));
        refusal
    }

    /// Drops this record without an end: the idempotency key already belongs to another run.
    pub(super) fn forget(mut self) {
        self.over = true;
    }

    /// Ends the run, and writes its line to the log and to the audit.
    pub(super) fn end(mut self, result: RunEnd) {
        self.write(&result);
        self.finish(result);
    }

    fn finish(&mut self, end: RunEnd) {
        self.over = true;
        match &end {
            Ok(ended) => self.tenant.counters.count_ended(ended),
            Err(refusal) => self.tenant.counters.count_refused(refusal.reason()),
        }
        if let Some(trace) = self.run.origin.trace.live() {
            trace.end_run(self.run.id, self.run.digest(), &end);
        }
        self.registry().end(&self.run, end);
    }

    fn write(&self, result: &RunEnd) {
        match result {
            Ok(ended) => {
                let event = EndOfRun::new(&self.run, ended, self.waited(ended));
                event.audit();
                event.log();
            }
            Err(refusal) => {
                audit::failed(&self.run, refusal);
                log_lines::failed(&self.run, refusal);
            }
        }
    }

    fn waited(&self, ended: &RunReport) -> Duration {
        self.run.age().saturating_sub(ended.duration)
    }
}

impl Drop for RunEndGuard {
    fn drop(&mut self) {
        if !self.over {
            log_lines::left(&self.run);
            let refusal = never_started(None);
            audit::refused(&self.run, &refusal);
            self.finish(Err(refusal));
        }
    }
}

/// Returns the refusal of a run that never started because it was asked to end for `reason` or,
/// where that is `None`, because its caller left.
pub(super) fn never_started(reason: Option<StopReason>) -> Refusal {
    let why = match reason {
        Some(StopReason::Cancelled(CancelCause::Draining)) => return shutting_down(),
        Some(StopReason::Cancelled(CancelCause::CancelRpc)) => "was cancelled",
        Some(
            StopReason::TimedOut
            | StopReason::Cancelled(CancelCause::CallerGone | CancelCause::ReaderStalled),
        )
        | None => "was left by its caller",
    };
    Refusal::new(
        Reason::RunCancelled,
        format!("the run {why} before its first instruction"),
    )
}
