//! Idempotency keys: the same key within its window is the same run.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use ringfence::api::proto::run_info::End;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    CancelCause, ListRunsRequest, RunInfo, RunResponse, RunSpec, RunState,
};
use tonic::{Code, Status};

use crate::harness::{
    Daemon, PATIENCE, Refused, SpecExt, by_digest, kit, read, spec, told_id, until, until_idle,
};

async fn asked_for(daemon: &Daemon) -> usize {
    daemon.list(ListRunsRequest::default()).await.runs.len()
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_callers_at_once_execute_once() {
    let dir = tempfile::tempdir().unwrap();
    let mounts = format!("[{{ host = {:?}, access = \"write\" }}]", dir.path());
    let daemon = Daemon::with(&[("policy.mounts", &mounts)]).await;
    let run = || {
        kit(&["append", "/m/count", "once\n"])
            .mount(dir.path(), "/m", false)
            .key("k")
    };
    let answers = join_all((0..20).map(|_| daemon.run(run()))).await;
    let answers: Vec<RunResponse> = answers.into_iter().map(Result::unwrap).collect();
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(answers[0].stdout, "appended\n");
    let count = || std::fs::read_to_string(dir.path().join("count")).unwrap();
    assert_eq!(count(), "once\n");
    assert_eq!(asked_for(&daemon).await, 1);
    // Also when it has long ended.
    assert_eq!(daemon.run(run()).await.unwrap(), answers[0]);
    // Streams are another method, with keys of their own.
    let streams = join_all((0..20).map(|_| async {
        let stream = daemon.stream(run()).await.unwrap();
        let story = read(stream).await;
        assert_eq!(story.stdout, b"appended\n");
        story.exit.unwrap()
    }))
    .await;
    assert!(streams.iter().all(|exit| *exit == streams[0]));
    assert_ne!(
        streams[0].run_id,
        answers[0].result.as_ref().unwrap().run_id
    );
    assert_eq!(count(), "once\nonce\n");
    // And so is another key.
    daemon.ran(run().key("other")).await.exited(0);
    assert_eq!(count(), "once\nonce\nonce\n");
}

#[tokio::test]
async fn another_spec_under_the_same_key_is_a_conflict() {
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let run = || by_digest(&digest).args(&["kit", "hello"]).key("k");
    let first = daemon.ran(run()).await.exited(0);
    // The same module inline is the same spec.
    let again = daemon.ran(kit(&["hello"]).key("k")).await;
    assert_eq!(again.result.run_id, first.result.run_id);
    let others: [RunSpec; 9] = [
        run().args(&["kit", "hello", "x"]),
        run().env(&["A=1"]),
        run().stdin("x"),
        run().timeout(Duration::from_secs(7)),
        run().resources(|r| r.memory_pages = Some(100)),
        run().label("a", "b"),
        run().detach(),
        run().change(|spec| spec.open_stdin = true),
        run().change(|spec| spec.keep_output = Some(false)),
    ];
    for other in others {
        daemon
            .refused(other)
            .await
            .is(Code::AlreadyExists, "IDEMPOTENCY_CONFLICT")
            .at("spec.idempotency_key")
            .with("run_id", &first.result.run_id);
    }
}

#[tokio::test]
async fn a_run_that_was_refused_leaves_its_key_free() {
    let daemon = Daemon::with(&[("admission.slots", "1"), ("admission.queue", "0")]).await;
    let spinner = daemon.stream(kit(&["spin"])).await.unwrap();
    daemon
        .refused(kit(&["hello"]).key("k"))
        .await
        .is(Code::ResourceExhausted, "QUEUE_FULL");
    drop(spinner);
    until_idle(&daemon).await;
    daemon.ran(kit(&["hello"]).key("k")).await.exited(0);
    daemon
        .refused(spec("(module)").key("bad"))
        .await
        .is(Code::InvalidArgument, "ENTRY_POINT_NOT_FOUND");
    daemon.ran(kit(&["hello"]).key("bad")).await.exited(0);
}

#[tokio::test]
async fn keys_are_checked_at_their_limit() {
    let daemon = Daemon::start().await;
    for (key, refused) in [
        ("k".repeat(127), None),
        ("k".repeat(128), None),
        ("k".repeat(129), Some("LIMIT_ABOVE_MAXIMUM")),
        ("a\nb".to_owned(), Some("SPEC_INVALID")),
    ] {
        match (daemon.run(kit(&["hello"]).key(&key)).await, refused) {
            (Ok(_), None) => {}
            (Err(status), Some(reason)) => {
                Refused::new(&status)
                    .is(Code::InvalidArgument, reason)
                    .at("spec.idempotency_key");
            }
            (answer, _) => panic!("{key}: {answer:?}"),
        }
    }
    // An empty one is none.
    let hello = || kit(&["hello"]).key("");
    let first = daemon.ran(hello()).await.result.run_id;
    assert_ne!(daemon.ran(hello()).await.result.run_id, first);
}

#[tokio::test]
async fn a_key_stands_for_its_window_and_no_longer() {
    let daemon = Daemon::with(&[("runs.idempotency_window", "1s")]).await;
    let run = || kit(&["hello"]).key("k");
    let start = Instant::now();
    let first = daemon.ran(run()).await.result.run_id;
    while daemon.ran(run()).await.result.run_id == first {
        assert!(start.elapsed() < PATIENCE, "it never ends");
    }
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_key_stands_for_as_long_as_its_run_goes_on() {
    let daemon = Daemon::with(&[("runs.idempotency_window", "0s")]).await;
    let run = || kit(&["sleep", "1000"]).key("k");
    let (first, second) = tokio::join!(daemon.ran(run()), async {
        until(&daemon, |in_flight, _| in_flight == 1).await;
        daemon.ran(run()).await
    });
    assert_eq!(first.result.run_id, second.result.run_id);
}

#[tokio::test]
async fn a_run_ends_with_the_last_of_its_callers() {
    let daemon = Daemon::start().await;
    let run = || {
        kit(&["spin", "x"])
            .key("k")
            .timeout(Duration::from_secs(100))
    };
    let mut first = daemon.stream(run()).await.unwrap();
    let id = first.message().await.unwrap().unwrap().run_id;
    let mut second = daemon.stream(run()).await.unwrap();
    drop(first);
    let mut out = Vec::new();
    while out != b"x\n" {
        let event = second.message().await.unwrap().unwrap();
        assert_eq!(event.run_id, id);
        if let Some(Event::Stdout(bytes)) = event.event {
            out.extend_from_slice(&bytes);
        }
    }
    assert_eq!(daemon.get(&id).await.state(), RunState::Running);
    drop(second);
    let ended = |run: &RunInfo| run.state() == RunState::Ended;
    let Some(End::Result(result)) = daemon.until_run(&id, ended).await.end else {
        panic!("it ran")
    };
    assert_eq!(result.cancel_cause(), CancelCause::CallerGone);
    until_idle(&daemon).await;
}

#[tokio::test]
async fn what_is_not_remembered_is_not_executed_again() {
    let daemon = Daemon::with(&[("runs.history", "1")]).await;
    let first = daemon.ran(kit(&["hello"]).key("k")).await.result.run_id;
    daemon.ran(kit(&["hello"])).await;
    daemon.ran(kit(&["hello"])).await;
    // It is remembered for as long as one of its answers is on its way.
    let start = Instant::now();
    let status: Status = loop {
        match daemon.run(kit(&["hello"]).key("k")).await {
            Ok(answer) => assert_eq!(answer.result.unwrap().run_id, first),
            Err(status) => break status,
        }
        assert!(start.elapsed() < PATIENCE, "it is never forgotten");
    };
    Refused::new(&status)
        .is(Code::NotFound, "RUN_NOT_FOUND")
        .at("spec.idempotency_key")
        .with("run_id", &first);
    assert_ne!(told_id(status.metadata()), first, "a record of its own");
}

#[tokio::test]
async fn an_answer_is_kept_whole_or_refused() {
    let daemon = Daemon::with(&[("runs.log_budget", "3MiB")]).await;
    let big = || kit(&["flood", "900000"]).key("big");
    let first = daemon.ran(big()).await.exited(0);
    assert_eq!(daemon.ran(big()).await.stdout, first.stdout);
    // Others need the room.
    daemon
        .ran(kit(&["flood", "900000"]).key("another"))
        .await
        .exited(0);
    daemon
        .refused(big())
        .await
        .is(Code::NotFound, "RUN_NOT_FOUND")
        .with("run_id", &first.result.run_id);
}

#[tokio::test]
async fn keys_are_counted_and_none_is_dropped_early() {
    let daemon = Daemon::with(&[("runs.idempotency_keys", "2")]).await;
    let hello = |key: &str| kit(&["hello"]).key(key);
    // Those of runs that never started are not counted.
    for key in ["x", "y", "z"] {
        daemon.refused(spec("(module)").key(key)).await;
    }
    let first = daemon.ran(hello("a")).await.result.run_id;
    daemon.ran(hello("b")).await;
    let refused = daemon.refused(hello("c")).await;
    assert!(refused.is(Code::ResourceExhausted, "QUEUE_FULL").retry);
    assert_eq!(daemon.ran(hello("a")).await.result.run_id, first);
    daemon.ran(kit(&["hello"])).await.exited(0);
}

#[tokio::test]
async fn the_deadline_of_one_caller_is_not_that_of_another() {
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let run = || by_digest(&digest).args(&["kit", "sleep", "2500"]).key("k");
    let request = ringfence::api::proto::RunRequest { spec: Some(run()) };
    let hasty = crate::harness::within(request, Duration::from_millis(1200));
    let mut client = daemon.client.clone();
    let (hasty, patient) = tokio::join!(client.run(hasty), async {
        while asked_for(&daemon).await == 0 {}
        daemon.ran(run()).await
    });
    assert!(hasty.is_err());
    assert_eq!(patient.exited(0).out(), "before\nafter\n");
}
