//! Answers on their way out: one that its caller does not take is let go after a while.
//!
//! HTTP/2 asks for the next piece of an answer only when the caller has made room for it. A caller that never does
//! would keep a finished run's output in memory for as long as its connection lasts. Large pieces are handed on in
//! smaller ones, since what was handed on is out of reach here.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;

use super::status;
use crate::refusal::{Reason, Refusal};
use crate::run::Untold;

/// Bytes of a piece that is handed on as it is: an event and what is around it.
const LARGE: usize = 128 << 10;
/// Bytes of what a larger one is cut into.
const PIECE: usize = 64 << 10;
/// How often answers are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// All answers on their way out.
#[derive(Clone, Debug, Default)]
pub struct Deliveries(Arc<Mutex<Vec<Weak<Answer>>>>);

#[derive(Debug)]
struct Answer(Mutex<State>);

#[derive(Debug)]
struct State {
    body: Option<Body>,
    /// What is left of a large piece.
    rest: Bytes,
    /// When the caller's side took something that it has not come back for; none while it waits for us.
    taken: Option<Instant>,
}

/// An answer's body.
pub(super) struct Delivery {
    answer: Arc<Answer>,
    /// A drain waits for it.
    _untold: Option<Untold>,
}

impl Deliveries {
    /// Watches over an answer.
    pub(super) fn watch(&self, body: Body, untold: Option<Untold>) -> Delivery {
        let answer = Arc::new(Answer(Mutex::new(State {
            body: Some(body),
            rest: Bytes::new(),
            taken: Some(Instant::now()),
        })));
        lock(&self.0).push(Arc::downgrade(&answer));
        Delivery {
            answer,
            _untold: untold,
        }
    }

    /// Lets answers go that nobody has taken anything of for `patience`, for as long as it is polled.
    pub async fn let_go(&self, patience: Duration) {
        loop {
            tokio::time::sleep(LOOK.min(patience)).await;
            let mut gone = Vec::new();
            lock(&self.0).retain(|answer| {
                let Some(answer) = answer.upgrade() else {
                    return false;
                };
                let mut state = lock(&answer.0);
                let stalled = state.taken.is_some_and(|taken| taken.elapsed() >= patience);
                if stalled {
                    gone.extend(state.body.take());
                    state.rest = Bytes::new();
                }
                !stalled
            });
            if !gone.is_empty() {
                tracing::warn!(
                    answers = gone.len(),
                    "answers were dropped: nobody took them"
                );
            }
        }
    }
}

impl http_body::Body for Delivery {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let mut state = lock(&self.answer.0);
        let State { body, rest, taken } = &mut *state;
        let Some(body) = body else {
            // Never read: HTTP/2 resets the stream. That it was dropped was told to the log.
            let refusal = Refusal::new(Reason::Internal, "an answer was dropped: nobody took it");
            return Poll::Ready(Some(Err(status::from(&refusal))));
        };
        if rest.is_empty() {
            let polled = Pin::new(body).poll_frame(cx);
            *taken = polled.is_ready().then(Instant::now);
            let Poll::Ready(Some(Ok(frame))) = polled else {
                return polled;
            };
            match frame.into_data() {
                Ok(data) if data.len() > LARGE => *rest = data,
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(frame) => return Poll::Ready(Some(Ok(frame))),
            }
        }
        *taken = Some(Instant::now());
        // A copy: a slice would keep the whole of the large piece for as long as it is queued.
        let piece = Bytes::copy_from_slice(&rest[..rest.len().min(PIECE)]);
        rest.advance(piece.len());
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.answer.0);
        let body = state.body.as_ref();
        state.rest.is_empty() && body.is_some_and(http_body::Body::is_end_stream)
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A body that panicked is not polled again by HTTP/2; it may still be dropped.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
