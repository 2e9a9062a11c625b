//! Runs with a limit on fuel: their code is compiled to count it and looks at no clock, and they stop, wait and give way
//! as all others do.

use std::time::Duration;

use ringfence::api::proto::{Outcome, RunSpec, RunState};

use crate::harness::{
    Daemon, Ran, SpecExt, by_digest, kit, kit_component, spec, until, until_idle,
};

const PLENTY: u64 = 1 << 60;
const TIMEOUT: Duration = Duration::from_millis(150);
/// How late the end of a run may be (docs/limits.md).
const LATE: Duration = Duration::from_millis(250);

fn metered(run: RunSpec, fuel: u64) -> RunSpec {
    run.resources(|it| it.fuel_limit = Some(fuel))
}

fn fuel(ran: &Ran) -> u64 {
    ran.result.fuel_consumed.expect("it was metered")
}

/// A module whose start is `body`, after whatever else it has.
fn start(rest: &str, body: &str) -> RunSpec {
    spec(format!(
        "(module {rest} (func (export \"_start\") (local $i i32) {body}))"
    ))
}

/// `body`, `times` times.
fn again(times: u32, body: &str) -> String {
    format!(
        "(loop $again {body}
            (local.set $i (i32.add (local.get $i) (i32.const 1)))
            (br_if $again (i32.lt_u (local.get $i) (i32.const {times}))))"
    )
}

async fn it_ends_in_time(run: RunSpec) {
    let daemon = Daemon::start().await;
    let run = metered(run, PLENTY).timeout(TIMEOUT);
    let ran = daemon.ran(run).await.ended(Outcome::TimedOut);
    let took = Duration::try_from(ran.result.duration.unwrap()).unwrap();
    assert!(took >= TIMEOUT && took < TIMEOUT + LATE, "{took:?}");
    until_idle(&daemon).await;
    assert_eq!(daemon.probe.pooled_instances(), 0);
}

const TREE: &str = "(func $tree (param i32)
    (if (local.get 0) (then
        (call $tree (i32.sub (local.get 0) (i32.const 1)))
        (call $tree (i32.sub (local.get 0) (i32.const 1))))))";
const WRITE: &str = "(import \"wasi_snapshot_preview1\" \"fd_write\"
        (func $write (param i32 i32 i32 i32) (result i32)))
    (memory (export \"memory\") 1)
    (data (i32.const 0) \"\\08\\00\\00\\00\\01\\00\\00\\00.\")";
const WRITES: &str =
    "(drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 12)))";
const GROWS: &str = "(drop (memory.grow (i32.const 1)))";

cases!(it_ends_in_time:
    that_loops(start("", "(loop $on (br $on))")),
    that_calls_without_a_loop(start(TREE, "(call $tree (i32.const 60))")),
    that_calls_itself_last(start(
        "(func $last (return_call $last))",
        "(call $last)",
    )),
    that_spins_in_its_start_function(spec(
        "(module (func $spin (loop $on (br $on))) (start $spin) (func (export \"_start\")))",
    )),
    that_asks_for_memory(start("(memory 1 2)", &format!("(loop $on {GROWS} (br $on))"))),
    that_fills_memory(start(
        "(memory 64)",
        "(loop $on (memory.fill (i32.const 0) (i32.const 1) (i32.const 4194304)) (br $on))",
    )),
    that_waits_in_the_host(kit(&["sleep", "3600000"])),
    of_a_component(kit_component(&["spin", "x"])),
);

/// The fuel of `body` done `times` times, which is a run's that has far more.
async fn used(daemon: &Daemon, rest: &str, body: &str, times: u32) -> u64 {
    let run = start(rest, &again(times, body));
    fuel(&daemon.ran(metered(run, PLENTY)).await.exited(0))
}

async fn each_operator_is_counted_once(rest: &str, body: &str, step: u32) {
    let daemon = Daemon::with(&[("policy.max_output", "64MiB")]).await;
    let one = used(&daemon, rest, body, 1).await;
    let each = used(&daemon, rest, body, 2).await - one;
    for times in [step, 7 * step] {
        let all = used(&daemon, rest, body, times).await;
        assert_eq!(all, one + u64::from(times - 1) * each, "{times} times");
        let run = start(rest, &again(times, body));
        // It is looked at where loops turn: once it has used all, the last time is its end.
        daemon.ran(metered(run.clone(), all + 1)).await.exited(0);
        for little in [all - each, all / 2, all / 2 + 1, 1] {
            let ran = daemon.ran(metered(run.clone(), little)).await;
            let ran = ran.ended(Outcome::FuelExhausted);
            assert_eq!(fuel(&ran), little, "of {all}");
            assert_eq!(ran.trap_code(), "out_of_fuel");
        }
    }
}

cases!(each_operator_is_counted_once:
    of_a_loop("", "", 50_001),
    of_a_loop_that_calls("(func $one (param i32))", "(call $one (i32.const 3))", 30_000),
    of_a_loop_that_calls_the_host(WRITE, WRITES, 3_000),
    of_a_loop_that_asks_for_memory("(memory 1 2)", GROWS, 20_000),
    of_a_loop_that_fills_memory(
        "(memory 2)",
        "(memory.fill (i32.const 0) (i32.const 1) (i32.const 70000))",
        60,
    ),
);

#[tokio::test(flavor = "multi_thread")]
async fn one_that_computes_leaves_the_thread_to_others() {
    let daemon = Daemon::with(&[("engine.guest_threads", "1")]).await;
    let spin = metered(start("", "(loop $on (br $on))"), PLENTY).timeout(Duration::from_secs(60));
    let stream = daemon.stream(spin).await.unwrap();
    until(&daemon, |in_flight, _| in_flight == 1).await;
    for other in [kit(&["hello"]), metered(kit(&["hello"]), 1 << 30)] {
        let ran = daemon.ran(other).await.exited(0);
        assert_eq!(ran.out(), "hello\n");
    }
    let going = daemon.list(Default::default()).await.runs;
    let running = going.iter().filter(|it| it.state() == RunState::Running);
    assert_eq!(running.count(), 1, "it goes on meanwhile");
    // Its caller leaves.
    drop(stream);
    until_idle(&daemon).await;
}

/// One that begins on a thread that serves leaves it as any other does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_expected_to_be_short_is_stopped_too() {
    let daemon = Daemon::start().await;
    let digest = daemon.loaded(crate::guests::kit()).await;
    let run = |args: &[&str]| metered(by_digest(&digest).args(args), PLENTY);
    for _ in 0..6 {
        daemon.ran(run(&["kit", "hello"])).await.exited(0);
    }
    let spins = run(&["kit", "spin"]).timeout(TIMEOUT);
    let ran = daemon.ran(spins).await.ended(Outcome::TimedOut);
    assert!(fuel(&ran) > 1_000_000);
    let waits = run(&["kit", "sleep", "20"]);
    assert_eq!(daemon.ran(waits).await.exited(0).out(), "before\nafter\n");
}
