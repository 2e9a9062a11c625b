//! Limits how many calls of one connection may stream input to the daemon. What such a call has not
//! read yet stays in the connection and uses up its HTTP/2 flow-control window. The limit is so low
//! that all of these calls together leave room in the window for others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::model::refusal::{Reason, Refusal};
use crate::run::RETRY_IN_FLIGHT;

/// The HTTP/2 window of a stream: the most bytes that a caller may send on one call before they are
/// read.
pub const STREAM_WINDOW: u32 = 256 << 10;
/// The most calls of one connection that may leave input unread: interactions, uploads and
/// reflection. The other methods read everything that arrives, or refuse it.
pub(super) const MAX_CLIENT_STREAMING_CALLS: u32 = 40;
/// The HTTP/2 window of a connection: the most bytes that a caller may send on all of its calls
/// before they are read. It has room for what may stay unread, and for eight more calls that arrive
/// at full speed.
pub const CONNECTION_WINDOW: u32 = (MAX_CLIENT_STREAMING_CALLS + 8) * STREAM_WINDOW;

/// The counter of one connection's calls that stream input. Clones share the count.
#[derive(Clone, Debug, Default)]
pub(super) struct ClientStreamingCalls(Arc<AtomicU32>);

/// A call that is counted. Dropping it takes the call off the count.
#[derive(Debug)]
pub(super) struct ClientStreamingCallGuard(Arc<AtomicU32>);

impl ClientStreamingCalls {
    /// Counts one more call until the returned guard is dropped.
    ///
    /// # Errors
    /// `QUEUE_FULL` if the connection has as many of these calls as it may.
    pub(super) fn begin(&self) -> Result<ClientStreamingCallGuard, Refusal> {
        let more = |calls: u32| (calls < MAX_CLIENT_STREAMING_CALLS).then_some(calls + 1);
        let begun = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        match begun {
            Ok(_) => Ok(ClientStreamingCallGuard(Arc::clone(&self.0))),
            Err(_) => Err(too_many()),
        }
    }
}

fn too_many() -> Refusal {
    let message = format!(
        "a connection may have {MAX_CLIENT_STREAMING_CALLS} calls at once that take input as it comes (Interact, UploadModule, \
         reflection): open another connection"
    );
    Refusal::new(Reason::QueueFull, message)
        .with("allowed", MAX_CLIENT_STREAMING_CALLS)
        .retry_after(RETRY_IN_FLIGHT)
}

impl Drop for ClientStreamingCallGuard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_has_so_many_and_one_that_ends_makes_room() {
        let calls = ClientStreamingCalls::default();
        let mut begun: Vec<_> = std::iter::from_fn(|| calls.begin().ok()).collect();
        assert_eq!(begun.len(), MAX_CLIENT_STREAMING_CALLS as usize);
        begun.pop();
        assert!(calls.begin().is_ok());
        assert!(calls.clone().begin().is_ok(), "the first was dropped");
        assert!(
            ClientStreamingCalls::default().begin().is_ok(),
            "another connection"
        );
    }

    #[test]
    fn what_they_may_leave_unread_leaves_room_in_the_connection() {
        const { assert!(MAX_CLIENT_STREAMING_CALLS * STREAM_WINDOW < CONNECTION_WINDOW) };
    }
}
