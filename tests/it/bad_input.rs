//! Modules that are none, that need what is off, that import what nobody offers: each has its error, nothing runs,
//! and the daemon lives on.

use bytes::Bytes;
use ringfence::api::proto::RunSpec;
use tonic::Code;

use crate::guests;
use crate::harness::{Daemon, Refused, SpecExt, spec};

const INVALID: Code = Code::InvalidArgument;

/// `wasm` is refused, by LoadModule and by Run alike, and the daemon still runs others.
async fn refused(daemon: &Daemon, wasm: impl Into<Bytes>) -> Refused {
    let wasm = wasm.into();
    let loaded = Refused::new(&daemon.load(wasm.clone()).await.unwrap_err());
    let run = daemon.refused(spec(wasm)).await;
    assert_eq!((loaded.code, &loaded.reason), (run.code, &run.reason));
    daemon
        .ran(spec("(module (func (export \"_start\")))"))
        .await
        .exited(0);
    run
}

#[tokio::test]
async fn truncated_modules_are_invalid_at_an_offset() {
    let daemon = Daemon::start().await;
    let whole = guests::kit();
    for keep in [4, 7, 8 + 1, 100, whole.len() / 2, whole.len() - 1] {
        let refused = refused(&daemon, whole.slice(..keep))
            .await
            .is(INVALID, "MODULE_INVALID");
        assert!(
            refused.metadata.contains_key("offset"),
            "{keep}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn flipped_bits_never_do_worse_than_a_clear_refusal() {
    let daemon = Daemon::start().await;
    let whole = guests::kit();
    // A fixed walk over the module, so that a failure can be had again.
    let mut state = 0x2545_f491_u64;
    for _ in 0..150 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let bit = usize::try_from(state >> 33).unwrap() % (whole.len() * 8);
        let mut bytes = whole.to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let run = spec(bytes)
            .args(&["kit", "hello"])
            .timeout(std::time::Duration::from_secs(1));
        match daemon.run(run).await {
            // Not every bit matters, and a valid module may do anything that its outcome then tells.
            Ok(answer) => assert_ne!(answer.result.unwrap().outcome, 0),
            Err(status) => {
                let reason = Refused::new(&status).reason;
                assert_ne!(reason, "INTERNAL", "bit {bit}");
            }
        }
    }
    daemon.ran(crate::harness::kit(&["hello"])).await.exited(0);
}

#[tokio::test]
async fn random_bytes_are_invalid() {
    let daemon = Daemon::start().await;
    let noise: Vec<u8> = (0..5000u32)
        .map(|i| i.wrapping_mul(2_654_435_761).to_be_bytes()[0])
        .collect();
    refused(&daemon, noise.clone())
        .await
        .is(INVALID, "MODULE_INVALID");
    let headed = [b"\0asm\x01\0\0\0".to_vec(), noise].concat();
    let headed = refused(&daemon, headed).await.is(INVALID, "MODULE_INVALID");
    assert!(headed.metadata.contains_key("offset"));
}

cases!(text_that_says_no_module_is_invalid:
    text_that_does_not_type_check_is_invalid("(module (func (export \"_start\") (i32.const 1)))"),
    text_that_calls_an_unknown_function_is_invalid(
        "(module (func $f) (func (export \"_start\") (call $g)))",
    ),
    text_that_breaks_off_is_invalid("(module"),
    text_that_is_no_wat_is_invalid("hello"),
    blank_text_is_invalid(" "),
);
async fn text_that_says_no_module_is_invalid(wat: &str) {
    let daemon = Daemon::start().await;
    let refused = refused(&daemon, wat.to_owned())
        .await
        .is(INVALID, "MODULE_INVALID");
    assert!(!refused.message.contains('\n'), "{}", refused.message);
}

#[tokio::test]
async fn native_code_is_not_accepted() {
    let daemon = Daemon::start().await;
    // What a wasmtime of the same version makes of a module, as `wasmtime compile` would.
    let engine = wasmtime::Engine::default();
    let native = engine.precompile_module(b"\0asm\x01\0\0\0").unwrap();
    let refused = refused(&daemon, native).await.is(INVALID, "MODULE_INVALID");
    assert!(
        refused.message.contains("native code"),
        "{}",
        refused.message
    );
}

cases!(proposals_that_are_off_are_named:
    gc_is_named_for_a_struct(
        "gc",
        "(module (type (struct (field i32))) (func (export \"_start\")))",
    ),
    gc_is_named_for_an_externref_local(
        "gc",
        "(module (func (export \"_start\") (local externref)))",
    ),
    function_references_are_named(
        "function-references",
        "(module (type $f (func)) (func (param (ref $f))) (func (export \"_start\")))",
    ),
    exceptions_are_named("exceptions", "(module (tag) (func (export \"_start\")))"),
    threads_are_named_for_an_atomic(
        "threads",
        "(module (memory 1) (func (export \"_start\") (atomic.fence)))",
    ),
    shared_memory_is_named(
        "shared-memory",
        "(module (memory 1 1 shared) (func (export \"_start\")))",
    ),
    memory64_is_named("memory64", "(module (memory i64 1) (func (export \"_start\")))"),
    custom_page_sizes_are_named(
        "custom-page-sizes",
        "(module (memory 1 (pagesize 1)) (func (export \"_start\")))",
    ),
    wide_arithmetic_is_named(
        "wide-arithmetic",
        "(module (func (export \"_start\") (i64.add128 (i64.const 0) (i64.const 0) (i64.const 0) (i64.const 0)) drop drop))",
    ),
);
async fn proposals_that_are_off_are_named(feature: &str, wat: &str) {
    let daemon = Daemon::start().await;
    refused(&daemon, wat.to_owned())
        .await
        .is(Code::FailedPrecondition, "FEATURE_NOT_ENABLED")
        .with("feature", feature);
    if wat.contains("shared") {
        // Atomics can be had; memory that threads share cannot.
        let on = Daemon::with(&[("engine.features", "[\"threads\"]")]).await;
        refused(&on, wat.to_owned())
            .await
            .is(Code::FailedPrecondition, "FEATURE_NOT_ENABLED")
            .with("feature", "shared-memory");
        return;
    }
    let on = Daemon::with(&[("engine.features", &format!("[{feature:?}]"))]).await;
    on.ran(spec(wat.to_owned())).await.exited(0);
    let health = on
        .client
        .clone()
        .health(ringfence::api::proto::HealthRequest {})
        .await
        .unwrap();
    let features = health.into_inner().runtime.unwrap().features;
    assert!(
        features.contains(&format!("wasm:{feature}")),
        "{features:?}"
    );
}

#[tokio::test]
async fn imports_that_nobody_offers_are_named_each() {
    let daemon = Daemon::start().await;
    let wat = "(module (import \"env\" \"system\" (func)) (import \"wasi_snapshot_preview1\" \"sock_open\" (func (param i32 i32 i32) (result i32)))
        (import \"env\" \"memory\" (memory 1)) (func (export \"_start\")))";
    let imports = refused(&daemon, wat)
        .await
        .is(Code::PermissionDenied, "IMPORT_NOT_ALLOWED");
    assert_eq!(
        imports.metadata["imports"],
        "env.system, wasi_snapshot_preview1.sock_open, env.memory"
    );
    let many: String = (0..1000)
        .map(|i| format!("(import \"{}\" \"f{i}\" (func))", "m".repeat(500)))
        .collect();
    let many = refused(
        &daemon,
        format!("(module {many} (func (export \"_start\")))"),
    )
    .await;
    assert!(
        many.is(Code::PermissionDenied, "IMPORT_NOT_ALLOWED")
            .metadata["imports"]
            .ends_with("and 992 more")
    );
}

#[tokio::test]
async fn imports_of_another_type_are_refused() {
    let daemon = Daemon::start().await;
    let wat = "(module (import \"wasi_snapshot_preview1\" \"fd_write\" (func (param i64))) (func (export \"_start\")))";
    daemon
        .refused(spec(wat))
        .await
        .is(Code::PermissionDenied, "IMPORT_NOT_ALLOWED");
}

#[tokio::test]
async fn components_with_unknown_imports_are_refused() {
    let daemon = Daemon::start().await;
    for name in [
        "wasi:http/outgoing-handler@0.2.0",
        "acme:secret/store@1.0.0",
        "wasi:clocks/monotonic-clock@0.3.0",
    ] {
        let wat = format!("(component (import \"{name}\" (instance)))");
        let imports = refused(&daemon, wat)
            .await
            .is(Code::PermissionDenied, "IMPORT_NOT_ALLOWED");
        assert_eq!(imports.metadata["imports"], name);
    }
}

#[tokio::test]
async fn names_with_control_characters_and_invalid_utf8_reach_nobody_raw() {
    let daemon = Daemon::start().await;
    let evil =
        "(module (import \"a\\nb\\1b[31m\" \"c\\e2\\80\\ae\" (func)) (func (export \"_start\")))";
    let imports = refused(&daemon, evil)
        .await
        .is(Code::PermissionDenied, "IMPORT_NOT_ALLOWED");
    assert_eq!(imports.metadata["imports"], "a\\nb\\u{1b}[31m.c\\u{202e}");
    // An export whose name is the byte 0xff.
    let mut bytes = b"\0asm\x01\0\0\0".to_vec();
    bytes.extend([
        1, 4, 1, 0x60, 0, 0, 3, 2, 1, 0, 7, 5, 1, 1, 0xff, 0, 0, 10, 4, 1, 2, 0, 0x0b,
    ]);
    refused(&daemon, bytes).await.is(INVALID, "MODULE_INVALID");
    let named = "(module (@name \"bad\\nname\") (func (@name \"evil\\1b\") (export \"_start\") unreachable))";
    let answer = daemon.run(spec(named)).await.unwrap();
    let trap = answer.result.unwrap().trap.unwrap();
    let frame = &trap.backtrace[0];
    assert_eq!(frame.func_name, "evil\\u{1b}");
    assert_eq!(frame.module_name, "bad\\nname");
}

#[tokio::test]
async fn a_module_whose_code_no_cache_can_hold_is_over_a_limit() {
    let daemon = Daemon::with(&[("engine.cache_budget", "1MiB")]).await;
    let functions: String = (0..16_000)
        .map(|i| format!("(func (param i32) (result i32) (i32.mul (local.get 0) (i32.const {i})))"))
        .collect();
    refused(
        &daemon,
        format!("(module (func (export \"_start\")) {functions})"),
    )
    .await
    .is(Code::FailedPrecondition, "COMPILE_LIMIT_EXCEEDED")
    .with("limit", "engine.cache_budget");
}

#[tokio::test]
async fn the_queue_of_compilations_is_bounded() {
    let daemon = Daemon::with(&[("compile.queue", "1")]).await;
    let calls: Vec<_> = (0..24u32)
        .map(|i| {
            let mut client = daemon.client.clone();
            let functions: String = (0..3000)
                .map(|j| {
                    format!(
                        "(func (param i32) (result i32) (i32.add (local.get 0) (i32.const {})))",
                        i * 10_000 + j
                    )
                })
                .collect();
            let request = crate::harness::load(format!("(module {functions})"));
            tokio::spawn(async move { client.load_module(request).await })
        })
        .collect();
    let mut full = 0;
    for call in calls {
        if let Err(status) = call.await.unwrap() {
            let refused = Refused::new(&status).is(Code::ResourceExhausted, "QUEUE_FULL");
            assert!(refused.retry);
            full += 1;
        }
    }
    assert!(full > 0, "24 at once do not fit a queue of one");
}

#[tokio::test]
async fn a_module_too_large_for_the_pool_runs_on_demand() {
    let daemon = Daemon::start().await;
    let memories = "(memory 1)".repeat(5);
    let ran = daemon
        .ran(RunSpec {
            ..spec(format!("(module {memories} (func (export \"_start\")))"))
        })
        .await;
    assert_eq!(ran.exited(0).result.memory_used, 5 << 16);
    let table = "(module (table 100000 funcref) (func (export \"_start\")))";
    daemon.ran(spec(table)).await.exited(0);
}

#[tokio::test]
async fn what_no_store_could_hold_is_refused_for_what_it_is() {
    let daemon = Daemon::start().await;
    let module =
        |what: &str, n: usize| format!("(module {} (func (export \"_start\")))", what.repeat(n));
    for (what, most) in [("(memory 0)", 32), ("(table 0 funcref)", 64)] {
        daemon.ran(spec(module(what, most))).await.exited(0);
        refused(&daemon, module(what, most + 1))
            .await
            .is(INVALID, "LIMIT_ABOVE_MAXIMUM")
            .at("module")
            .with("asked", most + 1)
            .with("allowed", most);
    }
}
