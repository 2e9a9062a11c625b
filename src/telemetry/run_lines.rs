//! Where the lines of runs go: to the log, as far as `telemetry.log_level` asks for them, and to the
//! audit.
//!
//! The filter is tracing's own, and does not change while the daemon runs: each place that writes a
//! line asks it once, by the line's level, target and fields, and remembers the answer.

use std::sync::{LazyLock, OnceLock};

use super::audit_queue::AuditQueue;
use super::line::{LineHead, LineLayout, LineWriter, with_line};
use super::lines::Lines;
use crate::config::LogFormat;

/// The target of the audit's lines.
pub(crate) const AUDIT: &str = "ringfence::audit";

/// Of this process, as tracing's subscriber is. There is none where no daemon serves.
static OF_PROCESS: OnceLock<RunLines> = OnceLock::new();

/// The ways of the lines of runs.
pub(super) struct RunLines {
    layout: LineLayout,
    log: Lines,
    audit: Option<AuditQueue>,
    /// Whether the log has the lines of the audit too, since `telemetry.log_level` names them.
    audit_in_log: bool,
}

impl RunLines {
    /// Lets lines through from now on, once tracing has its filter.
    pub(super) fn start(format: LogFormat, log: Lines, audit: Option<AuditQueue>) {
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
        // A process starts its log once.
        let _ = OF_PROCESS.set(lines);
    }

    fn log(&self, head: &LineHead, fields: impl FnOnce(&mut LineWriter<'_>)) {
        with_line(self.layout, head, fields, |line| self.log.take(line));
    }
}

/// Whether the filter takes a line; it is asked when that is looked at for the first time.
pub(crate) type LineFilter = LazyLock<bool>;

/// Writes a line to the log.
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

/// Writes a line to the audit; and to the log, where that has it too.
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

/// Whether somebody keeps the audit.
pub(crate) fn is_audited() -> bool {
    let lines = OF_PROCESS.get();
    lines.is_some_and(|it| it.audit.is_some() || it.audit_in_log)
}

/// Writes a line to the log: a level and a message, then the fields of `put_fields`. The values are
/// looked at only where the line is wanted.
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

/// Writes a line to the audit: the fields of `put_fields`.
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
