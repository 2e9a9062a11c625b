//! Lines of guests' output on the wire: a log record for each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::attributes::{self, nanoseconds, number, text, text_value};
use super::call_trace::LogTrace;
use super::export_queue::{ExportQueue, Queued};
use super::signal::{BATCH_BYTES, ExportBatch, Signal};
use crate::model::guest_limits::EXPORTED_LINE;
use crate::model::outcome::Stream;
use crate::model::request::{Digest, RunId};

/// About how many bytes a log record has on the wire, besides its line and its labels.
const LOG_RECORD_BYTES: usize = 768;
/// What a piece of output in the queue is charged with in bytes, besides its text.
const PIECE_COST: u64 = 128;

/// The run whose output is exported, as its log records tell it.
#[derive(Debug)]
pub(super) struct OutputSource {
    pub(super) run_id: RunId,
    pub(super) digest: Option<Digest>,
    pub(super) tenant: Arc<str>,
    /// Those labels of the run that are exported (`telemetry.export_labels`).
    pub(super) labels: Vec<(String, String)>,
    pub(super) trace: Option<LogTrace>,
    /// How many lines were made log records of so far.
    pub(super) lines: AtomicU64,
}

/// Output that waits to be exported.
#[derive(Debug)]
pub(super) struct OutputPiece {
    pub(super) source: Arc<OutputSource>,
    pub(super) at: SystemTime,
    pub(super) content: PieceContent,
}

/// What a piece of output tells.
#[derive(Debug)]
pub(super) enum PieceContent {
    /// Lines of a stream, of which the last may have no end. Those before `sent` are exported.
    Lines {
        stream: Stream,
        text: Vec<u8>,
        sent: usize,
    },
    /// So many bytes of the run's output are not exported, because there was no room for them.
    Dropped(u64),
}

impl OutputPiece {
    /// Creates a piece of a stream's output, which was written just now.
    pub(super) fn of(source: &Arc<OutputSource>, stream: Stream, text: Vec<u8>) -> Self {
        let content = PieceContent::Lines {
            stream,
            text,
            sent: 0,
        };
        Self::now(source, content)
    }

    /// Creates the piece that tells how many bytes of a run's output were dropped.
    pub(super) fn of_dropped(source: &Arc<OutputSource>, bytes: u64) -> Self {
        Self::now(source, PieceContent::Dropped(bytes))
    }

    fn now(source: &Arc<OutputSource>, content: PieceContent) -> Self {
        Self {
            source: Arc::clone(source),
            at: SystemTime::now(),
            content,
        }
    }

    /// Makes the next log record of this piece, with the bytes of its text; `None` once there is
    /// none left.
    fn next_record(&mut self) -> Option<(LogRecord, usize)> {
        let (body, told, severity) = match &mut self.content {
            PieceContent::Lines { stream, text, sent } => {
                let rest = text.get(*sent..).filter(|rest| !rest.is_empty())?;
                let line = first_line(rest);
                *sent += line.len();
                let body = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(line));
                let stream = attributes::text("log.iostream", name(*stream));
                (body.into_owned(), stream, SeverityNumber::Unspecified)
            }
            PieceContent::Dropped(bytes) => {
                let dropped = std::mem::take(bytes);
                if dropped == 0 {
                    return None;
                }
                let body = format!(
                    "{dropped} bytes of this run's output were not exported, because as much waited as may (telemetry.otlp_queue)"
                );
                let bytes = number("ringfence.output.dropped_bytes", dropped);
                (body, bytes, SeverityNumber::Warn)
            }
        };
        let bytes = body.len();
        let mut record = self.record(body);
        record.severity_number = severity.into();
        record.attributes.push(told);
        Some((record, bytes))
    }

    /// Reports whether log records were made of all of the piece.
    fn is_sent(&self) -> bool {
        match &self.content {
            PieceContent::Lines { text, sent, .. } => *sent == text.len(),
            PieceContent::Dropped(bytes) => *bytes == 0,
        }
    }

    fn record(&self, body: String) -> LogRecord {
        let source = &*self.source;
        let line = source.lines.fetch_add(1, Ordering::Relaxed) + 1;
        let mut record = LogRecord {
            time_unix_nano: nanoseconds(self.at),
            observed_time_unix_nano: nanoseconds(self.at),
            body: Some(text_value(body)),
            attributes: attributes_of(source, line),
            ..LogRecord::default()
        };
        if let Some(trace) = source.trace {
            record.trace_id = trace.trace_id.to_bytes().to_vec();
            record.span_id = trace.span.to_bytes().to_vec();
            record.flags = trace.is_sampled.into();
        }
        record
    }
}

/// Returns the attributes that all records of a run's output have. `line` counts them over both
/// streams: records of one moment have the same time, and backends order by that.
fn attributes_of(source: &OutputSource, line: u64) -> Vec<KeyValue> {
    let mut told = vec![
        text(attributes::RUN_ID, source.run_id.as_str()),
        text(attributes::TENANT, &*source.tenant),
        number("ringfence.output.line", line),
    ];
    if let Some(digest) = source.digest {
        told.push(text(attributes::DIGEST, digest.to_string()));
    }
    for (key, value) in &source.labels {
        told.push(text(&format!("ringfence.label.{key}"), value));
    }
    told
}

/// Returns the name of a stream, as the semantic conventions have it.
const fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

/// Returns the first line of a text with its end, or as much of it as one record has.
fn first_line(text: &[u8]) -> &[u8] {
    let line = text.iter().position(|byte| *byte == b'\n');
    let line = line.map_or(text, |end| &text[..=end]);
    let content = line.strip_suffix(b"\n").unwrap_or(line);
    match content.len() > EXPORTED_LINE.size() {
        true => &line[..cut(content)],
        false => line,
    }
}

/// Returns where a line is cut that is longer than one record has: not within a character, where
/// that can be told.
pub(super) fn cut(line: &[u8]) -> usize {
    const LONGEST_CHARACTER: usize = 4;
    let most = EXPORTED_LINE.size();
    let is_start = |at: &usize| line.get(*at).is_none_or(|byte| byte & 0xc0 != 0x80);
    let candidates = (most + 1 - LONGEST_CHARACTER..=most).rev();
    candidates.into_iter().find(is_start).unwrap_or(most)
}

impl Queued for OutputPiece {
    fn tenant(&self) -> &Arc<str> {
        &self.source.tenant
    }

    fn cost(&self) -> u64 {
        match &self.content {
            PieceContent::Lines { text, .. } => PIECE_COST + text.len() as u64,
            PieceContent::Dropped(_) => PIECE_COST,
        }
    }
}

/// The signal of log records.
pub(super) struct LineSignal;

impl Signal for LineSignal {
    type Thing = OutputPiece;
    type Request = ExportLogsServiceRequest;
    const NAME: &'static str = "log_records";

    fn collect(
        queue: &ExportQueue<OutputPiece>,
        resource: &Resource,
    ) -> ExportBatch<Self::Request> {
        let (mut records, mut charges, mut bytes) = (Vec::new(), Vec::new(), 0);
        while bytes < BATCH_BYTES
            && let Some(mut piece) = queue.pop()
        {
            let labels = piece.source.labels.iter();
            let labels: usize = labels
                .map(|(key, value)| key.len() + value.len() + 64)
                .sum();
            while bytes < BATCH_BYTES
                && let Some((record, body)) = piece.next_record()
            {
                bytes += LOG_RECORD_BYTES + labels + body;
                records.push(record);
            }
            match piece.is_sent() {
                true => charges.push((piece.tenant().clone(), piece.cost())),
                // The rest is for the next request.
                false => queue.put_back(piece),
            }
        }
        ExportBatch {
            records: records.len() as u64,
            request: ExportLogsServiceRequest {
                resource_logs: vec![ResourceLogs {
                    resource: Some(resource.clone()),
                    scope_logs: vec![ScopeLogs {
                        scope: Some(attributes::scope()),
                        log_records: records,
                        ..ScopeLogs::default()
                    }],
                    ..ResourceLogs::default()
                }],
            },
            is_full: bytes >= BATCH_BYTES,
            charges,
        }
    }

    async fn send(channel: Channel, request: Request<Self::Request>) -> Result<u64, Status> {
        let answer = LogsServiceClient::new(channel).export(request).await?;
        let partial = answer.into_inner().partial_success;
        let rejected = partial.map_or(0, |partial| partial.rejected_log_records);
        Ok(u64::try_from(rejected).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<Vec<u8>> {
        let mut rest = text;
        let mut lines = Vec::new();
        while !rest.is_empty() {
            let line = first_line(rest);
            lines.push(line.to_vec());
            rest = &rest[line.len()..];
        }
        lines
    }

    #[test]
    fn a_text_is_divided_at_the_ends_of_its_lines() {
        let told = lines(b"one\n\ntwo\nthree");
        let told: Vec<&[u8]> = told.iter().map(Vec::as_slice).collect();
        assert_eq!(told, [&b"one\n"[..], b"\n", b"two\n", b"three"]);
    }

    #[test]
    fn a_long_line_is_cut_and_no_character_with_it() {
        let most = EXPORTED_LINE.size();
        let long = "x".repeat(most) + "\n";
        assert_eq!(lines(long.as_bytes()).len(), 1);
        for character in ["x", "\u{e9}", "\u{20ac}", "\u{1f600}"] {
            let text = "y".to_owned() + &character.repeat(3 * most / character.len());
            let told = lines(text.as_bytes());
            assert_eq!(told.concat(), text.as_bytes());
            assert!(told.iter().all(|line| line.len() <= most));
            assert!(told.iter().all(|line| str::from_utf8(line).is_ok()));
        }
        // What is no text is cut too.
        let told = lines(&vec![0x80; 2 * most]);
        assert_eq!(told.len(), 2);
    }
}
