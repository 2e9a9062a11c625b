//! The audit log: one line for each decision on admission, one for each end of an admitted run, and
//! one for each deletion of ended runs. A line says who ran which module, what was granted and what
//! came of it, or who deleted what. It never has arguments, environment, labels, input or output.

use super::deletion::{DeletionReport, RunDeletion};
use super::record::Run;
use super::snapshot::GrantedLimits;
use crate::model::limits::WASM_PAGE_BYTES;
use crate::model::refusal::Refusal;
use crate::model::request::{RunId, RunSpec};
use crate::telemetry::{self, Unquoted, micros};

/// The most ids of deleted runs that one line has.
const MAX_IDS: usize = 20;

/// Writes one audit line of a run: its id, tenant, caller and module, then the given fields, and
/// its trace, if it belongs to one.
macro_rules! audit_run {
    ($run:ident, $($field:tt)*) => {
        telemetry::audit_line!(
            run_id = &$run.id,
            tenant = &*$run.origin.tenant,
            caller = &*$run.origin.caller,
            digest = $run.digest(),
            $($field)*
            trace_id = $run.origin.trace.id(),
        )
    };
}

/// What a run may reach (mounts, host functions, network, WASI, clock), as the audit line of its
/// admission tells it.
#[derive(Debug)]
pub(super) struct Capabilities {
    mounts: String,
    host_functions: String,
    network: bool,
    wasi: bool,
    clock: bool,
}

impl Capabilities {
    /// Collects the capabilities that `spec` asks for; `None` where nobody keeps the audit.
    pub(super) fn of(spec: &RunSpec) -> Option<Self> {
        if !telemetry::is_audited() {
            return None;
        }
        let mount = |mount: &crate::model::request::Mount| {
            let access = if mount.read_only { "read" } else { "write" };
            format!("{access}:{}", mount.host.display())
        };
        let mounts: Vec<String> = spec.mounts.iter().map(mount).collect();
        let functions: Vec<&str> = spec.host_functions.iter().map(String::as_str).collect();
        Some(Self {
            mounts: mounts.join(","),
            host_functions: functions.join(","),
            network: spec.network,
            wasi: spec.wasi,
            clock: spec.clock,
        })
    }
}

/// Writes the line of a run that was admitted, with the limits it got and what it may reach.
pub(super) fn admitted(run: &Run, granted: &GrantedLimits, reach: &Capabilities) {
    let limits = &granted.limits;
    audit_run!(
        run,
        event = "admission",
        decision = "admitted",
        method = run.origin.method.as_str(),
        waited_us = micros(run.age()),
        memory_bytes = u64::from(granted.memory_pages) * WASM_PAGE_BYTES,
        fuel = limits.fuel,
        stack_bytes = limits.stack.bytes(),
        output_bytes = limits.output,
        timeout_us = micros(limits.timeout),
        detached = run.detached,
        wasi = reach.wasi,
        clock = reach.clock,
        network = reach.network,
        mounts = Unquoted(&reach.mounts),
        host_functions = Unquoted(&reach.host_functions),
    );
}

/// Writes the line of a run that was refused, or that its callers left before it was admitted.
pub(super) fn refused(run: &Run, refusal: &Refusal) {
    audit_run!(
        run,
        event = "admission",
        decision = "refused",
        method = run.origin.method.as_str(),
        waited_us = micros(run.age()),
        reason = refusal.reason().as_str(),
        field = refusal.field(),
    );
}

/// Writes the line of an admitted run that ended because the daemon failed.
pub(super) fn failed(run: &Run, refusal: &Refusal) {
    audit_run!(run, event = "end", reason = refusal.reason().as_str(),);
}

/// Writes the line of runs that `caller` deleted: how they were selected, how many they were, and
/// the ids of the newest of them. Of a selection by labels and time it has the number of labels and
/// the bounds, in milliseconds since 1970.
pub(super) fn deleted(tenant: &str, caller: &str, deletion: &RunDeletion, report: &DeletionReport) {
    let (by, named, labels, asked) = match deletion {
        RunDeletion::Ids(ids) => ("ids", Some(ids.len() as u64), None, None),
        RunDeletion::Matching { labels, asked } => {
            let count = labels.iter().count() as u64;
            ("selector", None, Some(count), Some(*asked))
        }
    };
    let ids = report.first.iter().take(MAX_IDS).map(RunId::as_str);
    let ids: Vec<&str> = ids.collect();
    let ids = ids.join(",");
    telemetry::audit_line!(
        event = "delete",
        tenant = tenant,
        caller = caller,
        by = by,
        named = named,
        labels = labels,
        since_ms = asked.map(|asked| asked.since),
        until_ms = asked.and_then(|asked| asked.end()),
        deleted = report.deleted,
        unfinished = report.unfinished,
        run_ids = Unquoted(&ids),
    );
}
