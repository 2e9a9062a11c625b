//! The tools as an agent is told of them: names, descriptions, and JSON schemas of arguments and
//! results.

use std::sync::Arc;

use rmcp::model::{JsonObject, Tool, ToolAnnotations};
use serde_json::{Value, json};

use super::tool_settings::ToolSettings;

/// The tools that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ToolName {
    RunCode,
    RunModule,
    ReadOutput,
    ListRuns,
    KillRun,
    ListLanguages,
}

impl ToolName {
    pub(super) const ALL: [Self; 6] = [
        Self::RunCode,
        Self::RunModule,
        Self::ReadOutput,
        Self::ListRuns,
        Self::KillRun,
        Self::ListLanguages,
    ];

    /// Returns the name by which the protocol calls the tool.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::RunCode => "run_code",
            Self::RunModule => "run_module",
            Self::ReadOutput => "read_output",
            Self::ListRuns => "list_runs",
            Self::KillRun => "kill_run",
            Self::ListLanguages => "list_languages",
        }
    }

    /// Finds the tool of a name.
    pub(super) fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| tool.as_str() == name)
    }

    /// Describes the tool to an agent.
    pub(super) fn describe(self, settings: &ToolSettings) -> Tool {
        let (told, input, output) = match self {
            Self::RunCode => run_code(settings),
            Self::RunModule => run_module(settings),
            Self::ReadOutput => read_output(settings),
            Self::ListRuns => list_runs(),
            Self::KillRun => kill_run(),
            Self::ListLanguages => list_languages(),
        };
        let reads = match self {
            Self::ReadOutput | Self::ListRuns | Self::ListLanguages => true,
            Self::RunCode | Self::RunModule | Self::KillRun => false,
        };
        // What a program does stays in its sandbox, but a run that is ended is lost.
        let hints = ToolAnnotations::new()
            .read_only(reads)
            .destructive(self == Self::KillRun)
            .idempotent(reads || self == Self::KillRun)
            .open_world(false);
        Tool::new(self.as_str(), told, Arc::new(input))
            .with_raw_output_schema(Arc::new(output))
            .with_annotations(hints)
    }
}

/// The description of a tool, and the schemas of its arguments and its result.
type ToolSchemas = (String, JsonObject, JsonObject);

fn run_code(settings: &ToolSettings) -> ToolSchemas {
    let told = format!(
        "Executes a program in a sandbox, with its own fresh memory unless it names a session, and returns how it \
         ended and what it wrote. It has no files but those that it is given, and no network but what the operator grants. \
         A program that fails is no error of this tool: look at the exit code and at stderr. Of long output, {} bytes are shown, and read_output reads the rest.",
        settings.max_output
    );
    let mut input = run_arguments(settings);
    input["language"] = text(
        "The language, such as \"python\". list_languages tells which there are; \"wat\" (WebAssembly text) always is.",
    );
    input["version"] =
        text("The version of the language, or the beginning of one. Any by default.");
    input["code"] = text("The whole program.");
    input["args"] = texts("The arguments of the program, without its name.");
    input["profile"] = text(
        "What the program may reach: \"standard\" (the default), \"hardened\", \"dev\", or another profile that \
         list_languages tells.",
    );
    input["session"] = text(
        "A name of your own: programs of one session share an interpreter, so that variables, modules and files of the \
         earlier ones are there. The first program of a name begins it. By default, the program begins with nothing.",
    );
    let input = arguments(input, &["language", "code"]);
    let mut output = run_results();
    output["value"] =
        text("The value that the program reported, as JSON text; absent if it reported none.");
    (told, input, result(output, &["run_id", "outcome"]))
}

fn run_module(settings: &ToolSettings) -> ToolSchemas {
    let told = "Runs a WebAssembly module or component in a sandbox, and returns how it ended and what it wrote. \
                Otherwise as run_code.";
    let mut input = run_arguments(settings);
    input["digest"] = text(
        "The digest of a module that the daemon stores: \"sha256:\" and 64 hexadecimal digits.",
    );
    if settings.modules.is_some() {
        input["path"] = text(
            "Instead of the digest: the path of the module's file, in the folder that the operator of this server \
             allows. It is loaded into the daemon first, which keeps it; the result has its digest.",
        );
    }
    input["entry_point"] = text("The exported function to call, instead of the module's command.");
    input["args"] = texts(
        "The arguments after the name of the command. With entry_point: exactly the parameters of the function, as text.",
    );
    input["fuel_limit"] = whole(
        "The most units of fuel, about one for each instruction. Without it, the run is not metered.",
    );
    input["stack_size"] = whole("The bytes of call stack.");
    input["output_limit"] =
        whole("The most bytes of stdout, and of stderr. A run that writes more is ended.");
    let input = arguments(input, &[]);
    (
        told.to_owned(),
        input,
        result(run_results(), &["run_id", "outcome"]),
    )
}

fn read_output(settings: &ToolSettings) -> ToolSchemas {
    let told = "Reads what a run has written, also while it goes on, from any place, without waiting for more. \
                The result says where to read on.";
    let most = settings.max_output;
    let input = json!({
        "run_id": text("The id of the run."),
        "from_seq": whole_from_0("The number of the first event to read, as \"next\" of an earlier result has it. 0, the beginning, by default."),
        "from_byte": whole_from_0("How many bytes of that event to skip, as \"next\" has it. 0 by default."),
        "max_bytes": {
            "type": "integer", "minimum": 1, "maximum": most,
            "description": format!("The most bytes of output to return. {most} by default."),
        },
    });
    let mut output = streams();
    output["state"] = text("The state of the run: compiling, queued, running or ended.");
    output["more"] = flag("Whether there is more to read now.");
    output["ended"] = flag("Whether the run has ended, and all of its output was read.");
    output["lost_events"] =
        whole_from_0("How many events the daemon no longer has, of those that were asked for.");
    output["result"] = object("How the run ended, as run_code tells it. Only with \"ended\".");
    output["run_error"] = object("Why the run was refused or failed, instead of \"result\".");
    let output = result(output, &["run_id", "state", "more", "ended"]);
    (told.to_owned(), arguments(input, &["run_id"]), output)
}

fn list_runs() -> ToolSchemas {
    let told =
        "Lists the runs of the caller's tenant, the newest first, also those that others started.";
    let input = json!({
        "states": {
            "type": "array",
            "items": { "type": "string", "enum": ["compiling", "queued", "running", "ended"] },
            "description": "Only runs in one of these states. All by default.",
        },
        "labels": pairs("Only runs that have all of these labels."),
        "limit": {
            "type": "integer", "minimum": 1, "maximum": 1000,
            "description": "The most runs to list. 20 by default. Fewer are listed where they take too much space.",
        },
    });
    let output = json!({
        "runs": { "type": "array", "items": { "type": "object" }, "description": "The runs, with all that is known of each." },
        "more": flag("Whether more runs match."),
    });
    (
        told.to_owned(),
        arguments(input, &[]),
        result(output, &["runs", "more"]),
    )
}

fn kill_run() -> ToolSchemas {
    let told =
        "Ends a run, and answers when it is gone. A run that has ended already stays as it is.";
    let input = json!({ "run_id": text("The id of the run.") });
    let output = json!({
        "run_id": text("The id of the run."),
        "found": text("The state of the run before: compiling, queued, running or ended."),
        "cancelled": flag("Whether this call ended the run."),
        "run": object("All that is known of the run now."),
    });
    let output = result(output, &["run_id", "found", "cancelled"]);
    (told.to_owned(), arguments(input, &["run_id"]), output)
}

fn list_languages() -> ToolSchemas {
    let told = "Lists the languages that run_code executes, and the profiles that there are.";
    let output = json!({
        "languages": {
            "type": "array", "items": { "type": "object" },
            "description": "Each with name, version, aliases, and whether its interpreter is ready.",
        },
        "profiles": texts("The names of the profiles."),
    });
    let output = result(output, &["languages", "profiles"]);
    (told.to_owned(), arguments(json!({}), &[]), output)
}

/// Describes the arguments that both tools have that run something.
fn run_arguments(settings: &ToolSettings) -> Value {
    let most = settings.timeout.map(|timeout| timeout.as_secs_f64());
    let told = match most {
        Some(most) => {
            format!("The limit of wall time in seconds, at most {most}, which is the default.")
        }
        None => {
            "The limit of wall time in seconds. The daemon has a default and a maximum.".to_owned()
        }
    };
    let mut timeout = json!({ "type": "number", "exclusiveMinimum": 0, "description": told });
    if let Some(most) = most {
        timeout["maximum"] = json!(most);
    }
    json!({
        "env": pairs("Environment variables. Nothing is inherited."),
        "stdin": text("The text of standard input. Empty by default."),
        "files": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "path": text("The absolute path at which the program finds the file."),
                    "text": text("The contents, if they are text."),
                    "base64": text("The contents in base64, instead of text."),
                },
                "required": ["path"],
                "additionalProperties": false,
            },
            "description": "Files that the program finds in its file system, which is in memory and ends with it.",
        },
        "collect": texts(&format!(
            "Absolute paths of the files to return when the program has ended, also with *, ? and **, as in \"/out/**\". \
             They may have {} bytes together.",
            settings.max_output
        )),
        "timeout_seconds": timeout,
        "memory_pages": whole("The limit of memory in pages of 64 KiB, an interpreter's own memory included."),
    })
}

/// Describes the results that both tools have that run something.
fn run_results() -> Value {
    let mut output = streams();
    output["module_digest"] = text("The digest of the module that ran.");
    output["outcome"] = text(
        "How it ended: OUTCOME_EXITED, OUTCOME_TRAPPED, OUTCOME_MEMORY_EXCEEDED, OUTCOME_FUEL_EXHAUSTED, \
         OUTCOME_STACK_OVERFLOW, OUTCOME_TIMED_OUT, OUTCOME_OUTPUT_EXCEEDED or OUTCOME_CANCELLED.",
    );
    output["exit_code"] = json!({
        "type": ["integer", "null"],
        "description": "The exit code. Null unless the program ended by itself.",
    });
    output["session"] = json!({
        "type": ["object", "null"],
        "properties": { "executions": { "type": "integer" }, "ended": { "type": "boolean" } },
        "description": "How many programs the session has executed, 1 if this one began it, and whether it has ended, \
                        so that its state is lost. Null without a session.",
    });
    output["files"] = json!({
        "type": "array",
        "items": { "type": "object" },
        "description": "The files that collect asked for, each with path, content_type, size in bytes, and its contents \
                        as text or, where they are not text in UTF-8, as base64. Only with collect.",
    });
    output["files_left_out"] = json!({
        "type": "array",
        "items": { "type": "object" },
        "description": "The first files that collect asked for and that are not here, each with path, size, and why.",
    });
    output["files_left_out_total"] =
        whole_from_0("How many files are not here, also those that are not named.");
    output["output_cut"] = flag("Whether output is left out here.");
    output["stderr_end"] =
        text("The end of stderr, where output is left out and the end was not shown.");
    output["stderr_end_base64"] = text("stderr_end in base64, where it is not text.");
    output
}

/// Describes the output of a run, and the place to read on at.
fn streams() -> Value {
    json!({
        "run_id": text("The id of the run."),
        "stdout": text("Standard output, where it is text in UTF-8."),
        "stdout_base64": text("Standard output in base64, where it is not text."),
        "stderr": text("Standard error, where it is text in UTF-8."),
        "stderr_base64": text("Standard error in base64, where it is not text."),
        "next": {
            "type": "object",
            "properties": { "from_seq": { "type": "integer" }, "from_byte": { "type": "integer" } },
            "description": "Arguments of read_output that read on. Absent where there is nothing to read on.",
        },
    })
}

/// Builds the schema of the arguments of a tool.
fn arguments(properties: Value, required: &[&str]) -> JsonObject {
    let schema = json!({
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    });
    schema.as_object().cloned().unwrap_or_default()
}

/// Builds the schema of the result of a tool, which is an error where the tool failed.
fn result(mut properties: Value, required: &[&str]) -> JsonObject {
    properties["error"] = object(
        "Why the tool failed: code, reason, message, and where an argument is at fault its field, what was asked, and \
         what is allowed.",
    );
    let schema = json!({
        "type": "object",
        "properties": properties,
        "anyOf": [{ "required": required }, { "required": ["error"] }],
    });
    schema.as_object().cloned().unwrap_or_default()
}

fn text(told: &str) -> Value {
    json!({ "type": "string", "description": told })
}

fn texts(told: &str) -> Value {
    json!({ "type": "array", "items": { "type": "string" }, "description": told })
}

fn pairs(told: &str) -> Value {
    json!({ "type": "object", "additionalProperties": { "type": "string" }, "description": told })
}

fn whole(told: &str) -> Value {
    json!({ "type": "integer", "minimum": 1, "description": told })
}

fn whole_from_0(told: &str) -> Value {
    json!({ "type": "integer", "minimum": 0, "description": told })
}

fn flag(told: &str) -> Value {
    json!({ "type": "boolean", "description": told })
}

fn object(told: &str) -> Value {
    json!({ "type": "object", "description": told })
}
