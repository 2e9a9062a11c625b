//! How long it takes to list a page of a million archived runs, of any age.
//!
//! ```sh
//! cargo bench --bench archive -- --runs 1000000
//! ```
//!
//! The archive is filled first, evenly over thirty days, as daemons fill it: by a thousand runs a
//! second now and then, or, with `--together N`, by N of them. Each question is asked of a daemon
//! over gRPC, twenty times. The archive is a folder, and then a bucket over the same files, which
//! takes 20 ms for each answer and counts them.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "a program that is looked at while it runs, and fails by panicking; its figures are for people"
)]
#![allow(dead_code, reason = "the helpers are shared with other benches")]

#[path = "archive/bucket.rs"]
mod bucket;
#[path = "../tests/it/scripted.rs"]
mod scripted;
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

use bucket::Bucket;
use served::Served;

/// The time over which the runs are spread.
const SPREAD: Duration = Duration::from_secs(30 * 24 * 3600);
/// Runs of a segment, unless another number is asked for.
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
async fn fill(folder: &Path, runs: u64, together: u64, now: SystemTime) {
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
        if run % together == together - 1 {
            archive.flush().await;
        }
    }
    archive.close(Duration::from_secs(60)).await;
}

async fn channel(addr: &str) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{addr}")).unwrap();
    endpoint.connect().await.unwrap()
}

/// A daemon with the archive, and the bucket that it is in, unless it is a folder.
struct Subject {
    served: Served,
    bucket: Option<Bucket>,
}

impl Subject {
    fn over_folder(folder: &Path) -> Self {
        let archive = format!("runs.archive=file://{}", folder.display());
        Self {
            served: Served::start(&[archive]),
            bucket: None,
        }
    }

    fn over_bucket(folder: &Path) -> Self {
        let bucket = Bucket::serve(folder);
        let endpoint = format!("http://{}", bucket.host);
        let env = [
            ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
            ("AWS_SECRET_ACCESS_KEY", "s3cretkey"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ];
        let settings = [
            "runs.archive=s3://bucket".to_owned(),
            "runs.archive_age=0s".to_owned(),
        ];
        Self {
            served: Served::with(&settings, &env),
            bucket: Some(bucket),
        }
    }

    /// How many requests the bucket was sent so far.
    fn requests(&self) -> usize {
        self.bucket.as_ref().map_or(0, Bucket::requests)
    }
}

/// Asks for a page again and again, and prints how long that took.
async fn asks(subject: &Subject, what: &str, request: ListRunsRequest) {
    let mut client = RunServiceClient::new(channel(&subject.served.1).await);
    let before = subject.requests();
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
    let requests = subject.requests() - before;
    if requests > 0 {
        println!(
            "{:<50} {:.1} requests each",
            "",
            requests as f64 / ASKED as f64
        );
    }
}

/// Lists pages of several ages, and finds runs by id.
async fn listing(subject: &Subject, now: SystemTime) {
    let ago = |hours: u64| Some(Timestamp::from(now - Duration::from_secs(hours * 3600)));
    let between = |since, until| ListRunsRequest {
        since,
        until,
        ..ListRunsRequest::default()
    };
    asks(subject, "the last hour", between(ago(1), None)).await;
    asks(subject, "since ever", between(ago(24 * 365), None)).await;
    asks(subject, "before an hour ago", between(None, ago(1))).await;
    asks(
        subject,
        "an hour of fifteen days ago",
        between(ago(360), ago(359)),
    )
    .await;
    asks(subject, "before 29 days ago", between(None, ago(29 * 24))).await;
    let labelled = ListRunsRequest {
        labels: [("shard".to_owned(), "7".to_owned())].into(),
        ..between(ago(24 * 365), None)
    };
    asks(subject, "since ever, one of a thousand by label", labelled).await;
    let mut client = RunServiceClient::new(channel(&subject.served.1).await);
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

/// The number that follows a word of the command.
fn asked(word: &str) -> Option<u64> {
    let mut words = std::env::args().skip_while(|it| it != word).skip(1);
    words.next().map(|number| number.parse().unwrap())
}

#[tokio::main]
async fn main() {
    let runs = asked("--runs").unwrap_or(1_000_000);
    let together = asked("--together").unwrap_or(TOGETHER);
    let now = SystemTime::now();
    for runs in [runs / 100, runs] {
        let folder = tempfile::tempdir().unwrap();
        let begun = Instant::now();
        fill(folder.path(), runs, together, now).await;
        println!("{runs} runs in {:.1} s", begun.elapsed().as_secs_f64());
        listing(&Subject::over_folder(folder.path()), now).await;
        println!("in a bucket");
        listing(&Subject::over_bucket(folder.path()), now).await;
    }
}
