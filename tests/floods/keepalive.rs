//! Connections that greeted and then stopped, or do not read: keepalive ends them.

use crate::attacker::Attacker;
use crate::target::Target;
use crate::wire::{Frames, PREFACE, call, flag, kind, setting, stream};

/// Connections of each attack, at once.
const CONNECTIONS: usize = 10;
/// More frames than the daemon and two kernels can hold.
const FRAMES: usize = 10_000_000;
const SETTINGS: [&str; 2] = [
    "server.keepalive_interval=500ms",
    "server.keepalive_timeout=500ms",
];
const RUN: &str = "ringfence.v1.SandboxService/Run";

/// Opens connections that say `words` and then nothing; the daemon closes each, whether or not it is read.
async fn are_closed(attack: &str, words: &[u8]) {
    let target = Target::with(&SETTINGS).await;
    let mut attackers = Vec::new();
    for n in 0..CONNECTIONS {
        let mut attacker = Attacker::silent(&target.addr).await;
        assert!(attacker.write(words).await);
        if n % 2 == 0 {
            attacker.listen();
        }
        attackers.push(attacker);
    }
    target.until_alone().await;
    for mut attacker in attackers {
        attacker.listen();
        let tally = attacker.ended().await;
        assert_eq!((tally.pings, tally.ended), (1, 0), "{attack}: {tally:?}");
    }
    target.unharmed(attack).await;
}

fn greeting(more: impl FnOnce(&mut Frames)) -> Vec<u8> {
    let mut frames = Frames(PREFACE.to_vec());
    frames.settings(&[]);
    more(&mut frames);
    frames.0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_greeted_and_says_nothing_more_is_closed() {
    are_closed("silence after the greeting", &greeting(|_| {})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stops_in_its_settings_is_closed() {
    let mut frames = Frames(PREFACE.to_vec());
    frames.claiming(6, kind::SETTINGS, flag::NONE, 0, &[0; 5]);
    are_closed("half of the settings", &frames.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_stops_in_its_headers_is_closed() {
    let words = greeting(|frames| {
        frames.frame(kind::HEADERS, flag::NONE, stream(0), &call(RUN));
    });
    are_closed("headers without an end", &words).await;
}

/// Floods connections with a frame whose answers nobody reads; the daemon closes each.
async fn are_closed_unread(attack: &str, frame: fn(&mut Frames)) {
    let target = Target::with(&SETTINGS).await;
    let mut floods = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let addr = target.addr.clone();
        floods.spawn(async move {
            let settings = [(setting::INITIAL_WINDOW_SIZE, 0)];
            let mut attacker = Attacker::deaf(&addr, &settings).await;
            attacker.flood(0..FRAMES, |frames, _| frame(frames)).await
        });
    }
    let ended = tokio::time::timeout(crate::harness::PATIENCE, floods.join_all()).await;
    let ended = ended.expect("the daemon closes what nobody reads");
    assert!(ended.iter().all(|written| !written), "{attack}: {ended:?}");
    target.unharmed(attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_pings_whose_answers_nobody_reads_is_closed() {
    let ping = |frames: &mut Frames| {
        frames.ping();
    };
    are_closed_unread("pings, unread, kept alive", ping).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_settings_whose_answers_nobody_reads_is_closed() {
    let settings = |frames: &mut Frames| {
        frames.settings(&[]);
    };
    are_closed_unread("settings, unread, kept alive", settings).await;
}
