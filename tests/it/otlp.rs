//! Traces and guests' output in a collector: one connected trace for each call, every line in order, once where no answer
//! is lost, and a collector that is away, slow or refuses is nobody's concern.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use ringfence::api::proto::execution_service_client::ExecutionServiceClient;
use ringfence::api::proto::interact_request::Frame;
use ringfence::api::proto::{
    ExecuteRequest, ExecuteStreamRequest, ExecutionSpec, InteractRequest, RunRequest, RunResponse,
    RunSpec, RunStreamRequest, StdinEof,
};
use ringfence::app;
use ringfence::config::Overrides;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tonic::{Code, Request, Status};

use crate::admin::{ask, value};
use crate::auth::Authority;
use crate::collector::{Collector, Reply, attribute, body, hex, told};
use crate::execution::{CAT, VALUE};
use crate::harness::{
    Daemon, PATIENCE, Ran, SpecExt, channel, kit, kit_component, read, spec, told_id,
};
use crate::monitoring::{Ended, free_port};
use crate::process::{Served, ringfence};

const ADMIN: (&str, &str) = ("admin.listen", "[\"127.0.0.1:0\"]");
pub(crate) const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const OTHER: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "b7ad6b7169203331";

/// A daemon that exports to `collector`, with `set` besides.
async fn exporting(collector: &Collector, set: &[(&str, &str)]) -> Daemon {
    let url = collector.url();
    let all = [&[("telemetry.otlp_endpoint", url.as_str()), ADMIN], set].concat();
    Daemon::with(&all).await
}

/// A message of a call that is a part of a span of its caller, who records it or not.
pub(crate) fn traced<T>(message: T, trace_id: &str, flags: &str) -> Request<T> {
    let mut request = Request::new(message);
    let parent = format!("00-{trace_id}-{SPAN}-{flags}");
    let metadata = request.metadata_mut();
    metadata.insert("traceparent", parent.parse().unwrap());
    request
}

async fn run(daemon: &Daemon, request: Request<RunRequest>) -> Result<RunResponse, Status> {
    let answer = daemon.client.clone().run(request).await?;
    Ok(answer.into_inner())
}

/// Runs `spec` in a trace that its caller records, and returns the run's id.
async fn ran_in_trace(daemon: &Daemon, spec: RunSpec, trace_id: &str) -> String {
    let request = traced(RunRequest { spec: Some(spec) }, trace_id, "01");
    let ran = Ran::new(run(daemon, request).await.unwrap()).exited(0);
    ran.result.run_id
}

async fn metrics(daemon: &Daemon) -> String {
    ask(&daemon.admin, "GET", "/metrics", &[]).await.body
}

/// Waits until a series has a value, by asking.
async fn until_measured(daemon: &Daemon, series: &str, holds: impl Fn(f64) -> bool) {
    let begun = Instant::now();
    loop {
        let told = value(&metrics(daemon).await, series);
        if holds(told) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{series}: {told}");
    }
}

fn named<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let span = spans.iter().find(|it| it.name == name);
    span.unwrap_or_else(|| panic!("no {name} in {spans:#?}"))
}

/// The spans of a run that ended are one connected trace below the caller's span, and lie within each other.
#[track_caller]
fn are_connected(spans: &[Span], rpc: &str, parent: &str) {
    let call = named(spans, rpc);
    assert_eq!(hex(&call.parent_span_id), parent);
    assert_eq!(call.kind(), SpanKind::Server);
    let parts = ["module", "admission", "instantiate", "guest", "encode"];
    let names: BTreeSet<&str> = spans.iter().map(|it| it.name.as_str()).collect();
    assert_eq!(names, parts.into_iter().chain([rpc]).collect());
    let ids: BTreeSet<&[u8]> = spans.iter().map(|it| &*it.span_id).collect();
    assert_eq!(ids.len(), spans.len(), "each has its own id");
    for part in parts.map(|name| named(spans, name)) {
        assert_eq!(part.parent_span_id, call.span_id, "{}", part.name);
        assert_eq!(part.kind(), SpanKind::Internal, "{}", part.name);
        let times = [
            call.start_time_unix_nano,
            part.start_time_unix_nano,
            part.end_time_unix_nano,
            call.end_time_unix_nano,
        ];
        assert!(times.is_sorted(), "{}: {times:?}", part.name);
    }
    // One after the other.
    for pair in parts.windows(2) {
        let [before, after] = [named(spans, pair[0]), named(spans, pair[1])];
        let is_after = before.end_time_unix_nano <= after.start_time_unix_nano;
        assert!(is_after, "{before:?} {after:?}");
    }
    for span in spans {
        assert_eq!(hex(&span.trace_id), TRACE);
        assert_eq!(span.flags & 1, 1, "sampled");
        assert_eq!(span.status, None, "{}", span.name);
    }
}

#[tokio::test]
async fn a_call_with_a_traceparent_is_one_connected_trace() {
    let collector = Collector::start().await;
    // A ratio of none, since a parent decides alone.
    let daemon = exporting(&collector, &[("telemetry.otlp_ratio", "0")]).await;
    let spec = Some(kit(&["hello"]));
    let mut request = traced(RunRequest { spec }, TRACE, "01");
    let state = request.metadata_mut();
    state.append("tracestate", "one=1".parse().unwrap());
    state.append("tracestate", "two@vendor=a b".parse().unwrap());
    let ran = Ran::new(run(&daemon, request).await.unwrap()).exited(0);
    let spans = collector.spans(TRACE, 6).await;
    let rpc = "ringfence.v1.SandboxService/Run";
    are_connected(&spans, rpc, SPAN);
    let result = &ran.result;
    for span in &spans {
        assert_eq!(span.trace_state, "one=1,two@vendor=a b");
        let of = |key: &str| attribute(&span.attributes, key);
        assert_eq!(of("ringfence.run.id"), result.run_id);
        assert_eq!(of("ringfence.module.digest"), result.module_digest);
        assert_eq!(of("ringfence.tenant"), "default");
    }
    let call = told(&named(&spans, rpc).attributes);
    for (key, expected) in [
        ("rpc.system.name", "grpc"),
        ("rpc.method", rpc),
        ("rpc.response.status_code", "OK"),
        ("ringfence.outcome", "exited"),
        ("ringfence.exit_code", "0"),
    ] {
        assert_eq!(call[key], expected, "{key}");
    }
    let resource = collector.received().resource.clone();
    assert_eq!(resource["service.name"], "ringfence");
    assert_eq!(resource["service.instance.id"], "test");
    assert_eq!(resource["service.version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(daemon.get(&result.run_id).await.trace_id, TRACE);
    let series = "ringfence_otlp_exported_total{signal=\"spans\"}";
    until_measured(&daemon, series, |exported| exported == 6.0).await;
    until_measured(
        &daemon,
        "ringfence_otlp_queue_bytes{signal=\"spans\"}",
        |held| held == 0.0,
    )
    .await;
}

#[tokio::test]
async fn streams_and_programs_are_traced_as_runs_are() {
    let folder = TempDir::new().unwrap();
    let [cat, value] = ["cat.wat", "value.wat"].map(|name| folder.path().join(name));
    std::fs::write(&cat, CAT).unwrap();
    std::fs::write(&value, VALUE).unwrap();
    let languages = format!(
        "{{ cat = {{ module = {cat:?}, file = \"main.cat\" }}, value = {{ module = {value:?}, file = \"main\" }} }}"
    );
    let program = |language: &str| {
        Some(ExecutionSpec {
            language: language.to_owned(),
            code: "code".to_owned(),
            ..ExecutionSpec::default()
        })
    };
    for method in ["RunStream", "Interact", "Execute", "ExecuteStream"] {
        let collector = Collector::start().await;
        let daemon = exporting(&collector, &[("languages", &languages)]).await;
        let mut executions = ExecutionServiceClient::new(channel(&daemon.addr).await);
        let service = match method {
            "RunStream" => {
                let spec = Some(kit_component(&["hello"]));
                let request = traced(RunStreamRequest { spec }, TRACE, "01");
                let answer = daemon.client.clone().run_stream(request).await.unwrap();
                read(answer.into_inner()).await;
                "SandboxService"
            }
            "Interact" => {
                let start = Frame::Start(Box::new(kit_component(&["hello"])));
                let frames = [start, Frame::StdinEof(StdinEof {})];
                let frames = frames.map(|frame| InteractRequest { frame: Some(frame) });
                let request = traced(tokio_stream::iter(frames), TRACE, "01");
                let answer = daemon.runs().await.interact(request).await.unwrap();
                read(answer.into_inner()).await;
                "RunService"
            }
            "Execute" => {
                let spec = program("value");
                let request = traced(ExecuteRequest { spec }, TRACE, "01");
                executions.execute(request).await.unwrap();
                "ExecutionService"
            }
            _ => {
                let spec = program("cat");
                let request = traced(ExecuteStreamRequest { spec }, TRACE, "01");
                let answer = executions.execute_stream(request).await.unwrap();
                read(answer.into_inner()).await;
                "ExecutionService"
            }
        };
        let spans = collector.spans(TRACE, 6).await;
        are_connected(&spans, &format!("ringfence.v1.{service}/{method}"), SPAN);
    }
}

#[tokio::test]
async fn a_parent_decides_and_without_one_the_ratio_does() {
    let collector = Collector::start().await;
    let spec = || Some(kit(&["hello"]));
    let none = exporting(&collector, &[("telemetry.otlp_ratio", "0.0")]).await;
    let untraced = none.ran(kit(&["hello"])).await.exited(0);
    assert_eq!(none.get(&untraced.result.run_id).await.trace_id, "");
    ran_in_trace(&none, kit(&["hello"]), TRACE).await;
    collector.spans(TRACE, 6).await;
    // What was queued before has been sent before.
    assert_eq!(collector.received().spans.len(), 6);

    let all = exporting(&collector, &[]).await;
    let unsampled = traced(RunRequest { spec: spec() }, OTHER, "00");
    let unsampled = Ran::new(run(&all, unsampled).await.unwrap()).exited(0);
    assert_eq!(all.get(&unsampled.result.run_id).await.trace_id, OTHER);
    let ran = all.ran(kit(&["hello"])).await.exited(0);
    let trace_id = all.get(&ran.result.run_id).await.trace_id;
    assert_eq!(trace_id.len(), 32);
    let spans = collector.spans(&trace_id, 6).await;
    let call = named(&spans, "ringfence.v1.SandboxService/Run");
    assert_eq!(call.parent_span_id, Vec::<u8>::new(), "it begins here");
    assert_eq!(collector.received().spans.len(), 12);

    // What is no parent is as good as none: the trace is a new one.
    for parent in [
        format!("ff-{OTHER}-{SPAN}-01"),
        format!("00-{OTHER}-{SPAN}-01-more"),
        format!("00-{}-{SPAN}-01", "0".repeat(32)),
        format!("00-{OTHER}-{}-01", "0".repeat(16)),
        OTHER.to_uppercase(),
    ] {
        let mut request = Request::new(RunRequest { spec: spec() });
        let metadata = request.metadata_mut();
        metadata.insert("traceparent", parent.parse().unwrap());
        metadata.insert("tracestate", "a=b".parse().unwrap());
        let ran = Ran::new(run(&all, request).await.unwrap()).exited(0);
        let trace_id = all.get(&ran.result.run_id).await.trace_id;
        assert!(trace_id.len() == 32 && trace_id != OTHER, "{parent}");
        for span in collector.spans(&trace_id, 6).await {
            assert_eq!(span.trace_state, "", "{parent}");
        }
    }
}

#[tokio::test]
async fn without_a_collector_a_run_still_tells_its_trace() {
    let daemon = Daemon::start().await;
    let run_id = ran_in_trace(&daemon, kit(&["hello"]), TRACE).await;
    assert_eq!(daemon.get(&run_id).await.trace_id, TRACE);
    let ran = daemon.ran(kit(&["hello"])).await.exited(0);
    assert_eq!(daemon.get(&ran.result.run_id).await.trace_id, "");
}

#[tokio::test]
async fn a_refusal_is_an_error_of_the_call_and_of_where_it_happened() {
    let collector = Collector::start().await;
    let daemon = exporting(&collector, &[]).await;
    let spec = Some(kit(&["hello"]).entry("missing"));
    let request = traced(RunRequest { spec }, TRACE, "01");
    let status = run(&daemon, request).await.unwrap_err();
    let spans = collector.spans(TRACE, 2).await;
    let rpc = "ringfence.v1.SandboxService/Run";
    let (call, module) = (named(&spans, rpc), named(&spans, "module"));
    for span in [call, module] {
        let status = span.status.as_ref().unwrap();
        assert_eq!(status.code(), StatusCode::Error);
        let reason = attribute(&span.attributes, "error.type");
        assert_eq!(
            (status.message.as_str(), reason.as_str()),
            ("ENTRY_POINT_NOT_FOUND", "ENTRY_POINT_NOT_FOUND")
        );
    }
    let call = told(&call.attributes);
    assert_eq!(call["rpc.response.status_code"], "INVALID_ARGUMENT");
    assert_eq!(call["ringfence.reason"], "ENTRY_POINT_NOT_FOUND");
    assert_eq!(call["ringfence.run.id"], told_id(status.metadata()));

    // And one that is refused for what it says, before it is a run that looks for its module.
    let spec = Some(kit(&["hello"]).env(&["no equals sign"]));
    let request = traced(RunRequest { spec }, OTHER, "01");
    run(&daemon, request).await.unwrap_err();
    let spans = collector.spans(OTHER, 1).await;
    assert_eq!(
        named(&spans, rpc).status.as_ref().unwrap().message,
        "SPEC_INVALID"
    );
    // What a guest does is no error of the daemon.
    let trap = spec_of("unreachable");
    let trace = "11111111111111111111111111111111";
    let request = traced(RunRequest { spec: Some(trap) }, trace, "01");
    run(&daemon, request).await.unwrap();
    let spans = collector.spans(trace, 6).await;
    assert!(spans.iter().all(|it| it.status.is_none()));
    let outcome = attribute(&named(&spans, "guest").attributes, "ringfence.outcome");
    assert_eq!(outcome, "trapped");
}

#[tokio::test]
async fn a_call_whose_caller_leaves_is_told_as_cancelled() {
    let collector = Collector::start().await;
    let daemon = exporting(&collector, &[]).await;
    let request = traced(
        RunStreamRequest {
            spec: Some(kit(&["spin"])),
        },
        TRACE,
        "01",
    );
    let mut stream = daemon.client.clone().run_stream(request).await.unwrap();
    stream.get_mut().message().await.unwrap().unwrap();
    drop(stream);
    let rpc = "ringfence.v1.SandboxService/RunStream";
    let is_call = |span: &Span| span.name == rpc;
    collector
        .until(|received| received.spans.iter().any(is_call))
        .await;
    let received = collector.received();
    let call = received.spans.iter().find(|it| is_call(it)).unwrap();
    assert_ne!(attribute(&call.attributes, "ringfence.run.id"), "");
    let code = attribute(&call.attributes, "rpc.response.status_code");
    assert_eq!(code, "CANCELLED");
}

#[tokio::test]
async fn a_call_that_joins_another_run_has_a_trace_of_its_own_that_names_the_run() {
    let collector = Collector::start().await;
    let daemon = exporting(&collector, &[]).await;
    let spec = kit(&["hello"]).key("same");
    let first = ran_in_trace(&daemon, spec.clone(), TRACE).await;
    let second = ran_in_trace(&daemon, spec, OTHER).await;
    assert_eq!(first, second);
    collector.spans(TRACE, 6).await;
    let spans = collector.spans(OTHER, 1).await;
    let run_id = attribute(&spans[0].attributes, "ringfence.run.id");
    assert_eq!(run_id, first);
    assert_eq!(daemon.get(&first).await.trace_id, TRACE);
}

/// A core module whose start is `code`.
fn spec_of(code: &str) -> RunSpec {
    spec(format!("(module (func (export \"_start\") {code}))"))
}

/// A guest that makes these writes, each to standard output (1) or error (2).
pub(crate) fn writes(writes: &[(u32, &str)]) -> RunSpec {
    let (mut data, mut code, mut at) = (String::new(), String::new(), 1024);
    for (fd, text) in writes {
        let bytes: String = text.bytes().map(|byte| format!("\\{byte:02x}")).collect();
        data.push_str(&format!("(data (i32.const {at}) \"{bytes}\")\n"));
        let length = text.len();
        code.push_str(&format!(
            "(i32.store (i32.const 0) (i32.const {at})) (i32.store (i32.const 4) (i32.const {length}))
            (drop (call $write (i32.const {fd}) (i32.const 0) (i32.const 1) (i32.const 8)))\n"
        ));
        at += length;
    }
    spec(format!(
        "(module (import \"wasi_snapshot_preview1\" \"fd_write\"
            (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export \"memory\") 16) {data} (func (export \"_start\") {code}))"
    ))
}

/// The stream and the text of each record, in the order in which they came.
fn lines(records: &[LogRecord]) -> Vec<(String, String)> {
    let line = |it: &LogRecord| {
        let stream = attribute(&it.attributes, "log.iostream");
        (stream, body(it).to_owned())
    };
    records.iter().map(line).collect()
}

fn out(text: &str) -> (String, String) {
    ("stdout".to_owned(), text.to_owned())
}

fn err(text: &str) -> (String, String) {
    ("stderr".to_owned(), text.to_owned())
}

const OUTPUT: (&str, &str) = ("telemetry.export_output", "true");

#[tokio::test]
async fn output_is_a_record_for_each_line_in_order() {
    let collector = Collector::start().await;
    let set = [
        OUTPUT,
        ("telemetry.export_labels", "[\"team\", \"unused\"]"),
    ];
    let daemon = exporting(&collector, &set).await;
    let long = "é".repeat(20_000);
    let spec = writes(&[
        (1, "one\ntw"),
        (2, "err\n"),
        (1, "o\n\nthree\n"),
        (2, "la"),
        (1, &long),
        (2, "st"),
        (1, "\nend"),
    ]);
    let spec = spec.label("team", "blue").label("secret", "value");
    let run_id = ran_in_trace(&daemon, spec, TRACE).await;
    // The long line has 40,000 bytes, and is cut twice.
    let logs = collector.logs(&run_id, |logs| logs.len() >= 10).await;
    let told_lines = lines(&logs);
    let (parts, others): (Vec<_>, Vec<_>) = told_lines
        .into_iter()
        .partition(|(_, text)| text.contains('é'));
    let joined: String = parts.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(joined, long);
    assert!(parts.iter().all(|(_, text)| text.len() <= 16 << 10));
    let expected = [
        out("one"),
        err("err"),
        out("two"),
        out(""),
        out("three"),
        out("end"),
        err("last"),
    ];
    assert_eq!(others, expected);
    assert_eq!(parts.len(), 3);

    let spans = collector.spans(TRACE, 6).await;
    let guest = named(&spans, "guest");
    let run = daemon.get(&run_id).await;
    for (number, record) in (1..).zip(&logs) {
        let of = told(&record.attributes);
        assert_eq!(of["ringfence.output.line"], number.to_string());
        assert_eq!(of["ringfence.module.digest"], run.module_digest);
        assert_eq!(of["ringfence.tenant"], "default");
        assert_eq!(of["ringfence.label.team"], "blue");
        let labels = of.keys().filter(|key| key.starts_with("ringfence.label."));
        assert_eq!(labels.count(), 1, "{of:?}");
        assert_eq!(hex(&record.trace_id), TRACE);
        assert_eq!(record.span_id, guest.span_id);
        assert_eq!(record.flags & 1, 1);
        assert!(record.observed_time_unix_nano > 0);
        assert_eq!(record.time_unix_nano, record.observed_time_unix_nano);
    }
    let times = logs.iter().map(|it| it.time_unix_nano);
    // The last line of a stream, which has no end, is told at the end of the run.
    assert!(times.is_sorted());
}

#[tokio::test]
async fn every_line_of_much_output_arrives_once_and_in_order() {
    let collector = Collector::start().await;
    let daemon = exporting(&collector, &[OUTPUT]).await;
    // 2 MiB by lines of 7 to 1,006 bytes: lines lie across every border of pieces and requests.
    let text: String = (0..4200)
        .map(|i| format!("{i:06}{}\n", "x".repeat(i * 7919 % 1000)))
        .collect();
    let spec = kit(&["echo"]).stdin(text.clone());
    let spec = spec.resources(|it| it.output_limit = Some(4 << 20));
    let ran = daemon.ran(spec).await.exited(0);
    assert_eq!(ran.out(), text);
    let run_id = &ran.result.run_id;
    let logs = collector.logs(run_id, |logs| logs.len() >= 4200).await;
    let arrived: String = logs.iter().map(|it| body(it).to_owned() + "\n").collect();
    assert!(arrived == text, "{} lines", logs.len());
    // Both streams of a guest, each line as it was written.
    let ran = daemon.ran(kit(&["both", "1000"])).await.exited(0);
    let run_id = &ran.result.run_id;
    let logs = collector.logs(run_id, |logs| logs.len() >= 2000).await;
    let expected = (0..1000).flat_map(|i| [out(&format!("out {i}")), err(&format!("err {i}"))]);
    assert_eq!(lines(&logs), expected.collect::<Vec<_>>());
}

#[tokio::test]
async fn output_that_is_not_kept_is_not_exported() {
    let collector = Collector::start().await;
    let daemon = exporting(&collector, &[OUTPUT]).await;
    let mut secret = writes(&[(1, "canary-unkept\n"), (2, "canary-unkept")]);
    secret.keep_output = Some(false);
    daemon.ran(secret).await.exited(0);
    let ran = daemon.ran(writes(&[(1, "kept")])).await.exited(0);
    // What was queued before has been sent before.
    collector
        .logs(&ran.result.run_id, |logs| logs.len() == 1)
        .await;
    let received = collector.received();
    assert_eq!(received.logs.len(), 1);
    assert!(!contains(&received.wire, "canary"));
}

/// Whether bytes have a text in them.
fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|it| it == text.as_bytes())
}

#[tokio::test]
async fn nothing_of_a_run_is_exported_but_output_and_that_only_if_it_is_asked_for() {
    for exports in [false, true] {
        let collector = Collector::start().await;
        let set = [(
            "telemetry.export_output",
            if exports { "true" } else { "false" },
        )];
        let daemon = exporting(&collector, &set).await;
        let spec = kit(&["echo", "canary-arg"])
            .env(&["KEY=canary-env"])
            .stdin("canary-output\n")
            .label("canary-key", "canary-label")
            .key("canary-idempotency");
        ran_in_trace(&daemon, spec, TRACE).await;
        // And a refusal, whose message shows what was given.
        let refused = kit(&["hello"]).entry("canary-entry");
        let request = traced(
            RunRequest {
                spec: Some(refused),
            },
            OTHER,
            "01",
        );
        run(&daemon, request).await.unwrap_err();
        collector.spans(TRACE, 6).await;
        collector.spans(OTHER, 2).await;
        let marker = daemon.ran(writes(&[(1, "marker\n")])).await.exited(0);
        if exports {
            collector
                .logs(&marker.result.run_id, |logs| logs.len() == 1)
                .await;
        }
        let received = collector.received();
        for what in ["arg", "env", "key", "label", "idempotency", "entry"] {
            let canary = format!("canary-{what}");
            assert!(!contains(&received.wire, &canary), "{canary}");
        }
        assert_eq!(contains(&received.wire, "canary-output"), exports);
    }
}

/// A daemon whose collector is at `url`, with a small queue.
pub(crate) async fn without_collector(url: &str) -> Daemon {
    let set = [
        ("telemetry.otlp_endpoint", url),
        ("telemetry.otlp_queue", "64KiB"),
        OUTPUT,
        ADMIN,
    ];
    Daemon::with(&set).await
}

/// Runs guests until spans and output were dropped for a reason, and then ends the daemon, which does not wait for its
/// collector.
pub(crate) async fn notices_nothing(daemon: Daemon, reason: &str) {
    let begun = Instant::now();
    loop {
        let ran = daemon.ran(kit(&["count", "100", "100"])).await.exited(0);
        assert_eq!(ran.stdout.len(), 100 * 101);
        let metrics = metrics(&daemon).await;
        let dropped = ["spans", "log_records"].map(|signal| {
            let of_signal = format!("signal=\"{signal}\"");
            let held = value(
                &metrics,
                &format!("ringfence_otlp_queue_bytes{{{of_signal}}}"),
            );
            assert!(held <= f64::from(64 << 10), "{signal}: {held}");
            let dropped =
                format!("ringfence_otlp_dropped_total{{{of_signal},reason=\"{reason}\"}}");
            value(&metrics, &dropped)
        });
        // What has found no room is told in bytes too.
        let bytes = value(&metrics, "ringfence_otlp_dropped_output_bytes_total");
        let is_told = reason != "queue_full" || bytes > 0.0;
        if dropped.iter().all(|count| *count > 0.0) && is_told {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "nothing is dropped");
    }
    let ready = ask(&daemon.admin, "GET", "/readyz", &[]).await;
    assert_eq!(ready.status, 200, "{ready:?}");
    let mut daemon = daemon;
    daemon.drain();
    let ended = tokio::time::timeout(PATIENCE / 4, daemon.ended()).await;
    ended.expect("it waits for its collector").unwrap();
}

#[tokio::test]
async fn a_collector_that_is_not_there_is_nobodys_concern() {
    let url = format!("http://127.0.0.1:{}", free_port());
    let daemon = without_collector(&url).await;
    let failures = "ringfence_otlp_export_failures_total{signal=\"spans\"}";
    daemon.ran(kit(&["hello"])).await.exited(0);
    until_measured(&daemon, failures, |count| count > 0.0).await;
    notices_nothing(daemon, "queue_full").await;
}

#[tokio::test]
async fn a_collector_that_never_answers_is_nobodys_concern() {
    let collector = Collector::start().await;
    collector.reply(Reply::Never);
    let daemon = without_collector(&collector.url()).await;
    notices_nothing(daemon, "queue_full").await;
    assert!(collector.received().spans.is_empty());
}

#[tokio::test]
async fn what_a_collector_refuses_is_dropped_and_counted() {
    let collector = Collector::start().await;
    collector.reply(Reply::Fail(Code::InvalidArgument));
    let daemon = exporting(&collector, &[]).await;
    let dropped = |reason: &str| {
        format!("ringfence_otlp_dropped_total{{signal=\"spans\",reason=\"{reason}\"}}")
    };
    daemon.ran(kit(&["hello"])).await.exited(0);
    until_measured(&daemon, &dropped("rejected"), |count| count == 6.0).await;
    // Of what it takes it may reject a part.
    collector.reply(Reply::Reject(2));
    daemon.ran(kit(&["hello"])).await.exited(0);
    let exported = "ringfence_otlp_exported_total{signal=\"spans\"}";
    until_measured(&daemon, &dropped("rejected"), |count| count > 6.0).await;
    let metrics = metrics(&daemon).await;
    let (rejected, exported) = (
        value(&metrics, &dropped("rejected")),
        value(&metrics, exported),
    );
    assert!(rejected >= 8.0 && exported > 0.0, "{rejected} {exported}");
    assert_eq!(value(&metrics, &dropped("undelivered")), 0.0);
}

#[tokio::test]
async fn what_a_collector_has_no_room_for_is_sent_again_when_it_says_so_and_only_then() {
    let collector = Collector::start().await;
    collector.reply(Reply::Fail(Code::ResourceExhausted));
    let daemon = exporting(&collector, &[]).await;
    daemon.ran(kit(&["hello"])).await.exited(0);
    let rejected = "ringfence_otlp_dropped_total{signal=\"spans\",reason=\"rejected\"}";
    until_measured(&daemon, rejected, |count| count == 6.0).await;
    let before = collector.received().at.len();
    let after = Duration::from_secs(2);
    collector.reply(Reply::Throttle(after));
    ran_in_trace(&daemon, kit(&["hello"]), TRACE).await;
    collector.spans(TRACE, 6).await;
    let received = collector.received();
    let waited = received.at[before + 1] - received.at[before];
    assert!(waited >= after, "{waited:?}");
    // It is told how long it may take, too.
    assert!(
        received
            .headers
            .iter()
            .all(|it| it.contains_key("grpc-timeout"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_collector_says_of_what_it_takes_is_logged() {
    for (rejected, parts) in [
        (
            2,
            ["does not take all that is exported", "2 are rejected: "],
        ),
        (0, ["takes what is exported, and has a warning", ""]),
    ] {
        let collector = Collector::start().await;
        collector.reply(Reply::Reject(rejected));
        let set = format!("telemetry.otlp_endpoint={}", collector.url());
        let mut daemon = Served::start(&["--set", &set]);
        let mut client = crate::harness::connect(&daemon.addr).await;
        let spec = Some(kit(&["hello"]));
        let answer = client.run(traced(RunRequest { spec }, TRACE, "01")).await;
        Ran::new(answer.unwrap().into_inner()).exited(0);
        let line = tokio::task::block_in_place(|| {
            let mut line = String::new();
            while !line.contains("the collector of telemetry.otlp_endpoint") {
                line.clear();
                assert!(daemon.log.read_line(&mut line).unwrap() > 0, "it ended");
            }
            line
        });
        for part in parts.iter().chain(&["as a test says"]) {
            assert!(line.contains(part), "{part} in {line}");
        }
    }
}

#[tokio::test]
async fn a_collector_that_comes_back_gets_what_waited_for_it_once() {
    let collector = Collector::start().await;
    collector.reply(Reply::Fail(Code::Unavailable));
    let daemon = exporting(&collector, &[]).await;
    ran_in_trace(&daemon, kit(&["hello"]), TRACE).await;
    let failures = "ringfence_otlp_export_failures_total{signal=\"spans\"}";
    until_measured(&daemon, failures, |count| count >= 2.0).await;
    collector.reply(Reply::Take);
    let spans = collector.spans(TRACE, 6).await;
    are_connected(&spans, "ringfence.v1.SandboxService/Run", SPAN);
    // A later trace comes after it, and nothing comes twice.
    ran_in_trace(&daemon, kit(&["hello"]), OTHER).await;
    collector.spans(OTHER, 6).await;
    assert_eq!(collector.received().spans.len(), 12);
}

#[tokio::test]
async fn a_run_tells_how_much_of_its_output_was_dropped() {
    let collector = Collector::start().await;
    collector.reply(Reply::Fail(Code::Unavailable));
    let set = [
        OUTPUT,
        ("telemetry.otlp_queue", "64KiB"),
        ("telemetry.otlp_ratio", "0"),
    ];
    let daemon = exporting(&collector, &set).await;
    let spec = kit(&["count", "5000", "99"]);
    let ran = daemon.ran(spec).await.exited(0);
    assert_eq!(ran.stdout.len(), 5000 * 100);
    collector.reply(Reply::Take);
    let key = "ringfence.output.dropped_bytes";
    let dropped = |logs: &[LogRecord]| {
        let told = logs.iter().map(|it| attribute(&it.attributes, key));
        told.filter_map(|it| it.parse::<usize>().ok()).next()
    };
    let run_id = &ran.result.run_id;
    let logs = collector.logs(run_id, |logs| dropped(logs).is_some()).await;
    let (last, lines) = logs.split_last().unwrap();
    assert!(dropped(lines).is_none(), "it is told once, at the end");
    let dropped = dropped(std::slice::from_ref(last)).unwrap();
    let arrived: usize = lines.iter().map(|it| body(it).len() + 1).sum();
    assert_eq!(arrived + dropped, ran.stdout.len());
    assert!(arrived > 0 && dropped > 0, "{arrived} {dropped}");
    assert!(body(last).contains(&dropped.to_string()), "{last:?}");
    // What arrived are whole lines, in order.
    let mut written = ran.out().lines();
    for line in lines {
        assert!(written.any(|it| it == body(line)), "{line:?}");
    }
}

#[tokio::test]
async fn what_is_left_is_exported_before_the_daemon_ends() {
    let collector = Collector::start().await;
    let mut daemon = exporting(&collector, &[OUTPUT]).await;
    let mut runs = Vec::new();
    for _ in 0..20 {
        runs.push(ran_in_trace(&daemon, kit(&["hello"]), TRACE).await);
    }
    daemon.drain();
    daemon.ended().await.unwrap();
    let received = collector.received();
    assert_eq!(received.spans.len(), 20 * 6);
    for run_id in runs {
        let is_of_run = |it: &&LogRecord| attribute(&it.attributes, "ringfence.run.id") == run_id;
        assert_eq!(received.logs.iter().filter(is_of_run).count(), 1);
    }
}

#[tokio::test]
async fn a_token_for_the_collector_is_read_again_and_never_logged() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("headers");
    std::fs::write(
        &path,
        "# a comment\nauthorization: Bearer secret-one\nX-Scope: a\n",
    )
    .unwrap();
    let collector = Collector::start().await;
    let set = [
        format!("telemetry.otlp_endpoint={}", collector.url()),
        format!("telemetry.otlp_headers_file={}", path.display()),
        "telemetry.log_level=debug".to_owned(),
    ];
    let args: Vec<&str> = set.iter().flat_map(|it| ["--set", it.as_str()]).collect();
    let mut daemon = Served::start(&args);
    let log = daemon.drain_log();
    let mut client = crate::harness::connect(&daemon.addr).await;
    let mut run = async |trace_id: &str| {
        let spec = Some(kit(&["hello"]));
        let request = traced(RunRequest { spec }, trace_id, "01");
        client.run(request).await.unwrap();
    };
    let last = || {
        let received = collector.received();
        let headers = received.headers.last().unwrap();
        let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
        [header("authorization"), header("x-scope")]
    };
    run(TRACE).await;
    collector.spans(TRACE, 6).await;
    assert_eq!(last(), ["Bearer secret-one", "a"]);
    std::fs::write(&path, "authorization: Bearer secret-two\nx-scope: b\n").unwrap();
    run(OTHER).await;
    collector.spans(OTHER, 6).await;
    assert_eq!(last(), ["Bearer secret-two", "b"]);
    daemon.signal("-TERM");
    daemon.child.wait().unwrap();
    let log = log.join().unwrap();
    assert!(log.contains("run ended") && log.contains(TRACE), "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_is_believed_if_an_authority_of_the_host_vouches_for_it() {
    let folder = TempDir::new().unwrap();
    let [ours, foreign] = ["ours", "foreign"].map(Authority::new);
    let trusted = folder.path().join("trusted.pem");
    std::fs::write(&trusted, ours.pem()).unwrap();
    let env = [("SSL_CERT_FILE", trusted.to_str().unwrap())];
    for (authority, is_believed) in [(&ours, true), (&foreign, false)] {
        let collector = Collector::with_tls(authority.issue(&["localhost"])).await;
        let url = format!("https://localhost:{}", collector.addr.port());
        let set = format!("telemetry.otlp_endpoint={url}");
        let mut daemon = Served::with(&["--set", &set], &env);
        let mut client = crate::harness::connect(&daemon.addr).await;
        let spec = Some(kit(&["hello"]));
        let answer = client.run(traced(RunRequest { spec }, TRACE, "01")).await;
        Ran::new(answer.unwrap().into_inner()).exited(0);
        if is_believed {
            collector.spans(TRACE, 6).await;
            continue;
        }
        // The log says why nothing arrives. It is read beside the collector, which shakes hands meanwhile.
        let line = tokio::task::block_in_place(|| {
            let mut line = String::new();
            while !line.contains("does not take what is exported") {
                line.clear();
                assert!(daemon.log.read_line(&mut line).unwrap() > 0, "it ended");
            }
            line
        });
        assert!(
            line.contains("UnknownIssuer") && line.contains(&url),
            "{line}"
        );
        assert!(collector.received().spans.is_empty());
    }
}

/// A port whose first connection is accepted and hears nothing. Those that come later reach `collector`.
async fn silent_at_first(collector: SocketAddr) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let _silent = listener.accept().await.unwrap();
        let mut forwarded = JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            forwarded.spawn(async move {
                let mut server = TcpStream::connect(collector).await.unwrap();
                // Either of them may end it.
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, served)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_shakes_no_hands_is_connected_to_again() {
    let folder = TempDir::new().unwrap();
    let authority = Authority::new("ours");
    let trusted = folder.path().join("trusted.pem");
    std::fs::write(&trusted, authority.pem()).unwrap();
    let env = [("SSL_CERT_FILE", trusted.to_str().unwrap())];
    let collector = Collector::with_tls(authority.issue(&["localhost"])).await;
    let (port, served) = silent_at_first(collector.addr).await;
    let set = format!("telemetry.otlp_endpoint=https://localhost:{port}");
    let daemon = Served::with(&["--set", &set], &env);
    let mut client = crate::harness::connect(&daemon.addr).await;
    let spec = Some(kit(&["hello"]));
    let answer = client.run(traced(RunRequest { spec }, TRACE, "01")).await;
    Ran::new(answer.unwrap().into_inner()).exited(0);
    collector.spans(TRACE, 6).await;
    served.abort();
}

#[test]
fn a_file_of_headers_that_has_a_fault_is_told_by_its_line() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("headers");
    std::fs::write(&path, "x-scope: a\nsecret\n").unwrap();
    let refused = ringfence()
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(["--set", "telemetry.otlp_endpoint=http://127.0.0.1:4317"])
        .arg("--set")
        .arg(format!("telemetry.otlp_headers_file={}", path.display()))
        .output()
        .unwrap();
    assert!(!refused.status.success());
    let why = String::from_utf8(refused.stderr).unwrap();
    assert!(why.contains("telemetry.otlp_headers_file: "), "{why}");
    assert!(why.contains("line 2 is not a header"), "{why}");
    assert!(!why.contains("secret"), "{why}");
}

#[test]
fn settings_that_fit_nothing_are_refused_by_name() {
    let endpoint = ("telemetry.otlp_endpoint", "http://127.0.0.1:4317");
    let labels = format!("{:?}", vec!["k"; 33]);
    let none = "/there/is/no/such/file";
    for (set, parts) in [
        (
            vec![("telemetry.otlp_endpoint", "http://user:secret@host:1")],
            vec!["telemetry.otlp_endpoint", "without credentials"],
        ),
        (
            vec![("telemetry.otlp_endpoint", "http://host:4317/v1/traces")],
            vec!["telemetry.otlp_endpoint", "without a path"],
        ),
        (
            vec![("telemetry.otlp_endpoint", "host:4317")],
            vec!["telemetry.otlp_endpoint", "\"http://host:port\""],
        ),
        (
            vec![("telemetry.otlp_ratio", "1.5")],
            vec!["telemetry.otlp_ratio = 1.5", "from 0 to 1"],
        ),
        (
            vec![("telemetry.otlp_queue", "1KiB")],
            vec!["telemetry.otlp_queue", "64KiB", "1GiB"],
        ),
        (
            vec![("telemetry.export_output", "true")],
            vec!["telemetry.export_output", "otlp_endpoint is empty"],
        ),
        (
            vec![endpoint, ("telemetry.export_labels", "[\"team\"]")],
            vec!["telemetry.export_labels", "export_output is false"],
        ),
        (
            vec![endpoint, OUTPUT, ("telemetry.export_labels", &labels)],
            vec!["telemetry.export_labels = 33 keys", "at most 32 keys"],
        ),
        (
            vec![
                endpoint,
                OUTPUT,
                ("telemetry.export_labels", "[\"ringfence.x\"]"),
            ],
            vec!["telemetry.export_labels = ringfence.x", "\"ringfence.\""],
        ),
        (
            vec![endpoint, ("telemetry.otlp_headers_file", none)],
            vec!["telemetry.otlp_headers_file", none, "a file that exists"],
        ),
        (
            vec![("telemetry.otlp_headers_file", none)],
            vec!["telemetry.otlp_headers_file", "otlp_endpoint is empty"],
        ),
    ] {
        let owned = set
            .iter()
            .map(|(key, value)| ((*key).into(), (*value).into()));
        let overrides = Overrides {
            set: owned.collect(),
            ..Overrides::default()
        };
        let refused = app::load_config(&overrides).expect_err("it is not valid");
        let refused = refused.to_string();
        for part in parts {
            assert!(refused.contains(part), "{part} in {refused}");
        }
        assert!(!refused.contains("secret"), "{refused}");
    }
}

/// By way of a collector that nobody here wrote, rotel from PyPI, which forwards what it takes.
#[tokio::test]
async fn rotel_takes_traces_and_output_and_forwards_them() {
    let Some(python) = crate::interop::venv("rotel", &["rotel==0.0.1a15"]).await else {
        return;
    };
    let mut find = std::process::Command::new(&python);
    let script =
        "import os, rotel; print(os.path.join(os.path.dirname(rotel.__file__), 'rotel-agent'))";
    find.args(["-c", script]);
    let agent = crate::interop::succeeded(&crate::interop::output(find).await, "rotel");
    let collector = Collector::start().await;
    // It compresses what it forwards, whatever it is told, and the collector does not unpack.
    let mut sink = Ended(
        std::process::Command::new(python)
            .arg(crate::guests::root().join("tests/interop/otlp_sink.py"))
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let mut lines = std::io::BufReader::new(sink.0.stdout.take().unwrap());
    let mut port = String::new();
    lines.read_line(&mut port).unwrap();
    collector.keep_lines(lines);
    let folder = TempDir::new().unwrap();
    let [grpc, http] = [free_port(), free_port()];
    let _rotel = Ended(
        crate::process::interruptible(agent.trim())
            .arg("start")
            .arg("--otlp-grpc-endpoint")
            .arg(format!("127.0.0.1:{grpc}"))
            .arg("--otlp-http-endpoint")
            .arg(format!("127.0.0.1:{http}"))
            .args(["--exporter", "otlp", "--otlp-exporter-protocol", "http"])
            .arg("--otlp-exporter-endpoint")
            .arg(format!("http://127.0.0.1:{}", port.trim()))
            .arg("--pid-file")
            .arg(folder.path().join("pid"))
            .arg("--log-file")
            .arg(folder.path().join("log"))
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap(),
    );
    let url = format!("http://127.0.0.1:{grpc}");
    // It may not listen yet: what it does not take is sent again.
    let daemon = Daemon::with(&[("telemetry.otlp_endpoint", &url), OUTPUT]).await;
    let run_id = ran_in_trace(&daemon, kit(&["count", "1000", "80"]), TRACE).await;
    let spans = collector.spans(TRACE, 6).await;
    are_connected(&spans, "ringfence.v1.SandboxService/Run", SPAN);
    let logs = collector.logs(&run_id, |logs| logs.len() >= 1000).await;
    let number = |it: &LogRecord| -> usize {
        let number = attribute(&it.attributes, "ringfence.output.line");
        number.parse().unwrap()
    };
    // What it puts into one request is in order. Two requests may pass each other at a sink with a thread for each.
    let mut numbers: Vec<usize> = logs.iter().map(number).collect();
    let mut rest = &numbers[..];
    let together = collector.received().logs_together.clone();
    assert!(together.iter().any(|count| *count > 1), "{together:?}");
    for together in &together {
        let (of_request, after) = rest.split_at(*together);
        assert!(of_request.is_sorted(), "{of_request:?}");
        rest = after;
    }
    assert!(rest.is_empty(), "there is no other run");
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=1000).collect::<Vec<_>>());
    for record in &logs {
        let number = attribute(&record.attributes, "ringfence.output.line");
        let line = number.parse::<usize>().unwrap() - 1;
        assert_eq!(body(record), format!("{:80}", format!("line {line}")));
        assert_eq!(hex(&record.trace_id), TRACE);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_confined_daemon_reaches_its_collector() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: another user can only be become by root");
        return;
    }
    let collector = Collector::start().await;
    let folder = TempDir::new().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), open).unwrap();
    let headers = folder.path().join("headers");
    std::fs::write(&headers, "x-scope: confined\n").unwrap();
    let set = [
        "hardening.mode=require".to_owned(),
        "hardening.user=65534:65534".to_owned(),
        format!("telemetry.otlp_endpoint={}", collector.url()),
        format!("telemetry.otlp_headers_file={}", headers.display()),
        "telemetry.export_output=true".to_owned(),
    ];
    let args: Vec<&str> = set.iter().flat_map(|it| ["--set", it.as_str()]).collect();
    let mut daemon = Served::start(&args);
    let log = daemon.drain_log();
    let mut client = crate::harness::connect(&daemon.addr).await;
    let spec = Some(kit(&["hello"]));
    let answer = client.run(traced(RunRequest { spec }, TRACE, "01")).await;
    let ran = Ran::new(answer.unwrap().into_inner()).exited(0);
    collector.spans(TRACE, 6).await;
    let logs = collector
        .logs(&ran.result.run_id, |logs| logs.len() == 1)
        .await;
    assert_eq!(body(&logs[0]), "hello");
    let scope = collector.received().headers[0].get("x-scope").cloned();
    assert_eq!(scope.unwrap(), "confined");
    drop(client);
    daemon.signal("-TERM");
    assert_eq!(daemon.child.wait().unwrap().code(), Some(0));
    let log = log.join().unwrap();
    assert!(!log.contains("ERROR"), "{log}");
    assert!(!log.contains("does not take what is exported"), "{log}");
}
