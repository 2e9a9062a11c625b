//! What a single host call takes: any size, in every interface, and never longer than the run; and
//! how many files a run may have open.

use std::path::Path;
use std::time::Duration;

use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{Outcome, RunSpec};

use crate::guests::{calls, calls_component};
use crate::harness::{Daemon, Ran, SpecExt, by_digest, connect, spec, until_idle};
use crate::process::Served;

const MIB: usize = 1 << 20;

/// What the guest calls the bytes that tell where they stand.
fn pattern(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| u8::try_from(i % 251).expect("less than 251"))
        .collect()
}

fn p1(args: &[&str]) -> RunSpec {
    spec(calls()).args(&[&["calls"], args].concat())
}

fn p2(args: &[&str]) -> RunSpec {
    spec(calls_component()).args(&[&["calls"], args].concat())
}

/// A daemon whose runs may mount a folder, and that folder.
async fn with_folder(set: &[(&str, &str)]) -> (Daemon, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let grant = grant(dir.path());
    let mut all = vec![
        ("policy.mounts", grant.as_str()),
        ("defaults.memory_pages", "4096"),
    ];
    all.extend_from_slice(set);
    (Daemon::with(&all).await, dir)
}

fn grant(dir: &Path) -> String {
    format!("[{{ host = {dir:?}, access = \"write\" }}]")
}

#[tokio::test]
async fn large_files_are_read_and_written_whole() {
    let (daemon, dir) = with_folder(&[]).await;
    for mib in [1, 20, 40] {
        let name = format!("/d/{mib}");
        std::fs::write(dir.path().join(mib.to_string()), pattern(mib * MIB + 7)).unwrap();
        for run in [p1(&["read", &name]), p2(&["read", &name])] {
            let ran = daemon
                .ran(run.mount(dir.path(), "/d", true))
                .await
                .exited(0);
            assert_eq!(ran.out(), format!("{} 0\n", mib * MIB + 7));
        }
    }
    for (run, name) in [(p1 as fn(&[&str]) -> RunSpec, "p1"), (p2, "p2")] {
        for len in [20 * MIB, 33 * MIB + 1] {
            let path = format!("/d/{name}");
            let run = run(&["save", &path, &len.to_string()]).mount(dir.path(), "/d", false);
            let ran = daemon.ran(run).await.exited(0);
            assert_eq!(ran.out(), "saved\n");
            let saved = std::fs::read(dir.path().join(name)).unwrap();
            assert!(saved == pattern(len), "{name} {len}");
        }
    }
}

#[tokio::test]
async fn large_input_is_read_whole() {
    let daemon = Daemon::with(&[
        ("policy.max_stdin", "48MiB"),
        ("server.max_message", "64MiB"),
        ("defaults.memory_pages", "4096"),
    ])
    .await;
    for len in [17 * MIB, 20 * MIB, 40 * MIB] {
        for run in [p1(&["input"]), p2(&["input"])] {
            let ran = daemon.ran(run.stdin(pattern(len))).await.exited(0);
            assert_eq!(ran.out(), format!("{len} 0\n"));
        }
    }
    // One read gets what is there, as a file's does.
    let run = p1(&["gulp", &(20 * MIB).to_string()]).stdin(pattern(18 * MIB));
    let ran = daemon.ran(run).await.exited(0);
    assert_eq!(ran.out(), format!("{} 0\n", 18 * MIB));
}

#[tokio::test]
async fn wasi_unstable_reads_and_writes_as_much() {
    let daemon = Daemon::with(&[
        ("policy.max_stdin", "48MiB"),
        ("server.max_message", "64MiB"),
        ("policy.max_output", "48MiB"),
    ])
    .await;
    // One read for all of the input, one write for all that came.
    let wat = r#"(module
      (import "wasi_unstable" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
      (import "wasi_unstable" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
      (import "wasi_unstable" "random_get" (func $random (param i32 i32) (result i32)))
      (memory (export "memory") 700)
      (func (export "_start")
        (if (call $random (i32.const 65536) (i32.const 41943040)) (then unreachable))
        (i32.store (i32.const 0) (i32.const 65536))
        (i32.store (i32.const 4) (i32.const 41943040))
        (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4)) (then unreachable))
        (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
        (if (i32.ne (i32.load (i32.const 4)) (i32.load (i32.const 8))) (then unreachable))))"#;
    for len in [1, 20 * MIB, 30 * MIB + 3] {
        let run = spec(wat)
            .stdin(pattern(len))
            .resources(|r| r.output_limit = Some(48 << 20));
        let ran = daemon.ran(run).await.exited(0);
        assert!(ran.stdout == pattern(len), "{len}: {}", ran.stdout.len());
    }
}

#[tokio::test]
async fn randomness_comes_in_any_amount() {
    let daemon = Daemon::with(&[("defaults.memory_pages", "4096")]).await;
    for len in [0, 1, 65_536, 65_537, MIB, 64 * MIB] {
        let ran = daemon.ran(p1(&["random", &len.to_string(), "1"])).await;
        assert_eq!(ran.exited(0).out(), "random\n");
    }
    for len in [0, 65_537, MIB, 16 * MIB] {
        for run in [
            p2(&["random", &len.to_string(), "1"]),
            p2(&["insecure", &len.to_string()]),
        ] {
            assert_eq!(daemon.ran(run).await.exited(0).out(), "random\n");
        }
    }
    // A list has to be held by the host as a whole.
    for habit in ["random", "insecure"] {
        let run = p2(&[habit, &(16 * MIB + 1).to_string(), "1"]);
        let ran = daemon.ran(run).await.ended(Outcome::Trapped);
        assert_eq!(ran.trap_code(), "host_call");
    }
}

#[tokio::test]
async fn a_run_ends_in_the_middle_of_what_it_asked_for() {
    let daemon = Daemon::with(&[("defaults.memory_pages", "4096")]).await;
    for run in [
        p1(&["random", "67108864", "10000"]),
        p2(&["random", "16777216", "10000"]),
        p2(&["zeroes", "4000000000", "1000"]).resources(|r| {
            r.output_policy = ringfence::api::proto::OutputPolicy::Truncate.into();
        }),
    ] {
        let ran = daemon.ran(run.timeout(Duration::from_secs(2))).await;
        assert_eq!(ran.result.outcome(), Outcome::TimedOut, "{ran:?}");
        let took = Duration::try_from(ran.result.duration.expect("how long it took")).unwrap();
        assert!(took < Duration::from_secs(3), "{took:?}");
    }
}

#[tokio::test]
async fn large_writes_of_other_calls_arrive() {
    let daemon = Daemon::with(&[("policy.max_output", "48MiB")]).await;
    for len in [0, 4096, 4097, 20 * MIB] {
        let run = p2(&["zeroes", &len.to_string()]).resources(|r| r.output_limit = Some(48 << 20));
        let ran = daemon.ran(run).await.exited(0);
        assert!(
            ran.stdout.len() == len && ran.stdout.iter().all(|byte| *byte == 0),
            "{len}"
        );
    }
    for most in [1000, 65_536, 20 * MIB] {
        let input = pattern(3 * MIB + 1);
        let run = p2(&["splice", &most.to_string()]).stdin(input.clone());
        let run = run.resources(|r| r.output_limit = Some(48 << 20));
        let ran = daemon.ran(run).await.exited(0);
        assert!(ran.stdout == input, "{most}: {}", ran.stdout.len());
    }
}

#[tokio::test]
async fn standard_output_that_is_a_file_goes_to_the_file() {
    let (daemon, dir) = with_folder(&[]).await;
    for len in [10, 300_000, 20 * MIB] {
        let run = p1(&["moved", "/d/moved", &len.to_string()]).mount(dir.path(), "/d", false);
        let ran = daemon.ran(run).await.exited(0);
        assert_eq!((ran.out(), ran.err()), ("", "moved\n"));
        assert!(
            std::fs::read(dir.path().join("moved")).unwrap() == pattern(len),
            "{len}"
        );
    }
}

#[tokio::test]
async fn paths_that_are_too_long_are_an_error() {
    let (daemon, dir) = with_folder(&[]).await;
    let nametoolong = 37;
    for len in [300, 5000, 65_537, 20 * MIB] {
        for run in [p1 as fn(&[&str]) -> RunSpec, p2] {
            let run = run(&["path", "/d", &len.to_string()]).mount(dir.path(), "/d", false);
            let ran = daemon.ran(run).await.exited(0);
            assert_eq!(ran.out(), format!("{:?}\n", [nametoolong; 8]), "{len}");
        }
    }
}

#[tokio::test]
async fn many_timers_are_waited_for() {
    let daemon = Daemon::start().await;
    for count in [1, 130, 300, 1000] {
        let ran = daemon
            .ran(p2(&["timers", &count.to_string()]))
            .await
            .exited(0);
        assert_eq!(ran.out(), format!("{count} timers\n"));
        let ran = daemon
            .ran(p1(&["poll", &count.to_string()]))
            .await
            .exited(0);
        assert_eq!(ran.out(), "0 true\n");
    }
    let ran = daemon.ran(p1(&["poll", "1024"])).await.exited(0);
    assert_eq!(ran.out(), "0 true\n");
    // More subscriptions than handles are refused, and more pollables than there is room for end
    // the run.
    for count in ["1025", "100000"] {
        let ran = daemon.ran(p1(&["poll", count])).await.exited(0);
        assert_eq!(ran.out(), "28 false\n");
    }
    let ran = daemon
        .ran(p2(&["timers", "3000"]))
        .await
        .ended(Outcome::Trapped);
    assert_eq!(ran.trap_code(), "handle_limit");
}

/// How many files a run opened, which its mount leaves it.
fn opened(ran: &Ran) -> usize {
    let count = ran.out().split(' ').next().unwrap_or_default();
    count.parse().unwrap_or_else(|_| panic!("{ran:?}"))
}

#[tokio::test]
async fn files_up_to_the_limit_open_and_one_more_is_an_error() {
    let (daemon, dir) = with_folder(&[]).await;
    std::fs::write(dir.path().join("f"), "text").unwrap();
    let run = |run: fn(&[&str]) -> RunSpec, count: usize| {
        run(&["open", "/d/f", &count.to_string()]).mount(dir.path(), "/d", true)
    };
    for count in [257, 300, 1000, 1022] {
        for version in [p1, p2] {
            let ran = daemon.ran(run(version, count)).await.exited(0);
            assert_eq!(ran.out(), format!("{count} opened\n"));
        }
    }
    // The mount is one of them, and the empty directory that stands for "/".
    let ran = daemon.ran(run(p1, 1023)).await.exited(0);
    assert_eq!(ran.out(), "1022 opened, then 33\nfull true, again true\n");
    let ran = daemon.ran(run(p2, 1023)).await.exited(0);
    assert_eq!(ran.out(), "1022 opened, then 48\nfull true, again true\n");
}

#[tokio::test]
async fn the_limit_of_handles_is_a_setting() {
    let (daemon, dir) = with_folder(&[("policy.max_handles", "64")]).await;
    std::fs::write(dir.path().join("f"), "text").unwrap();
    for version in [p1 as fn(&[&str]) -> RunSpec, p2] {
        for (count, expected) in [
            (61, "61 opened\n"),
            (62, "62 opened\n"),
            (63, "62 opened, then"),
        ] {
            let run = version(&["open", "/d/f", &count.to_string()]).mount(dir.path(), "/d", true);
            let ran = daemon.ran(run).await.exited(0);
            assert!(ran.out().starts_with(expected), "{}", ran.out());
        }
    }
}

/// Opens as many as it may, keeps them, and says so.
const HOARDER: &str = r#"(module
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff"
    (func $poll (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "f")
  (func (export "_start") (local $errno i32)
    (block $full (loop $more
      (local.set $errno (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1)
        (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
      (br_if $full (local.get $errno))
      (i32.store (i32.const 20) (i32.add (i32.load (i32.const 20)) (i32.const 1)))
      (br $more)))
    (i32.store (i32.const 24) (local.get $errno))
    (i32.store (i32.const 32) (i32.const 20))
    (i32.store (i32.const 36) (i32.const 8))
    (drop (call $write (i32.const 1) (i32.const 32) (i32.const 1) (i32.const 40)))
    (i32.store (i32.const 144) (i32.const 1))
    (i64.store (i32.const 152) (i64.const 3600000000000))
    (drop (call $poll (i32.const 128) (i32.const 256) (i32.const 1) (i32.const 40)))))"#;

#[tokio::test]
async fn runs_that_hoard_files_leave_the_others_theirs() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), "text").unwrap();
    let mounts = format!("policy.mounts={}", grant(dir.path()));
    let args = ["--set", &mounts, "--set", "admission.slots=64"];
    let served = Served::limited("ulimit -n 4096", &args);
    let client = connect(&served.addr).await;
    let run = || {
        spec(HOARDER)
            .mount(dir.path(), "/d", true)
            .detach()
            .timeout(Duration::from_secs(60))
    };
    let mut streams = Vec::new();
    let mut total = 0;
    for _ in 0..20 {
        let request = ringfence::api::proto::RunStreamRequest { spec: Some(run()) };
        let stream = client.clone().run_stream(request).await;
        let mut stream = stream.expect("nobody is refused").into_inner();
        let told = loop {
            let event = stream.message().await.unwrap().expect("it says how many");
            if let Some(Event::Stdout(told)) = event.event {
                break told;
            }
        };
        let number = |at: usize| u32::from_le_bytes(told[at..at + 4].try_into().unwrap());
        assert_eq!(number(4), 41, "the errno");
        assert!(number(0) >= 10, "a run opened {} files", number(0));
        total += number(0);
        streams.push(stream);
    }
    // Of three eighths of the limit, half are for the slots, 12 each with the mount and "/"; the
    // first run took the rest.
    assert_eq!(total, 20 * 10 + 768);
    // Others go on, whatever they do.
    for run in [
        p1(&["read", "/d/f"]).mount(dir.path(), "/d", true),
        p2(&["read", "/d/f"]).mount(dir.path(), "/d", true),
        p1(&["input"]),
    ] {
        let request = ringfence::api::proto::RunRequest { spec: Some(run) };
        let ran = Ran::new(client.clone().run(request).await.unwrap().into_inner());
        ran.exited(0);
    }
    drop(streams);
}

#[tokio::test]
async fn what_is_closed_is_given_back() {
    let (daemon, dir) = with_folder(&[("policy.max_handles", "64")]).await;
    std::fs::write(dir.path().join("f"), "text").unwrap();
    // More often than the limit, one after the other.
    for version in [p1 as fn(&[&str]) -> RunSpec, p2] {
        for _ in 0..2 {
            let run = version(&["reopen", "/d/f", "500"]).mount(dir.path(), "/d", true);
            let ran = daemon.ran(run).await.exited(0);
            assert_eq!(ran.out(), "500 times\n");
        }
    }
    until_idle(&daemon).await;
    let digest = daemon.loaded(calls()).await;
    let run = by_digest(&digest).args(&["calls", "open", "/d/f", "62"]);
    let ran = daemon
        .ran(run.mount(dir.path(), "/d", true))
        .await
        .exited(0);
    assert_eq!(opened(&ran), 62);
}
