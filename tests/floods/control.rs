//! Frames that belong to no call, in floods: read and unread.

use crate::attacker::Attacker;
use crate::target::Target;
use crate::wire::{Frames, Tally, call, code, flag, kind, message, stream};

/// Frames of each flood.
const FRAMES: usize = 1_000_000;
/// Frames of those whose answers nobody reads: more than a daemon and two kernels hold.
const UNREAD: usize = 100_000_000;
/// Connections that attack, at once where nobody reads the answers.
const DEAF: usize = 10;
/// Runs of the neighbour during which they go on.
const MEANWHILE: usize = 200;
const HEALTH: &str = "ringfence.v1.SandboxService/Health";
const UPLOAD: &str = "ringfence.v1.ModuleService/UploadModule";

/// Floods a connection with a frame, after `first`, which the daemon is to bear: it answers as `expected` says.
async fn is_borne(
    attack: &str,
    first: impl Fn(&mut Frames),
    next: impl Fn(&mut Frames),
    expected: impl Fn(&Tally) -> bool,
) {
    let target = Target::start().await;
    let mut attacker = target.attacker().await;
    assert!(attacker.send(first).await);
    assert!(attacker.flood(0..FRAMES, |frames, _| next(frames)).await);
    let tally = attacker.is_served().await;
    assert!(expected(&tally), "{attack}: {tally:?}");
    assert!(tally.resets.is_empty(), "{attack}: {tally:?}");
    drop(attacker);
    target.unharmed(attack).await;
}

/// Floods connections with a frame, after `first`, which the daemon is not to bear: it ends each for `reason`.
async fn ends(attack: &str, reason: u32, first: impl Fn(&mut Frames), next: impl Fn(&mut Frames)) {
    let target = Target::start().await;
    for _ in 0..DEAF {
        let mut attacker = target.attacker().await;
        attacker.send(&first).await;
        attacker.flood(0..FRAMES, |frames, _| next(frames)).await;
        let tally = attacker.ended().await;
        assert_eq!(tally.go_away, Some(reason), "{attack}: {tally:?}");
    }
    target.unharmed(attack).await;
}

/// Floods connections with a frame that is answered, and reads no answer, for as long as the daemon takes more.
async fn is_borne_unread(attack: &str, frame: fn(&mut Frames, usize)) {
    let target = Target::start().await;
    let mut floods = tokio::task::JoinSet::new();
    for _ in 0..DEAF {
        let addr = target.addr.clone();
        floods.spawn(async move {
            let mut attacker = Attacker::deaf(&addr, &[]).await;
            attacker.flood(0..UNREAD, frame).await
        });
    }
    target.serves(MEANWHILE).await;
    drop(floods);
    target.unharmed(attack).await;
}

fn nothing(_: &mut Frames) {}

fn open_upload(frames: &mut Frames) {
    frames.open(stream(0), &call(UPLOAD));
}

fn ping(frames: &mut Frames) {
    frames.ping();
}

fn settings(frames: &mut Frames) {
    frames.settings(&[(3, 100), (4, 1 << 16)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_is_answered() {
    let expected = |tally: &Tally| tally.pongs == FRAMES;
    is_borne("pings", nothing, ping, expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_whose_answers_nobody_reads_costs_nothing() {
    is_borne_unread("pings, unread", |frames, _| ping(frames)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_settings_is_answered() {
    // The greeting has some too.
    let expected = |tally: &Tally| tally.settings_acks == FRAMES + 1;
    is_borne("settings", nothing, settings, expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_settings_whose_answers_nobody_reads_costs_nothing() {
    is_borne_unread("settings, unread", |frames, _| settings(frames)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_calls_whose_answers_nobody_reads_costs_nothing() {
    is_borne_unread("calls, unread", |frames, n| {
        frames
            .open(stream(n), &call(HEALTH))
            .finish(stream(n), &message(b""));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_empty_data_ends_the_connection() {
    let empty = |frames: &mut Frames| {
        frames.data(stream(0), &[]);
    };
    let calm = code::ENHANCE_YOUR_CALM;
    ends("empty data", calm, open_upload, empty).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_priorities_is_borne() {
    let priority = |frames: &mut Frames| {
        frames.priority(stream(1), stream(0));
    };
    let expected = |tally: &Tally| tally.go_away.is_none();
    is_borne("priorities", nothing, priority, expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_window_updates_is_borne() {
    let update = |frames: &mut Frames| {
        frames.window_update(0, 1);
    };
    let expected = |tally: &Tally| tally.go_away.is_none();
    is_borne("window updates", nothing, update, expected).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn window_updates_past_the_largest_window_end_the_connection() {
    let update = |frames: &mut Frames| {
        frames.window_update(0, 1 << 30);
    };
    let reason = code::FLOW_CONTROL_ERROR;
    ends("a window that overflows", reason, nothing, update).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn window_updates_of_streams_that_never_were_end_the_connection() {
    let update = |frames: &mut Frames| {
        frames.window_update(stream(0), 1);
    };
    let reason = code::PROTOCOL_ERROR;
    ends("windows of no stream", reason, nothing, update).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_farewells_ends_the_connection() {
    let go_away = |frames: &mut Frames| {
        frames.go_away();
    };
    ends("farewells", code::NO_ERROR, nothing, go_away).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_frames_of_no_known_type_is_borne() {
    let unknown = |frames: &mut Frames| {
        frames.frame(kind::UNKNOWN, flag::NONE, 0, b"anything");
    };
    let expected = |tally: &Tally| tally.go_away.is_none();
    is_borne("unknown frames", nothing, unknown, expected).await;
}
