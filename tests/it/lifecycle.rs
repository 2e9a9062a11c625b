//! Slots, queues, deadlines, callers that leave, spinners, drains.

use std::time::Duration;

use ringfence::api::proto::sandbox_service_client::SandboxServiceClient;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    CancelCause, HealthRequest, Outcome, RunRequest, RunResponse, RunStreamRequest, ServingStatus,
    StreamEvent,
};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus as Probed;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{
    Daemon, Refused, SpecExt, Story, by_digest, kit, read, spec, until, until_health, until_idle,
    within,
};

const LONG: Duration = Duration::from_secs(60);

/// Starts a run that spins after one line, and returns its stream once that line came.
async fn spinning(daemon: &Daemon, timeout: Duration) -> (tonic::Streaming<StreamEvent>, Story) {
    let run = kit(&["spin", "partial"]).timeout(timeout);
    let mut stream = daemon.stream(run).await.expect("not refused");
    let mut story = Story::default();
    while story.stdout.is_empty() {
        story.add(stream.message().await.unwrap().unwrap());
    }
    (stream, story)
}

#[tokio::test]
async fn spinners_on_every_core_leave_health_and_short_runs_answered() {
    let daemon = Daemon::start().await;
    let cores = std::thread::available_parallelism().unwrap().get();
    let digest = daemon.loaded(crate::guests::kit()).await;
    let mut spinners = Vec::new();
    for _ in 0..=cores {
        spinners.push(spinning(&daemon, Duration::from_secs(15)).await);
    }
    for _ in 0..20 {
        let hello = by_digest(&digest).args(&["kit", "hello"]);
        assert_eq!(daemon.ran(hello).await.exited(0).out(), "hello\n");
        let mut client = daemon.client.clone();
        let health = client.health(HealthRequest {}).await.unwrap().into_inner();
        // All of that while every spinner was still at it.
        assert_eq!(health.runs_in_flight as usize, cores + 1);
    }
    for (stream, story) in spinners {
        let story = crate::harness::read_on(stream, story).await;
        assert_eq!(story.outcome(), Outcome::TimedOut);
        assert_eq!(story.stdout, b"partial\n");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_ends_its_run() {
    let daemon = Daemon::start().await;
    let (stream, _) = spinning(&daemon, LONG).await;
    drop(stream);
    until_idle(&daemon).await;
    for habit in [&["spin"][..], &["sleep", "60000"], &["flood", "100000000"]] {
        let mut client = daemon.client.clone();
        let request = RunRequest {
            spec: Some(
                kit(habit)
                    .timeout(LONG)
                    .resources(|r| r.output_limit = Some(1 << 24)),
            ),
        };
        let call = tokio::spawn(async move { client.run(request).await });
        until(&daemon, |in_flight, _| in_flight == 1 || call.is_finished()).await;
        call.abort();
        until_idle(&daemon).await;
    }
    assert_eq!(daemon.probe.pooled_instances(), 0);
}

#[tokio::test]
async fn a_broken_connection_ends_its_runs() {
    let daemon = Daemon::start().await;
    let mut other = crate::harness::connect(&daemon.addr).await;
    let request = RunStreamRequest {
        spec: Some(kit(&["spin", "x"]).timeout(LONG)),
    };
    let stream = other.run_stream(request).await.unwrap();
    until(&daemon, |in_flight, _| in_flight == 1).await;
    drop((other, stream));
    until_idle(&daemon).await;
}

#[tokio::test]
async fn a_full_queue_refuses_at_once_and_says_when_to_retry() {
    let daemon = Daemon::with(&[("admission.slots", "1"), ("admission.queue", "0")]).await;
    let (stream, _) = spinning(&daemon, LONG).await;
    let refused = daemon.refused(kit(&["hello"])).await;
    assert!(refused.is(Code::ResourceExhausted, "QUEUE_FULL").retry);
    drop(stream);
    until_idle(&daemon).await;
    daemon.ran(kit(&["hello"])).await.exited(0);
}

/// Asks for a run, and returns once it waits for a slot.
async fn queued_hello(daemon: &Daemon) -> tokio::task::JoinHandle<Result<RunResponse, Status>> {
    let mut client = daemon.client.clone();
    let request = RunRequest {
        spec: Some(kit(&["hello"])),
    };
    let waiting = tokio::spawn(async move { Ok(client.run(request).await?.into_inner()) });
    until(daemon, |_, queued| queued == 1).await;
    waiting
}

#[tokio::test]
async fn a_queued_run_starts_when_a_slot_comes_free() {
    let daemon = Daemon::with(&[("admission.slots", "1"), ("admission.queue", "1")]).await;
    let (stream, _) = spinning(&daemon, LONG).await;
    let waiting = queued_hello(&daemon).await;
    daemon
        .refused(kit(&["hello"]))
        .await
        .is(Code::ResourceExhausted, "QUEUE_FULL");
    drop(stream);
    let answer = waiting.await.unwrap().unwrap();
    assert_eq!(answer.stdout, "hello\n");
}

#[tokio::test]
async fn waiting_ends_with_max_wait_or_the_callers_deadline() {
    let daemon = Daemon::with(&[("admission.slots", "1"), ("admission.max_wait", "2s")]).await;
    let (_stream, _) = spinning(&daemon, LONG).await;
    let request = || RunRequest {
        spec: Some(kit(&["hello"])),
    };
    let hasty = within(request(), Duration::from_millis(700));
    let status = daemon.client.clone().run(hasty).await.unwrap_err();
    Refused::new(&status).is(Code::DeadlineExceeded, "NOT_STARTED");
    let refused = daemon.refused(kit(&["hello"])).await;
    assert!(refused.is(Code::ResourceExhausted, "WAIT_EXPIRED").retry);
    until(&daemon, |in_flight, queued| (in_flight, queued) == (1, 0)).await;
}

#[tokio::test]
async fn a_caller_that_leaves_the_queue_takes_no_slot() {
    let daemon = Daemon::with(&[("admission.slots", "1")]).await;
    let (stream, _) = spinning(&daemon, LONG).await;
    let waiting = queued_hello(&daemon).await;
    waiting.abort();
    until(&daemon, |_, queued| queued == 0).await;
    drop(stream);
    until_idle(&daemon).await;
    daemon.ran(kit(&["hello"])).await.exited(0);
}

async fn probe(addr: &str) -> Probed {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{addr}")).unwrap();
    let mut client = HealthClient::new(channel.connect().await.unwrap());
    let request = HealthCheckRequest {
        service: "ringfence.v1.SandboxService".to_owned(),
    };
    client.check(request).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn a_drain_lets_runs_finish_refuses_new_ones_and_says_so() {
    let mut daemon = Daemon::with(&[("server.drain_grace", "60s")]).await;
    let client = daemon.client.clone();
    until(&daemon, |_, _| true).await;
    daemon.ran(kit(&["hello"])).await.exited(0);
    let addr = daemon.addr.clone();
    assert_eq!(probe(&addr).await, Probed::Serving);
    let (stream, story) = spinning(&daemon, Duration::from_secs(3)).await;
    daemon.drain();
    until_health(&client, |health| health.status() == ServingStatus::Draining).await;
    // The admission closes right after: from then on a run is refused.
    let refused = loop {
        match daemon
            .run(spec("(module (func (export \"_start\")))"))
            .await
        {
            Ok(_) => tokio::task::yield_now().await,
            Err(status) => break Refused::new(&status),
        }
    };
    assert!(refused.is(Code::Unavailable, "SHUTTING_DOWN").retry);
    assert_eq!(probe(&addr).await, Probed::NotServing);
    let status: Status = daemon.load("(module)").await.unwrap_err();
    Refused::new(&status).is(Code::Unavailable, "SHUTTING_DOWN");
    let story = crate::harness::read_on(stream, story).await;
    assert_eq!(
        story.outcome(),
        Outcome::TimedOut,
        "its own end, not the drain's"
    );
    drop(client);
    daemon.ended().await.unwrap();
}

#[tokio::test]
async fn a_drain_cancels_what_outlives_the_grace_and_delivers_its_output() {
    let mut daemon = Daemon::with(&[("server.drain_grace", "300ms")]).await;
    let mut running = Vec::new();
    for _ in 0..3 {
        running.push(spinning(&daemon, LONG).await);
    }
    let mut client = daemon.client.clone();
    let unary = tokio::spawn(async move {
        client
            .run(RunRequest {
                spec: Some(kit(&["sleep", "60000"]).timeout(LONG)),
            })
            .await
    });
    until(&daemon, |in_flight, _| in_flight == 4).await;
    daemon.drain();
    for (stream, story) in running {
        let story = crate::harness::read_on(stream, story).await;
        assert_eq!(story.outcome(), Outcome::Cancelled);
        assert_eq!(story.exit.unwrap().cancel_cause(), CancelCause::Draining);
        assert_eq!(story.stdout, b"partial\n");
    }
    let answer = unary.await.unwrap().unwrap().into_inner();
    assert_eq!(answer.result.unwrap().cancel_cause(), CancelCause::Draining);
    assert_eq!(answer.stdout, "before\n");
    daemon.ended().await.unwrap();
}

#[tokio::test]
async fn a_drain_with_an_idle_connection_and_a_silent_one_still_ends() {
    let mut daemon = Daemon::start().await;
    let _silent = tokio::net::TcpStream::connect(&daemon.addr).await.unwrap();
    let _idle = crate::harness::connect(&daemon.addr).await;
    until_idle(&daemon).await;
    daemon.drain();
    daemon.ended().await.unwrap();
}

#[tokio::test]
async fn sixty_four_callers_of_one_new_module_compile_it_once() {
    let daemon = Daemon::start().await;
    let wat = big_module(2000);
    let calls: Vec<_> = (0..64)
        .map(|_| {
            let mut client = daemon.client.clone();
            let request = crate::harness::load(wat.clone());
            tokio::spawn(async move { client.load_module(request).await })
        })
        .collect();
    let mut durations = std::collections::HashSet::new();
    for call in calls {
        let answer = call.await.unwrap().unwrap().into_inner();
        if !answer.cached {
            let took = answer.compile_duration.unwrap();
            durations.insert((took.seconds, took.nanos));
        }
    }
    // Whoever waited was told how long the one compilation took.
    assert_eq!(durations.len(), 1);
}

#[tokio::test]
async fn compiling_blocks_neither_runs_nor_health() {
    let daemon = Daemon::start().await;
    let warm = spec("(module (func (export \"_start\")))");
    daemon.ran(warm.clone()).await.exited(0);
    let mut client = daemon.client.clone();
    let request = crate::harness::load(big_module(16_000));
    let compiling = tokio::spawn(async move { client.load_module(request).await });
    let mut answered = 0;
    while !compiling.is_finished() {
        daemon.ran(warm.clone()).await.exited(0);
        daemon
            .client
            .clone()
            .health(HealthRequest {})
            .await
            .unwrap();
        answered += 1;
    }
    assert!(answered > 3, "{answered} answers while the module compiled");
    assert!(!compiling.await.unwrap().unwrap().into_inner().cached);
}

/// A module of `functions` functions with a few statements each.
fn big_module(functions: usize) -> String {
    let mut wat = String::from("(module (func (export \"_start\"))");
    for i in 0..functions {
        let statement = format!("(local.set 0 (i32.mul (local.get 0) (i32.const {i})))");
        wat.push_str(&format!("(func (param i32) {})", statement.repeat(12)));
    }
    wat.push(')');
    wat
}

#[tokio::test]
async fn read_to_the_end_after_the_daemon_let_go() {
    // What was written before the end is delivered although the run, its store and its slot are gone.
    let daemon = Daemon::start().await;
    let stream = daemon.stream(kit(&["flood", "100000"])).await.unwrap();
    until_idle(&daemon).await;
    let story = read(stream).await;
    assert_eq!(story.stdout.len(), 100_000);
    assert_eq!(story.stderr, b"done");
}

/// A stream of a guest that has ended, most of whose output its reader has no room for.
async fn untaken(daemon: &Daemon, bytes: usize) -> (tonic::Streaming<StreamEvent>, Story) {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{}", daemon.addr))
        .unwrap()
        .initial_stream_window_size(65_535)
        .connect()
        .await
        .unwrap();
    let request = RunStreamRequest {
        spec: Some(kit(&["flood", &bytes.to_string()])),
    };
    let mut stream = SandboxServiceClient::new(channel)
        .run_stream(request)
        .await
        .unwrap()
        .into_inner();
    let mut story = Story::default();
    story.add(stream.message().await.unwrap().unwrap());
    until_idle(daemon).await;
    (stream, story)
}

/// Keeps asking for health for a while; the daemon answers.
async fn for_a_while(daemon: &Daemon, while_: Duration) {
    let start = std::time::Instant::now();
    while start.elapsed() < while_ {
        daemon
            .client
            .clone()
            .health(HealthRequest {})
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_drain_waits_for_what_a_reader_has_not_taken_yet() {
    let mut daemon = Daemon::with(&[("server.drain_grace", "60s")]).await;
    const BYTES: usize = 280_000;
    let (stream, story) = untaken(&daemon, BYTES).await;
    daemon.drain();
    // Longer than what is left to answers once nothing is waited for.
    for_a_while(&daemon, Duration::from_millis(1500)).await;
    let story = crate::harness::read_on(stream, story).await;
    assert_eq!(story.stdout.len(), BYTES);
    assert_eq!(story.outcome(), Outcome::Exited);
    daemon.ended().await.unwrap();
}

#[tokio::test]
async fn an_answer_that_nobody_takes_is_let_go_and_not_told_as_whole() {
    let daemon = Daemon::with(&[("runs.stall_timeout", "200ms")]).await;
    let (mut stream, _) = untaken(&daemon, 280_000).await;
    for_a_while(&daemon, Duration::from_secs(2)).await;
    let mut bytes = 0;
    let broken = loop {
        match stream.message().await {
            Ok(Some(event)) => match event.event {
                Some(Event::Stdout(piece)) => bytes += piece.len(),
                other => panic!("{other:?}"),
            },
            Ok(None) => panic!("it ended as if it were whole"),
            Err(status) => break status,
        }
    };
    assert!(bytes < 280_000);
    assert_ne!(broken.code(), Code::Ok);
    // A large answer arrives whole all the same when it is taken.
    let run = kit(&["flood", "9000000"]).resources(|r| r.output_limit = Some(16 << 20));
    assert_eq!(daemon.ran(run).await.exited(0).stdout.len(), 9_000_000);
}

#[tokio::test]
async fn a_drain_refuses_at_once_what_still_compiles() {
    // The one compile thread is busy with another module for far longer than a refusal takes, and
    // there is no lane of small modules beside it.
    let set = [
        ("server.drain_grace", "60s"),
        ("compile.small_module", "0B"),
    ];
    let mut daemon = Daemon::with(&set).await;
    let mut client = daemon.client.clone();
    let request = crate::harness::load(big_module(16_000));
    let busy = tokio::spawn(async move { client.load_module(request).await });
    until_health(&daemon.client, |health| health.compiles_in_flight == 1).await;
    let mut client = daemon.client.clone();
    let request = RunRequest {
        spec: Some(spec(big_module(100)).label("waits", "yes")),
    };
    let call = tokio::spawn(async move { client.run(request).await });
    until_health(&daemon.client, |health| health.compiles_queued == 1).await;
    daemon.drain();
    let status = call.await.unwrap().unwrap_err();
    assert!(
        Refused::new(&status)
            .is(Code::Unavailable, "SHUTTING_DOWN")
            .retry
    );
    assert!(!busy.is_finished(), "it did not wait for the compiler");
    busy.abort();
    let _ = busy.await;
    daemon.ended().await.unwrap();
}
