//! Values of flags, whatever characters they have; and what an embedded daemon tells.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::process::{Command, Output, Stdio};

use crate::cli::kit;
use crate::cli_runs::told;
use crate::process::{Served, ringfence};

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn run(args: &[&str]) -> Output {
    ringfence().arg("run").args(args).output().unwrap()
}

/// Names that are something else in TOML, in Rust's own notation, or in a flag.
const NAMES: [&str; 9] = [
    "e\u{301} no\u{a0}break",
    "quo\"te 'single' '''",
    "\"\"\"",
    "back\\slash \\u{301} \\",
    "line\nbreak\ttab\u{7}",
    "a=b,c co:lon",
    "# hash",
    "{ host = 1 }",
    "\u{202e}\u{1f980}\u{feff}",
];

#[test]
fn a_mount_may_have_any_name() {
    let dir = tempfile::tempdir().unwrap();
    for (i, name) in NAMES.into_iter().enumerate() {
        let host = dir.path().join(name);
        std::fs::create_dir(&host).unwrap();
        std::fs::write(host.join("file"), name).unwrap();
        let mode = if i % 2 == 0 { ":ro" } else { "" };
        let mount = format!("{}:/{name}{mode}", host.display());
        let output = run(&["--mount", &mount, &kit(), "read", &format!("/{name}/file")]);
        assert_eq!(
            (
                text(&output.stdout),
                text(&output.stderr),
                output.status.code()
            ),
            (name, "", Some(0)),
            "{mount:?}"
        );
    }
}

#[test]
fn variables_arguments_and_labels_are_what_was_given() {
    let kit = kit();
    let variables: Vec<String> = (NAMES.iter().enumerate())
        .map(|(i, name)| format!("V{i}={name}"))
        .collect();
    let mut args: Vec<&str> = Vec::new();
    for variable in &variables {
        args.extend(["--env", variable]);
    }
    args.extend([&kit, "dump"]);
    args.extend(NAMES);
    let output = run(&args);
    let told = text(&output.stdout);
    for (name, variable) in NAMES.iter().zip(&variables) {
        assert!(told.contains(&format!("arg {name}\n")), "{name:?} {told}");
        assert!(told.contains(&format!("env {variable}\n")), "{told}");
    }
    // Labels have no control characters.
    let (bad, good): (Vec<&str>, Vec<&str>) = NAMES
        .into_iter()
        .partition(|name| name.contains(char::is_control));
    let labelled = |names: &[&str]| {
        let labels: Vec<String> = names.iter().map(|name| format!("{name}l={name}")).collect();
        let flags = labels.iter().flat_map(|label| ["--label", label]);
        let args: Vec<&str> = flags.chain([kit.as_str(), "hello"]).collect();
        run(&args).status.code()
    };
    assert_eq!((labelled(&good), labelled(&bad)), (Some(0), Some(126)));
}

#[test]
fn of_two_labels_with_one_key_neither_is_taken() {
    let served = Served::start(&[]);
    let kit = kit();
    for (command, args) in [
        (&["run"][..], &[kit.as_str(), "hello"][..]),
        (&["run", "--detach"], &[&kit, "hello"]),
        (&["load"], &[&kit]),
        (&["ps"], &[]),
        (&["ps", "--all", "--output", "json"], &[]),
        (&["ps", "--watch"], &[]),
        (&["modules", "ls"], &[]),
        (&["kill", "--yes"], &[]),
        (&["rm", "--yes"], &[]),
    ] {
        for second in ["job=x", "job=y", "job="] {
            let labels = ["--label", "job=x", "--label", "other=x", "--label", second];
            let output = told(&served.addr, &[command, &labels, args].concat());
            assert_eq!(output.status.code(), Some(125), "{command:?} {output:?}");
            let said = text(&output.stderr);
            let why = "--label is given twice with the key \"job\"";
            assert!(said.contains(why), "{command:?}: {said}");
            let shown = text(&output.stdout);
            let json = command.contains(&"json");
            assert_eq!(shown.contains("given twice"), json, "{command:?}: {shown}");
            assert!(json || shown.is_empty(), "{command:?}: {shown}");
        }
    }
    // Nothing has run, and nothing was loaded.
    for listing in [
        ["ps", "--all", "--output", "json"],
        ["modules", "ls", "--output", "json"],
    ] {
        let output = told(&served.addr, &listing);
        assert_eq!((text(&output.stdout), output.status.code()), ("", Some(0)));
    }
}

#[test]
fn a_listener_may_have_any_name() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["e\u{301}", "quo\"te", "'''", "back\\slash", "no\u{a0}break"] {
        let path = dir.path().join(name);
        let address = format!("unix:{}", path.display());
        let mut served = ringfence()
            .args(["serve", "--listen", &address])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while !path.exists() {
            assert!(served.try_wait().unwrap().is_none(), "{name:?}");
        }
        served.kill().unwrap();
        served.wait().unwrap();
    }
}

#[test]
fn a_setting_is_one_value_and_else_its_text() {
    let shown = |value: &str| {
        let set = format!("server.instance={value}");
        let args = ["config", "show", "--set", &set];
        let output = ringfence().args(args).output().unwrap();
        let config: toml::Table = toml::from_str(text(&output.stdout)).unwrap();
        // Refused, it shows none.
        let refused = output.status.code() == Some(1);
        (!refused).then(|| config["server"]["instance"].as_str().unwrap().to_owned())
    };
    assert_eq!(shown("here").as_deref(), Some("here"));
    assert_eq!(shown("\"here\"").as_deref(), Some("here"));
    // What is more than a value is not its first line.
    assert_eq!(shown("\"here\"\nreflection = false"), None);
}

#[test]
fn names_that_are_no_text_are_told() {
    let odd = OsString::from_vec(b"/tmp/\xff:/x".to_vec());
    let kit = kit();
    for flag in ["--mount", "--env", "--label"] {
        let mut value = OsString::from("k=");
        value.push(&odd);
        let output = ringfence()
            .args(["run", flag])
            .arg(&value)
            .arg(&kit)
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(125), "{flag}");
        let told = text(&output.stderr);
        assert!(
            told.contains(flag) && told.contains("\\xFF") && told.contains("is not UTF-8"),
            "{told}"
        );
    }
    let output = ringfence()
        .args(["run", &kit, "dump"])
        .arg(&odd)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("is not UTF-8"), "{output:?}");
    // A file's name may be anything.
    let dir = tempfile::tempdir().unwrap();
    let module = dir.path().join(OsString::from_vec(b"\xff.wasm".to_vec()));
    std::fs::copy(&kit, &module).unwrap();
    let output = ringfence()
        .arg("run")
        .arg(&module)
        .arg("hello")
        .output()
        .unwrap();
    assert_eq!(
        (text(&output.stdout), output.status.code()),
        ("hello\n", Some(0))
    );
}

#[test]
fn modules_and_arguments_may_look_like_flags() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(kit(), dir.path().join("-x.wasm")).unwrap();
    let run = |args: &[&str]| {
        let mut command = ringfence();
        command.current_dir(dir.path()).arg("run").args(args);
        command.output().unwrap()
    };
    let output = run(&["--", "-x.wasm", "dump", "--timeout", "-n", "--"]);
    let expected = "arg -x.wasm\narg dump\narg --timeout\narg -n\narg --\n";
    assert_eq!(text(&output.stdout), expected, "{output:?}");
    let output = run(&["./-x.wasm", "dump", "--help"]);
    assert_eq!(text(&output.stdout), "arg -x.wasm\narg dump\narg --help\n");
    let output = run(&["-x.wasm"]);
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("'--"), "{output:?}");
    // As long as the host hands over at once.
    let long = "x".repeat(131_000);
    let output = run(&["./-x.wasm", "dump", &long]);
    assert!(text(&output.stdout).ends_with(&format!("arg {long}\n")));
    for (flag, value) in [
        ("--env", "A"),
        ("--env", "=x"),
        ("--label", "l"),
        ("--timeout", "0"),
    ] {
        let output = run(&[flag, value, "./-x.wasm"]);
        assert_eq!(output.status.code(), Some(125), "{flag} {value}");
        let told = text(&output.stderr);
        assert!(told.contains(flag) && told.contains("must be"), "{told}");
    }
}

#[test]
fn an_embedded_daemon_tells_the_cause_itself() {
    for json in [&[][..], &["--output", "json"]] {
        let output = Command::new("sh")
            .args(["-c", "ulimit -n 20 && exec \"$0\" run \"$@\""])
            .arg(ringfence().get_program())
            .args(json)
            .args([&kit(), "hello"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        // It is short of files when it starts, or when it compiles.
        let code = output.status.code();
        assert!(matches!(code, Some(125 | 126)), "{output:?}");
        const CAUSE: &str = "as many files open as it may (RLIMIT_NOFILE, ulimit -n)";
        let told = text(&output.stderr);
        assert!(told.contains(CAUSE), "{told}");
        assert!(!told.contains("daemon's log"), "{told}");
        if !json.is_empty() {
            assert!(text(&output.stdout).contains(CAUSE), "{output:?}");
        }
    }
}

#[test]
fn wrong_flags_are_told_as_json_where_that_is_asked_for() {
    for args in [
        &["run", "--output", "json", "--timeout", "0", "x.wasm"][..],
        &["run", "--env", "A", "--output=json", "x.wasm"],
        &["ps", "--output", "json", "--no-such-flag"],
    ] {
        let output = ringfence().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{args:?}");
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let message = told["error"]["message"].as_str().unwrap();
        assert!(text(&output.stderr).contains(message), "{message}");
    }
    // Without, and where it is the guest's, standard output has nothing.
    for args in [
        &["run", "--timeout", "0", "x.wasm"][..],
        &["run", "--timeout", "0", "x.wasm", "--", "--output", "json"],
    ] {
        let output = ringfence().args(args).output().unwrap();
        assert_eq!(
            (output.status.code(), text(&output.stdout)),
            (Some(125), "")
        );
    }
}
