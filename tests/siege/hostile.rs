//! Guests that are well behaved, that never end, that end badly, and modules that are made to be slow to compile.

use bytes::Bytes;
use ringfence::api::proto::{OutputPolicy, RunSpec};

use crate::bombs::{binary, loops};
use crate::daemon::loaded;
use crate::harness::{Client, SpecExt, by_digest};

/// What every guest below can call; a page of memory; the line "before" at 16, "after" at 24.
pub(crate) fn guest(pages: u32, functions: &str) -> String {
    format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") {pages})
        (data (i32.const 0) "\10\00\00\00\07\00\00\00\18\00\00\00\06\00\00\00before\n\00after\n")
        (func $say (param i32) (drop (call $write (i32.const 1) (local.get 0) (i32.const 1) (i32.const 60))))
        (func $sleep (i64.store (i32.const 88) (i64.const 3600000000000))
          (drop (call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 60))))
        {functions})"#
    )
}

/// A guest that does `body` over and over, and never ends.
fn endless(pages: u32, body: &str) -> String {
    let start = format!(r#"(func (export "_start") (loop $again {body} (br $again)))"#);
    guest(pages, &start)
}

/// What `hello` and every guest that says "before" write first.
pub(crate) const BEFORE: &str = "before\n";

/// Says "before" and exits.
pub(crate) fn hello() -> String {
    guest(1, r#"(func (export "_start") (call $say (i32.const 0)))"#)
}

/// Says "before", waits for its input's end, says "after".
pub(crate) fn waits() -> String {
    let body = "(call $say (i32.const 0))
        (i32.store (i32.const 64) (i32.const 128)) (i32.store (i32.const 68) (i32.const 64))
        (drop (call $read (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 60)))
        (call $say (i32.const 8))";
    guest(1, &format!(r#"(func (export "_start") {body})"#))
}

/// Says "before" and spins, sleeps, or floods its output.
pub(crate) fn lingering() -> [String; 3] {
    let line =
        "(i32.store (i32.const 64) (i32.const 128)) (i32.store (i32.const 68) (i32.const 4096))
        (drop (call $write (i32.const 1) (i32.const 64) (i32.const 1) (i32.const 60)))";
    ["", "(call $sleep)", line].map(|body| {
        let start = format!(
            r#"(func (export "_start") (call $say (i32.const 0)) (loop $again {body} (br $again)))"#
        );
        guest(1, &start)
    })
}

/// Counts to its argument.
pub(crate) fn work() -> String {
    guest(
        1,
        r#"(func (export "work") (param i64)
          (loop $again
            (local.set 0 (i64.sub (local.get 0) (i64.const 1)))
            (br_if $again (i64.gt_s (local.get 0) (i64.const 0)))))"#,
    )
}

pub(crate) fn spins() -> String {
    endless(1, "")
}

/// Fills `pages` of 64 KiB, one bulk operation each time.
pub(crate) fn fills(pages: u32) -> String {
    let bytes = u64::from(pages) << 16;
    endless(
        pages,
        &format!("(memory.fill (i32.const 0) (i32.const 7) (i32.const {bytes}))"),
    )
}

/// Reads as much randomness as a call gives.
pub(crate) fn draws() -> String {
    endless(2, "(drop (call $random (i32.const 0) (i32.const 65536)))")
}

/// A hostile guest that is loaded.
#[derive(Clone)]
pub(crate) struct Hostile {
    pub name: &'static str,
    pub spec: RunSpec,
    /// How it ends where its time is not over before.
    pub ends: &'static str,
}

/// A run of a hostile guest, which may write as much as it likes.
pub(crate) fn hostile_run(digest: &str) -> RunSpec {
    by_digest(digest).resources(|asked| asked.set_output_policy(OutputPolicy::Truncate))
}

/// Guests that end only when they are ended; the greedy ones of `pages` of memory.
pub(crate) fn never_ending(pages: u32) -> [(&'static str, String); 8] {
    let half = u64::from(pages / 2) << 16;
    let copy = format!("(memory.copy (i32.const 0) (i32.const {half}) (i32.const {half}))");
    let clock = "(drop (call $clock (i32.const 0) (i64.const 1) (i32.const 64)))";
    let start = r#"(func $spin (loop $again (br $again))) (start $spin) (func (export "_start"))"#;
    let [_, _, floods] = lingering();
    [
        ("spin", spins()),
        ("fill", fills(pages)),
        ("copy", endless(pages, &copy)),
        ("random", draws()),
        ("clock", endless(1, clock)),
        ("sleep", endless(1, "(call $sleep)")),
        ("flood", floods),
        ("start", guest(1, start)),
    ]
}

/// The same, loaded.
pub(crate) async fn that_never_end(client: &mut Client, pages: u32) -> Vec<Hostile> {
    let mut hostile = Vec::new();
    for (name, wat) in never_ending(pages) {
        let spec = hostile_run(&loaded(client, &wat).await);
        hostile.push(Hostile {
            name,
            spec,
            ends: "TIMED_OUT",
        });
    }
    hostile
}

/// Guests that go over a limit, or trap.
pub(crate) async fn that_end_badly(client: &mut Client) -> Vec<Hostile> {
    let grows = "(loop $again (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) unreachable";
    let mut hostile = Vec::new();
    for (name, body, ends) in [
        ("trap", "unreachable", "TRAPPED"),
        ("overflow", "(call $start)", "STACK_OVERFLOW"),
        ("hog", grows, "MEMORY_EXCEEDED"),
    ] {
        let wat = guest(1, &format!(r#"(func $start (export "_start") {body})"#));
        let spec = hostile_run(&loaded(client, &wat).await);
        hostile.push(Hostile { name, spec, ends });
    }
    hostile
}

/// A module that takes the compiler longer than it may: every loop's head has to carry every local. Each `seed` makes
/// another.
pub(crate) fn bomb(seed: usize) -> Bytes {
    let function = loops();
    binary(&format!(
        "(module (global i32 (i32.const {seed})) {function})"
    ))
}
