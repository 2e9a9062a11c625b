//! CancelRuns: what a selector matches ends, all at once, and nothing else does.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use ringfence::api::proto::run_info::End;
use ringfence::api::proto::{
    CancelCause, CancelRunsRequest, CancelRunsResponse, CancelledRun, ListRunsRequest, Outcome,
    RunInfo, RunRequest, RunSpec, RunState,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::cancel::slow_module;
use crate::harness::{
    Daemon, PATIENCE, Refused, SpecExt, by_digest, connect, kit, runs, spec, until,
};
use crate::tenants::two;

/// A request for the runs with these labels.
fn labelled(labels: &[(&str, &str)]) -> CancelRunsRequest {
    let owned = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
    CancelRunsRequest {
        labels: owned.collect(),
        ..CancelRunsRequest::default()
    }
}

fn dry(mut request: CancelRunsRequest) -> CancelRunsRequest {
    request.dry_run = true;
    request
}

fn in_states(mut request: CancelRunsRequest, states: &[RunState]) -> CancelRunsRequest {
    request.states = states.iter().copied().map(i32::from).collect();
    request
}

async fn ask(daemon: &Daemon, request: CancelRunsRequest) -> Result<CancelRunsResponse, Status> {
    let answer = daemon.runs().await.cancel_runs(request).await?;
    Ok(answer.into_inner())
}

async fn cancel(daemon: &Daemon, request: CancelRunsRequest) -> CancelRunsResponse {
    let answer = ask(daemon, request).await.expect("it is not refused");
    assert_eq!(answer.unfinished, 0);
    answer
}

/// A run that goes on until it is ended.
fn sleeps(labels: &[(&str, &str)]) -> RunSpec {
    let run = kit(&["sleep", "3600000"]).timeout(PATIENCE).detach();
    let add = |run: RunSpec, (key, value): &(&str, &str)| run.label(key, value);
    labels.iter().fold(run, add)
}

/// Starts a detached run, and returns its id.
async fn started(daemon: &Daemon, run: RunSpec) -> String {
    let mut stream = daemon.stream(run).await.expect("it is not refused");
    stream.message().await.unwrap().unwrap().run_id
}

fn ids(answer: &CancelRunsResponse) -> Vec<&str> {
    answer.runs.iter().map(|run| run.run_id.as_str()).collect()
}

fn found(answer: &CancelRunsResponse) -> Vec<RunState> {
    answer.runs.iter().map(CancelledRun::found).collect()
}

/// Whether a run has ended because of a call, before its first instruction or after it.
fn was_cancelled(run: &RunInfo) -> bool {
    match &run.end {
        Some(End::Result(result)) => result.cancel_cause() == CancelCause::CancelRpc,
        Some(End::Error(error)) => error.reason == "RUN_CANCELLED",
        None => false,
    }
}

/// Waits until the runs in flight are in these states, the oldest first.
async fn until_states(daemon: &Daemon, states: &[RunState]) {
    let start = std::time::Instant::now();
    loop {
        assert!(start.elapsed() < PATIENCE, "it does not come to be");
        let page = daemon.list(ListRunsRequest::default()).await;
        let mut now: Vec<_> = page.runs.iter().map(RunInfo::state).collect();
        now.retain(|state| *state != RunState::Ended);
        now.reverse();
        if now == states {
            return;
        }
    }
}

#[tokio::test]
async fn one_label_or_several_say_which_runs_are_ended() {
    let daemon = Daemon::start().await;
    let first = started(&daemon, sleeps(&[("job", "x"), ("part", "1")])).await;
    let second = started(&daemon, sleeps(&[("job", "x"), ("part", "2")])).await;
    let third = started(&daemon, sleeps(&[("job", "x")])).await;
    let other = started(&daemon, sleeps(&[("job", "y"), ("part", "2")])).await;
    let bare = started(&daemon, sleeps(&[])).await;

    for nobodys in [
        &[("job", "z")][..],
        &[("jo", "x")],
        &[("job", "")],
        &[("job", "x"), ("part", "3")],
        &[("job", "y"), ("part", "1")],
    ] {
        let answer = cancel(&daemon, labelled(nobodys)).await;
        assert_eq!(answer, CancelRunsResponse::default(), "{nobodys:?}");
    }
    let answer = cancel(&daemon, labelled(&[("part", "2"), ("job", "x")])).await;
    let expected = CancelledRun {
        run_id: second.clone(),
        found: RunState::Running.into(),
        cancelled: true,
    };
    assert_eq!(answer.runs, [expected]);
    let run = daemon.get(&second).await;
    assert_eq!(run.state(), RunState::Ended);
    let Some(End::Result(result)) = run.end else {
        panic!("{run:?}")
    };
    assert_eq!(result.outcome(), Outcome::Cancelled);
    assert_eq!(result.cancel_cause(), CancelCause::CancelRpc);

    // The oldest first, and without the one that has ended.
    let answer = cancel(&daemon, labelled(&[("job", "x")])).await;
    assert_eq!(ids(&answer), [&first, &third]);
    assert!(answer.runs.iter().all(|run| run.cancelled));
    for id in [&other, &bare] {
        assert_eq!(daemon.get(id).await.state(), RunState::Running);
    }
    let answer = cancel(&daemon, labelled(&[("job", "x")])).await;
    assert!(answer.runs.is_empty());
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_tells_what_a_call_then_ends() {
    let set = [("admission.slots", "2"), ("admission.max_wait", "2m")];
    let daemon = Daemon::with(&set).await;
    let job = [("job", "x")];
    let first = started(&daemon, sleeps(&job)).await;
    started(&daemon, sleeps(&[("job", "y")])).await;
    let mut client = daemon.client.clone();
    let spec = Some(sleeps(&job));
    let waits = tokio::spawn(async move { client.run(RunRequest { spec }).await });
    until_states(
        &daemon,
        &[RunState::Running, RunState::Running, RunState::Queued],
    )
    .await;

    let told = cancel(&daemon, dry(labelled(&job))).await;
    assert_eq!(found(&told), [RunState::Running, RunState::Queued]);
    assert_eq!(ids(&told)[0], first);
    assert!(told.runs.iter().all(|run| !run.cancelled));
    // By state, too, any of which may be given twice.
    for (states, expected) in [
        (&[RunState::Running][..], &told.runs[..1]),
        (&[RunState::Queued], &told.runs[1..]),
        (&[RunState::Compiling], &[]),
        (
            &[RunState::Queued, RunState::Running, RunState::Queued],
            &told.runs[..],
        ),
    ] {
        let answer = cancel(&daemon, dry(in_states(labelled(&job), states))).await;
        assert_eq!(answer.runs, expected, "{states:?}");
    }
    assert_eq!(cancel(&daemon, dry(labelled(&job))).await, told);
    until_states(
        &daemon,
        &[RunState::Running, RunState::Running, RunState::Queued],
    )
    .await;

    let answer = cancel(&daemon, in_states(labelled(&job), &[RunState::Queued])).await;
    assert_eq!(ids(&answer), [ids(&told)[1]]);
    let status = waits.await.unwrap().unwrap_err();
    Refused::new(&status).is(Code::Cancelled, "RUN_CANCELLED");
    assert_eq!(daemon.get(&first).await.state(), RunState::Running);
    let answer = cancel(&daemon, labelled(&job)).await;
    let mut expected = told.runs[0].clone();
    expected.cancelled = true;
    assert_eq!(answer.runs, [expected]);
}

#[tokio::test]
async fn runs_that_compile_or_wait_or_run_all_end() {
    let set = [("admission.slots", "1"), ("admission.max_wait", "2m")];
    let daemon = Daemon::with(&set).await;
    let job = [("job", "x")];
    started(&daemon, sleeps(&job)).await;
    let mut calls = JoinSet::new();
    // Detached or not, they have not started.
    for run in [
        sleeps(&job),
        kit(&["hello"]).label("job", "x"),
        spec(slow_module()).label("job", "x"),
    ] {
        let (mut client, spec) = (daemon.client.clone(), Some(run));
        let before = daemon.labelled("job", "x").await.len();
        calls.spawn(async move { client.run(RunRequest { spec }).await });
        while daemon.labelled("job", "x").await.len() == before {
            tokio::task::yield_now().await;
        }
    }
    let states = [
        RunState::Running,
        RunState::Queued,
        RunState::Queued,
        RunState::Compiling,
    ];
    until_states(&daemon, &states).await;
    let answer = cancel(&daemon, labelled(&job)).await;
    assert_eq!(found(&answer), states);
    assert!(answer.runs.iter().all(|run| run.cancelled), "{answer:?}");
    for run in daemon.labelled("job", "x").await {
        assert!(was_cancelled(&run), "{run:?}");
    }
    for call in calls.join_all().await {
        let refused = Refused::new(&call.unwrap_err());
        refused.is(Code::Cancelled, "RUN_CANCELLED");
    }
    assert_eq!(daemon.probe.pooled_instances(), 0);
    daemon.ran(kit(&["hello"])).await.exited(0);
}

#[tokio::test]
async fn another_tenants_runs_with_the_same_labels_go_on() {
    let (_daemon, a, b, _dir) = two("", "", &[]).await;
    let job = [("job", "x")];
    let (mine, mut stream) = a.stream(sleeps(&job)).await;
    stream.message().await.unwrap();
    let (yours, mut stream) = b.stream(sleeps(&job)).await;
    stream.message().await.unwrap();
    for request in [dry(labelled(&job)), labelled(&job)] {
        let answer = a.runs.clone().cancel_runs(request).await.unwrap();
        assert_eq!(ids(&answer.into_inner()), [&mine]);
    }
    let answer = a.runs.clone().cancel_runs(labelled(&job)).await.unwrap();
    assert_eq!(answer.into_inner(), CancelRunsResponse::default());
    let answer = b.runs.clone().cancel_runs(labelled(&job)).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!(found(&answer), [RunState::Running]);
    assert_eq!(ids(&answer), [&yours]);
}

#[tokio::test]
async fn two_hundred_runs_end_together_in_one_call() {
    const SLOTS: usize = 120;
    const RUNS: usize = 200;
    let set = [("admission.slots", "120"), ("admission.max_wait", "2m")];
    let daemon = Daemon::with(&set).await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let run = |i: usize| {
        // Half of them work as hard as they can.
        let habit = if i.is_multiple_of(2) {
            &["kit", "spin"][..]
        } else {
            &["kit", "sleep", "3600000"]
        };
        let run = by_digest(&digest).args(habit).timeout(PATIENCE);
        let run = run.resources(|r| {
            r.memory_pages = Some(32);
            r.stack_size = Some(256 << 10);
            r.output_limit = Some(1 << 10);
        });
        run.label("job", "x")
    };
    let mut calls = JoinSet::new();
    for first in (0..RUNS).step_by(50) {
        // A connection has 100 calls at once at the most.
        let client = connect(&daemon.addr).await;
        for i in first..first + 50 {
            let (mut client, spec) = (client.clone(), Some(run(i)));
            calls.spawn(async move { client.run(RunRequest { spec }).await });
        }
    }
    let (slots, waiting) = (120, 80);
    until(&daemon, |in_flight, queued| {
        (in_flight, queued) == (slots, waiting)
    })
    .await;
    let other = kit(&["hello"]).label("job", "y");
    let (mut client, spec) = (daemon.client.clone(), Some(other));
    let other = tokio::spawn(async move { client.run(RunRequest { spec }).await });
    until(&daemon, |_, queued| queued == waiting + 1).await;

    let told = cancel(&daemon, dry(labelled(&[("job", "x")]))).await;
    let answer = cancel(&daemon, labelled(&[("job", "x")])).await;
    assert_eq!(answer.runs.len(), RUNS);
    assert_eq!(ids(&answer), ids(&told));
    assert!(ids(&answer).is_sorted(), "the oldest first");
    assert!(answer.runs.iter().all(|run| run.cancelled));
    let count = |state| found(&answer).iter().filter(|it| **it == state).count();
    assert_eq!(count(RunState::Running), SLOTS);
    assert_eq!(count(RunState::Queued), RUNS - SLOTS);
    // All are gone, and their slots are free.
    let page = daemon.list(ListRunsRequest {
        states: vec![
            RunState::Compiling.into(),
            RunState::Queued.into(),
            RunState::Running.into(),
        ],
        labels: labelled(&[("job", "x")]).labels,
        ..ListRunsRequest::default()
    });
    assert!(page.await.runs.is_empty());
    let ended = other.await.unwrap().unwrap().into_inner();
    assert_eq!(ended.result.unwrap().exit_code, Some(0));
    for call in calls.join_all().await {
        match call {
            Ok(answer) => {
                let result = answer.into_inner().result.unwrap();
                assert_eq!(result.cancel_cause(), CancelCause::CancelRpc);
            }
            Err(status) => {
                Refused::new(&status).is(Code::Cancelled, "RUN_CANCELLED");
            }
        }
    }
}

#[tokio::test]
async fn many_calls_at_once_end_each_run_once() {
    const RUNS: usize = 20;
    let daemon = Daemon::start().await;
    for _ in 0..RUNS {
        started(&daemon, sleeps(&[("job", "x")])).await;
    }
    let calls = (0..10).map(|_| ask(&daemon, labelled(&[("job", "x")])));
    let mut by: HashMap<String, usize> = HashMap::new();
    for answer in join_all(calls).await {
        for run in answer.unwrap().runs {
            assert_eq!(run.found(), RunState::Running);
            *by.entry(run.run_id).or_default() += usize::from(run.cancelled);
        }
    }
    assert_eq!(by.len(), RUNS);
    assert!(by.values().all(|times| *times == 1), "{by:?}");
}

/// What ends by itself in the very moment is told as what it was: the answer and the run's record agree.
#[tokio::test]
async fn what_the_answer_says_of_a_run_is_what_its_record_says() {
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let mut told = 0;
    for round in 0..40 {
        let label = round.to_string();
        let mut calls = JoinSet::new();
        for _ in 0..20 {
            let run = by_digest(&digest).args(&["kit", "exit", "7"]);
            let spec = Some(run.label("round", &label));
            let mut client = daemon.client.clone();
            calls.spawn(async move { client.run(RunRequest { spec }).await });
        }
        let mut runs = runs(&daemon.addr).await;
        while !calls.is_empty() {
            let answer = runs.cancel_runs(labelled(&[("round", &label)])).await;
            for run in answer.unwrap().into_inner().runs {
                told += 1;
                let record = daemon.get(&run.run_id).await;
                assert_eq!(record.state(), RunState::Ended);
                assert_eq!(run.cancelled, was_cancelled(&record), "{record:?}");
            }
            while calls.try_join_next().is_some() {}
        }
    }
    assert!(told > 0, "no call met a run");
}

#[tokio::test]
async fn runs_that_begin_after_a_call_go_on() {
    let daemon = Daemon::start().await;
    started(&daemon, sleeps(&[("job", "x")])).await;
    assert_eq!(
        cancel(&daemon, labelled(&[("job", "x")])).await.runs.len(),
        1
    );
    let later = started(&daemon, sleeps(&[("job", "x")])).await;
    let begun = |run: &RunInfo| run.usage.is_some_and(|usage| usage.stdout_bytes > 0);
    let run = daemon.until_run(&later, begun).await;
    assert_eq!(run.state(), RunState::Running);
}

#[tokio::test]
async fn selectors_are_checked_at_their_limits() {
    let daemon = Daemon::start().await;
    let kept = started(&daemon, sleeps(&[("job", "x")])).await;
    let many = |n: usize| CancelRunsRequest {
        labels: (0..n).map(|i| (i.to_string(), "x".repeat(128))).collect(),
        ..CancelRunsRequest::default()
    };
    let label = |key: &str, value: &str| labelled(&[(key, value)]);
    let states = |states: &[i32]| CancelRunsRequest {
        states: states.to_vec(),
        ..labelled(&[("job", "y")])
    };
    let invalid = |field| Some(("SPEC_INVALID", field));
    let long = "x".repeat(129);
    let cases = [
        (CancelRunsRequest::default(), invalid("labels")),
        (
            in_states(labelled(&[]), &[RunState::Running]),
            invalid("labels"),
        ),
        (many(1), None),
        (many(31), None),
        (many(32), None),
        (many(33), invalid("labels")),
        (label("", "x"), invalid("labels")),
        (label("ringfence.job", "x"), invalid("labels")),
        (label(&long, "x"), invalid("labels")),
        (label("job", &long), invalid("labels")),
        (label(&long[1..], &long[1..]), None),
        (label("job\n", "x"), invalid("labels")),
        (label("job", "\u{7f}"), invalid("labels")),
        (states(&[1, 2, 3]), None),
        (states(&[1, 2, 3, 3]), None),
        (
            states(&[1, 2, 3, 3, 3]),
            Some(("LIMIT_ABOVE_MAXIMUM", "states")),
        ),
        (states(&[3, 4]), invalid("states[1]")),
        (states(&[0]), invalid("states[0]")),
        (states(&[1, 2, 9]), invalid("states[2]")),
        (states(&[-1]), invalid("states[0]")),
    ];
    for (request, refused) in cases {
        for request in [request.clone(), dry(request)] {
            match (ask(&daemon, request).await, refused) {
                (Ok(answer), None) => assert_eq!(answer, CancelRunsResponse::default()),
                (Err(status), Some((reason, field))) => {
                    let refused = Refused::new(&status);
                    refused.is(Code::InvalidArgument, reason).at(field);
                }
                (answer, refused) => panic!("{answer:?} {refused:?}"),
            }
        }
    }
    let status = ask(&daemon, CancelRunsRequest::default())
        .await
        .unwrap_err();
    let message = Refused::new(&status).message;
    assert!(message.contains("at least one label"), "{message}");
    let status = ask(&daemon, states(&[4])).await.unwrap_err();
    let message = Refused::new(&status).message;
    assert!(message.ends_with("QUEUED (2), RUNNING (3)"), "{message}");
    // Nothing that a question may be is larger.
    let status = ask(&daemon, states(&[3; 65 << 10])).await.unwrap_err();
    Refused::new(&status).is(Code::ResourceExhausted, "MESSAGE_TOO_LARGE");
    assert_eq!(daemon.get(&kept).await.state(), RunState::Running);
}

#[tokio::test]
async fn a_deadline_that_is_long_enough_changes_nothing() {
    let daemon = Daemon::start().await;
    started(&daemon, sleeps(&[("job", "x")])).await;
    let request = crate::harness::within(labelled(&[("job", "x")]), Duration::from_secs(100));
    let answer = daemon.runs().await.cancel_runs(request).await.unwrap();
    let answer = answer.into_inner();
    assert_eq!((answer.runs.len(), answer.unfinished), (1, 0));
    assert!(answer.runs[0].cancelled);
}
