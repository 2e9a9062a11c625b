//! Runs of a module whose runs were short so far: one that is not ends as any other does. They begin on a thread that
//! serves.

use std::time::Duration;

use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{HealthRequest, Outcome, RunSpec, RunState};
use tempfile::TempDir;

use crate::harness::{Daemon, SpecExt, by_digest, kit, read, spec, until_idle};

/// More than make a habit.
const SHORT_RUNS: usize = 6;

/// A daemon that knows the kit as a module of short runs.
async fn used_to_short_runs(set: &[(&str, &str)]) -> (Daemon, String) {
    let daemon = Daemon::with(set).await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    train(&daemon, &digest).await;
    (daemon, digest)
}

async fn train(daemon: &Daemon, digest: &str) {
    for _ in 0..SHORT_RUNS {
        let ran = daemon.ran(asked(digest, &["hello"])).await.exited(0);
        assert_eq!(ran.out(), "hello\n");
    }
}

fn asked(digest: &str, args: &[&str]) -> RunSpec {
    let args = ["kit"].iter().chain(args).map(|&arg| arg.to_owned());
    RunSpec {
        args: args.collect(),
        ..by_digest(digest)
    }
}

cases!(one_that_spins_is_stopped_and_holds_up_nobody:
    with_one_thread_that_serves("1"),
    with_three_threads_that_serve("3"),
);
async fn one_that_spins_is_stopped_and_holds_up_nobody(threads: &str) {
    let (daemon, digest) = used_to_short_runs(&[("server.threads", threads)]).await;
    for _ in 0..3 {
        train(&daemon, &digest).await;
        let spins = asked(&digest, &["spin"]).timeout(Duration::from_millis(300));
        let health = async {
            let mut client = daemon.client.clone();
            for _ in 0..20 {
                client.health(HealthRequest {}).await.unwrap();
            }
        };
        let (ran, ()) = tokio::join!(daemon.ran(spins), health);
        let ran = ran.ended(Outcome::TimedOut);
        let used = ran.result.cpu_time.unwrap();
        assert!(used.seconds == 0 && used.nanos > 0, "{used:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_waits_goes_on_where_guests_wait() {
    let (daemon, digest) = used_to_short_runs(&[]).await;
    let sleeps = asked(&digest, &["sleep", "30"]);
    assert_eq!(daemon.ran(sleeps).await.exited(0).out(), "before\nafter\n");
    let sleeps = asked(&digest, &["sleep", "3600000"]).timeout(Duration::from_millis(50));
    let ran = daemon.ran(sleeps).await.ended(Outcome::TimedOut);
    assert_eq!(ran.out(), "before\n");
    // Far more than is kept of output that its caller has not read.
    let bytes = 8 << 20;
    let floods = asked(&digest, &["flood", &bytes.to_string()]);
    let story = read(daemon.stream(floods).await.unwrap()).await;
    assert_eq!(
        (story.stdout.len(), story.outcome()),
        (bytes, Outcome::Exited)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_fails_fails_alone() {
    let (daemon, digest) = used_to_short_runs(&[]).await;
    let ran = daemon.ran(asked(&digest, &["panic"])).await;
    let ran = ran.ended(Outcome::Trapped);
    assert_eq!(ran.trap_code(), "unreachable");
    daemon
        .ran(asked(&digest, &["exit", "200"]))
        .await
        .exited(200);
    let fuel = asked(&digest, &["hello"]).resources(|it| it.fuel_limit = Some(1));
    daemon.ran(fuel).await.ended(Outcome::FuelExhausted);
    train(&daemon, &digest).await;
    until_idle(&daemon).await;
    assert_eq!(daemon.probe.pooled_instances(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_reads_and_writes_files_does() {
    let dir = TempDir::new().unwrap();
    let grant = format!("[{{ host = {:?}, access = \"write\" }}]", dir.path());
    let (daemon, digest) = used_to_short_runs(&[("policy.mounts", &grant)]).await;
    let mount = |args: &[&str]| asked(&digest, args).mount(dir.path(), "/data", false);
    daemon
        .ran(mount(&["write", "/data/a", "text"]))
        .await
        .exited(0);
    let ran = daemon.ran(mount(&["read", "/data/a"])).await.exited(0);
    assert_eq!(ran.out(), "text");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_all_told() {
    let (daemon, digest) = used_to_short_runs(&[]).await;
    let runs = (0..200).map(|i| {
        let habit = if i % 10 == 9 {
            ["sleep", "2"]
        } else {
            ["hello", ""]
        };
        daemon.ran(asked(&digest, &habit))
    });
    for ran in futures_util::future::join_all(runs).await {
        ran.exited(0);
    }
    until_idle(&daemon).await;
    // And one of which nothing was known.
    daemon.ran(kit(&["hello"])).await.exited(0);
    daemon
        .ran(spec("(module (func (export \"_start\")))"))
        .await
        .exited(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_only_calls_the_host_gives_way() {
    let daemon = Daemon::with(&[("engine.guest_threads", "1")]).await;
    let write = "(call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12))";
    let random = "(call $random (i32.const 64) (i32.const 0x10000))";
    let calls = format!("(drop {random})").repeat(40_000);
    let straight = format!(
        "(module
            (import \"wasi_snapshot_preview1\" \"fd_write\"
                (func $write (param i32 i32 i32 i32) (result i32)))
            (import \"wasi_snapshot_preview1\" \"random_get\"
                (func $random (param i32 i32) (result i32)))
            (memory (export \"memory\") 2)
            (data (i32.const 0) \"\\08\\00\\00\\00\\01\\00\\00\\00.\")
            (func (export \"_start\") (drop {write}) {calls}))"
    );
    let mut stream = daemon.stream(spec(straight)).await.unwrap();
    let id = loop {
        let told = stream.message().await.unwrap().unwrap();
        if let Some(Event::Stdout(_)) = told.event {
            break told.run_id;
        }
    };
    // It has the only thread now.
    daemon
        .ran(spec("(module (func (export \"_start\")))"))
        .await
        .exited(0);
    assert_eq!(daemon.get(&id).await.state(), RunState::Running);
    drop(stream);
    until_idle(&daemon).await;
}

/// A single instruction fills a whole memory, and nothing interrupts that.
#[tokio::test]
async fn one_that_fills_much_memory_holds_up_nobody() {
    let fill = "(memory.fill (i32.const 0) (i32.const 1) (i32.const 249000000))";
    let fills = format!(
        "(module
            (memory (export \"memory\") 1)
            (func (export \"go\") (param i32)
                (if (local.get 0) (then
                    (drop (memory.grow (i32.const 3800))) {fill} {fill} {fill}))))"
    );
    let daemon = Daemon::with(&[("server.threads", "1")]).await;
    let digest = daemon.loaded(fills).await;
    let go = |arg: &str| by_digest(&digest).entry("go").args(&[arg]);
    for _ in 0..SHORT_RUNS {
        daemon.ran(go("0")).await.exited(0);
    }
    let much = go("1").resources(|it| it.memory_pages = Some(4096));
    let mut filling = std::pin::pin!(daemon.ran(much));
    let mut client = daemon.client.clone();
    let health = client.health(HealthRequest {});
    tokio::select! {
        biased;
        _ = &mut filling => panic!("health is answered while the guest fills its memory"),
        health = health => drop(health.unwrap()),
    }
    filling.await.exited(0);
}
