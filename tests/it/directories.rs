//! Directory listings: complete, linear, the run's own memory.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfence::api::proto::{Outcome, RunRequest, RunSpec};
use tempfile::TempDir;

use crate::guests::{listing, listing_component};
use crate::harness::{Client, Daemon, Ran, SpecExt, connect, spec};
use crate::process::Served;

/// A daemon that grants a folder for writing, which guests see as "/d".
struct Granted {
    daemon: Daemon,
    dir: TempDir,
}

impl Granted {
    async fn start() -> Self {
        let dir = TempDir::new().unwrap();
        let daemon = Daemon::with(&[("policy.mounts", &grant(dir.path()))]).await;
        Self { daemon, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn spec(&self, guest: Bytes, args: &[&str]) -> RunSpec {
        mounted(self.dir.path(), guest, args)
    }

    async fn ran(&self, guest: Bytes, args: &[&str]) -> Ran {
        self.daemon.ran(self.spec(guest, args)).await.exited(0)
    }
}

fn grant(dir: &Path) -> String {
    format!("[{{ host = {dir:?}, access = \"write\" }}]")
}

fn mounted(dir: &Path, guest: Bytes, args: &[&str]) -> RunSpec {
    spec(guest)
        .args(&[&["listing"], args].concat())
        .mount(dir, "/d", false)
        .timeout(Duration::from_secs(60))
}

fn both() -> [Bytes; 2] {
    [listing(), listing_component()]
}

/// Empty files, by name.
fn make(dir: &Path, names: impl Iterator<Item = String>) {
    std::fs::create_dir_all(dir).unwrap();
    for name in names {
        std::fs::write(dir.join(name), "").unwrap();
    }
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

fn cpu(ran: &Ran) -> Duration {
    let cpu = ran.result.cpu_time.expect("processor time");
    cpu.try_into().unwrap()
}

#[tokio::test]
async fn ten_thousand_files_take_less_than_a_second_and_a_hundred_thousand_no_more_each() {
    let granted = Granted::start().await;
    let names = |n: usize| (0..n).map(|i| format!("file-{i:06}.txt"));
    make(&granted.path("few"), names(10_000));
    make(&granted.path("many"), names(100_000));
    for guest in both() {
        let few = granted.ran(guest.clone(), &["count", "/d/few"]).await;
        assert_eq!(few.out(), "10000\n");
        let many = granted.ran(guest, &["count", "/d/many"]).await;
        assert_eq!(many.out(), "100000\n");
        let (few, many) = (cpu(&few), cpu(&many));
        eprintln!("10,000 files: {few:?} of processor time; 100,000: {many:?}");
        assert!(few < Duration::from_secs(1), "{few:?}");
        assert!(many < few * 15, "{few:?}, then {many:?}");
    }
}

/// Makes and removes files until it is dropped.
struct Churn {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<u64>>,
}

impl Churn {
    fn of(dir: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, dir) = (Arc::clone(&stop), dir.to_owned());
        let thread = std::thread::spawn(move || {
            let mut turns = 0;
            while !stopped.load(Ordering::Relaxed) {
                let path = |i: u64| dir.join(format!("churn-{i}"));
                let _ = std::fs::write(path(turns), "");
                if turns >= 50 {
                    // Gone where the folder is, after a test that failed.
                    let _ = std::fs::remove_file(path(turns - 50));
                }
                turns += 1;
            }
            turns
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }

    /// How many files it made.
    fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Churn {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_complete_while_others_add_and_remove_files() {
    for guest in both() {
        let granted = Granted::start().await;
        make(granted.dir.path(), (0..200).map(|i| format!("stay-{i}")));
        let churn = Churn::of(granted.dir.path());
        let ran = granted.ran(guest, &["repeat", "/d", "110"]).await;
        let turns = churn.end();
        assert!(turns > 200, "{turns}");
        assert_eq!(ran.out(), "200\n".repeat(110));
    }
}

#[tokio::test]
async fn all_files_are_removed_while_they_are_listed() {
    for guest in both() {
        let granted = Granted::start().await;
        make(granted.dir.path(), (0..500).map(|i| format!("file-{i}")));
        let ran = granted.ran(guest, &["remove", "/d"]).await;
        assert_eq!(ran.out(), "500\n");
        assert_eq!(std::fs::read_dir(granted.dir.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn folders_links_long_names_and_empty_folders_are_listed_as_they_are() {
    let granted = Granted::start().await;
    let long = ["x".repeat(255), "ö".repeat(127)];
    make(
        &granted.path("deep/deeper/deepest"),
        ["bottom".to_owned()].into_iter(),
    );
    make(&granted.path("deep"), long.iter().cloned());
    make(&granted.path("empty"), std::iter::empty());
    symlink("deeper", granted.path("deep/link")).unwrap();
    symlink("nowhere", granted.path("deep/dangling")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        granted.path("deep/fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    for guest in both() {
        let deep = granted.ran(guest.clone(), &["names", "/d/deep"]).await;
        let (first, second) = (format!("f {}", long[0]), format!("f {}", long[1]));
        let expected = [
            "? fifo",
            "d deeper",
            &first,
            &second,
            "l dangling",
            "l link",
        ];
        assert_eq!(sorted(deep.out()), expected);
        let deepest = ["names", "/d/deep/deeper/deepest"];
        let bottom = granted.ran(guest.clone(), &deepest).await;
        assert_eq!(bottom.out(), "f bottom\n");
        let by_link = granted.ran(guest.clone(), &["names", "/d/deep/link"]).await;
        assert_eq!(by_link.out(), "d deepest\n");
        let empty = granted.ran(guest.clone(), &["names", "/d/empty"]).await;
        assert_eq!(empty.out(), "");
        let ran = granted.ran(guest.clone(), &["interleave", "/d/deep"]).await;
        assert_eq!(ran.out(), "6\n");
        for (missing, error) in [("/d/none", "No such file"), ("/d/empty/..//deep/fifo", "")] {
            let spec = granted.spec(guest.clone(), &["names", missing]);
            let ran = granted.daemon.ran(spec).await.exited(1);
            assert!(ran.err().contains(error), "{}", ran.err());
        }
    }
}

#[tokio::test]
async fn a_name_that_no_guest_could_use_spoils_no_listing() {
    let granted = Granted::start().await;
    make(
        granted.dir.path(),
        ["one", "two"].map(str::to_owned).into_iter(),
    );
    for bad in [&b"\xff\xfe"[..], b"half \xe2\x82"] {
        std::fs::write(granted.dir.path().join(OsStr::from_bytes(bad)), "").unwrap();
    }
    for guest in both() {
        let ran = granted.ran(guest, &["names", "/d"]).await;
        assert_eq!(sorted(ran.out()), ["f one", "f two"]);
    }
}

#[tokio::test]
async fn cookies_are_positions_and_serial_numbers_those_of_stat() {
    let granted = Granted::start().await;
    let names = (0..300).map(|i| format!("{}{i}", "n".repeat(i % 200)));
    make(granted.dir.path(), names);
    let ran = granted.ran(listing(), &["cookies", "/d"]).await;
    assert_eq!(ran.out(), "302\n");
    std::fs::create_dir(granted.path("folder")).unwrap();
    symlink("folder", granted.path("link")).unwrap();
    let ran = granted.ran(listing(), &["serials", "/d"]).await;
    assert_eq!(ran.out(), "304\n");
}

#[tokio::test]
async fn a_listing_belongs_to_its_descriptor() {
    let granted = Granted::start().await;
    make(&granted.path("sub"), ["inner".to_owned()].into_iter());
    make(&granted.path("empty"), std::iter::empty());
    make(granted.dir.path(), ["a".to_owned()].into_iter());
    let ran = granted.ran(listing(), &["descriptors", "/d"]).await;
    assert_eq!(ran.out(), "done\n");
}

#[tokio::test]
async fn what_the_daemon_may_not_read_is_not_listed() {
    let granted = Granted::start().await;
    make(&granted.path("shut"), ["secret".to_owned()].into_iter());
    for mode in [0o000, 0o300, 0o100] {
        let shut = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(granted.path("shut"), shut).unwrap();
        if std::fs::read_dir(granted.path("shut")).is_ok() {
            eprintln!("SKIPPED: nothing is shut to this user");
            return;
        }
        for guest in both() {
            let spec = granted.spec(guest, &["names", "/d/shut"]);
            let ran = granted.daemon.ran(spec).await.exited(1);
            assert_eq!((ran.out(), ran.err().is_empty()), ("", false));
        }
    }
}

/// Lists descriptor 3 by one call, and writes what that gave.
fn raw(module: &str) -> String {
    format!(
        r#"(module
          (import "{module}" "fd_readdir" (func $list (param i32 i32 i32 i64 i32) (result i32)))
          (import "{module}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
          (import "{module}" "fd_close" (func $close (param i32) (result i32)))
          (import "{module}" "proc_exit" (func $exit (param i32)))
          (memory (export "memory") 2)
          (func (export "_start")
            (if (call $list (i32.const 3) (i32.const 4096) (i32.const 65536) (i64.const 0) (i32.const 4))
              (then (call $exit (i32.const 1))))
            (i32.store (i32.const 0) (i32.const 4096))
            (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))
              (then (call $exit (i32.const 2))))
            (if (call $close (i32.const 3)) (then (call $exit (i32.const 3))))
            ;; EBADF
            (if (i32.ne (i32.const 8)
                  (call $list (i32.const 3) (i32.const 4096) (i32.const 65536) (i64.const 1) (i32.const 4)))
              (then (call $exit (i32.const 4))))))"#
    )
}

#[tokio::test]
async fn both_versions_of_core_modules_get_the_same_bytes() {
    let granted = Granted::start().await;
    make(
        granted.dir.path(),
        ["b", "aa"].map(str::to_owned).into_iter(),
    );
    std::fs::create_dir(granted.path("folder")).unwrap();
    let mut told = Vec::new();
    for module in ["wasi_snapshot_preview1", "wasi_unstable"] {
        let ran = granted.ran(raw(module).into(), &[]).await;
        let mut rest = &ran.stdout[..];
        let mut entries = Vec::new();
        while let Some((head, after)) = rest.split_first_chunk::<24>() {
            let (name, after) = after.split_at(usize::from(head[16]));
            entries.push((
                std::str::from_utf8(name).unwrap().to_owned(),
                head[20],
                head[0],
            ));
            rest = after;
        }
        assert_eq!(rest, b"");
        let cookies: Vec<u8> = entries.iter().map(|entry| entry.2).collect();
        assert_eq!(cookies, [1, 2, 3, 4, 5]);
        entries.sort();
        let kinds = entries.iter().map(|entry| (entry.0.as_str(), entry.1));
        let expected = [(".", 3), ("..", 3), ("aa", 4), ("b", 4), ("folder", 3)];
        assert!(kinds.eq(expected), "{entries:?}");
        told.push(ran.stdout);
    }
    assert_eq!(told[0], told[1]);
}

async fn run(client: &mut Client, spec: RunSpec) -> Ran {
    let answer = client.run(RunRequest { spec: Some(spec) }).await;
    Ran::new(answer.unwrap().into_inner())
}

#[tokio::test]
async fn listings_are_held_in_the_runs_own_memory() {
    let dir = TempDir::new().unwrap();
    let names = (0..20_000).map(|i| format!("{}{i}", "n".repeat(60)));
    make(dir.path(), names);
    let served = Served::start(&["--set", &format!("policy.mounts={}", grant(dir.path()))]);
    let mut client = connect(&served.addr).await;
    for guest in both() {
        // 20,000 names are 1.6 MiB; the guest's own memory is 1 to 2 MiB.
        let hold = |pages: u32, times: &str| {
            let spec = mounted(dir.path(), guest.clone(), &["hold", "/d", times]);
            spec.resources(|it| it.memory_pages = Some(pages))
        };
        // What a first run costs is not counted.
        run(&mut client, hold(128, "1")).await.exited(0);
        let before = served.memory("VmRSS");
        let ran = run(&mut client, hold(128, "30")).await.exited(0);
        let after = served.memory("VmHWM");
        assert!(ran.result.memory_denied && ran.result.memory_used <= 128 << 16);
        let lines: Vec<&str> = ran.out().lines().collect();
        assert_eq!(lines.len(), 30);
        for line in &lines {
            let (held, error) = line.split_once(' ').unwrap();
            let held: usize = held.parse().unwrap();
            assert!((2..6).contains(&held), "{line}");
            assert_eq!(error, "OutOfMemory");
        }
        // 8 MiB that it may hold, and what pieces take while they are read.
        assert!(
            after < before + (16 << 10),
            "{before} KiB, then {after} KiB"
        );
        // What was given back can be had again, by listings and by the guest.
        let again = mounted(dir.path(), guest.clone(), &["again", "/d", "50"]);
        let again = again.resources(|it| it.memory_pages = Some(80));
        let ran = run(&mut client, again).await.exited(0);
        assert_eq!(ran.out(), "50\n");
        assert!(!ran.result.memory_denied);
        // Without enough for one it is an error, which the guest may report.
        let names = mounted(dir.path(), guest.clone(), &["names", "/d"]);
        let names = names.resources(|it| it.memory_pages = Some(36));
        let ran = run(&mut client, names).await;
        assert_eq!(ran.result.outcome(), Outcome::MemoryExceeded, "{ran:?}");
        assert_eq!(ran.result.exit_code, Some(1));
        assert!(ran.err().to_lowercase().contains("memory"), "{}", ran.err());
    }
}

#[tokio::test]
async fn a_component_holds_as_many_streams_as_its_memory_does() {
    let granted = Granted::start().await;
    let held = granted.spec(listing_component(), &["streams", "/d", "1000"]);
    let held = held.resources(|it| it.memory_pages = Some(64));
    let ran = granted.daemon.ran(held).await.exited(0);
    assert!(ran.result.memory_denied);
    let streams: u64 = ran.out().trim().parse().unwrap();
    // Each is charged with half a KiB.
    assert!(streams < (64 << 16) / 512, "{streams}");
}

#[tokio::test]
async fn time_ends_a_guest_that_only_lists() {
    let granted = Granted::start().await;
    make(granted.dir.path(), (0..20_000).map(|i| format!("file-{i}")));
    for (guest, how) in [
        (listing(), "restart"),
        (listing(), "again"),
        (listing_component(), "again"),
    ] {
        let spec = granted
            .spec(guest, &[how, "/d", "1000000"])
            .timeout(Duration::from_millis(300));
        let start = Instant::now();
        granted.daemon.ran(spec).await.ended(Outcome::TimedOut);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
}
