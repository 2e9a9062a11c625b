//! The body of an answer, as HTTP takes it, with the measurement of its call.

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

/// The body of an answer on a listener that gRPC-Web is served on too.
pub(in crate::api) enum AnyAnswerBody {
    /// The answer to a call of gRPC.
    Grpc(TimedBody),
    /// The answer to any other request. If it is a call, what was translated is measured.
    Web(Body),
}

impl http_body::Body for AnyAnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Grpc(body) => Pin::new(body).poll_frame(cx),
            Self::Web(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Grpc(body) => body.is_end_stream(),
            Self::Web(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Grpc(body) => body.size_hint(),
            Self::Web(body) => body.size_hint(),
        }
    }
}
