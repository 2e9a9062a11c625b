//! The export of one run's output: divides it into lines as the guest writes it, and queues them.
//!
//! A guest never waits for that. A line is exported as a whole or not at all: where a part of it
//! finds no room, the rest of it is dropped too. The last record of a run says how much was
//! dropped.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};

use super::call_trace::CallTrace;
use super::counters::{DropReason, ExportCounters};
use super::export_queue::{ExportQueue, Queued};
use super::output_lines::{OutputPiece, OutputSource, cut};
use crate::model::guest_limits::EXPORTED_LINE;
use crate::model::outcome::Stream;
use crate::model::request::{Digest, Labels, RunId};
use crate::sync::lock;

/// The part of the queue, as a fraction, in which nothing but the records waits that say how much
/// was dropped.
const HEADROOM_DIVISOR: u64 = 16;

/// What all runs need whose output is exported.
#[derive(Debug)]
pub(super) struct OutputExporter {
    pub(super) queue: ExportQueue<OutputPiece>,
    pub(super) counters: Arc<ExportCounters>,
    /// The keys of the labels that log records have (`telemetry.export_labels`).
    pub(super) labels: Vec<String>,
    /// Bytes of the queue that are for the records of what was dropped.
    headroom: u64,
}

/// The run whose output is to be exported.
#[derive(Clone, Copy, Debug)]
pub struct ExportedRun<'a> {
    /// The id of the run.
    pub run_id: RunId,
    /// The digest of its module.
    pub digest: Option<Digest>,
    /// The name of the tenant whose run it is.
    pub tenant: &'a Arc<str>,
    /// The labels of the run, of which those are exported that the operator chose.
    pub labels: &'a Labels,
    /// The trace that the run belongs to; `None` where it belongs to none.
    pub trace: Option<&'a CallTrace>,
}

/// The export of one run's output. Dropping it exports what is left.
#[derive(Debug)]
pub struct OutputExport {
    exporter: Arc<OutputExporter>,
    source: Arc<OutputSource>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The beginning of a line whose end was not written yet, of each stream. It is charged.
    partial: [Vec<u8>; 2],
    /// Whether a stream is within a line that is dropped.
    is_dropping: [bool; 2],
    dropped: u64,
    is_over: bool,
}

impl OutputExporter {
    /// Creates an exporter with a queue of `bytes`, which `several` tenants share.
    pub(super) fn new(
        bytes: u64,
        several: bool,
        labels: Vec<String>,
        counters: Arc<ExportCounters>,
    ) -> Self {
        let headroom = bytes / HEADROOM_DIVISOR;
        Self {
            queue: ExportQueue::new(bytes - headroom, several),
            counters,
            labels,
            headroom,
        }
    }

    /// Begins the export of a run's output.
    pub(super) fn begin(self: &Arc<Self>, run: ExportedRun<'_>) -> OutputExport {
        let chosen = self.labels.iter().filter_map(|key| {
            let value = run.labels.get(key)?;
            Some((key.clone(), value.to_owned()))
        });
        OutputExport {
            exporter: Arc::clone(self),
            source: Arc::new(OutputSource {
                run_id: run.run_id,
                digest: run.digest,
                tenant: Arc::clone(run.tenant),
                labels: chosen.collect(),
                trace: run.trace.map(CallTrace::log_trace),
                lines: AtomicU64::new(0),
            }),
            state: Mutex::default(),
        }
    }
}

impl OutputExport {
    /// Exports what the guest has written to a stream.
    pub fn write(&self, stream: Stream, bytes: &[u8]) {
        let mut state = self.lock();
        if state.is_over {
            return;
        }
        let end = bytes.iter().rposition(|byte| *byte == b'\n');
        let (lines, rest) = bytes.split_at(end.map_or(0, |end| end + 1));
        if !lines.is_empty() {
            self.add_lines(&mut state, stream, lines);
        }
        if !rest.is_empty() {
            self.add_partial(&mut state, stream, rest);
        }
    }

    /// Exports the last lines, whose ends were not written, and how much was dropped. Nothing is
    /// exported after it.
    pub fn finish(&self) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.is_over, true) {
            return;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            if !state.partial[stream as usize].is_empty() {
                self.add_lines(&mut state, stream, &[]);
            }
        }
        if state.dropped > 0 {
            let piece = OutputPiece::of_dropped(&self.source, state.dropped);
            if self.queue().push(piece, self.exporter.headroom).is_err() {
                self.count_dropped(1);
            }
        }
    }

    /// Queues the lines that end with `text`, with the beginning of the first of them.
    fn add_lines(&self, state: &mut State, stream: Stream, text: &[u8]) {
        let at = stream as usize;
        let text = match std::mem::take(&mut state.is_dropping[at]) {
            true => self.drop_line(state, text),
            false => text,
        };
        let partial = std::mem::take(&mut state.partial[at]);
        let charged = partial.len() as u64;
        let whole = [&*partial, text].concat();
        if whole.is_empty() {
            return;
        }
        let piece = OutputPiece::of(&self.source, stream, whole);
        if self.queue().charge(piece.tenant(), piece.cost() - charged) {
            self.queue().add_charged(piece);
            return;
        }
        self.queue().release(&self.source.tenant, charged);
        state.dropped += charged + text.len() as u64;
        let ends = text.iter().filter(|byte| **byte == b'\n').count();
        self.count_dropped((ends as u64).max(1));
        let counters = &self.exporter.counters;
        counters.dropped_output.add(charged + text.len() as u64);
    }

    /// Drops what is left of a line of which a part was dropped, and returns what follows it.
    fn drop_line<'a>(&self, state: &mut State, text: &'a [u8]) -> &'a [u8] {
        let end = text.iter().position(|byte| *byte == b'\n');
        let (dropped, rest) = text.split_at(end.map_or(text.len(), |end| end + 1));
        state.dropped += dropped.len() as u64;
        self.exporter
            .counters
            .dropped_output
            .add(dropped.len() as u64);
        rest
    }

    /// Keeps the beginning of a line until its end is written, or until it is as long as a record.
    fn add_partial(&self, state: &mut State, stream: Stream, text: &[u8]) {
        let at = stream as usize;
        if state.is_dropping[at] {
            self.drop_line(state, text);
            return;
        }
        let added = text.len() as u64;
        if !self.queue().charge(&self.source.tenant, added) {
            let before = std::mem::take(&mut state.partial[at]).len() as u64;
            self.queue().release(&self.source.tenant, before);
            state.is_dropping[at] = true;
            state.dropped += before + added;
            self.count_dropped(1);
            self.exporter.counters.dropped_output.add(before + added);
            return;
        }
        state.partial[at].extend_from_slice(text);
        while state.partial[at].len() > EXPORTED_LINE.size() {
            let rest = state.partial[at].split_off(cut(&state.partial[at]));
            self.add_lines(state, stream, &[]);
            state.partial[at] = rest;
        }
    }

    fn count_dropped(&self, records: u64) {
        let counters = &self.exporter.counters.log_records;
        counters.count_dropped(DropReason::QueueFull, records);
    }

    fn queue(&self) -> &ExportQueue<OutputPiece> {
        &self.exporter.queue
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for OutputExport {
    fn drop(&mut self) {
        self.finish();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::output_lines::PieceContent;
    use super::*;

    fn exporter(bytes: u64) -> Arc<OutputExporter> {
        let labels = vec!["kept".to_owned()];
        Arc::new(OutputExporter::new(bytes, false, labels, Arc::default()))
    }

    fn export(exporter: &Arc<OutputExporter>) -> OutputExport {
        exporter.begin(ExportedRun {
            run_id: RunId::new("here"),
            digest: None,
            tenant: &"tenant".into(),
            labels: &Labels::default(),
            trace: None,
        })
    }

    /// Takes all out of the queue: the text of each stream, and how many bytes were dropped.
    fn taken(exporter: &OutputExporter) -> ([Vec<u8>; 2], u64) {
        let (mut texts, mut dropped) = ([Vec::new(), Vec::new()], 0);
        while let Some(piece) = exporter.queue.pop() {
            exporter.queue.release(piece.tenant(), piece.cost());
            match piece.content {
                PieceContent::Lines { stream, text, .. } => texts[stream as usize].extend(text),
                PieceContent::Dropped(bytes) => dropped += bytes,
            }
        }
        (texts, dropped)
    }

    #[test]
    fn only_whole_lines_are_queued_before_the_end() {
        let exporter = exporter(1 << 20);
        let export = export(&exporter);
        export.write(Stream::Stdout, b"on");
        export.write(Stream::Stderr, b"err\npart");
        assert_eq!(taken(&exporter), ([vec![], b"err\n".to_vec()], 0));
        export.write(Stream::Stdout, b"e\ntwo\nthr");
        assert_eq!(taken(&exporter), ([b"one\ntwo\n".to_vec(), vec![]], 0));
        drop(export);
        let rest = [b"thr".to_vec(), b"part".to_vec()];
        assert_eq!(taken(&exporter), (rest, 0));
        assert_eq!(exporter.queue.held(), 0);
    }

    #[test]
    fn a_line_without_end_is_queued_in_pieces() {
        let exporter = exporter(1 << 20);
        let export = export(&exporter);
        let text = vec![b'x'; 3 * EXPORTED_LINE.size()];
        for piece in text.chunks(1000) {
            export.write(Stream::Stdout, piece);
        }
        let ([sent, _], _) = taken(&exporter);
        assert!(sent.len() >= 2 * EXPORTED_LINE.size());
        export.finish();
        let ([rest, _], _) = taken(&exporter);
        assert_eq!([sent, rest].concat(), text);
        assert_eq!(exporter.queue.held(), 0);
    }

    proptest! {
        #[test]
        fn what_arrives_are_whole_lines_and_what_does_not_is_counted(
            writes in proptest::collection::vec((any::<bool>(), "[ab\n]{1,200}"), 1..60),
            bytes in 2100_u64..6000,
            taken_after in 1_usize..20,
        ) {
            let exporter = exporter(bytes);
            let export = export(&exporter);
            let (mut given, mut got) = ([String::new(), String::new()], [Vec::new(), Vec::new()]);
            let (mut dropped, mut told) = (0, 0);
            let mut take = |exporter: &OutputExporter| {
                let (texts, bytes) = taken(exporter);
                told += bytes;
                for (got, text) in got.iter_mut().zip(texts) {
                    got.extend(text);
                }
            };
            for (i, (is_stderr, text)) in writes.iter().enumerate() {
                let stream = if *is_stderr { Stream::Stderr } else { Stream::Stdout };
                given[stream as usize].push_str(text);
                export.write(stream, text.as_bytes());
                prop_assert!(exporter.queue.held() <= bytes);
                if i % taken_after == 0 {
                    take(&exporter);
                }
            }
            take(&exporter);
            drop(export);
            take(&exporter);
            prop_assert_eq!(exporter.queue.held(), 0);
            for (given, got) in given.iter().zip(&got) {
                dropped += given.len() - got.len();
                let mut lines = given.split_inclusive('\n');
                let got = str::from_utf8(got).unwrap();
                for line in got.split_inclusive('\n') {
                    prop_assert!(lines.any(|given| given == line), "{line:?} of {given:?}");
                }
            }
            prop_assert_eq!(told, dropped as u64);
            prop_assert_eq!(exporter.counters.dropped_output.get(), dropped as u64);
        }
    }
}
