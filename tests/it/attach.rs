//! AttachRun: replay, many viewers, what is lost and what never is; callers that leave or stop reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    CancelCause, CancelRunRequest, Outcome, RunInfo, RunState, RunStreamRequest, StreamEvent,
};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tonic::{Code, Streaming};

use crate::harness::{Daemon, Refused, SpecExt, Story, attach, by_digest, kit, read, read_on};

/// What a viewer was told, from event `from` on, checked as it goes.
#[derive(Debug, Default)]
struct Seen {
    next: u64,
    stdout: Vec<u8>,
    lost: u64,
    exit: Option<ringfence::api::proto::RunResult>,
}

impl Seen {
    fn from(next: u64) -> Self {
        Self {
            next,
            ..Self::default()
        }
    }

    fn add(&mut self, event: &StreamEvent) {
        assert!(self.exit.is_none(), "nothing after the terminal event");
        if let Some(Event::Lost(lost)) = &event.event {
            assert_eq!(
                (event.seq, lost.first_seq),
                (self.next.wrapping_sub(1), self.next)
            );
            assert!(lost.count > 0);
            self.next += lost.count;
            self.lost += lost.count;
            return;
        }
        assert_eq!(event.seq, self.next, "no gaps but those that are told");
        self.next += 1;
        match &event.event {
            Some(Event::Started(_)) => assert_eq!(event.seq, 0),
            Some(Event::Stdout(bytes)) => self.stdout.extend_from_slice(bytes),
            Some(Event::Stderr(_)) => {}
            Some(Event::Exit(result)) => self.exit = Some((**result).clone()),
            other => panic!("unexpected {other:?}"),
        }
    }

    async fn rest(mut self, mut stream: Streaming<StreamEvent>) -> Self {
        while let Some(event) = stream.message().await.expect("it does not break") {
            self.add(&event);
        }
        assert!(self.exit.is_some(), "one terminal event");
        self
    }
}

fn lines(n: usize) -> String {
    (0..n).map(|i| format!("line {i}\n")).collect()
}

#[tokio::test]
async fn what_ended_is_replayed_from_anywhere() {
    let daemon = Daemon::start().await;
    let told = read(daemon.stream(kit(&["both", "50"])).await.unwrap()).await;
    let id = told.exit.as_ref().unwrap().run_id.clone();
    let last = told.events.len() as u64 - 1;
    for from in [0, 1, 2, last / 2, last - 1, last] {
        let mut stream = daemon.attach(&id, from).await;
        let mut again = Vec::new();
        while let Some(event) = stream.message().await.unwrap() {
            again.push(event);
        }
        assert_eq!(
            again,
            told.events[usize::try_from(from).unwrap()..],
            "from {from}"
        );
    }
    let request = ringfence::api::proto::AttachRunRequest {
        run_id: id,
        from_seq: last + 1,
    };
    let status = daemon.runs().await.attach_run(request).await.unwrap_err();
    Refused::new(&status)
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("from_seq")
        .with("asked", last + 1)
        .with("allowed", last);
}

#[tokio::test]
async fn a_captured_run_has_a_log_too() {
    let daemon = Daemon::start().await;
    let ran = daemon.ran(kit(&["both", "20"])).await.exited(0);
    let story = read(daemon.attach(&ran.result.run_id, 0).await).await;
    assert_eq!(
        (&story.stdout, &story.stderr),
        (&ran.stdout.to_vec(), &ran.stderr.to_vec())
    );
    assert_eq!(story.exit, Some(ran.result));
}

/// Starts a detached run, leaves it once it has started, and returns its id.
async fn leave(daemon: &Daemon, run: ringfence::api::proto::RunSpec) -> String {
    let mut stream = daemon.stream(run.detach()).await.unwrap();
    stream.message().await.unwrap().unwrap().run_id
}

#[tokio::test]
async fn a_detached_run_goes_on_without_its_caller() {
    let daemon = Daemon::start().await;
    let id = leave(&daemon, kit(&["count", "1000"])).await;
    let seen = Seen::default().rest(daemon.attach(&id, 0).await).await;
    assert_eq!((seen.stdout, seen.lost), (lines(1000).into_bytes(), 0));
    assert_eq!(seen.exit.unwrap().exit_code, Some(0));
    assert!(daemon.get(&id).await.detached);

    // Beyond its caller's patience too.
    let run = kit(&["sleep", "1500"]).detach();
    let request = RunStreamRequest { spec: Some(run) };
    let hasty = crate::harness::within(request, Duration::from_millis(1000));
    let mut stream = daemon
        .client
        .clone()
        .run_stream(hasty)
        .await
        .unwrap()
        .into_inner();
    let id = stream.message().await.unwrap().unwrap().run_id;
    while let Ok(Some(_)) = stream.message().await {}
    let story = read(daemon.attach(&id, 0).await).await;
    assert_eq!(story.outcome(), Outcome::Exited);
    assert_eq!(story.stdout, b"before\nafter\n");
}

#[tokio::test]
async fn a_detached_run_goes_on_when_its_caller_leaves_before_it_starts() {
    let daemon = Daemon::with(&[("admission.slots", "1")]).await;
    let spinner = daemon.stream(kit(&["spin"])).await.unwrap();
    let mut client = daemon.client.clone();
    let request = ringfence::api::proto::RunRequest {
        spec: Some(kit(&["hello"]).detach().label("who", "left")),
    };
    let call = tokio::spawn(async move { client.run(request).await });
    let id = crate::harness::leave_the_queue(&daemon, call, ("who", "left")).await;
    drop(spinner);
    let story = read(daemon.attach(&id, 0).await).await;
    assert_eq!(story.stdout, b"hello\n");
}

#[tokio::test]
async fn output_that_is_not_kept_is_told_as_lost() {
    let daemon = Daemon::with(&[("runs.log_bytes", "128KiB")]).await;
    let id = leave(&daemon, kit(&["count", "100000"])).await;
    // Its slot is free a moment before its log is complete.
    daemon
        .until_run(&id, |run| run.state() == RunState::Ended)
        .await;
    let whole = lines(100_000).into_bytes();
    let seen = Seen::default().rest(daemon.attach(&id, 0).await).await;
    assert!(seen.lost > 0);
    let kept = seen.stdout.len();
    assert!(
        whole.ends_with(&seen.stdout),
        "{kept} bytes are not its end"
    );
    // An event that grows from 32 to 64 KiB has the one before it go, and is all that is kept then: 32 KiB less the write
    // that made it grow.
    assert!(kept > 31 << 10, "{kept} bytes are kept");
    let exit = seen.exit.unwrap();
    assert_eq!(
        exit.stdout_bytes,
        whole.len() as u64,
        "lost to the viewer, not to the count"
    );
    // From the middle of what is lost.
    let seen = Seen::from(2).rest(daemon.attach(&id, 2).await).await;
    assert!(seen.lost > 0 && whole.ends_with(&seen.stdout));
}

/// Carries bytes to `to`, until it is cut.
async fn wire(to: String) -> (String, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let carry = tokio::spawn(async move {
        let (mut here, _) = listener.accept().await.unwrap();
        let mut there = TcpStream::connect(to).await.unwrap();
        // Cut in the middle, it is what the test is about.
        let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
    });
    (addr, carry)
}

/// The same numbers each time, so that a failure can be seen again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_broken_connections_lose_nothing() {
    const LINES: usize = 100_000;
    // Room for all of it, so that a reader may be away for as long as it likes.
    let daemon = Daemon::with(&[("runs.log_bytes", "8MiB"), ("runs.log_budget", "16MiB")]).await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let run = by_digest(&digest)
        .args(&["kit", "count", &LINES.to_string()])
        .detach();
    let whole = lines(LINES).into_bytes();
    let mut dice = Dice(7);
    let mut cuts = 0;
    for round in 0..200 {
        let mut seen = Seen::default();
        let mut id: Option<String> = None;
        while seen.exit.is_none() {
            let (addr, carry) = wire(daemon.addr.clone()).await;
            let channel = crate::harness::channel(&addr).await;
            let mut stream = match &id {
                None => {
                    let mut client =
                        ringfence::api::proto::sandbox_service_client::SandboxServiceClient::new(
                            channel,
                        );
                    let request = RunStreamRequest {
                        spec: Some(run.clone()),
                    };
                    client.run_stream(request).await.unwrap().into_inner()
                }
                Some(id) => {
                    let mut runs = crate::harness::Runs::new(channel);
                    attach(&mut runs, id, seen.next).await
                }
            };
            // The first connection always breaks, one in three of the others too.
            let breaks = id.is_none() || dice.below(3) == 0;
            let after = if breaks { 1 + dice.below(40) } else { u64::MAX };
            for _ in 0..after {
                match stream.message().await {
                    Ok(Some(event)) => {
                        id.get_or_insert_with(|| event.run_id.clone());
                        seen.add(&event);
                    }
                    Ok(None) => {
                        assert!(seen.exit.is_some(), "round {round}: no terminal event");
                        break;
                    }
                    Err(status) => panic!("round {round}: {status:?}"),
                }
            }
            if breaks {
                carry.abort();
                assert!(
                    carry.await.is_err_and(|error| error.is_cancelled()) || seen.exit.is_some()
                );
                // What had come in before the cut may still be read.
                while let Ok(Some(event)) = stream.message().await {
                    seen.add(&event);
                }
                cuts += 1;
            }
        }
        assert_eq!(seen.lost, 0, "round {round}");
        assert!(seen.stdout == whole, "round {round}");
    }
    assert!(cuts >= 200);
}

/// Bytes that a run has written so far.
fn written(run: &RunInfo) -> u64 {
    run.usage.as_ref().map_or(0, |usage| usage.stdout_bytes)
}

#[tokio::test]
async fn a_caller_that_stops_reading_makes_the_guest_wait_and_then_ends_it() {
    let daemon = Daemon::with(&[("runs.stall_timeout", "2s")]).await;
    const BYTES: usize = 50_000_000;
    let run = kit(&["flood", &BYTES.to_string()]);
    let mut stream = daemon.stream(run).await.unwrap();
    let first = stream.message().await.unwrap().unwrap();
    let id = first.run_id.clone();
    let mut story = Story::default();
    story.add(first);
    // It reads nothing now. The guest fills what room there is, and no more.
    let ended = daemon
        .until_run(&id, |run| run.state() == RunState::Ended)
        .await;
    assert!(written(&ended) < 4 << 20, "{} bytes ahead", written(&ended));
    let (logs, ..) = daemon.probe.remembered();
    assert!(logs <= 2 << 20, "{logs} bytes of log");
    // What was written is there, and then why there is no more.
    let story = read_on(stream, story).await;
    let exit = story.exit.as_ref().unwrap();
    assert_eq!(exit.outcome(), Outcome::Cancelled);
    assert_eq!(exit.cancel_cause(), CancelCause::ReaderStalled);
    assert_eq!(story.stdout.len() as u64, exit.stdout_bytes);
    assert_eq!(written(&ended), exit.stdout_bytes);
}

#[tokio::test]
async fn a_detached_run_goes_on_without_a_caller_that_stops_reading() {
    let daemon = Daemon::with(&[("runs.stall_timeout", "1s")]).await;
    const BYTES: u64 = 20_000_000;
    let run = kit(&["flood", &BYTES.to_string()]).detach();
    let mut stream = daemon.stream(run).await.unwrap();
    let mut seen = Seen::default();
    let first = stream.message().await.unwrap().unwrap();
    seen.add(&first);
    let ended = daemon
        .until_run(&first.run_id, |run| run.state() == RunState::Ended)
        .await;
    assert_eq!(written(&ended), BYTES);
    // It is told what it lost by not reading, and the end.
    let seen = seen.rest(stream).await;
    assert!(seen.lost > 0);
    assert_eq!(seen.exit.unwrap().exit_code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_viewers_do_not_slow_the_guest() {
    let daemon = Arc::new(Daemon::with(&[("runs.log_bytes", "1MiB")]).await);
    // About 3 MB in some thirty writes' time each.
    let run = kit(&["drip", "3000"]).timeout(Duration::from_secs(100));
    let id = leave(&daemon, run).await;
    // One that never reads.
    let frozen = daemon.attach(&id, 0).await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut viewers = Vec::new();
    for i in 0..49u32 {
        let (daemon, id, stop) = (Arc::clone(&daemon), id.clone(), Arc::clone(&stop));
        viewers.push(tokio::spawn(async move {
            let mut stream = daemon.attach(&id, 0).await;
            let mut seen = Seen::default();
            while let Some(event) = stream.message().await.unwrap() {
                seen.add(&event);
                // Each gives way to others in its own measure.
                for _ in 0..i {
                    tokio::task::yield_now().await;
                }
            }
            stop.store(true, Ordering::Relaxed);
            seen
        }));
    }
    let mut most = 0;
    let start = std::time::Instant::now();
    while !stop.load(Ordering::Relaxed) {
        assert!(start.elapsed() < crate::harness::PATIENCE, "no viewer ends");
        most = most.max(daemon.probe.remembered().0);
        tokio::task::yield_now().await;
    }
    let whole = drops(3000);
    for viewer in viewers {
        let seen = viewer.await.unwrap();
        assert_eq!(seen.lost, 0);
        assert!(seen.stdout == whole);
        assert_eq!(seen.exit.unwrap().outcome(), Outcome::Exited);
    }
    assert!(most <= (1 << 20) + (64 << 10), "{most} bytes of log");
    // The run has ended long before the frozen one reads, and it learns of what it missed.
    let seen = Seen::default().rest(frozen).await;
    assert!(seen.lost > 0, "{} bytes", seen.stdout.len());
    assert_eq!(seen.exit.unwrap().exit_code, Some(0));
    assert!(seen.stdout.len() < whole.len());
}

/// What the kit's `drip` writes.
fn drops(n: usize) -> Vec<u8> {
    (0..n)
        .flat_map(|i| format!("{i:01023}\n").into_bytes())
        .collect()
}

#[tokio::test]
async fn a_viewer_that_leaves_changes_nothing() {
    let daemon = Daemon::start().await;
    let mut caller = daemon.stream(kit(&["spin", "x"])).await.unwrap();
    let id = caller.message().await.unwrap().unwrap().run_id;
    for _ in 0..20 {
        let mut viewer = daemon.attach(&id, 0).await;
        viewer.message().await.unwrap().unwrap();
    }
    assert_eq!(daemon.get(&id).await.state(), RunState::Running);
    // Its caller does.
    let viewer = daemon.attach(&id, 0).await;
    drop(caller);
    let story = read(viewer).await;
    let exit = story.exit.unwrap();
    assert_eq!(exit.cancel_cause(), CancelCause::CallerGone);
    assert_eq!(story.stdout, b"x\n");
}

#[tokio::test]
async fn a_viewer_may_come_before_the_start() {
    let daemon = Daemon::with(&[("admission.slots", "1")]).await;
    let spinner = daemon.stream(kit(&["spin"])).await.unwrap();
    let runs = [kit(&["hello"]), kit(&["hello"])].map(|run| {
        let mut client = daemon.client.clone();
        let request = ringfence::api::proto::RunRequest {
            spec: Some(run.label("waits", "yes")),
        };
        tokio::spawn(async move { client.run(request).await })
    });
    crate::harness::until(&daemon, |_, queued| queued == 2).await;
    let page = daemon.labelled("waits", "yes").await;
    let (starts, refused) = (page[0].run_id.clone(), page[1].run_id.clone());
    let (starts, mut refused_stream) = (
        daemon.attach(&starts, 0).await,
        daemon.attach(&refused, 0).await,
    );
    let run_id = refused;
    daemon
        .runs()
        .await
        .cancel_run(CancelRunRequest { run_id })
        .await
        .unwrap();
    let event = refused_stream.message().await.unwrap().unwrap();
    assert!(matches!(&event.event, Some(Event::Error(error)) if error.reason == "RUN_CANCELLED"));
    assert!(refused_stream.message().await.unwrap().is_none());
    drop(spinner);
    assert_eq!(read(starts).await.stdout, b"hello\n");
    for run in runs {
        let _ = run.await.unwrap();
    }
}

#[tokio::test]
async fn all_logs_together_stay_within_their_budget() {
    let budget = 2 << 20;
    let daemon = Daemon::with(&[("runs.log_budget", "2MiB"), ("runs.log_bytes", "1MiB")]).await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let mut ids = Vec::new();
    for _ in 0..12 {
        let run = by_digest(&digest)
            .args(&["kit", "flood", "500000"])
            .detach();
        let id = leave(&daemon, run).await;
        daemon
            .until_run(&id, |run| run.state() == RunState::Ended)
            .await;
        assert!(daemon.probe.remembered().0 <= budget);
        ids.push(id);
    }
    let (logs, runs, _) = daemon.probe.remembered();
    assert!(logs <= budget, "{logs}");
    assert_eq!(runs, 12, "their records stay");
    // The newest has its output, the oldest has let it go; both have their end.
    let whole = vec![b'x'; 500_000];
    let oldest = Seen::default().rest(daemon.attach(&ids[0], 0).await).await;
    assert_eq!(
        (oldest.stdout.len(), oldest.exit.unwrap().exit_code),
        (0, Some(0))
    );
    assert!(oldest.lost > 0);
    let mut complete = 0;
    for id in &ids {
        let seen = Seen::default().rest(daemon.attach(id, 0).await).await;
        complete += usize::from(seen.stdout == whole);
    }
    assert!(complete >= 1, "{complete}");
}

#[tokio::test]
async fn runs_that_go_on_give_what_is_read_when_others_need_room() {
    let daemon = Daemon::with(&[("runs.log_budget", "1536KiB")]).await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        // Each writes what one log holds however its events are cut, all of them more than there is room for, and goes on
        // in silence.
        let run = kit(&["flood", "500000", "stay"]).timeout(Duration::from_secs(100));
        let id = leave(&daemon, run).await;
        daemon.until_run(&id, |run| written(run) == 500_000).await;
        ids.push(id);
        assert!(daemon.probe.remembered().0 <= 1536 << 10);
    }
    // The one that wrote last still has it.
    let mut stream = daemon.attach(&ids[5], 1).await;
    let mut seen = Seen::from(1);
    while seen.stdout.len() < 500_000 {
        seen.add(&stream.message().await.unwrap().unwrap());
    }
    assert_eq!(seen.lost, 0);
    for run_id in ids {
        let answer = daemon
            .runs()
            .await
            .cancel_run(CancelRunRequest { run_id })
            .await;
        assert!(answer.unwrap().into_inner().cancelled);
    }
}
