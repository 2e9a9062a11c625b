//! Compilers and compiled code are shared between tenants by what each uses: whoever streams slow modules, or floods the
//! cache, does so at its own expense.

use std::time::{Duration, Instant};

use bytes::Bytes;
use ringfence::api::proto::{LoadModuleResponse, RunSpec};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use crate::compile::children;
use crate::compile_lanes::{bomb, nested_loops, tiny, until_compiling};
use crate::harness::{Daemon, PATIENCE, Refused, SpecExt, by_digest, channel, connect, load, spec};
use crate::process::Served;
use crate::tenants::{Tenant, token, tokens_file, two};

type Load = JoinHandle<Result<LoadModuleResponse, Status>>;

/// Begins to load a module.
fn begin(tenant: &Tenant, wasm: Bytes) -> Load {
    let mut sandbox = tenant.sandbox.clone();
    tokio::spawn(async move { Ok(sandbox.load_module(load(wasm)).await?.into_inner()) })
}

/// A module of about 700 KB of ordinary code, too large for the lane of small ones. Each `seed` makes another.
fn large(seed: u32) -> Bytes {
    let statement = "(local.set 0 (i32.mul (local.get 0) (i32.load (local.get 1))))";
    let function = format!("(func (param i32 i32) {})", statement.repeat(30));
    let text = format!(
        "(module (memory 1) (global i32 (i32.const {seed})) (func (export \"_start\")) {})",
        function.repeat(2000)
    );
    let wasm = wat::parse_str(text).unwrap();
    assert!((600_000..800_000).contains(&wasm.len()), "{}", wasm.len());
    wasm.into()
}

/// A module of about 682 KB that takes a compiler longer than it may.
fn slow(seed: u32) -> Bytes {
    let text = nested_loops(seed, 1000, 300);
    // A custom section costs nothing.
    let rest = "x".repeat(682_000 - bomb(seed).len());
    let text = text.strip_suffix(')').unwrap();
    let text = format!("{text} (@custom \"slow\" \"{rest}\"))");
    let wasm = wat::parse_str(text).unwrap();
    assert!((682_000..683_000).contains(&wasm.len()), "{}", wasm.len());
    wasm.into()
}

/// A module that takes a compiler seconds, and gets done.
fn done_in_seconds(seed: u32) -> Bytes {
    wat::parse_str(nested_loops(seed, 10, 1000)).unwrap().into()
}

/// The first tenant streams slow modules: one is compiled, others wait.
async fn stream_slow_modules(daemon: &Daemon, tenant: &Tenant) -> Vec<Load> {
    let slow: Vec<Load> = (0..4).map(|seed| begin(tenant, slow(seed))).collect();
    until_compiling(&daemon.client, 1).await;
    slow
}

/// None of the slow modules is done with: each takes two minutes of the processor.
fn they_go_on(slow: Vec<Load>) {
    for load in slow {
        assert!(!load.is_finished(), "it waited for a slow module");
        load.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbours_large_module_is_loaded_while_another_tenant_streams_slow_ones() {
    let (daemon, a, b, _dir) = two("", "", &[]).await;
    let slow = stream_slow_modules(&daemon, &a).await;
    for seed in 0..3 {
        let start = Instant::now();
        b.loaded(large(seed)).await;
        let took = start.elapsed();
        eprintln!("beside slow modules, 700 KB: {} ms", took.as_millis());
        assert!(took < Duration::from_secs(30), "{took:?}");
    }
    they_go_on(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbours_large_module_runs_inline_while_another_tenant_streams_slow_ones() {
    let (daemon, a, b, _dir) = two("", "", &[]).await;
    let digest = b.loaded(large(0)).await;
    let slow = stream_slow_modules(&daemon, &a).await;
    b.ran(spec(large(1))).await.exited(0);
    // Metered code is another artefact.
    let metered = by_digest(&digest).resources(|asked| asked.fuel_limit = Some(1000));
    b.ran(metered).await.exited(0);
    they_go_on(slow);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_to_stop_for_another_loses_no_work() {
    let (daemon, a, b, _dir) = two("", "", &[("compile.quantum", "100ms")]).await;
    let before = daemon.probe.compilations();
    let long = begin(&a, done_in_seconds(0));
    until_compiling(&daemon.client, 1).await;
    b.loaded(large(0)).await;
    assert!(!long.is_finished(), "the other waited for it");
    long.await.unwrap().unwrap();
    assert_eq!(daemon.probe.compilations() - before, 2, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_that_both_take_long_take_turns_and_both_end() {
    let (daemon, a, b, _dir) = two("", "", &[("compile.quantum", "100ms")]).await;
    let before = daemon.probe.compilations();
    let both = [begin(&a, done_in_seconds(0)), begin(&b, done_in_seconds(1))];
    for load in both {
        tokio::time::timeout(PATIENCE, load)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
    assert_eq!(daemon.probe.compilations() - before, 2, "each once");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_none_may_be_stopped_a_module_waits_for_the_one_before_it() {
    for set in [
        ("compile.max_preempted", "0"),
        ("compile.mode", "in-process"),
    ] {
        let (daemon, a, b, _dir) = two("", "", &[set, ("compile.quantum", "100ms")]).await;
        let long = begin(&a, done_in_seconds(0));
        until_compiling(&daemon.client, 1).await;
        b.loaded(large(0)).await;
        assert!(long.is_finished(), "{set:?}: it stopped for another");
        tokio::time::timeout(PATIENCE, long)
            .await
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

/// A daemon in a process of its own, which has given up what it can, with two tenants.
async fn served(a: &str, set: &str) -> (Served, Tenant, Tenant, TempDir) {
    let dir = TempDir::new().unwrap();
    let tokens = tokens_file(&dir, &["a", "b"]);
    let tokens = format!("auth.tokens_file={}", tokens.display());
    let tenants = format!("tenants=[{{ name = \"a\", {a} }}, {{ name = \"b\" }}]");
    let settings = [&tokens, &tenants, "auth.open_health=true", set];
    let args: Vec<&str> = settings.iter().flat_map(|it| ["--set", it]).collect();
    let served = Served::start(&args);
    let as_tenant = async |name: &str| Tenant::of(channel(&served.addr).await, &token(name));
    let (a, b) = (as_tenant("a").await, as_tenant("b").await);
    (served, a, b, dir)
}

/// Signals to compile children, and what the kernel tells of their time, pass the daemon's own walls.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_has_given_up_what_it_can_stops_its_children_and_charges_for_them() {
    let quota = "quota = { cpu_seconds_per_minute = 0.1 }";
    let (served, a, b, _dir) = served(quota, "compile.quantum=100ms").await;
    let client = connect(&served.addr).await;
    let long = begin(&a, done_in_seconds(0));
    until_compiling(&client, 1).await;
    b.loaded(large(0)).await;
    assert!(!long.is_finished(), "the other waited for it");
    long.await.unwrap().unwrap();
    used_up(&a.load(tiny(0)).await.unwrap_err());
}

/// Compile children that are stopped.
fn stopped(served: &Served) -> usize {
    let is_stopped = |child: &String| {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat"));
        stat.is_ok_and(|stat| stat.contains(") T "))
    };
    children(served).iter().filter(|it| is_stopped(it)).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_module_stops_within_about_a_quantum_of_another_tenants_request() {
    let (served, a, b, _dir) = served("", "compile.max_preempted=1").await;
    let client = connect(&served.addr).await;
    let slow = [begin(&a, slow(0)), begin(&a, slow(1))];
    until_compiling(&client, 1).await;
    assert_eq!(stopped(&served), 0, "nobody else wants it");
    let start = Instant::now();
    let other = begin(&b, large(0));
    while stopped(&served) == 0 {
        assert!(!other.is_finished() && start.elapsed() < Duration::from_secs(15));
        tokio::task::yield_now().await;
    }
    eprintln!("stopped after {} ms", start.elapsed().as_millis());
    other.await.unwrap().unwrap();
    // It goes on.
    while stopped(&served) > 0 {
        assert!(start.elapsed() < PATIENCE);
        tokio::task::yield_now().await;
    }
    they_go_on(slow.into());
}

/// It is refused since the tenant's processor time is used up.
fn used_up(status: &Status) {
    let refused = Refused::new(status)
        .is(Code::ResourceExhausted, "TENANT_QUOTA")
        .with("quota", "cpu_seconds_per_minute");
    assert!(refused.retry);
}

/// Nothing that takes a compiler or a guest thread is taken from the first tenant; the second has its own.
async fn neither_compiles_nor_runs(a: &Tenant, b: &Tenant, kept: &str) {
    used_up(&a.load(tiny(100)).await.unwrap_err());
    used_up(&a.run(spec(tiny(101))).await.unwrap_err());
    used_up(&a.run(by_digest(kept)).await.unwrap_err());
    // Nothing has to be compiled.
    a.loaded(tiny(99)).await;
    b.loaded(tiny(100)).await;
    b.ran(spec(tiny(101))).await.exited(0);
}

#[tokio::test]
async fn compiling_is_charged_to_the_quota_of_processor_time() {
    for mode in ["child", "in-process"] {
        let quota = "quota = { cpu_seconds_per_minute = 0.1 }";
        let (_daemon, a, b, _dir) = two(quota, "", &[("compile.mode", mode)]).await;
        let kept = a.loaded(tiny(99)).await;
        // What a compilation uses beyond it is owed by the next.
        a.loaded(large(0)).await;
        neither_compiles_nor_runs(&a, &b, &kept).await;
    }
}

#[tokio::test]
async fn a_module_that_is_refused_by_its_compiler_is_charged_too() {
    let quota = "quota = { cpu_seconds_per_minute = 0.1 }";
    let (_daemon, a, b, _dir) = two(quota, "", &[("compile.timeout", "2s")]).await;
    let kept = a.loaded(tiny(99)).await;
    let status = a.load(bomb(0)).await.unwrap_err();
    Refused::new(&status).is(Code::FailedPrecondition, "COMPILE_LIMIT_EXCEEDED");
    neither_compiles_nor_runs(&a, &b, &kept).await;
}

#[tokio::test]
async fn many_small_modules_are_charged_as_a_large_one_is() {
    let quota = "quota = { cpu_seconds_per_minute = 0.5 }";
    let (_daemon, a, b, _dir) = two(quota, "", &[]).await;
    let mut refused = None;
    for seed in 0..100 {
        if let Err(status) = a.load(tiny(seed)).await {
            refused = Some(status);
            break;
        }
    }
    used_up(&refused.expect("a child for each takes some of it"));
    b.loaded(tiny(0)).await;
}

/// A budget of the cache for some thirty modules.
const SMALL_CACHE: (&str, &str) = ("engine.cache_budget", "3MiB");
const FLOOD: u32 = 60;

/// The runs of `digest` that had to have it compiled anew.
async fn compiled_anew(daemon: &Daemon, tenant: &Tenant, specs: &[RunSpec]) -> u64 {
    let before = daemon.probe.compilations();
    for spec in specs {
        tenant.ran(spec.clone()).await.exited(0);
    }
    daemon.probe.compilations() - before
}

#[tokio::test]
async fn a_neighbours_code_stays_in_memory_while_another_tenant_runs_many_modules_inline() {
    let (daemon, a, b, _dir) = two("", "", &[SMALL_CACHE]).await;
    let digest = b.loaded(tiny(0)).await;
    // Used once, and not again for as long as the flood takes.
    let specs = [by_digest(&digest), spec(tiny(1))];
    assert_eq!(
        compiled_anew(&daemon, &b, &specs).await,
        1,
        "the inline one"
    );
    for seed in 100..100 + FLOOD {
        a.ran(spec(tiny(seed))).await.exited(0);
    }
    assert_eq!(compiled_anew(&daemon, &b, &specs).await, 0);
    // The flood went over the budget: the first of it is gone.
    assert_eq!(compiled_anew(&daemon, &a, &[spec(tiny(100))]).await, 1);
    assert!(daemon.probe.cached_bytes() <= 3 << 20);
}

#[tokio::test]
async fn a_neighbours_code_stays_in_memory_while_another_tenant_loads_many_modules() {
    let (daemon, a, b, _dir) = two("", "", &[SMALL_CACHE]).await;
    let digest = b.loaded(tiny(0)).await;
    let mut first = None;
    for seed in 100..100 + FLOOD {
        let digest = a.loaded(tiny(seed)).await;
        first.get_or_insert(digest);
    }
    assert_eq!(compiled_anew(&daemon, &b, &[by_digest(&digest)]).await, 0);
    let first = first.unwrap();
    assert_eq!(compiled_anew(&daemon, &a, &[by_digest(&first)]).await, 1);
}

#[tokio::test]
async fn a_tenants_own_loaded_code_stays_while_it_runs_many_modules_inline() {
    let daemon = Daemon::with(&[SMALL_CACHE]).await;
    let digest = daemon.loaded(tiny(0)).await;
    for seed in 100..100 + FLOOD {
        daemon.ran(spec(tiny(seed))).await.exited(0);
    }
    let before = daemon.probe.compilations();
    daemon.ran(by_digest(&digest)).await.exited(0);
    assert_eq!(daemon.probe.compilations(), before);
    daemon.ran(spec(tiny(100))).await.exited(0);
    assert_eq!(daemon.probe.compilations(), before + 1, "it was gone");
}
