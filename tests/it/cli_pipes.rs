//! Where the command line's output goes: readers that leave, disks that are full; and signals.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::cli::kit;
use crate::harness::PATIENCE;
use crate::process::{Served, interruptible, ringfence};

/// A module whose entry point returns a number.
const ANSWER: &str = "(module (func (export \"f\") (result i32) (i32.const 42)))";

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Every command that prints something, with its arguments.
fn printing(served: &Served) -> Vec<Vec<String>> {
    let kit = kit();
    let answer = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-answer.wat");
    std::fs::write(&answer, ANSWER).unwrap();
    let answer = answer.to_str().unwrap();
    let at = ["--server", served.addr.as_str()];
    let loaded = ringfence().arg("load").args(at).arg(&kit).output().unwrap();
    let digest = text(&loaded.stdout).trim_end().to_owned();
    let ran = ringfence()
        .args(["run", "--detach"])
        .args(at)
        .args([&digest, "hello"])
        .output()
        .unwrap();
    let id = text(&ran.stdout).trim_end().to_owned();
    // It has ended when this has.
    let attached = ringfence().arg("attach").args(at).arg(&id).output();
    assert_eq!(attached.unwrap().stdout, b"hello\n");
    let own: [&[&str]; 13] = [
        &["--help"],
        &["--version"],
        &["help", "run"],
        &["completions", "bash"],
        &["man"],
        &["config", "show"],
        &["config", "check"],
        &["run", &kit, "hello"],
        &["run", "--no-stream", &kit, "hello"],
        &["run", "--output", "json", &kit, "hello"],
        &["run", "--entry", "f", answer],
        &["run", "--output", "json", "nowhere.wasm"],
        &["token", "somebody"],
    ];
    let daemons: [&[&str]; 14] = [
        &["ps", "--all"],
        &["ps", "--watch"],
        &["ps", "--all", "--output", "json"],
        &["modules", "ls"],
        &["modules", "show", &digest],
        &["load", &kit],
        &["load", "--output", "json", &kit],
        &["inspect", &id],
        &["attach", &id],
        &["top"],
        &["top", "--once"],
        &["top", "--output", "json"],
        &["health"],
        &["health", "--output", "json"],
    ];
    let own = own.iter().map(|args| args.to_vec());
    let daemons = daemons.iter().map(|args| [args, &at[..]].concat());
    let words = |args: Vec<&str>| args.into_iter().map(str::to_owned).collect();
    own.chain(daemons).map(words).collect()
}

fn to(stdout: Stdio, args: &[String]) -> Output {
    ringfence()
        .args(args)
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap()
}

#[test]
fn a_reader_that_left_ends_every_command_quietly() {
    let served = Served::start(&[]);
    for args in printing(&served) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = to(writer.into(), &args);
        let told = text(&output.stderr);
        match args[0].as_str() {
            // What it says beside the token.
            "token" => assert_eq!(told.lines().count(), 1, "{told}"),
            // A failure is one whoever reads it.
            _ if args.contains(&"nowhere.wasm".to_owned()) => {
                assert_eq!(output.status.code(), Some(125), "{args:?}");
                continue;
            }
            _ => assert_eq!(told, "", "{args:?}"),
        }
        assert_eq!(output.status.code(), Some(141), "{args:?}");
    }
}

#[test]
fn a_full_disk_fails_every_command() {
    let served = Served::start(&[]);
    for args in printing(&served) {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = to(full.into(), &args);
        assert_eq!(output.status.code(), Some(125), "{args:?} {output:?}");
        let told = text(&output.stderr);
        if !args.contains(&"nowhere.wasm".to_owned()) {
            assert!(told.contains("No space left on device"), "{args:?} {told}");
        }
        assert!(!told.contains("panicked"), "{args:?} {told}");
    }
}

#[test]
fn what_watches_ends_with_its_reader_though_nothing_happens() {
    let served = Served::start(&[]);
    let spins = ringfence()
        .args([
            "run",
            "--detach",
            "--server",
            &served.addr,
            "--timeout",
            "100s",
        ])
        .args([&kit(), "spin", "going"])
        .output()
        .unwrap();
    let id = text(&spins.stdout).trim_end();
    for args in [
        &["ps", "--watch"][..],
        &["attach", id],
        &["top", "--interval", "1m"],
    ] {
        let mut child = ringfence()
            .args(args)
            .args(["--server", &served.addr])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert!(!line.is_empty());
        drop(out);
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            (output.status.code(), text(&output.stderr)),
            (Some(141), ""),
            "{args:?}"
        );
    }
}

#[test]
fn a_run_whose_output_nobody_reads_is_cancelled() {
    let served = Served::start(&[]);
    let mut child = ringfence()
        .args(["run", "--server", &served.addr, "--timeout", "100s"])
        .args([&kit(), "drip", "100000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Some of it is read.
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 1]).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), text(&output.stderr)),
        (Some(141), "")
    );
    let run = loop {
        let listed = ringfence()
            .args(["ps", "--state", "ended", "--output", "json"])
            .args(["--server", &served.addr])
            .output()
            .unwrap();
        if let Some(line) = text(&listed.stdout).lines().next() {
            break serde_json::from_str::<Value>(line).unwrap();
        }
    };
    assert_eq!(run["result"]["cancel_cause"], "CANCEL_CAUSE_CALLER_GONE");
}

/// A run that goes on until a signal ends it, which a shell begins after `first`.
fn spinning(
    first: &str,
    flags: &[&str],
) -> (std::process::Child, BufReader<std::process::ChildStdout>) {
    let program = ringfence();
    let mut child = interruptible("sh")
        .args(["-c", &format!("{first} exec \"$0\" \"$@\"")])
        .arg(program.get_program())
        .args(["run", "--timeout", "60s"])
        .args(flags)
        .args([&kit(), "spin", "going"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    if !flags.contains(&"--output") {
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "going\n");
    }
    (child, out)
}

fn signal(child: &std::process::Child, name: &str) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([name, &pid])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn signals_cancel_the_run() {
    for (name, did) in [
        ("-INT", "interrupted"),
        ("-TERM", "terminated"),
        ("-HUP", "hung up"),
    ] {
        let (child, _out) = spinning("", &[]);
        signal(&child, name);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(137), "{name}");
        assert_eq!(
            text(&output.stderr),
            format!("ringfence: cancelled: {did}\n")
        );
    }
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let (mut child, mut out) = spinning("trap '' HUP INT;", &[]);
    for name in ["-HUP", "-INT"] {
        signal(&child, name);
    }
    assert!(child.try_wait().unwrap().is_none());
    signal(&child, "-TERM");
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(137));
    assert_eq!(text(&output.stderr), "ringfence: cancelled: terminated\n");
}

#[test]
fn a_second_signal_ends_it_at_once_though_nobody_takes_its_output() {
    let mut child = interruptible(ringfence().get_program())
        .args(["run", "--timeout", "60s", &kit(), "flood", "100000000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 1]).unwrap();
    let start = Instant::now();
    let status = loop {
        assert!(start.elapsed() < PATIENCE, "it goes on");
        signal(&child, "-INT");
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
    };
    assert_eq!(status.code(), Some(130));
}

#[test]
fn an_interrupted_run_is_told_as_json_too() {
    let served = Served::start(&[]);
    let (child, mut out) = spinning("", &["--output", "json", "--server", &served.addr]);
    // It listens for signals before it asks for its run.
    let seen = || {
        let listed = ringfence().args(["ps", "--server", &served.addr]).output();
        text(&listed.unwrap().stdout).lines().count() > 1
    };
    while !seen() {}
    signal(&child, "-TERM");
    let mut told = String::new();
    out.read_to_string(&mut told).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["error"]["message"], "cancelled: terminated");
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(137));
}

#[test]
fn what_is_to_be_ended_ends_though_nobody_reads_of_it() {
    let served = Served::start(&[]);
    let at = ["--server", served.addr.as_str()];
    let ids = [0, 1].map(|_| {
        let spins = ringfence()
            .args(["run", "--detach", "--timeout", "100s"])
            .args(at)
            .args([&kit(), "spin"])
            .output()
            .unwrap();
        text(&spins.stdout).trim_end().to_owned()
    });
    let digests = ["(module)", ANSWER].map(|module| {
        let mut load = ringfence()
            .args(["load", "-"])
            .args(at)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut load.stdin.take().unwrap(), module.as_bytes()).unwrap();
        let output = load.wait_with_output().unwrap();
        text(&output.stdout).trim_end().to_owned()
    });
    for (command, what) in [(&["kill"][..], &ids), (&["modules", "rm"], &digests)] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let words = command.iter().chain(&at).map(|word| (*word).to_owned());
        let args: Vec<String> = words.chain(what.iter().cloned()).collect();
        assert_eq!(
            to(writer.into(), &args).status.code(),
            Some(141),
            "{args:?}"
        );
    }
    for listing in [
        &["ps", "--output", "json"][..],
        &["modules", "ls", "--output", "json"],
    ] {
        let listed = ringfence().args(listing).args(at).output().unwrap();
        assert_eq!(text(&listed.stdout), "", "{listing:?}");
    }
}
