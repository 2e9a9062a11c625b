//! Two thousand runs of each kind of ending leave descriptors, threads and pools as they were, and a hundred thousand
//! leave a history within its budgets. A test binary of its own, since it counts what its whole process holds.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "a test ends its tasks with its runtime, and fails by panicking, and this one needs part of the harness"
)]

#[path = "it/guests.rs"]
mod guests;
#[path = "it/harness.rs"]
mod harness;

use std::sync::Arc;
use std::time::Duration;

use harness::{Daemon, SpecExt, by_digest, connect, spec, until_idle};
use ringfence::api::proto::{Outcome, RunSpec, RunStreamRequest};

const ROUNDS: usize = 2000;
const AT_ONCE: usize = 16;

fn count(what: &str) -> usize {
    std::fs::read_dir(format!("/proc/self/{what}"))
        .unwrap()
        .count()
}

/// Runs `spec` [`ROUNDS`] times, [`AT_ONCE`] side by side.
async fn rounds(daemon: &Arc<Daemon>, spec: RunSpec, expected: Option<Outcome>) {
    let callers: Vec<_> = (0..AT_ONCE)
        .map(|_| {
            let (daemon, spec) = (Arc::clone(daemon), spec.clone());
            tokio::spawn(async move {
                for _ in 0..ROUNDS / AT_ONCE {
                    let outcome = match daemon.run(spec.clone()).await {
                        Ok(answer) => Some(answer.result.unwrap().outcome()),
                        Err(_) => None,
                    };
                    assert_eq!(outcome, expected);
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}

/// Starts a stream of `spec` and leaves it, [`ROUNDS`] times. On connections of their own: what is on its way when a
/// stream is left counts as an error of its connection to the client's HTTP/2, which takes a thousand.
async fn leave(daemon: &Arc<Daemon>, spec: RunSpec) {
    for _ in 0..ROUNDS / AT_ONCE {
        let mut client = connect(&daemon.addr).await;
        let mut held = Vec::new();
        for _ in 0..AT_ONCE {
            let request = RunStreamRequest {
                spec: Some(spec.clone()),
            };
            held.push(client.run_stream(request).await.unwrap());
        }
        drop(held);
        until_idle(daemon).await;
    }
}

/// Waits until the process holds no more of `what` than `most`, as closed connections are noticed.
async fn settles(what: &str, most: usize) {
    let settled = async {
        while count(what) > most {
            tokio::task::yield_now().await;
        }
    };
    let settled = tokio::time::timeout(Duration::from_secs(10), settled).await;
    assert!(
        settled.is_ok(),
        "{what}: {} held, {most} expected",
        count(what)
    );
}

/// One test, since each half counts what the process holds.
#[tokio::test(flavor = "multi_thread")]
async fn runs_leave_nothing_behind_but_a_bounded_history() {
    two_thousand_runs_of_each_ending_leave_nothing_behind().await;
    a_hundred_thousand_runs_stay_within_the_budgets().await;
}

async fn two_thousand_runs_of_each_ending_leave_nothing_behind() {
    let daemon = Arc::new(Daemon::start().await);
    let digest = daemon.loaded(guests::kit()).await;
    let kit = |args: &[&str]| by_digest(&digest).args(&[&["kit"], args].concat());
    let soon = Duration::from_millis(10);
    let endings = [
        (kit(&["hello"]), Some(Outcome::Exited)),
        (kit(&["exit", "3"]), Some(Outcome::Exited)),
        (kit(&["panic"]), Some(Outcome::Trapped)),
        (
            kit(&["hog", "64"]).resources(|r| r.memory_pages = Some(60)),
            Some(Outcome::MemoryExceeded),
        ),
        (
            kit(&["spin"]).resources(|r| r.fuel_limit = Some(200_000)),
            Some(Outcome::FuelExhausted),
        ),
        (
            spec("(module (func $f (export \"_start\") (call $f)))"),
            Some(Outcome::StackOverflow),
        ),
        (kit(&["spin"]).timeout(soon), Some(Outcome::TimedOut)),
        (
            kit(&["sleep", "60000"]).timeout(soon),
            Some(Outcome::TimedOut),
        ),
        (
            kit(&["flood", "5000"]).resources(|r| r.output_limit = Some(100)),
            Some(Outcome::OutputExceeded),
        ),
        (kit(&["hello"]).entry("missing"), None),
    ];
    // Once around first: engines, threads and caches are made when they are first needed.
    for (spec, _) in &endings {
        let _ = daemon.run(spec.clone()).await;
    }
    leave_once(&daemon, kit(&["spin"])).await;
    let before = (count("fd"), count("task"));
    for (spec, expected) in endings {
        rounds(&daemon, spec, expected).await;
    }
    leave(&daemon, kit(&["spin"])).await;
    leave(&daemon, kit(&["flood", "100000000"])).await;
    until_idle(&daemon).await;
    assert_eq!(daemon.probe.pooled_instances(), 0);
    // Threads for file system calls come and go; nothing else may.
    settles("fd", before.0 + 2).await;
    settles("task", before.1 + 2).await;
    let health = daemon
        .client
        .clone()
        .health(ringfence::api::proto::HealthRequest {})
        .await;
    let health = health.unwrap().into_inner();
    assert_eq!((health.runs_in_flight, health.runs_queued), (0, 0));
    let ran = daemon.ran(kit(&["hello"])).await;
    assert_eq!(ran.exited(0).out(), "hello\n");
}

/// Far more than the history holds of each: runs, bytes of records, bytes of output.
async fn a_hundred_thousand_runs_stay_within_the_budgets() {
    const RUNS: usize = 100_000;
    const MIB: usize = 1 << 20;
    let daemon = Arc::new(Daemon::start().await);
    let digest = daemon.loaded(guests::kit()).await;
    let mut run = by_digest(&digest).args(&["kit", "flood", "20000"]);
    for i in 0..32 {
        run = run.label(&format!("label-{i}"), &"x".repeat(100));
    }
    let mut settled = None;
    for round in 1..=RUNS / ROUNDS {
        rounds(&daemon, run.clone(), Some(Outcome::Exited)).await;
        let (logs, runs, bytes) = daemon.probe.remembered();
        assert!(logs <= 64 * MIB, "{logs} bytes of logs");
        assert!(
            runs <= 10_000 && bytes <= 32 * MIB,
            "{runs} runs of {bytes} bytes"
        );
        // By then every budget is used up.
        if round * ROUNDS == 20_000 {
            assert!(logs > 60 * MIB && bytes > 31 * MIB, "{logs} {bytes}");
            settled = Some(resident());
        }
    }
    let (before, after) = (settled.unwrap(), resident());
    assert!(
        after <= before + 48 * 1024,
        "{before} KiB after 20,000 runs, {after} KiB after {RUNS}"
    );
}

/// Memory of this process, in KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
    let kib = line.unwrap().split_whitespace().next().unwrap();
    kib.parse().unwrap()
}

async fn leave_once(daemon: &Daemon, spec: RunSpec) {
    drop(daemon.stream(spec).await.unwrap());
    until_idle(daemon).await;
}
