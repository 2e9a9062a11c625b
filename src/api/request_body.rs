//! The body of a request as it comes, which is taken off its connection even where nobody wants it.
//!
//! A stream that is answered before all of it came is gone at once where its body is dropped. What comes after that is an
//! error of HTTP/2 on the client's side of the connection, of which h2 takes a few only before it closes the connection: a
//! caller that is refused again and again, for a credential that has expired, would lose its other calls.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::runtime::Handle;

/// Bytes of a body that nobody wants, which are read all the same, and how long that may take.
const UNWANTED: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_millis(500);
/// Such bodies of one connection at once: a fifth of its streams. What is more is reset.
const MAX_UNWANTED: u32 = 20;

/// The bodies of one connection that nobody wants and that are read all the same.
#[derive(Clone, Debug, Default)]
pub(super) struct UnwantedBodies(Arc<AtomicU32>);

impl UnwantedBodies {
    /// Reads one behind its answer, where there are not too many.
    fn discard(self, body: Incoming) {
        let more = |count: u32| (count < MAX_UNWANTED).then_some(count + 1);
        let counted = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        // Without a runtime, everything is ending.
        if let (Ok(_), Ok(runtime)) = (counted, Handle::try_current()) {
            // Ends by itself, and with the connection.
            runtime.spawn(async move {
                discard(body).await;
                self.0.fetch_sub(1, Ordering::AcqRel);
            });
        }
    }
}

/// The body of a request.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: Option<Incoming>,
    unwanted: UnwantedBodies,
}

impl RequestBody {
    /// Creates one of what comes, on a connection that has `unwanted` bodies.
    pub(super) fn new(body: Incoming, unwanted: UnwantedBodies) -> Self {
        Self {
            body: Some(body),
            unwanted,
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            std::mem::take(&mut self.unwanted).discard(body);
        }
    }
}

/// Reads a body that nobody wants, where it is short: a stream that is reset while it is sent is told by some clients as
/// broken, and not what was answered.
async fn discard(mut body: Incoming) {
    let discarded = async {
        let mut left = UNWANTED;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(bytes) else {
                return;
            };
            left = rest;
        }
    };
    // What is longer, or does not end, is reset.
    let _ = tokio::time::timeout(PATIENCE, discarded).await;
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map(Incoming::size_hint)
            .unwrap_or_default()
    }
}
