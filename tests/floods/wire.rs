//! HTTP/2 frames, written and read by hand, so that they can be wrong.

use std::collections::BTreeMap;

/// What a client says first.
pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame before its payload.
pub(crate) const HEAD: usize = 9;
/// The largest payload that the daemon takes.
pub(crate) const MAX_PAYLOAD: usize = 16 << 10;

/// Types of frames.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
    /// One that nobody has given a meaning.
    pub(crate) const UNKNOWN: u8 = 0xbe;
}

/// Flags of frames.
pub(crate) mod flag {
    pub(crate) const NONE: u8 = 0;
    pub(crate) const ACK: u8 = 1;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;
}

/// Why a stream is reset, or a connection ended.
pub(crate) mod code {
    pub(crate) const NO_ERROR: u32 = 0;
    pub(crate) const PROTOCOL_ERROR: u32 = 1;
    pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
    pub(crate) const FRAME_SIZE_ERROR: u32 = 6;
    pub(crate) const REFUSED_STREAM: u32 = 7;
    pub(crate) const CANCEL: u32 = 8;
    pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;
}

/// Settings that a client tells.
pub(crate) mod setting {
    pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
}

/// The `n`th stream of a client.
pub(crate) fn stream(n: usize) -> u32 {
    u32::try_from(2 * n + 1).unwrap()
}

/// What a ping holds whose answer is counted by itself.
const ASKED: &[u8; 8] = b"is taken";

/// Frames on their way out.
#[derive(Debug, Default)]
pub(crate) struct Frames(pub Vec<u8>);

impl Frames {
    /// Any frame.
    pub(crate) fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> &mut Self {
        self.claiming(payload.len(), kind, flags, stream, payload)
    }

    /// A frame that claims to be of another length.
    pub(crate) fn claiming(
        &mut self,
        length: usize,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> &mut Self {
        let length = u32::try_from(length).unwrap().to_be_bytes();
        self.0.extend_from_slice(&length[1..]);
        self.0.extend_from_slice(&[kind, flags]);
        self.0.extend_from_slice(&stream.to_be_bytes());
        self.0.extend_from_slice(payload);
        self
    }

    /// A whole request but for its body.
    pub(crate) fn open(&mut self, stream: u32, block: &[u8]) -> &mut Self {
        self.frame(kind::HEADERS, flag::END_HEADERS, stream, block)
    }

    /// The end of a body, or all of it.
    pub(crate) fn finish(&mut self, stream: u32, body: &[u8]) -> &mut Self {
        self.frame(kind::DATA, flag::END_STREAM, stream, body)
    }

    /// A piece of a body.
    pub(crate) fn data(&mut self, stream: u32, body: &[u8]) -> &mut Self {
        self.frame(kind::DATA, flag::NONE, stream, body)
    }

    pub(crate) fn reset(&mut self, stream: u32) -> &mut Self {
        let reason = code::CANCEL.to_be_bytes();
        self.frame(kind::RST_STREAM, flag::NONE, stream, &reason)
    }

    pub(crate) fn window_update(&mut self, stream: u32, by: u32) -> &mut Self {
        self.frame(kind::WINDOW_UPDATE, flag::NONE, stream, &by.to_be_bytes())
    }

    pub(crate) fn ping(&mut self) -> &mut Self {
        self.frame(kind::PING, flag::NONE, 0, b"anything")
    }

    /// A ping whose answer says that all before it was taken.
    pub(crate) fn ask(&mut self) -> &mut Self {
        self.frame(kind::PING, flag::NONE, 0, ASKED)
    }

    pub(crate) fn settings(&mut self, settings: &[(u16, u32)]) -> &mut Self {
        let mut payload = Vec::new();
        for (key, value) in settings {
            payload.extend_from_slice(&key.to_be_bytes());
            payload.extend_from_slice(&value.to_be_bytes());
        }
        self.frame(kind::SETTINGS, flag::NONE, 0, &payload)
    }

    /// Says of `stream` that it depends on `on`.
    pub(crate) fn priority(&mut self, stream: u32, on: u32) -> &mut Self {
        let payload = [&on.to_be_bytes()[..], &[16]].concat();
        self.frame(kind::PRIORITY, flag::NONE, stream, &payload)
    }

    pub(crate) fn go_away(&mut self) -> &mut Self {
        self.frame(kind::GOAWAY, flag::NONE, 0, &[0; 8])
    }
}

/// A header list, every field literal and not indexed.
pub(crate) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        literal(&mut block, 0, name.as_bytes(), value.as_bytes());
    }
    block
}

/// The headers of a call.
pub(crate) fn call(method: &str) -> Vec<u8> {
    block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", &format!("/{method}")),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ])
}

/// A field that the daemon is to remember as the last one that was told.
pub(crate) fn remembered(block: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    literal(block, 0x40, name, value);
}

/// The field that was remembered last, in one byte: the 61 before it are the standard's.
pub(crate) const LAST_REMEMBERED: u8 = 0x80 | 62;

fn literal(block: &mut Vec<u8>, first: u8, name: &[u8], value: &[u8]) {
    block.push(first);
    text(block, name);
    text(block, value);
}

fn text(block: &mut Vec<u8>, text: &[u8]) {
    length(block, text.len());
    block.extend_from_slice(text);
}

/// The length of a text that is not compressed.
pub(crate) fn length(block: &mut Vec<u8>, length: usize) {
    const PREFIX: usize = 0x7f;
    let Some(mut rest) = length.checked_sub(PREFIX) else {
        block.push(u8::try_from(length).unwrap());
        return;
    };
    block.push(0x7f);
    while rest >= 0x80 {
        block.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
        rest >>= 7;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// A message as gRPC frames it.
pub(crate) fn message(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap();
    [&prefix(length)[..], bytes].concat()
}

/// The five bytes that claim a message of `length`.
pub(crate) fn prefix(length: u32) -> [u8; 5] {
    let [a, b, c, d] = length.to_be_bytes();
    [0, a, b, c, d]
}

/// What came back.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Answers that HTTP calls good; those of gRPC are, whatever they say.
    pub answers: usize,
    /// Streams that ended, by their last headers.
    pub ended: usize,
    /// Streams that were reset, by the code.
    pub resets: BTreeMap<u32, usize>,
    pub settings_acks: usize,
    pub pings: usize,
    /// Answers to pings, and to those that ask whether all before them was taken.
    pub pongs: usize,
    pub assents: usize,
    /// The code of the last GOAWAY, and what it says to people.
    pub go_away: Option<u32>,
    pub farewell: String,
    /// Nothing comes any more.
    pub closed: bool,
}

impl Tally {
    /// Takes whole frames off `heard`.
    pub(crate) fn take(&mut self, heard: &mut Vec<u8>) {
        let mut at = 0;
        while let Some(head) = heard.get(at..at + HEAD) {
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8;
            let end = at + HEAD + (length | usize::from(head[2]));
            let (kind, flags) = (head[3], head[4]);
            let Some(payload) = heard.get(at + HEAD..end) else {
                break;
            };
            self.count(kind, flags, payload);
            at = end;
        }
        heard.drain(..at);
    }

    fn count(&mut self, kind: u8, flags: u8, payload: &[u8]) {
        /// `:status: 200` in one byte; trailers have no status.
        const WELL: u8 = 0x88;
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match kind {
            kind::HEADERS => {
                self.ended += usize::from(flags & flag::END_STREAM != 0);
                self.answers += usize::from(payload.first() == Some(&WELL));
            }
            kind::RST_STREAM => *self.resets.entry(number(0)).or_default() += 1,
            kind::SETTINGS if flags & flag::ACK != 0 => self.settings_acks += 1,
            kind::PING if flags & flag::ACK != 0 && payload == ASKED => self.assents += 1,
            kind::PING if flags & flag::ACK != 0 => self.pongs += 1,
            kind::PING => self.pings += 1,
            kind::GOAWAY => {
                self.go_away = Some(number(4));
                self.farewell = String::from_utf8_lossy(&payload[8..]).into_owned();
            }
            _ => {}
        }
    }
}
