//! Callers of guests that write without end, who make next to no room for it and read nothing.

use prost::Message;
use ringfence::api::proto::RunStreamRequest;

use crate::attacker::Attacker;
use crate::harness::{by_digest, connect, load};
use crate::target::Target;
use crate::wire::{call, message, setting, stream};

const CALLS: usize = 100;
/// Each call may have one event in its connection and `runs.log_bytes` in its run's log, and nothing bounds them together:
/// 19 MiB, and what allocating them takes.
const ALLOWED_KIB: u64 = CALLS as u64 * (64 + 128) + (5 << 10);
const RUN_STREAM: &str = "ringfence.v1.SandboxService/RunStream";
/// Writes 64 KiB at a time, for ever.
const FLOOD: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_write"
    (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 64))
    (i32.store (i32.const 4) (i32.const 65536))
    (loop $more
      (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 40)))
      (br $more))))"#;
/// Little is kept for those who do not read, and not for long.
const SETTINGS: [&str; 4] = [
    "runs.stall_timeout=300ms",
    "runs.log_bytes=128KiB",
    "runs.log_budget=4MiB",
    "admission.slots=16",
];

/// A hundred streams of a guest that floods, on a connection that makes room for `window` bytes on each and is not read.
/// Returns when no such run goes on any more.
async fn flooded(target: &Target, window: u32) -> Attacker {
    let mut client = connect(&target.addr).await;
    let loaded = client.load_module(load(FLOOD)).await.unwrap();
    let digest = loaded.into_inner().module.unwrap().digest;
    let spec = Some(by_digest(&digest));
    let body = message(&RunStreamRequest { spec }.encode_to_vec());
    let block = call(RUN_STREAM);
    let settings = [(setting::INITIAL_WINDOW_SIZE, window)];
    let mut attacker = Attacker::deaf(&target.addr, &settings).await;
    attacker
        .flood(0..CALLS, |frames, n| {
            frames.open(stream(n), &block).finish(stream(n), &body);
        })
        .await;
    target.until_busy().await;
    target.until_idle().await;
    attacker
}

/// The runs end, and what they wrote is not kept.
async fn hold_no_run(attack: &str, window: u32) {
    let target = Target::with(&SETTINGS).await;
    let mut attacker = flooded(&target, window).await;
    attacker.listen();
    let tally = attacker.is_served().await;
    assert_eq!((tally.answers, tally.ended), (CALLS, 0), "{tally:?}");
    assert_eq!(tally.go_away, None, "{tally:?}");
    drop(attacker);
    target.unharmed_within(attack, ALLOWED_KIB).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_without_a_window_hold_no_run() {
    hold_no_run("no window", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_with_a_window_of_a_byte_hold_no_run() {
    hold_no_run("a window of a byte", 1).await;
}
