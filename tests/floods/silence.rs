//! Connections that speak another language, or say too little, or stop.

use std::time::Duration;

use crate::attacker::Attacker;
use crate::target::Target;
use crate::wire::{PREFACE, Tally, call, message, prefix, stream};

/// Connections of each attack, at once.
const CONNECTIONS: usize = 50;
/// Between two bytes of one who is slow: it is not waited for anything by it.
const PACE: Duration = Duration::from_millis(10);
const RUN: &str = "ringfence.v1.SandboxService/Run";

/// Opens connections that say `words` and then nothing; the daemon closes each.
async fn are_closed(attack: &str, words: &[u8]) {
    let target = Target::start().await;
    let mut attackers = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut attacker = Attacker::silent(&target.addr).await;
        attacker.write(words).await;
        attacker.listen();
        attackers.push(attacker);
    }
    for mut attacker in attackers {
        let tally = attacker.ended().await;
        assert_eq!((tally.answers, tally.ended), (0, 0), "{attack}: {tally:?}");
    }
    target.unharmed(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_says_nothing_is_closed() {
    are_closed("silence", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stops_in_the_preface_is_closed() {
    are_closed("half a preface", &PREFACE[..PREFACE.len() - 1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stops_after_the_preface_is_closed() {
    are_closed("a preface alone", PREFACE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_another_version_of_http_is_closed() {
    let request = b"GET / HTTP/1.1\r\nhost: localhost\r\nconnection: keep-alive\r\n\r\n";
    are_closed("HTTP/1.1", request).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_begins_with_tls_is_closed() {
    // The record and the handshake of a hello of 512 bytes, and its version.
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.resize(5 + 512, 0x5a);
    are_closed("TLS", &hello).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_of_any_bytes_is_closed() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let any: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    })
    .take(100_000)
    .collect();
    are_closed("any bytes", &any).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_greets_a_byte_at_a_time_is_closed() {
    let target = Target::start().await;
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let addr = target.addr.clone();
        slow.spawn(async move {
            let mut attacker = Attacker::silent(&addr).await;
            attacker.listen();
            let mut pace = tokio::time::interval(PACE);
            // All but the last byte: it never is a greeting.
            for byte in &PREFACE[..PREFACE.len() - 1] {
                pace.tick().await;
                if !attacker.write(&[*byte]).await {
                    break;
                }
            }
            attacker.ended().await
        });
    }
    for tally in slow.join_all().await {
        assert_eq!(tally.go_away, None, "{tally:?}");
    }
    target.unharmed("a greeting by the byte").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_connections_than_there_may_be_are_closed_and_make_room_again() {
    const ATTACKERS: usize = 500;
    let target = Target::with(&["server.max_connections=50"]).await;
    let mut attackers = Vec::new();
    for _ in 0..ATTACKERS {
        let mut attacker = Attacker::silent(&target.addr).await;
        attacker.listen();
        attackers.push(attacker);
    }
    for mut attacker in attackers {
        attacker.ended().await;
    }
    target.unharmed("too many connections").await;
}

/// Connections that have greeted, and never call, take all places, twice over, and somebody new is served at once: before
/// they made way, he never was.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_never_call_keep_nobody_out() {
    const PLACES: usize = 512;
    const NEWCOMERS: usize = 50;
    let places = format!("server.max_connections={PLACES}");
    let per_peer = format!("server.max_connections_per_peer={PLACES}");
    let target = Target::with(&[&places, &per_peer]).await;
    let alone = first_calls(&target, NEWCOMERS).await;
    let mut attackers = Vec::new();
    for _ in 0..2 * PLACES {
        attackers.push(target.attacker().await);
    }
    // The last of them have places, and keep them for as long as nobody comes.
    for attacker in attackers.iter_mut().rev().take(PLACES / 2) {
        attacker.is_served().await;
    }
    let attacked = first_calls(&target, NEWCOMERS).await;
    eprintln!(
        "first call of a newcomer: median {:?}, longest {:?}; with all places taken {:?}, {:?}",
        alone[NEWCOMERS / 2],
        alone[NEWCOMERS - 1],
        attacked[NEWCOMERS / 2],
        attacked[NEWCOMERS - 1]
    );
    drop(attackers);
    target.unharmed("connections that never call").await;
}

/// How long each of so many newcomers takes, one after the other; the longest is the last.
async fn first_calls(target: &Target, newcomers: usize) -> Vec<Duration> {
    let mut took = Vec::new();
    for _ in 0..newcomers {
        took.push(target.first_call().await);
    }
    took.sort();
    took
}

/// Opens a hundred calls, says `begin` on each, and ends none; the daemon answers them all.
async fn are_answered(attack: &str, begin: &[u8]) {
    const CALLS: usize = 100;
    let target = Target::start().await;
    let block = call(RUN);
    let mut attacker = target.attacker().await;
    attacker
        .flood(0..CALLS, |frames, n| {
            frames.open(stream(n), &block);
            if !begin.is_empty() {
                frames.data(stream(n), begin);
            }
        })
        .await;
    let told = |tally: &Tally| tally.ended == CALLS;
    let tally = attacker.until(told).await;
    assert_eq!(tally.answers, CALLS, "{attack}: {tally:?}");
    attacker.is_served().await;
    drop(attacker);
    target.unharmed(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_never_comes_is_answered() {
    are_answered("no body", &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_in_its_prefix_is_answered() {
    are_answered("half a prefix", &prefix(100)[..3]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stops_in_its_message_is_answered() {
    are_answered("half a message", &message(&[b'x'; 1000])[..500]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_come_a_byte_at_a_time_are_answered_when_they_are_there() {
    const CALLS: usize = 100;
    let target = Target::start().await;
    let block = call(RUN);
    let body = message(&[b'x'; 200]);
    let mut attacker = target.attacker().await;
    attacker
        .flood(0..CALLS, |frames, n| {
            frames.open(stream(n), &block);
        })
        .await;
    let mut pace = tokio::time::interval(PACE);
    for byte in &body {
        pace.tick().await;
        attacker
            .flood(0..CALLS, |frames, n| {
                frames.data(stream(n), &[*byte]);
            })
            .await;
    }
    attacker
        .flood(0..CALLS, |frames, n| {
            frames.finish(stream(n), &[]);
        })
        .await;
    let tally = attacker.until(|tally| tally.ended == CALLS).await;
    assert_eq!(tally.answers, CALLS, "{tally:?}");
    drop(attacker);
    target.unharmed("bodies by the byte").await;
}
