//! What a module is made of: how much of it there may be, what an instance of it takes, which proposals it needs.

use bytes::Bytes;
use ringfence::api::proto::Outcome;
use tonic::Code;

use crate::harness::{Daemon, Refused, SpecExt, by_digest, kit, spec};
use crate::tenants::two;

fn binary(text: &str) -> Bytes {
    wat::parse_str(text).unwrap().into()
}

async fn refused(daemon: &Daemon, wasm: impl Into<Bytes>) -> Refused {
    Refused::new(&daemon.load(wasm).await.unwrap_err())
}

/// A component with `parts`, whose command does nothing.
fn component(parts: &str) -> Bytes {
    binary(&format!(
        "(component {parts}
           (core module $main (func (export \"run\") (result i32) (i32.const 0)))
           (core instance $command (instantiate $main))
           (func $run (result (result)) (canon lift (core func $command \"run\")))
           (instance $cli (export \"run\" (func $run)))
           (export \"wasi:cli/run@0.2.0\" (instance $cli)))"
    ))
}

fn numbered(count: usize, each: impl Fn(usize) -> String) -> String {
    (0..count).map(each).collect()
}

cases!(what_costs_nothing_to_compile_may_be_there_in_any_number:
    // The most that any engine takes; Go's linker stops there too.
    data_segments_as_go_makes_them(&format!(
        "(memory 7) {}",
        numbered(100_000, |i| format!("(data (i32.const {}) \"x\")", i * 4))
    )),
    element_segments(&format!(
        "(table 1 funcref) (func $f) {}",
        "(elem (i32.const 0) $f)".repeat(100_000)
    )),
    globals(&"(global i32 (i32.const 0))".repeat(200_000)),
    imports(&"(import \"wasi_snapshot_preview1\" \"proc_exit\" (func (param i32)))".repeat(50_000)),
    exports(&numbered(30_000, |i| format!("(export \"{i}\" (func 0))"))),
    types(&"(type (func))".repeat(500_000)),
    elements_of_a_table(&format!(
        "(table 1000000 funcref) (func $f) (elem (i32.const 0) func {})",
        "$f ".repeat(1_000_000)
    )),
);
async fn what_costs_nothing_to_compile_may_be_there_in_any_number(items: &str) {
    let daemon = Daemon::start().await;
    let wasm = binary(&format!("(module {items} (func (export \"_start\")))"));
    let digest = daemon.loaded(wasm).await;
    daemon.ran(by_digest(&digest)).await.exited(0);
}

cases!(what_costs_more_than_the_budget_is_refused_at_once:
    functions("functions", &"(func)".repeat(600_000)),
    types_that_differ("function types", &numbered(600_000, |i| {
        let params = numbered(10, |bit| {
            ["i32", "i64", "f32", "f64"][(i >> (2 * bit)) & 3].to_owned() + " "
        });
        format!("(type (func (param {params})))")
    })),
    passive_elements("passive table elements", &format!(
        "(func $f) (elem func {})",
        "$f ".repeat(700_000)
    )),
);
async fn what_costs_more_than_the_budget_is_refused_at_once(what: &str, items: &str) {
    let daemon = Daemon::start().await;
    let wasm = binary(&format!("(module {items})"));
    let compiled = daemon.probe.compilations();
    let refused = refused(&daemon, wasm)
        .await
        .is(Code::FailedPrecondition, "COMPILE_LIMIT_EXCEEDED")
        .with("limit", "compile.memory")
        .with("allowed", "2.0 GiB");
    assert!(refused.message.contains(what), "{}", refused.message);
    assert!(refused.metadata["asked"].ends_with(" GiB"), "{refused:?}");
    assert_eq!(daemon.probe.compilations(), compiled);
}

#[tokio::test]
async fn a_budget_moves_what_is_refused() {
    // 3,800 bytes are counted for a function, and 4,000 for the one type that they have.
    const MIB: usize = 64;
    const FIT: usize = ((MIB << 20) - 4000) / 3800;
    let daemon = Daemon::with(&[("compile.memory", &format!("{MIB}MiB"))]).await;
    let functions = |count: usize| format!("(module {})", "(func)".repeat(count));
    for count in [FIT, FIT + 1] {
        for wasm in [binary(&functions(count)), functions(count).into()] {
            let told = format!("{count} functions");
            match daemon.load(wasm).await {
                // What is counted is a part of what compiling takes: whether one that fits by it does, its child
                // finds out.
                Ok(_) => assert_eq!(count, FIT),
                Err(status) => {
                    let refused = Refused::new(&status)
                        .is(Code::FailedPrecondition, "COMPILE_LIMIT_EXCEEDED")
                        .with("limit", "compile.memory");
                    let counted = refused.message.contains(&told);
                    assert_eq!(counted, count > FIT, "{}", refused.message);
                }
            }
        }
    }
    daemon.loaded(functions(1_000)).await;
}

fn leb128(mut n: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while n > 0x7f {
        bytes.push(u8::try_from(n & 0x7f).unwrap() | 0x80);
        n >>= 7;
    }
    bytes.push(u8::try_from(n).unwrap());
    bytes
}

#[tokio::test]
async fn components_may_be_nested_a_hundred_deep() {
    let daemon = Daemon::start().await;
    // By hand: the text format's parser has a depth of its own.
    let nested = |depth: usize| {
        let mut component = b"\0asm\x0d\0\x01\0".to_vec();
        for _ in 0..depth {
            let inner = std::mem::replace(&mut component, b"\0asm\x0d\0\x01\0\x04".to_vec());
            component.extend(leb128(inner.len()));
            component.extend(inner);
        }
        component
    };
    for fits in [99, 100] {
        daemon.loaded(nested(fits)).await;
    }
    refused(&daemon, nested(101))
        .await
        .is(Code::FailedPrecondition, "COMPILE_LIMIT_EXCEEDED")
        .with("limit", "nesting")
        .with("allowed", 100);
}

#[tokio::test]
async fn a_component_needs_the_memory_that_its_instances_have() {
    let daemon = Daemon::start().await;
    let module = "(core module $m (memory 200))";
    let thrice = "(core instance (instantiate $m))".repeat(3);
    let inner =
        "(component $c (import \"m\" (core module $given)) (core instance (instantiate $given)))";
    let given = "(instance (instantiate $c (with \"m\" (core module $m))))".repeat(3);
    let outer = format!(
        "(component $c (core module $m (memory 100)) {0} {0}) {1}",
        "(core instance (instantiate $m))",
        "(instance (instantiate $c))".repeat(3),
    );
    let exported = "(component $c (core module $m (memory 600)) (export \"m\" (core module $m)))
        (instance $i (instantiate $c))
        (alias export $i \"m\" (core module $a))
        (core instance (instantiate $a))";
    for (parts, pages) in [
        (format!("{module} {thrice}"), 600),
        (format!("{module} {inner} {given}"), 600),
        (outer, 600),
        (exported.to_owned(), 600),
        // Never instantiated.
        (module.to_owned(), 0),
        (format!("(component $c {module} {thrice})"), 0),
    ] {
        let loaded = daemon.load(component(&parts)).await.unwrap();
        let module = loaded.module.unwrap();
        assert_eq!(module.memory_minimum_pages, pages, "{parts}");
        let with = |pages: u64| {
            let pages = u32::try_from(pages).unwrap();
            by_digest(&module.digest).resources(|r| r.memory_pages = Some(pages))
        };
        daemon.ran(by_digest(&module.digest)).await.exited(0);
        daemon.ran(with(pages.max(1))).await.exited(0);
        daemon.ran(with(pages + 1)).await.exited(0);
        if pages > 0 {
            daemon
                .refused(with(pages - 1))
                .await
                .is(Code::FailedPrecondition, "MEMORY_BELOW_MODULE_MINIMUM");
        }
    }
}

cases!(an_instance_takes_no_more_than_a_store_holds:
    // The command's own instance is one of them.
    instances("core instances", 200, "", |n| {
        format!("(core module $m) {}", "(core instance (instantiate $m))".repeat(n - 1))
    }),
    instances_of_components("core instances", 200, "", |n| format!(
        "(component $c (core module $m) (core instance (instantiate $m))) {}",
        "(instance (instantiate $c))".repeat(n - 1)
    )),
    memories_of_instances("memories", 32, "", |n| {
        format!("(core module $m (memory 1)) {}", "(core instance (instantiate $m))".repeat(n))
    }),
    tables_of_instances("tables", 64, "", |n| format!(
        "(core module $m (table 1 funcref)) {}",
        "(core instance (instantiate $m))".repeat(n)
    )),
    memories("memories", 32, "core", |n| "(memory 1)".repeat(n)),
    tables("tables", 64, "core", |n| "(table 1 funcref)".repeat(n)),
);
async fn an_instance_takes_no_more_than_a_store_holds(
    what: &str,
    most: usize,
    kind: &str,
    with: impl Fn(usize) -> String,
) {
    let daemon = Daemon::start().await;
    let module = |count: usize| match kind {
        "core" => binary(&format!(
            "(module {} (func (export \"_start\")))",
            with(count)
        )),
        _ => component(&with(count)),
    };
    for count in [most - 1, most] {
        let digest = daemon.loaded(module(count)).await;
        daemon.ran(by_digest(&digest)).await.exited(0);
    }
    let refused = refused(&daemon, module(most + 1))
        .await
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM")
        .with("asked", most + 1)
        .with("allowed", most);
    assert!(refused.message.contains(what), "{}", refused.message);
    daemon
        .refused(spec(module(most + 1)))
        .await
        .is(Code::InvalidArgument, "LIMIT_ABOVE_MAXIMUM");
}

#[tokio::test]
async fn tables_have_a_million_elements_together() {
    let daemon = Daemon::start().await;
    let one =
        |elements: usize| format!("(module (table {elements} funcref) (func (export \"_start\")))");
    let two = |elements: usize| {
        let half = elements / 2;
        component(&format!(
            "(core module $m (table {half} funcref))
             (core module $n (table {} funcref))
             (core instance (instantiate $m)) (core instance (instantiate $n))",
            elements - half
        ))
    };
    const MOST: usize = 1 << 20;
    for elements in [MOST - 1, MOST] {
        daemon.ran(spec(one(elements))).await.exited(0);
        daemon.ran(spec(two(elements))).await.exited(0);
    }
    for over in [binary(&one(MOST + 1)), two(MOST + 1)] {
        let ran = daemon.ran(spec(over)).await.ended(Outcome::MemoryExceeded);
        assert!(ran.result.memory_denied);
    }
}

#[tokio::test]
async fn components_that_name_more_instances_than_there_are_atoms_are_refused() {
    let daemon = Daemon::start().await;
    let mut parts = "(component $c0 (core module $m) (core instance (instantiate $m)))".to_owned();
    for i in 1..60 {
        let inner = format!("(instance (instantiate $c{}))", i - 1);
        parts += &format!("(component $c{i} {inner} {inner})");
    }
    parts += "(instance (instantiate $c59))";
    refused(&daemon, component(&parts))
        .await
        .is(Code::FailedPrecondition, "COMPILE_LIMIT_EXCEEDED")
        .with("limit", "instantiation steps");
    daemon.ran(kit(&["hello"])).await.exited(0);
}

/// Globals that overflow a set inside Cranelift 0.135.
fn crashes_the_compiler() -> Bytes {
    let globals = "(global (mut i32) (i32.const 0))".repeat(66_000);
    let reads = numbered(66_000, |i| format!("(drop (global.get {i}))"));
    binary(&format!(
        "(module {globals} (func (export \"_start\") {reads}))"
    ))
}

cases!(a_module_that_crashes_the_compiler_is_refused_and_remembered:
    in_a_child("child"),
    in_the_daemon("in-process"),
);
async fn a_module_that_crashes_the_compiler_is_refused_and_remembered(mode: &str) {
    let daemon = Daemon::with(&[("compile.mode", mode)]).await;
    let module = crashes_the_compiler();
    let before = daemon.probe.compilations();
    let crashed = refused(&daemon, module.clone())
        .await
        .is(Code::InvalidArgument, "COMPILATION_FAILED")
        .at("module");
    assert!(!crashed.message.contains("panick"), "{}", crashed.message);
    // The second time it is remembered, whoever asks, and by whatever method.
    assert_eq!(refused(&daemon, module.clone()).await, crashed);
    let run = daemon.refused(spec(module)).await;
    assert_eq!((run.code, run.message), (crashed.code, crashed.message));
    assert_eq!(daemon.probe.compilations(), before + 1);
    daemon.ran(kit(&["hello"])).await.exited(0);
}

/// Throws and catches.
const EXCEPTIONS: &str = "(module (tag $t) (func (export \"_start\")
    (block $caught (try_table (catch_all $caught) (throw $t)) unreachable)))";

#[tokio::test]
async fn proposals_are_a_tenants_own() {
    let granted = "policy = { features = [\"exceptions\"] }";
    let (daemon, a, b, _dir) = two(granted, "weight = 1", &[]).await;
    let digest = a.loaded(EXCEPTIONS).await;
    a.ran(by_digest(&digest)).await.exited(0);
    a.ran(spec(EXCEPTIONS)).await.exited(0);
    // What another has compiled already is no way around it.
    let of_b = Refused::new(&b.load(EXCEPTIONS).await.unwrap_err());
    for refused in [of_b, b.refused(spec(EXCEPTIONS)).await] {
        let refused = refused
            .is(Code::FailedPrecondition, "FEATURE_NOT_ENABLED")
            .with("feature", "exceptions")
            .with("rule", "policy.features");
        assert!(
            refused.message.contains("policy.features"),
            "{}",
            refused.message
        );
    }
    // One proposal is no other, and brings none along that it builds on.
    let typed = "(module (type $f (func)) (func (export \"_start\") (param (ref $f)) (call_ref $f (local.get 0))))";
    for (wat, feature) in [
        (
            "(module (table 1 externref) (func (export \"_start\")))",
            "gc",
        ),
        (typed, "function-references"),
        (
            "(module (memory i64 1) (func (export \"_start\")))",
            "memory64",
        ),
    ] {
        a.refused(spec(wat))
            .await
            .is(Code::FailedPrecondition, "FEATURE_NOT_ENABLED")
            .with("feature", feature);
    }
    drop(daemon);
}

#[tokio::test]
async fn a_proposal_for_all_and_one_for_a_tenant_add_up() {
    let granted = "policy = { features = [\"exceptions\"] }";
    let both = "(module (memory i64 1) (tag $t) (func (export \"_start\")
        (block $caught (try_table (catch_all $caught) (throw $t)) unreachable)))";
    let set = [("engine.features", "[\"memory64\"]")];
    let (_daemon, a, b, _dir) = two(granted, "weight = 1", &set).await;
    a.ran(spec(both)).await.exited(0);
    b.refused(spec(both))
        .await
        .is(Code::FailedPrecondition, "FEATURE_NOT_ENABLED")
        .with("feature", "exceptions");
    let memory64 = "(module (memory i64 1) (func (export \"_start\")))";
    b.ran(spec(memory64)).await.exited(0);
    // Metered code is another artefact, and another stack another engine.
    let metered = spec(both).resources(|r| {
        r.fuel_limit = Some(1_000_000);
        r.stack_size = Some(4 << 20);
    });
    a.ran(metered).await.exited(0);
}

cases!(what_no_setting_turns_on_is_called_that:
    legacy_exceptions("legacy-exceptions", "(module (func (export \"_start\") try catch_all end))"),
    shared_memory("shared-memory", "(module (memory 1 1 shared) (func (export \"_start\")))"),
    async_components("component-model-async", "(component
        (core module $m (func (export \"f\")))
        (core instance $i (instantiate $m))
        (func $f async (canon lift (core func $i \"f\") async))
        (export \"f\" (func $f)))"),
    wasi_0_3("wasi-0.3", "(component
        (import \"wasi:cli/environment@0.3.0\" (instance))
        (core module $m (func (export \"f\")))
        (core instance $i (instantiate $m))
        (func $f async (canon lift (core func $i \"f\") async))
        (export \"f\" (func $f)))"),
    stack_switching("stack-switching", "(module (type $f (func)) (type $c (cont $f)))"),
);
async fn what_no_setting_turns_on_is_called_that(feature: &str, text: &str) {
    let all = "[\"gc\", \"function-references\", \"exceptions\", \"threads\", \"memory64\"]";
    for features in ["[]", all] {
        let daemon = Daemon::with(&[("policy.features", features)]).await;
        let refused = refused(&daemon, text.to_owned())
            .await
            .is(Code::FailedPrecondition, "FEATURE_NOT_ENABLED")
            .at("module");
        let told = &refused.metadata["feature"];
        assert!(told.split(", ").any(|told| told == feature), "{told}");
        assert!(!refused.metadata.contains_key("rule"), "{refused:?}");
        assert!(
            refused.message.contains("whatever its settings"),
            "{}",
            refused.message
        );
    }
}

#[tokio::test]
async fn a_large_module_is_told_what_it_needs_as_a_small_one_is() {
    let daemon = Daemon::start().await;
    let filler = "x".repeat(3 << 20);
    for (items, feature) in [
        ("(tag)", "exceptions"),
        ("(func try catch_all end)", "legacy-exceptions"),
        ("(memory i64 1)", "memory64"),
    ] {
        let wasm = binary(&format!(
            "(module {items} (@custom \"filler\" \"{filler}\"))"
        ));
        refused(&daemon, wasm)
            .await
            .is(Code::FailedPrecondition, "FEATURE_NOT_ENABLED")
            .with("feature", feature);
    }
}
