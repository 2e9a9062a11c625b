//! How long it takes to list a page of a million archived runs, of any age.
//!
//! ```sh
//! cargo bench --bench archive -- --runs 1000000
//! ```
//!
//! The archive is a folder that is filled first, evenly over thirty days, as daemons fill it: a
//! segment has a thousand runs. Each question is asked of a daemon over gRPC, twenty times.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a program that is looked at while it runs, and fails by panicking; its figures are for people"
)]
#![allow(dead_code, reason = "the helpers are shared with other benches")]

mod served;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use prost::Message;
use prost_types::Timestamp;
use ringfence::api::proto::run_service_client::RunServiceClient;
use ringfence::api::proto::{
    GetRunRequest, ListRunsRequest, RunInfo, RunResult, RunState, run_info,
};
use ringfence::archive::{
    ArchivableRun, Archive, ArchiveMark, ArchiveSettings, EncodedRun, Retention,
};
use ringfence::model::request::RunId;
use ringfence::store::StoreLocation;
use tonic::transport::{Channel, Endpoint};

use served::Served;

/// The time over which the runs are spread.
const SPREAD: Duration = Duration::from_secs(30 * 24 * 3600);
/// Runs of a segment.
const TOGETHER: u64 = 1000;
/// How often each question is asked.
const ASKED: usize = 20;

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// A run as a daemon archives it.
fn encoded(number: u128, at: SystemTime, label: u64) -> EncodedRun {
    let at = Timestamp::from(at);
    let id = RunId::of(number, "filler").to_string();
    let result = RunResult {
        run_id: id.clone(),
        module_digest: format!("sha256:{}", "7".repeat(64)),
        exit_code: Some(0),
        stdout_bytes: 6,
        ..RunResult::default()
    };
    let info = RunInfo {
        run_id: id.clone(),
        state: RunState::Ended.into(),
        module_digest: result.module_digest.clone(),
        labels: [("shard".to_owned(), label.to_string())].into(),
        method: "Run".to_owned(),
        caller: "127.0.0.1:50000".to_owned(),
        asked: Some(at),
        started: Some(at),
        ended: Some(at),
        next_seq: 3,
        end: Some(run_info::End::Result(Box::new(result))),
        ..RunInfo::default()
    };
    let line = format!(
        "{{\"run_id\":\"{id}\",\"tenant\":\"default\",\"method\":\"Run\",\"labels\":{{\"shard\":\"{label}\"}},\"module_digest\":\"{}\",\"outcome\":\"exited\",\"exit_code\":0,\"duration_ms\":0.1,\"events\":[{{\"seq\":1,\"time\":\"2026-11-30T00:00:00.000000000Z\",\"stream\":\"stdout\",\"text\":\"hello\\n\"}}]}}",
        info.module_digest
    );
    EncodedRun {
        number,
        summary: info.encode_to_vec(),
        line: line.into_bytes(),
    }
}

/// Fills an archive with runs that were asked for in the time before `now`.
async fn fill(folder: &Path, runs: u64, now: SystemTime) {
    let settings = ArchiveSettings {
        location: StoreLocation::Directory(folder.to_owned()),
        spool: None,
        queue: 256 << 20,
        interval: Duration::from_secs(1),
        has_several_tenants: false,
        retention: Retention::default(),
    };
    let archive = Archive::open("filler", settings).unwrap();
    let share = Arc::default();
    let apart = SPREAD / u32::try_from(runs).unwrap();
    for run in 0..runs {
        let at = now - SPREAD + apart * u32::try_from(run).unwrap();
        let ms = at.duration_since(UNIX_EPOCH).unwrap().as_millis();
        let number = ms << 80 | u128::from(run);
        archive.offer(ArchivableRun {
            tenant: "default".into(),
            number,
            share: Arc::clone(&share),
            cost: 2000,
            mark: ArchiveMark::queued(),
            encode: Box::new(move || encoded(number, at, run % 1000)),
        });
        if run % TOGETHER == TOGETHER - 1 {
            archive.flush().await;
        }
    }
    archive.close(Duration::from_secs(60)).await;
}

async fn channel(addr: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    endpoint.connect().await.unwrap()
}

/// Asks for a page again and again, and prints how long that took.
async fn asks(addr: &str, what: &str, request: ListRunsRequest) {
    let mut client = RunServiceClient::new(channel(addr).await);
    let (mut took, mut found) = (Vec::new(), 0);
    for _ in 0..ASKED {
        let begun = Instant::now();
        let page = client
            .list_runs(request.clone())
            .await
            .unwrap()
            .into_inner();
        took.push(begun.elapsed());
        assert!(page.damaged.is_empty());
        found = page.runs.len();
    }
    took.sort();
    println!(
        "{what:<50} {found:>4} runs: p50 {:7.2} ms, slowest {:7.2}",
        millis(took[ASKED / 2]),
        millis(took[ASKED - 1]),
    );
}

/// Lists pages of several ages, and finds runs by id.
async fn listing(addr: &str, now: SystemTime) {
    let ago = |hours: u64| Some(Timestamp::from(now - Duration::from_secs(hours * 3600)));
    let between = |since, until| ListRunsRequest {
        since,
        until,
        ..ListRunsRequest::default()
    };
    asks(addr, "the last hour", between(ago(1), None)).await;
    asks(addr, "since ever", between(ago(24 * 365), None)).await;
    asks(addr, "before an hour ago", between(None, ago(1))).await;
    asks(
        addr,
        "an hour of fifteen days ago",
        between(ago(360), ago(359)),
    )
    .await;
    asks(addr, "before 29 days ago", between(None, ago(29 * 24))).await;
    let labelled = ListRunsRequest {
        labels: [("shard".to_owned(), "7".to_owned())].into(),
        ..between(ago(24 * 365), None)
    };
    asks(addr, "since ever, one of a thousand by label", labelled).await;
    let mut client = RunServiceClient::new(channel(addr).await);
    let page = client.list_runs(between(ago(360), ago(359))).await.unwrap();
    let ids = page.into_inner().runs.into_iter().take(ASKED);
    let mut took = Vec::new();
    for run in ids {
        let begun = Instant::now();
        let request = GetRunRequest { run_id: run.run_id };
        client.get_run(request).await.unwrap();
        took.push(begun.elapsed());
    }
    took.sort();
    println!(
        "GetRun of fifteen days ago: p50 {:.2} ms",
        millis(took[took.len() / 2])
    );
}

#[tokio::main]
async fn main() {
    let mut words = std::env::args().skip_while(|word| word != "--runs").skip(1);
    let runs = words.next().map_or(1_000_000, |word| word.parse().unwrap());
    let now = SystemTime::now();
    for runs in [runs / 100, runs] {
        let folder = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        fill(folder.path(), runs, now).await;
        println!("{runs} runs in {:.1} s", begun.elapsed().as_secs_f64());
        let archive = format!("runs.archive=file://{}", folder.path().display());
        let served = Served::start(&[archive]);
        listing(&served.1, now).await;
    }
}
