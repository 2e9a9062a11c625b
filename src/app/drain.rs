//! Draining: what a daemon that ends gives its runs, and what it has to say of those that were left.

use std::fmt;
use std::time::Duration;

use crate::run::Runner;

/// What cancelled runs may take to end, and then answers to get out, once the grace is over.
pub(super) const LAST_WAIT: Duration = Duration::from_millis(900);

/// How a drain went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Runs that were cancelled since they outlived the grace.
    pub cancelled: usize,
    /// Those of them that did not even end then.
    pub left: usize,
    /// Answers that had not been given to their callers when the daemon ended.
    pub untold: usize,
}

impl Drained {
    /// Whether every run ended, be it that it was cancelled, and every caller was told how.
    pub fn is_clean(&self) -> bool {
        self.left == 0 && self.untold == 0
    }
}

impl fmt::Display for Drained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cancelled,
            left,
            untold,
        } = self;
        write!(
            f,
            "the drain left something behind: of {cancelled} runs that were cancelled when the grace was over (server.drain_grace), {left} did not end; {untold} answers did not reach their callers"
        )
    }
}

/// Refuses new runs, waits for those in flight, and after the grace ends them.
pub(super) async fn drain(runner: &Runner, grace: Duration) -> Drained {
    runner.close();
    if tokio::time::timeout(grace, runner.idle()).await.is_ok() {
        return Drained::default();
    }
    let (cancelled, _) = runner.unfinished();
    tracing::warn!(
        in_flight = cancelled,
        "the drain grace is over; cancelling what still runs"
    );
    runner.cancel_all();
    let ended = tokio::time::timeout(LAST_WAIT, runner.idle()).await;
    let (left, untold) = match ended {
        Ok(()) => (0, 0),
        Err(_elapsed) => runner.unfinished(),
    };
    Drained {
        cancelled,
        left,
        untold,
    }
}
