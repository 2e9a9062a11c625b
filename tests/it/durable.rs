//! Promises that survive: kill -9 at any moment, and a disk without room.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use ringfence::api::proto::upload_module_request::Frame;
use ringfence::api::proto::{DeleteModuleRequest, RunRequest, UploadStart};
use tokio::task::JoinSet;
use tonic::Code;

use crate::harness::{Client, Daemon, Modules, Refused, by_digest, channel, connect, load, spec};
use crate::modules::{frame, saying};
use crate::process::Served;

/// How long a daemon may take until it serves again.
const READY: Duration = Duration::from_secs(2);
const MIB: usize = 1 << 20;

/// Numbers that differ from run to run; the first is told where a test fails.
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = u64::from(std::process::id()) << 32
            | u64::from(Instant::now().elapsed().subsec_nanos());
        eprintln!("dice: {seed}");
        Self(seed | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Starts a daemon on `dir`, and tells how long it took to serve.
fn start(dir: &Path) -> (Served, Duration) {
    let at = |name: &str| dir.join(name).display().to_string();
    let begun = Instant::now();
    let served = Served::start(&[
        "--set",
        &format!("store.url=file://{}", at("store")),
        "--set",
        &format!("artifacts.dir={}", at("code")),
        "--set",
        &format!("artifacts.key_file={}", at("key")),
        "--set",
        "compile.concurrency=2",
    ]);
    (served, begun.elapsed())
}

/// Loads and uploads modules for as long as the daemon is there; returns what it acknowledged.
async fn load_until_it_is_gone(
    (mut client, mut modules): (Client, Modules),
    round: u64,
    lane: u64,
) -> Vec<(String, String)> {
    let mut acknowledged = Vec::new();
    for i in 0.. {
        let text = format!("{round} {lane} {i}");
        let told = if lane == 0 {
            // Past what is put together in memory.
            let module = saying(&text, MIB + MIB / 2);
            let start = frame(Frame::Start(UploadStart::default()));
            let chunks: Vec<_> = std::iter::once(start)
                .chain(
                    module
                        .chunks(MIB / 4)
                        .map(|piece| frame(Frame::Chunk(piece.to_vec().into()))),
                )
                .collect();
            let answer = modules.upload_module(tokio_stream::iter(chunks)).await;
            answer.map(|answer| answer.into_inner().module)
        } else {
            let answer = client.load_module(load(saying(&text, 0))).await;
            answer.map(|answer| answer.into_inner().module)
        };
        match told {
            Ok(module) => acknowledged.push((module.unwrap().digest, text)),
            Err(_) => break,
        }
    }
    acknowledged
}

async fn check(served: &Served, acknowledged: &[(String, String)]) {
    let mut client = connect(&served.addr).await;
    for (digest, text) in acknowledged {
        let spec = Some(by_digest(digest));
        let answer = client.run(RunRequest { spec }).await;
        assert_eq!(answer.unwrap().into_inner().stdout, text, "{digest}");
    }
}

fn names(dir: PathBuf) -> Vec<String> {
    std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Returns how long the slowest start took.
async fn kill_at_random_moments(rounds: u64) -> Duration {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice::new();
    let (mut all, mut rounds_with_some, mut slowest) = (Vec::new(), 0, Duration::ZERO);
    let mut fresh: Vec<(String, String)> = Vec::new();
    let (mut left, mut leftovers) = (Vec::<PathBuf>::new(), 0);
    for round in 0..rounds {
        let (mut served, took) = start(dir.path());
        slowest = slowest.max(took);
        let log = served.drain_log();
        // What an earlier one left is gone, and what it acknowledged is there.
        for path in left.drain(..) {
            assert!(!path.exists(), "{}", path.display());
        }
        check(&served, &fresh).await;
        all.append(&mut fresh);
        let mut lanes = JoinSet::new();
        for lane in 0..4 {
            // Before the moment is waited for: one that comes at once finds nobody still to connect.
            let clients = (
                connect(&served.addr).await,
                Modules::new(channel(&served.addr).await),
            );
            lanes.spawn(load_until_it_is_gone(clients, round, lane));
        }
        // The moment is what is random about this test, not what it waits for.
        tokio::time::sleep(Duration::from_millis(dice.below(150))).await;
        served.child.kill().unwrap();
        while let Some(lane) = lanes.join_next().await {
            fresh.append(&mut lane.unwrap());
        }
        served.child.wait().unwrap();
        left = ["store/tmp", "code/tmp"]
            .iter()
            .flat_map(|folder| {
                let folder = dir.path().join(folder);
                names(folder.clone())
                    .into_iter()
                    .map(move |name| folder.join(name))
            })
            .collect();
        leftovers += left.len();
        rounds_with_some += u64::from(!fresh.is_empty());
        let log = log.join().unwrap();
        assert!(!log.contains("not taken"), "{log}");
    }
    assert!(rounds_with_some > rounds / 3, "{rounds_with_some}");
    let (served, _) = start(dir.path());
    check(&served, &fresh).await;
    check(&served, &all).await;
    let acknowledged = all.len() + fresh.len();
    eprintln!("{acknowledged} acknowledged, {leftovers} leftovers, slowest start {slowest:?}");
    slowest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_kill_9() {
    kill_at_random_moments(25).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute long, and alone on the machine: `.ci/run`"]
async fn what_was_acknowledged_survives_500_times_kill_9() {
    // It runs alone: nothing else takes its time.
    assert!(kill_at_random_moments(500).await < READY);
}

/// A small file system of its own, gone with this.
struct Small(tempfile::TempDir);

impl Small {
    /// `None`, loudly, where it cannot be mounted.
    fn new(options: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(dir.path())
            .output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self(dir));
        }
        eprintln!(
            "\n*** SKIPPED: no tmpfs can be mounted: {mounted:?}\n*** Full disks were NOT tested.\n"
        );
        None
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_what_is_new_and_nothing_else() {
    // Bytes first, then inodes.
    for options in ["size=2m", "size=64m,nr_inodes=24"] {
        let Some(small) = Small::new(options) else {
            return;
        };
        let root = small.0.path().join("store");
        let url = format!("file://{}", root.display());
        let daemon = Daemon::with(&[("store.url", &url)]).await;
        let mut modules = daemon.modules().await;
        let module = |i: usize| saying(&format!("{i}"), 128 << 10);
        let mut digests = Vec::new();
        let full = loop {
            assert!(digests.len() < 100);
            match daemon.load(module(digests.len())).await {
                Ok(answer) => digests.push(answer.module.unwrap().digest),
                Err(status) => break Refused::new(&status),
            }
        };
        let full = full.is(Code::ResourceExhausted, "STORE_FULL");
        assert_eq!(full.metadata["store"], "file:");
        assert!(digests.len() > 3, "{}", digests.len());
        // It left nothing behind, not even of what did not fit.
        assert_eq!(names(root.join("tmp")), [""; 0]);
        assert_eq!(names(root.join("modules")).len(), digests.len());

        // A large upload finds no room for what arrives, and what is sent with a run needs none.
        if options.starts_with("size=2m") {
            let pieces = [vec![b' '; MIB], vec![b' '; MIB]];
            let start = frame(Frame::Start(UploadStart::default()));
            let frames: Vec<_> = std::iter::once(start)
                .chain(pieces.map(|piece| frame(Frame::Chunk(piece.into()))))
                .collect();
            let status = modules.upload_module(tokio_stream::iter(frames)).await;
            Refused::new(&status.unwrap_err())
                .is(Code::ResourceExhausted, "STORE_FULL")
                .with("store", "store.url");
        }
        daemon.ran(spec(module(1000))).await.exited(0);
        for (i, digest) in digests.iter().enumerate() {
            let ran = daemon.ran(by_digest(digest)).await.exited(0);
            assert_eq!(ran.out(), format!("{i}"));
        }
        // Room again, without a restart.
        let digest = digests[0].clone();
        let delete = DeleteModuleRequest { digest };
        modules.delete_module(delete).await.unwrap();
        let digest = daemon.loaded(module(digests.len())).await;
        daemon.ran(by_digest(&digest)).await.exited(0);
    }
}
