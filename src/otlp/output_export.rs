//! The export of one run's output: divides it into lines as the guest writes it, and queues them.
//!
//! A guest never waits for that. Where a part of a line finds no room, the rest of it is dropped
//! too, and what was queued of it before is its beginning: nothing is exported that begins within a
//! line. The last record of a run says how much was dropped, and has bytes of the queue of its own.

use std::borrow::Cow;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};

use super::call_trace::CallTrace;
use super::counters::{DropReason, ExportCounters};
use super::export_queue::{Account, ExportQueue, QueueBounds};
use super::output_lines::{OutputPiece, OutputSource, PieceText, cut};
use crate::model::guest_limits::EXPORTED_LINE;
use crate::model::outcome::Stream;
use crate::model::request::{Digest, Labels, RunId};
use crate::sync::lock;

/// The part of the queue, as a fraction, that is for the records that say how much was dropped.
const NOTICES_DIVISOR: u64 = 16;
/// The least bytes for those records, where the queue is small: one of them has at least this much
/// room, with all the labels that a run can have.
const LEAST_NOTICES: u64 = 14 << 10;
/// The part of the queue, as a fraction, that is for lines whose ends were not written yet. A run
/// holds them for as long as it lives, and what waits has to have room all the same.
const UNFINISHED_DIVISOR: u64 = 8;

/// What all runs need whose output is exported.
#[derive(Debug)]
pub(super) struct OutputExporter {
    pub(super) queue: ExportQueue<OutputPiece>,
    pub(super) counters: Arc<ExportCounters>,
    /// The keys of the labels that log records have (`telemetry.export_labels`).
    pub(super) labels: Vec<String>,
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
    /// The beginning of a line whose end was not written yet, of each stream. It is charged as
    /// [`Account::Unfinished`].
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
        let notices = (bytes / NOTICES_DIVISOR).max(LEAST_NOTICES.min(bytes / 4));
        let unfinished = bytes / UNFINISHED_DIVISOR;
        let bounds = QueueBounds {
            things: bytes - notices - unfinished,
            notices,
            unfinished,
        };
        Self {
            queue: ExportQueue::new(bounds, several),
            counters,
            labels,
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
            if self.queue().push(piece).is_err() {
                self.count_dropped(1);
            }
        }
    }

    /// Queues what ends with `text`, with the beginning of its first line. Where no more than the
    /// beginning of a line is there, and finds no room, the rest of that line is dropped too.
    fn add_lines(&self, state: &mut State, stream: Stream, text: &[u8]) {
        let at = stream as usize;
        let text = match std::mem::take(&mut state.is_dropping[at]) {
            true => self.drop_line(state, text),
            false => text,
        };
        let partial = std::mem::take(&mut state.partial[at]);
        let whole = match partial.is_empty() {
            true => Cow::Borrowed(text),
            false => Cow::Owned([&*partial, text].concat()),
        };
        for piece in PieceText::divide(&whole) {
            let (source, cost) = (&self.source, piece.cost(&self.source));
            if self.queue().charge(Account::Things, &source.tenant, cost) {
                let piece = OutputPiece::of(source, stream, piece);
                self.queue().add_charged(piece);
                continue;
            }
            self.drop_text(state, piece.text);
            self.count_dropped(piece.records);
            state.is_dropping[at] = !piece.text.ends_with(b"\n");
        }
        self.release_unfinished(&partial);
    }

    /// Drops what is left of a line of which a part was dropped, and returns what follows it.
    fn drop_line<'a>(&self, state: &mut State, text: &'a [u8]) -> &'a [u8] {
        let end = text.iter().position(|byte| *byte == b'\n');
        let (dropped, rest) = text.split_at(end.map_or(text.len(), |end| end + 1));
        self.drop_text(state, dropped);
        rest
    }

    fn drop_text(&self, state: &mut State, text: &[u8]) {
        let dropped = text.len() as u64;
        state.dropped += dropped;
        self.exporter.counters.dropped_output.add(dropped);
    }

    /// Keeps the beginning of a line until its end is written, or until it is as long as a record.
    /// Where as much is kept as may be, it is queued at once.
    fn add_partial(&self, state: &mut State, stream: Stream, text: &[u8]) {
        let at = stream as usize;
        if state.is_dropping[at] {
            self.drop_line(state, text);
            return;
        }
        let (tenant, added) = (&self.source.tenant, text.len() as u64);
        if !self.queue().charge(Account::Unfinished, tenant, added) {
            self.add_lines(state, stream, text);
            return;
        }
        state.partial[at].extend_from_slice(text);
        while state.partial[at].len() > EXPORTED_LINE.size() {
            let rest = state.partial[at].split_off(cut(&state.partial[at]));
            self.add_lines(state, stream, &[]);
            if state.is_dropping[at] {
                self.release_unfinished(&rest);
                self.drop_text(state, &rest);
                return;
            }
            state.partial[at] = rest;
        }
    }

    fn release_unfinished(&self, partial: &[u8]) {
        let (tenant, bytes) = (&self.source.tenant, partial.len() as u64);
        if bytes > 0 {
            self.queue().release(Account::Unfinished, tenant, bytes);
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

    use super::super::export_queue::Charge;
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
            exporter.queue.release_charge(&Charge::of(&piece));
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

    #[test]
    fn what_is_held_of_unfinished_lines_is_bounded_and_what_is_beyond_it_is_sent() {
        let exporter = exporter(1 << 20);
        let most = (1 << 20) / UNFINISHED_DIVISOR;
        let exports: Vec<OutputExport> = (0..100).map(|_| export(&exporter)).collect();
        for export in &exports {
            export.write(Stream::Stderr, &[b'x'; 4000]);
        }
        let ([out, err], dropped) = taken(&exporter);
        assert_eq!((out.len(), dropped), (0, 0));
        // Nothing is left in the queue but what is kept.
        let kept = exporter.queue.held();
        assert!(kept <= most && kept > most - 4000, "{kept}");
        assert_eq!(err.len() as u64 + kept, 100 * 4000);
        // Output that comes then has all the room that it had before.
        let other = export(&exporter);
        let lines = b"a line\n".repeat(1000);
        other.write(Stream::Stdout, &lines);
        assert_eq!(taken(&exporter), ([lines, vec![]], 0));
        drop(exports);
        let ([_, rest], dropped) = taken(&exporter);
        assert_eq!((rest.len() as u64, dropped), (kept, 0));
        assert_eq!(exporter.queue.held(), 0);
    }

    #[test]
    fn where_a_part_of_a_long_line_finds_no_room_nothing_follows_of_it() {
        let exporter = exporter(200 << 10);
        let export = export(&exporter);
        let long = vec![b'x'; 400 << 10];
        for piece in long.chunks(10_000) {
            export.write(Stream::Stdout, piece);
        }
        let ([first, _], _) = taken(&exporter);
        assert!(!first.is_empty() && first.len() < long.len());
        // There is room again, but the line goes on.
        export.write(Stream::Stdout, b"tail\nnext\n");
        export.finish();
        let rest = [b"next\n".to_vec(), vec![]];
        let dropped = (long.len() + 5 - first.len()) as u64;
        assert_eq!(taken(&exporter), (rest, dropped));
        assert_eq!(exporter.queue.held(), 0);
    }

    #[test]
    fn a_queue_that_is_full_has_room_for_what_says_how_much_was_dropped() {
        let labels = (0..32).map(|i| (format!("{i:0128}"), "v".repeat(128)));
        let labels: std::collections::BTreeMap<_, _> = labels.collect();
        let keys = labels.keys().cloned().collect();
        // The least queue that may be configured.
        let exporter = OutputExporter::new(64 << 10, true, keys, Arc::default());
        let exporter = Arc::new(exporter);
        let export = exporter.begin(ExportedRun {
            run_id: RunId::new("here"),
            digest: None,
            tenant: &"tenant".into(),
            labels: &Labels::from(labels),
            trace: None,
        });
        for _ in 0..1000 {
            export.write(Stream::Stdout, b"a line\n");
        }
        export.finish();
        assert!(exporter.queue.held() <= 64 << 10);
        let ([out, _], dropped) = taken(&exporter);
        assert!(!out.is_empty() && dropped > 0);
        assert_eq!(out.len() as u64 + dropped, 7000);
    }

    /// A write of a part of a line: how long it is, and whether the line ends with it.
    fn write() -> impl Strategy<Value = (bool, usize, bool)> {
        let length = prop_oneof![
            8 => 0_usize..200,
            1 => EXPORTED_LINE.size() - 20..EXPORTED_LINE.size() + 20,
            1 => 0..5 * EXPORTED_LINE.size() / 2,
        ];
        (any::<bool>(), length, any::<bool>())
    }

    proptest! {
        #[test]
        fn what_arrives_are_lines_and_beginnings_of_lines_and_what_does_not_is_counted(
            writes in proptest::collection::vec(write(), 1..60),
            bytes in prop_oneof![2000_u64..20_000, 100_000_u64..400_000],
            taken_after in 1_usize..20,
        ) {
            let exporter = exporter(bytes);
            let export = export(&exporter);
            // Each line begins with its number, so that it is told from all others.
            let mut given: [Vec<String>; 2] = Default::default();
            let mut is_within = [false; 2];
            let (mut got, mut told) = ([Vec::new(), Vec::new()], 0);
            let mut take = |exporter: &OutputExporter| {
                let (texts, bytes) = taken(exporter);
                told += bytes;
                for (got, text) in got.iter_mut().zip(texts) {
                    got.extend(text);
                }
            };
            for (i, (is_stderr, length, is_end)) in writes.iter().enumerate() {
                let stream = if *is_stderr { Stream::Stderr } else { Stream::Stdout };
                let at = stream as usize;
                let (lines, is_within) = (&mut given[at], &mut is_within[at]);
                let mut text = "x".repeat(*length);
                if !std::mem::replace(is_within, !*is_end) {
                    text.insert_str(0, &format!("<{}>", lines.len()));
                    lines.push(String::new());
                }
                if *is_end {
                    text.push('\n');
                }
                lines.last_mut().unwrap().push_str(&text);
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
            let (mut dropped, mut before) = (0, [None; 2]);
            for ((lines, got), before) in given.iter().zip(&got).zip(&mut before) {
                let got = str::from_utf8(got).unwrap();
                dropped += lines.concat().len() - got.len();
                prop_assert!(got.is_empty() || got.starts_with('<'));
                for line in got.split('<').skip(1) {
                    let number: usize = line.split_once('>').unwrap().0.parse().unwrap();
                    prop_assert!(*before < Some(number), "{number} after {before:?}");
                    *before = Some(number);
                    let is_beginning = lines[number][1..].starts_with(line);
                    prop_assert!(is_beginning, "a part of {number} is missing");
                }
            }
            prop_assert_eq!(told, dropped as u64);
            prop_assert_eq!(exporter.counters.dropped_output.get(), dropped as u64);
        }
    }
}
