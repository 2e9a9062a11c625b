//! Every limit: at it, one below, one above; and what zero and unset mean.

use ringfence::api::proto::{Outcome, Resources, RunSpec};
use tonic::Code;

use crate::harness::{Daemon, Refused, SpecExt, kit, read, spec};

const NOTHING: &str = "(module (func (export \"_start\")))";

async fn granted(daemon: &Daemon, f: impl FnOnce(&mut Resources)) -> Resources {
    let ran = daemon.ran(spec(NOTHING).resources(f)).await.exited(0);
    ran.result.granted.expect("what was granted")
}

#[tokio::test]
async fn unset_and_zero_are_the_defaults() {
    let daemon = Daemon::start().await;
    let zeros = Resources {
        memory_pages: Some(0),
        fuel_limit: Some(0),
        stack_size: Some(0),
        output_limit: Some(0),
        output_policy: 0,
    };
    for got in [
        granted(&daemon, |_| {}).await,
        granted(&daemon, |r| *r = zeros).await,
    ] {
        assert_eq!(got.memory_pages, Some(256));
        assert_eq!(got.fuel_limit, None);
        assert_eq!(got.stack_size, Some(512 << 10));
        assert_eq!(got.output_limit, Some(1 << 20));
    }
    let streamed = read(daemon.stream(spec(NOTHING)).await.unwrap()).await;
    assert_eq!(streamed.exit.unwrap().granted.unwrap().output_limit, None);
}

#[tokio::test]
async fn default_memory_comes_on_top_of_the_modules_minimum_up_to_the_ceiling() {
    let daemon = Daemon::start().await;
    for (minimum, expected) in [
        (0, 256),
        (17, 273),
        (3840, 4096),
        (3841, 4096),
        (4096, 4096),
    ] {
        let wat = format!("(module (memory {minimum}) (func (export \"_start\")))");
        let ran = daemon.ran(spec(wat)).await.exited(0);
        assert_eq!(ran.result.granted.unwrap().memory_pages, Some(expected));
        assert_eq!(ran.result.memory_used, minimum << 16);
    }
    let wat = "(module (memory 4097) (func (export \"_start\")))";
    daemon
        .refused(spec(wat))
        .await
        .is(Code::FailedPrecondition, "MEMORY_BELOW_MODULE_MINIMUM")
        .at("spec.resources.memory_pages")
        .with("minimum", 4097);
}

#[tokio::test]
async fn memory_is_bounded_over_all_memories_together() {
    let daemon = Daemon::start().await;
    let wat = "(module (memory $a 2) (memory $b 3)
        (func (export \"grow\") (param i32 i32) (result i32 i32)
          (memory.grow $a (local.get 0)) (memory.grow $b (local.get 1))))";
    let run = |pages| {
        spec(wat)
            .entry("grow")
            .resources(move |r| r.memory_pages = Some(pages))
    };
    for (a, b, expected, denied) in [
        ("2", "3", "2 3", false),
        ("2", "4", "2 -1", true),
        ("6", "0", "-1 3", true),
    ] {
        let ran = daemon.ran(run(10).args(&[a, b])).await.exited(0);
        assert_eq!(numbers(&ran.result), expected);
        assert_eq!(ran.result.memory_denied, denied);
        assert!(ran.result.memory_used <= 10 << 16);
    }
    for below in [1, 4] {
        daemon
            .refused(run(below).args(&["0", "0"]))
            .await
            .is(Code::FailedPrecondition, "MEMORY_BELOW_MODULE_MINIMUM")
            .with("asked", below)
            .with("minimum", 5);
    }
    daemon.ran(run(5).args(&["0", "0"])).await.exited(0);
}

fn numbers(result: &ringfence::api::proto::RunResult) -> String {
    let numbers: Vec<String> = result
        .values
        .iter()
        .map(|value| match value.value {
            Some(ringfence::api::proto::value::Value::I32(v)) => v.to_string(),
            other => panic!("{other:?}"),
        })
        .collect();
    numbers.join(" ")
}

cases!(ceilings_are_exact:
    the_memory_ceiling_is_exact("memory_pages", &[4095, 4096], 4097),
    the_stack_ceiling_is_exact("stack_size", &[(16 << 20) - 1, 16 << 20], (16 << 20) + 1),
    the_output_ceiling_is_exact("output_limit", &[(16 << 20) - 1, 16 << 20], (16 << 20) + 1),
    the_fuel_ceiling_is_exact("fuel_limit", &[999, 1000], 1001),
);
async fn ceilings_are_exact(field: &str, allowed: &[u64], over: u64) {
    let daemon =
        Daemon::with(&[("policy.max_fuel", "1000"), ("defaults.fuel_limit", "1000")]).await;
    let run = |n: u64| {
        spec(NOTHING).resources(|r| {
            let small = u32::try_from(n).unwrap();
            match field {
                "memory_pages" => r.memory_pages = Some(small),
                "stack_size" => r.stack_size = Some(small),
                "output_limit" => r.output_limit = Some(n),
                _ => r.fuel_limit = Some(n),
            }
        })
    };
    for n in allowed {
        daemon.ran(run(*n)).await.exited(0);
    }
    daemon
        .refused(run(over))
        .await
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
        .at(&format!("spec.resources.{field}"))
        .with("asked", over)
        .with("allowed", over - 1);
}

#[tokio::test]
async fn stacks_are_rounded_up_to_their_class_and_not_under_the_least() {
    let daemon = Daemon::start().await;
    for (asked, class) in [
        (64 << 10, 256 << 10),
        (256 << 10, 256 << 10),
        ((256 << 10) + 1, 512 << 10),
        ((4 << 20) + 1, 16 << 20),
    ] {
        let got = granted(&daemon, |r| r.stack_size = Some(asked)).await;
        assert_eq!(got.stack_size, Some(class));
    }
    daemon
        .refused(spec(NOTHING).resources(|r| r.stack_size = Some((64 << 10) - 1)))
        .await
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("spec.resources.stack_size");
}

#[tokio::test]
async fn required_fuel_meters_every_run() {
    let daemon = Daemon::with(&[
        ("policy.require_fuel", "true"),
        ("defaults.fuel_limit", "5000"),
    ])
    .await;
    let ran = daemon.ran(spec(NOTHING)).await.exited(0);
    assert_eq!(ran.result.granted.unwrap().fuel_limit, Some(5000));
    assert!(ran.result.fuel_consumed.is_some());
    let digest = daemon.loaded(NOTHING).await;
    daemon
        .ran(crate::harness::by_digest(&digest))
        .await
        .exited(0);
}

#[tokio::test]
async fn an_unknown_output_policy_is_refused() {
    let daemon = Daemon::start().await;
    daemon
        .refused(spec(NOTHING).resources(|r| r.output_policy = 9))
        .await
        .is(Code::InvalidArgument, "SPEC_INVALID")
        .at("spec.resources.output_policy");
}

#[tokio::test]
async fn stream_output_has_a_ceiling_of_its_own() {
    let daemon = Daemon::with(&[("policy.max_stream_output", "1000B")]).await;
    let run = |n: u64| kit(&["flood", "1000"]).resources(|r| r.output_limit = Some(n));
    let story = read(daemon.stream(run(1000)).await.unwrap()).await;
    assert_eq!(story.stdout.len(), 1000);
    let status = daemon.stream(run(1001)).await.unwrap_err();
    Refused::new(&status)
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
        .at("spec.resources.output_limit");
    let story = read(daemon.stream(run(0)).await.unwrap()).await;
    assert_eq!(
        story.exit.unwrap().granted.unwrap().output_limit,
        Some(1000)
    );
}

cases!(what_is_handed_in_is_capped:
    args_are_capped("spec.args", |n| spec(NOTHING).args(&["x".repeat(n - 2).as_str(), ""])),
    env_is_capped(
        "spec.env",
        |n| spec(NOTHING).env(&[format!("K={}", "x".repeat(n - 3)).as_str()]),
    ),
    stdin_is_capped("spec.stdin", |n| spec(NOTHING).stdin(vec![0; n])),
);
async fn what_is_handed_in_is_capped(field: &str, run: fn(usize) -> RunSpec) {
    let daemon = Daemon::with(&[
        ("policy.max_args", "1000B"),
        ("policy.max_env", "1000B"),
        ("policy.max_stdin", "1000B"),
    ])
    .await;
    for fits in [999, 1000] {
        daemon.ran(run(fits)).await.exited(0);
    }
    daemon
        .refused(run(1001))
        .await
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
        .at(field)
        .with("asked", 1001)
        .with("allowed", 1000);
}

#[tokio::test]
async fn one_host_call_moves_any_number_of_bytes() {
    let daemon = Daemon::start().await;
    let random = "(module (import \"wasi_snapshot_preview1\" \"random_get\" (func $r (param i32 i32) (result i32)))
        (memory (export \"memory\") 2)
        (func (export \"f\") (param i32) (result i32) (call $r (i32.const 0) (local.get 0))))";
    let run = |n: u32| spec(random).entry("f").args(&[&n.to_string()]);
    for fits in [65_535, 65_536, 65_537, 131_072] {
        let ran = daemon.ran(run(fits)).await.exited(0);
        assert_eq!(numbers(&ran.result), "0");
    }
    // More than the memory holds.
    let ran = daemon.ran(run(131_073)).await.ended(Outcome::Trapped);
    assert_eq!(ran.trap_code(), "host_pointer");

    let write = "(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func $w (param i32 i32 i32 i32) (result i32)))
        (memory (export \"memory\") 300)
        (func (export \"f\") (param i32) (result i32)
          (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (local.get 0))
          (call $w (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 16))))";
    for n in [65_537, 16_777_208, 16_777_209, 16 << 20] {
        let run = spec(write)
            .entry("f")
            .args(&[&n.to_string()])
            .resources(|r| r.output_limit = Some(16 << 20));
        let ran = daemon.ran(run).await.exited(0);
        assert_eq!(numbers(&ran.result), "0");
        assert_eq!(ran.stdout.len(), n);
    }
}
