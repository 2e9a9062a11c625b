//! Comparison of the lines that are formatted by hand with those that tracing's formatter writes
//! for the same fields.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;

use super::*;

const LAYOUTS: [LineLayout; 3] = [LineLayout::Text, LineLayout::Json, LineLayout::Audit];
const AT: &str = "2026-11-29T00:45:09.012345Z";

/// A clock whose time stands still.
struct FrozenClock;

impl FormatTime for FrozenClock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(AT)
    }
}

/// A buffer in memory that tracing writes to.
#[derive(Clone, Default)]
struct MemoryWriter(Arc<Mutex<Vec<u8>>>);

impl Write for MemoryWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns what tracing's formatter writes for `events`.
fn by_tracing(layout: LineLayout, events: impl FnOnce()) -> String {
    let memory = MemoryWriter::default();
    let writer = memory.clone();
    let layer = tracing_subscriber::fmt::layer()
        .with_timer(FrozenClock)
        .with_writer(move || writer.clone());
    let layer = match layout {
        LineLayout::Text => layer.with_ansi(false).boxed(),
        LineLayout::Json => layer.json().boxed(),
        LineLayout::Audit => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_level(false)
            .with_target(false)
            .boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, events);
    let written = memory.0.lock().unwrap().clone();
    String::from_utf8(written).unwrap()
}

fn by_hand(
    layout: LineLayout,
    head: &LineHead,
    fields: impl FnOnce(&mut LineWriter<'_>),
) -> String {
    let mut desk = LineBuffer::new();
    let at = humantime::parse_rfc3339(AT).unwrap();
    desk.write(layout, head, at, fields);
    String::from_utf8(desk.line).unwrap()
}

/// Generates text as callers may choose it: of any characters, of those that layouts escape, and of
/// plain ones.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "(?s).{0,40}",
        "[\\x00-\\x1f\"'\\\\/\\x7f-\\u{9f}\u{200b}\u{202e}\u{2028}={}]{0,20}",
        "[ -~]{0,80}",
    ]
}

proptest! {
    #[test]
    fn a_line_is_what_tracing_writes_of_the_same_fields(
        (quoted, unquoted) in (text(), text()),
        (some, none) in (proptest::option::of(text()), proptest::option::of(any::<u64>())),
        (large, small, flag) in (any::<u64>(), any::<u32>(), any::<bool>()),
        bytes in any::<[u8; 8]>(),
        grave in any::<bool>(),
    ) {
        let digest = Digest::of(&bytes);
        let run_id = RunId::new("a-host_1.local");
        let level = if grave { Level::ERROR } else { Level::INFO };
        for layout in LAYOUTS {
            let message = (layout != LineLayout::Audit).then_some("run ended");
            let head = LineHead { level, target: "ringfence::run", message };
            let line = by_hand(layout, &head, |line| put_fields!(
                line,
                run_id = &run_id,
                quoted = &*quoted,
                unquoted = Unquoted(&unquoted),
                some = some.as_deref(),
                none = none,
                digest = Some(digest),
                large = large,
                small = small,
                flag = flag,
            ));
            macro_rules! event {
                ($level:ident $(, $message:literal)?) => {
                    tracing::event!(
                        target: "ringfence::run",
                        Level::$level,
                        %run_id,
                        quoted = &*quoted,
                        unquoted = %unquoted,
                        some = some.as_deref(),
                        none,
                        digest = Some(digest).map(tracing::field::display),
                        large,
                        small,
                        flag
                        $(, $message)?
                    )
                };
            }
            let event = by_tracing(layout, || match (message, grave) {
                (Some(_), false) => event!(INFO, "run ended"),
                (Some(_), true) => event!(ERROR, "run ended"),
                (None, false) => event!(INFO),
                (None, true) => event!(ERROR),
            });
            prop_assert_eq!(line, event);
        }
    }

    #[test]
    fn a_time_is_told_to_the_microsecond(
        // Times that Linux can set its clock to, with several lines in the same second and in
        // others.
        second in 0u64..9_223_372_036,
        offsets in proptest::collection::vec((0u64..3, 0u32..1_000_000_000), 1..5),
    ) {
        let mut clock = LineBuffer::new().clock;
        for (later, nanos) in offsets {
            let at = UNIX_EPOCH + Duration::new(second + later, nanos);
            let mut text = Vec::new();
            clock.push(at, &mut text);
            let expected = humantime::format_rfc3339_micros(at).to_string();
            prop_assert_eq!(String::from_utf8(text).unwrap(), expected);
        }
    }
}

/// Checks an audit line that the log gets too because `telemetry.log_level` names it.
#[test]
fn a_line_of_the_audit_is_laid_out_as_the_log_is() {
    let head = LineHead {
        level: Level::INFO,
        target: "ringfence::audit",
        message: None,
    };
    for layout in LAYOUTS {
        let line = by_hand(layout, &head, |line| {
            put_fields!(line, event = "end", fuel = 7u64)
        });
        let event = by_tracing(layout, || {
            tracing::info!(target: "ringfence::audit", event = "end", fuel = 7u64);
        });
        assert_eq!(line, event);
    }
}

#[test]
fn times_are_told_as_tracing_tells_them() {
    let mut told = String::new();
    tracing_subscriber::fmt::time::SystemTime
        .format_time(&mut Writer::new(&mut told))
        .unwrap();
    let mut text = Vec::new();
    let at = humantime::parse_rfc3339(&told).unwrap();
    LineBuffer::new().clock.push(at, &mut text);
    assert_eq!(String::from_utf8(text).unwrap(), told);
}

#[test]
fn a_line_within_a_line_has_memory_of_its_own() {
    let head = |message| LineHead {
        level: Level::INFO,
        target: "run",
        message: Some(message),
    };
    let mut written = Vec::new();
    let fields = |line: &mut LineWriter<'_>| {
        put_fields!(line, first = 1u64);
        with_line(
            LineLayout::Text,
            &head("inner"),
            |_| {},
            |inner| {
                written.extend_from_slice(&inner[AT.len()..]);
            },
        );
        put_fields!(line, second = 2u64);
    };
    let mut outer = Vec::new();
    with_line(LineLayout::Text, &head("outer"), fields, |line| {
        outer.extend_from_slice(&line[AT.len()..]);
    });
    assert_eq!(written, b"  INFO run: inner\n");
    assert_eq!(outer, b"  INFO run: outer first=1 second=2\n");
}
