//! The command line, as a user has it: the built binary, its streams and exit codes.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::guests;
use crate::process::{Served, interruptible, ringfence};

fn run(args: &[&str]) -> Output {
    ringfence()
        .arg("run")
        .args(args)
        .output()
        .expect("it starts")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

/// The kit as a file, written anew by each test run.
pub(crate) fn kit() -> String {
    static WRITTEN: OnceLock<String> = OnceLock::new();
    let write = || {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cli-kit.wasm");
        // In one step, for another test run beside this one.
        let new = path.with_extension(std::process::id().to_string());
        std::fs::write(&new, guests::kit()).unwrap();
        std::fs::rename(&new, &path).unwrap();
        path.to_str().unwrap().to_owned()
    };
    WRITTEN.get_or_init(write).clone()
}

#[test]
fn the_first_command_of_the_readme_prints_what_the_guest_says() {
    let output = run(&["examples/hello.wat"]);
    assert_eq!(text(&output.stdout), "Hello from inside the fence.\n");
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));
}

#[test]
fn streams_and_exit_codes_are_passed_on() {
    let kit = kit();
    for stream in ["--stream", "--no-stream"] {
        let output = run(&[stream, &kit, "both", "2"]);
        assert_eq!(text(&output.stdout), "out 0\nout 1\n");
        assert_eq!(text(&output.stderr), "err 0\nerr 1\n");
        for code in [0, 1, 7, 124, 255] {
            let output = run(&[stream, &kit, "exit", &code.to_string()]);
            assert_eq!(
                (output.status.code(), text(&output.stderr)),
                (Some(code), "")
            );
        }
        let output = run(&[stream, &kit, "exit", "300"]);
        assert_eq!(output.status.code(), Some(255));
        assert_eq!(
            text(&output.stderr),
            "ringfence: the guest exited with 300\n"
        );
    }
}

#[test]
fn arguments_environment_and_labels_reach_the_guest() {
    let output = run(&[
        "--env",
        "A=1",
        "--env=B=x=y",
        &kit(),
        "dump",
        "--flag",
        "-x",
        "a b",
    ]);
    assert_eq!(
        text(&output.stdout),
        "arg cli-kit.wasm\narg dump\narg --flag\narg -x\narg a b\nenv A=1\nenv B=x=y\n"
    );
    let label = "(module (import \"ringfence\" \"label\" (func $l (param i32 i32 i32 i32) (result i32)))
        (memory (export \"memory\") 1) (data (i32.const 0) \"team\")
        (func (export \"f\") (result i32) (call $l (i32.const 0) (i32.const 4) (i32.const 9) (i32.const 9))))";
    let output = piped(
        &[
            "--label",
            "team=alpha",
            "--allow-host-function",
            "ringfence.label",
            "--entry",
            "f",
            "-",
        ],
        label.as_bytes(),
    );
    assert_eq!(text(&output.stdout), "5\n");
}

fn piped(args: &[&str], input: &[u8]) -> Output {
    let mut child = ringfence()
        .arg("run")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that refuses before it reads closes the pipe.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn piped_input_is_the_guests_and_a_file_can_be() {
    let kit = kit();
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert_eq!(piped(&[&kit, "echo"], &bytes).stdout, bytes);
    assert_eq!(
        piped(&["--stdin", "-", &kit, "echo"], b"abc").stdout,
        b"abc"
    );
    let hello = guests::root().join("examples/hello.wat");
    let output = run(&["--stdin", hello.to_str().unwrap(), &kit, "echo"]);
    assert_eq!(output.stdout, std::fs::read(hello).unwrap());
    let output = piped(&["--stdin", "-", "-"], b"(module)");
    assert_eq!(output.status.code(), Some(125));
}

#[test]
fn every_way_to_end_has_its_code_and_one_line() {
    let kit = kit();
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("deep.wat");
    std::fs::write(&deep, "(module (func $f (export \"_start\") (call $f)))").unwrap();
    for (args, code, line) in [
        (
            vec!["--timeout", "200ms", &kit, "spin"],
            124,
            "; --timeout (spec.timeout) asks for more",
        ),
        (
            vec!["--timeout", "200ms", &kit, "spin"],
            124,
            "the run timed out after 2",
        ),
        (vec!["no-such-file"], 125, "cannot read no-such-file"),
        (
            vec!["--server", "127.0.0.1:1", &kit],
            125,
            "cannot reach the daemon",
        ),
        (
            vec!["--memory-pages", "100000", &kit],
            126,
            "100000 is above the maximum of 4096 (policy.max_memory_pages)",
        ),
        (
            vec!["--entry", "nothing", &kit],
            126,
            "ENTRY_POINT_NOT_FOUND",
        ),
        (vec!["--no-wasi", &kit], 126, "IMPORT_NOT_ALLOWED"),
        (
            vec!["--fuel", "10000", &kit, "spin"],
            137,
            "the guest ran out of fuel: it went over the limit of 10000; --fuel (resources.fuel_limit)",
        ),
        (
            vec![deep.to_str().unwrap()],
            137,
            "the guest went over the stack limit of 512.0 KiB; --stack (resources.stack_size)",
        ),
        (
            vec!["--memory-pages", "100", &kit, "hog", "60"],
            137,
            "the guest went over the memory limit of 100 pages (6.2 MiB)",
        ),
        (
            vec!["--memory-pages", "100", &kit, "hog", "60"],
            137,
            "; --memory-pages (resources.memory_pages) asks for more",
        ),
        (
            vec!["--output-limit", "99", &kit, "flood", "100"],
            137,
            "the guest went over the output limit of 99 B; --output-limit (resources.output_limit) asks for more, and --truncate",
        ),
    ] {
        let output = run(&args);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{args:?}: {}",
            text(&output.stderr)
        );
        let last = text(&output.stderr).lines().last().unwrap_or_default();
        assert!(
            last.starts_with("ringfence: ") && last.contains(line),
            "{args:?}: {last}"
        );
    }
    let output = run(&[&kit, "panic"]);
    assert_eq!(output.status.code(), Some(134));
    assert!(
        text(&output.stderr)
            .lines()
            .last()
            .unwrap()
            .starts_with("ringfence: the guest trapped")
    );
    let output = run(&["--output-limit", "99", "--truncate", &kit, "flood", "100"]);
    assert_eq!((output.status.code(), output.stdout.len()), (Some(0), 99));
}

#[test]
fn json_tells_a_guests_own_code_from_a_reserved_one() {
    let kit = kit();
    let json = |args: &[&str]| -> (Option<i32>, Value) {
        let output = run(&[&["--output", "json"], args].concat());
        let value = serde_json::from_slice(&output.stdout).expect("one JSON object");
        (output.status.code(), value)
    };
    let (code, own) = json(&[&kit, "exit", "124"]);
    assert_eq!(code, Some(124));
    assert_eq!(
        (&own["outcome"], &own["exit_code"]),
        (&"OUTCOME_EXITED".into(), &124.into())
    );
    let (code, late) = json(&["--timeout", "100ms", &kit, "spin", "x"]);
    assert_eq!(code, Some(124));
    assert_eq!(
        (&late["outcome"], &late["exit_code"]),
        (&"OUTCOME_TIMED_OUT".into(), &Value::Null)
    );
    assert_eq!(late["stdout"], "x\n");
    let output = piped(
        &["--output", "json", "--stdin", "-", &kit, "echo"],
        b"\xff\x00",
    );
    let binary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(binary["stdout_base64"], "/wA=");
}

/// What `f` of a module that returns `results` prints, as text and as one JSON object.
fn returned(results: &str, constants: &str) -> (String, String) {
    let module = format!("(module (func (export \"f\") (result {results}) {constants}))");
    let plain = piped(&["--entry", "f", "-"], module.as_bytes());
    let json = piped(
        &["--output", "json", "--entry", "f", "-"],
        module.as_bytes(),
    );
    assert_eq!(
        (plain.status.code(), json.status.code()),
        (Some(0), Some(0))
    );
    let told = text(&json.stdout);
    serde_json::from_str::<Value>(told).unwrap();
    let (_, values) = told.split_once("\"values\":[").unwrap();
    let (values, _) = values.split_once(']').unwrap();
    (text(&plain.stdout).to_owned(), values.to_owned())
}

#[test]
fn every_number_is_told_as_it_is() {
    for (ty, constant, json) in [
        ("f64", "nan", "\"NaN\""),
        ("f64", "inf", "\"Infinity\""),
        ("f64", "-inf", "\"-Infinity\""),
        ("f32", "nan", "\"NaN\""),
        ("f32", "inf", "\"Infinity\""),
        ("f32", "-inf", "\"-Infinity\""),
        ("f64", "-0", "-0.0"),
        ("f32", "-0", "-0.0"),
        // Not 0.10000000149011612, which is the nearest f64.
        ("f32", "0.1", "0.1"),
        ("f64", "0.1", "0.1"),
        ("f32", "16777217", "16777216.0"),
        ("f32", "1e-45", "1e-45"),
        ("f64", "5e-324", "5e-324"),
        ("i64", "9223372036854775807", "\"9223372036854775807\""),
        ("i32", "-2147483648", "-2147483648"),
    ] {
        let (_, told) = returned(ty, &format!("({ty}.const {constant})"));
        assert_eq!(told, json, "{ty} {constant}");
    }
    let (plain, told) = returned("f32 f64", "(f32.const 3.4028235e38) (f64.const 1.5)");
    assert_eq!(told, "3.4028235e+38,1.5");
    assert_eq!(plain, format!("{}\n1.5\n", f32::MAX));
}

/// The object that a failed command prints, whose line on standard error is there as ever.
#[track_caller]
fn error(output: &Output, code: i32) -> Value {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    let error = told["error"].clone();
    let line = text(&output.stderr).lines().last().unwrap();
    let message = error["message"].as_str().unwrap();
    assert!(
        line.starts_with("ringfence: ") && line.ends_with(message),
        "{line}"
    );
    error
}

#[test]
fn a_refusal_is_json_where_the_answer_would_be() {
    let kit = kit();
    let json = ["--output", "json"];
    let refused = error(
        &run(&[&json[..], &["--memory-pages", "100000", &kit]].concat()),
        126,
    );
    assert_eq!(refused["code"], "INVALID_ARGUMENT");
    assert_eq!(refused["reason"], "LIMIT_ABOVE_MAXIMUM");
    assert_eq!(refused["field"], "spec.resources.memory_pages");
    assert_eq!(refused["metadata"]["asked"], "100000");
    assert_eq!(refused["metadata"]["limit"], "policy.max_memory_pages");
    // The command's own failure, and one of the way there.
    let missing = error(&run(&[&json[..], &["no-such-file"]].concat()), 125);
    assert_eq!(
        (&missing["code"], &missing["reason"]),
        (&Value::Null, &Value::Null)
    );

    let served = Served::start(&["--set", "server.instance=here"]);
    let unknown = format!("sha256:{}", "0".repeat(64));
    let nobody = format!("{}.here", "0".repeat(32));
    let bad = guests::root().join("Cargo.toml");
    let bad = bad.to_str().unwrap();
    for (args, code, reason) in [
        (
            &["run", "--output", "json", &unknown][..],
            "NOT_FOUND",
            "MODULE_NOT_FOUND",
        ),
        (
            &["modules", "show", &unknown],
            "NOT_FOUND",
            "MODULE_NOT_FOUND",
        ),
        (&["inspect", &nobody], "NOT_FOUND", "RUN_NOT_FOUND"),
        (
            &["load", "--output", "json", bad],
            "INVALID_ARGUMENT",
            "MODULE_INVALID",
        ),
        (
            &["ps", "--output", "json", "--label", "ringfence.x=1"],
            "INVALID_ARGUMENT",
            "SPEC_INVALID",
        ),
        (
            &[
                "ps",
                "--watch",
                "--output",
                "json",
                "--label",
                "ringfence.x=1",
            ],
            "INVALID_ARGUMENT",
            "SPEC_INVALID",
        ),
    ] {
        // Where options of the module's own may follow, the server's stand first.
        let mut args = args.to_vec();
        args.splice(1..1, ["--server", served.addr.as_str()]);
        let output = ringfence().args(&args).output().unwrap();
        let error = error(&output, 126);
        assert_eq!(
            (&error["code"], &error["reason"]),
            (&code.into(), &reason.into()),
            "{args:?}"
        );
        assert!(error["metadata"].is_object());
    }
    let ended = served.addr.clone();
    assert_eq!(served.end().0, 0);
    for args in [
        &["run", "--output", "json", &kit][..],
        &["load", "--output", "json", &kit],
        &["ps", "--output", "json"],
        &["modules", "ls", "--output", "json"],
        &["modules", "show", &unknown],
        &["inspect", &nobody],
        &["health", "--output", "json"],
    ] {
        let mut args = args.to_vec();
        args.splice(1..1, ["--server", ended.as_str()]);
        let output = ringfence().args(&args).output().unwrap();
        let error = error(&output, 125);
        assert_eq!(
            (&error["code"], &error["reason"]),
            (&"UNAVAILABLE".into(), &Value::Null),
            "{args:?}"
        );
    }
}

#[test]
fn a_table_has_no_head_where_there_is_no_table() {
    for args in [&["ps"][..], &["ps", "--watch"], &["modules", "ls"]] {
        let output = ringfence()
            .args(args)
            .args(["--server", "127.0.0.1:1"])
            .output()
            .unwrap();
        assert_eq!(
            (text(&output.stdout), output.status.code()),
            ("", Some(125)),
            "{args:?}"
        );
    }
}

#[test]
fn json_tells_what_was_granted() {
    let output = run(&["--output", "json", "--memory-pages", "300", &kit(), "hello"]);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["granted"]["memory_pages"], 300);
    assert_eq!(told["granted"]["output_limit"], 1 << 20);
    assert_eq!(told["granted"]["fuel_limit"], Value::Null);
}

#[test]
fn the_embedded_daemon_grants_what_its_own_flags_ask() {
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().to_str().unwrap();
    let kit = kit();
    let output = run(&[
        "--mount",
        &format!("{host}:/w"),
        &kit,
        "write",
        "/w/f",
        "text",
    ]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = run(&[
        "--mount",
        &format!("{host}:/w:ro"),
        "--workdir",
        "/w",
        &kit,
        "read",
        "f",
    ]);
    assert_eq!(text(&output.stdout), "text");
    let output = run(&[
        "--mount",
        &format!("{host}:/w:ro"),
        &kit,
        "write",
        "/w/g",
        "text",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let output = run(&["--network", &kit, "hello"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    // What is wrong is told by the flag that it stands in.
    for missing in ["/no/such/folder:/w", "/etc/passwd:/w:ro"] {
        let output = run(&["--mount", missing, &kit, "hello"]);
        assert_eq!(output.status.code(), Some(125));
        let host = missing.split(':').next().unwrap();
        assert_eq!(
            text(&output.stderr),
            format!("ringfence: --mount {host}: there is no such folder on this host\n")
        );
    }
    let output = run(&["--mount", "nonsense", &kit]);
    assert_eq!(output.status.code(), Some(125));
    let output = run(&["--no-clock", &kit, "clock"]);
    assert!(
        text(&output.stdout).starts_with("16409952000"),
        "{output:?}"
    );
}

#[test]
fn interrupting_cancels_the_run() {
    let mut child = interruptible(ringfence().get_program())
        .args(["run", "--timeout", "60s", &kit(), "spin", "going"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "going\n");
    let status = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(status.unwrap().success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(137));
    assert_eq!(text(&output.stderr), "ringfence: cancelled: interrupted\n");
}

#[test]
fn serve_load_run_and_health_work_together() {
    let served = Served::start(&[]);
    let addr = served.addr.as_str();
    let output = ringfence()
        .args(["health", "--server", addr])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        text(&output.stdout).starts_with("serving: ringfence "),
        "{output:?}"
    );
    let output = ringfence()
        .args(["health", "--output", "json", "--server", addr])
        .output()
        .unwrap();
    let health: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&health["status"], &health["runtime"]["name"]),
        (&"SERVING_STATUS_SERVING".into(), &"wasmtime".into())
    );
    let output = ringfence()
        .args(["load", "--server", addr, &kit()])
        .output()
        .unwrap();
    let digest = text(&output.stdout).trim().to_owned();
    assert!(
        digest.starts_with("sha256:") && digest.len() == 71,
        "{output:?}"
    );
    let output = run(&["--server", addr, &digest, "hello"]);
    assert_eq!(text(&output.stdout), "hello\n");
    let output = ringfence()
        .args([
            "load",
            "--server",
            addr,
            "--metered",
            "--label",
            "a=b",
            "--output",
            "json",
            &kit(),
        ])
        .output()
        .unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&told["digest"], &told["labels"]["a"]),
        (&digest.into(), &"b".into())
    );
    // A daemon grants what its operator does, not what a caller's flags ask.
    let output = run(&["--server", addr, "--mount", "/tmp:/t", &kit(), "hello"]);
    assert_eq!(output.status.code(), Some(126));
    let addr = served.addr.clone();
    let (code, log) = served.end();
    assert_eq!(code, 0, "{log}");
    assert!(
        log.contains("run ended") && log.contains("run refused"),
        "{log}"
    );
    let output = ringfence()
        .args(["health", "--server", &addr])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
}

/// Runs a command against `served` with `stdin`.
fn told(served: &Served, args: &[&str], stdin: &[u8]) -> Output {
    let mut child = ringfence()
        .args(args)
        .args(["--server", &served.addr])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that needs none of it may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

#[test]
fn modules_are_uploaded_listed_shown_and_deleted() {
    let served = Served::start(&[]);
    let large = crate::modules::saying("large", 3 << 20);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("large.wat");
    std::fs::write(&file, &large).unwrap();
    let file = file.to_str().unwrap();
    let digest = ringfence::model::request::Digest::of(&large).to_string();
    // From a file and from standard input; nothing is drawn where no terminal is.
    for (args, stdin) in [
        (&["load", "--label", "size=large", file][..], &b""[..]),
        (&["load", "--name", "from stdin", "-"], &large),
    ] {
        let output = told(&served, args, stdin);
        assert_eq!(text(&output.stdout).trim(), digest, "{output:?}");
        assert_eq!(text(&output.stderr), "");
    }
    let small = crate::modules::saying("small", 0);
    let output = told(&served, &["load", "--label", "size=small", "-"], &small);
    let small = text(&output.stdout).trim().to_owned();
    assert_eq!(run(&["--server", &served.addr, &digest]).stdout, b"large");

    let output = told(&served, &["modules", "ls"], b"");
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert!(
        lines[0].starts_with("DIGEST ") && lines.len() == 3,
        "{lines:?}"
    );
    assert!(lines[1..].iter().any(|line| line.starts_with(&digest)
        && line.contains("3.0M")
        && line.ends_with("from stdin")));
    let only = ["modules", "ls", "--label", "size=small", "--output", "json"];
    let output = told(&served, &only, b"");
    let listed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(listed["digest"], small.as_str());
    let output = told(&served, &["modules", "show", &digest], b"");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&shown["size"], &shown["name"]),
        (&(3 << 20).into(), &"from stdin".into())
    );
    assert_eq!(shown["exports"].as_array().unwrap().len(), 2);

    let output = told(&served, &["modules", "rm", &digest, &small], b"");
    assert_eq!(text(&output.stdout), format!("{digest}\n{small}\n"));
    let output = told(&served, &["modules", "rm", &digest], b"");
    assert_eq!(output.status.code(), Some(126));
    assert!(
        text(&output.stderr).contains("no module sha256:"),
        "{output:?}"
    );
    let output = told(&served, &["modules", "show", &digest], b"");
    assert_eq!(output.status.code(), Some(126));
    assert!(
        text(&output.stderr).contains("MODULE_NOT_FOUND"),
        "{output:?}"
    );
    let output = told(&served, &["load", "oci://ghcr.io/a/b:v1"], b"");
    assert!(text(&output.stderr).contains("POLICY_DENIED"), "{output:?}");
}

#[test]
fn a_refusal_ends_an_upload_that_still_waits_for_input() {
    let served = Served::start(&["--set", "compile.max_module=1MiB"]);
    let mut child = ringfence()
        .args(["load", "--server", &served.addr, "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than fits, and no end.
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(&vec![b' '; 2 << 20]);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(126));
    assert!(
        text(&output.stderr).contains("MODULE_TOO_LARGE"),
        "{output:?}"
    );
    drop(stdin);
}

#[test]
fn sigterm_drains_and_a_second_one_ends_at_once() {
    for (second, code) in [(false, Some(0)), (true, Some(143))] {
        let grace = if second { "60s" } else { "200ms" };
        let served = Served::start(&["--set", &format!("server.drain_grace={grace}")]);
        let mut spinner = ringfence()
            .args([
                "run",
                "--server",
                &served.addr,
                "--timeout",
                "60s",
                &kit(),
                "spin",
                "going",
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(spinner.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let mut served = served;
        served.signal("-TERM");
        let mut told = String::new();
        while !told.contains("draining") {
            assert!(served.log.read_line(&mut told).unwrap() > 0);
        }
        if second {
            served.signal("-TERM");
        }
        assert_eq!(served.child.wait().unwrap().code(), code);
        let output = spinner.wait_with_output().unwrap();
        let why = text(&output.stderr);
        if second {
            assert_eq!(output.status.code(), Some(125), "{why}");
        } else {
            assert_eq!(output.status.code(), Some(137), "{why}");
            assert!(why.contains("the daemon is ending"), "{why}");
        }
    }
}

#[test]
fn the_log_never_has_content() {
    let mut served = Served::start(&[
        "--set",
        "telemetry.log_level=trace",
        "--set",
        "telemetry.log_format=json",
    ]);
    let log = served.drain_log();
    let canary = "c4nary-5ecret";
    let output = piped(
        &[
            "--server",
            &served.addr,
            "--env",
            &format!("K={canary}"),
            &kit(),
            "echo",
            canary,
        ],
        canary.as_bytes(),
    );
    assert_eq!(text(&output.stdout), canary);
    let output = run(&[
        "--server",
        &served.addr,
        "--env",
        &format!("K={canary}"),
        &kit(),
        "dump",
        canary,
    ]);
    assert!(text(&output.stdout).contains(canary));
    // Refused: its values are in no log either.
    run(&[
        "--server",
        &served.addr,
        "--env",
        &format!("K={canary}"),
        "--fuel",
        "1",
        "--no-wasi",
        &kit(),
        canary,
    ]);
    assert_eq!(served.end().0, 0);
    let log = log.join().unwrap();
    assert!(log.contains("run ended"));
    assert!(!log.contains(canary), "{log}");
}

#[test]
fn a_log_that_nobody_reads_blocks_nothing() {
    let served = Served::start(&["--set", "telemetry.log_level=trace"]);
    // The pipe holds 64 KiB, and trace says more than that about one of these.
    for _ in 0..30 {
        let output = run(&["--server", &served.addr, &kit(), "hello"]);
        assert_eq!(text(&output.stdout), "hello\n");
    }
    assert_eq!(served.end().0, 0);
}

#[test]
fn an_open_listener_without_authentication_is_refused_unless_insisted_on() {
    let check = |args: &[&str]| {
        ringfence()
            .args(["config", "check"])
            .args(args)
            .output()
            .unwrap()
    };
    let open = check(&["--set", "listen=[\"0.0.0.0:50051\"]"]);
    assert_eq!(open.status.code(), Some(1));
    let why = text(&open.stderr);
    assert!(
        why.contains("listen = 0.0.0.0:50051") && why.contains("server.insecure_listen"),
        "{why}"
    );
    let output = ringfence()
        .args(["serve", "--listen", "0.0.0.0:0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    let insisted = check(&[
        "--set",
        "listen=[\"[::]:50051\"]",
        "--set",
        "server.insecure_listen=true",
    ]);
    assert_eq!(insisted.status.code(), Some(0), "{insisted:?}");
    for closed in [
        "127.0.0.1:0",
        "[::1]:0",
        "localhost:0",
        "unix:/run/ringfence.sock",
    ] {
        let output = check(&["--set", &format!("listen=[{closed:?}]")]);
        assert_eq!(output.status.code(), Some(0), "{closed}: {output:?}");
    }
}

#[test]
fn configuration_errors_are_told_all_at_once() {
    let output = ringfence()
        .args(["config", "check"])
        .args(["--set", "listen=[\"nowhere\", \"unix:relative\"]"])
        .args([
            "--set",
            "engine.epoch_interval=1h",
            "--set",
            "engine.features=[\"jit\"]",
        ])
        .args([
            "--set",
            "defaults.timeout=10m",
            "--set",
            "policy.max_stack_size=3MiB",
        ])
        .args([
            "--set",
            "policy.host_functions=[\"env.exec\"]",
            "--set",
            "telemetry.log_level=ringfence=loud",
        ])
        .args([
            "--set",
            "policy.mounts=[{ host = \"relative\", access = \"read\" }]",
        ])
        .args(["--set", "admission.slots=0", "--set", "server.instance=a b"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    for line in [
        "listen = nowhere: must be",
        "listen = unix:relative: must be",
        "engine.epoch_interval = 1h: must be from 1ms to 100ms",
        "engine.features = jit: must be one of gc, function-references",
        "defaults.timeout = 10m: must be from 1ms to 5m",
        "policy.max_stack_size = 3MiB: must be one of 256KiB, 512KiB",
        "policy.host_functions = env.exec: must be one of ringfence.log, ringfence.label",
        "telemetry.log_level = ringfence=loud: must be",
        "policy.mounts[0].host = relative: must be",
        "admission.slots = 0: must be from 1 to 10000",
        "server.instance = a b: must be",
    ] {
        assert!(told.contains(line), "{line} in {told}");
    }
}

#[test]
fn configuration_comes_from_file_then_environment_then_flags() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ringfence.toml");
    std::fs::write(
        &file,
        "[runs]\nstall_timeout = \"1s\"\n[server]\ninstance = \"file\"\ndrain_grace = \"2s\"\n",
    )
    .unwrap();
    let show = |flags: &[&str]| {
        let output = ringfence()
            .args(["config", "show", "--config", file.to_str().unwrap()])
            .args(flags)
            .env("RINGFENCE_SERVER__INSTANCE", "123")
            .env("RINGFENCE_SERVER__DRAIN_GRACE", "3s")
            .env("RINGFENCE_SERVER__SOCKET_MODE", "0600")
            .env("RINGFENCE_SERVER__MAX_MESSAGE", "20MiB")
            .env("RINGFENCE_LISTEN", "[\"127.0.0.1:7\"]")
            // What Kubernetes makes of a Service named "ringfence".
            .env("RINGFENCE_PORT", "tcp://10.0.0.1:50051")
            .env("RINGFENCE_SERVICE_HOST", "10.0.0.1")
            .env("RINGFENCE_PORT_50051_TCP_ADDR", "10.0.0.1")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(
            text(&output.stderr)
                .matches("Kubernetes service link")
                .count(),
            3
        );
        toml::from_str::<toml::Table>(text(&output.stdout)).unwrap()
    };
    let shown = show(&["--set", "server.drain_grace=4s"]);
    assert_eq!(shown["runs"]["stall_timeout"].as_str(), Some("1s"));
    assert_eq!(shown["server"]["instance"].as_str(), Some("123"));
    assert_eq!(shown["server"]["drain_grace"].as_str(), Some("4s"));
    assert_eq!(shown["server"]["socket_mode"].as_str(), Some("0600"));
    assert_eq!(shown["server"]["max_message"].as_str(), Some("20MiB"));
    assert_eq!(shown["listen"][0].as_str(), Some("127.0.0.1:7"));
    // What is shown is a configuration.
    std::fs::write(&file, toml::to_string(&shown).unwrap()).unwrap();
    show(&[]);
}

#[test]
fn unknown_keys_and_wrong_types_name_the_key_and_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.toml");
    for (content, needles) in [
        ("[server]\nlisten_on = 1\n", &["listen_on", "bad.toml"][..]),
        (
            "[engine]\nepoch_interval = 5\n",
            &["engine.epoch_interval", "\"250ms\"", "bad.toml"],
        ),
        (
            "[policy]\nmax_stdin = \"lots\"\n",
            &["policy.max_stdin", "64KiB"],
        ),
        (
            "[policy]\nnetwork = [{ host = \"example.org\" }]\n",
            &["host", "CIDR"],
        ),
        ("not toml", &["bad.toml"]),
    ] {
        std::fs::write(&file, content).unwrap();
        let output = ringfence()
            .args(["config", "check", "--config", file.to_str().unwrap()])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        let told = text(&output.stderr);
        for needle in needles {
            assert!(told.contains(needle), "{needle} in {told}");
        }
    }
    let output = ringfence()
        .args(["config", "check"])
        .env("RINGFENCE_SERVR__INSTANCE", "x")
        .output()
        .unwrap();
    assert!(text(&output.stderr).contains("servr"), "{output:?}");
    let output = ringfence()
        .args(["config", "check", "--config", "/no/such"])
        .output()
        .unwrap();
    assert!(text(&output.stderr).contains("/no/such"), "{output:?}");
}

#[test]
fn completions_man_pages_and_help_are_there() {
    for shell in ["bash", "zsh", "fish"] {
        let output = ringfence().args(["completions", shell]).output().unwrap();
        assert!(text(&output.stdout).contains("memory-pages"), "{shell}");
    }
    let output = ringfence().arg("man").output().unwrap();
    assert!(text(&output.stdout).contains(".TH ringfence"), "{output:?}");
    let dir = tempfile::tempdir().unwrap();
    let output = ringfence()
        .args(["man", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(dir.path().join("ringfence-run.1").exists());
    let output = ringfence().args(["run", "--help"]).output().unwrap();
    let help = text(&output.stdout);
    for flag in [
        "--server",
        "--env",
        "--mount",
        "--stdin",
        "--timeout",
        "--memory-pages",
        "--fuel",
        "--stack",
        "--entry",
        "--workdir",
        "--label",
        "--allow-host-function",
        "--no-wasi",
        "--no-clock",
        "--network",
        "--stream",
        "--no-stream",
        "--output",
        "134",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
}
