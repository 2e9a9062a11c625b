//! The calls of one connection that take input as it comes: what such a call has not read lies in the connection, and
//! takes of its window. There may be so many that all of them together leave room in it for others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::inflight::RETRY;
use crate::refusal::{Reason, Refusal};

/// Bytes that a caller may send on one call before they are read.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// Calls of one connection that may leave input unread: interactions, uploads and reflection. The other methods read all
/// that comes, or refuse it.
pub(super) const MAX_INPUT_CALLS: u32 = 40;
/// Bytes that a caller may send on all calls of a connection before they are read: what may lie unread, and room for
/// eight calls beside it that arrive at full speed.
pub const CONNECTION_WINDOW: u32 = (MAX_INPUT_CALLS + 8) * STREAM_WINDOW;

/// The number of such calls that a connection has.
#[derive(Clone, Debug, Default)]
pub(super) struct InputCalls(Arc<AtomicU32>);

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct InputCall(Arc<AtomicU32>);

impl InputCalls {
    /// Counts one more call, until what this returns is dropped.
    ///
    /// # Errors
    /// Where there may be no more.
    pub(super) fn begin(&self) -> Result<InputCall, Refusal> {
        let more = |calls: u32| (calls < MAX_INPUT_CALLS).then_some(calls + 1);
        let begun = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        match begun {
            Ok(_) => Ok(InputCall(Arc::clone(&self.0))),
            Err(_) => Err(too_many()),
        }
    }
}

fn too_many() -> Refusal {
    let message = format!(
        "a connection may have {MAX_INPUT_CALLS} calls at once that take input as it comes (Interact, UploadModule, \
         reflection): open another connection"
    );
    Refusal::new(Reason::QueueFull, message)
        .with("allowed", MAX_INPUT_CALLS)
        .retry_after(RETRY)
}

impl Drop for InputCall {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_so_many_and_one_that_ends_makes_room() {
        let calls = InputCalls::default();
        let mut begun: Vec<_> = std::iter::from_fn(|| calls.begin().ok()).collect();
        assert_eq!(begun.len(), MAX_INPUT_CALLS as usize);
        begun.pop();
        assert!(calls.begin().is_ok());
        assert!(calls.clone().begin().is_ok(), "the first was dropped");
        assert!(InputCalls::default().begin().is_ok(), "another connection");
    }

    #[test]
    fn what_they_may_leave_unread_leaves_room_in_the_connection() {
        const { assert!(MAX_INPUT_CALLS * STREAM_WINDOW < CONNECTION_WINDOW) };
    }
}
