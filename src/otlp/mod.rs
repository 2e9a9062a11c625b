//! The export of traces and of guests' output over OTLP, the protocol of OpenTelemetry, to the
//! collector of `telemetry.otlp_endpoint`.
//!
//! Whoever has something to export adds it to a queue that is bounded by bytes, and never waits.
//! One sender for each signal (spans, log records) makes requests of what waits there. The messages
//! are those of the protocol, and so are the rules of what is tried again. The batch processors of
//! the OpenTelemetry SDK are not used: their queues are bounded by count and not by bytes, they do
//! not tell what they drop, and log records cannot be charged to a tenant there.

mod attributes;
mod call_trace;
mod counters;
mod export_queue;
mod headers;
mod output_export;
mod output_lines;
mod root_cause;
mod sender;
mod signal;
mod span_record;
mod spans;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

use self::counters::{DropReason, ExportCounters};
use self::export_queue::ExportQueue;
use self::headers::read_headers;
use self::output_export::OutputExporter;
use self::output_lines::LineSignal;
use self::root_cause::root_cause;
use self::sender::{Collector, Sender};
use self::spans::SpanSignal;
use crate::metrics::{MetricSource, MetricWriter, Unit};
use crate::trust_store::{NoTrustStore, no_trust_store};

pub use self::call_trace::{CallSpan, CallTrace, Tracer};
pub use self::headers::HeadersError;
pub use self::output_export::{ExportedRun, OutputExport};
pub use self::span_record::{RunMoment, TracedCall};

/// How long a connection to the collector may take to be established, and how long the handshake of
/// TLS on it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How many requests wait for a connection: one of each signal, since a sender has one on its way.
/// Those that were given up are kept until there is a connection, or none, and no queue counts
/// them.
const BUFFERED_REQUESTS: usize = 2;
/// After how long without an answer the collector is asked whether it is still there, and how long
/// it may take to answer that. A peer that accepts connections and says nothing is left by that
/// too.
const KEEP_ALIVE: [Duration; 2] = [Duration::from_secs(30), Duration::from_secs(10)];
/// What the TLS library says of a host without certificate authorities. It has no type for it.
const NO_AUTHORITIES: &str = "no native certs";
/// How long the end of the daemon waits for the collector to take what is left.
const FLUSH_GRACE: Duration = Duration::from_secs(2);

/// The settings of the export.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The URL of the collector, `http` or `https`.
    pub endpoint: String,
    /// The ratio of calls without a parent that are traced, from 0 to 1.
    pub ratio: f64,
    /// The file of the headers of each request; `None`: there are none.
    pub headers_file: Option<PathBuf>,
    /// The most bytes of spans that wait, and the most bytes of output.
    pub queue_bytes: u64,
    /// Whether several tenants share the queues.
    pub has_several_tenants: bool,
    /// Whether guests' output is exported.
    pub exports_output: bool,
    /// The keys of the labels that log records have.
    pub labels: Vec<String>,
    /// The name of this daemon among its replicas.
    pub instance: String,
}

/// Why nothing can be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExporterError {
    /// The file of headers cannot be used.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// The host has no certificates to check the collector's with.
    #[error("telemetry.otlp_endpoint: {0}")]
    NoTrustStore(NoTrustStore),
    /// The URL of the collector cannot be used.
    #[error("telemetry.otlp_endpoint: {}", root_cause(.0))]
    Endpoint(#[source] tonic::transport::Error),
}

/// The export of traces and output: what waits for the collector, and what sends it there.
pub struct Exporter {
    settings: Settings,
    endpoint: Endpoint,
    tracer: Arc<Tracer>,
    /// The export of guests' output; `None` where it is off.
    output: Option<Arc<OutputExporter>>,
    counters: Arc<ExportCounters>,
    is_ending: watch::Sender<bool>,
}

impl Exporter {
    /// Creates the export, which connects to the collector once there is something for it.
    ///
    /// # Errors
    /// The settings cannot be used on this host.
    pub fn new(settings: Settings) -> Result<Self, ExporterError> {
        if let Some(path) = &settings.headers_file {
            // A file that has a fault is an error at the start, and not first in the log.
            read_headers(path)?;
        }
        let counters = Arc::new(ExportCounters::default());
        let bytes = settings.queue_bytes;
        let queue = ExportQueue::of_things(bytes, settings.has_several_tenants);
        let tracer = Tracer::new(settings.ratio, queue, Arc::clone(&counters));
        let output = settings.exports_output.then(|| {
            let (several, labels) = (settings.has_several_tenants, settings.labels.clone());
            Arc::new(OutputExporter::new(
                bytes,
                several,
                labels,
                Arc::clone(&counters),
            ))
        });
        Ok(Self {
            endpoint: endpoint(&settings.endpoint)?,
            settings,
            tracer: Arc::new(tracer),
            output,
            counters,
            is_ending: watch::Sender::new(false),
        })
    }

    /// Returns what decides which calls are traced.
    pub fn tracer(&self) -> &Arc<Tracer> {
        &self.tracer
    }

    /// Begins the export of a run's output; `None` where output is not exported.
    pub fn begin_output(&self, run: ExportedRun<'_>) -> Option<OutputExport> {
        self.output.as_ref().map(|output| output.begin(run))
    }

    /// Sends to the collector what is to be exported, by tasks of their own, for as long as it is
    /// polled. It has to be polled in the context of a runtime.
    pub async fn send_all(self: Arc<Self>) {
        tracing::info!(
            collector = self.settings.endpoint,
            ratio = self.settings.ratio,
            output = self.settings.exports_output,
            "traces are exported"
        );
        let collector = Arc::new(Collector {
            address: self.settings.endpoint.clone(),
            channel: self.connect(),
            headers_file: self.settings.headers_file.clone(),
            resource: attributes::resource(&self.settings.instance),
            is_ending: self.is_ending.subscribe(),
        });
        let mut senders = JoinSet::new();
        let (tracer, counters) = (Arc::clone(&self.tracer), Arc::clone(&self.counters));
        let shared = Arc::clone(&collector);
        senders.spawn(async move {
            let (queue, counters) = (&tracer.queue, &counters.spans);
            let sender = Sender::<SpanSignal>::new(&shared, queue, counters);
            sender.send_all().await;
        });
        if let Some(output) = self.output.clone() {
            senders.spawn(async move {
                let (queue, counters) = (&output.queue, &output.counters.log_records);
                let sender = Sender::<LineSignal>::new(&collector, queue, counters);
                sender.send_all().await;
            });
        }
        // None of them ends by itself.
        while senders.join_next().await.is_some() {}
    }

    fn connect(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    /// Waits until the collector has taken what is left, but not for long. [`Self::send_all`] has
    /// to be polled beside it.
    pub async fn flush(&self) {
        self.is_ending.send_replace(true);
        let lines = async {
            if let Some(output) = &self.output {
                output.queue.wait_until_empty().await;
            }
        };
        let flushed = async { tokio::join!(self.tracer.queue.wait_until_empty(), lines) };
        if tokio::time::timeout(FLUSH_GRACE, flushed).await.is_err() {
            tracing::warn!(
                span_bytes = self.tracer.queue.held(),
                output_bytes = self.output_bytes(),
                "the collector of telemetry.otlp_endpoint did not take what was left to be exported in time"
            );
        }
    }

    fn output_bytes(&self) -> u64 {
        self.output.as_ref().map_or(0, |output| output.queue.held())
    }
}

/// Prepares the connection to the collector.
fn endpoint(url: &str) -> Result<Endpoint, ExporterError> {
    let [interval, timeout] = KEEP_ALIVE;
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(ExporterError::Endpoint)?
        .connect_timeout(CONNECT_TIMEOUT)
        .buffer_size(BUFFERED_REQUESTS)
        .http2_keep_alive_interval(interval)
        .keep_alive_timeout(timeout);
    if !url.starts_with("https:") {
        return Ok(endpoint);
    }
    let tls = ClientTlsConfig::new()
        .with_native_roots()
        .timeout(CONNECT_TIMEOUT);
    let secured = endpoint.tls_config(tls);
    secured.map_err(|error| match root_cause(&error).contains(NO_AUTHORITIES) {
        true => ExporterError::NoTrustStore(no_trust_store()),
        false => ExporterError::Endpoint(error),
    })
}

impl MetricSource for Exporter {
    fn write_metrics(&self, to: &mut MetricWriter<'_>) -> fmt::Result {
        let ExportCounters {
            spans,
            log_records,
            dropped_output,
        } = &*self.counters;
        let signals = [("spans", spans), ("log_records", log_records)];
        to.counters(
            "otlp_exported",
            "Spans and log records that the collector took.",
            None,
            signals.map(|(name, it)| ([("signal", name)], it.exported.get())),
        )?;
        let dropped = signals.into_iter().flat_map(|(name, it)| {
            DropReason::ALL.map(|reason| {
                let labels = [("signal", name), ("reason", reason.as_str())];
                (labels, it.dropped(reason))
            })
        });
        to.counters(
            "otlp_dropped",
            "Spans and log records that are not exported, by why.",
            None,
            dropped,
        )?;
        to.counters(
            "otlp_export_failures",
            "Requests that the collector did not take, those that are tried again included.",
            None,
            signals.map(|(name, it)| ([("signal", name)], it.failures.get())),
        )?;
        to.counters(
            "otlp_dropped_output",
            "Bytes of guests' output that are not exported because as much waits as may.",
            Some(&Unit::Bytes),
            [([], dropped_output.get())],
        )?;
        let held = [
            ("spans", self.tracer.queue.held()),
            ("log_records", self.output_bytes()),
        ];
        to.gauges(
            "otlp_queue",
            "Bytes that wait for the collector, or are on their way to it.",
            Some(&Unit::Bytes),
            held.map(|(name, bytes)| ([("signal", name)], bytes)),
        )
    }
}
