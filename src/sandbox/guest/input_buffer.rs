//! The bytes of a run's stdin: those of the spec, those that writers have sent since, and what the
//! guest has read of them. This is a pure state machine: nobody waits here, and nobody is woken.
//!
//! Writers name the place of their bytes by an offset, so that a call that is repeated appends
//! nothing twice. The bytes that were sent last are kept for a while after the guest has read them,
//! because a repetition can then be told from another writer's bytes for the same place.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use crate::model::guest_limits::{INPUT_KEPT, INPUT_WAITING};
use crate::model::refusal::{Reason, Refusal};

/// How long a writer is told to wait before it sends again what did not fit.
const RETRY: Duration = Duration::from_millis(100);

/// The stdin of a run, as bytes in the order in which the guest reads them.
#[derive(Debug, Default)]
pub(super) struct InputBuffer {
    /// The spec's input, which the guest reads first.
    initial: Bytes,
    /// The bytes that writers have sent last, of which the end is yet to be read. They are copies,
    /// since a piece as it arrived is a slice of a message that may be far larger.
    recent: VecDeque<u8>,
    /// The number of bytes at the end of `recent` that the guest has yet to read.
    unread: usize,
    /// The number of bytes that writers have sent so far.
    sent: u64,
    /// The number of bytes that the guest has read, of the spec's input too.
    read: u64,
    /// The number of bytes at the beginning that do not count as read.
    preface: u64,
    closed: bool,
    /// Whether the run has its slot, which reserves the memory of what is sent.
    is_admitted: bool,
}

/// What became of the input that a writer sent for a place of its choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcceptedInput {
    /// The number of bytes, from the first one sent, that the run has, those of earlier calls
    /// included.
    pub accepted: u64,
    /// The offset of the next byte that nobody has sent yet.
    pub next_offset: u64,
    /// Whether the input is closed: the guest sees end of file after what is there.
    pub closed: bool,
}

/// Why input was not taken. Each has the offset of the next byte that nobody has sent yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputRejection {
    /// The input is closed, and the bytes are new.
    Closed(u64),
    /// Bytes before the first of these were never sent.
    Gap {
        /// The offset that the writer gave.
        asked: u64,
        /// The offset of the next byte that nobody has sent yet.
        expected: u64,
    },
    /// Other bytes, or no end of file, were sent for the same place.
    Conflict(u64),
    /// The guest has yet to read too much for any of the bytes to fit.
    Full(u64),
}

impl From<InputRejection> for Refusal {
    /// Converts a rejection into the refusal of a call that sends input.
    fn from(rejection: InputRejection) -> Self {
        match rejection {
            InputRejection::Closed(next) => Self::new(
                Reason::InputClosed,
                format!("the input of the run was closed after {next} bytes: no more can follow"),
            )
            .with("next_offset", next),
            InputRejection::Gap { asked, expected } => Self::of_field(
                Reason::InputGap,
                "offset",
                format!("{asked} is beyond the {expected} bytes that were sent so far"),
            )
            .with("asked", asked)
            .with("expected", expected),
            InputRejection::Conflict(expected) => Self::of_field(
                Reason::InputConflict,
                "offset",
                format!(
                    "something else was sent for this place before, by another writer; new bytes go at {expected}"
                ),
            )
            .with("expected", expected),
            InputRejection::Full(next) => Self::new(
                Reason::InputFull,
                "the guest has yet to read what was sent before, or the run waits for its slot",
            )
            .with("next_offset", next)
            .retry_after(RETRY),
        }
    }
}

impl InputBuffer {
    /// Creates an input that is complete: `bytes` and then end of file.
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self {
            initial: bytes,
            closed: true,
            ..Self::default()
        }
    }

    /// Sets the spec's input, which the guest reads before anything else. The run has its slot from
    /// now on, so that bytes which are sent to it fit.
    pub(super) fn begin_with(&mut self, bytes: Bytes) {
        self.initial = bytes;
        self.is_admitted = true;
    }

    /// Reports whether there is nothing to read at present.
    pub(super) fn is_empty(&self) -> bool {
        self.initial.is_empty() && self.unread == 0
    }

    /// Reports whether no more bytes will come.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Ends the input: the guest sees end of file after what is there.
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    /// Counts as read only what the guest reads after the first `preface` bytes, which are not its
    /// own input.
    pub(super) fn begin_count_after(&mut self, preface: usize) {
        self.preface = preface as u64;
    }

    /// Returns the number of bytes that the guest has read after the preface.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read.saturating_sub(self.preface)
    }

    /// Takes at most `size` of the bytes that come next, for the guest.
    pub(super) fn take(&mut self, size: usize) -> Bytes {
        let taken = if self.initial.is_empty() {
            let size = size.min(self.unread);
            let start = self.recent.len() - self.unread;
            let taken: Vec<u8> = self.recent.range(start..start + size).copied().collect();
            self.unread -= size;
            self.trim();
            taken.into()
        } else {
            self.initial.split_to(size.min(self.initial.len()))
        };
        self.read += taken.len() as u64;
        taken
    }

    /// Appends a whole piece at the end, and reports whether it did: while too much waits for the
    /// guest, it does not. A piece is never divided, so that no other writer's bytes come between.
    ///
    /// # Errors
    /// [`InputRejection::Closed`] where the input was closed.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<bool, InputRejection> {
        if self.closed {
            return Err(InputRejection::Closed(self.sent));
        }
        let fits = self.unread < INPUT_WAITING.size();
        if fits {
            self.append(piece);
        }
        Ok(fits)
    }

    /// Takes what a writer sends for the place `offset`: skips what was sent before, appends as
    /// much of the rest as fits, and closes the input after all of it where `eof` says so.
    ///
    /// # Errors
    /// Where bytes are missing before these, others were sent in their place, the input is closed,
    /// or nothing fits. The input is then as it was.
    pub(super) fn accept(
        &mut self,
        offset: u64,
        data: &[u8],
        eof: bool,
    ) -> Result<AcceptedInput, InputRejection> {
        let end = offset.saturating_add(data.len() as u64);
        if self.closed && end > self.sent {
            return Err(InputRejection::Closed(self.sent));
        }
        let Some(before) = self.sent.checked_sub(offset) else {
            return Err(InputRejection::Gap {
                asked: offset,
                expected: self.sent,
            });
        };
        let repeated = usize::try_from(before).map_or(data.len(), |it| it.min(data.len()));
        let (repeated, new) = data.split_at(repeated);
        let ends_too_early = eof && end < self.sent;
        if ends_too_early || !self.has(offset, repeated) {
            return Err(InputRejection::Conflict(self.sent));
        }
        let taken = &new[..new.len().min(self.room())];
        let accepted = repeated.len() + taken.len();
        if accepted == 0 && !data.is_empty() {
            return Err(InputRejection::Full(self.sent));
        }
        self.append(taken);
        if eof && taken.len() == new.len() {
            self.closed = true;
        }
        Ok(AcceptedInput {
            accepted: accepted as u64,
            next_offset: self.sent,
            closed: self.closed,
        })
    }

    /// Returns how many bytes fit. Before the run has its slot, which reserves their memory, that
    /// is none.
    fn room(&self) -> usize {
        match self.is_admitted {
            true => INPUT_WAITING.size().saturating_sub(self.unread),
            false => 0,
        }
    }

    /// Reports whether `bytes` were sent for the place `offset`, as far as what was sent there is
    /// still kept. All of them have been sent or are others: `offset` and their number are at most
    /// what was sent.
    fn has(&self, offset: u64, bytes: &[u8]) -> bool {
        let kept_from = self.sent - self.recent.len() as u64;
        let forgotten = kept_from.saturating_sub(offset);
        let forgotten = usize::try_from(forgotten).map_or(bytes.len(), |it| it.min(bytes.len()));
        let known = &bytes[forgotten..];
        let start = offset.saturating_sub(kept_from);
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        known.is_empty() || self.recent.range(start..).take(known.len()).eq(known)
    }

    /// Appends bytes that are new to the input. All that writers send goes through here.
    fn append(&mut self, bytes: &[u8]) {
        let length = self.recent.len() + bytes.len();
        if length > self.recent.capacity() {
            // A power of two by itself: the queue would double what it has, whatever that is, and
            // could come to hold twice of what a run reserves.
            let more = length.next_power_of_two() - self.recent.len();
            self.recent.reserve_exact(more);
        }
        self.recent.extend(bytes);
        self.unread += bytes.len();
        self.sent += bytes.len() as u64;
        self.trim();
    }

    /// Drops the oldest bytes that the guest has read and that need not be kept any more.
    fn trim(&mut self) {
        let kept = self.unread.max(INPUT_KEPT.size());
        let dropped = self.recent.len().saturating_sub(kept);
        self.recent.drain(..dropped);
    }
}

#[cfg(test)]
mod tests;
