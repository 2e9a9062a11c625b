//! Files in memory: what a run begins with, what it may do with them, and what it returns.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{
    CollectedFile, File, FileChunk, Outcome, RunResponse, RunSpec, UncollectedReason,
};
use tempfile::TempDir;
use tonic::Code;

use crate::guests::{memory_files, memory_files_component};
use crate::harness::{Daemon, SpecExt, Story, connect, read, runs, spec};
use crate::process::Served;

const PAGE: u64 = 64 << 10;
/// The number of ENOSPC.
const NO_SPACE: &str = "51";

fn both() -> [Bytes; 2] {
    [memory_files(), memory_files_component()]
}

fn run(guest: &Bytes, args: &[&str]) -> RunSpec {
    spec(guest.clone())
        .args(&[&["memory_files"], args].concat())
        .timeout(Duration::from_secs(60))
}

trait FilesExt: SpecExt {
    fn file(self, path: &str, data: impl Into<Bytes>) -> Self {
        let (path, data) = (path.to_owned(), data.into());
        self.change(|it| it.files.push(File { path, data }))
    }
    fn collect(self, patterns: &[&str]) -> Self {
        self.change(|it| {
            it.collect
                .extend(patterns.iter().map(|it| (*it).to_owned()))
        })
    }
}

impl FilesExt for RunSpec {}

fn tour(guest: &Bytes) -> RunSpec {
    run(guest, &["tour"])
        .file("/in/a.txt", "alpha")
        .file("//in/./deep/b.bin", vec![7; 200_000])
        .collect(&[
            "/out/**/*.txt",
            "/out/**/*.json",
            "/out/missing",
            "/in/deep",
        ])
}

fn paths(files: &[CollectedFile]) -> Vec<&str> {
    files.iter().map(|it| &*it.path).collect()
}

/// The files that a stream returned, put together from their pieces.
fn collected(story: &Story) -> Vec<CollectedFile> {
    let mut files: Vec<CollectedFile> = Vec::new();
    let mut has_begun = false;
    for event in &story.events {
        let Some(Event::File(chunk)) = &event.event else {
            let is_end = matches!(event.event, Some(Event::Exit(_)));
            assert!(!has_begun || is_end, "files come after all output");
            continue;
        };
        has_begun = true;
        let FileChunk {
            path,
            content_type,
            size,
            offset,
            data,
        } = chunk;
        assert!(data.len() <= 65_536);
        if *offset == 0 {
            files.push(CollectedFile {
                path: path.clone(),
                content_type: content_type.clone(),
                data: Bytes::new(),
            });
        }
        let file = files.last_mut().expect("it begins at 0");
        assert_eq!((&file.path, file.data.len() as u64), (path, *offset));
        file.data = [&file.data[..], data].concat().into();
        assert!(file.data.len() as u64 <= *size);
        assert_eq!(data.is_empty(), *size == 0);
    }
    files
}

async fn answered(daemon: &Daemon, spec: RunSpec) -> RunResponse {
    let answer = daemon.run(spec).await.expect("the run is not refused");
    let result = answer.result.as_ref().expect("a result");
    let err = String::from_utf8_lossy(&answer.stderr);
    assert_eq!(result.exit_code, Some(0), "{:?} {err}", result.trap);
    answer
}

fn out(answer: &RunResponse) -> &str {
    std::str::from_utf8(&answer.stdout).expect("it is text")
}

#[tokio::test]
async fn programs_use_files_as_they_would_on_a_disk() {
    let daemon = Daemon::start().await;
    for guest in both() {
        let answer = answered(&daemon, tour(&guest)).await;
        assert_eq!(out(&answer), "ok\n");
        let expected = [
            ("/out/deep/data.json", "application/json", "{}"),
            ("/out/deep/er/empty.txt", "text/plain", ""),
            ("/out/result.txt", "text/plain", "result"),
        ];
        let expected = expected.map(|(path, content_type, data)| CollectedFile {
            path: path.to_owned(),
            content_type: content_type.to_owned(),
            data: data.into(),
        });
        assert_eq!(answer.files, expected);
        let result = answer.result.expect("a result");
        let told = result
            .uncollected
            .iter()
            .map(|it| (&*it.path, it.reason(), it.size));
        let expected = [
            ("/out/link.txt", UncollectedReason::NotRegular, 0),
            ("/out/missing", UncollectedReason::NotFound, 0),
            ("/in/deep", UncollectedReason::NotRegular, 0),
        ];
        assert_eq!(told.collect::<Vec<_>>(), expected);
        assert_eq!(result.uncollected_total, 3);
        assert!(!result.memory_denied);
        assert!(result.memory_used > 200_000);
        let got = daemon.get(&result.run_id).await;
        assert_eq!(
            got.end
                .map(|end| format!("{end:?}").contains("/out/missing")),
            Some(true)
        );
        let listed = daemon.list(Default::default()).await;
        assert!(!format!("{listed:?}").contains("/out/missing"));
    }
}

/// A module of either core interface that reads "/in/a.txt", which only its "/" leads to, as the
/// first directory, and writes what it read.
fn reader(interface: &str) -> String {
    format!(
        r#"(module
            (import "{interface}" "path_open"
                (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
            (import "{interface}" "fd_filestat_get" (func $stat (param i32 i32) (result i32)))
            (import "{interface}" "fd_seek" (func $seek (param i32 i64 i32 i32) (result i32)))
            (import "{interface}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
            (import "{interface}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (import "{interface}" "fd_renumber" (func $renumber (param i32 i32) (result i32)))
            (import "{interface}" "fd_prestat_get" (func $prestat (param i32 i32) (result i32)))
            (import "{interface}" "fd_close" (func $close (param i32) (result i32)))
            (import "{interface}" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (data (i32.const 0) "in/a.txt")
            (func $check (param i32 i32)
                (if (local.get 0) (then (call $exit (local.get 1)))))
            (func (export "_start")
                ;; An iovec of 100 bytes at 1000.
                (i32.store (i32.const 16) (i32.const 1000))
                (i32.store (i32.const 20) (i32.const 100))
                (call $check (i32.ne (call $prestat (i32.const 4) (i32.const 200)) (i32.const 8))
                    (i32.const 1))
                (call $check (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 8)
                    (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 24))
                    (i32.const 2))
                (call $check (i32.ne (i32.load (i32.const 24)) (i32.const 4)) (i32.const 3))
                (call $check (call $stat (i32.const 4) (i32.const 200)) (i32.const 4))
                (call $check (call $renumber (i32.const 4) (i32.const 0)) (i32.const 5))
                (call $check (i32.ne (call $close (i32.const 4)) (i32.const 8)) (i32.const 6))
                (call $check (call $read (i32.const 0) (i32.const 16) (i32.const 1) (i32.const 28))
                    (i32.const 7))
                (i32.store (i32.const 20) (i32.load (i32.const 28)))
                (call $check (call $write (i32.const 1) (i32.const 16) (i32.const 1) (i32.const 28))
                    (i32.const 8))
                ;; The file is at its end.
                (call $check (call $seek (i32.const 0) (i64.const 0) (i32.const {current})
                    (i32.const 40)) (i32.const 9))
                (call $check (i64.ne (i64.load (i32.const 40)) (i64.const 5)) (i32.const 10))
                (call $check (i64.ne (i64.load (i32.const {size})) (i64.const 5)) (i32.const 11))))"#,
        current = if interface == "wasi_unstable" { 0 } else { 1 },
        size = if interface == "wasi_unstable" {
            224
        } else {
            232
        },
    )
}

#[tokio::test]
async fn both_core_interfaces_have_them_and_number_descriptors_as_one_table() {
    let daemon = Daemon::start().await;
    for interface in ["wasi_snapshot_preview1", "wasi_unstable"] {
        let run = spec(reader(interface)).file("/in/a.txt", "alpha");
        let answer = answered(&daemon, run).await;
        assert_eq!(out(&answer), "alpha", "{interface}");
    }
}

#[tokio::test]
async fn a_stream_has_the_files_before_its_end_and_a_replay_has_them_again() {
    let daemon = Daemon::start().await;
    for guest in both() {
        let run = run(
            &guest,
            &[
                "write",
                "/out/a.bin",
                "200000",
                "/out/b",
                "0",
                "/out/c.png",
                "65536",
            ],
        )
        .collect(&["/out/*"]);
        let story = read(daemon.stream(run.clone()).await.unwrap()).await;
        let files = collected(&story);
        assert_eq!(paths(&files), ["/out/a.bin", "/out/b", "/out/c.png"]);
        assert_eq!(files[0].data.len(), 200_000);
        assert_eq!(&files[0].data[199_990..], b"abcdefghij");
        let types: Vec<&str> = files.iter().map(|it| &*it.content_type).collect();
        assert_eq!(
            types,
            [
                "application/octet-stream",
                "application/octet-stream",
                "image/png"
            ]
        );
        let exit = story.exit.as_ref().expect("an end");
        assert_eq!(
            (exit.outcome(), exit.uncollected_total),
            (Outcome::Exited, 0)
        );
        let again = read(daemon.attach(&exit.run_id, 0).await).await;
        assert_eq!(collected(&again), files);
        assert_eq!(again.events.len(), story.events.len());
        // A run whose caller has left returns its files all the same.
        let stream = daemon.stream(run.detach()).await.unwrap();
        let first = read_one(stream).await;
        let viewed = read(daemon.attach(&first, 0).await).await;
        assert_eq!(collected(&viewed), files);
    }
}

/// Reads the first event of a stream, leaves, and returns the id of the run.
async fn read_one(mut stream: tonic::Streaming<ringfence::api::proto::StreamEvent>) -> String {
    stream
        .message()
        .await
        .expect("it does not break")
        .expect("an event")
        .run_id
}

#[tokio::test]
async fn what_a_run_did_before_it_was_stopped_is_returned() {
    let daemon = Daemon::start().await;
    for guest in both() {
        let run = |what: &str| run(&guest, &[what, "/out/x"]).collect(&["/out/x"]);
        let ended = daemon
            .run(run("spin").timeout(Duration::from_secs(1)))
            .await
            .unwrap();
        assert_eq!(ended.result.unwrap().outcome(), Outcome::TimedOut);
        assert_eq!(
            (paths(&ended.files), &*ended.files[0].data),
            (vec!["/out/x"], &b"abc"[..])
        );
        let ended = daemon.run(run("trap")).await.unwrap();
        assert_ne!(ended.result.unwrap().exit_code, Some(0));
        assert_eq!(paths(&ended.files), ["/out/x"]);
    }
}

#[tokio::test]
async fn caps_on_what_is_returned_hold_and_what_is_over_is_named() {
    let set = [
        ("policy.max_collect_files", "2"),
        ("policy.max_collect_bytes", "1000B"),
    ];
    let daemon = Daemon::with(&set).await;
    let guest = memory_files();
    let ran = async |args: &[&str]| {
        let run = run(&guest, &[&["write"], args].concat()).collect(&["/o/*"]);
        let answer = answered(&daemon, run).await;
        let result = answer.result.clone().unwrap();
        let over = result
            .uncollected
            .iter()
            .map(|it| (it.path.clone(), it.reason(), it.size));
        assert_eq!(result.uncollected_total, over.len() as u64);
        (paths(&answer.files).join(" "), over.collect::<Vec<_>>())
    };
    let (files, bytes) = (
        UncollectedReason::TooManyFiles,
        UncollectedReason::TooManyBytes,
    );
    assert_eq!(ran(&["/o/a", "1"]).await, ("/o/a".to_owned(), vec![]));
    assert_eq!(
        ran(&["/o/a", "1", "/o/b", "2"]).await,
        ("/o/a /o/b".to_owned(), vec![])
    );
    let over = vec![("/o/c".to_owned(), files, 3)];
    assert_eq!(
        ran(&["/o/a", "1", "/o/b", "2", "/o/c", "3"]).await,
        ("/o/a /o/b".to_owned(), over)
    );
    // Each path has four bytes.
    assert_eq!(ran(&["/o/a", "995"]).await.0, "/o/a");
    assert_eq!(ran(&["/o/a", "996"]).await.0, "/o/a");
    let over = vec![("/o/a".to_owned(), bytes, 997)];
    assert_eq!(
        ran(&["/o/a", "997", "/o/b", "1"]).await,
        ("/o/b".to_owned(), over)
    );
    let over = vec![("/o/b".to_owned(), bytes, 497)];
    assert_eq!(
        ran(&["/o/a", "496", "/o/b", "497"]).await,
        ("/o/a".to_owned(), over)
    );
    assert_eq!(ran(&["/o/a", "496", "/o/b", "496"]).await.0, "/o/a /o/b");
}

#[tokio::test]
async fn caps_on_what_a_run_begins_with_hold() {
    let set = [
        ("policy.max_files", "2"),
        ("policy.max_file_bytes", "1000B"),
    ];
    let daemon = Daemon::with(&set).await;
    let run = || run(&memory_files(), &["list", "/"]);
    assert_eq!(
        out(&answered(&daemon, run().file("/a", "").file("/b", "")).await),
        "a b\n"
    );
    let refused = daemon
        .refused(run().file("/a", "").file("/b", "").file("/c", ""))
        .await;
    refused
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
        .at("spec.files")
        .with("asked", 3)
        .with("allowed", 2)
        .with("limit", "policy.max_files");
    answered(&daemon, run().file("/a", vec![0; 999]).file("/b", "1")).await;
    let refused = daemon
        .refused(run().file("/a", vec![0; 999]).file("/b", "12"))
        .await;
    refused
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
        .at("spec.files")
        .with("asked", 1001)
        .with("limit", "policy.max_file_bytes");
}

#[tokio::test]
async fn files_that_do_not_fit_are_refused_before_the_run_starts() {
    let daemon = Daemon::start().await;
    let wat = r#"(module (memory (export "memory") 2) (func (export "_start")))"#;
    let run = |bytes: u64, pages: u32| {
        let bytes = usize::try_from(bytes).unwrap();
        let run = spec(wat).file("/f", vec![1; bytes]);
        run.resources(|it| it.memory_pages = Some(pages))
    };
    let refused = daemon.refused(run(PAGE, 3)).await;
    let refused = refused
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
        .at("spec.files");
    let refused = refused.with("allowed", 3 * PAGE);
    // What does not fit is what the file costs besides its bytes, so that the numbers are exact.
    let asked: u64 = refused.metadata["asked"].parse().unwrap();
    assert!((1..2000).contains(&(asked - 3 * PAGE)), "{asked}");
    let fits = PAGE - (asked - 3 * PAGE);
    let used = answered(&daemon, run(fits, 3))
        .await
        .result
        .unwrap()
        .memory_used;
    assert_eq!(used, 3 * PAGE);
    daemon.refused(run(fits + 1, 3)).await;
}

#[tokio::test]
async fn files_grow_to_the_memory_limit_of_the_run() {
    let daemon = Daemon::start().await;
    // The C library of components takes every error of a stream for EIO.
    for (guest, failed_write) in both().into_iter().zip([NO_SPACE, "29"]) {
        let run = |code: &str| {
            let run = run(&guest, &["grow", code]).collect(&["/again"]);
            run.resources(|it| it.memory_pages = Some(100))
        };
        let coped = daemon.run(run("0")).await.unwrap();
        let result = coped.result.clone().unwrap();
        assert_eq!(
            (result.outcome(), result.memory_denied),
            (Outcome::Exited, true)
        );
        let (size, error) = out(&coped).trim().split_once(' ').unwrap();
        assert_eq!(error, failed_write);
        let size: u64 = size.parse().unwrap();
        // The guest's own memory is the rest.
        assert!((60 * PAGE..99 * PAGE).contains(&size), "{size}");
        assert!(result.memory_used <= 100 * PAGE);
        assert!(result.memory_used > 97 * PAGE, "{}", result.memory_used);
        assert_eq!(coped.files[0].data.len(), 100_000);
        let failed = daemon.run(run("3")).await.unwrap().result.unwrap();
        assert_eq!(failed.outcome(), Outcome::MemoryExceeded);
        // A component can only say that it failed.
        let is_component = failed_write != NO_SPACE;
        assert_eq!(failed.exit_code, Some(if is_component { 1 } else { 3 }));
    }
}

#[tokio::test]
async fn a_million_files_end_at_the_memory_limit_and_the_daemon_takes_no_more() {
    let served = Served::start(&["--set", "policy.max_memory_pages=2048"]);
    let mut client = connect(&served.addr).await;
    for guest in both() {
        let before = served.memory("VmRSS");
        let run = run(&guest, &["fill", "/out"])
            .collect(&["/out/none"])
            .resources(|it| it.memory_pages = Some(2048));
        let request = ringfence::api::proto::RunRequest { spec: Some(run) };
        let answer = client.run(request).await.unwrap().into_inner();
        let (made, error) = out(&answer).trim().split_once(' ').unwrap();
        let result = answer.result.clone().unwrap();
        eprintln!("{made} files, {error}, {:?}", result.duration);
        assert_eq!((error, result.exit_code), (NO_SPACE, Some(0)));
        assert!(
            (100_000..400_000).contains(&made.parse().unwrap()),
            "{made}"
        );
        let peak = served.memory("VmHWM");
        assert!(peak < before + 190 * 1024, "{before} KiB, then {peak}");
    }
}

#[tokio::test]
async fn no_run_sees_the_files_of_another_and_nothing_stays_behind() {
    let folder = TempDir::new().unwrap();
    let temp = folder.path().to_str().unwrap();
    let served = Served::with(&[], &[("TMPDIR", temp)]);
    let mut client = connect(&served.addr).await;
    let mut ran = async |run: RunSpec| {
        let request = ringfence::api::proto::RunRequest { spec: Some(run) };
        client.run(request).await.unwrap().into_inner()
    };
    let descriptors = || {
        let dir = format!("/proc/{}/fd", served.child.id());
        let link = |it: std::io::Result<std::fs::DirEntry>| {
            let link = std::fs::read_link(it.unwrap().path());
            link.map(|it| it.display().to_string()).unwrap_or_default()
        };
        let links = std::fs::read_dir(dir).unwrap().map(link);
        links
            .filter(|it| !it.starts_with("socket:"))
            .collect::<BTreeSet<_>>()
    };
    for guest in both() {
        // Everything that one run opens at its first time is open.
        ran(tour(&guest)).await;
        let (open, temporary) = (descriptors(), entries(temp));
        assert_eq!(out(&ran(tour(&guest)).await), "ok\n");
        let other = ran(run(&guest, &["list", "/"]).file("/mine", "")).await;
        assert_eq!(out(&other), "mine\n");
        assert_eq!(descriptors(), open);
        assert_eq!(entries(temp), temporary);
    }
}

fn entries(dir: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[tokio::test]
async fn mounts_of_the_host_lie_beside_them() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("host.txt"), "of the host").unwrap();
    let grant = format!("[{{ host = {:?}, access = \"write\" }}]", dir.path());
    let daemon = Daemon::with(&[("policy.mounts", &grant)]).await;
    for guest in both() {
        let run = |args: &[&str]| {
            let run = run(&guest, args).file("/work/main.txt", "in memory");
            run.mount(dir.path(), "/usr/lib", false)
        };
        let ran = async |args: &[&str]| out(&answered(&daemon, run(args)).await).to_owned();
        assert_eq!(ran(&["cat", "/usr/lib/host.txt"]).await, "of the host");
        assert_eq!(ran(&["cat", "/work/main.txt"]).await, "in memory");
        assert_eq!(ran(&["list", "/"]).await, "usr work\n");
        assert_eq!(ran(&["list", "/usr/lib"]).await, "host.txt\n");
        let across = ran(&["rename", "/work/main.txt", "/usr/lib/main.txt"]).await;
        assert_eq!(across, "Err(CrossesDevices)\n");
        let across = ran(&["rename", "/usr/lib/host.txt", "/work/host.txt"]).await;
        assert_eq!(across, "Err(CrossesDevices)\n");
        // Other spellings lead to the place of the mount in memory, which stays empty.
        assert_eq!(ran(&["list", "/work/../usr/lib"]).await, "\n");
        assert_eq!(
            ran(&["make", "/work/../usr/lib/x"]).await,
            "Err(ReadOnlyFilesystem)\n"
        );
        assert_eq!(ran(&["make", "/usr/lib/made"]).await, "Ok(())\n");
        assert_eq!(std::fs::read(dir.path().join("made")).unwrap(), b"x");
        assert_eq!(entries(dir.path().to_str().unwrap()).len(), 2);
        std::fs::remove_file(dir.path().join("made")).unwrap();
    }
}

#[tokio::test]
async fn relative_paths_start_from_the_working_directory() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("host.txt"), "of the host").unwrap();
    let grant = format!("[{{ host = {:?}, access = \"read\" }}]", dir.path());
    let daemon = Daemon::with(&[("policy.mounts", &grant)]).await;
    for guest in both() {
        let run = |args: &[&str], place: &str| {
            let run = run(&guest, args).file("/work/main.txt", "in memory");
            let run = run.mount(dir.path(), "/data", true).collect(&["/out/*"]);
            run.change(|it| it.working_dir = place.to_owned())
        };
        for (args, place, expected) in [
            (["cat", "main.txt"], "/work", "in memory"),
            (["cat", "/work/main.txt"], "/work", "in memory"),
            (["cat", "/data/host.txt"], "/work", "of the host"),
            (["make", "/out/x"], "/work", "Ok(())\n"),
            (["make", "x"], "/made/for/it", "Ok(())\n"),
            (["cat", "work/main.txt"], "/", "in memory"),
            (["cat", "host.txt"], "/data", "of the host"),
            (["cat", "/work/main.txt"], "/data", "in memory"),
        ] {
            let answer = answered(&daemon, run(&args, place)).await;
            assert_eq!(out(&answer), expected, "{args:?} {place}");
            assert_eq!(answer.files.len(), usize::from(args[1] == "/out/x"));
        }
    }
    let namesake = run(&memory_files(), &["list", "/"]).file("/work/out/x", "");
    let namesake = namesake
        .collect(&["/out/*"])
        .change(|it| it.working_dir = "/work".into());
    let refused = daemon.refused(namesake).await;
    refused
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("spec.working_dir");
}

#[tokio::test]
async fn paths_and_patterns_that_cannot_be_are_refused_by_their_field() {
    let dir = TempDir::new().unwrap();
    let grant = format!("[{{ host = {:?}, access = \"read\" }}]", dir.path());
    let daemon = Daemon::with(&[("policy.mounts", &grant)]).await;
    let base = || run(&memory_files(), &["list", "/"]);
    let long = "/".to_owned() + &"n".repeat(256);
    for path in ["", "a", "/", "/../a", "/a/../b", "/a\0b", "/.", "//"] {
        let refused = daemon.refused(base().file("/ok", "").file(path, "")).await;
        refused
            .is(Code::InvalidArgument, "SPEC_INVALID")
            .at("spec.files[1].path");
    }
    let refused = daemon.refused(base().file(&long, "")).await;
    refused
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
        .at("spec.files[0].path");
    for (first, second, field) in [
        ("/a", "//a", "spec.files[1].path"),
        ("/a", "/a/b", "spec.files[1].path"),
        ("/a/b/c", "/a", "spec.files[0].path"),
    ] {
        let refused = daemon
            .refused(base().file(first, "").file(second, ""))
            .await;
        refused.is(Code::InvalidArgument, "SPEC_INVALID").at(field);
    }
    for pattern in ["", "a", "/", "/a/../b", "/a\0", "/[a", "/{a"] {
        let refused = daemon.refused(base().collect(&["/ok", pattern])).await;
        refused
            .is(Code::InvalidArgument, "SPEC_INVALID")
            .at("spec.collect[1]");
    }
    let nested = "/".to_owned() + &"{".repeat(300) + "a" + &"}".repeat(300);
    let refused = daemon.refused(base().collect(&[&nested])).await;
    refused
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("spec.collect[0]");
    let refused = daemon.refused(base().collect(&["/x"; 17])).await;
    refused
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
        .at("spec.collect");
    answered(&daemon, base().collect(&["/x"; 16])).await;
    // What a matcher would panic at, or take much memory for, and paths that would be very deep.
    let alternates = "/o/".to_owned() + &"{a".repeat(33) + &",b}".repeat(33);
    let wild = "/o/".to_owned() + &"?".repeat(33);
    let deep = "/a".repeat(65);
    for pattern in [&alternates, &wild, &deep] {
        let refused = daemon.refused(base().collect(&[pattern])).await;
        refused
            .is(Code::InvalidArgument, "SPEC_INVALID")
            .at("spec.collect[0]");
    }
    answered(
        &daemon,
        base().collect(&[&("/o/".to_owned() + &"?".repeat(32))]),
    )
    .await;
    answered(&daemon, base().file(&"/a".repeat(64), "")).await;
    let refused = daemon.refused(base().file(&deep, "")).await;
    refused
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("spec.files[0].path");
    let refused = daemon
        .refused(base().collect(&[&("/".to_owned() + &"x".repeat(1024))]))
        .await;
    refused
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
        .at("spec.collect[0]");
    let refused = daemon
        .refused(base().file("/a", "").collect(&["/a/*"]))
        .await;
    refused
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("spec.collect[0]");
    let mounted = |place: &str| base().mount(dir.path(), place, true);
    for (run, field) in [
        (mounted("/").file("/a", ""), "spec.files[0].path"),
        (mounted("/m").file("/m/a", ""), "spec.files[0].path"),
        (mounted("/m/n").file("/m", ""), "spec.files[0].path"),
        (mounted("/").collect(&["/a/*"]), "spec.collect[0]"),
        (mounted("/m").collect(&["/m/a"]), "spec.collect[0]"),
        (
            base()
                .change(|it| it.working_dir = "/w".into())
                .file("/a", ""),
            "spec.files[0].path",
        ),
        (
            base()
                .change(|it| it.working_dir = "/w/x".into())
                .file("/w", ""),
            "spec.files[0].path",
        ),
        (
            base()
                .change(|it| it.working_dir = "/w".into())
                .collect(&["/*"]),
            "spec.collect[0]",
        ),
        (
            base()
                .file("/a", "")
                .security(|it| it.enable_wasi = Some(false)),
            "spec.files",
        ),
        (
            base()
                .collect(&["/a"])
                .security(|it| it.enable_wasi = Some(false)),
            "spec.collect",
        ),
    ] {
        daemon
            .refused(run)
            .await
            .is(Code::InvalidArgument, "SPEC_INVALID")
            .at(field);
    }
}

#[tokio::test]
async fn without_the_real_clock_all_files_have_the_time_of_its_start() {
    let daemon = Daemon::start().await;
    for guest in both() {
        let run = || run(&guest, &["time", "/given"]).file("/given", "x");
        let stepped = run().security(|it| it.enable_clock = Some(false));
        assert_eq!(
            out(&answered(&daemon, stepped).await),
            "1640995200\n1640995200\n"
        );
        let answer = answered(&daemon, run()).await;
        let (given, set) = out(&answer).trim().split_once('\n').unwrap();
        assert!(given.parse::<u64>().unwrap() > 1_640_995_200);
        assert_eq!(set, "77");
    }
}

#[tokio::test]
async fn open_files_count_as_handles() {
    let daemon = Daemon::with(&[("policy.max_handles", "64")]).await;
    for guest in both() {
        let run = run(&guest, &["handles"]).file("/given", "x");
        let answer = answered(&daemon, run).await;
        // "/" is one of them.
        assert_eq!(out(&answer), "63\n");
    }
}

#[tokio::test]
async fn calls_of_any_size_are_whole() {
    let daemon = Daemon::start().await;
    for guest in both() {
        let run = run(&guest, &["large", "50000000"]).collect(&["/out/*"]);
        let answer = answered(&daemon, run.resources(|it| it.memory_pages = Some(2000))).await;
        assert_eq!(out(&answer), "50000000\n");
    }
}

#[tokio::test]
async fn a_key_stands_for_the_files_too_and_repeats_what_was_returned() {
    let daemon = Daemon::start().await;
    let guest = memory_files();
    let run = |content: &str| {
        let run = run(&guest, &["write", "/out/x", "70000"]).file("/in", content.to_owned());
        run.collect(&["/out/*"]).key("files")
    };
    let first = answered(&daemon, run("a")).await;
    let again = answered(&daemon, run("a")).await;
    assert_eq!(first.files, again.files);
    assert_eq!(first.files[0].data.len(), 70_000);
    let refused = daemon.refused(run("b")).await;
    refused.is(Code::AlreadyExists, "IDEMPOTENCY_CONFLICT");
}

#[tokio::test]
async fn an_interaction_has_files_too() {
    use ringfence::api::proto::InteractRequest;
    use ringfence::api::proto::interact_request::Frame;
    let daemon = Daemon::start().await;
    let run = run(&memory_files(), &["cat", "/in/a.txt"]).file("/in/a.txt", "alpha");
    let start = InteractRequest {
        frame: Some(Frame::Start(Box::new(run.collect(&["/in/*"])))),
    };
    let stream = runs(&daemon.addr)
        .await
        .interact(tokio_stream::iter([start]))
        .await
        .unwrap();
    let story = read(stream.into_inner()).await;
    assert_eq!(
        (&*story.stdout, paths(&collected(&story))),
        (&b"alpha"[..], vec!["/in/a.txt"])
    );
}
