//! CancelRun: whatever a run is doing, it ends, and its slot is free when the call answers.

use std::time::Duration;

use ringfence::api::proto::run_info::End;
use ringfence::api::proto::{
    CancelCause, CancelRunRequest, CancelRunResponse, ListRunsRequest, Outcome, RunRequest,
    RunSpec, RunState,
};
use tonic::Code;

use crate::harness::{
    Daemon, Refused, SpecExt, kit, kit_component, read, read_on, spec, told_id, until,
};

const LONG: Duration = Duration::from_secs(120);

async fn cancel(daemon: &Daemon, run_id: &str) -> CancelRunResponse {
    let run_id = run_id.to_owned();
    let answer = daemon
        .runs()
        .await
        .cancel_run(CancelRunRequest { run_id })
        .await;
    answer.unwrap().into_inner()
}

/// The one run that has not ended.
async fn only_run(daemon: &Daemon) -> String {
    let going = [RunState::Compiling, RunState::Queued, RunState::Running];
    let start = std::time::Instant::now();
    loop {
        assert!(start.elapsed() < crate::harness::PATIENCE, "one run");
        let request = ListRunsRequest {
            states: going.map(i32::from).to_vec(),
            ..ListRunsRequest::default()
        };
        let page = daemon.list(request).await;
        if let [run] = &page.runs[..] {
            return run.run_id.clone();
        }
    }
}

#[track_caller]
fn is_gone(daemon: &Daemon, answer: &CancelRunResponse) {
    assert_eq!(daemon.probe.pooled_instances(), 0);
    assert_eq!(answer.found(), RunState::Running);
    assert!(answer.cancelled);
    let run = answer.run.as_ref().unwrap();
    assert_eq!(run.state(), RunState::Ended);
    let Some(End::Result(result)) = &run.end else {
        panic!("{:?}", run.end)
    };
    assert_eq!(result.outcome(), Outcome::Cancelled);
    assert_eq!(result.cancel_cause(), CancelCause::CancelRpc);
    assert_eq!(result.exit_code, None);
}

async fn a_guest_at_it_is_ended(run: RunSpec, written: u64) {
    let daemon = Daemon::with(&[("admission.slots", "1"), ("admission.queue", "0")]).await;
    let stream = daemon.stream(run.timeout(LONG)).await.unwrap();
    let id = only_run(&daemon).await;
    let begun = |run: &ringfence::api::proto::RunInfo| {
        run.usage
            .as_ref()
            .is_some_and(|usage| usage.stdout_bytes >= written)
    };
    daemon.until_run(&id, begun).await;
    let answer = cancel(&daemon, &id).await;
    is_gone(&daemon, &answer);
    // The only slot is free.
    daemon.ran(kit(&["hello"])).await.exited(0);
    let story = read(stream).await;
    let exit = story.exit.unwrap();
    assert_eq!(exit.cancel_cause(), CancelCause::CancelRpc);
    assert_eq!(
        exit.stdout_bytes,
        story.stdout.len() as u64,
        "nothing is lost"
    );

    let again = cancel(&daemon, &id).await;
    assert_eq!((again.found(), again.cancelled), (RunState::Ended, false));
    assert_eq!(again.run, answer.run);
}

cases!(a_guest_at_it_is_ended:
    a_spinner(kit(&["spin", "x"]), 2),
    a_spinner_in_a_component(kit_component(&["spin", "x"]), 2),
    a_sleeper(kit(&["sleep", "3600000"]), 7),
    a_sleeper_in_a_component(kit_component(&["sleep", "3600000"]), 7),
    // Its caller reads nothing until it is gone: by then there is no more room.
    one_that_waits_for_a_slow_reader(kit(&["flood", "1000000000"]), 1 << 20),
);

#[tokio::test]
async fn a_captured_run_answers_its_caller_with_what_there_was() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client.clone();
    let request = RunRequest {
        spec: Some(kit(&["sleep", "3600000"]).timeout(LONG)),
    };
    let call = tokio::spawn(async move { client.run(request).await });
    let id = only_run(&daemon).await;
    daemon
        .until_run(&id, |run| {
            run.usage.as_ref().is_some_and(|u| u.stdout_bytes > 0)
        })
        .await;
    is_gone(&daemon, &cancel(&daemon, &id).await);
    let answer = call.await.unwrap().unwrap().into_inner();
    assert_eq!(answer.stdout, "before\n");
    assert_eq!(
        answer.result.unwrap().cancel_cause(),
        CancelCause::CancelRpc
    );
}

#[tokio::test]
async fn one_that_compiles_is_refused_at_once() {
    let daemon = Daemon::start().await;
    let mut client = daemon.client.clone();
    let request = RunRequest {
        spec: Some(spec(slow_module())),
    };
    let call = tokio::spawn(async move { client.run(request).await });
    let id = only_run(&daemon).await;
    let answer = cancel(&daemon, &id).await;
    assert_eq!(answer.found(), RunState::Compiling);
    never_started(&answer);
    let status = call.await.unwrap().unwrap_err();
    Refused::new(&status).is(Code::Cancelled, "RUN_CANCELLED");
    assert_eq!(told_id(status.metadata()), id);
    let again = cancel(&daemon, &id).await;
    assert_eq!((again.found(), again.cancelled), (RunState::Ended, false));
}

#[track_caller]
fn never_started(answer: &CancelRunResponse) {
    assert!(answer.cancelled);
    let run = answer.run.as_ref().unwrap();
    assert_eq!((run.state(), run.started), (RunState::Ended, None));
    let Some(End::Error(error)) = &run.end else {
        panic!("{:?}", run.end)
    };
    assert_eq!(error.reason, "RUN_CANCELLED");
}

/// A module that takes a while to compile.
pub(crate) fn slow_module() -> String {
    let mut wat = String::from("(module (func (export \"_start\"))");
    for i in 0..16_000 {
        let statement = format!("(local.set 0 (i32.mul (local.get 0) (i32.const {i})))");
        wat.push_str(&format!("(func (param i32) {})", statement.repeat(12)));
    }
    wat.push(')');
    wat
}

#[tokio::test]
async fn one_that_waits_for_a_slot_leaves_the_queue() {
    let daemon = Daemon::with(&[("admission.slots", "1")]).await;
    let spinner = daemon.stream(kit(&["spin"]).timeout(LONG)).await.unwrap();
    let mut client = daemon.client.clone();
    let request = RunRequest {
        spec: Some(kit(&["hello"])),
    };
    let call = tokio::spawn(async move { client.run(request).await });
    until(&daemon, |_, queued| queued == 1).await;
    let page = daemon.list(ListRunsRequest {
        states: vec![RunState::Queued.into()],
        ..ListRunsRequest::default()
    });
    let id = page.await.runs[0].run_id.clone();
    let answer = cancel(&daemon, &id).await;
    assert_eq!(answer.found(), RunState::Queued);
    never_started(&answer);
    until(&daemon, |in_flight, queued| (in_flight, queued) == (1, 0)).await;
    let status = call.await.unwrap().unwrap_err();
    Refused::new(&status).is(Code::Cancelled, "RUN_CANCELLED");
    drop(spinner);
}

#[tokio::test]
async fn the_unknown_cannot_be_cancelled() {
    let daemon = Daemon::start().await;
    for (instance, code, reason) in [
        ("test", Code::NotFound, "RUN_NOT_FOUND"),
        ("elsewhere", Code::FailedPrecondition, "RUN_ELSEWHERE"),
    ] {
        let run_id = format!("{}.{instance}", "0".repeat(32));
        let status = daemon
            .runs()
            .await
            .cancel_run(CancelRunRequest { run_id })
            .await;
        Refused::new(&status.unwrap_err())
            .is(code, reason)
            .at("run_id");
    }
}

#[tokio::test]
async fn twenty_at_once_end_it_once() {
    let daemon = Daemon::start().await;
    let stream = daemon.stream(kit(&["spin"]).timeout(LONG)).await.unwrap();
    let id = only_run(&daemon).await;
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (client, run_id) = (daemon.runs(), id.clone());
            async move {
                let answer = client.await.cancel_run(CancelRunRequest { run_id }).await;
                answer.unwrap().into_inner().cancelled
            }
        })
        .collect();
    let by = futures_util::future::join_all(calls).await;
    assert_eq!(by.iter().filter(|cancelled| **cancelled).count(), 1);
    let story = read_on(stream, Default::default()).await;
    assert_eq!(story.outcome(), Outcome::Cancelled);
}

#[tokio::test]
async fn a_run_that_ended_by_itself_was_not_cancelled() {
    let daemon = Daemon::start().await;
    let id = daemon.ran(kit(&["exit", "7"])).await.result.run_id;
    let answer = cancel(&daemon, &id).await;
    assert_eq!((answer.found(), answer.cancelled), (RunState::Ended, false));
    let Some(End::Result(result)) = answer.run.unwrap().end else {
        panic!()
    };
    assert_eq!(result.exit_code, Some(7));
}
