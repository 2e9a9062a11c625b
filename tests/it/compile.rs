//! Modules that are made to hurt whoever compiles them, and the budget that they meet.

use std::time::Duration;

use bytes::Bytes;
use ringfence::api::proto::HealthRequest;
use tonic::{Code, Status};

use crate::bombs::{bombs, functions, giant_function, with_start};
use crate::guests;
use crate::harness::{Daemon, Refused, SpecExt, by_digest, connect, kit, load, spec};
use crate::process::Served;

const OVER: Code = Code::FailedPrecondition;

#[tokio::test]
async fn bombs_end_within_the_budget_and_nobody_else_notices() {
    let served = Served::start(&[
        "--set",
        "compile.timeout=3s",
        "--set",
        "compile.memory=192MiB",
    ]);
    let mut client = connect(&served.addr).await;
    let answer = client.load_module(load(guests::kit())).await.unwrap();
    let digest = answer.into_inner().module.unwrap().digest;
    let resident = served.memory("VmRSS");
    for (name, bomb) in bombs() {
        let mut other = connect(&served.addr).await;
        let exploding = tokio::spawn(async move { other.load_module(load(bomb)).await });
        let mut meanwhile = 0;
        while !exploding.is_finished() {
            let run = ringfence::api::proto::RunRequest {
                spec: Some(by_digest(&digest).args(&["kit", "hello"])),
            };
            let ran = client.run(run).await.unwrap().into_inner();
            assert_eq!(ran.stdout, "hello\n");
            client.health(HealthRequest {}).await.unwrap();
            meanwhile += 1;
        }
        let status = exploding.await.unwrap().unwrap_err();
        let refused = Refused::new(&status).is(OVER, "COMPILE_LIMIT_EXCEEDED");
        let limit = refused.metadata["limit"].as_str();
        let expected = ["compile.timeout", "compile.memory"];
        assert!(expected.contains(&limit), "{name}: {limit}");
        // What is refused by its counts is refused at once.
        assert!(meanwhile > 3 || name == "functions", "{name}: {meanwhile}");
    }
    // The most that it ever had, over what it had before; what the requests themselves hold is part of it.
    let grown = served.memory("VmHWM").saturating_sub(resident);
    assert!(grown < 50 << 10, "{grown} KiB");
    let run = ringfence::api::proto::RunRequest {
        spec: Some(kit(&["hello"])),
    };
    client.run(run).await.unwrap();
}

async fn refused(daemon: &Daemon, wasm: impl Into<Bytes>) -> Refused {
    let status: Status = daemon.load(wasm).await.unwrap_err();
    Refused::new(&status)
}

#[tokio::test]
async fn a_failure_that_says_something_about_the_module_is_remembered() {
    let daemon = Daemon::with(&[("compile.memory", "64MiB")]).await;
    let bomb = giant_function();
    let over = refused(&daemon, bomb.clone())
        .await
        .is(OVER, "COMPILE_LIMIT_EXCEEDED")
        .with("limit", "compile.memory")
        .with("allowed", "64.0 MiB");
    let compiled = daemon.probe.compilations();
    assert_eq!(refused(&daemon, bomb.clone()).await, over);
    let run = spec(bomb).timeout(Duration::from_secs(1));
    assert_eq!(daemon.refused(run).await, over);
    assert_eq!(daemon.probe.compilations(), compiled);
}

#[tokio::test]
async fn the_size_of_compiled_code_is_bounded_exactly() {
    let functions: String = (0..16_000)
        .map(|i| format!("(func (param i32) (result i32) (i32.mul (local.get 0) (i32.const {i})))"))
        .collect();
    let module = with_start(&functions);
    for mode in ["child", "in-process"] {
        let with = |most: u64| {
            let most = format!("{most}B");
            async move { Daemon::with(&[("compile.mode", mode), ("compile.max_artifact", &most)]).await }
        };
        let over = refused(&with(1 << 20).await, module.clone())
            .await
            .is(OVER, "COMPILE_LIMIT_EXCEEDED")
            .with("limit", "compile.max_artifact")
            .with("allowed", 1 << 20);
        let size: u64 = over.metadata["asked"].parse().unwrap();
        for fits in [size, size + 1] {
            with(fits).await.loaded(module.clone()).await;
        }
        refused(&with(size - 1).await, module.clone())
            .await
            .is(OVER, "COMPILE_LIMIT_EXCEEDED")
            .with("asked", size);
    }
}

#[tokio::test]
async fn in_process_compilation_is_told_and_does_the_same() {
    let daemon = Daemon::with(&[("compile.mode", "in-process")]).await;
    let health = daemon.client.clone().health(HealthRequest {}).await;
    assert_eq!(health.unwrap().into_inner().compile_mode, "in-process");
    daemon.ran(kit(&["hello"])).await.exited(0);
    daemon
        .ran(crate::harness::kit_component(&["hello"]))
        .await
        .exited(0);
    let status = daemon.load(functions(600_000)).await.unwrap_err();
    Refused::new(&status).is(OVER, "COMPILE_LIMIT_EXCEEDED");
}

/// Processes that `served` has started and that are still there.
pub(crate) fn children(served: &Served) -> Vec<String> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", served.child.id())).unwrap();
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok())
        .flat_map(|text| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[tokio::test]
async fn a_child_that_is_killed_while_it_waits_is_replaced() {
    let served = Served::start(&[]);
    let mut client = connect(&served.addr).await;
    for i in 0..3 {
        // The next one is started behind the answer to the last.
        let waiting = loop {
            let waiting = children(&served);
            if !waiting.is_empty() {
                break waiting;
            }
            tokio::task::yield_now().await;
        };
        let killed = std::process::Command::new("kill")
            .arg("-KILL")
            .args(&waiting)
            .status();
        assert!(killed.unwrap().success());
        let module = crate::modules::saying(&format!("{i}"), 0);
        let answer = client.load_module(load(module)).await.unwrap();
        assert!(!answer.into_inner().cached);
    }
}

#[tokio::test]
async fn what_the_compiler_does_not_take_is_refused_and_remembered() {
    let daemon = Daemon::start().await;
    // Valid, and more branches than Cranelift has room for in one table.
    let targets = "0 ".repeat(500_000);
    let module = with_start(&format!(
        "(func (block (br_table {targets} (i32.const 1))))"
    ));
    let failed = refused(&daemon, module.clone())
        .await
        .is(Code::InvalidArgument, "COMPILATION_FAILED");
    let compiled = daemon.probe.compilations();
    assert_eq!(refused(&daemon, module).await, failed);
    assert_eq!(daemon.probe.compilations(), compiled);
}
