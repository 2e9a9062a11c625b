//! The tools that list runs and languages, and that end a run.

use std::fmt::Write;

use serde_json::{Value, json};

use super::report::ToolReport;
use crate::api::proto::{
    CancelRunRequest, Language, ListLanguagesRequest, ListRunsRequest, RunInfo, RunState,
};
use crate::cli::Failure;
use crate::cli::connect::{DaemonChannel, executions_client, runs_client, status_failure};
use crate::cli::ps::{end, run_info_json, state_name};
use crate::model::refusal::{printable, quote};

/// The states of runs, by the names that listings have for them.
const STATES: [RunState; 4] = [
    RunState::Compiling,
    RunState::Queued,
    RunState::Running,
    RunState::Ended,
];

/// Which runs are listed.
pub(super) struct RunSelection {
    states: Vec<i32>,
    labels: Vec<(String, String)>,
    limit: usize,
}

impl RunSelection {
    /// Checks the arguments of `list_runs`.
    ///
    /// # Errors
    /// Refuses a state that there is not, and one that is given twice.
    pub(super) fn parse(
        states: Vec<String>,
        labels: Vec<(String, String)>,
        limit: u64,
    ) -> Result<Self, Failure> {
        let mut wire: Vec<i32> = Vec::with_capacity(states.len());
        for state in &states {
            let known = STATES.into_iter().find(|it| state_name(*it) == state);
            let known = known.map(i32::from).filter(|it| !wire.contains(it));
            let Some(known) = known else {
                let names = STATES.map(state_name).join(", ");
                let asked = format!("an array with \"{}\"", quote(state));
                let allowed = format!("an array of {names}, each at most once");
                return Err(Failure::bad_argument("states", &asked, &allowed));
            };
            wire.push(known);
        }
        Ok(Self {
            states: wire,
            labels,
            limit: usize::try_from(limit).unwrap_or(usize::MAX),
        })
    }
}

/// Lists runs, the newest first, as long as their descriptions fit in `max_output` bytes.
pub(super) async fn list_runs(
    channel: DaemonChannel,
    selection: RunSelection,
    max_output: usize,
) -> Result<ToolReport, Failure> {
    let mut client = runs_client(channel);
    let mut request = ListRunsRequest {
        states: selection.states,
        labels: selection.labels.into_iter().collect(),
        ..ListRunsRequest::default()
    };
    let (mut runs, mut lines) = (Vec::new(), String::new());
    let mut room = max_output;
    let more = 'pages: loop {
        // One more than is wanted tells whether there are more.
        let wanted = (selection.limit + 1).saturating_sub(runs.len());
        request.page_size = u32::try_from(wanted.min(1000)).unwrap_or(1000);
        let answer = client.list_runs(request.clone()).await;
        let page = answer.map_err(|status| status_failure(&status))?;
        let page = page.into_inner();
        for run in &page.runs {
            let described = run_info_json(run);
            let size = described.to_string().len();
            if runs.len() == selection.limit || size > room && !runs.is_empty() {
                break 'pages true;
            }
            room = room.saturating_sub(size);
            lines.push_str(&line(run));
            runs.push(described);
        }
        if page.next_page_token.is_empty() {
            break false;
        }
        request.page_token = page.next_page_token;
    };
    let told = match (runs.len(), more) {
        (0, _) => "No run matches.".to_owned(),
        (count, false) => format!("{count} runs match, the newest first:{lines}"),
        (count, true) => format!(
            "The newest {count} runs that match (there are more; states, labels and limit select):{lines}"
        ),
    };
    Ok(ToolReport::new(told, json!({ "runs": runs, "more": more })))
}

/// Describes a run in a line of its own.
fn line(run: &RunInfo) -> String {
    let mut line = format!("\n{} {}", printable(&run.run_id), state_name(run.state()));
    let end = end(run);
    if !end.is_empty() {
        let _ = write!(line, " ({end})");
    }
    let mut labels: Vec<_> = run.labels.iter().collect();
    labels.sort();
    for (key, value) in labels {
        let _ = write!(line, " {}", printable(&format!("{key}={value}")));
    }
    line
}

/// Ends a run, and reports it when it is gone.
pub(super) async fn end_run(channel: DaemonChannel, run_id: String) -> Result<ToolReport, Failure> {
    let answer = runs_client(channel)
        .cancel_run(CancelRunRequest { run_id })
        .await;
    let answer = answer.map_err(|status| status_failure(&status))?;
    let answer = answer.into_inner();
    let found = state_name(answer.found());
    let run = answer.run.unwrap_or_default();
    let id = printable(&run.run_id);
    let told = match answer.cancelled {
        true => format!("Run {id} was {found}, and has been ended."),
        false => format!("Run {id} was not ended by this call: {}.", end(&run)),
    };
    let facts = json!({
        "run_id": run.run_id,
        "found": found,
        "cancelled": answer.cancelled,
        "run": run_info_json(&run),
    });
    Ok(ToolReport::new(told, facts))
}

/// Lists the languages of the daemon, and its profiles.
pub(super) async fn list_languages(channel: DaemonChannel) -> Result<ToolReport, Failure> {
    let answer = executions_client(channel)
        .list_languages(ListLanguagesRequest {})
        .await;
    let answer = answer.map_err(|status| status_failure(&status))?;
    let answer = answer.into_inner();
    let mut told = "Languages for run_code:".to_owned();
    for language in &answer.languages {
        let Language {
            name,
            version,
            aliases,
            ..
        } = language;
        let _ = write!(told, "\n{} {version}", printable(name));
        if !aliases.is_empty() {
            let _ = write!(told, " (or {})", printable(&aliases.join(", ")));
        }
    }
    let profiles = printable(&answer.profiles.join(", "));
    let _ = write!(told, "\nProfiles: {profiles}");
    let languages: Vec<Value> = answer
        .languages
        .iter()
        .map(|it| {
            json!({
                "name": it.name,
                "version": it.version,
                "aliases": it.aliases,
                "ready": it.ready,
            })
        })
        .collect();
    let facts = json!({ "languages": languages, "profiles": answer.profiles });
    Ok(ToolReport::new(told, facts))
}
