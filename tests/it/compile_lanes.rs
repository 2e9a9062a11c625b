//! Small modules have a compiler of their own: they do not wait for what takes long, whoever sent it.

use std::fmt::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfence::api::proto::{HealthRequest, LoadModuleResponse};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::compile::children;
use crate::harness::{
    Client, Daemon, Refused, SpecExt, by_digest, connect, load, spec, until_health,
};
use crate::process::Served;
use crate::tenants::two;

/// What the bombs below go over; several times what a small module may take.
const BUDGET: Duration = Duration::from_secs(8);
const WITHIN_BUDGET: (&str, &str) = ("compile.timeout", "8s");

fn binary(text: &str) -> Bytes {
    wat::parse_str(text).unwrap().into()
}

/// A module of some 40 bytes; each `seed` makes another.
fn tiny_text(seed: u32) -> String {
    format!("(module (func (export \"_start\")) (global i32 (i32.const {seed})))")
}

pub(crate) fn tiny(seed: u32) -> Bytes {
    binary(&tiny_text(seed))
}

/// Loops inside each other, every one of which has to carry every local: a few kilobytes that no compiler gets done.
pub(crate) fn nested_loops(seed: u32, locals: usize, depth: usize) -> String {
    let mut body = "(loop ".repeat(depth);
    for i in 0..locals {
        let from = (i * 7 + 1) % locals;
        write!(
            body,
            "(local.set {i} (i32.add (local.get {i}) (local.get {from})))"
        )
        .unwrap();
    }
    for i in 0..depth {
        write!(body, "(br_if 0 (local.get {})))", i % locals).unwrap();
    }
    let locals = "i32 ".repeat(locals);
    format!("(module (global i32 (i32.const {seed})) (func (local {locals}) {body}))")
}

pub(crate) fn bomb(seed: u32) -> Bytes {
    binary(&nested_loops(seed, 1000, 300))
}

type Load = JoinHandle<Result<LoadModuleResponse, Status>>;

/// Begins to load a module.
fn begin(client: &Client, wasm: Bytes) -> Load {
    let mut client = client.clone();
    tokio::spawn(async move { Ok(client.load_module(load(wasm)).await?.into_inner()) })
}

/// Waits until so many modules are compiled.
pub(crate) async fn until_compiling(client: &Client, count: u32) {
    until_health(client, |health| health.compiles_in_flight >= count).await;
}

/// It went over the budget of the large lane.
async fn exploded(bomb: Load) {
    let status = bomb.await.unwrap().unwrap_err();
    Refused::new(&status)
        .is(Code::FailedPrecondition, "COMPILE_LIMIT_EXCEEDED")
        .with("limit", "compile.timeout")
        .with("allowed", "8s");
}

/// What was done since `start` took much less than the bomb has, which goes on.
#[track_caller]
fn meanwhile(bomb: &Load, what: &str, start: Instant) {
    let took = start.elapsed();
    eprintln!("{what}: {} ms", took.as_millis());
    assert!(!bomb.is_finished(), "{what} waited for the bomb");
    assert!(took < BUDGET / 2, "{what} took {took:?}");
}

#[tokio::test]
async fn small_modules_are_loaded_and_run_while_a_bomb_of_the_same_tenant_is_compiled() {
    let daemon = Daemon::with(&[WITHIN_BUDGET]).await;
    let digest = daemon.loaded(tiny(0)).await;
    let bomb = begin(&daemon.client, bomb(0));
    until_compiling(&daemon.client, 1).await;

    let start = Instant::now();
    daemon.loaded(tiny(1)).await;
    meanwhile(&bomb, "loading 40 bytes", start);

    let start = Instant::now();
    daemon.ran(spec(tiny(2))).await.exited(0);
    meanwhile(&bomb, "running 40 bytes", start);

    let start = Instant::now();
    daemon.loaded(tiny_text(3)).await;
    meanwhile(&bomb, "loading text", start);

    let start = Instant::now();
    daemon.ran(spec(tiny_text(4))).await.exited(0);
    meanwhile(&bomb, "running text", start);

    // Kept already, and not compiled in this way: its bytes come from the store.
    let metered = by_digest(&digest).resources(|asked| asked.fuel_limit = Some(1000));
    let start = Instant::now();
    daemon.ran(metered).await.exited(0);
    meanwhile(&bomb, "running a stored one metered", start);
    exploded(bomb).await;
}

#[tokio::test]
async fn small_modules_of_another_tenant_do_not_wait_either() {
    let (daemon, a, b, _dir) = two("", "", &[WITHIN_BUDGET]).await;
    let mut sandbox = a.sandbox.clone();
    let bomb: Load = tokio::spawn(async move {
        let answer = sandbox.load_module(load(bomb(0))).await?;
        Ok(answer.into_inner())
    });
    until_compiling(&daemon.client, 1).await;
    for (name, tenant) in [("a", &a), ("b", &b)] {
        let start = Instant::now();
        tenant.ran(spec(tiny(1))).await.exited(0);
        meanwhile(&bomb, name, start);
        // Of the tenant's own: code is had in common.
        let start = Instant::now();
        tenant.loaded(format!("(module (; {name} ;))")).await;
        meanwhile(&bomb, name, start);
    }
    exploded(bomb).await;
}

/// A function with so many statements, which takes some kilobytes of memory for each.
fn long_function(statements: u32) -> Bytes {
    let mut body = String::new();
    for i in 0..statements {
        let (to, a, b) = (1 + i % 4, 1 + (i * 3) % 4, (i * 5) % 5);
        write!(
            body,
            "(local.set {to} (i32.mul (i32.add (local.get {a}) (i32.const {i})) (i32.load (local.get {b}))))"
        )
        .unwrap();
    }
    binary(&format!(
        "(module (memory 1) (func (export \"_start\")) (func (param i32) (local i32 i32 i32 i32) {body}))"
    ))
}

#[tokio::test]
async fn bombs_whose_text_looks_small_hold_a_small_module_up_for_a_moment_only() {
    let daemon = Daemon::with(&[WITHIN_BUDGET]).await;
    let bombs: Vec<Load> = (0..16)
        .map(|seed| begin(&daemon.client, nested_loops(seed, 1000, 300).into()))
        .collect();
    until_compiling(&daemon.client, 1).await;
    for seed in 0..4 {
        let start = Instant::now();
        daemon.ran(spec(tiny(seed))).await.exited(0);
        let took = start.elapsed();
        eprintln!("beside 16 bombs in text: {} ms", took.as_millis());
        assert!(took < BUDGET / 2, "{took:?}");
    }
    let waiting = bombs.iter().filter(|bomb| !bomb.is_finished()).count();
    assert!(waiting >= 14, "{waiting} bombs are left");
    for bomb in bombs {
        bomb.abort();
    }
}

#[tokio::test]
async fn what_outgrows_the_small_lane_is_compiled_in_the_large_one() {
    // By its size and what it is estimated to cost it is a small one; its compiler needs more memory than there is.
    let daemon = Daemon::with(&[
        ("compile.small_module", "4MiB"),
        ("compile.small_timeout", "10s"),
        ("compile.small_memory", "64MiB"),
    ])
    .await;
    let module = long_function(150_000);
    let before = daemon.probe.compilations();
    daemon.loaded(module.clone()).await;
    assert_eq!(daemon.probe.compilations() - before, 2, "begun twice");
    daemon.ran(spec(module.clone())).await.exited(0);
    // Metered code is another artefact: this time it is known where it belongs.
    let before = daemon.probe.compilations();
    let metered = spec(module).resources(|asked| asked.fuel_limit = Some(1000));
    daemon.ran(metered).await.exited(0);
    assert_eq!(daemon.probe.compilations() - before, 1, "begun once");
}

/// The child that waits for a small module, which is the one at nice 10, once it has made itself ready.
async fn small_child(served: &Served) -> String {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    loop {
        for child in children(served) {
            let stat = read(format!("/proc/{child}/stat"));
            let after_name = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            let is_small = after_name.split(' ').nth(16) == Some("10");
            // Confining itself is the last that it does before it waits.
            let waits =
                |status: &str| status.contains("State:\tS") && status.contains("Seccomp:\t2");
            let threads = std::fs::read_dir(format!("/proc/{child}/task"));
            let is_ready = threads.into_iter().flatten().flatten().any(|thread| {
                let status = read(format!("{}/status", thread.path().display()));
                status.starts_with("Name:\tcompile\n") && waits(&status)
            });
            if is_small && is_ready {
                return child;
            }
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_takes_too_long_in_the_small_lane_holds_nobody_up_and_is_compiled_in_the_large_one() {
    const SMALL: Duration = Duration::from_secs(5);
    let served = Served::start(&["--set", "compile.small_timeout=5s"]);
    let client = connect(&served.addr).await;
    let child = small_child(&served).await;
    let stopped = std::process::Command::new("kill")
        .args(["-STOP", &child])
        .status();
    assert!(stopped.unwrap().success());
    let start = Instant::now();
    let slow = begin(&client, tiny(0));
    until_compiling(&client, 1).await;
    for seed in 1..4 {
        let start = Instant::now();
        begin(&client, tiny(seed)).await.unwrap().unwrap();
        eprintln!("beside one that hangs: {} ms", start.elapsed().as_millis());
        assert!(!slow.is_finished(), "{seed} waited");
    }
    slow.await.unwrap().unwrap();
    assert!(start.elapsed() >= SMALL, "{:?}", start.elapsed());
    // What a tenant can always have compiled in the small lane still is.
    begin(&client, tiny(4)).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_goes_over_both_budgets_is_refused_by_the_large_one() {
    let daemon = Daemon::with(&[
        ("compile.small_module", "4MiB"),
        ("compile.small_timeout", "10s"),
        ("compile.small_memory", "64MiB"),
        ("compile.memory", "65MiB"),
    ])
    .await;
    let module = long_function(150_000);
    for _ in 0..2 {
        let status = daemon.load(module.clone()).await.unwrap_err();
        Refused::new(&status)
            .is(Code::FailedPrecondition, "COMPILE_LIMIT_EXCEEDED")
            .with("limit", "compile.memory")
            .with("allowed", "65.0 MiB");
    }
}

#[tokio::test]
async fn small_modules_do_not_wait_in_process_either() {
    let daemon = Daemon::with(&[("compile.mode", "in-process")]).await;
    // Seconds: nothing ends it before it is done.
    let slow = begin(&daemon.client, binary(&nested_loops(0, 10, 1500)));
    until_compiling(&daemon.client, 1).await;
    for text in [tiny(1), tiny_text(2).into()] {
        let start = Instant::now();
        daemon.ran(spec(text)).await.exited(0);
        meanwhile(&slow, "in process", start);
    }
    slow.await.unwrap().unwrap();
}

#[tokio::test]
async fn without_the_small_lane_all_modules_take_turns() {
    let daemon = Daemon::with(&[("compile.small_module", "0B"), WITHIN_BUDGET]).await;
    let health = daemon.client.clone().health(HealthRequest {}).await;
    assert_eq!(health.unwrap().into_inner().compiles_in_flight, 0);
    let bomb = begin(&daemon.client, bomb(0));
    until_compiling(&daemon.client, 1).await;
    let small = begin(&daemon.client, tiny(1));
    exploded(bomb).await;
    small.await.unwrap().unwrap();
}
