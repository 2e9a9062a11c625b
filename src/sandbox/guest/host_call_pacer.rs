//! Cooperative pacing of host calls that do a lot of work for a guest: the work is done in pieces,
//! and between them the call checks whether the run has to end, and yields to others. Epochs never
//! interrupt a host call, so whatever a guest can make large is done this way.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::stop_signal::{StopSignal, Stopped};

/// The maximum number of bytes in one piece, and of what the host holds for a guest while it moves
/// one.
pub(in crate::sandbox) const PIECE_BYTES: usize = 256 << 10;
/// How long a host call works before it lets others run.
const YIELD_AFTER: Duration = Duration::from_millis(1);

/// The pacer of one host call, which decides between two pieces whether to stop or to yield.
pub(in crate::sandbox) struct HostCallPacer<'a> {
    stop: &'a StopSignal,
    /// When the call last yielded. It is `None` until the end of the first piece, so that a call of
    /// one piece reads no clock.
    last_yield: Option<Instant>,
}

impl<'a> HostCallPacer<'a> {
    /// Creates the pacer of a host call that is about to begin, in the run that `stop` ends.
    pub(in crate::sandbox) fn new(stop: &'a StopSignal) -> Self {
        Self {
            stop,
            last_yield: None,
        }
    }

    /// Yields to others if the call has worked for long enough. It is awaited between two pieces.
    ///
    /// # Errors
    /// Returns [`Stopped`] where the run has to end.
    pub(in crate::sandbox) async fn checkpoint(&mut self) -> Result<(), Stopped> {
        let now = Instant::now();
        if self.stop.must_stop(now) {
            return Err(Stopped);
        }
        self.yield_at(now).await;
        Ok(())
    }

    /// Yields to others if the work has gone on for long enough, also where the run has to end: for
    /// what is still to be done when its guest has ended.
    pub(in crate::sandbox) async fn yield_when_due(&mut self) {
        self.yield_at(Instant::now()).await;
    }

    async fn yield_at(&mut self, now: Instant) {
        if now.duration_since(*self.last_yield.get_or_insert(now)) >= YIELD_AFTER {
            yield_once().await;
            self.last_yield = Some(Instant::now());
        }
    }
}

/// Yields once: it is pending once, and wakes its task at once.
async fn yield_once() {
    let mut yielded = false;
    poll_fn(|cx| {
        if yielded {
            return Poll::Ready(());
        }
        yielded = true;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
