//! Answers that nobody takes, or that are taken slowly: what they hold is charged to their tenant, bounded, and let go.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use prost::Message;
use ringfence::api::proto::{
    AttachRunRequest, CancelRunRequest, CancelRunsRequest, DeleteModuleRequest, DeleteRunsRequest,
    GetModuleRequest, GetRunRequest, GetStatsRequest, HealthRequest, ListLanguagesRequest,
    ListModulesRequest, ListRunsRequest, ListSessionsRequest, RunRequest, RunResponse, RunSpec,
    RunStreamRequest, SendInputRequest, WatchRunsRequest, WatchStatsRequest,
};
use tokio::task::JoinSet;
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::admin::{ask, value};
use crate::guests::kit as kit_bytes;
use crate::harness::{Daemon, PATIENCE, Refused, SpecExt, by_digest, read, spec, until_idle};
use crate::process::Served;
use crate::tenants::{token, two};

const MIB: u64 = 1 << 20;
/// What is left of an answer that was let go: what HTTP/2 has asked for already.
const LEFT: u64 = 80 << 10;

/// A connection that makes room for `window` bytes of each answer before its caller reads.
pub(crate) async fn deaf(addr: &str, window: u32) -> Channel {
    Endpoint::from_shared(format!("http://{addr}"))
        .unwrap()
        .initial_stream_window_size(window)
        .initial_connection_window_size(1 << 30)
        .connect()
        .await
        .unwrap()
}

/// Calls `method`, and reads no more of the answer than its headers: the status of one that is refused, else its body.
pub(crate) async fn call<M: Message>(
    channel: Channel,
    tenant: Option<&str>,
    method: &str,
    message: &M,
) -> Result<Body, Status> {
    let path = format!("ringfence.v1.{method}");
    call_with(channel, tenant, &path, message.encode_to_vec()).await
}

/// The same, of any service and with any bytes.
async fn call_with(
    mut channel: Channel,
    tenant: Option<&str>,
    path: &str,
    message: Vec<u8>,
) -> Result<Body, Status> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = [&[0], &length[..], &message].concat();
    let body = Full::new(Bytes::from(framed)).map_err(|never| match never {});
    let mut request = http::Request::post(format!("http://localhost/{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(tenant) = tenant {
        request = request.header("authorization", format!("Bearer {}", token(tenant)));
    }
    let request = request.body(Body::new(body)).unwrap();
    std::future::poll_fn(|cx| tower_service::Service::poll_ready(&mut channel, cx))
        .await
        .unwrap();
    let answer = tower_service::Service::call(&mut channel, request);
    let (head, body) = answer.await.unwrap().into_parts();
    match Status::from_header_map(&head.headers) {
        Some(status) => Err(status),
        None => Ok(body),
    }
}

/// Waits until `holds`, asking for health meanwhile.
pub(crate) async fn until(daemon: &Daemon, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < PATIENCE,
            "it does not come to be: {} of runs, {} of answers",
            daemon.probe.reserved_bytes(),
            daemon.probe.answer_bytes()
        );
        health(daemon).await;
    }
}

async fn health(daemon: &Daemon) {
    let mut client = daemon.client.clone();
    client.health(HealthRequest {}).await.unwrap();
}

/// A run that writes `bytes` and reserves little else.
fn flood(digest: &str, bytes: u64) -> RunSpec {
    by_digest(digest)
        .args(&["kit", "flood", &bytes.to_string()])
        .resources(|r| {
            r.memory_pages = Some(32);
            r.stack_size = Some(256 << 10);
            // Standard error says "done".
            r.output_limit = Some(bytes.max(4));
        })
}

/// The same, streamed: without a limit on the output.
fn stream_of(digest: &str, bytes: u64) -> RunStreamRequest {
    let spec = flood(digest, bytes).resources(|r| r.output_limit = None);
    RunStreamRequest { spec: Some(spec) }
}

fn run_of(digest: &str, bytes: u64) -> RunRequest {
    let spec = Some(flood(digest, bytes));
    RunRequest { spec }
}

fn hello(digest: &str) -> RunSpec {
    flood(digest, 1)
}

const RUN: &str = "SandboxService/Run";
const RUN_STREAM: &str = "SandboxService/RunStream";

/// A tenant whose callers read nothing of `calls` answers of `method` holds no more than its share of 64 MiB, in spite of
/// which the other one is served; and all of it comes back.
async fn hold_no_more_than_a_share<M: Message + Clone + 'static>(
    method: &'static str,
    calls: usize,
    window: u32,
    message: impl Fn(&str) -> M,
) {
    const SHARE: u64 = 56 * MIB;
    /// What one such run reserves at the most.
    const RUN: u64 = 8 * MIB;
    let settings = [
        ("admission.memory", "64MiB"),
        ("admission.max_wait", "2m"),
        ("runs.stall_timeout", "2s"),
    ];
    let (daemon, a, b, _dir) = two("", "", &settings).await;
    let theirs = b.loaded(kit_bytes()).await;
    let digest = a.loaded(kit_bytes()).await;
    let message = message(&digest);
    let channel = deaf(&daemon.addr, window).await;
    let mut callers = JoinSet::new();
    for _ in 0..calls {
        let (channel, message) = (channel.clone(), message.clone());
        callers.spawn(async move { call(channel, Some("a"), method, &message).await });
    }
    let reserved = || daemon.probe.reserved_bytes();
    until(&daemon, || reserved() > SHARE - RUN).await;
    assert!(reserved() <= SHARE, "{}", reserved());
    b.ran(hello(&theirs)).await.exited(0);
    assert!(reserved() <= SHARE + RUN, "{}", reserved());
    // As answers are let go others are given, which are let go in their turn.
    let answers = callers.join_all().await;
    let answers: Vec<Body> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers.len(), calls);
    until_idle(&daemon).await;
    until(&daemon, || reserved() <= calls as u64 * LEFT).await;
    drop((answers, channel));
    until(&daemon, || reserved() == 0).await;
    a.ran(hello(&digest)).await.exited(0);
}

#[tokio::test]
async fn output_that_nobody_takes_holds_no_more_than_a_share() {
    hold_no_more_than_a_share(RUN, 40, 0, |digest| run_of(digest, 2 * MIB)).await;
}

#[tokio::test]
async fn output_of_which_a_window_is_taken_holds_no_more_than_a_share() {
    hold_no_more_than_a_share(RUN, 40, 65_535, |digest| run_of(digest, 2 * MIB)).await;
}

#[tokio::test]
async fn streams_that_nobody_takes_hold_no_more_than_a_share() {
    hold_no_more_than_a_share(RUN_STREAM, 90, 0, |digest| {
        // They go on until their time is over, so that the share is used up.
        let mut message = stream_of(digest, 0);
        message.spec = message.spec.map(|spec| {
            let spec = spec.args(&["kit", "flood", "300000", "stay"]);
            spec.timeout(Duration::from_secs(1))
        });
        message
    })
    .await;
}

#[tokio::test]
async fn streams_that_have_ended_unread_keep_their_part_of_the_reservation() {
    const STREAMS: u64 = 20;
    const EACH: u64 = 320 << 10;
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(kit_bytes()).await;
    let channel = deaf(&daemon.addr, 0).await;
    let mut unread = Vec::new();
    for _ in 0..STREAMS {
        let message = stream_of(&digest, 300_000);
        unread.push(
            call(channel.clone(), None, RUN_STREAM, &message)
                .await
                .unwrap(),
        );
    }
    until_idle(&daemon).await;
    until(&daemon, || daemon.probe.reserved_bytes() == STREAMS * EACH).await;
    drop((unread, channel));
    until(&daemon, || daemon.probe.reserved_bytes() == 0).await;
}

/// The bytes of event logs that callers have yet to read, and those of answers that connections have yet to take.
async fn untaken(daemon: &Daemon) -> [f64; 2] {
    let metrics = ask(&daemon.admin, "GET", "/metrics", &[]).await.body;
    ["event_log_owed", "answers_unwritten"]
        .map(|name| value(&metrics, &format!("ringfence_{name}_bytes")))
}

/// Waits until what callers have yet to take is as it should be.
async fn until_untaken(daemon: &Daemon, holds: impl Fn([f64; 2]) -> bool) {
    let start = Instant::now();
    loop {
        let untaken = untaken(daemon).await;
        if holds(untaken) {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "it stays {untaken:?}");
    }
}

#[tokio::test]
async fn what_callers_have_yet_to_take_is_measured() {
    const BYTES: u64 = 300_000;
    let daemon = Daemon::with(&[("admin.listen", "[\"127.0.0.1:0\"]")]).await;
    let digest = daemon.loaded(kit_bytes()).await;
    assert_eq!(untaken(&daemon).await, [0.0; 2]);
    // Of a stream, its log has what its answer has not.
    let channel = deaf(&daemon.addr, 0).await;
    let message = stream_of(&digest, BYTES);
    let unread = call(channel.clone(), None, RUN_STREAM, &message).await;
    let unread = unread.unwrap();
    until_idle(&daemon).await;
    let most = BYTES as f64 + 80_000.0;
    until_untaken(&daemon, |[owed, unwritten]| {
        let all = owed + unwritten;
        owed > BYTES as f64 / 2.0 && all >= BYTES as f64 && all < most
    })
    .await;
    drop((unread, channel));
    until_untaken(&daemon, |untaken| untaken == [0.0; 2]).await;
    // Of a whole answer, none is in a log.
    let channel = deaf(&daemon.addr, 0).await;
    let message = run_of(&digest, MIB);
    let unread = call(channel.clone(), None, RUN, &message).await;
    let unread = unread.unwrap();
    let most = MIB as f64 + 4_096.0;
    until_untaken(&daemon, |[owed, unwritten]| {
        owed == 0.0 && unwritten >= MIB as f64 && unwritten < most
    })
    .await;
    drop((unread, channel));
    until_untaken(&daemon, |untaken| untaken == [0.0; 2]).await;
}

#[tokio::test]
async fn an_answer_that_is_taken_gives_everything_back() {
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(kit_bytes()).await;
    let held = || (daemon.probe.reserved_bytes(), daemon.probe.answer_bytes());
    for bytes in [1, 65_536, 65_537, MIB, 5 * MIB + 1] {
        let ran = daemon.ran(flood(&digest, bytes)).await.exited(0);
        assert_eq!(ran.stdout.len() as u64, bytes);
        assert!(ran.stdout.iter().all(|byte| *byte == b'x'));
        assert_eq!(ran.err(), "done");
        until(&daemon, || held() == (0, 0)).await;
    }
    let stream = daemon
        .stream(stream_of(&digest, 5 * MIB).spec.unwrap())
        .await;
    assert_eq!(read(stream.unwrap()).await.stdout.len() as u64, 5 * MIB);
    daemon.list(ListRunsRequest::default()).await;
    let request = GetModuleRequest { digest };
    daemon.modules().await.get_module(request).await.unwrap();
    until(&daemon, || held() == (0, 0)).await;
}

#[tokio::test]
async fn a_quota_of_one_run_counts_until_its_output_is_taken() {
    let (daemon, a, _b, _dir) = two("quota = { runs = 1 }", "", &[]).await;
    let digest = a.loaded(kit_bytes()).await;
    let channel = deaf(&daemon.addr, 0).await;
    let message = run_of(&digest, MIB);
    let unread = call(channel.clone(), Some("a"), RUN, &message)
        .await
        .unwrap();
    until_idle(&daemon).await;
    let over = a.refused(hello(&digest)).await;
    assert!(over.is(Code::ResourceExhausted, "TENANT_QUOTA").retry);
    // Also of a stream.
    drop((unread, channel));
    until(&daemon, || daemon.probe.reserved_bytes() == 0).await;
    let channel = deaf(&daemon.addr, 0).await;
    let message = stream_of(&digest, 300_000);
    let unread = call(channel.clone(), Some("a"), RUN_STREAM, &message).await;
    let unread = unread.unwrap();
    until_idle(&daemon).await;
    a.refused(hello(&digest))
        .await
        .is(Code::ResourceExhausted, "TENANT_QUOTA");
    drop((unread, channel));
    until(&daemon, || daemon.probe.reserved_bytes() == 0).await;
    // One that is taken makes room before its caller can ask again.
    for _ in 0..20 {
        a.ran(flood(&digest, MIB)).await.exited(0);
    }
}

/// Reads `body` frame by frame, asking for health between them for `pause` each time: the bytes, and whether it came to
/// its end.
async fn slowly(daemon: &Daemon, mut body: Body, pause: Duration) -> (usize, bool) {
    let mut bytes = 0;
    loop {
        match body.frame().await {
            None => return (bytes, true),
            Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len),
            Some(Err(_)) => return (bytes, false),
        }
        let start = Instant::now();
        while start.elapsed() < pause {
            health(daemon).await;
        }
    }
}

#[tokio::test]
async fn output_that_is_taken_more_slowly_than_the_rate_is_let_go() {
    let settings = [
        ("runs.stall_timeout", "300ms"),
        ("server.min_answer_rate", "1GiB"),
    ];
    let daemon = Daemon::with(&settings).await;
    let digest = daemon.loaded(kit_bytes()).await;
    // A frame of 16 KiB each time: progress all the time, but 25 s for all of it.
    let channel = deaf(&daemon.addr, 65_535).await;
    let message = run_of(&digest, 4 * MIB);
    let body = call(channel, None, RUN, &message).await.unwrap();
    let (bytes, whole) = slowly(&daemon, body, Duration::from_millis(100)).await;
    assert!(!whole, "{bytes} bytes were taken");
    assert!((bytes as u64) < 4 * MIB);
    until(&daemon, || daemon.probe.reserved_bytes() == 0).await;
}

#[tokio::test]
async fn output_that_is_taken_at_the_rate_arrives_whole_however_long_it_takes() {
    let settings = [
        // The grace is less than the whole takes, and more than a piece does.
        ("runs.stall_timeout", "1s"),
        ("server.min_answer_rate", "4KiB"),
    ];
    let daemon = Daemon::with(&settings).await;
    let digest = daemon.loaded(kit_bytes()).await;
    let channel = deaf(&daemon.addr, 65_535).await;
    let message = run_of(&digest, MIB);
    let body = call(channel, None, RUN, &message).await.unwrap();
    let (bytes, whole) = slowly(&daemon, body, Duration::from_millis(100)).await;
    assert!(whole, "{bytes} bytes were taken");
    assert!(bytes as u64 > MIB);
}

#[tokio::test]
async fn a_stream_that_has_nothing_to_say_is_never_too_slow() {
    let settings = [
        ("runs.stall_timeout", "100ms"),
        ("server.min_answer_rate", "1GiB"),
    ];
    let daemon = Daemon::with(&settings).await;
    let digest = daemon.loaded(kit_bytes()).await;
    let sleeps = by_digest(&digest).args(&["kit", "sleep", "2500"]);
    let channel = deaf(&daemon.addr, 65_535).await;
    let message = WatchRunsRequest::default();
    let watch = call(channel, None, "RunService/WatchRuns", &message).await;
    let mut watch = watch.unwrap();
    let story = read(daemon.stream(sleeps).await.unwrap()).await;
    assert_eq!(story.exit.unwrap().exit_code, Some(0));
    // Synced long before, and told of the run now.
    let mut told = 0;
    while told < 3 {
        let frame = watch
            .frame()
            .await
            .expect("it goes on")
            .expect("it goes on");
        told += usize::from(frame.data_ref().is_some_and(|data| !data.is_empty()));
    }
}

/// Calls `method` of tenant "a" without reading until one is refused: how many are held, and the refusal.
pub(crate) async fn until_refused<M: Message>(
    channel: &Channel,
    method: &str,
    message: &M,
) -> (Vec<Body>, Refused) {
    let mut unread = Vec::new();
    while unread.len() < 95 {
        match call(channel.clone(), Some("a"), method, message).await {
            Ok(body) => unread.push(body),
            Err(status) => return (unread, Refused::new(&status)),
        }
    }
    panic!("95 answers of {method} are held");
}

/// A module of as many exports as are told, with long names.
fn exports(count: usize) -> String {
    let name = "n".repeat(200);
    let exports: String = (0..count)
        .map(|n| format!("(export \"{name}{n}\" (func 0))"))
        .collect();
    format!("(module (func) {exports})")
}

/// Answers of `method` that nobody takes are charged: to a share of 7 MiB, beside which the other tenant has its own.
async fn are_charged<M: Message>(
    method: &str,
    message: impl AsyncFn(&crate::tenants::Tenant) -> M,
) {
    let settings = [
        ("server.inflight_answer_bytes", "8MiB"),
        ("policy.max_output", "2MiB"),
    ];
    let (daemon, a, b, _dir) = two("", "", &settings).await;
    let message = message(&a).await;
    until(&daemon, || daemon.probe.answer_bytes() == 0).await;
    let channel = deaf(&daemon.addr, 0).await;
    let (unread, refused) = until_refused(&channel, method, &message).await;
    let refused = refused
        .is(Code::ResourceExhausted, "QUEUE_FULL")
        .with("limit", "server.inflight_answer_bytes")
        .with("allowed", 7 * MIB);
    assert!(refused.retry);
    let held = daemon.probe.answer_bytes();
    assert!(held > 5 * MIB && held <= 7 * MIB, "{held}");
    // What does nothing but answer shortly has room, and so has the other one.
    b.runs
        .clone()
        .list_runs(ListRunsRequest::default())
        .await
        .unwrap();
    let theirs = b.loaded(kit_bytes()).await;
    b.ran(hello(&theirs)).await.exited(0);
    // A run's answer is of its own reservation.
    a.ran(spec("(module (func (export \"_start\")))"))
        .await
        .exited(0);
    assert!(!unread.is_empty());
    drop((unread, channel));
    until(&daemon, || daemon.probe.answer_bytes() == 0).await;
}

#[tokio::test]
async fn watches_that_nobody_takes_are_charged() {
    are_charged("RunService/WatchRuns", async |_| {
        WatchRunsRequest::default()
    })
    .await;
}

#[tokio::test]
async fn figures_that_nobody_takes_are_charged() {
    are_charged("StatsService/WatchStats", async |_| {
        WatchStatsRequest::default()
    })
    .await;
}

#[tokio::test]
async fn viewers_that_take_nothing_are_charged() {
    are_charged("RunService/AttachRun", async |a| {
        let digest = a.loaded(kit_bytes()).await;
        let (run_id, stream) = a.stream(flood(&digest, 300_000)).await;
        read(stream).await;
        let from_seq = 0;
        AttachRunRequest { run_id, from_seq }
    })
    .await;
}

#[tokio::test]
async fn modules_that_nobody_takes_are_charged() {
    are_charged("ModuleService/GetModule", async |a| {
        let digest = a.loaded(exports(1000)).await;
        GetModuleRequest { digest }
    })
    .await;
}

/// Metadata of about 4 KiB.
fn labels() -> Vec<(String, String)> {
    (0..32)
        .map(|n| (format!("label{n}"), "v".repeat(120)))
        .collect()
}

#[tokio::test]
async fn listings_of_runs_that_nobody_takes_are_charged() {
    are_charged("RunService/ListRuns", async |a| {
        let digest = a.loaded(kit_bytes()).await;
        for _ in 0..30 {
            let run = labels()
                .iter()
                .fold(hello(&digest), |run, (key, value)| run.label(key, value));
            a.ran(run).await.exited(0);
        }
        ListRunsRequest::default()
    })
    .await;
}

/// The runs that a call ends, or would end, have a part of what listings have.
#[tokio::test]
async fn lists_of_runs_that_were_ended_are_charged_until_they_are_taken() {
    const RUNS: u64 = 60;
    const ANSWERS: u64 = 10;
    // What an answer has of a run whose id is as long as may be.
    const EACH: u64 = 100;
    let instance = "i".repeat(64);
    let settings = [("admission.slots", "60"), ("server.instance", &*instance)];
    let daemon = Daemon::with(&settings).await;
    let digest = daemon.loaded(kit_bytes()).await;
    for _ in 0..RUNS {
        let sleeps = flood(&digest, 100).args(&["kit", "sleep", "3600000"]);
        let sleeps = sleeps.timeout(PATIENCE).label("all", "yes").detach();
        let mut stream = daemon.stream(sleeps).await.unwrap();
        stream.message().await.unwrap();
    }
    until(&daemon, || daemon.probe.answer_bytes() == 0).await;
    let channel = deaf(&daemon.addr, 0).await;
    let request = |dry_run| CancelRunsRequest {
        labels: [("all".to_owned(), "yes".to_owned())].into(),
        dry_run,
        ..CancelRunsRequest::default()
    };
    let method = "RunService/CancelRuns";
    let mut unread = Vec::new();
    for _ in 1..ANSWERS {
        let answer = call(channel.clone(), None, method, &request(true)).await;
        unread.push(answer.unwrap());
    }
    unread.push(
        call(channel.clone(), None, method, &request(false))
            .await
            .unwrap(),
    );
    until_idle(&daemon).await;
    let held = daemon.probe.answer_bytes();
    assert!(held > ANSWERS * RUNS * EACH, "{held}");
    assert!(held < 2 * ANSWERS * RUNS * EACH, "{held}");
    drop((unread, channel));
    until(&daemon, || daemon.probe.answer_bytes() == 0).await;
}

/// The ids of runs that a call deletes, or would delete.
#[tokio::test]
async fn lists_of_runs_that_were_deleted_are_charged_until_they_are_taken() {
    const RUNS: u64 = 100;
    const ANSWERS: u64 = 10;
    // An id that is as long as may be, in a repeated field.
    const EACH: u64 = 32 + 1 + 64 + 2;
    let instance = "i".repeat(64);
    let daemon = Daemon::with(&[("server.instance", &*instance)]).await;
    let digest = daemon.loaded(kit_bytes()).await;
    for _ in 0..RUNS {
        daemon
            .ran(hello(&digest).label("all", "yes"))
            .await
            .exited(0);
    }
    until(&daemon, || daemon.probe.answer_bytes() == 0).await;
    let channel = deaf(&daemon.addr, 0).await;
    let request = |dry_run| DeleteRunsRequest {
        labels: [("all".to_owned(), "yes".to_owned())].into(),
        dry_run,
        ..DeleteRunsRequest::default()
    };
    let method = "RunService/DeleteRuns";
    let mut unread = Vec::new();
    for answer in 1..=ANSWERS {
        let dry_run = answer < ANSWERS;
        let answer = call(channel.clone(), None, method, &request(dry_run)).await;
        unread.push(answer.unwrap());
    }
    let held = daemon.probe.answer_bytes();
    assert!(held >= ANSWERS * RUNS * EACH, "{held}");
    assert!(held < 2 * ANSWERS * RUNS * EACH, "{held}");
    assert_eq!(
        daemon.probe.remembered(),
        (0, 0, 0),
        "they are gone all the same"
    );
    drop((unread, channel));
    until(&daemon, || daemon.probe.answer_bytes() == 0).await;
}

#[tokio::test]
async fn listings_of_modules_that_nobody_takes_are_charged() {
    are_charged("ModuleService/ListModules", async |a| {
        for n in 0..30 {
            let mut load = crate::harness::load(format!("(module (memory {n}))"));
            load.labels = labels().into_iter().collect();
            a.sandbox.clone().load_module(load).await.unwrap();
        }
        ListModulesRequest::default()
    })
    .await;
}

/// Answers of `method` that nobody takes are charged by their bytes, from `least` to `most` each.
async fn are_charged_by_their_bytes<M: Message>(
    daemon: &Daemon,
    method: &str,
    message: &M,
    (least, most): (u64, u64),
) {
    const ANSWERS: u64 = 5;
    until(daemon, || daemon.probe.answer_bytes() == 0).await;
    let channel = deaf(&daemon.addr, 0).await;
    let mut unread = Vec::new();
    for _ in 0..ANSWERS {
        let answer = call(channel.clone(), None, method, message).await;
        unread.push(answer.unwrap());
    }
    let held = daemon.probe.answer_bytes();
    assert!(held >= ANSWERS * least, "{method}: {held}");
    assert!(held <= ANSWERS * most, "{method}: {held}");
    drop((unread, channel));
    until(daemon, || daemon.probe.answer_bytes() == 0).await;
}

#[tokio::test]
async fn short_answers_that_nobody_takes_are_charged_by_their_bytes() {
    /// What precedes each message.
    const FRAME: u64 = 5;
    /// What a method is charged before it does anything.
    const ADVANCE: u64 = 4 << 10;
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(kit_bytes()).await;
    let reads = by_digest(&digest).args(&["kit", "lines"]).timeout(PATIENCE);
    let reads = reads.change(|spec| spec.open_stdin = true).detach();
    let run_id = daemon.stream(reads).await.unwrap();
    let run_id = { run_id }.message().await.unwrap().unwrap().run_id;
    let short = (FRAME + 1, ADVANCE - 1);
    // The same byte each time, which is taken once: two numbers of two bytes each.
    let input = SendInputRequest {
        run_id: run_id.clone(),
        offset: 0,
        data: Bytes::from_static(b"x"),
        eof: false,
    };
    let accepted = (FRAME + 4, FRAME + 4);
    are_charged_by_their_bytes(&daemon, "RunService/SendInput", &input, accepted).await;
    let get = GetRunRequest {
        run_id: run_id.clone(),
    };
    are_charged_by_their_bytes(&daemon, "RunService/GetRun", &get, short).await;
    let cancel = CancelRunRequest { run_id };
    are_charged_by_their_bytes(&daemon, "RunService/CancelRun", &cancel, short).await;
    let stats = GetStatsRequest::default();
    are_charged_by_their_bytes(&daemon, "StatsService/GetStats", &stats, short).await;
    let languages = ListLanguagesRequest {};
    let method = "ExecutionService/ListLanguages";
    are_charged_by_their_bytes(&daemon, method, &languages, short).await;
    let sessions = ListSessionsRequest {};
    let empty = (FRAME, FRAME + 2);
    let method = "ExecutionService/ListSessions";
    are_charged_by_their_bytes(&daemon, method, &sessions, empty).await;
    let load = crate::harness::load("(module)");
    are_charged_by_their_bytes(&daemon, "SandboxService/LoadModule", &load, short).await;
    // It is deleted once, and every other answer is empty.
    let delete = DeleteModuleRequest { digest };
    are_charged_by_their_bytes(&daemon, "ModuleService/DeleteModule", &delete, empty).await;
}

#[tokio::test]
async fn reflection_that_nobody_takes_is_charged() {
    /// The file that it is in is asked for: field 4 of the request.
    const SYMBOL: &str = "ringfence.v1.RunService";
    let settings = [
        ("server.inflight_answer_bytes", "4MiB"),
        ("policy.max_output", "1MiB"),
    ];
    let daemon = Daemon::with(&settings).await;
    let channel = deaf(&daemon.addr, 0).await;
    let mut unread = Vec::new();
    let refused = loop {
        // As long as its answer is not taken, the call goes on.
        let call = call_with(
            channel.clone(),
            None,
            "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            [
                &[0x22, u8::try_from(SYMBOL.len()).unwrap()],
                SYMBOL.as_bytes(),
            ]
            .concat(),
        );
        match call.await {
            Ok(body) => unread.push(body),
            Err(status) => break Refused::new(&status),
        }
        assert!(unread.len() < 90);
    };
    refused
        .is(Code::ResourceExhausted, "QUEUE_FULL")
        .with("limit", "server.inflight_answer_bytes");
}

#[tokio::test]
async fn a_second_caller_of_a_key_is_charged_for_its_own_answer() {
    let settings = [
        ("server.inflight_answer_bytes", "4MiB"),
        ("policy.max_output", "1MiB"),
    ];
    let daemon = Daemon::with(&settings).await;
    let digest = daemon.loaded(kit_bytes()).await;
    let message = RunRequest {
        spec: Some(flood(&digest, MIB).key("once")),
    };
    let channel = deaf(&daemon.addr, 0).await;
    let first = call(channel.clone(), None, RUN, &message).await.unwrap();
    let reserved = daemon.probe.reserved_bytes();
    assert!(reserved >= MIB, "{reserved}");
    let mut again = Vec::new();
    let refused = loop {
        match call(channel.clone(), None, RUN, &message).await {
            Ok(body) => again.push(body),
            Err(status) => break Refused::new(&status),
        }
        assert!(again.len() < 10);
    };
    refused
        .is(Code::ResourceExhausted, "QUEUE_FULL")
        .with("limit", "server.inflight_answer_bytes");
    assert_eq!(again.len(), 3);
    assert_eq!(daemon.probe.reserved_bytes(), reserved);
    drop((first, again, channel));
    let held = || (daemon.probe.reserved_bytes(), daemon.probe.answer_bytes());
    until(&daemon, || held() == (0, 0)).await;
    // What was refused is not lost.
    let again = daemon.ran(message.spec.unwrap()).await;
    assert_eq!(again.stdout.len() as u64, MIB);
}

/// Writes 64 KiB 256 times to standard output, and as much to standard error.
const BOTH: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start") (local $left i32)
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 65536))
    (local.set $left (i32.const 256))
    (loop $more
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 40)))
      (drop (call $fd_write (i32.const 2) (i32.const 0) (i32.const 1) (i32.const 40)))
      (br_if $more (local.tee $left (i32.sub (local.get $left) (i32.const 1)))))))"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_largest_output_is_in_memory_once() {
    const OUTPUT_KIB: u64 = 32 << 10;
    let served = Served::start(&[]);
    let mut client = crate::harness::connect(&served.addr).await;
    let run = |output_limit| {
        let spec = spec(BOTH).resources(|r| r.output_limit = Some(output_limit));
        RunRequest { spec: Some(spec) }
    };
    // What any run needs is there before anything is measured.
    client.run(run(1 << 10)).await.unwrap();
    std::fs::write(format!("/proc/{}/clear_refs", served.child.id()), "5").unwrap();
    let before = served.memory("VmRSS");
    let answer = client.run(run(16 << 20)).await.unwrap();
    let RunResponse { stdout, stderr, .. } = answer.into_inner();
    assert_eq!((stdout.len(), stderr.len()), (16 << 20, 16 << 20));
    let peak = served.memory("VmHWM").saturating_sub(before);
    eprintln!("{OUTPUT_KIB} KiB of output took {peak} KiB at the most");
    // Its log, a piece on its way, and what allocating takes.
    assert!(peak < OUTPUT_KIB + (8 << 10), "{peak} KiB");
}
