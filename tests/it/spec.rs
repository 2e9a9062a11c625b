//! Every field of a run's spec: honoured, and refused.

use std::os::unix::fs::symlink;
use std::time::Duration;

use ringfence::api::proto::Outcome;
use ringfence::api::proto::value::Value;
use tonic::Code;

use crate::guests;
use crate::harness::{Daemon, Ran, Refused, SpecExt, by_digest, kit, kit_component, load, spec};

const INVALID: Code = Code::InvalidArgument;
const DENIED: Code = Code::PermissionDenied;

#[tokio::test]
async fn module_inline_as_binary_text_and_component_and_by_digest() {
    let daemon = Daemon::start().await;
    daemon.ran(kit(&["hello"])).await.exited(0);
    daemon.ran(kit_component(&["hello"])).await.exited(0);
    let text = daemon
        .ran(spec("(module (func (export \"_start\")))"))
        .await
        .exited(0);
    // Of the text as received.
    let digest = sha256sum("(module (func (export \"_start\")))");
    assert_eq!(text.result.module_digest, format!("sha256:{digest}"));
    let digest = daemon.loaded(guests::kit()).await;
    let run = by_digest(&digest).args(&["kit", "hello"]);
    let ran = daemon.ran(run).await.exited(0);
    assert_eq!((ran.out(), &ran.result.module_digest), ("hello\n", &digest));
}

fn sha256sum(text: &str) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("sha256sum")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("sha256sum starts");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    String::from_utf8(output).unwrap()[..64].to_owned()
}

#[tokio::test]
async fn a_module_sent_inline_is_cached_but_not_kept() {
    let daemon = Daemon::start().await;
    let ran = daemon.ran(kit(&["hello"])).await.exited(0);
    daemon
        .refused(by_digest(&ran.result.module_digest))
        .await
        .is(Code::NotFound, "MODULE_NOT_FOUND")
        .at("spec.digest");
}

cases!(module_digests_are_checked:
    an_empty_digest_is_refused("", "SPEC_INVALID"),
    a_short_digest_is_refused("sha256:abc", "SPEC_INVALID"),
    a_digest_of_another_algorithm_is_refused(
        "md5:00000000000000000000000000000000",
        "SPEC_INVALID",
    ),
    a_digest_that_is_not_hex_is_refused(
        "sha256:zz00000000000000000000000000000000000000000000000000000000000000",
        "SPEC_INVALID",
    ),
);
async fn module_digests_are_checked(digest: &str, reason: &str) {
    let daemon = Daemon::start().await;
    daemon
        .refused(by_digest(digest))
        .await
        .is(INVALID, reason)
        .at("spec.digest");
}

#[tokio::test]
async fn module_missing_empty_unknown_and_too_large() {
    let daemon = Daemon::with(&[("compile.max_module", "1KiB")]).await;
    let none = spec("").change(|spec| spec.module = None);
    daemon
        .refused(none)
        .await
        .is(INVALID, "SPEC_INVALID")
        .at("spec.module");
    daemon
        .refused(spec(""))
        .await
        .is(INVALID, "SPEC_INVALID")
        .at("spec.wasm");
    let unknown = format!("sha256:{}", "0".repeat(64));
    daemon
        .refused(by_digest(&unknown))
        .await
        .is(Code::NotFound, "MODULE_NOT_FOUND")
        .at("spec.digest");
    let padded = |bytes: usize| {
        let wat = "(module (func (export \"_start\")))";
        format!("{wat}{}", " ".repeat(bytes - wat.len()))
    };
    for fits in [1023, 1024] {
        daemon.ran(spec(padded(fits))).await.exited(0);
        daemon.loaded(padded(fits)).await;
    }
    daemon
        .refused(spec(padded(1025)))
        .await
        .is(INVALID, "MODULE_TOO_LARGE")
        .at("spec.wasm")
        .with("asked", 1025)
        .with("allowed", 1024);
    let status = daemon.load(padded(1025)).await.unwrap_err();
    Refused::new(&status)
        .is(INVALID, "MODULE_TOO_LARGE")
        .at("wasm");
}

#[tokio::test]
async fn entry_point_runs_with_initialize_before_it() {
    let daemon = Daemon::start().await;
    let reactor = || spec(guests::reactor());
    let ran = daemon.ran(reactor().entry("answer")).await.exited(0);
    assert_eq!(ran.out(), "asked\n");
    assert_eq!(values(&ran), [Value::I32(42)]);
    let order = "(module (global $g (mut i32) (i32.const 1))
        (func (export \"_initialize\") (global.set $g (i32.const 5)))
        (func (export \"get\") (result i32) (global.get $g)))";
    let ran = daemon.ran(spec(order).entry("get")).await.exited(0);
    assert_eq!(values(&ran), [Value::I32(5)]);
    let ran = daemon.ran(spec(order).entry("_initialize")).await.exited(0);
    assert!(ran.result.values.is_empty());
    // No _start: a reactor has no command.
    daemon
        .refused(reactor())
        .await
        .is(INVALID, "ENTRY_POINT_NOT_FOUND")
        .with("asked", "_start");
}

fn values(ran: &Ran) -> Vec<Value> {
    ran.result
        .values
        .iter()
        .filter_map(|value| value.value)
        .collect()
}

#[tokio::test]
async fn entry_point_with_numeric_parameters_takes_args_as_text() {
    let daemon = Daemon::start().await;
    let wat = "(module (func (export \"f\") (param i32 i64 f32 f64) (result i32 i64 f32 f64)
        (local.get 0) (local.get 1) (local.get 2) (local.get 3)))";
    for (args, expected) in [
        (["-1", "-1", "1.5", "-2.5"], (-1, -1, 1.5, -2.5)),
        (
            ["4294967295", "18446744073709551615", "inf", "1e300"],
            (-1, -1, f32::INFINITY, 1e300),
        ),
        (
            ["0xff", "0xffffffffffffffff", "0", "0"],
            (255, -1, 0.0, 0.0),
        ),
        (
            ["-0x80000000", "-9223372036854775808", "0", "0"],
            (i32::MIN, i64::MIN, 0.0, 0.0),
        ),
        (["2147483648", "+7", "0", "0"], (i32::MIN, 7, 0.0, 0.0)),
    ] {
        let ran = daemon.ran(spec(wat).entry("f").args(&args)).await.exited(0);
        let (a, b, c, d) = expected;
        let expected = [Value::I32(a), Value::I64(b), Value::F32(c), Value::F64(d)];
        assert_eq!(values(&ran), expected);
    }
    let sum = spec(guests::reactor())
        .entry("add")
        .args(&["1", "2", "0.5", "0.25"]);
    assert_eq!(values(&daemon.ran(sum).await.exited(0)), [Value::F64(3.75)]);
}

cases!(entry_point_that_does_not_fit_is_refused:
    an_entry_point_that_is_missing_is_refused(
        "missing", &[], "ENTRY_POINT_NOT_FOUND", "spec.entry_point",
    ),
    an_entry_point_that_is_a_memory_is_refused(
        "memory", &[], "ENTRY_POINT_NOT_FOUND", "spec.entry_point",
    ),
    an_entry_point_with_a_line_break_is_refused(
        "line\nbreak", &[], "ENTRY_POINT_NOT_FOUND", "spec.entry_point",
    ),
    an_entry_point_with_nul_is_refused("nul\0", &[], "SPEC_INVALID", "spec.entry_point"),
    an_entry_point_with_too_few_args_is_refused("f", &[], "ENTRY_POINT_SIGNATURE", "spec.args"),
    an_entry_point_with_too_many_args_is_refused(
        "f", &["1", "2"], "ENTRY_POINT_SIGNATURE", "spec.args",
    ),
    an_arg_above_i32_is_refused("f", &["4294967296"], "ENTRY_POINT_SIGNATURE", "spec.args[0]"),
    an_arg_below_i32_is_refused("f", &["-2147483649"], "ENTRY_POINT_SIGNATURE", "spec.args[0]"),
    an_arg_of_a_prefix_alone_is_refused("f", &["0x"], "ENTRY_POINT_SIGNATURE", "spec.args[0]"),
    an_arg_with_two_signs_is_refused("f", &["--1"], "ENTRY_POINT_SIGNATURE", "spec.args[0]"),
    an_arg_with_a_fraction_for_an_integer_is_refused(
        "f", &["1.0"], "ENTRY_POINT_SIGNATURE", "spec.args[0]",
    ),
    an_entry_point_that_takes_a_vector_is_refused(
        "v", &["1"], "ENTRY_POINT_SIGNATURE", "spec.entry_point",
    ),
);
async fn entry_point_that_does_not_fit_is_refused(
    entry: &str,
    args: &[&str],
    reason: &str,
    field: &str,
) {
    let daemon = Daemon::start().await;
    let wat = "(module (memory (export \"memory\") 1) (func (export \"f\") (param i32))
        (func (export \"v\") (param v128)))";
    let refused = daemon.refused(spec(wat).entry(entry).args(args)).await;
    assert!(!refused.message.contains('\n'));
    refused.is(INVALID, reason).at(field);
}

#[tokio::test]
async fn a_component_takes_no_entry_point_but_its_run() {
    let daemon = Daemon::start().await;
    daemon
        .refused(kit_component(&["hello"]).entry("other"))
        .await
        .is(INVALID, "ENTRY_POINT_NOT_FOUND");
    daemon
        .refused(spec("(component)"))
        .await
        .is(INVALID, "ENTRY_POINT_NOT_FOUND");
}

#[tokio::test]
async fn args_and_env_arrive_verbatim_and_nothing_else_does() {
    let daemon = Daemon::start().await;
    for run in [kit(&["dump"]), kit_component(&["dump"])] {
        let run = run
            .args(&["any name", "dump", "", "a b", "ü\n"])
            .env(&["A=1", "EMPTY=", "EQ=a=b"]);
        let ran = daemon.ran(run).await.exited(0);
        assert_eq!(
            ran.out(),
            "arg any name\narg dump\narg \narg a b\narg ü\n\nenv A=1\nenv EMPTY=\nenv EQ=a=b\n"
        );
    }
}

cases!(env_is_checked_and_its_values_are_not_quoted:
    env_without_a_value_is_refused(&["A"], "SPEC_INVALID", "spec.env[0]"),
    env_without_a_name_is_refused(&["A=1", "=x"], "SPEC_INVALID", "spec.env[1]"),
    env_given_twice_is_refused(&["A=1", "A=2"], "SPEC_INVALID", "spec.env[1]"),
    env_with_nul_is_refused_and_not_quoted(&["A=s3cret\0"], "SPEC_INVALID", "spec.env[0]"),
);
async fn env_is_checked_and_its_values_are_not_quoted(env: &[&str], reason: &str, field: &str) {
    let daemon = Daemon::start().await;
    let refused = daemon
        .refused(kit(&["dump"]).env(env))
        .await
        .is(INVALID, reason)
        .at(field);
    assert!(!refused.message.contains("s3cret"));
}

#[tokio::test]
async fn args_with_nul_are_refused() {
    let daemon = Daemon::start().await;
    daemon
        .refused(kit(&["a\0b"]))
        .await
        .is(INVALID, "SPEC_INVALID")
        .at("spec.args[1]");
}

#[tokio::test]
async fn stdin_is_given_then_ends() {
    let daemon = Daemon::start().await;
    let bytes: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    for run in [kit(&["echo"]), kit_component(&["echo"])] {
        let ran = daemon.ran(run.clone().stdin(bytes.clone())).await.exited(0);
        assert_eq!(ran.stdout, bytes);
        let ran = daemon.ran(run).await.exited(0);
        assert_eq!(ran.stdout, "");
    }
    let ran = daemon.ran(kit(&["lines"]).stdin("a\nb")).await.exited(0);
    assert_eq!(ran.out(), "<a>\n<b>\n");
}

/// A daemon that grants `read/` and `write/` of a folder.
async fn granting() -> (Daemon, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for name in ["read/sub/deep", "write/sub", "outside"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    std::fs::write(at("read/file"), "from the host").unwrap();
    std::fs::write(at("read/sub/file"), "from below").unwrap();
    std::fs::write(at("outside/secret"), "secret").unwrap();
    symlink(at("outside"), at("read/out")).unwrap();
    symlink("../outside", at("write/up")).unwrap();
    symlink("sub", at("read/within")).unwrap();
    let grants = format!(
        "[{{ host = {:?}, access = \"read\" }}, {{ host = {:?}, access = \"write\" }}]",
        at("read"),
        at("write")
    );
    (Daemon::with(&[("policy.mounts", &grants)]).await, dir)
}

#[tokio::test]
async fn mounts_show_granted_folders() {
    let (daemon, dir) = granting().await;
    for habit in [kit, kit_component] {
        let read = dir.path().join("read");
        let ran = daemon
            .ran(habit(&["read", "/data/file"]).mount(&read, "/data", true))
            .await;
        assert_eq!(ran.exited(0).out(), "from the host");
        let sub = habit(&["read", "/x/file"]).mount(read.join("sub"), "/x", true);
        assert_eq!(daemon.ran(sub).await.exited(0).out(), "from below");
        let link = habit(&["read", "/x/file"]).mount(read.join("within"), "/x", true);
        assert_eq!(daemon.ran(link).await.exited(0).out(), "from below");
        let root = habit(&["list", "/"]).mount(&read, "/", true);
        assert_eq!(
            daemon.ran(root).await.exited(0).out(),
            "file out sub within\n"
        );
        // Links out of a mount lead nowhere.
        let out = habit(&["read", "/data/out/secret"]).mount(&read, "/data", true);
        let ran = daemon.ran(out).await.exited(1);
        assert_eq!(ran.out(), "");

        let write = dir.path().join("write");
        let run = habit(&["write", "/w/new", "text"]);
        daemon
            .ran(run.clone().mount(&write, "/w", false))
            .await
            .exited(0);
        assert_eq!(std::fs::read(write.join("new")).unwrap(), b"text");
        std::fs::remove_file(write.join("new")).unwrap();
        daemon.ran(run.mount(&write, "/w", true)).await.exited(1);
        assert!(!write.join("new").exists());
    }
}

#[tokio::test]
async fn mounts_outside_the_grants_all_answer_alike() {
    let (daemon, dir) = granting().await;
    let refused = async |path: &str| {
        let path = if path.starts_with('/') {
            path.into()
        } else {
            dir.path().join(path)
        };
        let run = kit(&["list", "/m"]).mount(path, "/m", true);
        daemon
            .refused(run)
            .await
            .is(DENIED, "POLICY_DENIED")
            .at("spec.mounts[0].host_path")
            .with("rule", "policy.mounts")
    };
    let there = refused("outside").await;
    for path in [
        "missing",
        "/etc",
        "/etc/passwd",
        "readme",
        "read/out",
        "write/up",
        "",
    ] {
        assert_eq!(refused(path).await, there, "{path}");
    }
    assert!(!there.message.contains(dir.path().to_str().unwrap()));
}

#[tokio::test]
async fn a_grant_leads_where_it_led_when_the_daemon_started() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(at("x/sub")).unwrap();
    std::fs::write(at("x/sub/file"), "granted").unwrap();
    std::fs::write(at("secret"), "secret").unwrap();
    let grants = format!(
        "[{{ host = {:?}, access = \"write\" }}, {{ host = {:?}, access = \"read\" }}]",
        at("x"),
        at("x/sub")
    );
    let daemon = Daemon::with(&[("policy.mounts", &grants)]).await;
    // What a guest with the outer grant can do to the inner one's name.
    std::fs::rename(at("x/sub"), at("x/away")).unwrap();
    symlink("..", at("x/sub")).unwrap();
    let run = kit(&["list", "/m"]).mount(at("x/sub"), "/m", true);
    assert_eq!(daemon.ran(run).await.exited(0).out(), "file\n");
}

cases!(mounts_that_are_no_mounts_are_refused:
    a_mount_through_dot_dot_is_refused(
        "read/../outside", "/m", true, INVALID, "SPEC_INVALID", "host_path",
    ),
    a_mount_of_what_is_missing_is_refused(
        "read/missing", "/m", true, INVALID, "SPEC_INVALID", "host_path",
    ),
    a_mount_of_a_file_is_refused("read/file", "/m", true, INVALID, "SPEC_INVALID", "host_path"),
    a_mount_with_nul_is_refused("read/nul\0", "/m", true, INVALID, "SPEC_INVALID", "host_path"),
    a_mount_at_a_relative_path_is_refused(
        "read", "relative", true, INVALID, "SPEC_INVALID", "guest_path",
    ),
    a_mount_at_a_path_with_dot_dot_is_refused(
        "read", "/a/../b", true, INVALID, "SPEC_INVALID", "guest_path",
    ),
    a_mount_at_an_empty_path_is_refused("read", "", true, INVALID, "SPEC_INVALID", "guest_path"),
    a_writable_mount_of_a_read_only_grant_is_refused(
        "read", "/m", false, DENIED, "POLICY_DENIED", "read_only",
    ),
);
async fn mounts_that_are_no_mounts_are_refused(
    host: &str,
    guest: &str,
    read_only: bool,
    code: Code,
    reason: &str,
    field: &str,
) {
    let (daemon, dir) = granting().await;
    let run = kit(&["hello"]).mount(format!("{}/{host}", dir.path().display()), guest, read_only);
    let field = format!("spec.mounts[0].{field}");
    daemon.refused(run).await.is(code, reason).at(&field);
}

#[tokio::test]
async fn mounts_with_a_relative_host_path_or_a_guest_path_twice_are_refused() {
    let (daemon, dir) = granting().await;
    let read = dir.path().join("read");
    daemon
        .refused(kit(&["hello"]).mount("read", "/m", true))
        .await
        .is(INVALID, "SPEC_INVALID")
        .at("spec.mounts[0].host_path");
    let twice = kit(&["hello"])
        .mount(&read, "/m", true)
        .mount(&read, "/./m/", true);
    daemon
        .refused(twice)
        .await
        .is(INVALID, "SPEC_INVALID")
        .at("spec.mounts[1].guest_path");
}

#[tokio::test]
async fn working_dir_is_where_relative_paths_start() {
    let (daemon, dir) = granting().await;
    let dir_at = |run: ringfence::api::proto::RunSpec, at: &str| {
        run.mount(dir.path().join("read"), "/data", true)
            .change(|spec| spec.working_dir = at.to_owned())
    };
    for habit in [kit, kit_component] {
        for (at, path, expected) in [
            ("/data", "file", "from the host"),
            ("/data/sub", "file", "from below"),
            ("/data/within/", "file", "from below"),
            ("/", "data/file", "from the host"),
            ("", "data/file", "from the host"),
        ] {
            let ran = daemon
                .ran(dir_at(habit(&["read", path]), at))
                .await
                .exited(0);
            assert_eq!(ran.out(), expected, "{at}");
        }
    }
    for at in [
        "relative",
        "/other",
        "/data/missing",
        "/data/file",
        "/data/out",
        "/data/../x",
        "/dat",
    ] {
        daemon
            .refused(dir_at(kit(&["hello"]), at))
            .await
            .is(INVALID, "SPEC_INVALID")
            .at("spec.working_dir");
    }
}

const IMPORTS_WASI: &str = "(module (import \"wasi_snapshot_preview1\" \"sched_yield\" (func (result i32))) (func (export \"_start\")))";

#[tokio::test]
async fn wasi_can_be_withheld() {
    let daemon = Daemon::start().await;
    let without =
        |run: ringfence::api::proto::RunSpec| run.security(|s| s.enable_wasi = Some(false));
    daemon.ran(spec(IMPORTS_WASI)).await.exited(0);
    daemon
        .refused(without(spec(IMPORTS_WASI)))
        .await
        .is(DENIED, "IMPORT_NOT_ALLOWED")
        .with("imports", "wasi_snapshot_preview1.sched_yield");
    let refused = daemon.refused(without(kit_component(&["hello"]))).await;
    assert!(refused.is(DENIED, "IMPORT_NOT_ALLOWED").metadata["imports"].contains("wasi:cli/"));
    let pure = "(module (func (export \"_start\")))";
    daemon.ran(without(spec(pure))).await.exited(0);
    for (field, run) in [
        ("spec.env", spec(pure).env(&["A=1"])),
        ("spec.stdin", spec(pure).stdin("x")),
        ("spec.mounts", spec(pure).mount("/tmp", "/m", true)),
        ("spec.args", spec(pure).args(&["x"])),
        (
            "spec.working_dir",
            spec(pure).change(|s| s.working_dir = "/m".to_owned()),
        ),
    ] {
        daemon
            .refused(without(run))
            .await
            .is(INVALID, "SPEC_INVALID")
            .at(field);
    }
}

#[tokio::test]
async fn wasi_that_the_operator_refuses_cannot_be_asked_for() {
    let daemon = Daemon::with(&[("policy.wasi", "false")]).await;
    daemon
        .refused(spec(IMPORTS_WASI))
        .await
        .is(DENIED, "IMPORT_NOT_ALLOWED");
    daemon
        .refused(spec(IMPORTS_WASI).security(|s| s.enable_wasi = Some(true)))
        .await
        .is(DENIED, "POLICY_DENIED")
        .at("spec.security.enable_wasi");
}

#[tokio::test]
async fn wasi_unstable_is_served_too() {
    let daemon = Daemon::start().await;
    let wat =
        include_str!("../../examples/hello.wat").replace("wasi_snapshot_preview1", "wasi_unstable");
    let ran = daemon.ran(spec(wat)).await.exited(0);
    assert_eq!(ran.out(), "Hello from inside the fence.\n");
    let exit = "(module (import \"wasi_unstable\" \"proc_exit\" (func $exit (param i32)))
        (func (export \"_start\") (call $exit (i32.const 200))))";
    daemon.ran(spec(exit)).await.exited(200);
}

const LOG: &str = "(module
    (import \"ringfence\" \"log\" (func $log (param i32 i32 i32)))
    (memory (export \"memory\") 2) (data (i32.const 0) \"careful\")
    (func (export \"_start\") (call $log (i32.const 3) (i32.const 0) (i32.const 7)))
    (func (export \"at\") (param i32 i32 i32) (call $log (local.get 0) (local.get 1) (local.get 2))))";

#[tokio::test]
async fn host_functions_work_when_asked_for() {
    let daemon = Daemon::start().await;
    let allow = |run: ringfence::api::proto::RunSpec, name: &str| {
        let name = name.to_owned();
        run.security(|s| s.allowed_host_functions = vec![name])
    };
    let ran = daemon
        .ran(allow(spec(LOG), "ringfence.log"))
        .await
        .exited(0);
    assert_eq!(ran.err(), "[warn] careful\n");
    let over = allow(spec(LOG), "ringfence.log").resources(|r| r.output_limit = Some(8));
    assert_eq!(
        daemon.ran(over).await.ended(Outcome::OutputExceeded).err(),
        "[warn] c"
    );
    for (level, ptr, len, code) in [
        ("5", "0", "1", "host_call"),
        ("-1", "0", "1", "host_call"),
        ("0", "131072", "1", "memory_out_of_bounds"),
        ("0", "-1", "-1", "memory_out_of_bounds"),
        ("0", "0", "65536", ""),
        ("0", "0", "65537", "host_call"),
    ] {
        let run = allow(spec(LOG), "ringfence.log")
            .entry("at")
            .args(&[level, ptr, len]);
        assert_eq!(daemon.ran(run).await.trap_code(), code);
    }
    let label = "(module
        (import \"ringfence\" \"label\" (func $label (param i32 i32 i32 i32) (result i32)))
        (import \"wasi_snapshot_preview1\" \"fd_write\" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export \"memory\") 1) (data (i32.const 0) \"teammissing\")
        (func (export \"known\") (result i32)
          (call $label (i32.const 0) (i32.const 4) (i32.const 100) (i32.const 3))
          (i32.store (i32.const 200) (i32.const 100)) (i32.store (i32.const 204) (i32.const 4))
          (drop (call $write (i32.const 1) (i32.const 200) (i32.const 1) (i32.const 300))))
        (func (export \"unknown\") (result i32)
          (call $label (i32.const 4) (i32.const 7) (i32.const 100) (i32.const 3))))";
    let run = |entry| {
        allow(spec(label), "ringfence.label")
            .entry(entry)
            .label("team", "alpha")
    };
    let ran = daemon.ran(run("known")).await.exited(0);
    assert_eq!((values(&ran), ran.out()), (vec![Value::I32(5)], "alp\0"));
    let ran = daemon.ran(run("unknown")).await.exited(0);
    assert_eq!(values(&ran), [Value::I32(-1)]);
}

#[tokio::test]
async fn host_functions_are_refused_unless_asked_for_offered_and_granted() {
    let daemon = Daemon::with(&[("policy.host_functions", "[\"ringfence.label\"]")]).await;
    daemon
        .refused(spec(LOG))
        .await
        .is(DENIED, "IMPORT_NOT_ALLOWED")
        .with("imports", "ringfence.log");
    let ask = |name: &str| spec(LOG).security(|s| s.allowed_host_functions = vec![name.to_owned()]);
    let field = "spec.security.allowed_host_functions";
    daemon
        .refused(ask("ringfence.log"))
        .await
        .is(DENIED, "POLICY_DENIED")
        .at(field);
    daemon
        .refused(ask("env.system"))
        .await
        .is(INVALID, "SPEC_INVALID")
        .at(field);
}

#[tokio::test]
async fn network_reaches_what_is_granted_and_nothing_else() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        use std::io::Write;
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"hi").unwrap();
    });
    let grant = format!("[{{ host = \"127.0.0.1\", ports = [{port}] }}]");
    let daemon = Daemon::with(&[("policy.network", &grant)]).await;
    let connect = |addr: std::net::SocketAddr, on: bool| {
        kit_component(&["connect", &addr.to_string()]).security(|s| s.enable_network = on)
    };
    let granted = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    daemon.ran(connect(granted, false)).await.exited(1);
    let denied = daemon
        .ran(connect(other.local_addr().unwrap(), true))
        .await
        .exited(1);
    assert!(
        denied.out().starts_with("refused: PermissionDenied"),
        "{}",
        denied.out()
    );
    let ran = daemon.ran(connect(granted, true)).await.exited(0);
    assert_eq!(ran.out(), "got hi\n");
    // Preview 1 has none, and may be asked all the same.
    daemon
        .ran(kit(&["hello"]).security(|s| s.enable_network = true))
        .await
        .exited(0);
}

#[tokio::test]
async fn network_that_nobody_granted_is_refused() {
    let daemon = Daemon::start().await;
    daemon
        .refused(kit(&["hello"]).security(|s| s.enable_network = true))
        .await
        .is(DENIED, "POLICY_DENIED")
        .at("spec.security.enable_network");
}

#[tokio::test]
async fn clock_can_be_deterministic() {
    let daemon = Daemon::start().await;
    for run in [kit(&["clock"]), kit_component(&["clock"])] {
        // The guest sleeps for an hour, which returns at once.
        let run = run.security(|s| s.enable_clock = Some(false));
        let first = daemon.ran(run.clone()).await.exited(0);
        let (wall, step) = first.out().trim().split_once(' ').unwrap();
        let wall: u64 = wall.parse().unwrap();
        assert!(
            (1_640_995_200_000..1_640_995_201_000).contains(&wall),
            "{wall}"
        );
        assert_eq!(step, "1");
        assert_eq!(daemon.ran(run).await.exited(0).stdout, first.stdout);
    }
}

#[tokio::test]
async fn clock_is_real_by_default_and_can_be_refused_by_the_operator() {
    let daemon = Daemon::start().await;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_millis();
    // It prints the time, then sleeps for an hour.
    let wat = "(module
        (import \"wasi_snapshot_preview1\" \"clock_time_get\" (func $now (param i32 i64 i32) (result i32)))
        (memory (export \"memory\") 1)
        (func (export \"now\") (result i64)
          (drop (call $now (i32.const 0) (i64.const 1) (i32.const 0))) (i64.load (i32.const 0))))";
    let ran = daemon.ran(spec(wat).entry("now")).await.exited(0);
    let [Value::I64(told)] = values(&ran)[..] else {
        panic!("{ran:?}")
    };
    assert!(told / 1_000_000 >= i64::try_from(now).unwrap());
    let daemon = Daemon::with(&[("policy.clock", "false")]).await;
    let ran = daemon.ran(spec(wat).entry("now")).await.exited(0);
    assert_eq!(values(&ran), [Value::I64(1_640_995_200_000_000_000)]);
    daemon
        .refused(
            spec(wat)
                .entry("now")
                .security(|s| s.enable_clock = Some(true)),
        )
        .await
        .is(DENIED, "POLICY_DENIED")
        .at("spec.security.enable_clock");
}

#[tokio::test]
async fn labels_keep_their_rules() {
    let daemon = Daemon::start().await;
    let run = || spec("(module (func (export \"_start\")))");
    let long = "x".repeat(128);
    let mut full = run().label(&long, &long);
    for i in 0..31 {
        full = full.label(&format!("k{i}"), "");
    }
    daemon.ran(full.clone()).await.exited(0);
    for bad in [
        full.label("one-more", ""),
        run().label(&format!("{long}x"), ""),
        run().label("k", &format!("{long}x")),
        run().label("k", "a\nb"),
        run().label("k\u{7f}", ""),
        run().label("", "v"),
        run().label("ringfence.tenant", "me"),
    ] {
        daemon
            .refused(bad)
            .await
            .is(INVALID, "SPEC_INVALID")
            .at("spec.labels");
    }
}

#[tokio::test]
async fn loading_tells_what_a_module_is() {
    let daemon = Daemon::start().await;
    let wat = "(module $a-name (import \"ringfence\" \"label\" (func (param i32 i32 i32 i32) (result i32)))
        (memory (export \"mem\") 3) (func (export \"f\") (param i64) (result f32) (f32.const 0)))";
    let mut request = load(wat);
    request.name = "mine".to_owned();
    request.labels.insert("team".to_owned(), "a".to_owned());
    request.metered = true;
    let mut client = daemon.client.clone();
    let first = client
        .load_module(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert!(!first.cached);
    assert!(first.compile_duration.unwrap().nanos > 0);
    let module = first.module.unwrap();
    assert_eq!(
        (module.name.as_str(), module.name_section.as_str()),
        ("mine", "a-name")
    );
    assert_eq!(module.kind(), ringfence::api::proto::ModuleKind::Core);
    assert_eq!(
        (module.size, module.memory_minimum_pages),
        (wat.len() as u64, 3)
    );
    assert_eq!(module.labels["team"], "a");
    assert_eq!(module.cached_in, ["memory"]);
    let exports: Vec<_> = module
        .exports
        .iter()
        .map(|e| (&*e.name, &*e.kind, &*e.r#type))
        .collect();
    assert_eq!(
        exports,
        [("mem", "memory", ""), ("f", "func", "(i64) -> (f32)")]
    );
    let imports: Vec<_> = module
        .imports
        .iter()
        .map(|i| (&*i.module, &*i.name, &*i.kind))
        .collect();
    assert_eq!(imports, [("ringfence", "label", "func")]);
    let again = client.load_module(request).await.unwrap().into_inner();
    assert!(again.cached);
    assert_eq!(again.compile_duration.unwrap_or_default().nanos, 0);

    let component = daemon
        .load(guests::kit_component())
        .await
        .unwrap()
        .module
        .unwrap();
    assert_eq!(
        component.kind(),
        ringfence::api::proto::ModuleKind::Component
    );
    assert!(
        component
            .exports
            .iter()
            .any(|e| e.name.starts_with("wasi:cli/run@0.2."))
    );
}

#[tokio::test]
async fn loading_checks_names_labels_and_source() {
    let daemon = Daemon::start().await;
    let wat = "(module)";
    let refused = async |change: &dyn Fn(&mut ringfence::api::proto::LoadModuleRequest)| {
        let mut request = load(wat);
        change(&mut request);
        let status = daemon
            .client
            .clone()
            .load_module(request)
            .await
            .unwrap_err();
        Refused::new(&status).is(INVALID, "SPEC_INVALID")
    };
    refused(&|r| r.source = None).await.at("source");
    refused(&|r| r.source = load("").source).await.at("wasm");
    refused(&|r| r.name = "a\nb".to_owned()).await.at("name");
    refused(&|r| r.name = "x".repeat(129)).await.at("name");
    refused(&|r| {
        r.labels.insert("ringfence.x".to_owned(), String::new());
    })
    .await
    .at("labels");
}

#[tokio::test]
async fn a_full_store_refuses_and_keeps_what_it_has() {
    let daemon = Daemon::with(&[("store.budget", "1MiB")]).await;
    let module = |tag: u8| {
        format!(
            "(module (func (export \"_start\")) (;{};))",
            char::from(tag).to_string().repeat(600_000)
        )
    };
    let digest = daemon.loaded(module(b'a')).await;
    let status = daemon.load(module(b'b')).await.unwrap_err();
    Refused::new(&status)
        .is(Code::ResourceExhausted, "STORE_FULL")
        .with("store", "memory:");
    daemon.ran(by_digest(&digest)).await.exited(0);
    // The same again takes no room.
    assert_eq!(daemon.loaded(module(b'a')).await, digest);
}

#[tokio::test]
async fn a_module_that_was_evicted_runs_all_the_same() {
    // Each module's code and overhead is 64 KiB or more: the cache holds a few of twenty.
    let daemon = Daemon::with(&[("engine.cache_budget", "1MiB")]).await;
    let module = |i: u32| {
        format!(
            "(module (func (export \"_start\")) (func (export \"f\") (result i32) (i32.const {i})))"
        )
    };
    let mut digests = Vec::new();
    for i in 0..20 {
        digests.push(daemon.loaded(module(i)).await);
    }
    for (i, digest) in (0..20).zip(&digests) {
        let ran = daemon.ran(by_digest(digest).entry("f")).await.exited(0);
        assert_eq!(values(&ran), [Value::I32(i)]);
    }
}

#[tokio::test]
async fn timeout_is_checked() {
    let daemon = Daemon::start().await;
    let run = |seconds, nanos| {
        spec("(module (func (export \"_start\")))")
            .change(|spec| spec.timeout = Some(prost_types::Duration { seconds, nanos }))
    };
    for (seconds, nanos) in [(0, 0), (1, 0), (300, 0)] {
        daemon.ran(run(seconds, nanos)).await.exited(0);
    }
    for (seconds, nanos) in [(-1, 0), (0, -1), (0, 1_000_000_000)] {
        daemon
            .refused(run(seconds, nanos))
            .await
            .is(INVALID, "SPEC_INVALID")
            .at("spec.timeout");
    }
    for (seconds, nanos) in [(300, 1), (i64::MAX, 0)] {
        daemon
            .refused(run(seconds, nanos))
            .await
            .is(INVALID, "LIMIT_ABOVE_MAXIMUM")
            .at("spec.timeout")
            .with("allowed", "5m");
    }
}

cases!(the_callers_deadline_ends_the_run_early_enough_to_tell:
    a_deadline_of_a_second_leaves_a_fifth(&["kit", "spin", "partial"], "partial\n", 1000, 400..850),
    a_deadline_of_100_ms_leaves_a_fifth(&["kit", "spin", "partial"], "partial\n", 100, 40..88),
    // A quarter of a second is less than a fifth of it.
    a_deadline_of_ten_seconds_leaves_250_ms(
        &["kit", "sleep", "20000"], "before\n", 10_000, 9_000..9_850,
    ),
);
async fn the_callers_deadline_ends_the_run_early_enough_to_tell(
    args: &[&str],
    says: &str,
    deadline: u64,
    runs_for: std::ops::Range<u64>,
) {
    let daemon = Daemon::start().await;
    // Compiled beforehand, and run once: the deadline is for the run.
    let digest = daemon.loaded(guests::kit()).await;
    daemon
        .ran(by_digest(&digest).args(&["kit", "hello"]))
        .await
        .exited(0);
    let mut tried = Vec::new();
    // A machine can be too busy for any deadline, but not every time.
    for _ in 0..(10_000 / deadline).clamp(3, 60) {
        let request = ringfence::api::proto::RunRequest {
            spec: Some(by_digest(&digest).args(args)),
        };
        let request = crate::harness::within(request, Duration::from_millis(deadline));
        let answer = match daemon.client.clone().run(request).await {
            Ok(answer) => answer.into_inner(),
            Err(late) => {
                tried.push(late.to_string());
                continue;
            }
        };
        let result = answer.result.unwrap();
        assert_eq!(result.outcome(), Outcome::TimedOut);
        // The deadline counts from when the request came, so that the run itself has less.
        let took = Duration::try_from(result.duration.unwrap()).unwrap();
        let took = u64::try_from(took.as_millis()).unwrap();
        if runs_for.contains(&took) && answer.stdout == says {
            return;
        }
        tried.push(format!("{took} ms, {:?}", answer.stdout));
    }
    panic!("not within {runs_for:?}: {tried:?}");
}

/// What is over each ceiling, and the setting that moves it.
#[tokio::test]
async fn a_ceiling_names_the_setting_that_moves_it() {
    let daemon = Daemon::with(&[
        ("policy.max_fuel", "1000"),
        ("defaults.fuel_limit", "1000"),
        ("policy.max_stream_output", "1MiB"),
        ("policy.max_stdin", "1000B"),
        ("policy.max_args", "1000B"),
        ("policy.max_env", "1000B"),
    ])
    .await;
    let nothing = || spec("(module (func (export \"_start\")))");
    let long = "x".repeat(2000);
    let over = [
        (
            nothing().resources(|r| r.memory_pages = Some(4097)),
            "policy.max_memory_pages",
        ),
        (
            nothing().resources(|r| r.stack_size = Some((16 << 20) + 1)),
            "policy.max_stack_size",
        ),
        (
            nothing().resources(|r| r.output_limit = Some((16 << 20) + 1)),
            "policy.max_output",
        ),
        (
            nothing().resources(|r| r.fuel_limit = Some(1001)),
            "policy.max_fuel",
        ),
        (
            nothing().timeout(Duration::from_secs(301)),
            "policy.max_timeout",
        ),
        (nothing().args(&[&long]), "policy.max_args"),
        (nothing().env(&[&format!("K={long}")]), "policy.max_env"),
        (nothing().stdin(long.clone()), "policy.max_stdin"),
    ];
    let names = |refused: Refused, setting: &str| {
        let refused = refused
            .is(INVALID, "LIMIT_ABOVE_MAXIMUM")
            .with("limit", setting);
        let Refused {
            message, metadata, ..
        } = &refused;
        for part in [&metadata["asked"], &metadata["allowed"], setting] {
            assert!(message.contains(part), "{part} in {message}");
        }
    };
    for (run, setting) in over {
        names(daemon.refused(run).await, setting);
    }
    let run = nothing().resources(|r| r.output_limit = Some((1 << 20) + 1));
    let status = daemon.stream(run).await.unwrap_err();
    names(Refused::new(&status), "policy.max_stream_output");
    // The module's own minimum is over the ceiling: nothing that the caller asks for helps.
    let large = "(module (memory 5000) (func (export \"_start\")))";
    let refused = daemon
        .refused(spec(large))
        .await
        .is(Code::FailedPrecondition, "MEMORY_BELOW_MODULE_MINIMUM")
        .with("limit", "policy.max_memory_pages");
    assert!(refused.message.contains("5000") && refused.message.contains("4096"));
}

#[tokio::test]
async fn a_maximum_that_no_setting_moves_names_none() {
    let daemon = Daemon::start().await;
    let mounts = |n: usize| {
        (0..n).fold(kit(&["hello"]), |spec, i| {
            spec.mount("/nowhere", &format!("/m{i}"), true)
        })
    };
    let refused = daemon
        .refused(mounts(33))
        .await
        .is(INVALID, "LIMIT_ABOVE_MAXIMUM")
        .at("spec.mounts")
        .with("asked", 33)
        .with("allowed", 32);
    assert_eq!(refused.metadata.get("limit"), None);
    let refused = daemon
        .refused(kit(&["hello"]).key(&"k".repeat(129)))
        .await
        .is(INVALID, "LIMIT_ABOVE_MAXIMUM")
        .with("asked", 129)
        .with("allowed", 128);
    assert_eq!(refused.metadata.get("limit"), None);
    let labels = (0..33).fold(kit(&["hello"]), |spec, i| spec.label(&format!("{i}"), ""));
    daemon
        .refused(labels)
        .await
        .is(INVALID, "SPEC_INVALID")
        .at("spec.labels")
        .with("allowed", 32);
}

#[tokio::test]
async fn a_missing_entry_point_is_told_with_those_that_there_are() {
    let daemon = Daemon::start().await;
    let some = "(module (func (export \"add\")) (func (export \"sub\")) (memory (export \"m\") 1))";
    for entry in ["", "mul", "m"] {
        let refused = daemon
            .refused(spec(some).entry(entry))
            .await
            .is(INVALID, "ENTRY_POINT_NOT_FOUND")
            .with("allowed", "add, sub");
        assert!(refused.message.contains("add, sub"), "{}", refused.message);
    }
    let refused = daemon.refused(spec("(module)").entry("f")).await;
    assert!(refused.message.contains("exports no function"));
    assert_eq!(refused.metadata.get("allowed"), None);
}
