//! Streams: order, completeness, backpressure, exactly one terminal event.

use std::time::Duration;

use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{Outcome, RunStreamRequest};
use tonic::Code;

use crate::harness::{Daemon, Refused, SpecExt, Story, kit, kit_component, read, spec, told_id};

#[tokio::test]
async fn started_then_output_in_order_then_exit() {
    let daemon = Daemon::start().await;
    for run in [kit(&["both", "500"]), kit_component(&["both", "500"])] {
        let story = read(daemon.stream(run).await.unwrap()).await;
        let expect = |what: &str| {
            (0..500)
                .map(|i| format!("{what} {i}\n"))
                .collect::<String>()
        };
        assert_eq!(
            String::from_utf8(story.stdout.clone()).unwrap(),
            expect("out")
        );
        assert_eq!(
            String::from_utf8(story.stderr.clone()).unwrap(),
            expect("err")
        );
        let Some(Event::Started(started)) = &story.events[0].event else {
            panic!()
        };
        let exit = story.exit.as_ref().unwrap();
        assert_eq!(exit.exit_code, Some(0));
        assert_eq!(started.module_digest, exit.module_digest);
        assert_eq!(started.granted, exit.granted);
        assert_eq!(exit.stdout_bytes, story.stdout.len() as u64);
        let mut last = (0, 0);
        for event in &story.events {
            assert_eq!(event.run_id, exit.run_id);
            let time = event.time.unwrap();
            assert!(last <= (time.seconds, time.nanos));
            last = (time.seconds, time.nanos);
        }
        // The two streams come in the order they were written.
        let whole: String = story
            .events
            .iter()
            .filter_map(|event| match &event.event {
                Some(Event::Stdout(bytes) | Event::Stderr(bytes)) => {
                    Some(String::from_utf8(bytes.to_vec()).unwrap())
                }
                _ => None,
            })
            .collect();
        let expected: String = (0..500).map(|i| format!("out {i}\nerr {i}\n")).collect();
        assert_eq!(whole, expected);
    }
}

#[tokio::test]
async fn a_slow_reader_loses_nothing() {
    let daemon = Daemon::start().await;
    const BYTES: usize = 20_000_000;
    let mut stream = daemon
        .stream(kit(&["flood", &BYTES.to_string()]))
        .await
        .unwrap();
    let mut story = Story::default();
    while let Some(event) = stream.message().await.unwrap() {
        story.add(event);
        // Others run between any two events, the guest among them, which then waits for this reader.
        tokio::task::yield_now().await;
    }
    assert_eq!(story.stdout.len(), BYTES);
    assert!(story.stdout.iter().all(|byte| *byte == b'x'));
    assert_eq!(story.stderr, b"done");
    assert_eq!(story.exit.unwrap().exit_code, Some(0));
}

#[tokio::test]
async fn output_comes_while_the_guest_runs() {
    let daemon = Daemon::start().await;
    for run in [
        kit(&["spin", "first"]),
        kit_component(&["spin", "first"]),
        kit(&["sleep", "60000"]),
    ] {
        let mut stream = daemon
            .stream(run.timeout(Duration::from_secs(20)))
            .await
            .unwrap();
        let mut story = Story::default();
        while story.stdout.is_empty() {
            story.add(stream.message().await.unwrap().unwrap());
        }
        // The guest is still at it: its line came before its end.
        crate::harness::until(&daemon, |in_flight, _| in_flight == 1).await;
        assert!(story.exit.is_none());
        drop(stream);
        crate::harness::until_idle(&daemon).await;
    }
}

#[tokio::test]
async fn every_outcome_ends_a_stream_with_all_output_before_it() {
    let daemon = Daemon::start().await;
    let quick = Duration::from_millis(500);
    for (run, outcome) in [
        (kit(&["exit", "9"]), Outcome::Exited),
        (kit(&["panic"]), Outcome::Trapped),
        (kit(&["spin", "partial"]).timeout(quick), Outcome::TimedOut),
        (kit(&["sleep", "60000"]).timeout(quick), Outcome::TimedOut),
        (
            spec("(module (func $f (export \"_start\") (call $f)))"),
            Outcome::StackOverflow,
        ),
        (
            kit(&["hog", "64"]).resources(|r| r.memory_pages = Some(100)),
            Outcome::MemoryExceeded,
        ),
        (
            kit(&["spin", "x"]).resources(|r| r.fuel_limit = Some(3_000_000)),
            Outcome::FuelExhausted,
        ),
        (
            kit(&["flood", "1000"]).resources(|r| r.output_limit = Some(999)),
            Outcome::OutputExceeded,
        ),
    ] {
        let story = read(daemon.stream(run).await.unwrap()).await;
        let exit = story.exit.as_ref().unwrap();
        assert_eq!(story.outcome(), outcome);
        assert_eq!(exit.stdout_bytes, story.stdout.len() as u64);
        assert_eq!(exit.stderr_bytes, story.stderr.len() as u64);
    }
}

#[tokio::test]
async fn a_refusal_before_anything_was_sent_is_a_status() {
    let daemon = Daemon::start().await;
    let status = daemon.stream(spec("(module)")).await.unwrap_err();
    Refused::new(&status).is(Code::InvalidArgument, "ENTRY_POINT_NOT_FOUND");
    assert!(status.metadata().contains_key("ringfence-run-id"));
}

#[tokio::test]
async fn the_run_id_is_in_the_initial_metadata() {
    let daemon = Daemon::start().await;
    let request = RunStreamRequest {
        spec: Some(kit(&["hello"])),
    };
    let answer = daemon.client.clone().run_stream(request).await.unwrap();
    let told = told_id(answer.metadata());
    let story = read(answer.into_inner()).await;
    assert_eq!(story.exit.unwrap().run_id, told);
    let request = ringfence::api::proto::RunRequest {
        spec: Some(kit(&["hello"])),
    };
    let answer = daemon.client.clone().run(request).await.unwrap();
    let told = told_id(answer.metadata());
    assert_eq!(answer.into_inner().result.unwrap().run_id, told);
}

#[tokio::test]
async fn ids_sort_by_time_and_are_never_the_same() {
    let daemon = Daemon::start().await;
    let mut ids = Vec::new();
    for _ in 0..50 {
        ids.push(daemon.ran(kit(&["hello"])).await.result.run_id);
    }
    let mut sorted = ids.clone();
    sorted.sort();
    sorted.dedup();
    assert_eq!(ids, sorted);
}
