//! The line of a run as it was read from the archive, still packed.

use std::io::BufRead;

use bytes::Bytes;
use object_store::path::Path;

use super::place::ArchiveError;
use super::segment::LinePlace;

/// The line of a run, in the compressed frame that has it.
#[derive(Debug)]
pub struct PackedLine {
    segment: Path,
    place: LinePlace,
    frame: Bytes,
}

impl PackedLine {
    /// Wraps the bytes of a frame of `segment`, which has the line at `place`.
    pub(super) fn new(segment: Path, place: LinePlace, frame: Bytes) -> Self {
        Self {
            segment,
            place,
            frame,
        }
    }

    /// Decodes the line with `decode`, for which it is unpacked piece by piece. This takes a while
    /// for a large one.
    ///
    /// # Errors
    /// This part of the archive is damaged.
    pub fn decode<T>(self, decode: impl FnOnce(&mut dyn BufRead) -> T) -> Result<T, ArchiveError> {
        let decoded = self.place.decode(&self.frame, decode);
        decoded.map_err(|why| ArchiveError::Damaged {
            name: self.segment.to_string(),
            why: why.to_string(),
        })
    }
}
