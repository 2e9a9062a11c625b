//! What is recorded of ended runs, in the archive and at a collector at once: behind all walls, over stores that are slow
//! or never answer, for as long as the settings say, in figures, and to the last byte.

use std::time::{Duration, Instant};

use ringfence::api::proto::{ArchiveState, HealthRequest, RunRequest};

use crate::admin::{ask, value};
use crate::archive::{
    bucket, daemon, folder, has, info, now, over, says, unpacked_lines, until_archived,
};
use crate::cli_forget::is;
use crate::cli_runs::told;
use crate::collector::{Collector, body};
use crate::harness::{PATIENCE, Ran, SpecExt, connect, kit, runs, spec};
use crate::machine::{is_root, open_folder, until};
use crate::otlp::{TRACE, traced};
use crate::process::Served;

const REQUIRED: [&str; 2] = ["hardening.mode=require", "hardening.user=65534:65534"];
const ADMIN: (&str, &str) = ("admin.listen", "[\"127.0.0.1:0\"]");
const FAILED_WRITES: &str = "ringfence_archive_failed_writes_total";

/// Arguments that make these settings.
fn settings(set: &[impl AsRef<str>]) -> Vec<&str> {
    set.iter().flat_map(|it| ["--set", it.as_ref()]).collect()
}

/// The metrics of a daemon whose admin listener is there.
async fn metrics(admin: &str) -> String {
    let answer = ask(admin, "GET", "/metrics", &[("host", "localhost")]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// Waits until a series has such a value, and returns it.
async fn until_series(admin: &str, series: &str, holds: impl Fn(f64) -> bool) -> f64 {
    let begun = Instant::now();
    loop {
        let told = value(&metrics(admin).await, series);
        if holds(told) {
            return told;
        }
        assert!(begun.elapsed() < PATIENCE, "{series}: {told}");
    }
}

/// Ends a daemon, and returns the code of its end and how long that took.
fn ended(mut served: Served) -> (Option<i32>, Duration) {
    let begun = Instant::now();
    served.signal("-TERM");
    let ended = || until("its end", || served.child.try_wait().unwrap());
    let code = tokio::task::block_in_place(ended).code();
    (code, begun.elapsed())
}

/// Says hello in a trace that the caller records. The run is in the archive then, its spans and its line are at the
/// collector.
async fn is_recorded(served: &Served, collector: &Collector) {
    let spec = Some(kit(&["hello"]));
    let request = traced(RunRequest { spec }, TRACE, "01");
    let answer = connect(&served.addr).await.run(request).await.unwrap();
    let ran = Ran::new(answer.into_inner()).exited(0);
    let id = &ran.result.run_id;
    collector.spans(TRACE, 6).await;
    let logs = collector.logs(id, |logs| logs.len() == 1).await;
    assert_eq!(body(&logs[0]), "hello");
    let mut own = runs(&served.addr).await;
    until_archived(&mut own, id, ArchiveState::Written).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_all_walls_runs_reach_archive_and_collector_and_no_other_folder() {
    if !is_root() {
        return;
    }
    for (walls, follows) in [(&REQUIRED[..], false), (&["hardening.mode=off"], true)] {
        let collector = Collector::start().await;
        let (inside, outside) = (open_folder(0o777), open_folder(0o777));
        let archive = inside.path().join("archive");
        let admin = format!("unix:{}", inside.path().join("admin").display());
        let own = [
            format!("runs.archive=file://{}", archive.display()),
            format!("telemetry.otlp_endpoint={}", collector.url()),
            format!("admin.listen=[{admin:?}]"),
            // The folder for uploads is the daemon's too, and by default has all folders of tests.
            format!("store.spool={}", inside.path().display()),
        ];
        let fixed = ["telemetry.otlp_ratio=0", "telemetry.export_output=true"];
        let own = own.iter().map(String::as_str);
        let set: Vec<&str> = own.chain(fixed).chain(walls.iter().copied()).collect();
        let mut served = Served::start(&settings(&set));
        let log = served.drain_log();
        let mut client = connect(&served.addr).await;
        let health = client.health(HealthRequest {}).await.unwrap().into_inner();
        let is_walled = |wall: &str| health.hardening.split('+').any(|it| it.starts_with(wall));
        assert_eq!(
            ["user", "landlock", "seccomp"].map(is_walled),
            [!follows; 3]
        );
        is_recorded(&served, &collector).await;
        let segments = archive.join("runs");
        assert_eq!(unpacked_lines(&segments), 1);

        // The name of the folder leads elsewhere now, where any user may write.
        let kept = inside.path().join("kept");
        std::fs::rename(&segments, &kept).unwrap();
        std::os::unix::fs::symlink(outside.path(), &segments).unwrap();
        let id = says(&served, "elsewhere").await;
        let mut own = runs(&served.addr).await;
        if follows {
            until_archived(&mut own, &id, ArchiveState::Written).await;
            assert_eq!(unpacked_lines(outside.path()), 1);
        } else {
            until_series(&admin, FAILED_WRITES, |failed| failed > 0.0).await;
            let told = info(&mut own, &id).await.unwrap();
            assert_eq!(told.archive(), ArchiveState::Queued);
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
            // It is written where it may be.
            std::fs::remove_file(&segments).unwrap();
            std::fs::rename(&kept, &segments).unwrap();
            until_archived(&mut own, &id, ArchiveState::Written).await;
            assert_eq!(unpacked_lines(&segments), 2);
        }
        drop((client, own));
        assert_eq!(ended(served).0, Some(0));
        let log = log.join().unwrap();
        let told = "because the archive cannot be written";
        assert_eq!(log.contains(told), !follows, "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_all_walls_runs_reach_a_bucket_and_a_collector() {
    if !is_root() {
        return;
    }
    let collector = Collector::start().await;
    let (bucket, server) = bucket();
    let spool = open_folder(0o777);
    let own = [
        format!("runs.archive_spool={}", spool.path().display()),
        format!("telemetry.otlp_endpoint={}", collector.url()),
        "telemetry.export_output=true".to_owned(),
    ];
    let set: Vec<&str> = own.iter().map(String::as_str).chain(REQUIRED).collect();
    let served = over(&server, "walled", &settings(&set));
    is_recorded(&served, &collector).await;
    assert_eq!(bucket.lock().unwrap().objects.len(), 1);
    assert_eq!(ended(served).0, Some(0));
}
