//! The deterministic clock tells no real time, not by the times of files either.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringfence::api::proto::RunSpec;
use ringfence::api::proto::value::Value;
use tempfile::TempDir;

use crate::guests::{times, times_component};
use crate::harness::{Daemon, SpecExt, spec};

/// 2022-01-01T00:00:00Z, where the deterministic clock starts.
const START: u64 = 1_640_995_200_000_000_000;

async fn granted() -> (Daemon, TempDir) {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("f"), "some").unwrap();
    symlink("f", dir.path().join("l")).unwrap();
    let grant = format!("[{{ host = {:?}, access = \"write\" }}]", dir.path());
    let daemon = Daemon::with(&[("policy.mounts", &grant)]).await;
    (daemon, dir)
}

fn clock(run: RunSpec, real: bool) -> RunSpec {
    run.security(|s| s.enable_clock = Some(real))
}

fn modified(path: &Path) -> SystemTime {
    std::fs::metadata(path).unwrap().modified().unwrap()
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos()).unwrap()
}

/// Before anything that a test does.
fn long_ago() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

#[tokio::test]
async fn programs_see_the_start_of_the_deterministic_clock_and_real_times_with_the_real_one() {
    for guest in [times(), times_component()] {
        let (daemon, dir) = granted().await;
        let file = dir.path().join("f");
        let host = std::fs::File::options().append(true).open(&file).unwrap();
        host.set_modified(long_ago()).unwrap();
        let run = spec(guest)
            .args(&["times", "/d"])
            .mount(dir.path(), "/d", false);
        let ran = daemon.ran(clock(run.clone(), false)).await.exited(0);
        let told = |how: &str, out: &str| -> Vec<u64> {
            let line = out.lines().find_map(|line| line.strip_prefix(how));
            let numbers = line.expect("a line").split_whitespace();
            numbers.map(|it| it.parse().unwrap()).collect()
        };
        for how in [
            "path", "link", "followed", "file", "folder", "entry", "written", "made", "touched",
        ] {
            assert_eq!(told(how, ran.out()), [START; 3], "{how}");
        }
        // What the guest did is done on the host, where the time is real.
        assert!(modified(&file) > long_ago());
        assert!(modified(&dir.path().join("new")) > long_ago());
        assert_eq!(
            daemon.ran(clock(run.clone(), false)).await.stdout,
            ran.stdout
        );

        host.set_modified(long_ago()).unwrap();
        let ran = daemon.ran(clock(run, true)).await.exited(0);
        assert_eq!(told("path", ran.out())[1], nanos(long_ago()));
        assert_eq!(told("followed", ran.out())[1], nanos(long_ago()));
        assert!(told("written", ran.out())[1] > nanos(long_ago()));
        assert_eq!(told("touched", ran.out())[1], nanos(modified(&file)));
    }
}

/// Looks at "f" in the first folder: by path (0), by descriptor (1), by path when it was set to now
/// (2), by descriptor when that was (3), at the folder (4), at standard output (5). Returns the number
/// at an offset of what was told, or an error below zero.
fn looker(module: &str) -> String {
    format!(
        r#"(module
        (import "{module}" "path_filestat_get" (func $path_get (param i32 i32 i32 i32 i32) (result i32)))
        (import "{module}" "fd_filestat_get" (func $fd_get (param i32 i32) (result i32)))
        (import "{module}" "path_filestat_set_times"
          (func $path_set (param i32 i32 i32 i32 i64 i64 i32) (result i32)))
        (import "{module}" "fd_filestat_set_times" (func $fd_set (param i32 i64 i64 i32) (result i32)))
        (import "{module}" "path_open"
          (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (data (i32.const 0) "f")
        (func $opened (result i32)
          (drop (call $open (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 0)
            (i64.const 0xA00042) (i64.const 0) (i32.const 0) (i32.const 8)))
          (i32.load (i32.const 8)))
        (func $by_path (result i32)
          (call $path_get (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 64)))
        (func $how (param i32) (result i32)
          (local $fd i32)
          (if (i32.eq (local.get 0) (i32.const 0)) (then (return (call $by_path))))
          (if (i32.eq (local.get 0) (i32.const 2)) (then
            (drop (call $path_set (i32.const 3) (i32.const 0) (i32.const 0) (i32.const 1)
              (i64.const 0) (i64.const 0) (i32.const 10)))
            (return (call $by_path))))
          (if (i32.eq (local.get 0) (i32.const 4))
            (then (return (call $fd_get (i32.const 3) (i32.const 64)))))
          (if (i32.eq (local.get 0) (i32.const 5))
            (then (return (call $fd_get (i32.const 1) (i32.const 64)))))
          (local.set $fd (call $opened))
          (if (i32.eq (local.get 0) (i32.const 3)) (then
            (drop (call $fd_set (local.get $fd) (i64.const 0) (i64.const 0) (i32.const 10)))))
          (call $fd_get (local.get $fd) (i32.const 64)))
        (func (export "look") (param $how i32) (param $at i32) (result i64)
          (local $errno i32)
          (local.set $errno (call $how (local.get $how)))
          (if (local.get $errno)
            (then (return (i64.sub (i64.const 0) (i64.extend_i32_u (local.get $errno))))))
          (i64.load (i32.add (i32.const 64) (local.get $at)))))"#
    )
}

/// Where the size and the times are in what each interface tells.
const LAYOUTS: [(&str, u32, [u32; 3]); 2] = [
    ("wasi_snapshot_preview1", 32, [40, 48, 56]),
    ("wasi_unstable", 24, [32, 40, 48]),
];

#[tokio::test]
async fn both_interfaces_of_core_modules_hide_the_times_of_files() {
    for (module, size, times) in LAYOUTS {
        let (daemon, dir) = granted().await;
        let file = dir.path().join("f");
        let wat = looker(module);
        let look = async |how: u32, at: u32, real: bool| {
            let run = spec(wat.clone())
                .entry("look")
                .args(&[&how.to_string(), &at.to_string()])
                .mount(dir.path(), "/d", false);
            let ran = daemon.ran(clock(run, real)).await.exited(0);
            match ran.result.values[0].value {
                Some(Value::I64(value)) => value.cast_unsigned(),
                ref other => panic!("{other:?}"),
            }
        };
        for how in 0..=5 {
            for at in times {
                assert_eq!(look(how, at, false).await, START, "{module} {how} {at}");
            }
            // The rest is as it was.
            let length = match how {
                4 | 5 => continue,
                _ => 4,
            };
            assert_eq!(look(how, size, false).await, length, "{module} {how}");
        }
        let host = std::fs::File::options().append(true).open(&file).unwrap();
        for how in [0, 1] {
            host.set_modified(long_ago()).unwrap();
            let told = look(how, times[1], true).await;
            assert_eq!(told, nanos(long_ago()), "{module} {how}");
        }
        for how in [2, 3] {
            host.set_modified(long_ago()).unwrap();
            let told = look(how, times[1], true).await;
            assert!(told > nanos(long_ago()), "{module} {how}");
            assert_eq!(told, nanos(modified(&file)), "{module} {how}");
        }
    }
}
