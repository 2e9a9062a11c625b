//! Answers on their way out: one that its caller does not take is let go after a while.
//!
//! HTTP/2 asks for the next piece of an answer only when the caller has made room for it. A caller that never does
//! would keep a finished run's output in memory for as long as its connection lasts.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body::Frame;
use tonic::Status;
use tonic::body::Body;

use super::status;
use crate::refusal::{Reason, Refusal};

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
    /// When the caller's side took something that it has not come back for; none while it waits for us.
    taken: Option<Instant>,
}

/// An answer's body.
pub(super) struct Delivery(Arc<Answer>);

impl Deliveries {
    /// Watches over an answer.
    pub(super) fn watch(&self, body: Body) -> Delivery {
        let answer = Arc::new(Answer(Mutex::new(State {
            body: Some(body),
            taken: Some(Instant::now()),
        })));
        lock(&self.0).push(Arc::downgrade(&answer));
        Delivery(answer)
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
        let mut state = lock(&self.0.0);
        let Some(body) = &mut state.body else {
            let refusal = Refusal::new(Reason::Internal, "the answer was dropped: nobody took it");
            return Poll::Ready(Some(Err(status::from(&refusal))));
        };
        let polled = Pin::new(body).poll_frame(cx);
        state.taken = polled.is_ready().then(Instant::now);
        polled
    }

    fn is_end_stream(&self) -> bool {
        let state = lock(&self.0.0);
        state
            .body
            .as_ref()
            .is_some_and(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> http_body::SizeHint {
        let state = lock(&self.0.0);
        state
            .body
            .as_ref()
            .map(http_body::Body::size_hint)
            .unwrap_or_default()
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A body that panicked is not polled again by HTTP/2; it may still be dropped.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
