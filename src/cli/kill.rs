//! The command `ringfence kill`, which ends runs by id or by label, and asks on a terminal before
//! it ends runs by label.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use super::connect::{DaemonArgs, DaemonChannel, connect_runs, status_failure};
use super::ps::{count_of_runs, end, state_name};
use super::wait_indicator::WaitIndicator;
use super::{Failure, exit, print, print_json, print_to_stderr, question, runtime, value_parsers};
use crate::api::proto::run_service_client::RunServiceClient;
use crate::api::proto::{
    CancelRunRequest, CancelRunResponse, CancelRunsRequest, CancelRunsResponse, CancelledRun,
    RunState,
};
use crate::model::refusal::printable;

/// The most runs that are shown before the question whether to end them.
const MOST_SHOWN: usize = 20;

/// End runs, and wait until they are gone.
#[derive(Debug, Args)]
pub(super) struct KillCommand {
    /// The ids of the runs
    #[arg(required_unless_present = "label", conflicts_with = "label")]
    run: Vec<String>,
    #[command(flatten)]
    daemon: DaemonArgs,
    /// End all runs in flight with this label, instead of runs by id. If repeated, those that have
    /// all of the labels
    #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
    label: Vec<(String, String)>,
    /// With --label, end only runs in this state. May be repeated
    #[arg(long, value_name = "STATE", requires = "label", conflicts_with = "run")]
    state: Vec<InFlightFilter>,
    /// With --label, end the runs without asking
    #[arg(long, short, requires = "label", conflicts_with = "run")]
    yes: bool,
    /// With --label, end nothing, and print the ids of the runs that would be ended
    #[arg(long, requires = "label", conflicts_with = "run")]
    dry_run: bool,
    /// Print one JSON object for each run, instead of the ids of those that were ended
    #[arg(long, value_name = "FORMAT")]
    output: Option<KillOutputFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KillOutputFormat {
    /// Print one JSON object per line
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum InFlightFilter {
    /// Its module is being found, checked or compiled
    Compiling,
    /// It waits for a slot
    Queued,
    /// The guest executes now
    Running,
}

/// A client of the daemon whose runs are to be ended.
type Client = RunServiceClient<DaemonChannel>;

impl KillCommand {
    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        if self.label.is_empty() {
            return runtime()?.block_on(self.end_by_id());
        }
        let labels = value_parsers::labels(&self.label)?;
        let asks = !self.yes && !self.dry_run;
        if asks && !question::can_be_asked() {
            return Err(Failure::new(
                "--label needs --yes where standard input or standard error is no terminal, \
                 because nobody can be asked there; --dry-run shows what would be ended",
            ));
        }
        runtime()?.block_on(self.end_by_label(labels, asks))
    }

    async fn end_by_id(&self) -> Result<ExitCode, Failure> {
        let mut client = connect_runs(&self.daemon).await?;
        let mut code = ExitCode::SUCCESS;
        // The other runs are to be ended even if nobody reads what is printed about one.
        let mut printed = Ok(code);
        for run_id in &self.run {
            let request = CancelRunRequest {
                run_id: run_id.clone(),
            };
            match client.cancel_run(request).await {
                Ok(answer) => printed = printed.and(self.tell_one(run_id, answer.into_inner())),
                Err(status) => {
                    let failure = status_failure(&status);
                    if self.prints_json() {
                        printed = printed.and(print_json(&failure.json()));
                    }
                    print_to_stderr(&failure.message);
                    code = ExitCode::from(failure.code);
                }
            }
        }
        printed.map(|_| code)
    }

    /// Prints what became of a run that was named by its id.
    fn tell_one(&self, run_id: &str, answer: CancelRunResponse) -> Result<ExitCode, Failure> {
        if self.prints_json() {
            return print_json(&run_json(run_id, answer.found(), answer.cancelled));
        }
        if answer.cancelled {
            return print(format!("{run_id}\n").as_bytes());
        }
        let how = end(&answer.run.unwrap_or_default());
        print_to_stderr(&format!("the run {run_id} had already ended: {how}"));
        Ok(ExitCode::SUCCESS)
    }

    async fn end_by_label(
        &self,
        labels: HashMap<String, String>,
        asks: bool,
    ) -> Result<ExitCode, Failure> {
        let states = self.state.iter().map(|state| match state {
            InFlightFilter::Compiling => RunState::Compiling.into(),
            InFlightFilter::Queued => RunState::Queued.into(),
            InFlightFilter::Running => RunState::Running.into(),
        });
        let request = CancelRunsRequest {
            labels,
            states: states.collect(),
            dry_run: false,
        };
        let mut client = connect_runs(&self.daemon).await?;
        if asks || self.dry_run {
            let dry_run = CancelRunsRequest {
                dry_run: true,
                ..request.clone()
            };
            let found = cancel(&mut client, dry_run).await?;
            if self.dry_run {
                return self.tell_dry_run(&found);
            }
            if found.runs.is_empty() {
                return Ok(nothing_matches());
            }
            if !confirm(&found)? {
                return Err(Failure::with(exit::DECLINED, "nothing was ended"));
            }
        }
        self.end_matching(&mut client, request).await
    }

    /// Ends all runs that match, a call at a time where they are too many for one.
    async fn end_matching(
        &self,
        client: &mut Client,
        request: CancelRunsRequest,
    ) -> Result<ExitCode, Failure> {
        let waiting = match self.output {
            Some(KillOutputFormat::Json) => WaitIndicator::silent(),
            None => WaitIndicator::new("waiting for the runs to end"),
        };
        // Here too, the other runs are to be ended even if nobody reads.
        let mut printed = Ok(ExitCode::SUCCESS);
        let mut ended = 0;
        loop {
            let answer = waiting.during(cancel(client, request.clone())).await?;
            ended += answer.runs.len();
            printed = printed.and(self.tell(&answer));
            if answer.unfinished == 0 || answer.runs.is_empty() {
                break;
            }
        }
        if ended == 0 {
            nothing_matches();
        }
        printed
    }

    /// Prints what became of the runs that matched.
    fn tell(&self, answer: &CancelRunsResponse) -> Result<ExitCode, Failure> {
        if self.prints_json() {
            return print_lines(&answer.runs, matched_json);
        }
        let (cancelled, others): (Vec<_>, Vec<_>) =
            answer.runs.iter().partition(|run| run.cancelled);
        for run in others {
            let id = printable(&run.run_id);
            print_to_stderr(&format!("{id} ended for another reason"));
        }
        print_lines(cancelled, |run| printable(&run.run_id))
    }

    /// Prints the runs that would be ended.
    fn tell_dry_run(&self, found: &CancelRunsResponse) -> Result<ExitCode, Failure> {
        if self.prints_json() {
            return print_lines(&found.runs, matched_json);
        }
        if found.runs.is_empty() {
            return Ok(nothing_matches());
        }
        let all = count_of_runs(total(found) as u64);
        let listed = match found.unfinished {
            0 => String::new(),
            _ => format!(", of which the oldest {} are listed", found.runs.len()),
        };
        print_to_stderr(&format!("{all} would be ended{listed}"));
        print_lines(&found.runs, |run| printable(&run.run_id))
    }
}

/// Makes a call that ends, or would end, the runs that `request` selects.
async fn cancel(
    client: &mut Client,
    request: CancelRunsRequest,
) -> Result<CancelRunsResponse, Failure> {
    let answer = client.cancel_runs(request).await;
    Ok(answer
        .map_err(|status| status_failure(&status))?
        .into_inner())
}

/// Reports on standard error that no run matches, which is no failure.
fn nothing_matches() -> ExitCode {
    print_to_stderr("no run in flight matches");
    ExitCode::SUCCESS
}

/// Asks on the terminal whether the runs are to be ended, and reports whether the answer is yes.
fn confirm(found: &CancelRunsResponse) -> Result<bool, Failure> {
    let mut question = String::new();
    // Writing to a string cannot fail.
    for run in found.runs.iter().take(MOST_SHOWN) {
        let (id, state) = (printable(&run.run_id), state_name(run.found()));
        let _ = writeln!(question, "{id} {state}");
    }
    let all = total(found);
    let shown = found.runs.len().min(MOST_SHOWN);
    if all > shown {
        let _ = writeln!(question, "and {} more; --dry-run lists them", all - shown);
    }
    let _ = write!(question, "End {}? [y/N] ", count_of_runs(all as u64));
    question::ask(&question)
}

/// Counts all runs that match, also those that are too many to be listed.
fn total(found: &CancelRunsResponse) -> usize {
    let more = usize::try_from(found.unfinished).unwrap_or(usize::MAX);
    found.runs.len().saturating_add(more)
}

/// Prints one line for each run.
fn print_lines<'a, T: std::fmt::Display>(
    runs: impl IntoIterator<Item = &'a CancelledRun>,
    line: impl Fn(&CancelledRun) -> T,
) -> Result<ExitCode, Failure> {
    let lines = runs.into_iter().map(|run| format!("{}\n", line(run)));
    print(lines.collect::<String>().as_bytes())
}

fn matched_json(run: &CancelledRun) -> Value {
    run_json(&run.run_id, run.found(), run.cancelled)
}

/// Formats what became of a run as JSON, with the words that `ps` has for states.
fn run_json(run_id: &str, found: RunState, cancelled: bool) -> Value {
    json!({ "run_id": run_id, "found": state_name(found), "cancelled": cancelled })
}
