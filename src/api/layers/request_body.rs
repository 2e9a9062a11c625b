//! Reads a request's body off its connection even if nobody wants it, so that an early answer costs
//! the caller none of its other calls.
//!
//! If a stream is answered before all of its body is there, dropping the body closes the stream at
//! once. What the client still sends is then an HTTP/2 error on its side of the connection, and h2
//! takes only a few of these before it closes the connection. A caller that is refused again and
//! again, for a credential that has expired, would lose its other calls.
//!
//! HTTP/1 has no streams, so there the connection is closed, and a client that still sends may see
//! that before the answer. So more is read of a body that came by HTTP/1.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::runtime::Handle;

/// How much of an unwanted body is read all the same.
struct DiscardLimit {
    bytes: usize,
    time: Duration,
}

/// The limit of a body that came by HTTP/2.
const HTTP2_LIMIT: DiscardLimit = DiscardLimit {
    bytes: 64 << 10,
    time: Duration::from_millis(500),
};
/// The limit of a body that came by HTTP/1.
const HTTP1_LIMIT: DiscardLimit = DiscardLimit {
    bytes: 16 << 20,
    time: Duration::from_secs(5),
};
/// The most unwanted bodies of one connection that are read at once: a fifth of its streams. Any
/// others are reset.
const MAX_UNWANTED: u32 = 20;

/// The counter of one connection's bodies that nobody wants and that are read all the same. Clones
/// share the count.
#[derive(Clone, Debug, Default)]
pub(in crate::api) struct UnwantedBodies(Arc<AtomicU32>);

impl UnwantedBodies {
    /// Reads an unwanted body in a task behind its answer, unless too many are being read already.
    fn discard(self, body: Incoming, limit: DiscardLimit) {
        let more = |count: u32| (count < MAX_UNWANTED).then_some(count + 1);
        let counted = self
            .0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        // Without a runtime, everything is ending.
        if let (Ok(_), Ok(runtime)) = (counted, Handle::try_current()) {
            // The task ends by itself, and with the connection.
            runtime.spawn(async move {
                discard(body, limit).await;
                self.0.fetch_sub(1, Ordering::AcqRel);
            });
        }
    }
}

/// The body of a request. If it is dropped before its end, the rest is read and discarded in the
/// background, within limits.
#[derive(Debug)]
pub(in crate::api) struct RequestBody {
    body: Option<Incoming>,
    unwanted: UnwantedBodies,
}

impl RequestBody {
    /// Wraps `body`, which arrives on a connection that counts its `unwanted` bodies.
    pub(in crate::api) fn new(body: Incoming, unwanted: UnwantedBodies) -> Self {
        Self {
            body: Some(body),
            unwanted,
        }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            std::mem::take(&mut self.unwanted).discard(body, HTTP2_LIMIT);
        }
    }
}

/// Reads and discards a body that nobody wants, if it is short. If a stream is reset while a client
/// sends on it, some clients report that it broke, instead of the answer.
async fn discard(mut body: Incoming, limit: DiscardLimit) {
    let discarded = async {
        let mut left = limit.bytes;
        while let Some(Ok(frame)) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            let Some(rest) = left.checked_sub(bytes) else {
                return;
            };
            left = rest;
        }
    };
    // A body that is longer, or does not end in time, is reset.
    let _ = tokio::time::timeout(limit.time, discarded).await;
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

/// The body of a request that a browser may have made, by either version of HTTP. If it is dropped
/// before its end, the rest is read and discarded in the background, within limits.
#[derive(Debug)]
pub(in crate::api) struct WebRequestBody {
    body: Option<Incoming>,
    is_http1: bool,
    has_ended: bool,
    unwanted: UnwantedBodies,
}

impl WebRequestBody {
    /// Wraps the body of `request`, which arrives on a connection that counts its `unwanted`
    /// bodies.
    pub(in crate::api) fn of(
        request: Request<Incoming>,
        unwanted: UnwantedBodies,
    ) -> Request<Self> {
        let is_http1 = request.version() < Version::HTTP_2;
        request.map(|body| Self {
            body: Some(body),
            is_http1,
            has_ended: false,
            unwanted,
        })
    }
}

impl Drop for WebRequestBody {
    fn drop(&mut self) {
        if self.is_end_stream() {
            return;
        }
        let limit = match self.is_http1 {
            true => HTTP1_LIMIT,
            false => HTTP2_LIMIT,
        };
        if let Some(body) = self.body.take() {
            std::mem::take(&mut self.unwanted).discard(body, limit);
        }
    }
}

impl Body for WebRequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(None),
        };
        self.has_ended |= matches!(polled, Poll::Ready(None));
        polled
    }

    fn is_end_stream(&self) -> bool {
        // A body of HTTP/1 in chunks does not say by itself that it has ended, and one that is
        // broken off fails. HTTP/2 ends a body that was reset, too.
        let says_so = self.body.as_ref().is_none_or(Incoming::is_end_stream);
        says_so || (self.is_http1 && self.has_ended)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(Incoming::size_hint);
        hint.unwrap_or_default()
    }
}
