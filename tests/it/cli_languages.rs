//! Programs and languages from the command line: `exec`, and `languages`.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::cli_runs::text;
use crate::execution::{CAT, VALUE};
use crate::guests::{kit as kit_bytes, memory_files};
use crate::process::{Served, ringfence};

/// Runs a command with `stdin`.
fn with_input(args: &[&str], stdin: &[u8]) -> Output {
    let mut child = ringfence()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that needs none of it may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin);
    child.wait_with_output().unwrap()
}

/// Runs a command, and returns its exit code, its output, and what it says.
fn told(args: &[&str]) -> (Option<i32>, String, String) {
    let output = ringfence().args(args).output().unwrap();
    let text = |bytes: &[u8]| text(bytes).to_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

/// Writes a file, and returns its path.
fn file(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A program that exits with a code.
fn exits(code: u32) -> String {
    format!(
        r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") (call $exit (i32.const {code}))))"#
    )
}

#[test]
fn a_program_comes_from_a_file_from_text_and_from_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let value = file(folder.path(), "value.wat", VALUE);
    let written = "hello\n__OUT__:{\"a\": 1.50}\nbye\n";
    for (args, stdin) in [
        (&["exec", "wat", &value][..], ""),
        (&["exec", "wat", "-c", VALUE], ""),
        (&["exec", "WAT", "-"], VALUE),
        (&["exec", "wat", "--no-stream", &value], ""),
    ] {
        let output = with_input(args, stdin.as_bytes());
        assert_eq!(text(&output.stderr), "", "{args:?}");
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(0), written)
        );
    }
    let output = with_input(&["exec", "--output", "json", "wat", &value], b"");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["value"], serde_json::json!({"a": 1.50}));
    assert_eq!(
        (report["stdout"].as_str(), report["exit_code"].as_u64()),
        (Some(written), Some(0))
    );
    let output = with_input(&["exec", "-n", "--output", "json", "wat", &value], b"");
    let whole: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(whole["value"], report["value"]);
}

#[test]
fn the_exit_code_is_the_programs_and_what_is_wrong_is_said() {
    let (code, out, _) = told(&["exec", "wat", "-c", &exits(7)]);
    assert_eq!((code, out.as_str()), (Some(7), ""));
    let spins = r#"(module (func (export "_start") (loop $on (br $on))))"#;
    let (code, _, err) = told(&["exec", "--timeout", "100ms", "wat", "-c", spins]);
    assert_eq!(code, Some(124), "{err}");
    for (args, told_code, message) in [
        (
            &["exec", "perl", "-c", "1"][..],
            126,
            "the language \"perl\" is not supported; there are: wasm, wat",
        ),
        (
            &["exec", "wat@2", "-c", "1"],
            126,
            "is not there in version \"2\"",
        ),
        (&["exec", "wat", "-c", ""], 126, "spec.code: is empty"),
        (&["exec", "wat"], 125, "there is no program"),
        (
            &["exec", "wat", "/nowhere/x.wat"],
            125,
            "cannot read /nowhere/x.wat",
        ),
        (
            &["exec", "--profile", "soft", "wat", "-c", &exits(0)],
            126,
            "spec.profile: \"soft\" is unknown",
        ),
        (
            &["exec", "--stdin", "-", "wat", "-"],
            125,
            "cannot be both the program and its input",
        ),
        (
            &[
                "exec",
                "--server",
                "127.0.0.1:1",
                "--config",
                "x",
                "wat",
                "-c",
                "1",
            ],
            125,
            "--config and --set are for the embedded daemon",
        ),
    ] {
        let (code, _, err) = told(args);
        assert_eq!(code, Some(told_code), "{args:?}: {err}");
        assert!(err.contains(message), "{args:?}: {err}");
    }
}

#[test]
fn a_program_reads_this_commands_input_and_leaves_the_rest_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let cat = file(folder.path(), "cat.wat", CAT);
    let config = file(
        folder.path(),
        "c.toml",
        &format!("[languages.cat]\nmodule = \"{cat}\"\n"),
    );
    let args = [
        "exec", "--config", &config, "--env", "K=v", "cat", "-c", "code", "a", "--b",
    ];
    let output = with_input(&args, b"typed");
    // The length of the header, four bytes, is no text.
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.ends_with("typed"), "{output:?}");
    assert!(stdout.contains("\"args\":[\"a\",\"--b\"]") && stdout.contains("\"K\":\"v\""));
}

#[test]
fn what_follows_the_program_is_its_own_hyphens_included() {
    let folder = tempfile::tempdir().unwrap();
    let cat = file(folder.path(), "cat.wat", CAT);
    let settings = format!("[languages.cat]\nmodule = \"{cat}\"\n");
    let config = file(folder.path(), "c.toml", &settings);
    let script = file(folder.path(), "script", "code");
    let script = script.as_str();
    let given = |args: &[&str], stdin: &[u8]| {
        with_input(&[&["exec", "--config", &config], args].concat(), stdin)
    };
    for (args, program, expected) in [
        // What is an option of this command before the program is the program's after it.
        (
            &[
                "cat",
                "-c",
                "code",
                "--timeout",
                "1s",
                "-n",
                "--no-such",
                "-x",
            ][..],
            "code",
            r#"["--timeout","1s","-n","--no-such","-x"]"#,
        ),
        (
            &["cat", "--timeout", "60s", "--code", "code", "-c", "--help"],
            "code",
            r#"["-c","--help"]"#,
        ),
        (&["cat", "-c", "-1", "--b"], "-1", r#"["--b"]"#),
        (
            &["cat", "-c", "code", "a", "--", "b"],
            "code",
            r#"["a","--","b"]"#,
        ),
        (
            &["cat", script, "--timeout", "1s", "-c", "other"],
            "code",
            r#"["--timeout","1s","-c","other"]"#,
        ),
        (
            &["cat", "--env", "K=v", script, "--env"],
            "code",
            r#"["--env"]"#,
        ),
        // An argument that says that the options end is not passed on, and a second one is.
        (&["cat", "-c", "code", "--", "--b"], "code", r#"["--b"]"#),
        (
            &["cat", "-c", "code", "--", "--", "b"],
            "code",
            r#"["--","b"]"#,
        ),
        (&["cat", script, "--", "--b"], "code", r#"["--b"]"#),
        (&["cat", "--", script, "--b"], "code", r#"["--b"]"#),
        // Of a text that is written together with its option, no more belongs to the option.
        (
            &["cat", "--code=code", "a", "--b"],
            "code",
            r#"["a","--b"]"#,
        ),
        (&["cat", "-ccode", "-n", "--", "--b"], "code", r#"["--b"]"#),
    ] {
        let output = given(args, b"");
        // The length of the header, four bytes, is no text.
        let stdout = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert!(
            stdout.contains(&format!("\"program\":\"{program}\"")),
            "{args:?}: {stdout}"
        );
        assert!(
            stdout.contains(&format!("\"args\":{expected}")),
            "{args:?}: {stdout}"
        );
    }
    let output = given(&["cat", "-", "--b", "-"], b"typed");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("\"program\":\"typed\""), "{output:?}");
    assert!(stdout.contains(r#""args":["--b","-"]"#), "{output:?}");
    for (args, message) in [
        (&["cat", "--no-such", "-c", "code"][..], "'--no-such'"),
        (&["cat", "--no-such", script], "'--no-such'"),
        (
            &["cat", "--code=a", "--code=b"],
            "cannot be used multiple times",
        ),
        (&["cat", "--code"], "a value is required for '--code"),
        (&["cat", "--", "--no-such"], "cannot read --no-such"),
        (&["-c", "code"], "<LANGUAGE>"),
    ] {
        let output = given(args, b"");
        assert_eq!(output.status.code(), Some(125), "{args:?}: {output:?}");
        assert!(
            text(&output.stderr).contains(message),
            "{args:?}: {output:?}"
        );
    }
    // What is no text cannot be an argument, and which one it is is said.
    let broken = std::ffi::OsStr::from_bytes(b"x\xff");
    for program in [&["-c", "code"][..], &[script]] {
        let mut command = ringfence();
        command.args(["exec", "--config", &config, "-n", "cat"]);
        let output = command.args(program).arg(broken).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{program:?}: {output:?}");
        let said = text(&output.stderr);
        assert!(said.contains("UTF-8") && said.contains('x'), "{said}");
    }
}

#[test]
fn what_a_program_leaves_is_written_to_the_folder_and_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    std::fs::write(at("kit.wasm"), memory_files()).unwrap();
    let kit = at("kit.wasm");
    let config = file(
        folder.path(),
        "c.toml",
        &format!(
            "[languages.kit]\nmodule = {kit:?}\nprotocol = \"argument\"\nargs = [\"kit\", \"{{code}}\", \"{{args}}\"]\n"
        ),
    );
    std::fs::create_dir(at("out")).unwrap();
    std::fs::create_dir(at("elsewhere")).unwrap();
    std::os::unix::fs::symlink(at("elsewhere/x"), at("out/led")).unwrap();
    let out = at("out");
    for flag in ["--env=K=v", "--no-stream"] {
        let run = |program: &[&str]| {
            let folder = out.to_str().unwrap();
            let mut args = vec!["exec", "--no-stdin", flag, "--config", &config];
            args.extend(["--out", folder, "kit", "-c"]);
            args.extend(program);
            told(&args)
        };
        let (code, _, err) = run(&["write", "/out/a.txt", "25", "/tmp/b.txt", "3"]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{flag}");
        let written = std::fs::read_to_string(at("out/a.txt")).unwrap();
        assert_eq!(written, "abcdefghijabcdefghijabcde", "{flag}");
        std::fs::remove_file(at("out/a.txt")).unwrap();
        let (code, _, err) = run(&["write", "/out/led", "3"]);
        assert_eq!(code, Some(125), "{flag}");
        assert!(
            err.contains("cannot write") && err.contains("/out/led"),
            "{err}"
        );
        assert_eq!(std::fs::read_dir(at("elsewhere")).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 1, "{flag}");
    }
}

#[test]
fn files_that_are_not_returned_are_told_with_any_output() {
    let folder = tempfile::tempdir().unwrap();
    let kit = folder.path().join("kit.wasm");
    std::fs::write(&kit, memory_files()).unwrap();
    let language = format!(
        "[languages.kit]\nmodule = {kit:?}\nprotocol = \"argument\"\nargs = [\"kit\", \"{{code}}\", \"{{args}}\"]\n\
         [policy]\nmax_collect_files = 1\n"
    );
    let config = file(folder.path(), "c.toml", &language);
    let out = folder.path().join("out");
    let out = out.to_str().unwrap();
    for stdin in ["--stdin=-", "--no-stdin"] {
        for output in ["--env=K=v", "--no-stream", "--output=json"] {
            let mut args = vec!["exec", stdin, output, "--config", &config, "--out", out];
            args.extend(["kit", "-c", "write", "/out/a", "3", "/out/b", "5"]);
            let ran = with_input(&args, b"");
            assert_eq!(ran.status.code(), Some(0), "{args:?}: {ran:?}");
            let said = text(&ran.stderr);
            assert!(said.contains("/out/b was not returned"), "{args:?}: {said}");
            if output == "--output=json" {
                let report: Value = serde_json::from_slice(&ran.stdout).unwrap();
                let file = serde_json::json!(
                    { "path": "/out/b", "size": 5, "reason": "UNCOLLECTED_REASON_TOO_MANY_FILES" }
                );
                assert_eq!(report["uncollected"], Value::Array(vec![file]));
                assert_eq!(report["uncollected_total"], 1);
            }
        }
    }
}

#[test]
fn output_that_is_collected_has_the_limit_of_the_daemon_unless_one_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let kit = folder.path().join("kit.wasm");
    std::fs::write(&kit, kit_bytes()).unwrap();
    let text_of = |policy: &str| {
        format!(
            "[languages.kit]\nmodule = {kit:?}\nprotocol = \"argument\"\nargs = [\"kit\", \"{{code}}\", \"{{args}}\"]\n\
             limits = {{ output_limit = \"2KiB\" }}\n[policy]\n{policy}\n"
        )
    };
    let config = file(folder.path(), "a.toml", &text_of(""));
    let strict = file(
        folder.path(),
        "b.toml",
        &text_of("max_stream_output = \"1KiB\""),
    );
    for (config, flags, code, limit) in [
        (&config, &["--output=json"][..], "lines", 2048),
        (&strict, &["--output=json"], "lines", 1024),
        (
            &config,
            &["--output=json", "--output-limit=3000"],
            "lines",
            3000,
        ),
    ] {
        let args = [&["exec", "--config", config], flags, &["kit", "-c", code]].concat();
        let output = with_input(&args, b"one\n");
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["stdout"], "<one>\n", "{args:?}");
        assert_eq!(report["granted"]["output_limit"], limit, "{args:?}");
    }
}

#[test]
fn more_output_than_is_collected_is_told_and_not_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let kit = folder.path().join("kit.wasm");
    std::fs::write(&kit, kit_bytes()).unwrap();
    let kit = kit.to_str().unwrap();
    let flood = |flags: &[&str], bytes: usize| {
        let bytes = bytes.to_string();
        let args = [&["run"], flags, &[kit, "flood", &bytes]].concat();
        with_input(&args, b"")
    };
    // "done" on standard error counts too.
    let most = (64 << 20) - "done".len();
    let output = flood(&["--no-stream"], most);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!((output.stdout.len(), text(&output.stderr)), (most, "done"));
    for flags in [&["--no-stream"][..], &["--output=json"]] {
        let output = flood(flags, most + 1);
        assert_eq!(output.status.code(), Some(125), "{flags:?}");
        let said = text(&output.stderr);
        assert!(
            said.contains("wrote more than 64 MiB") && said.contains("--output-limit"),
            "{said}"
        );
    }
}

#[test]
fn programs_run_on_a_daemon_and_are_runs_there() {
    let folder = tempfile::tempdir().unwrap();
    let cat = file(folder.path(), "cat.wat", CAT);
    let config = file(
        folder.path(),
        "c.toml",
        &format!(
            "[languages.cat]\nmodule = \"{cat}\"\nversion = \"1.2\"\naliases = [\"kitten\"]\n"
        ),
    );
    let served = Served::start(&["--config", &config]);
    let addr = served.addr.as_str();
    let on = |args: &[&str]| told(&[&[args[0], "--server", addr], &args[1..]].concat());
    let (code, out, err) = on(&["exec", "-n", "kitten@1", "-c", "x"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("\"program\":\"x\""), "{out}");
    let (code, out, err) = on(&["exec", "--detach", "--label", "job=x", "cat", "-c", "x"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    let (code, attached, _) = on(&["attach", out.trim()]);
    assert_eq!(code, Some(0));
    assert!(attached.contains("\"program\":\"x\""));
    let (_, inspected, _) = on(&["inspect", out.trim()]);
    assert!(inspected.contains("\"ExecuteStream\""), "{inspected}");
    let (code, listed, _) = told(&["languages", "ls", "--server", addr]);
    let lines: Vec<&str> = listed.lines().collect();
    assert_eq!((code, lines.len()), (Some(0), 4), "{listed}");
    assert!(lines[0].starts_with("LANGUAGE") && lines[1].starts_with("cat "));
    assert!(
        lines[1].contains("1.2") && lines[1].contains("kitten") && lines[1].contains("sha256:")
    );
    let (_, listed, _) = told(&["languages", "ls", "--output", "json", "--server", addr]);
    let first: Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
    assert_eq!(
        (first["name"].as_str(), first["ready"].as_bool()),
        (Some("cat"), Some(true))
    );
}

#[test]
fn what_a_command_compiled_is_there_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    // Large, so that writing it takes longer than running it and ending.
    let data = "a".repeat(24 << 20);
    let wasm = wat::parse_str(format!(
        "(module (memory 1) (data \"{data}\") (func (export \"_start\")))"
    ));
    let module = folder.path().join("large.wasm");
    std::fs::write(&module, wasm.unwrap()).unwrap();
    let code = folder.path().join("compiled");
    let key = folder.path().join("key");
    let text = format!(
        "[languages.large]\nmodule = {module:?}\nprotocol = \"stdin\"\nargs = [\"large\"]\n\
         [artifacts]\ndir = {code:?}\nkey_file = {key:?}\n"
    );
    let config = file(folder.path(), "ringfence.toml", &text);
    let files = || {
        let entries = std::fs::read_dir(&code).unwrap().map(Result::unwrap);
        let mut files: Vec<_> = entries
            .map(|entry| (entry.file_name(), entry.metadata().unwrap()))
            .filter(|(_, about)| about.len() > 24 << 20)
            .map(|(name, about)| (name, about.ino()))
            .collect();
        files.sort();
        files
    };
    let run = || told(&["exec", "--config", &config, "large", "-c", "nothing"]);
    assert_eq!(run(), (Some(0), String::new(), String::new()));
    let written = files();
    assert_eq!(written.len(), 1, "{written:?}");
    assert_eq!(run().0, Some(0));
    // The file is the same one, so nothing was compiled and written again.
    assert_eq!(files(), written);
}

#[test]
fn languages_are_added_checked_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let cat = file(folder.path(), "cat.wat", CAT);
    let config = folder.path().join("new.toml");
    let config = config.to_str().unwrap();
    let (code, out, err) = told(&[
        "languages",
        "add",
        "cat",
        "--config",
        config,
        "--module",
        &cat,
    ]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("cat: works; "), "{out}");
    let text = std::fs::read_to_string(config).unwrap();
    assert!(
        text.contains("[languages.cat]") && text.contains("digest = \"sha256:"),
        "{text}"
    );
    assert!(text.contains("[artifacts]"), "{text}");
    // It is compiled, and the code is kept beside the module.
    assert!(folder.path().join("compiled").is_dir());
    let (code, out, err) = told(&["exec", "-n", "--config", config, "cat", "-c", "x"]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("\"program\":\"x\""));
    let (code, _, err) = told(&[
        "languages",
        "add",
        "cat",
        "--config",
        config,
        "--module",
        &cat,
    ]);
    assert_eq!(code, Some(125));
    assert!(err.contains("has a language \"cat\" already"), "{err}");
    let (code, _, err) = told(&["languages", "add", "cobol", "--config", config]);
    assert_eq!(code, Some(125));
    assert!(err.contains("there is no recipe for \"cobol\""), "{err}");
    let failing = file(folder.path(), "fails.wat", &exits(3));
    let (code, _, err) = told(&[
        "languages",
        "add",
        "fails",
        "--config",
        config,
        "--module",
        &failing,
    ]);
    assert_eq!(code, Some(126), "{err}");
    assert!(err.contains("did not end with exit code 0"), "{err}");
    let (code, out, _) = told(&["languages", "check", "--config", config]);
    assert_eq!(code, Some(126));
    assert!(out.starts_with("cat: works; "));
    let (code, _, _) = told(&["languages", "rm", "--config", config, "fails"]);
    assert_eq!(code, Some(0));
    let (code, _, err) = told(&["languages", "rm", "--config", config, "fails"]);
    assert_eq!(code, Some(125));
    assert!(
        err.contains("has no language \"fails\"; it has: cat"),
        "{err}"
    );
    assert_eq!(told(&["languages", "check", "--config", config]).0, Some(0));
}
