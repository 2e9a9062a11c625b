//! Encodes the answer to `Run` or `Execute`: the message, and after it the output and the files of
//! the run, in the pieces in which they were kept, so that they are not copied.

use std::collections::VecDeque;

use bytes::{BufMut, Bytes};
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::api::proto;
use crate::event_log::CapturedOutput;
use crate::model::collected::CollectedFile;
use crate::model::refusal::Refusal;

/// The bytes of a gRPC message's prefix: a flag and a length.
const PREFIX: usize = 5;
/// The number of the field of a `RunResponse` that has the standard output.
const STDOUT: u32 = 2;
/// The number of the field of a `RunResponse` that has the standard error.
const STDERR: u32 = 3;
/// The number of the field of a `RunResponse` that has the collected files.
const FILES: u32 = 4;
/// The number of the field of a `CollectedFile` that has its contents, which is its last.
const FILE_DATA: u32 = 3;
/// The most bytes of output that are copied into the piece with what comes before them.
const SHORT: usize = 16 << 10;

/// Encodes `message` in its frame, with `output` after its other fields, in the pieces that the
/// output was captured in.
pub(super) fn with_output(
    message: &impl Message,
    output: CapturedOutput,
) -> Result<VecDeque<Bytes>, Refusal> {
    const UNCOMPRESSED: u8 = 0;
    let fields = [(STDOUT, output.stdout), (STDERR, output.stderr)].map(|(field, pieces)| {
        let bytes = pieces.iter().map(Bytes::len).sum::<usize>();
        (field, pieces, bytes)
    });
    let files = output.files.into_iter().map(EncodedFile::new);
    let files: Vec<EncodedFile> = files.collect();
    let (mut length, mut room) = (message.encoded_len(), PREFIX);
    room += length;
    length += files.iter().map(EncodedFile::length).sum::<usize>();
    for (field, pieces, bytes) in &fields {
        if *bytes > 0 {
            let head = key_len(*field) + encoded_len_varint(*bytes as u64);
            length += head + bytes;
            room += head + if is_short(pieces) { *bytes } else { 0 };
        }
    }
    let length =
        u32::try_from(length).map_err(|_| Refusal::internal("an answer is above 4 GiB"))?;
    let mut queue = VecDeque::new();
    // This is a `Vec`, because prost writes most bytes one by one, and each is a call into
    // `BytesMut`.
    let mut piece = Vec::with_capacity(room);
    piece.put_u8(UNCOMPRESSED);
    piece.put_u32(length);
    message.encode_raw(&mut piece);
    for (field, pieces, bytes) in fields {
        if bytes == 0 {
            continue;
        }
        encode_key(field, WireType::LengthDelimited, &mut piece);
        encode_varint(bytes as u64, &mut piece);
        if is_short(&pieces) {
            pieces.iter().for_each(|only| piece.put_slice(only));
        } else {
            queue.push_back(Bytes::from(std::mem::take(&mut piece)));
            queue.extend(pieces);
        }
    }
    for file in files {
        file.encode(&mut piece, &mut queue);
    }
    if !piece.is_empty() {
        queue.push_back(Bytes::from(piece));
    }
    Ok(queue)
}

/// A collected file as an entry of the answer: the fields before its contents, and these.
struct EncodedFile {
    head: proto::CollectedFile,
    pieces: Vec<Bytes>,
    /// The bytes of the contents.
    bytes: usize,
}

impl EncodedFile {
    fn new(file: CollectedFile) -> Self {
        Self {
            head: proto::CollectedFile {
                path: file.head.path.clone(),
                content_type: file.head.content_type.to_owned(),
                data: Bytes::new(),
            },
            bytes: file.pieces.iter().map(Bytes::len).sum(),
            pieces: file.pieces,
        }
    }

    /// Returns the bytes of the message.
    fn inner_length(&self) -> usize {
        let contents = match self.bytes {
            0 => 0,
            bytes => key_len(FILE_DATA) + encoded_len_varint(bytes as u64) + bytes,
        };
        self.head.encoded_len() + contents
    }

    /// Returns the bytes of the entry.
    fn length(&self) -> usize {
        let inner = self.inner_length();
        key_len(FILES) + encoded_len_varint(inner as u64) + inner
    }

    /// Encodes the entry after what is in `piece`. Small contents are copied into that, and others
    /// go to the queue as they are.
    fn encode(self, piece: &mut Vec<u8>, queue: &mut VecDeque<Bytes>) {
        encode_key(FILES, WireType::LengthDelimited, piece);
        encode_varint(self.inner_length() as u64, piece);
        self.head.encode_raw(piece);
        if self.bytes == 0 {
            return;
        }
        encode_key(FILE_DATA, WireType::LengthDelimited, piece);
        encode_varint(self.bytes as u64, piece);
        if is_short(&self.pieces) {
            self.pieces.iter().for_each(|only| piece.put_slice(only));
        } else {
            queue.push_back(Bytes::from(std::mem::take(piece)));
            queue.extend(self.pieces);
        }
        if piece.len() > SHORT {
            queue.push_back(Bytes::from(std::mem::take(piece)));
        }
    }
}

/// Reports whether output is so little that it is copied into the piece with the message.
fn is_short(output: &[Bytes]) -> bool {
    matches!(output, [only] if only.len() <= SHORT)
}
