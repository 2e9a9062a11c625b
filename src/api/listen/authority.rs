//! Repairs the `:authority` header that some gRPC clients send over a unix socket, by rewriting
//! bytes of the HTTP/2 stream in place.
//!
//! gRPC's C core, and with it Python, Ruby, PHP and C++, sends the percent-encoded path of the
//! socket there. That is not a valid authority, and our HTTP/2 implementation resets the stream.
//! Nobody needs the value, since there is only one host behind a socket. So characters that no
//! authority contains are replaced by others of the same encoded length before HTTP/2 parses them.
//! In HPACK's Huffman code each replacement flips one bit: `%` becomes `.`, a space becomes `-`,
//! and `/` becomes `3`.
//!
//! The rewriter follows the frames of a connection, and the header fields in those that carry
//! headers. It needs no HPACK table: a field that the client refers to by its index was repaired
//! when it entered the table.

/// Length in bytes of the client's part of the HTTP/2 connection preface.
const PREFACE: usize = 24;
/// Length in bytes of the header that each HTTP/2 frame begins with.
const FRAME_HEAD: usize = 9;
/// Type of the HEADERS frame, which begins a block of header fields.
const HEADERS: u8 = 1;
/// Type of the CONTINUATION frame, which continues such a block.
const CONTINUATION: u8 = 9;
/// Flag of a HEADERS frame whose fields are followed by padding, the length of which comes first.
const PADDED: u8 = 0x8;
/// Flag of a HEADERS frame whose fields are preceded by five bytes of priority.
const PRIORITY: u8 = 0x20;
/// Index of `:authority` in HPACK's static table.
const AUTHORITY: u8 = 1;
/// The header name as a plain string. gRPC's C core writes the name out each time, plain or
/// Huffman-coded.
const NAME: &[u8] = b":authority";
/// The header name in HPACK's Huffman code.
const NAME_IN_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// A streaming parser of one connection's HTTP/2 frames and HPACK fields, which repairs authorities
/// as the bytes pass. It holds a few words of state and buffers nothing.
#[derive(Debug)]
pub(super) struct AuthorityRewriter {
    frame: FrameState,
    fields: FieldState,
}

/// The position of the next byte within the HTTP/2 frames.
#[derive(Clone, Copy, Debug)]
enum FrameState {
    Preface {
        left: usize,
    },
    Head {
        have: usize,
        head: [u8; FRAME_HEAD],
    },
    /// Within a frame, or padding, that carries no headers; `left` bytes remain until the next
    /// frame.
    Skipped {
        left: usize,
    },
    PadLength {
        left: usize,
        skip: usize,
    },
    /// Within a frame that carries headers: `skip` bytes of priority, then `left` bytes of fields,
    /// then `padding` bytes of padding.
    Fields {
        skip: usize,
        left: usize,
        padding: usize,
    },
}

/// The position of the next byte within the HPACK fields of a request.
#[derive(Clone, Copy, Debug)]
enum FieldState {
    /// Before the first byte of a field.
    Start,
    /// Within the continuation bytes of an integer whose value does not matter; `then` follows it.
    Index { then: AfterIndex },
    /// Before the first byte of a string's length.
    Length(HpackString),
    /// Within the continuation bytes of a string's length, of which `length` has been read so far.
    LongLength {
        text: HpackString,
        huffman: bool,
        length: usize,
        shift: u32,
    },
    /// Within a string, of which `left` bytes remain.
    Bytes {
        text: HpackString,
        left: usize,
        code: HpackStringCoding,
    },
}

/// What follows an HPACK integer: the next field, or the value of this one.
#[derive(Clone, Copy, Debug)]
enum AfterIndex {
    Start,
    Value,
}

/// The role of an HPACK string within its field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum HpackString {
    /// The name of a field, whose value follows. `is_authority` says whether the `at` bytes read so
    /// far match `:authority`.
    Name {
        is_authority: bool,
        at: usize,
    },
    Value,
    Authority,
}

/// The encoding of an HPACK string.
#[derive(Clone, Copy, Debug)]
enum HpackStringCoding {
    Plain,
    /// Huffman-coded; `bits` holds the first `count` bits of the symbol that is being read.
    Huffman {
        bits: u8,
        count: u8,
    },
    /// Huffman-coded, but not followed any further: a symbol took more than a byte, and no
    /// character of a socket's path does.
    Lost,
}

impl AuthorityRewriter {
    /// Creates a rewriter for a connection of which nothing has been read yet.
    pub(super) fn new() -> Self {
        Self {
            frame: FrameState::Preface { left: PREFACE },
            fields: FieldState::Start,
        }
    }

    /// Repairs the bytes that were read next, in place. They may be cut anywhere.
    pub(super) fn rewrite(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let used = match &mut self.frame {
                FrameState::Preface { left } | FrameState::Skipped { left } => {
                    let used = bytes.len().min(*left);
                    *left -= used;
                    if *left == 0 {
                        self.frame = FrameState::next();
                    }
                    used
                }
                FrameState::Head { have, head } => {
                    let used = bytes.len().min(FRAME_HEAD - *have);
                    head[*have..*have + used].copy_from_slice(&bytes[..used]);
                    *have += used;
                    if *have == FRAME_HEAD {
                        let head = *head;
                        self.begin(head);
                    }
                    used
                }
                FrameState::PadLength { left, skip } => {
                    let padding = usize::from(bytes[0]);
                    let (left, skip) = (left.saturating_sub(padding), *skip);
                    self.frame = FrameState::fields(skip, left, padding);
                    1
                }
                FrameState::Fields {
                    skip,
                    left,
                    padding,
                } => {
                    let skipped = bytes.len().min(*skip);
                    *skip -= skipped;
                    let used = (bytes.len() - skipped).min(*left);
                    *left -= used;
                    let (done, padding) = (*skip == 0 && *left == 0, *padding);
                    self.fields.rewrite(&mut bytes[skipped..skipped + used]);
                    if done {
                        self.frame = FrameState::skipped(padding);
                    }
                    skipped + used
                }
            };
            bytes = &mut bytes[used..];
        }
    }

    /// Enters the frame that `head` is the header of.
    fn begin(&mut self, head: [u8; FRAME_HEAD]) {
        let [high, middle, low, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.frame = match kind {
            HEADERS => {
                // A new block always begins with a new field, whatever a previous, malformed block
                // left behind.
                self.fields = FieldState::Start;
                let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
                match flags & PADDED != 0 && length > 0 {
                    true => FrameState::PadLength {
                        left: (length - 1).saturating_sub(priority),
                        skip: priority.min(length - 1),
                    },
                    false => {
                        let skip = priority.min(length);
                        FrameState::fields(skip, length - skip, 0)
                    }
                }
            }
            CONTINUATION => FrameState::fields(0, length, 0),
            _ => FrameState::skipped(length),
        };
    }
}

impl FrameState {
    /// Creates the state at the start of a frame's header.
    fn next() -> Self {
        Self::Head {
            have: 0,
            head: [0; FRAME_HEAD],
        }
    }

    /// Creates the state that skips `left` bytes, or none.
    fn skipped(left: usize) -> Self {
        match left {
            0 => Self::next(),
            left => Self::Skipped { left },
        }
    }

    /// Creates the state that skips `skip` bytes, repairs `left` bytes of fields and skips
    /// `padding`.
    fn fields(skip: usize, left: usize, padding: usize) -> Self {
        match skip + left {
            0 => Self::skipped(padding),
            _ => Self::Fields {
                skip,
                left,
                padding,
            },
        }
    }
}

impl FieldState {
    /// Repairs the next bytes of a block of header fields.
    fn rewrite(&mut self, mut bytes: &mut [u8]) {
        while let Some(byte) = bytes.first().copied() {
            let mut used = 1;
            *self = match *self {
                Self::Start => Self::begin(byte),
                Self::Index { then } if byte & 0x80 != 0 => Self::Index { then },
                Self::Index {
                    then: AfterIndex::Start,
                } => Self::Start,
                Self::Index {
                    then: AfterIndex::Value,
                } => Self::Length(HpackString::Value),
                Self::Length(text) => {
                    let (huffman, length) = (byte & 0x80 != 0, usize::from(byte & 0x7f));
                    match length {
                        0x7f => Self::LongLength {
                            text,
                            huffman,
                            length,
                            shift: 0,
                        },
                        length => Self::string(text, huffman, length),
                    }
                }
                Self::LongLength {
                    text,
                    huffman,
                    length,
                    shift,
                } => {
                    let more = usize::from(byte & 0x7f).checked_shl(shift);
                    let length = length.saturating_add(more.unwrap_or(usize::MAX));
                    match byte & 0x80 {
                        0 => Self::string(text, huffman, length),
                        _ => Self::LongLength {
                            text,
                            huffman,
                            length,
                            shift: shift.saturating_add(7),
                        },
                    }
                }
                Self::Bytes {
                    mut text,
                    left,
                    mut code,
                } => {
                    used = bytes.len().min(left);
                    match &mut text {
                        HpackString::Name { is_authority, at } if *is_authority => {
                            let name = &code.authority()[*at..];
                            *is_authority = name.starts_with(&bytes[..used]);
                            *at += used;
                        }
                        HpackString::Authority => code.rewrite(&mut bytes[..used]),
                        HpackString::Name { .. } | HpackString::Value => {}
                    }
                    match left - used {
                        0 => text.ended(),
                        left => Self::Bytes { text, left, code },
                    }
                }
            };
            bytes = &mut bytes[used..];
        }
    }

    /// Decides from the first byte of a field what comes next.
    fn begin(byte: u8) -> Self {
        let (prefix, literal) = match byte {
            // An indexed field, which has no value here.
            0x80.. => (0x7f, false),
            0x40.. => (0x3f, true),
            0x20.. => (0x1f, false),
            _ => (0x0f, true),
        };
        let index = byte & prefix;
        match (literal, index == prefix) {
            (false, true) => Self::Index {
                then: AfterIndex::Start,
            },
            (false, false) => Self::Start,
            (true, true) => Self::Index {
                then: AfterIndex::Value,
            },
            (true, false) => Self::Length(match index {
                0 => HpackString::Name {
                    is_authority: false,
                    at: 0,
                },
                AUTHORITY => HpackString::Authority,
                _ => HpackString::Value,
            }),
        }
    }

    /// Creates the state within a string of `left` bytes, or after it where it is empty.
    fn string(text: HpackString, huffman: bool, left: usize) -> Self {
        let code = match huffman {
            true => HpackStringCoding::Huffman { bits: 0, count: 0 },
            false => HpackStringCoding::Plain,
        };
        let text = match text {
            HpackString::Name { .. } => HpackString::Name {
                is_authority: left == code.authority().len(),
                at: 0,
            },
            HpackString::Value | HpackString::Authority => text,
        };
        match left {
            0 => text.ended(),
            left => Self::Bytes { text, left, code },
        }
    }
}

impl HpackString {
    /// Returns what follows the end of this string.
    fn ended(self) -> FieldState {
        match self {
            Self::Name {
                is_authority: true, ..
            } => FieldState::Length(Self::Authority),
            Self::Name { .. } => FieldState::Length(Self::Value),
            Self::Value | Self::Authority => FieldState::Start,
        }
    }
}

impl HpackStringCoding {
    /// Returns the bytes of the name `:authority` in this encoding.
    fn authority(self) -> &'static [u8] {
        match self {
            Self::Plain => NAME,
            Self::Huffman { .. } | Self::Lost => NAME_IN_HUFFMAN,
        }
    }

    /// Repairs the next bytes of the value of an authority.
    fn rewrite(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            match self {
                Self::Plain => {
                    *byte = match *byte {
                        b'%' => b'.',
                        b' ' => b'-',
                        b'/' => b'3',
                        other => other,
                    };
                }
                Self::Huffman { .. } => {
                    for at in (0..8).rev() {
                        *byte |= self.follow(*byte >> at & 1) << at;
                    }
                }
                Self::Lost => return,
            }
        }
    }

    /// Takes the next bit of a Huffman-coded string and returns the bit that is to replace it.
    fn follow(&mut self, bit: u8) -> u8 {
        let Self::Huffman { bits, count } = *self else {
            return bit;
        };
        let bit = match (count, bits) {
            // These are the bits by which a space and "%" differ from "-" and ".", and "/" from
            // "3".
            (4, 0b0101) | (5, 0b01100) => 1,
            _ => bit,
        };
        let (bits, count) = (bits << 1 | bit, count + 1);
        // The code is canonical: the symbols of one length form one range.
        let whole = match count {
            5 => bits < 0x0a,
            6 => bits < 0x2e,
            7 => bits < 0x7c,
            8 => bits < 0xfe,
            _ => false,
        };
        *self = match (whole, count) {
            (true, _) => Self::Huffman { bits: 0, count: 0 },
            (false, 8) => Self::Lost,
            (false, _) => Self::Huffman { bits, count },
        };
        bit
    }
}

#[cfg(test)]
mod tests;
