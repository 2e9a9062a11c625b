//! What the history keeps of runs that have ended: told alike from whatever form it is kept in, for as long as its bounds
//! say, and within them.

use ringfence::api::proto::run_info::End;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    CancelRunRequest, ListRunsRequest, Outcome, RunInfo, RunSpec, RunState,
};

use crate::harness::{Daemon, SpecExt, Story, by_digest, kit, read, spec, until, until_idle};

/// All that the daemon remembers, the newest first.
async fn listed(daemon: &Daemon) -> Vec<RunInfo> {
    daemon.list(ListRunsRequest::default()).await.runs
}

/// As a listing tells a run: without what makes one long.
fn shortened(mut run: RunInfo) -> RunInfo {
    if let Some(End::Result(result)) = &mut run.end {
        result.values.clear();
        if let Some(trap) = &mut result.trap {
            trap.backtrace.clear();
        }
    }
    run
}

async fn attached(daemon: &Daemon, id: &str) -> Story {
    read(daemon.attach(id, 0).await).await
}

#[tokio::test]
async fn every_kind_of_end_is_told_as_its_caller_was_told() {
    let daemon = Daemon::start().await;
    let sum = r#"(module (func (export "sum") (param i32 i64) (result i64 i32 f64)
        (i64.add (i64.extend_i32_s (local.get 0)) (local.get 1)) (local.get 0) (f64.const 1.5)))"#;
    let trap = r#"(module (func $deep unreachable) (func (export "_start") (call $deep)))"#;
    let runs: [(RunSpec, Outcome); 8] = [
        (kit(&["hello"]), Outcome::Exited),
        (kit(&["exit", "3"]).label("a", "b"), Outcome::Exited),
        (kit(&["both", "40"]), Outcome::Exited),
        (spec(trap).label("of", "a trap"), Outcome::Trapped),
        (spec(sum).entry("sum").args(&["-2", "44"]), Outcome::Exited),
        (
            kit(&["flood", "2000"]).resources(|r| r.output_limit = Some(1000)),
            Outcome::OutputExceeded,
        ),
        (
            kit(&["spin"]).resources(|r| r.fuel_limit = Some(1_000_000)),
            Outcome::FuelExhausted,
        ),
        (kit(&["hello"]).key("whole"), Outcome::Exited),
    ];
    let mut told = Vec::new();
    for (run, outcome) in runs {
        let ran = daemon.ran(run.clone()).await.ended(outcome);
        let id = ran.result.run_id.clone();
        let info = daemon.get(&id).await;
        assert_eq!(info.state(), RunState::Ended);
        assert_eq!(info.end, Some(End::Result(Box::new(ran.result.clone()))));
        assert_eq!(info.granted, ran.result.granted);
        assert_eq!(info.module_digest, ran.result.module_digest);
        assert_eq!(info.labels, run.labels);
        let usage = info.usage.unwrap();
        assert_eq!(
            (usage.stdout_bytes, usage.stderr_bytes, usage.memory_used),
            (
                ran.result.stdout_bytes,
                ran.result.stderr_bytes,
                ran.result.memory_used
            )
        );
        // More than once: it is made whole for each reader, and packed away behind the last.
        for _ in 0..2 {
            let story = attached(&daemon, &id).await;
            assert_eq!(
                (story.stdout, story.stderr),
                (ran.stdout.to_vec(), ran.stderr.to_vec())
            );
            assert_eq!(story.exit.as_ref(), Some(&ran.result));
            assert_eq!(info.next_seq, story.events.len() as u64);
            assert_eq!(daemon.get(&id).await, info);
        }
        told.push(info);
    }
    told.reverse();
    let told: Vec<RunInfo> = told.into_iter().map(shortened).collect();
    assert_eq!(listed(&daemon).await, told);
}

#[tokio::test]
async fn a_run_is_told_alike_while_it_is_read_and_after() {
    let daemon = Daemon::start().await;
    let run = kit(&["both", "200"]).label("read", "by several");
    let mut caller = daemon.stream(run).await.unwrap();
    let id = caller.message().await.unwrap().unwrap().run_id;
    let ended = |run: &RunInfo| run.state() == RunState::Ended;
    let info = daemon.until_run(&id, ended).await;
    // Its caller holds it yet; one viewer comes and goes, another stays longer than the caller.
    let first = attached(&daemon, &id).await;
    let mut late = daemon.attach(&id, 0).await;
    let mut story = Story::default();
    story.add(late.message().await.unwrap().unwrap());
    assert_eq!(daemon.get(&id).await, info);
    drop(caller);
    assert_eq!(daemon.get(&id).await, info);
    let second = attached(&daemon, &id).await;
    let story = crate::harness::read_on(late, story).await;
    assert_eq!(story.events, first.events);
    assert_eq!(second.events, first.events);
    assert_eq!(daemon.get(&id).await, info);
    assert_eq!(listed(&daemon).await, [info]);
}

#[tokio::test]
async fn pages_go_on_in_order_while_runs_end_and_others_come() {
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let run = |args: &[&str]| by_digest(&digest).args(args);
    let mut asked = Vec::new();
    for i in 0..8 {
        // Every other one goes on.
        let id = if i % 2 == 0 {
            daemon.ran(run(&["kit", "hello"])).await.result.run_id
        } else {
            let mut stream = daemon.stream(run(&["kit", "spin"]).detach()).await.unwrap();
            stream.message().await.unwrap().unwrap().run_id
        };
        asked.push(id);
    }
    let live: Vec<String> = asked.iter().skip(1).step_by(2).cloned().collect();
    let mut ending = live.iter().rev();
    let mut request = ListRunsRequest {
        page_size: 2,
        ..ListRunsRequest::default()
    };
    let mut told = Vec::new();
    loop {
        let page = daemon.list(request.clone()).await;
        told.extend(page.runs.iter().map(|run| run.run_id.clone()));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
        // What ends moves to another place, and keeps its own in the list.
        if let Some(id) = ending.next() {
            let run_id = id.clone();
            let mut runs = daemon.runs().await;
            let cancelled = runs.cancel_run(CancelRunRequest { run_id }).await;
            assert!(cancelled.unwrap().into_inner().cancelled);
        }
        daemon.ran(run(&["kit", "hello"])).await;
    }
    asked.reverse();
    assert_eq!(told, asked);
    // Those that came between two pages stand before them.
    let again = listed(&daemon).await;
    let again: Vec<&str> = again.iter().map(|run| run.run_id.as_str()).collect();
    assert!(again.is_sorted_by(|newer, older| newer > older));
    assert_eq!(again[again.len() - asked.len()..], asked);
    assert_eq!(again.len(), asked.len() + 3);
}

#[tokio::test]
async fn what_is_forgotten_gives_its_output_back() {
    let daemon = Daemon::with(&[("runs.history", "4")]).await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let run = || by_digest(&digest).args(&["kit", "flood", "30000"]);
    let logged = || daemon.probe.remembered().0;
    let mut ids = vec![daemon.ran(run()).await.result.run_id];
    // A caller has its answer before the run is packed away.
    until(&daemon, |_, _| logged() < 60_000).await;
    let one = logged();
    assert!(one > 30_000, "{one}");
    for _ in 1..10 {
        ids.push(daemon.ran(run()).await.result.run_id);
    }
    until(&daemon, |_, _| logged() == 4 * one).await;
    // Reading it takes no more of it, and makes none of it older.
    for id in &ids[6..] {
        assert_eq!(attached(&daemon, id).await.stdout.len(), 30_000);
    }
    assert_eq!(logged(), 4 * one);
    // One that is held when it is forgotten is read to its end.
    let held = daemon.attach(&ids[6], 0).await;
    for _ in 0..4 {
        daemon.ran(run()).await;
    }
    let story = read(held).await;
    assert_eq!(story.stdout.len(), 30_000);
    for _ in 0..4 {
        daemon.ran(kit(&["exit", "0"])).await;
    }
    until_idle(&daemon).await;
    let runs = listed(&daemon).await;
    assert_eq!(runs.len(), 4);
    for run in runs {
        assert_eq!(run.usage.unwrap().stdout_bytes, 0);
    }
    until(&daemon, |_, _| logged() == 0).await;
}

/// Bytes of a run's standard output that can be read yet.
async fn kept(daemon: &Daemon, id: &str) -> usize {
    let mut stream = daemon.attach(id, 0).await;
    let (mut bytes, mut ended) = (0, false);
    while let Some(event) = stream.message().await.unwrap() {
        let event = event.event.unwrap();
        ended |= matches!(event, Event::Exit(_));
        if let Event::Stdout(piece) = event {
            bytes += piece.len();
        }
    }
    assert!(ended);
    bytes
}

#[tokio::test]
async fn output_goes_in_the_order_in_which_runs_ended() {
    let budget = 2 << 20;
    let daemon = Daemon::with(&[("runs.log_budget", "2MiB")]).await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let run = || by_digest(&digest).args(&["kit", "flood", "300000"]);
    let mut ids = Vec::new();
    for _ in 0..12 {
        let story = read(daemon.stream(run()).await.unwrap()).await;
        ids.push(story.exit.unwrap().run_id);
        // One that is read again keeps its turn.
        kept(&daemon, &ids[0]).await;
    }
    let mut left = Vec::new();
    for id in &ids {
        left.push(kept(&daemon, id).await);
        assert!(daemon.probe.remembered().0 <= budget);
    }
    assert!(left.is_sorted(), "{left:?}");
    assert_eq!((left[0], left[11]), (0, 300_000));
    assert_eq!(listed(&daemon).await.len(), 12, "their records stay");
}
