//! The command `ringfence attach`, which prints a run's events and reconnects with exponential
//! backoff.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use tonic::Status;
use tonic_types::StatusExt;

use super::connect::{DaemonArgs, connect_runs, status_failure};
use super::follow::{FollowEnd, FollowSinks, follow};
use super::stdout_reader::stdout_reader_gone;
use super::wait_indicator::WaitIndicator;
use super::{Failure, print_to_stderr, runtime, value_parsers};
use crate::api::proto::AttachRunRequest;

/// The first delay before another attempt; each attempt that fails doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest delay between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Print a run's output from its start or from an event, and follow it to its end.
#[derive(Debug, Args)]
pub(super) struct AttachCommand {
    /// The id of the run
    run: String,
    /// The number of the first event to print. 0 is the start
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    from: u64,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// How long to try to reconnect after the connection breaks
    #[arg(long, default_value = "30s", value_parser = value_parsers::duration_or_zero)]
    retry: Duration,
}

impl AttachCommand {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        runtime()?.block_on(async {
            tokio::select! {
                biased;
                told = self.attach() => told,
                // A viewer whose output nobody reads has nothing left to do, however long the run
                // writes nothing.
                () = stdout_reader_gone() => Err(Failure::broken_pipe()),
            }
        })
    }

    /// Attaches to the run, and when the connection breaks, attaches again after the last event
    /// that came.
    async fn attach(self) -> Result<ExitCode, Failure> {
        let mut next = self.from;
        let mut attached = false;
        let mut broken: Option<(Instant, Duration)> = None;
        loop {
            let before = next;
            let failed = match self.once(&mut next, &mut attached).await {
                Ok(done) => return done,
                Err(failed) => failed,
            };
            if next > before {
                broken = None;
            }
            let (since, wait) = broken.unwrap_or((Instant::now(), FIRST_WAIT));
            if since.elapsed() >= self.retry || !failed.retryable {
                return Err(failed.failure);
            }
            print_to_stderr(&format!(
                "{}; attaching again from event {next}",
                failed.failure.message
            ));
            tokio::time::sleep(wait).await;
            broken = Some((since, LONGEST_WAIT.min(wait * 2)));
        }
    }

    /// Makes one attempt. `attached` is set once the daemon has answered one.
    async fn once(
        &self,
        next: &mut u64,
        attached: &mut bool,
    ) -> Result<Result<ExitCode, Failure>, FailedAttempt> {
        let from_seq = *next;
        let connected = connect_runs(&self.daemon).await;
        // A daemon that was never reached is probably at another address.
        let again = *attached;
        let mut client = connected.map_err(|failure| FailedAttempt {
            failure,
            retryable: again,
        })?;
        let run_id = self.run.clone();
        let answer = client.attach_run(AttachRunRequest { run_id, from_seq });
        let answer = answer
            .await
            .map_err(|status| FailedAttempt::of(&status, again))?;
        *attached = true;
        let mut events = answer.into_inner();
        // Only a viewer from the start waits for the run to start: later on, a run may just write
        // nothing for a while.
        let waiting = match from_seq {
            0 => WaitIndicator::new("waiting for the run to start"),
            _ => WaitIndicator::silent(),
        };
        match follow(&mut events, next, waiting, FollowSinks::default()).await {
            FollowEnd::Concluded(told) => Ok(told),
            FollowEnd::Broken(Some(status)) => Err(FailedAttempt::of(&status, true)),
            FollowEnd::Broken(None) => Err(FailedAttempt {
                failure: Failure::unreachable("the connection broke before the run ended"),
                retryable: true,
            }),
        }
    }
}

/// An attempt that did not reach the end of the run.
struct FailedAttempt {
    failure: Failure,
    /// Whether another attempt may succeed.
    retryable: bool,
}

impl FailedAttempt {
    fn of(status: &Status, attached: bool) -> Self {
        let refused = status.get_details_error_info().is_some();
        // The daemon may ask for a retry, for instance because it has not yet freed the slot of the
        // connection that broke.
        let soon = status.get_details_retry_info().is_some();
        Self {
            failure: if refused {
                status_failure(status)
            } else {
                Failure::unreachable(format!("the connection broke: {}", status.message()))
            },
            retryable: attached && (!refused || soon),
        }
    }
}
