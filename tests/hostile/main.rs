//! A corpus of hostile guests: each ends as it should, metered or not, alone and among its like, leaves its neighbours
//! alone, and leaves nothing behind. A test binary of its own, since it counts what its whole process holds.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    dead_code,
    reason = "a test ends its tasks with its runtime, fails by panicking, says what it saw, and needs part of the harness"
)]

mod folder;
#[path = "../it/guests.rs"]
mod guests;
#[path = "../it/harness.rs"]
mod harness;
mod made;
mod row;
mod rows;

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfence::api::proto::HealthRequest;
use tokio::task::JoinSet;

use folder::{Entry, Folder};
use harness::{Daemon, PATIENCE, SpecExt, by_digest, until_idle};
use row::{Row, Seen};

/// How many descriptors more than after the first pass there may be, and threads more than before it.
const FEW: usize = 4;
/// How much more memory there may be, in KiB: a pool keeps a MiB of each of its 64 memories and more, and which of them a
/// pass comes to is chance.
const MORE_MEMORY: usize = 128 << 10;

/// `guest.rs`, which misuses folders.
fn guest() -> Bytes {
    static GUEST: OnceLock<Bytes> = OnceLock::new();
    GUEST.get_or_init(build).clone()
}

fn build() -> Bytes {
    // The target is installed with the kit.
    drop(guests::kit());
    let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("hostile.wasm");
    let status = Command::new("rustc")
        .current_dir(guests::root())
        .args(["--edition=2024", "--target", "wasm32-wasip1"])
        .args(["-Copt-level=s", "-Cstrip=debuginfo", "-o"])
        .arg(&out)
        .arg("tests/hostile/guest.rs")
        .status()
        .expect("rustc starts");
    assert!(status.success(), "the guest builds");
    std::fs::read(&out).expect("the guest is there").into()
}

/// A row of the guest's.
fn habit(name: impl Into<String>, does: &'static str, args: &[&'static str]) -> Row {
    let args = [&["guest"], args].concat();
    row::row(name, does, guest()).given(move |spec, _| spec.args(&args))
}

/// A row of the kit as a component.
fn component_habit(name: &str, does: &'static str, args: &[&'static str]) -> Row {
    let args = [&["kit"], args].concat();
    row::row(name, does, guests::kit_component()).given(move |spec, _| spec.args(&args))
}

/// A daemon, and a neighbour's module on it.
struct Target {
    daemon: Daemon,
    hello: String,
}

impl Target {
    async fn start(folder: &Folder, features: &str) -> Self {
        let grant = folder.grant();
        // Output that is remembered is no leak, and would look like one.
        let daemon = Daemon::with(&[
            ("policy.mounts", &grant),
            ("engine.features", features),
            ("runs.log_budget", "8MiB"),
            ("runs.history_bytes", "4MiB"),
        ])
        .await;
        let hello = daemon.loaded(include_str!("guests/hello.wat")).await;
        Self { daemon, hello }
    }

    /// Nothing of a row is left, and a neighbour is served.
    async fn is_well(&self) {
        until_idle(&self.daemon).await;
        assert_eq!(self.daemon.probe.pooled_instances(), 0);
        let ran = self.daemon.ran(by_digest(&self.hello)).await;
        assert_eq!(ran.exited(0).out(), "hello\n");
    }
}

/// All that the rows run in.
struct Arena {
    plain: Arc<Target>,
    proposals: Arc<Target>,
    folder: Arc<Folder>,
    kept: Vec<Entry>,
    failures: Vec<String>,
}

impl Arena {
    async fn start() -> Self {
        let folder = Arc::new(Folder::new());
        Self {
            plain: Arc::new(Target::start(&folder, "[]").await),
            proposals: Arc::new(Target::start(&folder, "[\"exceptions\", \"threads\"]").await),
            kept: folder.kept(),
            folder,
            failures: Vec::new(),
        }
    }

    /// Runs a row in crowds, metered and not.
    async fn run(&mut self, row: Arc<Row>, crowds: fn(&Row) -> Vec<usize>) {
        let start = Instant::now();
        let mut ends = Vec::new();
        let mut longest = Duration::ZERO;
        for crowd in crowds(&row) {
            for metered in [false, true] {
                for seen in self.at_once(&row, crowd, metered).await {
                    if let Some(wrong) = row.judge(&seen, metered) {
                        let details = seen.details();
                        let place = format!("{} ({crowd} at once, metered: {metered})", row.name);
                        let about = row.does;
                        self.failures
                            .push(format!("{place}: {seen}: {wrong}\n  {about}\n  {details}"));
                    }
                    longest = longest.max(seen.took());
                    ends.push(seen.to_string());
                }
                self.settle(&row).await;
            }
        }
        ends.sort();
        ends.dedup();
        let took = start.elapsed().as_millis();
        let (name, ends, longest) = (&row.name, ends.join(" | "), longest.as_millis());
        let memory = Held::now().memory;
        eprintln!("{took:>6} ms, longest {longest:>5} ms, {memory} KiB  {name}: {ends}");
    }

    async fn at_once(&self, row: &Arc<Row>, crowd: usize, metered: bool) -> Vec<Seen> {
        let mut runs = JoinSet::new();
        for _ in 0..crowd {
            let target = Arc::clone(self.target(row));
            let spec = row.spec(&self.folder, metered);
            runs.spawn(async move { Seen::of(target.daemon.run(spec).await) });
        }
        runs.join_all().await
    }

    fn target(&self, row: &Row) -> &Arc<Target> {
        if row.proposals {
            &self.proposals
        } else {
            &self.plain
        }
    }

    /// What has to hold after each row.
    async fn settle(&mut self, row: &Row) {
        // Where the daemon let a guest open it, somebody waits there.
        drop(self.folder.release());
        self.target(row).is_well().await;
        if self.folder.kept() != self.kept {
            let now = self.folder.kept();
            let changed: Vec<_> = now
                .iter()
                .filter(|entry| !self.kept.contains(entry))
                .collect();
            self.failures
                .push(format!("{}: changed on the host: {changed:?}", row.name));
            self.kept = now;
        }
        self.folder.clear();
    }

    async fn pass(&mut self, rows: &[Arc<Row>], crowds: fn(&Row) -> Vec<usize>) {
        for row in rows {
            self.run(Arc::clone(row), crowds).await;
        }
    }
}

/// What this process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    /// In KiB.
    memory: usize,
}

impl Held {
    fn now() -> Self {
        let count = |what| {
            std::fs::read_dir(format!("/proc/self/{what}"))
                .unwrap()
                .count()
        };
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"));
        let kib = line.unwrap().split_whitespace().next().unwrap();
        Self {
            descriptors: count("fd"),
            threads: count("task"),
            memory: kib.parse().unwrap(),
        }
    }

    fn is_within(self, before: Self) -> bool {
        self.descriptors <= before.descriptors + FEW
            && self.threads <= before.threads + FEW
            && self.memory <= before.memory + MORE_MEMORY
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_guests_end_as_they_should_and_leave_nothing_behind() {
    let mut arena = Arena::start().await;
    let threads = Held::now().threads;
    let rows: Vec<_> = rows::all(&arena.folder).into_iter().map(Arc::new).collect();
    arena
        .pass(&rows, |row| {
            let mut crowds = vec![1, row.crowd];
            crowds.dedup();
            crowds
        })
        .await;
    // Not those for file system calls, which end when they have had nothing to do for a while.
    let before = Held {
        threads,
        ..Held::now()
    };
    let crowds = |row: &Row| vec![row.crowd];
    let crowded: Vec<_> = rows.iter().filter(|row| row.crowd > 1).cloned().collect();
    arena.pass(&crowded, crowds).await;
    let start = Instant::now();
    let mut after = Held::now();
    while !after.is_within(before) && start.elapsed() < PATIENCE / 4 {
        tokio::task::yield_now().await;
        after = Held::now();
    }
    eprintln!("{before:?} after the first pass, {after:?} after the second");
    for target in [&arena.plain, &arena.proposals] {
        target.is_well().await;
        let health = target.daemon.client.clone().health(HealthRequest {}).await;
        let health = health.unwrap().into_inner();
        assert_eq!((health.runs_in_flight, health.runs_queued), (0, 0));
    }
    let failures = &arena.failures;
    assert!(
        failures.is_empty(),
        "{} failures:\n{}",
        failures.len(),
        failures.join("\n")
    );
    assert!(
        after.is_within(before),
        "{before:?} before, {after:?} after"
    );
}
