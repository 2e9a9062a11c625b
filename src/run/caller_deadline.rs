//! Refuses with `NOT_STARTED` what is not done when the deadline of its caller passes. It applies
//! to everything before a run's start; from then on the guest is stopped instead
//! (`sandbox/guest/preempt.rs`).

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use pin_project_lite::pin_project;
use tokio::time::Sleep;

use super::admission::not_started;
use crate::model::refusal::Refusal;

/// Bounds `work` by its caller's `deadline`; `None` means that there is none. A timer is created
/// only where the work has to wait.
///
/// # Errors
/// Those of the work, and `NOT_STARTED` once the deadline has passed.
pub fn with_deadline<F>(deadline: Option<Instant>, work: F) -> WithDeadline<F> {
    WithDeadline {
        work,
        deadline,
        timer: None,
    }
}

pin_project! {
    /// The future that [`with_deadline`] returns.
    pub struct WithDeadline<F> {
        #[pin]
        work: F,
        deadline: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F, T, E> Future for WithDeadline<F>
where
    F: Future<Output = Result<T, E>>,
    E: From<Refusal>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        if let Poll::Ready(done) = this.work.poll(cx) {
            return Poll::Ready(done);
        }
        let Some(deadline) = *this.deadline else {
            return Poll::Pending;
        };
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline.into())));
        timer.as_mut().poll(cx).map(|()| Err(not_started().into()))
    }
}
