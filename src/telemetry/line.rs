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
        self.with_text(|text| Unquoted(text).put(name, line));
    }
}

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
mod tests;
