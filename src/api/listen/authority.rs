//! Mends what some clients write as the authority of their requests over a unix socket.
//!
//! gRPC's C core, and with it Python, Ruby, PHP and C++, sends the socket's path there, percent-encoded. That is no
//! authority, and HTTP/2 as we have it resets the stream. Nobody needs it: there is one host behind a socket. So characters
//! that no authority has are replaced, in place and by others of the same length, before HTTP/2 reads them. In the Huffman
//! code of HPACK that is one bit for each: `%` becomes `.`, a space `-`, and `/` becomes `3`.
//!
//! This follows the frames of a connection, and the fields in those with headers. It needs no table of HPACK: a field that
//! is taken from the table of its connection was mended when it came to stand there.

/// The client's part of the preface of HTTP/2.
const PREFACE: usize = 24;
const FRAME_HEAD: usize = 9;
/// The types of the frames that carry headers.
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
/// The flags that say what stands around the headers in such a frame.
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// The place of `:authority` in HPACK's static table.
const AUTHORITY: u8 = 1;
/// The name itself, which C's core writes each time, as it is and in Huffman's code.
const NAME: &[u8] = b":authority";
const NAME_IN_HUFFMAN: &[u8] = &[0xb8, 0x3b, 0x53, 0x39, 0xec, 0x32, 0x7d, 0x7f];

/// Follows what a client sends on one connection.
#[derive(Debug)]
pub(super) struct AuthorityMender {
    frame: Frame,
    fields: Fields,
}

/// Where in the frames the next byte stands.
#[derive(Clone, Copy, Debug)]
enum Frame {
    Preface {
        left: usize,
    },
    Head {
        have: usize,
        head: [u8; FRAME_HEAD],
    },
    /// What says nothing of headers, up to the next frame.
    Skipped {
        left: usize,
    },
    PadLength {
        left: usize,
        skip: usize,
    },
    /// Before the fields, `skip` bytes of priority; after them, `padding`.
    Fields {
        skip: usize,
        left: usize,
        padding: usize,
    },
}

/// Where in the fields of a request the next byte stands.
#[derive(Clone, Copy, Debug)]
enum Fields {
    /// At the start of a field.
    Start,
    /// In the rest of a number of several bytes, of which nobody needs to know, and then comes `then`.
    Index { then: Next },
    /// At the length of a string.
    Length(Text),
    /// In the rest of such a length.
    LongLength {
        text: Text,
        huffman: bool,
        length: usize,
        shift: u32,
    },
    /// Within a string, of which so many bytes are left.
    Bytes { text: Text, left: usize, code: Code },
}

/// What comes after a number.
#[derive(Clone, Copy, Debug)]
enum Next {
    Start,
    Value,
}

/// What a string is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    /// The name of a field, whose value comes next; whether it is that of the authority as far as it is there, which is
    /// so many bytes.
    Name {
        is_authority: bool,
        at: usize,
    },
    Value,
    Authority,
}

/// How a string is written.
#[derive(Clone, Copy, Debug)]
enum Code {
    Plain,
    /// In Huffman's code: the bits so far of the next symbol, and their number.
    Huffman {
        bits: u8,
        count: u8,
    },
    /// In that code, and past what is followed: symbols that no path of a socket has need more than a byte.
    Lost,
}

impl AuthorityMender {
    /// Creates one for a connection of which nothing was read yet.
    pub(super) fn new() -> Self {
        Self {
            frame: Frame::Preface { left: PREFACE },
            fields: Fields::Start,
        }
    }

    /// Mends what was read next.
    pub(super) fn mend(&mut self, mut bytes: &mut [u8]) {
        while !bytes.is_empty() {
            let used = match &mut self.frame {
                Frame::Preface { left } | Frame::Skipped { left } => {
                    let used = bytes.len().min(*left);
                    *left -= used;
                    if *left == 0 {
                        self.frame = Frame::next();
                    }
                    used
                }
                Frame::Head { have, head } => {
                    let used = bytes.len().min(FRAME_HEAD - *have);
                    head[*have..*have + used].copy_from_slice(&bytes[..used]);
                    *have += used;
                    if *have == FRAME_HEAD {
                        let head = *head;
                        self.begin(head);
                    }
                    used
                }
                Frame::PadLength { left, skip } => {
                    let padding = usize::from(bytes[0]);
                    let (left, skip) = (left.saturating_sub(padding), *skip);
                    self.frame = Frame::fields(skip, left, padding);
                    1
                }
                Frame::Fields {
                    skip,
                    left,
                    padding,
                } => {
                    let skipped = bytes.len().min(*skip);
                    *skip -= skipped;
                    let used = (bytes.len() - skipped).min(*left);
                    *left -= used;
                    let (done, padding) = (*skip == 0 && *left == 0, *padding);
                    self.fields.mend(&mut bytes[skipped..skipped + used]);
                    if done {
                        self.frame = Frame::skipped(padding);
                    }
                    skipped + used
                }
            };
            bytes = &mut bytes[used..];
        }
    }

    /// Begins the frame that `head` is of.
    fn begin(&mut self, head: [u8; FRAME_HEAD]) {
        let [high, middle, low, kind, flags, ..] = head;
        let length = u32::from_be_bytes([0, high, middle, low]) as usize;
        self.frame = match kind {
            HEADERS => {
                // The end of a block is the start of the next one, and so is what an earlier one left behind.
                self.fields = Fields::Start;
                let priority = if flags & PRIORITY == 0 { 0 } else { 5 };
                match flags & PADDED != 0 && length > 0 {
                    true => Frame::PadLength {
                        left: (length - 1).saturating_sub(priority),
                        skip: priority.min(length - 1),
                    },
                    false => {
                        let skip = priority.min(length);
                        Frame::fields(skip, length - skip, 0)
                    }
                }
            }
            CONTINUATION => Frame::fields(0, length, 0),
            _ => Frame::skipped(length),
        };
    }
}

impl Frame {
    fn next() -> Self {
        Self::Head {
            have: 0,
            head: [0; FRAME_HEAD],
        }
    }

    fn skipped(left: usize) -> Self {
        match left {
            0 => Self::next(),
            left => Self::Skipped { left },
        }
    }

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

impl Fields {
    /// Mends the next bytes of a block of fields.
    fn mend(&mut self, mut bytes: &mut [u8]) {
        while let Some(byte) = bytes.first().copied() {
            let mut used = 1;
            *self = match *self {
                Self::Start => Self::begin(byte),
                Self::Index { then } if byte & 0x80 != 0 => Self::Index { then },
                Self::Index { then: Next::Start } => Self::Start,
                Self::Index { then: Next::Value } => Self::Length(Text::Value),
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
                        Text::Name { is_authority, at } if *is_authority => {
                            let name = &code.authority()[*at..];
                            *is_authority = name.starts_with(&bytes[..used]);
                            *at += used;
                        }
                        Text::Authority => code.mend(&mut bytes[..used]),
                        Text::Name { .. } | Text::Value => {}
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

    /// What comes after the first byte of a field.
    fn begin(byte: u8) -> Self {
        let (prefix, literal) = match byte {
            // From a table, or a new size of that.
            0x80.. => (0x7f, false),
            0x40.. => (0x3f, true),
            0x20.. => (0x1f, false),
            _ => (0x0f, true),
        };
        let index = byte & prefix;
        match (literal, index == prefix) {
            (false, true) => Self::Index { then: Next::Start },
            (false, false) => Self::Start,
            (true, true) => Self::Index { then: Next::Value },
            (true, false) => Self::Length(match index {
                0 => Text::Name {
                    is_authority: false,
                    at: 0,
                },
                AUTHORITY => Text::Authority,
                _ => Text::Value,
            }),
        }
    }

    fn string(text: Text, huffman: bool, left: usize) -> Self {
        let code = match huffman {
            true => Code::Huffman { bits: 0, count: 0 },
            false => Code::Plain,
        };
        let text = match text {
            Text::Name { .. } => Text::Name {
                is_authority: left == code.authority().len(),
                at: 0,
            },
            Text::Value | Text::Authority => text,
        };
        match left {
            0 => text.ended(),
            left => Self::Bytes { text, left, code },
        }
    }
}

impl Text {
    fn ended(self) -> Fields {
        match self {
            Self::Name {
                is_authority: true, ..
            } => Fields::Length(Self::Authority),
            Self::Name { .. } => Fields::Length(Self::Value),
            Self::Value | Self::Authority => Fields::Start,
        }
    }
}

impl Code {
    /// The name of the authority in this code.
    fn authority(self) -> &'static [u8] {
        match self {
            Self::Plain => NAME,
            Self::Huffman { .. } | Self::Lost => NAME_IN_HUFFMAN,
        }
    }

    /// Mends the next bytes of an authority.
    fn mend(&mut self, bytes: &mut [u8]) {
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

    /// Follows the next bit, and returns what it is to be.
    fn follow(&mut self, bit: u8) -> u8 {
        let Self::Huffman { bits, count } = *self else {
            return bit;
        };
        let bit = match (count, bits) {
            // A space and "%" begin like "-" and ".", "/" like "3".
            (4, 0b0101) | (5, 0b01100) => 1,
            _ => bit,
        };
        let (bits, count) = (bits << 1 | bit, count + 1);
        // The code is canonical: of each length it has one range.
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
