//! A daemon of its own process: how it is started, asked, looked at from outside, and ended.

use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringfence::api::proto::{HealthRequest, HealthResponse, RunRequest, RunResponse, RunSpec};
use tokio::task::JoinSet;
use tonic::Status;
use tonic_types::StatusExt;

use crate::figures::Report;
use crate::harness::{Client, PATIENCE, connect, load};
use crate::process::Served;

/// Only what goes wrong, and where it listens: a line a run would be measured too.
const LOG_LEVEL: &str = "telemetry.log_level=warn,ringfence::app=info";
/// The end of how a refusal is called that has no reason.
pub(crate) const NO_REASON: &str = " without a reason";
/// Callers that share a connection, which has room for a hundred streams.
const CALLERS_A_CONNECTION: usize = 16;

/// A daemon under siege.
pub(crate) struct Besieged {
    served: Served,
    log: JoinHandle<String>,
    /// A connection of its own, for looking.
    looks: Client,
}

/// What the daemon's process holds.
#[derive(Clone, Copy)]
pub(crate) struct Held {
    /// Without those of modules, which the cache holds within its budget.
    pub descriptors: usize,
    pub threads: usize,
    /// KiB.
    pub resident: u64,
}

impl Besieged {
    /// With `set` over the defaults.
    pub(crate) async fn start(set: &[&str]) -> Self {
        let args: Vec<_> = set.iter().flat_map(|set| ["--set", set]).collect();
        Self::with(&args).await
    }

    /// With `args` on its command line.
    pub(crate) async fn with(args: &[&str]) -> Self {
        let mut served = Served::start(&[&["--set", LOG_LEVEL], args].concat());
        let log = served.drain_log();
        let looks = connect(&served.addr).await;
        Self { served, log, looks }
    }

    pub(crate) fn addr(&self) -> &str {
        &self.served.addr
    }

    /// A client on a connection of its own.
    pub(crate) async fn client(&self) -> Client {
        connect(self.addr()).await
    }

    pub(crate) async fn health(&self) -> HealthResponse {
        let answer = self.looks.clone().health(HealthRequest {}).await;
        answer.expect("health answers").into_inner()
    }

    /// Waits until its health is as `holds` says, by asking.
    pub(crate) async fn until(&self, holds: impl Fn(&HealthResponse) -> bool) {
        let start = Instant::now();
        while !holds(&self.health().await) {
            assert!(start.elapsed() < PATIENCE, "it does not come to be");
        }
    }

    /// Waits until nothing runs or waits.
    pub(crate) async fn until_idle(&self) {
        self.until(|health| health.runs_in_flight == 0 && health.runs_queued == 0)
            .await;
    }

    pub(crate) fn held(&self) -> Held {
        let dir = |what: &str| {
            let path = format!("/proc/{}/{what}", self.served.child.id());
            std::fs::read_dir(path).expect("it lives").flatten()
        };
        let links = dir("fd").flat_map(|entry| std::fs::read_link(entry.path()));
        let images = |link: &PathBuf| link.to_string_lossy().contains("memfd:wasm-memory-image");
        Held {
            descriptors: links.filter(|link| !images(link)).count(),
            threads: dir("task").count(),
            resident: self.served.memory("VmRSS"),
        }
    }

    /// What it holds once it is idle and `holds` is true, or after half a minute, since connections that were closed and
    /// threads for file system calls go a little later.
    pub(crate) async fn settled(&self, holds: impl Fn(&Held) -> bool) -> Held {
        self.until_idle().await;
        let start = Instant::now();
        loop {
            let held = self.held();
            if holds(&held) || start.elapsed() > Duration::from_secs(30) {
                return held;
            }
            self.health().await;
        }
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.served.signal("-TERM");
    }

    /// Ends it, and reports its exit code and what its log has of failures.
    pub(crate) async fn end(self, report: &mut Report) {
        self.terminate();
        self.ended(report).await;
    }

    /// Waits until it has ended, and reports its exit code and what its log has of failures.
    pub(crate) async fn ended(self, report: &mut Report) {
        let Self {
            mut served,
            log,
            looks,
        } = self;
        drop(looks);
        let mut look = tokio::time::interval(Duration::from_millis(2));
        let start = Instant::now();
        let status = loop {
            look.tick().await;
            if let Some(status) = served.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < PATIENCE, "it does not end");
        };
        report.count(
            "the daemon ends with",
            status,
            "exit status: 0",
            status.success(),
        );
        let log = log.join().unwrap();
        let failures: Vec<_> = log.lines().filter(|line| line.contains("ERROR")).collect();
        report.equal("failures in its log", failures.len(), 0);
        for failure in failures.iter().take(5) {
            eprintln!("{failure}");
        }
    }
}

/// Runs `spec`.
pub(crate) async fn run(client: &mut Client, spec: RunSpec) -> Result<RunResponse, Status> {
    let request = RunRequest { spec: Some(spec) };
    Ok(client.run(request).await?.into_inner())
}

/// Loads a module, which is taken, and returns its digest.
pub(crate) async fn loaded(client: &mut Client, wat: &str) -> String {
    let answer = client.load_module(load(wat.to_owned())).await;
    let answer = answer.expect("the module is taken").into_inner();
    answer.module.expect("the module is described").digest
}

/// How a call ended, in a word: its run's outcome, or why it was refused.
pub(crate) fn ending(answer: &Result<RunResponse, Status>) -> String {
    match answer {
        Ok(answer) => {
            let result = answer.result.as_ref().expect("a result");
            let name = result.outcome().as_str_name();
            name.trim_start_matches("OUTCOME_").to_owned()
        }
        Err(status) => reason(status),
    }
}

/// Why a call was refused: the reason, or the code of a refusal that has none.
pub(crate) fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    match details.error_info() {
        Some(info) => info.reason.clone(),
        None => format!("{:?}{NO_REASON}", status.code()),
    }
}

/// Calls of `callers` side by side, each of whom knows its number; what they return.
pub(crate) async fn side_by_side<T, F>(
    addr: &str,
    callers: usize,
    call: impl Fn(usize, Client) -> F,
) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let mut all = JoinSet::new();
    let mut client = connect(addr).await;
    for i in 0..callers {
        if i > 0 && i % CALLERS_A_CONNECTION == 0 {
            client = connect(addr).await;
        }
        all.spawn(call(i, client.clone()));
    }
    all.join_all().await
}

/// Does `work` on a thread of its own, where it waits for nothing else that this program does.
pub(crate) async fn alone<T, F>(work: impl FnOnce() -> F + Send + 'static) -> T
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    let thread = tokio::task::spawn_blocking(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(work())
    });
    thread.await.unwrap()
}
