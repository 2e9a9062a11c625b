//! Buffers for the output that a caller gets whole. Output is kept in pieces: none is copied as
//! more comes, and each is freed on its own.

use bytes::Bytes;

use crate::model::collected::CollectedFile;

/// The smallest piece, in bytes. Each piece is as large as all before it together, between these
/// two bounds, so that few bytes take little memory and many bytes take few pieces.
const SMALLEST: usize = 256;
/// The largest piece, in bytes.
const LARGEST: usize = 64 << 10;

/// A growing buffer for one output stream that is being captured.
#[derive(Debug, Default)]
pub struct CaptureBuffer {
    full: Vec<Bytes>,
    /// Bytes of the full pieces together.
    bytes: usize,
    /// The last piece, which still has room.
    last: Vec<u8>,
}

impl CaptureBuffer {
    /// Appends `bytes`, and begins new pieces as they are needed.
    pub fn extend(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.last.len() == self.last.capacity() {
                self.begin_piece(bytes.len());
            }
            let fits = bytes.len().min(self.last.capacity() - self.last.len());
            let (now, later) = bytes.split_at(fits);
            self.last.extend_from_slice(now);
            bytes = later;
        }
    }

    fn begin_piece(&mut self, wanted: usize) {
        let full = std::mem::take(&mut self.last);
        if !full.is_empty() {
            self.bytes += full.len();
            self.full.push(Bytes::from(full));
        }
        let size = self.bytes.max(wanted).clamp(SMALLEST, LARGEST);
        self.last.reserve_exact(size);
    }

    /// Returns the pieces, which take no more memory than they have bytes.
    fn finish(self) -> Vec<Bytes> {
        let Self {
            mut full, mut last, ..
        } = self;
        if !last.is_empty() {
            last.shrink_to_fit();
            full.reserve_exact(1);
            full.push(Bytes::from(last));
        }
        full.shrink_to_fit();
        full
    }
}

/// The standard output and error of a run whose caller gets them whole, and its files. A clone
/// shares the bytes.
#[derive(Clone, Debug, Default)]
pub struct CapturedOutput {
    /// The pieces of standard output, in order.
    pub stdout: Vec<Bytes>,
    /// The pieces of standard error, in order.
    pub stderr: Vec<Bytes>,
    /// The files that the run returns.
    pub files: Vec<CollectedFile>,
}

impl CapturedOutput {
    /// Ends the capture of standard output and standard error, in this order, beside `files`.
    pub fn new([stdout, stderr]: [CaptureBuffer; 2], files: Vec<CollectedFile>) -> Self {
        Self {
            stdout: stdout.finish(),
            stderr: stderr.finish(),
            files,
        }
    }

    /// Returns the bytes of both streams and of all files together.
    pub fn bytes(&self) -> usize {
        let streams = self.stdout.iter().chain(&self.stderr);
        let files = self.files.iter().map(CollectedFile::bytes);
        streams.map(Bytes::len).chain(files).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Captures `writes` writes of `size` bytes each.
    fn captured(writes: usize, size: usize) -> Vec<Bytes> {
        let mut buffer = CaptureBuffer::default();
        for write in 0..writes {
            buffer.extend(&vec![u8::try_from(write % 251).unwrap(); size]);
            assert!(buffer.last.capacity() <= LARGEST);
        }
        buffer.finish()
    }

    #[test]
    fn pieces_have_all_bytes_in_order_and_are_no_larger_than_the_largest() {
        for (writes, size) in [(0, 0), (1, 1), (1, 255), (1, 256), (1, 257), (3, 100_000)] {
            let pieces = captured(writes, size);
            let whole: Vec<u8> = (0..writes)
                .flat_map(|write| vec![u8::try_from(write % 251).unwrap(); size])
                .collect();
            assert_eq!(pieces.concat(), whole);
            assert!(pieces.iter().all(|piece| !piece.is_empty()));
            assert!(pieces.iter().all(|piece| piece.len() <= LARGEST));
        }
    }

    #[test]
    fn many_small_writes_take_few_pieces() {
        let pieces = captured(1 << 20, 1);
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), 1 << 20);
        // The pieces double until they have the largest size.
        assert!(pieces.len() <= 16 + 9, "{}", pieces.len());
    }
}
