//! Sends what waits in a queue to the collector, one request after the other. What the collector
//! cannot take now is tried again with exponential backoff, for a while; what it refuses is
//! dropped.

use std::error::Error;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::resource::v1::Resource;
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::transport::Channel;
use tonic::{Code, Extensions, Request, Status};
use tonic_types::{RetryInfo, StatusExt};

use super::counters::{DropReason, SignalCounters};
use super::export_queue::ExportQueue;
use super::headers::{HeadersError, read_headers};
use super::root_cause::root_cause;
use super::signal::{ExportAnswer, ExportBatch, Signal};
use crate::model::refusal::quote;
use crate::sync::lock;

/// How long things wait for others to be sent with, unless many wait.
const BATCH_DELAY: Duration = Duration::from_millis(500);
/// How long the collector may take to answer one request, which it is told, the reading of the
/// headers included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long one request is tried again before it is dropped, and the longest time that is waited
/// because the collector asks for it.
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
    /// When a failure, or what the collector says, was logged the last time.
    logged: Mutex<Option<Instant>>,
}

/// Why a request was not taken.
#[derive(Debug, thiserror::Error)]
enum ExportFailure {
    #[error(transparent)]
    Headers(#[from] HeadersError),
    #[error("telemetry.otlp_headers_file is not read within {} s", ANSWER_TIMEOUT.as_secs())]
    NoHeaders,
    #[error("it does not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    NoAnswer,
    #[error("{}: {}", code.description(), quote(message))]
    Status {
        code: Code,
        message: String,
        /// Whether the connection failed, rather than the collector.
        is_of_transport: bool,
        /// When the collector wants the same again, where it says so.
        retry: Option<RetryInfo>,
    },
}

impl ExportFailure {
    fn of(status: &Status) -> Self {
        let cause = status.source();
        Self::Status {
            code: status.code(),
            message: cause.map_or_else(|| status.message().to_owned(), root_cause),
            is_of_transport: cause.is_some(),
            retry: status.get_details_retry_info(),
        }
    }

    /// Reports whether the same request may be taken later, as the protocol has it.
    fn may_pass(&self) -> bool {
        match self {
            Self::Headers(_) | Self::NoHeaders | Self::NoAnswer => true,
            Self::Status {
                is_of_transport: true,
                ..
            } => true,
            Self::Status { code, retry, .. } => match code {
                // It may be for good, unless the collector says that it is not.
                Code::ResourceExhausted => retry.is_some(),
                Code::Cancelled
                | Code::DeadlineExceeded
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

    /// Returns how long to wait before the same request is sent again: as long as the collector
    /// asks for, where that is longer than `backoff`.
    fn pause(&self, backoff: Duration) -> Duration {
        let asked = match self {
            Self::Headers(_) | Self::NoHeaders | Self::NoAnswer => None,
            Self::Status { retry, .. } => retry.as_ref().and_then(|retry| retry.retry_delay),
        };
        asked.map_or(backoff, |asked| asked.clamp(backoff, RETRY_FOR))
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
            for charge in &batch.charges {
                self.queue.release_charge(charge);
            }
        }
    }

    /// Sends a request until the collector takes it, refuses it, or fails for too long.
    async fn deliver(&self, batch: &ExportBatch<S::Request>) {
        let begun = Instant::now();
        let [mut backoff, longest] = BACKOFF;
        loop {
            let failure = match self.attempt(&batch.request).await {
                Ok(answer) => {
                    self.count_answer(batch.records, &answer);
                    return;
                }
                Err(failure) => failure,
            };
            self.counters.failures.increment();
            self.log("does not take what is exported", &failure);
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
                () = tokio::time::sleep(failure.pause(backoff)) => {}
                () = self.ending() => {}
            }
            backoff = (2 * backoff).min(longest);
        }
    }

    /// Counts what the collector took and what it rejected of a request, and logs what it says.
    fn count_answer(&self, records: u64, answer: &ExportAnswer) {
        let rejected = answer.rejected.min(records);
        self.counters.exported.add(records - rejected);
        self.counters.count_dropped(DropReason::Rejected, rejected);
        let message = quote(&answer.message);
        if rejected > 0 {
            let cause = format!("of {records}, {rejected} are rejected: {message}");
            self.log("does not take all that is exported", &cause);
        } else if !answer.message.is_empty() {
            self.log("takes what is exported, and has a warning", &message);
        }
    }

    async fn attempt(&self, request: &S::Request) -> Result<ExportAnswer, ExportFailure> {
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        let headers = tokio::time::timeout_at(deadline, self.collector.headers()).await;
        let headers = headers.map_err(|_elapsed| ExportFailure::NoHeaders)??;
        let mut request = Request::from_parts(headers, Extensions::default(), request.clone());
        request.set_timeout(ANSWER_TIMEOUT);
        let sent = S::send(self.collector.channel.clone(), request);
        match tokio::time::timeout_at(deadline, sent).await {
            Ok(answered) => answered.map_err(|status| ExportFailure::of(&status)),
            Err(_elapsed) => Err(ExportFailure::NoAnswer),
        }
    }

    /// Logs what the collector does and why, unless that was done lately.
    fn log(&self, does: &str, cause: &dyn Display) {
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
            cause = %cause,
            dropped = dropped.iter().sum::<u64>(),
            "the collector of telemetry.otlp_endpoint {does}"
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
