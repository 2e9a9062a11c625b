//! What a tool answers: text that an agent reads, and the same as JSON.

use std::fmt::Write;

use base64::Engine as _;
use rmcp::model::{CallToolResult, ContentBlock, JsonObject};
use serde_json::{Value, json};

use super::output_slice::{LogPosition, OutputSlice, SliceEnd, read_slice};
use super::returned_files::FilesReport;
use crate::api::proto::{Outcome, RunResult};
use crate::cli::Failure;
use crate::cli::connect::{DaemonChannel, runs_client};
use crate::cli::ending::{briefly, result_json};
use crate::cli::failure::run_error_json;
use crate::cli::follow::CollectedRun;
use crate::cli::ps::state_name;
use crate::model::refusal::printable;

/// The names of the streams in the JSON and in headings.
const STREAMS: [&str; 2] = ["stdout", "stderr"];

/// The answer of a tool that did what it was called for.
#[derive(Default)]
pub(super) struct ToolReport {
    /// The answer as JSON, by the schema of the tool.
    facts: JsonObject,
    /// The answer as text. What a guest wrote has blocks of its own, so that it cannot pass for
    /// what the daemon says.
    blocks: Vec<String>,
}

impl ToolReport {
    /// Creates a report that says `told`, and has `facts` as JSON.
    pub(super) fn new(told: String, facts: Value) -> Self {
        let facts = match facts {
            Value::Object(facts) => facts,
            Value::Null
            | Value::Bool(_)
            | Value::Number(_)
            | Value::String(_)
            | Value::Array(_) => JsonObject::new(),
        };
        Self {
            facts,
            blocks: vec![told],
        }
    }

    /// Converts the report to the result of the protocol.
    pub(super) fn into_result(self) -> CallToolResult {
        let blocks = self.blocks.into_iter().map(ContentBlock::text);
        let mut result = CallToolResult::success(blocks.collect());
        result.structured_content = Some(Value::Object(self.facts));
        result
    }

    fn set(&mut self, name: &str, value: impl Into<Value>) {
        self.facts.insert(name.to_owned(), value.into());
    }

    /// Adds the files that a run returned, and those that are left out.
    fn add_files(&mut self, files: FilesReport) {
        let FilesReport {
            told: _,
            blocks,
            shown,
            left_out,
            left_out_total,
        } = files;
        self.blocks.extend(blocks);
        self.set("files", shown);
        self.set("files_left_out", left_out);
        self.set("files_left_out_total", left_out_total);
    }

    /// Adds what a guest wrote: as text if it is text, and in base64 otherwise.
    fn add_output(&mut self, name: &str, title: &str, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                self.set(name, text);
                if !text.is_empty() {
                    self.blocks.push(format!("{title}:\n{text}"));
                }
            }
            Err(_) => {
                let text = base64::engine::general_purpose::STANDARD.encode(bytes);
                let told = format!("{title}, which is not text in UTF-8, in base64:\n{text}");
                self.blocks.push(told);
                self.set(&format!("{name}_base64"), text);
            }
        }
    }
}

/// Converts a failure to the result of the protocol: a tool that failed, which the agent can read
/// about, and not a broken protocol.
pub(super) fn failure_result(failure: &Failure) -> CallToolResult {
    let facts = failure.json();
    let mut told = failure.message.clone();
    if let Some(Value::Object(metadata)) = facts["error"].get("metadata") {
        for (key, value) in metadata {
            let value = value.as_str().unwrap_or_default();
            // Writing to a string cannot fail.
            let _ = write!(told, "\n{}: {}", printable(key), printable(value));
        }
    }
    if let Some(delay) = facts["error"].get("retry_after_seconds") {
        let _ = write!(told, "\ntry again after {delay} seconds");
    }
    let mut result = CallToolResult::error(vec![ContentBlock::text(told)]);
    result.structured_content = Some(facts);
    result
}

/// What is shown of long output.
struct ShownOutput {
    /// The beginning, in the order in which it was written.
    beginning: OutputSlice,
    rest: RestOfOutput,
}

/// Where the rest of long output is.
#[derive(Clone, Copy)]
enum RestOfOutput {
    /// In the log, from the place at which what is shown ends.
    InLog,
    /// In the log, which no longer has all of what is shown.
    PartlyInLog,
    Gone,
}

/// Reports a run that was executed to its end. Output beyond `max_output` is left out, and the
/// report says how to read it. The same holds for files, which are reported if some were asked for.
pub(super) async fn run_report(
    channel: DaemonChannel,
    answer: CollectedRun,
    asked_files: bool,
    max_output: usize,
) -> ToolReport {
    let CollectedRun {
        result,
        output,
        value,
        files,
    } = answer;
    let written: usize = output.iter().map(Vec::len).sum();
    let mut told = format!("Run {}: {}.", printable(&result.run_id), ending(&result));
    told.push_str(&session_told(&result));
    if written == 0 {
        told.push_str("\nIt wrote nothing.");
    }
    for (name, is_truncated) in STREAMS
        .iter()
        .zip([result.stdout_truncated, result.stderr_truncated])
    {
        if is_truncated {
            let _ = write!(
                told,
                "\nIt wrote more to {name} than its limit, and the rest is lost."
            );
        }
    }
    let mut report = ToolReport::new(String::new(), result_json(&result));
    report.set("output_cut", written > max_output);
    if written <= max_output {
        for (name, bytes) in STREAMS.iter().zip(&output) {
            report.add_output(name, name, bytes);
        }
    } else {
        let shown = shorten(channel, &result.run_id, &output, max_output).await;
        let _ = write!(told, "\n{}", shown.describe(&result.run_id, &output));
        report.add_shortened(&shown, &output[1], max_output);
    }
    match value {
        Some(value) if value.len() > max_output => {
            let bytes = value.len();
            let _ = write!(
                told,
                "\nIts value has {bytes} bytes, and is not shown: stdout has it."
            );
        }
        Some(value) if !value.is_empty() => {
            report.blocks.push(format!("value:\n{value}"));
            report.set("value", value);
        }
        Some(_) | None => {}
    }
    if asked_files {
        let files = FilesReport::new(&result, &files, max_output);
        told.push_str(&files.told);
        report.add_files(files);
    }
    report.blocks[0] = told;
    report
}

/// Finds the beginning of what a run wrote, in the order in which it was written, and where to
/// read on. Where the log does not have it, that is the beginning of standard output.
async fn shorten(
    channel: DaemonChannel,
    run_id: &str,
    output: &[Vec<u8>; 2],
    max_output: usize,
) -> ShownOutput {
    // The rest is for the end of standard error, which says why a program failed.
    let room = max_output - max_output / 4;
    let start = LogPosition::default();
    let rest = match read_slice(&mut runs_client(channel), run_id, start, room).await {
        Ok(slice) if slice.lost_events == 0 => {
            return ShownOutput {
                beginning: slice,
                rest: RestOfOutput::InLog,
            };
        }
        Ok(_) => RestOfOutput::PartlyInLog,
        // The output of the run is at hand, whatever became of its log.
        Err(_) => RestOfOutput::Gone,
    };
    ShownOutput {
        beginning: OutputSlice::of_stdout(head(&output[0], room)),
        rest,
    }
}

impl ShownOutput {
    /// Tells what is shown of `output`, and how to read the rest.
    fn describe(&self, run_id: &str, output: &[Vec<u8>; 2]) -> String {
        let parts = STREAMS.iter().zip(&self.beginning.output).zip(output);
        let parts = parts.map(|((name, shown), all)| {
            format!("{} of {} bytes of {name}", shown.len(), all.len())
        });
        let parts = parts.collect::<Vec<_>>().join(" and ");
        let call = call_of(run_id, self.beginning.next);
        let rest = match self.rest {
            RestOfOutput::InLog => format!("{call} reads on"),
            RestOfOutput::PartlyInLog => format!("{call} reads what the daemon still has of it"),
            RestOfOutput::Gone => "the daemon no longer has the rest".to_owned(),
        };
        format!("Its output is cut: these are the first {parts}; {rest}.")
    }
}

impl ToolReport {
    /// Adds the beginning of long output, and the end of standard error where that is not part of
    /// it.
    fn add_shortened(&mut self, shown: &ShownOutput, stderr: &[u8], max_output: usize) {
        let ShownOutput { beginning, rest } = shown;
        match rest {
            RestOfOutput::InLog | RestOfOutput::PartlyInLog => {
                self.set("next", next_json(beginning.next));
            }
            RestOfOutput::Gone => {}
        }
        for (name, bytes) in STREAMS.iter().zip(&beginning.output) {
            self.add_output(name, name, bytes);
        }
        let missed = stderr.len().saturating_sub(beginning.output[1].len());
        let end = tail(stderr, missed.min(max_output / 4));
        if !end.is_empty() {
            self.add_output("stderr_end", "the end of stderr", end);
        }
    }
}

/// Reports a slice of what a run wrote.
pub(super) fn slice_report(run_id: &str, slice: &OutputSlice) -> ToolReport {
    let bytes: usize = slice.output.iter().map(Vec::len).sum();
    let mut told = match bytes {
        0 => format!("Run {}: nothing was written here.", printable(run_id)),
        _ => format!("Run {}: {bytes} bytes of output.", printable(run_id)),
    };
    if slice.lost_events > 0 {
        let _ = write!(
            told,
            "\nThe daemon no longer has {} events before this.",
            slice.lost_events
        );
    }
    let _ = match &slice.end {
        Some(SliceEnd::Executed(result)) => {
            write!(told, "\nThat is all: {}.", ending(result))
        }
        Some(SliceEnd::Failed(error)) => write!(
            told,
            "\nThat is all: the run did not succeed: {}: {}",
            printable(&error.reason),
            printable(&error.message)
        ),
        None if slice.is_cut => write!(
            told,
            "\nThere is more: {} reads on.",
            call_of(run_id, slice.next)
        ),
        None => write!(
            told,
            "\nThere is no more yet, and the run goes on ({}): {} reads what comes.",
            state_name(slice.state),
            call_of(run_id, slice.next)
        ),
    };
    let mut report = ToolReport::new(
        told,
        json!({
            "run_id": run_id,
            "state": state_name(slice.state),
            "lost_events": slice.lost_events,
            "more": slice.is_cut,
            "ended": slice.end.is_some(),
        }),
    );
    match &slice.end {
        Some(SliceEnd::Executed(result)) => report.set("result", result_json(result)),
        Some(SliceEnd::Failed(error)) => report.set("run_error", run_error_json(error)),
        None => report.set("next", next_json(slice.next)),
    }
    for (name, bytes) in STREAMS.iter().zip(&slice.output) {
        report.add_output(name, name, bytes);
    }
    report
}

/// Describes how a run ended, with the limit that it met.
fn ending(result: &RunResult) -> String {
    let took = result.duration.unwrap_or_default();
    let took = std::time::Duration::try_from(took).unwrap_or_default();
    let took = format!("after {:.3} seconds", took.as_secs_f64());
    let granted = result.granted.unwrap_or_default();
    let limit = |what: &str, limit: Option<u64>| match limit {
        Some(limit) => format!("; it had {limit} {what}"),
        None => String::new(),
    };
    let limit = match result.outcome() {
        Outcome::Exited => {
            let code = result.exit_code.unwrap_or_default();
            return format!("exited with code {code} {took}");
        }
        Outcome::TimedOut => "; timeout_seconds asks for more time".to_owned(),
        Outcome::MemoryExceeded => limit("pages of memory", granted.memory_pages.map(u64::from)),
        Outcome::FuelExhausted => limit("units of fuel", granted.fuel_limit),
        Outcome::StackOverflow => limit("bytes of stack", granted.stack_size.map(u64::from)),
        Outcome::OutputExceeded => limit("bytes for each stream", granted.output_limit),
        Outcome::Trapped | Outcome::Cancelled | Outcome::Unspecified => String::new(),
    };
    format!("{} {took}{limit}", printable(&briefly(result)))
}

/// Tells which program of its session a run was, and whether there will be more.
fn session_told(result: &RunResult) -> String {
    let Some(session) = result.session else {
        return String::new();
    };
    let goes_on = match session.ended {
        true => ", which has ended with it: its state is lost",
        false => "",
    };
    format!(
        "\nIt was program {} of its session{goes_on}.",
        session.executions
    )
}

/// Formats the call that reads on.
fn call_of(run_id: &str, next: LogPosition) -> String {
    let byte = match next.byte {
        0 => String::new(),
        byte => format!(" and from_byte {byte}"),
    };
    format!(
        "read_output with run_id {} and from_seq {}{byte}",
        printable(run_id),
        next.seq
    )
}

fn next_json(next: LogPosition) -> Value {
    json!({ "from_seq": next.seq, "from_byte": next.byte })
}

/// Returns the first bytes of `bytes`, at most `most`, without a part of a character at the end.
fn head(bytes: &[u8], most: usize) -> &[u8] {
    let head = &bytes[..most.min(bytes.len())];
    match std::str::from_utf8(head) {
        Err(error) if error.error_len().is_none() && head.len() < bytes.len() => {
            &head[..error.valid_up_to()]
        }
        Ok(_) | Err(_) => head,
    }
}

/// Returns the last bytes of `bytes`, at most `most`, without a part of a character at the
/// beginning.
fn tail(bytes: &[u8], most: usize) -> &[u8] {
    let tail = &bytes[bytes.len() - most.min(bytes.len())..];
    // In UTF-8, these bytes continue a character.
    let part = tail.iter().take_while(|byte| **byte & 0xc0 == 0x80).count();
    match std::str::from_utf8(&tail[part..]) {
        Ok(_) => &tail[part..],
        Err(_) => tail,
    }
}
