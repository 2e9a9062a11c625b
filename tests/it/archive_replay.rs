//! Replays of archived runs: what they hold for their viewers is charged, bounded, and given back.

use std::time::Instant;

use http_body_util::BodyExt;
use ringfence::api::proto::{
    ArchiveState, AttachRunRequest, GetRunRequest, RunSpec, RunStreamRequest,
};
use tonic::Code;

use crate::answers::{call, deaf, until, until_refused};
use crate::archive::{daemon, events, folder, until_archived};
use crate::guests::kit as kit_bytes;
use crate::harness::{
    Daemon, PATIENCE, Refused, SpecExt, by_digest, connect, kit, read, runs, told_id,
};
use crate::process::Served;
use crate::tenants::{Tenant, two};

const MIB: u64 = 1 << 20;
const ATTACH: &str = "RunService/AttachRun";
/// What most runs here write: less than a log keeps, in pieces of any size.
const OUTPUT: u64 = 700_000;
/// What a stream is charged before it is there.
const FRAMES: u64 = 192 << 10;

fn attach(run_id: &str) -> AttachRunRequest {
    AttachRunRequest {
        run_id: run_id.to_owned(),
        from_seq: 0,
    }
}

/// A run that writes `bytes`, which is archived by the daemon.
async fn archived(daemon: &Daemon, bytes: u64) -> String {
    let spec = kit(&["flood", &bytes.to_string()]);
    let request = RunStreamRequest { spec: Some(spec) };
    let answer = daemon.client.clone().run_stream(request).await.unwrap();
    let id = told_id(answer.metadata());
    let story = read(answer.into_inner()).await;
    assert_eq!(story.stdout.len() as u64, bytes);
    until_archived(&mut daemon.runs().await, &id, ArchiveState::Written).await;
    id
}

/// A daemon whose answers may hold so many bytes.
async fn holding(archive: &str, bytes: u64) -> Daemon {
    let set = [
        ("server.inflight_answer_bytes", bytes.to_string()),
        ("policy.max_output", "1MiB".to_owned()),
    ];
    let set = set.each_ref().map(|(key, value)| (*key, value.as_str()));
    daemon("viewed", archive, &set).await
}

#[tokio::test]
async fn a_replay_needs_exactly_the_room_that_it_says() {
    let (_folder, url) = folder();
    let set = [("runs.log_bytes", "8MiB"), ("runs.archive_queue", "64MiB")];
    let first = daemon("first", &url, &set).await;
    let id = archived(&first, 5 * MIB).await;
    let whole = events(&mut first.runs().await, &id, 0).await.unwrap();
    let too_large = async |bytes: u64| {
        let daemon = holding(&url, bytes).await;
        let refused = events(&mut daemon.runs().await, &id, 0).await;
        assert_eq!(daemon.probe.answer_bytes(), 0);
        let refused = Refused::new(&refused.unwrap_err());
        let refused = refused.is(Code::FailedPrecondition, "CAPACITY_EXCEEDED");
        let refused = refused
            .with("limit", "server.inflight_answer_bytes")
            .with("allowed", bytes);
        assert!(!refused.retry, "no waiting helps");
        for part in ["server.inflight_answer_bytes", &bytes.to_string()] {
            assert!(refused.message.contains(part), "{}", refused.message);
        }
        refused.metadata["asked"].parse::<u64>().unwrap()
    };
    let needed = too_large(4 * MIB).await;
    assert!(needed > 5 * MIB && needed < 7 * MIB, "{needed}");
    assert_eq!(too_large(needed - 1).await, needed);
    let enough = holding(&url, needed).await;
    for _ in 0..3 {
        let read = events(&mut enough.runs().await, &id, 0).await.unwrap();
        assert!(read == whole, "{} events", read.len());
        until(&enough, || enough.probe.answer_bytes() == 0).await;
    }
}

/// A run of the tenant, once the archive has it.
async fn archived_of(tenant: &Tenant) -> AttachRunRequest {
    let digest = tenant.loaded(kit_bytes()).await;
    let spec = by_digest(&digest).args(&["kit", "flood", &OUTPUT.to_string()]);
    let (id, stream) = tenant.stream(spec).await;
    read(stream).await;
    let start = Instant::now();
    let get = || GetRunRequest { run_id: id.clone() };
    while tenant.runs.clone().get_run(get()).await.is_err() {
        assert!(start.elapsed() < PATIENCE, "it is not archived");
    }
    attach(&id)
}

#[tokio::test]
async fn replays_that_nobody_takes_hold_no_more_than_a_share() {
    const SHARE: u64 = 10 * MIB / 8 * 7;
    let (_folder, url) = folder();
    let settings = [
        ("runs.archive", url.as_str()),
        ("runs.history", "0"),
        ("server.inflight_answer_bytes", "10MiB"),
        ("policy.max_output", "2MiB"),
    ];
    let (daemon, a, b, _dir) = two("", "", &settings).await;
    let (own, theirs) = (archived_of(&a).await, archived_of(&b).await);
    until(&daemon, || daemon.probe.answer_bytes() == 0).await;
    let channel = deaf(&daemon.addr, 0).await;
    let (mut unread, refused) = until_refused(&channel, ATTACH, &own).await;
    let refused = refused
        .is(Code::ResourceExhausted, "QUEUE_FULL")
        .with("limit", "server.inflight_answer_bytes")
        .with("allowed", SHARE);
    assert!(refused.retry);
    let held = daemon.probe.answer_bytes();
    let each = OUTPUT + FRAMES;
    let replays = unread.len() as u64;
    // A stream may have handed on a piece, which what it is charged before it is there pays for.
    let least = replays * (each - 70_000);
    assert!(replays >= 4 && held >= least, "{replays}: {held}");
    assert!(held <= SHARE, "{held}");
    // The other tenant has its own share of it.
    let answer = b.runs.clone().attach_run(theirs).await.unwrap();
    let story = read(answer.into_inner()).await;
    assert_eq!(story.stdout.len() as u64, OUTPUT);
    until(&daemon, || daemon.probe.answer_bytes() <= held).await;
    // A viewer that leaves makes room for another.
    for _ in 0..3 {
        drop(unread.pop());
        until(&daemon, || {
            daemon.probe.answer_bytes() <= held - (each - 70_000)
        })
        .await;
        let next = call(channel.clone(), Some("a"), ATTACH, &own).await;
        unread.push(next.unwrap());
        let refused = call(channel.clone(), Some("a"), ATTACH, &own).await;
        Refused::new(&refused.unwrap_err()).is(Code::ResourceExhausted, "QUEUE_FULL");
    }
    drop((unread, channel));
    until(&daemon, || daemon.probe.answer_bytes() == 0).await;
}

#[tokio::test]
async fn a_replay_gives_back_what_its_viewer_has_taken() {
    let (_folder, url) = folder();
    let first = daemon("first", &url, &[]).await;
    let id = archived(&first, OUTPUT).await;
    let second = daemon("second", &url, &[]).await;
    let channel = deaf(&second.addr, 65_535).await;
    let mut body = call(channel, None, ATTACH, &attach(&id)).await.unwrap();
    let held = || second.probe.answer_bytes();
    assert!(held() > FRAMES + OUTPUT - 200_000, "{}", held());
    let mut taken = 0;
    while let Some(frame) = body.frame().await {
        taken += frame
            .unwrap()
            .data_ref()
            .map_or(0, |data| data.len() as u64);
        // What has not been taken, a piece of which some was, and what is around the events.
        let most = FRAMES + OUTPUT.saturating_sub(taken) + 300_000;
        assert!(held() <= most, "{} of {taken}", held());
    }
    assert!(taken > OUTPUT);
    drop(body);
    until(&second, || held() == 0).await;
}

#[tokio::test]
async fn output_that_memory_has_dropped_is_no_way_around_the_charge() {
    let (_folder, url) = folder();
    let set = [
        ("runs.log_bytes", "1MiB"),
        ("runs.log_budget", "1MiB"),
        ("server.inflight_answer_bytes", "4MiB"),
        ("policy.max_output", "1MiB"),
    ];
    let daemon = daemon("a", &url, &set).await;
    let id = archived(&daemon, OUTPUT).await;
    archived(&daemon, OUTPUT).await;
    let channel = deaf(&daemon.addr, 0).await;
    let mut unread = Vec::new();
    let refused = loop {
        match call(channel.clone(), None, ATTACH, &attach(&id)).await {
            Ok(body) => unread.push(body),
            Err(status) => break Refused::new(&status),
        }
        assert!(unread.len() < 5, "4 MiB hold so many");
    };
    assert!(refused.is(Code::ResourceExhausted, "QUEUE_FULL").retry);
    drop((unread, channel));
    until(&daemon, || daemon.probe.answer_bytes() == 0).await;
    let story = read(daemon.attach(&id, 0).await).await;
    assert_eq!(story.stdout.len() as u64, OUTPUT);
}

/// Bytes that cannot be compressed, and are no text.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(bytes).collect()
}

fn echo(bytes: Vec<u8>) -> RunSpec {
    let spec = kit(&["echo"]).stdin(bytes);
    spec.resources(|r| r.memory_pages = Some(4096))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_takes_no_more_memory_than_it_is_charged() {
    /// The most output that is archived of a run.
    const MOST: usize = 32 << 20;
    let (_folder, url) = folder();
    let archive = format!("runs.archive={url}");
    let set = [
        "server.instance=first",
        &archive,
        "runs.log_bytes=40MiB",
        "runs.archive_queue=512MiB",
        "server.max_message=64MiB",
        "policy.max_stdin=40MiB",
    ];
    let args: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    let mut served = Served::start(&args);
    served.drain_log();
    let (mut ids, mut own) = (Vec::new(), runs(&served.addr).await);
    for output in [1 << 20, MOST] {
        let spec = Some(echo(noise(output)));
        let mut client = connect(&served.addr).await;
        let answer = client.run_stream(RunStreamRequest { spec }).await.unwrap();
        let id = told_id(answer.metadata());
        let story = read(answer.into_inner()).await;
        let exit = story.exit.as_ref().unwrap();
        assert!(story.stdout == noise(output), "{exit:?}");
        until_archived(&mut own, &id, ArchiveState::Written).await;
        ids.push(id);
    }
    let small = holding(&url, 4 * MIB).await;
    let refused = events(&mut small.runs().await, &ids[1], 0).await;
    let refused = Refused::new(&refused.unwrap_err());
    let charged = refused.metadata["asked"].parse::<u64>().unwrap() >> 10;

    let set = ["server.instance=second", &archive];
    let args: Vec<&str> = set.iter().flat_map(|set| ["--set", set]).collect();
    let mut viewed = Served::start(&args);
    viewed.drain_log();
    // What any replay needs is there before anything is measured.
    let told = events(&mut runs(&viewed.addr).await, &ids[0], 0).await;
    assert!(told.unwrap().len() > 16);
    std::fs::write(format!("/proc/{}/clear_refs", viewed.child.id()), "5").unwrap();
    let before = viewed.memory("VmRSS");
    let channel = deaf(&viewed.addr, 0).await;
    let unread = call(channel.clone(), None, ATTACH, &attach(&ids[1])).await;
    let unread = unread.unwrap();
    let peak = viewed.memory("VmHWM").saturating_sub(before);
    eprintln!("a replay that is charged {charged} KiB took {peak} KiB at the most");
    let output = MOST as u64 >> 10;
    assert!(peak > output, "{peak} KiB: it was not measured");
    assert!(peak < charged + (4 << 10), "{peak} of {charged} KiB");
    drop((unread, channel));
}
