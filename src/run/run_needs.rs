//! What a run needs of its module and of the engine, and whether it may have that; and what takes
//! its output.

use std::sync::Arc;

use super::record::Run;
use super::sessions::SessionTerms;
use super::tenant::Tenant;
use crate::model::limits::OutputMode;
use crate::model::policy::Grants;
use crate::model::refusal::Refusal;
use crate::model::request::{Digest, ModuleRef, RunSpec};
use crate::otlp::{ExportedRun, Exporter};
use crate::sandbox::{self, CodeUse, EntryPoint, Inspection, Output, Variant};

/// Returns the variant of the engine that a run needs: whether it is metered, and its stack class.
pub(super) fn variant(spec: &RunSpec) -> Variant {
    Variant {
        metered: spec.limits.fuel.is_some(),
        stack: spec.limits.stack,
    }
}

/// Describes how a run of `tenant` uses the code of its module: for whom, and whether the store has
/// the module.
pub(super) fn code_use(spec: &RunSpec, tenant: &Tenant) -> CodeUse {
    CodeUse {
        tenant: tenant.id,
        kept: matches!(spec.module, ModuleRef::Loaded(_) | ModuleRef::Provided(_)),
    }
}

/// Checks what a module needs from its run: its proposals and imports are granted, its entry point
/// fits, its memory has room. Returns the entry point and the pages of memory.
pub(super) fn resolve_entry(
    inspection: &Inspection,
    spec: &RunSpec,
    grants: &Grants,
) -> Result<(EntryPoint, u32), Refusal> {
    sandbox::check_proposals(inspection, grants)?;
    sandbox::check_imports(inspection, spec)?;
    sandbox::check_session(inspection, spec)?;
    let entry = EntryPoint::resolve(inspection, spec.entry_point.as_deref(), &spec.args)?;
    if !spec.wasi && entry.params.is_empty() && !spec.args.is_empty() {
        return Err(Refusal::invalid(
            "spec.args",
            "needs WASI, which security.enable_wasi turns off, or an entry point with parameters",
        ));
    }
    let pages = spec
        .limits
        .memory_pages(inspection.description.memory_minimum_pages)?;
    Ok((entry, pages))
}

/// Returns the terms of a session that begins with a run of this spec, which may have so many pages
/// of memory.
pub(super) fn session_terms(spec: &RunSpec, module: Digest, memory_pages: u32) -> SessionTerms {
    let Variant { metered, stack } = variant(spec);
    SessionTerms {
        module,
        memory_pages,
        stack,
        metered,
        clock: spec.clock,
        network: spec.network,
        host_functions: spec.host_functions.clone(),
    }
}

/// Creates what receives the output of `run`. It also goes to `exporter`, where there is one,
/// unless nothing of it is to be kept anywhere.
pub(super) fn output_of(
    run: &Run,
    spec: &RunSpec,
    delivery: OutputMode,
    exporter: Option<&Exporter>,
) -> Arc<Output> {
    let exporter = exporter.filter(|_| spec.keep_output);
    let export = exporter.and_then(|exporter| {
        exporter.begin_output(ExportedRun {
            run_id: run.id,
            digest: run.digest(),
            tenant: &run.origin.tenant,
            labels: &run.labels,
            trace: run.origin.trace.live().map(|trace| &**trace),
        })
    });
    Arc::new(Output::new(
        spec.limits.output,
        spec.limits.output_policy,
        delivery,
        Arc::clone(&run.log),
        Arc::clone(&run.usage),
        export,
    ))
}
