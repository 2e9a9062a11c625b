//! Every outcome, for core modules and components, metered and not.

use std::time::Duration;

use ringfence::api::proto::{CancelCause, Outcome, OutputPolicy};

use crate::harness::{Daemon, SpecExt, kit, kit_component, spec};

#[tokio::test]
async fn exit_codes_are_the_guests_own() {
    let daemon = Daemon::start().await;
    for code in [0_u32, 1, 7, 125, 126, 200, 255, 256, 4_000_000_000] {
        daemon
            .ran(kit(&["exit", &code.to_string()]))
            .await
            .exited(code);
        if code < 256 {
            // wasi:cli/exit knows only success and failure.
            let told = u32::from(code != 0);
            daemon
                .ran(kit_component(&["exit", &code.to_string()]))
                .await
                .exited(told);
        }
    }
}

#[tokio::test]
async fn returning_is_exit_zero_with_what_it_used() {
    let daemon = Daemon::start().await;
    for (run, metered) in [
        (kit(&["hello"]), false),
        (kit_component(&["hello"]), false),
        (
            kit(&["hello"]).resources(|r| r.fuel_limit = Some(10_000_000)),
            true,
        ),
        (
            kit_component(&["hello"]).resources(|r| r.fuel_limit = Some(10_000_000)),
            true,
        ),
    ] {
        let ran = daemon.ran(run).await.exited(0);
        assert_eq!((ran.out(), ran.err()), ("hello\n", ""));
        let result = &ran.result;
        assert!(result.run_id.ends_with(".test"), "{}", result.run_id);
        assert!(result.module_digest.starts_with("sha256:"));
        assert!(result.memory_used >= 1 << 16);
        assert!(!result.memory_denied);
        assert_eq!((result.stdout_bytes, result.stderr_bytes), (6, 0));
        assert!(result.duration.is_some() && result.cpu_time.is_some());
        assert_eq!(result.fuel_consumed.is_some(), metered);
        assert!(result.fuel_consumed.unwrap_or(1) > 0);
        assert!(result.trap.is_none());
    }
}

#[tokio::test]
async fn a_panic_is_a_trap_with_its_message_and_backtrace() {
    let daemon = Daemon::start().await;
    for run in [kit(&["panic"]), kit_component(&["panic"])] {
        let ran = daemon.ran(run).await.ended(Outcome::Trapped);
        assert!(ran.err().contains("as asked"), "{}", ran.err());
        assert_eq!(ran.trap_code(), "unreachable");
        let backtrace = &ran.result.trap.as_ref().unwrap().backtrace;
        assert!((1..=20).contains(&backtrace.len()));
        assert!(backtrace.iter().any(|frame| !frame.func_name.is_empty()));
    }
}

cases!(traps_have_their_code:
    unreachable_has_its_code("unreachable", "unreachable"),
    a_load_out_of_bounds_has_its_code("(i32.load (i32.const -1)) drop", "memory_out_of_bounds"),
    a_division_by_zero_has_its_code(
        "(i32.div_s (i32.const 1) (i32.const 0)) drop",
        "integer_divide_by_zero",
    ),
    a_division_that_overflows_has_its_code(
        "(i32.div_s (i32.const 0x80000000) (i32.const -1)) drop",
        "integer_overflow",
    ),
    a_conversion_of_nan_has_its_code(
        "(i32.trunc_f32_s (f32.const nan)) drop",
        "bad_conversion_to_integer",
    ),
    a_call_to_null_has_its_code(
        "(call_indirect (type $none) (i32.const 0))",
        "indirect_call_to_null",
    ),
    a_call_beyond_the_table_has_its_code(
        "(call_indirect (type $none) (i32.const 9))",
        "table_out_of_bounds",
    ),
    a_call_of_another_type_has_its_code(
        "(call_indirect (type $one) (i32.const 1))",
        "bad_signature",
    ),
);
async fn traps_have_their_code(body: &str, code: &str) {
    let daemon = Daemon::start().await;
    let wat =
        format!(
        "(module (type $none (func)) (type $one (func (result i32))) (memory 1) (table 2 funcref)
           (elem (i32.const 1) $f) (func $f)
           (func (export \"_start\") {}))",
        if code == "bad_signature" { format!("{body} drop") } else { body.to_owned() }
    );
    for fuel in [0, 1_000_000] {
        let run = spec(wat.clone()).resources(|r| r.fuel_limit = Some(fuel));
        let ran = daemon.ran(run).await.ended(Outcome::Trapped);
        assert_eq!(ran.trap_code(), code);
    }
}

#[tokio::test]
async fn faults_in_host_calls_are_traps_with_their_own_code() {
    let daemon = Daemon::start().await;
    let import = "(import \"wasi_snapshot_preview1\" \"random_get\" (func $random (param i32 i32) (result i32)))";
    let bad_pointer = format!(
        "(module {import} (memory (export \"memory\") 1)
           (func (export \"_start\") (drop (call $random (i32.const -9) (i32.const 100)))))"
    );
    let ran = daemon.ran(spec(bad_pointer)).await.ended(Outcome::Trapped);
    assert_eq!(ran.trap_code(), "host_pointer");
    let no_memory = format!(
        "(module {import} (func (export \"_start\") (drop (call $random (i32.const 0) (i32.const 1)))))"
    );
    let ran = daemon.ran(spec(no_memory)).await.ended(Outcome::Trapped);
    assert_eq!(ran.trap_code(), "host_call");
}

#[tokio::test]
async fn an_uncaught_exception_is_a_trap() {
    let daemon = Daemon::with(&[("engine.features", "[\"exceptions\"]")]).await;
    let wat = "(module (tag $t) (func (export \"_start\") (throw $t)))";
    let ran = daemon.ran(spec(wat)).await.ended(Outcome::Trapped);
    assert_eq!(ran.trap_code(), "uncaught_exception");
}

#[tokio::test]
async fn memory_that_was_denied_tells_failing_from_coping() {
    let daemon = Daemon::start().await;
    // wasi:cli/exit knows only success and failure.
    for (run, code) in [(kit(&["hog", "64"]), 3), (kit_component(&["hog", "64"]), 1)] {
        let run = run.resources(|r| r.memory_pages = Some(160));
        let ran = daemon.ran(run.clone()).await.ended(Outcome::MemoryExceeded);
        assert_eq!(ran.result.exit_code, Some(code));
        assert!(ran.out().starts_with("denied after "), "{}", ran.out());
        assert!(ran.result.memory_denied);
        assert!(ran.result.memory_used <= 160 << 16);
        let coped = daemon.ran(run.env(&["COPE=1"])).await.exited(0);
        assert!(coped.result.memory_denied);
    }
    let trapping = "(module (memory 1) (func (export \"_start\")
        (if (i32.eq (memory.grow (i32.const 1000)) (i32.const -1)) (then unreachable))))";
    let ran = daemon
        .ran(spec(trapping).resources(|r| r.memory_pages = Some(10)))
        .await
        .ended(Outcome::MemoryExceeded);
    assert_eq!(ran.result.exit_code, None);
}

#[tokio::test]
async fn growing_past_the_modules_own_maximum_is_no_denial() {
    let daemon = Daemon::start().await;
    let wat = "(module (memory 1 2) (func (export \"_start\")
        (if (i32.ne (memory.grow (i32.const 5)) (i32.const -1)) (then unreachable))))";
    let ran = daemon.ran(spec(wat)).await.exited(0);
    assert!(!ran.result.memory_denied);
    assert_eq!(ran.result.memory_used, 1 << 16);
}

#[tokio::test]
async fn fuel_runs_out() {
    let daemon = Daemon::start().await;
    for run in [kit(&["spin"]), kit_component(&["spin"])] {
        let run = run.resources(|r| r.fuel_limit = Some(5_000_000));
        let ran = daemon.ran(run).await.ended(Outcome::FuelExhausted);
        let used = ran.result.fuel_consumed.expect("metered");
        assert!((4_900_000..=5_000_000).contains(&used), "{used}");
        assert_eq!(ran.trap_code(), "out_of_fuel");
    }
}

#[tokio::test]
async fn fuel_of_an_interrupted_loop_is_told() {
    let daemon = Daemon::start().await;
    let wat = "(module (func (export \"_start\") (loop br 0)))";
    let run = spec(wat)
        .resources(|r| r.fuel_limit = Some(1 << 60))
        .timeout(Duration::from_secs(1));
    let ran = daemon.ran(run).await.ended(Outcome::TimedOut);
    assert!(ran.result.fuel_consumed.expect("metered") > 1_000_000);
}

#[tokio::test]
async fn the_stack_ends_at_its_class() {
    let daemon = Daemon::start().await;
    let wat = "(module (func $f (param i64) (call $f (local.get 0))) (func (export \"_start\") (call $f (i64.const 1))))";
    for run in [spec(wat), kit(&["recurse"]), kit_component(&["recurse"])] {
        for size in [65_536, 524_288, 16 << 20] {
            let run = run.clone().resources(|r| r.stack_size = Some(size));
            let ran = daemon.ran(run).await;
            // A Rust guest has a stack of its own inside its memory, which ends first where the class is large.
            if ran.trap_code() != "memory_out_of_bounds" {
                ran.ended(Outcome::StackOverflow);
            }
        }
    }
}

#[tokio::test]
async fn stack_classes_are_told_apart() {
    // 40 bytes or more a frame: 10,000 frames fit 1 MiB and not 256 KiB.
    let wat = "(module (func $f (param i32) (result i32)
        (if (result i32) (i32.eqz (local.get 0)) (then (i32.const 0))
          (else (i32.add (local.get 0) (call $f (i32.sub (local.get 0) (i32.const 1)))))))
        (func (export \"f\") (param i32) (result i32) (call $f (local.get 0))))";
    let daemon = Daemon::start().await;
    let run = |size| {
        spec(wat)
            .entry("f")
            .args(&["12000"])
            .resources(|r| r.stack_size = Some(size))
    };
    daemon.ran(run(65_536)).await.ended(Outcome::StackOverflow);
    let ran = daemon.ran(run(1 << 20)).await.exited(0);
    assert_eq!(ran.result.granted.unwrap().stack_size, Some(1 << 20));
}

cases!(time_runs_out_in_guest_code_and_in_host_calls:
    time_runs_out_while_spinning(&["spin", "partial"], "partial\n"),
    time_runs_out_while_sleeping(&["sleep", "3600000"], "before\n"),
);
async fn time_runs_out_in_guest_code_and_in_host_calls(args: &[&str], partial: &str) {
    let daemon = Daemon::start().await;
    for run in [kit(args), kit_component(args)] {
        let ran = daemon
            .ran(run.timeout(Duration::from_millis(500)))
            .await
            .ended(Outcome::TimedOut);
        assert_eq!(ran.out(), partial);
    }
}

cases!(start_functions_are_under_the_same_deadline:
    the_start_function_is_under_the_deadline(
        "(module (func $s (loop br 0)) (start $s) (func (export \"_start\")))",
        "",
    ),
    initialize_is_under_the_deadline(
        "(module (func (export \"_initialize\") (loop br 0)) (func (export \"f\")))",
        "f",
    ),
);
async fn start_functions_are_under_the_same_deadline(wat: &str, entry: &str) {
    let daemon = Daemon::start().await;
    let run = spec(wat.to_owned())
        .entry(entry)
        .timeout(Duration::from_millis(100));
    daemon.ran(run).await.ended(Outcome::TimedOut);
}

#[tokio::test]
async fn output_over_the_limit_stops_or_is_dropped() {
    let daemon = Daemon::start().await;
    for run in [kit(&["flood", "10000"]), kit_component(&["flood", "10000"])] {
        for (limit, policy, outcome) in [
            (9_999, OutputPolicy::Stop, Outcome::OutputExceeded),
            (9_999, OutputPolicy::Truncate, Outcome::Exited),
            (10_000, OutputPolicy::Stop, Outcome::Exited),
            (10_001, OutputPolicy::Unspecified, Outcome::Exited),
            (1, OutputPolicy::Unspecified, Outcome::OutputExceeded),
        ] {
            let run = run.clone().resources(|r| {
                r.output_limit = Some(limit);
                r.output_policy = policy.into();
            });
            let ran = daemon.ran(run).await.ended(outcome);
            assert_eq!(ran.stdout.len() as u64, limit.min(10_000));
            assert_eq!(ran.result.stdout_truncated, limit < 10_000);
            if outcome == Outcome::Exited && limit > 4 {
                assert_eq!(ran.err(), "done");
                assert_eq!(ran.result.stdout_bytes, 10_000);
            }
        }
    }
}

#[tokio::test]
async fn each_stream_has_the_limit_of_its_own() {
    let daemon = Daemon::start().await;
    let run = kit(&["flood", "100"]).resources(|r| r.output_limit = Some(100));
    let ran = daemon.ran(run).await.exited(0);
    assert_eq!((ran.stdout.len(), ran.err()), (100, "done"));
}

#[tokio::test]
async fn a_stalled_reader_cancels_its_run() {
    let daemon = Daemon::with(&[("runs.stall_timeout", "1s")]).await;
    let mut stream = daemon
        .stream(kit(&["flood", "100000000"]))
        .await
        .expect("not refused");
    // Started, and then nothing is read until the daemon has ended the run.
    let first = stream.message().await.unwrap().unwrap();
    crate::harness::until_idle(&daemon).await;
    let mut story = crate::harness::Story::default();
    story.add(first);
    let story = crate::harness::read_on(stream, story).await;
    let exit = story.exit.as_ref().unwrap();
    assert_eq!(exit.outcome(), Outcome::Cancelled);
    assert_eq!(exit.cancel_cause(), CancelCause::ReaderStalled);
    assert_eq!(
        exit.stdout_bytes,
        story.stdout.len() as u64,
        "nothing is lost"
    );
}
