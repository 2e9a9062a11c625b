//! What is remembered of runs: listing, watching, one record on every path, history.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use ringfence::api::proto::run_info::End;
use ringfence::api::proto::watch_runs_response::Event as News;
use ringfence::api::proto::{
    GetRunRequest, ListRunsRequest, Outcome, RunInfo, RunRequest, RunState, WatchRunsRequest,
    WatchRunsResponse,
};
use tonic::{Code, Streaming};

use crate::harness::{
    Daemon, PATIENCE, Refused, SpecExt, by_digest, kit, read, spec, told_id, until, until_idle,
};

fn ids(runs: &[RunInfo]) -> Vec<&str> {
    runs.iter().map(|run| run.run_id.as_str()).collect()
}

fn labels(labels: &[(&str, &str)]) -> HashMap<String, String> {
    let labels = labels.iter();
    labels
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

#[tokio::test]
async fn a_fresh_daemon_has_no_runs() {
    let daemon = Daemon::start().await;
    let page = daemon.list(ListRunsRequest::default()).await;
    assert_eq!((page.runs, page.next_page_token.as_str()), (vec![], ""));
}

#[tokio::test]
async fn a_run_is_told_while_it_goes_on_and_after() {
    let daemon = Daemon::start().await;
    let run = kit(&["spin", "started"])
        .resources(|r| r.fuel_limit = Some(1 << 40))
        .label("job", "a")
        .timeout(Duration::from_secs(2));
    let stream = daemon.stream(run).await.unwrap();
    until(&daemon, |in_flight, _| in_flight == 1).await;
    let page = daemon.list(ListRunsRequest::default()).await;
    let id = page.runs[0].run_id.clone();
    let fuel = |run: &RunInfo| run.usage.as_ref().and_then(|u| u.fuel_consumed);
    let going = daemon
        .until_run(&id, |run| {
            let written = run.usage.as_ref().is_some_and(|u| u.stdout_bytes == 8);
            written && fuel(run) > Some(0)
        })
        .await;
    assert_eq!(going.state(), RunState::Running);
    assert_eq!(going.labels, labels(&[("job", "a")]));
    assert_eq!(
        (going.method.as_str(), going.detached),
        ("RunStream", false)
    );
    assert!(going.caller.starts_with("127.0.0.1:"), "{}", going.caller);
    let used = going.usage.unwrap();
    assert!(used.memory_used >= 1 << 16 && used.elapsed.is_some());
    assert_eq!((going.ended, going.end.clone()), (None, None));
    let fuel_then = going.usage.unwrap().fuel_consumed;
    daemon.until_run(&id, |run| fuel(run) > fuel_then).await;

    let story = read(stream).await;
    let ended = daemon.get(&id).await;
    assert_eq!(ended.state(), RunState::Ended);
    assert_eq!(ended.next_seq, story.events.len() as u64);
    let Some(End::Result(result)) = ended.end else {
        panic!("{:?}", ended.end)
    };
    assert_eq!(*result, story.exit.unwrap());
    assert_eq!(result.outcome(), Outcome::TimedOut);
    assert_eq!(ended.module_digest, result.module_digest);
    assert_eq!(ended.granted, result.granted);
    let usage = ended.usage.unwrap();
    assert_eq!(usage.elapsed, result.duration);
    assert_eq!(usage.fuel_consumed, result.fuel_consumed);
    let at = |time: Option<prost_types::Timestamp>| {
        let time = time.expect("a time");
        (time.seconds, time.nanos)
    };
    assert!(at(ended.asked) <= at(ended.started) && at(ended.started) < at(ended.ended));
}

#[tokio::test]
async fn every_path_leaves_one_record() {
    let daemon = Daemon::with(&[("admission.slots", "1"), ("admission.queue", "0")]).await;
    let mut expected = Vec::new();
    for (run, reason) in [
        (spec("(module)"), "ENTRY_POINT_NOT_FOUND"),
        (
            kit(&["hello"]).timeout(Duration::from_secs(9999)),
            "LIMIT_ABOVE_MAXIMUM",
        ),
        (
            by_digest(&format!("sha256:{}", "0".repeat(64))),
            "MODULE_NOT_FOUND",
        ),
        (spec("not wasm").label("kind", "bad"), "MODULE_INVALID"),
    ] {
        let status = daemon.run(run).await.unwrap_err();
        expected.push((told_id(status.metadata()), Some(reason)));
    }
    let ran = daemon.ran(kit(&["hello"])).await.exited(0);
    expected.push((ran.result.run_id, None));
    let spinner = daemon.stream(kit(&["spin"])).await.unwrap();
    let status = daemon.run(kit(&["hello"])).await.unwrap_err();
    drop(spinner);
    until_idle(&daemon).await;
    let page = daemon.list(ListRunsRequest::default()).await;
    // The newest first: the one that found the queue full, the spinner, then the others backwards.
    assert_eq!(page.runs[0].run_id, told_id(status.metadata()));
    let told: Vec<_> = page.runs[2..]
        .iter()
        .rev()
        .map(|run| {
            let reason = match &run.end {
                Some(End::Error(error)) => Some(error.reason.as_str()),
                Some(End::Result(result)) => {
                    assert_eq!(result.outcome(), Outcome::Exited);
                    None
                }
                None => panic!("{run:?} has not ended"),
            };
            (run.run_id.clone(), reason)
        })
        .collect();
    assert_eq!(told, expected);
    assert_eq!(page.runs.len(), 7);
    // Attaching to one that was refused tells why.
    let mut stream = daemon.attach(&expected[0].0, 0).await;
    let event = stream.message().await.unwrap().unwrap();
    let Some(ringfence::api::proto::stream_event::Event::Error(error)) = event.event else {
        panic!("{event:?}")
    };
    assert_eq!(
        (event.seq, error.reason.as_str()),
        (0, "ENTRY_POINT_NOT_FOUND")
    );
    assert_eq!(error.code, i32::from(Code::InvalidArgument));
    assert!(stream.message().await.unwrap().is_none());
}

#[tokio::test]
async fn listings_select_by_state_and_label_and_come_in_pages() {
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let hello = |i: usize| {
        by_digest(&digest)
            .args(&["kit", "hello"])
            .label("parity", if i.is_multiple_of(2) { "even" } else { "odd" })
            .label("all", "yes")
    };
    let mut asked = Vec::new();
    for i in 0..10 {
        asked.push(daemon.ran(hello(i)).await.result.run_id);
    }
    let spinner = daemon
        .stream(kit(&["spin"]).label("all", "yes"))
        .await
        .unwrap();
    asked.reverse();

    let mut request = ListRunsRequest {
        page_size: 3,
        states: vec![RunState::Ended.into()],
        labels: labels(&[("all", "yes")]),
        ..ListRunsRequest::default()
    };
    let mut told = Vec::new();
    loop {
        let page = daemon.list(request.clone()).await;
        assert!(page.runs.len() <= 3);
        told.extend(page.runs.into_iter().map(|run| run.run_id));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(told, asked);

    let even = ListRunsRequest {
        labels: labels(&[("all", "yes"), ("parity", "even")]),
        ..ListRunsRequest::default()
    };
    let page = daemon.list(even).await;
    let evens: Vec<_> = asked
        .iter()
        .skip(1)
        .step_by(2)
        .map(String::as_str)
        .collect();
    assert_eq!(ids(&page.runs), evens);

    let running = ListRunsRequest {
        states: vec![RunState::Running.into(), RunState::Queued.into()],
        ..ListRunsRequest::default()
    };
    let page = daemon.list(running).await;
    assert_eq!(page.runs.len(), 1);
    assert_eq!(page.runs[0].state(), RunState::Running);
    drop(spinner);
}

#[tokio::test]
async fn bad_questions_are_refused_by_field() {
    let daemon = Daemon::start().await;
    let mut runs = daemon.runs().await;
    for (size, fine) in [(0, true), (1, true), (1000, true), (1001, false)] {
        let request = ListRunsRequest {
            page_size: size,
            ..ListRunsRequest::default()
        };
        match runs.list_runs(request).await {
            Ok(_) => assert!(fine, "{size}"),
            Err(status) => {
                assert!(!fine, "{size}");
                Refused::new(&status)
                    .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
                    .at("page_size")
                    .with("allowed", 1000);
            }
        }
    }
    let request = ListRunsRequest {
        states: vec![RunState::Ended.into(), 9],
        ..ListRunsRequest::default()
    };
    let status = runs.list_runs(request).await.unwrap_err();
    Refused::new(&status)
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("states[1]");
    let request = ListRunsRequest {
        page_token: "nonsense".to_owned(),
        ..ListRunsRequest::default()
    };
    let status = runs.list_runs(request).await.unwrap_err();
    Refused::new(&status)
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("page_token");
    let digits = "0".repeat(32);
    for (id, code, reason) in [
        (String::new(), Code::InvalidArgument, "SPEC_INVALID"),
        ("x".repeat(10_000), Code::InvalidArgument, "SPEC_INVALID"),
        (
            format!("{digits}.te st"),
            Code::InvalidArgument,
            "SPEC_INVALID",
        ),
        (format!("{digits}.test"), Code::NotFound, "RUN_NOT_FOUND"),
        (
            format!("{digits}.other"),
            Code::FailedPrecondition,
            "RUN_ELSEWHERE",
        ),
    ] {
        let status = runs
            .get_run(GetRunRequest { run_id: id })
            .await
            .unwrap_err();
        let refused = Refused::new(&status).is(code, reason).at("run_id");
        if reason == "RUN_ELSEWHERE" {
            refused.with("instance", "other");
        }
    }
}

async fn watch(daemon: &Daemon, request: WatchRunsRequest) -> Streaming<WatchRunsResponse> {
    let answer = daemon.runs().await.watch_runs(request).await;
    answer.unwrap().into_inner()
}

async fn news(stream: &mut Streaming<WatchRunsResponse>) -> Option<RunInfo> {
    match stream.message().await.unwrap().unwrap().event.unwrap() {
        News::Run(run) => Some(*run),
        News::Synced(_) => None,
    }
}

#[tokio::test]
async fn a_watch_tells_what_is_then_what_changes() {
    let mut daemon = Daemon::with(&[("admission.slots", "1")]).await;
    let before = daemon
        .ran(kit(&["hello"]).label("w", "1"))
        .await
        .result
        .run_id;
    daemon.ran(kit(&["hello"])).await;
    let mut watched = watch(
        &daemon,
        WatchRunsRequest {
            labels: labels(&[("w", "1")]),
            ..WatchRunsRequest::default()
        },
    )
    .await;
    let mut queued = watch(
        &daemon,
        WatchRunsRequest {
            states: vec![RunState::Queued.into()],
            ..WatchRunsRequest::default()
        },
    )
    .await;
    assert_eq!(news(&mut queued).await, None);
    assert_eq!(news(&mut watched).await.unwrap().run_id, before);
    assert_eq!(news(&mut watched).await, None, "all is told");

    let spinner = daemon.stream(kit(&["spin"])).await.unwrap();
    let mut client = daemon.client.clone();
    let request = RunRequest {
        spec: Some(kit(&["hello"]).label("w", "1")),
    };
    let waiting = tokio::spawn(async move { client.run(request).await });
    // It matches while it waits, and is told once more when it does not.
    let told = news(&mut queued).await.unwrap();
    assert_eq!(told.state(), RunState::Queued);
    drop(spinner);
    let id = waiting
        .await
        .unwrap()
        .unwrap()
        .into_inner()
        .result
        .unwrap()
        .run_id;
    assert_eq!(told.run_id, id);
    let told = news(&mut queued).await.unwrap();
    assert_eq!(told.run_id, id);
    assert_ne!(told.state(), RunState::Queued);
    let mut last = RunState::Unspecified;
    while last != RunState::Ended {
        let run = news(&mut watched).await.unwrap();
        assert_eq!(run.run_id, id);
        assert!(i32::from(run.state()) >= i32::from(last), "never back");
        last = run.state();
    }
    daemon.drain();
    let status = loop {
        match watched.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a watch ends with a reason"),
            Err(status) => break status,
        }
    };
    Refused::new(&status).is(Code::Unavailable, "SHUTTING_DOWN");
    drop((watched, queued));
    daemon.ended().await.unwrap();
}

#[tokio::test]
async fn a_watcher_that_is_slow_gets_the_latest_of_each_run() {
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let mut watched = watch(&daemon, WatchRunsRequest::default()).await;
    assert_eq!(news(&mut watched).await, None);
    let mut asked = Vec::new();
    for _ in 0..2000 {
        let run = by_digest(&digest).args(&["kit", "hello"]);
        asked.push(daemon.ran(run).await.result.run_id);
    }
    let mut ended = HashMap::new();
    while ended.len() < asked.len() {
        let run = news(&mut watched).await.unwrap();
        if run.state() == RunState::Ended {
            assert!(ended.insert(run.run_id, ()).is_none(), "ends once");
        }
    }
    assert!(asked.iter().all(|id| ended.contains_key(id)));
}

#[tokio::test]
async fn history_is_bounded_by_count() {
    let daemon = Daemon::with(&[("runs.history", "5")]).await;
    let mut asked = Vec::new();
    for _ in 0..9 {
        asked.push(daemon.ran(kit(&["hello"])).await.result.run_id);
    }
    let page = daemon.list(ListRunsRequest::default()).await;
    asked.reverse();
    assert_eq!(ids(&page.runs), asked[..5]);
    let run_id = asked[5].clone();
    let status = daemon.runs().await.get_run(GetRunRequest { run_id }).await;
    Refused::new(&status.unwrap_err()).is(Code::NotFound, "RUN_NOT_FOUND");
}

#[tokio::test]
async fn history_is_bounded_by_bytes() {
    let daemon = Daemon::with(&[("runs.history_bytes", "20KiB")]).await;
    for _ in 0..50 {
        daemon.ran(kit(&["hello"])).await;
    }
    let (_, runs, bytes) = daemon.probe.remembered();
    assert!(
        (5..=10).contains(&runs) && bytes <= 20 << 10,
        "{runs} {bytes}"
    );
    let page = daemon.list(ListRunsRequest::default()).await;
    assert_eq!(page.runs.len(), runs);
}

#[tokio::test]
async fn no_history_is_none() {
    let daemon = Daemon::with(&[("runs.history", "0")]).await;
    let ran = daemon.ran(kit(&["hello"])).await.exited(0);
    assert_eq!(ran.out(), "hello\n");
    // The run lets go on the thread of its guest, for which its caller does not wait.
    let start = Instant::now();
    while daemon.probe.remembered() != (0, 0, 0) {
        assert!(start.elapsed() < PATIENCE, "something is kept");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn history_is_bounded_by_age() {
    let daemon = Daemon::with(&[("runs.history_age", "1s")]).await;
    daemon.ran(kit(&["hello"])).await;
    assert_eq!(daemon.probe.remembered().1, 1);
    // Forgotten by itself, not by the next run.
    while daemon.probe.remembered().1 > 0 {
        until(&daemon, |_, _| true).await;
    }
    assert_eq!(daemon.probe.remembered(), (0, 0, 0));
}

#[tokio::test]
async fn runs_that_were_refused_do_not_crowd_out_others() {
    let daemon = Daemon::with(&[("runs.history", "20")]).await;
    let ran = daemon.ran(kit(&["hello"])).await.result.run_id;
    for _ in 0..50 {
        daemon.refused(spec("(module)")).await;
    }
    let page = daemon.list(ListRunsRequest::default()).await;
    assert_eq!(page.runs.len(), 3, "a tenth of them, and the one that ran");
    assert_eq!(daemon.get(&ran).await.state(), RunState::Ended);
}

#[tokio::test]
async fn a_watch_learns_the_end_of_what_is_not_remembered() {
    let daemon = Daemon::with(&[("runs.history", "0")]).await;
    let mut watched = watch(&daemon, WatchRunsRequest::default()).await;
    assert_eq!(news(&mut watched).await, None);
    let stream = daemon.stream(kit(&["spin"])).await.unwrap();
    let mut run = news(&mut watched).await.unwrap();
    while run.state() != RunState::Running {
        run = news(&mut watched).await.unwrap();
    }
    drop(stream);
    let ended = news(&mut watched).await.unwrap();
    assert_eq!(
        (ended.run_id, ended.state),
        (run.run_id, RunState::Ended.into())
    );
}

#[tokio::test]
async fn selectors_are_checked_at_their_limits() {
    let daemon = Daemon::start().await;
    let mut runs = daemon.runs().await;
    let states = |n: usize| ListRunsRequest {
        states: vec![RunState::Ended.into(); n],
        ..ListRunsRequest::default()
    };
    let many = |n: usize| ListRunsRequest {
        labels: (0..n).map(|i| (i.to_string(), "x".repeat(128))).collect(),
        ..ListRunsRequest::default()
    };
    for (request, refused) in [
        (states(3), None),
        (states(4), None),
        (states(5), Some(("LIMIT_ABOVE_MAXIMUM", "states"))),
        (many(31), None),
        (many(32), None),
        (many(33), Some(("SPEC_INVALID", "labels"))),
    ] {
        match (runs.list_runs(request).await, refused) {
            (Ok(_), None) => {}
            (Err(status), Some((reason, field))) => {
                Refused::new(&status)
                    .is(Code::InvalidArgument, reason)
                    .at(field);
            }
            (answer, refused) => panic!("{answer:?} {refused:?}"),
        }
    }
    // Nothing that a question may be is larger.
    let status = runs.list_runs(states(65 << 10)).await.unwrap_err();
    Refused::new(&status).is(Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
}

#[tokio::test]
async fn viewers_and_watches_are_counted() {
    let daemon = Daemon::with(&[("runs.viewers", "2")]).await;
    let mut caller = daemon.stream(kit(&["spin"])).await.unwrap();
    let id = caller.message().await.unwrap().unwrap().run_id;
    let viewer = daemon.attach(&id, 0).await;
    let _watch = watch(&daemon, WatchRunsRequest::default()).await;
    let request = || ringfence::api::proto::AttachRunRequest {
        run_id: id.clone(),
        from_seq: 0,
    };
    let mut runs = daemon.runs().await;
    let status = runs.attach_run(request()).await.unwrap_err();
    assert!(
        Refused::new(&status)
            .is(Code::ResourceExhausted, "QUEUE_FULL")
            .retry
    );
    let status = runs
        .watch_runs(WatchRunsRequest::default())
        .await
        .unwrap_err();
    assert!(
        Refused::new(&status)
            .is(Code::ResourceExhausted, "QUEUE_FULL")
            .retry
    );
    drop(viewer);
    let start = Instant::now();
    while runs.attach_run(request()).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "no place");
        until(&daemon, |_, _| true).await;
    }
}
