//! What is recorded of ended runs, in the archive and at a collector at once: behind all walls, over stores that are slow
//! or never answer, for as long as the settings say, in figures, and to the last byte.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{ChildStderr, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};

use prost::Message;
use prost_types::Timestamp;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    ArchiveState, AttachRunRequest, HealthRequest, ListRunsRequest, RunInfo, RunRequest, RunResult,
    RunSpec, RunState, RunStreamRequest, run_info,
};
use ringfence::archive::{
    ArchivableRun, Archive, ArchiveMark, ArchiveSettings, EncodedRun, Retention,
};
use ringfence::metrics::MetricRegistry;
use ringfence::model::request::RunId;
use ringfence::store::StoreLocation;
use tempfile::TempDir;
use tonic::Code;

use crate::admin::{ask, value};
use crate::archive::{
    Bucket, Way, all_since, bucket, daemon, events, files, folder, has, info, now, over,
    over_with_log, says, unpacked_lines, unpacked_segment, until_archived,
};
use crate::auth::problem;
use crate::cli_forget::{is, listed};
use crate::cli_runs::{text, told};
use crate::collector::{Collector, Reply, body};
use crate::harness::{
    Daemon, PATIENCE, Ran, Refused, Runs, SpecExt, connect, kit, read, runs, spec, told_id,
};
use crate::machine::{is_root, open_folder, until};
use crate::otlp::{TRACE, notices_nothing, traced, without_collector};
use crate::process::{Served, ringfence};
use crate::scripted::Scripted;

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

/// How long the answers of a server take.
#[derive(Clone, Copy, Debug)]
enum Delay {
    None,
    By(Duration),
    Forever,
}

/// A way to a server on which its answers can be held up.
struct SlowWay {
    /// The server, at the beginning of the way.
    server: Scripted,
    delay: Arc<(Mutex<Delay>, Condvar)>,
}

impl SlowWay {
    fn to(server: &Scripted) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut front = server.clone();
        front.host = listener.local_addr().unwrap().to_string();
        let way = Self {
            server: front,
            delay: Arc::new((Mutex::new(Delay::None), Condvar::new())),
        };
        let (to, delay) = (server.host.clone(), Arc::clone(&way.delay));
        std::thread::spawn(move || {
            for asking in listener.incoming() {
                let asking = asking.unwrap();
                let asked = TcpStream::connect(&to).unwrap();
                let questions = [&asking, &asked].map(|it| it.try_clone().unwrap());
                std::thread::spawn(move || pass_on(questions, || {}));
                let delay = Arc::clone(&delay);
                std::thread::spawn(move || pass_on([asked, asking], || wait(&delay)));
            }
        });
        way
    }

    /// Holds up answers like this from now on, those that are held up already too.
    fn delay(&self, delay: Delay) {
        let (now, changed) = &*self.delay;
        *now.lock().unwrap() = delay;
        changed.notify_all();
    }
}

fn wait((delay, changed): &(Mutex<Delay>, Condvar)) {
    let begun = Instant::now();
    let mut delay = delay.lock().unwrap();
    loop {
        delay = match *delay {
            Delay::None => return,
            Delay::Forever => changed.wait(delay).unwrap(),
            Delay::By(whole) => match whole.saturating_sub(begun.elapsed()) {
                Duration::ZERO => return,
                left => changed.wait_timeout(delay, left).unwrap().0,
            },
        };
    }
}

/// Passes on what comes from one to the other, each piece of it after `first`.
fn pass_on([mut from, mut to]: [TcpStream; 2], first: impl Fn()) {
    let mut piece = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        first();
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    // The other may have gone.
    let _ = to.shutdown(Shutdown::Write);
}

/// Longer than twenty hellos take, by far.
const LATE: Duration = Duration::from_secs(5);

/// Says hello twenty times, and returns the ids and how long all took.
async fn twenty(served: &Served) -> (Vec<String>, Duration) {
    let begun = Instant::now();
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(says(served, "hello").await);
    }
    (ids, begun.elapsed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_run_waits_for_a_bucket_that_takes_seconds_or_never_answers() {
    let (_bucket, server) = bucket();
    let way = SlowWay::to(&server);
    let served = over(&way.server, "a", &[]);
    let mut own = runs(&served.addr).await;
    let (ids, usual) = twenty(&served).await;
    until_archived(&mut own, &ids[19], ArchiveState::Written).await;
    for delay in [Delay::By(LATE), Delay::Forever] {
        way.delay(delay);
        let (ids, took) = twenty(&served).await;
        let last = info(&mut own, &ids[19]).await.unwrap();
        assert_eq!(last.archive(), ArchiveState::Queued);
        // Where each run waited for the archive, that would be a hundred seconds and more.
        assert!(took < usual + LATE, "{took:?} instead of {usual:?}");
        if matches!(delay, Delay::Forever) {
            // However long it is: what is asked of this daemon's memory needs no archive.
            for id in &ids {
                let told = info(&mut own, id).await.unwrap();
                assert_eq!(told.archive(), ArchiveState::Queued);
                assert_eq!(events(&mut own, id, 0).await.unwrap().len(), 3);
            }
            way.delay(Delay::None);
        }
        for id in &ids {
            until_archived(&mut own, id, ArchiveState::Written).await;
        }
    }
    let other = over(&server, "b", &[]);
    let mut other = runs(&other.addr).await;
    for id in &ids {
        let told = events(&mut other, id, 0).await.unwrap();
        assert_eq!(told, events(&mut own, id, 0).await.unwrap());
    }
}

/// The sum of what the lines of a log with `text` say of `key`.
fn sum_logged(log: &str, text: &str, key: &str) -> u64 {
    let lines = log.lines().filter(|line| line.contains(text));
    let numbers = lines.map(|line| {
        let (_, rest) = line.split_once(&format!(" {key}=")).unwrap();
        let number = rest.split_whitespace().next().unwrap();
        number.parse::<u64>().unwrap_or_else(|_| panic!("{line}"))
    });
    numbers.sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_ends_in_time_and_tells_what_a_bucket_that_never_answers_does_not_get() {
    let (bucket, server) = bucket();
    let way = SlowWay::to(&server);
    let folder = TempDir::new().unwrap();
    let spool = format!("runs.archive_spool={}", folder.path().display());
    let (lost, stay) = ("ended runs are lost", "ended runs stay beside the archive");
    for (name, set, [were_lost, stayed]) in [
        ("forgetful", &[][..], [3, 0]),
        ("careful", &["--set", &spool], [0, 3]),
    ] {
        way.delay(Delay::Forever);
        let mut served = over_with_log(&way.server, name, set);
        let log = served.drain_log();
        let mut own = runs(&served.addr).await;
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(says(&served, name).await);
        }
        for id in &ids {
            let told = info(&mut own, id).await.unwrap();
            assert_eq!(told.archive(), ArchiveState::Queued);
        }
        drop(own);
        let (code, took) = ended(served);
        assert_eq!(code, Some(0));
        // It waits for five seconds.
        assert!(took < PATIENCE / 4, "{took:?}");
        let log = log.join().unwrap();
        let told = [lost, stay].map(|text| sum_logged(&log, text, "runs"));
        assert_eq!(told, [were_lost, stayed], "{log}");
        assert_eq!(log.contains(" ERROR "), were_lost > 0, "{log}");
        // What was on its way may have arrived, but nobody was told so.
        bucket.lock().unwrap().objects.clear();
        way.delay(Delay::None);
        let next = over(&server, "next", set);
        let mut other = runs(&next.addr).await;
        let start = Instant::now();
        while stayed > 0 && info(&mut other, &ids[2]).await.is_err() {
            assert!(start.elapsed() < PATIENCE, "it does not come");
        }
        for id in ids {
            let found = info(&mut other, &id).await;
            let found = found.map(|run| run.archive()).map_err(|it| it.code());
            let expected = match stayed {
                0 => Err(Code::FailedPrecondition),
                _ => Ok(ArchiveState::Written),
            };
            assert_eq!(found, expected);
        }
    }
}

/// An archive in the bucket of a server, as a daemon of that name opens it.
fn opened(server: &Scripted, instance: &str) -> Arc<Archive> {
    let location = StoreLocation::Objects {
        url: url::Url::parse("s3://bucket/fleet").unwrap(),
        variables: [
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "s3cretkey"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", &format!("http://{}", server.host)),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
    };
    archive_at(location, instance)
}

fn archive_at(location: StoreLocation, instance: &str) -> Arc<Archive> {
    let settings = ArchiveSettings {
        location,
        spool: None,
        queue: 64 << 20,
        interval: Duration::from_secs(1),
        has_several_tenants: false,
        retention: Retention::default(),
    };
    Arc::new(Archive::open(instance, settings).unwrap())
}

/// Offers a run to an archive: of whom it is, how much it costs while it waits, and what is written of it.
fn offer(archive: &Archive, tenant: &str, cost: usize, run: EncodedRun) -> Arc<ArchiveMark> {
    let mark = ArchiveMark::queued();
    archive.offer(ArchivableRun {
        tenant: tenant.into(),
        share: Arc::default(),
        number: run.number,
        cost,
        mark: Arc::clone(&mark),
        encode: Box::new(move || run),
    });
    mark
}

/// A daemon that gives runs up ends in the same moment, so that nobody sees this in its metrics: here is its archive alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_an_archive_gives_up_at_its_end_are_counted_as_failed() {
    let (_bucket, server) = bucket();
    let way = SlowWay::to(&server);
    way.delay(Delay::Forever);
    let archive = opened(&way.server, "a");
    let mut metrics = MetricRegistry::default();
    metrics.add(archive.clone());
    let metrics = || metrics.encode(false, None).unwrap();
    let failed = "ringfence_archive_runs_dropped_total{reason=\"failed\"}";
    let marks: Vec<_> = (1..=3)
        .map(|number| {
            let run = EncodedRun {
                number,
                summary: Vec::new(),
                line: b"{}".to_vec(),
            };
            offer(&archive, "t", 1000, run)
        })
        .collect();
    let waits = value(&metrics(), "ringfence_archive_queue_bytes");
    assert!(waits > 0.0, "{waits}");
    assert_eq!(value(&metrics(), failed), 0.0);
    archive.close(Duration::from_millis(100)).await;
    assert_eq!(value(&metrics(), failed), 3.0);
    assert_eq!(value(&metrics(), "ringfence_archive_queue_bytes"), 0.0);
    assert_eq!(value(&metrics(), "ringfence_archive_runs_total"), 0.0);
    let dropped =
        |mark: &Arc<ArchiveMark>| mark.state() == ringfence::archive::ArchiveState::Dropped;
    assert!(marks.iter().all(dropped), "{marks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_go_on_beside_a_bucket_that_returns_damaged_objects() {
    let (bucket, server) = bucket();
    bucket.lock().unwrap().way = Way::Damages;
    let (first, second) = (over(&server, "first", &[]), over(&server, "second", &[]));
    let (mut own, mut other) = (runs(&first.addr).await, runs(&second.addr).await);
    let since = now();
    let list = || ListRunsRequest {
        since,
        ..ListRunsRequest::default()
    };
    let mut ids = Vec::new();
    for _ in 0..20 {
        ids.push(says(&first, "hello").await);
        // Daemons that read what is damaged take runs as ever.
        own.list_runs(list()).await.unwrap();
        other.list_runs(list()).await.unwrap();
        says(&second, "beside it").await;
    }
    for id in &ids {
        until_archived(&mut own, id, ArchiveState::Written).await;
        let refused = info(&mut other, id).await.unwrap_err();
        Refused::new(&refused).is(Code::DataLoss, "ARCHIVE_DAMAGED");
    }
    let listed = other.list_runs(list()).await.unwrap().into_inner();
    assert!(!listed.damaged.is_empty());
    bucket.lock().unwrap().way = Way::Works;
    for id in &ids {
        let told = events(&mut other, id, 0).await.unwrap();
        assert_eq!(told, events(&mut own, id, 0).await.unwrap());
    }
}

#[tokio::test]
async fn a_run_whose_line_is_damaged_is_told_of_by_the_index_that_is_whole() {
    let (folder, url) = folder();
    let first = daemon("first", &url, &[]).await;
    let ran = first.ran(kit(&["hello"])).await.exited(0);
    let id = &ran.result.run_id;
    let mut own = first.runs().await;
    let since = now();
    until_archived(&mut own, id, ArchiveState::Written).await;
    let segments = files(&folder.path().join("runs"));
    let [segment] = &segments[..] else {
        panic!("{segments:?}");
    };
    let whole = std::fs::read(segment).unwrap();
    // The lines come first: this is one of the first of their bytes.
    let mut damaged = whole.clone();
    damaged[20] ^= 1;
    std::fs::write(segment, damaged).unwrap();
    let second = daemon("second", &url, &[]).await;
    let mut other = second.runs().await;
    let told = info(&mut other, id).await.unwrap();
    assert_eq!(told.archive(), ArchiveState::Written);
    assert!(matches!(told.end, Some(run_info::End::Result(_))));
    let long_ago = Some(Timestamp::default());
    assert_eq!(all_since(&mut other, long_ago, 10).await.len(), 1);
    let refused = events(&mut other, id, 0).await.unwrap_err();
    let refused = Refused::new(&refused).is(Code::DataLoss, "ARCHIVE_DAMAGED");
    let name = segment.strip_prefix(folder.path()).unwrap();
    refused.with("segment", name.display());
    // The daemon that executed it remembers it all the same.
    assert_eq!(events(&mut own, id, 0).await.unwrap().len(), 3);
    // And so it goes on.
    let after = second.ran(kit(&["hello"])).await.exited(0);
    until_archived(&mut other, &after.result.run_id, ArchiveState::Written).await;
    assert_eq!(all_since(&mut other, since, 10).await.len(), 1);
    std::fs::write(segment, whole).unwrap();
    let told = events(&mut other, id, 0).await.unwrap();
    assert_eq!(told, events(&mut own, id, 0).await.unwrap());
}

const RUNS: &str = "ringfence_archive_runs_total";
const FULL: &str = "ringfence_archive_runs_dropped_total{reason=\"queue_full\"}";
const FAILED: &str = "ringfence_archive_runs_dropped_total{reason=\"failed\"}";
const SEGMENTS: &str = "ringfence_archive_segments_total";
const WRITTEN: &str = "ringfence_archive_written_bytes_total";
const QUEUE: &str = "ringfence_archive_queue_bytes";
const CAPACITY: &str = "ringfence_archive_queue_capacity_bytes";

/// Waits until series have these values, all at once.
async fn until_measured(admin: &str, expected: &[(&str, f64)]) {
    let begun = Instant::now();
    loop {
        let text = metrics(admin).await;
        let told = expected.iter().map(|(series, _)| {
            assert!(text.contains(&format!("\n{series} ")), "no {series}");
            (*series, value(&text, series))
        });
        let told: Vec<(&str, f64)> = told.collect();
        if told == expected {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{told:?}");
    }
}

#[tokio::test]
async fn what_was_written_to_an_archive_is_measured_to_the_byte() {
    let (folder, url) = folder();
    let daemon = daemon("a", &url, &[ADMIN, ("runs.archive_queue", "3MiB")]).await;
    let nothing = [RUNS, FULL, FAILED, FAILED_WRITES, SEGMENTS, WRITTEN, QUEUE];
    let nothing = nothing.map(|series| (series, 0.0));
    let capacity = (CAPACITY, f64::from(3 << 20));
    until_measured(&daemon.admin, &[&nothing[..], &[capacity]].concat()).await;
    let mut own = daemon.runs().await;
    for _ in 0..2 {
        for _ in 0..7 {
            daemon.ran(kit(&["hello"])).await.exited(0);
        }
        let refused = kit(&["hello"]).entry("nobody");
        let refused = daemon.run(refused).await.unwrap_err();
        let last = told_id(refused.metadata());
        until_archived(&mut own, &last, ArchiveState::Written).await;
    }
    let segments = files(&folder.path().join("runs"));
    let sizes = segments.iter().map(|it| it.metadata().unwrap().len());
    let written = sizes.sum::<u64>() as f64;
    assert!(segments.len() >= 2 && written > 0.0, "{segments:?}");
    let expected = [
        (RUNS, 16.0),
        (SEGMENTS, segments.len() as f64),
        (WRITTEN, written),
        (FULL, 0.0),
        (FAILED, 0.0),
        (FAILED_WRITES, 0.0),
        (QUEUE, 0.0),
        capacity,
    ];
    until_measured(&daemon.admin, &expected).await;
    // Whoever has no archive has no figures of one.
    let without = Daemon::with(&[ADMIN]).await;
    let told = metrics(&without.admin).await;
    assert!(told.contains("ringfence_runs_total") && !told.contains("ringfence_archive"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_bucket_fails_or_is_dropped_is_measured() {
    let (bucket, server) = bucket();
    bucket.lock().unwrap().way = Way::Away;
    let folder = TempDir::new().unwrap();
    let admin = format!("unix:{}", folder.path().join("admin").display());
    let set = [
        format!("admin.listen=[{admin:?}]"),
        "runs.archive_queue=2MiB".to_owned(),
    ];
    let served = over(&server, "a", &settings(&set));
    let mut own = runs(&served.addr).await;
    let mut client = connect(&served.addr).await;
    let mut dropped = 0.0;
    for _ in 0..20 {
        let spec = Some(kit(&["echo"]).stdin(vec![b'x'; 500_000]));
        let ran = client.run(RunRequest { spec }).await.unwrap().into_inner();
        let told = info(&mut own, &ran.result.unwrap().run_id).await.unwrap();
        dropped += f64::from(u8::from(told.archive() == ArchiveState::Dropped));
    }
    assert!((1.0..20.0).contains(&dropped), "{dropped}");
    let fixed = [
        (FULL, dropped),
        (FAILED, 0.0),
        (CAPACITY, f64::from(2 << 20)),
    ];
    let nothing = [(RUNS, 0.0), (SEGMENTS, 0.0), (WRITTEN, 0.0)];
    until_measured(&admin, &[&fixed[..], &nothing].concat()).await;
    let failed = until_series(&admin, FAILED_WRITES, |failed| failed > 0.0).await;
    // Each has half a MiB of output, and is charged with no less.
    let waits = value(&metrics(&admin).await, QUEUE);
    assert!(waits > 500_000.0 * (20.0 - dropped), "{waits}");
    assert!(waits <= f64::from(2 << 20), "{waits}");
    bucket.lock().unwrap().way = Way::Works;
    let written = (RUNS, 20.0 - dropped);
    until_measured(&admin, &[&fixed[..], &[written, (QUEUE, 0.0)]].concat()).await;
    let objects = std::mem::take(&mut bucket.lock().unwrap().objects);
    let bytes = objects.values().map(Vec::len).sum::<usize>();
    let segments = [(SEGMENTS, objects.len() as f64), (WRITTEN, bytes as f64)];
    until_measured(&admin, &segments).await;
    let text = metrics(&admin).await;
    assert!(value(&text, FAILED_WRITES) >= failed);
}

/// A run that a daemon called "filler" has archived: whose it was, how long ago it was asked for, and its label.
#[derive(Clone, Copy)]
struct Filled {
    tenant: &'static str,
    ago: Duration,
    label: &'static str,
    /// Bytes besides, which cannot be compressed.
    bytes: usize,
}

const HOUR: Duration = Duration::from_secs(3600);

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

impl Filled {
    fn of(tenant: &'static str, ago: Duration) -> Self {
        Self {
            tenant,
            ago,
            label: "filled",
            bytes: 0,
        }
    }

    /// What a daemon writes of a run that says hello.
    fn encoded(self, number: u128, asked: SystemTime) -> EncodedRun {
        let run_id = RunId::of(number, "filler").to_string();
        let at = Some(Timestamp::from(asked));
        let result = RunResult {
            run_id: run_id.clone(),
            outcome: ringfence::api::proto::Outcome::Exited.into(),
            exit_code: Some(0),
            stdout_bytes: 6,
            ..RunResult::default()
        };
        let info = RunInfo {
            run_id: run_id.clone(),
            state: RunState::Ended.into(),
            labels: [("job".to_owned(), self.label.to_owned())].into(),
            method: "Run".to_owned(),
            asked: at,
            started: at,
            ended: at,
            // Its start, its output and its end.
            next_seq: 3,
            end: Some(run_info::End::Result(Box::new(result))),
            ..RunInfo::default()
        };
        let mut random = number | 1;
        let digits = (0..self.bytes / 16).map(|_| {
            random = random.wrapping_mul(0xda94_2042_e4dd_58b5).rotate_left(41);
            format!("{random:032x}")
        });
        let line = serde_json::json!({
            "run_id": run_id,
            "filler": digits.collect::<String>(),
            "events": [{
                "seq": 1,
                "time": humantime::format_rfc3339_nanos(asked).to_string(),
                "stream": "stdout",
                "text": "hello\n",
            }],
        });
        EncodedRun {
            number,
            summary: info.encode_to_vec(),
            line: serde_json::to_vec(&line).unwrap(),
        }
    }
}

/// Writes runs to the archive in a folder, and returns their ids.
async fn fill(folder: &Path, runs: &[Filled]) -> Vec<String> {
    let archive = archive_at(StoreLocation::Directory(folder.to_owned()), "filler");
    let mut ids = Vec::new();
    for (low, run) in (0..).zip(runs) {
        let asked = SystemTime::now() - run.ago;
        let since = asked.duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let millis = u64::try_from(since.as_millis()).unwrap();
        let number = RunId::first_number_at(millis) | low;
        let encoded = run.encoded(number, asked);
        offer(&archive, run.tenant, 1000 + run.bytes, encoded);
        ids.push(RunId::of(number, "filler").to_string());
    }
    archive.close(PATIENCE).await;
    ids
}

/// A daemon with the archive in a folder, once it has deleted so many segments because of what is set.
fn pruning(folder: &Path, set: &[&str], segments: u64) -> Served {
    let archive = format!("runs.archive=file://{}", folder.display());
    let mut child = ringfence()
        .args(["serve", "--listen", "127.0.0.1:0", "--set", &archive])
        .args(settings(set))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let log = BufReader::new(child.stderr.take().unwrap());
    let (empty, _) = std::io::pipe().unwrap();
    let mut served = Served {
        child,
        addr: String::new(),
        log: BufReader::new(ChildStderr::from(OwnedFd::from(empty))),
    };
    // It is read to its end, so that none of it is dropped, and waited for no longer than anything else.
    let (lines, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in log.lines() {
            let _ = lines.send(line.unwrap());
        }
    });
    let deleted = "old runs were deleted from the archive";
    let (mut is_serving, mut is_pruned) = (false, false);
    while !(is_serving && is_pruned) {
        let line = told.recv_timeout(PATIENCE).expect("it deletes nothing");
        if let Some((_, address)) = line.split_once("address=") {
            served.addr = address.to_owned();
        }
        if line.contains(deleted) {
            assert_eq!(sum_logged(&line, deleted, "segments"), segments, "{line}");
            is_pruned = true;
        }
        is_serving |= line.ends_with(" serving");
    }
    served
}

/// Asks for runs that another daemon has archived: those that are to be there are, and those that are not are nowhere.
async fn are_there(own: &mut Runs, ids: &[String], expected: &[bool]) {
    for (id, is_there) in ids.iter().zip(expected) {
        let found = info(own, id).await;
        let found = found.map(|run| run.archive()).map_err(|it| it.code());
        let expected = match is_there {
            true => Ok(ArchiveState::Written),
            false => Err(Code::FailedPrecondition),
        };
        assert_eq!(found, expected, "{id} of {ids:?}");
    }
    let long_ago = Some(Timestamp::default());
    let listed = all_since(own, long_ago, 100).await;
    let listed: BTreeSet<&String> = listed.iter().map(|run| &run.run_id).collect();
    let there = ids.iter().zip(expected).filter(|(_, is_there)| **is_there);
    let there: BTreeSet<&String> = there.map(|(id, _)| id).collect();
    assert_eq!(listed, there);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_leave_the_archive_at_the_age_that_is_set() {
    let folder = TempDir::new().unwrap();
    let ages = [24 * 40 * HOUR, 24 * 29 * HOUR, 3 * HOUR, 2 * HOUR];
    let ages = ages.into_iter().chain([minutes(1), Duration::ZERO]);
    let filled: Vec<Filled> = ages.map(|ago| Filled::of("default", ago)).collect();
    let ids = fill(folder.path(), &filled).await;
    // Thirty days, unless something else is set.
    let served = pruning(folder.path(), &[], 1);
    let mut own = runs(&served.addr).await;
    let there = [false, true, true, true, true, true];
    are_there(&mut own, &ids, &there).await;
    // An hour after the end of the hour in which they were asked for, as two hours ago surely is.
    let served = pruning(folder.path(), &["runs.archive_age=1h"], 3);
    let mut own = runs(&served.addr).await;
    let there = [false, false, false, false, true, true];
    are_there(&mut own, &ids, &there).await;
    assert_eq!(events(&mut own, &ids[5], 0).await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_oldest_runs_of_all_tenants_leave_an_archive_of_more_bytes_than_are_set() {
    let folder = TempDir::new().unwrap();
    let tenants = ["other", "default", "other", "default"];
    let filled = [5, 4, 3, 2].map(|hours| hours * HOUR);
    let filled = filled.into_iter().zip(tenants);
    let filled: Vec<Filled> = filled
        .map(|(ago, tenant)| Filled {
            bytes: 400_000,
            ..Filled::of(tenant, ago)
        })
        .collect();
    let ids = fill(folder.path(), &filled).await;
    let segments = || files(&folder.path().join("runs"));
    let bytes = || -> u64 {
        let segments = segments();
        let sizes = segments.iter().map(|it| it.metadata().unwrap().len());
        sizes.sum()
    };
    // What three of them take is more, and what two of them take is not.
    assert!((1_500_000..2_000_000).contains(&bytes()), "{}", bytes());
    let set = ["runs.archive_bytes=1MiB", "runs.archive_age=0s"];
    let served = pruning(folder.path(), &set, 2);
    let mut own = runs(&served.addr).await;
    assert_eq!(segments().len(), 2);
    assert!(bytes() <= 1 << 20, "{}", bytes());
    let own_ids = [ids[1].clone(), ids[3].clone()];
    are_there(&mut own, &own_ids, &[false, true]).await;
    let others = folder.path().join("runs/other");
    assert_eq!(files(&others).len(), 1, "the younger one of the other's");
}

#[test]
fn settings_of_the_archive_that_fit_nothing_are_refused_by_name() {
    let folder = "runs.archive=file:///var/lib/archive";
    let bucket = "runs.archive=s3://bucket/fleet";
    let spool = "runs.archive_spool=/var/spool/archive";
    for (set, parts) in [
        (
            &["runs.archive_ratio=1.01"][..],
            &["runs.archive_ratio = 1.01", "from 0 to 1"][..],
        ),
        (
            &["runs.archive_ratio=-0.1"],
            &["runs.archive_ratio = -0.1", "from 0 to 1"],
        ),
        (
            &["runs.archive_ratio=nan"],
            &["runs.archive_ratio = nan", "a number"],
        ),
        (
            &[folder, "runs.archive_queue=2047KiB"],
            &["runs.archive_queue", "from 2MiB to 1024GiB"],
        ),
        (
            &[folder, "runs.log_bytes=40MiB"],
            &["runs.archive_queue = 64MiB", "from 80MiB to 1024GiB"],
        ),
        (
            &["runs.archive_queue=2TiB"],
            &["runs.archive_queue = 2048GiB", "from 0B to 1024GiB"],
        ),
        (
            &["runs.archive_interval=99ms"],
            &["runs.archive_interval = 99ms", "from 100ms to 10m"],
        ),
        (
            &["runs.archive_interval=11m"],
            &["runs.archive_interval = 11m", "from 100ms to 10m"],
        ),
        (
            &["runs.archive_age=59m"],
            &["runs.archive_age = 59m", "at least 1h, or 0s for ever"],
        ),
        (
            &["runs.archive_bytes=1023KiB"],
            &["runs.archive_bytes", "at least 1MiB, or 0B"],
        ),
        (
            &[bucket, "runs.archive_spool=spool"],
            &["runs.archive_spool = spool", "an absolute path"],
        ),
        (
            &[folder, spool],
            &[
                "runs.archive_spool",
                "unless runs.archive is an object store",
            ],
        ),
        (
            &[spool],
            &[
                "runs.archive_spool",
                "unless runs.archive is an object store",
            ],
        ),
        (
            &["runs.archive=memory:"],
            &["runs.archive", "\"file:///folder\"", "or \"\""],
        ),
        (
            &["runs.archive=s3://key:s3cret@bucket/fleet"],
            &["runs.archive", "without credentials"],
        ),
        (
            &["runs.archive_what=some"],
            &["runs.archive_what", "all", "labelled", "failed"],
        ),
    ] {
        let told = problem(set);
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
        assert!(!told.contains("s3cret"), "{told}");
    }
    for set in [
        &["runs.archive_ratio=0", "runs.archive_age=0s"][..],
        &["runs.archive_ratio=1", "runs.archive_age=1h"],
        &[folder, "runs.archive_queue=2MiB"],
        &["runs.archive_queue=0B", "runs.archive_bytes=1MiB"],
        &[bucket, spool],
        &["runs.archive=", "runs.archive_bytes=0B"],
        &["runs.archive_interval=100ms"],
        &["runs.archive_interval=10m"],
    ] {
        let mut command = ringfence();
        command.args(["config", "check"]).args(settings(set));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{set:?} {output:?}");
    }
}

/// What is given to a run or comes of it, each with a canary of its own.
const KINDS: [&str; 9] = [
    "argument",
    "environment",
    "input",
    "path",
    "label",
    "stdout",
    "stderr",
    "function",
    "entry",
];

fn canary(kind: &str, run: &str) -> String {
    format!("canary-{kind}-of-{run}")
}

/// A run that writes canaries and then traps in a function that is called by one, and that is given others.
fn with_canaries(run: &str) -> RunSpec {
    let [stdout, stderr, function] = ["stdout", "stderr", "function"].map(|kind| canary(kind, run));
    let write = |fd: u32, at: u32, text: &str| {
        let length = text.len();
        format!(
            "(i32.store (i32.const 0) (i32.const {at})) (i32.store (i32.const 4) (i32.const {length}))
             (drop (call $write (i32.const {fd}) (i32.const 0) (i32.const 1) (i32.const 8)))"
        )
    };
    let (out, err) = (write(1, 100, &stdout), write(2, 300, &stderr));
    let module = format!(
        "(module (import \"wasi_snapshot_preview1\" \"fd_write\"
            (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export \"memory\") 1)
        (data (i32.const 100) \"{stdout}\") (data (i32.const 300) \"{stderr}\")
        (func ${function} unreachable)
        (func (export \"_start\") {out} {err} (call ${function})))"
    );
    spec(module)
        .args(&["main", &canary("argument", run)])
        .env(&[&format!("NAME={}", canary("environment", run))])
        .stdin(canary("input", run))
        .label("canary", &canary("label", run))
        .change(|spec| spec.collect.push(format!("/in/{}", canary("path", run))))
}

/// What a daemon tells of runs: their records, and their events.
async fn told_of(addr: &str, ids: &[String]) -> [Vec<u8>; 2] {
    let mut own = runs(addr).await;
    let (mut records, mut streams) = (Vec::new(), Vec::new());
    for id in ids {
        records.extend(info(&mut own, id).await.unwrap().encode_to_vec());
        for event in events(&mut own, id, 0).await.unwrap() {
            streams.extend(event.encode_to_vec());
        }
    }
    [records, streams]
}

/// All bytes of a bucket, as they are and unpacked.
fn all_of(bucket: &Mutex<Bucket>) -> Vec<u8> {
    let bucket = bucket.lock().unwrap();
    let objects = bucket.objects.iter();
    let objects = objects.map(|(key, bytes)| {
        assert!(key.ends_with(".ndjson.zst"), "{key}");
        [key.as_bytes(), bytes, &unpacked_segment(bytes)].concat()
    });
    objects.collect::<Vec<_>>().concat()
}

/// All bytes of files, once all of these texts are among them.
async fn read_until(folder: &Path, texts: &[String]) -> Vec<u8> {
    let start = Instant::now();
    loop {
        let bytes = files(folder)
            .into_iter()
            .map(|it| std::fs::read(it).unwrap());
        let bytes = bytes.collect::<Vec<_>>().concat();
        if texts.iter().all(|text| has(&bytes, text)) {
            return bytes;
        }
        assert!(start.elapsed() < PATIENCE, "they do not come");
        tokio::task::yield_now().await;
    }
}

/// The places in which the canary of each kind is, of those runs; kinds that are nowhere are left out.
fn whereabouts<'a>(
    places: &BTreeMap<&'a str, Vec<u8>>,
    run: &str,
) -> BTreeMap<&'static str, BTreeSet<&'a str>> {
    let found = KINDS.map(|kind| {
        let canary = canary(kind, run);
        let places = places.iter().filter(|(_, bytes)| has(bytes, &canary));
        (kind, places.map(|(place, _)| *place).collect())
    });
    let is_somewhere = |(_, places): &(_, BTreeSet<_>)| !places.is_empty();
    found.into_iter().filter(is_somewhere).collect()
}

/// Runs each kind of run in every way, the refused ones among them, and returns their ids.
async fn run_with_canaries(served: &Served) -> Vec<String> {
    let mut client = connect(&served.addr).await;
    let mut ids = Vec::new();
    for (run, keeps) in [("unkept", false), ("refused", false), ("kept", true)] {
        let spec = with_canaries(run).change(|spec| spec.keep_output = Some(keeps));
        let spec = match run {
            "refused" => spec.entry(&canary("entry", run)),
            _ => spec,
        };
        let request = RunRequest {
            spec: Some(spec.clone()),
        };
        let streamed = RunStreamRequest { spec: Some(spec) };
        if run == "refused" {
            let refusals = [
                client.run(request).await.unwrap_err(),
                client.run_stream(streamed).await.unwrap_err(),
            ];
            ids.extend(refusals.map(|status| {
                let refused = Refused::new(&status);
                assert_eq!(refused.reason, "ENTRY_POINT_NOT_FOUND");
                told_id(status.metadata())
            }));
            continue;
        }
        let ran = client.run(request).await.unwrap().into_inner();
        let ran = Ran::new(ran);
        assert_eq!(ran.trap_code(), "unreachable");
        assert_eq!(ran.out(), canary("stdout", run));
        ids.push(ran.result.run_id);
        let answer = client.run_stream(streamed).await.unwrap();
        ids.push(told_id(answer.metadata()));
        let story = read(answer.into_inner()).await;
        assert_eq!(story.stderr, canary("stderr", run).as_bytes());
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canaries_of_runs_are_where_they_are_said_to_be_and_nowhere_else() {
    let collector = Collector::start().await;
    let (bucket, server) = bucket();
    bucket.lock().unwrap().way = Way::Away;
    let [spool, other_spool] = [(); 2].map(|()| TempDir::new().unwrap());
    let audit = spool.path().join("audit");
    let set = [
        format!("runs.archive_spool={}", spool.path().display()),
        format!("telemetry.otlp_endpoint={}", collector.url()),
        "telemetry.export_output=true".to_owned(),
        format!("telemetry.audit_file={}", audit.display()),
        "telemetry.log_level=debug".to_owned(),
    ];
    let mut served = over_with_log(&server, "a", &settings(&set));
    let log = served.drain_log();
    let ids = run_with_canaries(&served).await;
    let mut places = BTreeMap::new();
    // While the bucket is away, all of them are in the files of runs on their way.
    places.insert("spool", read_until(spool.path(), &ids).await);
    let [record, stream] = told_of(&served.addr, &ids).await;
    bucket.lock().unwrap().way = Way::Works;
    let mut own = runs(&served.addr).await;
    for id in &ids {
        until_archived(&mut own, id, ArchiveState::Written).await;
    }
    places.insert("bucket", all_of(&bucket));
    let other_spool = format!("runs.archive_spool={}", other_spool.path().display());
    let other = over(&server, "b", &["--set", &other_spool]);
    let [archived_record, archived_stream] = told_of(&other.addr, &ids).await;
    places.insert("GetRun", [record, archived_record].concat());
    places.insert("AttachRun", [stream, archived_stream].concat());
    // Two lines of each run whose output is kept, which were the last.
    for id in &ids[4..] {
        collector.logs(id, |logs| logs.len() == 2).await;
    }
    drop(own);
    assert_eq!(ended(served).0, Some(0));
    places.insert("collector", collector.received().wire.clone());
    places.insert("log", log.join().unwrap().into_bytes());
    places.insert("audit", std::fs::read(audit).unwrap());
    for id in &ids {
        let not_told = places.iter().filter(|(_, bytes)| !has(bytes, id));
        let not_told: Vec<&&str> = not_told.map(|(place, _)| place).collect();
        assert_eq!(not_told, Vec::<&&str>::new(), "{id} is told of everywhere");
    }

    let record = BTreeSet::from(["spool", "bucket", "GetRun", "AttachRun"]);
    let label = BTreeSet::from(["spool", "bucket", "GetRun"]);
    let output = BTreeSet::from(["spool", "bucket", "collector", "AttachRun"]);
    let of_any_run = [("label", label)];
    let of_any_end = [("function", record.clone()), ("path", record.clone())];
    let unkept = of_any_run.iter().chain(&of_any_end).cloned();
    assert_eq!(whereabouts(&places, "unkept"), unkept.collect());
    let kept = ["stdout", "stderr"].map(|kind| (kind, output.clone()));
    let kept = of_any_run.iter().chain(&of_any_end).chain(&kept).cloned();
    assert_eq!(whereabouts(&places, "kept"), kept.collect());
    let refused = of_any_run.into_iter().chain([("entry", record)]);
    assert_eq!(whereabouts(&places, "refused"), refused.collect());
}

#[tokio::test]
async fn nobody_attaches_to_archived_runs_of_other_tenants() {
    let (_folder, url) = folder();
    // Nothing is remembered, so that the archive has to be asked.
    let set = [("runs.archive", url.as_str()), ("runs.history", "0")];
    let (_daemon, mut a, mut b, _dir) = crate::tenants::two("", "", &set).await;
    let id = a.ran(kit(&["hello"])).await.exited(0).result.run_id;
    let request = || AttachRunRequest {
        run_id: id.clone(),
        from_seq: 0,
    };
    let start = Instant::now();
    let mut stream = loop {
        match a.runs.attach_run(request()).await {
            Ok(answer) => break answer.into_inner(),
            Err(_) => assert!(start.elapsed() < PATIENCE, "it is not archived"),
        }
    };
    let started = stream.message().await.unwrap().unwrap();
    assert_eq!((started.seq, &started.run_id), (0, &id));
    let hidden = b.runs.attach_run(request()).await.unwrap_err();
    Refused::new(&hidden).is(Code::NotFound, "RUN_NOT_FOUND");
    // It is as one that never was.
    let never = AttachRunRequest {
        run_id: format!("{}.test", "0".repeat(32)),
        from_seq: 0,
    };
    let never = b.runs.attach_run(never).await.unwrap_err();
    let [hidden, never] = [hidden, never].map(|it| it.message().replace(&id, "ID"));
    assert_eq!(
        hidden,
        never.replace(&format!("{}.test", "0".repeat(32)), "ID")
    );
}

#[tokio::test]
async fn of_runs_half_are_archived_by_chance_and_their_records_tell_which() {
    let (folder, url) = folder();
    let mut daemon = daemon("a", &url, &[("runs.archive_ratio", "0.5")]).await;
    let mut ids = Vec::new();
    for _ in 0..400 {
        let ran = daemon.ran(kit(&["hello"])).await.exited(0);
        ids.push(ran.result.run_id);
    }
    let mut own = daemon.runs().await;
    let mut written = BTreeSet::new();
    for id in &ids {
        let told = info(&mut own, id).await.unwrap();
        if told.archive() != ArchiveState::Unspecified {
            until_archived(&mut own, id, ArchiveState::Written).await;
            written.insert(id.clone());
        }
    }
    // Eight standard deviations to either side.
    assert!((120..=280).contains(&written.len()), "{}", written.len());
    drop(own);
    daemon.drain();
    daemon.ended().await.unwrap();
    let other = crate::archive::daemon("b", &url, &[]).await;
    let mut other = other.runs().await;
    let archived = all_since(&mut other, Some(Timestamp::default()), 1000).await;
    let archived: BTreeSet<String> = archived.into_iter().map(|run| run.run_id).collect();
    assert_eq!(archived, written);
    assert_eq!(unpacked_lines(&folder.path().join("runs")), written.len());
}

#[tokio::test]
async fn refused_runs_are_archived_as_failed_ones() {
    for (what, label, expected) in [
        ("all", None, ArchiveState::Written),
        ("failed", None, ArchiveState::Written),
        ("labelled", None, ArchiveState::Unspecified),
        ("labelled", Some("x"), ArchiveState::Written),
    ] {
        let (folder, url) = folder();
        let daemon = daemon("a", &url, &[("runs.archive_what", what)]).await;
        let spec = kit(&["hello"]).entry("nobody");
        let spec = match label {
            Some(label) => spec.label("job", label),
            None => spec,
        };
        let refused = daemon.run(spec).await.unwrap_err();
        let id = told_id(refused.metadata());
        let mut own = daemon.runs().await;
        until_archived(&mut own, &id, expected).await;
        let runs = unpacked_lines(&folder.path().join("runs"));
        assert_eq!(runs == 1, expected == ArchiveState::Written, "{what}");
        if runs == 0 {
            continue;
        }
        let other = crate::archive::daemon("b", &url, &[]).await;
        let mut other = other.runs().await;
        let archived = info(&mut other, &id).await.unwrap();
        let Some(run_info::End::Error(error)) = archived.end else {
            panic!("{archived:?}");
        };
        assert_eq!(error.reason, "ENTRY_POINT_NOT_FOUND");
        let told = events(&mut other, &id, 0).await.unwrap();
        let [event] = &told[..] else {
            panic!("{told:?}");
        };
        assert!(matches!(event.event, Some(Event::Error(_))), "{event:?}");
    }
}

#[tokio::test]
async fn a_collector_that_answers_late_is_nobodys_concern() {
    let collector = Collector::start().await;
    collector.reply(Reply::Late(Duration::from_secs(2)));
    let daemon = without_collector(&collector.url()).await;
    daemon.ran(kit(&["hello"])).await.exited(0);
    let exported = |signal: &str| format!("ringfence_otlp_exported_total{{signal=\"{signal}\"}}");
    let [spans, lines] = ["spans", "log_records"].map(exported);
    until_measured(&daemon.admin, &[(&spans, 6.0), (&lines, 1.0)]).await;
    notices_nothing(daemon, "queue_full").await;
    let received = collector.received();
    assert!(received.spans.len() >= 6 && !received.logs.is_empty());
}

#[tokio::test]
async fn a_collector_that_refuses_for_a_while_or_for_good_is_nobodys_concern() {
    for (code, reason) in [
        (Code::Unavailable, "queue_full"),
        (Code::PermissionDenied, "rejected"),
    ] {
        let collector = Collector::start().await;
        collector.reply(Reply::Fail(code));
        let daemon = without_collector(&collector.url()).await;
        notices_nothing(daemon, reason).await;
        let received = collector.received();
        assert!(!received.headers.is_empty(), "it was asked");
        assert!(received.spans.is_empty() && received.logs.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_list_show_and_delete_runs_that_only_the_archive_has() {
    let folder = TempDir::new().unwrap();
    let filled = [
        ("old", minutes(200)),
        ("old", minutes(95)),
        ("new", minutes(90)),
        ("old", minutes(85)),
        ("old", minutes(30)),
    ];
    let filled = filled.map(|(label, ago)| Filled {
        label,
        ..Filled::of("default", ago)
    });
    let mut ids = fill(folder.path(), &filled).await;
    let archive = format!("runs.archive=file://{}", folder.path().display());
    let served = Served::start(&["--set", &archive, "--set", "server.instance=here"]);
    let addr = served.addr.as_str();
    ids.push(says(&served, "hello").await);
    let newest_first = |at: &[usize]| -> Vec<String> {
        let found = at.iter().rev().map(|at| ids[*at].clone());
        found.collect()
    };
    let hour = ["--since", "2h", "--until", "1h"];
    assert_eq!(listed(addr, &hour), newest_first(&[1, 2, 3]));
    assert_eq!(
        listed(addr, &["--since", "2h"]),
        newest_first(&[1, 2, 3, 4, 5])
    );
    assert_eq!(
        listed(addr, &["--since", "4h"]),
        newest_first(&[0, 1, 2, 3, 4, 5])
    );
    assert_eq!(
        listed(addr, &["--until", "1h"]),
        newest_first(&[0, 1, 2, 3])
    );
    let old = [&hour[..], &["--label", "job=old"]].concat();
    assert_eq!(listed(addr, &old), newest_first(&[1, 3]));
    let newest = [&hour[..], &["--limit", "2"]].concat();
    assert_eq!(listed(addr, &newest), newest_first(&[2, 3]));
    // Without a time it is the daemon's memory that is asked.
    assert_eq!(listed(addr, &["--all"]), newest_first(&[5]));
    is(&told(addr, &["logs", &ids[2]]), 0, "hello\n", "");

    let [oldest, younger] = [&ids[0], &ids[4]];
    let one = format!("{oldest}\n");
    is(&told(addr, &["rm", "--dry-run", oldest]), 0, &one, "");
    assert_eq!(listed(addr, &["--since", "4h"]).len(), 6);
    is(&told(addr, &["rm", oldest]), 0, &one, "");
    let absent = format!("ringfence: the run {oldest} was not deleted: it is not there\n");
    is(&told(addr, &["rm", oldest]), 0, "", &absent);
    assert_eq!(
        listed(addr, &["--since", "4h"]),
        newest_first(&[1, 2, 3, 4, 5])
    );
    let gone = told(addr, &["logs", oldest]);
    assert_eq!(gone.status.code(), Some(126));
    assert!(text(&gone.stderr).contains("RUN_ELSEWHERE"), "{gone:?}");

    let matching = [&["rm", "--yes"], &old[..]].concat();
    let both = format!("{}\n{}\n", ids[3], ids[1]);
    is(&told(addr, &matching), 0, &both, "");
    let none = "ringfence: no ended run matches\n";
    is(&told(addr, &matching), 0, "", none);
    assert_eq!(listed(addr, &["--since", "4h"]), newest_first(&[2, 4, 5]));
    // Those of the archive and those that are remembered go by one command.
    let all = ["rm", "--yes", "--label", "job=old", "--since", "4h"];
    is(&told(addr, &all), 0, &format!("{younger}\n"), "");
    is(
        &told(addr, &["rm", &ids[5], &ids[2]]),
        0,
        &format!("{}\n{}\n", ids[5], ids[2]),
        "",
    );
    assert_eq!(listed(addr, &["--since", "4h"]), Vec::<String>::new());
    assert_eq!(unpacked_lines(&folder.path().join("runs")), 0);
}
