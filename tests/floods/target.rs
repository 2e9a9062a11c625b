//! The daemon that is attacked, what it takes, and the neighbour who must not notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringfence::api::proto::{HealthRequest, RunRequest, RunSpec};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::attacker::Attacker;
use crate::harness::{Client, PATIENCE, by_digest, connect, load};
use crate::process::Served;

/// What any attack may cost.
const ALLOWED_KIB: u64 = 20 << 10;
/// A bound on what may be silent, and no history to speak of, which is kept by design and would be measured with the rest.
const SETTINGS: [&str; 4] = [
    // A flood may take longer than that by default.
    "server.first_call_timeout=10m",
    "server.handshake_timeout=500ms",
    "server.request_stall=500ms",
    "runs.history=100",
];
const HELLO: &str = include_str!("../../examples/hello.wat");
/// Rounds of runs, side by side, before anything is measured.
const WARM: usize = 50;
const SIDE_BY_SIDE: usize = 16;
/// Runs of the neighbour after the attack.
const AFTER: usize = 10;

/// A daemon under attack.
pub(crate) struct Target {
    pub addr: String,
    /// The module that the neighbour runs.
    pub digest: String,
    served: Served,
    log: std::thread::JoinHandle<String>,
    neighbour: Neighbour,
    /// KiB in memory before the attack.
    before: u64,
}

impl Target {
    /// A warm daemon, whose neighbour runs one guest after the other from now on.
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    /// With `set` over what all have.
    pub(crate) async fn with(set: &[&str]) -> Self {
        let args: Vec<_> = SETTINGS
            .iter()
            .chain(set)
            .flat_map(|setting| ["--set", setting])
            .collect();
        let mut served = Served::start(&args);
        let log = served.drain_log();
        let addr = served.addr.clone();
        let mut client = connect(&addr).await;
        let loaded = client.load_module(load(HELLO)).await.unwrap();
        let digest = loaded.into_inner().module.unwrap().digest;
        warm(&addr, &digest).await;
        let neighbour = Neighbour::start(client, by_digest(&digest));
        neighbour.serve(AFTER).await;
        until_alone(&addr, &neighbour).await;
        forget_peak(&served);
        Self {
            before: served.memory("VmRSS"),
            addr,
            digest,
            served,
            log,
            neighbour,
        }
    }

    /// An attacker who has greeted, and reads.
    pub(crate) async fn attacker(&self) -> Attacker {
        Attacker::greeted(&self.addr).await
    }

    /// How long it takes somebody new to connect and have the guest run.
    pub(crate) async fn first_call(&self) -> Duration {
        let start = Instant::now();
        let mut client = connect(&self.addr).await;
        run(&mut client, by_digest(&self.digest)).await;
        start.elapsed()
    }

    /// Waits until the neighbour was served `times` more.
    pub(crate) async fn serves(&self, times: usize) {
        self.neighbour.serve(times).await;
    }

    /// Waits until no run is in flight but the neighbour's.
    pub(crate) async fn until_idle(&self) {
        self.until_in_flight(|runs| runs <= 1).await;
    }

    /// Waits until runs beside the neighbour's are in flight.
    pub(crate) async fn until_busy(&self) {
        self.until_in_flight(|runs| runs > 1).await;
    }

    async fn until_in_flight(&self, holds: impl Fn(u32) -> bool) {
        let mut client = connect(&self.addr).await;
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "it does not come to be");
            let health = client.health(HealthRequest {}).await.unwrap().into_inner();
            if holds(health.runs_in_flight + health.runs_queued) {
                return;
            }
            self.serves(1).await;
        }
    }

    /// Waits until the daemon has let go of every connection but the neighbour's.
    pub(crate) async fn until_alone(&self) {
        until_alone(&self.addr, &self.neighbour).await;
    }

    /// The attackers being gone, it serves as before, holds nothing of theirs, and never held much.
    pub(crate) async fn unharmed(self, attack: &str) {
        self.unharmed_within(attack, ALLOWED_KIB).await;
    }

    /// The same, having held so much at the most.
    pub(crate) async fn unharmed_within(self, attack: &str, allowed_kib: u64) {
        self.until_alone().await;
        self.serves(AFTER).await;
        run(&mut connect(&self.addr).await, by_digest(&self.digest)).await;
        let (peak, after) = (self.served.memory("VmHWM"), self.served.memory("VmRSS"));
        let runs = self.neighbour.end().await;
        let before = self.before;
        let (most, left) = (peak.saturating_sub(before), after.saturating_sub(before));
        eprintln!("{attack}: {most} KiB at the most, {left} KiB afterwards, {runs} runs beside it");
        assert!(
            most <= allowed_kib,
            "{before} KiB before, {peak} at the most"
        );
        drop(self.served);
        let log = self.log.join().unwrap();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// Runs guests side by side, each caller on a connection of its own.
async fn warm(addr: &str, digest: &str) {
    let mut callers = JoinSet::new();
    for _ in 0..SIDE_BY_SIDE {
        let (addr, spec) = (addr.to_owned(), by_digest(digest));
        callers.spawn(async move {
            let mut client = connect(&addr).await;
            for _ in 0..WARM {
                run(&mut client, spec.clone()).await;
            }
        });
    }
    callers.join_all().await;
}

/// Runs the guest that says hello.
async fn run(client: &mut Client, spec: RunSpec) {
    let request = RunRequest { spec: Some(spec) };
    let answer = tokio::time::timeout(PATIENCE, client.run(request)).await;
    let answer = answer.expect("it answers").expect("it is not refused");
    let answer = answer.into_inner();
    assert_eq!(answer.stdout, "Hello from inside the fence.\n");
    assert_eq!(answer.result.unwrap().exit_code, Some(0));
}

/// A well-behaved client, who has one connection and runs one guest after the other.
struct Neighbour {
    stop: Arc<AtomicBool>,
    served: watch::Receiver<usize>,
    task: JoinHandle<()>,
}

impl Neighbour {
    fn start(mut client: Client, spec: RunSpec) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (tell, served) = watch::channel(0);
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Acquire) {
                run(&mut client, spec.clone()).await;
                tell.send_modify(|runs| *runs += 1);
            }
        });
        Self { stop, served, task }
    }

    /// Waits for `times` more runs, of which the first may have begun before.
    async fn serve(&self, times: usize) {
        let mut served = self.served.clone();
        let target = *served.borrow_and_update() + times;
        let told = tokio::time::timeout(PATIENCE, served.wait_for(|runs| *runs >= target)).await;
        assert!(
            told.is_ok_and(|told| told.is_ok()),
            "the neighbour is served"
        );
    }

    /// Ends it, and returns how often it was served; one refusal is a failure.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Release);
        self.task.await.expect("the neighbour is served");
        *self.served.borrow()
    }
}

/// Waits until the daemon has no connection but the neighbour's, and looks after each run of that one.
async fn until_alone(addr: &str, neighbour: &Neighbour) {
    let start = Instant::now();
    while connections(addr) > 1 {
        assert!(start.elapsed() < PATIENCE, "connections stay open");
        neighbour.serve(1).await;
    }
}

/// Connections that the daemon which listens on `addr` has accepted and not let go of.
fn connections(addr: &str) -> usize {
    const LISTENING: &str = "0A";
    /// Columns of a line: the local address, the state, and the inode, which is 0 where no process has the socket.
    const COLUMNS: [usize; 3] = [1, 3, 9];
    let (_, port) = addr.rsplit_once(':').unwrap();
    let port = format!(":{:04X}", port.parse::<u16>().unwrap());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let held = |line: &&str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        let [local, state, inode] = COLUMNS.map(|column| columns[column]);
        local.ends_with(&port) && state != LISTENING && inode != "0"
    };
    table.lines().skip(1).filter(held).count()
}

/// Makes the daemon's peak what it has in memory now.
fn forget_peak(served: &Served) {
    std::fs::write(format!("/proc/{}/clear_refs", served.child.id()), "5").unwrap();
}
