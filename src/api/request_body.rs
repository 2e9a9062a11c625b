//! The body of a request as it comes, which is taken off its connection where the request was refused for its headers.
//!
//! A stream that is answered before all of it came is gone at once where its body is dropped. What comes after that is an
//! error of HTTP/2 on the client's side of the connection, of which h2 takes a few only before it closes the connection: a
//! caller that is refused again and again, for a credential that has expired, would lose its other calls.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::runtime::Handle;

/// Bytes of a body that nobody wants, which are read all the same, and how long that may take.
const UNWANTED: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_millis(500);

/// The body of a request.
#[derive(Debug)]
pub(super) struct RequestBody {
    body: Option<Incoming>,
    /// Whether any of it was read: who refuses it then does so for what is in it, and wants no more of that.
    was_read: bool,
}

impl RequestBody {
    /// Creates one of what comes.
    pub(super) fn new(body: Incoming) -> Self {
        Self {
            body: Some(body),
            was_read: false,
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let unread = self.body.take().filter(|body| !body.is_end_stream());
        let Some(body) = unread.filter(|_| !self.was_read) else {
            return;
        };
        // Where there is none, everything is ending.
        if let Ok(runtime) = Handle::try_current() {
            // Ends by itself, and with the connection; there are no more of them than a connection has streams.
            runtime.spawn(discard(body));
        }
    }
}

/// Reads a body that nobody wants, where it is short: a stream that is reset while it is sent is told by some clients as
/// broken, and not what was answered.
pub(super) async fn discard<B>(mut body: B)
where
    B: Body<Data = Bytes> + Unpin,
{
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
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = Pin::new(body).poll_frame(cx);
        self.was_read |= polled.is_ready();
        polled
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
