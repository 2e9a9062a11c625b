//! Sends what waits in a queue to the collector, one request after the other. What the collector
//! cannot take now is tried again with exponential backoff, for a while; what it refuses is
//! dropped.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Extensions, Request, Status};

use super::counters::{DropReason, SignalCounters};
use super::export_queue::ExportQueue;
use super::headers::{HeadersError, read_headers};
use super::root_cause::root_cause;
use super::signal::{ExportBatch, Signal};
use crate::model::refusal::quote;
use crate::sync::lock;

/// How long things wait for others to be sent with, unless many wait.
const BATCH_DELAY: Duration = Duration::from_millis(500);
/// How long the collector may take to answer one request.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one request is tried again before it is dropped.
const RETRY_FOR: Duration = Duration::from_secs(60);
/// The time before a request is tried again for the first time, and the longest such time.
const BACKOFF: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(5)];
/// How often a failure is logged at most.
const LOGGED_AGAIN: Duration = Duration::from_secs(60);

/// The collector, as both signals reach it.
pub(super) struct Collector {
    /// Its address, as it is configured, for the log.
    pub(super) address: String,
    pub(super) channel: Channel,
    pub(super) headers_file: Option<PathBuf>,
    /// What everything that is exported comes from.
    pub(super) resource: Resource,
    /// Whether the daemon is ending, so that nothing is waited for any more.
    pub(super) is_ending: watch::Receiver<bool>,
}

/// Sends the things of one queue.
pub(super) struct Sender<'a, S: Signal> {
    collector: &'a Collector,
    queue: &'a ExportQueue<S::Thing>,
    counters: &'a SignalCounters,
    /// When a failure was logged the last time.
    logged: Mutex<Option<Instant>>,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
enum ExportFailure {
    #[error(transparent)]
    Headers(#[from] HeadersError),
    #[error("it does not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    NoAnswer,
    #[error("{}: {}", code.description(), quote(message))]
    Status {
        code: Code,
        message: String,
        /// Whether the connection failed, rather than the collector.
        is_of_transport: bool,
    },
}

impl ExportFailure {
    fn of(status: &Status) -> Self {
        let cause = status.source();
        Self::Status {
            code: status.code(),
            message: cause.map_or_else(|| status.message().to_owned(), root_cause),
            is_of_transport: cause.is_some(),
        }
    }

    /// Reports whether the same request may be taken later, as the protocol has it.
    fn may_pass(&self) -> bool {
        match self {
            Self::Headers(_) | Self::NoAnswer => true,
            Self::Status {
                is_of_transport: true,
                ..
            } => true,
            Self::Status { code, .. } => match code {
                Code::Cancelled
                | Code::DeadlineExceeded
                | Code::ResourceExhausted
                | Code::Aborted
                | Code::OutOfRange
                | Code::Unavailable
                | Code::DataLoss => true,
                Code::Ok
                | Code::Unknown
                | Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::FailedPrecondition
                | Code::Unimplemented
                | Code::Internal
                | Code::Unauthenticated => false,
            },
        }
    }
}

impl<'a, S: Signal> Sender<'a, S> {
    /// Creates the sender of what waits in `queue`.
    pub(super) fn new(
        collector: &'a Collector,
        queue: &'a ExportQueue<S::Thing>,
        counters: &'a SignalCounters,
    ) -> Self {
        Self {
            collector,
            queue,
            counters,
            logged: Mutex::new(None),
        }
    }

    /// Sends what comes to wait in the queue, for as long as it is polled.
    pub(super) async fn send_all(&self) {
        let mut is_behind = false;
        loop {
            self.queue.wait_until_filled().await;
            if !is_behind {
                tokio::select! {
                    () = tokio::time::sleep(BATCH_DELAY) => {}
                    () = self.queue.wait_until_full() => {}
                    () = self.ending() => {}
                }
            }
            let batch = S::collect(self.queue, &self.collector.resource);
            is_behind = batch.is_full;
            if batch.records > 0 {
                self.deliver(&batch).await;
            }
            for (tenant, bytes) in batch.charges {
                self.queue.release(&tenant, bytes);
            }
        }
    }

    /// Sends a request until the collector takes it, refuses it, or fails for too long.
    async fn deliver(&self, batch: &ExportBatch<S::Request>) {
        let begun = Instant::now();
        let [mut backoff, longest] = BACKOFF;
        loop {
            let failure = match self.attempt(&batch.request).await {
                Ok(rejected) => {
                    let rejected = rejected.min(batch.records);
                    self.counters.exported.add(batch.records - rejected);
                    let reason = DropReason::Rejected;
                    self.counters.count_dropped(reason, rejected);
                    return;
                }
                Err(failure) => failure,
            };
            self.counters.failures.increment();
            self.log(&failure);
            let is_over = begun.elapsed() >= RETRY_FOR || *self.collector.is_ending.borrow();
            if is_over || !failure.may_pass() {
                let reason = match failure.may_pass() {
                    true => DropReason::Undelivered,
                    false => DropReason::Rejected,
                };
                self.counters.count_dropped(reason, batch.records);
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = self.ending() => {}
            }
            backoff = (2 * backoff).min(longest);
        }
    }

    async fn attempt(&self, request: &S::Request) -> Result<u64, ExportFailure> {
        let headers = self.collector.headers().await?;
        let request = Request::from_parts(headers, Extensions::default(), request.clone());
        let sent = S::send(self.collector.channel.clone(), request);
        match tokio::time::timeout(ANSWER_TIMEOUT, sent).await {
            Ok(answered) => answered.map_err(|status| ExportFailure::of(&status)),
            Err(_elapsed) => Err(ExportFailure::NoAnswer),
        }
    }

    /// Logs a failure, unless one was logged lately.
    fn log(&self, failure: &ExportFailure) {
        let mut logged = lock(&self.logged);
        if logged.is_some_and(|at| at.elapsed() < LOGGED_AGAIN) {
            return;
        }
        *logged = Some(Instant::now());
        drop(logged);
        let dropped = DropReason::ALL.map(|reason| self.counters.dropped(reason));
        tracing::warn!(
            signal = S::NAME,
            collector = self.collector.address,
            cause = %failure,
            dropped = dropped.iter().sum::<u64>(),
            "the collector of telemetry.otlp_endpoint does not take what is exported"
        );
    }

    /// Waits until the daemon is ending.
    async fn ending(&self) {
        let mut is_ending = self.collector.is_ending.clone();
        // The sender lives for as long as what it belongs to.
        let _ = is_ending.wait_for(|is_ending| *is_ending).await;
    }
}

impl Collector {
    /// Reads the headers again, so that a token that was replaced is used at once.
    async fn headers(&self) -> Result<MetadataMap, HeadersError> {
        let Some(path) = self.headers_file.clone() else {
            return Ok(MetadataMap::new());
        };
        let shown = path.clone();
        let read = tokio::task::spawn_blocking(move || read_headers(&path)).await;
        read.unwrap_or_else(|failed| Err(HeadersError::interrupted(&shown, failed.into())))
    }
}
