//! How a host call does a lot of work for a guest: in pieces, between which it looks whether the
//! run has to end, and gives way to others. Epochs never interrupt a host call, so whatever a guest
//! may make large is done this way.

use std::future::poll_fn;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::stop::{Stop, Stopped};

/// The most bytes of one piece, and of what the host holds for a guest while it moves one.
pub(super) const PIECE_BYTES: usize = 256 << 10;
/// How long a host call works before it lets others run.
const SLICE: Duration = Duration::from_millis(1);

/// The pace of one host call.
pub(super) struct Pace<'a> {
    stop: &'a Stop,
    /// When others ran last; unset until the end of the first piece, so that a call of one piece
    /// looks at no clock.
    since: Option<Instant>,
}

impl<'a> Pace<'a> {
    /// Creates the pace of a host call that is about to begin, of a run that `stop` ends.
    pub(super) fn new(stop: &'a Stop) -> Self {
        Self { stop, since: None }
    }

    /// Is awaited between two pieces: gives way where the call has worked for long enough.
    ///
    /// # Errors
    /// Where the run has to end.
    pub(super) async fn between(&mut self) -> Result<(), Stopped> {
        let now = Instant::now();
        if self.stop.is_due(now) {
            return Err(Stopped);
        }
        if now.duration_since(*self.since.get_or_insert(now)) >= SLICE {
            yield_once().await;
            self.since = Some(Instant::now());
        }
        Ok(())
    }
}

/// Is pending once, and wakes at once.
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
