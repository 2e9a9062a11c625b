//! `ringfence ps`, `ringfence inspect` and `ringfence kill`

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Args, ValueEnum};
use prost_types::Timestamp;
use serde_json::{Value, json};

use super::connect::{DaemonArgs, connect_runs, failure};
use super::ending::{briefly, granted, result};
use super::failure::run_error;
use super::reader::reader_gone;
use super::{Failure, can_be_written, complain, print, print_json, runtime, values};
use crate::api::proto::run_info::End;
use crate::api::proto::watch_runs_response::Event;
use crate::api::proto::{
    CancelRunRequest, GetRunRequest, ListRunsRequest, Outcome, RunInfo, RunState, WatchRunsRequest,
};
use crate::refusal::printable;

/// List the runs of a daemon, the newest first.
#[derive(Debug, Args)]
pub(super) struct Ps {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Those that have ended too
    #[arg(long, short)]
    all: bool,
    /// Only those in this state; may be repeated
    #[arg(long, value_name = "STATE", conflicts_with = "all")]
    state: Vec<State>,
    /// Only those with this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = values::key_value())]
    label: Vec<(String, String)>,
    /// Go on, and print each that changes
    #[arg(long, short)]
    watch: bool,
    /// One JSON object a line, rather than a table
    #[arg(long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One JSON object a line
    Json,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum State {
    /// Its module is found, checked or compiled
    Compiling,
    /// It waits for a slot
    Queued,
    /// The guest executes
    Running,
    /// It has ended
    Ended,
}

/// Print all that is known of a run, as JSON.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    /// The run's id
    run: String,
    #[command(flatten)]
    daemon: DaemonArgs,
}

/// End runs, and wait until they are gone.
#[derive(Debug, Args)]
pub(super) struct Kill {
    /// The runs' ids
    #[arg(required = true)]
    run: Vec<String>,
    #[command(flatten)]
    daemon: DaemonArgs,
}

impl Ps {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        runtime()?.block_on(async {
            if self.watch {
                self.follow().await
            } else {
                self.list().await
            }
        })
    }

    pub(super) fn prints_json(&self) -> bool {
        self.output.is_some()
    }

    fn states(&self) -> Vec<i32> {
        let live = [State::Compiling, State::Queued, State::Running];
        let states = match (self.all, &self.state[..]) {
            (true, _) => &[][..],
            (false, []) => &live[..],
            (false, states) => states,
        };
        let wire = |state: &State| match state {
            State::Compiling => RunState::Compiling.into(),
            State::Queued => RunState::Queued.into(),
            State::Running => RunState::Running.into(),
            State::Ended => RunState::Ended.into(),
        };
        states.iter().map(wire).collect()
    }

    async fn list(&self) -> Result<ExitCode, Failure> {
        let mut client = connect_runs(&self.daemon).await?;
        let mut head = self.head();
        let mut request = ListRunsRequest {
            states: self.states(),
            labels: self.label.iter().cloned().collect(),
            ..ListRunsRequest::default()
        };
        loop {
            let answer = client.list_runs(request.clone()).await;
            let page = answer.map_err(|status| failure(&status))?.into_inner();
            let lines: String = page.runs.iter().map(|run| self.line(run)).collect();
            print(format!("{}{lines}", std::mem::take(&mut head)).as_bytes())?;
            if page.next_page_token.is_empty() {
                return Ok(ExitCode::SUCCESS);
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn follow(&self) -> Result<ExitCode, Failure> {
        let mut client = connect_runs(&self.daemon).await?;
        let request = WatchRunsRequest {
            states: self.states(),
            labels: self.label.iter().cloned().collect(),
        };
        let answer = client.watch_runs(request).await;
        let mut news = answer.map_err(|status| failure(&status))?.into_inner();
        print(self.head().as_bytes())?;
        let told = async {
            while let Some(news) = news.message().await.map_err(|status| failure(&status))? {
                if let Some(Event::Run(run)) = news.event {
                    print(self.line(&run).as_bytes())?;
                }
            }
            Err(Failure::unreachable("the connection broke"))
        };
        tokio::select! {
            told = told => told,
            // Nothing may change for hours.
            () = reader_gone() => Err(Failure::broken_pipe()),
        }
    }

    /// What stands above a table. Not before the daemon has answered: a refusal has no table.
    fn head(&self) -> String {
        match self.output {
            Some(Format::Json) => String::new(),
            None => format!("{HEAD}\n"),
        }
    }

    fn line(&self, run: &RunInfo) -> String {
        match self.output {
            Some(Format::Json) => format!("{}\n", report(run)),
            None => format!("{}\n", row(run)),
        }
    }
}

impl Inspect {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        runtime()?.block_on(async {
            let mut client = connect_runs(&self.daemon).await?;
            let answer = client.get_run(GetRunRequest { run_id: self.run }).await;
            let answer = answer.map_err(|status| failure(&status))?.into_inner();
            print_json(&report(&answer.run.unwrap_or_default()))
        })
    }
}

impl Kill {
    pub(super) fn execute(self) -> Result<ExitCode, Failure> {
        runtime()?.block_on(async {
            let mut client = connect_runs(&self.daemon).await?;
            let mut code = ExitCode::SUCCESS;
            // Whoever does not read of one wants the others ended all the same.
            let mut printed = Ok(code);
            for run_id in self.run {
                let request = CancelRunRequest {
                    run_id: run_id.clone(),
                };
                match client.cancel_run(request).await {
                    Ok(answer) => {
                        let answer = answer.into_inner();
                        if answer.cancelled {
                            printed = printed.and(print(format!("{run_id}\n").as_bytes()));
                        } else {
                            let how = end(&answer.run.unwrap_or_default());
                            complain(&format!("{run_id} had ended: {how}"));
                        }
                    }
                    Err(status) => {
                        let failure = failure(&status);
                        complain(&failure.message);
                        code = ExitCode::from(failure.code);
                    }
                }
            }
            printed.map(|_| code)
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
        state(run),
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

/// The largest unit is enough for people.
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

fn state(run: &RunInfo) -> &'static str {
    match run.state() {
        RunState::Compiling => "compiling",
        RunState::Queued => "queued",
        RunState::Running => "running",
        RunState::Ended => "ended",
        RunState::Unspecified => "unknown",
    }
}

/// How a run ended, in a few words.
fn end(run: &RunInfo) -> String {
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

/// All that is told of a run.
fn report(run: &RunInfo) -> Value {
    let time = |time: Option<Timestamp>| {
        at(time).map(|at| humantime::format_rfc3339_micros(at).to_string())
    };
    let mut report = json!({
        "run_id": run.run_id,
        "state": state(run),
        "module_digest": run.module_digest,
        "labels": run.labels,
        "method": run.method,
        "caller": run.caller,
        "detached": run.detached,
        "asked": time(run.asked),
        "started": time(run.started),
        "ended": time(run.ended),
        "granted": run.granted.as_ref().map(granted),
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
        Some(End::Result(ended)) => report["result"] = result(ended),
        Some(End::Error(error)) => report["error"] = run_error(error),
    }
    report
}
