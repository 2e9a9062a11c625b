//! The body of an answer, as HTTP/2 takes it, with the measurement of its call.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::response_watchdog::WatchedBody;
use crate::api::call_counters::CallTimer;

/// The body of an answer, which depends on the path that its call took.
pub(in crate::api) enum ResponseBody {
    /// The answer to a `Run`, from its own path.
    Run(WatchedBody),
    /// The answer to any other call, or a refusal.
    Layered(Body),
}

/// The body of an answer whose call is measured until the body has been taken, or is dropped.
pub(in crate::api) struct TimedBody {
    body: ResponseBody,
    timer: CallTimer,
}

impl TimedBody {
    /// Creates the body of a call that `timer` measures.
    pub(in crate::api) fn new(body: ResponseBody, timer: CallTimer) -> Self {
        Self { body, timer }
    }
}

impl http_body::Body for TimedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let polled = match &mut this.body {
            ResponseBody::Run(delivery) => Pin::new(delivery).poll_frame(cx),
            ResponseBody::Layered(body) => Pin::new(body).poll_frame(cx),
        };
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(trailers) = frame.trailers_ref()
        {
            this.timer.note_end(trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.body {
            ResponseBody::Run(delivery) => delivery.is_end_stream(),
            ResponseBody::Layered(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.body {
            ResponseBody::Run(delivery) => delivery.size_hint(),
            ResponseBody::Layered(body) => body.size_hint(),
        }
    }
}
