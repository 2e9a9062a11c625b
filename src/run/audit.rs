//! The audit: one line for each decision on admission, one for each end of a run. Who, which module, what was granted,
//! what came of it; never arguments, environment, input or output.

use std::time::Duration;

use super::record::{Granted, Run, cause_name, micros, outcome_name};
use crate::limits::PAGE;
use crate::outcome::Ended;
use crate::refusal::Refusal;
use crate::request::RunSpec;
use crate::telemetry::{self, Unquoted};

/// One line of a run: whose it is and of which module, then the rest.
macro_rules! line {
    ($run:ident, $($field:tt)*) => {
        telemetry::audit_line!(
            run_id = &$run.id,
            tenant = &*$run.origin.tenant.name,
            caller = &*$run.origin.caller,
            digest = $run.digest(),
            $($field)*
        )
    };
}

/// What a run may reach, for the audit.
#[derive(Debug)]
pub(super) struct Reach {
    mounts: String,
    host_functions: String,
    network: bool,
    wasi: bool,
    clock: bool,
}

impl Reach {
    /// Of `spec`, where somebody keeps the audit.
    pub(super) fn of(spec: &RunSpec) -> Option<Self> {
        if !telemetry::is_audited() {
            return None;
        }
        let mount = |mount: &crate::request::Mount| {
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

/// A run was admitted.
pub(super) fn admitted(run: &Run, granted: &Granted, reach: &Reach) {
    let limits = &granted.limits;
    line!(
        run,
        event = "admission",
        decision = "admitted",
        method = run.origin.method.as_str(),
        waited_us = micros(run.age()),
        memory_bytes = u64::from(granted.memory_pages) * PAGE,
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

/// A run was refused, or left before it was admitted.
pub(super) fn refused(run: &Run, refusal: &Refusal) {
    line!(
        run,
        event = "admission",
        decision = "refused",
        method = run.origin.method.as_str(),
        waited_us = micros(run.age()),
        reason = refusal.reason().as_str(),
        field = refusal.field(),
    );
}

/// A run that was admitted ended.
pub(super) fn ended(run: &Run, ended: &Ended, waited: Duration) {
    line!(
        run,
        event = "end",
        outcome = outcome_name(ended.outcome),
        exit_code = ended.outcome.exit_code(),
        cause = cause_name(ended.outcome),
        trap = ended.trap.as_ref().map(|trap| trap.code),
        waited_us = micros(waited),
        duration_us = micros(ended.duration),
        cpu_us = micros(ended.cpu_time),
        fuel = ended.fuel_consumed,
        memory_bytes = ended.memory_used,
        memory_denied = ended.memory_denied,
        stdout_bytes = ended.stdout.bytes,
        stderr_bytes = ended.stderr.bytes,
    );
}

/// A run that was admitted ended because the daemon failed.
pub(super) fn failed(run: &Run, refusal: &Refusal) {
    line!(run, event = "end", reason = refusal.reason().as_str(),);
}
