//! The log: structured, to standard error, by a writer that never blocks the daemon. And the audit, to a file or a
//! stream, by one that loses no line.
//!
//! What is said now and then goes through tracing. The lines of runs, of which each call has one and
//! the audit two, are written by hand (`line`), into the same log, under the same filter.

mod audit;
mod audit_file;
mod audit_queue;
mod line;
mod lines;
mod run_lines;

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::audit::{AuditWriter, WriteTurn};
pub use self::audit_file::AuditTarget;
use self::audit_queue::{AuditEnd, AuditQueue};
pub(crate) use self::line::{FieldName, FieldValue, LineHead, Unquoted, put_fields};
pub use self::lines::LogFlush;
use self::lines::{Last, Lines};
use self::run_lines::RunLines;
pub(crate) use self::run_lines::{AUDIT, audit_line, is_audited, log_line, write_audit, write_log};
use crate::config::{LogFormat, Telemetry};
use crate::refusal::printable;

/// Libraries that guests can make say something at each call, and whoever can connect at each frame: none of the log's,
/// unless `telemetry.log_level` names them.
const CHATTY: [&str; 6] = [
    "wasmtime_wasi",
    "wasmtime_wasi_io",
    "wiggle",
    "h2",
    "hyper",
    "hyper_util",
];
/// How often dropped lines are told.
const REPORT: Duration = Duration::from_secs(10);

/// Writes what is left when it is dropped.
pub struct Log {
    /// Before the log, in which it says what it could not write.
    _audit: Option<AuditEnd>,
    _last: Last,
    lines: Lines,
}

/// Starts the log of this process, and sends panics to it; `audit` is where the audit goes.
///
/// # Errors
/// A directive that is not one, which the configuration's check has seen already; an audit file that cannot be opened.
pub fn start(telemetry: &Telemetry, audit: AuditTarget) -> Result<Log, String> {
    let mut filter: Targets = telemetry
        .log_level
        .parse()
        .map_err(|error| format!("telemetry.log_level: {error}"))?;
    // The audit has a place of its own.
    for quiet in [AUDIT].into_iter().chain(CHATTY) {
        if !telemetry.log_level.contains(quiet) {
            filter = filter.with_target(quiet, LevelFilter::OFF);
        }
    }
    let turn = WriteTurn::default();
    let writer = AuditWriter::open(audit, &turn)?;
    let audit = writer.map(AuditQueue::start).transpose();
    let (audit, audit_end) = audit.map_err(|error| error.to_string())?.unzip();
    let (lines, last) = Lines::start(std::io::stderr(), turn).map_err(|error| error.to_string())?;
    let log = match telemetry.log_format {
        LogFormat::Text => layer(lines.clone()).with_ansi(false).boxed(),
        LogFormat::Json => layer(lines.clone()).json().boxed(),
    };
    let registry = tracing_subscriber::registry().with(log.with_filter(filter));
    registry.try_init().map_err(|error| error.to_string())?;
    RunLines::start(telemetry.log_format, lines.clone(), audit);
    std::panic::set_hook(Box::new(tell_panic));
    Ok(Log {
        _audit: audit_end,
        _last: last,
        lines,
    })
}

/// Tells an error on standard error while there is no log, as the log would: for people in a line that
/// begins with the program's name, or as one JSON object.
pub fn tell(format: LogFormat, message: &str) {
    match format {
        LogFormat::Text => {
            use std::io::Write;
            // Whoever does not read it still has the exit code.
            let _ = writeln!(std::io::stderr(), "ringfence: {message}");
        }
        LogFormat::Json => with_json(|| tracing::error!("{message}")),
    }
}

/// Has panics told as JSON while there is no log.
pub fn tell_panics_as_json() {
    std::panic::set_hook(Box::new(|panic| with_json(|| tell_panic(panic))));
}

fn with_json(told: impl FnOnce()) {
    let subscriber = tracing_subscriber::registry().with(layer(std::io::stderr).json());
    tracing::subscriber::with_default(subscriber, told);
}

thread_local! {
    /// Whether a panic of this thread is an answer that its caller waits for.
    static IS_ANSWER: Cell<bool> = const { Cell::new(false) };
}

/// Calls what panics where the host refuses it something, such as a thread, and has no other way to say so. `None` is
/// that it did, which the log does not tell: whoever calls does.
pub fn refusable<T>(call: impl FnOnce() -> T) -> Option<T> {
    IS_ANSWER.set(true);
    let called = std::panic::catch_unwind(AssertUnwindSafe(call));
    IS_ANSWER.set(false);
    called.ok()
}

fn tell_panic(panic: &std::panic::PanicHookInfo<'_>) {
    if IS_ANSWER.get() {
        return;
    }
    let cause = panic.payload_as_str().map(printable).unwrap_or_default();
    let at = panic.location().map(ToString::to_string);
    tracing::error!(cause, at, "panic");
}

fn layer<S, W>(
    writer: W,
) -> tracing_subscriber::fmt::Layer<
    S,
    tracing_subscriber::fmt::format::DefaultFields,
    tracing_subscriber::fmt::format::Format,
    W,
>
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + 'static,
{
    tracing_subscriber::fmt::layer().with_writer(writer)
}

impl Log {
    /// What has the log written before the process is ended without dropping this.
    pub fn flush_handle(&self) -> LogFlush {
        self.lines.flush_handle()
    }

    /// Tells of dropped lines, now and then, for as long as it is polled.
    pub async fn report_drops(&self) {
        let told = AtomicU64::new(0);
        loop {
            tokio::time::sleep(REPORT).await;
            let dropped = self.lines.dropped();
            if dropped > told.swap(dropped, Ordering::Relaxed) {
                tracing::warn!(
                    dropped,
                    "log lines were dropped since the start: nobody reads them fast enough"
                );
            }
        }
    }
}
