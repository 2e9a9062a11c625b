//! The contents of a segment: the lines of its runs, compressed, and an index of them at its end.
//!
//! A segment is a file of NDJSON that zstd has compressed, one line a run, as any tool reads it. It
//! is made of several frames, each of which can be read alone. The index is compressed too and
//! stands in a skippable frame at the end, which other tools pass over. It has a summary of each
//! run, so that a list of runs needs no lines. All frames have checksums.

use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;

use bytes::Bytes;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};

/// Bytes of lines in a frame, after which the next one begins.
const FRAME_BYTES: usize = 256 << 10;
/// The level of compression: the cheapest, which leaves a fifth of lines about hellos.
const LEVEL: i32 = 1;
/// The most bytes of a frame that a reader unpacks.
const MAX_UNPACKED: usize = 64 << 20;
/// The most bytes of the line of a run: with the lines before it, it is still in a frame that is
/// read. It is more than [`MAX_OUTPUT`] bytes of output take in base64.
pub const MAX_LINE: usize = MAX_UNPACKED - FRAME_BYTES;
/// The most bytes of an index that a reader unpacks. A batch of a daemon has 8 MiB of lines and
/// summaries when its last turn begins, which adds 4 MiB and a run, and so has at most 12 MiB and
/// the summary of a run.
const MAX_INDEX: u64 = 32 << 20;
/// The most bytes of an index as it is stored: a bit more than unpacked, where it cannot be
/// compressed.
const MAX_PACKED_INDEX: u64 = MAX_INDEX + (1 << 20);
/// The most runs of an index that a reader decodes, which take several times their bytes then. What
/// a daemon writes of the smallest run has more than 600 bytes, of which a batch has 21,000.
const MAX_RUNS: usize = 128 << 10;
/// The fewest bytes of a run in the index: its number, with what is before it.
const MIN_RUN: usize = 18;
/// The largest window of a frame that is unpacked piece by piece, as a power of two: what the
/// format recommends that every reader takes. Frames that a daemon writes have 512 KiB.
const MAX_WINDOW_LOG: u32 = 23;
/// The most memory, about, that unpacking a frame piece by piece takes: the window, what zstd needs
/// besides, and a piece of output in each form that it passes through.
const UNPACKING: u64 = 1 << 20;
/// The most bytes of a segment, and of all its lines. Those that a daemon writes have a few MiB,
/// and what one run with much output has.
pub(super) const MAX_SEGMENT: u64 = 128 << 20;
/// The fewest bytes of a segment.
pub(super) const MIN_SEGMENT: u64 = (SKIPPABLE_HEADER + TRAILER) as u64;
/// The most bytes of output that are archived of one run.
pub const MAX_OUTPUT: usize = 32 << 20;
/// What the skippable frame begins with, as RFC 8878 has it.
const SKIPPABLE: u32 = 0x184D_2A5F;
/// What a segment ends with, the second byte of the version being 1.
const MAGIC: [u8; 8] = *b"RFRUNS\x00\x01";
/// Bytes of the header of a skippable frame: its mark and its length.
const SKIPPABLE_HEADER: usize = 8;
/// Bytes at the end of a segment: the length of the index, and the magic.
const TRAILER: usize = 16;
/// The bytes from the end of a segment that are read first, which have most indexes.
pub(super) const TAIL: u64 = 64 << 10;

/// An ended run as it is archived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedRun {
    /// The number of the run's id.
    pub number: u128,
    /// What is known of the run, in an encoding that its reader knows.
    pub summary: Vec<u8>,
    /// The run with its output: one JSON object, without a line break.
    pub line: Vec<u8>,
}

/// Why the bytes of a segment are not what was written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct DamagedBytes(String);

impl DamagedBytes {
    /// Creates the error with what is wrong.
    pub(super) fn new(why: &str) -> Self {
        Self(why.to_owned())
    }
}

fn damaged(why: impl ToString) -> DamagedBytes {
    DamagedBytes(why.to_string())
}

/// The index of a segment.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SegmentIndex {
    #[prost(message, repeated, tag = "1")]
    frames: Vec<FrameEntry>,
    /// The runs, in the order of their lines.
    #[prost(message, repeated, tag = "2")]
    pub(super) runs: Vec<RunEntry>,
}

/// Where a frame is, and how many bytes of lines it has.
#[derive(Clone, Copy, PartialEq, Message)]
struct FrameEntry {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(uint64, tag = "2")]
    length: u64,
    #[prost(uint64, tag = "3")]
    unpacked: u64,
}

/// A run of a segment, and where its line is.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RunEntry {
    #[prost(bytes = "vec", tag = "1")]
    number: Vec<u8>,
    #[prost(uint32, tag = "2")]
    frame: u32,
    /// Where the line begins among the lines of its frame.
    #[prost(uint64, tag = "3")]
    offset: u64,
    #[prost(uint64, tag = "4")]
    length: u64,
    #[prost(bytes = "vec", tag = "5")]
    pub(super) summary: Vec<u8>,
}

impl RunEntry {
    /// Returns the number of the run's id.
    pub(super) fn number(&self) -> u128 {
        let number = <[u8; 16]>::try_from(self.number.as_slice());
        u128::from_be_bytes(number.unwrap_or_default())
    }
}

/// Where the line of a run is: the bytes of its frame in the segment, and of the line in the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinePlace {
    /// The place of the frame among the bytes of the segment.
    pub(super) frame: Range<u64>,
    unpacked: usize,
    line: Range<usize>,
}

/// Builds a segment from runs.
pub(super) struct SegmentBuilder {
    compressor: zstd::bulk::Compressor<'static>,
    out: Vec<u8>,
    lines: Vec<u8>,
    unpacked: usize,
    index: SegmentIndex,
}

impl SegmentBuilder {
    /// Creates a segment without runs.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn new() -> io::Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
        compressor.include_checksum(true)?;
        Ok(Self {
            compressor,
            out: Vec::new(),
            lines: Vec::new(),
            unpacked: 0,
            index: SegmentIndex::default(),
        })
    }

    /// Returns how many bytes of lines and summaries the segment has so far.
    pub(super) fn unpacked(&self) -> usize {
        self.unpacked
    }

    /// Appends a run.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn push(&mut self, run: EncodedRun) -> io::Result<()> {
        let EncodedRun {
            number,
            summary,
            line,
        } = run;
        let frame = u32::try_from(self.index.frames.len()).unwrap_or(u32::MAX);
        self.unpacked += line.len() + summary.len();
        self.index.runs.push(RunEntry {
            number: number.to_be_bytes().to_vec(),
            frame,
            offset: self.lines.len() as u64,
            length: line.len() as u64,
            summary,
        });
        self.lines.extend_from_slice(&line);
        self.lines.push(b'\n');
        if self.lines.len() >= FRAME_BYTES {
            self.end_frame()?;
        }
        Ok(())
    }

    fn end_frame(&mut self) -> io::Result<()> {
        let frame = self.compressor.compress(&self.lines)?;
        self.index.frames.push(FrameEntry {
            offset: self.out.len() as u64,
            length: frame.len() as u64,
            unpacked: self.lines.len() as u64,
        });
        self.out.extend_from_slice(&frame);
        self.lines.clear();
        Ok(())
    }

    /// Ends the segment, and returns its bytes.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn finish(mut self) -> io::Result<Bytes> {
        if !self.lines.is_empty() {
            self.end_frame()?;
        }
        let index = self.compressor.compress(&self.index.encode_to_vec())?;
        let length = u32::try_from(index.len() + TRAILER).map_err(io::Error::other)?;
        self.out.extend_from_slice(&SKIPPABLE.to_le_bytes());
        self.out.extend_from_slice(&length.to_le_bytes());
        self.out.extend_from_slice(&index);
        self.out
            .extend_from_slice(&(index.len() as u64).to_le_bytes());
        self.out.extend_from_slice(&MAGIC);
        Ok(self.out.into())
    }
}

fn unpack(packed: &[u8], unpacked: usize) -> Result<Vec<u8>, DamagedBytes> {
    if unpacked > MAX_UNPACKED {
        return Err(damaged("a frame says that it is larger than any"));
    }
    zstd::bulk::decompress(packed, unpacked).map_err(damaged)
}

/// Returns the place of a segment's index among its bytes. `tail` is the end of the segment, which
/// has `size` bytes in all.
///
/// # Errors
/// The end is not that of a segment.
pub(super) fn index_place(size: u64, tail: &[u8]) -> Result<Range<u64>, DamagedBytes> {
    let Some((rest, magic)) = tail.split_last_chunk::<8>() else {
        return Err(damaged("it is shorter than any segment"));
    };
    if *magic != MAGIC {
        return Err(damaged("it does not end as a segment does"));
    }
    let Some((_, length)) = rest.split_last_chunk::<8>() else {
        return Err(damaged("it is shorter than any segment"));
    };
    let end = size.saturating_sub(TRAILER as u64);
    let length = u64::from_le_bytes(*length);
    if length > MAX_PACKED_INDEX {
        return Err(damaged("its index says that it is larger than any"));
    }
    let begin = end.checked_sub(length);
    begin
        .filter(|begin| *begin >= SKIPPABLE_HEADER as u64)
        .map(|begin| begin..end)
        .ok_or_else(|| damaged("its index is larger than itself"))
}

/// Returns how many bytes an index has once it is unpacked, by its compressed bytes.
///
/// # Errors
/// They are not those of an index.
pub(super) fn unpacked_index(packed: &[u8]) -> Result<u64, DamagedBytes> {
    let size = zstd::zstd_safe::get_frame_content_size(packed);
    let size = size.ok().flatten();
    let size = size.ok_or_else(|| damaged("its index does not say how large it is"))?;
    match size <= MAX_INDEX {
        true => Ok(size),
        false => Err(damaged("its index says that it is larger than any")),
    }
}

/// Checks that an index has no more entries than its bytes have room for, since an entry without
/// bytes takes as much memory as any.
///
/// # Errors
/// It has more, or is no index.
fn check_entries(index: &[u8]) -> Result<(), DamagedBytes> {
    let (mut rest, mut frames, mut runs) = (index, 0_usize, 0_usize);
    while !rest.is_empty() {
        let (tag, wire_type) = decode_key(&mut rest).map_err(damaged)?;
        let before = rest.len();
        skip_field(wire_type, tag, &mut rest, DecodeContext::default()).map_err(damaged)?;
        match tag {
            1 => frames += 1,
            2 if before - rest.len() <= MIN_RUN => {
                return Err(damaged("a run of its index has no number"));
            }
            2 => runs += 1,
            _ => {}
        }
    }
    // Each frame has a line at least.
    match runs <= MAX_RUNS && frames <= runs {
        true => Ok(()),
        false => Err(damaged("its index has more entries than any")),
    }
}

impl SegmentIndex {
    /// Decodes the index from its compressed bytes.
    ///
    /// # Errors
    /// They are not those of an index.
    pub(super) fn decode_packed(packed: &[u8]) -> Result<Self, DamagedBytes> {
        let size = usize::try_from(unpacked_index(packed)?).map_err(damaged)?;
        let unpacked = unpack(packed, size)?;
        check_entries(&unpacked)?;
        let index = Self::decode(unpacked.as_slice()).map_err(damaged)?;
        if index.runs.iter().any(|run| run.number.len() != 16) {
            return Err(damaged("a run of its index has no number"));
        }
        Ok(index)
    }

    /// Returns where the line of `run` is.
    ///
    /// # Errors
    /// The index is not in order.
    pub(super) fn place(&self, run: &RunEntry) -> Result<LinePlace, DamagedBytes> {
        let frame = self.frames.get(run.frame as usize);
        let frame = frame.ok_or_else(|| damaged("a run is in a frame that there is not"))?;
        if frame.length > MAX_SEGMENT || frame.unpacked > MAX_UNPACKED as u64 {
            return Err(damaged("a frame says that it is larger than any"));
        }
        let unpacked = usize::try_from(frame.unpacked).map_err(damaged)?;
        let end = run.offset.saturating_add(run.length);
        if end > frame.unpacked {
            return Err(damaged("a line is beyond its frame"));
        }
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(LinePlace {
            frame: frame.offset..frame.offset.saturating_add(frame.length),
            unpacked,
            line: at(run.offset)..at(end),
        })
    }
}

impl LinePlace {
    /// Returns the most bytes of memory that it takes to decode the line into no more than its own
    /// length: its frame, what it is decoded into, and what unpacking takes.
    pub(super) fn memory(&self) -> u64 {
        let frame = self.frame.end.saturating_sub(self.frame.start);
        let unpacking = UNPACKING.min(self.unpacked as u64);
        frame
            .saturating_add(self.line.len() as u64)
            .saturating_add(unpacking)
    }

    /// Decodes the line with `decode`, for which the bytes of its frame are unpacked piece by
    /// piece, so that the line is never in memory as a whole.
    ///
    /// # Errors
    /// The bytes are not what was written. What `decode` made of them is dropped then.
    pub(super) fn decode<T>(
        &self,
        frame: &[u8],
        decode: impl FnOnce(&mut dyn BufRead) -> T,
    ) -> Result<T, DamagedBytes> {
        let mut unpacked = zstd::stream::read::Decoder::with_buffer(frame).map_err(damaged)?;
        unpacked.window_log_max(MAX_WINDOW_LOG).map_err(damaged)?;
        let [before, length, after] = [
            self.line.start,
            self.line.len(),
            self.unpacked.saturating_sub(self.line.end),
        ]
        .map(|bytes| bytes as u64);
        skip(&mut unpacked, before)?;
        let mut line = BufReader::new(unpacked.by_ref().take(length));
        let decoded = decode(&mut line);
        let unread = line.into_inner().limit();
        skip(&mut unpacked, unread)?;
        skip(&mut unpacked, after)?;
        // The checksum is compared where the frame ends.
        match unpacked.read(&mut [0]).map_err(damaged)? {
            0 => Ok(decoded),
            _ => Err(damaged("a frame is longer than its index says")),
        }
    }
}

/// Reads `bytes` that nobody needs.
///
/// # Errors
/// There are fewer, or they are not what was written.
fn skip(from: &mut impl Read, bytes: u64) -> Result<(), DamagedBytes> {
    let skipped = io::copy(&mut from.take(bytes), &mut io::sink()).map_err(damaged)?;
    match skipped == bytes {
        true => Ok(()),
        false => Err(damaged("a frame is shorter than its index says")),
    }
}

/// Reads all runs of a whole segment.
///
/// # Errors
/// The bytes are not what was written.
pub(super) fn read_all(segment: &[u8]) -> Result<Vec<EncodedRun>, DamagedBytes> {
    let part = |range: Range<u64>| {
        let at = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = segment.get(at(range.start)..at(range.end));
        bytes.ok_or_else(|| damaged("it is shorter than its index says"))
    };
    let place = index_place(segment.len() as u64, segment)?;
    let index = SegmentIndex::decode_packed(part(place)?)?;
    let mut frames = Vec::new();
    let unpacked = index.frames.iter().map(|frame| frame.unpacked);
    if unpacked.fold(0, u64::saturating_add) > MAX_SEGMENT {
        return Err(damaged("it says that it is larger than any"));
    }
    // Lines that overlap would be in memory as often as they are named.
    let lines = index.runs.iter().map(|run| run.length);
    let unpacked = index.frames.iter().map(|frame| frame.unpacked);
    if lines.fold(0, u64::saturating_add) > unpacked.sum::<u64>() {
        return Err(damaged("its lines are longer than its frames"));
    }
    for frame in &index.frames {
        let packed = part(frame.offset..frame.offset.saturating_add(frame.length))?;
        frames.push(unpack(
            packed,
            usize::try_from(frame.unpacked).map_err(damaged)?,
        )?);
    }
    let run = |run: &RunEntry| {
        let place = index.place(run)?;
        let lines = frames.get(run.frame as usize);
        let line = lines.and_then(|lines| lines.get(place.line));
        let line = line.ok_or_else(|| damaged("a line is beyond its frame"))?;
        Ok(EncodedRun {
            number: run.number(),
            summary: run.summary.clone(),
            line: line.to_vec(),
        })
    };
    index.runs.iter().map(run).collect()
}

#[cfg(test)]
mod tests;
