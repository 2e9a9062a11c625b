//! A line of the log or of the audit, written by hand.
//!
//! Every run writes one, so its cost is part of every call's. tracing's formatter sends each name,
//! separator and value through `fmt`, which for the line of a run is 18,500 instructions as text and
//! 29,500 as JSON. Here names with their separators are constants that are copied, digits and
//! escapes are serde_json's, and the date is told once a second and thread. The bytes are those
//! which tracing's formatter writes for the same event, since that is the form by which the log is
//! known: the tests below compare the two.

use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::Level;

use crate::request::{Digest, RunId};

/// What a line has room for before its buffer grows; most take less.
const USUAL: usize = 640;
/// Bytes of a thread's buffer that are kept for its next line.
const KEPT: usize = 4 << 10;

/// How a line is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineLayout {
    /// The log for people: time, level, target, message, then `name=value`.
    Text,
    /// The log for programs: the fields in an object of their own.
    Json,
    /// The audit: time and fields in one object.
    Audit,
}

/// What a line says besides its fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LineHead {
    /// How grave it is.
    pub(crate) level: Level,
    /// What `telemetry.log_level` knows it by.
    pub(crate) target: &'static str,
    /// For people; a line of the audit has none.
    pub(crate) message: Option<&'static str>,
}

/// A field's name, as each layout has it in front of the value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldName {
    /// In a line for people: a space, the name, an equals sign.
    pub(crate) text: &'static str,
    /// In JSON: a comma, the name in quotes, a colon.
    pub(crate) json: &'static str,
}

/// Puts fields on a line, in this order: what tracing's macros take, but that nothing stands before
/// a value. Options that are `None` are left out.
macro_rules! put_fields {
    ($line:expr, $($name:ident = $value:expr),+ $(,)?) => {{$(
        $crate::telemetry::FieldValue::put(
            $value,
            $crate::telemetry::FieldName {
                text: concat!(" ", stringify!($name), "="),
                json: concat!(",\"", stringify!($name), "\":"),
            },
            $line,
        );
    )+}};
}

pub(crate) use put_fields;

/// Takes the fields of one line.
#[derive(Debug)]
pub(crate) struct LineWriter<'a> {
    out: &'a mut Vec<u8>,
    layout: LineLayout,
}

impl LineWriter<'_> {
    fn push(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    fn name(&mut self, name: FieldName) {
        match self.layout {
            LineLayout::Text => self.push(name.text),
            // Nothing is separated from the brace that begins an object.
            LineLayout::Json if self.out.last() == Some(&b'{') => self.push(&name.json[1..]),
            LineLayout::Json | LineLayout::Audit => self.push(name.json),
        }
    }

    /// Text in quotes, with what could be taken for anything else escaped.
    fn quoted(&mut self, text: &str) {
        if is_plain(text) {
            self.push("\"");
            self.push(text);
            self.push("\"");
            return;
        }
        // Writing to memory does not fail.
        let _ = match self.layout {
            LineLayout::Text => write!(self.out, "{text:?}"),
            LineLayout::Json | LineLayout::Audit => {
                serde_json::to_writer(&mut *self.out, text).map_err(Into::into)
            }
        };
    }
}

/// Whether all of it is printable ASCII which no layout escapes. It looks at all of it in any case,
/// which compilers make a few instructions of.
fn is_plain(text: &str) -> bool {
    let special = |byte: u8| !(0x20..0x7f).contains(&byte) || byte == b'"' || byte == b'\\';
    text.bytes()
        .fold(true, |plain, byte| plain & !special(byte))
}

/// What a field may be.
pub(crate) trait FieldValue {
    /// Writes its name and itself, or nothing.
    fn put(self, name: FieldName, line: &mut LineWriter<'_>);
}

/// Text that is in no quotes where the line is for people: what `%` says in tracing's macros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unquoted<'a>(pub(crate) &'a str);

impl FieldValue for Unquoted<'_> {
    fn put(self, name: FieldName, line: &mut LineWriter<'_>) {
        line.name(name);
        match line.layout {
            LineLayout::Text => line.push(self.0),
            LineLayout::Json | LineLayout::Audit => line.quoted(self.0),
        }
    }
}

impl FieldValue for &str {
    fn put(self, name: FieldName, line: &mut LineWriter<'_>) {
        line.name(name);
        line.quoted(self);
    }
}

impl FieldValue for &RunId {
    fn put(self, name: FieldName, line: &mut LineWriter<'_>) {
        Unquoted(self.as_str()).put(name, line);
    }
}

impl FieldValue for Digest {
    fn put(self, name: FieldName, line: &mut LineWriter<'_>) {
        const PREFIX: &[u8; 7] = b"sha256:";
        let mut text = [0; PREFIX.len() + 64];
        let (prefix, digits) = text.split_at_mut(PREFIX.len());
        prefix.copy_from_slice(PREFIX);
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.as_bytes()) {
            pair.copy_from_slice(&HEX[usize::from(*byte)]);
        }
        line.name(name);
        let quote: &[u8] = match line.layout {
            LineLayout::Text => b"",
            LineLayout::Json | LineLayout::Audit => b"\"",
        };
        for part in [quote, &text, quote] {
            line.out.extend_from_slice(part);
        }
    }
}

/// The two hexadecimal digits of each byte.
const HEX: [[u8; 2]; 256] = {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < pairs.len() {
        pairs[byte] = [DIGITS[byte >> 4], DIGITS[byte & 15]];
        byte += 1;
    }
    pairs
};

impl FieldValue for u64 {
    fn put(self, name: FieldName, line: &mut LineWriter<'_>) {
        line.name(name);
        // Writing to memory does not fail.
        let _ = serde_json::to_writer(&mut *line.out, &self);
    }
}

impl FieldValue for u32 {
    fn put(self, name: FieldName, line: &mut LineWriter<'_>) {
        u64::from(self).put(name, line);
    }
}

impl FieldValue for bool {
    fn put(self, name: FieldName, line: &mut LineWriter<'_>) {
        line.name(name);
        line.push(if self { "true" } else { "false" });
    }
}

impl<V: FieldValue> FieldValue for Option<V> {
    fn put(self, name: FieldName, line: &mut LineWriter<'_>) {
        if let Some(value) = self {
            value.put(name, line);
        }
    }
}

/// Writes a line of `head` and `fields`, and hands it to `takes`, in memory that the thread keeps.
pub(super) fn with_line(
    layout: LineLayout,
    head: &LineHead,
    fields: impl FnOnce(&mut LineWriter<'_>),
    takes: impl FnOnce(&[u8]),
) {
    thread_local! {
        static DESK: Cell<LineDesk> = const { Cell::new(LineDesk::new()) };
    }
    // A thread that is ending may have no such memory any more; it makes do with some of its own.
    let mut desk = DESK.try_with(Cell::take).unwrap_or_default();
    desk.line.reserve(USUAL);
    desk.write(layout, head, SystemTime::now(), fields);
    takes(&desk.line);
    desk.line.clear();
    desk.line.shrink_to(KEPT);
    let _ = DESK.try_with(|it| it.set(desk));
}

/// Where a thread writes its lines, one after the other.
#[derive(Debug)]
struct LineDesk {
    line: Vec<u8>,
    clock: LineClock,
}

impl LineDesk {
    const fn new() -> Self {
        Self {
            line: Vec::new(),
            clock: LineClock {
                second: None,
                text: Vec::new(),
            },
        }
    }

    fn write(
        &mut self,
        layout: LineLayout,
        head: &LineHead,
        at: SystemTime,
        fields: impl FnOnce(&mut LineWriter<'_>),
    ) {
        let Self { line: out, clock } = self;
        let mut line = LineWriter { out, layout };
        let level = head.level.as_str();
        match layout {
            LineLayout::Text => {
                clock.push(at, line.out);
                // As wide as the widest.
                line.push(if level.len() < 5 { "  " } else { " " });
                line.push(level);
                line.push(" ");
                line.push(head.target);
                line.push(":");
                if let Some(message) = head.message {
                    line.push(" ");
                    line.push(message);
                }
            }
            LineLayout::Json | LineLayout::Audit => {
                line.push("{\"timestamp\":\"");
                clock.push(at, line.out);
                line.push("\"");
            }
        }
        if layout == LineLayout::Json {
            line.push(",\"level\":\"");
            line.push(level);
            line.push("\",\"fields\":{");
            put_fields!(&mut line, message = head.message);
        }
        fields(&mut line);
        match layout {
            LineLayout::Text => line.push("\n"),
            LineLayout::Json => {
                line.push("},\"target\":\"");
                line.push(head.target);
                line.push("\"}\n");
            }
            LineLayout::Audit => line.push("}\n"),
        }
    }
}

impl Default for LineDesk {
    fn default() -> Self {
        Self::new()
    }
}

/// The second that a thread last wrote a line in, as text: another line of the same second is
/// another fraction.
#[derive(Debug)]
struct LineClock {
    second: Option<u64>,
    text: Vec<u8>,
}

impl LineClock {
    /// Writes a time as tracing has it: `2026-11-29T00:45:09.012345Z`.
    fn push(&mut self, at: SystemTime, out: &mut Vec<u8>) {
        // Linux takes no clock before that.
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != Some(since.as_secs()) {
            self.second = Some(since.as_secs());
            self.text.clear();
            let second = UNIX_EPOCH + Duration::from_secs(since.as_secs());
            // Linux takes no clock after the year 2262, and this the year 9999.
            let _ = write!(self.text, "{}", humantime::format_rfc3339_seconds(second));
            // What ends a time is written after the fraction.
            self.text.pop();
        }
        out.extend_from_slice(&self.text);
        let mut fraction = *b".000000Z";
        let mut rest = since.subsec_micros();
        for digit in fraction[1..7].iter_mut().rev() {
            *digit = b"0123456789"[(rest % 10) as usize];
            rest /= 10;
        }
        out.extend_from_slice(&fraction);
    }
}

#[cfg(test)]
mod tests {
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

    /// A clock that stands still.
    struct Stopped;

    impl FormatTime for Stopped {
        fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
            writer.write_str(AT)
        }
    }

    /// Memory that tracing writes to.
    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What tracing's formatter writes of `events`.
    fn by_tracing(layout: LineLayout, events: impl FnOnce()) -> String {
        let memory = Memory::default();
        let writer = memory.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_timer(Stopped)
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
        let mut desk = LineDesk::new();
        let at = humantime::parse_rfc3339(AT).unwrap();
        desk.write(layout, head, at, fields);
        String::from_utf8(desk.line).unwrap()
    }

    /// Text as callers choose it: of any characters, of those that layouts escape, and of plain ones.
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
            // What Linux can set its clock to, and lines of the same second and of others.
            second in 0u64..9_223_372_036,
            offsets in proptest::collection::vec((0u64..3, 0u32..1_000_000_000), 1..5),
        ) {
            let mut clock = LineDesk::new().clock;
            for (later, nanos) in offsets {
                let at = UNIX_EPOCH + Duration::new(second + later, nanos);
                let mut text = Vec::new();
                clock.push(at, &mut text);
                let expected = humantime::format_rfc3339_micros(at).to_string();
                prop_assert_eq!(String::from_utf8(text).unwrap(), expected);
            }
        }
    }

    /// A line of the audit that the log has too, since `telemetry.log_level` names it.
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
        LineDesk::new().clock.push(at, &mut text);
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
}
