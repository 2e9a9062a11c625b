//! The line of a run in the archive: what people's tools read of it, and its output.
//!
//! docs/archive.md describes the fields. What the API tells of a run comes from its summary, which
//! is its `RunInfo`; only the output comes from here.

use std::collections::BTreeMap;
use std::fmt;
use std::io::BufRead;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::proto::run_info::End;
use super::proto::{self, RunInfo};
use crate::archive::MAX_LINE;
use crate::event_log::{Event, EventPayload};
use crate::model::outcome::Stream;

/// Bytes of escapes that a piece of output may have in any case.
const FEW: usize = 1024;
/// More bytes than an event has in a line besides its output and what its file is called.
const AROUND: usize = 128;
/// More bytes than an event has besides, where it is of a file.
const AROUND_FILE: usize = 128;

/// A run as JSON, on one line.
#[derive(Serialize)]
struct Line<'a> {
    run_id: &'a str,
    tenant: &'a str,
    method: &'a str,
    caller: &'a str,
    labels: BTreeMap<&'a str, &'a str>,
    module_digest: &'a str,
    trace_id: &'a str,
    asked: String,
    started: Option<String>,
    ended: Option<String>,
    /// As in the log: "exited", or "refused" for a run that has an error instead.
    outcome: &'a str,
    exit_code: Option<u32>,
    trap: Option<&'a str>,
    reason: Option<&'a str>,
    message: Option<&'a str>,
    duration_ms: f64,
    cpu_ms: f64,
    fuel: Option<u64>,
    memory_bytes: u64,
    stdin_bytes: u64,
    stdout_bytes: u64,
    stderr_bytes: u64,
    events: Vec<LineEvent>,
}

/// The name of the field that has the events.
const EVENTS: &str = "events";

/// A piece of output: of a stream as text or, if it is no UTF-8, in base64; or of a file.
#[derive(Serialize, Deserialize)]
struct LineEvent {
    seq: u64,
    time: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    stream: Option<StreamName>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    file: Option<LineFile>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    base64: Option<String>,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StreamName {
    Stdout,
    Stderr,
}

/// The file that an event has a piece of, and where in the file that begins.
#[derive(Serialize, Deserialize)]
struct LineFile {
    path: String,
    content_type: String,
    size: u64,
    offset: u64,
}

fn text_of(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

fn time_of(time: Option<&prost_types::Timestamp>) -> Option<String> {
    Some(text_of(SystemTime::try_from(*time?).ok()?))
}

fn millis(duration: Option<&prost_types::Duration>) -> f64 {
    let duration = duration.and_then(|it| Duration::try_from(*it).ok());
    duration.unwrap_or_default().as_secs_f64() * 1e3
}

/// Counts the bytes that JSON needs more for `text` than it has, at the most.
fn escapes(text: &str) -> usize {
    let more = text.bytes().map(|byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 1,
        0..0x20 => 5,
        _ => 0,
    });
    more.sum()
}

/// Reports whether JSON has little to escape in `text`: base64 is shorter than much of that.
fn is_plain(text: &str) -> bool {
    escapes(text) <= text.len() / 3 + FEW
}

impl LineEvent {
    /// Encodes a piece of output; `None` for any other event.
    fn of(event: &Event) -> Option<Self> {
        let (stream, file, bytes) = match &event.payload {
            EventPayload::Output(Stream::Stdout, bytes) => (Some(StreamName::Stdout), None, bytes),
            EventPayload::Output(Stream::Stderr, bytes) => (Some(StreamName::Stderr), None, bytes),
            EventPayload::File {
                head,
                offset,
                bytes,
            } => {
                let file = LineFile {
                    path: head.path.clone(),
                    content_type: head.content_type.to_owned(),
                    size: head.size,
                    offset: *offset,
                };
                (None, Some(file), bytes)
            }
            EventPayload::Started | EventPayload::Lost { .. } | EventPayload::End(_) => {
                return None;
            }
        };
        let text = str::from_utf8(bytes).ok().filter(|text| is_plain(text));
        Some(Self {
            seq: event.seq,
            time: text_of(event.at),
            stream,
            file,
            base64: text.is_none().then(|| BASE64_STANDARD.encode(bytes)),
            text: text.map(str::to_owned),
        })
    }

    /// Returns the most bytes that the event has in a line.
    fn most_bytes(&self) -> usize {
        let of_text = |text: &str| text.len() + escapes(text);
        let file = self.file.as_ref().map_or(0, |file| {
            AROUND_FILE + of_text(&file.path) + of_text(&file.content_type)
        });
        let text = self.text.as_deref().map_or(0, of_text);
        let base64 = self.base64.as_ref().map_or(0, String::len);
        AROUND + file + text + base64
    }

    /// Encodes the output that has `most` bytes in a line at the most: without its oldest events,
    /// where all are more. What a guest writes in small pieces, or what JSON has to escape, is
    /// several times as long in a line.
    fn last_of(output: &[Event], most: usize) -> Vec<Self> {
        let mut bytes = 0_usize;
        let newest_first = output.iter().rev().filter_map(Self::of);
        let fitting = newest_first.take_while(|event| {
            bytes = bytes.saturating_add(event.most_bytes());
            bytes <= most
        });
        let mut events: Vec<Self> = fitting.collect();
        events.reverse();
        events
    }

    /// Decodes the event of the wire, without the id of its run; `None` for one that nobody wrote.
    fn decode(self) -> Option<proto::StreamEvent> {
        use proto::stream_event::Event as Wire;
        let data = match (self.text, self.base64) {
            (Some(text), None) => Bytes::from(text),
            (None, Some(base64)) => Bytes::from(BASE64_STANDARD.decode(base64).ok()?),
            _ => return None,
        };
        let event = match (self.stream, self.file) {
            (Some(StreamName::Stdout), None) => Wire::Stdout(data),
            (Some(StreamName::Stderr), None) => Wire::Stderr(data),
            (None, Some(file)) => Wire::File(proto::FileChunk {
                path: file.path,
                content_type: file.content_type,
                size: file.size,
                offset: file.offset,
                data,
            }),
            _ => return None,
        };
        Some(proto::StreamEvent {
            run_id: String::new(),
            seq: self.seq,
            time: Some(humantime::parse_rfc3339(&self.time).ok()?.into()),
            event: Some(event),
        })
    }
}

/// Encodes the line of a run of `tenant`, which ended with that outcome. The oldest output is left
/// out where the line would be longer than any that is read.
pub(super) fn encode(tenant: &str, outcome: &str, info: &RunInfo, output: &[Event]) -> Vec<u8> {
    let (result, error) = match info.end.as_ref() {
        Some(End::Result(result)) => (Some(&**result), None),
        Some(End::Error(error)) => (None, Some(error)),
        None => (None, None),
    };
    let labels = info.labels.iter();
    let mut line = Line {
        run_id: &info.run_id,
        tenant,
        method: &info.method,
        caller: &info.caller,
        labels: labels.map(|(k, v)| (k.as_str(), v.as_str())).collect(),
        module_digest: &info.module_digest,
        trace_id: &info.trace_id,
        asked: time_of(info.asked.as_ref()).unwrap_or_default(),
        started: time_of(info.started.as_ref()),
        ended: time_of(info.ended.as_ref()),
        outcome,
        exit_code: result.and_then(|it| it.exit_code),
        trap: result.and_then(|it| Some(it.trap.as_ref()?.code.as_str())),
        reason: error.map(|it| it.reason.as_str()),
        message: error.map(|it| it.message.as_str()),
        duration_ms: millis(result.and_then(|it| it.duration.as_ref())),
        cpu_ms: millis(result.and_then(|it| it.cpu_time.as_ref())),
        fuel: result.and_then(|it| it.fuel_consumed),
        memory_bytes: result.map_or(0, |it| it.memory_used),
        stdin_bytes: result.map_or(0, |it| it.stdin_bytes),
        stdout_bytes: result.map_or(0, |it| it.stdout_bytes),
        stderr_bytes: result.map_or(0, |it| it.stderr_bytes),
        events: Vec::new(),
    };
    // Maps with keys that are no text, which is what could fail, are not in it.
    let to_json = |line: &Line<'_>| serde_json::to_vec(line).unwrap_or_default();
    let record = to_json(&line).len();
    line.events = LineEvent::last_of(output, MAX_LINE.saturating_sub(record));
    to_json(&line)
}

/// Decodes the output of a run from its line, and hands each event to `take` in order, without the
/// id of the run. Reports false for a line that nobody wrote, some of whose events may be taken.
pub(super) fn read_output(line: impl BufRead, take: &mut dyn FnMut(proto::StreamEvent)) -> bool {
    let mut line = serde_json::Deserializer::from_reader(line);
    let read = LineReader { take }.deserialize(&mut line);
    read.and_then(|()| line.end()).is_ok()
}

/// Reads a line for its events, which are decoded one by one: all of them at once would take as
/// much memory as the line.
struct LineReader<'a> {
    take: &'a mut dyn FnMut(proto::StreamEvent),
}

impl<'de> DeserializeSeed<'de> for LineReader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for LineReader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an archived run")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let mut has_events = false;
        while let Some(name) = fields.next_key::<String>()? {
            if name != EVENTS {
                fields.next_value::<IgnoredAny>()?;
                continue;
            }
            if has_events {
                return Err(A::Error::duplicate_field(EVENTS));
            }
            has_events = true;
            fields.next_value_seed(EventsReader { take: self.take })?;
        }
        match has_events {
            true => Ok(()),
            false => Err(A::Error::missing_field(EVENTS)),
        }
    }
}

/// Reads the list of a line's events.
struct EventsReader<'a> {
    take: &'a mut dyn FnMut(proto::StreamEvent),
}

impl<'de> DeserializeSeed<'de> for EventsReader<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for EventsReader<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the events of a run")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut events: A) -> Result<(), A::Error> {
        while let Some(event) = events.next_element::<LineEvent>()? {
            let event = event.decode();
            (self.take)(event.ok_or_else(|| A::Error::custom("no event of a daemon"))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;
    use crate::api::archived_output::ArchivedOutput;
    use crate::api::encode;
    use crate::model::collected::FileHead;

    fn payload() -> impl Strategy<Value = EventPayload> {
        let bytes = prop_oneof![
            any::<Vec<u8>>(),
            any::<String>().prop_map(String::into_bytes),
        ];
        (0..3, bytes, any::<String>()).prop_map(|(kind, bytes, path)| {
            let bytes = Bytes::from(bytes);
            match kind {
                0 => EventPayload::Output(Stream::Stdout, bytes),
                1 => EventPayload::Output(Stream::Stderr, bytes),
                _ => EventPayload::File {
                    head: Arc::new(FileHead {
                        path,
                        content_type: "text/plain",
                        size: 7,
                    }),
                    offset: 3,
                    bytes,
                },
            }
        })
    }

    fn read(line: &[u8]) -> Option<Vec<proto::StreamEvent>> {
        let mut events = Vec::new();
        read_output(line, &mut |event| events.push(event)).then_some(events)
    }

    fn wire(event: &Event) -> proto::stream_event::Event {
        match &event.payload {
            EventPayload::Output(stream, bytes) => encode::output(*stream, bytes.clone()),
            EventPayload::File {
                head,
                offset,
                bytes,
            } => encode::file_chunk(head, *offset, bytes.clone()),
            EventPayload::Started | EventPayload::Lost { .. } | EventPayload::End(_) => {
                unreachable!("no output")
            }
        }
    }

    proptest! {
        #[test]
        fn output_is_read_as_it_was_written(
            payloads in proptest::collection::vec(payload(), 0..5),
            nanos in 0..u64::MAX / 4,
        ) {
            let at = UNIX_EPOCH + Duration::from_nanos(nanos);
            let events: Vec<Event> = (1..)
                .zip(payloads)
                .map(|(seq, payload)| Event { seq, at, payload })
                .collect();
            let info = RunInfo {
                run_id: "0.x".to_owned(),
                ..RunInfo::default()
            };
            let line = encode("t", "exited", &info, &events);
            prop_assert!(!line.contains(&b'\n'));
            for event in &events {
                let event = LineEvent::of(event).unwrap();
                let bytes = serde_json::to_vec(&event).unwrap().len() + ",".len();
                prop_assert!(bytes <= event.most_bytes());
            }
            let read = read(&line).unwrap();
            let mut packed = ArchivedOutput::default();
            read.iter().for_each(|event| packed.push(event));
            // The memory that it takes to read a line is charged by the line.
            prop_assert!(packed.bytes() <= line.len() as u64);
            prop_assert_eq!(read.len(), events.len());
            for (read, event) in read.iter().zip(&events) {
                let time: prost_types::Timestamp = at.into();
                prop_assert_eq!(read.seq, event.seq);
                prop_assert_eq!(read.time, Some(time));
                prop_assert_eq!(read.event.as_ref(), Some(&wire(event)));
            }
        }
    }

    /// As many events as make a line far longer than any that is read, in which each has this.
    fn longest(payload: impl Fn(u64) -> EventPayload) -> Vec<Event> {
        let of_one = |seq| Event {
            seq,
            at: UNIX_EPOCH,
            payload: payload(seq),
        };
        let one = LineEvent::of(&of_one(1)).unwrap().most_bytes();
        let count = 2 * MAX_LINE as u64 / (one as u64);
        (1..=count).map(of_one).collect()
    }

    #[test]
    fn a_line_is_never_longer_than_any_that_is_read_and_has_the_newest_output() {
        // Pieces that are escaped, but are too short for base64 to be chosen.
        let escaped = Bytes::from(vec![1; 219]);
        let streams = longest(|seq| {
            let stream = [Stream::Stdout, Stream::Stderr][usize::from(seq % 2 == 0)];
            EventPayload::Output(stream, escaped.clone())
        });
        let head = Arc::new(FileHead {
            path: "\u{1}".repeat(4096),
            content_type: "text/plain",
            size: u64::MAX,
        });
        let files = longest(|offset| EventPayload::File {
            head: Arc::clone(&head),
            offset: u64::MAX - offset,
            bytes: Bytes::new(),
        });
        let info = RunInfo {
            labels: [("a".to_owned(), "\u{1}".repeat(9999))].into(),
            ..RunInfo::default()
        };
        for events in [streams, files] {
            let line = encode("t", "exited", &info, &events);
            assert!(line.len() <= MAX_LINE, "{} bytes", line.len());
            assert!(line.len() > MAX_LINE / 10 * 9, "{} bytes", line.len());
            let read = read(&line).unwrap();
            let last = events.iter().rev().take(read.len()).rev();
            assert!(
                read.iter()
                    .map(|event| event.seq)
                    .eq(last.map(|event| event.seq))
            );
        }
    }

    #[test]
    fn what_nobody_wrote_is_no_output() {
        for line in [
            "",
            "{}",
            r#"{"events":[{"seq":1,"time":"2026-12-01T00:00:00Z","stream":"stdout"}]}"#,
            r#"{"events":[{"seq":1,"time":"x","stream":"stdout","text":""}]}"#,
            r#"{"events":[{"seq":1,"time":"2026-12-01T00:00:00Z","text":""}]}"#,
            r#"{"events":[{"seq":1,"time":"2026-12-01T00:00:00Z","stream":"stdout","base64":"?"}]}"#,
            r#"{"events":[],"events":[]}"#,
            r#"{"events":[]} {"events":[]}"#,
            r#"[{"events":[]}]"#,
        ] {
            assert!(read(line.as_bytes()).is_none(), "{line}");
        }
    }
}
