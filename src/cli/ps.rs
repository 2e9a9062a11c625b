//! The commands `ringfence ps` and `ringfence inspect`, which list and show runs.

use std::collections::HashMap;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::connect::{DaemonArgs, connect_runs, status_failure};
use super::ending::{briefly, resources_json, result_json};
use super::failure::run_error_json;
use super::stdout_reader::stdout_reader_gone;
use super::{
    Failure, can_be_written, print, print_json, print_to_stderr, runtime, time, value_parsers,
};
use crate::api::proto::run_info::End;
use crate::api::proto::watch_runs_response::Event;
use crate::api::proto::{
    GetRunRequest, ListRunsRequest, Outcome, RunInfo, RunState, WatchRunsRequest,
};
use crate::model::refusal::printable;

/// The most runs that one call lists.
const PAGE: usize = 1000;

/// List the runs of a daemon, newest first.
#[derive(Debug, Args)]
pub(super) struct PsCommand {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// List ended runs too
    #[arg(long, short)]
    all: bool,
    /// List only runs in this state. May be repeated
    #[arg(long, value_name = "STATE", conflicts_with = "all")]
    state: Vec<RunStateFilter>,
    /// List only runs with this label. May be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = value_parsers::key_value())]
    label: Vec<(String, String)>,
    /// List only runs that were asked for at this time or later, ended ones too: so long ago, as in
    /// "2h", or at a time such as "2026-01-31T12:00:00Z"
    #[arg(long, value_name = "TIME", value_parser = value_parsers::point_in_time)]
    since: Option<SystemTime>,
    /// List only runs that were asked for before this time, ended ones too. The time is given as
    /// that of --since
    #[arg(long, value_name = "TIME", value_parser = value_parsers::point_in_time)]
    until: Option<SystemTime>,
    /// List at most this many runs, the newest
    #[arg(long, value_name = "COUNT", value_parser = value_parsers::count)]
    limit: Option<usize>,
    /// Keep watching, and print each run that changes
    #[arg(long, short, conflicts_with_all = ["since", "until", "limit"])]
    watch: bool,
    /// Print one JSON object per line, instead of a table
    #[arg(long, value_name = "FORMAT")]
    output: Option<PsOutputFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PsOutputFormat {
    /// Print one JSON object per line
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RunStateFilter {
    /// Its module is being found, checked or compiled
    Compiling,
    /// It waits for a slot
    Queued,
    /// The guest executes now
    Running,
    /// It has ended or was refused
    Ended,
}

/// Print everything that is known about a run, as JSON.
#[derive(Debug, Args)]
pub(super) struct InspectCommand {
    /// The id of the run
    run: String,
    #[command(flatten)]
    daemon: DaemonArgs,
}

impl PsCommand {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        let labels = value_parsers::labels(&self.label)?;
        runtime()?.block_on(async {
            if self.watch {
                self.follow(labels).await
            } else {
                self.list(labels).await
            }
        })
    }

    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    fn states(&self) -> Vec<i32> {
        let live = [
            RunStateFilter::Compiling,
            RunStateFilter::Queued,
            RunStateFilter::Running,
        ];
        // Whoever asks for a time mostly means runs that have ended since.
        let is_past = self.since.is_some() || self.until.is_some();
        let states = match (self.all || is_past, &self.state[..]) {
            (true, []) => &[][..],
            (true, states) => states,
            (false, []) => &live[..],
            (false, states) => states,
        };
        let wire = |state: &RunStateFilter| match state {
            RunStateFilter::Compiling => RunState::Compiling.into(),
            RunStateFilter::Queued => RunState::Queued.into(),
            RunStateFilter::Running => RunState::Running.into(),
            RunStateFilter::Ended => RunState::Ended.into(),
        };
        states.iter().map(wire).collect()
    }

    async fn list(&self, labels: HashMap<String, String>) -> Result<ExitCode, Failure> {
        let mut client = connect_runs(&self.daemon).await?;
        let mut head = self.head();
        let mut request = ListRunsRequest {
            states: self.states(),
            labels,
            since: self.since.map(Into::into),
            until: self.until.map(Into::into),
            ..ListRunsRequest::default()
        };
        let mut left = self.limit.unwrap_or(usize::MAX);
        loop {
            // 0 asks for the default size.
            let size = self.limit.map_or(0, |_| left.min(PAGE));
            request.page_size = u32::try_from(size).unwrap_or_default();
            let answer = client.list_runs(request.clone()).await;
            let page = answer
                .map_err(|status| status_failure(&status))?
                .into_inner();
            let runs = page.runs.iter().take(left);
            let lines: String = runs.map(|run| self.line(run)).collect();
            left = left.saturating_sub(page.runs.len());
            tell_damaged(&page.damaged);
            print(format!("{}{lines}", std::mem::take(&mut head)).as_bytes())?;
            if page.next_page_token.is_empty() || left == 0 {
                return Ok(ExitCode::SUCCESS);
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn follow(&self, labels: HashMap<String, String>) -> Result<ExitCode, Failure> {
        let mut client = connect_runs(&self.daemon).await?;
        let request = WatchRunsRequest {
            states: self.states(),
            labels,
        };
        let answer = client.watch_runs(request).await;
        let mut news = answer
            .map_err(|status| status_failure(&status))?
            .into_inner();
        print(self.head().as_bytes())?;
        let told = async {
            while let Some(news) = news
                .message()
                .await
                .map_err(|status| status_failure(&status))?
            {
                if let Some(Event::Run(run)) = news.event {
                    print(self.line(&run).as_bytes())?;
                }
            }
            Err(Failure::unreachable("the connection broke"))
        };
        tokio::select! {
            told = told => told,
            // The next change may be hours away, so a reader that is gone has to be noticed by
            // itself.
            () = stdout_reader_gone() => Err(Failure::broken_pipe()),
        }
    }

    /// Returns the header of the table. It is not printed before the daemon has answered, because a
    /// refusal has no table.
    fn head(&self) -> String {
        match self.output {
            Some(PsOutputFormat::Json) => String::new(),
            None => format!("{HEAD}\n"),
        }
    }

    fn line(&self, run: &RunInfo) -> String {
        match self.output {
            Some(PsOutputFormat::Json) => format!("{}\n", run_info_json(run)),
            None => format!("{}\n", row(run)),
        }
    }
}

impl InspectCommand {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        runtime()?.block_on(async {
            let mut client = connect_runs(&self.daemon).await?;
            let answer = client.get_run(GetRunRequest { run_id: self.run }).await;
            let answer = answer
                .map_err(|status| status_failure(&status))?
                .into_inner();
            print_json(&run_info_json(&answer.run.unwrap_or_default()))
        })
    }
}

const HEAD: &str = "RUN                                            STATE      ASKED     TOOK      MEMORY    OUTPUT    END                    LABELS";

fn row(run: &RunInfo) -> String {
    let usage = run.usage.unwrap_or_default();
    let size = |bytes: u64| bytesize::ByteSize(bytes).display().iec_short().to_string();
    let asked = at(run.asked).and_then(|at| at.elapsed().ok());
    let took = usage.elapsed.and_then(|took| Duration::try_from(took).ok());
    let mut labels: Vec<_> = run
        .labels
        .iter()
        .map(|(key, value)| printable(&format!("{key}={value}")))
        .collect();
    labels.sort();
    let mut row = String::new();
    // Writing to a string cannot fail.
    let _ = write!(
        row,
        "{:<46} {:<10} {:<9} {:<9} {:<9} {:<9} {:<22} {}",
        printable(&run.run_id),
        state_name(run.state()),
        asked
            .map(|ago| format!("{} ago", rough(ago)))
            .unwrap_or_default(),
        took.map(rough).unwrap_or_default(),
        size(usage.memory_used),
        size(usage.stdout_bytes + usage.stderr_bytes),
        end(run),
        labels.join(",")
    );
    row.trim_end().to_owned()
}

/// Formats a duration by its largest unit, which is enough for people.
fn rough(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let whole = if seconds > 0 {
        Duration::from_secs(seconds)
    } else {
        Duration::from_millis(duration.subsec_millis().into())
    };
    let text = humantime::format_duration(whole).to_string();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Returns the word by which commands name a state.
pub(super) fn state_name(state: RunState) -> &'static str {
    match state {
        RunState::Compiling => "compiling",
        RunState::Queued => "queued",
        RunState::Running => "running",
        RunState::Ended => "ended",
        RunState::Unspecified => "unknown",
    }
}

/// Formats a number of runs.
pub(super) fn count_of_runs(count: u64) -> String {
    match count {
        1 => "1 run".to_owned(),
        _ => format!("{count} runs"),
    }
}

/// Reports on standard error which parts of the archive are damaged, so that runs are missing.
fn tell_damaged(damaged: &[String]) {
    for part in damaged {
        let part = printable(part);
        print_to_stderr(&format!(
            "runs are missing, because the archive is damaged: {part}"
        ));
    }
}

/// Describes how a run ended in a few words; the text is empty while the run goes on.
pub(super) fn end(run: &RunInfo) -> String {
    match &run.end {
        None => String::new(),
        Some(End::Error(error)) => printable(&error.reason),
        Some(End::Result(result)) => match (result.outcome(), result.exit_code) {
            (Outcome::Exited, Some(code)) => format!("exited {code}"),
            _ => printable(&briefly(result)),
        },
    }
}

fn at(time: Option<Timestamp>) -> Option<SystemTime> {
    SystemTime::try_from(time?).ok().filter(can_be_written)
}

/// Formats everything that the daemon tells about a run as JSON.
pub(super) fn run_info_json(run: &RunInfo) -> Value {
    let mut report = json!({
        "run_id": run.run_id,
        "state": state_name(run.state()),
        "module_digest": run.module_digest,
        "labels": run.labels,
        "method": run.method,
        "caller": run.caller,
        "detached": run.detached,
        "asked": time(run.asked),
        "started": time(run.started),
        "ended": time(run.ended),
        "granted": run.granted.as_ref().map(resources_json),
        "usage": run.usage.map(|usage| json!({
            "elapsed_seconds": usage.elapsed.and_then(|it| Duration::try_from(it).ok()).map(|it| it.as_secs_f64()),
            "fuel_consumed": usage.fuel_consumed,
            "memory_used": usage.memory_used,
            "stdout_bytes": usage.stdout_bytes,
            "stderr_bytes": usage.stderr_bytes,
        })),
        "next_seq": run.next_seq,
    });
    match &run.end {
        None => {}
        Some(End::Result(ended)) => report["result"] = result_json(ended),
        Some(End::Error(error)) => report["error"] = run_error_json(error),
    }
    report
}
