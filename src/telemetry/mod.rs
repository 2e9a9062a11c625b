//! The log: structured, to standard error, by a writer that never blocks the daemon. And the audit, to a file or a
//! stream, by one that loses no line.

mod audit;
mod audit_file;
mod lines;

use std::cell::Cell;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::audit::{AuditWriter, WriteTurn};
pub use self::audit_file::AuditTarget;
pub use self::lines::LogFlush;
use self::lines::{Last, Lines};
use crate::config::{LogFormat, Telemetry};
use crate::refusal::printable;

/// Lines of the audit that wait for the disk; whoever writes one more waits too.
const BUFFERED_AUDIT_LINES: usize = 65_536;
/// The target of the audit's lines.
const AUDIT: &str = "ringfence::audit";
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
    _last: Last,
    _audit: Option<WorkerGuard>,
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
    let (audit, audit_worker) = writer.map(audit_layer).unzip();
    let (lines, last) = Lines::start(std::io::stderr(), turn).map_err(|error| error.to_string())?;
    let log = match telemetry.log_format {
        LogFormat::Text => layer(lines.clone()).with_ansi(false).boxed(),
        LogFormat::Json => layer(lines.clone()).json().boxed(),
    };
    let registry = tracing_subscriber::registry().with(log.with_filter(filter));
    let started = registry.with(audit).try_init();
    started.map_err(|error| error.to_string())?;
    std::panic::set_hook(Box::new(tell_panic));
    Ok(Log {
        _last: last,
        _audit: audit_worker,
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

/// The layer of the audit's lines, and what writes the rest of them at the end.
fn audit_layer<S>(to: AuditWriter) -> (Box<dyn Layer<S> + Send + Sync>, WorkerGuard)
where
    S: tracing::Subscriber + for<'a> tracing_subscriber::registry::LookupSpan<'a>,
{
    let (writer, worker) = NonBlockingBuilder::default()
        .lossy(false)
        .buffered_lines_limit(BUFFERED_AUDIT_LINES)
        .thread_name("audit")
        .finish(to);
    let layer = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_level(false)
        .with_target(false)
        .with_writer(writer);
    let only = Targets::new().with_target(AUDIT, LevelFilter::INFO);
    (layer.with_filter(only).boxed(), worker)
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
