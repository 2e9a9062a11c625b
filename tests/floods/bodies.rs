//! Bodies that claim too much, say nothing, or say it in crumbs.

use crate::target::Target;
use crate::wire::{Frames, call, code, flag, kind, message, prefix, stream};

const METHODS: [&str; 5] = [
    "ringfence.v1.SandboxService/Run",
    "ringfence.v1.SandboxService/LoadModule",
    "ringfence.v1.ModuleService/UploadModule",
    "ringfence.v1.RunService/Interact",
    "grpc.health.v1.Health/Check",
];
/// Bytes that the daemon takes of a stream before it makes more room.
const WINDOW: usize = 65_535;

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_claim_four_gigabytes_are_refused() {
    const AT_ONCE: usize = 40;
    const WAVES: usize = 50;
    let target = Target::start().await;
    for method in METHODS {
        let block = call(method);
        let mut attacker = target.attacker().await;
        for wave in 0..WAVES {
            let streams = wave * AT_ONCE..(wave + 1) * AT_ONCE;
            let refused = streams.end;
            attacker
                .flood(streams, |frames, n| {
                    let stream = stream(n);
                    frames.open(stream, &block).data(stream, &prefix(u32::MAX));
                })
                .await;
            attacker.until(|tally| tally.ended == refused).await;
        }
        let tally = attacker.is_served().await;
        assert_eq!(tally.answers, AT_ONCE * WAVES, "{method}: {tally:?}");
        assert_eq!(tally.go_away, None, "{method}: {tally:?}");
    }
    target.unharmed("claims of 4 GiB").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_million_empty_messages_are_answered_at_most_once() {
    const MESSAGES: usize = 1_000_000;
    let empty = message(b"");
    let piece = empty.repeat(WINDOW / empty.len());
    // One stream takes as much as its first window; nothing is given back until it is read.
    let streams = (MESSAGES * empty.len()).div_ceil(piece.len());
    let target = Target::start().await;
    for method in METHODS {
        let block = call(method);
        let mut attacker = target.attacker().await;
        for n in 0..streams {
            attacker
                .send(|frames| empty_messages(frames, stream(n), &block, &piece))
                .await;
            attacker
                .until(|tally| tally.ended + reset_by_daemon(&tally.resets) > n)
                .await;
        }
        let tally = attacker.is_served().await;
        assert!(tally.answers <= streams, "{method}: {tally:?}");
        assert_eq!(tally.go_away, None, "{method}: {tally:?}");
    }
    target.unharmed("a million empty messages").await;
}

fn reset_by_daemon(resets: &std::collections::BTreeMap<u32, usize>) -> usize {
    let hurt = resets.iter().filter(|(code, _)| **code != code::NO_ERROR);
    hurt.map(|(_, count)| count).sum()
}

fn empty_messages(frames: &mut Frames, stream: u32, block: &[u8], piece: &[u8]) {
    frames.open(stream, block);
    let mut pieces = piece.chunks(crate::wire::MAX_PAYLOAD).peekable();
    while let Some(data) = pieces.next() {
        let last = pieces.peek().is_none();
        let flags = if last { flag::END_STREAM } else { flag::NONE };
        frames.frame(kind::DATA, flags, stream, data);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_in_crumbs_are_answered_or_end_the_connection() {
    const STREAMS: usize = 10;
    let target = Target::start().await;
    for method in METHODS {
        let block = call(method);
        let mut attacker = target.attacker().await;
        for n in 0..STREAMS {
            let stream = stream(n);
            attacker
                .send(|frames| {
                    frames.open(stream, &block).data(stream, &prefix(60_000));
                })
                .await;
            attacker
                .flood(0..60_000, |frames, _| {
                    frames.data(stream, b"x");
                })
                .await;
            attacker
                .send(|frames| {
                    frames.finish(stream, &[]);
                })
                .await;
            let told = attacker
                .until(|tally| tally.ended > n || tally.go_away.is_some())
                .await;
            if let Some(reason) = told.go_away {
                assert_eq!(reason, code::ENHANCE_YOUR_CALM, "{method}");
                break;
            }
        }
    }
    target.unharmed("bodies in crumbs").await;
}
