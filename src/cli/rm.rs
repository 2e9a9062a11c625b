//! The command `ringfence rm`, which deletes ended runs by id, or by label and time, and asks on a
//! terminal before it deletes runs that were not named.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::connect::{DaemonArgs, DaemonChannel, connect_runs, status_failure};
use super::ps::count_of_runs;
use super::wait_indicator::WaitIndicator;
use super::{Failure, exit, print, print_json, print_to_stderr, question, runtime, value_parsers};
use crate::api::proto::run_service_client::RunServiceClient;
use crate::api::proto::{DeleteRunsRequest, DeleteRunsResponse};
use crate::model::refusal::printable;

/// The most runs that are shown before the question whether to delete them.
const MOST_SHOWN: usize = 20;
/// The most runs that one call names.
const MOST_NAMED: usize = 1000;

/// Delete ended runs, with their output.
#[derive(Debug, Args)]
pub(super) struct RmCommand {
    /// The ids of the runs
    #[arg(required_unless_present_any = ["label", "until"], conflicts_with_all = ["label", "since", "until"])]
    run: Vec<String>,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Delete all ended runs with this label, instead of runs by id. If repeated, those that have
    /// all of the labels
    #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
    label: Vec<(String, String)>,
    /// Delete only runs that were asked for at this time or later: so long ago, as in "2h", or at a
    /// time such as "2026-01-31T12:00:00Z"
    #[arg(long, value_name = "TIME", value_parser = value_parsers::point_in_time)]
    since: Option<SystemTime>,
    /// Delete only runs that were asked for before this time, given as that of --since
    #[arg(long, value_name = "TIME", value_parser = value_parsers::point_in_time)]
    until: Option<SystemTime>,
    /// With --label or --until, delete the runs without asking
    #[arg(long, short, conflicts_with = "run")]
    yes: bool,
    /// Delete nothing, and print the ids of the runs that would be deleted
    #[arg(long)]
    dry_run: bool,
    /// Print one JSON object, instead of the ids of the runs that were deleted
    #[arg(long, value_name = "FORMAT")]
    output: Option<RmOutputFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RmOutputFormat {
    /// One JSON object: how many runs were deleted, the first of their ids, and how many go on
    Json,
}

/// A client of the daemon whose runs are to be deleted.
type RunsClient = RunServiceClient<DaemonChannel>;

impl RmCommand {
    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        if !self.run.is_empty() {
            return runtime()?.block_on(self.delete_by_id());
        }
        let request = DeleteRunsRequest {
            run_ids: Vec::new(),
            labels: value_parsers::labels(&self.label)?,
            since: self.since.map(Into::into),
            until: self.until.map(Into::into),
            dry_run: self.dry_run,
        };
        let asks = !self.yes && !self.dry_run;
        if asks && !question::can_be_asked() {
            return Err(Failure::new(
                "--label and --until need --yes where standard input or standard error is no \
                 terminal, because nobody can be asked there; --dry-run shows what would be deleted",
            ));
        }
        runtime()?.block_on(self.delete_matching(request, asks))
    }

    /// Deletes the runs that were named, a call at a time where they are too many for one.
    async fn delete_by_id(&self) -> Result<ExitCode, Failure> {
        let mut client = connect_runs(&self.daemon).await?;
        let mut all = DeleteRunsResponse::default();
        for ids in self.run.chunks(MOST_NAMED) {
            let request = DeleteRunsRequest {
                run_ids: ids.to_vec(),
                dry_run: self.dry_run,
                ..DeleteRunsRequest::default()
            };
            let answer = delete(&mut client, request).await?;
            all.deleted += answer.deleted;
            all.unfinished += answer.unfinished;
            all.run_ids.extend(answer.run_ids);
        }
        let code = self.tell(&all)?;
        self.tell_others(&all);
        match all.unfinished {
            0 => Ok(code),
            // Somebody asked for something that was not done.
            _ => Ok(ExitCode::from(exit::REFUSED)),
        }
    }

    /// Reports on standard error which of the runs that were named were not deleted.
    fn tell_others(&self, answer: &DeleteRunsResponse) {
        let deleted: HashSet<&String> = answer.run_ids.iter().collect();
        let mut seen = HashSet::new();
        let others = self.run.iter();
        let others: Vec<&String> = others
            .filter(|run| !deleted.contains(run) && seen.insert(*run))
            .collect();
        let why = match usize::try_from(answer.unfinished) {
            Ok(0) => "it is not there",
            Ok(unfinished) if unfinished == others.len() => {
                "it has not ended; `ringfence kill` ends it"
            }
            Ok(_) | Err(_) => "it is not there, or has not ended",
        };
        for run in others {
            let run = printable(run);
            print_to_stderr(&format!("the run {run} was not deleted: {why}"));
        }
    }

    async fn delete_matching(
        &self,
        request: DeleteRunsRequest,
        asks: bool,
    ) -> Result<ExitCode, Failure> {
        let mut client = connect_runs(&self.daemon).await?;
        if asks {
            let dry_run = DeleteRunsRequest {
                dry_run: true,
                ..request.clone()
            };
            let found = delete(&mut client, dry_run).await?;
            if found.deleted == 0 {
                return Ok(nothing_matches(&found));
            }
            if !confirm(&found)? {
                return Err(Failure::with(exit::DECLINED, "nothing was deleted"));
            }
        }
        let waiting = match self.output {
            Some(RmOutputFormat::Json) => WaitIndicator::silent(),
            None => WaitIndicator::new("waiting for the runs to be deleted"),
        };
        let answer = waiting.during(delete(&mut client, request)).await?;
        if self.prints_json() {
            return self.tell(&answer);
        }
        if answer.deleted == 0 {
            return Ok(nothing_matches(&answer));
        }
        let (all, listed) = (answer.deleted, answer.run_ids.len() as u64);
        if self.dry_run || all > listed {
            let what = match self.dry_run {
                true => "would be deleted",
                false => "were deleted",
            };
            let listed = match all > listed {
                true => format!(", of which the newest {listed} are listed"),
                false => String::new(),
            };
            print_to_stderr(&format!("{} {what}{listed}", count_of_runs(all)));
        }
        tell_unfinished(answer.unfinished);
        self.tell(&answer)
    }

    /// Prints the runs that were deleted, or would be.
    fn tell(&self, answer: &DeleteRunsResponse) -> Result<ExitCode, Failure> {
        if self.prints_json() {
            return print_json(&json!({
                "deleted": answer.deleted,
                "run_ids": answer.run_ids,
                "unfinished": answer.unfinished,
                "dry_run": self.dry_run,
            }));
        }
        let ids = answer.run_ids.iter();
        let lines: String = ids.map(|id| format!("{}\n", printable(id))).collect();
        print(lines.as_bytes())
    }
}

/// Makes a call that deletes, or would delete, the runs that `request` selects.
async fn delete(
    client: &mut RunsClient,
    request: DeleteRunsRequest,
) -> Result<DeleteRunsResponse, Failure> {
    let answer = client.delete_runs(request).await;
    let answer = answer.map_err(|status| status_failure(&status))?;
    Ok(answer.into_inner())
}

/// Reports on standard error that no ended run matches, which is no failure.
fn nothing_matches(found: &DeleteRunsResponse) -> ExitCode {
    print_to_stderr("no ended run matches");
    tell_unfinished(found.unfinished);
    ExitCode::SUCCESS
}

/// Reports on standard error how many runs match and go on, if there are any.
fn tell_unfinished(unfinished: u64) {
    match unfinished {
        0 => {}
        1 => print_to_stderr("1 run matches and has not ended, and is not deleted"),
        _ => print_to_stderr(&format!(
            "{unfinished} runs match and have not ended, and are not deleted"
        )),
    }
}

/// Asks on the terminal whether the runs are to be deleted, and reports whether the answer is yes.
fn confirm(found: &DeleteRunsResponse) -> Result<bool, Failure> {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for id in found.run_ids.iter().take(MOST_SHOWN) {
        let _ = writeln!(text, "{}", printable(id));
    }
    let shown = found.run_ids.len().min(MOST_SHOWN) as u64;
    let more = found.deleted.saturating_sub(shown);
    if more > 0 {
        let _ = writeln!(text, "and {more} more; --dry-run lists up to 1000 of them");
    }
    let all = count_of_runs(found.deleted);
    let _ = write!(text, "Delete {all}, with what was written? [y/N] ");
    question::ask(&text)
}
