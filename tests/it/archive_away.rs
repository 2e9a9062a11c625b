//! An archive that does not answer, is slow, or goes away in the middle of something.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use ringfence::api::proto::{
    ArchiveState, CancelRunRequest, DeleteRunsRequest, GetRunRequest, RunRequest, RunSpec,
    RunStreamRequest,
};
use tempfile::TempDir;
use tonic::Code;

use crate::archive::{
    SharedBucket, all_since, answer, events, failing, files, has, info, now, over, says,
    unpacked_segment, until_archived,
};
use crate::archive_replay::noise;
use crate::audit::lines;
use crate::harness::{
    PATIENCE, Refused, Runs, SpecExt, channel, connect, kit, read, runs, spec, told_id,
};
use crate::modules::saying;
use crate::process::Served;
use crate::scripted::{Asked, Scripted};
use crate::tenants::{Tenant, token, tokens_file};

/// Where requests wait while it is closed.
#[derive(Default)]
struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    is_closed: bool,
    waiting: usize,
}

impl Gate {
    fn set_closed(&self, is_closed: bool) {
        self.state.lock().unwrap().is_closed = is_closed;
        self.changed.notify_all();
    }

    fn is_closed(&self) -> bool {
        self.state.lock().unwrap().is_closed
    }

    /// Waits until it is open, and says whether that took waiting.
    fn pass(&self) -> bool {
        let mut state = self.state.lock().unwrap();
        if !state.is_closed {
            return false;
        }
        state.waiting += 1;
        let open = self.changed.wait_while(state, |state| state.is_closed);
        open.unwrap().waiting -= 1;
        true
    }

    /// Waits until a request waits.
    async fn until_somebody_waits(&self) {
        let start = Instant::now();
        while self.state.lock().unwrap().waiting == 0 {
            assert!(start.elapsed() < PATIENCE, "nobody asks");
            tokio::task::yield_now().await;
        }
    }
}

/// The bytes of the files of runs on their way.
fn spooled(folder: &Path) -> Vec<Vec<u8>> {
    let files = files(folder).into_iter();
    // A daemon may delete one between the two.
    let read = files.filter_map(|file| std::fs::read(file).ok());
    read.filter(|bytes| !bytes.is_empty()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_go_on_to_be_kept_beside_an_archive_that_does_not_answer() {
    let (bucket, gate) = (SharedBucket::default(), Arc::new(Gate::default()));
    gate.set_closed(true);
    let held = Arc::clone(&gate);
    let server = Scripted::start(move |asked| match held.pass() {
        // Whoever asked has given up, or was killed.
        true => failing(503, "ServiceUnavailable"),
        false => answer(asked, &bucket),
    });
    let spool = TempDir::new().unwrap();
    let more = format!("runs.archive_spool={}", spool.path().display());
    let mut killed = over(&server, "killed", &["--set", &more]);
    let since = now();
    let mut ids = BTreeSet::new();
    // Each batch has a file, and the first of them is with the archive all the time.
    let start = Instant::now();
    while spooled(spool.path()).len() < 4 {
        ids.insert(says(&killed, "still there").await);
        assert!(start.elapsed() < PATIENCE, "after {} runs", ids.len());
    }
    let start = Instant::now();
    while let all = spooled(spool.path()).concat()
        && !ids.iter().all(|id| has(&all, id))
    {
        assert!(start.elapsed() < PATIENCE, "some are not spooled");
        tokio::task::yield_now().await;
    }
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    gate.set_closed(false);
    let next = over(&server, "next", &["--set", &more]);
    let mut runs = runs(&next.addr).await;
    let start = Instant::now();
    let told = loop {
        let listed = all_since(&mut runs, since, 1000).await;
        if listed.len() >= ids.len() {
            break listed;
        }
        assert!(start.elapsed() < PATIENCE, "{} come", listed.len());
    };
    let told: BTreeSet<String> = told.into_iter().map(|run| run.run_id).collect();
    assert_eq!(told, ids);
    for id in [ids.first().unwrap(), ids.last().unwrap()] {
        assert_eq!(events(&mut runs, id, 0).await.unwrap().len(), 3);
    }
    let start = Instant::now();
    while !spooled(spool.path()).is_empty() {
        assert!(start.elapsed() < PATIENCE, "the files stay");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_segment_arrives_at_once_however_slowly_it_is_taken() {
    /// Bytes that the store takes in a second, which for all is longer than other requests may
    /// take.
    const RATE: usize = 96 << 10;
    const OUTPUT: usize = 2 << 20;
    let bucket = SharedBucket::default();
    let server = Scripted::start(move |asked| {
        let bytes = u32::try_from(asked.body.len() / RATE).unwrap();
        std::thread::sleep(Duration::from_secs(1) * bytes);
        answer(asked, &bucket)
    });
    let first = over(&server, "first", &["--set", "runs.log_bytes=4MiB"]);
    let spec = Some(kit(&["echo"]).stdin(noise(OUTPUT)));
    let mut client = connect(&first.addr).await;
    let answer = client.run_stream(RunStreamRequest { spec }).await.unwrap();
    let id = told_id(answer.metadata());
    assert!(read(answer.into_inner()).await.stdout == noise(OUTPUT));
    until_archived(&mut runs(&first.addr).await, &id, ArchiveState::Written).await;
    let is_whole = |asked: &Asked| asked.method == "PUT" && asked.body.len() > OUTPUT;
    let puts = server.asked().into_iter().filter(is_whole);
    assert_eq!(puts.count(), 1, "it is not sent again and again");
    let second = over(&server, "second", &[]);
    let answer = events(&mut runs(&second.addr).await, &id, 0).await;
    assert!(answer.unwrap().len() > OUTPUT / (64 << 10));
}

fn labelled(spec: RunSpec) -> RunSpec {
    spec.label("which", "goes")
}

fn deletion() -> DeleteRunsRequest {
    DeleteRunsRequest {
        labels: [("which".to_owned(), "goes".to_owned())].into(),
        ..DeleteRunsRequest::default()
    }
}

/// Runs a labelled program, and waits until the run is in the archive.
async fn archived(served: &Served, own: &mut Runs) -> String {
    let spec = Some(labelled(kit(&["hello"])));
    let mut client = connect(&served.addr).await;
    let ran = client.run(RunRequest { spec }).await.unwrap().into_inner();
    let id = ran.result.unwrap().run_id;
    until_archived(own, &id, ArchiveState::Written).await;
    id
}

fn is_listing(asked: &Asked) -> bool {
    asked.method == "GET" && asked.target.contains("list-type=2")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_ends_while_others_are_deleted_stays() {
    let (bucket, gate) = (SharedBucket::default(), Arc::new(Gate::default()));
    let held = Arc::clone(&gate);
    let server = Scripted::start(move |asked| {
        if is_listing(asked) {
            held.pass();
        }
        answer(asked, &bucket)
    });
    let served = over(&server, "own", &["--set", "runs.archive_age=0s"]);
    let mut own = runs(&served.addr).await;
    let ended = archived(&served, &mut own).await;
    let spec = Some(labelled(
        kit(&["sleep", "600000"]).detach().timeout(PATIENCE),
    ));
    let mut client = connect(&served.addr).await;
    let answer = client.run_stream(RunStreamRequest { spec }).await.unwrap();
    let live = told_id(answer.metadata());
    gate.set_closed(true);
    let mut caller = own.clone();
    let deleting = tokio::spawn(async move { caller.delete_runs(deletion()).await });
    // Memory has been looked through, and it has come to the archive.
    gate.until_somebody_waits().await;
    let cancel = CancelRunRequest {
        run_id: live.clone(),
    };
    own.cancel_run(cancel).await.unwrap();
    until_archived(&mut own, &live, ArchiveState::Written).await;
    gate.set_closed(false);
    let deleted = deleting.await.unwrap().unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.run_ids), (1, vec![ended.clone()]));
    let other = over(&server, "other", &["--set", "runs.archive_age=0s"]);
    let mut other = runs(&other.addr).await;
    info(&mut other, &live).await.unwrap();
    let gone = info(&mut other, &ended).await.unwrap_err();
    Refused::new(&gone).is(Code::FailedPrecondition, "RUN_ELSEWHERE");
    // Now it has ended, and goes too.
    let deleted = own.delete_runs(deletion()).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.run_ids), (1, vec![live.clone()]));
    info(&mut other, &live).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_is_held_up_holds_up_no_other_tenant() {
    let (bucket, gate) = (SharedBucket::default(), Arc::new(Gate::default()));
    let held = Arc::clone(&gate);
    let server = Scripted::start(move |asked| {
        if asked.target.replace("%2F", "/").contains("/runs/a/") {
            held.pass();
        }
        answer(asked, &bucket)
    });
    let dir = TempDir::new().unwrap();
    let tokens = format!(
        "auth.tokens_file={}",
        tokens_file(&dir, &["a", "b"]).display()
    );
    let tenants = "tenants=[{ name = \"a\" }, { name = \"b\" }]";
    // Memory forgets runs at once, so that all of them are asked of the archive.
    let set = [tenants, &tokens, "runs.history=0", "runs.archive_age=0s"];
    let set: Vec<&str> = set.iter().flat_map(|set| ["--set", *set]).collect();
    let served = over(&server, "own", &set);
    let (mut a, _) = archived_of(&served, "a").await;
    let (mut b, other) = archived_of(&served, "b").await;
    gate.set_closed(true);
    // The second waits for the first, and both of them may not take all of a tenant's turns.
    let deletions = [0; 2].map(|_| {
        let mut caller = a.runs.clone();
        tokio::spawn(async move { caller.delete_runs(deletion()).await })
    });
    gate.until_somebody_waits().await;
    b.runs.get_run(by_id(&other)).await.unwrap();
    let deleted = b.runs.delete_runs(deletion()).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.run_ids), (1, vec![other]));
    assert!(
        deletions.iter().all(|it| !it.is_finished()),
        "they were not held"
    );
    gate.set_closed(false);
    let mut deleted = 0;
    for deletion in deletions {
        deleted += deletion.await.unwrap().unwrap().into_inner().deleted;
    }
    assert_eq!(deleted, 1);
    let dry = DeleteRunsRequest {
        dry_run: true,
        ..deletion()
    };
    let left = a.runs.delete_runs(dry).await.unwrap().into_inner();
    assert_eq!(left.deleted, 0);
}

fn by_id(id: &str) -> GetRunRequest {
    let run_id = id.to_owned();
    GetRunRequest { run_id }
}

/// A tenant of the daemon, and a labelled run of it that is in the archive.
async fn archived_of(served: &Served, name: &str) -> (Tenant, String) {
    let mut tenant = Tenant::of(channel(&served.addr).await, &token(name));
    let ran = tenant.ran(labelled(spec(saying(name, 0)))).await;
    let id = ran.result.run_id;
    let start = Instant::now();
    while tenant.runs.get_run(by_id(&id)).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "it is not archived");
    }
    (tenant, id)
}

/// What becomes of a deletion after its first segment.
#[derive(Clone, Copy, PartialEq)]
enum Halfway {
    TheStoreFails,
    TheCallerLeaves,
}

/// What the audit has of a deletion that ends halfway is exactly what was deleted, and the deletion
/// can be repeated.
async fn is_told_to_the_audit(halfway: Halfway) {
    let (bucket, gate) = (SharedBucket::default(), Arc::new(Gate::default()));
    let (held, deletes) = (Arc::clone(&gate), Arc::new(Mutex::new(0)));
    let server = Scripted::start(move |asked| {
        // After the first segment was replaced, all requests fail, where the caller is to leave
        // once it has.
        if held.is_closed() {
            if halfway == Halfway::TheCallerLeaves {
                held.pass();
            }
            return failing(503, "ServiceUnavailable");
        }
        let reply = answer(asked, &bucket);
        if asked.method == "DELETE" {
            let mut deletes = deletes.lock().unwrap();
            *deletes += 1;
            if *deletes == 1 {
                held.set_closed(true);
            }
        }
        reply
    });
    let first = over(&server, "first", &["--set", "runs.archive_age=0s"]);
    let mut own = runs(&first.addr).await;
    let mut ids = BTreeSet::new();
    for _ in 0..2 {
        ids.insert(archived(&first, &mut own).await);
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("audit.log");
    let audit = format!("telemetry.audit_file={}", path.display());
    let more = ["--set", "runs.archive_age=0s", "--set", &audit];
    let second = over(&server, "second", &more);
    let mut caller = runs(&second.addr).await;
    let deleting = {
        let mut caller = caller.clone();
        tokio::spawn(async move { caller.delete_runs(deletion()).await })
    };
    match halfway {
        Halfway::TheCallerLeaves => {
            gate.until_somebody_waits().await;
            deleting.abort();
            assert!(deleting.await.unwrap_err().is_cancelled());
        }
        Halfway::TheStoreFails => {
            let failed = deleting.await.unwrap().unwrap_err();
            Refused::new(&failed).is(Code::Unavailable, "ARCHIVE_UNAVAILABLE");
        }
    }
    let told = lines(&path, 1).await;
    gate.set_closed(false);
    for (key, value) in [("event", "delete"), ("by", "selector")] {
        assert_eq!(told[0][key], value, "{}", told[0]);
    }
    assert_eq!(told[0]["deleted"], 1, "{}", told[0]);
    let gone = told[0]["run_ids"].as_str().unwrap().to_owned();
    assert!(ids.remove(&gone), "{gone} of {ids:?}");
    let left = ids.pop_first().unwrap();
    let missing = info(&mut caller, &gone).await.unwrap_err();
    Refused::new(&missing).is(Code::FailedPrecondition, "RUN_ELSEWHERE");
    info(&mut caller, &left).await.unwrap();
    let deleted = caller.delete_runs(deletion()).await.unwrap().into_inner();
    assert_eq!((deleted.deleted, deleted.run_ids), (1, vec![left.clone()]));
    let told = lines(&path, 2).await;
    assert_eq!(told[1]["run_ids"], left, "{}", told[1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_that_fails_halfway_tells_the_audit_what_it_has_deleted() {
    is_told_to_the_audit(Halfway::TheStoreFails).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_whose_caller_leaves_tells_the_audit_what_it_has_deleted() {
    is_told_to_the_audit(Halfway::TheCallerLeaves).await;
}

/// Deletes a run, and returns how many were deleted.
async fn deleted(runs: &mut Runs, run_id: &str) -> u64 {
    let request = DeleteRunsRequest {
        run_ids: vec![run_id.to_owned()],
        ..DeleteRunsRequest::default()
    };
    let answer = runs.delete_runs(request).await.unwrap();
    answer.into_inner().deleted
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_deletion_brings_back_nothing_that_others_have_deleted() {
    let (bucket, gate) = (SharedBucket::default(), Arc::new(Gate::default()));
    let (shared, held) = (Arc::clone(&bucket), Arc::clone(&gate));
    let is_armed = Arc::new(AtomicBool::new(false));
    let armed = Arc::clone(&is_armed);
    let server = Scripted::start(move |asked| {
        // The first replacement that is to be created comes late.
        let creates = asked.method == "PUT" && asked.header("if-none-match").is_some();
        if creates && armed.swap(false, Ordering::SeqCst) {
            held.pass();
        }
        answer(asked, &shared)
    });
    let since = now();
    let kept_for_ever = ["--set", "runs.archive_age=0s"];
    let gathering = [&kept_for_ever[..], &["--set", "runs.archive_interval=10m"]].concat();
    let first = over(&server, "first", &gathering);
    let mut ids = Vec::new();
    for text in ["x", "y", "z", "stays"] {
        ids.push(says(&first, text).await);
    }
    // All are in one segment.
    let (code, _) = tokio::task::block_in_place(|| first.end());
    assert_eq!(code, 0);
    let slow = over(&server, "slow", &kept_for_ever);
    let other = over(&server, "other", &kept_for_ever);
    let (mut slows, mut others) = (runs(&slow.addr).await, runs(&other.addr).await);
    gate.set_closed(true);
    is_armed.store(true, Ordering::SeqCst);
    let deleting = {
        let (mut slows, x) = (slows.clone(), ids[0].clone());
        tokio::spawn(async move { deleted(&mut slows, &x).await })
    };
    gate.until_somebody_waits().await;
    // The first of these creates what the slow one is about to create, and the second replaces it.
    for gone in &ids[1..3] {
        assert_eq!(deleted(&mut others, gone).await, 1);
    }
    gate.set_closed(false);
    assert_eq!(deleting.await.unwrap(), 1);
    for runs in [&mut slows, &mut others] {
        let listed = all_since(runs, since, 100).await;
        let listed: Vec<String> = listed.into_iter().map(|run| run.run_id).collect();
        assert_eq!(listed, ids[3..]);
        for gone in &ids[..3] {
            let missing = info(runs, gone).await.unwrap_err();
            Refused::new(&missing).is(Code::FailedPrecondition, "RUN_ELSEWHERE");
        }
    }
    let bucket = bucket.lock().unwrap();
    let segments = bucket.objects.iter();
    let segments = segments.filter(|(key, _)| key.ends_with(".ndjson.zst"));
    let bytes: Vec<u8> = segments.flat_map(|(_, it)| unpacked_segment(it)).collect();
    assert!(has(&bytes, &ids[3]));
    assert!(ids[..3].iter().all(|id| !has(&bytes, id)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_gather_for_as_long_as_the_operator_says_and_are_there_all_the_while() {
    let (bucket, server) = crate::archive::bucket();
    let served = over(&server, "a", &["--set", "runs.archive_interval=10m"]);
    let mut own = runs(&served.addr).await;
    let first = says(&served, "first").await;
    // Time is what this is about: after a second, it would be written by default.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let told = info(&mut own, &first).await.unwrap();
    assert_eq!(told.archive(), ArchiveState::Queued);
    let second = says(&served, "second").await;
    assert!(bucket.lock().unwrap().objects.is_empty());
    let (code, _) = tokio::task::block_in_place(|| served.end());
    assert_eq!(code, 0);
    assert_eq!(
        bucket.lock().unwrap().objects.len(),
        1,
        "one segment has both"
    );
    let other = over(&server, "b", &[]);
    let mut others = runs(&other.addr).await;
    for id in [first, second] {
        info(&mut others, &id).await.unwrap();
    }
}
