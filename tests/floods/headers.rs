//! Headers that never end, are huge, many, or grow as they are read.

use crate::attacker::Attacker;
use crate::target::Target;
use crate::wire::{
    Frames, LAST_REMEMBERED, MAX_PAYLOAD, block, call, code, flag, kind, length, remembered, stream,
};

/// Connections that attack, one after the other.
const CONNECTIONS: usize = 20;
/// Frames of each flood.
const FRAMES: usize = 100_000;
const HEALTH: &str = "ringfence.v1.SandboxService/Health";

/// Sends `first`, and `next` over and over, until the daemon has ended the connection for `reason`.
async fn ends(attack: &str, reason: u32, first: impl Fn(&mut Frames), next: impl Fn(&mut Frames)) {
    let target = Target::start().await;
    for _ in 0..CONNECTIONS {
        let mut attacker = target.attacker().await;
        attacker.send(&first).await;
        attacker.flood(0..FRAMES, |frames, _| next(frames)).await;
        let tally = attacker.ended().await;
        assert_eq!(tally.go_away, Some(reason), "{attack}: {tally:?}");
        assert_eq!(tally.answers, 0, "{attack}: {tally:?}");
    }
    target.unharmed(attack).await;
}

fn nothing(_: &mut Frames) {}

/// Headers of a call that go on.
fn unfinished(frames: &mut Frames, block: &[u8]) {
    frames.frame(kind::HEADERS, flag::NONE, stream(0), block);
}

fn continued(frames: &mut Frames, block: &[u8]) {
    frames.frame(kind::CONTINUATION, flag::NONE, stream(0), block);
}

#[tokio::test(flavor = "multi_thread")]
async fn empty_continuations_end_the_connection() {
    let first = |frames: &mut Frames| unfinished(frames, &call(HEALTH));
    let next = |frames: &mut Frames| continued(frames, &[]);
    let calm = code::ENHANCE_YOUR_CALM;
    ends("empty continuations", calm, first, next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn continuations_with_fields_end_the_connection() {
    let field = block(&[("x", "y")]);
    let first = |frames: &mut Frames| unfinished(frames, &call(HEALTH));
    let next = |frames: &mut Frames| continued(frames, &field);
    let calm = code::ENHANCE_YOUR_CALM;
    ends("continuations with fields", calm, first, next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_endless_header_ends_the_connection() {
    let first = |frames: &mut Frames| {
        let mut block = call(HEALTH);
        block.extend_from_slice(&[0, 1, b'x']);
        length(&mut block, 1 << 20);
        unfinished(frames, &block);
    };
    let piece = vec![b'y'; MAX_PAYLOAD];
    let next = |frames: &mut Frames| continued(frames, &piece);
    let calm = code::ENHANCE_YOUR_CALM;
    ends("one endless header", calm, first, next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_of_sixteen_megabytes_ends_the_connection() {
    let first = |frames: &mut Frames| {
        frames.claiming(0xff_ffff, kind::HEADERS, flag::NONE, stream(0), &[]);
    };
    let next = |frames: &mut Frames| frames.0.extend_from_slice(&[0; 1024]);
    let reason = code::FRAME_SIZE_ERROR;
    ends("a huge frame", reason, first, next).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_small_headers_end_the_connection() {
    let first = |frames: &mut Frames| {
        let fields = block(&[("x", "")]).repeat(4000);
        frames.open(stream(0), &[call(HEALTH), fields].concat());
    };
    let calm = code::ENHANCE_YOUR_CALM;
    ends("thousands of headers", calm, first, nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn small_references_to_a_large_header_end_the_connection() {
    let first = |frames: &mut Frames| {
        let mut block = call(HEALTH);
        remembered(&mut block, b"x", &[b'y'; 3000]);
        block.resize(MAX_PAYLOAD, LAST_REMEMBERED);
        frames.open(stream(0), &block);
    };
    let calm = code::ENHANCE_YOUR_CALM;
    ends("a header bomb", calm, first, nothing).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_header_lists_that_are_too_large_ends_the_connection() {
    let target = Target::start().await;
    for _ in 0..CONNECTIONS {
        let mut attacker = target.attacker().await;
        let oversize = remember(&mut attacker).await;
        attacker
            .flood(1..FRAMES, |frames, n| {
                frames.open(stream(n), &oversize);
            })
            .await;
        let tally = attacker.ended().await;
        let calm = Some(code::ENHANCE_YOUR_CALM);
        assert_eq!(tally.go_away, calm, "{tally:?}");
    }
    target.unharmed("oversize headers, flooded").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_header_list_that_is_too_large_is_refused_by_itself() {
    const AT_ONCE: usize = 40;
    const WAVES: usize = 500;
    let target = Target::start().await;
    let mut attacker = target.attacker().await;
    let oversize = remember(&mut attacker).await;
    for wave in 0..WAVES {
        let streams = 1 + wave * AT_ONCE..1 + (wave + 1) * AT_ONCE;
        let ended = 1 + (wave + 1) * AT_ONCE;
        attacker
            .flood(streams, |frames, n| {
                frames.open(stream(n), &oversize);
            })
            .await;
        attacker.until(|tally| tally.ended == ended).await;
    }
    let tally = attacker.is_served().await;
    // The first was none of them.
    assert_eq!(tally.answers, 1, "{tally:?}");
    assert_eq!(tally.go_away, None, "{tally:?}");
    drop(attacker);
    target.unharmed("oversize headers, paced").await;
}

/// Makes the daemon remember a large header, and returns headers of a call that are too large by it, but not by far.
async fn remember(attacker: &mut Attacker) -> Vec<u8> {
    let mut first = call(HEALTH);
    remembered(&mut first, b"x", &[b'y'; 3000]);
    attacker
        .send(|frames| {
            frames.frame(
                kind::HEADERS,
                flag::END_HEADERS | flag::END_STREAM,
                stream(0),
                &first,
            );
        })
        .await;
    attacker.until(|tally| tally.ended == 1).await;
    [call(HEALTH), vec![LAST_REMEMBERED; 12]].concat()
}
