//! The lines of runs in the log and the audit: written by hand, and byte for byte what tracing's formatter writes of the
//! same fields; filtered by `telemetry.log_level`; none lost.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringfence::api::proto::{RunRequest, RunSpec, RunStreamRequest};
use serde_json::Value;
use tempfile::TempDir;
use tracing::field::display;
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;

use crate::harness::{Client, PATIENCE, SpecExt, connect, spec};
use crate::process::Served;

/// A line in its parts.
struct Line {
    time: String,
    message: String,
    fields: BTreeMap<String, String>,
}

impl Line {
    /// Of the JSON log, or of the audit, whose fields lie open.
    fn of_json(line: &str) -> Option<(Self, bool)> {
        let mut told: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
        let is_audit = told.get("fields").is_none();
        if !is_audit && !is_of_runs(told["target"].as_str().unwrap()) {
            return None;
        }
        let time = told["timestamp"].as_str().unwrap().to_owned();
        let fields = if is_audit {
            told.take()
        } else {
            told["fields"].take()
        };
        let fields = fields.as_object().unwrap().iter();
        let fields = fields.map(|(name, value)| {
            let text = value.as_str().map(str::to_owned);
            (name.clone(), text.unwrap_or_else(|| value.to_string()))
        });
        Some((Self::new(time, fields.collect()), is_audit))
    }

    /// Of the log as text.
    fn of_text(line: &str) -> Option<Self> {
        let (time, rest) = line.split_once(' ')?;
        let (level, rest) = rest.trim_start().split_once(' ')?;
        assert!(
            ["ERROR", "WARN", "INFO", "DEBUG"].contains(&level),
            "{line}"
        );
        let (target, rest) = rest.split_once(": ")?;
        if !is_of_runs(target) {
            return None;
        }
        let mut fields = BTreeMap::new();
        let at = rest.find("run_id=").unwrap();
        let (message, rest) = rest.split_at(at);
        fields.insert("message".to_owned(), message.trim_end().to_owned());
        for field in rest.split(' ') {
            let (name, value) = field.split_once('=').unwrap();
            fields.insert(name.to_owned(), value.trim_matches('"').to_owned());
        }
        Some(Self::new(time.to_owned(), fields))
    }

    fn new(time: String, mut fields: BTreeMap<String, String>) -> Self {
        Self {
            time,
            message: fields.remove("message").unwrap_or_default(),
            fields,
        }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name).map(String::as_str)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.text(name).map(|it| it.parse().unwrap())
    }

    fn flag(&self, name: &str) -> Option<bool> {
        self.text(name).map(|it| it.parse().unwrap())
    }

    /// Says it again by tracing, each field in its form.
    fn say(&self) {
        let [run_id, digest, mounts] =
            ["run_id", "digest", "mounts"].map(|it| self.text(it).map(display));
        let [tenant, reason, field] = ["tenant", "reason", "field"].map(|it| self.text(it));
        let [outcome, cause, trap] = ["outcome", "cause", "trap"].map(|it| self.text(it));
        let [duration_us, cpu_us, waited_us] =
            ["duration_us", "cpu_us", "waited_us"].map(|it| self.number(it));
        let [exit_code, fuel] = ["exit_code", "fuel"].map(|it| self.number(it));
        let memory_denied = self.flag("memory_denied");
        let trace_id = self.text("trace_id").map(display);
        match self.message.as_str() {
            "run ended" => tracing::info!(
                target: "ringfence::run", run_id, tenant, digest, outcome, exit_code, cause, trap, duration_us, cpu_us,
                waited_us, fuel, memory = self.number("memory"), memory_denied, stdout = self.number("stdout"),
                stderr = self.number("stderr"), trace_id, "run ended"
            ),
            "run refused" => tracing::info!(
                target: "ringfence::run", run_id, tenant, digest, reason, field, trace_id, "run refused"
            ),
            "" => {
                let [caller, event, decision, method] =
                    ["caller", "event", "decision", "method"].map(|it| self.text(it));
                let number = |name| self.number(name);
                let flag = |name| self.flag(name);
                let host_functions = self.text("host_functions").map(display);
                match (event.unwrap(), decision) {
                    ("admission", Some("admitted")) => tracing::info!(
                        target: "ringfence::audit", run_id, tenant, caller, digest, event, decision, method, waited_us,
                        memory_bytes = number("memory_bytes"), fuel, stack_bytes = number("stack_bytes"),
                        output_bytes = number("output_bytes"), timeout_us = number("timeout_us"),
                        detached = flag("detached"), wasi = flag("wasi"), clock = flag("clock"),
                        network = flag("network"), mounts, host_functions, trace_id,
                    ),
                    ("admission", Some("refused")) => tracing::info!(
                        target: "ringfence::audit", run_id, tenant, caller, digest, event, decision, method, waited_us,
                        reason, field, trace_id,
                    ),
                    ("end", None) => tracing::info!(
                        target: "ringfence::audit", run_id, tenant, caller, digest, event, outcome, exit_code, cause,
                        trap, waited_us, duration_us, cpu_us, fuel, memory_bytes = number("memory_bytes"),
                        memory_denied, stdout_bytes = number("stdout_bytes"), stderr_bytes = number("stderr_bytes"),
                        trace_id,
                    ),
                    other => panic!("{other:?}"),
                }
            }
            other => panic!("{other}"),
        }
    }
}

fn is_of_runs(target: &str) -> bool {
    ["ringfence::run", "ringfence::audit"].contains(&target)
}

/// A clock that stands at a time of a line.
struct StoppedClock(String);

impl FormatTime for StoppedClock {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&self.0)
    }
}

#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Write for Memory {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Text,
    Json,
    Audit,
}

/// What tracing's formatter makes of a line's fields.
fn by_tracing(line: &Line, form: Form) -> String {
    let memory = Memory::default();
    let writer = memory.clone();
    let layer = tracing_subscriber::fmt::layer()
        .with_timer(StoppedClock(line.time.clone()))
        .with_writer(move || writer.clone());
    let layer = match form {
        Form::Text => layer.with_ansi(false).boxed(),
        Form::Json => layer.json().boxed(),
        Form::Audit => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_level(false)
            .with_target(false)
            .boxed(),
    };
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || line.say());
    let written = memory.0.lock().unwrap().clone();
    String::from_utf8(written).unwrap()
}

/// The lines of runs among `text`, each of which is what tracing would have written.
fn checked(text: &str, form: Form) -> Vec<Line> {
    let mut lines = Vec::new();
    for written in text.split_inclusive('\n') {
        let line = match form {
            Form::Text => Line::of_text(written.trim_end()),
            Form::Json | Form::Audit => Line::of_json(written).map(|(line, is_audit)| {
                assert_eq!(is_audit, form == Form::Audit);
                line
            }),
        };
        if let Some(line) = line {
            assert_eq!(by_tracing(&line, form), written);
            // What the daemon runs itself is nobody's.
            if line.text("tenant") == Some("default") {
                lines.push(line);
            }
        }
    }
    lines
}

/// Runs that end in every way that a guest and its caller can have them end, with what the log calls it.
fn endings() -> Vec<(&'static str, RunSpec)> {
    let spin = "(module (func (export \"_start\") (loop br 0)))";
    let deep = "(module (func $f (param i64) (call $f (local.get 0))) (func (export \"_start\") (call $f (i64.const 1))))";
    let exit = "(module (import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))
        (memory (export \"memory\") 1) (func (export \"_start\") (call $exit (i32.const 4000000000))))";
    let hello = "(module (import \"wasi_snapshot_preview1\" \"fd_write\"
          (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export \"memory\") 1) (data (i32.const 0) \"\\08\\00\\00\\00\\06\\00\\00\\00hello\\n\")
        (func (export \"_start\")
          (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))))";
    let grows = "(module (memory 1) (func (export \"_start\")
        (if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))))";
    vec![
        ("exited", spec(exit)),
        (
            "trapped",
            spec("(module (func (export \"_start\") unreachable))"),
        ),
        (
            "memory_exceeded",
            spec(grows).resources(|r| r.memory_pages = Some(10)),
        ),
        (
            "fuel_exhausted",
            spec(spin).resources(|r| r.fuel_limit = Some(10_000)),
        ),
        ("stack_overflow", spec(deep)),
        ("timed_out", spec(spin).timeout(Duration::from_millis(20))),
        (
            "output_exceeded",
            spec(hello).resources(|r| r.output_limit = Some(3)),
        ),
    ]
}

/// A module that does nothing.
fn nothing() -> RunSpec {
    spec("(module (func (export \"_start\")))")
}

async fn run(client: &mut Client, spec: RunSpec) -> Result<(), tonic::Status> {
    client.run(RunRequest { spec: Some(spec) }).await.map(drop)
}

/// The trace that some runs belong to.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A message of a call that belongs to a trace.
fn in_trace<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    let metadata = request.metadata_mut();
    metadata.insert("traceparent", parent.parse().unwrap());
    request
}

/// Has runs of every ending, two that are refused, and one that its caller leaves, until the audit tells of it.
async fn have_runs(daemon: &Served, audit: &Path) {
    let mut client = connect(&daemon.addr).await;
    for (_, spec) in endings() {
        run(&mut client, spec).await.unwrap();
    }
    let missing = Some(nothing().entry("missing"));
    let refused = client.run(in_trace(RunRequest { spec: missing })).await;
    refused.unwrap_err();
    run(&mut client, nothing().timeout(Duration::from_secs(1 << 20)))
        .await
        .unwrap_err();
    let spec = Some(spec("(module (func (export \"_start\") (loop br 0)))"));
    let request = in_trace(RunStreamRequest { spec });
    let stream = client.run_stream(request).await.unwrap();
    drop(stream);
    let start = Instant::now();
    while !std::fs::read_to_string(audit)
        .unwrap()
        .contains("caller_gone")
    {
        assert!(start.elapsed() < PATIENCE, "it goes on");
        tokio::task::yield_now().await;
    }
}

/// Whether all endings are told, with their own fields.
fn are_all_told(lines: &[Line]) {
    let told = |name: &str| {
        lines
            .iter()
            .filter_map(|it| it.text(name))
            .collect::<Vec<_>>()
    };
    let mut outcomes = told("outcome");
    outcomes.sort_unstable();
    outcomes.dedup();
    let mut expected: Vec<&str> = endings().iter().map(|(name, _)| *name).collect();
    expected.push("cancelled");
    expected.sort_unstable();
    assert_eq!(outcomes, expected);
    assert!(told("cause").contains(&"caller_gone"));
    assert!(told("trap").contains(&"unreachable"));
    assert!(!told("fuel").is_empty());
    assert!(told("exit_code").contains(&"4000000000"));
    assert!(told("memory_denied").contains(&"true"));
    assert_eq!(told("field"), ["spec.entry_point", "spec.timeout"]);
    assert!(told("reason").contains(&"LIMIT_ABOVE_MAXIMUM"));
    // Of the runs that belong to one, and of no others.
    let with_trace = lines.iter().filter(|it| it.text("trace_id").is_some());
    let runs: std::collections::BTreeSet<_> = with_trace.map(|it| it.text("run_id")).collect();
    assert_eq!(runs.len(), 2);
    assert!(told("trace_id").iter().all(|it| *it == TRACE));
    assert!(lines.iter().all(|it| it.text("run_id").is_some()));
}

/// With the audit in a file, and, since it is named, in the log too.
async fn lines_are_as_tracing_writes_them(form: Form) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("audit");
    let set = [
        format!(
            "telemetry.log_format={}",
            if form == Form::Json { "json" } else { "text" }
        ),
        "telemetry.log_level=info,ringfence::audit=info".to_owned(),
        format!("telemetry.audit_file={}", path.display()),
    ];
    let args: Vec<&str> = set.iter().flat_map(|it| ["--set", it.as_str()]).collect();
    let daemon = Served::start(&args);
    have_runs(&daemon, &path).await;
    let (code, log) = daemon.end();
    assert_eq!(code, 0);
    let log = checked(&log, form);
    let audit = checked(&std::fs::read_to_string(&path).unwrap(), Form::Audit);
    let (in_log, of_runs): (Vec<Line>, Vec<Line>) =
        log.into_iter().partition(|it| it.message.is_empty());
    are_all_told(&of_runs);
    are_all_told(&audit);
    let ids = |lines: &[Line]| -> Vec<String> {
        let ids = lines.iter().filter_map(|it| it.text("run_id"));
        ids.map(str::to_owned).collect()
    };
    assert_eq!(ids(&in_log), ids(&audit));
    assert_eq!(of_runs.len(), endings().len() + 3);
}

cases! { lines_are_as_tracing_writes_them:
    lines_of_text_are_as_tracing_writes_them(Form::Text),
    lines_of_json_are_as_tracing_writes_them(Form::Json),
}

/// Of what the audit tells, callers choose the paths of mounts.
#[tokio::test]
async fn hostile_paths_are_told_as_tracing_tells_them() {
    let dir = TempDir::new().unwrap();
    let (path, data) = (dir.path().join("audit"), dir.path().join("data"));
    let names = [
        "\"}\n{\"event\":\"end\"",
        "back\\slash\\",
        "\u{1b}[31m\u{7}\u{7f}\u{9b}\r\t",
        "\u{202e}\u{2028}\u{200b}ünï\u{10ffff}",
        "{} {0} %s $x",
    ];
    for name in names {
        std::fs::create_dir_all(data.join(name)).unwrap();
    }
    let file = format!("telemetry.audit_file={}", path.display());
    let mounts = format!("policy.mounts=[{{ host = {data:?}, access = \"write\" }}]");
    let daemon = Served::start(&["--set", &file, "--set", &mounts]);
    let mut client = connect(&daemon.addr).await;
    let mut expected = Vec::new();
    for name in names {
        let host = data.join(name);
        expected.push(format!("write:{}", host.display()));
        run(&mut client, nothing().mount(&host, "/data", false))
            .await
            .unwrap();
    }
    assert_eq!(daemon.end().0, 0);
    let audit = checked(&std::fs::read_to_string(&path).unwrap(), Form::Audit);
    let told = audit.iter().filter_map(|it| it.text("mounts"));
    let told: Vec<&str> = told.filter(|it| !it.is_empty()).collect();
    assert_eq!(told, expected);
}

/// What of an ended and a refused run is in the log under `log_level`.
async fn filtered(log_level: &str) -> Vec<String> {
    let set = format!("telemetry.log_level={log_level}");
    let daemon = Served::start(&["--set", &set]);
    let mut client = connect(&daemon.addr).await;
    run(&mut client, nothing()).await.unwrap();
    run(&mut client, nothing().entry("missing"))
        .await
        .unwrap_err();
    let (code, log) = daemon.end();
    assert_eq!(code, 0);
    let lines = checked(&log, Form::Text).into_iter();
    lines.map(|it| it.message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn directives_say_which_lines_the_log_has() {
    // `ringfence::app` tells where it listens.
    let table: [(&str, &[&str]); 5] = [
        ("ringfence=debug", &["run ended", "run refused"]),
        (
            "off,ringfence::app=info,ringfence::run=info",
            &["run ended", "run refused"],
        ),
        ("warn,ringfence::app=info", &[]),
        ("info,ringfence::run=off", &[]),
        // Lines that have such a field.
        (
            "off,ringfence::app=info,ringfence::run[{field}]=info",
            &["run refused"],
        ),
    ];
    let daemons = table.map(|(log_level, _)| tokio::spawn(filtered(log_level)));
    for (daemon, (log_level, expected)) in daemons.into_iter().zip(table) {
        assert_eq!(daemon.await.unwrap(), expected, "{log_level}");
    }
}

/// As on a disk without room.
#[tokio::test]
async fn an_audit_without_room_holds_up_nobody_and_is_told() {
    let daemon = Served::start(&["--set", "telemetry.audit_file=/dev/full"]);
    let mut client = connect(&daemon.addr).await;
    for _ in 0..20 {
        run(&mut client, nothing()).await.unwrap();
    }
    let (code, log) = daemon.end();
    assert_eq!(code, 0);
    assert_eq!(checked(&log, Form::Text).len(), 20);
    // The two of each run, and those of the daemon's own, to the last.
    let told = log
        .lines()
        .filter(|it| it.contains("lines of the audit are lost"));
    let mut lost = told.filter_map(|it| it.split_once(" lost=")?.1.parse::<u64>().ok());
    assert!(lost.next_back().is_some_and(|it| it >= 2 * 20), "{log}");
}

fn fifo(path: &Path) {
    let made = std::process::Command::new("mkfifo").arg(path).status();
    assert!(made.unwrap().success());
}

/// More than a pipe holds waits for whoever reads it later, and is all there at a clean end.
#[tokio::test]
async fn lines_of_the_audit_wait_for_their_reader_and_none_is_lost() {
    const RUNS: usize = 150;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("audit");
    fifo(&path);
    let set = format!("telemetry.audit_file={}", path.display());
    let mut daemon = Served::start(&[
        "--set",
        &set,
        "--set",
        "telemetry.log_level=off,ringfence::app=info",
    ]);
    let mut client = connect(&daemon.addr).await;
    for _ in 0..RUNS {
        run(&mut client, nothing()).await.unwrap();
    }
    let mut reader = std::fs::File::open(&path).unwrap();
    daemon.signal("-TERM");
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(daemon.child.wait().unwrap().success());
    assert!(text.len() > 64 << 10, "all of it fits the pipe");
    let lines = checked(&text, Form::Audit);
    let ended = lines.iter().filter(|it| it.text("event") == Some("end"));
    assert_eq!((lines.len(), ended.count()), (2 * RUNS, RUNS));
}
