//! Streams that are opened, given up, or made to be reset, as fast as they can be.

use ringfence::api::proto::RunStreamRequest;

use prost::Message;

use crate::harness::spec;
use crate::target::Target;
use crate::wire::{Frames, call, code, flag, kind, message, stream};

/// Streams of each attack.
const STREAMS: usize = 100_000;
/// Connections that attack, one after the other: what one leaves behind would be there ten times.
const CONNECTIONS: usize = 10;
/// Streams that the daemon resets of its own accord before it ends a connection.
const LOCAL_RESETS: usize = 1024;
const RUN: &str = "ringfence.v1.SandboxService/Run";
const RUN_STREAM: &str = "ringfence.v1.SandboxService/RunStream";

/// Floods connections with what `make` makes for each of [`STREAMS`] streams until the daemon has ended them, for
/// `reason`.
async fn ends(attack: &str, reason: u32, make: impl Fn(&mut Frames, u32, &[u8])) {
    let target = Target::start().await;
    flood(attack, &target, &[reason], &make).await;
    target.unharmed(attack).await;
}

async fn flood(
    attack: &str,
    target: &Target,
    reasons: &[u32],
    make: &impl Fn(&mut Frames, u32, &[u8]),
) {
    let block = call(RUN);
    for _ in 0..CONNECTIONS {
        let mut attacker = target.attacker().await;
        attacker
            .flood(0..STREAMS, |frames, n| make(frames, stream(n), &block))
            .await;
        let tally = attacker.ended().await;
        let reason = tally.go_away.is_some_and(|it| reasons.contains(&it));
        assert!(reason, "{attack}: {tally:?}");
    }
}

/// As [`ends`], and the daemon resets each stream with `reset`, as often as it does that, before it asks for calm.
async fn calms(attack: &str, reset: u32, make: impl Fn(&mut Frames, u32, &[u8])) {
    let target = Target::start().await;
    let block = call(RUN);
    let mut attacker = target.attacker().await;
    for n in 0..=LOCAL_RESETS {
        attacker
            .send(|frames| make(frames, stream(n), &block))
            .await;
        let told = attacker
            .until(|tally| tally.resets.get(&reset) == Some(&(n + 1)) || tally.go_away.is_some())
            .await;
        let expected = (n == LOCAL_RESETS).then_some(code::ENHANCE_YOUR_CALM);
        assert_eq!(told.go_away, expected, "{attack}, {n}: {told:?}");
    }
    attacker.ended().await;
    // At full speed more streams may be open than a connection may have, and what comes on one of
    // those is a fault of the connection.
    let reasons = [code::ENHANCE_YOUR_CALM, code::PROTOCOL_ERROR];
    flood(attack, &target, &reasons, &make).await;
    target.unharmed(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_never_finished_end_the_connection() {
    let target = Target::start().await;
    let block = call(RUN);
    for _ in 0..CONNECTIONS {
        let mut attacker = target.attacker().await;
        attacker
            .flood(0..STREAMS, |frames, n| {
                frames.open(stream(n), &block);
            })
            .await;
        let tally = attacker.ended().await;
        // A hundred were open: those after them are refused.
        let refused = tally.resets.get(&code::REFUSED_STREAM);
        assert_eq!(refused, Some(&LOCAL_RESETS), "{tally:?}");
        let calm = Some(code::ENHANCE_YOUR_CALM);
        assert_eq!(tally.go_away, calm, "{tally:?}");
    }
    target.unharmed("open streams").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rapid_reset_ends_the_connection() {
    let make = |frames: &mut Frames, stream, block: &[u8]| {
        frames.open(stream, block).reset(stream);
    };
    ends("rapid reset", code::ENHANCE_YOUR_CALM, make).await;
}

/// Each run has begun when it is given up: no limit of HTTP/2 counts that.
#[tokio::test(flavor = "multi_thread")]
async fn resets_of_runs_that_have_begun_leave_nothing_behind() {
    const AT_ONCE: usize = 10;
    const WAVES: usize = 200;
    let target = Target::start().await;
    let block = call(RUN_STREAM);
    let spec = Some(spec(
        "(module (func (export \"_start\") (loop $on (br $on))))",
    ));
    let body = message(&RunStreamRequest { spec }.encode_to_vec());
    let mut attacker = target.attacker().await;
    for wave in 0..WAVES {
        let streams = wave * AT_ONCE..(wave + 1) * AT_ONCE;
        attacker
            .flood(streams.clone(), |frames, n| {
                frames.open(stream(n), &block).finish(stream(n), &body);
            })
            .await;
        attacker.until(|tally| tally.answers == streams.end).await;
        attacker
            .flood(streams, |frames, n| {
                frames.reset(stream(n));
            })
            .await;
    }
    let tally = attacker.is_served().await;
    assert_eq!((tally.ended, tally.go_away), (0, None), "{tally:?}");
    target.until_idle().await;
    drop(attacker);
    target.unharmed("runs that are given up").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn being_made_to_reset_by_windows_that_overflow_ends_the_connection() {
    let make = |frames: &mut Frames, stream, block: &[u8]| {
        frames
            .open(stream, block)
            .window_update(stream, i32::MAX.unsigned_abs());
    };
    calms("reset by overflow", code::FLOW_CONTROL_ERROR, make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn being_made_to_reset_by_empty_window_updates_ends_the_connection() {
    let make = |frames: &mut Frames, stream, block: &[u8]| {
        frames.open(stream, block).window_update(stream, 0);
    };
    ends("reset by empty window updates", code::PROTOCOL_ERROR, make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn being_made_to_reset_by_data_after_the_end_ends_the_connection() {
    let make = |frames: &mut Frames, stream, block: &[u8]| {
        frames
            .open(stream, block)
            .finish(stream, &message(b""))
            .data(stream, b"more");
    };
    ends("reset by data after the end", code::PROTOCOL_ERROR, make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn being_made_to_reset_by_headers_that_do_not_end_ends_the_connection() {
    let make = |frames: &mut Frames, stream, block: &[u8]| {
        frames.open(stream, block).open(stream, &[]);
    };
    calms(
        "reset by trailers without an end",
        code::PROTOCOL_ERROR,
        make,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn being_made_to_reset_by_more_than_was_announced_ends_the_connection() {
    let announced = crate::wire::block(&[("content-length", "1")]);
    let make = |frames: &mut Frames, stream, block: &[u8]| {
        let block = [block, &announced].concat();
        frames.open(stream, &block).data(stream, b"more");
    };
    calms(
        "reset by a length that is wrong",
        code::PROTOCOL_ERROR,
        make,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn being_made_to_reset_by_streams_that_depend_on_themselves_ends_the_connection() {
    let make = |frames: &mut Frames, stream, _: &[u8]| {
        frames.priority(stream, stream);
    };
    calms("reset by self-dependency", code::PROTOCOL_ERROR, make).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn being_made_to_reset_by_headers_that_contradict_themselves_ends_the_connection() {
    let connection = crate::wire::block(&[("connection", "close")]);
    let make = |frames: &mut Frames, stream, block: &[u8]| {
        let block = [block, &connection].concat();
        let flags = flag::END_HEADERS | flag::END_STREAM;
        frames.frame(kind::HEADERS, flags, stream, &block);
    };
    calms("reset by malformed headers", code::PROTOCOL_ERROR, make).await;
}
