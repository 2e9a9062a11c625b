//! The sinks for the lines of runs: the log, as far as `telemetry.log_level` selects them, and the
//! audit log.
//!
//! The filter is tracing's own and does not change while the daemon runs. Each place that writes a
//! line asks it once, by the line's level, target and fields, and remembers the answer.

use std::sync::{LazyLock, OnceLock};

use super::audit_queue::AuditQueue;
use super::line::{LineHead, LineLayout, LineWriter, with_line};
use super::log_queue::LogQueue;
use crate::config::LogFormat;

/// The tracing target of audit lines.
pub(crate) const AUDIT: &str = "ringfence::audit";

/// The sinks of this process, global like tracing's subscriber; empty if no daemon serves.
static OF_PROCESS: OnceLock<RunLineSinks> = OnceLock::new();

/// The sinks that the lines of runs are written to.
pub(super) struct RunLineSinks {
    layout: LineLayout,
    log: LogQueue,
    audit: Option<AuditQueue>,
    /// Whether the log also gets the audit lines, because `telemetry.log_level` names their target.
    audit_in_log: bool,
}

impl RunLineSinks {
    /// Installs the sinks of this process. It is called once tracing has its filter.
    pub(super) fn start(format: LogFormat, log: LogQueue, audit: Option<AuditQueue>) {
        let layout = match format {
            LogFormat::Text => LineLayout::Text,
            LogFormat::Json => LineLayout::Json,
        };
        let lines = Self {
            layout,
            log,
            audit,
            audit_in_log: tracing::enabled!(target: AUDIT, tracing::Level::INFO),
        };
        // A process starts its log only once.
        let _ = OF_PROCESS.set(lines);
    }

    /// Formats a line and passes it to the log.
    fn log(&self, head: &LineHead, fields: impl FnOnce(&mut LineWriter<'_>)) {
        with_line(self.layout, head, fields, |line| self.log.take(line));
    }
}

/// Returns how many lines of this process's log were dropped.
pub(super) fn dropped_lines() -> u64 {
    OF_PROCESS.get().map_or(0, |lines| lines.log.dropped())
}

/// The cached answer of tracing's filter to one kind of line. The filter is asked at the first
/// access.
pub(crate) type LineFilter = LazyLock<bool>;

/// Writes a line to the log, if there is one and the filter accepts the line.
pub(crate) fn write_log(
    filter: &LineFilter,
    head: &LineHead,
    fields: impl FnOnce(&mut LineWriter<'_>),
) {
    if let Some(lines) = OF_PROCESS.get()
        && **filter
    {
        lines.log(head, fields);
    }
}

/// Writes a line to the audit log, and to the log if that gets audit lines too.
pub(crate) fn write_audit(
    in_log: &LineFilter,
    head: &LineHead,
    fields: impl Fn(&mut LineWriter<'_>),
) {
    let Some(lines) = OF_PROCESS.get() else {
        return;
    };
    if let Some(audit) = &lines.audit {
        with_line(LineLayout::Audit, head, &fields, |line| audit.take(line));
    }
    if lines.audit_in_log && **in_log {
        lines.log(head, fields);
    }
}

/// Reports whether audit lines are written anywhere, so that they need not be prepared otherwise.
pub(crate) fn is_audited() -> bool {
    let lines = OF_PROCESS.get();
    lines.is_some_and(|it| it.audit.is_some() || it.audit_in_log)
}

/// Writes a line to the log: a level and a message, then the fields as in `put_fields`. The field
/// values are evaluated only if the line is wanted.
macro_rules! log_line {
    (target: $target:literal, $level:ident, $message:literal, $($name:ident = $value:expr),+ $(,)?) => {{
        static FILTER: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
            tracing::event_enabled!(target: $target, tracing::Level::$level, message, $($name),+)
        });
        const HEAD: $crate::telemetry::LineHead = $crate::telemetry::LineHead {
            level: tracing::Level::$level,
            target: $target,
            message: Some($message),
        };
        $crate::telemetry::write_log(&FILTER, &HEAD, |line| {
            $crate::telemetry::put_fields!(line, $($name = $value),+);
        });
    }};
}

/// Writes a line to the audit log, with the fields as in `put_fields`.
macro_rules! audit_line {
    ($($name:ident = $value:expr),+ $(,)?) => {{
        static FILTER: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| {
            tracing::event_enabled!(
                target: $crate::telemetry::AUDIT,
                tracing::Level::INFO,
                $($name),+
            )
        });
        const HEAD: $crate::telemetry::LineHead = $crate::telemetry::LineHead {
            level: tracing::Level::INFO,
            target: $crate::telemetry::AUDIT,
            message: None,
        };
        $crate::telemetry::write_audit(&FILTER, &HEAD, |line| {
            $crate::telemetry::put_fields!(line, $($name = $value),+);
        });
    }};
}

pub(crate) use {audit_line, log_line};
