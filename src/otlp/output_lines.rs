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
use super::export_queue::{Account, Charge, ExportQueue, Queued};
use super::signal::{BATCH_BYTES, ExportAnswer, ExportBatch, Signal};
use crate::model::guest_limits::EXPORTED_LINE;
use crate::model::outcome::Stream;
use crate::model::request::{Digest, RunId};

/// About how many bytes a log record has on the wire, besides its line and its labels.
const LOG_RECORD_BYTES: usize = 768;
/// What each log record is charged with in bytes that a piece of output becomes, besides its text.
const RECORD_COST: u64 = 128;
/// What a label is charged with in bytes, besides its key and its value.
const LABEL_COST: usize = 64;
/// What a piece of several lines is charged with at the most, in bytes, besides its run. So tenants
/// that write much take turns often, and a small queue has room for the first lines of a large
/// write.
const PIECE_BYTES: usize = 16 << 10;

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
    /// What it is charged with, in bytes.
    cost: u64,
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

/// A part of a stream's output that becomes one piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct PieceText<'a> {
    pub(super) text: &'a [u8],
    /// How many log records it becomes.
    pub(super) records: u64,
}

impl<'a> PieceText<'a> {
    /// Divides a text into pieces of whole lines, and of what follows the last of them.
    pub(super) fn divide(text: &'a [u8]) -> impl Iterator<Item = Self> {
        let mut rest = text;
        std::iter::from_fn(move || {
            let piece = Self::first(rest)?;
            rest = &rest[piece.text.len()..];
            Some(piece)
        })
    }

    /// Takes as many lines as one piece may have, or the first. The guest waits meanwhile, so that
    /// lines are counted, which is fast, rather than looked at one by one.
    fn first(text: &'a [u8]) -> Option<Self> {
        let mut most = text.len().min(PIECE_BYTES);
        while let Some(last) = text[..most].iter().rposition(|byte| *byte == b'\n') {
            let lines = &text[..=last];
            let records = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            if records * RECORD_COST + lines.len() as u64 <= PIECE_BYTES as u64 {
                return Some(Self {
                    text: lines,
                    records,
                });
            }
            most = lines.len() / 2;
        }
        let end = text.iter().position(|byte| *byte == b'\n');
        let line = end.map_or(text, |end| &text[..=end]);
        (!line.is_empty()).then(|| Self {
            text: line,
            records: records_of(line),
        })
    }

    /// Returns what the piece is charged with, if it is of this run.
    pub(super) fn cost(&self, source: &OutputSource) -> u64 {
        source.cost() + self.records * RECORD_COST + self.text.len() as u64
    }
}

impl OutputSource {
    /// Returns what a piece of this run is charged with in bytes, besides its log records: it may
    /// be all that still holds the run.
    fn cost(&self) -> u64 {
        (size_of::<Self>() + self.label_bytes()) as u64
    }

    /// Returns how many bytes the labels have, about.
    fn label_bytes(&self) -> usize {
        let labels = self.labels.iter();
        labels
            .map(|(key, value)| key.len() + value.len() + LABEL_COST)
            .sum()
    }
}

impl OutputPiece {
    /// Creates a piece of a stream's output, which was written just now.
    pub(super) fn of(source: &Arc<OutputSource>, stream: Stream, piece: PieceText<'_>) -> Self {
        let content = PieceContent::Lines {
            stream,
            text: piece.text.to_vec(),
            sent: 0,
        };
        Self::now(source, content, piece.cost(source))
    }

    /// Creates the piece that tells how many bytes of a run's output were dropped.
    pub(super) fn of_dropped(source: &Arc<OutputSource>, bytes: u64) -> Self {
        let cost = source.cost() + RECORD_COST;
        Self::now(source, PieceContent::Dropped(bytes), cost)
    }

    fn now(source: &Arc<OutputSource>, content: PieceContent, cost: u64) -> Self {
        Self {
            source: Arc::clone(source),
            at: SystemTime::now(),
            content,
            cost,
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

/// Returns how many log records a line becomes, which are several where it is longer than one has.
fn records_of(line: &[u8]) -> u64 {
    let mut rest = line.strip_suffix(b"\n").unwrap_or(line);
    let mut records = 1;
    while rest.len() > EXPORTED_LINE.size() {
        rest = &rest[cut(rest)..];
        records += 1;
    }
    records
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
        self.cost
    }

    fn account(&self) -> Account {
        match self.content {
            PieceContent::Lines { .. } => Account::Things,
            PieceContent::Dropped(_) => Account::Notices,
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
            let labels = piece.source.label_bytes();
            while bytes < BATCH_BYTES
                && let Some((record, body)) = piece.next_record()
            {
                bytes += LOG_RECORD_BYTES + labels + body;
                records.push(record);
            }
            match piece.is_sent() {
                true => charges.push(Charge::of(&piece)),
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

    async fn send(
        channel: Channel,
        request: Request<Self::Request>,
    ) -> Result<ExportAnswer, Status> {
        let answer = LogsServiceClient::new(channel).export(request).await?;
        let partial = answer.into_inner().partial_success.unwrap_or_default();
        Ok(ExportAnswer::new(
            partial.rejected_log_records,
            partial.error_message,
        ))
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
    fn a_text_becomes_pieces_of_whole_lines_that_count_their_records() {
        let most = EXPORTED_LINE.size();
        let few = b"a line of some length, and another\n".repeat(10_000);
        let empty = vec![b'\n'; 5000];
        let long = [&b"first\n"[..], &vec![b'x'; 3 * most], b"\nlast"].concat();
        for text in [&few, &empty, &long] {
            let pieces: Vec<PieceText<'_>> = PieceText::divide(text).collect();
            let texts: Vec<&[u8]> = pieces.iter().map(|it| it.text).collect();
            assert_eq!(texts.concat(), *text);
            for (at, piece) in pieces.iter().enumerate() {
                let is_last = at + 1 == pieces.len();
                assert!(is_last || piece.text.ends_with(b"\n"));
                assert_eq!(piece.records, lines(piece.text).len() as u64);
                let ends = piece.text.iter().filter(|byte| **byte == b'\n').count();
                let cost = piece.text.len() as u64 + piece.records * RECORD_COST;
                assert!(ends <= 1 || cost <= PIECE_BYTES as u64, "{cost}");
            }
        }
        // Of the long line nothing is cut off into another piece.
        let pieces = PieceText::divide(&long).map(|it| (it.text.len(), it.records));
        let expected = [(6, 1), (3 * most + 1, 3), (4, 1)];
        assert_eq!(pieces.collect::<Vec<_>>(), expected);
        assert_eq!(PieceText::divide(b"").count(), 0);
    }

    #[test]
    fn a_piece_is_charged_with_the_labels_that_it_holds() {
        let source = |labels: Vec<(String, String)>| OutputSource {
            run_id: RunId::new("here"),
            digest: None,
            tenant: "tenant".into(),
            labels,
            trace: None,
            lines: AtomicU64::new(0),
        };
        let labels = (0..32).map(|i| (format!("{i:0128}"), "v".repeat(128)));
        let (bare, labelled) = (source(Vec::new()), source(labels.collect()));
        let costs = [bare, labelled].map(|source| {
            let (source, piece) = (Arc::new(source), PieceText::divide(b"x").next().unwrap());
            let queued = OutputPiece::of(&source, Stream::Stdout, piece);
            assert_eq!(queued.cost(), piece.cost(&source));
            [queued.cost(), OutputPiece::of_dropped(&source, 1).cost()]
        });
        for (bare, labelled) in costs[0].iter().zip(costs[1]) {
            assert!(labelled - bare >= 32 * 256, "{bare} {labelled}");
        }
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
