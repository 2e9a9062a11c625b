//! The formatter for lines of the log and the audit log that every run writes, written by hand for
//! speed.
//!
//! Every run writes such a line, so its cost is part of every call's. tracing's formatter sends
//! each name, separator and value through `fmt`, which for the line of a run takes 18,500
//! instructions as text and 29,500 as JSON. Here, names with their separators are constants that
//! are copied, serde_json writes digits and escapes, and the date is formatted once per second and
//! thread. The bytes are the same as those that tracing's formatter writes for the same event,
//! since that is the format by which the log is known: the tests below compare the two.

use std::cell::Cell;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::Level;

use crate::model::request::{Digest, RunId};
use crate::model::trace_context::TraceId;

/// Initial capacity of a line's buffer, in bytes; most lines take less.
const USUAL: usize = 640;
/// Bytes of a thread's buffer that are kept for its next line.
const KEPT: usize = 4 << 10;

/// The layout of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LineLayout {
    /// The log for people: time, level, target, message, then `name=value`.
    Text,
    /// The log for programs: the fields in an object of their own.
    Json,
    /// The audit log: time and fields in one JSON object.
    Audit,
}

/// The constant part of a line, apart from its fields.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LineHead {
    /// The severity of the line.
    pub(crate) level: Level,
    /// The target by which `telemetry.log_level` selects it.
    pub(crate) target: &'static str,
    /// The message for people; an audit line has none.
    pub(crate) message: Option<&'static str>,
}

/// A field's name with its separators, as each layout puts it before the value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FieldName {
    /// For a line for people: a space, the name, an equals sign.
    pub(crate) text: &'static str,
    /// For JSON: a comma, the name in quotes, a colon.
    pub(crate) json: &'static str,
}

/// Writes fields to a line, in this order. The syntax is that of tracing's macros, except that
/// nothing such as `%` or `?` stands before a value. Options that are `None` are left out.
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

/// The writer of one line's fields, in the layout of that line.
#[derive(Debug)]
pub(crate) struct LineWriter<'a> {
    out: &'a mut Vec<u8>,
    layout: LineLayout,
}

impl LineWriter<'_> {
    /// Appends text as it is.
    fn push(&mut self, text: &str) {
        self.out.extend_from_slice(text.as_bytes());
    }

    /// Appends a field's name with its separators.
    fn name(&mut self, name: FieldName) {
        match self.layout {
            LineLayout::Text => self.push(name.text),
            // The first field of an object has no comma before it.
            LineLayout::Json if self.out.last() == Some(&b'{') => self.push(&name.json[1..]),
            LineLayout::Json | LineLayout::Audit => self.push(name.json),
        }
    }

    /// Appends text in quotes, and escapes it as the layout requires.
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

/// Reports whether the text is printable ASCII that no layout escapes. It always looks at all of
/// the text, which a compiler turns into a few instructions.
fn is_plain(text: &str) -> bool {
    let special = |byte: u8| !(0x20..0x7f).contains(&byte) || byte == b'"' || byte == b'\\';
    text.bytes()
        .fold(true, |plain, byte| plain & !special(byte))
}

/// A value that a field of a line may have.
pub(crate) trait FieldValue {
    /// Writes the field's name and value, or nothing if there is no value.
    fn put(self, name: FieldName, line: &mut LineWriter<'_>);
}

/// Text that is not quoted in a line for people, as with `%` in tracing's macros.
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

impl FieldValue for TraceId {
    fn put(self, name: FieldName, line: &mut LineWriter<'_>) {
        Unquoted(&self.to_string()).put(name, line);
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

/// Formats a line from `head` and `fields` in a buffer that the thread keeps, and passes it to
/// `takes`.
pub(super) fn with_line(
    layout: LineLayout,
    head: &LineHead,
    fields: impl FnOnce(&mut LineWriter<'_>),
    takes: impl FnOnce(&[u8]),
) {
    thread_local! {
        static DESK: Cell<LineBuffer> = const { Cell::new(LineBuffer::new()) };
    }
    // A thread that is ending may no longer have its buffer; it uses a new one.
    let mut desk = DESK.try_with(Cell::take).unwrap_or_default();
    desk.line.reserve(USUAL);
    desk.write(layout, head, SystemTime::now(), fields);
    takes(&desk.line);
    desk.line.clear();
    desk.line.shrink_to(KEPT);
    let _ = DESK.try_with(|it| it.set(desk));
}

/// The buffer in which a thread formats its lines, one after the other.
#[derive(Debug)]
struct LineBuffer {
    line: Vec<u8>,
    clock: TimestampCache,
}

impl LineBuffer {
    const fn new() -> Self {
        Self {
            line: Vec::new(),
            clock: TimestampCache {
                second: None,
                text: Vec::new(),
            },
        }
    }

    /// Formats one line, which is appended to the buffer.
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
                // The level is padded to the width of the longest one.
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

impl Default for LineBuffer {
    fn default() -> Self {
        Self::new()
    }
}

/// A cache of the formatted second in which a thread last wrote a line: another line of the same
/// second only needs another fraction.
#[derive(Debug)]
struct TimestampCache {
    second: Option<u64>,
    text: Vec<u8>,
}

impl TimestampCache {
    /// Appends a time as tracing formats it: `2026-11-29T00:45:09.012345Z`.
    fn push(&mut self, at: SystemTime, out: &mut Vec<u8>) {
        // Linux accepts no clock before that.
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        if self.second != Some(since.as_secs()) {
            self.second = Some(since.as_secs());
            self.text.clear();
            let second = UNIX_EPOCH + Duration::from_secs(since.as_secs());
            // Linux accepts no clock after the year 2262, and this format ends with the year 9999.
            let _ = write!(self.text, "{}", humantime::format_rfc3339_seconds(second));
            // The final "Z" is written after the fraction.
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
