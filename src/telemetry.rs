//! The log: structured, to standard error, by a writer that never blocks the daemon.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, Telemetry};
use crate::refusal::printable;

/// Lines that wait for a slow reader of standard error; more are dropped and counted.
const BUFFERED_LINES: usize = 16_384;
/// How often dropped lines are told.
const REPORT: Duration = Duration::from_secs(10);

/// Writes what is left when it is dropped.
pub struct Log {
    _worker: WorkerGuard,
    dropped: ErrorCounter,
}

/// Starts the log of this process, and sends panics to it.
///
/// # Errors
/// A directive that is not one; the configuration's check has seen it already.
pub fn start(telemetry: &Telemetry) -> Result<Log, String> {
    let filter: Targets = telemetry
        .log_level
        .parse()
        .map_err(|error| format!("telemetry.log_level: {error}"))?;
    let (writer, worker) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(BUFFERED_LINES)
        .thread_name("log")
        .finish(std::io::stderr());
    let dropped = writer.error_counter();
    let registry = tracing_subscriber::registry().with(filter);
    let started = match telemetry.log_format {
        LogFormat::Text => registry.with(layer(writer).with_ansi(false)).try_init(),
        LogFormat::Json => registry.with(layer(writer).json()).try_init(),
    };
    started.map_err(|error| error.to_string())?;
    std::panic::set_hook(Box::new(|panic| {
        let cause = panic.payload_as_str().map(printable).unwrap_or_default();
        let at = panic.location().map(ToString::to_string);
        tracing::error!(cause, at, "panic");
    }));
    Ok(Log {
        _worker: worker,
        dropped,
    })
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
    /// Tells of dropped lines, now and then, for as long as it is polled.
    pub async fn report_drops(&self) {
        let told = AtomicUsize::new(0);
        loop {
            tokio::time::sleep(REPORT).await;
            let dropped = self.dropped.dropped_lines();
            if dropped > told.swap(dropped, Ordering::Relaxed) {
                tracing::warn!(
                    dropped,
                    "log lines were dropped since the start: nobody reads them fast enough"
                );
            }
        }
    }
}
