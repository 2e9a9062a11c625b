//! What a run's answer keeps of the run's admission until its last byte was handed on.

use super::admission::{Counted, Pass};
use crate::log;

/// Bytes that a stream's answer holds at the most besides what is in the run's log: a frame on its
/// way out, of one event and what was put together before it, and the buffer of the next one.
pub const STREAMED_FRAMES: u64 = 192 << 10;
/// Bytes that an answer which is given whole has besides the output, at the most: how the run ended.
pub(super) const WHOLE_REST: u64 = 32 << 10;

/// What a stream's answer keeps: its frames, and what its caller may have yet to read of the log
/// however little room all logs have.
pub(super) const STREAMED: u64 = STREAMED_FRAMES + log::FLOOR as u64;

/// A part of a run's reservation that is its answer's, and the run's place in its tenant's quota,
/// until this is dropped.
#[derive(Debug)]
pub struct AnswerReservation {
    permit: Pass,
    quota: Option<Counted>,
}

impl AnswerReservation {
    pub(super) fn new(permit: Pass, quota: Option<Counted>) -> Self {
        Self { permit, quota }
    }

    /// Bytes that are reserved.
    pub fn bytes(&self) -> u64 {
        self.permit.bytes()
    }

    /// Gives back `bytes` of them.
    pub fn release(&mut self, bytes: u64) {
        self.permit.release(bytes);
    }

    /// Counts the run no more: its caller may have all of the answer from now on.
    pub fn release_quota(&mut self) {
        self.quota = None;
    }
}
