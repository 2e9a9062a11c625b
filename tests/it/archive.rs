//! Ended runs that outlive their daemon: archived, and told of by any daemon with the archive.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use prost_types::Timestamp;
use ringfence::api::proto::{
    ArchiveState, AttachRunRequest, CancelRunRequest, DeleteRunsRequest, GetRunRequest,
    ListRunsRequest, ListRunsResponse, RunInfo, RunRequest, RunSpec, RunStreamRequest, StreamEvent,
    run_info,
};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::harness::{
    Daemon, PATIENCE, Refused, Runs, SpecExt, connect, kit, read, runs, spec, told_id,
};
use crate::machine::open_folder;
use crate::modules::saying;
use crate::process::Served;
use crate::scripted::{Asked, Reply, Scripted};

/// A daemon of that name with the archive, and with `more` settings.
pub(crate) async fn daemon(name: &str, archive: &str, more: &[(&str, &str)]) -> Daemon {
    let own = [("server.instance", name), ("runs.archive", archive)];
    Daemon::with(&[&own, more].concat()).await
}

pub(crate) fn folder() -> (TempDir, String) {
    let folder = TempDir::new().unwrap();
    let url = format!("file://{}", folder.path().display());
    (folder, url)
}

pub(crate) fn now() -> Option<Timestamp> {
    Some(SystemTime::now().into())
}

/// Every run that was asked for since then, by pages.
pub(crate) async fn all_since(
    runs: &mut Runs,
    since: Option<Timestamp>,
    page_size: u32,
) -> Vec<RunInfo> {
    let mut all = Vec::new();
    let mut request = ListRunsRequest {
        since,
        page_size,
        ..ListRunsRequest::default()
    };
    loop {
        let page = runs.list_runs(request.clone()).await.unwrap().into_inner();
        let ListRunsResponse {
            runs,
            next_page_token,
            damaged,
        } = page;
        assert!(damaged.is_empty(), "{damaged:?}");
        all.extend(runs);
        if next_page_token.is_empty() {
            return all;
        }
        request.page_token = next_page_token;
    }
}

pub(crate) async fn info(runs: &mut Runs, run_id: &str) -> Result<RunInfo, Status> {
    let run_id = run_id.to_owned();
    let answer = runs.get_run(GetRunRequest { run_id }).await?;
    Ok(answer.into_inner().run.unwrap())
}

pub(crate) async fn events(
    runs: &mut Runs,
    run_id: &str,
    from_seq: u64,
) -> Result<Vec<StreamEvent>, Status> {
    let run_id = run_id.to_owned();
    let request = AttachRunRequest { run_id, from_seq };
    let mut stream = runs.attach_run(request).await?.into_inner();
    let mut events = Vec::new();
    while let Some(event) = stream.message().await? {
        events.push(event);
    }
    Ok(events)
}

/// Waits until a run is archived, or whatever else is asked.
pub(crate) async fn until_archived(runs: &mut Runs, run_id: &str, state: ArchiveState) -> RunInfo {
    let start = Instant::now();
    loop {
        let info = info(runs, run_id).await.unwrap();
        if info.archive() == state {
            return info;
        }
        assert!(start.elapsed() < PATIENCE, "{info:?}");
        tokio::task::yield_now().await;
    }
}

/// A run as any daemon tells of it.
fn anywhere(mut info: RunInfo) -> RunInfo {
    info.set_archive(ArchiveState::Unspecified);
    info
}

/// The files below a folder.
pub(crate) fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder)
        .unwrap()
        .map(|it| it.unwrap().path());
    let below = |path: PathBuf| match path.is_dir() {
        true => files(&path),
        false => vec![path],
    };
    let files = entries.flat_map(below);
    // Not the one that keeps the folder.
    files.filter(|file| file.extension().is_some()).collect()
}

/// The segments below a folder.
fn segments(folder: &Path) -> Vec<PathBuf> {
    let mut files = files(folder);
    files.retain(|file| file.to_string_lossy().ends_with(".ndjson.zst"));
    files
}

/// All bytes of an archive, unpacked, with the summaries in its indexes.
fn unpacked(folder: &Path) -> Vec<u8> {
    let segments = segments(folder).into_iter();
    let segments = segments.map(|file| unpacked_segment(&std::fs::read(file).unwrap()));
    segments.collect::<Vec<_>>().concat()
}

/// The lines of a segment, and the summaries in its index.
pub(crate) fn unpacked_segment(bytes: &[u8]) -> Vec<u8> {
    let mut all = zstd::stream::decode_all(bytes).unwrap();
    // The index is a frame of its own in a skippable one, whose length is before the magic.
    let end = bytes.len() - 16;
    let length = u64::from_le_bytes(bytes[end..end + 8].try_into().unwrap());
    let begin = end - usize::try_from(length).unwrap();
    all.extend(zstd::stream::decode_all(&bytes[begin..end]).unwrap());
    all
}

pub(crate) fn has(bytes: &[u8], needle: &str) -> bool {
    let mut windows = bytes.windows(needle.len());
    windows.any(|window| window == needle.as_bytes())
}

/// Runs of many kinds: what they are asked to be, and whether they are refused.
fn kinds(i: usize) -> (RunSpec, bool) {
    let spec = match i % 8 {
        0 => kit(&["hello"]),
        1 => kit(&["echo"]).stdin(vec![u8::try_from(i % 256).unwrap(); 70_000]),
        2 => kit(&["echo"]).stdin(b"\xff\x00\xfe not text \x80".to_vec()),
        3 => kit(&["exit", "7"]),
        4 => kit(&["panic"]),
        5 => kit(&["both", "20"]),
        6 => kit(&["spin", ""]).timeout(Duration::from_millis(3)),
        _ => return (kit(&["hello"]).entry("nobody"), true),
    };
    (spec.label("number", &i.to_string()), false)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_runs_of_a_daemon_that_was_killed_are_told_of_by_another() {
    let (_folder, url) = folder();
    let since = now();
    let set = ["server.instance=killed", &format!("runs.archive={url}")];
    let mut args = Vec::new();
    for set in set {
        args.extend(["--set", set]);
    }
    let mut served = Served::start(&args);
    let mut client = connect(&served.addr).await;
    for i in 0..1000 {
        let (spec, is_refused) = kinds(i);
        let ran = match i % 2 {
            0 => {
                let request = RunRequest { spec: Some(spec) };
                client.run(request).await.map(drop)
            }
            _ => {
                let request = RunStreamRequest { spec: Some(spec) };
                match client.run_stream(request).await {
                    Ok(answer) => drop(read(answer.into_inner()).await),
                    Err(status) => assert!(is_refused, "{status:?}"),
                }
                Ok(())
            }
        };
        assert!(ran.is_ok() || is_refused, "{ran:?}");
    }
    let mut before = runs(&served.addr).await;
    let all = all_since(&mut before, since, 1000).await;
    assert_eq!(all.len(), 1000);
    let mut told = Vec::new();
    for run in &all {
        let full = info(&mut before, &run.run_id).await.unwrap();
        let events = events(&mut before, &run.run_id, 0).await.unwrap();
        told.push((full, events));
    }
    // What ended in the last moment is on its way, beside the archive.
    served.child.kill().unwrap();
    served.child.wait().unwrap();
    drop(served);

    let other = daemon("other", &url, &[]).await;
    let mut after = other.runs().await;
    let start = Instant::now();
    while all_since(&mut after, since, 1000).await.len() < all.len() {
        assert!(start.elapsed() < PATIENCE, "they do not come");
    }
    for (since, page_size) in [
        (since, 1000),
        (since, 77),
        (Some(Timestamp::default()), 500),
    ] {
        let listed = all_since(&mut after, since, page_size).await;
        let listed: Vec<RunInfo> = listed.into_iter().map(anywhere).collect();
        let expected: Vec<RunInfo> = all.iter().cloned().map(anywhere).collect();
        assert_eq!(listed, expected);
    }
    for (full, told) in told {
        let id = &full.run_id;
        let archived = info(&mut after, id).await.unwrap();
        assert_eq!(archived.archive(), ArchiveState::Written);
        assert_eq!(anywhere(archived), anywhere(full.clone()));
        assert_eq!(events(&mut after, id, 0).await.unwrap(), told, "{full:?}");
    }
}

#[tokio::test]
async fn an_archived_run_is_read_from_any_event_on_and_not_beyond_its_end() {
    let (_folder, url) = folder();
    let first = daemon("first", &url, &[]).await;
    let answer = first.client.clone();
    let request = RunStreamRequest {
        spec: Some(kit(&["both", "50"])),
    };
    let answer = answer.clone().run_stream(request).await.unwrap();
    let id = told_id(answer.metadata());
    let story = read(answer.into_inner()).await;
    let mut own = first.runs().await;
    until_archived(&mut own, &id, ArchiveState::Written).await;
    let second = daemon("second", &url, &[]).await;
    let mut other = second.runs().await;
    let last = story.events.last().unwrap().seq;
    for from in 0..=last {
        let told = events(&mut other, &id, from).await.unwrap();
        assert_eq!(
            told,
            events(&mut own, &id, from).await.unwrap(),
            "from {from}"
        );
        assert_eq!(told[0].seq, from);
    }
    let refused = events(&mut other, &id, last + 1).await.unwrap_err();
    let refused = Refused::new(&refused).is(Code::InvalidArgument, "SPEC_INVALID");
    refused.at("from_seq").with("allowed", last);
}

#[tokio::test]
async fn a_run_elsewhere_is_so_until_it_has_ended() {
    let (_folder, url) = folder();
    let first = daemon("first", &url, &[]).await;
    let second = daemon("second", &url, &[]).await;
    let spec = kit(&["sleep", "60000"]).detach().label("which", "one");
    let answer = first.client.clone();
    let request = RunStreamRequest { spec: Some(spec) };
    let answer = answer.clone().run_stream(request).await.unwrap();
    let id = told_id(answer.metadata());
    let mut other = second.runs().await;
    let elsewhere = info(&mut other, &id).await.unwrap_err();
    Refused::new(&elsewhere).is(Code::FailedPrecondition, "RUN_ELSEWHERE");
    let mut own = first.runs().await;
    let live = info(&mut own, &id).await.unwrap();
    assert_eq!(live.archive(), ArchiveState::Unspecified);
    let cancel = CancelRunRequest { run_id: id.clone() };
    own.cancel_run(cancel).await.unwrap();
    until_archived(&mut own, &id, ArchiveState::Written).await;
    let archived = info(&mut other, &id).await.unwrap();
    assert!(matches!(archived.end, Some(run_info::End::Result(_))));
    // One that never was is nobody's.
    let never = format!("{}.first", "0".repeat(32));
    let never = info(&mut other, &never).await.unwrap_err();
    Refused::new(&never).is(Code::FailedPrecondition, "RUN_ELSEWHERE");
    let never = format!("{}.second", "0".repeat(32));
    let never = info(&mut other, &never).await.unwrap_err();
    Refused::new(&never).is(Code::NotFound, "RUN_NOT_FOUND");
}

#[tokio::test]
async fn output_that_memory_has_dropped_is_read_from_the_archive() {
    let (_folder, url) = folder();
    let set = [("runs.log_bytes", "1MiB"), ("runs.log_budget", "1MiB")];
    let daemon = daemon("a", &url, &set).await;
    let mut runs = daemon.runs().await;
    let text = vec![b'x'; 400_000];
    let mut ids = Vec::new();
    for _ in 0..4 {
        let spec = Some(kit(&["echo"]).stdin(text.clone()));
        let mut client = daemon.client.clone();
        let answer = client.run_stream(RunStreamRequest { spec }).await.unwrap();
        let id = told_id(answer.metadata());
        assert!(read(answer.into_inner()).await.stdout == text);
        until_archived(&mut runs, &id, ArchiveState::Written).await;
        ids.push(id);
    }
    for id in ids {
        let story = read(daemon.attach(&id, 0).await).await;
        assert!(story.stdout == text, "{} bytes", story.stdout.len());
    }
    let remembered = daemon.probe.remembered().0;
    assert!(remembered < 4 * text.len(), "memory has all of it");
}

#[tokio::test]
async fn only_runs_that_are_chosen_are_archived() {
    for (what, ratio, expected) in [
        ("all", "1", [true, true, true, true]),
        ("labelled", "1", [false, true, false, true]),
        ("failed", "1.0", [false, false, true, true]),
        ("all", "0", [false; 4]),
    ] {
        let (folder, url) = folder();
        let set = [("runs.archive_what", what), ("runs.archive_ratio", ratio)];
        let mut daemon = daemon("a", &url, &set).await;
        let mut runs = daemon.runs().await;
        let specs = [
            kit(&["hello"]),
            kit(&["hello"]).label("a", "b"),
            kit(&["exit", "3"]),
            kit(&["panic"]).label("a", "b"),
        ];
        for (spec, expected) in specs.into_iter().zip(expected) {
            let id = daemon.ran(spec).await.result.run_id;
            let state = match expected {
                true => ArchiveState::Written,
                false => ArchiveState::Unspecified,
            };
            until_archived(&mut runs, &id, state).await;
        }
        daemon.drain();
        drop(runs);
        daemon.ended().await.unwrap();
        let lines = unpacked_lines(folder.path());
        assert_eq!(lines, expected.iter().filter(|it| **it).count(), "{what}");
    }
}

pub(crate) fn unpacked_lines(folder: &Path) -> usize {
    let count = |file: PathBuf| {
        let bytes = std::fs::read(file).unwrap();
        let lines = zstd::stream::decode_all(&*bytes).unwrap();
        lines.iter().filter(|byte| **byte == b'\n').count()
    };
    segments(folder).into_iter().map(count).sum()
}

#[tokio::test]
async fn the_end_of_a_daemon_writes_what_has_ended() {
    let (folder, url) = folder();
    let mut daemon = daemon("a", &url, &[]).await;
    for _ in 0..20 {
        daemon.ran(kit(&["hello"])).await;
    }
    daemon.drain();
    daemon.ended().await.unwrap();
    assert_eq!(unpacked_lines(folder.path()), 20);
}

#[tokio::test]
async fn what_a_killed_daemon_was_writing_is_deleted_also_where_runs_are_kept_for_ever() {
    let (folder, url) = folder();
    let hour = folder.path().join("runs/default/2026-11-29/12");
    std::fs::create_dir_all(&hour).unwrap();
    let name = format!("1795953600000-1795953600001-a-{:032x}.ndjson.zst#1", 7);
    let left = hour.join(name);
    let file = std::fs::File::create(&left).unwrap();
    let long_ago = SystemTime::now() - Duration::from_secs(2 * 3600);
    file.set_modified(long_ago).unwrap();
    let _daemon = daemon("a", &url, &[("runs.archive_age", "0s")]).await;
    let start = Instant::now();
    while left.exists() {
        assert!(start.elapsed() < PATIENCE, "it stays");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn of_what_a_run_was_given_nothing_is_archived_and_of_its_output_everything_unless_refused() {
    let (folder, url) = folder();
    let mut daemon = daemon("a", &url, &[]).await;
    let canary = |what: &str| format!("canary-{what}-{}", 7919);
    let echoing = |output: &str| {
        let module = saying(&canary(output), 0);
        spec(module)
            .args(&["main", &canary("argument")])
            .env(&[&format!("NAME={}", canary("environment"))])
            .stdin(canary("input"))
    };
    daemon.ran(echoing("kept")).await;
    let forgotten = |spec: RunSpec| spec.change(|spec| spec.keep_output = Some(false));
    let ran = daemon.ran(forgotten(echoing("forgotten"))).await;
    assert_eq!(ran.out(), canary("forgotten"));
    let stream = daemon
        .stream(forgotten(echoing("forgotten")))
        .await
        .unwrap();
    assert_eq!(read(stream).await.stdout, canary("forgotten").as_bytes());
    daemon.drain();
    daemon.ended().await.unwrap();
    let bytes = unpacked(folder.path());
    assert!(has(&bytes, &canary("kept")));
    for what in ["argument", "environment", "input", "forgotten"] {
        assert!(!has(&bytes, &canary(what)), "{what}");
    }
    let raw = files(folder.path());
    let raw: Vec<u8> = raw
        .iter()
        .flat_map(|it| std::fs::read(it).unwrap())
        .collect();
    assert!(!has(&raw, &canary("forgotten")));
}

#[tokio::test]
async fn deleted_runs_are_gone_from_the_archive_for_everybody() {
    let (folder, url) = folder();
    let first = daemon("first", &url, &[]).await;
    let second = daemon("second", &url, &[]).await;
    let (mut own, mut other) = (first.runs().await, second.runs().await);
    let mut ids = BTreeMap::<&str, Vec<String>>::new();
    for i in 0..30 {
        let label = ["keep", "drop", "name"][i % 3];
        let canary = format!("canary-{label}");
        let ran = first
            .ran(spec(saying(&canary, 0)).label("which", label))
            .await;
        ids.entry(label).or_default().push(ran.result.run_id);
    }
    // Some wait to be written still, and are deleted all the same.
    let delete = DeleteRunsRequest {
        labels: [("which".to_owned(), "drop".to_owned())].into(),
        ..DeleteRunsRequest::default()
    };
    let dry = DeleteRunsRequest {
        dry_run: true,
        ..delete.clone()
    };
    for request in [dry, delete.clone()] {
        let deleted = own.delete_runs(request).await.unwrap().into_inner();
        let mut expected = ids["drop"].clone();
        expected.reverse();
        assert_eq!((deleted.deleted, deleted.run_ids), (10, expected));
    }
    let again = own.delete_runs(delete).await.unwrap().into_inner();
    assert_eq!(again.deleted, 0);
    for id in &ids["name"] {
        until_archived(&mut own, id, ArchiveState::Written).await;
    }
    let by_id = DeleteRunsRequest {
        run_ids: ids["name"].clone(),
        ..DeleteRunsRequest::default()
    };
    let deleted = other.delete_runs(by_id).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, 10);
    let bytes = unpacked(folder.path());
    assert!(has(&bytes, "canary-keep"));
    for label in ["drop", "name"] {
        assert!(!has(&bytes, &format!("canary-{label}")), "{label}");
        for id in &ids[label] {
            let gone = info(&mut other, id).await.unwrap_err();
            Refused::new(&gone).is(Code::FailedPrecondition, "RUN_ELSEWHERE");
        }
    }
    for id in &ids["keep"] {
        info(&mut other, id).await.unwrap();
    }
}

#[tokio::test]
async fn a_tenant_sees_and_deletes_its_own_archived_runs_only() {
    let (_folder, url) = folder();
    let archive = [("runs.archive", url.as_str()), ("server.instance", "x")];
    let set = [&archive[..], &[("runs.history", "0")]].concat();
    let (_daemon, mut a, mut b, _dir) = crate::tenants::two("", "", &set).await;
    let since = now();
    let id = a.ran(kit(&["hello"])).await.result.run_id;
    let request = || ListRunsRequest {
        since,
        ..ListRunsRequest::default()
    };
    let start = Instant::now();
    loop {
        let listed = a.runs.list_runs(request()).await.unwrap().into_inner();
        if listed.runs.iter().any(|run| run.run_id == id) {
            break;
        }
        assert!(start.elapsed() < PATIENCE, "it is not archived");
    }
    let listed = b.runs.list_runs(request()).await.unwrap().into_inner();
    assert_eq!(listed.runs, []);
    let get = || GetRunRequest { run_id: id.clone() };
    let hidden = b.runs.get_run(get()).await.unwrap_err();
    Refused::new(&hidden).is(Code::NotFound, "RUN_NOT_FOUND");
    let delete = || DeleteRunsRequest {
        run_ids: vec![id.clone()],
        ..DeleteRunsRequest::default()
    };
    let deleted = b.runs.delete_runs(delete()).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, 0);
    a.runs.get_run(get()).await.unwrap();
    let deleted = a.runs.delete_runs(delete()).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, 1);
    let gone = a.runs.get_run(get()).await.unwrap_err();
    Refused::new(&gone).is(Code::NotFound, "RUN_NOT_FOUND");
}

#[tokio::test]
async fn a_run_on_its_way_that_memory_has_forgotten_is_waited_for() {
    let (_folder, url) = folder();
    let daemon = daemon("a", &url, &[("runs.history", "1")]).await;
    let mut runs = daemon.runs().await;
    for _ in 0..5 {
        let first = daemon.ran(kit(&["hello"])).await.result.run_id;
        let second = daemon.ran(kit(&["hello"])).await.result.run_id;
        // Memory has the second alone, and would say of the first that it is queued.
        let told = info(&mut runs, &first).await.unwrap();
        assert_eq!(told.archive(), ArchiveState::Written);
        daemon.ran(kit(&["hello"])).await;
        let told = events(&mut runs, &second, 0).await.unwrap();
        assert_eq!(told.len(), 3, "{told:?}");
    }
}

#[tokio::test]
async fn a_run_on_its_way_is_nothing_to_other_tenants() {
    let (folder, url) = folder();
    let archive = [("runs.archive", url.as_str()), ("server.instance", "x")];
    let set = [&archive[..], &[("runs.history", "0")]].concat();
    let (_daemon, mut a, mut b, _dir) = crate::tenants::two("", "", &set).await;
    let ask = |run_id: &str| GetRunRequest {
        run_id: run_id.to_owned(),
    };
    let id = a.ran(kit(&["hello"])).await.result.run_id;
    let hidden = b.runs.get_run(ask(&id)).await.unwrap_err();
    Refused::new(&hidden).is(Code::NotFound, "RUN_NOT_FOUND");
    a.runs.get_run(ask(&id)).await.unwrap();
    // Nothing more of "a" can be written: what is to be its folder is a file.
    std::fs::remove_dir_all(folder.path().join("runs/a")).unwrap();
    std::fs::write(folder.path().join("runs/a"), "").unwrap();
    let id = a.ran(kit(&["hello"])).await.result.run_id;
    let waits = a.runs.get_run(ask(&id)).await.unwrap_err();
    assert!(waits.message().contains("waits to be written"), "{waits:?}");
    let waits = Refused::new(&waits).is(Code::Unavailable, "ARCHIVE_UNAVAILABLE");
    assert!(waits.retry);
    let hidden = b.runs.get_run(ask(&id)).await.unwrap_err();
    let never = b.runs.get_run(ask(&format!("{}.x", "0".repeat(32)))).await;
    let never = never.unwrap_err();
    let [hidden, never] = [&hidden, &never].map(Refused::new);
    assert_eq!(hidden.reason, never.reason);
    hidden.is(Code::NotFound, "RUN_NOT_FOUND");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_waits_for_a_bucket_is_told_so_until_it_is_written() {
    let (bucket, server) = bucket();
    bucket.lock().unwrap().way = Way::Away;
    let served = over(&server, "a", &["--set", "runs.history=1"]);
    let mut own = runs(&served.addr).await;
    let first = says(&served, "hello").await;
    says(&served, "hello").await;
    for refused in [
        info(&mut own, &first).await.unwrap_err(),
        events(&mut own, &first, 0).await.unwrap_err(),
    ] {
        assert!(refused.message().contains("waits to be written"));
        Refused::new(&refused).is(Code::Unavailable, "ARCHIVE_UNAVAILABLE");
    }
    bucket.lock().unwrap().way = Way::Works;
    let start = Instant::now();
    let told = loop {
        match info(&mut own, &first).await {
            Ok(told) => break told,
            Err(status) => Refused::new(&status).is(Code::Unavailable, "ARCHIVE_UNAVAILABLE"),
        };
        assert!(start.elapsed() < PATIENCE, "it does not come");
    };
    assert_eq!(told.archive(), ArchiveState::Written);
}

/// A bucket that can be away, full, or give back what was not put into it.
#[derive(Default)]
pub(crate) struct Bucket {
    pub objects: BTreeMap<String, Vec<u8>>,
    pub way: Way,
}

#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) enum Way {
    #[default]
    Works,
    Away,
    Full,
    Slow,
    Damages,
    IsAWebPage,
}

pub(crate) type SharedBucket = Arc<Mutex<Bucket>>;

pub(crate) fn failing(status: u16, code: &str) -> Reply {
    let body = format!("<Error><Code>{code}</Code><Message>It is so.</Message></Error>");
    Reply::new(status, body).with("content-type", "application/xml")
}

/// A listing, of folders too where a delimiter is given.
fn listing(asked: &Asked, bucket: &Bucket) -> Reply {
    let prefix = asked.query("prefix").unwrap_or_default();
    let divides = asked.query("delimiter").is_some();
    let mut folders = std::collections::BTreeSet::new();
    let mut entries = String::new();
    for (key, object) in &bucket.objects {
        let Some(rest) = key.strip_prefix(&prefix) else {
            continue;
        };
        match rest.split_once('/') {
            Some((folder, _)) if divides => {
                folders.insert(format!("{prefix}{folder}/"));
            }
            _ => entries.push_str(&format!(
                "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>2026-11-28T20:00:00.000Z</LastModified><ETag>x</ETag></Contents>",
                object.len()
            )),
        }
    }
    for folder in folders {
        entries.push_str(&format!(
            "<CommonPrefixes><Prefix>{folder}</Prefix></CommonPrefixes>"
        ));
    }
    let body =
        format!("<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>");
    Reply::new(200, body).with("content-type", "application/xml")
}

pub(crate) fn bucket() -> (SharedBucket, Scripted) {
    let bucket = SharedBucket::default();
    let shared = Arc::clone(&bucket);
    (bucket, Scripted::start(move |asked| answer(asked, &shared)))
}

/// What a bucket answers.
pub(crate) fn answer(asked: &Asked, shared: &SharedBucket) -> Reply {
    let way = shared.lock().unwrap().way;
    match way {
        Way::Away => return failing(503, "ServiceUnavailable"),
        Way::Full if asked.method == "PUT" => return failing(507, "XMinioStorageFull"),
        Way::IsAWebPage => return Reply::new(200, "<html>welcome</html>"),
        Way::Slow => std::thread::sleep(Duration::from_millis(300)),
        Way::Works | Way::Full | Way::Damages => {}
    }
    let mut bucket = shared.lock().unwrap();
    let key = asked.path().strip_prefix("/bucket").unwrap_or_default();
    let key = key.trim_start_matches('/').to_owned();
    match asked.method.as_str() {
        _ if key.is_empty() => listing(asked, &bucket),
        "PUT" if asked.header("if-none-match").is_some() && bucket.objects.contains_key(&key) => {
            failing(412, "PreconditionFailed")
        }
        "PUT" => {
            bucket.objects.insert(key, asked.body.clone());
            Reply::new(200, "").with("etag", "\"x\"")
        }
        "DELETE" => {
            bucket.objects.remove(&key);
            Reply::new(204, "")
        }
        _ => match bucket.objects.get(&key) {
            Some(bytes) if way == Way::Damages => {
                let damaged: Vec<u8> = bytes.iter().map(|byte| byte ^ 0x20).collect();
                Reply::object(asked, &damaged)
            }
            Some(bytes) => Reply::object(asked, bytes),
            None => failing(404, "NoSuchKey"),
        },
    }
}

/// A daemon of its own process, whose archive is the bucket.
pub(crate) fn over(server: &Scripted, name: &str, more: &[&str]) -> Served {
    let mut served = over_with_log(server, name, more);
    served.drain_log();
    served
}

/// The same, whose log nobody reads yet.
pub(crate) fn over_with_log(server: &Scripted, name: &str, more: &[&str]) -> Served {
    let endpoint = format!("http://{}", server.host);
    let env = [
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "s3cretkey"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
    ];
    let instance = format!("server.instance={name}");
    let own = [
        "--set",
        &instance,
        "--set",
        "runs.archive=s3://bucket/fleet",
    ];
    Served::with(&[&own, more].concat(), &env)
}

pub(crate) async fn says(served: &Served, text: &str) -> String {
    let spec = spec(saying(text, 0));
    let request = RunRequest { spec: Some(spec) };
    let ran = connect(&served.addr).await.run(request).await;
    let ran = ran.expect("the archive is no run's business").into_inner();
    assert_eq!(ran.stdout, text);
    ran.result.unwrap().run_id
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_away_full_or_slow_holds_up_no_run_and_gets_it_later() {
    let (bucket, server) = bucket();
    let served = over(&server, "a", &[]);
    let mut own = runs(&served.addr).await;
    for way in [Way::Away, Way::Full, Way::Slow] {
        bucket.lock().unwrap().way = way;
        let start = Instant::now();
        let mut ids = Vec::new();
        for _ in 0..20 {
            ids.push(says(&served, "hello").await);
        }
        if way != Way::Slow {
            let queued = info(&mut own, &ids[0]).await.unwrap();
            assert_eq!(queued.archive(), ArchiveState::Queued);
            assert!(start.elapsed() < Duration::from_secs(30));
        }
        bucket.lock().unwrap().way = Way::Works;
        for id in &ids {
            until_archived(&mut own, id, ArchiveState::Written).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_find_no_room_on_their_way_are_dropped_and_told() {
    let (bucket, server) = bucket();
    bucket.lock().unwrap().way = Way::Away;
    let more = ["--set", "runs.archive_queue=2MiB"];
    let served = over(&server, "a", &more);
    let mut own = runs(&served.addr).await;
    let mut client = connect(&served.addr).await;
    let mut dropped = None;
    for _ in 0..20 {
        let spec = kit(&["echo"]).stdin(vec![b'x'; 500_000]);
        let request = RunRequest { spec: Some(spec) };
        let ran = client.run(request).await.unwrap().into_inner();
        let id = ran.result.unwrap().run_id;
        let told = info(&mut own, &id).await.unwrap();
        if told.archive() == ArchiveState::Dropped {
            dropped = Some(id);
        }
    }
    let dropped = dropped.expect("there is room for four");
    bucket.lock().unwrap().way = Way::Works;
    let start = Instant::now();
    let last = loop {
        let id = says(&served, "after").await;
        let told = info(&mut own, &id).await.unwrap();
        if told.archive() != ArchiveState::Dropped {
            break id;
        }
        assert!(start.elapsed() < PATIENCE, "there is no room again");
    };
    until_archived(&mut own, &last, ArchiveState::Written).await;
    let told = info(&mut own, &dropped).await.unwrap();
    assert_eq!(told.archive(), ArchiveState::Dropped);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_in_many_small_pieces_is_not_free_on_its_way() {
    let (bucket, server) = bucket();
    bucket.lock().unwrap().way = Way::Away;
    let served = over(&server, "a", &["--set", "runs.archive_queue=2MiB"]);
    let mut own = runs(&served.addr).await;
    let mut client = connect(&served.addr).await;
    // Each keeps some 7,000 pieces of fewer than 10 bytes, which are 64 KiB in all.
    for _ in 0..10 {
        let spec = Some(kit(&["both", "6000"]));
        let ran = client.run(RunRequest { spec }).await.unwrap().into_inner();
        let id = ran.result.unwrap().run_id;
        if info(&mut own, &id).await.unwrap().archive() == ArchiveState::Dropped {
            return;
        }
    }
    panic!("runs that take a MiB of memory each are charged with their 64 KiB");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_an_archive_that_is_away_or_damaged_is_told_so() {
    let (bucket, server) = bucket();
    let first = over(&server, "first", &[]);
    let since = now();
    let id = says(&first, "hello").await;
    until_archived(&mut runs(&first.addr).await, &id, ArchiveState::Written).await;
    let second = over(&server, "second", &[]);
    let mut other = runs(&second.addr).await;
    info(&mut other, &id).await.unwrap();
    let list = || ListRunsRequest {
        since,
        ..ListRunsRequest::default()
    };
    for way in [Way::Away, Way::IsAWebPage] {
        bucket.lock().unwrap().way = way;
        for refused in [
            info(&mut other, &id).await.unwrap_err(),
            events(&mut other, &id, 0).await.unwrap_err(),
            other.list_runs(list()).await.unwrap_err(),
            other
                .delete_runs(DeleteRunsRequest {
                    run_ids: vec![id.clone()],
                    ..DeleteRunsRequest::default()
                })
                .await
                .unwrap_err(),
        ] {
            Refused::new(&refused).is(Code::Unavailable, "ARCHIVE_UNAVAILABLE");
        }
        // What needs no archive is answered.
        other.list_runs(ListRunsRequest::default()).await.unwrap();
        says(&second, "still").await;
    }
    bucket.lock().unwrap().way = Way::Damages;
    for refused in [
        info(&mut other, &id).await.unwrap_err(),
        events(&mut other, &id, 0).await.unwrap_err(),
    ] {
        let refused = Refused::new(&refused).is(Code::DataLoss, "ARCHIVE_DAMAGED");
        assert!(refused.metadata["segment"].starts_with("runs/"));
    }
    let listed = other.list_runs(list()).await.unwrap().into_inner();
    assert!(!listed.damaged.is_empty() && listed.damaged[0].contains("runs/"));
    assert!(listed.runs.iter().all(|run| run.run_id != id));
    bucket.lock().unwrap().way = Way::Works;
    info(&mut other, &id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_on_their_way_to_a_bucket_survive_the_daemon_beside_it() {
    let (bucket, server) = bucket();
    bucket.lock().unwrap().way = Way::Away;
    let spool = TempDir::new().unwrap();
    let more = format!("runs.archive_spool={}", spool.path().display());
    let mut killed = over(&server, "killed", &["--set", &more]);
    let id = says(&killed, "survives").await;
    let start = Instant::now();
    while files(spool.path())
        .iter()
        .all(|it| it.metadata().unwrap().len() == 0)
    {
        assert!(start.elapsed() < PATIENCE, "it is not spooled");
        tokio::task::yield_now().await;
    }
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    bucket.lock().unwrap().way = Way::Works;
    let next = over(&server, "next", &["--set", &more]);
    let mut runs = runs(&next.addr).await;
    let start = Instant::now();
    let told = loop {
        match events(&mut runs, &id, 0).await {
            Ok(told) => break told,
            Err(status) => Refused::new(&status).is(Code::FailedPrecondition, "RUN_ELSEWHERE"),
        };
        assert!(start.elapsed() < PATIENCE, "it does not come");
    };
    assert_eq!(told.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_walls_let_the_archive_through() {
    if !crate::machine::is_root() {
        return;
    }
    let walls = ["hardening.mode=require", "hardening.user=65534:65534"];
    let folder = open_folder(0o777);
    let url = format!("file://{}", folder.path().join("archive").display());
    let set = [
        format!("runs.archive={url}"),
        walls[0].into(),
        walls[1].into(),
    ];
    let args: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    let mut served = Served::start(&args);
    served.drain_log();
    let id = says(&served, "hello").await;
    until_archived(&mut runs(&served.addr).await, &id, ArchiveState::Written).await;
    served.signal("-TERM");
    served.child.wait().unwrap();
    assert_eq!(unpacked_lines(folder.path()), 1);
    let (_bucket, server) = bucket();
    let spool = open_folder(0o777);
    let spool = format!("runs.archive_spool={}", spool.path().display());
    let more = ["--set", &spool, "--set", walls[0], "--set", walls[1]];
    let served = over(&server, "walled", &more);
    let id = says(&served, "hello").await;
    until_archived(&mut runs(&served.addr).await, &id, ArchiveState::Written).await;
}

#[tokio::test]
async fn duckdb_answers_questions_over_the_archive() {
    let Some(python) = crate::interop::venv("duckdb", &["duckdb==2.0.1"]).await else {
        return;
    };
    let (folder, url) = folder();
    let mut daemon = daemon("a", &url, &[]).await;
    for i in 0..24 {
        let (spec, is_refused) = kinds(i);
        assert!(daemon.run(spec).await.is_ok() || is_refused);
    }
    daemon.drain();
    daemon.ended().await.unwrap();
    let question = format!(
        "import duckdb; print(duckdb.sql(\"SELECT outcome, exit_code, count(*) AS n, sum(stdout_bytes)::BIGINT AS bytes FROM read_json('{}/runs/*/*/*/*.ndjson.zst') GROUP BY ALL ORDER BY ALL\").fetchall())",
        folder.path().display()
    );
    let answered = std::process::Command::new(python)
        .args(["-c", &question])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&answered.stdout).into_owned();
    assert!(answered.status.success(), "{answered:?}");
    for row in [
        "('exited', 0, 12,",
        "('exited', 7, 3, 0)",
        "('refused', None, 3, 0)",
        "('timed_out', None, 3, 0)",
        "('trapped', None, 3, 0)",
    ] {
        assert!(text.contains(row), "{row} in {text}");
    }
}
