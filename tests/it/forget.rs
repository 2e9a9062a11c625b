//! What is forgotten on request: output that is not to be kept, and runs that are deleted; and how runs are selected by
//! time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use prost_types::Timestamp;
use ringfence::api::proto::execution_service_client::ExecutionServiceClient;
use ringfence::api::proto::interact_request::Frame;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::watch_runs_response::Event as News;
use ringfence::api::proto::{
    AttachRunRequest, DeleteRunsRequest, DeleteRunsResponse, ExecuteRequest, ExecuteStreamRequest,
    ExecutionSpec, GetRunRequest, InteractRequest, ListRunsRequest, Outcome, RunInfo, RunRequest,
    RunResult, RunSpec, RunState, SendInputRequest, StreamEvent, WatchRunsRequest,
};
use serde_json::Value;
use tempfile::TempDir;
use tonic::{Code, Status, Streaming};

use crate::admin;
use crate::guests::kit as kit_bytes;
use crate::harness::{
    Daemon, PATIENCE, Refused, SpecExt, by_digest, channel, connect, kit, load, read, spec, until,
};
use crate::process::Served;
use crate::tenants::two;

const CANARY: &str = "canary-8d1c02b7";
const ADMIN: (&str, &str) = ("admin.listen", "[\"127.0.0.1:0\"]");

fn has_canary(bytes: &[u8]) -> bool {
    bytes
        .windows(CANARY.len())
        .any(|it| it == CANARY.as_bytes())
}

/// A run of the kit of whose output nothing is to be kept.
fn unkept(args: &[&str]) -> RunSpec {
    kit(args).change(|spec| spec.keep_output = Some(false))
}

/// Everything that a viewer from the start is told.
async fn events_of(mut stream: Streaming<StreamEvent>) -> Vec<StreamEvent> {
    let mut events = Vec::new();
    while let Some(event) = stream.message().await.expect("the stream does not break") {
        events.push(event);
    }
    events
}

/// Bytes of output and of files in events.
fn output_of(events: &[StreamEvent]) -> Vec<u8> {
    let bytes = events.iter().filter_map(|event| match &event.event {
        Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => Some(bytes.to_vec()),
        Some(Event::File(chunk)) => Some([chunk.path.as_bytes(), &chunk.data].concat()),
        _ => None,
    });
    bytes.collect::<Vec<_>>().concat()
}

/// How many events were lost, of those that come after the start.
fn lost_of(events: &[StreamEvent]) -> u64 {
    let lost = events.iter().filter_map(|event| match &event.event {
        Some(Event::Lost(lost)) => Some(lost.count),
        _ => None,
    });
    lost.sum()
}

fn exit_of(events: &[StreamEvent]) -> &RunResult {
    match events.last().and_then(|event| event.event.as_ref()) {
        Some(Event::Exit(result)) => result,
        other => panic!("{other:?}"),
    }
}

/// Checks that nothing of the output of an ended run is there, and that what else is known of it
/// is. The daemon has no other output.
async fn is_forgotten(daemon: &Daemon, result: &RunResult) {
    let id = &result.run_id;
    assert_eq!(daemon.probe.remembered().0, 0, "bytes of all event logs");
    // Twice: it is made whole for each reader.
    for _ in 0..2 {
        let events = events_of(daemon.attach(id, 0).await).await;
        assert!(output_of(&events).is_empty(), "{events:?}");
        let [started, lost, exit] = &events[..] else {
            panic!("{events:?}");
        };
        assert!(matches!(started.event, Some(Event::Started(_))));
        let Some(Event::Lost(lost)) = &lost.event else {
            panic!("{lost:?}");
        };
        assert_eq!((lost.first_seq, lost.first_seq + lost.count), (1, exit.seq));
        assert_eq!(exit_of(&events), result);
        let info = daemon.get(id).await;
        assert_eq!(
            (info.state(), info.next_seq),
            (RunState::Ended, exit.seq + 1)
        );
        let usage = info.usage.unwrap();
        assert_eq!(
            (usage.stdout_bytes, usage.stderr_bytes),
            (result.stdout_bytes, result.stderr_bytes)
        );
    }
}

#[tokio::test]
async fn output_that_is_not_kept_is_nowhere_once_its_caller_was_told() {
    let daemon = Daemon::start().await;
    let dump = || unkept(&["dump", CANARY]);
    let ran = daemon.ran(dump()).await.exited(0);
    assert!(has_canary(&ran.stdout));
    is_forgotten(&daemon, &ran.result).await;
    let ran = daemon.ran(dump().key("k")).await.exited(0);
    assert!(has_canary(&ran.stdout));
    is_forgotten(&daemon, &ran.result).await;

    for run in [dump(), dump().key("k"), dump().detach()] {
        let events = events_of(daemon.stream(run).await.unwrap()).await;
        assert!(has_canary(&output_of(&events)));
        assert_eq!(lost_of(&events), 0);
        is_forgotten(&daemon, exit_of(&events)).await;
    }

    let start = Frame::Start(Box::new(dump()));
    let frames = stream::iter([InteractRequest { frame: Some(start) }]);
    let answer = daemon.runs().await.interact(frames).await.unwrap();
    let events = events_of(answer.into_inner()).await;
    assert!(has_canary(&output_of(&events)));
    is_forgotten(&daemon, exit_of(&events)).await;
}

/// A program that writes the canary.
fn program() -> ExecutionSpec {
    let length = CANARY.len();
    let code = format!(
        r#"(module
            (import "wasi_snapshot_preview1" "fd_write"
                (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1)
            (data (i32.const 16) "{CANARY}")
            (func (export "_start")
                (i32.store (i32.const 0) (i32.const 16))
                (i32.store (i32.const 4) (i32.const {length}))
                (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))"#
    );
    ExecutionSpec {
        language: "wat".to_owned(),
        code,
        keep_output: Some(false),
        ..ExecutionSpec::default()
    }
}

#[tokio::test]
async fn output_of_programs_and_files_is_forgotten_too() {
    let daemon = Daemon::start().await;
    let mut client = ExecutionServiceClient::new(channel(&daemon.addr).await);
    let spec = Some(program());
    let answer = client.execute(ExecuteRequest { spec }).await.unwrap();
    let answer = answer.into_inner();
    assert!(has_canary(&answer.stdout));
    is_forgotten(&daemon, &answer.result.unwrap()).await;
    let spec = Some(program());
    let answer = client.execute_stream(ExecuteStreamRequest { spec }).await;
    let events = events_of(answer.unwrap().into_inner()).await;
    assert!(has_canary(&output_of(&events)));
    is_forgotten(&daemon, exit_of(&events)).await;

    // What a run returns as files is output, with their names.
    let file = ringfence::api::proto::File {
        path: format!("/in/{CANARY}.txt"),
        data: CANARY.into(),
    };
    let collects = || {
        unkept(&["hello"]).change(|spec| {
            spec.files.push(file.clone());
            spec.collect.push("/in/*.txt".to_owned());
        })
    };
    let answer = daemon.run(collects()).await.unwrap();
    assert!(answer.files.iter().any(|file| has_canary(&file.data)));
    is_forgotten(&daemon, &answer.result.unwrap()).await;
    let events = events_of(daemon.stream(collects()).await.unwrap()).await;
    assert!(has_canary(&output_of(&events)));
    is_forgotten(&daemon, exit_of(&events)).await;
}

#[tokio::test]
async fn kept_output_is_there_beside_what_is_forgotten() {
    let daemon = Daemon::start().await;
    for keep in [None, Some(true)] {
        let run = kit(&["dump", CANARY]).change(|spec| spec.keep_output = keep);
        let ran = daemon.ran(run).await.exited(0);
        daemon.ran(unkept(&["dump", "another"])).await.exited(0);
        let events = events_of(daemon.attach(&ran.result.run_id, 0).await).await;
        assert_eq!(
            (output_of(&events), lost_of(&events)),
            (ran.stdout.to_vec(), 0)
        );
    }
    // A run that writes nothing loses nothing.
    let ran = daemon.ran(unkept(&["exit", "3"])).await.exited(3);
    let events = events_of(daemon.attach(&ran.result.run_id, 0).await).await;
    assert_eq!((events.len(), lost_of(&events)), (2, 0));
}

#[tokio::test]
async fn a_retry_is_refused_once_the_output_is_gone() {
    let dir = TempDir::new().unwrap();
    let mounts = format!("[{{ host = {:?}, access = \"write\" }}]", dir.path());
    let daemon = Daemon::with(&[("policy.mounts", &mounts)]).await;
    let appends = || unkept(&["append", "/m/count", "once\n"]).mount(dir.path(), "/m", false);
    let first = daemon.ran(appends().key("k")).await.exited(0);
    daemon
        .refused(appends().key("k"))
        .await
        .is(Code::NotFound, "RUN_NOT_FOUND")
        .at("spec.idempotency_key")
        .with("run_id", &first.result.run_id);
    // Whether output is kept is a part of what was asked for.
    for keep in [None, Some(true)] {
        let other = appends().key("k").change(|spec| spec.keep_output = keep);
        daemon
            .refused(other)
            .await
            .is(Code::AlreadyExists, "IDEMPOTENCY_CONFLICT");
    }
    let events = events_of(daemon.stream(appends().key("s")).await.unwrap()).await;
    let status = daemon.stream(appends().key("s")).await.unwrap_err();
    Refused::new(&status)
        .is(Code::NotFound, "RUN_NOT_FOUND")
        .at("spec.idempotency_key")
        .with("run_id", &exit_of(&events).run_id);
    let count = std::fs::read_to_string(dir.path().join("count")).unwrap();
    assert_eq!(count, "once\nonce\n", "nothing is executed twice");
    // A run that never started leaves its key free, whatever becomes of output.
    let bad = || spec("(module)").change(|spec| spec.keep_output = Some(false));
    for _ in 0..2 {
        daemon
            .refused(bad().key("bad"))
            .await
            .is(Code::InvalidArgument, "ENTRY_POINT_NOT_FOUND");
    }
}

/// Sends a line to a run, or the end of its input.
async fn send(daemon: &Daemon, run_id: &str, offset: u64, line: Option<&str>) {
    let request = SendInputRequest {
        run_id: run_id.to_owned(),
        offset,
        data: line
            .map(|line| format!("{line}\n"))
            .unwrap_or_default()
            .into(),
        eof: line.is_none(),
    };
    let start = Instant::now();
    let mut runs = daemon.runs().await;
    // A run that has only just started has no room yet.
    while let Err(status) = runs.send_input(request.clone()).await {
        assert_eq!(Refused::new(&status).reason, "INPUT_FULL");
        assert!(start.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
}

/// Reads on until the canary was written.
async fn until_canary(stream: &mut Streaming<StreamEvent>) -> Vec<StreamEvent> {
    let mut events = Vec::new();
    while !has_canary(&output_of(&events)) {
        let event = stream.message().await.unwrap();
        events.push(event.expect("the run goes on"));
    }
    events
}

#[tokio::test]
async fn output_of_a_run_that_was_left_is_nowhere_once_it_has_ended() {
    let daemon = Daemon::start().await;
    let lines = unkept(&["lines"]).timeout(PATIENCE).detach();
    let lines = lines.change(|spec| spec.open_stdin = true);
    let mut caller = daemon.stream(lines).await.unwrap();
    let id = caller.message().await.unwrap().unwrap().run_id;
    drop(caller);
    let mut viewer = daemon.attach(&id, 0).await;
    send(&daemon, &id, 0, Some(CANARY)).await;
    let mut seen = until_canary(&mut viewer).await;
    // While the run goes on, whoever comes later gets it too.
    let mut late = daemon.attach(&id, 0).await;
    until_canary(&mut late).await;
    drop(late);
    assert!(daemon.probe.remembered().0 > 0);
    send(&daemon, &id, CANARY.len() as u64 + 1, None).await;
    seen.extend(events_of(viewer).await);
    let result = exit_of(&seen).clone();
    assert_eq!((result.outcome(), lost_of(&seen)), (Outcome::Exited, 0));
    // The caller's leaving may be noticed later than the end of its run.
    until(&daemon, |_, _| daemon.probe.remembered().0 == 0).await;
    is_forgotten(&daemon, &result).await;
}

#[tokio::test]
async fn output_of_a_run_whose_caller_left_it_is_forgotten_with_its_end() {
    let daemon = Daemon::start().await;
    let mut caller = daemon.stream(unkept(&["spin", CANARY])).await.unwrap();
    let seen = until_canary(&mut caller).await;
    let id = seen[0].run_id.clone();
    drop(caller);
    let ended = |run: &RunInfo| run.state() == RunState::Ended;
    daemon.until_run(&id, ended).await;
    until(&daemon, |_, _| daemon.probe.remembered().0 == 0).await;
    let events = events_of(daemon.attach(&id, 0).await).await;
    assert!(output_of(&events).is_empty());
    assert_eq!(exit_of(&events).outcome(), Outcome::Cancelled);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_has_output_that_is_not_kept() {
    let dir = TempDir::new().unwrap();
    let audit = dir.path().join("audit.log");
    let set = [
        "telemetry.log_level=debug,ringfence=trace".to_owned(),
        format!("telemetry.audit_file={}", audit.display()),
    ];
    let args: Vec<&str> = set.iter().flat_map(|it| ["--set", it.as_str()]).collect();
    let mut daemon = Served::start(&args);
    let log = daemon.drain_log();
    let mut client = connect(&daemon.addr).await;
    let loaded = client.load_module(load(kit_bytes())).await.unwrap();
    let digest = loaded.into_inner().module.unwrap().digest;
    // Its arguments are in no log either.
    let dump = || {
        by_digest(&digest)
            .args(&["kit", "dump", CANARY])
            .change(|spec| spec.keep_output = Some(false))
    };
    for run in [dump(), dump().key("k"), dump().label("job", "x")] {
        let spec = Some(run);
        let answer = client.run(RunRequest { spec }).await.unwrap();
        assert!(has_canary(&answer.into_inner().stdout));
    }
    for run in [dump(), dump().detach()] {
        let spec = Some(run);
        let request = ringfence::api::proto::RunStreamRequest { spec };
        let answer = client.run_stream(request).await.unwrap();
        assert!(has_canary(&read(answer.into_inner()).await.stdout));
    }
    drop(client);
    let (code, _) = daemon.end();
    assert_eq!(code, 0);
    let (log, audit) = (
        log.join().unwrap(),
        std::fs::read_to_string(&audit).unwrap(),
    );
    let lines = audit
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let ends = lines.filter(|line: &Value| line["event"] == "end" && line["tenant"] == "default");
    assert_eq!(ends.count(), 5, "{audit}");
    assert!(log.lines().count() > 5);
    assert!(!has_canary(log.as_bytes()) && !has_canary(audit.as_bytes()));
}

async fn ask(daemon: &Daemon, request: DeleteRunsRequest) -> Result<DeleteRunsResponse, Status> {
    let answer = daemon.runs().await.delete_runs(request).await?;
    Ok(answer.into_inner())
}

/// Deletes runs, which is not refused.
async fn delete(daemon: &Daemon, request: DeleteRunsRequest) -> DeleteRunsResponse {
    ask(daemon, request).await.expect("it is not refused")
}

fn by_ids(ids: &[&str]) -> DeleteRunsRequest {
    DeleteRunsRequest {
        run_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        ..DeleteRunsRequest::default()
    }
}

fn labels(labels: &[(&str, &str)]) -> HashMap<String, String> {
    let labels = labels.iter();
    labels
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn by_label(key: &str, value: &str) -> DeleteRunsRequest {
    DeleteRunsRequest {
        labels: labels(&[(key, value)]),
        ..DeleteRunsRequest::default()
    }
}

fn dry(request: DeleteRunsRequest) -> DeleteRunsRequest {
    DeleteRunsRequest {
        dry_run: true,
        ..request
    }
}

/// Checks that no method finds a run.
async fn is_gone(daemon: &Daemon, id: &str) {
    let mut runs = daemon.runs().await;
    let run_id = id.to_owned();
    let status = runs.get_run(GetRunRequest { run_id }).await.unwrap_err();
    Refused::new(&status)
        .is(Code::NotFound, "RUN_NOT_FOUND")
        .at("run_id");
    let request = AttachRunRequest {
        run_id: id.to_owned(),
        from_seq: 0,
    };
    let status = runs.attach_run(request).await.unwrap_err();
    Refused::new(&status).is(Code::NotFound, "RUN_NOT_FOUND");
    let listed = daemon.list(ListRunsRequest::default()).await;
    assert!(listed.runs.iter().all(|run| run.run_id != id));
}

#[tokio::test]
async fn runs_are_deleted_by_their_ids_if_they_have_ended() {
    let daemon = Daemon::start().await;
    let first = daemon.ran(kit(&["hello"])).await.result.run_id;
    let kept = daemon.ran(kit(&["hello"])).await.result.run_id;
    let status = daemon.run(spec("(module)")).await.unwrap_err();
    let refused = crate::harness::told_id(status.metadata());
    let mut going = daemon.stream(kit(&["spin"])).await.unwrap();
    let going_id = going.message().await.unwrap().unwrap().run_id;
    let unknown = format!("{}.test", "0".repeat(32));
    // The number of a run that is there, as one of another daemon.
    let elsewhere = kept.replace(".test", ".elsewhere");
    let ids = [&*first, &refused, &unknown, &going_id, &first, &elsewhere];
    let expected = DeleteRunsResponse {
        deleted: 2,
        run_ids: vec![refused.clone(), first.clone()],
        unfinished: 1,
    };
    for _ in 0..2 {
        assert_eq!(delete(&daemon, dry(by_ids(&ids))).await, expected);
    }
    assert_eq!(daemon.get(&first).await.run_id, first);
    assert_eq!(delete(&daemon, by_ids(&ids)).await, expected);
    is_gone(&daemon, &first).await;
    is_gone(&daemon, &refused).await;
    let rest = DeleteRunsResponse {
        unfinished: 1,
        ..DeleteRunsResponse::default()
    };
    assert_eq!(delete(&daemon, by_ids(&ids)).await, rest);
    assert_eq!(daemon.get(&going_id).await.state(), RunState::Running);
    let story = read(daemon.attach(&kept, 0).await).await;
    assert_eq!(story.stdout, b"hello\n");
    // Once it has ended, it can be deleted.
    drop(going);
    daemon
        .until_run(&going_id, |run| run.state() == RunState::Ended)
        .await;
    assert_eq!(delete(&daemon, by_ids(&[&going_id])).await.deleted, 1);
    is_gone(&daemon, &going_id).await;
}

#[tokio::test]
async fn a_deletion_gives_back_what_was_held() {
    let daemon = Daemon::with(&[ADMIN]).await;
    let digest = daemon.loaded(kit_bytes()).await;
    let run = |args: &[&str]| by_digest(&digest).args(&[&["kit"], args].concat());
    daemon.ran(run(&["both", "100"])).await.exited(0);
    let metrics = async || {
        let text = admin::ask(&daemon.admin, "GET", "/metrics", &[]).await.body;
        [
            "ringfence_event_log_bytes",
            "ringfence_history_runs",
            "ringfence_history_bytes",
        ]
        .map(|series| admin::value(&text, series))
    };
    let before = (daemon.probe.remembered(), metrics().await);
    assert!(before.1.iter().all(|value| *value > 0.0), "{before:?}");
    for i in 0..20 {
        let label = |run: RunSpec| run.label("job", "x");
        daemon.ran(label(run(&["flood", "300000"]))).await.exited(0);
        let keyed = label(run(&["both", "50"])).key(&i.to_string());
        daemon.ran(keyed).await.exited(0);
        daemon
            .refused(label(run(&["hello"]).entry("missing")))
            .await;
    }
    let (logs, runs, bytes) = daemon.probe.remembered();
    let (_, runs_before, bytes_before) = before.0;
    assert!(logs > before.0.0 && bytes > bytes_before);
    assert_eq!(runs, runs_before + 60);
    let answer = delete(&daemon, by_label("job", "x")).await;
    assert_eq!((answer.deleted, answer.unfinished), (60, 0));
    assert_eq!((daemon.probe.remembered(), metrics().await), before);
    daemon.ran(run(&["hello"])).await.exited(0);
}

#[tokio::test]
async fn a_key_of_a_deleted_run_is_not_executed_again() {
    let dir = TempDir::new().unwrap();
    let mounts = format!("[{{ host = {:?}, access = \"write\" }}]", dir.path());
    let daemon = Daemon::with(&[("policy.mounts", &mounts)]).await;
    let appends = || {
        kit(&["append", "/m/count", "once\n"])
            .mount(dir.path(), "/m", false)
            .key("k")
    };
    let first = daemon.ran(appends()).await.exited(0).result.run_id;
    assert_eq!(delete(&daemon, by_ids(&[&first])).await.deleted, 1);
    for _ in 0..2 {
        daemon
            .refused(appends())
            .await
            .is(Code::NotFound, "RUN_NOT_FOUND")
            .at("spec.idempotency_key")
            .with("run_id", &first);
    }
    let count = std::fs::read_to_string(dir.path().join("count")).unwrap();
    assert_eq!(count, "once\n");
}

#[tokio::test]
async fn a_viewer_of_a_deleted_run_gets_its_end_and_its_caller_all_of_it() {
    let daemon = Daemon::start().await;
    // More than any window of the connection holds.
    let floods = kit(&["flood", "6000000"]).timeout(PATIENCE);
    let mut caller = daemon.stream(floods).await.unwrap();
    let started = caller.message().await.unwrap().unwrap();
    let id = started.run_id.clone();
    let viewer = daemon.attach(&id, 0).await;
    let story = events_of(caller).await;
    assert_eq!(output_of(&story).len(), 6_000_004, "with \"done\"");
    assert_eq!(delete(&daemon, by_ids(&[&id])).await.deleted, 1);
    is_gone(&daemon, &id).await;
    // What it has not got is told as lost.
    let seen = events_of(viewer).await;
    assert_eq!(exit_of(&seen), exit_of(&story));
    let mut next = 0;
    for event in &seen {
        match &event.event {
            Some(Event::Lost(lost)) => {
                assert_eq!(lost.first_seq, next);
                next += lost.count;
            }
            _ => {
                assert_eq!(event.seq, next, "no gaps but those that are told");
                next += 1;
            }
        }
    }
    assert!(lost_of(&seen) > 0);
    until(&daemon, |_, _| daemon.probe.remembered().0 == 0).await;
}

#[tokio::test]
async fn a_watch_is_told_nothing_of_deletions() {
    let daemon = Daemon::start().await;
    let old = daemon.ran(kit(&["hello"])).await.result.run_id;
    let request = WatchRunsRequest {
        states: vec![RunState::Ended.into()],
        ..WatchRunsRequest::default()
    };
    let news = daemon.runs().await.watch_runs(request).await.unwrap();
    let mut news = news.into_inner();
    let mut next = async || news.message().await.unwrap().unwrap().event.unwrap();
    let News::Run(first) = next().await else {
        panic!("the run comes first");
    };
    assert_eq!(first.run_id, old);
    assert!(matches!(next().await, News::Synced(_)));
    assert_eq!(delete(&daemon, by_ids(&[&old])).await.deleted, 1);
    let new = daemon.ran(kit(&["hello"])).await.result.run_id;
    let News::Run(second) = next().await else {
        panic!("only runs change");
    };
    assert_eq!(second.run_id, new);
}

#[tokio::test]
async fn nobody_deletes_runs_of_another_tenant() {
    let (daemon, a, b, _dir) = two("", "", &[]).await;
    let digest = a.loaded(kit_bytes()).await;
    let hello = by_digest(&digest).args(&["kit", "hello"]).label("job", "x");
    let theirs = a.ran(hello).await.exited(0).result.run_id;
    let remembered = daemon.probe.remembered();
    let until = Timestamp {
        seconds: 253_402_300_799,
        nanos: 0,
    };
    let all = DeleteRunsRequest {
        until: Some(until),
        ..DeleteRunsRequest::default()
    };
    for request in [by_ids(&[&theirs]), by_label("job", "x"), all.clone()] {
        for request in [dry(request.clone()), request] {
            let answer = b.runs.clone().delete_runs(request).await.unwrap();
            assert_eq!(answer.into_inner(), DeleteRunsResponse::default());
        }
    }
    assert_eq!(daemon.probe.remembered(), remembered);
    let answer = a.runs.clone().delete_runs(all).await.unwrap().into_inner();
    assert_eq!((answer.deleted, answer.run_ids), (1, vec![theirs]));
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_runs_are_deleted_by_label_while_others_are_added() {
    const RUNS: usize = 10_000;
    const LATER: usize = 1_000;
    const AT_ONCE: usize = 32;
    let set = [("runs.history", "50000"), ("runs.history_bytes", "512MiB")];
    let daemon = Daemon::with(&set).await;
    let nothing = daemon.loaded("(module (func (export \"_start\")))").await;
    let run = |label: &str| {
        let (mut client, spec) = (daemon.client.clone(), by_digest(&nothing));
        let spec = Some(spec.label("age", label));
        async move {
            let answer = client.run(RunRequest { spec }).await.unwrap();
            answer.into_inner().result.unwrap().run_id
        }
    };
    let before = daemon.probe.remembered();
    let olds = stream::iter((0..RUNS).map(|_| run("old")));
    let mut olds: Vec<String> = olds.buffer_unordered(AT_ONCE).collect().await;
    olds.sort_unstable_by(|a, b| b.cmp(a));
    let newer = stream::iter((0..LATER).map(|_| run("new"))).buffer_unordered(AT_ONCE);
    let planned = delete(&daemon, dry(by_label("age", "old"))).await;
    assert_eq!((planned.deleted, planned.unfinished), (RUNS as u64, 0));
    assert_eq!(planned.run_ids, olds[..1000], "the newest first");
    let (answer, newer) = tokio::join!(
        delete(&daemon, by_label("age", "old")),
        newer.collect::<Vec<String>>()
    );
    assert_eq!(answer, planned);
    for id in [&olds[0], &olds[RUNS / 2], &olds[RUNS - 1]] {
        is_gone(&daemon, id).await;
    }
    assert!(daemon.labelled("age", "old").await.is_empty());
    let (_, runs, _) = daemon.probe.remembered();
    assert_eq!(runs, newer.len());
    for id in &newer[..10] {
        assert_eq!(daemon.get(id).await.run_id, *id);
    }
    let answer = delete(&daemon, by_label("age", "new")).await;
    assert_eq!(answer.deleted, newer.len() as u64);
    assert_eq!(daemon.probe.remembered(), before);
}

fn timestamp(seconds: i64, nanos: i32) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos })
}

/// The time at which a run was asked for, in whole milliseconds.
fn millis(run: &RunInfo) -> i64 {
    let Timestamp { seconds, nanos } = run.asked.unwrap();
    seconds * 1000 + i64::from(nanos) / 1_000_000
}

/// A time in milliseconds, and what is left out of it.
fn at(millis: i64, nanos: i32) -> Option<Timestamp> {
    let within = i32::try_from(millis.rem_euclid(1000)).unwrap() * 1_000_000;
    timestamp(millis.div_euclid(1000), within + nanos)
}

#[tokio::test]
async fn runs_are_listed_and_deleted_by_time_to_the_millisecond() {
    let daemon = Daemon::start().await;
    let digest = daemon.loaded("(module (func (export \"_start\")))").await;
    let mut runs: Vec<RunInfo> = Vec::new();
    let distinct = |runs: &[RunInfo]| {
        let mut times: Vec<i64> = runs.iter().map(millis).collect();
        times.dedup();
        times
    };
    while distinct(&runs).len() < 5 || runs.len() < 12 {
        let id = daemon.ran(by_digest(&digest)).await.result.run_id;
        let run = daemon.get(&id).await;
        // The time that is told is that of the id.
        let of_id = i64::from_str_radix(&id[..12], 16).unwrap();
        assert_eq!(millis(&run), of_id);
        runs.push(run);
    }
    let times = distinct(&runs);
    let listed = async |since: Option<Timestamp>, until: Option<Timestamp>| {
        let mut request = ListRunsRequest {
            page_size: 2,
            since,
            until,
            ..ListRunsRequest::default()
        };
        let mut ids = Vec::new();
        loop {
            let page = daemon.list(request.clone()).await;
            assert!(page.runs.len() <= 2);
            ids.extend(page.runs.into_iter().map(|run| run.run_id));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                return ids;
            }
        }
    };
    let expected = |since: i64, until: i64| -> Vec<String> {
        let within = runs.iter().rev();
        let within = within.filter(|run| (since..until).contains(&millis(run)));
        within.map(|run| run.run_id.clone()).collect()
    };
    for (i, since) in times.iter().copied().enumerate() {
        assert_eq!(listed(at(since, 0), None).await, expected(since, i64::MAX));
        assert_eq!(listed(None, at(since, 0)).await, expected(0, since));
        for until in times[i + 1..].iter().copied() {
            let within = expected(since, until);
            assert!(!within.is_empty());
            assert_eq!(listed(at(since, 0), at(until, 0)).await, within);
            // What is less than a millisecond is left out.
            assert_eq!(listed(at(since, 999_999), at(until, 999_999)).await, within);
        }
    }
    assert_eq!(
        listed(at(times[1], 0), at(times[1], 1)).await,
        Vec::<String>::new()
    );
    assert_eq!(listed(timestamp(-1, 0), None).await.len(), runs.len());
    assert_eq!(listed(None, timestamp(-1, 0)).await, Vec::<String>::new());

    let within = expected(times[1], times[3]);
    let request = DeleteRunsRequest {
        since: at(times[1], 0),
        until: at(times[3], 0),
        ..DeleteRunsRequest::default()
    };
    assert_eq!(delete(&daemon, request).await.run_ids, within);
    let left: Vec<String> = runs.iter().rev().map(|run| run.run_id.clone()).collect();
    let left: Vec<String> = left.into_iter().filter(|id| !within.contains(id)).collect();
    assert_eq!(listed(None, None).await, left);
}

#[tokio::test]
async fn times_are_checked() {
    let daemon = Daemon::start().await;
    let (first, last) = (-62_135_596_800, 253_402_300_799);
    let now = timestamp(1_800_000_000, 5);
    for (since, until, refused) in [
        (None, now, None),
        (timestamp(first, 0), now, None),
        (now, timestamp(last, 999_999_999), None),
        (now, timestamp(1_800_000_000, 6), None),
        (now, now, Some("until")),
        (now, timestamp(1_800_000_000, 4), Some("until")),
        (now, timestamp(-5, 0), Some("until")),
        (timestamp(first - 1, 0), now, Some("since")),
        (timestamp(0, -1), now, Some("since")),
        (timestamp(0, 1_000_000_000), now, Some("since")),
        (timestamp(i64::MIN, i32::MIN), now, Some("since")),
        (None, timestamp(last + 1, 0), Some("until")),
        (None, timestamp(i64::MAX, 0), Some("until")),
        (None, timestamp(5, i32::MAX), Some("until")),
    ] {
        let listing = ListRunsRequest {
            since,
            until,
            ..ListRunsRequest::default()
        };
        let deletion = DeleteRunsRequest {
            since,
            until,
            ..DeleteRunsRequest::default()
        };
        let mut runs = daemon.runs().await;
        let listed = runs.list_runs(listing).await.map(drop);
        let deleted = runs.delete_runs(deletion).await.map(drop);
        for answer in [listed, deleted] {
            match (answer, refused) {
                (Ok(()), None) => {}
                (Err(status), Some(field)) => {
                    let refused = Refused::new(&status).is(Code::InvalidArgument, "SPEC_INVALID");
                    let refused = refused.at(field);
                    assert!(refused.metadata.contains_key("asked"), "{refused:?}");
                    assert!(refused.metadata.contains_key("allowed"), "{refused:?}");
                }
                (answer, _) => panic!("{since:?} {until:?}: {answer:?}"),
            }
        }
    }
}

#[tokio::test]
async fn what_selects_runs_to_delete_is_checked() {
    let daemon = Daemon::start().await;
    let kept = daemon.ran(kit(&["hello"])).await.result.run_id;
    let unknown = format!("{}.test", "0".repeat(32));
    let many = |count: usize| by_ids(&vec![unknown.as_str(); count]);
    let invalid = |field| Some(("SPEC_INVALID", field));
    let now = timestamp(1_800_000_000, 0);
    let with_ids = |change: fn(&mut DeleteRunsRequest)| {
        let mut request = many(1);
        change(&mut request);
        request
    };
    let since = DeleteRunsRequest {
        since: now,
        ..DeleteRunsRequest::default()
    };
    let long = "x".repeat(129);
    // As many ids as may be, each as long as may be, fit into a message.
    let longest = format!("{}.{}", "0".repeat(32), "i".repeat(64));
    let longest = by_ids(&vec![longest.as_str(); 1000]);
    for (request, refused) in [
        (longest, None),
        (DeleteRunsRequest::default(), invalid("labels")),
        (since, invalid("labels")),
        (by_label("job", "y"), None),
        (by_label("", "y"), invalid("labels")),
        (by_label("job", &long), invalid("labels")),
        (by_label("ringfence.job", "y"), invalid("labels")),
        (many(1), None),
        (many(999), None),
        (many(1000), None),
        (many(1001), Some(("LIMIT_ABOVE_MAXIMUM", "run_ids"))),
        (by_ids(&[&unknown, "x"]), invalid("run_ids[1]")),
        (by_ids(&[""]), invalid("run_ids[0]")),
        (
            with_ids(|it| it.labels = labels(&[("job", "x")])),
            invalid("labels"),
        ),
        (with_ids(|it| it.since = timestamp(5, 0)), invalid("since")),
        (with_ids(|it| it.until = timestamp(5, 0)), invalid("until")),
    ] {
        for request in [dry(request.clone()), request] {
            match (ask(&daemon, request).await, refused) {
                (Ok(answer), None) => assert_eq!(answer, DeleteRunsResponse::default()),
                (Err(status), Some((reason, field))) => {
                    let refused = Refused::new(&status);
                    refused.is(Code::InvalidArgument, reason).at(field);
                }
                (answer, refused) => panic!("{answer:?} {refused:?}"),
            }
        }
    }
    let refused = Refused::new(&ask(&daemon, many(1001)).await.unwrap_err());
    refused.with("asked", 1001).with("allowed", 1000);
    assert_eq!(daemon.get(&kept).await.run_id, kept);
}

#[tokio::test]
async fn a_deletion_has_one_line_in_the_audit() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("audit.log");
    let file = format!("telemetry.audit_file={}", path.display());
    let daemon = Served::start(&["--set", &file]);
    let mut client = connect(&daemon.addr).await;
    let mut runs = crate::harness::runs(&daemon.addr).await;
    let mut ids = Vec::new();
    for _ in 0..25 {
        let hello = spec("(module (func (export \"_start\")))").label("secret", CANARY);
        let spec = Some(hello);
        let answer = client.run(RunRequest { spec }).await.unwrap();
        ids.push(answer.into_inner().result.unwrap().run_id);
    }
    let deleted: Vec<&str> = ids[..2].iter().map(String::as_str).collect();
    for request in [
        dry(by_ids(&deleted)),
        by_ids(&deleted),
        // Nothing is left of them, so that there is nothing to tell.
        by_ids(&deleted),
        dry(by_label("secret", CANARY)),
        by_label("secret", CANARY),
    ] {
        runs.delete_runs(request).await.unwrap();
    }
    drop((client, runs));
    let (code, _) = daemon.end();
    assert_eq!(code, 0);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<Value> = lines
        .filter(|line: &Value| line["event"] == "delete")
        .collect();
    let [by_id, by_selector] = &lines[..] else {
        panic!("{lines:?}");
    };
    assert_eq!(
        (&by_id["by"], &by_id["tenant"]),
        (&"ids".into(), &"default".into())
    );
    assert_eq!((&by_id["named"], &by_id["deleted"]), (&2.into(), &2.into()));
    assert_eq!(by_id["run_ids"], format!("{},{}", ids[1], ids[0]));
    assert!(by_id["caller"].as_str().unwrap().starts_with("127.0.0.1:"));
    assert_eq!(by_selector["by"], "selector");
    assert_eq!(
        (
            &by_selector["labels"],
            &by_selector["deleted"],
            &by_selector["unfinished"]
        ),
        (&1.into(), &23.into(), &0.into())
    );
    let newest: Vec<&str> = ids.iter().rev().take(20).map(String::as_str).collect();
    assert_eq!(by_selector["run_ids"], newest.join(","));
    assert!(!has_canary(text.as_bytes()), "no label's value is in it");
}

#[tokio::test]
async fn a_deadline_that_is_long_enough_changes_nothing() {
    let daemon = Daemon::start().await;
    daemon
        .ran(kit(&["hello"]).label("job", "x"))
        .await
        .exited(0);
    let request = crate::harness::within(by_label("job", "x"), Duration::from_secs(100));
    let answer = daemon.runs().await.delete_runs(request).await.unwrap();
    assert_eq!(answer.into_inner().deleted, 1);
}
