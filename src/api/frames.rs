//! The messages of a caller that sends several.

use bytes::Bytes;
use tonic::{Status, Streaming};

use crate::refusal::{Reason, Refusal};

/// Why a caller's messages cannot be taken: refused here, or by the layers that they came through.
pub(super) enum Failed {
    Refused(Refusal),
    Broken(Status),
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What the next message says, as `frame` finds it; where it says nothing, `empty` tells what it might have.
pub(super) async fn next<M, F>(
    messages: &mut Streaming<M>,
    frame: impl FnOnce(M) -> Option<F>,
    empty: &str,
) -> Result<Option<F>, Failed> {
    match messages.message().await.map_err(Failed::Broken)? {
        None => Ok(None),
        Some(message) => match frame(message) {
            Some(frame) => Ok(Some(frame)),
            None => Err(malformed(empty)),
        },
    }
}

/// A piece of 1 to `max` bytes.
pub(super) fn piece(field: &str, bytes: Bytes, max: usize) -> Result<Bytes, Refusal> {
    if bytes.is_empty() {
        return Err(Refusal::invalid(field, "is empty"));
    }
    if bytes.len() > max {
        return Err(Refusal::above(field, bytes.len(), max));
    }
    Ok(bytes)
}

pub(super) fn malformed(message: &str) -> Failed {
    Failed::Refused(Refusal::new(Reason::MalformedRequest, message))
}
