//! Guests' file system calls: whose processor time they are, and that many at once all come to their
//! end.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use ringfence::api::proto::{Outcome, RunRequest, RunSpec};
use tempfile::TempDir;
use tonic::Code;

use crate::guests::{file_calls, file_calls_component};
use crate::harness::{Daemon, Ran, Refused, SpecExt, by_digest, connect, load, spec};
use crate::process::Served;

/// Times that keep a processor busy for a few tenths of a second.
const KINDS: [(&str, &str, &str); 5] = [
    ("stat", "/d/file", "20000"),
    ("open", "/d/file", "10000"),
    ("read", "/d/file", "8000"),
    ("write", "/d/file", "5000"),
    ("list", "/d/many", "20"),
];
/// A clock tick of `/proc`, of which there are a hundred in a second.
const TICK: Duration = Duration::from_millis(10);

fn both() -> [Bytes; 2] {
    [file_calls(), file_calls_component()]
}

fn grant(dir: &Path) -> String {
    format!("[{{ host = {dir:?}, access = \"write\" }}]")
}

/// A folder with a file, and with a directory of many.
fn folder() -> TempDir {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("file"), vec![1; 64 << 10]).unwrap();
    std::fs::create_dir(dir.path().join("many")).unwrap();
    for i in 0..2000 {
        std::fs::write(dir.path().join(format!("many/{i}")), b"").unwrap();
    }
    dir
}

fn calls(guest: Bytes, dir: &Path, args: [&str; 3]) -> RunSpec {
    spec(guest)
        .args(&["file_calls", args[0], args[1], args[2]])
        .mount(dir, "/d", false)
        .timeout(Duration::from_secs(60))
}

/// The processor time that a daemon's process has used.
fn used(served: &Served) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", served.child.id())).unwrap();
    let (_, after_name) = stat.rsplit_once(')').unwrap();
    let ticks: u32 = after_name
        .split_ascii_whitespace()
        .skip(11)
        .take(2)
        .map(|it| it.parse::<u32>().unwrap())
        .sum();
    TICK * ticks
}

#[tokio::test]
async fn processor_time_of_file_calls_is_the_runs() {
    let dir = folder();
    let grant = format!("policy.mounts={}", grant(dir.path()));
    let served = Served::start(&["--set", &grant]);
    let mut client = connect(&served.addr).await;
    // A component asks for a hash of each entry.
    for (guest, lists) in both().into_iter().zip(["400", "20"]) {
        let loaded = client.load_module(load(guest)).await.unwrap();
        let digest = loaded.into_inner().module.unwrap().digest;
        for (how, path, times) in KINDS {
            let times = if how == "list" { lists } else { times };
            let request = RunRequest {
                spec: Some(RunSpec {
                    module: by_digest(&digest).module,
                    ..calls(Bytes::new(), dir.path(), [how, path, times])
                }),
            };
            let before = used(&served);
            let answer = client.run(request).await.unwrap().into_inner();
            let used = used(&served) - before;
            let ran = Ran::new(answer).exited(0);
            let told = ran.result.cpu_time.unwrap();
            let told = Duration::try_from(told).unwrap();
            // What it takes to hand calls on and back is neither thread's own.
            assert!(used > TICK * 5, "{how}: {used:?} is too little to say");
            assert!(told * 2 > used, "{how}: {told:?} of {used:?} were told");
            assert!(told < used + TICK * 5, "{how}: {told:?} of {used:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_runs_make_calls_at_once_and_all_end() {
    let dir = folder();
    let grant = grant(dir.path());
    let daemon = Daemon::with(&[
        ("policy.mounts", grant.as_str()),
        ("admission.slots", "128"),
        ("engine.pool_slots", "128"),
    ])
    .await;
    for guest in both() {
        let runs = (0..96).map(|i| {
            let (how, path, _) = KINDS[i % KINDS.len()];
            let times = if how == "list" { "2" } else { "50" };
            daemon.ran(calls(guest.clone(), dir.path(), [how, path, times]))
        });
        for ran in futures_util::future::join_all(runs).await {
            assert_eq!(ran.exited(0).out(), "done\n");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_left_in_the_middle_of_calls_gives_its_thread_back() {
    let dir = folder();
    let grant = grant(dir.path());
    let daemon = Daemon::with(&[("policy.mounts", grant.as_str())]).await;
    for guest in both() {
        // Far more runs than there are threads, each of which ends in some call.
        for _ in 0..10 {
            let runs = (0..16).map(|i| {
                let (how, path, _) = KINDS[i % KINDS.len()];
                let run = calls(guest.clone(), dir.path(), [how, path, "100000000"]);
                daemon.ran(run.timeout(Duration::from_millis(20)))
            });
            for ran in futures_util::future::join_all(runs).await {
                assert_eq!(ran.result.outcome(), Outcome::TimedOut);
            }
        }
        let run = calls(guest, dir.path(), ["stat", "/d/file", "10"]);
        daemon.ran(run).await.exited(0);
    }
}

#[tokio::test]
async fn what_is_written_is_there_without_a_flush() {
    let dir = folder();
    let grant = grant(dir.path());
    let daemon = Daemon::with(&[("policy.mounts", grant.as_str())]).await;
    let expected: String = (0..500).map(|i| format!("{i}\n")).collect();
    for guest in both() {
        std::fs::write(dir.path().join("log"), b"").unwrap();
        let run = calls(guest, dir.path(), ["append", "/d/log", "500"]);
        daemon.ran(run).await.exited(0);
        let written = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(written, expected);
    }
}

#[tokio::test]
async fn a_quota_of_processor_time_counts_file_calls() {
    // A component asks for a hash of each entry.
    for (guest, lists) in both().into_iter().zip(["400", "20"]) {
        for (how, path, times) in KINDS {
            let times = if how == "list" { lists } else { times };
            let dir = folder();
            let grant = grant(dir.path());
            let daemon = Daemon::with(&[
                ("policy.mounts", grant.as_str()),
                (
                    "tenants",
                    r#"[{ name = "default", quota = { cpu_seconds_per_minute = 0.4 } }]"#,
                ),
            ])
            .await;
            // The quota pays for compiling too, which takes a few tenths of a second on a machine
            // that is busy otherwise. What the guest itself takes of these runs is not much.
            let run = calls(guest.clone(), dir.path(), [how, path, times]);
            daemon.ran(run.clone()).await.exited(0);
            let mut refused = None;
            for _ in 0..5 {
                match daemon.run(run.clone()).await {
                    Ok(answer) => drop(Ran::new(answer).exited(0)),
                    Err(status) => {
                        refused = Some(Refused::new(&status));
                        break;
                    }
                }
            }
            let refused = refused.unwrap_or_else(|| panic!("{how}: no run is refused"));
            assert!(
                refused
                    .is(Code::ResourceExhausted, "TENANT_QUOTA")
                    .with("quota", "cpu_seconds_per_minute")
                    .retry,
                "{how}"
            );
        }
    }
}
