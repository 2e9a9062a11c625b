//! `ringfence attach`

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use tonic::Status;
use tonic_types::StatusExt;

use super::connect::{DaemonArgs, connect_runs, failure};
use super::follow::{Over, follow};
use super::reader::reader_gone;
use super::waiting::Waiting;
use super::{Failure, complain, runtime};
use crate::api::proto::AttachRunRequest;

/// How long the first wait before another attempt is; each that fails doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// Print a run's output from its start or from an event on, and follow it to its end.
#[derive(Debug, Args)]
pub(super) struct Attach {
    /// The run's id
    run: String,
    /// The first event wanted; 0 is the start
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    from: u64,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// How long to try again after the connection broke
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    retry: Duration,
}

impl Attach {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        runtime()?.block_on(async {
            tokio::select! {
                biased;
                told = self.attach() => told,
                // A viewer that nobody watches has nothing left to do, however long the run writes nothing.
                () = reader_gone() => Err(Failure::broken_pipe()),
            }
        })
    }

    /// Attaches, and again after the last event that came when the connection breaks.
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
            if since.elapsed() >= self.retry || !failed.again {
                return Err(failed.failure);
            }
            complain(&format!(
                "{}; attaching again from event {next}",
                failed.failure.message
            ));
            tokio::time::sleep(wait).await;
            broken = Some((since, LONGEST_WAIT.min(wait * 2)));
        }
    }

    /// One attempt; `attached` is set once the daemon has answered one.
    async fn once(
        &self,
        next: &mut u64,
        attached: &mut bool,
    ) -> Result<Result<ExitCode, Failure>, Failed> {
        let from_seq = *next;
        let connected = connect_runs(&self.daemon).await;
        // Not there from the start, it is the wrong address.
        let again = *attached;
        let mut client = connected.map_err(|failure| Failed { failure, again })?;
        let run_id = self.run.clone();
        let answer = client.attach_run(AttachRunRequest { run_id, from_seq });
        let answer = answer.await.map_err(|status| Failed::of(&status, again))?;
        *attached = true;
        let mut events = answer.into_inner();
        // A run that has written nothing for a while is not one that has not started.
        let waiting = match from_seq {
            0 => Waiting::new("waiting for the run to start"),
            _ => Waiting::silent(),
        };
        match follow(&mut events, next, waiting, None).await {
            Over::Told(told) => Ok(told),
            Over::Broken(Some(status)) => Err(Failed::of(&status, true)),
            Over::Broken(None) => Err(Failed {
                failure: Failure::unreachable("the connection broke before the run ended"),
                again: true,
            }),
        }
    }
}

/// An attempt that did not come to the run's end.
struct Failed {
    failure: Failure,
    /// Whether another may.
    again: bool,
}

impl Failed {
    fn of(status: &Status, attached: bool) -> Self {
        let refused = status.get_details_error_info().is_some();
        // Such as that the place of the connection that broke is not free yet.
        let soon = status.get_details_retry_info().is_some();
        Self {
            failure: if refused {
                failure(status)
            } else {
                Failure::unreachable(format!("the connection broke: {}", status.message()))
            },
            again: attached && (!refused || soon),
        }
    }
}
