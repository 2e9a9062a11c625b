//! Draining: the end of a daemon, which lets runs in flight finish within a grace period, cancels
//! the rest, and reports what was left.

use std::fmt;
use std::time::Duration;

use crate::run::Runner;

/// How long cancelled runs may take to end once the grace period is over. Responses then get as
/// much again to go out.
pub(super) const CANCEL_GRACE: Duration = Duration::from_millis(900);

/// How long a daemon that is part of a command waits for compiled code to be written to disk. The
/// command has printed everything by then, and the next one would compile for as long or longer.
pub(super) const EMBEDDED_ARTIFACT_GRACE: Duration = Duration::from_secs(10);

/// The outcome of a drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainReport {
    /// Runs that were cancelled because they outlived the grace period.
    pub cancelled: usize,
    /// Cancelled runs that did not end even then.
    pub still_running: usize,
    /// Responses that their callers had not received when the daemon ended.
    pub undelivered: usize,
}

impl DrainReport {
    /// Reports whether every run ended, cancelled or not, and every caller received its response.
    pub fn is_clean(&self) -> bool {
        self.still_running == 0 && self.undelivered == 0
    }
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            cancelled,
            still_running: left,
            undelivered: pending_response,
        } = self;
        write!(
            f,
            "the drain left something behind: of {cancelled} runs that were cancelled when the grace was over (server.drain_grace), {left} did not end; {pending_response} answers did not reach their callers"
        )
    }
}

/// Refuses new runs, waits for those in flight, and cancels them once the grace period is over.
pub(super) async fn drain(runner: &Runner, grace: Duration) -> DrainReport {
    runner.close();
    if tokio::time::timeout(grace, runner.wait_until_idle())
        .await
        .is_ok()
    {
        return DrainReport::default();
    }
    let (cancelled, _) = runner.unfinished();
    tracing::warn!(
        in_flight = cancelled,
        "the drain grace is over; cancelling what still runs"
    );
    runner.cancel_all();
    let ended = tokio::time::timeout(CANCEL_GRACE, runner.wait_until_idle()).await;
    let (left, pending_response) = match ended {
        Ok(()) => (0, 0),
        Err(_elapsed) => runner.unfinished(),
    };
    DrainReport {
        cancelled,
        still_running: left,
        undelivered: pending_response,
    }
}
