//! Reads and checks the messages of client-streaming calls, which are interactions and uploads.

use bytes::Bytes;
use tonic::{Status, Streaming};

use crate::model::refusal::{Reason, Refusal};

/// Why a caller's messages cannot be taken: a handler refused one of them, or the layers that they
/// came through failed.
pub(super) enum ClientStreamError {
    Refused(Refusal),
    Broken(Status),
}

impl From<Refusal> for ClientStreamError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Returns the content of the next message, as `frame` extracts it, or `None` after the last
/// message. A message without content is refused; `empty` then says what a message may contain.
pub(super) async fn next<M, F>(
    messages: &mut Streaming<M>,
    frame: impl FnOnce(M) -> Option<F>,
    empty: &str,
) -> Result<Option<F>, ClientStreamError> {
    match messages
        .message()
        .await
        .map_err(ClientStreamError::Broken)?
    {
        None => Ok(None),
        Some(message) => match frame(message) {
            Some(frame) => Ok(Some(frame)),
            None => Err(malformed(empty)),
        },
    }
}

/// Returns `bytes`, the value of `field`, if there are from 1 to `max` of them.
pub(super) fn piece(field: &str, bytes: Bytes, max: usize) -> Result<Bytes, Refusal> {
    if bytes.is_empty() {
        return Err(Refusal::invalid(field, "is empty"));
    }
    if bytes.len() > max {
        return Err(Refusal::above(field, bytes.len(), max));
    }
    Ok(bytes)
}

/// Creates the refusal of a message that the protocol of the call does not allow.
pub(super) fn malformed(message: &str) -> ClientStreamError {
    ClientStreamError::Refused(Refusal::new(Reason::MalformedRequest, message))
}
