//! Checks of the settings of the log, the audit log, and what is exported to a collector.

use std::path::Path;

use super::problems::Checker;
use super::schema::{Size, TelemetryConfig};
use crate::model::request::Labels;

/// The most keys of labels that log records have: as many labels as a run may have.
const MAX_EXPORTED_LABELS: usize = 32;

/// Checks all settings of the `[telemetry]` table.
pub(super) fn check(c: &mut Checker, telemetry: &TelemetryConfig) {
    let audit = &telemetry.audit_file;
    c.require(
        audit.as_os_str().is_empty() || audit.is_absolute(),
        "telemetry.audit_file",
        audit.display(),
        "an absolute path, or empty",
    );
    let filter = telemetry
        .log_level
        .parse::<tracing_subscriber::filter::Targets>();
    c.require(
        filter.is_ok() && !telemetry.log_level.trim().is_empty(),
        "telemetry.log_level",
        &telemetry.log_level,
        "error, warn, info, debug, trace, or directives such as \"info,ringfence=debug\"",
    );
    c.between("telemetry.otlp_ratio", telemetry.otlp_ratio, 0.0, 1.0);
    let queue = (Size(64 << 10), Size(1 << 30));
    c.between(
        "telemetry.otlp_queue",
        telemetry.otlp_queue,
        queue.0,
        queue.1,
    );
    headers_file(c, telemetry);
    output(c, telemetry);
}

fn headers_file(c: &mut Checker, telemetry: &TelemetryConfig) {
    const KEY: &str = "telemetry.otlp_headers_file";
    let path: &Path = &telemetry.otlp_headers_file;
    if path.as_os_str().is_empty() {
        return;
    }
    let holds = path.is_absolute() && path.is_file();
    const ALLOWED: &str = "an absolute path to a file that exists, or empty";
    c.require(holds, KEY, path.display(), ALLOWED);
    c.require(
        telemetry.otlp_endpoint.url().is_some(),
        KEY,
        path.display(),
        "empty, because telemetry.otlp_endpoint is empty and it is for the requests to that",
    );
}

fn output(c: &mut Checker, telemetry: &TelemetryConfig) {
    const KEY: &str = "telemetry.export_labels";
    let labels = &telemetry.export_labels;
    c.require(
        !telemetry.export_output || telemetry.otlp_endpoint.url().is_some(),
        "telemetry.export_output",
        true,
        "false, because telemetry.otlp_endpoint is empty and output is exported to that",
    );
    c.require(
        telemetry.export_output || labels.is_empty(),
        KEY,
        format!("{labels:?}"),
        "empty, because telemetry.export_output is false and they are attributes of exported output",
    );
    c.require(
        labels.len() <= MAX_EXPORTED_LABELS,
        KEY,
        format!("{} keys", labels.len()),
        format!("at most {MAX_EXPORTED_LABELS} keys"),
    );
    for key in labels {
        let valid = Labels::new(KEY, [(key.clone(), String::new())]);
        c.require(
            valid.is_ok(),
            KEY,
            key,
            "keys that labels can have: 1 to 128 bytes without control characters, and not beginning with \"ringfence.\"",
        );
    }
}
