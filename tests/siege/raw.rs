//! HTTP/2 written by hand, so that a client can do what no library would; and noise that is the same each time.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

/// How long a daemon may take to close a connection that has said its last.
const CLOSES_WITHIN: Duration = Duration::from_secs(30);

/// The preface and no settings.
pub(crate) fn greeting() -> Vec<u8> {
    greeting_with(b"")
}

/// The preface and settings.
pub(crate) fn greeting_with(settings: &[u8]) -> Vec<u8> {
    [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(SETTINGS, 0, 0, settings),
    ]
    .concat()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    header(length, kind, flags, stream)
        .into_iter()
        .chain(payload.iter().copied())
        .collect()
}

/// A frame's header, whatever follows it.
pub(crate) fn header(length: u32, kind: u8, flags: u8, stream: u32) -> Vec<u8> {
    [
        &length.to_be_bytes()[1..],
        &[kind, flags],
        &stream.to_be_bytes(),
    ]
    .concat()
}

/// The headers of a call, as HPACK literals that enter no table.
pub(crate) fn call_headers(path: &str) -> Vec<u8> {
    let indexed_post_and_http = vec![0x83, 0x86];
    let path = [vec![0x04], text(path)].concat();
    let authority = [vec![0x01], text("localhost")].concat();
    [
        indexed_post_and_http,
        path,
        authority,
        field("content-type", "application/grpc"),
        field("te", "trailers"),
    ]
    .concat()
}

/// A whole call of one message.
pub(crate) fn call(path: &str, message: &[u8]) -> Vec<u8> {
    call_on(1, path, None, message)
}

/// The same on a stream, with a token.
pub(crate) fn call_on(stream: u32, path: &str, token: Option<&str>, message: &[u8]) -> Vec<u8> {
    let mut headers = call_headers(path);
    if let Some(token) = token {
        headers.extend(field("authorization", &format!("Bearer {token}")));
    }
    let headers = frame(HEADERS, END_HEADERS, stream, &headers);
    let data = frame(DATA, END_STREAM, stream, &framed(0, message));
    [headers, data].concat()
}

/// A text of HPACK, whose length takes one byte.
fn text(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 127, "a length of one byte");
    [&[length], text.as_bytes()].concat()
}

/// A field as an HPACK literal that enters no table.
fn field(name: &str, value: &str) -> Vec<u8> {
    [vec![0x00], text(name), text(value)].concat()
}

/// A message as gRPC frames it.
pub(crate) fn framed(flag: u8, message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).unwrap();
    [&[flag], &length.to_be_bytes()[..], message].concat()
}

/// A number in protobuf's encoding.
fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n >= 0x80 {
        bytes.push(u8::try_from(n & 0x7f).unwrap() | 0x80);
        n >>= 7;
    }
    bytes.push(u8::try_from(n).unwrap());
    bytes
}

/// Bytes after their length, as protobuf has them.
pub(crate) fn sized(bytes: &[u8]) -> Vec<u8> {
    [varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// Says `bytes` and no more on a connection of its own; whether the daemon then closes it.
pub(crate) async fn shout(addr: &str, bytes: &[u8]) -> bool {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // It may be closed before all is said, or reset: both are fine.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut nowhere = tokio::io::sink();
    let rest = tokio::io::copy(&mut stream, &mut nowhere);
    tokio::time::timeout(CLOSES_WITHIN, rest).await.is_ok()
}

/// Reads frames until one of data has `marker` in it; false where the connection ends before.
pub(crate) async fn read_until(stream: &mut TcpStream, marker: &[u8]) -> bool {
    loop {
        let mut head = [0; 9];
        if stream.read_exact(&mut head).await.is_err() {
            return false;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        if stream.read_exact(&mut payload).await.is_err() {
            return false;
        }
        if head[3] == DATA && payload.windows(marker.len()).any(|part| part == marker) {
            return true;
        }
    }
}

/// Numbers that look random and are the same in each process.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: usize) -> Self {
        Self(seed as u64)
    }

    /// splitmix64.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One that is smaller than `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).unwrap()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    /// Fewer than `end` of them.
    pub(crate) fn bytes(&mut self, end: usize) -> Vec<u8> {
        let length = self.below(end);
        (0..length).map(|_| self.byte()).collect()
    }

    /// A number in protobuf's encoding, short ones as likely as long ones.
    fn varint(&mut self) -> Vec<u8> {
        let shift = self.below(64);
        varint(self.next() >> shift)
    }

    /// Fields that are encoded as protobuf has them, with numbers, types and values that nobody meant.
    pub(crate) fn protobuf(&mut self, depth: usize) -> Vec<u8> {
        let mut message = Vec::new();
        for _ in 0..self.below(6) {
            let number = 1 + self.below(15);
            let wire_type = [0, 1, 2, 2, 2, 5][self.below(6)];
            message.push(u8::try_from(number << 3 | wire_type).unwrap());
            message.extend(match wire_type {
                0 => self.varint(),
                1 => self.next().to_le_bytes().to_vec(),
                2 if depth > 0 && self.below(2) == 0 => sized(&self.protobuf(depth - 1)),
                2 => sized(&self.bytes(24)),
                _ => self.next().to_le_bytes()[..4].to_vec(),
            });
        }
        message
    }

    /// `whole` with one bit flipped.
    pub(crate) fn flipped(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        let at = self.below(bytes.len());
        bytes[at] ^= 1 << self.below(8);
        bytes
    }

    /// `whole` with some of it flipped, cut off, said twice, or put in.
    pub(crate) fn mutated(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 | 1 if at < bytes.len() => bytes[at] ^= 1 << self.below(8),
                2 if at < bytes.len() => bytes[at] = self.byte(),
                3 => drop(bytes.splice(at..at, self.bytes(8))),
                _ => {
                    let end = at + self.below(bytes.len() - at);
                    let piece = bytes[at..end].to_vec();
                    bytes.splice(at..at, piece);
                }
            }
        }
        if self.below(4) == 0 {
            bytes.truncate(self.below(bytes.len()));
        }
        bytes
    }
}
