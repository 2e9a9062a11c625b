//! The log and the audit log. The log is structured and goes to standard error, by a writer that
//! never blocks the daemon and drops lines instead. The audit log goes to a file or a stream, by a
//! writer with backpressure that loses no line.
//!
//! Occasional lines go through tracing. The lines of runs, of which each call has one in the log
//! and two in the audit log, are formatted by hand (`line`), and go into the same log under the
//! same filter.

mod audit_file;
mod audit_queue;
mod audit_writer;
mod line;
mod log_queue;
mod metrics;
mod run_lines;

use std::cell::Cell;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, ParseError, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

pub use self::audit_file::{AuditFileError, AuditTarget};
use self::audit_queue::{AuditQueue, AuditQueueGuard};
use self::audit_writer::{AuditWriter, StderrMutex};
pub(crate) use self::line::{FieldName, FieldValue, LineHead, Unquoted, put_fields};
pub use self::log_queue::LogFlusher;
use self::log_queue::{LogQueue, LogQueueGuard};
pub use self::metrics::LogMetrics;
use self::run_lines::RunLineSinks;
pub(crate) use self::run_lines::{AUDIT, audit_line, is_audited, log_line, write_audit, write_log};
use crate::config::{LogFormat, TelemetryConfig};
use crate::model::refusal::printable;

/// Targets of libraries that guests can make log at each call, or clients at each frame. The log
/// leaves them out unless `telemetry.log_level` names them.
const CHATTY: [&str; 6] = [
    "wasmtime_wasi",
    "wasmtime_wasi_io",
    "wiggle",
    "h2",
    "hyper",
    "hyper_util",
];
/// How often the number of dropped lines is logged.
const REPORT: Duration = Duration::from_secs(10);

/// Keeps the log and the audit log running. Dropping it writes the lines that are left, and waits
/// for that a limited time.
pub struct LogGuard {
    /// It is dropped before the log, in which it reports what it could not write.
    _audit: Option<AuditQueueGuard>,
    _last: LogQueueGuard,
    lines: LogQueue,
}

/// Why the log or the audit log cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// A directive of `telemetry.log_level` is invalid.
    #[error("telemetry.log_level: {0}")]
    LogLevel(#[source] ParseError),
    /// The audit file cannot be opened.
    #[error(transparent)]
    AuditFile(#[from] AuditFileError),
    /// The host refuses a thread that writes lines.
    #[error(transparent)]
    Thread(io::Error),
    /// Another log was started before.
    #[error(transparent)]
    AlreadyStarted(#[from] TryInitError),
}

/// Starts the log of this process and directs panics to it. `audit` is the target of the audit log.
///
/// # Errors
/// A directive of `telemetry.log_level` is invalid, which the check of the configuration has seen
/// already; or the audit file cannot be opened, or the host refuses a thread.
pub fn start(telemetry: &TelemetryConfig, audit: AuditTarget) -> Result<LogGuard, TelemetryError> {
    let filter = telemetry.log_level.parse::<Targets>();
    let mut filter = filter.map_err(TelemetryError::LogLevel)?;
    // The audit log has a target of its own.
    for quiet in [AUDIT].into_iter().chain(CHATTY) {
        if !telemetry.log_level.contains(quiet) {
            filter = filter.with_target(quiet, LevelFilter::OFF);
        }
    }
    let turn = StderrMutex::default();
    let writer = AuditWriter::open(audit, &turn)?;
    let audit = writer.map(AuditQueue::start).transpose();
    let (audit, audit_end) = audit.map_err(TelemetryError::Thread)?.unzip();
    let started = LogQueue::start(io::stderr(), turn);
    let (lines, last) = started.map_err(TelemetryError::Thread)?;
    let log = match telemetry.log_format {
        LogFormat::Text => layer(lines.clone()).with_ansi(false).boxed(),
        LogFormat::Json => layer(lines.clone()).json().boxed(),
    };
    let registry = tracing_subscriber::registry().with(log.with_filter(filter));
    registry.try_init()?;
    RunLineSinks::start(telemetry.log_format, lines.clone(), audit);
    std::panic::set_hook(Box::new(log_panic));
    Ok(LogGuard {
        _audit: audit_end,
        _last: last,
        lines,
    })
}

/// Prints an error to standard error while there is no log, in the log's format: for people as a
/// line that begins with the program's name, else as one JSON object.
pub fn print_error(format: LogFormat, message: &str) {
    match format {
        LogFormat::Text => {
            use std::io::Write;
            // A caller that does not read it still has the exit code.
            let _ = writeln!(io::stderr(), "ringfence: {message}");
        }
        LogFormat::Json => with_json(|| tracing::error!("{message}")),
    }
}

/// Prints panics as JSON while there is no log.
pub fn print_panics_as_json() {
    std::panic::set_hook(Box::new(|panic| with_json(|| log_panic(panic))));
}

/// Logs through a temporary subscriber that writes JSON to standard error.
fn with_json(told: impl FnOnce()) {
    let subscriber = tracing_subscriber::registry().with(layer(io::stderr).json());
    tracing::subscriber::with_default(subscriber, told);
}

thread_local! {
    /// Whether this thread's panics are caught by [`catch_host_refusal`], and so are not logged.
    static PANIC_IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
}

/// Calls a function that panics if the host refuses it something, such as a thread, because it
/// cannot return an error. Returns `None` if it panicked. The panic is not logged: the caller
/// reports it.
pub fn catch_host_refusal<T>(call: impl FnOnce() -> T) -> Option<T> {
    PANIC_IS_CAUGHT.set(true);
    let called = std::panic::catch_unwind(AssertUnwindSafe(call));
    PANIC_IS_CAUGHT.set(false);
    called.ok()
}

/// Logs a panic, with its message and place.
fn log_panic(panic: &std::panic::PanicHookInfo<'_>) {
    if PANIC_IS_CAUGHT.get() {
        return;
    }
    let cause = panic.payload_as_str().map(printable).unwrap_or_default();
    let at = panic.location().map(ToString::to_string);
    tracing::error!(cause, at, "panic");
}

/// Creates the tracing layer that writes formatted lines to `writer`.
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

impl LogGuard {
    /// Returns a handle that has the log written before the process ends without dropping this.
    pub fn flush_handle(&self) -> LogFlusher {
        self.lines.flush_handle()
    }

    /// Logs every ten seconds how many lines were dropped, if there are new ones, for as long as it
    /// is polled.
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

/// Returns a duration in whole microseconds, as the log and the audit have it.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
