//! The command `ringfence logs`, which prints what a run has written so far and does not follow it.

use std::ops::ControlFlow;
use std::process::ExitCode;

use clap::Args;

use super::connect::{DaemonArgs, connect_runs, status_failure};
use super::follow::{FollowSinks, broke_off, print_event};
use super::{Failure, print_to_stderr, runtime};
use crate::api::proto::{AttachRunRequest, GetRunRequest, RunState};
use crate::model::refusal::printable;

/// Print what a run has written, from its start or from an event, and do not follow it.
#[derive(Debug, Args)]
pub(super) struct LogsCommand {
    /// The id of the run
    run: String,
    /// The number of the first event to print. 0 is the start
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    from: u64,
    #[command(flatten)]
    daemon: DaemonArgs,
}

impl LogsCommand {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        runtime()?.block_on(self.replay())
    }

    async fn replay(self) -> Result<ExitCode, Failure> {
        let mut client = connect_runs(&self.daemon).await?;
        let run_id = self.run.clone();
        let found = client.get_run(GetRunRequest { run_id }).await;
        let found = found.map_err(|status| status_failure(&status))?;
        let found = found.into_inner().run.unwrap_or_default();
        // Of a run that goes on, only the events that are there now are waited for.
        let end = match found.state() {
            RunState::Ended => None,
            RunState::Unspecified | RunState::Compiling | RunState::Queued | RunState::Running => {
                Some(found.next_seq)
            }
        };
        let request = AttachRunRequest {
            run_id: self.run.clone(),
            from_seq: self.from,
        };
        let events = client.attach_run(request).await;
        let mut events = events
            .map_err(|status| status_failure(&status))?
            .into_inner();
        let mut next = self.from;
        while end.is_none_or(|end| next < end) {
            let event = events.message().await;
            let event = event.map_err(|status| status_failure(&status))?;
            let event = event.ok_or_else(broke_off)?;
            if let ControlFlow::Break(told) = print_event(event, &mut next, FollowSinks::default())
            {
                return told;
            }
        }
        let run = printable(&self.run);
        print_to_stderr(&format!(
            "the run {run} goes on; `ringfence attach` follows it"
        ));
        Ok(ExitCode::SUCCESS)
    }
}
