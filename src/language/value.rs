//! The value that a program reports: one line of its standard output that is marked as such.

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::model::limits::MAX_VALUE_BYTES;

/// What the line of a value begins with.
const PREFIX: &[u8] = b"__OUT__:";
/// The key of an object that reports a value.
const KEY: &[u8] = b"\"__out\"";

/// An object that reports a value under its key.
#[derive(Deserialize)]
struct ReportingObject<'a> {
    #[serde(borrow, rename = "__out")]
    value: &'a RawValue,
}

/// Returns the value, as JSON, that the last line of `stdout` reports which reports one; an empty
/// text where there is no such line. Only the last [`MAX_VALUE_BYTES`] are looked at, so that the
/// work is bounded whatever a program writes.
///
/// Of standard output that was cut off at the limit (`is_truncated`), nobody knows the last line:
/// the one at the cut may go on, and one after it may report another value. It reports none.
pub fn reported_value(stdout: &[Bytes], is_truncated: bool) -> String {
    if is_truncated {
        return String::new();
    }
    let tail = tail(stdout);
    let values = tail.rsplit(|byte| *byte == b'\n').filter_map(value_of);
    values.into_iter().next().unwrap_or_default()
}

/// Joins the end of the output, without a line that begins before it.
fn tail(stdout: &[Bytes]) -> Vec<u8> {
    let whole: usize = stdout.iter().map(Bytes::len).sum();
    let mut skipped = whole.saturating_sub(MAX_VALUE_BYTES);
    let is_cut = skipped > 0;
    let mut tail = Vec::with_capacity(whole - skipped);
    for piece in stdout {
        let from = skipped.min(piece.len());
        skipped -= from;
        tail.extend_from_slice(&piece[from..]);
    }
    if is_cut {
        let line_end = tail.iter().position(|byte| *byte == b'\n');
        tail.drain(..line_end.map_or(tail.len(), |end| end + 1));
    }
    tail
}

/// Returns the value that a line reports; `None` where it reports none, or none that is JSON.
fn value_of(line: &[u8]) -> Option<String> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if let Some(text) = line.strip_prefix(PREFIX) {
        let value: &RawValue = serde_json::from_slice(text).ok()?;
        return Some(value.get().to_owned());
    }
    if !line.starts_with(b"{") || !line.windows(KEY.len()).any(|it| it == KEY) {
        return None;
    }
    let object: ReportingObject<'_> = serde_json::from_slice(line).ok()?;
    Some(object.value.get().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(stdout: &str) -> String {
        reported_value(&[Bytes::from(stdout.to_owned())], false)
    }

    #[test]
    fn the_last_line_that_reports_a_value_counts() {
        for (stdout, reported) in [
            ("", ""),
            ("hello\n", ""),
            ("__OUT__:42\n", "42"),
            ("__OUT__:42", "42"),
            ("__OUT__: {\"a\": [1, 2]} \n", "{\"a\": [1, 2]}"),
            ("__OUT__:1\nmore\n__OUT__:2\nlast\n", "2"),
            ("__OUT__:1\r\n", "1"),
            ("{\"__out\": \"text\", \"more\": 1}\n", "\"text\""),
            ("{\"__out\": 1.50}\n__OUT__:null\n", "null"),
            ("__OUT__:null\n{\"__out\": 1.50}\n", "1.50"),
            // What is not JSON, or is not at the beginning of a line, reports nothing.
            ("__OUT__:1\n__OUT__:{oops\n", "1"),
            ("__OUT__:\n", ""),
            ("x __OUT__:1\n", ""),
            (" {\"__out\": 1}\n", ""),
            ("{\"a\": {\"__out\": 1}}\n", ""),
            ("[\"__out\"]\n", ""),
            (
                "__OUT__:18446744073709551616123\n",
                "18446744073709551616123",
            ),
        ] {
            assert_eq!(value(stdout), reported, "{stdout:?}");
        }
    }

    #[test]
    fn lines_go_on_from_piece_to_piece() {
        let pieces =
            ["ab\n__O", "UT__:", "[1,", "2]\n", ""].map(|it| Bytes::from_static(it.as_bytes()));
        assert_eq!(reported_value(&pieces, false), "[1,2]");
    }

    #[test]
    fn output_that_was_cut_off_reports_nothing() {
        for stdout in ["__OUT__:12", "__OUT__:12\n", "__OUT__:1\nmore\n__OUT__:2"] {
            let pieces = [Bytes::from_static(stdout.as_bytes())];
            assert_eq!(reported_value(&pieces, true), "", "{stdout:?}");
            assert_ne!(reported_value(&pieces, false), "", "{stdout:?}");
        }
    }

    #[test]
    fn only_the_end_of_the_output_is_looked_at() {
        let value_of = |before: usize| {
            let rest = "x".repeat(before);
            value(&format!("__OUT__:1\n{rest}"))
        };
        let line = "__OUT__:1\n".len();
        assert_eq!(value_of(MAX_VALUE_BYTES - line), "1");
        assert_eq!(value_of(MAX_VALUE_BYTES - line + 1), "");
        // A deep or endless object costs no more than its bytes.
        assert_eq!(value(&format!("__OUT__:{}", "[".repeat(1 << 20))), "");
        assert_eq!(value(&"{\"__out\"\n".repeat(1 << 18)), "");
    }
}
