//! The bytes of one file, in chunks. A chunk that was never written is a hole, which reads as
//! zeros and takes no memory, so a sparse file costs what it holds. A chunk that came with the
//! request shares the request's bytes until it is written to (copy on write).

use std::collections::BTreeMap;

use bytes::Bytes;

use super::FileError;
use super::account::FileMemoryAccount;

/// The bytes of a file that one chunk covers. Appending copies at most so many bytes at a time as
/// a chunk grows, and a write into a hole allocates no more than this.
pub(in crate::sandbox) const CHUNK_BYTES: usize = 64 << 10;
/// The fewest bytes that are allocated for a chunk.
const LEAST_CAPACITY: usize = 64;
/// What a chunk after the first costs besides its bytes: its place in the map, twice, since the
/// nodes of the map may be half empty, and what the allocator rounds up.
const CHUNK_OVERHEAD: usize = 160;
/// What the map of chunks costs as soon as there is one in it: the first node has room for eleven.
const MAP_OVERHEAD: usize = 640;

/// Zeros, of which a hole is read.
static ZEROS: [u8; CHUNK_BYTES] = [0; CHUNK_BYTES];

/// The contents of one file. Memory that is given up goes to [`Discarded`], which is freed apart
/// from the call that gave it up.
#[derive(Debug, Default)]
pub(super) struct FileContents {
    size: u64,
    /// The chunk at the beginning, which is the only one of most files.
    first: FileChunk,
    /// The chunks after the first, by their number.
    rest: BTreeMap<u64, FileChunk>,
}

/// The beginning of a chunk; what lies beyond it, up to the chunk's end, is zeros.
#[derive(Debug)]
enum FileChunk {
    Shared(Bytes),
    Owned(Vec<u8>),
}

impl Default for FileChunk {
    fn default() -> Self {
        Self::Owned(Vec::new())
    }
}

/// Chunks that no file has any more, and which are still charged.
#[derive(Debug)]
pub(super) struct Discarded(BTreeMap<u64, FileChunk>);

impl Discarded {
    /// Frees one chunk, and reports whether there was one.
    pub(super) fn free_one(&mut self, account: &FileMemoryAccount) -> bool {
        let freed = self.0.pop_first();
        if let Some((_, chunk)) = &freed {
            account.release(chunk.cost() + CHUNK_OVERHEAD);
        }
        freed.is_some()
    }
}

/// Returns the number of the chunk that has the byte at `offset`, and where in it that is.
fn place_of(offset: u64) -> (u64, usize) {
    let within = offset % CHUNK_BYTES as u64;
    (
        offset / CHUNK_BYTES as u64,
        usize::try_from(within).unwrap_or_default(),
    )
}

impl FileChunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }

    /// Returns what is charged for the chunk's bytes.
    fn cost(&self) -> usize {
        match self {
            Self::Shared(bytes) => bytes.len(),
            Self::Owned(bytes) => bytes.capacity(),
        }
    }

    /// Makes the chunk's bytes its own, with room for `wanted` of them.
    fn reserve(&mut self, wanted: usize, account: &FileMemoryAccount) -> Result<(), FileError> {
        match self {
            Self::Owned(bytes) if bytes.capacity() >= wanted => Ok(()),
            Self::Owned(bytes) => {
                let held = bytes.capacity();
                let capacity = capacity_for(wanted, held, account);
                charge(account, capacity - held)?;
                bytes.reserve_exact(capacity - bytes.len());
                settle(account, capacity, bytes.capacity());
                Ok(())
            }
            Self::Shared(shared) => {
                let wanted = wanted.max(shared.len());
                let capacity = capacity_for(wanted, 0, account);
                // Both are held until the old bytes are let go.
                charge(account, capacity)?;
                let mut bytes = Vec::with_capacity(capacity);
                bytes.extend_from_slice(shared);
                settle(account, capacity, bytes.capacity());
                account.release(shared.len());
                *self = Self::Owned(bytes);
                Ok(())
            }
        }
    }

    /// Writes `bytes` at `start`, where the chunk was made large enough before.
    fn write(&mut self, start: usize, bytes: &[u8]) {
        let Self::Owned(own) = self else {
            return;
        };
        if own.len() < start {
            own.resize(start, 0);
        }
        let overwritten = bytes.len().min(own.len() - start);
        let (over, beyond) = bytes.split_at(overwritten);
        own[start..start + overwritten].copy_from_slice(over);
        own.extend_from_slice(beyond);
    }

    /// Cuts the chunk off after `length` bytes.
    fn truncate(&mut self, length: usize, account: &FileMemoryAccount) {
        let before = self.cost();
        match self {
            Self::Shared(bytes) if length >= bytes.len() => {}
            // A part would hold all that it is a part of: more than is charged, up to the whole
            // request.
            Self::Shared(bytes) => *self = Self::Owned(bytes[..length].to_vec()),
            Self::Owned(bytes) => {
                bytes.truncate(length);
                bytes.shrink_to(length.next_power_of_two().max(LEAST_CAPACITY));
                if bytes.is_empty() {
                    *bytes = Vec::new();
                }
            }
        }
        account.release(before - self.cost());
    }

    /// Returns the chunk's bytes as ones that can be shared, and keeps them shared.
    fn share(&mut self, account: &FileMemoryAccount) -> Bytes {
        if let Self::Owned(bytes) = self {
            let before = bytes.capacity();
            let mut own = std::mem::take(bytes);
            own.shrink_to_fit();
            account.release(before - own.len());
            *self = Self::Shared(Bytes::from(own));
        }
        match self {
            // A part of a request would hold all of the request for as long as it is kept.
            Self::Shared(bytes) => Bytes::copy_from_slice(bytes),
            Self::Owned(_) => Bytes::new(),
        }
    }
}

/// Returns the capacity of a chunk that needs `wanted` bytes: a power of two, so that appending to
/// it is linear, or only what is needed where there is no room for that.
fn capacity_for(wanted: usize, held: usize, account: &FileMemoryAccount) -> usize {
    let generous = wanted
        .next_power_of_two()
        .clamp(LEAST_CAPACITY, CHUNK_BYTES);
    match account.has_room(generous.saturating_sub(held)) {
        true => generous.max(wanted),
        false => wanted,
    }
}

/// Returns the most that is charged for a new file of so many bytes.
pub(super) fn most_charged(bytes: usize) -> usize {
    bytes + bytes.div_ceil(CHUNK_BYTES) * CHUNK_OVERHEAD + MAP_OVERHEAD
}

fn charge(account: &FileMemoryAccount, bytes: usize) -> Result<(), FileError> {
    match account.charge(bytes) {
        true => Ok(()),
        false => Err(FileError::NoSpace),
    }
}

/// Corrects a charge of `charged` bytes to the `real` ones, which the allocator may have rounded
/// up.
fn settle(account: &FileMemoryAccount, charged: usize, real: usize) {
    if real < charged {
        account.release(charged - real);
    } else if real > charged {
        // A few bytes over the limit are of no account.
        let _ = account.charge(real - charged);
    }
}

impl FileContents {
    /// Creates the contents of a file that has `bytes`, of which it has a copy or which it shares;
    /// its chunks are charged to `account`.
    pub(super) fn new(
        bytes: &Bytes,
        is_copied: bool,
        account: &FileMemoryAccount,
    ) -> Result<Self, FileError> {
        let mut contents = Self::default();
        let pieces = (0..bytes.len()).step_by(CHUNK_BYTES);
        for (number, start) in (0_u64..).zip(pieces) {
            let piece = bytes.slice(start..bytes.len().min(start + CHUNK_BYTES));
            let length = piece.len() as u64;
            let charged = charge(account, piece.len()).and_then(|()| match number {
                0 => Ok(()),
                _ => contents
                    .charge_place(account)
                    .inspect_err(|_| account.release(piece.len())),
            });
            if let Err(error) = charged {
                let mut gone = contents.free(account);
                while gone.as_mut().is_some_and(|it| it.free_one(account)) {}
                return Err(error);
            }
            let chunk = match is_copied {
                true => FileChunk::Owned(piece.to_vec()),
                false => FileChunk::Shared(piece),
            };
            match number {
                0 => contents.first = chunk,
                _ => {
                    contents.rest.insert(number, chunk);
                }
            }
            contents.size += length;
        }
        Ok(contents)
    }

    /// Returns what is charged for the chunks.
    pub(super) fn charged(&self) -> usize {
        let rest: usize = self.rest.values().map(FileChunk::cost).sum();
        self.first.cost() + rest
    }

    /// Returns the size of the file in bytes, holes included.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Charges for one more chunk after the first.
    fn charge_place(&self, account: &FileMemoryAccount) -> Result<(), FileError> {
        let map = if self.rest.is_empty() {
            MAP_OVERHEAD
        } else {
            0
        };
        charge(account, CHUNK_OVERHEAD + map)
    }

    /// Returns a chunk with room for `wanted` bytes, which is made where there is a hole.
    fn chunk(
        &mut self,
        number: u64,
        wanted: usize,
        account: &FileMemoryAccount,
    ) -> Result<&mut FileChunk, FileError> {
        if number == 0 {
            self.first.reserve(wanted, account)?;
            return Ok(&mut self.first);
        }
        if !self.rest.contains_key(&number) {
            self.charge_place(account)?;
            self.rest.insert(number, FileChunk::default());
        }
        let reserved = match self.rest.get_mut(&number) {
            Some(chunk) => chunk.reserve(wanted, account),
            None => Err(FileError::NoSpace),
        };
        if reserved.is_err() {
            self.forget_empty(number, account);
        }
        reserved?;
        self.rest.get_mut(&number).ok_or(FileError::NoSpace)
    }

    /// Removes a chunk that has no bytes.
    fn forget_empty(&mut self, number: u64, account: &FileMemoryAccount) {
        if self
            .rest
            .get(&number)
            .is_some_and(|chunk| chunk.cost() == 0)
        {
            self.rest.remove(&number);
            account.release(CHUNK_OVERHEAD);
            self.release_map(account);
        }
    }

    /// Releases what the map was charged for, once it is empty.
    fn release_map(&self, account: &FileMemoryAccount) {
        if self.rest.is_empty() {
            account.release(MAP_OVERHEAD);
        }
    }

    /// Writes as many of `bytes` at `offset` as there is memory for, and returns how many.
    ///
    /// # Errors
    /// Returns `NoSpace` where there is room for none, and `TooLarge` past the largest offset.
    pub(super) fn write(
        &mut self,
        offset: u64,
        bytes: &[u8],
        account: &FileMemoryAccount,
    ) -> Result<usize, FileError> {
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > super::MAX_SIZE) {
            return Err(FileError::TooLarge);
        }
        let mut done = 0;
        while done < bytes.len() {
            let (number, start) = place_of(offset + done as u64);
            let length = (CHUNK_BYTES - start).min(bytes.len() - done);
            match self.chunk(number, start + length, account) {
                Ok(chunk) => chunk.write(start, &bytes[done..done + length]),
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
            done += length;
            self.size = self.size.max(offset + done as u64);
        }
        Ok(done)
    }

    /// Reads into `buffer` from `offset` on, and returns how many bytes there were.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let left = self.size.saturating_sub(offset);
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let mut done = 0;
        while done < wanted {
            let (number, start) = place_of(offset + done as u64);
            let length = (CHUNK_BYTES - start).min(wanted - done);
            let held = self.held(number).get(start..).unwrap_or_default();
            let held = &held[..held.len().min(length)];
            let piece = &mut buffer[done..done + length];
            piece[..held.len()].copy_from_slice(held);
            piece[held.len()..].fill(0);
            done += length;
        }
        done
    }

    fn held(&self, number: u64) -> &[u8] {
        match number {
            0 => self.first.bytes(),
            _ => self.rest.get(&number).map_or(&[], FileChunk::bytes),
        }
    }

    /// Sets the size. What is cut off is returned, to be freed by the caller; what is added is a
    /// hole.
    pub(super) fn set_size(&mut self, size: u64, account: &FileMemoryAccount) -> Option<Discarded> {
        let shrinks = size < self.size;
        self.size = size;
        if !shrinks {
            return None;
        }
        let (number, within) = place_of(size);
        match number {
            0 => self.first.truncate(within, account),
            _ => {
                if let Some(chunk) = self.rest.get_mut(&number) {
                    chunk.truncate(within, account);
                }
            }
        }
        if self.rest.is_empty() {
            return None;
        }
        let gone = self
            .rest
            .split_off(&(number + u64::from(within > 0)).max(1));
        self.release_map(account);
        Some(Discarded(gone))
    }

    /// Allocates what is not allocated of one chunk of the file, the one with the byte at `offset`,
    /// up to `end`, and returns how far it came.
    ///
    /// # Errors
    /// Returns `NoSpace` where there is no memory for it.
    pub(super) fn allocate_piece(
        &mut self,
        offset: u64,
        end: u64,
        account: &FileMemoryAccount,
    ) -> Result<u64, FileError> {
        let (number, start) = place_of(offset);
        let left = usize::try_from(end - offset).unwrap_or(usize::MAX);
        let length = (CHUNK_BYTES - start).min(left);
        let chunk = self.chunk(number, start + length, account)?;
        if chunk.bytes().len() < start + length {
            let from = chunk.bytes().len();
            chunk.write(from, &ZEROS[..start + length - from]);
        }
        let reached = offset + length as u64;
        self.size = self.size.max(reached);
        Ok(reached)
    }

    /// Returns the bytes of the file in pieces of at most a chunk, which share them with the file.
    /// Holes are pieces of zeros that take no memory.
    pub(super) fn share(&mut self, account: &FileMemoryAccount) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        let mut offset = 0;
        while offset < self.size {
            let (number, _) = place_of(offset);
            let length = (self.size - offset).min(CHUNK_BYTES as u64);
            let wanted = usize::try_from(length).unwrap_or(CHUNK_BYTES);
            let chunk = match number {
                0 => Some(&mut self.first),
                _ => self.rest.get_mut(&number),
            };
            let held = chunk.map_or_else(Bytes::new, |chunk| chunk.share(account));
            let hole = wanted - held.len().min(wanted);
            if !held.is_empty() {
                pieces.push(held);
            }
            if hole > 0 {
                pieces.push(Bytes::from_static(&ZEROS[..hole]));
            }
            offset += length;
        }
        pieces
    }

    /// Takes the contents apart: frees the first chunk, and returns the others, to be freed by the
    /// caller.
    pub(super) fn free(&mut self, account: &FileMemoryAccount) -> Option<Discarded> {
        account.release(self.first.cost());
        let Self { rest, .. } = std::mem::take(self);
        if rest.is_empty() {
            return None;
        }
        account.release(MAP_OVERHEAD);
        Some(Discarded(rest))
    }
}
