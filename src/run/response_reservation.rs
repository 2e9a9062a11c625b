//! The bytes and the quota that a run's response keeps of the run's permit, until the last byte of
//! the response was handed on.

use super::admission::{Permit, RunQuotaGuard};
use crate::event_log;

/// The most bytes that the answer of a stream holds besides what is in the run's log: a frame on
/// its way out (one event and what was put together before it), and the buffer of the next frame.
pub const STREAMED_FRAMES: u64 = 192 << 10;
/// The most bytes that an answer given whole has besides the output, to say how the run ended.
pub(super) const UNARY_REST: u64 = 32 << 10;

/// The most bytes that an answer has for a file besides its contents and its path.
pub(super) const FILE_REST: u64 = 160;

/// Bytes that the answer of a stream keeps reserved: its frames, and what its caller may have yet
/// to read of the log however little room all logs have.
pub(super) const STREAMED_BYTES: u64 = STREAMED_FRAMES + event_log::FLOOR as u64;

/// A guard for the part of a run's memory reservation that belongs to its answer, and for the run's
/// place in its tenant's quota. Both are released when it is dropped.
#[derive(Debug)]
pub struct ResponseReservation {
    permit: Permit,
    quota: Option<RunQuotaGuard>,
}

impl ResponseReservation {
    pub(super) fn new(permit: Permit, quota: Option<RunQuotaGuard>) -> Self {
        Self { permit, quota }
    }

    /// Returns how many bytes are reserved.
    pub fn bytes(&self) -> u64 {
        self.permit.bytes()
    }

    /// Releases `bytes` of the reservation.
    pub fn release(&mut self, bytes: u64) {
        self.permit.release(bytes);
    }

    /// Stops counting the run in its tenant's quota: its caller may have all of the answer from now
    /// on.
    pub fn release_quota(&mut self) {
        self.quota = None;
    }
}
