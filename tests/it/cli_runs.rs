//! Runs from the command line: ps, attach, kill, inspect, run --detach, run -i.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use serde_json::Value;

use crate::cli::kit;
use crate::process::{Served, ringfence};

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// A command that asks `addr`.
fn asks(addr: &str, args: &[&str]) -> Command {
    let mut command = ringfence();
    command
        .arg(args[0])
        .args(["--server", addr])
        .args(&args[1..]);
    command
}

pub(crate) fn told(addr: &str, args: &[&str]) -> Output {
    asks(addr, args).output().unwrap()
}

/// Starts a detached run of the kit, and returns its id.
pub(crate) fn detached(addr: &str, args: &[&str]) -> String {
    let kit = kit();
    let output = told(addr, &[&["run", "--detach"], args].concat());
    assert_eq!(
        (text(&output.stderr), output.status.code()),
        ("", Some(0)),
        "{kit}"
    );
    text(&output.stdout).trim_end().to_owned()
}

pub(crate) fn lines(output: &Output) -> Vec<Value> {
    let lines = text(&output.stdout).lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_detached_run_is_listed_attached_to_inspected_and_killed() {
    let served = Served::start(&["--set", "server.instance=here"]);
    let addr = served.addr.as_str();
    let kit = kit();
    let id = detached(
        addr,
        &[
            "--label",
            "job=spin",
            "--timeout",
            "100s",
            &kit,
            "spin",
            "going",
        ],
    );
    assert!(id.ends_with(".here"), "{id}");
    let hello = detached(addr, &["--label", "job=hello", &kit, "exit", "7"]);

    let output = told(addr, &["attach", &hello]);
    assert_eq!(output.status.code(), Some(7), "its own exit code");
    let output = told(addr, &["ps"]);
    let table: Vec<&str> = text(&output.stdout).lines().collect();
    assert!(
        table[0].starts_with("RUN  ") && table.len() == 2,
        "{table:?}"
    );
    let row: Vec<&str> = table[1].split_whitespace().collect();
    assert_eq!((row[0], row[1]), (id.as_str(), "running"));
    assert_eq!(*row.last().unwrap(), "job=spin");
    // Columns stand below their heads.
    assert_eq!(table[0].find("STATE"), table[1].find("running"));

    let all = told(addr, &["ps", "--all", "--output", "json"]);
    let all = lines(&all);
    assert_eq!([&all[0]["run_id"], &all[1]["run_id"]], [&hello, &id]);
    assert_eq!(all[0]["result"]["exit_code"], 7);
    assert_eq!(
        (&all[1]["state"], &all[1]["detached"]),
        (&"running".into(), &true.into())
    );
    let labelled = told(
        addr,
        &["ps", "--all", "--label", "job=hello", "--output", "json"],
    );
    assert_eq!(lines(&labelled).len(), 1);
    let ended = told(addr, &["ps", "--state", "ended"]);
    assert!(text(&ended.stdout).contains("exited 7"));

    let output = told(addr, &["kill", &id]);
    assert_eq!(
        (text(&output.stdout), output.status.code()),
        (format!("{id}\n").as_str(), Some(0))
    );
    let output = told(addr, &["kill", &id, &hello]);
    assert_eq!((text(&output.stdout), output.status.code()), ("", Some(0)));
    assert_eq!(
        text(&output.stderr),
        format!(
            "ringfence: the run {id} had already ended: cancelled: by a call\nringfence: the run {hello} had already ended: exited 7\n"
        )
    );
    let output = told(addr, &["attach", &id]);
    assert_eq!(text(&output.stdout), "going\n");
    assert_eq!(text(&output.stderr), "ringfence: cancelled: by a call\n");
    assert_eq!(output.status.code(), Some(137));
    let output = told(addr, &["attach", "--from", "2", &id]);
    assert_eq!(
        (text(&output.stdout), output.status.code()),
        ("", Some(137))
    );

    let output = told(addr, &["inspect", &id]);
    let run: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(run["result"]["cancel_cause"], "CANCEL_CAUSE_CANCEL_RPC");
    assert_eq!(run["labels"]["job"], "spin");
    assert_eq!(run["usage"]["stdout_bytes"], 6);

    let unknown = format!("{}.here", "0".repeat(32));
    for what in ["attach", "inspect", "kill"] {
        let output = told(addr, &[what, &unknown]);
        assert_eq!(output.status.code(), Some(126), "{what}");
        assert!(text(&output.stderr).starts_with("ringfence: refused: RUN_NOT_FOUND: "));
    }
}

#[test]
fn a_watch_prints_what_changes() {
    let served = Served::start(&[]);
    let addr = served.addr.as_str();
    let mut watch = asks(
        addr,
        &["ps", "--watch", "--label", "w=1", "--output", "json"],
    )
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    let mut news = BufReader::new(watch.stdout.take().unwrap()).lines();
    let id = detached(
        addr,
        &["--label", "w=1", "--timeout", "100s", &kit(), "spin"],
    );
    let mut next = || -> Value { serde_json::from_str(&news.next().unwrap().unwrap()).unwrap() };
    while next()["state"] != "running" {}
    assert_eq!(told(addr, &["kill", &id]).status.code(), Some(0));
    let last = next();
    assert_eq!(
        (&last["state"], &last["run_id"]),
        (&"ended".into(), &id.into())
    );
    watch.kill().unwrap();
    watch.wait().unwrap();
}

/// Carries connections to `to`; each time that it is told to, it cuts the one that there is.
fn cutting(to: String) -> (String, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let (cut, cuts) = mpsc::channel();
    std::thread::spawn(move || {
        for here in listener.incoming() {
            let (here, there) = (here.unwrap(), TcpStream::connect(&to).unwrap());
            for (mut from, mut to) in [
                (here.try_clone().unwrap(), there.try_clone().unwrap()),
                (there.try_clone().unwrap(), here.try_clone().unwrap()),
            ] {
                // Ends when either side is cut.
                std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            }
            if cuts.recv().is_err() {
                return;
            }
            for side in [here, there] {
                let _ = side.shutdown(std::net::Shutdown::Both);
            }
        }
    });
    (addr, cut)
}

#[test]
fn attach_goes_on_where_the_connection_broke() {
    let served = Served::start(&[]);
    let id = detached(&served.addr, &["--timeout", "100s", &kit(), "drip", "4000"]);
    let (addr, cut) = cutting(served.addr.clone());
    let mut attach = asks(&addr, &["attach", &id])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(attach.stdout.take().unwrap());
    let mut printed = String::new();
    for line in 0..1000 {
        out.read_line(&mut printed).unwrap();
        if line % 300 == 299 {
            cut.send(()).unwrap();
        }
    }
    out.read_to_string(&mut printed).unwrap();
    let mut complaints = String::new();
    attach
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut complaints)
        .unwrap();
    assert_eq!(attach.wait().unwrap().code(), Some(0), "{complaints}");
    let whole: String = (0..4000).map(|i| format!("{i:01023}\n")).collect();
    assert!(printed == whole, "{complaints}");
    assert_eq!(
        complaints.matches("attaching again from event").count(),
        3,
        "{complaints}"
    );
    assert!(!complaints.contains("no longer keeps"), "{complaints}");
}

#[test]
fn attach_to_nobody_fails_at_once() {
    let id = format!("{}.x", "0".repeat(32));
    let output = told("127.0.0.1:1", &["attach", &id]);
    assert_eq!(output.status.code(), Some(125));
    let said = text(&output.stderr);
    assert!(said.contains("cannot reach the daemon"));
    // The reason once, not once for each layer that passes it on.
    assert_eq!(said.matches("connection refused").count(), 1, "{said}");
}

#[test]
fn interactive_input_reaches_the_guest_line_by_line() {
    let served = Served::start(&[]);
    for server in [&["--server", served.addr.as_str()][..], &[]] {
        let mut run = ringfence()
            .arg("run")
            .args(server)
            .args(["-i", &kit(), "lines"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = run.stdin.take().unwrap();
        let mut out = BufReader::new(run.stdout.take().unwrap());
        for i in 0..5 {
            writeln!(input, "line {i}").unwrap();
            let mut answer = String::new();
            out.read_line(&mut answer).unwrap();
            assert_eq!(answer, format!("<line {i}>\n"));
        }
        drop(input);
        assert_eq!(run.wait().unwrap().code(), Some(0));
    }
    // A module that is larger than the first message may be is loaded before.
    let large = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-large.wat");
    let padding = "x".repeat(2 << 20);
    let module = format!("(module (memory 1) (data \"{padding}\") (func (export \"_start\")))");
    std::fs::write(&large, module).unwrap();
    let output = ringfence()
        .args(["run", "-i", large.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));
    // A guest that ends before its input does not keep the command.
    let mut run = ringfence()
        .args(["run", "-i", &kit(), "exit", "3"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let _open = run.stdin.take();
    assert_eq!(run.wait().unwrap().code(), Some(3));
}

#[test]
fn a_key_starts_one_run() {
    let served = Served::start(&[]);
    let hello = |args: &[&str]| {
        let kit = kit();
        let key = [
            "run",
            "--no-stream",
            "--output",
            "json",
            "--idempotency-key",
            "k",
            &kit,
        ];
        told(&served.addr, &[&key[..], args].concat())
    };
    let first = hello(&["hello"]);
    assert_eq!(lines(&first), lines(&hello(&["hello"])));
    let other = hello(&["exit", "1"]);
    assert_eq!(other.status.code(), Some(126));
    assert!(text(&other.stderr).contains("IDEMPOTENCY_CONFLICT"));
}

/// What a command says on a terminal, its standard output aside, which goes to `out`.
pub(crate) fn on_a_terminal(args: &[&str], out: &std::path::Path) -> Command {
    let ringfence = ringfence();
    let program = ringfence.get_program().to_str().unwrap();
    let words = args.iter().map(|arg| format!(" '{arg}'"));
    let line = format!(
        "exec '{program}'{} >'{}'",
        words.collect::<String>(),
        out.display()
    );
    let mut command = Command::new("script");
    command
        .args(["-qefc", &line, "/dev/null"])
        .env("SHELL", "/bin/sh")
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// What is still to be seen on a terminal that was told `said`: of each line what came after it was cleared.
fn seen(said: &str) -> String {
    let lines = said.split('\n').map(|line| {
        let after = line.rsplit("\u{1b}[2K").next().unwrap_or_default();
        after.trim_matches('\r').to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A module of at least `size` bytes whose compilation takes a second or more: every loop's head has to carry every
/// local.
fn slow_to_compile(size: usize) -> tempfile::NamedTempFile {
    const LOCALS: usize = 1000;
    const DEPTH: usize = 90;
    let mut body = "(loop ".repeat(DEPTH);
    for i in 0..LOCALS {
        let from = (i * 7 + 1) % LOCALS;
        body.push_str(&format!(
            "(local.set {i} (i32.add (local.get {i}) (local.get {from})))"
        ));
    }
    for i in 0..DEPTH {
        body.push_str(&format!("(br_if 0 (local.get {i})))"));
    }
    let locals = "i32 ".repeat(LOCALS);
    let module = format!("(module (func (export \"_start\")) (func (local {locals}) {body}))");
    let padding = " ".repeat(size.saturating_sub(module.len()));
    let mut file = tempfile::Builder::new()
        .prefix("slow")
        .suffix(".wat")
        .tempfile()
        .unwrap();
    file.write_all(format!("{module}{padding}").as_bytes())
        .unwrap();
    file
}

#[test]
fn a_terminal_is_told_what_is_compiled_and_a_pipe_is_not() {
    // One that goes with the run, and one that is loaded for it, or in pieces.
    let (small, large) = (slow_to_compile(0), slow_to_compile(9 << 20));
    let path = |file: &tempfile::NamedTempFile| file.path().to_str().unwrap().to_owned();
    let (small, large) = (path(&small), path(&large));
    let out = tempfile::NamedTempFile::new().unwrap();
    // One for each load, since the second finds what the first has compiled.
    let served = [Served::start(&[]), Served::start(&[])];
    for args in [
        &["run", &small][..],
        &["run", &large],
        &["run", "-i", &small],
        &["run", "-i", &large],
        &["load", "--server", &served[0].addr, &small],
        &["load", "--server", &served[1].addr, &large],
    ] {
        let name = std::path::Path::new(args.last().unwrap()).file_name();
        let name = name.unwrap().to_str().unwrap();
        let output = on_a_terminal(args, out.path()).output().unwrap();
        let said = text(&output.stdout);
        assert!(
            said.contains(&format!("ringfence: compiling {name} (")),
            "{args:?}: {said:?}"
        );
        assert_eq!(
            seen(said).trim_matches(['\r', '\n']),
            "",
            "{args:?}: {said:?}"
        );
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
    // For programs nothing is drawn, on a terminal or not.
    let json = ["run", "--output", "json", &small];
    let output = on_a_terminal(&json, out.path()).output().unwrap();
    assert_eq!((text(&output.stdout), output.status.code()), ("", Some(0)));
    for args in [&["run", &small][..], &["run", "--no-stream", &large]] {
        let output = ringfence().args(args).output().unwrap();
        assert_eq!(
            (text(&output.stdout), text(&output.stderr)),
            ("", ""),
            "{args:?}"
        );
    }
}

#[test]
fn a_terminal_is_told_that_a_run_waits_until_it_starts() {
    let served = Served::start(&[
        "--set",
        "admission.slots=1",
        "--set",
        "admission.max_wait=60s",
    ]);
    let addr = served.addr.as_str();
    let kit = kit();
    let loaded = told(addr, &["load", &kit]);
    let digest = text(&loaded.stdout).trim_end().to_owned();
    for (args, waits) in [
        (
            &["run", "--server", addr, &kit, "both", "1"][..],
            "to start",
        ),
        (&["run", "--server", addr, &digest, "both", "1"], "to start"),
        (
            &["run", "--server", addr, "-i", &kit, "both", "1"],
            "to start",
        ),
        (
            &["run", "--server", addr, "--no-stream", &kit, "both", "1"],
            "to end",
        ),
    ] {
        let first = detached(addr, &["--timeout", "100s", &digest, "spin"]);
        let out = tempfile::NamedTempFile::new().unwrap();
        let mut run = on_a_terminal(args, out.path()).spawn().unwrap();
        let mut terminal = run.stdout.take().unwrap();
        let mut said = told_until(&mut terminal, waits);
        assert!(
            said.contains("ringfence: waiting for the run of "),
            "{said:?}"
        );
        assert!(!said.contains("err 0"), "{said:?}");
        assert_eq!(told(addr, &["kill", &first]).status.code(), Some(0));
        terminal.read_to_string(&mut said).unwrap();
        // Gone before the guest says anything.
        assert_eq!(
            seen(&said).trim_matches(['\n', '\r']),
            "err 0",
            "{args:?}: {said:?}"
        );
        assert_eq!(run.wait().unwrap().code(), Some(0));
        assert_eq!(std::fs::read(out.path()).unwrap(), b"out 0\n");
    }
}

#[test]
fn a_terminal_that_is_attached_to_a_run_that_waits_is_told_so() {
    let served = Served::start(&[
        "--set",
        "admission.slots=1",
        "--set",
        "admission.max_wait=60s",
    ]);
    let addr = served.addr.as_str();
    let kit = kit();
    let first = detached(addr, &["--timeout", "100s", &kit, "spin"]);
    let mut waits = asks(addr, &["run", &kit, "both", "1"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let id = loop {
        let listed = told(addr, &["ps", "--state", "queued", "--output", "json"]);
        if let Some(run) = lines(&listed).first() {
            break run["run_id"].as_str().unwrap().to_owned();
        }
    };
    let out = tempfile::NamedTempFile::new().unwrap();
    let args = ["attach", "--server", addr, &id];
    let mut attach = on_a_terminal(&args, out.path()).spawn().unwrap();
    let mut terminal = attach.stdout.take().unwrap();
    let mut said = told_until(&mut terminal, "waiting for the run to start");
    assert_eq!(told(addr, &["kill", &first]).status.code(), Some(0));
    terminal.read_to_string(&mut said).unwrap();
    assert_eq!(seen(&said).trim_matches(['\n', '\r']), "err 0", "{said:?}");
    assert_eq!(attach.wait().unwrap().code(), Some(0));
    assert_eq!(waits.wait().unwrap().code(), Some(0));
}

/// What a terminal says until it has said `what`.
pub(crate) fn told_until(terminal: &mut impl Read, what: &str) -> String {
    let mut said = String::new();
    while !said.contains(what) {
        let mut piece = [0; 512];
        let n = terminal.read(&mut piece).unwrap();
        assert!(n > 0, "no {what} in {said:?}");
        said.push_str(&String::from_utf8_lossy(&piece[..n]));
    }
    said
}

#[test]
fn a_limit_of_nothing_is_refused_rather_than_taken_for_the_default() {
    let kit = kit();
    for (flag, none, least) in [
        ("--timeout", "0s", "10s"),
        ("--memory-pages", "0", "300"),
        ("--fuel", "0", "1000000000"),
        ("--stack", "0", "65536"),
        ("--output-limit", "0B", "6"),
    ] {
        let run = |value: &str| {
            ringfence()
                .args(["run", flag, value, &kit, "hello"])
                .output()
        };
        let output = run(none).unwrap();
        assert_eq!(output.status.code(), Some(125), "{flag}");
        assert!(text(&output.stderr).contains(flag), "{output:?}");
        let output = run(least).unwrap();
        assert_eq!(
            (text(&output.stdout), output.status.code()),
            ("hello\n", Some(0)),
            "{flag}"
        );
    }
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    let kit = kit();
    for args in [
        &["--detach", &kit][..],
        &["-i", "--stdin", "x", &kit],
        &["-i", "--no-stream", &kit],
        &["-i", "-"],
        &["--idempotency-key", "k", &kit],
        &["--server", "127.0.0.1:1", "-i", "-d", &kit],
    ] {
        let output = ringfence().arg("run").args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{args:?}");
        let said = text(&output.stderr);
        let why = ["cannot be used with", "required", "cannot be both"];
        assert!(why.iter().any(|why| said.contains(why)), "{args:?}: {said}");
    }
}
