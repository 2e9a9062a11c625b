//! The body of an answer, as HTTP/2 takes it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use super::response_watchdog::WatchedBody;

/// The body of an answer, which depends on the path that its call took.
pub(in crate::api) enum ResponseBody {
    /// The answer to a `Run`, from its own path.
    Run(WatchedBody),
    /// The answer to any other call, or a refusal.
    Layered(Body),
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        match self.get_mut() {
            Self::Run(delivery) => Pin::new(delivery).poll_frame(cx),
            Self::Layered(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Run(delivery) => delivery.is_end_stream(),
            Self::Layered(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Run(delivery) => delivery.size_hint(),
            Self::Layered(body) => body.size_hint(),
        }
    }
}
