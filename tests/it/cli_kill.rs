//! `ringfence kill --label`: what it asks on a terminal, what it ends, and what it prints.

use std::io::{Read, Write};
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use crate::cli::kit;
use crate::cli_runs::{detached, lines, on_a_terminal, text, told, told_until};
use crate::process::{Served, ringfence};

/// Starts a run that goes on until it is ended, and returns its id.
fn spins(addr: &str, label: &str) -> String {
    detached(
        addr,
        &["--label", label, "--timeout", "100s", &kit(), "spin"],
    )
}

/// The ids of the runs in flight, the oldest first.
fn in_flight(addr: &str) -> Vec<String> {
    let listed = lines(&told(addr, &["ps", "--output", "json"]));
    let ids = listed
        .iter()
        .rev()
        .map(|run| run["run_id"].as_str().unwrap().to_owned());
    ids.collect()
}

#[track_caller]
fn is(output: &Output, code: i32, out: &str, err: &str) {
    let said = (text(&output.stdout), text(&output.stderr));
    assert_eq!((said, output.status.code()), ((out, err), Some(code)));
}

#[test]
fn runs_are_ended_by_label_without_a_question_where_that_was_agreed_to() {
    let served = Served::start(&["--set", "server.instance=here"]);
    let addr = served.addr.as_str();
    let [first, second, third] = ["job=x", "job=x", "job=y"].map(|label| spins(addr, label));
    let both = format!("{first}\n{second}\n");

    // A dry run needs no agreement, and changes nothing.
    let output = told(addr, &["kill", "--label", "job=x", "--dry-run"]);
    is(&output, 0, &both, "ringfence: 2 runs would be ended\n");
    let output = told(addr, &["kill", "--label", "job=y", "--dry-run", "--yes"]);
    is(
        &output,
        0,
        &format!("{third}\n"),
        "ringfence: 1 run would be ended\n",
    );
    let output = told(
        addr,
        &["kill", "--label", "job=x", "--dry-run", "--output", "json"],
    );
    let row = |id: &str, cancelled: bool| -> Value {
        json!({ "run_id": id, "found": "running", "cancelled": cancelled })
    };
    assert_eq!(lines(&output), [row(&first, false), row(&second, false)]);
    assert_eq!(
        in_flight(addr),
        [&first, &second, &third].map(String::clone)
    );

    // Nothing matches, which is no failure.
    for args in [
        &["--label", "job=z", "--yes"][..],
        &["--label", "job=z", "--dry-run"],
        &["--label", "job=x", "--label", "other=1", "-y"],
        &[
            "--label",
            "job=x",
            "--state",
            "queued",
            "--state",
            "compiling",
            "-y",
        ],
    ] {
        let output = told(addr, &[&["kill"], args].concat());
        is(&output, 0, "", "ringfence: no run in flight matches\n");
    }
    assert_eq!(in_flight(addr).len(), 3);

    let args = ["kill", "--label", "job=x", "--state", "running", "--yes"];
    is(&told(addr, &args), 0, &both, "");
    assert_eq!(in_flight(addr), [third.as_str()]);
    let output = told(
        addr,
        &["kill", "--label", "job=y", "-y", "--output", "json"],
    );
    assert_eq!(lines(&output), [row(&third, true)]);
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));

    // By id, in the same form.
    let fourth = spins(addr, "job=y");
    let output = told(addr, &["kill", "--output", "json", &fourth, &first]);
    let ended = json!({ "run_id": first, "found": "ended", "cancelled": false });
    assert_eq!(lines(&output), [row(&fourth, true), ended]);
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(0)));
    let unknown = format!("{}.here", "0".repeat(32));
    let output = told(addr, &["kill", "--output", "json", &unknown]);
    assert_eq!(lines(&output)[0]["error"]["reason"], "RUN_NOT_FOUND");
    assert_eq!(output.status.code(), Some(126));
}

#[test]
fn flags_that_do_not_go_together_end_nothing() {
    let served = Served::start(&[]);
    let addr = served.addr.as_str();
    let id = spins(addr, "job=x");
    for (args, why) in [
        (&[][..], "required"),
        (&["--yes"], "required"),
        (&["--dry-run"], "required"),
        (&["--label", "job=x", "--yes", &id], "cannot be used with"),
        (&[&id, "--yes"], "cannot be used with"),
        (&[&id, "--dry-run"], "cannot be used with"),
        (&[&id, "--state", "running"], "cannot be used with"),
        (
            &["--label", "job=x", "--yes", "--state", "ended"],
            "invalid value",
        ),
        (&["--label", "job", "--yes"], "KEY=VALUE"),
        (
            &["--label", "job=x", "--label", "job=x", "--yes"],
            "given twice",
        ),
        (
            &["--label", "job=y", "--label", "job=x", "--yes"],
            "\"job\"",
        ),
        // Nobody can be asked.
        (&["--label", "job=x"], "--yes"),
        (&["--label", "job=x", "--state", "running"], "no terminal"),
    ] {
        let output = told(addr, &[&["kill"], args].concat());
        let said = text(&output.stderr);
        assert_eq!(
            (text(&output.stdout), output.status.code()),
            ("", Some(125)),
            "{said}"
        );
        assert!(said.contains(why), "{args:?}: {said}");
    }
    let output = told(addr, &["kill", "--label", "job=x", "--output", "json"]);
    let failure = &lines(&output)[0]["error"];
    assert!(
        failure["message"].as_str().unwrap().contains("--yes"),
        "{failure}"
    );
    assert_eq!(
        (&failure["code"], output.status.code()),
        (&Value::Null, Some(125))
    );
    // What the daemon refuses.
    let reserved = ["kill", "--label", "ringfence.a=b", "--yes"];
    let output = told(addr, &reserved);
    assert_eq!(output.status.code(), Some(126));
    let said = text(&output.stderr);
    assert!(
        said.starts_with("ringfence: refused: SPEC_INVALID: labels"),
        "{said}"
    );
    assert_eq!(in_flight(addr), [id]);
}

/// What a terminal says to the command, whose answer to the question is `answer`; an empty one is its end of file. Also
/// the code, and what went to standard output.
fn asked(args: &[&str], answer: &str) -> (String, Option<i32>, String) {
    let out = tempfile::NamedTempFile::new().unwrap();
    let mut command = on_a_terminal(args, out.path());
    let mut command = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut terminal = command.stdout.take().unwrap();
    let mut said = told_until(&mut terminal, "[y/N] ");
    let mut keys = command.stdin.take().unwrap();
    keys.write_all(answer.as_bytes()).unwrap();
    keys.flush().unwrap();
    if answer.is_empty() {
        drop(keys);
        terminal.read_to_string(&mut said).unwrap();
    } else {
        // Held until the command has ended: the end of its keys is none of this terminal's input.
        terminal.read_to_string(&mut said).unwrap();
        drop(keys);
    }
    let code = command.wait().unwrap().code();
    (said, code, std::fs::read_to_string(out.path()).unwrap())
}

#[test]
fn a_terminal_is_asked_and_only_yes_ends_runs() {
    let served = Served::start(&["--set", "server.instance=here"]);
    let addr = served.addr.as_str();
    let [first, second, third] = ["job=x", "job=x", "job=y"].map(|label| spins(addr, label));
    let kill = ["kill", "--server", addr, "--label", "job=x"];
    for answer in [
        "n\n",
        "\n",
        "no\n",
        "yep\n",
        "",
        "\u{e4}\n",
        "N\n",
        "y\u{4}\u{4}",
    ] {
        let (said, code, out) = asked(&kill, answer);
        let shown = format!("{first} running\r\n{second} running\r\nEnd 2 runs? [y/N] ");
        assert!(said.starts_with(&shown), "{answer:?}: {said:?}");
        assert!(said.contains("ringfence: nothing was ended"), "{said:?}");
        assert_eq!((code, out.as_str()), (Some(1), ""), "{answer:?}: {said:?}");
    }
    assert_eq!(in_flight(addr).len(), 3);

    let (said, code, out) = asked(&kill, "y\n");
    assert_eq!(
        (code, out),
        (Some(0), format!("{first}\n{second}\n")),
        "{said:?}"
    );
    assert_eq!(in_flight(addr), [third.as_str()]);
    let json = [
        "kill", "--server", addr, "--label", "job=y", "--output", "json",
    ];
    let (said, code, out) = asked(&json, " Yes \n");
    assert!(said.contains("End 1 run? [y/N] "), "{said:?}");
    let row: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &row["run_id"], &row["cancelled"]),
        (Some(0), &json!(third), &json!(true))
    );
    assert!(in_flight(addr).is_empty());
}

#[test]
fn a_terminal_is_asked_nothing_where_nothing_is_to_be_asked() {
    let served = Served::start(&[]);
    let addr = served.addr.as_str();
    let id = spins(addr, "job=x");
    let out = tempfile::NamedTempFile::new().unwrap();
    let kill = |args: &[&str]| {
        let args = [&["kill", "--server", addr], args].concat();
        let output = on_a_terminal(&args, out.path()).output().unwrap();
        let said = text(&output.stdout).to_owned();
        assert!(!said.contains("[y/N]"), "{said:?}");
        assert_eq!(output.status.code(), Some(0), "{said:?}");
        (said, std::fs::read_to_string(out.path()).unwrap())
    };
    let (said, printed) = kill(&["--label", "job=y"]);
    assert!(said.contains("no run in flight matches"), "{said:?}");
    assert_eq!(printed, "");
    assert_eq!(
        kill(&["--label", "job=x", "--dry-run"]).1,
        format!("{id}\n")
    );
    assert_eq!(in_flight(addr), [id.as_str()]);
    assert_eq!(kill(&["--label", "job=x", "--yes"]).1, format!("{id}\n"));
    assert!(in_flight(addr).is_empty());
}

#[test]
fn a_terminal_is_shown_no_more_runs_than_fit_on_it() {
    let served = Served::start(&["--set", "admission.slots=32"]);
    let addr = served.addr.as_str();
    let digest = text(&told(addr, &["load", &kit()]).stdout)
        .trim_end()
        .to_owned();
    let sleeps = [
        "--label",
        "job=x",
        "--timeout",
        "100s",
        &digest,
        "sleep",
        "3600000",
    ];
    let mut ids: Vec<String> = (0..20).map(|_| detached(addr, &sleeps)).collect();
    for more in [0, 1, 2] {
        let (said, code, _) = asked(&["kill", "--server", addr, "--label", "job=x"], "n\n");
        let shown: String = ids
            .iter()
            .take(20)
            .map(|id| format!("{id} running\r\n"))
            .collect();
        let rest = match more {
            0 => String::new(),
            _ => format!("and {more} more; --dry-run lists them\r\n"),
        };
        let all = ids.len();
        let expected = format!("{shown}{rest}End {all} runs? [y/N] ");
        assert!(said.starts_with(&expected), "{said:?}");
        assert_eq!(code, Some(1));
        ids.push(detached(addr, &sleeps));
    }
}

#[test]
fn matching_runs_end_though_nobody_reads_of_it() {
    let served = Served::start(&[]);
    let addr = served.addr.as_str();
    spins(addr, "job=x");
    spins(addr, "job=x");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = ringfence()
        .args(["kill", "--server", addr, "--label", "job=x", "--yes"])
        .stdout(writer)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(141));
    assert!(in_flight(addr).is_empty());
}
