//! StatsService and `ringfence top`: what is counted, for whom, how often it is told, and the last hour.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use prost_types::Duration as ProtoDuration;
use ringfence::api::proto::stats_service_client::StatsServiceClient;
use ringfence::api::proto::{
    CancelRunRequest, GetStatsRequest, LatencySummary, Outcome, RunResult, RunSpec, ServingStatus,
    Stats, StatsWindow, WatchRunsRequest, WatchStatsRequest, WatchStatsResponse,
};
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

use crate::cli::kit as kit_file;
use crate::harness::{
    Daemon, PATIENCE, Refused, SpecExt, by_digest, channel, kit, spec, until, until_idle,
};
use crate::process::{Served, interruptible, ringfence};
use crate::tenants::two;

const HOUR: Option<ProtoDuration> = Some(ProtoDuration {
    seconds: 3600,
    nanos: 0,
});

async fn client(daemon: &Daemon) -> StatsServiceClient<Channel> {
    StatsServiceClient::new(channel(&daemon.addr).await)
}

async fn stats(daemon: &Daemon, history: Option<ProtoDuration>) -> Stats {
    let mut client = client(daemon).await;
    let answer = client.get_stats(GetStatsRequest { history }).await;
    answer.unwrap().into_inner().stats.unwrap()
}

async fn watch(daemon: &Daemon, history: Option<ProtoDuration>) -> Streaming<WatchStatsResponse> {
    let request = WatchStatsRequest {
        interval: None,
        history,
    };
    let answer = client(daemon).await.watch_stats(request).await;
    answer.unwrap().into_inner()
}

async fn next(watch: &mut Streaming<WatchStatsResponse>) -> Stats {
    let message = tokio::time::timeout(PATIENCE, watch.message()).await;
    let message = message.expect("it hangs").unwrap().expect("it goes on");
    message.stats.unwrap()
}

/// Waits until a watch tells of so many runs, after as many messages as were made before the last of them ended.
async fn until_told(watch: &mut Streaming<WatchStatsResponse>, runs: u64) -> Stats {
    loop {
        let stats = next(watch).await;
        match of(&stats, Outcome::Exited) {
            told if told == runs => return stats,
            told => assert!(told < runs, "{told} of {runs}"),
        }
    }
}

fn of(stats: &Stats, outcome: Outcome) -> u64 {
    let mut counts = stats.outcomes.iter();
    counts
        .find(|it| it.outcome() == outcome)
        .map_or(0, |it| it.runs)
}

fn refused(stats: &Stats, reason: &str) -> u64 {
    let mut counts = stats.refusals.iter();
    counts
        .find(|it| it.reason == reason)
        .map_or(0, |it| it.runs)
}

fn length(duration: Option<ProtoDuration>) -> Duration {
    duration.unwrap().try_into().unwrap()
}

fn at(stats: &Stats) -> SystemTime {
    stats.time.unwrap().try_into().unwrap()
}

fn since_start(stats: &Stats) -> &StatsWindow {
    stats.since_start.as_ref().unwrap()
}

/// The runs that ended in all samples.
fn sampled(stats: &Stats) -> u64 {
    let samples = stats.history.iter();
    let counts = samples.flat_map(|it| &it.outcomes);
    counts.map(|it| it.runs).sum()
}

/// Cancels a run that spins, and returns how it ended.
async fn cancelled(daemon: &Daemon) -> RunResult {
    let mut stream = daemon.stream(kit(&["spin"])).await.unwrap();
    let run_id = stream.message().await.unwrap().unwrap().run_id;
    let mut runs = daemon.runs().await;
    runs.cancel_run(CancelRunRequest { run_id }).await.unwrap();
    let mut exit = None;
    while let Some(event) = stream.message().await.unwrap() {
        if let Some(ringfence::api::proto::stream_event::Event::Exit(result)) = event.event {
            exit = Some(*result);
        }
    }
    exit.expect("it ends")
}

/// One run or two of each ending, with how often it is to be.
fn endings() -> Vec<(RunSpec, Outcome, u64)> {
    vec![
        (kit(&["hello"]), Outcome::Exited, 3),
        (kit(&["exit", "7"]), Outcome::Exited, 2),
        (kit(&["echo"]).stdin(vec![b'x'; 1000]), Outcome::Exited, 1),
        (kit(&["panic"]), Outcome::Trapped, 2),
        (
            kit(&["spin"]).resources(|it| it.fuel_limit = Some(1_000_000)),
            Outcome::FuelExhausted,
            1,
        ),
        (
            kit(&["spin"]).timeout(Duration::from_millis(200)),
            Outcome::TimedOut,
            1,
        ),
        (
            kit(&["flood", "10000"]).resources(|it| it.output_limit = Some(1_000)),
            Outcome::OutputExceeded,
            1,
        ),
        (
            kit(&["hog", "64"]).resources(|it| it.memory_pages = Some(160)),
            Outcome::MemoryExceeded,
            1,
        ),
        (
            spec(
                "(module (func $f (param i64) (call $f (local.get 0))) (func (export \"_start\") (call $f (i64.const 1))))",
            ),
            Outcome::StackOverflow,
            1,
        ),
    ]
}

#[tokio::test]
async fn what_runs_came_to_is_counted_exactly() {
    let daemon = Daemon::start().await;
    let nothing = stats(&daemon, None).await;
    // Not even the daemon's own first run is a tenant's.
    assert!(nothing.outcomes.is_empty() && nothing.refusals.is_empty());
    assert_eq!(since_start(&nothing).run.unwrap().p50, None);
    let mut results = Vec::new();
    for (run, outcome, times) in endings() {
        for _ in 0..times {
            results.push(daemon.ran(run.clone()).await.ended(outcome).result);
        }
    }
    results.push(cancelled(&daemon).await);
    for (run, reason, times) in [
        (
            kit(&["hello"]).resources(|it| it.memory_pages = Some(70_000)),
            "LIMIT_ABOVE_MAXIMUM",
            2,
        ),
        (kit(&["hello"]).entry("nowhere"), "ENTRY_POINT_NOT_FOUND", 1),
        (
            by_digest(&format!("sha256:{}", "0".repeat(64))),
            "MODULE_NOT_FOUND",
            3,
        ),
    ] {
        for _ in 0..times {
            assert_eq!(daemon.refused(run.clone()).await.reason, reason);
        }
    }
    let told = stats(&daemon, None).await;
    let counts = told.outcomes.iter().map(|it| (it.outcome(), it.runs));
    let expected = [
        (Outcome::Exited, 6),
        (Outcome::Trapped, 2),
        (Outcome::MemoryExceeded, 1),
        (Outcome::FuelExhausted, 1),
        (Outcome::StackOverflow, 1),
        (Outcome::TimedOut, 1),
        (Outcome::OutputExceeded, 1),
        (Outcome::Cancelled, 1),
    ];
    assert_eq!(counts.collect::<Vec<_>>(), expected);
    let mut reasons: Vec<_> = told
        .refusals
        .iter()
        .map(|it| (&*it.reason, it.runs))
        .collect();
    reasons.sort_unstable();
    let expected = [
        ("ENTRY_POINT_NOT_FOUND", 1),
        ("LIMIT_ABOVE_MAXIMUM", 2),
        ("MODULE_NOT_FOUND", 3),
    ];
    assert_eq!(reasons, expected);
    is_the_sum_of(&told, &results);
    latencies_are_plausible(&told, &results);
    assert_eq!(
        told.runs_compiling + told.runs_queued + told.runs_running,
        0
    );
    let daemons = told.daemon.unwrap();
    assert_eq!(daemons.status(), ServingStatus::Serving);
    assert_eq!(
        (daemons.instance.as_str(), daemons.run_capacity),
        ("test", 32)
    );
    assert!(daemons.cache_bytes > 0 && daemons.cache_bytes <= daemons.cache_capacity);
    assert!(daemons.guest_threads > 0 && daemons.memory_capacity > 0);
    assert_eq!(daemon.probe.cached_bytes(), daemons.cache_bytes);
}

#[track_caller]
fn is_the_sum_of(told: &Stats, results: &[RunResult]) {
    let sum = |of: fn(&RunResult) -> u64| results.iter().map(of).sum::<u64>();
    assert_eq!(told.stdin_bytes, sum(|it| it.stdin_bytes));
    assert_eq!(told.stdin_bytes, 1_000);
    assert_eq!(told.stdout_bytes, sum(|it| it.stdout_bytes));
    assert_eq!(told.stderr_bytes, sum(|it| it.stderr_bytes));
    assert_eq!(
        told.fuel_consumed,
        sum(|it| it.fuel_consumed.unwrap_or_default())
    );
    assert!(told.fuel_consumed > 0);
    let cpu: Duration = results.iter().map(|it| length(it.cpu_time)).sum();
    assert_eq!(length(told.cpu_time), cpu);
    let window = since_start(told);
    assert_eq!((window.runs, window.refused), (results.len() as u64, 6));
    let took: Duration = results.iter().map(|it| length(it.duration)).sum();
    assert_eq!(length(window.run.unwrap().sum), took);
    let since = SystemTime::try_from(told.since.unwrap()).unwrap();
    let up = at(told).duration_since(since).unwrap();
    assert!(length(window.span).abs_diff(up) < Duration::from_secs(1));
    let rate = window.runs as f64 / length(window.span).as_secs_f64();
    assert!((window.runs_per_second - rate).abs() < 1e-9);
}

/// The quantiles are in order, and none is beyond the bucket of the longest.
#[track_caller]
fn in_order(latency: &LatencySummary, longest: Duration) {
    let quantiles = [latency.p50, latency.p90, latency.p99].map(length);
    assert!(quantiles.is_sorted(), "{latency:?}");
    let most = longest.mul_f64(2.5).max(Duration::from_micros(50));
    assert!(quantiles[2] <= most, "{latency:?} {longest:?}");
    assert!(length(latency.sum) <= longest * u32::try_from(latency.count).unwrap());
}

#[track_caller]
fn latencies_are_plausible(told: &Stats, results: &[RunResult]) {
    let window = since_start(told);
    let up = length(window.span);
    let longest = results.iter().map(|it| length(it.duration)).max().unwrap();
    assert!(longest >= Duration::from_millis(200) && longest < Duration::from_secs(10));
    let (wait, compile) = (window.wait.unwrap(), window.compile.unwrap());
    let (instantiate, run) = (window.instantiate.unwrap(), window.run.unwrap());
    let runs = results.len() as u64;
    assert_eq!([wait.count, instantiate.count, run.count], [runs; 3]);
    // The kit with and without fuel, and the other module.
    assert!(compile.count >= 3, "{compile:?}");
    in_order(&run, longest);
    in_order(&instantiate, longest);
    in_order(&wait, up);
    in_order(&compile, up);
    assert!(length(run.p99) >= Duration::from_millis(100), "{run:?}");
    // No window is longer than the daemon has run, and all runs were in each of them.
    for shorter in [&told.last_minute, &told.last_five_minutes] {
        let shorter = shorter.as_ref().unwrap();
        assert_eq!((shorter.runs, shorter.refused), (runs, 6));
        assert!(shorter.run == window.run && shorter.compile == window.compile);
        assert!(length(shorter.span) <= up);
    }
}

#[tokio::test]
async fn runs_that_go_on_are_told_by_their_state() {
    let daemon = Daemon::with(&[("admission.slots", "1")]).await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let spin = || {
        let spec = by_digest(&digest).args(&["kit", "spin"]);
        spec.timeout(Duration::from_secs(60))
    };
    let mut running = daemon.stream(spin()).await.unwrap();
    let running = running.message().await.unwrap().unwrap().run_id;
    let (client, waits) = (daemon.client.clone(), spin().label("waits", "1"));
    let queued = tokio::spawn(async move {
        let request = ringfence::api::proto::RunRequest { spec: Some(waits) };
        client.clone().run(request).await
    });
    until(&daemon, |in_flight, waiting| (in_flight, waiting) == (1, 1)).await;
    let told = stats(&daemon, None).await;
    let states = [told.runs_compiling, told.runs_queued, told.runs_running];
    assert_eq!(states, [0, 1, 1]);
    let daemons = told.daemon.as_ref().unwrap();
    assert_eq!((daemons.runs_in_flight, daemons.runs_queued), (1, 1));
    assert!(daemons.memory_reserved > 0);
    // One that is cancelled while it waits has never run.
    let waiting = daemon.labelled("waits", "1").await[0].run_id.clone();
    let mut runs = daemon.runs().await;
    for run_id in [waiting, running] {
        runs.cancel_run(CancelRunRequest { run_id }).await.unwrap();
    }
    assert!(queued.await.unwrap().is_err());
    until_idle(&daemon).await;
    let told = stats(&daemon, None).await;
    assert_eq!(of(&told, Outcome::Cancelled), 1);
    assert_eq!(refused(&told, "RUN_CANCELLED"), 1);
    assert_eq!(
        told.runs_compiling + told.runs_queued + told.runs_running,
        0
    );
}

#[tokio::test]
async fn a_tenant_sees_its_own_runs_only() {
    let (_daemon, a, b, _dir) = two("", "", &[]).await;
    let digest = a.loaded(crate::guests::kit()).await;
    for _ in 0..3 {
        a.ran(by_digest(&digest).args(&["kit", "hello"]))
            .await
            .exited(0);
    }
    a.refused(by_digest(&digest).entry("nowhere")).await;
    let spin = by_digest(&digest).args(&["kit", "spin"]);
    let (_, mut spins) = a.stream(spin.timeout(Duration::from_secs(60))).await;
    spins.message().await.unwrap();
    let ask = async |tenant: &crate::tenants::Tenant| {
        let request = GetStatsRequest { history: HOUR };
        let answer = tenant.stats.clone().get_stats(request).await.unwrap();
        answer.into_inner().stats.unwrap()
    };
    let (own, others) = (ask(&a).await, ask(&b).await);
    assert_eq!((of(&own, Outcome::Exited), own.runs_running), (3, 1));
    assert_eq!(refused(&own, "ENTRY_POINT_NOT_FOUND"), 1);
    // Of "a" it has nothing but that a slot is taken, as Health says to everybody.
    let slots = others.daemon.as_ref().map(|it| it.runs_in_flight);
    assert_eq!(slots, Some(1));
    let nothing = Stats {
        time: others.time,
        since: others.since,
        cpu_time: Some(ProtoDuration::default()),
        daemon: others.daemon.clone(),
        history: others.history.clone(),
        since_start: others.since_start,
        last_minute: others.last_minute,
        last_five_minutes: others.last_five_minutes,
        ..Stats::default()
    };
    assert_eq!(others, nothing);
    let windows = [
        others.since_start,
        others.last_minute,
        others.last_five_minutes,
    ];
    for window in windows {
        let window = window.unwrap();
        let nothing = Some(LatencySummary {
            sum: Some(ProtoDuration::default()),
            ..LatencySummary::default()
        });
        let expected = StatsWindow {
            span: window.span,
            wait: nothing,
            compile: nothing,
            instantiate: nothing,
            run: nothing,
            ..StatsWindow::default()
        };
        assert_eq!(window, expected);
    }
    // Its own appear beside them.
    let theirs = b.loaded(crate::guests::kit()).await;
    b.ran(by_digest(&theirs).args(&["kit", "hello"]))
        .await
        .exited(0);
    assert_eq!(of(&ask(&b).await, Outcome::Exited), 1);
    assert_eq!(of(&ask(&a).await, Outcome::Exited), 3);
}

#[tokio::test]
async fn the_history_adds_up_to_what_was_counted() {
    const RUNS: u64 = 5;
    let daemon = Daemon::start().await;
    let begun = Instant::now();
    let mut told = watch(&daemon, HOUR).await;
    let first = next(&mut told).await;
    for _ in 0..RUNS {
        daemon.ran(kit(&["hello"])).await.exited(0);
    }
    // Each sample comes once, with the message after it was taken.
    let (mut samples, mut runs) = (first.history.clone(), sampled(&first));
    while runs < RUNS {
        assert!(begun.elapsed() < PATIENCE, "no sample is taken");
        let stats = next(&mut told).await;
        runs += sampled(&stats);
        samples.extend(stats.history);
    }
    assert_eq!(runs, RUNS);
    let whole = stats(&daemon, HOUR).await;
    assert_eq!(whole.history[..samples.len()], samples);
    assert_eq!(sampled(&whole), since_start(&whole).runs);
    let mut before = SystemTime::try_from(whole.since.unwrap()).unwrap();
    for sample in &whole.history {
        let time = SystemTime::try_from(sample.time.unwrap()).unwrap();
        assert!(time > before && time <= at(&whole), "{sample:?}");
        before = time;
        assert!(length(sample.span) >= Duration::from_secs(10), "{sample:?}");
        let runs: u64 = sample.outcomes.iter().map(|it| it.runs).sum();
        assert_eq!(sample.run.map_or(0, |it| it.count), runs);
        assert_eq!((sample.runs_in_flight, sample.runs_queued), (0, 0));
    }
    let used: Duration = whole.history.iter().map(|it| length(it.cpu_time)).sum();
    assert_eq!(used, length(whole.cpu_time));
    // The windows have the samples and what came after them.
    assert_eq!(whole.last_minute.as_ref().unwrap().runs, RUNS);
    daemon.ran(kit(&["hello"])).await.exited(0);
    let later = stats(&daemon, None).await;
    assert_eq!(later.last_minute.unwrap().runs, RUNS + 1);
    assert!(later.history.is_empty());
}

#[tokio::test]
async fn a_watch_tells_the_figures_in_each_interval_and_ends_with_the_daemon() {
    let mut daemon = Daemon::start().await;
    let mut told = watch(&daemon, None).await;
    let mut before = next(&mut told).await;
    assert!(before.outcomes.is_empty());
    for runs in 1..=3 {
        daemon.ran(kit(&["hello"])).await.exited(0);
        let stats = until_told(&mut told, runs).await;
        assert!(stats.history.is_empty());
        let between = at(&stats).duration_since(at(&before)).unwrap();
        assert!(between >= Duration::from_millis(900), "{between:?}");
        before = stats;
    }
    daemon.drain();
    let status = loop {
        match tokio::time::timeout(PATIENCE, told.message()).await {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => panic!("a watch ends with a reason"),
            Ok(Err(status)) => break status,
            Err(_) => panic!("it hangs"),
        }
    };
    Refused::new(&status).is(Code::Unavailable, "SHUTTING_DOWN");
    drop(told);
    daemon.ended().await.unwrap();
}

#[tokio::test]
async fn a_slow_reader_gets_the_newest_figures_and_no_backlog() {
    let daemon = Daemon::start().await;
    // A window that has room for the beginning of a message only.
    let slow = Endpoint::from_shared(format!("http://{}", daemon.addr)).unwrap();
    let slow = slow.initial_stream_window_size(64).connect().await.unwrap();
    let request = WatchStatsRequest::default();
    let answer = StatsServiceClient::new(slow).watch_stats(request).await;
    let mut slow = answer.unwrap().into_inner();
    // Meanwhile another one is told of six runs, each a second after the one before.
    const RUNS: u64 = 6;
    let mut prompt = watch(&daemon, None).await;
    let mut last = next(&mut prompt).await;
    for runs in 1..=RUNS {
        daemon.ran(kit(&["hello"])).await.exited(0);
        last = until_told(&mut prompt, runs).await;
    }
    // One was on its way already, and one was made as soon as that had begun to be sent.
    let first = next(&mut slow).await;
    assert_eq!(of(&first, Outcome::Exited), 0);
    let second = next(&mut slow).await;
    assert!(of(&second, Outcome::Exited) < RUNS);
    let newest = next(&mut slow).await;
    assert_eq!(of(&newest, Outcome::Exited), RUNS);
    assert!(at(&newest) >= at(&last));
}

#[tokio::test]
async fn a_watch_is_one_of_the_viewers() {
    let daemon = Daemon::with(&[("runs.viewers", "3")]).await;
    let mut client = client(&daemon).await;
    let mut runs = daemon.runs().await;
    let watched = runs.watch_runs(WatchRunsRequest::default()).await.unwrap();
    let request = WatchStatsRequest::default;
    let second = client.watch_stats(request()).await.unwrap().into_inner();
    let mut third = client.watch_stats(request()).await.unwrap().into_inner();
    next(&mut third).await;
    let status = client.watch_stats(request()).await.unwrap_err();
    let refused = Refused::new(&status).is(Code::ResourceExhausted, "QUEUE_FULL");
    assert!(refused.retry && refused.metadata["limit"] == "runs.viewers");
    let status = runs.watch_runs(WatchRunsRequest::default()).await;
    Refused::new(&status.unwrap_err()).is(Code::ResourceExhausted, "QUEUE_FULL");
    // Asking once takes no place.
    client.get_stats(GetStatsRequest::default()).await.unwrap();
    drop(second);
    let begun = Instant::now();
    let mut again = loop {
        assert!(begun.elapsed() < PATIENCE, "no place");
        match client.watch_stats(request()).await {
            Ok(answer) => break answer.into_inner(),
            Err(_) => tokio::task::yield_now().await,
        }
    };
    next(&mut again).await;
    drop(watched);
}

#[tokio::test]
async fn an_interval_and_a_history_have_their_bounds() {
    let daemon = Daemon::start().await;
    let mut client = client(&daemon).await;
    let of = |seconds, nanos| Some(ProtoDuration { seconds, nanos });
    let (invalid, above) = ("SPEC_INVALID", "LIMIT_ABOVE_MAXIMUM");
    for (interval, expected) in [
        (None, None),
        (of(0, 0), None),
        (of(0, 1), Some((invalid, "1ns", "1s"))),
        (of(0, 999_000_000), Some((invalid, "999ms", "1s"))),
        (of(1, 0), None),
        (of(1, 1), None),
        (of(59, 999_999_999), None),
        (of(60, 0), None),
        (of(60, 1), Some((above, "1m 1ns", "1m"))),
        (of(i64::MAX, 0), Some((above, "", "1m"))),
        (of(-1, 0), Some((invalid, "-1 s and 0 ns", ""))),
        (
            of(1, 1_000_000_000),
            Some((invalid, "1 s and 1000000000 ns", "")),
        ),
    ] {
        let request = WatchStatsRequest {
            interval,
            history: None,
        };
        let answer = client.watch_stats(request).await;
        let Some((reason, asked, allowed)) = expected else {
            next(&mut answer.unwrap().into_inner()).await;
            continue;
        };
        let refused = Refused::new(&answer.unwrap_err());
        let refused = refused.is(Code::InvalidArgument, reason).at("interval");
        for (key, value) in [("asked", asked), ("allowed", allowed)] {
            let told = refused.metadata.get(key).cloned().unwrap_or_default();
            assert!(
                value.is_empty() || told == value,
                "{interval:?} {refused:?}"
            );
        }
    }
    for (history, reason) in [
        (of(0, 0), None),
        (of(0, 1), None),
        (of(3599, 999_999_999), None),
        (of(3600, 0), None),
        (of(3600, 1), Some(above)),
        (of(-1, 0), Some(invalid)),
        (of(0, -1), Some(invalid)),
    ] {
        let once = client
            .get_stats(GetStatsRequest { history })
            .await
            .map(drop);
        let request = WatchStatsRequest {
            interval: None,
            history,
        };
        let watched = client.watch_stats(request).await.map(drop);
        for answer in [once, watched] {
            match (answer, reason) {
                (Ok(()), None) => {}
                (Err(status), Some(reason)) => {
                    let refused = Refused::new(&status);
                    refused.is(Code::InvalidArgument, reason).at("history");
                }
                (answer, _) => panic!("{history:?}: {answer:?}"),
            }
        }
    }
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A daemon that has run two guests, and refused one.
fn served() -> Served {
    let served = Served::start(&["--set", "server.instance=here"]);
    for args in [&["hello"][..], &["exit", "3"]] {
        let mut command = ringfence();
        command.args(["run", "--server", &served.addr, "--no-stdin", &kit_file()]);
        command.args(args).output().unwrap();
    }
    let mut refused = ringfence();
    refused.args(["run", "--server", &served.addr, "--no-stdin"]);
    let output = refused.args(["--entry", "nowhere", &kit_file()]).output();
    assert_eq!(output.unwrap().status.code(), Some(126));
    served
}

fn top(served: &Served, args: &[&str]) -> Command {
    let mut command = ringfence();
    command.args(["top", "--server", &served.addr]).args(args);
    command
}

/// The names that the lines of a block begin with.
const ROWS: [&str; 14] = [
    "serving: here at ",
    "slots ",
    "threads ",
    "memory ",
    "code ",
    "in flight ",
    "runs/s ",
    "curve ",
    "ended      exited 2",
    "refused    ENTRY_POINT_NOT_FOUND 1",
    "  ",
    "wait ",
    "compile ",
    "instantiate ",
];

#[track_caller]
fn is_a_block(block: &str) {
    let lines: Vec<&str> = block.lines().collect();
    assert_eq!(lines.len(), ROWS.len() + 1, "{block}");
    for (line, row) in lines.iter().zip(ROWS.into_iter().chain(["run "])) {
        assert!(line.starts_with(row), "{row:?}: {line:?}");
        assert!(line.chars().count() <= 100, "{line:?}");
    }
    assert!(!block.contains('\u{1b}'), "{block:?}");
}

#[test]
fn top_prints_one_block_when_it_is_to_show_the_figures_once() {
    let served = served();
    let output = top(&served, &["--once"]).output().unwrap();
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));
    is_a_block(text(&output.stdout));
    let output = top(&served, &["--once", "--output", "json"])
        .output()
        .unwrap();
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));
    assert_eq!(text(&output.stdout).lines().count(), 1);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["outcomes"], serde_json::json!({"OUTCOME_EXITED": 2}));
    assert_eq!(
        told["refusals"],
        serde_json::json!({"ENTRY_POINT_NOT_FOUND": 1})
    );
    assert_eq!(told["since_start"]["run"]["count"], 2);
    assert!(told["since_start"]["run"]["p50_seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(told["daemon"]["status"], "SERVING_STATUS_SERVING");
    assert_eq!(told["daemon"]["instance"], "here");
    assert!(told["history"].is_array());
    assert!(told["time"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn top_prints_block_after_block_where_there_is_no_terminal() {
    let served = served();
    let mut child = top(&served, &[]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for block in 0..2 {
        if block > 0 {
            assert_eq!(lines.next().unwrap().unwrap(), "");
        }
        let block: Vec<String> = lines.by_ref().take(15).map(Result::unwrap).collect();
        is_a_block(&block.join("\n"));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let args = ["--output", "json"];
    let mut child = top(&served, &args).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    let (first, second) = (next(), next());
    assert!(first["time"].as_str().unwrap() < second["time"].as_str().unwrap());
    // The end of the daemon ends it, with a reason.
    served.signal("-TERM");
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(126));
}

#[test]
fn top_draws_over_what_it_drew_on_a_terminal() {
    let served = served();
    let words = top(&served, &[]);
    let program = words.get_program().to_str().unwrap().to_owned();
    let args = words.get_args().map(|it| it.to_str().unwrap());
    let args: Vec<String> = args.map(|it| format!("'{it}'")).collect();
    let line = format!("exec '{program}' {}", args.join(" "));
    let mut child = interruptible("script")
        .args(["-qefc", &line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut terminal = child.stdout.take().unwrap();
    let mut bytes = Vec::new();
    // Each block begins with its lines no longer wrapped, and ends with them wrapped again.
    let ends = |bytes: &[u8]| String::from_utf8_lossy(bytes).matches("\u{1b}[?7h").count();
    while ends(&bytes) < 2 {
        let mut piece = [0; 512];
        let n = terminal.read(&mut piece).unwrap();
        assert!(n > 0, "{:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..n]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let said = String::from_utf8(bytes).unwrap();
    let blocks: Vec<&str> = said.split("\u{1b}[?7h").collect();
    let up = format!("\u{1b}[?7l\u{1b}[{}A", ROWS.len() + 1);
    assert!(!blocks[0].contains(&up), "{said:?}");
    assert!(blocks[1].contains(&up), "{said:?}");
    for block in &blocks[..2] {
        let block = block.split("\u{1b}[2K").skip(1).collect::<String>();
        let block = block.replace('\r', "").replace("\u{1b}[J", "");
        is_a_block(&block);
    }
}

#[test]
fn top_says_what_is_wrong() {
    let served = served();
    for (args, code, told) in [
        (
            &["--interval", "500ms"][..],
            126,
            "refused: SPEC_INVALID: interval: 500ms is under the minimum of 1s",
        ),
        (
            &["--interval", "2m"],
            126,
            "refused: LIMIT_ABOVE_MAXIMUM: interval: 2m is above the maximum of 1m",
        ),
        (&["--interval", "0s"], 125, "must be longer than zero"),
        (&["--once", "--interval", "2s"], 125, "cannot be used with"),
        (&["--server", "127.0.0.1:1"], 125, "cannot reach the daemon"),
    ] {
        let mut command = ringfence();
        command.arg("top").env("RINGFENCE_SERVER", &served.addr);
        let output = command.args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?} {output:?}");
        let said = text(&output.stderr);
        assert!(said.contains(told), "{args:?}: {said}");
        assert_eq!(text(&output.stdout), "", "{args:?}");
    }
    let args = ["--interval", "500ms", "--output", "json"];
    let output = top(&served, &args).output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["error"]["reason"], "SPEC_INVALID");
    assert_eq!(told["error"]["field"], "interval");
}
